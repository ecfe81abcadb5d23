import copy
import doctest
import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import prefixcap.metrics.clip_score as module
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import captions, random_scene
from prefixcap.encoders import Encoder, load_encoder
from prefixcap.errors import InputError
from prefixcap.metrics.clip_score import (
    PROMPT,
    CLIPScore,
    RefCLIPScore,
    clip_score,
    clip_scores_of_texts,
    ref_clip_score,
)

# Three images: a caption near its image, one on the far side of it, and one at some angle.
IMAGES = torch.tensor([[3.0, 4.0, 0.0], [1.0, 1.0, 1.0], [2.0, 0.0, -1.0]])
CAPTIONS = torch.tensor([[4.0, 3.0, 0.1], [-1.0, -2.0, 0.5], [0.3, 5.0, -4.0]])
REFERENCES = [
    torch.tensor([[1.0, 0.0, 0.0], [4.0, 3.0, 0.0], [0.0, 0.0, 9.0]]),
    torch.tensor([[-1.0, -2.0, 0.4]]),
    torch.tensor([[0.0, -1.0, 0.0], [-1.0, -1.0, 0.0]]),  # both on the far side of the caption
]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def by_the_paper(image: list[float], caption: list[float], references: list[list[float]]) -> tuple[float, float]:
    score = 2.5 * max(cosine(image, caption), 0)
    text = max(max(cosine(caption, reference) for reference in references), 0)
    return score, 0.0 if score == 0 or text == 0 else 2 / (1 / score + 1 / text)


def expected() -> tuple[list[float], list[float]]:
    pairs = zip(IMAGES.tolist(), CAPTIONS.tolist(), REFERENCES, strict=True)
    scores = [by_the_paper(image, caption, of_image.tolist()) for image, caption, of_image in pairs]
    return [score for score, _ in scores], [score for _, score in scores]


def test_scores_follow_the_paper() -> None:
    clip, ref_clip = expected()
    assert clip[1] == 0 and min(clip[0], clip[2]) > 0 and ref_clip[1:] == [0, 0] and ref_clip[0] > 0
    assert clip_score(IMAGES, CAPTIONS).tolist() == pytest.approx(clip, rel=1e-6)
    assert ref_clip_score(IMAGES, CAPTIONS, REFERENCES).tolist() == pytest.approx(ref_clip, rel=1e-6)
    nowhere_near = ref_clip_score(IMAGES[:1], -IMAGES[:1], [IMAGES[:1]])
    assert nowhere_near.tolist() == [0]  # not 0 / 0
    doubles = [of_image.double() for of_image in REFERENCES]
    assert ref_clip_score(IMAGES.double(), CAPTIONS.double(), doubles).tolist() == pytest.approx(ref_clip, rel=1e-14)
    assert clip_score(IMAGES.double(), CAPTIONS.double()).tolist() == pytest.approx(clip, rel=1e-14)


def test_neither_length_nor_dtype_nor_the_order_of_references_matters() -> None:
    generator = torch.Generator().manual_seed(0)
    images, captions, references = (torch.randn(shape, generator=generator) for shape in ((4, 8), (4, 8), (4, 5, 8)))
    scores = ref_clip_score(images, captions, references)
    assert scores.max() > 0
    # 300 is the length of a long embedding: the sum of its squares is beyond float16.
    torch.testing.assert_close(ref_clip_score(300 * images, 0.01 * captions, 7 * references.flip(1)), scores)
    half = ref_clip_score(300 * images.half(), captions.half(), list(references.half()))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, scores, atol=0.005, rtol=0)
    same = clip_score(images, images)
    torch.testing.assert_close(same, torch.full((4,), 2.5))
    torch.testing.assert_close(ref_clip_score(images, images, images[:, None]), torch.full((4,), 2 / (1 / 2.5 + 1)))


def test_metrics_accumulate_are_copied_and_reset() -> None:
    for metric, scores in zip((CLIPScore(), RefCLIPScore()), expected(), strict=True):
        for rows in (slice(0, 2), slice(2, 3)):
            references = {"references": REFERENCES[rows]} if isinstance(metric, RefCLIPScore) else {}
            metric.update(IMAGES[rows], CAPTIONS[rows], **references)
        for copied in (metric, copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
            assert copied.per_image().tolist() == pytest.approx(scores, rel=1e-6)
            assert copied.compute().item() == pytest.approx(sum(scores) / 3, rel=1e-6)
        metric.reset()
        assert metric.per_image().shape == (0,)
        with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="call update"):
            metric.compute()


