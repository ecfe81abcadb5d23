"""Scripts that are written without spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese and others.

They are the scripts whose lines may break between any two characters or only where a dictionary finds the end of a word
(Unicode Standard Annex #14, classes ID, CJ and SA). To the tokenizer of the COCO tools an entire clause of them is one
word, which no other caption has. Here each character, with the marks that combine with it, is a word.
"""

import re
import unicodedata
from functools import cache

# First and last characters of blocks; what is not assigned, a digit or a sign in them is left out below.
_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x30FF),  # iteration marks, Hiragana, Katakana
    (0x3105, 0x312F),  # Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo Extended
    (0x31F0, 0x31FF),  # Katakana Phonetic Extensions
    (0x3400, 0x4DBF),  # CJK Unified Ideographs Extension A
    (0x4E00, 0x9FFF),  # CJK Unified Ideographs
    (0xA000, 0xA48F),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar Extended-B
    (0xAA60, 0xAADF),  # Myanmar Extended-A, Tai Viet
    (0xF900, 0xFAFF),  # CJK Compatibility Ideographs
    (0xFF66, 0xFF9F),  # halfwidth Katakana
    (0x20000, 0x3FFFF),  # ideographs beyond the Basic Multilingual Plane
)


def has_unspaced(text: str) -> bool:
    """Whether a text has characters of such scripts."""
    return not text.isascii() and character().search(text) is not None


def spaced(text: str) -> str:
    """A text with spaces around the characters of such scripts, and in place of their punctuation.

    Examples:
        >>> spaced("一只狗，两只猫。A dog")
        ' 一  只  狗   两  只  猫  A dog'
        >>> spaced("A dog, two cats.")
        'A dog, two cats.'
    """
    if not has_unspaced(text):
        return text
    return character().sub(r" \g<0> ", unicodedata.normalize("NFC", text).translate(_punctuation()))


@cache
def character() -> re.Pattern[str]:
    """Matches a character with its marks. Made when it is first needed."""
    letters, marks = [], ["\u0300-\u036f\ufe00-\ufe0f\U000e0100-\U000e01ef"]
    for first, last in _BLOCKS[:-1]:
        for each in map(chr, range(first, last + 1)):
            kind = unicodedata.category(each)
            if kind[0] == "M" or each in "\uff9e\uff9f":  # the voicing marks of halfwidth Katakana
                marks.append(each)
            elif kind in ("Lo", "Lm", "Nl"):
                letters.append(each)
    return re.compile(f"[{''.join(letters)}\U00020000-\U0003ffff][{''.join(marks)}]*")


@cache
def _punctuation() -> dict[int, str]:
    """A space for each punctuation mark of the blocks above, and of East Asia: those that are as wide as an ideograph,
    or half as wide."""
    blocks = {code for first, last in _BLOCKS[:-1] for code in range(first, last + 1)}
    wide = {code for code in range(0x2E80, 0x10000) if unicodedata.east_asian_width(chr(code)) in "WFH"}
    return {code: " " for code in blocks | wide if unicodedata.category(chr(code))[0] == "P"}
