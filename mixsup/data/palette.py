"""Colours of class ids: the colour map of the VOC development kit, so that other tools show the same picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mixsup.data.sample import UInt8


def voc_colours() -> UInt8:
    """256×3 uint8: the bits of the id are dealt to red, green and blue, highest first."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for shift in range(8):
        for channel in range(3):
            colours[:, channel] |= (((ids >> (3 * shift + channel)) & 1) << (7 - shift)).astype(np.uint8)
    return colours


COLOURS = voc_colours()


def palette_png(mask: UInt8) -> bytes:
    """A palette PNG of an H×W uint8 mask: pixel values are class ids, colours are VOC's."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    image.putpalette(COLOURS.tobytes())
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def overlay(image: UInt8, mask: UInt8, opacity: float = 0.55) -> UInt8:
    """An H×W×3 uint8 picture: class colours over the image, background left as it is, outlines drawn full."""
    import cv2

    coloured = COLOURS[mask]
    shown = (mask != 0)[..., None]
    mixed = np.where(shown, image * (1 - opacity) + coloured * opacity, image).astype(np.uint8)
    edges = cv2.dilate(mask, np.ones((3, 3), np.uint8)) != cv2.erode(mask, np.ones((3, 3), np.uint8))
    mixed[edges] = (coloured[edges] * 0.5 + 127).astype(np.uint8)
    return mixed
