"""The features of images and captions, and the identity of the encoder that computed them. Imports no torch."""

from dataclasses import dataclass
from enum import Enum

from prefixcap.errors import InputError


class Feature(str, Enum):
    """A feature that an encoder computes for images or captions. The value is its column in a feature store.

    Examples:
        >>> Feature.parse("patches")
        <Feature.PATCHES: 'images/patches'>
        >>> Feature.PATCHES.option, Feature.PATCHES.ndim
        ('patches', 3)
    """

    IMAGE = "images/embedding"
    """(images, dim): the embedding of an entire image."""
    PATCHES = "images/patches"
    """(images, patches, dim): the last layer of a ViT, or of a CNN, projected into the joint space."""
    REGIONS = "images/regions"
    """(images, regions, dim): sub-region features (MacCap, equations 10 to 13)."""
    HIDDEN = "images/hidden"
    """(images, 1 + patches, width): class token and patches of a ViT's last layer, not projected (SmallCap)."""
    CAPTION = "captions/embedding"
    """(captions, dim): the embedding of a caption."""

    def __str__(self) -> str:
        return self.value

    @property
    def option(self) -> str:
        """Its name on the command line, as in `features=[image,patches]`."""
        return self.name.lower()

    @property
    def ndim(self) -> int:
        """Dimensions of a batch: 2 for one vector each, 3 for several."""
        return 3 if self in (Feature.PATCHES, Feature.REGIONS, Feature.HIDDEN) else 2

    @classmethod
    def parse(cls, name: object) -> "Feature":
        """The feature by its column, its option, or a mapper's name for it ("embedding" is that of an entire image).

        Raises:
            InputError: there is no such feature.
        """
        for feature in cls:
            if name in (feature.value, feature.option) or (name == "embedding" and feature is cls.IMAGE):
                return feature
        raise InputError(f"there is no feature {name!r}: choose one of {', '.join(each.option for each in cls)}")


@dataclass(frozen=True)
class EncoderIdentity:
    """The encoder that computed embeddings. Embeddings may be mixed only if their encoders agree, see `agrees_with`.

    Attributes:
        name: as `load_encoder` takes it, e.g. "clip:ViT-B/32".
        digest: SHA-256 (hex) over the names, shapes and fp32 bytes of the weights, independent of file, device and
            dtype. Empty: unknown, as for the files that ClipCap published.
        preprocessing: one line on how pixels are prepared; empty if the digest is.
        dim: width of the joint embedding space.

    Examples:
        >>> ours = EncoderIdentity("clip:ViT-B/32", "ab12", "centre crop 224", 512)
        >>> ours.agrees_with(EncoderIdentity("clip:copy.pt", "ab12", "centre crop 224", 512))
        True
    """

    name: str
    digest: str
    preprocessing: str
    dim: int

    def agrees_with(self, other: "EncoderIdentity") -> bool:
        """Whether weights and preprocessing are the same; or the names, if a digest is unknown."""
        if not self.digest or not other.digest:
            return self.name == other.name
        return (self.digest, self.preprocessing) == (other.digest, other.preprocessing)
