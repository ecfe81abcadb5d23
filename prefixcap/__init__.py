"""Image captioning by conditioning a language model on CLIP.

import prefixcap
captioner = prefixcap.load("runs/demo-transformer/.../checkpoints/best.ckpt")
captioner.caption(["a.jpg", "b.jpg"])
"""

from typing import TYPE_CHECKING

from prefixcap import renamed
from prefixcap.errors import InputError
from prefixcap.utils.deferred import deferred_attributes

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner, load
    from prefixcap.zeroshot.arithmetic import arithmetic
    from prefixcap.zeroshot.magic import Magic
    from prefixcap.zeroshot.zerocap import ZeroCap

__version__ = "0.2.0"

__all__ = ["Captioner", "InputError", "Magic", "ZeroCap", "arithmetic", "load"]

renamed.install()

# Looked up when first used: a program that only reads a store or scores captions loads no model code.
__getattr__ = deferred_attributes(
    __name__,
    {
        "Captioner": "captioner",
        "Magic": "zeroshot.magic",
        "ZeroCap": "zeroshot.zerocap",
        "arithmetic": "zeroshot.arithmetic",
        "load": "captioner",
    },
)
