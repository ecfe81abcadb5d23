"""Rewards against pycocoevalcap, the paper's formula, and a plain loop."""

import doctest
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocoevalcap.cider.cider import Cider as CocoCider

import prefixcap.metrics.references
import prefixcap.training.rewards
from prefixcap.captioner import Captioner
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError, RowsError
from prefixcap.language import load_language_model
from prefixcap.training.rewards import CiderReward, ClipReward, Reward, self_critical_weights
from tests.metrics.coco_tools import java_tokenize, needs_java, shared_json

NO_EMBEDDINGS = torch.empty(0)  # CIDEr looks at none


def of_the_tools(
    captions: Sequence[str], images: Sequence[int], references: Sequence[Sequence[str]]
) -> NDArray[np.float64]:
    """(captions,) CIDEr-D of tokenized texts by pycocoevalcap, which takes all images, one caption each, in a turn."""
    gts = {image: list(texts) for image, texts in enumerate(references)}
    scores = np.zeros(len(captions))
    waiting = list(range(len(captions)))
    while waiting:
        turn = {images[caption]: caption for caption in waiting}
        res = {image: [captions[turn[image]] if image in turn else ""] for image in gts}
        _, per_image = CocoCider().compute_score(gts, res)
        for image, caption in turn.items():
            scores[caption] = per_image[image]
            waiting.remove(caption)
    return scores


