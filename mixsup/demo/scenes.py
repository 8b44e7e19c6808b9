"""The demo's own data set: textured scenes with clutter, overlaps, light and shadow, drawn here so that the demo needs no download."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mixsup.data.sample import BACKGROUND, Bool, Boxes, Float32, UInt8
from mixsup.data.segments import encode_rle, tight_box
from mixsup.demo.kinds import CLASSES, KINDS, Float64, ellipse, fractal, noise, unit, wave
from mixsup.errors import MixsupError
from mixsup.files import write_bytes, write_text

DRAWING = 1  # version of the pictures; raise it with any change to them, so that folders of old ones are drawn again
VAL_FROM = 1_000_000  # index of the first validation scene: it does not move when the training set grows
MIN_SIZE = 32  # pixels; below, a stick is thinner than a pixel
OVER = 2  # the picture is drawn this many times larger, then reduced: smooth edges and textures
FINE = 4  # outlines are filled this many times finer still; OpenCV's fill reaches half a pixel past an outline
KEEP = 0.4  # an object of which less than this share stays visible teaches nothing: the one on top goes elsewhere


def _colour(hue: float, saturation: float, value: float) -> Float32:
    """RGB, 0 to 1, of a hue in degrees; saturation and value are cut to 0 to 1."""
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, min(max(saturation, 0), 1), min(max(value, 0), 1)), np.float32)


def _mix(first: Float32, second: Float32, share: Float32) -> Float32:
    """HxWx3 from two colours and the HxW share of the second."""
    return first + share[..., None] * (second - first)


@dataclass(frozen=True)
class Scene:
    """One picture and its labels.

    Attributes:
        image: size x size x 3 uint8, RGB.
        mask: size x size uint8 class ids, 0 background, no void.
        boxes: tight boxes of the visible parts, in the order of `instances`.
        instances: (class id, size x size bool visible pixels) of each object, lowest first; no two share a pixel.
    """

    image: UInt8
    mask: UInt8
    boxes: Boxes
    instances: tuple[tuple[int, Bool], ...]


# ---- where things lie ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """An object that has an outline but no place yet.

    Attributes:
        class_id: index into `KINDS` plus 1.
        alpha: HxW float32 coverage at `OVER` times the resolution; H and W are multiples of `OVER`.
        u, v: HxW float32 coordinates in the outline's frame, before rotation.
        radius: of the circle around it, in pixels of `alpha`.
        pixels: (H / OVER) x (W / OVER) bool, the pixels that it covers by half or more.
    """

    class_id: int
    alpha: Float32
    u: Float32
    v: Float32
    radius: float
    pixels: Bool


@dataclass(frozen=True)
class _Placed:
    """An object at its place."""

    shape: _Shape
    x: int  # of the left upper corner, in pixels of the finished picture
    y: int

    def full(self, size: int) -> Bool:
        """size x size bool, the pixels of the object, visible or not."""
        pixels = np.zeros((size, size), bool)
        height, width = self.shape.pixels.shape
        pixels[self.y : self.y + height, self.x : self.x + width] = self.shape.pixels
        return pixels


def _shape(rng: np.random.Generator, class_id: int, size: int) -> _Shape:
    """Draws the outline of one object for a picture of `size` pixels."""
    kind = KINDS[class_id - 1]
    radius = rng.uniform(*kind.span) * size * OVER
    angle = np.deg2rad(rng.uniform(*kind.turn))
    mirror = float(rng.choice((-1, 1)))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * (mirror, 1)  # row vectors: local @ turn
    polygons = [polygon @ turn * radius for polygon in kind.outline(rng)]
    low, high = np.min(np.concatenate(polygons), axis=0), np.max(np.concatenate(polygons), axis=0)
    width, height = (int(np.ceil(side / OVER)) * OVER for side in high - low)
    fine = np.zeros((height * FINE, width * FINE), np.uint8)
    cv2.fillPoly(fine, [np.round((polygon - low) * FINE).astype(np.int32) for polygon in polygons], 255)
    alpha = unit(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA) / 255)
    x, y = np.meshgrid(np.arange(width) + 0.5 + low[0], np.arange(height) + 0.5 + low[1])
    # Back to the outline's frame: the inverse of a rotation with a mirror is its transpose.
    local: Float32 = np.array(np.stack([x, y], axis=-1) @ turn.T / radius, np.float32)
    pixels = np.asarray(cv2.resize(alpha, (width // OVER, height // OVER), interpolation=cv2.INTER_AREA) >= 0.5)
    return _Shape(class_id, alpha, local[..., 0], local[..., 1], radius, pixels)


def _place(rng: np.random.Generator, shape: _Shape, below: list[_Placed], visible: list[Bool], size: int) -> _Placed | None:
    """A place for one more object, on top; or None when it would hide an earlier one wherever it went.

    Args:
        rng: of the scene.
        shape: the object.
        below: earlier objects.
        visible: size x size bool of each of them, what is seen of it so far.
        size: side of the picture in pixels.
    """
    height, width = shape.pixels.shape
    for attempt in range(24):
        placed = _Placed(shape, int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1)))
        cover = placed.full(size)
        left = [(seen & ~cover).sum() / item.shape.pixels.sum() for item, seen in zip(below, visible, strict=True)]
        # Little overlap is looked for first: a scene is a scatter of things, not a heap.
        if min(left, default=1.0) >= (0.9 if attempt < 12 else KEEP):
            return placed
    return None


def _lay_out(rng: np.random.Generator, size: int) -> tuple[list[_Placed], list[Bool]]:
    """Two to five objects of classes drawn independently of each other, lowest first, and the size x size bool pixels seen of each."""
    placed: list[_Placed] = []
    visible: list[Bool] = []
    for class_id in rng.integers(1, len(KINDS) + 1, rng.integers(2, 6)):
        found = _place(rng, _shape(rng, int(class_id), size), placed, visible, size)
        if found is not None:
            cover = found.full(size)
            visible = [*(seen & ~cover for seen in visible), cover]
            placed.append(found)
    return placed, visible


# ---- painting ------------------------------------------------------------------------------------


def _ramp(rng: np.random.Generator, side: int) -> Float32:
    """side x side float32 that grows evenly in a random direction, -1 to 1 along the longer axis."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    return np.asarray(np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None], np.float32)


