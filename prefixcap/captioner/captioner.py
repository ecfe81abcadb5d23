"""The captioner: captions images, and is saved to a folder or the model hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from prefixcap import renamed, reranking
from prefixcap.captioner.beside import captions_beside, ranked
from prefixcap.captioner.retrieving import RetrievingLM
from prefixcap.checkpoints import pretrained
from prefixcap.checkpoints.descriptions import require_description, require_mapper
from prefixcap.checkpoints.paths import CONFIG
from prefixcap.decoding import check_decoder, draws, random_generator
from prefixcap.encoders import Encoder, embed_images, load_encoder, preprocess_images
from prefixcap.encoders.inputs import Images, check_embeddings, check_finite, check_images, require_embeddings
from prefixcap.encoders.missing import missing_encoder
from prefixcap.errors import InputError, OptionError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.language import Dtype, LanguageModel, rebuild_language_model
from prefixcap.model import PrefixLM
from prefixcap.pipeline import own_options
from prefixcap.sampling import Sampling
from prefixcap.utils.hub import naming
from prefixcap.utils.options import Count, Positive, check_value
from prefixcap.weights import shapes_of

if TYPE_CHECKING:
    from prefixcap.consensus import Consensus


class Captioner(RetrievingLM):
    """A `PrefixLM` together with its encoder: captions images, or embeddings, patches or regions of images.

    Arguments and attributes are those of `PrefixLM`; `load` and `from_pretrained` open one.

    Examples:
        >>> from prefixcap import load
        >>> captioner = load("best.ckpt")
        >>> first, second = captioner.caption(["photo.jpg", "another.png"], decode="beam", beams=3)
        >>> best, second = captioner.candidates(["photo.jpg"], count=2, decode="nucleus", seed=0)[0]
        >>> embeddings = captioner.embed(["photo.jpg"])  # (1, dim); compute them once to caption images repeatedly
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
        rerank: int | None = None,
        **options: Any,
    ) -> list[str]:
        """Generate one caption for each image.

        Args:
            images, decode, batch_size, progress: as in `candidates`.
            rerank: generate this many candidates and return the one with the highest cosine between its text embedding
                and the image's, or with `consensus` the one that agrees most; 0: return the decoder's best; None: see
                `prefixcap.reranking.default_candidates`.
            options: those of the decoder, and the other arguments of `candidates`.

        Returns:
            A caption for each image.

        Raises:
            InputError: as `candidates`.
        """
        if rerank is None:
            rerank = reranking.default_candidates(self.rerank, decode, options)
        rerank = check_value("rerank", rerank, Annotated[int, Ge(0)])
        if options.get("consensus") is not None and rerank < 2:
            raise OptionError("consensus chooses among several captions", rerank=20)
        if wrong := {"count", "by_similarity"} & options.keys():
            raise InputError(f"caption returns one caption for each image and takes no {min(wrong)}: call candidates")
        texts = self.candidates(images, rerank or 1, decode, batch_size, progress, by_similarity=rerank > 0, **options)
        return [captions[0] for captions in texts]

    def candidates(
        self,
        images: Images,
        count: int,
        decode: str = "beam",
        batch_size: int = 32,
        progress: bool = False,
        by_similarity: bool = False,
        consensus: "Consensus | None" = None,
        embeddings: Tensor | NDArray[np.floating[Any]] | None = None,
        prompts: Sequence[str] | None = None,
        prompt: str = "",
        seed: int | torch.Generator | None = None,
        **options: Any,
    ) -> list[list[str]]:
        """Generate several captions for each image, the best first.

        Args:
            images: paths or PIL images, which the captioner's encoder embeds (it is loaded when first needed); or
                (images, dim) embeddings as that encoder returns them, or what else the mapper reads, see `prefix`: a
                tensor or array of real numbers of any dtype, which are read as float32.
            count: how many captions for each image.
            decode: name of a decoder, see `prefixcap.decoding.DECODERS`.
            batch_size: images that are captioned together.
            progress: show a progress bar, after a second.
            by_similarity: order captions by the cosine between their text embedding and the image's, highest first.
            consensus: order captions by their agreement with captions of images like it instead.
            embeddings: (images, dim) of the entire images, for `by_similarity`, `unit_parts` and the captioner's own
                prompts if `images` are patches or regions; None: the encoder computes them if `images` are paths or
                pictures.
            prompts: a text for each image, which the language model reads beside the prefix and before the caption, and
                which is no part of the caption; "": none. None: the captioner's own, see `image_prompts`.
            prompt: the beginning of every caption, e.g. "a photo of"; leading and trailing spaces are ignored.
            seed: for noise and sampling decoders, 0 to 2**63 - 1; or a generator on the CPU.
            options: those of the decoder, e.g. `beams=5`, `max_tokens=67`, and of `prefixcap.sampling.Sampling`.

        Returns:
            For each image `count` captions.

        Raises:
            InputError: an image cannot be read; embeddings have the wrong width, or NaN or infinite values; the encoder
                cannot be loaded, or has other weights; the decoder or an option does not exist or is out of range; or
                the decoder returns fewer captions than `count`.
        """
        if consensus is not None:
            consensus.datastore.require_encoder(self.encoder_identity)
            by_similarity = True
        count = check_value("count", count, Count)
        batch_size = check_value("batch_size", batch_size, Positive)
        sampling = Sampling.take_from(options)
        images = check_images(images)
        if isinstance(images, Tensor):
            self.check_shape(images)
            check_finite(images)
        divide = sampling.unit_parts and self.features is not Feature.IMAGE
        makes_prompts = prompts is None and self.prompts is not None
        known = embeddings is not None or not isinstance(images, Tensor)
        require_embeddings(self.features, known, by_similarity, divide, makes_prompts)
        given = None if embeddings is None else check_embeddings(embeddings, (len(images), self.encoder_identity.dim))
        generator = random_generator(seed)
        if "generator" in options:
            raise InputError(f"decoder '{decode}' has no option 'generator': seed takes a number or a generator")
        check_decoder(decode, sampling.decoded_per_row(count), options)
        if draws(decode):
            options["generator"] = generator
        elif seed is not None and not sampling.noise:
            raise InputError(f"seed is for random sampling, and '{decode}' does not draw: leave it out")
        prompt_ids = self.language_model.tokenize_prompt(prompt)
        if prompts is not None and len(prompts) != len(images):
            raise InputError(f"{len(prompts)} prompts for {len(images)} images: give one for each")

        batch_size = sampling.images_at_once(batch_size, count)
        training = self.training
        self.eval()
        captions: list[list[str]] = []
        bar = tqdm(total=len(images), unit=" images", disable=not progress, delay=1)
        try:
            with torch.inference_mode(), bar:
                for start in range(0, len(images), batch_size):
                    batch = slice(start, start + batch_size)
                    features, computed = self._encode(images[batch], by_similarity or divide or makes_prompts)
                    compared = computed if given is None else given[batch]  # (batch, dim)
                    inputs = sampling.inputs(features, compared if divide else None, count, generator)
                    own = None if prompts is None else prompts[batch]
                    if makes_prompts and compared is not None:
                        own = [each.text for each in self.image_prompts(compared)]
                    input_ids = captions_beside(
                        self, inputs, own, prompt_ids, decode, sampling.decoded_per_row(count), options
                    )
                    texts = [[self.language_model.detokenize(prompt_ids + ids) for ids in row] for row in input_ids]
                    candidates = sampling.candidates(texts, count)
                    if by_similarity and compared is not None:
                        candidates = ranked(self.encoder, compared, candidates, consensus, sampling.rerank_characters)
                    captions += candidates
                    bar.update(len(features))
        finally:
            self.train(training)
        return captions

    def _encode(
        self, images: Sequence[str | Path | Image.Image] | Tensor, reranked: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What the mapper reads of images, and, if they are `reranked`, the embeddings to compare captions with."""
        if isinstance(images, Tensor):
            # Behind an image's embedding there may be those of retrieved captions.
            return images, images.flatten(1)[:, : images.shape[-1]] if self.features is Feature.IMAGE else None
        if not reranked:
            return self.embed(images), None
        pixels = preprocess_images(self.encoder(), images)
        return reranking.encode_for_reranking(self.encoder(), pixels, self.features)

    def forward(
        self, images: str | Path | Image.Image | Images, **options: Any
    ) -> list[dict[str, str]] | list[list[dict[str, str]]]:
        """`captioner("a.jpg")` -> `[{"generated_text": …}]`, like an image-to-text pipeline of transformers.

        Args:
            images: one image; or several as in `candidates`, for which a list of such lists is returned.
            options: those of such a pipeline, see `prefixcap.pipeline`, and those of `candidates`.

        Raises:
            InputError: as `candidates`, or an option has no counterpart here.
        """
        one = isinstance(images, str | Path | Image.Image)
        several: Images = [images] if isinstance(images, str | Path | Image.Image) else images
        candidates = self.candidates(several, **own_options(options))
        texts = [[{"generated_text": caption} for caption in captions] for captions in candidates]
        return texts[0] if one else texts

    def similarities(self, embeddings: Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The cosine between each caption and its image by the captioner's encoder, see `reranking.similarities`."""
        return reranking.similarities(self.encoder(), embeddings, captions)

    def embed(self, images: Images, features: str | None = None) -> Tensor:
        """What `prefix` reads of images, computed by the captioner's encoder.

        Args:
            images: paths or PIL images; embeddings are returned unchanged.
            features: the feature to compute, e.g. `Feature.IMAGE`; None: the one that the mapper reads.

        Returns:
            (images, dim) embeddings, or (images, patches, dim) patches or regions.

        Raises:
            InputError: an image cannot be read, or the encoder cannot be loaded.
        """
        if isinstance(checked := check_images(images), Tensor):
            return checked
        # A copy is no inference tensor, which `prefix` could not be differentiated through.
        return embed_images(self.encoder(), checked, Feature.parse(features or self.features)).clone()

    def encoder(self) -> Encoder:
        """The encoder whose embeddings the captioner reads, on the captioner's device; loaded on first use. Raises
        InputError if it cannot be loaded, or its weights are not those that the captioner was trained with."""
        if not self._encoder:
            self.use_encoder(load_encoder(self.encoder_identity.name, self.device))
        return self._encoder[0]

    def use_encoder(self, encoder: Encoder) -> None:
        """Read the embeddings of this encoder, which others may share. Raises InputError if it has other weights."""
        if not encoder.identity.agrees_with(self.encoder_identity):
            raise InputError(
                f"encoder '{encoder.identity.name}' has other weights ({encoder.identity.digest[:8]}) than the "
                f"one that the captioner was trained with ({self.encoder_identity.digest[:8]}): restore that one"
            )
        self._encoder[:] = [encoder]

    @classmethod
    def build(
        cls,
        description: dict[str, Any],
        language_model: LanguageModel | None = None,
        weights: Mapping[str, Tensor] | None = None,
        source: str | Path = "the description",
    ) -> "Captioner":
        """Build a captioner from what `describe` returned; its weights are still to be loaded.

        Args:
            description: from `describe`.
            language_model: the one to use; None: it is rebuilt as described.
            weights: those that will be loaded. A description from an untrusted file is built only if they fit it. None:
                the description is trusted.
            source: the file of the description, for messages.

        Raises:
            InputError: the description has another format or is malformed, the language model cannot be loaded, or the
                weights do not fit.
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
            description.get("low_similarity"),
            description.get("rerank", 0),
            description.get("prompts"),
        )

    def save_pretrained(self, folder: str | Path, license: str = "unknown", dtype: Dtype | None = None) -> None:
        """Write weights as safetensors, a configuration as JSON, and a model card to a folder, which is created.

        Arguments and errors are those of `prefixcap.checkpoints.pretrained.save`.

        Examples:
            >>> from prefixcap import load
            >>> load("best.ckpt").save_pretrained("my-captioner")
            >>> captioner = Captioner.from_pretrained("my-captioner")
        """
        pretrained.save(self, Path(folder), license, dtype=dtype)

    def push_to_hub(self, name: str, license: str = "unknown", private: bool = False) -> str:
        """Upload it to the model hub, as e.g. "someone/captioner" -> its URL; see `pretrained.push`."""
        return pretrained.push(self, name, license, private)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None, **precision: Any) -> "Captioner":
        """Load a captioner that `save_pretrained` or `push_to_hub` wrote, in eval mode.

        Args:
            name: a folder, or "photos", see `load`; otherwise a name on the model hub.
            revision: a branch, tag or commit on the hub; also as "someone/captioner@v1".
            precision: dtype and quantization of its language model, see `load`.

        Raises:
            InputError: there is no captioner, one of its files is missing or damaged, or it cannot be downloaded.
        """
        folder = pretrained.locate(name, revision)
        description, weights = pretrained.read_folder(folder)
        description["language_model"] |= precision
        language_model = pretrained.load_own_language_model(folder, description["language_model"])
        captioner = cls.build(description, language_model, weights, folder / CONFIG)
        tuned = {k: v for k, v in captioner.checkpoint_state_dict().items() if k.startswith("language_model.")}
        captioner.load_checkpoint_state_dict(weights | tuned, folder / pretrained.MAPPER)
        captioner.source = folder
        return captioner.eval()

    own_weights = renamed.method("own_weights", PrefixLM.checkpoint_state_dict)
    load_own_weights = renamed.method("load_own_weights", PrefixLM.load_checkpoint_state_dict)
