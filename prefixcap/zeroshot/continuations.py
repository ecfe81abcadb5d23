"""Text embeddings of many continuations of the same beginnings, each of which a CLIP reads only once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.encoders import Encoder


class Continuations:
    """Text embeddings of contexts, each followed by one more token of a language model.

    The tokens of a CLIP are not the language model's: a token may complete the last word of its context ("zeb", "ra").
    So everything behind the last space of the context is tokenized again, and only unchanged tokens are shared.

    Args:
        encoder: computes the embeddings. If it does not read texts causally (SigLIP, "photo"), each is encoded in full.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> encoder = load_encoder("demo")
        >>> embeddings = Continuations(encoder).encode(["a red", "a blue"], [0, 0, 1], [" circle", " star", " star"])
        >>> whole = F.normalize(encoder.encode_texts(["a red circle", "a red star", "a blue star"]), dim=-1)
        >>> torch.allclose(embeddings, whole, atol=1e-5)
        True
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._tower = encoder.text_tower

    def encode(self, contexts: Sequence[str], context_of: Sequence[int], pieces: Sequence[str]) -> Tensor:
        """Embeddings of `contexts[context_of[i]] + pieces[i]`, for each i.

        Args:
            contexts: texts.
            context_of: (n,) indices of contexts.
            pieces: (n,) what follows each; may be empty.

        Returns:
            (n, dim) of unit length, float32, on the encoder's device.
        """
        if self._tower is None:
            texts = [contexts[index] + piece for index, piece in zip(context_of, pieces, strict=True)]
            return F.normalize(self.encoder.encode_texts(texts).float(), dim=-1).clone()
        texts_to_tokenize: dict[str, int] = {}  # by themselves; and the index of each

        def index_of(text: str) -> int:
            return texts_to_tokenize.setdefault(text, len(texts_to_tokenize))

        # Each sentence is tokenized in two parts: at the end of its context if the piece begins a word, or else at the
        # context's last space. Texts that clip rewrites before it tokenizes them are not divided.
        first_part, second_part = [], []
        whole = [index_of(context) for context in contexts]
        last_words = [context.rpartition(" ") if _is_plain(context) else None for context in contexts]
        for index, piece in zip(context_of, pieces, strict=True):
            last_word = last_words[index]
            if last_word is None or not _is_plain(piece):
                first_part.append(index_of(""))
                second_part.append(index_of(contexts[index] + piece))
            elif piece.startswith(" "):
                first_part.append(whole[index])
                second_part.append(index_of(piece))
            else:
                first_part.append(index_of(last_word[0]))
                second_part.append(index_of(last_word[2] + piece))
        sentences = self._tower.sentences(list(texts_to_tokenize), first_part, second_part)
        beginnings = self._tower.sentences(contexts)
        with torch.no_grad():
            return F.normalize(self._tower.encode(sentences, beginnings, context_of).float(), dim=-1)


def _is_plain(text: str) -> bool:
    """Whether a text cannot change how the words around it are tokenized, as HTML entities or repaired encodings."""
    return text.isascii() and "&" not in text