def _stripes(rng: np.random.Generator, side: int) -> Float32:
    return wave(_ramp(rng, side) * rng.uniform(12, 34) + 2 * noise(rng, (side, side), 4), rng.uniform(0.8, 2.5))


def _cloud(rng: np.random.Generator, side: int) -> Float32:
    return fractal(rng, (side, side), int(rng.integers(3, 14)), 5)


def _slope(rng: np.random.Generator, side: int) -> Float32:
    return unit(0.5 + 0.5 * _ramp(rng, side) + 0.3 * (fractal(rng, (side, side), 4) - 0.5))


def _board(rng: np.random.Generator, side: int) -> Float32:
    ramp = _ramp(rng, side)
    step = rng.uniform(10, 24)
    return unit(0.5 + 3 * np.sin(step * ramp) * np.sin(step * np.rot90(ramp)))


def _pebbles(rng: np.random.Generator, side: int) -> Float32:
    seeds = np.ones((side, side), np.uint8)
    count = int(rng.integers(60, 220))
    seeds[rng.integers(0, side, count), rng.integers(0, side, count)] = 0
    distance = cv2.distanceTransform(seeds, cv2.DIST_L2, 5)
    return unit(distance * (float(np.sqrt(count)) / side / 1.1))


def _thick(side: int, pixels: float) -> int:
    """The width of a line that is `pixels` wide in a picture of 128."""
    return max(1, round(pixels * side / 128))


def _grass(rng: np.random.Generator, side: int) -> Float32:
    field = 0.6 * fractal(rng, (side, side), 5)
    lean = rng.uniform(-0.5, 0.5)
    for x, y, sway, shade in rng.uniform((0, 0, -0.4, 0), (1, 1.1, 0.4, 1), (420, 4)):
        foot, tall = (round(x * side), round(y * side)), 0.075 * side * (0.6 + shade)
        cv2.line(field, foot, (round(foot[0] + tall * (lean + sway)), round(foot[1] - tall)), shade, _thick(side, 1))
    return field


GROUNDS = (_stripes, _cloud, _slope, _board, _pebbles, _grass)


