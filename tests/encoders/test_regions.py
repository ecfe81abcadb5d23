"""Sub-region features, against equations 10 to 13 written as loops."""

import pytest
import torch

from prefixcap.encoders import PatchFeatures
from prefixcap.encoders.regions import aggregate_regions
from prefixcap.errors import InputError


def test_equations_ten_to_thirteen() -> None:
    torch.manual_seed(0)
    batch, patches, dim, regions = 3, 12, 5, 4
    attention = torch.rand(batch, 1 + patches, 1 + patches).softmax(dim=-1)
    features = PatchFeatures(
        torch.randn(batch, dim), torch.randn(batch, patches, dim), attention[:, 0, 1:], attention[:, 1:]
    )
    found = aggregate_regions(features, regions)
    for image in range(batch):
        projected = [features.embedding[image], *features.patches[image]]  # I'_p, and I_c is its first
        ranked = sorted(range(1, 1 + patches), key=lambda patch: -attention[image, 0, patch].item())
        for place, patch in enumerate(ranked[:regions]):
            region = sum(attention[image, patch, token] * projected[token] for token in range(1 + patches))
            torch.testing.assert_close(found[image, place], region + projected[0])


@pytest.mark.parametrize(
    ("patch_attention", "regions", "message"),
    [
        (None, 2, "need the attention of a class token"),
        (torch.ones(1, 3, 4), 4, "regions must be at most 3, the patches of the encoder, not 4"),
    ],
)
def test_what_has_no_regions(patch_attention: torch.Tensor | None, regions: int, message: str) -> None:
    features = PatchFeatures(torch.ones(1, 5), torch.ones(1, 3, 5), torch.ones(1, 3), patch_attention)
    with pytest.raises(InputError, match=message):
        aggregate_regions(features, regions)
