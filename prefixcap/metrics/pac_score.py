"""PAC-S and RefPAC-S: CLIPScore with another factor, and with a CLIP that was trained further on captions.

Sarto et al., "Positive-Augmented Contrastive Learning for Image and Video Captioning Evaluation", CVPR 2023. The
published figures are those of their weights, encoder "pac-s:clip_ViT-B-32.pth" (or "pac-s:openClip_ViT-L-14.pth"). The
formula works with any encoder, with which it is CLIPScore times 0.8; scores of different encoders do not compare.

Texts are embedded after the same words as for CLIPScore, `prefixcap.metrics.clip_score.PROMPT`.
"""

from collections.abc import Sequence

from torch import Tensor

from prefixcap.encoders import Encoder
from prefixcap.metrics.clip_score import (
    CLIPScore,
    Cosines,
    RefCLIPScore,
    clip_score,
    cosines_of_texts,
    ref_clip_score,
    scores_of_cosines,
)

WEIGHT = 2.0  # w of the paper


def pac_score(images: Tensor, captions: Tensor) -> Tensor:
    """2 · max(cos(image, caption), 0): (n,) scores between 0 and 2; otherwise as `clip_score`.

    Examples:
        >>> import torch
        >>> pac_score(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([1.2000])
    """
    return clip_score(images, captions, WEIGHT)


def ref_pac_score(images: Tensor, captions: Tensor, references: Sequence[Tensor] | Tensor) -> Tensor:
    """Harmonic mean of `pac_score` and the cosine of caption and nearest reference, 0 where that is negative.

    Arguments and errors are those of `ref_clip_score`; (n,) scores between 0 and 1.33. As in the published code, the
    cosine has no factor.

    Examples:
        >>> import torch
        >>> image, caption = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> ref_pac_score(image, caption, [torch.tensor([[3.0, 4.0], [1.0, 0.0]])])  # 1.2 and 1
        tensor([1.0909])
    """
    return ref_clip_score(images, captions, references, WEIGHT)


class PACScore(CLIPScore):
    """Mean of `pac_score` over images, as a `torchmetrics.Metric`; otherwise as `CLIPScore`.

    Examples:
        >>> import torch
        >>> metric = PACScore()
        >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0], [0.0, -1.0]]))
        >>> metric.compute()
        tensor(0.6000)
    """

    _weight = WEIGHT


class RefPACScore(RefCLIPScore):
    """Mean of `ref_pac_score` over images, as a `torchmetrics.Metric`; otherwise as `RefCLIPScore`.

    Examples:
        >>> import torch
        >>> metric = RefPACScore()
        >>> image, caption = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]])
        >>> metric.update(image, caption, [torch.tensor([[3.0, 4.0], [1.0, 0.0]])])
        >>> metric.compute()
        tensor(1.0909)
    """

    _weight = WEIGHT


def pac_scores_of_texts(
    encoder: Encoder,
    images: Tensor,
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """For each image the PAC-S of its caption and, with references, the RefPAC-S.

    Arguments and errors are those of `prefixcap.metrics.clip_score.clip_scores_of_texts`.

    Returns:
        "PAC-S" and, with references, "RefPAC-S": (n,) each, float32, on the CPU.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")                      # or "pac-s:clip_ViT-B-32.pth"
        >>> images = encoder.encode_texts(["a red circle", "a blue square"])  # in place of pictures
        >>> scores = pac_scores_of_texts(encoder, images, ["a red circle"] * 2)
        >>> bool(scores["PAC-S"][0] > scores["PAC-S"][1])
        True
    """
    return pac_scores_of_cosines(cosines_of_texts(encoder, images, captions, references, batch_size))


def pac_scores_of_cosines(cosines: Cosines) -> dict[str, Tensor]:
    """As `prefixcap.metrics.clip_score.scores_of_cosines`, by the names of PAC-S."""
    return scores_of_cosines(cosines, WEIGHT, ("PAC-S", "RefPAC-S"))
