"""What is in a data set: the numbers behind `mixsup inspect`."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from mixsup.data.derive import load_mask
from mixsup.data.sample import BACKGROUND, KINDS, VOID, Boxes, Dataset, MaskFile, MaskSegments, Sample, quoted
from mixsup.errors import DataError
from mixsup.progress import track

SMALL = 32.0 * 32.0  # square pixels; COCO calls a smaller object small
ROWS = 256  # of the cells between the edges of boxes that are in memory at once
OVERLAP = 0.1  # IoU from which two boxes of different classes count as overlapping


@dataclasses.dataclass(frozen=True)
class ClassSummary:
    """One object class.

    Attributes:
        name: of the class, as the data set gives it (untrusted text).
        images: images whose tags, boxes or outlines show it; those of mask files count when pixels were asked for.
        boxes: boxes of it, crowds left out.
        median_side: of these boxes, the median of sqrt(width * height) in pixels; None without boxes.
        small: share (0 to 1) of these boxes below 32 * 32 square pixels; None without boxes.
        tags: images that are tagged with it.
        pixels: pixels of it in all masks; None unless asked for.
    """

    name: str
    images: int
    boxes: int
    median_side: float | None
    small: float | None
    tags: int
    pixels: int | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """A data set in numbers.

    Attributes:
        source: what the user typed.
        images: number of usable images.
        problems: number of faults that the reader found.
        can_give: by label kind, how many images can give it (an image with a mask can give boxes and tags too).
        strongest: by label kind, how many images have it as their strongest.
        unlabelled: ids of images that can give nothing.
        empty: images whose labels show no object, so that they teach background alone; those of mask files count when pixels were asked for.
        classes: the object classes in the order of their ids.
        crowds: crowd boxes.
        overlapping_pairs: pairs of boxes of different classes in one image with an IoU above 0.1; crowds left out.
        covered: share (0 to 1) of all box area that a box of another class covers too; None without boxes.
        smallest, median, largest: image sizes (height, width); smallest and largest by pixels, the median of each side; None if empty.
        background_pixels, void_pixels: in all masks; None unless asked for.
        notes: of the reader, on how it took the labels.
        broken_masks: ids of images whose mask could not be decoded; empty unless pixels were asked for.
    """

    source: str
    images: int
    problems: int
    can_give: dict[str, int]
    strongest: dict[str, int]
    unlabelled: tuple[str, ...]
    empty: int
    classes: tuple[ClassSummary, ...]
    crowds: int
    overlapping_pairs: int
    covered: float | None
    smallest: tuple[int, int] | None
    median: tuple[float, float] | None
    largest: tuple[int, int] | None
    background_pixels: int | None = None
    void_pixels: int | None = None
    notes: tuple[str, ...] = ()
    broken_masks: tuple[str, ...] = ()


def summarise(dataset: Dataset, *, pixels: bool = False) -> Summary:
    """Counts what a data set holds.

    Args:
        dataset: as it was read; no file is opened unless `pixels`.
        pixels: decode every mask and count its pixels.
    """
    num_classes = len(dataset.classes)
    images: Counter[int] = Counter()
    tagged: Counter[int] = Counter()
    areas: dict[int, list[float]] = defaultdict(list)
    histogram = np.zeros(256, np.int64)
    broken: list[str] = []
    crowds = pairs = empty = 0
    covered = total = 0.0
    samples = track(dataset.samples, "counting pixels", len(dataset.samples)) if pixels else dataset.samples
    for sample in samples:
        shown = _shown(sample)
        looked = sample.tags is not None or sample.boxes is not None or isinstance(sample.mask, MaskSegments)
        tagged.update(sample.tags or ())
        if sample.boxes is not None:
            certain = ~sample.boxes.crowd
            crowds += int(sample.boxes.crowd.sum())
            for class_id, area in zip(sample.boxes.classes[certain], _areas(sample.boxes)[certain], strict=True):
                areas[int(class_id)].append(float(area))
            found = _overlaps(sample.boxes)
            pairs, covered, total = pairs + found[0], covered + found[1], total + found[2]
        if pixels and sample.mask is not None:
            try:
                counts = np.bincount(load_mask(sample, num_classes).ravel(), minlength=256)
            except DataError:
                broken.append(sample.id)
            else:
                histogram += counts
                shown |= {int(class_id) for class_id in np.flatnonzero(counts)} - {BACKGROUND, VOID}
                looked |= bool(counts[BACKGROUND])
        empty += looked and not shown and not (sample.boxes is not None and len(sample.boxes))  # a crowd is no background
        images.update(shown)

    sizes = sorted((sample.size for sample in dataset.samples), key=lambda size: (size[0] * size[1], size))
    middle = np.median(np.array(sizes, np.float64), axis=0) if sizes else None
    strongest = Counter(sample.kinds()[0] for sample in dataset.samples if sample.kinds())
    return Summary(
        source=dataset.source,
        images=len(dataset.samples),
        problems=len(dataset.problems),
        can_give={kind: sum(kind in sample.kinds() for sample in dataset.samples) for kind in KINDS},
        strongest={kind: strongest[kind] for kind in KINDS},
        unlabelled=tuple(sample.id for sample in dataset.samples if not sample.kinds()),
        empty=empty,
        classes=tuple(
            ClassSummary(
                name=name,
                images=images[class_id],
                boxes=len(areas[class_id]),
                median_side=float(np.median(np.sqrt(areas[class_id]))) if areas[class_id] else None,
                small=float(np.mean(np.array(areas[class_id]) < SMALL)) if areas[class_id] else None,
                tags=tagged[class_id],
                pixels=int(histogram[class_id]) if pixels else None,
            )
            for class_id, name in enumerate(dataset.classes.names, 1)
        ),
        crowds=crowds,
        overlapping_pairs=pairs,
        covered=covered / total if total else None,
        smallest=sizes[0] if sizes else None,
        median=(float(middle[0]), float(middle[1])) if middle is not None else None,
        largest=sizes[-1] if sizes else None,
        background_pixels=int(histogram[BACKGROUND]) if pixels else None,
        void_pixels=int(histogram[VOID]) if pixels else None,
        notes=(*dataset.notes, *(_one_too_low(dataset, histogram) if pixels else ())),
        broken_masks=tuple(broken),
    )


def _one_too_low(dataset: Dataset, histogram: npt.NDArray[np.int64]) -> list[str]:
    """Whether mask files seem to begin with the first class where mixsup has the background: all ids are there but the last."""
    names = dataset.classes.names
    present = np.flatnonzero(histogram[: len(names) + 1])
    ours = any(isinstance(sample.mask, MaskFile) and sample.mask.ids is None for sample in dataset.samples)
    if not ours or len(names) < 2 or present.tolist() != list(range(len(names))):
        return []
    return [
        f"no mask shows {quoted(names[-1])}, the last class: if the ids count from 0 and that is {quoted(names[0])}, "
        "say so by `ids` in a YAML file (docs/data.md)"
    ]


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain dictionaries, lists and numbers, ready for `json.dumps`. Sizes are [height, width]."""
    data = dataclasses.asdict(summary)
    for key in ("unlabelled", "classes", "notes", "broken_masks", "smallest", "median", "largest"):
        data[key] = list(data[key]) if data[key] is not None else None
    return data


