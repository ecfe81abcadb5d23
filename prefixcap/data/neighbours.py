"""The captions that a mapper reads beside an image in training, or beside a caption in its place.

"Image-like retrieval" (Lee et al., "IFCap: Image-like Retrieval and Frequency-based Entity Filtering for Zero-shot
Captioning", EMNLP 2024, section 3.1): in training on text, captions are retrieved by the embedding of a caption with
noise, as images retrieve captions that are less like their own. As in the released code, each caption retrieves once,
before training starts, and not itself.

Shapes: N rows of a split, n rows of a batch, k retrieved captions, D width of an embedding.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from prefixcap.features import Feature
from prefixcap.noise import gaussian_noise
from prefixcap.prompts.datastore import Datastore
from prefixcap.store import StoreSplit

_BLOCK = 1 << 13  # rows that retrieve together


class Neighbours:
    """The captions of a datastore that are nearest to each row of a split, none of which is one of its own.

    The noise depends on the seed, the split's name and the row alone, so that a run that is stopped and resumed
    retrieves the same.

    Args:
        datastore: to retrieve from.
        split: of training or of validation.
        k: captions of a row.
        from_text: rows are captions, not images.
        noise: the variance of the noise on the unit-length embedding of a caption by which others are retrieved; only
            in training on text.
        seed: of the noise.
        device: that compares embeddings.

    Attributes:
        indices: (N, k) captions in the datastore's memory, the nearest first.

    Raises:
        InputError: too few captions are left, or an embedding cannot be compared.
    """

    def __init__(
        self,
        datastore: Datastore,
        split: StoreSplit,
        k: int,
        from_text: bool,
        noise: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.datastore = datastore
        column = split.feature(Feature.CAPTION if from_text else Feature.IMAGE)
        references = {} if from_text else split.references()
        self.indices: NDArray[np.int64] = np.empty((len(column), k), np.int64)
        with tqdm(total=len(column), desc=f"captions like those of {split.name}", unit=" rows", delay=1) as bar:
            for start in range(0, len(column), _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, len(column)))
                queries = torch.from_numpy(column[rows]).float()
                if from_text:
                    own = [[caption] for caption in split.captions[rows]]
                    queries = gaussian_noise(F.normalize(queries, dim=-1), noise, _generator(seed, split.name, start))
                else:
                    own = [references[image] for image in split.ids[start : start + _BLOCK]]
                self.indices[rows] = datastore.neighbours(queries.to(device), k, own)
                bar.update(len(rows))

    def append(self, features: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """(n, D) features of these (n,) rows -> (n, 1 + k, D), with those of their neighbours behind them."""
        retrieved = self.datastore.memory.embeddings(self.indices[rows])  # (n, k, D)
        return torch.cat((features.unsqueeze(1), retrieved.to(features)), dim=1)


def _generator(seed: int, split: str, start: int) -> torch.Generator:
    """Draws the same for the same seed, split and first row of a block."""
    drawn = np.random.SeedSequence((seed, start, *split.encode())).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(drawn) >> 1)
