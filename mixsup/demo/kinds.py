"""The demo's eight kinds of object: their outlines and textures.

They differ in how much of their tight box they cover, from a diagonal stick (about a fifth) to a tile (nearly all), because that is what makes a
rectangle a good or a bad mask. Colours of kinds overlap with each other and with the background; texture and outline tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from mixsup.data.sample import Classes, Float32

Float64 = npt.NDArray[np.float64]
Outline = list[Float64]  # closed polygons, each Nx2 (x, y) within the unit circle; where two lie over each other is a hole
Pattern = Callable[[np.random.Generator, Float32, Float32], Float32]  # (rng, u, v) -> 0 (first colour) to 1 (second colour)


@dataclass(frozen=True)
class Kind:
    """One object class.

    Attributes:
        name: of the class.
        fill: range in which the mean share of the tight box lies that visible objects cover.
        outline: draws an outline.
        turn: (lowest, highest) rotation in degrees.
        span: (lowest, highest) radius of the circle around the object, as a share of the picture's side.
        pattern: draws a texture.
        hue: mean hue in degrees.
        second: (hue shift in degrees, saturation factor, value factor) of the texture's second colour.
        bevel: width of the rounded rim as a share of the radius.
    """

    name: str
    fill: tuple[float, float]
    outline: Callable[[np.random.Generator], Outline]
    turn: tuple[float, float]
    span: tuple[float, float]
    pattern: Pattern
    hue: float
    second: tuple[float, float, float]
    bevel: float


# ---- outlines ------------------------------------------------------------------------------------


def ellipse(width: float, height: float, steps: int = 72) -> Float64:
    angle = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    return np.stack([width * np.cos(angle), height * np.sin(angle)], axis=1)


def _stick(rng: np.random.Generator) -> Outline:
    half = rng.uniform(0.12, 0.15)
    x, y = [1, 1, -1, -1], [half, -half, -half, half]
    return [np.stack([x, y], axis=1) * 0.98]


def _ring(rng: np.random.Generator) -> Outline:
    height, hole = rng.uniform(0.88, 1.0), rng.uniform(0.64, 0.70)
    return [ellipse(1, height), ellipse(1, height) * hole]


def _cross(rng: np.random.Generator) -> Outline:
    half, height = rng.uniform(0.22, 0.26), rng.uniform(0.9, 1.0)
    corner = np.array([[1, half], [half, half], [half, 1]])
    quarters = [corner @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return [np.concatenate(quarters) * (0.97, 0.97 * height)]


def _crescent(rng: np.random.Generator) -> Outline:
    # The outer arc of the unit circle, then back along a circle that bites into it from the right.
    bite, shift = rng.uniform(0.72, 0.78), rng.uniform(0.5, 0.56)
    x = (1 - bite**2 + shift**2) / (2 * shift)  # of the two points where the circles meet
    tip = np.arccos(x)
    outer = np.linspace(tip, 2 * np.pi - tip, 60)
    inner_tip = np.arctan2(np.sqrt(1 - x**2), x - shift)
    inner = np.linspace(2 * np.pi - inner_tip, inner_tip, 40)[1:-1]
    arcs = [np.stack([np.cos(outer), np.sin(outer)], axis=1), np.stack([shift + bite * np.cos(inner), bite * np.sin(inner)], axis=1)]
    return [np.concatenate(arcs)]


def _star(rng: np.random.Generator) -> Outline:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.58, 0.66))
    return [np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)]


def _leaf(rng: np.random.Generator) -> Outline:
    half = rng.uniform(0.42, 0.5)
    x = np.linspace(-1, 1, 40)
    y = half * (1 - x**2) * (1 - 0.25 * x)  # broad near the stalk
    return [np.concatenate([np.stack([x, y], axis=1), np.stack([x, -y], axis=1)[::-1]])]


def _ball(rng: np.random.Generator) -> Outline:
    return [ellipse(1, rng.uniform(0.93, 1.0))]


def _tile(rng: np.random.Generator) -> Outline:
    width, height, round_ = 0.72, 0.72 * rng.uniform(0.82, 1.0), 0.12
    corners = np.repeat([[1, 1], [-1, 1], [-1, -1], [1, -1]], 18, axis=0) * (width - round_, height - round_)
    return [corners + ellipse(round_, round_)]


# ---- textures ------------------------------------------------------------------------------------


def unit(values: npt.NDArray[Any]) -> Float32:
    """Values cut to 0 to 1, as float32."""
    return np.asarray(np.clip(values, 0, 1), np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Float32:
    """Value noise of a shape (H, W), 0 to 1: `cells` random values a side, smooth in between."""
    grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
    return unit(cv2.resize(grid, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))


def fractal(rng: np.random.Generator, shape: tuple[int, ...], cells: int, octaves: int = 4) -> Float32:
    """Value noise at several scales, each half as strong and twice as fine as the one before, stretched to 0 to 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += noise(rng, shape, min(cells << octave, shape[0])) / (1 << octave)
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def wave(phase: npt.NDArray[Any], sharp: float = 3.0) -> Float32:
    """A sine of `phase` in radians cut to flat bands, 0 to 1."""
    return unit(0.5 + 0.5 * sharp * np.sin(phase))


