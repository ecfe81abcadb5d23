"""How captions are split into words before they are compared, by name.

"ptb" is that of the COCO caption tools, with which published scores of captions in English are made.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

from prefixcap.errors import InputError
from prefixcap.metrics.ptb import tokenize_corpus

_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}  # in the order in which they are replaced
# Of mteval-v13a.pl, as sacrebleu has them.
_SPACED = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),  # signs but for . , - and '
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def characters(text: str) -> str:
    """The characters of a text in lower case, each with the marks that combine with it, without punctuation.

    Examples:
        >>> characters("两只狗, 2 Dogs")
        '两 只 狗 2 d o g s'
    """
    words: list[str] = []
    for each in unicodedata.normalize("NFC", text).lower():
        kind = unicodedata.category(each)[0]
        if kind == "M" and words:
            words[-1] += each
        elif kind not in "PZC":  # punctuation, spaces, control characters
            words.append(each)
    return " ".join(words)


def mteval_13a(text: str) -> str:
    """The words of a text as sacrebleu's default, 13a, splits them: punctuation is a word, and case is kept.

    Examples:
        >>> mteval_13a("A dog, 2.5 years old.")
        'A dog , 2.5 years old .'
    """
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES.items():
        text = text.replace(entity, sign)
    text = f" {text} "
    for pattern, spaced in _SPACED:
        text = pattern.sub(spaced, text)
    return " ".join(text.split())


def at_spaces(text: str) -> str:
    """The words of a text that was tokenized before: whatever stands between spaces.

    Examples:
        >>> at_spaces("A dog,  two cats .")
        'A dog, two cats .'
    """
    return " ".join(text.split())


TOKENIZERS: dict[str, Callable[[Iterable[str]], list[str]]] = {
    "ptb": tokenize_corpus,
    "characters": lambda texts: list(map(characters, texts)),
    "13a": lambda texts: list(map(mteval_13a, texts)),
    "none": lambda texts: list(map(at_spaces, texts)),
}
"""From texts, in their order, to words in each that are joined by single spaces."""


def check_tokenizer(name: str, called: str = "tokenizer") -> None:
    """Raise InputError unless there is a tokenizer of this name."""
    if name not in TOKENIZERS:
        raise InputError(f"unknown {called} {name!r}: choose from {', '.join(TOKENIZERS)}")
