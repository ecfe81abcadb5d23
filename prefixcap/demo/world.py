"""The small world on disk, in COCO's own format, so that it runs through the same code as COCO."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prefixcap.demo.drawing import SIZE, draw
from prefixcap.demo.scenes import DOMAINS, Domain, Scene, captions, random_scene
from prefixcap.errors import InputError
from prefixcap.utils.files import read_json

ANNOTATIONS = "captions_demo.json"
SPLIT_FILE = "dataset_coco.json"
SPLITS: dict[str, dict[Domain, int]] = {
    "train": {"in-domain": 2500},
    "val": {"in-domain": 200},
    "test": dict.fromkeys(DOMAINS, 200),
}


def write_coco(root: Path, seed: int = 0) -> None:
    """Draw the small world into `root`, unless it is there already.

    Writes `images/*.jpg`, `captions_demo.json` (COCO annotations; each image also has its `domain` and its true
    `scene`) and `dataset_coco.json` (Karpathy split format). The folder appears atomically.

    Raises:
        InputError: `root` exists but is not the small world.
    """
    if _is_written(root):
        return
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root} is not empty and is not the small world: remove it, or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as temporary:
        new = Path(temporary) / root.name
        _write(new, np.random.default_rng(seed))
        try:
            if root.exists():
                root.rmdir()
            new.rename(root)
        except OSError:
            if not _is_written(root):  # otherwise another process was first
                raise


def _is_written(root: Path) -> bool:
    return (root / SPLIT_FILE).is_file() and (root / ANNOTATIONS).is_file()


def _write(root: Path, generator: np.random.Generator) -> None:
    (root / "images").mkdir(parents=True)
    plan = [
        (split, domain) for split, domains in SPLITS.items() for domain, count in domains.items() for _ in range(count)
    ]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    karpathy: list[dict[str, Any]] = []
    for image_id, (split, domain) in enumerate(tqdm(plan, desc="drawing the small world", unit=" images"), start=1):
        scene = random_scene(generator, domain)
        name = f"{image_id:06d}.jpg"
        draw(scene, generator).save(root / "images" / name, quality=92)
        sentences = captions(scene, generator)
        first = len(annotations)
        annotations += [
            {"id": first + offset, "image_id": image_id, "caption": sentence}
            for offset, sentence in enumerate(sentences)
        ]
        images.append(
            {
                "id": image_id,
                "file_name": name,
                "width": SIZE,
                "height": SIZE,
                "domain": domain,
                "scene": asdict(scene),
            }
        )
        karpathy.append(
            {
                "filepath": "images",
                "filename": name,
                "imgid": image_id - 1,
                "cocoid": image_id,
                "split": split,
                "sentids": list(range(first, len(annotations))),
                "sentences": [{"raw": sentence} for sentence in sentences],
            }
        )
    info = {"description": "The small world of prefixcap: one object before a painted background"}
    (root / ANNOTATIONS).write_text(json.dumps({"info": info, "images": images, "annotations": annotations}))
    (root / SPLIT_FILE).write_text(json.dumps({"dataset": "demo", "images": karpathy}))


def read_scenes(root: Path) -> dict[int, Scene]:
    """The true scene of every image of the small world at `root`, by id. Raises InputError if it is something else."""
    annotations = read_json(root / ANNOTATIONS)
    try:
        return {image["id"]: Scene(**image["scene"]) for image in annotations["images"]}
    except (LookupError, TypeError) as error:
        raise InputError(f"{root / ANNOTATIONS} does not belong to the small world: remove it") from error