def _bands(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    return wave(u * rng.uniform(13, 16) + v * 5 + rng.uniform(0, 6))


def _sectors(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    return wave(np.arctan2(v, u) * int(rng.integers(4, 7)))


def _weave(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    step = rng.uniform(19, 23)
    return np.maximum(wave(step * (u + v), 1.2), wave(step * (u - v), 1.2)) ** 2


def _craters(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    depth = np.zeros_like(u)
    for x, y, radius in rng.uniform((-1, -1, 0.08), (1, 1, 0.2), (34, 3)):
        distance = np.hypot(u - np.float32(x), v - np.float32(y)) / np.float32(radius)
        depth = np.maximum(depth, 3 - 3 * distance)
    return unit(depth)


def _rings(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    return wave(np.hypot(u, v) * rng.uniform(16, 19) + rng.uniform(0, 6), 1.5)


def _veins(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    side = 3 * np.sin((u - 0.7 * np.abs(v)) * rng.uniform(17, 21)) - 1.7
    return unit(np.maximum(side, 2.2 - np.abs(v) / 0.03))


def _cap(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    half = rng.uniform(0.2, 0.3)
    bent = np.abs(v + rng.uniform(-0.25, 0.25) * (1 - u * u))
    return unit((half - bent) * 20)


def _checks(rng: np.random.Generator, u: Float32, v: Float32) -> Float32:
    step = rng.uniform(8, 10)
    inner = np.maximum(np.abs(u), np.abs(v)) < 0.62
    return unit(0.5 + 4 * np.sin(step * u) * np.sin(step * v)) * inner


KINDS = (
    Kind("stick", (0.17, 0.28), _stick, (35, 55), (0.21, 0.31), _bands, 28, (10, 0.45, 1.5), 0.06),
    Kind("ring", (0.34, 0.46), _ring, (0, 180), (0.16, 0.24), _sectors, 355, (0, 0.12, 1.25), 0.10),
    Kind("cross", (0.34, 0.46), _cross, (-12, 12), (0.17, 0.25), _weave, 290, (15, 0.9, 0.55), 0.07),
    Kind("crescent", (0.40, 0.52), _crescent, (0, 360), (0.17, 0.25), _craters, 48, (-12, 1.0, 0.6), 0.14),
    Kind("star", (0.47, 0.59), _star, (-18, 18), (0.18, 0.26), _rings, 325, (25, 0.6, 1.2), 0.12),
    Kind("leaf", (0.54, 0.68), _leaf, (20, 70), (0.19, 0.27), _veins, 105, (-35, 0.7, 1.35), 0.10),
    Kind("ball", (0.70, 0.80), _ball, (0, 360), (0.14, 0.22), _cap, 220, (0, 0.15, 1.3), 0.45),
    Kind("tile", (0.85, 0.96), _tile, (-4, 4), (0.17, 0.26), _checks, 178, (-8, 0.5, 1.35), 0.05),
)
CLASSES = Classes(tuple(kind.name for kind in KINDS))