def _background(rng: np.random.Generator, side: int) -> Float32:
    """side x side x 3 float32 RGB, 0 to 1: a textured ground in two related colours."""
    hue, value = rng.uniform(0, 360), rng.uniform(0.35, 0.75)
    first = _colour(hue, rng.uniform(0.1, 0.7), value)
    second = _colour(hue + rng.normal(0, 30), rng.uniform(0.1, 0.7), value + rng.choice((-1, 1)) * rng.uniform(0.12, 0.28))
    ground = _mix(first, second, GROUNDS[rng.integers(len(GROUNDS))](rng, side))
    return ground * (0.88 + 0.24 * fractal(rng, (side, side), 24, 3))[..., None]


def _clutter(rng: np.random.Generator, canvas: Float32) -> None:
    """Draws small blobs and lines of any colour that belong to no class into `canvas`, SxSx3."""
    side = len(canvas)
    for _ in range(rng.integers(4, 12)):
        colour = _colour(rng.uniform(0, 360), rng.uniform(0.1, 0.85), rng.uniform(0.2, 0.95)).tolist()
        centre = rng.uniform(0, side, 2)
        if rng.random() < 0.6:
            points = ellipse(1, rng.uniform(0.5, 1), 12) * rng.uniform(0.6, 1.2, (12, 1)) * side * rng.uniform(0.018, 0.055) + centre
            cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], colour)
        else:
            points = centre + np.cumsum(rng.normal(0, 0.05 * side, (4, 2)), axis=0)
            cv2.polylines(canvas, [np.round(points).astype(np.int32)], False, colour, _thick(side, rng.uniform(0.5, 1.5)))


def _skin(rng: np.random.Generator, shape: _Shape, light: Float64) -> Float32:
    """HxWx3 float32, the colours of an object: its kind's texture in colours near its kind's, lit from `light` (x, y; towards the lamp)."""
    kind = KINDS[shape.class_id - 1]
    hue = rng.normal(kind.hue, 14) if rng.random() < 0.92 else rng.uniform(0, 360)
    saturation, value = rng.uniform(0.55, 0.9), rng.uniform(0.55, 0.9)
    shift, pale, bright = kind.second
    second = _colour(hue + shift, saturation * pale, value * bright)
    colours = _mix(_colour(hue, saturation, value), second, kind.pattern(rng, shape.u, shape.v))
    colours *= (0.85 + 0.3 * fractal(rng, shape.alpha.shape, 10, 2))[..., None]  # grain
    width = kind.bevel * shape.radius
    edge = int(np.ceil(3 * width))
    height = cv2.GaussianBlur(cv2.copyMakeBorder(shape.alpha, edge, edge, edge, edge, cv2.BORDER_CONSTANT, value=0), (0, 0), width)
    slope_y, slope_x = np.gradient(height[edge:-edge, edge:-edge])
    lit = -(light[0] * slope_x + light[1] * slope_y) * width * 2.5  # about -1 to 1 at the rim
    return np.asarray(colours * (1 + 0.4 * np.clip(lit, -1, 1))[..., None], np.float32)


def _paint(rng: np.random.Generator, canvas: Float32, placed: _Placed, light: Float64) -> None:
    """Draws an object and its soft shadow into `canvas`, SxSx3."""
    side = len(canvas)
    shape = placed.shape
    height, width = shape.alpha.shape
    window = (slice(placed.y * OVER, placed.y * OVER + height), slice(placed.x * OVER, placed.x * OVER + width))
    full = np.zeros((side, side), np.float32)
    full[window] = shape.alpha
    away = -light * side * 0.018
    cast = cv2.warpAffine(full, np.array([[1, 0, away[0]], [0, 1, away[1]]], np.float64), (side, side))
    canvas *= 1 - np.float32(rng.uniform(0.35, 0.55)) * cv2.GaussianBlur(cast, (0, 0), side * 0.014)[..., None]
    canvas[window] += shape.alpha[..., None] * (_skin(rng, shape, light) - canvas[window])


