"""BERTScore (Zhang et al., ICLR 2020) and the similarity of sentences, with any encoder of texts.

Shapes: n images; L and M tokens of a caption and of a reference; d the width of the encoder.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prefixcap.metrics.text_encoder import TextEncoder

_IMAGES_AT_ONCE = 256  # whose tokens are kept in memory


def bert_scores(
    encoder: TextEncoder, captions: Sequence[str], references: Sequence[Sequence[str]], idf: bool = False
) -> Tensor:
    """The F1 of BERTScore of each caption with the reference that gives the highest, as the authors' package.

    Each token of the caption is matched with the most similar token of the reference (precision), and the reverse
    (recall), by the cosine in one layer of the encoder. The tokens that begin and end a text can be matched but do not
    count. Scores are not rescaled; with the baseline b of a model and a language, rescaled scores are
    (score - b) / (1 - b).

    Args:
        encoder: as `prefixcap.metrics.text_encoder.load_text_encoder` gives it.
        captions: n texts as they were written.
        references: of each of them.
        idf: weigh tokens by how few of the references have them.

    Returns:
        (n,) float64 on the CPU, -1 to 1; 0 where the caption, or all references, have no token that counts.

    Raises:
        InputError: a text is longer than the encoder reads.
    """
    captions = [text.strip() for text in captions]
    references = [[text.strip() for text in texts] for texts in references]
    texts = list(dict.fromkeys([*captions, *(text for own in references for text in own)]))
    tokens = dict(zip(texts, encoder.tokenize(texts, after_space=True), strict=True))
    weights = _weights(encoder, [tokens[text] for own in references for text in own] if idf else None)
    scores = []
    for start in range(0, len(captions), _IMAGES_AT_ONCE):
        own = captions[start : start + _IMAGES_AT_ONCE]
        theirs = references[start : start + _IMAGES_AT_ONCE]
        used = list(dict.fromkeys([*own, *(text for texts in theirs for text in texts)]))
        vectors = dict(zip(used, encoder.encode_tokens([tokens[text] for text in used]), strict=True))

        def f1(one: str, other: str, vectors: Mapping[str, Tensor] = vectors) -> float:
            both = (torch.tensor([weights(token) for token in tokens[text]]) for text in (one, other))
            return _f1(vectors[one], vectors[other], *both)

        scores += [max(f1(caption, text) for text in texts) for caption, texts in zip(own, theirs, strict=True)]
    return torch.tensor(scores, dtype=torch.float64)


def similarities(encoder: TextEncoder, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
    """The cosine of each caption with the reference nearest to it.

    Args:
        encoder: a model that was trained to embed sentences, e.g. all-MiniLM-L6-v2.
        captions: n texts as they were written.
        references: of each of them.

    Returns:
        (n,) float64 on the CPU, -1 to 1.

    Raises:
        InputError: a text is longer than the encoder reads.
    """
    texts = list(dict.fromkeys([*captions, *(text for own in references for text in own)]))
    vectors = encoder.encode_texts(texts)
    rows = {text: row for row, text in enumerate(texts)}
    cosines = [
        (vectors[[rows[text] for text in own]] @ vectors[rows[caption]]).max()
        for caption, own in zip(captions, references, strict=True)
    ]
    return torch.stack(cosines).double() if cosines else torch.empty(0, dtype=torch.float64)


class _Weights:
    """The weight of each token: 1, or how rare it is; 0 of those that begin and end a text."""

    def __init__(self, ends: set[int], documents: Sequence[Sequence[int]] | None) -> None:
        self._ends, self._count = ends, None if documents is None else len(documents)
        self._having = Counter(token for tokens in documents or () for token in set(tokens))

    def __call__(self, token: int) -> float:
        if self._count is not None:
            return math.log((self._count + 1) / (self._having[token] + 1))
        return float(token not in self._ends)


def _weights(encoder: TextEncoder, documents: Sequence[Sequence[int]] | None) -> _Weights:
    ends = {encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id}
    return _Weights(ends, documents)


def _f1(caption: Tensor, reference: Tensor, caption_weights: Tensor, reference_weights: Tensor) -> float:
    """Of (L, d) and (M, d) unit vectors and the (L,) and (M,) weights of their tokens; 0 where none has weight."""
    total, reference_total = float(caption_weights.sum()), float(reference_weights.sum())
    if total <= 0 or reference_total <= 0:
        return 0.0
    cosines = (caption @ reference.T).cpu()  # (L, M)
    precision = float(cosines.amax(dim=1) @ caption_weights) / total
    recall = float(cosines.amax(dim=0) @ reference_weights) / reference_total
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
