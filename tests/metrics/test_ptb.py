import random
from pathlib import Path

import pytest

from prefixcap.metrics.ptb import tokenize
from tests.metrics.coco_tools import java_tokenize, needs_java, needs_shared_data, shared_json

# What captions hold, and what language models write: one hard thing next to the other.
CAPTIONS = (Path(__file__).parent / "captions.txt").read_text(encoding="utf-8").splitlines()
WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})
UNSEEN = [
    "",
    " . ",
    "zero\u200bwidth soft\u00adhyphen no\u00a0break wide\u3000space \ufeffmark",
    "a\u0301 combining, joined \u2764\ufe0f \U0001f468\u200d\U0001f469",
    "tab\there \x7f and \x01 and \x00",
    "  spaces   ",
    "lon\u00adDs.C. and A. \u00adD.C. \u00ad",
    ". . . and . . . . .",
    "3 1/2 and 10\u00a01/2 and (555)\u00a0123-4567",
]


def assert_same_tokens(captions: list[str], folder: Path) -> None:
    """Every caption by itself: the line after it begins like most captions, but is no caption."""
    lines = [line for caption in captions for line in (caption, "A line between")]
    expected = java_tokenize(lines, folder)[::2]
    wrong = [
        f"{caption!r}: {tokenize(caption)!r}, not {java!r}"
        for caption, java in zip(captions, expected, strict=True)
        if tokenize(caption) != java
    ]
    assert not wrong, f"{len(wrong)} of {len(captions)} differ:\n" + "\n".join(wrong[:20])


@needs_java
def test_chosen_captions_and_their_words_are_tokenized_as_by_java(tmp_path: Path) -> None:
    assert_same_tokens(CAPTIONS + WORDS + UNSEEN, tmp_path)


@needs_java
def test_recombined_words_are_tokenized_as_by_java(tmp_path: Path) -> None:
    generator = random.Random(0)
    captions = [
        "".join(
            generator.choice(WORDS) + generator.choice(["", " ", " ", " "]) for _ in range(generator.randint(1, 10))
        )
        for _ in range(2000)
    ]
    assert_same_tokens(captions, tmp_path)


@needs_java
def test_random_printable_characters_are_tokenized_as_by_java(tmp_path: Path) -> None:
    generator = random.Random(0)
    # Without quotes: in Java a tag with a quoted value may go on in the next caption.
    characters = [chr(code) for code in range(32, 127) if chr(code) not in "'\""]
    captions = ["".join(generator.choices(characters, k=generator.randint(1, 40))) for _ in range(2000)]
    assert_same_tokens(captions, tmp_path)


@needs_java
@needs_shared_data
def test_all_shared_captions_are_tokenized_as_by_java(tmp_path: Path) -> None:
    """In one run and with nothing between them, as the COCO tools do it."""
    names = ["coco_karpathy_val", "coco_karpathy_test", "flickr30k_val", "flickr30k_test"]
    captions = [c for name in names for e in shared_json(f"captions/{name}.json") for c in e["captions"]]
    captions += [entry["prediction"] for entry in shared_json("results/magic_coco_test.json")]
    assert len(captions) > 60_000
    captions = [caption.replace("\n", " ") for caption in captions]
    wrong = [
        (caption, java)
        for caption, java in zip(captions, java_tokenize(captions, tmp_path), strict=True)
        if tokenize(caption) != java
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("", ""),
        (" \n ", ""),
        ("...!", ""),
        ("A man.", "a man"),
        ("The dog doesn't bark (much)", "the dog does n't bark -lrb- much -rrb-"),
        ("two\nlines\r\nor\x0cthree\u2028here", "two lines or three here"),
        ("a ||| b|||c", "a | | | b | | | c"),
    ],
)
def test_tokens(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens
