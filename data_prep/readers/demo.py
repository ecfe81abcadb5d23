"""The small world that comes with prefixcap, read as COCO."""

from pathlib import Path

from data_prep.readers.coco import read_coco
from data_prep.records import Dataset
from prefixcap.demo.world import write_coco


def read_demo(root: str | Path) -> Dataset:
    """Write the small world to `root`, if it is not there, and read it. Raises what `read_coco` raises."""
    write_coco(Path(root))
    return read_coco(root, annotations="captions_demo.json")
