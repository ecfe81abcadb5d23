"""Noise on embeddings, beside what its distribution says, and a plain computation."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from prefixcap.errors import InputError
from prefixcap.noise import Noise, ball_noise, dimension_noise, gaussian_noise, read_offset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_has_the_variance_in_each_dimension() -> None:
    noise = gaussian_noise(torch.zeros(2000, 16), 0.016, generator())
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, np.sqrt(0.016)).cdf).pvalue > 0.01
    assert noise.var(0).numpy() == pytest.approx(np.full(16, 0.016), rel=0.2)


def test_ball_noise_is_even_in_the_ball() -> None:
    """So the share of the volume within a point's distance, its distance to the power of the dimensions, is even."""
    lengths = ball_noise(torch.zeros(3000, 5), 0.09, generator()).norm(dim=-1)
    assert lengths.max() <= 0.3
    assert stats.kstest(((lengths / 0.3) ** 5).numpy(), "uniform").pvalue > 0.01
    directions = F.normalize(ball_noise(torch.zeros(3000, 5), 0.09, generator(1)), dim=-1)
    assert directions.mean(0).abs().max() < 0.03


def test_dimension_noise_leaves_the_other_dimensions() -> None:
    embeddings = torch.randn(500, 40)
    moved = dimension_noise(embeddings, 1.0, 0.1, generator()) != embeddings
    assert (moved.sum(1) == 4).all()
    assert moved.float().mean(0).numpy() == pytest.approx(np.full(40, 0.1), abs=0.06)


def test_text_regions_are_those_of_the_paper() -> None:
    """Equations 3 and 4, one copy at a time."""
    embeddings = 3 * torch.randn(4, 6)
    regions = Noise(variance=0.016, copies=3)(embeddings, generator())
    noise = torch.randn(4, 3, 6, generator=generator())
    for text in range(4):
        for copy in range(3):
            moved = embeddings[text] / embeddings[text].norm() + np.sqrt(0.016) * noise[text, copy]
            torch.testing.assert_close(regions[text, copy], moved / moved.norm())


def test_without_noise_an_embedding_is_scaled_and_repeated() -> None:
    embeddings = 3 * torch.randn(4, 6)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    torch.testing.assert_close(Noise(variance=0.0)(embeddings), unit)
    torch.testing.assert_close(Noise(variance=0.0, copies=2)(embeddings), torch.stack((unit, unit), 1))
    raw = Noise(variance=0.0, normalize_before=False, normalize_after=False)
    assert torch.equal(raw(embeddings), embeddings)
    offset = torch.arange(6.0)
    moved = unit + offset
    torch.testing.assert_close(Noise(variance=0.0, offset=offset)(embeddings), moved / moved.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", ["gaussian", "ball", "dimensions"])
def test_the_generator_decides(kind: str) -> None:
    noise, embeddings = Noise(kind, copies=2), torch.randn(3, 8)
    assert torch.equal(noise(embeddings, generator()), noise(embeddings, generator()))
    assert not torch.equal(noise(embeddings, generator()), noise(embeddings, generator(1)))
    torch.testing.assert_close(noise(embeddings).norm(dim=-1), torch.ones(3, 2))


def test_mistakes_are_told(tmp_path: Path) -> None:
    for options, message in (
        ({"kind": "uniform"}, "noise: unknown kind 'uniform': choose one of gaussian, ball, dimensions"),
        ({"variance": -1.0}, "noise: variance must be between 0.0 and 100.0, not -1.0"),
        ({"share": 0.0}, "noise: share must be above 0.0 and at most 1.0, not 0.0"),
        ({"copies": 0}, "noise: copies must be between 1 and 10000, not 0"),
    ):
        with pytest.raises(InputError, match=message):
            Noise(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="embeddings have 6 dimensions"):
        Noise(offset=torch.zeros(5))(torch.randn(2, 6))
    file = tmp_path / "offset.npy"
    with pytest.raises(InputError, match="holds no modality offset"):
        read_offset(file)
    np.save(file, np.ones((2, 2)))
    with pytest.raises(InputError, match="no vector of finite numbers"):
        read_offset(file)
    np.save(file, np.arange(3.0))
    assert read_offset(file).tolist() == [0, 1, 2]
