"""The random order of training captions."""

import numpy as np
import pytest
import torch

from prefixcap.data.shuffle import ShuffledSampler, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 65_537, 300_001])
def test_every_item_comes_once(size: int) -> None:
    sampler = ShuffledSampler(size, seed=3)
    assert len(sampler) == size
    order = list(sampler)
    assert sorted(order) == list(range(size))
    assert list(sampler) == order
    if size > 5:
        sampler.set_epoch(1)
        assert list(sampler) != order != list(ShuffledSampler(size, seed=4))


def test_the_order_is_even() -> None:
    """Every item is as likely to stand at any place; so is every distance between neighbours."""
    places, distances = np.zeros((2, 10))
    for seed in range(5000):
        order = permuted(np.arange(10), 10, (seed, 0))
        places[order[3]] += 1
        distances[(order[7] - order[6]) % 10] += 1
    assert distances[0] == 0
    for counts, limit in ((places, 33.7), (distances[1:], 31.8)):  # chi-square passes these once in 10,000
        expected = counts.mean()
        assert ((counts - expected) ** 2 / expected).sum() < limit


def test_processes_share_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(ShuffledSampler(200_000, seed=1)))
    assert {len(share) for share in shares} == {66_667}
    assert len(set().union(*shares)) == 200_000


def test_what_was_taken_before_is_skipped() -> None:
    order = list(ShuffledSampler(200_000, seed=1))
    for taken in (0, 7, 70_000, 200_000):
        assert list(ShuffledSampler(200_000, seed=1, taken=lambda taken=taken: taken)) == order[taken:]


def test_a_hundred_million_items_take_no_list() -> None:
    order = iter(ShuffledSampler(100_000_000, seed=1))
    first = [next(order) for _ in range(1000)]
    assert len(set(first)) == 1000 and max(first) > 99_000_000 > 1_000_000 > min(first)
