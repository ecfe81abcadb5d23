"""Encoders of texts in the format of transformers, by name or folder, for metrics that compare meanings.

Shapes: n texts; L tokens of a text; d the width of the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefixcap.errors import InputError, RowsError
from prefixcap.utils.files import parse_json, read_text
from prefixcap.utils.hardware import out_of_memory
from prefixcap.utils.hub import TOKENIZER, WEIGHTS, by_hand, model_folder, read_config, require_no_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_POSITIONS = 8192  # tokens that are read at once
_NO_LIMIT = 10**6  # tokenizers that know none give a far larger number
# The layers that the authors of BERTScore chose by agreement with people, from the list of their package.
_BEST_LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "distilbert-base-uncased": 5,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "distilroberta-base": 5,
    "deberta-base-mnli": 9,
    "deberta-large-mnli": 18,
    "deberta-xlarge-mnli": 40,
}


@dataclass
class TextEncoder:
    """A transformer that embeds texts, or their tokens.

    Attributes:
        model: read in eval mode, on the device where it is.
        tokenizer: of the model.
        name: what results call it.
        layer: whose outputs are the embeddings of tokens, 1 to the number of layers.
        pooling: how `encode_texts` makes one vector of those of the last layer: "mean" or "cls".
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    layer: int
    pooling: str = "mean"

    def tokenize(self, texts: Sequence[str], after_space: bool = False) -> list[list[int]]:
        """The tokens of each text, with those that the model expects at its ends.

        Args:
            texts: n.
            after_space: put a space before a text where that changes its first token (GPT-2, RoBERTa), as the package
                of BERTScore asks its tokenizer to; transformers 5 overlooks that, and gives other scores than 4 did.

        Raises:
            InputError: a text is longer than the model reads.
        """
        if after_space and type(self.tokenizer).__name__.startswith(("GPT2", "Roberta")):
            texts = [f" {text}" if text else text for text in texts]
        tokens: list[list[int]] = self.tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
        if long := [row for row, own in enumerate(tokens) if len(own) > self._limit()]:
            raise RowsError(
                "texts", long, f"longer than the {self._limit()} tokens that {self.name} reads: choose another model"
            )
        return tokens

    @torch.inference_mode()
    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """The unit vectors of all tokens, in the chosen layer: n times (L, d) in float32, on the model's device."""
        vectors: list[Tensor] = [torch.empty(0)] * len(tokens)
        for rows, layers, _ in self._read(tokens):
            states = F.normalize(layers[self.layer].float(), dim=-1)  # (rows, longest, d)
            for row, own in zip(rows, states, strict=True):
                vectors[row] = own[: len(tokens[row])]
        return vectors

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) unit vectors of texts in float32, on the CPU, from the last layer.

        Raises:
            InputError: as `tokenize`.
        """
        tokens = self.tokenize(texts)
        pooled = [torch.zeros(self.model.config.hidden_size)] * len(tokens)  # of a text without tokens
        for rows, layers, mask in self._read(tokens):
            states = layers[-1].float()  # (rows, longest, d)
            weights = mask.unsqueeze(-1).float()
            each = states[:, 0] if self.pooling == "cls" else (states * weights).sum(dim=1) / weights.sum(dim=1)
            for row, own in zip(rows, F.normalize(each, dim=-1).cpu(), strict=True):
                pooled[row] = own
        return torch.stack(pooled) if pooled else torch.empty(0, 0)

    def _read(self, tokens: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Sequence[Tensor], Tensor]]:
        """Batches of rows with tokens: (rows, longest, d) of each layer, and (rows, longest) 1 but for padding."""
        device = next(self.model.parameters()).device
        padding = self.tokenizer.pad_token_id or 0
        rows = sorted((row for row, own in enumerate(tokens) if own), key=lambda row: len(tokens[row]))
        while rows:
            batch = [rows.pop()]
            while rows and (len(batch) + 1) * len(tokens[batch[0]]) <= _POSITIONS:
                batch.append(rows.pop())
            own = [torch.tensor(tokens[row], dtype=torch.long) for row in batch]
            ids = pad_sequence(own, batch_first=True, padding_value=padding).to(device)
            mask = pad_sequence([torch.ones_like(each) for each in own], batch_first=True).to(device)
            yield batch, self.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states, mask

    def _limit(self) -> int:
        known = self.tokenizer.model_max_length
        positions = getattr(self.model.config, "max_position_embeddings", None) or _NO_LIMIT
        return int(min(known, positions)) if known < _NO_LIMIT else int(positions)


def load_text_encoder(name: str, layer: int | None = None, device: "torch.device | str" = "cpu") -> TextEncoder:
    """Load an encoder of texts. Code that comes with a model is never run.

    Args:
        name: a folder, or a name on the model hub, e.g. "roberta-large"; the encoder of an encoder-decoder is taken.
        layer: whose outputs BERTScore compares; None: the one that its authors chose for this model, else the last.
        device: where it computes.

    Raises:
        InputError: there is no such model, it is damaged, lacks weights or needs code of its own, has no such layer, or
            pools its tokens in a way that is not known here.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    missing = f"fetch {by_hand(name, f'config.json, {WEIGHTS}, {TOKENIZER}')}"
    folder = model_folder(name, f"cannot load text encoder '{name}'", missing)
    try:
        config = read_config(folder)
        require_no_adapter(folder)
        model, report = AutoModel.from_pretrained(
            folder, config=config, output_loading_info=True, trust_remote_code=False, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        pooling = _pooling(Path(folder), name)
    except Exception as error:  # a malformed folder makes transformers raise almost anything
        raise _cannot_load(name, error) from error
    # The head above the first token is read by nothing here, and often missing.
    lacking = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    if lacking:  # transformers only warns, and initializes them at random
        raise InputError(f"text encoder '{name}' lacks weights, e.g. {min(lacking)}: give a complete model")
    encoder = model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model
    layers = int(encoder.config.num_hidden_layers)
    chosen = layer if layer is not None else _BEST_LAYERS.get(name.rsplit("/", 1)[-1], layers)
    if not 1 <= chosen <= layers:
        raise InputError(f"text encoder '{name}' has layers 1 to {layers}, not {chosen}: choose one of these")
    called = Path(name).resolve().name if Path(name).is_dir() else name
    return TextEncoder(encoder.eval().to(device), tokenizer, called, chosen, pooling)


def _pooling(folder: Path, name: str) -> str:
    """How sentence-transformers makes one vector of a model's tokens: by the files beside it, if there are any."""
    modules = _beside(folder / "modules.json") or []
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if other := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise InputError(f"text encoder '{name}' has a module of type {other[0]!r}, which is not known here")
    paths = [module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    options = _beside(folder / paths[0] / "config.json") or {} if paths else {}
    modes = [mode for mode, is_on in options.items() if mode.startswith("pooling_mode_") and is_on is True]
    if modes in ([], ["pooling_mode_mean_tokens"]):
        return "mean"
    if modes == ["pooling_mode_cls_token"]:
        return "cls"
    raise InputError(f"text encoder '{name}' pools tokens by {', '.join(modes)}: only the mean and cls are known here")


def _beside(file: Path) -> Any:
    """The content of a JSON file of a model; None if it has no such file."""
    return parse_json(read_text(file), file) if file.is_file() else None


def _cannot_load(name: str, error: Exception) -> Exception:
    """The error to raise in place of another library's."""
    if isinstance(error, InputError) or out_of_memory(error):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason:
        reason = "it needs code of its own, which is never run"
    return InputError(
        f"cannot load text encoder '{name}': {reason[:300]}; give a folder saved with save_pretrained, or the name of "
        "a model of transformers on the model hub"
    )