@needs_java
def test_cider_of_sampled_captions_of_coco(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several captions an image, in any order; few of the images whose references count."""
    monkeypatch.setenv("PREFIXCAP_CACHE", str(tmp_path))
    generator = random.Random(0)
    entries = generator.sample(shared_json("results/magic_coco_test.json"), 500)
    references = [entry["captions"] for entry in entries]
    references[7] = references[7][:1]
    images = [*generator.sample(range(500), 40), 7] * 3
    generator.shuffle(images)
    captions = [entries[image]["prediction"] for image in images]
    captions[::3] = [generator.choice(references[image]) for image in images[::3]]  # near the others of the image
    captions[1::4] = [entries[generator.randrange(500)]["prediction"] for _ in images[1::4]]
    captions[:6] = [
        "",
        ".",
        "a a a a a a a a",
        "A man's dog, isn't it?",
        "Zyx qwv-zyx!",
        "Zyx, a dog and A DOG.",
    ]
    texts = [*captions, *(text for of_image in references for text in of_image)]
    tokenized = iter(java_tokenize([" ".join(text.split()) for text in texts], tmp_path))
    tokenized_captions = [next(tokenized) for _ in captions]
    expected = of_the_tools(tokenized_captions, images, [[next(tokenized) for _ in of] for of in references])

    reward = CiderReward(references)
    assert reward(captions, images, NO_EMBEDDINGS) == pytest.approx(expected, rel=0, abs=1e-9)
    assert expected[:2].tolist() == [0, 0] and np.count_nonzero(expected > 0.5) > 40

    def fail(references: Sequence[Sequence[str]]) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(prefixcap.metrics.references, "_tokenized", fail)
    from_file = CiderReward(references)
    assert (from_file(captions, images, NO_EMBEDDINGS) == reward(captions, images, NO_EMBEDDINGS)).all()


@pytest.mark.parametrize(
    "references",
    [
        [["a b c d", "a b"], ["a c"], ["d", "d d e f g", "b c d"]],
        [["a b c d e"]],  # one image: nothing is rare
        [["a"], ["b c"]],  # no n-gram of three words or more
        [["a b", ""], ["a b"], ["b a", "c", "c", "c"]],
    ],
)
def test_cider_of_random_captions(references: list[list[str]]) -> None:
    generator = random.Random(0)
    captions = [" ".join(generator.choices("abcdefgxy", k=generator.randrange(9))) for _ in range(60)]
    captions += ["", "a", "a a a a a b b", "x y x y x y", *(text for of_image in references for text in of_image)]
    images = [generator.randrange(len(references)) for _ in captions]
    expected = of_the_tools(captions, images, references)
    assert CiderReward(references)(captions, images) == pytest.approx(expected, rel=0, abs=1e-9)


def test_images_without_references_do_not_count() -> None:
    with_some = [["a red circle", "a circle"], ["a blue square on red"], ["a dot"]]
    captions = ["a red square", "a blue square", "a dot"]
    expected = CiderReward(with_some)(captions, [0, 1, 2])
    reward = CiderReward([with_some[0], [], *with_some[1:], []])
    assert (reward(captions, [0, 2, 3]) == expected).all() and expected.all()
    assert reward([], []).shape == (0,)
    with pytest.raises(RowsError, match="rows 1, 4 without captions") as mistake:
        reward([*captions, "a", "b", "c"], [4, 0, 1, 2, 3, 4])
    assert mistake.value.rows == [1, 4]
    with pytest.raises(RowsError, match="row 5 without"):
        reward(["a"], [5])
    with pytest.raises(InputError, match="3 captions of 2 images"):
        reward(captions, [0, 2])
    with pytest.raises(InputError, match="no image of the training split has a caption"):
        CiderReward([[], []])


def test_clip_reward_follows_the_paper() -> None:
    encoder = load_encoder("demo")
    captions = ["a red circle", "a large blue square on a green background", "", "a red circle"]
    embeddings = 3 * encoder.encode_texts(["red circle", "a green square", "A photo depicts ", "circles"])
    embeddings[2] *= -1  # on the far side of its caption
    expected = []
    for caption, image in zip(captions, embeddings.tolist(), strict=True):
        (text,) = encoder.encode_texts([f"A photo depicts {caption}"]).tolist()
        cosine = math.fsum(a * b for a, b in zip(text, image, strict=True)) / (math.hypot(*text) * math.hypot(*image))
        expected.append(2.5 * max(cosine, 0))
    reward = ClipReward(reader_of(encoder))
    rewards = reward(captions, [0, 1, 2, 3], embeddings)
    assert rewards.dtype == np.float64 and rewards == pytest.approx(np.array(expected), abs=1e-5)
    assert expected[2] == 0 and len(set(expected)) == 4
    with_retrieved = torch.stack((embeddings, torch.ones_like(embeddings)), dim=1)  # (4, 2, D)
    np.testing.assert_array_equal(reward(captions, [0, 1, 2, 3], with_retrieved), rewards)
    with pytest.raises(InputError, match="4 captions"):
        reward(captions, [0, 1, 2, 3], embeddings[:3])


def reader_of(encoder: Encoder, mapper: str = "mlp") -> Captioner:
    """A captioner of images that an encoder embeds."""
    return Captioner(load_language_model("demo"), encoder.identity, {"name": mapper, "prefix_length": 2})


def test_clip_judges_no_captions_of_patches() -> None:
    with pytest.raises(InputError, match=r"reads images/patches: set reward='cider'"):
        ClipReward(reader_of(load_encoder("demo"), "query"))


def test_training_calls_either_reward() -> None:
    encoder = load_encoder("demo")
    captions = ["a red circle", "a blue square"]
    rewards: list[Reward] = [CiderReward([["a red circle"], ["a blue ring", "a ring"]]), ClipReward(reader_of(encoder))]
    for reward in rewards:
        right, wrong = reward(captions, [0, 0], encoder.encode_texts(["a red circle"] * 2))
        assert right > wrong


@pytest.mark.parametrize(("images", "samples"), [(1, 2), (7, 5), (0, 3)])
def test_advantage_is_over_the_other_captions_of_the_image(images: int, samples: int) -> None:
    rewards = np.random.default_rng(0).normal(size=images * samples)
    expected = []
    for image in range(images):
        of_image = rewards[image * samples : (image + 1) * samples].tolist()
        for place, reward in enumerate(of_image):
            others = of_image[:place] + of_image[place + 1 :]
            expected.append(reward - sum(others) / len(others))
    weights = self_critical_weights(rewards, samples)
    assert weights.shape == rewards.shape and weights == pytest.approx(np.array(expected), abs=1e-12)
    assert weights.reshape(images, samples).sum(axis=1) == pytest.approx(np.zeros(images), abs=1e-12)


def test_advantage_needs_captions_to_compare() -> None:
    with pytest.raises(InputError, match="sample at least 2, not 1"):
        self_critical_weights(np.ones(4), 1)
    with pytest.raises(InputError, match="10 rewards are not 4 for each image"):
        self_critical_weights(np.ones(10), 4)


def test_examples() -> None:
    failed, attempted = doctest.testmod(prefixcap.training.rewards)
    assert attempted > 0 and failed == 0
