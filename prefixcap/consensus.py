"""Order captions of an image by how much they agree with what people wrote of images like it.

Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning": of the captions of the nearest images,
the one that is most similar to the others, by CIDEr. Mao et al. 2015, "Deep Captioning with Multimodal Recurrent Neural
Networks (m-RNN)", section 8, choose so among the captions that a captioner generates. Here the captions of a datastore
that are nearest to the image by the encoder take the place of those of the nearest images, and all of them count alike.

Shapes: I images, K candidates of each, N nearest captions of each.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prefixcap.errors import InputError
from prefixcap.metrics.cider import consensus
from prefixcap.metrics.ngrams import take_images
from prefixcap.metrics.ptb import tokenize
from prefixcap.metrics.references import tokenized_references
from prefixcap.prompts.datastore import Datastore

NEAREST = 100  # chosen on Flickr8k's validation photographs, see docs/methods/photographs.md


class Consensus:
    """The agreement of captions with those of a datastore that are nearest to their image: the mean CIDEr-D.

    N-grams weigh by how few captions of the datastore have them. All of these are tokenized first, which is kept in a
    file for the next time (`prefixcap.metrics.cache`).

    Args:
        datastore: captions of other images, in the style that is wanted.
        nearest: N, how many of them an image's captions are compared with.

    Raises:
        InputError: the datastore has fewer captions.

    Examples:
        >>> from prefixcap.encoders import load_encoder
        >>> from prefixcap.textonly.memory import MemoryBank
        >>> encoder, texts = load_encoder("demo"), ["a red circle", "one red circle", "a blue square"]
        >>> datastore = Datastore(MemoryBank(encoder.encode_texts(texts), texts), encoder.identity)
        >>> image = encoder.encode_texts(["a circle that is red"])  # in place of an image's embedding
        >>> Consensus(datastore, nearest=2).rerank(image, [["a circle", "a red circle"]])
        [['a red circle', 'a circle']]
    """

    def __init__(self, datastore: Datastore, nearest: int = NEAREST) -> None:
        if not 1 <= nearest <= len(datastore):
            raise InputError(
                f"the {nearest} nearest captions are asked for, and the datastore {datastore.source} has "
                f"{len(datastore)}: ask for 1 to as many"
            )
        self.datastore = datastore
        self.nearest = nearest
        texts = datastore.memory.captions(np.arange(len(datastore)))
        self._grams = tokenized_references(
            [[text] for text in texts]
        ).grams  # each caption as an image's only reference

    def scores(self, embeddings: Tensor, captions: Sequence[Sequence[str]]) -> list[list[float]]:
        """The agreement of each caption, 0 to 10.

        Args:
            embeddings: (I, D) of the images, as the datastore's encoder returns them.
            captions: any number for each image.

        Raises:
            InputError: as `Datastore.nearest`.
        """
        nearest = self.datastore.neighbours(embeddings, self.nearest)  # (I, N) captions of the datastore
        return [self._agreement(row, own) for row, own in zip(captions, nearest, strict=True)]

    def _agreement(self, captions: Sequence[str], nearest: NDArray[np.int64]) -> list[float]:
        """The mean CIDEr-D of each of K captions with the (N,) captions of the datastore."""
        references = take_images(self._grams, np.tile(nearest, len(captions)))  # K·N, of as many images
        references = references._replace(images=references.images // self.nearest)  # N of each of K
        scores = consensus([tokenize(caption) for caption in captions], references, len(self.datastore))
        return [float(score) for score in scores]

    def rerank(self, embeddings: Tensor, captions: Sequence[Sequence[str]]) -> list[list[str]]:
        """The captions of each image, those that agree most first; of equals the earlier. Arguments as in `scores`."""
        return [
            [caption for _, caption in sorted(zip(agreement, row, strict=True), key=lambda pair: -pair[0])]
            for agreement, row in zip(self.scores(embeddings, captions), captions, strict=True)
        ]
