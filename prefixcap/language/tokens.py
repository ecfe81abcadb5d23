"""Tokenize texts as plain text: nothing in them becomes a special token."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefixcap.errors import InputError
from prefixcap.utils.validation import shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize_captions(tokenizer: "PreTrainedTokenizerBase", captions: list[str]) -> list[list[int]]:
    """Token ids of each caption, with the end token and no other special token; see `tokenize_texts`."""
    return [[*row, tokenizer.eos_token_id] for row in tokenize_texts(tokenizer, captions)]


def tokenize_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str | None) -> list[int]:
    """Token ids of a text to continue, without leading and trailing spaces, as the next token begins with a space.

    Args:
        tokenizer: of the language model that continues it.
        prompt: plain text; None: no text.

    Raises:
        InputError: it is not a text, or not valid Unicode.

    Examples:
        >>> from prefixcap.language import load_tokenizer
        >>> tokenizer = load_tokenizer("demo")
        >>> tokenize_prompt(tokenizer, "A red ") == tokenize_prompt(tokenizer, "A red")
        True
    """
    return tokenize_prompts(tokenizer, ["" if prompt is None else prompt])[0]


def tokenize_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of several prompts, each as `tokenize_prompt` returns them."""
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise InputError(f"prompt must be one text, not {shortened(prompt)}")
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise InputError(f"prompt {shortened(prompt)} has half of a surrogate pair: give it in Unicode")
    return tokenize_texts(tokenizer, [prompt.strip() for prompt in prompts])


def bad_words_ids(tokenizer: "PreTrainedTokenizerBase", words: Sequence[str]) -> list[list[int]]:
    """The sequences of tokens that write words or phrases, for the decoders' `bad_words_ids`, as `transformers` has it.

    A word is written with a space before it or without, as it is given, in lower case, and with a capital. Longer words
    that begin with the same token are then written in other tokens, if at all; plurals are words of their own.

    Args:
        tokenizer: of the language model that is to avoid them.
        words: words or phrases.

    Raises:
        InputError: one is no text, or empty.

    Examples:
        >>> from prefixcap.language import load_tokenizer
        >>> len(bad_words_ids(load_tokenizer("demo"), ["red"]))
        4
    """
    written: dict[str, None] = {}
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise InputError(f"a word to avoid must be a text, not {shortened(word)}")
        for form in (word.strip(), word.strip().lower(), word.strip().capitalize()):
            written |= dict.fromkeys((form, f" {form}"))
    rows = tokenize_texts(tokenizer, list(written))
    return [list(row) for row in dict.fromkeys(map(tuple, rows)) if row]


def force_words_ids(
    tokenizer: "PreTrainedTokenizerBase", words: Sequence[str], prompt: str = ""
) -> list[list[list[int]]]:
    """The sequences of tokens that spell words or phrases, for beam search's `force_words_ids`.

    A word is spelled as it is given or with a capital, after a space or at the beginning of the caption.

    Args:
        tokenizer: of the language model that is to write them.
        words: words or phrases.
        prompt: how every caption begins; words that it has need not follow.

    Returns:
        For each word its spellings, of which one is enough.

    Raises:
        InputError: one is no text or empty, or has a character that the tokenizer has no token for.

    Examples:
        >>> from prefixcap.language import load_tokenizer
        >>> (spellings,) = force_words_ids(load_tokenizer("demo"), ["red"])
        >>> len(spellings)
        4
    """
    spelled = []
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise InputError(f"a word to force must be a text, not {shortened(word)}")
        plain = " ".join(word.split())
        if re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", prompt):
            continue
        forms = list(dict.fromkeys((plain, plain[0].upper() + plain[1:])))
        # After a word, as some tokenizers drop the space before a text.
        before, *rows = tokenize_texts(tokenizer, ["a", *(f"a {form}" for form in forms)])
        spellings = [row[len(before) :] for row in rows]
        if not prompt.strip():
            spellings += tokenize_texts(tokenizer, forms)
        if any(tokenizer.unk_token_id in row for row in spellings if tokenizer.unk_token_id is not None):
            raise InputError(f"{shortened(word)} cannot be forced: the language model has no token for a part of it")
        spelled.append([list(row) for row in dict.fromkeys(map(tuple, spellings))])
    return spelled


def cut_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], most: int) -> list[str]:
    """Prompts of at most `most` tokens; longer ones lose their last words, as many as are too many."""
    cut = list(prompts)
    long = [place for place, ids in enumerate(tokenize_prompts(tokenizer, prompts)) if len(ids) > most]
    ends = {place: [0, *(word.end() for word in re.finditer(r"\S+", cut[place]))] for place in long}
    fewest = dict.fromkeys(long, 0)  # words that fit
    too_many = {place: len(own) - 1 for place, own in ends.items()}  # words that do not
    while unsure := [place for place in long if too_many[place] - fewest[place] > 1]:
        middle = [(fewest[place] + too_many[place]) // 2 for place in unsure]
        tried = [cut[place][: ends[place][words]] for place, words in zip(unsure, middle, strict=True)]
        for place, words, ids in zip(unsure, middle, tokenize_prompts(tokenizer, tried), strict=True):
            (fewest if len(ids) <= most else too_many)[place] = words
    for place in long:
        cut[place] = cut[place][: ends[place][fewest[place]]]
    return cut


def tokenize_texts(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Token ids of texts. A text that contains the name of a special token, such as "<|endoftext|>", gets the tokens of
    its letters; the unknown token is the only special one in the result."""
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    # A unigram tokenizer may still choose a special token, as it would any other.
    return [row if special.isdisjoint(row) else _spelled_out(tokenizer, row, special) for row in rows]


def _spelled_out(tokenizer: "PreTrainedTokenizerBase", row: list[int], special: set[int]) -> list[int]:
    """Replace each special token by the tokens of its letters."""
    spelled: list[int] = []
    for token in row:
        if token in special:
            letters = tokenizer.convert_tokens_to_ids(list(tokenizer.convert_ids_to_tokens(token)))
            spelled += [letter for letter in letters if letter is not None and letter not in special]
        else:
            spelled.append(token)
    return spelled
