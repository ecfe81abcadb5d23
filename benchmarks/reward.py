"""CIDEr-D as reward of 40 sampled captions (8 images with 5 each), beside pycocoevalcap's scorer on the same captions.

`prefixcap` tokenizes the captions and weighs n-grams by all images. pycocoevalcap is given tokenized texts, and counts
the document frequencies of the 8 images anew in each call, so that only its time compares: with those of all images,
which its scores would need, a call takes seconds. Before, the scores of all images are compared, which must be equal.
Reads a JSON list of images with `prediction` and `captions` (the references), as MAGIC publishes its results.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from pycocoevalcap.cider.cider import Cider

from prefixcap.metrics.ptb import tokenize
from prefixcap.training.rewards import CiderReward
from prefixcap.utils.files import read_json

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES, SAMPLES, CALLS = 8, 5, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=SHARED / "results" / "magic_coco_test.json")
    entries = read_json(parser.parse_args().file)
    start = time.perf_counter()
    reward = CiderReward([entry["captions"] for entry in entries])
    print(f"references of {len(entries):,} images are ready after {time.perf_counter() - start:.2f} s")
    references = [[tokenize(text) for text in entry["captions"]] for entry in entries]

    captions = [entry["prediction"] for entry in entries]
    expected = coco_scores([tokenize(caption) for caption in captions], range(len(entries)), references)
    assert abs(reward(captions, range(len(entries))) - expected).max() < 1e-6

    generator = random.Random(0)
    ours, theirs = [], []
    for _ in range(CALLS):
        images = [image for image in generator.sample(range(len(entries)), IMAGES) for _ in range(SAMPLES)]
        captions = [sampled(entries[image]["captions"], generator) for image in images]
        tokenized = [tokenize(caption) for caption in captions]
        ours.append(seconds(reward, captions, images))
        theirs.append(seconds(coco_scores, tokenized, images, references))
    for name, times in (("pycocoevalcap", theirs), ("prefixcap", ours)):
        middle = median(times)
        print(f"{name:14} {1000 * middle:7.2f} ms a call {len(images) / middle:10,.0f} captions/s")
    print(f"ratio          {median(theirs) / median(ours):7.1f}")


def sampled(references: Sequence[str], generator: random.Random) -> str:
    """A caption that is near the references: one of them with words of others in it."""
    words = [text.split() for text in references]
    return " ".join(generator.choice([word, generator.choice(generator.choice(words))]) for word in words[0])


def coco_scores(
    tokenized: Sequence[str], images: Sequence[int], references: Sequence[Sequence[str]]
) -> Sequence[float]:
    """pycocoevalcap's score of each caption, which it takes for that of an image of its own."""
    gts = {row: references[image] for row, image in enumerate(images)}
    scores: Sequence[float] = Cider().compute_score(gts, {row: [caption] for row, caption in enumerate(tokenized)})[1]
    return scores


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
