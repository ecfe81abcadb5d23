"""CLIPScore and RefCLIPScore: how close a caption is to its image, and to its references, in the space of a CLIP.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021. The published figures
are those of `clip:ViT-B/32`; scores under different encoders do not compare.

In the paper, captions and references are embedded after the words "A photo depicts" (`PROMPT`). `clip_scores_of_texts`
does that; where you embed captions yourself, write `encoder.encode_texts([f"{PROMPT} {caption}"])`.

Shapes: n images; r references of an image; d the width of an embedding.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from prefixcap.encoders import Encoder
from prefixcap.errors import InputError, RowsError
from prefixcap.metrics.texts import check_texts

PROMPT = "A photo depicts"
_WEIGHT = 2.5  # w of the paper: stretches the cosines of ViT-B/32 to about 0 to 1


def clip_score(images: Tensor, captions: Tensor) -> Tensor:
    """2.5 · max(cos(image, caption), 0): section 3 of the paper.

    Args:
        images: (n, d) embeddings of images, as an encoder gives them; they need not be normalised.
        captions: (n, d) embeddings of their captions, by the same encoder.

    Returns:
        (n,) scores between 0 and 2.5, in float32 (float64 if the embeddings are).

    Raises:
        InputError: the embeddings differ in number or width, or an embedding is NaN, infinite or all zero.

    Examples:
        >>> clip_score(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([1.5000])
    """
    _check_pairs(images, captions)
    cosines = (_unit(images, "image embeddings") * _unit(captions, "caption embeddings")).sum(dim=-1)
    return _WEIGHT * cosines.clamp(min=0)


def ref_clip_score(images: Tensor, captions: Tensor, references: Sequence[Tensor] | Tensor) -> Tensor:
    """Harmonic mean of `clip_score` and max(max over references of cos(caption, reference), 0): section 3 of the paper.

    Args:
        images: (n, d) embeddings of images.
        captions: (n, d) embeddings of their captions.
        references: (n, r, d) embeddings of their references, or n tensors (r_i, d) with r_i ≥ 1.

    Returns:
        (n,) scores between 0 and 1.43; 0 where either part is 0. In float32 (float64 if the embeddings are).

    Raises:
        InputError: as `clip_score`, or an image has no references, or these are of another shape.

    Examples:
        >>> image, caption = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> ref_clip_score(image, caption, [torch.tensor([[3.0, 4.0], [1.0, 0.0]])])  # 1.5 and 1
        tensor([1.2000])
    """
    image_part = clip_score(images, captions)
    if len(references) != len(captions):
        raise InputError(
            f"{len(captions)} caption embeddings, but references of {len(references)} images: give as many"
        )
    text_part = torch.zeros_like(image_part)  # (n,)
    for row, (caption, own) in enumerate(zip(_unit(captions, "caption embeddings"), references, strict=True)):
        if own.ndim != 2 or own.shape[0] == 0 or own.shape[1] != len(caption):
            raise InputError(
                f"the reference embeddings of row {row} have shape {tuple(own.shape)}: "
                f"give (references, {len(caption)}), with at least one reference"
            )
        cosines = (_unit(own, f"reference embeddings of row {row}") * caption).sum(dim=-1)  # (r,)
        text_part[row] = cosines.max().clamp(min=0)
    total = image_part + text_part
    return 2 * image_part * text_part / torch.where(total > 0, total, 1)


class _MeanOverImages(Metric):
    """The mean of scores of images, which are gathered from all ranks."""

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]

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
        self._add(clip_score(images.to(self.device), captions.to(self.device)))


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
        self._add(ref_clip_score(images.to(self.device), captions.to(self.device), moved))


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
    check_texts(captions, references)
    if not len(captions) or len(captions) != len(images):
        raise InputError(f"{len(images)} image embeddings, {len(captions)} captions: give as many, at least one")
    require_directions(images)  # here, where row numbers are those of all images
    names = ["CLIPScore"] if references is None else ["CLIPScore", "RefCLIPScore"]
    scores: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        image_embeddings = images[batch].to(encoder.device)
        caption_embeddings = _embed(encoder, captions[batch], batch_size)
        scores["CLIPScore"].append(clip_score(image_embeddings, caption_embeddings).float().cpu())
        if references is not None:
            # The references of all images of the batch are embedded together, and split by image again.
            groups = references[batch]
            embedded = _embed(encoder, [text for texts in groups for text in texts], batch_size)
            reference_embeddings = torch.split(embedded, [len(texts) for texts in groups])
            ref_scores = ref_clip_score(image_embeddings, caption_embeddings, reference_embeddings)
            scores["RefCLIPScore"].append(ref_scores.float().cpu())
    return {name: torch.cat(batches) for name, batches in scores.items()}


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
