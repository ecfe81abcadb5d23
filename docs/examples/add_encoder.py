"""An encoder of your own: the colour histogram of an image. It shows how well a captioner does that sees only colours.

python docs/examples/add_encoder.py encoder.name=colours model=mlp
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from prefixcap.commands.common.hydra_main import run
from prefixcap.commands.train import main
from prefixcap.encoders import BACKENDS, PatchFeatures
from prefixcap.errors import InputError
from prefixcap.features import EncoderIdentity

LEVELS = 6  # of each of red, green and blue
SIZE = 64  # pixels a side


class ColourEncoder:
    """A histogram of colours, as an `Encoder` (prefixcap/encoders/protocol.py).

    Args:
        checkpoint: what follows a colon in the encoder's name; not used here.
        name: the encoder's name.
        device: of the embeddings.
        dtype: of the embeddings.
    """

    text_tower = None  # of a CLIP, for ZeroCap and MAGIC

    def __init__(self, checkpoint: str, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        # The digest identifies the weights; here these two numbers take their place.
        self.identity = EncoderIdentity(name, f"{LEVELS}-{SIZE}", f"resize to {SIZE}x{SIZE}", dim=LEVELS**3)

    def preprocess(self, image: Image.Image) -> Tensor:
        """One image of any mode and size -> (3, SIZE, SIZE) uint8."""
        pixels: Tensor = pil_to_tensor(image.convert("RGB").resize((SIZE, SIZE)))
        return pixels

    def normalize(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) uint8 -> float32, 0 to 1, on the encoder's device."""
        return pixels.to(self.device).float() / 255

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) pixels, uint8 or normalised -> (batch, LEVELS**3) of unit length."""
        pixels = pixels.to(self.device) if pixels.is_floating_point() else self.normalize(pixels)
        red, green, blue = (pixels * LEVELS).long().clamp(max=LEVELS - 1).flatten(2).unbind(1)
        colours = (red * LEVELS + green) * LEVELS + blue  # (batch, height * width)
        counts = torch.zeros(len(pixels), LEVELS**3, device=self.device)
        counts.scatter_add_(1, colours, torch.ones_like(colours, dtype=counts.dtype))
        return torch.nn.functional.normalize(counts.sqrt(), dim=-1).to(self.dtype)

    def encode_patches(self, pixels: Tensor) -> PatchFeatures:
        """Raise InputError: only a ViT has patches."""
        raise InputError(f"encoder '{self.identity.name}' has no patches: choose a ViT")

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Raise InputError: captions cannot be ranked or scored with it."""
        raise InputError(f"encoder '{self.identity.name}' reads no texts: choose a CLIP")


BACKENDS["colours"] = ColourEncoder

if __name__ == "__main__":
    run(main, "train")
