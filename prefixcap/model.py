"""The model: a mapper turns an image embedding into a prefix, which a language model continues (ClipCap: Mokady et al.
2021).

Shapes: B images of a batch, D width of the encoder's embeddings, P prefix vectors, E width of the language model's word
embeddings, T target tokens, H width of its last hidden states.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefixcap.errors import InputError, OptionError
from prefixcap.features import EncoderIdentity, Feature
from prefixcap.language import LanguageModel
from prefixcap.language.cross_attention import Memory, attach
from prefixcap.losses import token_cross_entropy
from prefixcap.mappers import build_mapper
from prefixcap.mappers.cross_attention import CrossAttentionMapper, fit_to
from prefixcap.packing import Batch
from prefixcap.utils.validation import shortened
from prefixcap.weights import require_numbers, require_shapes, shapes_of

FORMAT_VERSION = 1  # of `PrefixLM.describe`


class PrefixLM(nn.Module):
    """A mapper and a language model: embeddings in, prefix, hidden states and loss out (ClipCap, equations 3 to 5).

    Args:
        language_model: the model that generates captions.
        encoder: the encoder whose embeddings the mapper reads.
        mapper: `{"name": "mlp", "prefix_length": 10, …}`, see `prefixcap.mappers.MAPPERS`.
        normalize_embeddings: scale each embedding to unit length before it is mapped.
        trained_on: a description of the training data, kept in checkpoints (plain JSON values).
        start_token: end the prefix with the language model's start token, as frozen language models have always seen
            one before a text; MacCap's released code does so too.
        low_similarity: the cosine of a caption and its image, by the encoder, below which the image is unlike those
            that the captioner learned from; None: not known.
        rerank: how many candidates are generated for each image, of which the encoder chooses the closest, unless the
            caller says otherwise; 0: none, the decoder chooses. See `prefixcap.reranking`.
        prompts: what makes the prompts of images, as `prefixcap.prompts.PromptProvider.describe` says it: an image's
            prompt is read beside its prefix, see `prompts_first`; None: images have none.

    Attributes:
        features: the feature of an image that the mapper reads.
        prefix_length: P, the mapper's prefix vectors and the start token.
        source: the checkpoint or folder that the model was loaded from; None: it was not loaded.

    Raises:
        InputError: the mapper cannot be built, or the language model has no embedding of its start token.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> from prefixcap.language import load_language_model
        >>> encoder = load_encoder("demo").identity
        >>> model = PrefixLM(load_language_model("demo"), encoder, {"name": "mlp", "prefix_length": 10})
        >>> model.prefix(torch.randn(2, encoder.dim)).shape
        torch.Size([2, 10, 128])
    """

    def __init__(
        self,
        language_model: LanguageModel,
        encoder: EncoderIdentity,
        mapper: dict[str, Any],
        normalize_embeddings: bool = False,
        trained_on: dict[str, Any] | None = None,
        start_token: bool = False,
        low_similarity: float | None = None,
        rerank: int = 0,
        prompts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(start_token, bool):
            raise InputError(f"start_token must be true or false, not {start_token!r}")
        if start_token:
            language_model.require_start_token()
        self.mapper_options = dict(mapper)
        if mapper.get("name") == "cross_attention":
            self.mapper_options = fit_to(attach(language_model), mapper, language_model.name)
        self.mapper = build_mapper(embedding_dim=encoder.dim, lm_dim=language_model.dim, **self.mapper_options)
        self.features = Feature.parse(self.mapper.features)
        self.prefix_length: int = self.mapper.prefix_length + start_token
        if not self.prefix_length:
            raise OptionError(
                f"mapper '{mapper['name']}' makes no prefix vectors, and a caption must follow something",
                start_token=True,
            )
        self.language_model = language_model
        self.encoder_identity = encoder
        self.normalize_embeddings = normalize_embeddings
        self.start_token = start_token
        # In the model's memory: a GPU would wait for a copy from the host in each step, and could not capture it.
        self._start: Tensor
        self.register_buffer("_start", torch.tensor([language_model.start_token]), persistent=False)
        self.trained_on = trained_on or {}
        self.low_similarity, self.rerank, self.prompts = low_similarity, rerank, prompts
        self.source: Path | None = None

    @property
    def prompts_first(self) -> bool:
        """Whether an image's prompt is read before its prefix, and not after it."""
        return self.prompts is not None and bool(self.prompts.get("first"))

    @property
    def device(self) -> torch.device:
        """The device of the mapper."""
        return next(self.mapper.parameters()).device

    def prefix(self, embeddings: Tensor) -> Tensor:
        """(B, D) embeddings as the encoder returned them -> (B, P, E) prefix.

        A mapper of patches or regions, see `features`, takes (B, patches, D). One of `retrieved` captions also takes
        (B, 1 + retrieved, D), with their embeddings behind the image's.

        Raises:
            InputError: the embeddings have the wrong shape, captions cannot be retrieved, or images enter the language
                model by cross-attention.
        """
        prefix, memory = self.prefix_and_memory(embeddings)
        if memory is not None:
            raise InputError(
                f"mapper '{self.mapper_options['name']}' puts images into no prefix: the language model attends to them"
            )
        return prefix

    def prefix_and_memory(self, embeddings: Tensor) -> tuple[Tensor, Memory | None]:
        """The (B, P, E) prefix, and what the layers of the language model attend to; None: nothing.

        Takes and raises what `prefix` does, for any mapper.
        """
        self.check_shape(embeddings)
        embeddings = embeddings.to(self.device, torch.float32)
        if self.mapper.retrieved and embeddings.ndim == 2:
            embeddings = self.with_retrieved(embeddings)
        if self.normalize_embeddings:
            embeddings = F.normalize(embeddings, dim=-1)
        embeddings = embeddings.to(next(self.mapper.parameters()).dtype)
        prefix: Tensor = self.mapper(embeddings)
        memory = self.mapper.memory(embeddings) if isinstance(self.mapper, CrossAttentionMapper) else None
        return self.append_tokens(prefix, self._start) if self.start_token else prefix, memory

    def with_retrieved(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B, 1 + retrieved, D), behind each embedding those of the captions that are nearest to it.

        Raises:
            InputError: there is nothing to retrieve from.
        """
        store = self.trained_on.get("store")
        hint = f", e.g. {shortened(store)}, from which it learned" if store else ""
        raise InputError(
            f"this captioner reads {self.mapper.retrieved} retrieved captions beside each image, and has no datastore: "
            f"give a feature store with embeddings of captions{hint}"
        )

    def append_tokens(self, prefix: Tensor, input_ids: Tensor) -> Tensor:
        """(B, P, E) prefix followed by (N,) tokens -> (B, P + N, E), in the language model's precision."""
        tokens = self.language_model.embed(input_ids.to(prefix.device))  # (N, E)
        return torch.cat((prefix.to(tokens.dtype), tokens.expand(len(prefix), -1, -1)), dim=1)

    def states(self, batch: Batch) -> Tensor:
        """(T, H) last hidden states of the language model, each of which predicts a target token of the batch."""
        prefix, memory = self.prefix_and_memory(batch.embeddings)
        return self.language_model.states(prefix, batch, memory)

    def loss(self, batch: Batch, weights: Tensor | None = None) -> Tensor:
        """Cross-entropy of caption tokens given the prefix of their image and the tokens before them (equation 5).

        Args:
            batch: images and captions, see `prefixcap.packing`.
            weights: (T,) float32, by which those of the batch are multiplied; None: all 1.

        Returns:
            The weighted sum over target tokens, in nats.
        """
        head = self.language_model.head
        weights = batch.weights if weights is None else batch.weights * weights
        return token_cross_entropy(self.states(batch), head.weight, head.bias, batch.targets, weights)

    def check_shape(self, embeddings: Tensor) -> None:
        """Raise InputError unless embeddings have the shape that `prefix` takes."""
        dim: int = getattr(self.mapper, "input_dim", self.encoder_identity.dim)
        option = self.features.option
        several, command = ("", "") if self.features.ndim == 2 else (f"{option}, ", f" and features=[image,{option}]")
        if self.mapper.retrieved and embeddings.shape[1:] == (1 + self.mapper.retrieved, dim):
            return
        if embeddings.ndim != self.features.ndim or embeddings.shape[-1] != dim:
            raise InputError(
                f"embeddings of shape {tuple(embeddings.shape)}, but this captioner reads (batch, {several}{dim}): "
                f"embed the images with {self.encoder_identity.name}{command}"
            )

    def describe(self) -> dict[str, Any]:
        """The contents of a checkpoint beside its weights, as plain JSON values, from which `Captioner.build` rebuilds
        the model."""
        description = {
            "format_version": FORMAT_VERSION,
            "mapper": self.mapper_options,
            "normalize_embeddings": self.normalize_embeddings,
            "start_token": self.start_token,
            "language_model": self.language_model.describe(),
            "encoder": asdict(self.encoder_identity),
            "trained_on": self.trained_on,
        }
        if self.low_similarity is not None:  # older versions of prefixcap read no description with this key
            description["low_similarity"] = self.low_similarity
        if self.rerank:
            description["rerank"] = self.rerank
        if self.prompts is not None:
            description["prompts"] = self.prompts
        return description

    def checkpoint_state_dict(self) -> dict[str, Tensor]:
        """The weights of a checkpoint: all that cannot be loaded by the language model's name."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith("language_model.") or self.language_model.is_saved_weight(name)
        }

    def load_checkpoint_state_dict(self, weights: Mapping[str, Tensor], source: str | Path) -> None:
        """Load what `checkpoint_state_dict` returned.

        Raises:
            InputError: a weight is missing, unknown, of another shape, NaN or infinite; the message names it and
                `source`.
        """
        own = self.state_dict(keep_vars=True)  # `require_numbers` tells parameters from buffers
        saved = {name: own[name] for name in self.checkpoint_state_dict()}
        require_shapes(shapes_of(weights), shapes_of(saved), source)
        require_numbers(weights, saved, source)
        self.load_state_dict(weights, strict=False)
