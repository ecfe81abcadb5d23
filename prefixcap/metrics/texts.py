"""Texts as the state of a metric, and checks of texts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from prefixcap.errors import InputError, listed

# Bytes that never occur in UTF-8: what ends a text, and what ends the texts of an image.
_END_OF_TEXT, _END_OF_IMAGE = b"\xff", b"\xfe"


class TextMetric(Metric):
    """A metric whose state is the texts of images, as bytes, so that ranks can gather them.

    Texts take their size in UTF-8 and a byte each: five references and a caption about 300 bytes an image.

    Args:
        options: those of `torchmetrics.Metric`.
    """

    full_state_update = False
    texts: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("texts", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all texts."""
        super().reset()
        # A rank without texts must gather bytes as the others do; for an empty list torchmetrics gathers floats.
        self.texts.append(torch.empty(0, dtype=torch.uint8, device=self.device))

    def _add(self, images: Iterable[Sequence[str]]) -> None:
        """Add the texts of images: of each a caption, followed by its references if the metric has any."""
        packed = b"".join(
            b"".join(text.encode("utf-8", "surrogatepass") + _END_OF_TEXT for text in texts) + _END_OF_IMAGE
            for texts in images
        )
        if packed:
            self.texts.append(torch.frombuffer(bytearray(packed), dtype=torch.uint8).to(self.device))

    def _images(self) -> list[list[str]]:
        """The texts of every image, in the order in which they were added, rank by rank.

        Raises:
            InputError: there are none.
        """
        packed = dim_zero_cat(self.texts).byte().cpu().numpy().tobytes()
        if not packed:
            raise InputError(f"{type(self).__name__} has no captions to score: call update first")
        return [
            [text.decode("utf-8", "surrogatepass") for text in texts.split(_END_OF_TEXT)[:-1]]
            for texts in packed.split(_END_OF_IMAGE)[:-1]
        ]


def check_texts(captions: Sequence[str], references: Sequence[Sequence[str]] | None = None) -> None:
    """Refuse captions that are not strings, and references that do not fit them.

    Raises:
        InputError: names the rows.
    """
    _refuse_other_than_strings(captions, "captions")
    if references is None:
        return
    if isinstance(references, str) or len(references) != len(captions):
        raise InputError(f"{len(captions)} captions, but references of {len(references)} images: give as many")
    wrong = [row for row, texts in enumerate(references) if isinstance(texts, str) or not texts]
    if wrong:
        raise InputError(f"references in {listed('row', wrong)}: give each image a list of at least one reference")
    for row, texts in enumerate(references):
        _refuse_other_than_strings(texts, f"references of row {row}")


def _refuse_other_than_strings(texts: Sequence[str], what: str) -> None:
    if isinstance(texts, str):
        raise InputError(f"{what}: one string where a list of strings belongs: write [{texts[:40]!r}]")
    wrong = [row for row, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        raise InputError(f"{what}: {listed('row', wrong)}: not a string")
