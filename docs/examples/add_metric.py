"""A metric of your own: which share of a caption's words was said before in it.

python docs/examples/add_metric.py ckpt=best.ckpt data=demo 'metrics=[CIDEr,repetition]'
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.eval import main
from prefixcap.metrics import SCORERS


class Repetition:
    """Repeated words over all words, as a `Scorer` (prefixcap/metrics/scorer.py).

    The statistics of an image are (columns): 0: words that came before in its caption; 1: all words.
    """

    name = "repetition"
    scores: tuple[str, ...] = ("repetition",)

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        """(images, 2) of captions that are tokenized: lower case, no punctuation, words apart by spaces."""
        words = [caption.split() for caption in captions]
        return np.array([(len(of_image) - len(set(of_image)), len(of_image)) for of_image in words], np.float64)

    def score(self, totals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) sums over images -> (..., 1)."""
        return totals[..., :1] / np.maximum(totals[..., 1:], 1)


SCORERS["repetition"] = Repetition()

if __name__ == "__main__":
    run(main, "eval")
