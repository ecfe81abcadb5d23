"""Prefixes of different lengths in one batch, as of images that have texts of their own: padded in front.

The rows end together, so that the next token of each comes at the same place of the key/value cache. The language model
masks what pads a row, and reads the row's first input at position 0: it predicts what it would for that row alone.

Shapes: B rows, P prefix vectors, E width of the word embeddings, L length of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.errors import InputError

if TYPE_CHECKING:
    from prefixcap.language import LanguageModel
    from prefixcap.language.cross_attention import Memory


@dataclass(frozen=True)
class PaddedPrefix:
    """What the captions of a batch continue, in rows of different lengths.

    Attributes:
        embeddings: (B, L, E) each row's inputs at its end; what pads it in front is zero.
        padding: (B,) long, how many positions in front of each row are padding.
        memory: what the layers of the language model attend to, of each row; None: nothing.

    Raises:
        InputError: the shapes or dtypes are others, or a row is nothing but padding.

    Examples:
        >>> prefix = PaddedPrefix(torch.zeros(2, 5, 8), torch.tensor([0, 3]))
        >>> len(prefix), prefix.shape
        (2, torch.Size([2, 5, 8]))
    """

    embeddings: Tensor
    padding: Tensor
    memory: "Memory | None" = None

    def __post_init__(self) -> None:
        shape, padding = self.embeddings.shape, self.padding
        if len(shape) != 3 or padding.shape != shape[:1] or padding.dtype != torch.long:
            raise InputError(
                f"a padded prefix takes (batch, length, dim) embeddings and (batch,) padding of dtype long, not "
                f"{tuple(shape)} and {tuple(padding.shape)} of {str(padding.dtype).removeprefix('torch.')}"
            )
        if wrong := [row for row, count in enumerate(padding.tolist()) if not 0 <= count < shape[1]]:
            raise InputError(
                f"row {wrong[0]} of a padded prefix has {int(padding[wrong[0]])} positions of padding, not 0 to "
                f"{shape[1] - 1}: of its {shape[1]} positions at least one must be read"
            )

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def shape(self) -> torch.Size:
        return self.embeddings.shape

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.dtype


def with_memory(prefix: Tensor, memory: "Memory") -> PaddedPrefix:
    """A (B, P, E) prefix whose captions attend to a memory of B rows, too."""
    return PaddedPrefix(prefix, torch.zeros(len(prefix), dtype=torch.long, device=prefix.device), memory)


def pad_left(
    prefix: Tensor | PaddedPrefix,
    prompts: Sequence[Sequence[int]],
    language_model: "LanguageModel",
    before: Sequence[Sequence[int]] | None = None,
) -> Tensor | PaddedPrefix:
    """Prefixes, each followed by the tokens of its own prompt.

    Args:
        prefix: (B, P, E), which may come with a memory.
        prompts: token ids for each row; a row may have none.
        language_model: embeds them.
        before: token ids that are read before the prefix of each row; None: none are.

    Returns:
        (B, L, E) embeddings where all prompts are equally long and there is no memory; otherwise they are padded. They
        have the language model's precision.

    Raises:
        InputError: there are not as many prompts as prefixes, or one has neither prefix vectors nor a prompt.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> lm = load_language_model("demo")
        >>> prompts = [lm.tokenize_prompt(text) for text in ("A red star", "")]
        >>> padded = pad_left(torch.randn(2, 4, lm.dim), prompts, lm)
        >>> padded.shape, padded.padding
        (torch.Size([2, 7, 128]), tensor([0, 3]))
    """
    if isinstance(prefix, PaddedPrefix):
        memory, padded = prefix.memory, pad_left(prefix.embeddings, prompts, language_model, before)
        assert memory is not None
        return with_memory(padded, memory) if isinstance(padded, Tensor) else replace(padded, memory=memory)
    if len(prompts) != len(prefix):
        raise InputError(f"{len(prompts)} prompts are given for {len(prefix)} prefixes: give one for each")
    sides = [[()] * len(prefix) if before is None else before, prompts]  # of the prefix
    counts = [[len(ids) for ids in side] for side in sides]  # two of B
    flat = [token for side in sides for ids in side for token in ids]
    tokens = language_model.embed(torch.tensor(flat, dtype=torch.long, device=prefix.device))  # (all tokens, E)
    prefix = prefix.to(tokens.dtype)
    ahead, behind = tokens.split([sum(side) for side in counts])
    if all(len(set(side)) <= 1 for side in counts):
        shapes = [(len(prefix), max(side, default=0), prefix.shape[2]) for side in counts]
        return torch.cat((ahead.view(shapes[0]), prefix, behind.view(shapes[1])), dim=1)
    rows = [
        torch.cat(row) for row in zip(ahead.split(counts[0]), prefix, behind.split(counts[1]), strict=True)
    ]  # B of (at most L, E)
    longest = max(map(len, rows))
    padding = [longest - len(row) for row in rows]
    embeddings = torch.stack([F.pad(row, (0, 0, front, 0)) for row, front in zip(rows, padding, strict=True)])
    return PaddedPrefix(embeddings, torch.tensor(padding, device=prefix.device))
