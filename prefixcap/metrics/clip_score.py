"""CLIPScore and RefCLIPScore: how close a caption is to its image, and to its references, in the space of a CLIP.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021. The published figures
are those of `clip:ViT-B/32`; scores under different encoders do not compare.

In the paper, captions and references are embedded after the words "A photo depicts" (`PROMPT`). `clip_scores_of_texts`
does that; where you embed captions yourself, write `encoder.encode_texts([f"{PROMPT} {caption}"])`.

Shapes: n images; r references of an image; d the width of an embedding.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from prefixcap.encoders import Encoder
from prefixcap.errors import InputError, RowsError
from prefixcap.metrics.texts import check_texts

PROMPT = "A photo depicts"
WEIGHT = 2.5  # w of the paper: stretches the cosines of ViT-B/32 to about 0 to 1


def clip_score(images: Tensor, captions: Tensor, weight: float = WEIGHT) -> Tensor:
    """2.5 · max(cos(image, caption), 0): section 3 of the paper.

    Args:
        images: (n, d) embeddings of images, as an encoder gives them; they need not be normalised.
        captions: (n, d) embeddings of their captions, by the same encoder.
        weight: in place of 2.5.

    Returns:
        (n,) scores between 0 and the weight, in float32 (float64 if the embeddings are).

    Raises:
        InputError: the embeddings differ in number or width, or an embedding is NaN, infinite or all zero.

    Examples:
        >>> clip_score(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([1.5000])
    """
    return weight * _image_cosines(images, captions)


def ref_clip_score(
    images: Tensor, captions: Tensor, references: Sequence[Tensor] | Tensor, weight: float = WEIGHT
) -> Tensor:
    """Harmonic mean of `clip_score` and max(max over references of cos(caption, reference), 0): section 3 of the paper.

    Args:
        images: (n, d) embeddings of images.
        captions: (n, d) embeddings of their captions.
        references: (n, r, d) embeddings of their references, or n tensors (r_i, d) with r_i ≥ 1.
        weight: that of `clip_score`.

    Returns:
        (n,) scores between 0 and 1.43, the harmonic mean of 2.5 and 1; 0 where either part is 0. In float32 (float64
        if the embeddings are).

    Raises:
        InputError: as `clip_score`, or an image has no references, or these are of another shape.

    Examples:
        >>> image, caption = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> ref_clip_score(image, caption, [torch.tensor([[3.0, 4.0], [1.0, 0.0]])])  # 1.5 and 1
        tensor([1.2000])
    """
    return _harmonic_mean(clip_score(images, captions, weight), _reference_cosines(captions, references))


class _MeanOverImages(Metric):
    """The mean of scores of images, which are gathered from all ranks."""

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    _weight = WEIGHT

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("scores", [], dist_reduce_fx="cat")

    def _add(self, scores: Tensor) -> None:
        self.scores.append(scores.to(self.device, self.dtype))

    def compute(self) -> Tensor:
        """() mean over all images of all ranks.

        Raises:
            InputError: there are no images.
        """
        scores = self.per_image()
        if not len(scores):
            raise InputError(f"{type(self).__name__} has no captions to score: call update first")
        return scores.float().mean()

    def per_image(self) -> Tensor:
        """(n,) scores of the images that this process was given, in that order."""
        return dim_zero_cat(self.scores) if len(self.scores) else torch.empty(0, device=self.device)


class CLIPScore(_MeanOverImages):
    """Mean of `clip_score` over images (Hessel et al., 2021), between 0 and 2.5.

    Embeddings come from any encoder of `prefixcap.encoders`, as it gives them, captions after `PROMPT`.

    Args:
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = CLIPScore()
        >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, -1.0]]))
        >>> metric.compute()
        tensor(0.7500)
        >>> metric.per_image()
        tensor([1.5000, 0.0000])
    """

    def update(self, images: Tensor, captions: Tensor) -> None:
        """Add images: their (n, d) embeddings, and those of their captions. Raises as `clip_score`."""
        self._add(clip_score(images.to(self.device), captions.to(self.device), self._weight))


class RefCLIPScore(_MeanOverImages):
    """Mean of `ref_clip_score` over images (Hessel et al., 2021).

    Embeddings come from any encoder of `prefixcap.encoders`, as it gives them, captions and references after `PROMPT`.

    Args:
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = RefCLIPScore()
        >>> image, caption = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> metric.update(image, caption, [torch.tensor([[3.0, 4.0], [1.0, 0.0]])])
        >>> metric.compute()
        tensor(1.2000)
    """

    def update(self, images: Tensor, captions: Tensor, references: Sequence[Tensor] | Tensor) -> None:
        """Add images: their (n, d) embeddings, those of captions and references. Raises as `ref_clip_score`."""
        moved = [embeddings.to(self.device) for embeddings in references]
        self._add(ref_clip_score(images.to(self.device), captions.to(self.device), moved, self._weight))


def clip_scores_of_texts(
    encoder: Encoder,
    images: Tensor,
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """For each image the CLIPScore of its caption and, with references, the RefCLIPScore.

    Texts are embedded after `PROMPT`; what exceeds the encoder's context (77 tokens of OpenAI's CLIP) is cut. Only the
    embeddings of one batch of images and their texts are held at a time.

    Args:
        encoder: the one that made `images`.
        images: (n, d) embeddings, on any device.
        captions: one for each image.
        references: one or more for each image.
        batch_size: images whose texts are held together, and texts that are embedded together.

    Returns:
        "CLIPScore" and, with references, "RefCLIPScore": (n,) each, float32, on the CPU.

    Raises:
        InputError: as `ref_clip_score`, or there are no images.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> images = encoder.encode_texts(["a red circle", "a blue square"])  # in place of pictures
        >>> scores = clip_scores_of_texts(encoder, images, ["a red circle"] * 2, [["a red ring"], ["a blue box"]])
        >>> {name: bool(score[0] > score[1]) for name, score in scores.items()}
        {'CLIPScore': True, 'RefCLIPScore': True}
    """
    return scores_of_cosines(cosines_of_texts(encoder, images, captions, references, batch_size))


class Cosines(NamedTuple):
    """Cosines of captions, negative ones as 0: (n,) with their images and (n,) with the nearest references."""

    images: Tensor
    references: Tensor | None


def cosines_of_texts(
    encoder: Encoder,
    images: Tensor,
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    batch_size: int = 256,
) -> Cosines:
    """What the scores of `clip_scores_of_texts` and of PAC-S are made of; arguments and errors are those of the former.

    Returns:
        (n,) each, on the CPU, in the dtype of the embeddings, at least float32.
    """
    check_texts(captions, references)
    if not len(captions) or len(captions) != len(images):
        raise InputError(f"{len(images)} image embeddings, {len(captions)} captions: give as many, at least one")
    require_directions(images)  # here, where row numbers are those of all images
    image_cosines, reference_cosines = [], []
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        caption_embeddings = _embed(encoder, captions[batch], batch_size)
        image_cosines.append(_image_cosines(images[batch].to(encoder.device), caption_embeddings).cpu())
        if references is not None:
            # The references of all images of the batch are embedded together, and split by image again.
            groups = references[batch]
            embedded = _embed(encoder, [text for texts in groups for text in texts], batch_size)
            reference_embeddings = torch.split(embedded, [len(texts) for texts in groups])
            reference_cosines.append(_reference_cosines(caption_embeddings, reference_embeddings).cpu())
    return Cosines(torch.cat(image_cosines), torch.cat(reference_cosines) if references is not None else None)


def scores_of_cosines(
    cosines: Cosines, weight: float = WEIGHT, names: tuple[str, str] = ("CLIPScore", "RefCLIPScore")
) -> dict[str, Tensor]:
    """(n,) weighted cosines with images and, with references, their harmonic mean with these, in float32, by name."""
    scores = weight * cosines.images
    named = {names[0]: scores.float()}
    if cosines.references is not None:
        named[names[1]] = _harmonic_mean(scores, cosines.references).float()
    return named


def require_directions(images: Tensor) -> None:
    """Refuse (n, d) embeddings of images that have no direction: RowsError if one is NaN, infinite or all zero."""
    _norms(images, "image embeddings")


def _embed(encoder: Encoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """(n, d) embeddings of texts after the prompt."""
    by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # so that batches have little padding
    embedded = [
        encoder.encode_texts([f"{PROMPT} {texts[row]}" for row in by_length[start : start + batch_size]])
        for start in range(0, len(texts), batch_size)
    ]
    return torch.cat(embedded)[torch.tensor(by_length).argsort().to(encoder.device)]


def _image_cosines(images: Tensor, captions: Tensor) -> Tensor:
    """(n, d), (n, d) -> (n,), negative ones as 0."""
    _check_pairs(images, captions)
    cosines = (_unit(images, "image embeddings") * _unit(captions, "caption embeddings")).sum(dim=-1)
    return cosines.clamp(min=0)


def _reference_cosines(captions: Tensor, references: Sequence[Tensor] | Tensor) -> Tensor:
    """(n, d), n times (r_i, d) -> (n,) the highest cosine of each caption with its references, negative ones as 0."""
    if len(references) != len(captions):
        raise InputError(
            f"{len(captions)} caption embeddings, but references of {len(references)} images: give as many"
        )
    units = _unit(captions, "caption embeddings")
    highest = units.new_zeros(len(units))  # (n,)
    for row, (caption, own) in enumerate(zip(units, references, strict=True)):
        if own.ndim != 2 or own.shape[0] == 0 or own.shape[1] != len(caption):
            raise InputError(
                f"the reference embeddings of row {row} have shape {tuple(own.shape)}: "
                f"give (references, {len(caption)}), with at least one reference"
            )
        cosines = (_unit(own, f"reference embeddings of row {row}") * caption).sum(dim=-1)  # (r,)
        highest[row] = cosines.max().clamp(min=0)
    return highest


def _harmonic_mean(one: Tensor, other: Tensor) -> Tensor:
    """(n,), (n,) -> (n,); 0 where either is 0."""
    total = one + other
    return 2 * one * other / torch.where(total > 0, total, 1)


def _check_pairs(images: Tensor, captions: Tensor) -> None:
    shapes = f"image embeddings have shape {tuple(images.shape)}, caption embeddings {tuple(captions.shape)}"
    if images.ndim != 2 or captions.ndim != 2:
        raise InputError(f"{shapes}: give (n, dim) each")
    if len(images) != len(captions):
        raise InputError(
            f"{shapes}, so that rows from {min(len(images), len(captions))} on have no partner: give as many"
        )
    if images.shape[1] != captions.shape[1]:
        raise InputError(f"{shapes}, so that all rows differ in width: embed both with the same encoder")


def _unit(embeddings: Tensor, what: str) -> Tensor:
    """(n, d) embeddings of any length -> of length 1, in float32 or float64."""
    return embeddings / _norms(embeddings, what)


def _norms(embeddings: Tensor, what: str) -> Tensor:
    """(n, d) -> (n, 1) in float32 or float64; refuses embeddings that have no direction."""
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True, dtype=dtype)
    bad = [row for row, norm in enumerate(norms.flatten().tolist()) if not 0 < norm < math.inf]
    if bad:
        raise RowsError(what, bad, "NaN, infinite or all zero: embed again")
    return norms
