import copy
import doctest
import pickle
from collections import Counter
from itertools import pairwise

import pytest

import prefixcap.metrics.diversity as module
from prefixcap.errors import InputError
from prefixcap.metrics.diversity import Diversity, diversity
from tests.metrics.coco_tools import needs_shared_data, shared_json

CAPTIONS = ["A dog runs on sand.", "a dog runs on sand", "Two dogs!", "", "A cat, a cat."]


def figures(metric: Diversity) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def test_figures_worked_out_by_hand() -> None:
    metric = Diversity(["Two dogs.", "A horse."])
    metric.update(CAPTIONS)
    # 16 words: a, dog, runs, on, sand, two, dogs, cat; 12 pairs: 4 of the first two captions, 1, and 2 of the last
    assert figures(metric) == pytest.approx(
        {"Vocabulary": 8, "Distinct-1": 8 / 16, "Distinct-2": 7 / 12, "Length": 16 / 5, "Novel": 4 / 5}
    )


def test_captions_without_words() -> None:
    metric = Diversity()
    metric.update(["", " . "])
    assert figures(metric) == {"Vocabulary": 0, "Distinct-1": 0, "Distinct-2": 0, "Length": 0}
    assert diversity(["dog"]) == {"Vocabulary": 1, "Distinct-1": 1, "Distinct-2": 0, "Length": 1}


def test_novelty_overlooks_case_and_punctuation_only() -> None:
    metric = Diversity(iter(["A red ring.", "Two dogs"]))
    metric.update(["a RED ring!", "two, dogs", "a red ring ring", "red ring", "a redring"])
    assert figures(metric)["Novel"] == pytest.approx(3 / 5)
    nothing_learned = Diversity([])
    nothing_learned.update(["a dog"])
    assert figures(nothing_learned)["Novel"] == 1


@needs_shared_data
def test_captions_of_a_published_system() -> None:
    """Against sets and a counter over its words; in batches; every second image as training captions."""
    entries = shared_json("results/magic_coco_test.json")[:1000]
    captions = [entry["prediction"] for entry in entries]
    metric = Diversity(captions[::2])
    for start in range(0, 1000, 300):
        metric.update(captions[start : start + 300])
    plain = ["".join(c for c in caption.lower() if c not in ".,?!;:").split() for caption in captions]
    words = Counter(word for caption in plain for word in caption)
    pairs = Counter(pair for caption in plain for pair in pairwise(caption))
    known = {tuple(caption) for caption in plain[::2]}
    found = figures(metric)
    # About: the tokenizer does a little more than leave out punctuation.
    assert found["Vocabulary"] == pytest.approx(len(words), rel=0.01)
    assert found["Distinct-1"] == pytest.approx(len(words) / words.total(), rel=0.01)
    assert found["Distinct-2"] == pytest.approx(len(pairs) / pairs.total(), rel=0.01)
    assert found["Length"] == pytest.approx(words.total() / 1000, rel=0.01)
    assert found["Novel"] == pytest.approx(sum(tuple(caption) not in known for caption in plain) / 1000, abs=0.002)
    assert 0.2 < found["Novel"] <= 0.5


def test_copies_reset_and_mistakes() -> None:
    metric = Diversity(["Two dogs."])
    metric.update(CAPTIONS)
    for copied in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        copied.update(CAPTIONS)
        assert figures(copied)["Vocabulary"] == 8 and figures(copied)["Novel"] == pytest.approx(4 / 5)
    for mistake, message in (("A dog.", "one string where a list"), (["a", None, 3], "rows 1, 2: not a string")):
        with pytest.raises(InputError, match=message):
            metric.update(mistake)  # type: ignore[arg-type]
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(InputError, match="call update"):
        metric.compute()
    metric.update(["a horse"])
    assert figures(metric)["Vocabulary"] == 2 and figures(metric)["Novel"] == 1


def test_examples() -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted > 0 and failed == 0
