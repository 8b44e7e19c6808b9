"""One mask per box, and the one function that makes a training target of them.

For boxes this is the common currency of all mask sources and all refresh rules: filling rates, candidate scores and ambiguity can be read from
per-box masks and no longer from a finished label map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixsup.data.sample import BACKGROUND, VOID, Bool, Boxes, Int64, UInt8

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


@dataclass(frozen=True)
class SharedTarget:
    """A target in which classes may share a pixel.

    Attributes:
        labels: H×W uint8 class ids, 255 where the pixel is void or shared.
        claims: H×W uint8, the number of the set of classes that share the pixel, 255 where nobody shares it.
        sets: by number, ascending class ids, two or more each.
    """

    labels: UInt8
    claims: UInt8
    sets: tuple[tuple[int, ...], ...]


def compose_shared(boxes: BoxMasks, uncertain: bool = True) -> SharedTarget:
    """The soft target (diverse-supervision paper, section 3.2): a pixel belongs to every class that claims it.

    A class claims the foreground of its boxes. Where another class has foreground, it claims with `uncertain` also what its own boxes are uncertain of
    ("s_i,c ... including uncertain regions"). A pixel of which somebody is uncertain and nobody sure is void, as is a crowd that no object claims;
    one that no box names is background.

    Args:
        boxes: per-box masks.
        uncertain: whether uncertain pixels claim.
    """
    labels = np.full(boxes.size, BACKGROUND, np.uint8)
    classes = sorted({int(class_id) for class_id in boxes.classes[~boxes.crowd]})
    planes = (len(classes) + 63) // 64  # one bit a class
    sure, doubtful = np.zeros((2, planes, *boxes.size), np.uint64)
    for index in boxes.order():
        x0, y0, x1, y1 = boxes.windows[index]
        mask, below = boxes.masks[index], labels[y0:y1, x0:x1]
        if boxes.crowd[index]:
            below[mask != 0] = VOID
            continue
        plane, bit = divmod(classes.index(int(boxes.classes[index])), 64)
        below[(mask == IGNORE) & (below == BACKGROUND)] = VOID
        below[mask == FOREGROUND] = boxes.classes[index]
        sure[plane, y0:y1, x0:x1][mask == FOREGROUND] |= np.uint64(1 << bit)
        doubtful[plane, y0:y1, x0:x1][mask == IGNORE] |= np.uint64(1 << bit)
    if uncertain:
        sure |= np.where(sure.any(axis=0), doubtful, np.uint64(0))
    several = (sure & (sure - np.uint64(1)) * (sure > 0)).any(axis=0) | ((sure > 0).sum(axis=0) > 1)
    claims = np.full(boxes.size, VOID, np.uint8)
    words = sure[:, several]
    numbers = np.zeros(words.shape[1], np.int64)
    for word in words:  # plane by plane, for NumPy sorts rows a hundred times as slowly as numbers
        values, places = np.unique(word, return_inverse=True)
        numbers = np.unique(numbers * len(values) + places.ravel(), return_inverse=True)[1].ravel()
    rows = words[:, np.unique(numbers, return_index=True)[1]].T
    claims[several] = np.minimum(numbers, VOID)  # sets beyond 255 in one image are nobody's: their pixels are void
    labels[several] = VOID
    sets = tuple(
        tuple(class_id for place, class_id in enumerate(classes) if int(row[place // 64]) >> place % 64 & 1) for row in rows[:VOID]
    )
    return SharedTarget(labels, claims, sets)
