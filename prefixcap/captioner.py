"""The captioner: a mapper and a language model, from CLIP embeddings to captions (Mokady et al. 2021, section 3)."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from prefixcap.batches import Batch
from prefixcap.decoding import check_decoder, draws, random_generator
from prefixcap.decoding import decode as decode_tokens
from prefixcap.descriptions import FORMAT_VERSION, require_description, require_mapper
from prefixcap.encoders import Encoder, EncoderIdentity, embed_images, load_encoder
from prefixcap.encoders.inputs import Images, as_embeddings, check_finite, check_images
from prefixcap.encoders.regions import unit_parts as as_unit_parts
from prefixcap.errors import InputError
from prefixcap.hub import missing_encoder, naming
from prefixcap.language import LanguageModel, rebuild_language_model
from prefixcap.losses import token_cross_entropy
from prefixcap.mappers import build_mapper
from prefixcap.options import Count, Positive, check_value
from prefixcap.textonly.cleaning import cleaned
from prefixcap.textonly.noise import Variance, gaussian_noise
from prefixcap.weights import require_numbers, require_shapes, shapes_of


class Captioner(nn.Module):
    """Embeddings in, captions out: F(CLIP(x)) is the prefix that the language model goes on from (equations 3, 4).

    Args:
        language_model: writes the captions.
        encoder: whose embeddings the mapper reads.
        mapper: `{"name": "mlp" | "transformer" | "query" | "adaptor", "prefix_length": …, …}`, see `prefixcap.mappers`.
        normalize_embeddings: scale each embedding to length one before it is mapped.
        trained_on: what the captioner was trained on, kept for whoever loads it (plain JSON values).
        start_token: end the prefix with the language model's start token (`LanguageModel.start_token`), as a language
            model that is not tuned has always seen one before a text, and as MacCap's released code has it.

    Raises:
        InputError: the mapper cannot be made, or the language model has no embedding of its start token.

    Attributes:
        features: what it reads of an image, by its name in a feature store: "images/embedding", "images/patches" or
            "images/regions".
        prefix_length: vectors that the language model reads before a caption: those that the mapper makes of an image,
            and the start token.
        source: the checkpoint or folder that it was loaded from, if it was; its model card is filled from there.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        encoder: EncoderIdentity,
        mapper: dict[str, Any],
        normalize_embeddings: bool = False,
        trained_on: dict[str, Any] | None = None,
        start_token: bool = False,
    ) -> None:
        super().__init__()
        self.mapper_options = dict(mapper)
        self.mapper = build_mapper(embedding_dim=encoder.dim, lm_dim=language_model.dim, **mapper)
        self.features = f"images/{self.mapper.features}"
        if not isinstance(start_token, bool):
            raise InputError(f"start_token is true or false, not {start_token!r}")
        self.start_token = start_token
        if start_token:
            language_model.require_start_token()
        self.prefix_length: int = self.mapper.prefix_length + start_token
        self.language_model = language_model
        self.encoder_identity = encoder
        self.normalize_embeddings = normalize_embeddings
        self.trained_on = trained_on or {}
        self.source: Path | None = None
        self._encoder: list[Encoder] = []  # in a list, so that its weights do not become the captioner's

    @property
    def device(self) -> torch.device:
        """Where the mapper is."""
        return next(self.mapper.parameters()).device

    def prefix(self, embeddings: Tensor) -> Tensor:
        """(batch, dim) embeddings as the encoder gave them -> (batch, prefix_length, lm_dim).

        A captioner that reads patches or regions, see `features`, takes (batch, patches, dim) of these.

        Raises:
            InputError: the embeddings are of another shape than the mapper reads.
        """
        self._check_shape(embeddings)
        embeddings = embeddings.to(self.device, torch.float32)
        if self.normalize_embeddings:
            embeddings = F.normalize(embeddings, dim=-1)
        prefix: Tensor = self.mapper(embeddings.to(next(self.mapper.parameters()).dtype))
        return self._append(prefix, [self.language_model.start_token]) if self.start_token else prefix

    def _check_shape(self, embeddings: Tensor) -> None:
        reads, dim = self.mapper.features, self.encoder_identity.dim
        places, command = ("", "") if reads == "embedding" else (f"{reads}, ", f" and features=[image,{reads}]")
        if embeddings.ndim != (3 if places else 2) or embeddings.shape[-1] != dim:
            raise InputError(
                f"embeddings of shape {tuple(embeddings.shape)}, but this captioner reads (batch, {places}{dim}): "
                f"embed the images with {self.encoder_identity.name}{command}"
            )

    def loss(self, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """Cross-entropy of all caption tokens given their image's prefix and the tokens before them (equation 5).

        Args:
            batch: images and captions, see `prefixcap.batches`.
            weights: (targets,) float32, of each token; None: all 1.

        Returns:
            The sum over tokens, each times its weight, in nats.
        """
        head = self.language_model.head
        return token_cross_entropy(self.states(batch), head.weight, head.bias, batch.targets, weights)

    def states(self, batch: Batch) -> Tensor:
        """(targets, width) last hidden states of the language model, from which each token of a batch is predicted."""
        return self.language_model.states(self.prefix(batch.embeddings), batch)

    def caption(
        self,
        images: Images,
        decode: str = "beam",
        batch_size: int = 32,
        progress: bool = False,
        rerank: int = 0,
        **options: Any,
    ) -> list[str]:
        """Captions of images, one for each.

        Args:
            images: as in `candidates`, and so are the other arguments.
            decode: name of a decoder.
            batch_size: images that are captioned together.
            progress: show a progress bar.
            rerank: write so many candidates and give the one that the encoder finds closest to the image; 0: the
                decoder's best.
            options: the decoder's, and the others of `candidates`.

        Raises:
            InputError: as `candidates`.
        """
        rerank = check_value("rerank", rerank, Annotated[int, Ge(0)])
        if wrong := {"count", "by_similarity"} & options.keys():
            raise InputError(f"caption gives one caption of an image and takes no {min(wrong)}: call candidates")
        found = self.candidates(images, rerank or 1, decode, batch_size, progress, by_similarity=rerank > 0, **options)
        return [captions[0] for captions in found]

    def candidates(
        self,
        images: Images,
        count: int,
        decode: str = "beam",
        batch_size: int = 32,
        progress: bool = False,
        by_similarity: bool = False,
        embeddings: Tensor | NDArray[np.floating[Any]] | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
        noise: float = 0.0,
        unit_parts: bool = False,
        clean: bool = False,
        rerank_characters: int | None = None,
        prompt: str = "",
        seed: int | torch.Generator | None = None,
        **options: Any,
    ) -> list[list[str]]:
        """Several captions for each image, the best first.

        Args:
            images: paths or PIL images, which the captioner's own encoder embeds (it is loaded when first needed),
                or (batch, dim) embeddings as that encoder gives them, see `prefix`: a tensor or array of any kind of
                real numbers, which are read as float32.
            count: how many for each image.
            decode: name of a decoder, see `prefixcap.decoding`.
            batch_size: images that are captioned together.
            progress: show a progress bar on stderr, if it takes longer than a second.
            by_similarity: the best is the one whose text embedding has the highest cosine with the image's.
            embeddings: (batch, dim) of the images, for `by_similarity` and `unit_parts` where the captioner reads
                patches or regions of them; None: the encoder makes them of images that are given as such.
            project: done to embeddings before they are mapped, e.g. `MemoryBank.project` (DeCap).
            noise: each candidate is the decoder's best for the image with Gaussian noise of this variance on its
                features, scaled to length one before ("multiple sampling and filtering" of MacCap, Qiu et al. 2024,
                section 4.3); 0: candidates are the decoder's best ones.
            unit_parts: of regions, the image's embedding and what the region adds to it have length one each, and the
                noise is added to their sum as it is (MacCap's released code), see `prefixcap.encoders.regions`. Where
                the image's one embedding is read, it has length one in any case.
            clean: leave letters, digits, spaces, commas and full stops of a caption (MacCap's released code), see
                `prefixcap.textonly.cleaning`.
            rerank_characters: `by_similarity` reads so many characters of a caption (80 in MacCap's released code);
                None: as much as the encoder does.
            prompt: how every caption begins, e.g. "a photo of"; spaces at its ends do not count.
            seed: of the noise, or of what a decoder with a `generator` draws, 0 to 2**63 - 1; or a generator, on the
                CPU, to go on drawing from.
            options: the decoder's, e.g. `beams=5`, `max_tokens=67`.

        Raises:
            InputError: an image cannot be read, the embeddings are of another width, NaN or infinite, the encoder
                cannot be loaded or has other weights than the one trained with, the decoder or an option of it does
                not exist or is out of its range, or the decoder gives fewer captions than `count`.
        """
        count, noise = check_value("count", count, Count), check_value("noise", noise, Variance)
        batch_size = check_value("batch_size", batch_size, Positive)
        images = self._checked(images)
        if by_similarity and embeddings is None and self.features != "images/embedding" and isinstance(images, Tensor):
            raise InputError(
                f"rerank compares captions with the image's embedding, not with {self.features}: give embeddings, too"
            )
        if "generator" in options:
            raise InputError(f"decoder '{decode}' has no option 'generator': seed takes a number or a generator")
        check_decoder(decode, 1 if noise else count, options)
        generator = random_generator(seed)
        if draws(decode):
            options["generator"] = generator
        elif seed is not None and not noise:
            raise InputError(f"seed is for what is drawn at random, and '{decode}' does not draw: leave it out")
        beginning = self.language_model.tokenize_prompt(prompt)
        regions = check_value("unit_parts", unit_parts, bool) and self.features != "images/embedding"
        if regions and (self.features != "images/regions" or (isinstance(images, Tensor) and embeddings is None)):
            raise InputError(
                f"unit_parts divides regions by the image's embedding, and this captioner reads {self.features}: "
                f"{'give embeddings, too' if self.features == 'images/regions' else 'leave it out'}"
            )
        clean = check_value("clean", clean, bool)
        rerank_characters = check_value("rerank_characters", rerank_characters, Positive | None)
        compared = None if embeddings is None else self._compared(embeddings, len(images))
        if noise:  # each candidate takes a row of a batch
            batch_size = max(1, batch_size // count)
        training = self.training
        self.eval()
        try:
            found: list[list[str]] = []
            bar = tqdm(total=len(images), unit=" images", disable=not progress, delay=1)
            with torch.inference_mode(), bar:
                for start in range(0, len(images), batch_size):
                    part = slice(start, start + batch_size)
                    features = self.embed(images[part])
                    reads = features if project is None else project(features)
                    if regions:
                        whole = self.embed(images[part], "images/embedding") if compared is None else compared[part]
                        reads = as_unit_parts(reads, torch.as_tensor(whole, device=reads.device))
                    if noise:
                        reads = reads.to("cpu", torch.float32)
                        scaled = reads if regions else F.normalize(reads, dim=-1)
                        reads = gaussian_noise(scaled.repeat_interleave(count, 0), noise, generator)
                    prefix = self._append(self.prefix(reads), beginning)
                    tokens = decode_tokens(self.language_model, prefix, decode, 1 if noise else count, **options)
                    captions = [[self.language_model.detokenize(beginning + row) for row in rows] for rows in tokens]
                    if clean:
                        captions = [list(map(cleaned, of_image)) for of_image in captions]
                    if noise:  # one of each row, and `count` rows of each image
                        captions = [
                            list(itertools.chain(*captions[row : row + count]))
                            for row in range(0, len(captions), count)
                        ]
                    if by_similarity:
                        if compared is not None:
                            features = compared[part]
                        elif self.features != "images/embedding":
                            features = self.embed(images[part], "images/embedding")
                        captions = self._ranked(features, captions, rerank_characters)
                    found += captions
                    bar.update(len(features))
            return found
        finally:
            self.train(training)

    def forward(
        self, images: str | Path | Image.Image | Images, **options: Any
    ) -> list[dict[str, str]] | list[list[dict[str, str]]]:
        """`captioner("a.jpg")` -> `[{"generated_text": …}]`, as image-to-text pipelines of transformers had it.

        Args:
            images: one, or several as in `candidates`; several give a list for each.
            options: as such a pipeline takes them, see `prefixcap.sharing.pipeline`, and those of `candidates`.

        Raises:
            InputError: as `candidates`, or an option has no counterpart here.
        """
        from prefixcap.sharing.pipeline import own_options

        one = isinstance(images, str | Path | Image.Image)
        several: Images = [images] if isinstance(images, str | Path | Image.Image) else images
        found = self.candidates(several, **own_options(options))
        texts = [[{"generated_text": caption} for caption in captions] for captions in found]
        return texts[0] if one else texts

    def _checked(self, images: Images) -> Sequence[str | Path | Image.Image] | Tensor:
        """Images that can be read, and embeddings of the right shape, all finite. Raises InputError otherwise."""
        checked = check_images(images)
        if isinstance(checked, Tensor):
            self._check_shape(checked)
            check_finite(checked)
        return checked

    def _compared(self, embeddings: Tensor | NDArray[Any], images: int) -> Tensor:
        """(images, dim) embeddings to compare captions with. Raises InputError if they have another shape."""
        compared, shape = as_embeddings(embeddings), (images, self.encoder_identity.dim)
        if compared.shape != shape:
            raise InputError(f"embeddings= of shape {tuple(compared.shape)}: give {shape}, one for each image")
        check_finite(compared)
        return compared

    def _append(self, prefix: Tensor, tokens: list[int]) -> Tensor:
        """(batch, length, dim) prefix and the tokens that follow it, in the language model's precision."""
        words = self.language_model.embed(torch.tensor(tokens, dtype=torch.long, device=prefix.device))
        return torch.cat((prefix.to(words.dtype), words.expand(len(prefix), -1, -1)), dim=1)

    def _ranked(self, embeddings: Tensor, captions: list[list[str]], characters: int | None) -> list[list[str]]:
        """The captions of each image, the closest to its embedding first, by so many characters of each."""
        read = [[caption[:characters] for caption in of_image] for of_image in captions]
        return [
            [caption for _, caption in sorted(zip(cosines, of_image, strict=True), key=lambda pair: -pair[0])]
            for of_image, cosines in zip(captions, self.similarities(embeddings, read), strict=True)
        ]

    def similarities(self, embeddings: Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """How close the captions of each image are to it, by the encoder's embeddings of texts and images.

        Args:
            embeddings: (batch, dim) of the images, as the encoder gives them.
            captions: for each image, any number of them.

        Returns:
            For each image the cosine of each caption, in the order given.

        Raises:
            InputError: the encoder cannot be loaded, see `encoder`.
        """
        encoder = self.encoder()
        different = {caption: place for place, caption in enumerate(dict.fromkeys(itertools.chain(*captions)))}
        texts = F.normalize(encoder.encode_texts(list(different)).float(), dim=-1)
        cosines = (F.normalize(embeddings.to(texts), dim=-1) @ texts.T).tolist()
        return [
            [of_row[different[caption]] for caption in of_image]
            for of_image, of_row in zip(captions, cosines, strict=True)
        ]

    def embed(self, images: Images, features: str | None = None) -> Tensor:
        """What `prefix` reads of images, by the captioner's own encoder; embeddings are given back as they are.

        Args:
            images: paths or PIL images, or embeddings.
            features: another feature than that of the attribute `features`, e.g. "images/embedding".

        Raises:
            InputError: an image cannot be read, or the encoder cannot be loaded.
        """
        checked = check_images(images)
        if isinstance(checked, Tensor):
            return checked
        # A copy is no inference tensor, which `prefix` could not be differentiated through.
        return embed_images(self.encoder(), checked, features or self.features).clone()

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

    def describe(self) -> dict[str, Any]:
        """All that a checkpoint holds beside weights, in plain JSON values; `build` takes it back."""
        return {
            "format_version": FORMAT_VERSION,
            "mapper": self.mapper_options,
            "normalize_embeddings": self.normalize_embeddings,
            "start_token": self.start_token,
            "language_model": self.language_model.describe(),
            "encoder": asdict(self.encoder_identity),
            "trained_on": self.trained_on,
        }

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
            weights: those that will be loaded: of a description that somebody else wrote, nothing is made that they do
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

    def own_weights(self) -> dict[str, Tensor]:
        """The weights that a checkpoint holds: all but those that the language model's name stands for."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("language_model.") or self.language_model.is_own_weight(name)
        }

    def load_own_weights(self, weights: Mapping[str, Tensor], source: str | Path) -> None:
        """Take the weights that `own_weights` gave.

        Raises:
            InputError: a weight is missing, unknown, of another shape, NaN or infinite; `source` and the weight are
                named.
        """
        every = self.state_dict(keep_vars=True)  # parameters, which must be finite, as such
        own = {name: every[name] for name in self.own_weights()}
        require_shapes(shapes_of(weights), shapes_of(own), source)
        require_numbers(weights, own, source)
        self.load_state_dict(weights, strict=False)

    def save_pretrained(self, folder: str | Path, license: str = "unknown") -> None:
        """Write the captioner as safetensors and JSON, with a model card, see `prefixcap.sharing.pretrained.save`."""
        from prefixcap.sharing.pretrained import save

        save(self, Path(folder), license)

    def push_to_hub(self, name: str, license: str = "unknown", private: bool = False) -> str:
        """Put what `save_pretrained` writes on the model hub, see `prefixcap.sharing.pretrained.push`."""
        from prefixcap.sharing.pretrained import push

        return push(self, name, license, private)

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "Captioner":
        """The captioner in a folder that `save_pretrained` wrote, or on the model hub, in eval mode; see
        `prefixcap.sharing.pretrained.load`."""
        from prefixcap.sharing.pretrained import load

        return load(name, revision)
