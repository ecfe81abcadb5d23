"""Image captioning by conditioning a language model on CLIP.

import prefixcap
captioner = prefixcap.load("runs/demo-transformer/.../checkpoints/best.ckpt")
captioner.caption(["a.jpg", "b.jpg"])
"""

from typing import TYPE_CHECKING, Any

from prefixcap.errors import InputError

if TYPE_CHECKING:
    from prefixcap.captioner import Captioner
    from prefixcap.checkpoints import load

__all__ = ["Captioner", "InputError", "load"]


def __getattr__(name: str) -> Any:
    # Looked up when first used: a program that only reads a store or scores captions loads no model code.
    if name == "Captioner":
        from prefixcap.captioner import Captioner

        return Captioner
    if name == "load":
        from prefixcap.checkpoints import load

        return load
    raise AttributeError(f"module 'prefixcap' has no attribute '{name}'")