def test_forward_gives_the_score_of_the_batch_also_of_inference_tensors() -> None:
    metric = CLIPScore()
    with torch.inference_mode():
        images, captions = IMAGES.clone(), CAPTIONS.clone()
        batch = metric(images[:1], captions[:1])
    metric.update(images[1:], captions[1:])
    assert batch.item() == pytest.approx(expected()[0][0], rel=1e-6)
    assert metric.compute().item() == pytest.approx(sum(expected()[0]) / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("images", "captions", "references", "message"),
    [
        (IMAGES[:2], CAPTIONS, REFERENCES, r"\(2, 3\), caption embeddings \(3, 3\), so that rows from 2 on"),
        (IMAGES[:, :2], CAPTIONS, REFERENCES, r"\(3, 2\), .* embed both with the same encoder"),
        (IMAGES[0], CAPTIONS[0], REFERENCES, r"give \(n, dim\)"),
        (IMAGES.index_fill(0, torch.tensor([0, 2]), math.nan), CAPTIONS, REFERENCES, "^image embeddings: rows 0, 2 "),
        (IMAGES, CAPTIONS.index_fill(0, torch.tensor([1]), math.inf), REFERENCES, "^caption embeddings: row 1 "),
        (IMAGES, CAPTIONS.index_fill(0, torch.tensor([1]), 0), REFERENCES, "^caption embeddings: row 1 .*all zero"),
        (IMAGES, CAPTIONS, REFERENCES[:2], "3 caption embeddings, but references of 2 images"),
        (IMAGES, CAPTIONS, [*REFERENCES[:2], torch.ones(0, 3)], r"row 2 have shape \(0, 3\)"),
        (IMAGES, CAPTIONS, [torch.ones(2, 4), *REFERENCES[1:]], r"row 0 have shape \(2, 4\): give \(references, 3\)"),
        (IMAGES, CAPTIONS, [REFERENCES[0] * math.nan, *REFERENCES[1:]], "embeddings of row 0: rows 0, 1, 2 NaN"),
        (IMAGES, CAPTIONS, CAPTIONS, r"row 0 have shape \(3,\)"),
    ],
)
def test_mistakes_are_told_with_their_rows(images: Tensor, captions: Tensor, references: Any, message: str) -> None:
    metric = RefCLIPScore()
    with pytest.raises(InputError, match=message):
        metric.update(images, captions, references)
    assert metric.per_image().shape == (0,)


# ---- texts --------------------------------------------------------------------------------------------


class Counting:
    """An encoder that notes how many texts it was given at a time."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.device = encoder, encoder.device
        self.given: list[int] = []

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        self.given.append(len(texts))
        return self.encoder.encode_texts(texts)


def test_texts_of_pictures_are_embedded_behind_the_prompt_in_batches() -> None:
    generator = np.random.default_rng(0)
    encoder = load_encoder("demo")
    scenes = [random_scene(generator) for _ in range(11)]
    pixels = torch.stack([encoder.preprocess(draw(scene, generator)) for scene in scenes])
    images = encoder.encode_images(pixels)
    written = [captions(scene, generator) for scene in scenes]
    true, references = [texts[0] for texts in written], [texts[1 : 2 + row % 4] for row, texts in enumerate(written)]
    true[3] += " and so on" * 100  # longer than the encoder's context

    counting = Counting(encoder)
    scores = clip_scores_of_texts(counting, images, true, references, batch_size=4)  # type: ignore[arg-type]

    assert max(counting.given) == 4
    assert list(scores) == ["CLIPScore", "RefCLIPScore"]
    assert PROMPT == "A photo depicts"
    for row in range(len(scenes)):
        [image] = encoder.encode_images(pixels[row : row + 1]).tolist()
        [caption] = encoder.encode_texts([f"A photo depicts {true[row]}"]).tolist()
        alone = [encoder.encode_texts([f"A photo depicts {text}"])[0].tolist() for text in references[row]]
        found = scores["CLIPScore"][row].item(), scores["RefCLIPScore"][row].item()
        assert found == pytest.approx(by_the_paper(image, caption, alone), abs=1e-5)
    wrong = clip_scores_of_texts(encoder, images, [*true[1:], true[0]])
    assert list(wrong) == ["CLIPScore"]
    assert scores["CLIPScore"].mean() > wrong["CLIPScore"].mean() + 0.1


def test_mistakes_in_texts_are_told_with_their_rows() -> None:
    encoder = load_encoder("demo")
    images = encoder.encode_texts(["a", "b", "c"]).clone()
    for texts, references, message in [
        (["a", "b"], None, "3 image embeddings, 2 captions"),
        (["a", "b", 3], None, "captions: row 2"),
        (["a", "b", "c"], [["a"], ["b"]], "3 captions, but references of 2 images"),
        (["a", "b", "c"], [["a"], [], "c"], "references in rows 1, 2"),
        (["a", "b", "c"], [["a"], ["b"], ["c", None]], "references of row 2: row 1"),
    ]:
        with pytest.raises(InputError, match=message):
            clip_scores_of_texts(encoder, images, texts, references)  # type: ignore[arg-type]
    images[2] = math.nan
    with pytest.raises(InputError, match="image embeddings: row 2 "):
        clip_scores_of_texts(encoder, images, ["a", "b", "c"], batch_size=1)
    with pytest.raises(InputError, match="at least one"):
        clip_scores_of_texts(encoder, images[:0], [])


def test_examples() -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0 and failed == 0
