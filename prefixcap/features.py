"""What is kept of images and captions, and which encoder made it. Nothing here needs torch."""

from dataclasses import dataclass
from enum import Enum

from prefixcap.errors import InputError


class Feature(str, Enum):
    """What an encoder computes for images or captions. Its value is the name of its column in a feature store.

    Examples:
        >>> Feature.parse("patches")
        <Feature.PATCHES: 'images/patches'>
        >>> Feature.PATCHES.option, Feature.PATCHES.ndim
        ('patches', 3)
    """

    IMAGE = "images/embedding"
    """(images, dim): the embedding of a whole image."""
    PATCHES = "images/patches"
    """(images, patches, dim): a ViT's last layer, projected into the joint space."""
    REGIONS = "images/regions"
    """(images, regions, dim): sub-region features (MacCap, equations 10 to 13)."""
    CAPTION = "captions/embedding"
    """(captions, dim): the embedding of a caption."""

    def __str__(self) -> str:
        return self.value

    @property
    def option(self) -> str:
        """How the command line calls it, as in `features=[image,patches]`."""
        return self.name.lower()

    @property
    def ndim(self) -> int:
        """Dimensions of a batch of it: 2 for one vector each, 3 for several."""
        return 3 if self in (Feature.PATCHES, Feature.REGIONS) else 2

    @classmethod
    def parse(cls, name: object) -> "Feature":
        """The feature that a column, an option or a mapper's `features` names ("embedding" is the whole image's).

        Raises:
            InputError: there is no such feature.
        """
        for feature in cls:
            if name in (feature.value, feature.option) or (name == "embedding" and feature is cls.IMAGE):
                return feature
        raise InputError(f"there is no feature {name!r}: choose one of {', '.join(each.option for each in cls)}")


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoder made an embedding; embeddings may be mixed only if their encoders agree, see `agrees_with`.

    Attributes:
        name: as `load_encoder` takes it, e.g. "clip:ViT-B/32".
        digest: SHA-256 (hex) over the names, shapes and fp32 bytes of the weights, as the back end names
            them; the same whatever file the weights came from, and whatever device and dtype they run in. Empty if it
            is not known, as for a file that ClipCap published.
        preprocessing: one line that says how pixels are prepared; empty if the digest is.
        dim: width of the joint embedding space.
    """

    name: str
    digest: str
    preprocessing: str
    dim: int

    def agrees_with(self, other: "EncoderIdentity") -> bool:
        """Whether weights and preprocessing are the same, or the names where only those are known."""
        if not self.digest or not other.digest:
            return self.name == other.name
        return (self.digest, self.preprocessing) == (other.digest, other.preprocessing)
