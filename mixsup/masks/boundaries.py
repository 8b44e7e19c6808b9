"""Boundary strength without learning: at every pixel and in eight directions, how much do colour (Lab) and texture (band energies) differ between the
two sides, in windows of three sizes? The sum over sizes is what makes a fold in a dress weaker than the dress's outline: the small window alone sees the
fold, all of them see the outline.
"""

from __future__ import annotations

import cv2
import numpy as np

from mixsup.data.sample import Float32, Int64, UInt8
from mixsup.masks.compiled import compiled

_RADII = (1, 3, 7)  # pixels, of the windows that are compared
_DIRECTIONS = 8
_HALF_COLOUR = 20.0  # Lab units at which a difference of colour counts half
HALF_TEXTURE = 0.6  # log energy at which a difference of texture counts half
_TEXTURE = 0.25  # weight of texture beside colour; the smallest window is too small to have a texture
CHROMA = 1.5  # a and b against L: shading changes L most, objects differ in all three


def boundary_strength(image: UInt8) -> Float32:
    """Boundary strength of an H×W×3 uint8 RGB image at its own size: H×W float32, 0 to 1."""
    return strength(*channels(image))


def channels(image: UInt8) -> tuple[Float32, Float32]:
    """Lab with a and b stretched (H×W×3), and log energies of four directions and three bands of L (H×W×7)."""
    lab = np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    light = np.ascontiguousarray(lab[..., 0])
    one, two, four = (cv2.GaussianBlur(light, (0, 0), sigma) for sigma in (1.0, 2.0, 4.0))
    across, down = cv2.Scharr(one, cv2.CV_32F, 1, 0, scale=1 / 32), cv2.Scharr(one, cv2.CV_32F, 0, 1, scale=1 / 32)
    bands = [across, down, (across + down) * np.float32(0.5**0.5), (across - down) * np.float32(0.5**0.5)]
    bands += [light - one, one - two, two - four]
    scaled = lab * np.array([1, CHROMA, CHROMA], np.float32)
    return np.asarray(scaled, np.float32), np.asarray(np.log1p(np.abs(np.dstack(bands))), np.float32)


def strength(lab: Float32, texture: Float32) -> Float32:
    """H×W float32, 0 to 1, of what `channels` gives."""
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    total = np.zeros((*lab.shape[:2], _DIRECTIONS), np.float32)
    for radius in _RADII:
        offsets = np.stack([np.rint(radius * np.sin(angles)), np.rint(radius * np.cos(angles))], axis=1).astype(np.int64)
        textured = radius > 1
        smooth = np.asarray(cv2.GaussianBlur(texture, (0, 0), radius), np.float32) if textured else texture
        _differences(
            np.asarray(cv2.GaussianBlur(lab, (0, 0), 0.6 * radius), np.float32),
            smooth,
            offsets,
            np.float32(_TEXTURE if textured else 0),
            total,
        )
    return np.asarray(total.max(axis=2) / (len(_RADII) * (1 + _TEXTURE)), np.float32)


@compiled
def _differences(colour: Float32, texture: Float32, offsets: Int64, weight: np.float32, total: Float32) -> None:
    """Adds to `total` how much the windows at +offset and -offset of each pixel differ, saturating."""
    height, width, channels = colour.shape
    half_colour, half_texture = np.float32(_HALF_COLOUR), np.float32(HALF_TEXTURE)
    for y in range(height):
        for x in range(width):
            for direction in range(offsets.shape[0]):
                dy, dx = offsets[direction]
                y0, y1 = min(max(y - dy, 0), height - 1), min(max(y + dy, 0), height - 1)
                x0, x1 = min(max(x - dx, 0), width - 1), min(max(x + dx, 0), width - 1)
                square = np.float32(0)
                for channel in range(channels):
                    step = colour[y0, x0, channel] - colour[y1, x1, channel]
                    square += step * step
                root = np.sqrt(square)
                found = root / (root + half_colour)
                if weight > 0:
                    square = np.float32(0)
                    for channel in range(texture.shape[2]):
                        step = texture[y0, x0, channel] - texture[y1, x1, channel]
                        square += step * step
                    root = np.sqrt(square)
                    found += weight * root / (root + half_texture)
                total[y, x, direction] += found
