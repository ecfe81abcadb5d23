import doctest
import itertools
import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import prefixcap.metrics.ptb
from prefixcap.metrics.ptb import tokenize, tokenize_corpus
from prefixcap.metrics.scripts import has_unspaced, spaced
from tests.metrics.coco_tools import SHARED_DATA, java_tokenize, needs_java, needs_shared_data, shared_json

# What captions hold, and what language models write: one hard thing next to the other.
CAPTIONS = (Path(__file__).parent / "captions.txt").read_text(encoding="utf-8").splitlines()
WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})
KARPATHY = ["coco_karpathy_test", "coco_karpathy_val", "flickr30k_test", "flickr30k_val"]
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
    """Every caption by itself: the line after it begins like most captions, but is no caption.

    Java is given the spaces that Chinese lacks: without them it takes a clause for a word.
    """
    lines = [line for caption in captions for line in (spaced(caption), "A line between")]
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


ABBREVIATIONS = (
    "a b u.s. U.S.A. Mr Mrs Dr Prof Gen Sgt St Ave Mt Jr Inc Co Corp Ltd Pty Pptys Pte Ptes Mfg Mtg Univ Jan Sept Tues "
    "Calif Mass Wash Miss No no. Fig Bldg vs etc e.g. i.e. Ph.D. a.m. P.M. tel ext est Blvd Rd"
)


def pieces() -> st.SearchStrategy[str]:
    """Words of captions, punctuation and quotes, numbers, abbreviations, and any characters.

    Of Unicode those characters that version 3.2 had: the Java program knows those of 6.1. Line breaks divide captions.
    Scripts without spaces are read otherwise on purpose, see test_scripts.py.
    """
    characters = [
        character
        for character in map(chr, range(32, 0x10000))
        if unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs", "Co", "Zl", "Zp") and character != "\x85"
        if not has_unspaced(character)
    ]
    punctuation = [
        *"'\"`.,;:!?()[]{}<>/\\|@#$%^&*-_+=~\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00ab\u00bb",
        "''",
        "``",
        "...",
    ]
    abbreviation = st.tuples(st.sampled_from(ABBREVIATIONS.split()), st.sampled_from(["", ".", ".,", "'s"])).map(
        "".join
    )
    return st.one_of(
        st.sampled_from(WORDS),
        st.sampled_from(punctuation),
        abbreviation | abbreviation.map(str.lower) | abbreviation.map(str.upper),
        st.from_regex(r"[$\u00a3\u20ac+-]?[0-9]{1,4}([,./:-][0-9]{1,3}){0,2}(st|nd|th|s|%|am|\u00bd)?", fullmatch=True),
        st.text(st.sampled_from(characters), min_size=1, max_size=4),
    )


@pytest.mark.slow
@needs_java
def test_generated_captions_are_tokenized_as_by_java(tmp_path: Path) -> None:
    """All captions are generated first, for one run of the Java program."""
    captions: dict[str, None] = {}

    @settings(
        max_examples=1000, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.lists(st.tuples(pieces(), st.sampled_from(["", " ", " ", " "])), min_size=1, max_size=10))
    def generate(parts: list[tuple[str, str]]) -> None:
        caption = "".join(itertools.chain.from_iterable(parts))
        if not ("<" in caption and ("'" in caption or '"' in caption)):  # in Java a tag may go on in the next caption
            captions[caption] = None

    generate()
    assert len(captions) > 800
    assert_same_tokens(list(captions), tmp_path)


@needs_java
def test_abbreviations_in_upper_and_lower_case_are_tokenized_as_by_java(tmp_path: Path) -> None:
    words = {
        "".join(letters)
        for word in [*ABBREVIATIONS.split(), "&quot;", "&lt;", "can&apos;t", "cannot", "lemme"]
        for letters in itertools.product(*((letter.lower(), letter.upper()) for letter in word[:5]), [word[5:]])
    }
    captions = [
        before + word + after
        for word in sorted(words)
        for before, after in [("", "."), ("", ". 5"), ("", ". a"), ("", ".,"), ("A ", ". The dog"), ("", " Ltd")]
    ]
    assert_same_tokens(captions, tmp_path)


