"""Checks of captions, references and embeddings before anything is computed: each mistake in one line."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from prefixcap.errors import InputError, name_rows
from prefixcap.metrics.metric import Captions, ImageId, MetricInputs, ObjectsOfImages, References
from prefixcap.metrics.tokenizers import check_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


def check_captions(captions: Captions, references: References) -> None:
    """Refuse captions and references that are not of the same images, are not strings, or are empty."""
    check_references(references)
    if not references and not captions:
        raise InputError("there are no captions to score")
    _check_kind_of_ids(captions, references)
    refuse(
        [i for i in captions if i not in references],
        "images with a caption but no references",
        "leave these captions out",
    )
    refuse([i for i in references if i not in captions], "images with references but no caption", "caption these, too")
    refuse(
        [i for i, text in captions.items() if not isinstance(text, str)],
        "captions that are not strings",
        "give one each",
    )


def check_embeddings(embeddings: "Tensor | None", references: References) -> None:
    """Refuse (n, d) embeddings that are not one for each image, or of which one is NaN, infinite or all zero."""
    from prefixcap.metrics.clip_score import require_directions

    assert embeddings is not None
    if len(embeddings) != len(references):
        raise InputError(
            f"{len(embeddings)} image embeddings, {len(references)} images: give one for each image, in the "
            "order of the references"
        )
    with name_rows(references):
        require_directions(embeddings)


def check_objects(objects: ObjectsOfImages | None, references: References) -> None:
    """Refuse objects that are not those of (n) images."""
    if objects is not None and len(objects) != len(references):
        raise InputError(
            f"objects of {len(objects)} images, {len(references)} images: give those of each image, in the order of "
            "the references"
        )


def check_inputs(inputs: MetricInputs, needs: Collection[str], references: References) -> None:
    """Refuse inputs that are not those of the images, as far as metrics need them, and an unknown tokenizer."""
    check_tokenizer(inputs.tokenizer)
    check_objects(inputs.objects, references)
    if "embeddings" in needs:
        check_embeddings(inputs.embeddings, references)
    if "candidates" in needs:
        check_candidates(inputs.candidates, references)


def check_candidates(candidates: Sequence[Sequence[str]] | None, references: References) -> None:
    """Refuse sets of captions that are not (n) lists of at least two strings."""
    assert candidates is not None
    if len(candidates) != len(references):
        raise InputError(
            f"candidates of {len(candidates)} images, {len(references)} images: give those of each image, in the order "
            "of the references"
        )
    sets = list(zip(references, candidates, strict=True))
    refuse(
        [i for i, texts in sets if isinstance(texts, str) or len(texts) < 2],
        "images without several candidates",
        "give each image a list of two or more captions",
    )
    refuse(
        [i for i, texts in sets if not all(isinstance(text, str) for text in texts)],
        "images with a candidate that is not a string",
        "correct these captions",
    )


def _check_kind_of_ids(captions: Captions, references: References) -> None:
    """Tell 1 from "1", which look alike in a list of ids."""
    alike = {str(image): image for image in references}
    for image in captions:
        if image not in references and str(image) in alike:
            raise InputError(
                f"the captions have an image {image!r}, the references an image {alike[str(image)]!r}: write ids as "
                "numbers in both or as texts in both"
            )


def check_references(references: References) -> None:
    """Refuse references that are not at least one string for each image."""
    refuse(
        [i for i, texts in references.items() if isinstance(texts, str)],
        "images with a string where a list of references belongs",
        "put it into a list",
    )
    refuse(
        [i for i, texts in references.items() if not texts], "images with an empty list of references", "leave them out"
    )
    refuse(
        [i for i, texts in references.items() if not all(isinstance(text, str) for text in texts)],
        "images with a reference that is not a string",
        "correct these references",
    )


def refuse(images: Sequence[ImageId], problem: str, remedy: str) -> None:
    """Raise an error that names the first five images, if there are any."""
    if images:
        named = ", ".join(map(repr, images[:5])) + (", ..." if len(images) > 5 else "")
        raise InputError(f"{problem} ({len(images)}): {named}; {remedy}")
