"""One mask per box, and the one function that makes a training target of them.

For boxes this is the common currency of all mask sources and all refresh rules: filling rates, candidate scores and ambiguity can be read from
per-box masks and no longer from a finished label map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixsup.data.sample import BACKGROUND, VOID, Bool, Boxes, Float32, Int64, UInt8

FOREGROUND = 1
IGNORE = 255


@dataclass(frozen=True)
class BoxMasks:
    """The masks of the boxes of one image.

    Attributes:
        size: (H, W) of the image.
        windows: N×4 int64, x0, y0, x1, y1: where each mask lies, in whole pixels of the upright image.
        classes: N int64, class ids from 1.
        crowd: N bool; a crowd's mask is void wherever no object claims the pixel.
        masks: N uint8 arrays of the windows' heights and widths: 0 background, 1 foreground, 255 ignore.
    """

    size: tuple[int, int]
    windows: Int64
    classes: Int64
    crowd: Bool
    masks: tuple[UInt8, ...]

    def __post_init__(self) -> None:
        for window, mask in zip(self.windows, self.masks, strict=True):
            x0, y0, x1, y1 = window
            if mask.shape != (y1 - y0, x1 - x0):
                raise ValueError(f"mask of {mask.shape} in a window of {(y1 - y0, x1 - x0)}")

    def __len__(self) -> int:
        return len(self.masks)

    @staticmethod
    def of(boxes: Boxes, size: tuple[int, int], masks: list[UInt8]) -> BoxMasks:
        """Masks that fill the windows of `boxes`, one each."""
        return BoxMasks(size, boxes.windows(size), boxes.classes, boxes.crowd, tuple(masks))

    def order(self) -> Int64:
        """Painting order: crowds, then boxes from the largest to the smallest; equal ones in the order of the file."""
        sides = self.windows[:, 2:] - self.windows[:, :2]
        return np.lexsort((np.arange(len(self)), -sides.prod(axis=1), ~self.crowd))


def compose(boxes: BoxMasks) -> UInt8:
    """The hard target: smaller boxes on top.

    A pixel that a box ignores is void even above a larger object (it may belong to either); one that it calls background shows what
    lies below. What no box claims is background.

    Returns:
        H×W uint8 class ids, 255 void.
    """
    target = np.full(boxes.size, BACKGROUND, np.uint8)
    for index in boxes.order():
        x0, y0, x1, y1 = boxes.windows[index]
        mask, below = boxes.masks[index], target[y0:y1, x0:x1]
        if boxes.crowd[index]:
            below[mask != 0] = VOID
        else:
            below[mask == FOREGROUND] = boxes.classes[index]
            below[mask == IGNORE] = VOID
    return target


def compose_soft(boxes: BoxMasks, num_classes: int) -> Float32:
    """The soft target (diverse-supervision paper, eq. 3): a pixel claimed by K classes belongs to each of them with 1/K.

    A pixel that some box ignores and none claims is void (all zeros); one that no box names at all is background.

    Returns:
        C×H×W float32; each pixel's values sum to 1, or to 0 where it is void.
    """
    claimed = np.zeros((num_classes, *boxes.size), np.float32)
    ignored = np.zeros(boxes.size, bool)
    for index in boxes.order():
        x0, y0, x1, y1 = boxes.windows[index]
        mask = boxes.masks[index]
        if boxes.crowd[index]:
            ignored[y0:y1, x0:x1] |= mask != 0
        else:
            claimed[boxes.classes[index], y0:y1, x0:x1][mask == FOREGROUND] = 1
            ignored[y0:y1, x0:x1] |= mask == IGNORE
    count = claimed.sum(axis=0)
    claimed[BACKGROUND] = (count == 0) & ~ignored
    return np.asarray(claimed / np.maximum(count, 1), np.float32)
