"""`rectangle`: every pixel of a box belongs to its class (BoxSup, figure 2c; WSSL's Bbox-Rect; Simple Does It's Box and Box^i)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.masks.source import STRICT, MaskSource


@dataclass(frozen=True, config=STRICT)
class Rectangle(MaskSource):
    """Filled boxes.

    Attributes:
        inner: the share of the box's area, in the middle and of its shape, that is foreground; the rest of the box is ignored (Simple Does It's
            Box^i: 0.2). A crowd stays whole.
    """

    inner: Annotated[float, Field(gt=0, le=1)] = 1.0
    name: ClassVar[str] = "rectangle"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        sides = [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in boxes.windows(size)]
        return BoxMasks.of(
            boxes, size, [inner_box(side, 1.0 if crowd else self.inner) for side, crowd in zip(sides, boxes.crowd, strict=True)]
        )

    def settings(self) -> dict[str, Any]:
        return {} if self.inner == 1 else super().settings()  # filled boxes keep the place in the cache that they had without the setting


def inner_box(size: tuple[int, int], share: float) -> UInt8:
    """A mask of (h, w): foreground in the middle, where a rectangle of the same shape covers `share` of the area (at least one pixel), else ignored."""
    mask = np.full(size, IGNORE, np.uint8)
    height, width = (max(1, round(side * share**0.5)) for side in size)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    mask[top : top + height, left : left + width] = FOREGROUND
    return mask