def _shown(sample: Sample) -> set[int]:
    """Class ids that the labels in memory show."""
    shown = set(sample.tags or ())
    if sample.boxes is not None:
        shown |= {int(class_id) for class_id in sample.boxes.classes[~sample.boxes.crowd]}
    if isinstance(sample.mask, MaskSegments):
        shown |= {segment.class_id for segment in sample.mask.segments if not segment.crowd}
    return shown


def _areas(boxes: Boxes) -> npt.NDArray[np.float64]:
    """Areas of N boxes, N float64 in square pixels."""
    xyxy = boxes.xyxy.astype(np.float64)
    areas: npt.NDArray[np.float64] = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    return areas


def _overlaps(boxes: Boxes) -> tuple[int, float, float]:
    """Overlapping pairs of different classes, area that boxes of another class cover, and area of all boxes; crowds left out."""
    certain = ~boxes.crowd
    xyxy, classes, areas = boxes.xyxy[certain].astype(np.float64), boxes.classes[certain], _areas(boxes)[certain]
    if not len(classes):
        return 0, 0.0, 0.0
    pairs = 0
    for index in range(len(classes) - 1):  # a row at a time: a table of all pairs of some thousand boxes is gigabytes
        rest = xyxy[index + 1 :]
        sides = np.minimum(xyxy[index, 2:], rest[:, 2:]) - np.maximum(xyxy[index, :2], rest[:, :2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        iou = shared / (areas[index] + areas[index + 1 :] - shared)
        pairs += int(((iou > OVERLAP) & (classes[index + 1 :] != classes[index])).sum())

    # All edges cut the image into cells that lie wholly inside or outside of each box: the union of many boxes without a pixel.
    xs, ys = np.unique(xyxy[:, ::2]), np.unique(xyxy[:, 1::2])
    columns, rows = np.searchsorted(xs, xyxy[:, ::2]), np.searchsorted(ys, xyxy[:, 1::2])
    covered = 0.0
    for top in range(0, len(ys) - 1, ROWS):
        cells = np.diff(ys[top : top + ROWS + 1])[:, None] * np.diff(xs)
        count = np.zeros(cells.shape, np.int32)  # boxes over each cell, and the lowest and highest of their classes
        lowest, highest = np.full(cells.shape, VOID, np.uint8), np.zeros(cells.shape, np.uint8)
        here = (rows[:, 0] < top + len(cells)) & (rows[:, 1] > top)
        for class_id, (y0, y1), (x0, x1) in zip(classes[here], np.clip(rows[here] - top, 0, len(cells)), columns[here], strict=True):
            span = slice(y0, y1), slice(x0, x1)
            count[span] += 1
            np.minimum(lowest[span], class_id, out=lowest[span], casting="unsafe")
            np.maximum(highest[span], class_id, out=highest[span], casting="unsafe")
        covered += float((cells * count)[lowest < highest].sum())
    return pairs, covered, float(areas.sum())
