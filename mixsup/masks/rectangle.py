"""`rectangle`: every pixel of a box belongs to its class (BoxSup, figure 2c; WSSL's Bbox-Rect)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.source import STRICT, MaskSource


@dataclass(frozen=True, config=STRICT)
class Rectangle(MaskSource):
    """Filled boxes. It has no settings."""

    name: ClassVar[str] = "rectangle"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        return BoxMasks.of(boxes, size, [np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8) for x0, y0, x1, y1 in boxes.windows(size)])
