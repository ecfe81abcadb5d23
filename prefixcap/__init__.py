"""Image captioning by conditioning a language model on CLIP.

import prefixcap
captioner = prefixcap.load("runs/demo-transformer/.../checkpoints/best.ckpt")
captioner.caption(["a.jpg", "b.jpg"])
"""

from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner, load

__all__ = ["Captioner", "InputError", "load"]


def __getattr__(name: str) -> Any:
    # Looked up when first used: a program that only reads a store or scores captions loads no model code.
    if name in ("Captioner", "load"):
        from prefixcap import captioner

        return getattr(captioner, name)
    raise AttributeError(f"module 'prefixcap' has no attribute '{name}'")
