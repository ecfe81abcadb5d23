"""Perplexity of captions under a language model: how fluent they are, regardless of the image.

Jelinek et al., "Perplexity: a measure of the difficulty of speech recognition tasks", 1977. ZeroCap (Tewel et al., CVPR
2022, supplement E) reports it under GPT-Neo. Figures under different language models do not compare, because tokens
differ.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from prefixcap.errors import InputError, RowsError
from prefixcap.language import LanguageModel
from prefixcap.metrics.texts import check_texts

_POSITIONS = 1024  # read at once: (1024, 50257) float32 logits of GPT-2 take 200 MB
_PADDING = -100


@torch.no_grad()
def negative_log_likelihood(language_model: LanguageModel, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """-log p(caption) under a language model, and the number of tokens that it is a sum over.

    Each caption is a text by itself: its first token is conditioned on the begin token (on the end token, where
    the tokenizer has no begin token; GPT-2 has one token for both). The end token after the caption does not count.
    Captions are read as they are, with case and punctuation, by length, at most 1,024 positions at a time or one
    caption.

    Args:
        language_model: read in eval mode, on the device where it is.
        captions: texts; an empty one has no tokens.

    Returns:
        (n,) nats in float32, and (n,) int64 numbers of tokens; both on the CPU. Perplexities of captions are
        `(nats / tokens).exp()`, that of all `(nats.sum() / tokens.sum()).exp()`.

    Raises:
        InputError: a caption is not a string, or longer than the language model's context.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> captions = ["A red circle in a meadow.", "A red circle a meadow in."]
        >>> nats, tokens = negative_log_likelihood(load_language_model("demo"), captions)
        >>> tokens
        tensor([7, 7])
        >>> bool(nats[0] < nats[1])
        True
    """
    check_texts(captions)
    tokens = [row[:-1] for row in language_model.tokenize(list(captions))] if captions else []
    if language_model.context is not None:
        long = [row for row, caption in enumerate(tokens) if len(caption) > language_model.context]
        if long:
            raise RowsError(
                "captions",
                long,
                f"longer than the {language_model.context} tokens that language model '{language_model.name}' reads: "
                "shorten them",
            )
    nats = torch.zeros(len(tokens))
    training = language_model.training
    language_model.eval()
    try:
        for batch in _batches([len(caption) for caption in tokens]):
            nats[batch] = _read(language_model, [tokens[row] for row in batch])
    finally:
        language_model.train(training)
    return nats, torch.tensor([len(caption) for caption in tokens], dtype=torch.int64)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """The rows that have tokens, by length, in batches of at most `_POSITIONS` positions (but at least one row)."""
    batches: list[list[int]] = []
    for row in sorted((row for row, length in enumerate(lengths) if length), key=lambda row: lengths[row]):
        if not batches or (len(batches[-1]) + 1) * lengths[row] > _POSITIONS:
            batches.append([])
        batches[-1].append(row)
    return batches


def _read(language_model: LanguageModel, captions: list[list[int]]) -> Tensor:
    """(batch,) nats of captions, on the CPU."""
    begin = language_model.tokenizer.bos_token_id
    if begin is None:
        begin = language_model.eos_token_id
    padded = pad_sequence([torch.tensor(caption) for caption in captions], batch_first=True, padding_value=_PADDING)
    targets = padded.to(next(language_model.parameters()).device)  # (batch, length)
    # Padding follows a caption, where a causal model does not see it: any token will do.
    context = F.pad(targets[:, :-1].clamp(min=0), (1, 0), value=begin)
    logits = language_model(language_model.embed(context), last=targets.shape[1])  # (batch, length, vocabulary)
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=_PADDING, reduction="none")
    return losses.view_as(targets).sum(dim=1).cpu()


class Perplexity(Metric):
    """exp of the mean negative log-likelihood of the captions' tokens under a language model.

    1 is the lowest; see `negative_log_likelihood` for what the first token is conditioned on and which tokens count.

    Args:
        language_model: moves to a device with the metric.
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> from prefixcap.language import load_language_model
        >>> metric = Perplexity(load_language_model("demo"))
        >>> metric.update(["A red circle in a meadow.", "A plain blue square at the top."])
        >>> bool(1 < metric.compute() < 10)
        True
    """

    full_state_update = False
    higher_is_better = False
    nats: list[Tensor]
    tokens: Tensor

    def __init__(self, language_model: LanguageModel, **options: Any) -> None:
        super().__init__(**options)
        self.language_model = language_model
        # One figure a caption and not their sum, which would lose all precision once a metric is cast to bfloat16.
        self.add_state("nats", [], dist_reduce_fx="cat")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, captions: Sequence[str]) -> None:
        """Add captions. Raises as `negative_log_likelihood`."""
        nats, tokens = negative_log_likelihood(self.language_model, captions)
        self.nats.append(nats.to(self.device, self.dtype))
        self.tokens = self.tokens + tokens.sum().to(self.device)

    def compute(self) -> Tensor:
        """() perplexity of all captions of all ranks.

        Raises:
            InputError: there are no captions, or none has a token.
        """
        if not self.tokens:
            raise InputError("Perplexity has no captions to score, or only empty ones: call update first")
        return (dim_zero_cat(self.nats).float().sum() / self.tokens).exp()
