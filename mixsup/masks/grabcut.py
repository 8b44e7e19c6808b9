"""`grabcut`: one GrabCut a box (Rother 2004; BoxSup, figure 2d), by OpenCV.

BoxSup names no settings. Here a cut sees its box and `context` sides of it around, at `max_side` pixels at most: a small box in a large photograph
keeps its detail, and the time a box takes is bounded. docs/results.md has the score and time against cuts that see the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass as plain
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Bool, Boxes, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.source import STRICT, MaskSource

_SMALLEST = 4  # pixels; below, five colour components a side have nothing to fit to


@dataclass(frozen=True, config=STRICT)
class GrabCut(MaskSource):
    """GrabCut from a rectangle.

    Attributes:
        iterations: of colour model and cut.
        context: how much of the surroundings is seen, in box sides on each side of the box.
        max_side: the longer side of the window is reduced to this many pixels.
        least: a cut that keeps less than this share of its box has collapsed; the box stays a rectangle.
    """

    iterations: Annotated[int, Field(ge=1)] = 3
    context: Annotated[float, Field(ge=0)] = 2.0
    max_side: Annotated[int, Field(ge=16)] = 512
    least: Annotated[float, Field(ge=0, le=1)] = 0.05
    name: ClassVar[str] = "grabcut"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        windows = boxes.windows(size)
        masks = [
            np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8) if crowd else self._cut(image, (int(x0), int(y0), int(x1), int(y1)))
            for (x0, y0, x1, y1), crowd in zip(windows, boxes.crowd, strict=True)
        ]
        return BoxMasks.of(boxes, size, masks)

    def _cut(self, image: UInt8, box: tuple[int, int, int, int]) -> UInt8:
        rectangle = np.full((box[3] - box[1], box[2] - box[0]), FOREGROUND, np.uint8)
        view = View.of(image, box, self.context, self.max_side)
        found = cut(view.image, view.inner, self.iterations) if view is not None else None
        if view is None or found is None:
            return rectangle
        mask = view.back(found.astype(np.uint8), cv2.INTER_NEAREST)
        return mask if mask.any() and mask.mean() >= self.least else rectangle


@plain(frozen=True)
class View:
    """A box and some of its surroundings, reduced where they are large.

    Attributes:
        image: h×w×3 uint8 BGR.
        inner: x0, y0, x1, y1 of the box in it.
        seen: height and width of the same part of the whole image.
        window: x0, y0, x1, y1 of the box in that part.
    """

    image: UInt8
    inner: tuple[int, int, int, int]
    seen: tuple[int, int]
    window: tuple[int, int, int, int]

    @staticmethod
    def of(image: UInt8, box: tuple[int, int, int, int], context: float, max_side: int) -> View | None:
        """`context` box sides of `image` on each side of `box`, at most `max_side` pixels long; None for a box too small to cut."""
        x0, y0, x1, y1 = box
        height, width = y1 - y0, x1 - x0
        if min(height, width) < _SMALLEST:
            return None
        grow_x, grow_y = int(np.ceil(context * width)), int(np.ceil(context * height))
        left, top = max(0, x0 - grow_x), max(0, y0 - grow_y)
        right, bottom = min(image.shape[1], x1 + grow_x), min(image.shape[0], y1 + grow_y)
        seen = image[top:bottom, left:right]
        scale = min(1.0, max_side / max(seen.shape[:2]))
        size = max(1, round(seen.shape[1] * scale)), max(1, round(seen.shape[0] * scale))
        small = cv2.resize(seen, size, interpolation=cv2.INTER_AREA) if scale < 1 else seen
        inner = round((x0 - left) * scale), round((y0 - top) * scale), round((x1 - left) * scale), round((y1 - top) * scale)
        window = x0 - left, y0 - top, x1 - left, y1 - top
        return View(np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), np.uint8), inner, (seen.shape[0], seen.shape[1]), window)

    def back(self, values: Any, interpolation: int) -> Any:
        """Values of the view (h×w) at the size of the whole image, inside the box."""
        if values.shape[:2] != self.seen:
            values = cv2.resize(values, (self.seen[1], self.seen[0]), interpolation=interpolation)
        x0, y0, x1, y1 = self.window
        return np.ascontiguousarray(values[y0:y1, x0:x1])


def cut(image: UInt8, inner: tuple[int, int, int, int], iterations: int, seed: int = 0) -> Bool | None:
    """One GrabCut: outside of `inner` is background, inside is to be found.

    Args:
        image: h×w×3 uint8 BGR.
        inner: x0, y0, x1, y1 in it.
        iterations: of colour model and cut.
        seed: of the colour clusters' random start.

    Returns:
        h×w foreground, or None where too few pixels are inside or outside to fit five colours to.
    """
    rows, columns = image.shape[:2]
    x0, y0, x1, y1 = inner
    if (x0, y0, x1, y1) == (0, 0, columns, rows):
        # The box is the whole picture: without a rim there would be no background to learn from.
        rim = max(1, round(0.02 * min(rows, columns)))
        x0, y0, x1, y1 = rim, rim, columns - rim, rows - rim
    labels = np.full((rows, columns), cv2.GC_BGD, np.uint8)
    labels[y0:y1, x0:x1] = cv2.GC_PR_FGD
    if min(x1 - x0, y1 - y0) < _SMALLEST or (labels == cv2.GC_BGD).sum() < 5:
        return None
    cv2.setRNGSeed(seed)  # the same box must give the same mask
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, labels, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
