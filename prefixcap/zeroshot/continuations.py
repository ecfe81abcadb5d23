"""What a CLIP makes of a text that goes on in many ways, as if each was encoded whole; its beginning is read once."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from prefixcap.encoders import Encoder


class Continuations:
    """Embeddings of texts, each a context and one more piece.

    A CLIP's word pieces are not the language model's: a piece may become one with the last word of its context ("zeb",
    "ra"). So all from the context's last space on is split into word pieces anew, and as much is shared as stays.

    Args:
        encoder: of the embeddings. One that does not read texts causally (SigLIP) encodes each of them whole.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._tower = encoder.text_tower
        if self._tower is not None:
            self._tokens = lru_cache(maxsize=1 << 18)(self._tower.tokenize)

    def encode(self, contexts: Sequence[str], of: Sequence[int], pieces: Sequence[str]) -> Tensor:
        """Embeddings of `contexts[of[i]] + pieces[i]`, for each i.

        Args:
            contexts: texts, each read once.
            of: (n,) places of contexts.
            pieces: (n,) what follows; may be empty.

        Returns:
            (n, dim) of length one, float32, on the encoder's device.
        """
        if self._tower is None:
            texts = [contexts[place] + piece for place, piece in zip(of, pieces, strict=True)]
            return F.normalize(self.encoder.encode_texts(texts).float(), dim=-1).clone()
        heads = [context.rpartition(" ") if _plain(context) else ("", "", context) for context in contexts]
        of_heads = [self._tokens(head) for head, _, _ in heads]
        sentences = [
            self._tower.sentence([*of_heads[place], *self._tokens(heads[place][2] + piece)])
            if _plain(piece)
            else self._tower.sentence(self._tokens(contexts[place] + piece))
            for place, piece in zip(of, pieces, strict=True)
        ]
        beginnings = [self._tower.sentence(self._tokens(context))[:-1] for context in contexts]
        with torch.no_grad():
            return F.normalize(self._tower.encode(sentences, beginnings, of).float(), dim=-1)


def _plain(text: str) -> bool:
    """Whether it cannot change how other words are read, as repaired encodings and HTML entities can."""
    return text.isascii() and "&" not in text
