"""CHAIR (Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018): objects that are not in the image.

CHAIRi is the share of mentioned objects that the image does not have, CHAIRs the share of captions that mention one.
Objects are COCO's 80 categories (`prefixcap.metrics.coco_objects`). As in the published code, every mention counts,
also the second one of the same category; and the image has the objects of its instances (COCO's segmentation) and all
that its references mention. Where instances are not given, it has those of the references alone, which makes both
scores higher: a note says so.

Shapes: n images.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefixcap.errors import InputError
from prefixcap.metrics.coco_objects import CATEGORIES, Mention, mentions
from prefixcap.metrics.metric import Metric, MetricInputs, ObjectsOfImages, Statistics
from prefixcap.utils.image_ids import number_or_name


class Chair(Metric):
    """CHAIRi and CHAIRs, 0 to 1; less is better.

    The statistics of an image are (columns): 0: hallucinated mentions of objects; 1: all mentions; 2: 1 if a mention is
    hallucinated, else 0; 3: 1 (captions). Without any mention, CHAIRi is 0.

    Examples:
        >>> captions = ["a dog on a table", "a cat asleep"]
        >>> statistics = Chair().statistics(captions, [["a puppy"], ["the kitten sleeps"]])
        >>> statistics.astype(int).tolist()
        [[1, 2, 1, 1], [0, 1, 0, 1]]
        >>> Chair().score(statistics.sum(axis=0)).round(3).tolist()
        [0.333, 0.5]
        >>> Chair().statistics(captions, [["a puppy"], ["a cat"]], objects=[{"dining table"}, set()])[0].tolist()
        [0.0, 2.0, 0.0, 1.0]
    """

    name = "CHAIR"
    scores = ("CHAIRi", "CHAIRs")
    needs = ("objects",)
    tokenized = False
    english_only = True
    higher_is_better = False

    def statistics(
        self,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        objects: ObjectsOfImages | None = None,
    ) -> Statistics:
        """(n, 4) counts; see `prefixcap.metrics.Metric`."""
        counts = np.zeros((len(captions), 4))
        for row, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            wrong = hallucinated(caption, texts, (objects[row] if objects is not None else None) or ())
            counts[row] = len(wrong), len(mentions(caption)), bool(wrong), 1
        return counts

    def score(self, totals: Statistics) -> Statistics:
        """(..., 4) sums of counts -> (..., 2)."""
        scores: Statistics = totals[..., [0, 2]] / np.maximum(totals[..., [1, 3]], 1)
        return scores

    def notes(self, inputs: MetricInputs) -> Iterator[str]:
        """Which objects an image has, where they are not those of the published scores."""
        objects = inputs.objects or ()
        unknown = sum(known is None for known in objects)
        if unknown == len(objects):
            yield (
                "CHAIRi, CHAIRs: objects are those that the references mention, without those of COCO's instances, "
                "which makes both scores higher"
            )
        elif unknown:
            yield (
                f"CHAIRi, CHAIRs: {unknown:,} of {len(objects):,} images have no instances; their objects are those "
                "that the references mention"
            )


def hallucinated(caption: str, references: Sequence[str], objects: Collection[str] = ()) -> list[Mention]:
    """What a caption mentions that an image does not have.

    Args:
        caption: of the image.
        references: of the image; what they mention it has.
        objects: COCO's categories of its instances, which it has, too.

    Examples:
        >>> hallucinated("two dogs and a cat on a sofa", ["Dogs on a couch."])
        [Mention(words='cat', category='cat')]
    """
    there = {mention.category for text in references for mention in mentions(text)}.union(objects)
    return [mention for mention in mentions(caption) if mention.category not in there]


def objects_in_order(objects: Mapping[Any, Collection[str]], images: Collection[Any]) -> list[Collection[str] | None]:
    """The objects of images, in the order of the images; None for an image of which nothing is known.

    Args:
        objects: names of COCO's categories, by image.
        images: their ids. A number is the same as a text of its digits, or COCO's name of the file of that number.

    Raises:
        InputError: a name is not one of COCO's, or no image has objects.

    Examples:
        >>> objects_in_order({391895: {"person"}, 7: {"dog"}}, ["COCO_val2014_000000391895.jpg", "7", "8"])
        [{'person'}, {'dog'}, None]
    """
    for image, names in objects.items():
        if isinstance(names, str) or not isinstance(names, Collection):
            raise InputError(f"the objects of image {image!r} are {names!r:.40}: give a set of names")
        if unknown := [name for name in names if name not in CATEGORIES]:
            raise InputError(
                f"image {image!r} has an object {unknown[0]!r:.40}, which is none of COCO's 80 categories: give these, "
                f"{', '.join(CATEGORIES[:3])}, ..."
            )
    by_number = {number_or_name(image): names for image, names in objects.items()}
    ordered = [objects.get(image, by_number.get(number_or_name(image))) for image in images]
    if all(names is None for names in ordered):
        have, want = (repr(next(iter(ids), None)) for ids in (objects, images))
        raise InputError(
            f"objects are given of other images ({have} for one) than captions ({want} for one): give those of the "
            "same images"
        )
    return ordered
