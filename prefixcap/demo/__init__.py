"""The small world: simple pictures with known truth, a small CLIP and a small GPT-2, for a laptop without a network."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Folder of the two small models, `clip.pt` and `language_model/`; `make_models.py` makes them."""


def language_model_beside(encoder: str, otherwise: str) -> str:
    """The language model to take with an encoder where none is named: with the small world's own, its own."""
    return "demo" if encoder == "demo" else otherwise
