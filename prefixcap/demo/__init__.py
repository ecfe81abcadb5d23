"""The small world: simple pictures with known truth, a small CLIP and a small GPT-2, for a laptop without a network."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Folder of the two small models, `clip.pt` and `language_model/`, which `make_models.py` trains."""


def language_model_beside(encoder: str, otherwise: str) -> str:
    """The language model to use with an encoder if none is named: "demo" with the encoder "demo"."""
    return "demo" if encoder == "demo" else otherwise