def _expose(rng: np.random.Generator, canvas: Float32, size: int) -> UInt8:
    """size x size x 3 uint8: `canvas` in the light of the room, through a lens, onto a sensor."""
    side = len(canvas)
    axis = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    glow = 1.04 + np.float32(rng.uniform(0.05, 0.22)) * _ramp(rng, side) + 0.12 * (noise(rng, (side, side), 2) - 0.5)
    glow *= 1 - np.float32(rng.uniform(0.06, 0.14)) * (axis[None, :] + axis[:, None])  # vignette
    small = cv2.resize(canvas * glow[..., None], (size, size), interpolation=cv2.INTER_AREA)
    grain = rng.normal(0, rng.uniform(0.008, 0.022), small.shape)
    return np.round(unit(small + grain) * 255).astype(np.uint8)


def draw_scene(seed: int, index: int, size: int = 128) -> Scene:
    """Draws one scene; the same numbers give the same scene.

    Args:
        seed: of the data set, at least 0.
        index: of the scene, at least 0.
        size: side of the picture in pixels, at least 32.

    Raises:
        MixsupError: `size` is too small.
    """
    if size < MIN_SIZE:
        raise MixsupError(f"scenes of {size} pixels are too small to draw; ask for {MIN_SIZE} or more")
    rng = np.random.default_rng([seed, index])
    placed, visible = _lay_out(rng, size)
    canvas = _background(rng, size * OVER)
    _clutter(rng, canvas)
    angle = rng.uniform(np.pi, 2 * np.pi)  # the lamp is somewhere above
    light = np.array([np.cos(angle), np.sin(angle)])
    for item in placed:
        _paint(rng, canvas, item, light)
    mask = np.full((size, size), BACKGROUND, np.uint8)
    rows = []
    for item, seen in zip(placed, visible, strict=True):
        mask[seen] = item.shape.class_id
        box = tight_box(seen)
        assert box is not None  # KEEP leaves something of every object
        rows.append((box, item.shape.class_id, False))
    instances = tuple((item.shape.class_id, seen) for item, seen in zip(placed, visible, strict=True))
    return Scene(_expose(rng, canvas, size), mask, Boxes.of(rows), instances)


# ---- the folder ----------------------------------------------------------------------------------


def write_dataset(folder: Path, train: int = 300, val: int = 60, seed: int = 0, size: int = 128) -> None:
    """Writes a COCO data set of scenes with boxes and masks, splits "train" and "val"; does nothing when it is there already.

    Args:
        folder: to write to; created when missing.
        train: number of training scenes.
        val: number of validation scenes.
        seed: of all scenes.
        size: side of the pictures in pixels.

    Raises:
        MixsupError: the folder holds something else, or cannot be written.
    """
    stamp = folder / "demo.json"
    wanted = {"drawing": DRAWING, "train": train, "val": val, "seed": seed, "size": size, "complete": True}
    if stamp.is_file():
        if _stamp(stamp) == wanted and all((folder / name).is_file() for name in _files(train, val)):
            return
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise MixsupError(f"{folder}: holds something else than the demo's scenes; name a new or an empty folder")
    # A process killed half way leaves a stamp that says so, and the next one begins again.
    write_text(stamp, json.dumps({**wanted, "complete": False}) + "\n")
    for split, start, count in (("train", 0, train), ("val", VAL_FROM, val)):
        _write_split(folder, split, (draw_scene(seed, start + index, size) for index in range(count)))
    write_text(stamp, json.dumps(wanted) + "\n")


def _stamp(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _image_name(split: str, index: int) -> str:
    return f"{split}_{index:04d}.png"


def _files(train: int, val: int) -> list[str]:
    """All files of the data set but the stamp, relative to its folder."""
    images = [f"images/{split}/{_image_name(split, index)}" for split, count in (("train", train), ("val", val)) for index in range(count)]
    return [*images, "annotations/instances_train.json", "annotations/instances_val.json"]


def _write_split(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    """Writes the images and the label file of one split."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in enumerate(scenes):
        name = _image_name(split, index)
        height, width = scene.mask.shape
        # PNG: the pixels that are trained on are those that were drawn, whichever JPEG decoder a machine has.
        _, png = cv2.imencode(".png", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
        write_bytes(folder / "images" / split / name, png.tobytes())
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for (class_id, seen), (x0, y0, x1, y1) in zip(scene.instances, scene.boxes.xyxy.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": class_id,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(seen.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_rle(seen),
                }
            )
    categories = [{"id": class_id, "name": name} for class_id, name in enumerate(CLASSES.names, 1)]
    write_text(
        folder / "annotations" / f"instances_{split}.json",
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
    )
