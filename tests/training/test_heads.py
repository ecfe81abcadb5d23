"""Heads that join two networks: batches, loss and retrieval against plain loops, and that they learn."""

import doctest
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from prefixcap.encoders.heads import load_sentence_encoder, read_heads, write_heads
from prefixcap.errors import InputError
from prefixcap.store import FeatureStore
from prefixcap.training import heads
from prefixcap.training.heads import Pairs, batches, clip_loss, read_pairs, recalls, retrieval_row, train_heads
from tests.conftest import IDENTITY
from tests.encoders.conftest import heads_folder as heads_folder
from tests.encoders.conftest import timm_folder as timm_folder
from tests.training.test_training import make_store


def made_up(images: int, seed: int) -> Pairs:
    """Features that are linear in what an image shows, 8 numbers, beside noise; one to four captions each."""
    random, mixing = np.random.default_rng(seed), np.random.default_rng(0)
    image_of = np.arange(images).repeat(random.integers(1, 5, images))
    shown = random.standard_normal((images, 8))
    to_image, to_text = mixing.standard_normal((8, 40)), mixing.standard_normal((8, 24))
    features = shown @ to_image + random.standard_normal((images, 40))
    captions = shown[image_of] @ to_text + random.standard_normal((len(image_of), 24))
    return Pairs(torch.from_numpy(features).float(), torch.from_numpy(captions).float(), torch.from_numpy(image_of))


def test_they_find_images_and_captions_that_they_have_not_seen(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    weights = train_heads(made_up(200, seed=1), epochs=15, batch=50)
    assert torch.equal(torch.get_rng_state(), state)
    write_heads(tmp_path / "heads.safetensors", weights)
    numbers = recalls(made_up(100, seed=2), *read_heads(tmp_path / "heads.safetensors", "made up"))
    assert min(numbers) > 0.5, retrieval_row("made up", numbers)  # by chance Recall@1 is 1 in 100
    assert {weight.dtype for key, weight in weights.items() if key not in ("image.mean", "image.std")} == {torch.half}


def test_the_example() -> None:
    failed, attempted = doctest.testmod(heads)
    assert attempted == 3 and not failed


def test_the_seed_decides() -> None:
    pairs = made_up(20, seed=1)
    first, again, other = (train_heads(pairs, epochs=2, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["text.up.weight"], other["text.up.weight"])


def test_too_few_images_and_features_that_are_not_finite_are_told() -> None:
    one = Pairs(torch.ones(1, 3), torch.ones(2, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match="give two images"):
        train_heads(one)
    pairs = made_up(20, seed=1)
    pairs.captions[3] = torch.nan
    with pytest.raises(InputError, match="the loss is not finite at step 1"):
        train_heads(pairs)


def test_batches_have_own_captions_at_random() -> None:
    """Each image as often as another, and each of its captions; those of which there are two or more are two others."""
    torch.manual_seed(0)
    counts = torch.tensor([1, 2, 5, 3])
    image_of = torch.arange(4).repeat_interleave(counts)
    pairs = Pairs(torch.arange(4.0)[:, None], torch.arange(11.0)[:, None], image_of)
    drawn, seen = Counter[int](), Counter[int]()
    for images, captions in batches(pairs, 2, 2, epochs=300):
        assert images.shape == (2, 1) and captions.shape == (4, 1) and images[0] != images[1]
        for image, own in zip(images[:, 0].int().tolist(), captions.view(2, 2).int().tolist(), strict=True):
            assert [image_of[caption] for caption in own] == [image, image]
            assert (own[0] == own[1]) == (counts[image] == 1)
            seen[image] += 1
            drawn.update(own)
    assert seen == dict.fromkeys(range(4), 300)
    for caption, number in drawn.items():
        assert number == pytest.approx(600 / counts[image_of[caption]].item(), rel=0.2), caption


def test_recall_and_cosine_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(heads, "COSINES_AT_ONCE", 200)  # several parts
    image_of = torch.arange(30).repeat_interleave(torch.randint(1, 6, (30,)))
    images = torch.randn(30, 6)
    captions = images[image_of] + 2 * torch.randn(len(image_of), 6)
    to_text, to_image, cosines = [], [], []
    for number, image in enumerate(images):
        order = sorted(
            range(len(captions)), key=lambda row: -torch.cosine_similarity(image, captions[row], dim=0).item()
        )
        to_text.append(min(rank for rank, row in enumerate(order) if image_of[row] == number))
        for caption in captions[image_of == number]:
            similarity = torch.stack([torch.cosine_similarity(other, caption, dim=0) for other in images])
            to_image.append(int((similarity > similarity[number]).sum()))
            cosines.append(similarity[number].item())
    expected = [np.mean(np.array(ranks) < first) for ranks in (to_text, to_image) for first in (1, 5, 10)]
    found = recalls(Pairs(images, captions, image_of), nn.Identity(), nn.Identity())
    assert found == pytest.approx([*expected, np.mean(cosines)], abs=1e-5)


def test_the_loss_is_that_of_a_plain_loop_and_with_one_caption_clips() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 8)
    to_text, to_image = [], []
    for caption in range(8):
        image = caption // 2
        others = [other for other in range(8) if other == caption or other // 2 != image]
        to_text.append(scores[image, others].logsumexp(0) - scores[image, caption])
        to_image.append(scores[:, caption].logsumexp(0) - scores[image, caption])
    expected = (torch.stack(to_text).mean() + torch.stack(to_image).mean()) / 2
    torch.testing.assert_close(clip_loss(scores), expected)
    one, own = scores[:, ::2], torch.arange(4)
    clips = (nn.functional.cross_entropy(one, own) + nn.functional.cross_entropy(one.T, own)) / 2
    torch.testing.assert_close(clip_loss(one), clips)


def test_pairs_of_a_store_leave_out_images_without_captions(
    tmp_path: Path, heads_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "TEXTS_AT_ONCE", 2)
    texts = load_sentence_encoder(heads_folder / "text")
    own = (("a red circle on the left", "red"), (), ("the circle",), ())
    train = FeatureStore(make_store(tmp_path / "store", IDENTITY, own)).split("train")
    pairs = read_pairs(train, texts)
    assert pairs.image_of.tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    torch.testing.assert_close(pairs.images, torch.from_numpy(train.embeddings[[0, 2, 4, 6, 8, 10]]).float())
    expected = torch.cat([texts.encode([caption]) for _ in range(3) for each in own for caption in each])
    torch.testing.assert_close(pairs.captions, expected)
    none = read_pairs(FeatureStore(make_store(tmp_path / "none", IDENTITY, ((), ()))).split("val"), texts)
    assert len(none.images) == len(none.captions) == 0
