"""Sub-region feature aggregation (Qiu et al., "Mining Fine-Grained Image-Text Alignment for Zero-Shot Captioning via
Text-Only Training", AAAI 2024: MacCap, equations 10 to 13)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.encoders.protocol import PatchFeatures
from prefixcap.errors import InputError


def aggregate_regions(features: PatchFeatures, regions: int = 10) -> Tensor:
    """Sub-region features: the content of the regions that the class token attends to most.

    They are chosen by the patches with the highest attention of the class token, highest first. The attention of each
    such patch over the class token and all patches weights their projected embeddings (equation 12), and the global
    embedding is added (equation 13). Nothing is normalized.

    The released code differs: it may choose the class token as one of the patches, applies a second softmax to the
    attention, which makes it almost uniform, and scales patches, sums and the global embedding to unit length.

    Args:
        features: of a ViT with a class token.
        regions: how many, N_cr in the paper.

    Returns:
        (batch, regions, dim) in the joint space.

    Raises:
        InputError: there is no class token, or there are fewer patches than regions.
    """
    if features.attention is None or features.patch_attention is None:
        raise InputError(
            "region features need the attention of a class token, which SigLIP, CNNs and timm's networks do not have: "
            "take a CLIP ViT, e.g. clip:ViT-B/32, or the whole image in place of its regions"
        )
    if regions > features.patches.shape[1]:
        raise InputError(
            f"regions must be at most {features.patches.shape[1]}, the patches of the encoder, not {regions}"
        )
    top = features.attention.topk(regions, dim=1).indices  # (batch, regions)
    weights = torch.take_along_dim(features.patch_attention, top[..., None], dim=1)  # (batch, regions, 1 + patches)
    tokens = torch.cat([features.embedding[:, None], features.patches], dim=1)  # (batch, 1 + patches, dim)
    return weights @ tokens + features.embedding[:, None]


def unit_parts(regions: Tensor, embeddings: Tensor) -> Tensor:
    """Regions as sums of two vectors of unit length, to which MacCap's released code adds noise.

    Equation 13 adds the global embedding to the weighted sum of patches; the released code scales both to unit length
    first, and does not scale their sum. Relative to it, noise is a third to a half of what it is for a region of unit
    length.

    Args:
        regions: (batch, regions, dim) of `aggregate_regions`.
        embeddings: (batch, dim) of the entire images; a region that equals it gets unit length.

    Returns:
        (batch, regions, dim) of length 0 to 2.
    """
    image = embeddings.float().unsqueeze(1)  # (batch, 1, dim)
    return F.normalize(image, dim=-1) + F.normalize(regions.float() - image, dim=-1)
