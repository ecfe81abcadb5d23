"""CLIPScore and RefCLIPScore: how near a caption is to its image, and to its references, in the space of a CLIP.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021. The published figures
are those of `clip:ViT-B/32`; scores under different encoders do not compare.

In the paper, captions and references are embedded behind the words "A photo depicts" (`PROMPT`). `clip_scores_of_texts`
puts them there; who embeds captions otherwise writes `encoder.encode_texts([f"{PROMPT} {caption}"])`.
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
        images: (n, dim) embeddings of images, as an encoder gives them; they need not be normalised.
        captions: (n, dim) embeddings of their captions, by the same encoder.

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
    """Harmonic mean of `clip_score` and max(max over references of cos(caption, reference), 0).

    Args:
        images: (n, dim) embeddings of images.
        captions: (n, dim) embeddings of their captions.
        references: (n, r, dim) embeddings of their references, or n tensors (r_i, dim) with r_i ≥ 1.

    Returns:
        (n,) scores; 0 where either part is 0. In float32 (float64 if the embeddings are).

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
    text_part = torch.zeros_like(image_part)
    for row, (caption, of_image) in enumerate(zip(_unit(captions, "caption embeddings"), references, strict=True)):
        if of_image.ndim != 2 or of_image.shape[0] == 0 or of_image.shape[1] != len(caption):
            raise InputError(
                f"the reference embeddings of row {row} have shape {tuple(of_image.shape)}: "
                f"give (references, {len(caption)}), with at least one reference"
            )
        cosines = (_unit(of_image, f"reference embeddings of row {row}") * caption).sum(dim=-1)
        text_part[row] = cosines.max().clamp(min=0)
    total = image_part + text_part
    return 2 * image_part * text_part / torch.where(total > 0, total, 1)


class _MeanOverImages(Metric):
    """Scores of images, gathered from all ranks; their mean."""

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

    Embeddings come from any encoder of `prefixcap.encoders`, as it gives them, captions behind `PROMPT`.

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
        """Add images: (n, dim) embeddings, and those of their captions. Raises as `clip_score`."""
        self._add(clip_score(images.to(self.device), captions.to(self.device)))


class RefCLIPScore(_MeanOverImages):
    """Mean of `ref_clip_score` over images (Hessel et al., 2021).

    Embeddings come from any encoder of `prefixcap.encoders`, as it gives them, captions and references behind `PROMPT`.

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
        """Add images: (n, dim) embeddings, those of their captions and references. Raises as `ref_clip_score`."""
        moved = [of_image.to(self.device) for of_image in references]
        self._add(ref_clip_score(images.to(self.device), captions.to(self.device), moved))


def clip_scores_of_texts(
    encoder: Encoder,
    images: Tensor,
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """Per image the CLIPScore of its caption and, with references, the RefCLIPScore.

    Texts go behind `PROMPT`; what exceeds the encoder's context (77 tokens of OpenAI's CLIP) is cut. Not more than
    the embeddings of a batch of images and their texts are held at a time.

    Args:
        encoder: the one that made `images`.
        images: (n, dim) embeddings, on any device.
        captions: one an image.
        references: one or more an image.
        batch_size: images whose texts are held together, and texts that are embedded together.

    Returns:
        "CLIPScore" and, with references, "RefCLIPScore": (n,) each, float32, on the CPU.

    Raises:
        InputError: as `ref_clip_score`, or there are no images.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> images = encoder.encode_texts(["a red circle", "a blue square"])  # for want of pictures
        >>> scores = clip_scores_of_texts(encoder, images, ["a red circle"] * 2, [["a red ring"], ["a blue box"]])
        >>> {name: bool(of[0] > of[1]) for name, of in scores.items()}
        {'CLIPScore': True, 'RefCLIPScore': True}
    """
    check_texts(captions, references)
    if not len(captions) or len(captions) != len(images):
        raise InputError(f"{len(images)} image embeddings, {len(captions)} captions: give as many, at least one")
    require_directions(images)  # here, because a batch has row numbers of its own
    names = ["CLIPScore"] if references is None else ["CLIPScore", "RefCLIPScore"]
    scores: dict[str, list[Tensor]] = {name: [] for name in names}
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        of_images = images[batch].to(encoder.device)
        of_captions = _embed(encoder, captions[batch], batch_size)
        scores["CLIPScore"].append(clip_score(of_images, of_captions).float().cpu())
        if references is not None:
            texts = references[batch]
            embedded = _embed(encoder, [text for of_image in texts for text in of_image], batch_size)
            of_references = torch.split(embedded, [len(of_image) for of_image in texts])
            scores["RefCLIPScore"].append(ref_clip_score(of_images, of_captions, of_references).float().cpu())
    return {name: torch.cat(batches) for name, batches in scores.items()}


def require_directions(images: Tensor) -> None:
    """Refuse (n, dim) embeddings of images that no score can come from: RowsError if one is NaN, infinite or zero."""
    _norms(images, "image embeddings")


def _embed(encoder: Encoder, texts: Sequence[str], batch_size: int) -> Tensor:
    """(n, dim) embeddings of texts behind the prompt."""
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
    """(n, dim) embeddings of any length -> of length 1, in float32 or float64."""
    return embeddings / _norms(embeddings, what)


def _norms(embeddings: Tensor, what: str) -> Tensor:
    """(n, dim) -> (n, 1) in float32 or float64; refuses embeddings that have no direction."""
    dtype = torch.promote_types(embeddings.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True, dtype=dtype)
    bad = [row for row, norm in enumerate(norms.flatten().tolist()) if not 0 < norm < math.inf]
    if bad:
        raise RowsError(what, bad, "NaN, infinite or all zero: embed again")
    return norms
