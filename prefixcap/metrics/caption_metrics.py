"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE as `torchmetrics.Metric`: captions are added batch by batch, on any rank.

The figures are those of the COCO caption tools on all captions together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefixcap.errors import InputError
from prefixcap.metrics.bleu import Bleu
from prefixcap.metrics.cider import Cider
from prefixcap.metrics.meteor import Meteor
from prefixcap.metrics.metric import Metric
from prefixcap.metrics.ptb import tokenize_corpus
from prefixcap.metrics.references import tokenized_references
from prefixcap.metrics.rouge import RougeL
from prefixcap.metrics.spice import Spice
from prefixcap.metrics.texts import TextMetric, check_texts


class CaptionMetric(TextMetric):
    """Scores of all captions of all ranks against their references.

    The state is the texts in the order in which they were added, some 300 bytes an image with five references. Every
    rank gathers those of all ranks, rank by rank, tokenizes them in that order, as one text
    (`prefixcap.metrics.ptb`), and scores them.

    Args:
        scorer: an entry of `prefixcap.metrics.METRICS` that reads tokenized captions and references and nothing else,
            e.g. `prefixcap.metrics.meteor.Meteor()`.
        options: those of `torchmetrics.Metric`.

    Raises:
        InputError: the scorer needs more than captions and references.
    """

    higher_is_better = True

    def __init__(self, scorer: Metric, **options: Any) -> None:
        super().__init__(**options)
        if getattr(scorer, "needs", ()) or getattr(scorer, "combines", ()) or not scorer.scores:
            raise InputError(f"{scorer.name} does not score captions against references: give it to evaluate()")
        self.scorer = scorer

    def update(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add images: of each a caption, and its references, one or more; texts as people or models wrote them.

        Raises:
            InputError: a text is not a string, an image has no references, or the numbers of captions and of images
                with references differ.
        """
        check_texts(captions, references)
        self._add((caption, *texts) for caption, texts in zip(captions, references, strict=True))

    def compute(self) -> dict[str, Tensor]:
        """A () float tensor for each of the scorer's `scores`.

        Raises:
            InputError: there are no captions.
            MetricUnavailable: the scorer cannot run on this machine.
        """
        images = self._images()
        captions = tokenize_corpus(caption for caption, *_ in images)
        statistics = self.scorer.statistics(captions, tokenized_references([texts for _, *texts in images]))
        scores = zip(self.scorer.scores, self.scorer.score(statistics.sum(axis=0)).tolist(), strict=True)
        return {name: torch.tensor(score, device=self.device) for name, score in scores}


class BLEU(CaptionMetric):
    """BLEU-1 to BLEU-4 (Papineni et al., 2002), 0 to 1; see `prefixcap.metrics.bleu`.

    Args:
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = BLEU()
        >>> metric.update(["A dog runs."], [["The dog is running.", "A dog on a beach"]])
        >>> {name: round(float(score), 3) for name, score in metric.compute().items()}
        {'BLEU-1': 0.478, 'BLEU-2': 0.414, 'BLEU-3': 0.0, 'BLEU-4': 0.0}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(Bleu(), **options)


class METEOR(CaptionMetric):
    """METEOR 1.5 (Denkowski and Lavie, 2014), 0 to 1; see `prefixcap.metrics.meteor`. Needs Java.

    Args:
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = METEOR()
        >>> metric.update(["A dog runs."], [["The dog is running.", "A dog on a beach"]])
        >>> metric.compute()  # doctest: +SKIP
        {'METEOR': tensor(0.2266)}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(Meteor(), **options)


class ROUGEL(CaptionMetric):
    """ROUGE-L (Lin, 2004), 0 to 1; see `prefixcap.metrics.rouge`.

    Args:
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = ROUGEL()
        >>> metric.update(["A dog runs."], [["The dog is running.", "A dog on a beach"]])
        >>> metric.compute()
        {'ROUGE-L': tensor(0.4784)}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(RougeL(), **options)


class CIDEr(CaptionMetric):
    """CIDEr, the CIDEr-D of Vedantam et al. (2015), 0 to 10; see `prefixcap.metrics.cider`.

    Words are weighted by how few images have them in their references, so that the score of a single image is 0.

    Args:
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = CIDEr()
        >>> metric.update(["A dog runs."], [["The dog is running.", "A dog on a beach"]])
        >>> metric.update(["A cat."], [["A cat asleep"]])
        >>> metric.compute()
        {'CIDEr': tensor(2.4117)}
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(Cider(), **options)


class SPICE(CaptionMetric):
    """SPICE (Anderson et al., 2016), 0 to 1; see `prefixcap.metrics.spice`. Needs Java and `prefixcap setup-spice`.

    Args:
        options: those of `torchmetrics.Metric`.

    Examples:
        >>> metric = SPICE()
        >>> metric.update(["A dog runs."], [["The dog is running.", "A dog on a beach"]])
        >>> metric.compute()["SPICE"]  # doctest: +SKIP
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(Spice(), **options)
