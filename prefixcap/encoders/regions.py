"""Sub-region feature aggregation (Qiu et al., "Mining Fine-Grained Image-Text Alignment for Zero-Shot Captioning via
Text-Only Training", AAAI 2024: MacCap, equations 10 to 13)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.encoders.protocol import PatchFeatures
from prefixcap.errors import InputError


def aggregate_regions(features: PatchFeatures, regions: int = 10) -> Tensor:
    """What an image shows in the places that its class token looks at: (batch, regions, dim) in the joint space.

    The patches with the highest attention of the class token are taken, highest first. The attention of each over the
    class token and all patches weights their projected embeddings (equation 12), and the global embedding is added
    (equation 13). Nothing is normalised.

    The released code differs: it may take the class token for one of the patches, puts the attention rows through a
    second softmax, which makes them almost even, and scales patches, sums and the global embedding to length one.

    Args:
        features: of a ViT with a class token.
        regions: how many, N_cr in the paper.

    Raises:
        InputError: there is no class token, or there are fewer patches than regions.
    """
    if features.patch_attention is None:
        raise InputError("region features need an image tower with a class token: take a CLIP ViT, e.g. clip:ViT-B/32")
    if regions > features.patches.shape[1]:
        raise InputError(f"{regions} regions are asked for, but the encoder has {features.patches.shape[1]} patches")
    top = features.attention.topk(regions, dim=1).indices  # (batch, regions)
    weights = torch.take_along_dim(features.patch_attention, top[..., None], dim=1)  # (batch, regions, 1 + patches)
    tokens = torch.cat([features.embedding[:, None], features.patches], dim=1)  # (batch, 1 + patches, dim)
    return weights @ tokens + features.embedding[:, None]


def unit_parts(regions: Tensor, embeddings: Tensor) -> Tensor:
    """Regions as sums of two vectors of length one, as MacCap's released code adds noise to them.

    Equation 13 adds the global embedding to the weighted sum of patches; the released code scales both to length one
    first, and does not scale what they add up to. Noise is a third to a half of what it is for a region of length one.

    Args:
        regions: (batch, regions, dim) of `aggregate_regions`.
        embeddings: (batch, dim) of the whole images; where a region is no more than that, it gets length one.

    Returns:
        (batch, regions, dim), between 0 and 2 long.
    """
    whole = embeddings.float().unsqueeze(1)  # (batch, 1, dim)
    return F.normalize(whole, dim=-1) + F.normalize(regions.float() - whole, dim=-1)
