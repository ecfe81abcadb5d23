"""Any causal language model of transformers: embeddings in, logits out, with a key/value cache."""

from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prefixcap import renamed
from prefixcap.errors import InputError, OptionError
from prefixcap.language.checks import (
    Tuning,
    cache_argument,
    check_trainable,
    check_tuning,
    ids_without_token,
    keeps_keys_and_values,
    no_cache,
    require_positions,
    word_embeddings,
)
from prefixcap.language.cross_attention import Memory, attending, is_attached
from prefixcap.language.files import text_files
from prefixcap.language.lora import Lora, add_adapters, is_adapter, merged
from prefixcap.language.masks import as_addend, attention_masks
from prefixcap.language.quantization import fuse_activations, quantization_of
from prefixcap.language.tokens import tokenize_captions, tokenize_prompt
from prefixcap.utils.options import Dtype
from prefixcap.weights import rounded

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from prefixcap.decoding.padded import PaddedPrefix
    from prefixcap.packing import Batch

_NEVER = -1e4  # a logit of probability 0.0 that stays finite in products and differences


class LanguageModel(nn.Module):
    """A causal language model, its tokenizer, and how it is tuned.

    Args:
        model: a causal LM of transformers.
        tokenizer: its tokenizer; must have an end token, which ends every caption.
        name: its name on the model hub, a folder, or "demo".
        tuning: "frozen": its weights take no gradient, and it stays in eval mode; "lora": only adapters, which are
            added to it, are trained; "full": all weights are trained.
        lora: options of the adapters, if tuning is "lora"; None: the defaults.

    Attributes:
        dtype: of its word embeddings, and so of its inputs.
        quantization: "8bit" or "4bit" if its linear layers are quantized, otherwise None.
        dim: width of its word embeddings.
        context: the most positions that it can read; None: unlimited.
        cuda_graphs: whether decoding on a GPU uses CUDA graphs; set to False where it cannot.
        eos_token_id: id of the token that ends every caption.

    Raises:
        InputError: the tokenizer has no end token, the model has no word embeddings, or it cannot be tuned like this.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> lm = load_language_model("demo")
        >>> (tokens,) = lm.tokenize(["A red circle."])  # with the end token
        >>> lm.detokenize(tokens)
        'A red circle.'
        >>> lm(lm.embed(torch.tensor([tokens])), last=1).shape  # logits of the next token
        torch.Size([1, 1, 470])
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        name: str,
        tuning: Tuning = "frozen",
        lora: Lora | None = None,
    ) -> None:
        super().__init__()
        embeddings = word_embeddings(model, name)
        self.dtype = str(embeddings.dtype).removeprefix("torch.")
        self.quantization = quantization_of(model)
        check_tuning(tuning, self.quantization)
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of language model '{name}' has no end token (eos_token): captions need one"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.tuning: Tuning = tuning
        self.dim = embeddings.shape[1]
        config = model.config.get_text_config(decoder=True)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.eos_token_id: int = tokenizer.eos_token_id
        self.model.requires_grad_(tuning == "full")
        fuse_activations(self.model)
        self.lora = (lora or Lora()) if tuning == "lora" else None
        if self.lora is not None:
            add_adapters(model, self.lora)
        self.cuda_graphs = True
        self._backbone = self._backbone_eager
        self.compiled_into_cuda_graphs = False
        self._cache_argument = (cache_argument(model) if keeps_keys_and_values(model) else None) or ""
        self._without_token: Tensor | None
        self.register_buffer("_without_token", ids_without_token(model, tokenizer), persistent=False)
        self._token_strings: dict[int, str] = {}
        self.train(tuning != "frozen")

    @property
    def start_token(self) -> int:
        """Id of the token before every text: the begin token, or the end token if there is none (GPT-2 has one for
        both)."""
        begin = self.tokenizer.bos_token_id
        return self.eos_token_id if begin is None else int(begin)

    def require_start_token(self) -> None:
        """Raise InputError if the start token has no word embedding."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if self.start_token >= vocabulary:
            raise OptionError(
                f"language model '{self.name}' has {vocabulary} word embeddings, and none for its start token "
                f"({self.start_token})", start_token=False,
            )  # fmt: skip

    def train(self, mode: bool = True) -> "LanguageModel":
        """As `nn.Module.train`, but a frozen model stays in eval mode."""
        return super().train(mode and self.tuning != "frozen")

    def tokenize(self, captions: list[str]) -> list[list[int]]:
        """Token ids of each caption, with the end token and no other special token; see `tokenize_captions`."""
        return tokenize_captions(self.tokenizer, captions)

    def tokenize_prompt(self, prompt: str | None) -> list[int]:
        """Token ids of a text to continue, see `prefixcap.language.tokens.tokenize_prompt`."""
        return tokenize_prompt(self.tokenizer, prompt)

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens as a caption: on one line, without special tokens."""
        return " ".join(self.tokenizer.decode(tokens, skip_special_tokens=True).split())

    def token_strings(self, tokens: list[int]) -> list[str]:
        """What each token adds to a text, including its leading space; special tokens add nothing."""
        special = set(self.tokenizer.all_special_ids)
        before = self.tokenizer("a", add_special_tokens=False)["input_ids"]  # some tokenizers drop a text's first space
        for token in set(tokens) - self._token_strings.keys():
            self._token_strings[token] = "" if token in special else self.decode_raw([*before, token]).removeprefix("a")
        return [self._token_strings[token] for token in tokens]

    def decode_raw(self, tokens: list[int]) -> str:
        """The text of tokens as it can be continued, with leading spaces and special tokens."""
        text: str = self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        return text

    def embed(self, tokens: Tensor) -> Tensor:
        """(…) token ids -> (…, dim) word embeddings."""
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def forward(self, embeddings: Tensor, last: int) -> Tensor:
        """(batch, length, dim) embeddings -> (batch, last, vocabulary) logits at the `last` positions only."""
        logits: Tensor = self.model(inputs_embeds=embeddings, logits_to_keep=last, use_cache=False).logits
        return logits[:, -last:]  # some models ignore logits_to_keep

    def states(self, prefix: Tensor, batch: "Batch", memory: Memory | None = None) -> Tensor:
        """The last hidden states that predict the target tokens of a batch, see `prefixcap.packing` for the letters.

        Args:
            prefix: (I, P, dim) of each image.
            batch: images and captions.
            memory: what the layers attend to, of each image; None: nothing.

        Returns:
            (T, width)
        """
        tokens = self.embed(batch.input_ids)  # (N - C, dim)
        inputs = torch.cat((prefix.to(tokens.dtype).flatten(0, 1), tokens))  # (I * P + N - C, dim)
        # Scatter the inputs to their positions; padding is 0. Those that pad a batch to a shape go behind the last row.
        rows, length = batch.images.shape
        scattered = inputs.new_zeros(rows * length + 1, inputs.shape[1]).index_copy(0, batch.input_index, inputs)
        embeddings = scattered[:-1]  # (R * L, dim)
        with attending(None if memory is None else memory.packed(batch)):
            hidden = self.hidden_states(embeddings.view(rows, length, -1), batch.position_ids, batch.attention_mask())
        return hidden.flatten(0, 1).index_select(0, batch.logit_index)

    def hidden_states(self, embeddings: Tensor, position_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last hidden states, which `head` maps to logits.

        Args:
            embeddings: (rows, length, dim) of prefixes and tokens.
            position_ids: (rows, length) the position of each in its own text.
            attention_mask: (rows, 1, length, length) bool, the positions (last dimension) that each one attends to.

        Returns:
            (rows, length, width)
        """
        masks = attention_masks(self.model.config, attention_mask, position_ids)
        return self._backbone(embeddings, position_ids, self._as_attention_takes_them(masks, embeddings.dtype))

    def _as_attention_takes_them(
        self, masks: Tensor | dict[str, Tensor], dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        if self.model.config._attn_implementation == "eager":  # takes a mask as numbers that are added
            masks = tree_map(partial(as_addend, dtype=dtype), masks)
        return masks

    def _backbone_eager(self, embeddings: Tensor, position_ids: Tensor, masks: Tensor | dict[str, Tensor]) -> Tensor:
        states: Tensor = self.model.base_model(
            inputs_embeds=embeddings, attention_mask=masks, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return states

    def check_trainable(self) -> None:
        """Check whether training works with this language model, as far as its configuration says.

        Raises:
            InputError: it cannot read packed texts, it transforms its last hidden states before `head`, it has no
                key/value cache, or its weights are to be trained and are not float32.
        """
        check_trainable(self)

    def compile_training(self, mode: str) -> None:
        """Compile `hidden_states` with torch.compile, for batches of any shape; decoding is not compiled.

        Args:
            mode: of torch.compile, e.g. "default", or "reduce-overhead" for CUDA graphs, one for each shape (packed
                batches have few).

        Raises:
            InputError: there is no such mode, or layers attend to images.
        """
        if is_attached(self.model):
            raise OptionError("layers that attend to images cannot be compiled", compile=None)
        modes = list(torch._inductor.list_mode_options())
        if mode not in modes:
            raise InputError(f"unknown compile '{mode}': choose one of {', '.join(modes)}")
        self._backbone = torch.compile(self._backbone_eager, dynamic=True, mode=mode)
        self.compiled_into_cuda_graphs = torch._inductor.list_mode_options(mode).get("triton.cudagraphs", False)

    @property
    def head(self) -> nn.Linear:
        """(…, width) last hidden states -> (…, vocabulary) logits."""
        head: nn.Linear = self.model.get_output_embeddings()
        return head

    def step(self, embeddings: "Tensor | PaddedPrefix", cache: "Cache") -> Tensor:
        """Read more embeddings and predict the next token.

        Args:
            embeddings: (batch, length, dim); what is read first may be padded.
            cache: the keys and values of everything read before, to which those of `embeddings` are added. For a padded
                prefix an empty `KeyValueCache`, which keeps the padding of its rows.

        Returns:
            (batch, vocabulary) float32 logits.

        Raises:
            InputError: the model has no key/value cache, as e.g. state-space models; or a prefix is padded, and the
                model computes positions itself.
        """
        return self.mask_unknown_ids(self._forward_cached(embeddings, cache).logits[:, -1].float())

    def step_at(
        self, embeddings: Tensor, cache: "Cache", position: Tensor, is_read: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """Read one more token in each row, at a position that only the device knows, and predict the next.

        Args:
            embeddings: (batch, 1, dim).
            cache: of fixed size: `update` returns the keys and values of all its positions.
            position: () of the tokens in the cache.
            is_read: (positions,) bool, those of the cache to attend to.
            padding: (batch,) how many positions in front of each row are padding; None: none are.

        Returns:
            (batch, vocabulary) float32 logits.
        """
        positions = torch.arange(len(is_read), device=is_read.device).unsqueeze(0)  # (1, positions)
        position_ids = position.view(1, 1)
        attention_mask = is_read.expand(len(embeddings), 1, 1, -1)  # (batch, 1, 1, positions)
        if padding is not None:
            positions, position_ids = (each - padding.unsqueeze(1) for each in (positions, position_ids))
            attention_mask = attention_mask & (positions >= 0)[:, None, None]
        masks = attention_masks(self.model.config, attention_mask, positions, position_ids)
        with attending(getattr(cache, "memory", None)):
            output = self.model(
                inputs_embeds=embeddings,
                attention_mask=self._as_attention_takes_them(masks, embeddings.dtype),
                position_ids=position_ids.expand(len(embeddings), 1),
                logits_to_keep=1,
                use_cache=True,
                **{self._cache_argument: cache},
            )
        return self.mask_unknown_ids(output.logits[:, -1].float())

    def step_with_states(self, embeddings: "Tensor | PaddedPrefix", cache: "Cache") -> tuple[Tensor, Tensor]:
        """Like `step`, and also the (batch, length, width) last hidden states of `embeddings`, float32.

        Those of padding mean nothing.
        """
        output = self._forward_cached(embeddings, cache, output_hidden_states=True)
        return self.mask_unknown_ids(output.logits[:, -1].float()), output.hidden_states[-1].float()

    def mask_unknown_ids(self, logits: Tensor) -> Tensor:
        """(…, vocabulary) logits without the ids that the tokenizer has no token for."""
        return logits if self._without_token is None else logits.masked_fill(self._without_token, _NEVER)

    def _forward_cached(self, embeddings: "Tensor | PaddedPrefix", cache: "Cache", **options: Any) -> Any:
        start = cache.get_seq_length()
        length = start + embeddings.shape[1]
        if not self._cache_argument:
            raise no_cache(self.name)
        if not isinstance(embeddings, Tensor):
            require_positions(self.model, self.name)
            if start:
                raise InputError("a padded prefix must be what is read first: give an empty cache")
            cache.padding, cache.memory = embeddings.padding, embeddings.memory
            embeddings = embeddings.embeddings
        if (padding := getattr(cache, "padding", None)) is not None:
            # Each row counts from its first input. (rows, length)
            positions = torch.arange(length, device=padding.device) - padding.unsqueeze(1)
            options |= {"attention_mask": (positions >= 0).long(), "position_ids": positions[:, start:].clamp(min=0)}
        cache_options = {self._cache_argument: cache, "use_cache": True}
        with attending(getattr(cache, "memory", None)):
            output = self.model(inputs_embeds=embeddings, logits_to_keep=1, **cache_options, **options)
        if cache.get_seq_length() != length:  # the model ignores the cache
            raise no_cache(self.name)
        return output

    def describe(self) -> dict[str, Any]:
        """What a checkpoint needs, beside weights, to rebuild the model: its name or, with full tuning, its files.

        Raises:
            InputError: tuning is "full", and the tokenizer is not in text files.
        """
        description: dict[str, Any] = {"name": self.name, "tuning": self.tuning, "dtype": self.dtype}
        if self.quantization is not None:
            description["quantization"] = self.quantization
        if self.lora is not None:
            description["lora"] = asdict(self.lora)
        if self.tuning == "full":
            description["files"] = text_files(self.model.config, self.tokenizer, self.name)
        return description

    def is_saved_weight(self, name: str) -> bool:
        """Whether a checkpoint holds a weight, by its name in `state_dict`, because the model's own files do not."""
        return self.tuning == "full" or (self.tuning == "lora" and is_adapter(name))

    def save_pretrained(self, folder: str | Path, dtype: Dtype | None = None) -> dict[str, Any]:
        """Write model and tokenizer in transformers' format, with adapters merged.

        Args:
            folder: created if necessary.
            dtype: of the weights in the file; None: as they are.

        Returns:
            The description of the model in the folder, as `describe` returns it, without its files.

        Raises:
            InputError: it has adapters on quantized layers, a weight is too large for `dtype`, or the weights are
                quantized and have no other.
        """
        from transformers.utils import logging

        if self.lora is not None and self.quantization is not None:
            raise InputError(
                f"adapters cannot be merged into the {self.quantization} weights of language model '{self.name}', only "
                "into unquantized ones: keep the checkpoint, or train without quantization"
            )
        if dtype is not None and self.quantization is not None:
            raise InputError(f"the {self.quantization} weights of language model '{self.name}' have no other dtype")
        logging.disable_progress_bar()  # as in load_language_model
        model = self.model if self.lora is None else merged(self.model)
        if dtype is not None:
            rounded(model.state_dict(), dtype)  # raises if a weight is too large
            model = deepcopy(model).to(getattr(torch, dtype))
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"name": self.name, "tuning": "full", "dtype": self.dtype}

    is_own_weight = renamed.method("is_own_weight", is_saved_weight)
    pieces = renamed.method("pieces", token_strings)
    spell = renamed.method("spell", decode_raw)
    require_trainable = renamed.method("require_trainable", check_trainable)

    @property
    def end_token(self) -> int:
        """The old name of `eos_token_id`."""
        renamed.warn("LanguageModel.end_token", "eos_token_id")
        return self.eos_token_id
