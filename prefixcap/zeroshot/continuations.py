"""What a CLIP makes of a text that goes on in many ways, as if each was encoded whole; its beginning is read once."""

from collections.abc import Sequence

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
        places: dict[str, int] = {}  # of texts that are split into word pieces by themselves

        def place_of(text: str) -> int:
            return places.setdefault(text, len(places))

        begun, rest = [], []  # what each sentence begins with and what follows
        whole = [place_of(context) for context in contexts]
        heads = [context.rpartition(" ") if _plain(context) else None for context in contexts]
        for place, piece in zip(of, pieces, strict=True):
            head = heads[place]
            if head is None or not _plain(piece):
                begun.append(place_of(""))
                rest.append(place_of(contexts[place] + piece))
            elif piece.startswith(" "):
                begun.append(whole[place])
                rest.append(place_of(piece))
            else:
                begun.append(place_of(head[0]))
                rest.append(place_of(head[2] + piece))
        sentences, beginnings = self._tower.sentences(list(places), begun, rest), self._tower.sentences(contexts)
        with torch.no_grad():
            return F.normalize(self._tower.encode(sentences, beginnings, of).float(), dim=-1)


def _plain(text: str) -> bool:
    """Whether it cannot change how other words are read, as repaired encodings and HTML entities can."""
    return text.isascii() and "&" not in text
