"""Words that captions must have, for a beam search: how many of their tokens each beam still lacks.

The search is grid beam search (Hokamp and Liu 2017) with one beam for all lengths of constraints, whose places are
dealt out anew at every step (Post and Vilar 2018), see `prefixcap.decoding.beam`. A word may be spelled in several
ways, of which one is enough (Li et al. 2019). All is read off the tokens of a beam: a spelling that is not continued,
or goes on as a longer word, is no progress any more.

Shapes: B images, W beams of each (or 1, before the first token), R of all (B * W), M most tokens of a caption, V
vocabulary, C words, A spellings of each, L tokens of the longest one, P places where one may begin (M + 1), U special
tokens, N candidates for the next token of a beam.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.decoding.rules import GenerationLimits
from prefixcap.errors import InputError, OptionError
from prefixcap.language import LanguageModel

_PADDING, _UNWRITTEN = -1, -2  # in place of tokens: behind a spelling, and behind a caption
_IMPOSSIBLE = 1_000_000  # tokens are missing where a word can no longer be written


@dataclass(frozen=True)
class ForcedWords:
    """Words, and what is computed from them once. Those with equal words are equal.

    Attributes:
        words: the spellings of each word, as token ids.
        most_missing: the most tokens that a caption can lack and still get, which is how many an empty one lacks.
        end: the end token.
        begins_word: (V,) bool, the tokens that a word before them does not run on into: they begin a word, or are a
            space, punctuation or the end token.
        spellings: (C, A, L), those of a word with few of them repeated.
        lengths: (C, A) tokens of each.
        goes_anywhere: (C, A) bool, the spellings that begin a word wherever they stand, not only at the beginning.
        special: (U,) the tokens that occur in spellings, and the end token.
        others: (2, V) 0 for all other tokens: those that begin a word, and those that do not; -inf elsewhere.
        is_next: (L, C, A, U + 2) bool, whether a special token continues a spelling of which so many tokens are
            written; others never do.
    """

    words: tuple[tuple[tuple[int, ...], ...], ...]
    most_missing: int
    end: int
    begins_word: Tensor = field(compare=False, repr=False)
    spellings: Tensor = field(init=False, compare=False, repr=False)
    lengths: Tensor = field(init=False, compare=False, repr=False)
    goes_anywhere: Tensor = field(init=False, compare=False, repr=False)
    special: Tensor = field(init=False, compare=False, repr=False)
    others: Tensor = field(init=False, compare=False, repr=False)
    is_next: Tensor = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        device = self.begins_word.device
        most, longest = max(map(len, self.words)), max(len(ids) for word in self.words for ids in word)
        padded = [
            [[*ids, *[_PADDING] * (longest - len(ids))] for ids in (*word, *word[:1] * (most - len(word)))]
            for word in self.words
        ]
        spellings = torch.tensor(padded, device=device)  # (C, A, L)
        written = {token for word in self.words for ids in word for token in ids}
        special = torch.tensor([*sorted(written), self.end], device=device)  # (U,)
        others = (
            torch.stack((self.begins_word, ~self.begins_word)).index_fill(1, special, False).float().log()
        )  # (2, V)
        is_next = F.pad(spellings.unsqueeze(-1) == special, (0, 2)).permute(2, 0, 1, 3)  # (L, C, A, U + 2)
        own = {
            "spellings": spellings,
            "lengths": (spellings != _PADDING).sum(-1),
            "goes_anywhere": self.begins_word[spellings[..., 0]],
            "special": special,
            "others": others,
            "is_next": is_next,
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def candidates(
        self, tokens: Tensor, length: Tensor, log_probs: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For each beam the candidates for its next token: all special ones, and the likeliest of both kinds of others.

        Args:
            tokens: (B, W, M) generated so far, and anything behind.
            length: () tokens generated so far.
            log_probs: (B, W, V) of the next token.
            count: how many of the others of a kind, at most.

        Returns:
            Their log-probabilities, their token ids, and the fewest tokens that the caption lacks with each, which is 0
            where it has all words, provided that the last one does not run on; each (B, W, N).
        """
        count = min(count, log_probs.shape[-1])
        best, token = (log_probs.unsqueeze(2) + self.others).topk(count)  # (B, W, 2, count)
        special = self.special.expand(*log_probs.shape[:2], -1)  # (B, W, U)
        missing = self._missing(tokens.flatten(0, 1), length).view(*log_probs.shape[:2], -1)  # (B, W, U + 2)
        missing_others = missing[..., -2:].repeat_interleave(count, dim=-1)  # (B, W, 2 * count)
        return (
            torch.cat((log_probs.gather(2, special), best.flatten(2)), dim=-1),
            torch.cat((special, token.flatten(2)), dim=-1),
            torch.cat((missing[..., :-2], missing_others), dim=-1),
        )

    def _missing(self, tokens: Tensor, length: Tensor) -> Tensor:
        """The fewest tokens that (R, M) captions lack after each special token, after another one that begins a word,
        and after one that does not: (R, U + 2)."""
        place = torch.arange(tokens.shape[1] + 1, device=tokens.device)  # (P,)
        longest = self.spellings.shape[-1]
        written = F.pad(tokens.where(place[:-1] < length, _UNWRITTEN), (0, longest), value=_UNWRITTEN)  # (R, M + L)
        # How many tokens of each spelling stand from each place on, where it would not continue a word.
        same = written.unfold(1, longest, 1)[:, :, None, None] == self.spellings  # (R, P, C, A, L)
        count = same.cumprod(-1).sum(-1)  # (R, P, C, A)
        end, written_end = (place.view(-1, 1, 1) + each for each in (self.lengths, count))  # (P, C, A), (R, P, C, A)
        may_begin = (place.view(-1, 1, 1) == 0) | self.goes_anywhere  # (P, C, A)
        # Words that are written: those that the token behind does not continue, and those that the next one might.
        is_whole = may_begin & (count == self.lengths)  # (R, P, C, A)
        is_behind = self.begins_word[written.clamp(min=0)]  # (R, M + L)
        is_behind = is_behind.index_select(1, end.clamp(max=written.shape[1] - 1).flatten()).view(is_whole.shape)
        is_met = (is_whole & (end < length) & is_behind).transpose(1, 2).flatten(2).any(-1)  # (R, C)
        is_open = (is_whole & (end == length)).transpose(1, 2).flatten(2).any(-1)  # (R, C)
        # Spellings of which the newest 0 to L - 1 tokens are the beginning: how many are they after the next one?
        begun = torch.arange(longest, device=tokens.device)  # (L,)
        is_begun = (may_begin & (written_end == length)).index_select(1, (length - begun).clamp(min=0))  # (R, L, C, A)
        is_begun = is_begun & (begun <= length).view(-1, 1, 1)
        progress = ((is_begun.unsqueeze(-1) & self.is_next) * (begun + 1).view(-1, 1, 1, 1)).amax(1)  # (R, C, A, U + 2)
        missing = self.lengths.unsqueeze(-1) - progress
        missing = missing.where((progress > 0) | self.goes_anywhere.unsqueeze(-1), _IMPOSSIBLE).amin(2)  # (R, C, U + 2)
        # The end token, and others that begin a word, do; the last ones do not.
        begins_word = F.pad(F.pad(self.begins_word[self.special[:-1]], (0, 2), value=True), (0, 1))  # (U + 2,)
        return missing.masked_fill(is_met.unsqueeze(-1) | (is_open.unsqueeze(-1) & begins_word), 0).sum(1)


