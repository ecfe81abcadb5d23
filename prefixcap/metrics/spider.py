"""SPIDEr (Liu et al., "Improved Image Captioning via Policy Gradient Optimization of SPIDEr", ICCV 2017).

The mean of CIDEr-D and SPICE, from their statistics: neither is computed again.
"""

from prefixcap.metrics.metric import Metric, Statistics, mean_of


class Spider(Metric):
    """SPIDEr, 0 to 5.5: the mean over images of half the sum of CIDEr, 0 to 10, and SPICE, 0 to 1.

    Examples:
        >>> cider, spice = mean_of([1.5, 0.5]), mean_of([0.5, 0.0])
        >>> Spider().combine(cider, spice)
        array([[1.  , 1.  ],
               [0.25, 1.  ]])
    """

    name = "SPIDEr"
    scores = ("SPIDEr",)
    brings = combines = ("CIDEr", "SPICE")
    english_only = True

    def combine(self, *statistics: Statistics) -> Statistics:
        """Two of (n, 2) = (score, 1), of CIDEr and of SPICE -> (n, 2); see `prefixcap.metrics.Metric`."""
        cider, spice = statistics
        return mean_of((cider[:, 0] + spice[:, 0]) / 2)
