"""`grabcut`: one GrabCut a box (Rother 2004; BoxSup, figure 2d), by OpenCV.

BoxSup names no settings. Here a cut sees its box and `context` sides of it around, at `max_side` pixels at most: a small box in a large photograph
keeps its detail, and the time a box takes is bounded. docs/results.md has the score and time against cuts that see the whole image.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Sample, UInt8
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
        x0, y0, x1, y1 = box
        height, width = y1 - y0, x1 - x0
        rectangle = np.full((height, width), FOREGROUND, np.uint8)
        if min(height, width) < _SMALLEST:
            return rectangle
        grow_x, grow_y = int(np.ceil(self.context * width)), int(np.ceil(self.context * height))
        left, top = max(0, x0 - grow_x), max(0, y0 - grow_y)
        right, bottom = min(image.shape[1], x1 + grow_x), min(image.shape[0], y1 + grow_y)
        seen = image[top:bottom, left:right]
        scale = min(1.0, self.max_side / max(seen.shape[:2]))
        small = cv2.resize(seen, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else seen
        rows, columns = small.shape[:2]
        inner = [round((x0 - left) * scale), round((y0 - top) * scale), round((x1 - left) * scale), round((y1 - top) * scale)]
        if inner == [0, 0, columns, rows]:
            # The box is the whole picture: without a rim there would be no background to learn from.
            rim = max(1, round(0.02 * min(rows, columns)))
            inner = [rim, rim, columns - rim, rows - rim]
        labels = np.full((rows, columns), cv2.GC_BGD, np.uint8)
        labels[inner[1] : inner[3], inner[0] : inner[2]] = cv2.GC_PR_FGD
        if min(inner[2] - inner[0], inner[3] - inner[1]) < _SMALLEST or (labels == cv2.GC_BGD).sum() < 5:
            return rectangle
        cv2.setRNGSeed(0)  # the colour clusters start at random points; the same box must give the same mask
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), labels, (0, 0, 1, 1), *models, self.iterations, cv2.GC_INIT_WITH_MASK)
        found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
        if scale < 1:
            found = cv2.resize(found, (seen.shape[1], seen.shape[0]), interpolation=cv2.INTER_NEAREST)
        mask = np.ascontiguousarray(found[y0 - top : y1 - top, x0 - left : x1 - left], np.uint8)
        return mask if mask.mean() >= self.least else rectangle