def forced_words(
    language_model: LanguageModel, force_words_ids: Sequence[Sequence[Sequence[int]]], limits: GenerationLimits
) -> ForcedWords | None:
    """The words that captions must have, checked.

    Args:
        language_model: that the token ids belong to; the words are on its device.
        force_words_ids: for each word its spellings.
        limits: of a caption.

    Returns:
        Without spellings that `limits.bad_words_ids` rules out; None: no words are forced.

    Raises:
        InputError: a word has no spelling, a spelling has no token, or one that no caption has; a word is ruled out;
            two are spelled as continuing a word; or the words are longer than a caption may be.
    """
    vocabulary, words = language_model.head.out_features, []
    for place, spellings in enumerate(force_words_ids):
        name = f"force_words_ids[{place}]"
        if not spellings or not all(spellings):
            raise InputError(f"{name} has {'a spelling without a token' if spellings else 'no spelling'}: leave it out")
        for token in (token for ids in spellings for token in ids):
            if token == language_model.eos_token_id or not 0 <= token < vocabulary:
                raise InputError(
                    f"{name} has the token {token}: give those of language model '{language_model.name}', 0 to "
                    f"{vocabulary - 1}, without its end token {language_model.eos_token_id}"
                )
        allowed = [tuple(ids) for ids in spellings if not any(_has(ids, bad) for bad in limits.bad_words_ids)]
        if not allowed:
            text = language_model.detokenize(list(spellings[0]))
            raise InputError(f"{name}, '{text}', has what bad_words_ids rules out: leave out one of them")
        words.append(tuple(dict.fromkeys(allowed)))
    fewest = sum(map(_fewest, words))
    if fewest > limits.max_tokens:
        raise OptionError(f"the words to force take {fewest} tokens, max_tokens={limits.max_tokens}", max_tokens=fewest)
    if not words:
        return None
    begins = begins_word(language_model)
    first = iter(begins[[ids[0] for word in words for ids in word]].tolist())
    anywhere = [[ids for ids in word if next(first)] for word in words]
    if len(at_beginning := [place for place, spellings in enumerate(anywhere) if not spellings]) > 1:
        raise InputError(
            f"force_words_ids[{at_beginning[0]}] and [{at_beginning[1]}] can only begin a caption: spell them with a "
            "space before, as prefixcap.language.tokens.force_words_ids does"
        )
    most_missing = sum(_fewest(spellings or word) for spellings, word in zip(anywhere, words, strict=True))
    return ForcedWords(tuple(words), most_missing, language_model.eos_token_id, begins)


_BEGINS_WORD: WeakKeyDictionary[LanguageModel, Tensor] = WeakKeyDictionary()


def begins_word(language_model: LanguageModel) -> Tensor:
    """(V,) bool, see `ForcedWords`; kept, as all tokens are decoded."""
    kept = _BEGINS_WORD.get(language_model)
    if kept is None:
        vocabulary = language_model.head.out_features
        texts = language_model.token_strings(list(range(min(vocabulary, len(language_model.tokenizer)))))
        begins = [not text or not _continues_word(text[0]) for text in texts]
        kept = torch.tensor(begins + [True] * (vocabulary - len(begins)))
    _BEGINS_WORD[language_model] = kept = kept.to(language_model.head.weight.device)
    return kept


def _continues_word(character: str) -> bool:
    """Whether a character is a letter, mark or digit of a script that separates words."""
    return unicodedata.category(character)[0] in "LMN" and unicodedata.east_asian_width(character) not in "WF"


def _fewest(word: Sequence[Sequence[int]]) -> int:
    return min(map(len, word))


def _has(ids: Sequence[int], part: Sequence[int]) -> bool:
    """Whether token ids have others among them, next to each other."""
    return any(list(ids[start : start + len(part)]) == list(part) for start in range(len(ids)))
