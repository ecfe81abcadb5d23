"""Relations on the small world, in the benchmark's format: a red ring is to a red star as a blue ring is to what?"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import ATTRIBUTES, Scene, random_scene
from prefixcap.errors import InputError
from prefixcap.utils.files import atomic_write_folder

ASKED = ("colour", "shape", "size", "position")
PER_KIND = 75  # the paper's benchmark has 320 relations of five kinds
FILE = "relations.json"


def write_relations(root: Path, seed: int = 0) -> Path:
    """Draw relations into `root`, unless they exist; return their file, see `prefixcap.zeroshot.relations`.

    Writes `images/*.jpg`, one picture for each element, and `relations.json`. The folder appears atomically.

    Raises:
        InputError: `root` exists but does not hold relations, or cannot be written.
    """
    if (root / FILE).is_file():
        return root / FILE
    if root.exists():
        raise InputError(f"{root} exists and has no {FILE}: remove it, or name another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    with atomic_write_folder(root) as temporary:
        (temporary / "images").mkdir(parents=True)
        relations = []
        for asked in ASKED:
            for number in range(1, PER_KIND + 1):
                operands = []
                for name, scene in zip("abc", random_relation(asked, generator), strict=True):
                    file = f"images/{asked}-{number:02d}-{name}.jpg"
                    draw(scene, generator).save(temporary / file, quality=92)
                    operands.append((f"img:{file}", scene))
                (a, _), (b, answer), (c, _) = operands
                relations.append({"relation": asked, "pair": [a, b], "given": c, "answer": getattr(answer, asked)})
        (temporary / FILE).write_text(json.dumps(relations, indent=1) + "\n")
    return root / FILE


def random_relation(asked: str, generator: np.random.Generator) -> tuple[Scene, Scene, Scene]:
    """A, B and C: A and B differ in one attribute; C equals A in that one and differs in all others.

    The answer is B's value of the attribute. A caption of C is therefore always wrong, and so is any other value of B.
    """
    a = random_scene(generator)
    others = {
        name: str(generator.choice([value for value in values if value != getattr(a, name)]))
        for name, values in ATTRIBUTES.items()
    }
    b = replace(a, **{asked: others[asked]})
    c = Scene(**others | {asked: getattr(a, asked)})
    return a, b, c
