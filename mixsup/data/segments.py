"""Outlines to pixels: polygons and run-length codes, painted safely.

pycocotools fills polygons. Run-length codes are decoded here: its C code trusts the counts of the file and writes past its buffer when
they lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from mixsup.data.sample import BACKGROUND, VOID, Bool, Float32, MaskSegments, Segment, UInt8
from mixsup.errors import MixsupError


def slack(side: int) -> float:
    """How far labels may reach past an image's side, in pixels: annotation tools round. 2 pixels or 0.5 % of the side."""
    return max(2.0, 0.005 * side)


def rle_counts(code: str | Sequence[int]) -> list[int]:
    """Run lengths of a COCO code: a list as it is, a string from its compressed form (5 bits a character, every count
    from the third on as the difference from the one before the last).

    Raises:
        MixsupError: the code is cut short or holds a character that no code has.
    """
    if not isinstance(code, str):
        return [int(count) for count in code]
    counts: list[int] = []
    value = shift = 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise MixsupError("the run-length code holds a character that no code has")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise MixsupError("the run-length code is cut short")
    return counts


def decode_rle(code: str | Sequence[int], size: tuple[int, int]) -> Bool:
    """H×W bool from a COCO run-length code (columns first, zeros first).

    Raises:
        MixsupError: a run is negative or too long, or the runs do not add up to H·W pixels.
    """
    counts = rle_counts(code)
    height, width = size
    if any(not 0 <= count <= height * width for count in counts):
        raise MixsupError("the run-length code holds a run that is negative or longer than the image")
    if sum(counts) != height * width:
        raise MixsupError(f"the run-length code covers {sum(counts)} pixels, the image has {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    pixels: Bool = np.repeat(values, counts).reshape(width, height).T
    return pixels


def encode_rle(mask: Bool) -> dict[str, object]:
    """A COCO run-length code {"size": [H, W], "counts": str} of an H×W bool mask."""
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def encode_window(mask: Bool, x0: int, y0: int, size: tuple[int, ...]) -> dict[str, object]:
    """The code of an H×W mask (`size`) that is `mask`, h×w bool, from column x0 and row y0 on, and nothing elsewhere; it costs what the window does."""
    height, width = size
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), np.int8)  # column by column, as COCO counts
    padded[:, 1:-1] = mask.T
    change = np.diff(padded, axis=1)
    first, last = ((x0 + columns) * height + y0 + rows for columns, rows in (np.nonzero(change == 1), np.nonzero(change == -1)))
    apart = first[1:] != last[:-1]  # a run that reaches the lowest row goes on in the next column
    edges = np.stack([first[np.append(True, apart)], last[np.append(apart, True)]], axis=1).ravel() if len(first) else first
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    counts = counts[: len(counts) - (len(counts) > 1 and counts[-1] == 0)]
    code = coco_mask.frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width)
    return {"size": [int(height), int(width)], "counts": code["counts"].decode("ascii")}


def polygon_fault(polygon: Sequence[float], size: tuple[int, int]) -> str:
    """What is wrong with a polygon x0, y0, x1, y1, ... in pixels; "" when nothing is."""
    points = np.asarray(polygon, np.float64)
    if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
        return "polygon is not a list of finite x, y pairs"
    if len(points) < 6:
        return f"polygon has {len(points) // 2} points, it needs 3"
    height, width = size
    x, y = points[::2], points[1::2]
    slack_x, slack_y = slack(width), slack(height)
    if x.min() < -slack_x or y.min() < -slack_y or x.max() > width + slack_x or y.max() > height + slack_y:
        return f"polygon reaches out of its image of {width} x {height} pixels"
    return ""


def segment_pixels(segment: Segment, size: tuple[int, int]) -> Bool:
    """H×W bool, the pixels of one object."""
    if segment.rle is not None:
        return decode_rle(segment.rle, size)
    height, width = size
    codes = coco_mask.frPyObjects([np.asarray(polygon, np.float64).tolist() for polygon in segment.polygons], height, width)
    return np.asarray(coco_mask.decode(coco_mask.merge(codes)), bool)


def segment_box(segment: Segment, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The tight box (x0, y0, x1, y1) of one object, or None when it has no pixel."""
    if segment.rle is None:
        points = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segment.polygons])
        height, width = size
        low = np.clip(points.min(axis=0), 0, (width, height))
        high = np.clip(points.max(axis=0), 0, (width, height))
        return (float(low[0]), float(low[1]), float(high[0]), float(high[1])) if (high > low).all() else None
    return tight_box(decode_rle(segment.rle, size))


def is_rectangle(segment: Segment, box: Sequence[float] | Float32, size: tuple[int, int]) -> bool:
    """Whether an outline is its box (x0, y0, x1, y1) drawn as four points, the first of them perhaps once more; tools round by a pixel."""
    if len(segment.polygons) != 1:
        return False
    points = segment.polygons[0].reshape(-1, 2)
    if len(points) == 5 and (points[0] == points[4]).all():
        points = points[:4]
    height, width = size
    x0, y0, x1, y1 = box
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    apart = np.abs(np.clip(points, 0, (width, height))[:, None] - corners).max(axis=2)  # of points and corners
    return len(points) == 4 and bool(apart.min(axis=0).max() <= 1)


def tight_box(pixels: Bool) -> tuple[float, float, float, float] | None:
    """The tight box (x0, y0, x1, y1; edges) of an H×W bool mask, or None when it is empty."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def paint(mask: MaskSegments, size: tuple[int, int]) -> UInt8:
    """H×W uint8 class ids: larger objects first so that smaller ones lie on top; a crowd voids what no object claims."""
    target = np.full(size, BACKGROUND, np.uint8)
    cut = [(segment, *_cut(segment_pixels(segment, size))) for segment in mask.segments]
    for segment, window, pixels in cut:
        if segment.crowd:
            target[window][pixels] = VOID
    for segment, window, pixels in sorted(cut, key=lambda item: -int(item[2].sum())):
        if not segment.crowd:
            target[window][pixels] = segment.class_id
    return target


def _cut(pixels: Bool) -> tuple[tuple[slice, slice], Bool]:
    """The window of an object and its pixels there: a hundred objects of a large picture need not be a hundred pictures in memory."""
    box = tight_box(pixels)
    x0, y0, x1, y1 = (int(edge) for edge in box) if box is not None else (0, 0, 0, 0)
    window = (slice(y0, y1), slice(x0, x1))
    return window, pixels[window].copy()
