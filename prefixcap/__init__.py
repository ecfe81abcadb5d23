"""Image captioning by conditioning a language model on CLIP.

import prefixcap
captioner = prefixcap.load("runs/demo-transformer/.../checkpoints/best.ckpt")
captioner.caption(["a.jpg", "b.jpg"])
"""

import importlib
from typing import TYPE_CHECKING, Any

from prefixcap import renamed
from prefixcap.errors import InputError

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner, load
    from prefixcap.zeroshot.arithmetic import arithmetic
    from prefixcap.zeroshot.magic import Magic
    from prefixcap.zeroshot.zerocap import ZeroCap

__version__ = "0.2.0"

__all__ = ["Captioner", "InputError", "Magic", "ZeroCap", "arithmetic", "load"]

_HOMES = {
    "Captioner": "captioner",
    "Magic": "zeroshot.magic",
    "ZeroCap": "zeroshot.zerocap",
    "arithmetic": "zeroshot.arithmetic",
    "load": "captioner",
}


renamed.install()


def __getattr__(name: str) -> Any:
    # Looked up when first used: a program that only reads a store or scores captions loads no model code.
    if name not in _HOMES:
        raise AttributeError(f"module 'prefixcap' has no attribute '{name}'")
    return getattr(importlib.import_module(f"prefixcap.{_HOMES[name]}"), name)
