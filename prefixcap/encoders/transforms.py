"""The transform of a library that works with torchvision's, as the steps that an `Encoder` has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision import transforms

from prefixcap.encoders.common import to_tensor
from prefixcap.encoders.protocol import ImageGeometry
from prefixcap.utils.colour import to_rgb


@dataclass(frozen=True)
class Preprocessing:
    """How an image is resized and cropped, and the mean and standard deviation of its colours.

    Attributes:
        steps: from a PIL image to a PIL image, one after another.
        mean, deviation: of red, green and blue, which are 0 to 1.
    """

    steps: Sequence[Any]
    mean: Sequence[float]
    deviation: Sequence[float]

    @classmethod
    def read(cls, transform: transforms.Compose) -> "Preprocessing":
        """Of a transform for evaluation: steps on a PIL image, the conversion to a tensor, and the normalisation."""
        *steps, normalization = transform.transforms
        names = ("ToTensor", "MaybeToTensor", "MaybeConvertMode")  # `to_rgb` and `to_tensor` take their place
        kept = [step for step in steps if type(step).__name__ not in names]
        mean, deviation = (tuple(map(float, values)) for values in (normalization.mean, normalization.std))
        return cls(kept, mean, deviation)

    def __call__(self, image: Image.Image) -> Tensor:
        """An image of any mode and size -> (3, height, width) uint8."""
        image = to_rgb(image)
        for step in self.steps:
            image = step(image)
        return to_tensor(image)

    @property
    def geometry(self) -> ImageGeometry | None:
        """The same for programs that cannot call it; None: it is more than to resize and crop."""
        resize, *crops = self.steps
        if type(resize) is not transforms.Resize or any(type(crop) is not transforms.CenterCrop for crop in crops):
            return None
        size = resize.size if isinstance(resize.size, int) else tuple(resize.size)
        crop = next((tuple(crop.size) for crop in crops), None)
        return ImageGeometry(
            resize=size,
            resample=resize.interpolation.value,
            crop=None if crop == size else crop,
            crop_rounds_down=False,
        )

    def __str__(self) -> str:
        geometry = self.geometry
        if geometry is None:
            steps = ", ".join(" ".join(repr(step).split()) for step in self.steps)
        else:
            size = geometry.resize
            to = f"shorter side to {size}" if isinstance(size, int) else f"resize to {size[0]} x {size[1]}"
            crop = "" if geometry.crop is None else ", centre crop {} x {}".format(*geometry.crop)
            steps = f"{to} ({geometry.resample}){crop}"
        return f"{steps}, mean {list(self.mean)}, deviation {list(self.deviation)}"