@pytest.mark.slow
@needs_java
@needs_shared_data
def test_all_shared_captions_are_tokenized_as_by_java(tmp_path: Path) -> None:
    """In one run and with nothing between them, as the COCO tools do it."""
    captions = [c for name in KARPATHY for e in shared_json(f"captions/{name}.json") for c in e["captions"]]
    captions += [c for entry in shared_json("results/magic_coco_test.json") for c in read(entry["prediction"])]
    flickr8k = json.loads((SHARED_DATA / "flickr8k" / "captions.json").read_text(encoding="utf-8"))
    captions += [c for split in flickr8k.values() for texts in split.values() for c in texts]
    for file in sorted((SHARED_DATA / "results" / "coco_published").glob("*.json")):
        captions += [c for texts in json.loads(file.read_text(encoding="utf-8")).values() for c in read(texts)]
    assert len(captions) > 140_000
    captions = [caption.replace("\n", " ") for caption in captions]
    found = tokenize_corpus(captions)
    expected = java_tokenize(captions, tmp_path)
    wrong = [(caption, java) for caption, java, ours in zip(captions, expected, found, strict=True) if ours != java]
    assert not wrong


def read(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


ENDS = [
    "t.",
    "b.",
    "U.S.",
    "u.s.",
    "e.g.",
    "fig.",
    "No.",
    "Mr.",
    "Inc.",
    "St.",
    "a.m.",
    "'98",
    ":)",
    "x.jpg",
    "<a",
    " ",
]
BEGINNINGS = ["The dog", "the dog", "A cat", "In", "<b> x", "<b>", "/> x", "2 dogs", "Ltd x", "Mr. x", "It's", "", " "]


@pytest.mark.slow
@needs_java
def test_captions_are_read_as_one_text(tmp_path: Path) -> None:
    """What the lexer makes of the end of a caption depends on how the next one begins; nothing follows the last."""
    generator = random.Random(0)
    captions = [
        f"{begin} {generator.choice(WORDS)} {end}"
        for begin, end in itertools.product(BEGINNINGS, ENDS)
        for _ in range(10)
    ]
    captions = [caption for caption in captions if not has_unspaced(caption)]
    generator.shuffle(captions)
    captions += [f"a dog {end}" for end in ENDS]
    assert tokenize_corpus(captions) == java_tokenize(captions, tmp_path)
    alone = sum(tokenize(caption) != java for caption, java in zip(captions, tokenize_corpus(captions), strict=True))
    assert alone > 50
    for end in ENDS:  # as the end of the text
        assert tokenize_corpus(["A dog.", f"a dog {end}"]) == java_tokenize(["A dog.", f"a dog {end}"], tmp_path)


ADDRESSES = [
    *(
        "http://a.com/b",
        "https://x",
        "www.ab.com",
        "www.a.b.org/c",
        "ab.com",
        "cd.edu/x",
        "x@y.de",
        "<x@y>",
        "file.jpg",
    ),
    *("@name", "#tag", "t.", "The", "<b>", "<a b='x", "y'>", '<a b="', '">', "<!-x", "dog", "it's", "(555) 123-4567"),
]


@needs_java
def test_spaces_and_invisible_characters_within_addresses_and_tags(tmp_path: Path) -> None:
    """Tags go on in the next caption where quotes do."""
    generator = random.Random(0)
    invisible = [chr(c) for c in range(0x80, 0x10000) if unicodedata.ucd_3_2_0.category(chr(c)) in ("Zs", "Cf")]
    invisible += [*"\t\x00\x01\x1b\x1c\x1f\x7f\u2060\u0301\ufe0f"]
    captions = []
    for _ in range(4000):
        words = generator.choices(ADDRESSES, k=generator.randint(0, 6))
        for place, word in enumerate(words):
            for _ in range(generator.choice([0, 0, 1, 1, 2])):
                at = generator.randint(0, len(word))
                word = word[:at] + generator.choice(invisible) + word[at:]
            words[place] = word + generator.choice(["", " ", " "])
        captions.append("".join(words))
    wrong = [
        (caption, java, ours)
        for caption, java, ours in zip(
            captions, java_tokenize(captions, tmp_path), tokenize_corpus(captions), strict=True
        )
        if java != ours
    ]
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(map(ascii, wrong[:20]))


def test_examples() -> None:
    failed, attempted = doctest.testmod(prefixcap.metrics.ptb)
    assert attempted > 0 and failed == 0


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
