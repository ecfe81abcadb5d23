"""The small world: what a scene is, which scenes exist, and which captions of a scene are true.

A scene is one object on a background. Six attributes describe it, so that there are 24,000 kinds of scene, each
drawn with its own jitter. Every scene has five captions in different words, as in COCO. Like nocaps, the world
has an in-domain part (pairs of colour and shape that occur in the training captions), a near-domain part (pairs that
do not, though both words do) and an out-of-domain part (a colour or a shape that no training caption names).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

Domain = Literal["in-domain", "near-domain", "out-of-domain"]
DOMAINS: tuple[Domain, ...] = ("in-domain", "near-domain", "out-of-domain")

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "hexagon", "cross", "ring", "crescent")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
POSITIONS = ("left", "right", "top", "bottom", "middle")
PLACES = ("meadow", "beach", "desert", "night", "snow", "sea")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "texture": TEXTURES,
    "size": SIZES,
    "position": POSITIONS,
    "place": PLACES,
}

NOVEL_COLOURS = ("purple", "brown")
NOVEL_SHAPES = ("hexagon", "crescent")

_WHERE = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}
_PLACE = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "desert": "in the desert",
    "night": "under the night sky",
    "snow": "in the snow",
    "sea": "by the sea",
}
FULL = (
    "A {size} {colour} {texture} {shape} {where} {place}.",
    "A {texture} {colour} {shape}, {size}, {where} {place}.",
    "There is a {size} {texture} {shape} in {colour} {where} {place}.",
    "{Place}, a {size} {colour} {texture} {shape} is {where}.",
    "The {shape} {where} is {size}, {colour} and {texture}, {place}.",
    "{Where} {place} we see a {size} {colour} {texture} {shape}.",
)
SHORT = (
    "A {colour} {shape} {place}.",
    "A {texture} {colour} {shape} {where}.",
    "A {size} {colour} {shape} {where}.",
    "A {size} {texture} {colour} {shape} {place}.",
    "There is a {colour} {texture} {shape} {place}.",
)
OTHER = (
    "The {shape} {where} is {colour}, {place}.",
    "We see a {texture} {shape} {place}.",
    "{Where} there is a {size} {shape}, {colour} and {texture}.",
    "{Place} the {shape} is {size} and {colour}.",
)


@dataclass(frozen=True)
class Scene:
    """One kind of scene: a value for each of `ATTRIBUTES`."""

    colour: str
    shape: str
    texture: str
    size: str
    position: str
    place: str

    @property
    def domain(self) -> Domain:
        """The domain of the scene with respect to the training captions."""
        if self.colour in NOVEL_COLOURS or self.shape in NOVEL_SHAPES:
            return "out-of-domain"
        held_out = (COLOURS.index(self.colour) + SHAPES.index(self.shape)) % 4 == 0
        return "near-domain" if held_out else "in-domain"


def random_scene(generator: np.random.Generator, domain: Domain | None = None) -> Scene:
    """A scene drawn uniformly from the world, or from one of its domains."""
    while True:
        scene = Scene(**{name: str(generator.choice(values)) for name, values in ATTRIBUTES.items()})
        if domain is None or scene.domain == domain:
            return scene


def captions(scene: Scene, generator: np.random.Generator) -> list[str]:
    """Five captions of the scene, all different: three that name every attribute and two that name some."""
    templates = [
        *generator.choice(np.array(FULL), 3, replace=False),
        *generator.choice(np.array(SHORT), 2, replace=False),
    ]
    return fill(scene, map(str, templates))


def other_captions(scene: Scene) -> list[str]:
    """Four captions of the scene in the style of another corpus: none has the form of one of `captions`."""
    return fill(scene, OTHER)


def fill(scene: Scene, templates: Iterable[str]) -> list[str]:
    """The sentence that each template makes of the scene."""
    where, place = _WHERE[scene.position], _PLACE[scene.place]
    words = {**asdict(scene), "where": where, "place": place}
    sentences = [t.format(**words, Where=where.capitalize(), Place=place.capitalize()) for t in templates]
    return [re.sub(r"\b([Aa]) (?=orange)", r"\1n ", sentence) for sentence in sentences]


def named_attributes(caption: str) -> list[tuple[str, str]]:
    """The attribute words of a caption, as (attribute, value) in order.

    >>> named_attributes("A small red star on the left.")
    [('size', 'small'), ('colour', 'red'), ('shape', 'star'), ('position', 'left')]
    """
    attribute_of = {value: name for name, values in ATTRIBUTES.items() for value in values}
    words = re.findall(r"[a-z]+", caption.lower())
    return [(attribute_of[word], word) for word in words if word in attribute_of]


def is_right(caption: str, scene: Scene) -> bool:
    """Whether the caption names a colour and a shape, and every attribute word in it is true of the scene."""
    named = named_attributes(caption)
    return {"colour", "shape"} <= {name for name, _ in named} and all(
        getattr(scene, name) == value for name, value in named
    )


def attribute_accuracy(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of captions in which every attribute word is right (`is_right`), overall and by domain: 0 to 1."""
    right: dict[str, list[bool]] = {}
    for caption, scene in zip(captions, scenes, strict=True):
        for part in (scene.domain, "overall"):
            right.setdefault(part, []).append(is_right(caption, scene))
    return {part: sum(right[part]) / len(right[part]) for part in (*DOMAINS, "overall") if part in right}
