"""The small encoders of the encoders' tests."""

from tests.encoders.conftest import clip_file, clip_folder, siglip_folder

__all__ = ["clip_file", "clip_folder", "siglip_folder"]
