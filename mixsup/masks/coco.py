"""Per-box masks, and predicted classes, as one COCO file with run-length codes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mixsup.data.sample import BACKGROUND, Bool, Classes, UInt8
from mixsup.data.segments import encode_window
from mixsup.errors import MixsupError
from mixsup.files import atomic_write
from mixsup.masks.box_masks import FOREGROUND, BoxMasks


def coco_rows(masks: BoxMasks) -> list[dict[str, Any]]:
    """COCO annotations of the per-box masks of one image, without ids; a box whose mask is empty is left out, and a crowd of no class."""
    rows: list[dict[str, Any]] = []
    for index, window in enumerate(masks.windows):
        region = masks.masks[index] == FOREGROUND
        if region.any() and masks.classes[index] != BACKGROUND:
            rows.append(_row(region, window, masks.size, int(masks.classes[index]), int(masks.crowd[index])))
    return rows


def coco_classes(ids: UInt8) -> list[dict[str, Any]]:
    """COCO annotations of an H×W map of class ids, without ids of their own: one of each class that is there, background aside."""
    rows = []
    for class_id in np.unique(ids[ids != BACKGROUND]):
        region = ids == class_id
        y, x = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        x0, y0, x1, y1 = x[0], y[0], x[-1] + 1, y[-1] + 1
        rows.append(_row(region[y0:y1, x0:x1], (x0, y0, x1, y1), ids.shape, int(class_id), 0))
    return rows


def _row(region: Bool, window: Sequence[Any], size: tuple[int, ...], class_id: int, crowd: int) -> dict[str, Any]:
    x0, y0, x1, y1 = (int(value) for value in window)
    return {
        "category_id": class_id, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(region.sum()), "iscrowd": crowd,
        "segmentation": encode_window(region, x0, y0, size),
    }  # fmt: skip


def categories(classes: Classes) -> list[dict[str, Any]]:
    """COCO's list of object classes."""
    return [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(classes.names, 1)]


def refuse_foreign(index: Path, names: str, results: Iterable[Path]) -> None:
    """Refuses to write over what mixsup did not write: true masks, say, whose folder was given as --out, or results that somebody has corrected by hand.

    Args:
        index: the COCO file that is written beside the results, last of all.
        names: what `labels.txt` beside them says. That is written first, so that where it is newer than `index`, or alone, a command was killed.
        results: the files that would be written.

    Raises:
        MixsupError: one of them is somebody else's.
    """
    labels = index.parent / "labels.txt"
    begun, last = (path.stat().st_mtime_ns if path.is_file() else None for path in (labels, index))
    if last is None:
        ours = begun is not None and labels.read_bytes() == names.encode()
        for path in (labels, *results) if not ours else ():
            if path.exists():
                raise MixsupError(f"{path}: would be overwritten, and mixsup has not written it; give another folder to --out")
    elif begun is None or begun <= last:
        for path in results:
            if path.exists() and path.stat().st_mtime_ns > last:
                raise MixsupError(
                    f"{path}: would be overwritten, and was changed after {index.name} was written; give another folder to --out, "
                    f"or remove {index.name} if it may be lost"
                )


class CocoSpool:
    """A COCO file of many images, which come in any order. Their annotations wait on the disk; in memory is only where.

    Args:
        path: of the file.
        classes: of the data set.
    """

    def __init__(self, path: Path, classes: Classes) -> None:
        self.path, self.classes = path, classes
        self._places: dict[int, tuple[dict[str, Any], int, int]] = {}
        self._end = 0

    def __enter__(self) -> CocoSpool:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._waiting = tempfile.TemporaryFile(dir=self.path.parent)
        except OSError as error:
            raise self._refused(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._waiting.close()

    def add(self, image: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes one image: COCO's entry of it, with its number as `id`, and its annotations, which get theirs at the end."""
        text = json.dumps([{"id": 0, "image_id": image["id"], **row} for row in rows]).encode()
        try:
            self._waiting.write(text)
        except OSError as error:
            raise self._refused(error) from error
        self._places[image["id"]] = image, self._end, len(text)
        self._end += len(text)

    def finish(self) -> None:
        """Writes the file, images in the order of their numbers, annotations numbered from 1.

        Raises:
            MixsupError: the disk refuses it. An older file stays.
        """
        number = 0
        places = [self._places[key] for key in sorted(self._places)]
        with atomic_write(self.path) as handle:
            handle.write(b'{"images": ' + json.dumps([image for image, _, _ in places]).encode() + b', "annotations": [')
            for _, start, length in places:
                self._waiting.seek(start)
                for row in json.loads(self._waiting.read(length)):
                    number += 1
                    handle.write((b", " if number > 1 else b"") + json.dumps({**row, "id": number}).encode())
            handle.write(b'], "categories": ' + json.dumps(categories(self.classes)).encode() + b"}")

    def _refused(self, error: OSError) -> MixsupError:
        return MixsupError(f"{self.path}: cannot write ({error.strerror or error}); free space or choose another folder, then go on")
