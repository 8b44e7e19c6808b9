"""Weaker labels from stronger ones: boxes from masks, tags from boxes."""

from __future__ import annotations

import cv2
import numpy as np

from mixsup.data.image import ImageError, read_mask
from mixsup.data.sample import BACKGROUND, VOID, Boxes, MaskFile, MaskSegments, Sample, UInt8
from mixsup.data.segments import paint, segment_box
from mixsup.errors import DataError, MixsupError, Problem

MIN_AREA = 32  # pixels; below it a component is more often annotation noise than something a person would have boxed


def boxes_from_mask(mask: UInt8, min_area: int = MIN_AREA) -> Boxes:
    """The tight boxes of the 8-connected components of each class of at least `min_area` pixels.

    One object cut in two by another gives two boxes, and two touching objects of a class give one: a mask does not know objects.

    Args:
        mask: H×W uint8 class ids, 255 void.
        min_area: smallest component in pixels.
    """
    rows = []
    for class_id in np.unique(mask):
        if class_id in (BACKGROUND, VOID):
            continue
        count, _, stats, _ = cv2.connectedComponentsWithStats((mask == class_id).astype(np.uint8), connectivity=8)
        for x, y, w, h, area in stats[1:count]:
            if area >= min_area:
                rows.append(((float(x), float(y), float(x + w), float(y + h)), int(class_id), False))
    return Boxes.of(rows)


def tags_from_boxes(boxes: Boxes) -> frozenset[int]:
    """The classes that boxes show. A crowd is a group of its class, somewhere in it: a tag would name it, and a tag left out says that the class is absent."""
    return frozenset(int(class_id) for class_id in boxes.classes) - {BACKGROUND}


def load_mask(sample: Sample, num_classes: int) -> UInt8:
    """The mask of a sample, H×W uint8 class ids, 255 void.

    Args:
        sample: one with a mask.
        num_classes: length of the class list, background included.

    Raises:
        DataError: the file is broken, of another size than its image, or holds ids outside the class list.
    """
    if sample.mask is None:
        raise MixsupError(f"image {sample.id!r} has no mask")
    if isinstance(sample.mask, MaskSegments):
        return paint(sample.mask, sample.size)
    return _load_file(sample, sample.mask, num_classes)


def _load_file(sample: Sample, file: MaskFile, num_classes: int) -> UInt8:
    def fault(message: str, remedy: str) -> DataError:
        return DataError([Problem(str(file.path), "", message, remedy, sample.id)])

    try:
        mask = read_mask(file.path, file.colours)
    except ImageError as error:
        message, _, remedy = str(error).rpartition("; ")
        raise fault(message, remedy) from error
    if mask.shape != sample.size:
        found, wanted = (f"{width} x {height}" for height, width in (mask.shape, sample.size))
        raise fault(f"the mask has {found} pixels, its image {wanted}", "write the mask at the size of the upright image")
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))  # much faster than a sort on large masks
    if file.ids is not None:
        unknown = [int(value) for value in ids if int(value) not in file.ids and value != VOID]
        table = np.arange(256, dtype=np.uint8)
        for theirs, ours in file.ids.items():
            table[theirs] = ours
        mask = table[mask]
    else:
        unknown = [int(value) for value in ids if value >= num_classes and value != VOID]
    if unknown:
        known = sorted(set(range(num_classes) if file.ids is None else file.ids) - {VOID})
        listed = f"0 to {known[-1]}" if len(known) > known[-1] else " ".join(map(str, known))
        raise fault(f"class id {unknown[0]} is not in the class list ({listed}, 255 is void)", "correct the mask or the class list")
    return mask


def boxes_of(sample: Sample, num_classes: int, min_area: int = MIN_AREA) -> Boxes:
    """The boxes of a sample: its own, else its objects' outlines, else the components of its mask, crowds of no class where it has ignored ones."""
    if sample.boxes is not None:
        return sample.boxes
    if isinstance(sample.mask, MaskSegments):
        found = [(segment_box(segment, sample.size), segment) for segment in sample.mask.segments]
        return Boxes.of([(box, segment.class_id, segment.crowd) for box, segment in found if box is not None])
    boxes = boxes_from_mask(load_mask(sample, num_classes), min_area)
    if not isinstance(sample.mask, MaskFile):
        return boxes
    # What a joined data set ignores is void in the mask; without a box of its own its pixels would become background.
    ignored = [theirs for theirs, ours in (sample.mask.ids or {}).items() if ours == VOID and theirs != VOID]
    if not ignored:
        return boxes
    void = boxes_from_mask(np.isin(read_mask(sample.mask.path, sample.mask.colours), ignored).astype(np.uint8), min_area)
    return Boxes(
        np.concatenate([boxes.xyxy, void.xyxy]),
        np.concatenate([boxes.classes, np.full(len(void.classes), BACKGROUND, np.int64)]),
        np.concatenate([boxes.crowd, np.ones(len(void.classes), bool)]),
    )


def tags_of(sample: Sample, num_classes: int) -> frozenset[int]:
    """The tags of a sample: its own, else those of its boxes, else those of its mask."""
    if sample.tags is not None:
        return sample.tags
    if sample.boxes is not None or isinstance(sample.mask, MaskSegments):
        return tags_from_boxes(boxes_of(sample, num_classes))
    return frozenset(int(value) for value in np.unique(load_mask(sample, num_classes))) - {BACKGROUND, VOID}
