"""What limits the meaning of some scores of a corpus."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from prefixcap.errors import listed
from prefixcap.metrics.cider import tells_nothing
from prefixcap.metrics.metric import ImageId, Metric, MetricInputs
from prefixcap.metrics.ngrams import ReferenceTexts
from prefixcap.metrics.scripts import has_unspaced

_WEIGHTED = {"CIDEr": "CIDEr", "set-diversity": "self-CIDEr"}  # metrics, and the scores that weigh words
_FEW = 100  # images: of so few, CIDEr's weights of words are chance


def score_notes(
    images: Sequence[ImageId],
    captions: Sequence[str],
    references: ReferenceTexts,
    inputs: MetricInputs,
    metrics: Mapping[str, Metric],
) -> Iterator[str]:
    """Notes on scores, one line each.

    Args:
        images: the ids.
        captions: tokenized, one for each image.
        references: likewise, of each image.
        inputs: what metrics got besides.
        metrics: those that were computed, by name.
    """
    count = len(images)
    yield from chain.from_iterable(metric.notes(inputs) for metric in metrics.values())
    if bare := [repr(image) for image, texts in zip(images, references, strict=True) if not any(texts)]:
        yield f"references have no word: {listed('image', bare)}"
    weighted = " and ".join(label for name, label in _WEIGHTED.items() if name in metrics)
    if weighted and tells_nothing(references.grams, count):
        yield (
            f"{weighted} is 0 whatever the captions say: no word of the references is rarer than another in "
            f"{'one image' if count == 1 else f'these {count:,} images'}, and it weighs words by that"
        )
    elif weighted and count < _FEW:
        yield f"{weighted} weighs words by the references of these {count} images: it compares with no score of others"
    if inputs.tokenizer != "ptb":
        yield f"tokenizer: {inputs.tokenizer}, not that of the COCO tools; compare with scores of the same"
    if any(map(has_unspaced, chain(captions, chain.from_iterable(references)))):
        english = [name for name, metric in metrics.items() if metric.english_only]
        limit = f"; {' and '.join(english)} know{'s' * (len(english) == 1)} English only" if english else ""
        if inputs.tokenizer in ("ptb", "characters"):
            yield f"scripts without spaces are scored character by character, not word by word{limit}"
        else:
            yield f"scripts without spaces have no words for this tokenizer, but for spaces and punctuation{limit}"
