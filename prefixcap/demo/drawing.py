"""How a scene of the small world is drawn: a sticker-like object before a painted background."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from prefixcap.demo.scenes import Scene

SIZE = 224  # pixels a side
_OVERSAMPLING = 2  # the object is drawn this much larger, then reduced: smooth edges
_BORDER = 5  # pixels of white around an object, as around a sticker
_OUTLINE = 1.5  # pixels of dark line between the border and the paint

_Colour = tuple[int, int, int]
_Points = list[tuple[float, float]]

_COLOURS: dict[str, _Colour] = {
    "red": (214, 40, 40),
    "orange": (245, 133, 24),
    "yellow": (250, 211, 40),
    "green": (34, 150, 70),
    "blue": (38, 88, 214),
    "purple": (118, 42, 168),
    "pink": (250, 130, 185),
    "brown": (122, 72, 34),
    "black": (26, 26, 30),
    "white": (248, 248, 246),
}
_CENTRES = {
    "left": (0.3, 0.5),
    "right": (0.7, 0.5),
    "top": (0.5, 0.3),
    "bottom": (0.5, 0.7),
    "middle": (0.5, 0.5),
}


def draw(scene: Scene, generator: np.random.Generator) -> Image.Image:
    """A picture of the scene, RGB, `SIZE` x `SIZE` pixels; the generator draws the jitter (place, tilt, shade)."""
    picture = _background(scene.place, generator)
    x, y = (round(SIZE * (centre + generator.uniform(-0.02, 0.02))) for centre in _CENTRES[scene.position])
    radius = SIZE * (generator.uniform(0.16, 0.175) if scene.size == "small" else generator.uniform(0.235, 0.255))
    tilt = generator.uniform(-0.15, 0.15)

    half = math.ceil(1.2 * radius) + 2 * _BORDER  # of the square that holds the object with its border
    side = 2 * half * _OVERSAMPLING
    body = _silhouette(scene.shape, side / 2, radius * _OVERSAMPLING, tilt, side)
    border, outline = (_grown(body, width * _OVERSAMPLING) for width in (_BORDER, _OUTLINE))
    paint = _texture(scene, generator, radius * _OVERSAMPLING, side)
    corner = (x - half, y - half)
    shadow = border.resize((2 * half, 2 * half), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(3))
    picture.paste((15, 15, 30), (corner[0] + 2, corner[1] + 4), shadow.point(lambda value: value * 45 // 100))
    for layer, mask in (((255, 255, 255), border), ((45, 45, 60), outline), (paint, body)):
        small = mask.resize((2 * half, 2 * half), Image.Resampling.BOX)
        picture.paste(layer, (*corner, corner[0] + 2 * half, corner[1] + 2 * half), small)
    return picture


def _grown(mask: Image.Image, pixels: float) -> Image.Image:
    """The mask, grown on every side."""
    return mask.filter(ImageFilter.GaussianBlur(0.8 * pixels)).point(lambda value: 255 if value > 27 else 0)


def _silhouette(shape: str, centre: float, radius: float, tilt: float, side: int) -> Image.Image:
    """The object as a mask ("L", 0 or 255)."""
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)

    def disc(radius: float, value: int, dx: float = 0.0, dy: float = 0.0) -> None:
        x, y = centre + dx, centre + dy
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)

    if shape == "circle":
        disc(radius, 255)
    elif shape == "ring":
        disc(radius, 255)
        disc(0.52 * radius, 0)
    elif shape == "crescent":
        disc(radius, 255)
        bite = -0.7 + tilt
        disc(0.82 * radius, 0, 0.5 * radius * math.cos(bite), 0.5 * radius * math.sin(bite))
    else:
        turned = [
            (
                centre + radius * (px * math.cos(tilt) - py * math.sin(tilt)),
                centre + radius * (px * math.sin(tilt) + py * math.cos(tilt)),
            )
            for px, py in _outline(shape)
        ]
        pen.polygon(turned, fill=255)
    return mask


def _outline(shape: str) -> _Points:
    """The corners of a shape, centred on the origin, about one unit in radius, y downwards."""
    if shape == "star":
        return [_polar(1.1 if corner % 2 == 0 else 0.46, -90 + 36 * corner) for corner in range(10)]
    if shape == "heart":
        angles = np.linspace(0, 2 * math.pi, 60)
        return [
            (
                math.sin(angle) ** 3,
                -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)) / 16,
            )
            for angle in angles
        ]
    if shape == "cross":
        arm, tip = 0.34, 0.95
        quarter = [(arm, -arm), (tip, -arm), (tip, arm)]
        return [point for turn in range(4) for point in [_turn(corner, turn) for corner in quarter]]
    if shape == "square":
        return [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    if shape == "diamond":
        return [(0, -1.1), (0.72, 0), (0, 1.1), (-0.72, 0)]
    if shape == "triangle":
        return [_polar(1.1, -90 + 120 * corner) for corner in range(3)]
    if shape == "hexagon":
        return [_polar(1.0, 60 * corner) for corner in range(6)]
    raise ValueError(f"no such shape: {shape}")


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    return radius * math.cos(math.radians(degrees)), radius * math.sin(math.radians(degrees))


def _turn(point: tuple[float, float], quarters: int) -> tuple[float, float]:
    for _ in range(quarters):
        point = (-point[1], point[0])
    return point


def _texture(scene: Scene, generator: np.random.Generator, radius: float, side: int) -> Image.Image:
    """The object's paint, a square of `side` pixels: its colour, patterned with a lighter or darker shade of it."""
    shade = generator.uniform(0.92, 1.06)
    colour = np.clip(np.array(_COLOURS[scene.colour]) * shade, 0, 255)
    second = colour * 0.5 if scene.colour in ("white", "yellow") else colour + 0.65 * (255 - colour)
    x = np.arange(side, dtype=np.float32)[None, :] - side / 2
    y = x.T
    period = 0.6 * radius
    if scene.texture == "striped":
        pattern = (x + y) / math.sqrt(2) % period < 0.45 * period
    elif scene.texture == "dotted":
        pattern = (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (0.3 * period) ** 2
    elif scene.texture == "checkered":
        pattern = (x // (0.6 * period) + y // (0.6 * period)) % 2 == 0
    else:
        pattern = np.zeros((side, side), dtype=bool)
    return Image.fromarray(np.array([colour, second], dtype=np.uint8)[pattern.astype(np.intp)]).resize(
        (side // _OVERSAMPLING, side // _OVERSAMPLING), Image.Resampling.BOX
    )


def _background(place: str, generator: np.random.Generator) -> Image.Image:
    """The painted background of a place, RGB, `SIZE` x `SIZE`."""
    horizon = generator.uniform(0.52, 0.66)
    wave, phase = generator.uniform(0.01, 0.035), generator.uniform(0, 6.3)
    steps = np.arange(SIZE, dtype=np.float32) / SIZE
    rows, columns = steps[:, None], steps[None]

    def gradient(top: _Colour, bottom: _Colour, start: float = 0.0, end: float = 1.0) -> NDArray[Any]:
        share = np.clip((rows - start) / (end - start), 0, 1)[..., None]
        painted: NDArray[Any] = np.array(top, np.float32) + share * np.subtract(bottom, top, dtype=np.float32)
        return painted  # (SIZE, 1, 3): the same along a row

    def hills(height: float, depth: float, turns: float) -> NDArray[Any]:
        crest = height + depth * np.sin(turns * columns * 2 * math.pi + phase)
        below: NDArray[Any] = (rows > crest)[..., None]
        return below

    if place == "meadow":
        canvas = gradient((120, 190, 240), (215, 238, 250), 0, horizon)
        canvas = np.where(hills(horizon - 0.06, wave, 1.3), gradient((120, 180, 110), (95, 160, 85)), canvas)
        canvas = np.where(hills(horizon + 0.04, wave, 0.8), gradient((140, 200, 95), (75, 145, 55), horizon), canvas)
    elif place == "beach":
        canvas = gradient((95, 185, 235), (205, 236, 250), 0, horizon - 0.12)
        canvas = np.where(hills(horizon - 0.12, 0.0, 1), gradient((25, 120, 180), (95, 200, 210), 0.4, horizon), canvas)
        canvas = np.where(hills(horizon + 0.05, wave, 0.7), gradient((245, 226, 175), (225, 190, 125), horizon), canvas)
    elif place == "desert":
        canvas = gradient((250, 170, 95), (255, 225, 165), 0, horizon)
        canvas = np.where(hills(horizon - 0.04, 2 * wave, 0.9), gradient((215, 140, 80), (200, 120, 65)), canvas)
        canvas = np.where(
            hills(horizon + 0.08, 2 * wave, 0.6), gradient((200, 120, 60), (160, 85, 40), horizon), canvas
        )
    elif place == "night":
        canvas = gradient((10, 14, 45), (50, 55, 110))
        canvas = np.where(hills(horizon + 0.2, wave, 1.1), gradient((22, 26, 50), (12, 14, 30), 0.7), canvas)
        stars = generator.integers(0, (int(0.7 * SIZE), SIZE), (60, 2))
        canvas[stars[:, 0], stars[:, 1]] = (255, 250, 215)
    elif place == "snow":
        canvas = gradient((175, 200, 222), (226, 234, 242), 0, horizon)
        canvas = np.where(hills(horizon - 0.05, wave, 1.2), gradient((205, 216, 230), (222, 230, 240)), canvas)
        canvas = np.where(hills(horizon + 0.07, wave, 0.7), gradient((246, 249, 253), (214, 224, 238), horizon), canvas)
        flakes = generator.integers(1, SIZE - 1, (90, 2))
        canvas[flakes[:, 0], flakes[:, 1]] = canvas[flakes[:, 0] - 1, flakes[:, 1]] = (255, 255, 255)
    else:
        canvas = gradient((255, 205, 170), (255, 236, 205), 0, horizon - 0.08)
        sea = gradient((70, 150, 185), (15, 70, 120), horizon - 0.08)
        foam = np.sin((columns * 3 + 0.4 * np.sin(rows * 60 + phase)) * 2 * math.pi + rows * 160) > 0.93
        sea = np.where(foam[..., None], sea + 0.35 * (255 - sea), sea)
        canvas = np.where(hills(horizon - 0.08, 0.0, 1), sea, canvas)
    return Image.fromarray(canvas.astype(np.uint8))
