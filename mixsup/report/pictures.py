"""Pictures of the report: small, and as data addresses, so that the page needs nothing beside it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from mixsup.data.palette import COLOURS, overlay
from mixsup.data.sample import VOID, Boxes, Float32, UInt8

SIDE = 240  # pixels, the longer side of a picture on the page


@dataclass(frozen=True)
class Row:
    """One image in the report.

    Attributes:
        name: id of the sample.
        part: "validation" or "training".
        label: the kind of label it has, or would have under the run's budget.
        tags: class names, when tags are the label.
        score: mean IoU (0 to 1) over the image's classes, None without a true mask.
        classes: ids of the classes in truth or prediction.
        given, first, predicted, truth: data addresses of pictures; "" where there is none.
    """

    name: str
    part: str
    label: str
    tags: tuple[str, ...]
    score: float | None
    classes: tuple[int, ...]
    given: str
    first: str
    predicted: str
    truth: str


def photo(image: UInt8) -> str:
    """A JPEG of an H×W×3 picture."""
    return _address(Image.fromarray(_shrink(image, cv2.INTER_AREA)), "JPEG", quality=82)


def mask_picture(image: UInt8, ids: UInt8) -> str:
    """The image with a mask laid thinly over it; both H×W, void left as it is."""
    small, shown = _shrink(image, cv2.INTER_AREA), _shrink(ids, cv2.INTER_NEAREST)
    return _address(Image.fromarray(overlay(small, np.where(shown == VOID, 0, shown).astype(np.uint8), opacity=0.4)), "JPEG", quality=85)


def map_picture(ids: UInt8, image: UInt8) -> str:
    """Class colours over a faint image; H×W class ids, void hatched light."""
    small, under = _shrink(ids, cv2.INTER_NEAREST), _shrink(image, cv2.INTER_AREA)
    faint = (under * 0.35 + 160).astype(np.uint8)
    picture = overlay(faint, np.where(small == VOID, 0, small).astype(np.uint8), opacity=0.8)
    rows, columns = np.indices(small.shape)
    picture[(small == VOID) & ((rows + columns) % 6 < 3)] = (70, 70, 70)
    return _address(Image.fromarray(picture), "JPEG", quality=85)


def boxes_picture(image: UInt8, boxes: Boxes) -> str:
    """The image with its boxes in their class's colours; crowds dashed in grey."""
    small = _shrink(image, cv2.INTER_AREA).copy()
    scale = np.tile([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]], 2)  # a thin picture is not shrunk alike both ways
    for (x0, y0, x1, y1), class_id, crowd in zip(boxes.xyxy * scale, boxes.classes, boxes.crowd, strict=True):
        colour = (128, 128, 128) if crowd else tuple(int(value) for value in COLOURS[class_id])
        corner, far = (round(float(x0)), round(float(y0))), (round(float(x1)) - 1, round(float(y1)) - 1)
        cv2.rectangle(small, corner, far, (255, 255, 255), 3)
        cv2.rectangle(small, corner, far, colour, 2)
    return _address(Image.fromarray(small), "JPEG", quality=85)


def heat_picture(values: Float32, image: UInt8) -> str:
    """A map of values 0..1 over the image: what is 1 is seen, what is 0 is covered in dark blue. The map may be of another size than the H×W×3 image."""
    small = _shrink(image, cv2.INTER_AREA)
    weight = cv2.resize(values, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_LINEAR)[..., None]
    return _address(Image.fromarray((small * weight + np.array([18, 24, 60]) * (1 - weight)).astype(np.uint8)), "JPEG", quality=85)


def _shrink(picture: UInt8, how: int) -> UInt8:
    factor = SIDE / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor))
    return np.asarray(cv2.resize(picture, size, interpolation=how), np.uint8)


def _address(image: Image.Image, kind: str, quality: int) -> str:
    stream = io.BytesIO()
    image.save(stream, format=kind, quality=quality)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode("ascii")
