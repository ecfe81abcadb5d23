"""Scores that papers print, from the captions that their systems generated: whole test sets, to the last digit."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from prefixcap.metrics import cider, score_captions, score_humans
from tests.metrics.coco_tools import SHARED_DATA, needs_java, needs_shared_data, shared_json

pytestmark = [pytest.mark.slow, needs_shared_data, needs_java]

# Sarto et al., "Image Captioning Evaluation in the Age of Multimodal LLMs" (IJCAI 2025), times 100.
PUBLISHED = {
    "m2_transformer": {"BLEU-4": 39.1, "METEOR": 29.2, "CIDEr": 131.2},
    "blip2_results_xe": {"BLEU-4": 43.8, "METEOR": 31.7, "CIDEr": 146.0},
    "llava_long": {"BLEU-4": 8.3, "METEOR": 23.0, "CIDEr": 0.3},
}
METRICS = ["BLEU", "METEOR", "CIDEr"]


def published_captions(name: str) -> Mapping[str, Any]:
    entries: dict[str, Any] = json.loads((SHARED_DATA / "results" / "coco_published" / f"{name}.json").read_text())
    return entries


@pytest.mark.parametrize("system", PUBLISHED)
def test_systems_on_the_karpathy_test_split(system: str) -> None:
    """METEOR's program reads 30,000 texts."""
    captions, references = published_captions(system), published_captions("references")
    assert len(captions) == 5000
    scores = score_captions(captions, {image: references[image] for image in captions}, METRICS)
    assert not scores.missing
    assert {name: round(100 * scores.corpus[name], 1) for name in PUBLISHED[system]} == PUBLISHED[system]


def test_people_on_the_karpathy_test_split() -> None:
    """METEOR's program reads 25,000 captions. Published are 24.1 and 87.6, without how the caption
    of each image was chosen. Here all five are scored: METEOR is the same, and CIDEr differs by less than draws of one
    caption an image differ from each other."""
    references = published_captions("references")
    scores = score_humans(references, ["METEOR", "CIDEr"])
    assert scores is not None and round(100 * scores.corpus["METEOR"], 1) == 24.1
    draws = []
    for seed in range(4):
        drawn = np.random.default_rng(seed).integers(0, 5, len(references))
        captions = {image: texts[number] for (image, texts), number in zip(references.items(), drawn, strict=True)}
        others = {
            image: [*texts[:number], *texts[number + 1 :]]
            for (image, texts), number in zip(references.items(), drawn, strict=True)
        }
        draws.append(100 * cider(captions, others))
    assert abs(100 * scores.corpus["CIDEr"] - 87.6) <= np.ptp(draws) < 0.5


def test_magic_on_the_karpathy_test_split() -> None:
    """Su et al., "Language Models Can See" (2022), with more digits by the COCO caption tools."""
    entries = shared_json("results/magic_coco_test.json")
    assert len(entries) == 4982
    scores = score_captions(
        {entry["image_name"]: entry["prediction"] for entry in entries},
        {entry["image_name"]: entry["captions"] for entry in entries},
        [*METRICS, "ROUGE-L"],
    )
    by_tools = {
        "BLEU-1": 0.56820, "BLEU-2": 0.35764, "BLEU-3": 0.21417, "BLEU-4": 0.12878, "METEOR": 0.17362,
        "ROUGE-L": 0.39879, "CIDEr": 0.49289,
    }  # fmt: skip
    assert scores.corpus == pytest.approx(by_tools, abs=5e-6)
    printed = {"BLEU-1": 56.8, "BLEU-4": 12.9, "METEOR": 17.4, "ROUGE-L": 39.9, "CIDEr": 49.3}
    assert {name: round(100 * scores.corpus[name], 1) for name in printed} == printed
