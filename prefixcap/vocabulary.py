"""Vocabularies: the names of what can be in an image, other words for each, and which of them a text mentions.

Singular and plural are the same, case, hyphens and apostrophes make no difference, and phrases are read before single
words, so that a hot dog is no dog. `prefixcap.metrics.coco_objects` reads COCO's 80 categories by the same rules.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

from prefixcap.errors import InputError, listed
from prefixcap.utils.files import read_text
from prefixcap.utils.validation import shortened

T = TypeVar("T")

LEAST = 2  # names of a vocabulary: among fewer there is nothing to choose

_TOKENS = re.compile(r"[^\W\d_]+|\d+|[^\w\s'\u2019-]")  # words, numbers, and the signs that separate phrases


class Phrases(Generic[T]):
    """Words and phrases, each with what it stands for, to be looked for in texts.

    Args:
        meanings: by word or phrase.

    Examples:
        >>> Phrases({"dog": "animal", "hot dog": "food"}).mentions("A hot-dog and a dog")
        [('hot dog', 'food'), ('dog', 'animal')]
    """

    def __init__(self, meanings: Mapping[str, T]) -> None:
        # By first word: phrases that begin with it, the longest first.
        self._by_first: dict[str, list[tuple[tuple[str, ...], T]]] = {}
        split = [(tuple(tokens(phrase)), meaning) for phrase, meaning in meanings.items()]
        for words, meaning in sorted(split, key=lambda pair: -len(pair[0])):
            self._by_first.setdefault(words[0], []).append((words, meaning))

    def mentions(self, text: str) -> list[tuple[str, T]]:
        """The phrases in a text, in lower case, with what they stand for, in its order; none overlaps another.

        A phrase does not reach across punctuation.
        """
        words = tokens(text)
        mentioned = []
        start = 0
        while start < len(words):
            length = 1
            for phrase, meaning in self._by_first.get(words[start], ()):
                if phrase == tuple(words[start : start + len(phrase)]):
                    length = len(phrase)
                    mentioned.append((" ".join(phrase), meaning))
                    break
            start += length
        return mentioned


class Vocabulary:
    """Names of things, and other words for each of them.

    Args:
        lines: one name each, or `name: other word, another`; a name may be a phrase. What follows a # is a comment.
            Empty lines and names that were there before are dropped, see `notes`.
        source: where the lines come from, for messages.

    Attributes:
        names: as they were written.
        words: of each name, all words and phrases that stand for it; the name itself comes first.
        lines: that make the same vocabulary.
        notes: what was dropped, in one line; empty if nothing was.

    Raises:
        InputError: there are fewer than two names, one has no letters or digits, or a word stands for two names.

    Examples:
        >>> vocabulary = Vocabulary(["person: man, woman, child", "dog: puppy", "hot dog"])
        >>> vocabulary.names
        ('person', 'dog', 'hot dog')
        >>> vocabulary.mentions("Two children, a hot-dog and puppies; the kids left")
        ['person', 'hot dog', 'dog']
    """

    def __init__(self, lines: Iterable[str], source: object = "the vocabulary") -> None:
        entries: dict[str, tuple[str, ...]] = {}
        owners: dict[str, str] = {}  # the name of each word, by its tokens
        empty, again = 0, []
        for number, line in enumerate(lines, start=1):
            if not isinstance(line, str):
                raise InputError(f"{source}: name {number} is {shortened(line)}: give a text")
            content = line.partition("#")[0]
            if not content.strip():
                empty += 0 if line.strip() else 1
                continue
            words = _read(content, f"{source}, line {number}")
            keys = [" ".join(tokens(word)) for word in words]
            if keys[0] in owners:
                again.append(f"{number} ({words[0]!r:.40})")
                continue
            for word, key in zip(words[1:], keys[1:], strict=True):
                if owners.get(key, words[0]) != words[0]:
                    raise InputError(
                        f"{source}, line {number}: {word!r:.40} stands for {owners[key]!r:.40} already: keep one"
                    )
            owners |= dict.fromkeys(keys, words[0])
            entries[words[0]] = words
        if len(entries) < LEAST:
            raise InputError(
                f"{source} has {len(entries)} name{'' if len(entries) == 1 else 's'}: give at least {LEAST}, one a line"
            )
        self.names = tuple(entries)
        self.words = entries
        self.lines = [f"{name}: {', '.join(words[1:])}" if words[1:] else name for name, words in entries.items()]
        dropped = [f"{empty} empty line{'' if empty == 1 else 's'}"] if empty else []
        dropped += [f"names that were there before in {listed('line', again)}"] if again else []
        self.notes = [f"{source}: dropped {' and '.join(dropped)}"] if dropped else []
        # Plurals first, so that a word which is listed itself has the meaning that it is listed with.
        plurals = {form: name for name, words in entries.items() for word in words for form in forms(word)}
        self._phrases = Phrases(plurals | {word: name for name, words in entries.items() for word in words})

    @classmethod
    def read(cls, file: str | Path) -> "Vocabulary":
        """The vocabulary in a text file (UTF-8). Raises InputError as the class, or if the file cannot be read."""
        return cls(read_text(Path(file)).splitlines(), file)

    def __len__(self) -> int:
        return len(self.names)

    def mentions(self, text: str) -> list[str]:
        """The names of what a text mentions, in its order; one that it mentions twice comes twice."""
        return [name for _, name in self._phrases.mentions(text)]


def as_vocabulary(given: "str | Path | Sequence[str] | Vocabulary") -> Vocabulary:
    """A vocabulary from the path of its file, from its lines, or as it is. Raises InputError as `Vocabulary`."""
    if isinstance(given, Vocabulary):
        return given
    if isinstance(given, str | Path):
        return Vocabulary.read(given)
    if not isinstance(given, Sequence) or isinstance(given, bytes):
        raise InputError(
            f"a vocabulary is given as {shortened(given)}: give the path of a text file, or a list of names"
        )
    return Vocabulary(given)


def entities_in(text: str, vocabulary: Vocabulary) -> list[str]:
    """The different names of a vocabulary that a text mentions, in the order of their first mentions.

    Examples:
        >>> entities_in("a dog chases two dogs and a cat", Vocabulary(["cat", "dog"]))
        ['dog', 'cat']
    """
    return list(dict.fromkeys(vocabulary.mentions(text)))


def tokens(text: str) -> list[str]:
    """The words and numbers of a text in lower case, and the signs that separate phrases.

    Examples:
        >>> tokens("A hot-dog, the dog's")
        ['a', 'hot', 'dog', ',', 'the', 'dog', 's']
    """
    return _TOKENS.findall(text.lower())


def same(text: str) -> str:
    """What texts of the same words have in common: case, punctuation and spaces make no difference.

    Examples:
        >>> same("A dog, asleep.") == same("a dog asleep")
        True
    """
    return " ".join(word for word in tokens(text) if word[0].isalnum())


def forms(phrase: str) -> Iterator[str]:
    """Singular and plural of a word, or of the last word of a phrase."""
    yield phrase
    before, _, last = phrase.rpartition(" ")
    yield f"{before} {plural(last)}".strip()
    if last.endswith("bus"):
        yield f"{phrase}ses"


def plural(word: str) -> str:
    """The plural of an English word.

    Examples:
        >>> [plural(word) for word in ("woman", "bench", "puppy", "donkey", "bus", "knife", "sheep")]
        ['women', 'benches', 'puppies', 'donkeys', 'buses', 'knives', 'sheep']
    """
    lower = word.lower()
    if lower in _IRREGULAR:
        return _IRREGULAR[lower]
    if lower.endswith("man"):
        return word[:-3] + "men"
    if lower.endswith("y") and lower[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + ("es" if lower.endswith(("s", "x", "z", "ch", "sh")) else "s")


_IRREGULAR = {
    "child": "children", "knife": "knives", "calf": "calves", "goose": "geese", "mouse": "mice", "ox": "oxen",
    "person": "people", "sheep": "sheep", "human": "humans", "passerby": "passersby",
    "someone": "someone", "somebody": "somebody", "persons": "persons", "aircraft": "aircraft",
    "craft": "craft", "scissors": "scissors", "shears": "shears", "skis": "skis",
    "foot": "feet", "tooth": "teeth", "leaf": "leaves", "shelf": "shelves", "bookshelf": "bookshelves",
    "wolf": "wolves", "loaf": "loaves", "wife": "wives", "thief": "thieves", "scarf": "scarves", "hoof": "hooves",
    "tomato": "tomatoes", "potato": "potatoes", "deer": "deer", "fish": "fish", "moose": "moose", "bison": "bison",
    "grandchild": "grandchildren", "cactus": "cacti", "german": "germans",
}  # fmt: skip


def _read(content: str, place: str) -> tuple[str, ...]:
    """The name and the other words of a line, without repetitions. Raises InputError if one has nothing to look for."""
    name, _, others = content.partition(":")
    words = [" ".join(word.split()) for word in chain([name], others.split(",") if others.strip() else ())]
    for word in words:
        if not any(token[0].isalnum() for token in tokens(word)):
            raise InputError(f"{place}: {word!r:.40} has no letters or digits: give a word or a phrase")
    unique: dict[str, str] = {}
    for word in words:
        unique.setdefault(" ".join(tokens(word)), word)
    return tuple(unique.values())


def vocabulary_of(captions: Iterable[str], least: int = 10) -> Vocabulary:
    """A vocabulary from the captions themselves, where no list is at hand: their frequent words that behave as nouns.

    No tagger is used, but the words around a word: a noun often follows an article or a number, and often ends its
    phrase, before a preposition, a sign or the end; adjectives do the first and verbs the second, and few words do both
    at once. Singular and plural are counted together. It is for English, and finds single words alone, no phrases such
    as "hot dog". In 50,000 captions of COCO it finds 751 words, among them 60 of the 65 of COCO's categories that are
    one word (not bear, broccoli, orange, scissors, skis); of 100 of the words drawn at random, 99 are nouns, and about
    90 name something that can be seen, as judged by hand. A list made by people, such as Visual Genome's, is better.

    Args:
        captions: of a corpus.
        least: how often a word must occur.

    Raises:
        InputError: fewer than two words are found.

    Examples:
        >>> corpus = ["a brown dog on the grass", "a dog with a ball", "the dogs play in tall grass", "a ball on grass"]
        >>> vocabulary_of(corpus, least=2).names
        ('dog', 'grass', 'ball')
    """
    counts = Counter[str]()
    first, last, both = Counter[str](), Counter[str](), Counter[str]()  # after a determiner, at a phrase's end
    for caption in captions:
        words = [".", *tokens(caption), "."]
        for before, word, after in zip(words, words[1:], words[2:], strict=False):
            counts[word] += 1
            begins, ends = before in _DETERMINERS, after in _AFTER_NOUNS or not after[0].isalnum()
            first[word] += int(begins)
            last[word] += int(ends)
            both[word] += int(begins and ends)
    singular: dict[str, str] = {}
    for word in sorted(counts, key=counts.__getitem__):  # of two singulars the more frequent, and none that is a typo
        if counts[word] >= _TYPO * counts[plural(word)] > 0:
            singular[plural(word)] = word
    groups: dict[str, set[str]] = {}
    for word in counts:
        groups.setdefault(singular.get(word, word), set()).add(word)
    nouns: dict[str, int] = {}
    for word, group in groups.items():
        count, as_first, as_last, as_both = (
            sum(table[form] for form in group) for table in (counts, first, last, both)
        )
        if count < least or len(word) < 2 or not word.isalpha() or word in _NO_ENTITIES:
            continue
        if as_first >= 0.12 * count and as_last >= 0.3 * count and as_both >= 0.08 * count:
            nouns[word] = count
    return Vocabulary(sorted(nouns, key=lambda word: -nouns[word]), "the vocabulary of the captions")


_TYPO = 0.02  # of the frequency of its plural: a word as rare is misspelt
_DETERMINERS = frozenset({
    "a", "an", "the", "this", "each", "another", "some", "several", "many", "his", "her", "their", "its", "two",
    "three", "four", "five", "six", "seven", "eight"
})  # fmt: skip
_AFTER_NOUNS = frozenset({
    "with", "on", "in", "of", "is", "are", "was", "were", "at", "to", "that", "which", "who", "while", "near", "by",
    "next", "behind", "under", "over", "inside", "from", "for", "as", "beside", "onto", "into", "through",
    "between", "above", "below", "outside", "around", "along", "down", "up", "has", "have", "having", "being"
})  # fmt: skip
_NO_ENTITIES = _DETERMINERS | _AFTER_NOUNS | {  # words that behave as nouns do and name nothing to be seen
    "and", "it", "other", "others", "one", "back", "front", "side", "top", "bottom", "middle", "center", "end",
    "edge", "close", "left", "right", "part", "piece", "pair", "couple", "lot", "bunch", "number", "variety", "set",
    "row", "group", "line", "picture", "photo", "photograph", "image", "view", "background", "way", "day", "time",
    "kind", "type", "cut", "he", "she", "they", "we", "you", "them", "him", "there", "someone", "something"
}  # fmt: skip
