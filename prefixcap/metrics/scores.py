"""What scoring gives: the scores of all images together and of each, and what could not be computed."""

from dataclasses import dataclass, field

from prefixcap.metrics.metric import ImageId, Statistics


@dataclass(frozen=True)
class Scores:
    """Scores by name, e.g. BLEU-1, BLEU-2, BLEU-3, BLEU-4, METEOR, ROUGE-L and CIDEr.

    ROUGE-L, CIDEr and SPICE of a corpus are the means over its images. BLEU and METEOR are not: they pool the counts of
    all images first.

    Attributes:
        corpus: the scores of all images together.
        per_image: the scores of each image by itself, in the order of the references; also figures that have a value
            for each, by metric and figure, e.g. "BERTScore roberta-large layer 17".
        missing: metrics that could not be computed: why, and what to do about it, in one line each.
        empty: images whose caption has no word.
        notes: what else a reader of the scores should know, one line each.
        statistics: of each metric, in the order of the references. Of captions (n, k): `METRICS[metric].score`
            of their sum is the corpus score. Of people (n, f, k + 1): `over_folds` of that is.
        figures: of all captions together, e.g. `figures["diversity"]["Vocabulary"]`.
        figure_statistics: (n, k) likewise, where `METRICS[metric].score` of their sum is the figure.
    """

    corpus: dict[str, float] = field(default_factory=dict)
    per_image: dict[str, dict[ImageId, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    empty: tuple[ImageId, ...] = ()
    notes: tuple[str, ...] = ()
    statistics: dict[str, Statistics] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    figure_statistics: dict[str, dict[str, Statistics]] = field(default_factory=dict)
