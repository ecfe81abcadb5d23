"""The user's API: images in, captions out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from prefixcap import renamed, reranking
from prefixcap.checkpoints import pretrained
from prefixcap.checkpoints.clipcap_weights import is_clipcap, read_clipcap
from prefixcap.checkpoints.descriptions import require_description, require_mapper
from prefixcap.checkpoints.files import captioner_state_dict, file_with_weights, read_file, require_checkpoint
from prefixcap.decoding import check_decoder, draws, random_generator
from prefixcap.decoding import decode as decode_tokens
from prefixcap.encoders import Encoder, embed_images, load_encoder
from prefixcap.encoders.inputs import Images, as_embeddings, check_finite, check_images
from prefixcap.encoders.missing import missing_encoder
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.language import LanguageModel, rebuild_language_model
from prefixcap.model import PrefixLM
from prefixcap.pipeline import own_options
from prefixcap.sampling import Sampling
from prefixcap.utils.hub import naming
from prefixcap.utils.options import Count, Positive, check_value
from prefixcap.weights import shapes_of


class Captioner(PrefixLM):
    """A `PrefixLM` with its encoder: captions of images, embeddings, patches or regions.

    Args, attributes: as `PrefixLM`.

    Examples:
        >>> captioner = load("best.ckpt")
        >>> captions = captioner.caption(["photo.jpg", "another.png"], decode="beam", beams=3)
        >>> len(captions)
        2
        >>> best, second = captioner.candidates(["photo.jpg"], count=2, decode="nucleus", seed=0)[0]
        >>> embeddings = captioner.embed(["photo.jpg"])  # once, where the same images are captioned again
        >>> captioner.caption(embeddings) == captioner.caption(["photo.jpg"])
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._encoder: list[Encoder] = []  # in a list, so that its weights do not become the captioner's

    def caption(
        self,
        images: Images,
        decode: str = "beam",
        batch_size: int = 32,
        progress: bool = False,
        rerank: int = 0,
        **options: Any,
    ) -> list[str]:
        """One caption of each image.

        Args:
            images, decode, batch_size, progress: as in `candidates`.
            rerank: generate so many candidates and return the one that the encoder finds closest to the image; 0: the
                decoder's best.
            options: the decoder's, and the others of `candidates`.

        Raises:
            InputError: as `candidates`.
        """
        rerank = check_value("rerank", rerank, Annotated[int, Ge(0)])
        if wrong := {"count", "by_similarity"} & options.keys():
            raise InputError(f"caption gives one caption of an image and takes no {min(wrong)}: call candidates")
        candidates = self.candidates(
            images, rerank or 1, decode, batch_size, progress, by_similarity=rerank > 0, **options
        )
        return [captions[0] for captions in candidates]

    def candidates(
        self,
        images: Images,
        count: int,
        decode: str = "beam",
        batch_size: int = 32,
        progress: bool = False,
        by_similarity: bool = False,
        embeddings: Tensor | NDArray[np.floating[Any]] | None = None,
        prompt: str = "",
        seed: int | torch.Generator | None = None,
        **options: Any,
    ) -> list[list[str]]:
        """Several captions of each image, the best first.

        Args:
            images: paths or PIL images, which the captioner's own encoder embeds (it is loaded when first needed),
                or (batch, dim) embeddings as that encoder gives them, see `prefix`: a tensor or array of any kind of
                real numbers, which are read as float32.
            count: how many for each image.
            decode: name of a decoder, see `prefixcap.decoding.DECODERS`.
            batch_size: images that are captioned together.
            progress: show a progress bar on stderr, if it takes longer than a second.
            by_similarity: order captions by the cosine of their text embedding with the image's, the closest first.
            embeddings: (batch, dim) of the whole images, for `by_similarity` and `unit_parts` where `images` are
                patches or regions; None: the encoder computes them from images that are given as such.
            prompt: how every caption begins, e.g. "a photo of"; spaces at its ends do not count.
            seed: of the noise, or of what a decoder draws, 0 to 2**63 - 1; or a generator, on the CPU, to draw from.
            options: the decoder's, e.g. `beams=5`, `max_tokens=67`, and those of `prefixcap.sampling.Sampling`.

        Raises:
            InputError: an image cannot be read, the embeddings are of another width, NaN or infinite, the encoder
                cannot be loaded or has other weights than the one trained with, the decoder or an option of it does
                not exist or is out of its range, or the decoder returns fewer captions than `count`.
        """
        count = check_value("count", count, Count)
        batch_size = check_value("batch_size", batch_size, Positive)
        sampling = Sampling.take_from(options)
        images = self._check_images(images)
        divide = sampling.unit_parts and self.features is not Feature.IMAGE
        self._check_embeddings_given(images, embeddings is not None, by_similarity, divide)
        whole = None if embeddings is None else self._check_embeddings(embeddings, len(images))

        generator = random_generator(seed)
        if "generator" in options:
            raise InputError(f"decoder '{decode}' has no option 'generator': seed takes a number or a generator")
        check_decoder(decode, sampling.decoded_per_row(count), options)
        if draws(decode):
            options["generator"] = generator
        elif seed is not None and not sampling.noise:
            raise InputError(f"seed is for what is drawn at random, and '{decode}' does not draw: leave it out")
        prompt_ids = self.language_model.tokenize_prompt(prompt)

        if sampling.noise:  # each candidate takes a row of a batch
            batch_size = max(1, batch_size // count)
        training = self.training
        self.eval()
        captions: list[list[str]] = []
        bar = tqdm(total=len(images), unit=" images", disable=not progress, delay=1)
        try:
            with torch.inference_mode(), bar:
                for start in range(0, len(images), batch_size):
                    batch = slice(start, start + batch_size)
                    features = self.embed(images[batch])
                    compared = features if self.features is Feature.IMAGE else None  # with captions
                    if whole is not None:
                        compared = whole[batch]
                    elif compared is None and (by_similarity or divide):
                        compared = self.embed(images[batch], Feature.IMAGE)
                    inputs = sampling.inputs(features, compared if divide else None, count, generator)
                    prefix = self.append_tokens(self.prefix(inputs), prompt_ids)
                    input_ids = decode_tokens(
                        self.language_model, prefix, decode, sampling.decoded_per_row(count), **options
                    )
                    texts = [[self.language_model.detokenize(prompt_ids + ids) for ids in row] for row in input_ids]
                    candidates = sampling.candidates(texts, count)
                    if by_similarity and compared is not None:
                        candidates = reranking.rerank(self.encoder(), compared, candidates, sampling.rerank_characters)
                    captions += candidates
                    bar.update(len(features))
        finally:
            self.train(training)
        return captions

    def forward(
        self, images: str | Path | Image.Image | Images, **options: Any
    ) -> list[dict[str, str]] | list[list[dict[str, str]]]:
        """`captioner("a.jpg")` -> `[{"generated_text": …}]`, as image-to-text pipelines of transformers had it.

        Args:
            images: one, or several as in `candidates`; several give a list for each.
            options: as such a pipeline takes them, see `prefixcap.pipeline`, and those of `candidates`.

        Raises:
            InputError: as `candidates`, or an option has no counterpart here.
        """
        one = isinstance(images, str | Path | Image.Image)
        several: Images = [images] if isinstance(images, str | Path | Image.Image) else images
        candidates = self.candidates(several, **own_options(options))
        texts = [[{"generated_text": caption} for caption in captions] for captions in candidates]
        return texts[0] if one else texts

    def similarities(self, embeddings: Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The cosine of each caption with its image, by the captioner's encoder, see `prefixcap.reranking`."""
        return reranking.similarities(self.encoder(), embeddings, captions)

    def embed(self, images: Images, features: str | None = None) -> Tensor:
        """What `prefix` reads of images, by the captioner's own encoder; embeddings are returned as they are.

        Args:
            images: paths or PIL images, or embeddings.
            features: another feature than that of the attribute `features`, e.g. `Feature.IMAGE`.

        Raises:
            InputError: an image cannot be read, or the encoder cannot be loaded.
        """
        checked = check_images(images)
        if isinstance(checked, Tensor):
            return checked
        # A copy is no inference tensor, which `prefix` could not be differentiated through.
        return embed_images(self.encoder(), checked, Feature.parse(features or self.features)).clone()

    def encoder(self) -> Encoder:
        """The encoder whose embeddings the captioner reads, on the captioner's device; loaded when first asked for.

        Raises:
            InputError: it cannot be loaded, or its weights are not those that the captioner was trained with.
        """
        if not self._encoder:
            encoder = load_encoder(self.encoder_identity.name, self.device)
            if not encoder.identity.agrees_with(self.encoder_identity):
                raise InputError(
                    f"encoder '{encoder.identity.name}' has other weights ({encoder.identity.digest[:8]}) than the "
                    f"one that the captioner was trained with ({self.encoder_identity.digest[:8]}): restore that one"
                )
            self._encoder.append(encoder)
        return self._encoder[0]

    @classmethod
    def build(
        cls,
        description: dict[str, Any],
        language_model: LanguageModel | None = None,
        weights: Mapping[str, Tensor] | None = None,
        source: str | Path = "the description",
    ) -> "Captioner":
        """The captioner that `describe` described, with weights still to be loaded.

        Args:
            description: from `describe`.
            language_model: the one to use; None rebuilds the one described.
            weights: those that will be loaded: of a description that somebody else wrote, nothing is built that they do
                not fill. None: the description is one's own.
            source: the file that it is from, for messages.

        Raises:
            InputError: the description is of another format or not laid out as one, the language model cannot be
                loaded, or the weights are not those of what is described.
        """
        require_description(description, source)
        encoder = EncoderIdentity(**description["encoder"])
        shapes = None if weights is None else shapes_of(weights)
        if language_model is None:
            with naming(missing_encoder, encoder.name):
                language_model = rebuild_language_model(description["language_model"], shapes, source)
        if shapes is not None:
            require_mapper(description["mapper"], encoder.dim, language_model.dim, shapes, source)
        return cls(
            language_model,
            encoder,
            description["mapper"],
            description["normalize_embeddings"],
            description["trained_on"],
            description.get("start_token", False),  # an older one does not say
        )

    def save_pretrained(self, folder: str | Path, license: str = "unknown") -> None:
        """Write safetensors, JSON and a model card to a folder, see `prefixcap.checkpoints.pretrained.save`."""
        pretrained.save(self, Path(folder), license)

    def push_to_hub(self, name: str, license: str = "unknown", private: bool = False) -> str:
        """Put what `save_pretrained` writes on the model hub, see `prefixcap.checkpoints.pretrained.push`."""
        return pretrained.push(self, name, license, private)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "Captioner":
        """The captioner in a folder that `save_pretrained` wrote, or on the model hub, in eval mode.

        Args:
            name: of the folder; or on the hub, e.g. "someone/captioner", if there is no such folder.
            revision: a branch, tag or commit of the hub's.

        Raises:
            InputError: there is no captioner, or a file of it is missing or damaged, or it cannot be downloaded.
        """
        folder = pretrained.downloaded(str(name), revision) if pretrained.is_hub_name(name) else Path(name)
        description, weights = pretrained.read_folder(folder)
        language_model = pretrained.load_own_language_model(folder, description["language_model"])
        captioner = cls.build(description, language_model, weights, folder / pretrained.CONFIG)
        tuned = {k: v for k, v in captioner.checkpoint_state_dict().items() if k.startswith("language_model.")}
        captioner.load_checkpoint_state_dict(weights | tuned, folder / pretrained.MAPPER)
        captioner.source = folder
        return captioner.eval()

    own_weights = renamed.method("own_weights", PrefixLM.checkpoint_state_dict)
    load_own_weights = renamed.method("load_own_weights", PrefixLM.load_checkpoint_state_dict)

    def _check_images(self, images: Images) -> Sequence[str | Path | Image.Image] | Tensor:
        """Images that can be read, and embeddings of the right shape, all finite. Raises InputError otherwise."""
        checked = check_images(images)
        if isinstance(checked, Tensor):
            self.check_shape(checked)
            check_finite(checked)
        return checked

    def _check_embeddings(self, embeddings: Tensor | NDArray[Any], images: int) -> Tensor:
        """(images, dim) embeddings of the whole images. Raises InputError if they have another shape."""
        checked, shape = as_embeddings(embeddings), (images, self.encoder_identity.dim)
        if checked.shape != shape:
            raise InputError(f"embeddings= of shape {tuple(checked.shape)}: give {shape}, one for each image")
        check_finite(checked)
        return checked

    def _check_embeddings_given(
        self, images: Sequence[object] | Tensor, given: bool, by_similarity: bool, divide: bool
    ) -> None:
        """Raise InputError where the embeddings of whole images are needed, and cannot be computed from `images`."""
        lacking = isinstance(images, Tensor) and self.features is not Feature.IMAGE and not given
        if by_similarity and lacking:
            raise InputError(
                f"rerank compares captions with the image's embedding, not with {self.features}: give embeddings, too"
            )
        if divide and (lacking or self.features is not Feature.REGIONS):
            remedy = "give embeddings, too" if self.features is Feature.REGIONS else "leave it out"
            raise InputError(
                f"unit_parts divides regions by the image's embedding, and this captioner reads {self.features}: "
                f"{remedy}"
            )


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    tokenizer: str | None = None,
    normalize_embeddings: bool | None = None,
) -> Captioner:
    """Load a captioner, in eval mode, ready to caption.

    Args:
        path: a checkpoint (`….ckpt`) that training wrote, a folder that `save_pretrained` wrote, or weights (`….pt`)
            that the authors of ClipCap published; or a captioner's name on the model hub, e.g. "someone/captioner".
            Pickled code in a file is never run.
        device: where to put it.
        tokenizer: only for published weights: GPT-2's, as a folder or by its name on the model hub; None: "gpt2".
        normalize_embeddings: only for published weights: whether to scale embeddings to length one; None: as their
            authors do, yes for the transformer and no for the MLP.

    Raises:
        InputError: there is no such file, it is no captioner's, its language model or tokenizer cannot be found, or it
            does not take an argument.

    Examples:
        >>> captioner = load("best.ckpt")  # it is `prefixcap.load`, too
        >>> len(captioner.caption(["photo.jpg", "another.png"], decode="beam"))
        2
    """
    path = pretrained.downloaded(str(path)) if pretrained.is_hub_name(path) else file_with_weights(Path(path))
    content: Any = None if path.is_dir() else read_file(path)
    if is_clipcap(content):
        parts = read_clipcap(content, path, tokenizer or "gpt2", normalize_embeddings)
        captioner = Captioner(parts.language_model, parts.encoder, parts.mapper, parts.normalize_embeddings)
        captioner.load_checkpoint_state_dict(parts.weights, path)
    elif tokenizer is not None or normalize_embeddings is not None:
        given = "normalize_embeddings" if tokenizer is None else "tokenizer"
        raise InputError(f"{path} says by itself what it needs, as no file that ClipCap published: leave out {given}")
    elif path.is_dir():
        captioner = Captioner.from_pretrained(path)
    else:
        checkpoint = require_checkpoint(content, path)
        weights = captioner_state_dict(checkpoint)
        captioner = Captioner.build(checkpoint["prefixcap"], weights=weights, source=path)
        captioner.load_checkpoint_state_dict(weights, path)
        captioner.source = path
    return captioner.to(device).eval()
