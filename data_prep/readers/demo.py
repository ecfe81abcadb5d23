"""The small world that comes with prefixcap, read as COCO."""

from pathlib import Path

import numpy as np

from data_prep.readers.coco import read_coco
from data_prep.readers.text import read_text
from data_prep.records import Dataset
from prefixcap.demo.scenes import other_captions, random_scene
from prefixcap.demo.world import write_coco
from prefixcap.utils.files import atomic_write_text


def read_demo(root: str | Path) -> Dataset:
    """Write the small world to `root`, if it is not there, and read it. Raises what `read_coco` raises."""
    write_coco(Path(root))
    return read_coco(root, annotations="captions_demo.json")


def read_other_demo(root: str | Path, scenes: int = 3000, val_share: float = 0.02) -> Dataset:
    """Sentences about scenes of the small world (in-domain) in another style than its captions', without pictures.

    Args:
        root: where `sentences.txt` lies, or is written.
        scenes: how many; each has four sentences.
        val_share: see `read_text`.

    Raises:
        InputError: as `read_text`.
    """
    file = Path(root) / "sentences.txt"
    if not file.exists():
        generator = np.random.default_rng(1)
        drawn = [random_scene(generator, "in-domain") for _ in range(scenes)]
        atomic_write_text(file, "".join(f"{sentence}\n" for scene in drawn for sentence in other_captions(scene)))
    return read_text(file, val_share=val_share)
