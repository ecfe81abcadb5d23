"""A metric of your own: which share of a caption's words was said before in it.

python docs/examples/add_metric.py ckpt=best.ckpt data=demo 'metrics=[CIDEr,repetition]'
"""

from collections.abc import Sequence

import numpy as np

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.eval import main
from prefixcap.metrics import METRICS, Metric
from prefixcap.metrics.metric import Statistics


class Repetition(Metric):
    """Repeated words over all words.

    The statistics of an image are (columns): 0: words that came before in its caption; 1: all words.
    """

    name = "repetition"
    scores = ("repetition",)

    def statistics(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
        """(images, 2) of captions that are tokenized: lower case, no punctuation, words separated by spaces."""
        words = [caption.split() for caption in captions]
        return np.array([(len(caption) - len(set(caption)), len(caption)) for caption in words], np.float64)

    def score(self, totals: Statistics) -> Statistics:
        """(..., 2) sums over images -> (..., 1)."""
        ratio: Statistics = totals[..., :1] / np.maximum(totals[..., 1:], 1)
        return ratio


METRICS["repetition"] = Repetition()

if __name__ == "__main__":
    run(main, "eval")
