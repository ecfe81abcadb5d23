"""Captions in scripts without spaces: their words are characters, and what has other letters is as it was."""

# ruff: noqa: RUF001

import doctest
import unicodedata

import pytest

import prefixcap.metrics.scripts
from prefixcap.metrics import score_captions
from prefixcap.metrics.ptb import tokenize
from prefixcap.metrics.scripts import has_unspaced, spaced


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("一只狗，两只猫。", "一 只 狗 两 只 猫"),
        ("一只 狗 在 跑", "一 只 狗 在 跑"),
        ("「犬」が・走っている！？", "犬 が 走 っ て い る"),
        ("か\u3099", "が"),  # written with a mark that combines
        ("ｲﾇｶﾞ", "ｲ ﾇ ｶﾞ"),
        ("コーヒー 2杯", "コ ー ヒ ー 2 杯"),
        ("สุนัขวิ่ง", "สุ นั ข วิ่ ง"),
        ("ໝາແລ່ນ", "ໝ າ ແ ລ່ ນ"),
        ("ឆ្កែកំពុងរត់។", "ឆ្ កែ កំ ពុ ង រ ត់"),
        ("ခွေးပြေးနေသည်။", "ခွေး ပြေး နေ သ ည်"),
        ("\U00020000 \U0001f600 狗", "\U00020000 狗"),  # a rare ideograph is a word, an emoji is none
        ("两只dog's (two) 3.5%，完", "两 只 dog 's -lrb- two -rrb- 3.5 % 完"),
        ("狗\u3000\u200b猫\u00a0鱼", "狗 猫 鱼"),
        ("。、！", "。 、 ！"),  # no letter says that it is not English
        ("개가 달린다.", "개가 달린다"),  # Korean has spaces
        ("Café à Paris", "café à paris"),
    ],
)
def test_each_character_with_its_marks_is_a_word(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens


def test_all_letters_of_these_scripts_are_words() -> None:
    """Which these are, by their names in the Unicode database; each between Latin words."""
    kinds = "CJK UNIFIED,CJK COMPATIBILITY IDEOGRAPH,HIRAGANA LETTER,KATAKANA LETTER,BOPOMOFO LETTER,YI SYLLABLE"
    more = "THAI CHARACTER,LAO LETTER,KHMER LETTER,KHMER INDEPENDENT,MYANMAR LETTER,TAI THAM LETTER"
    scripts = (*kinds.split(","), *more.split(","))
    letters = [
        character
        for character in map(chr, [*range(0x10000), *range(0x20000, 0x30000)])
        if unicodedata.name(character, "").startswith(scripts) and unicodedata.category(character) == "Lo"
    ]
    assert len(letters) > 70_000
    expected = [word for character in letters for word in ("a", unicodedata.normalize("NFC", character), "b")]
    assert tokenize(" ".join(f"a{character}b" for character in letters)).split(" ") == expected


def test_other_scripts_are_untouched() -> None:
    others = (
        "".join(chr(code) for code in range(0x250))
        + "Ελληνικά кириллица עברית العربية हिन्दी தமிழ் 한국어 tiếng Việt 「，。"
    )
    assert not has_unspaced(others) and spaced(others) == others


def test_captions_that_share_words_score() -> None:
    """The order of captions by CIDEr is that of a Latin text whose words stand for the characters."""
    references = {1: ["一只狗在沙滩上奔跑。", "沙滩上有只狗"], 2: ["两只猫睡在红沙发上", "猫在睡觉。"]}
    captions = {1: "狗在沙滩上跑", 2: "两只猫在沙发上睡觉"}

    def latin(text: str) -> str:
        return " ".join(f"w{ord(character)}" for character in text if character not in "。，")

    found = score_captions(captions, references, ["BLEU", "ROUGE-L", "CIDEr"]).corpus
    expected = score_captions(
        {image: latin(text) for image, text in captions.items()},
        {image: [latin(text) for text in texts] for image, texts in references.items()},
        ["BLEU", "ROUGE-L", "CIDEr"],
    ).corpus
    assert found == pytest.approx(expected, abs=1e-12) and found["CIDEr"] > 1


def test_examples() -> None:
    failed, attempted = doctest.testmod(prefixcap.metrics.scripts)
    assert attempted > 0 and failed == 0
