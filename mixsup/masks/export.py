"""`mixsup masks`: first masks for any trainer, as palette PNG and COCO run-length codes, and their score against true masks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixsup import metrics
from mixsup.data.derive import load_mask
from mixsup.data.palette import palette_png
from mixsup.data.sample import VOID, Classes, Dataset, Sample
from mixsup.data.segments import encode_rle
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.files import write_bytes, write_text
from mixsup.masks.box_masks import FOREGROUND, BoxMasks, compose
from mixsup.masks.pools import score_pools
from mixsup.masks.source import MaskSource
from mixsup.masks.store import MaskStore, load


def make_masks(
    dataset: Dataset, source: MaskSource, store: MaskStore, jobs: int = -1, cluster: str | None = None
) -> Iterator[tuple[Sample, BoxMasks | Problem, float]]:
    """Yields each sample with its per-box masks, or the problem that it has, and the seconds that they took (0: found in the store)."""
    by_id = {sample.id: sample for sample in dataset.samples}
    for made in store.make_all(dataset, source, jobs, cluster):
        sample, seconds = by_id[made.sample], made.seconds
        masks = load(made.path) if made.path is not None else None
        if masks is None and made.problem is None:
            # Another process that keeps the cache below its limit has removed the file since.
            made = store.make(sample, source, len(dataset.classes))
            masks = load(made.path) if made.path is not None else None
        if masks is not None:
            yield sample, masks, seconds
        elif made.problem is not None:
            yield sample, made.problem, 0.0
        else:
            raise MixsupError(f"{made.path}: written and gone again; is somebody emptying the cache? Start again")


def coco_rows(masks: BoxMasks, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of the per-box masks of one image; a box whose mask is empty is left out."""
    rows: list[dict[str, Any]] = []
    height, width = masks.size
    for index, (x0, y0, x1, y1) in enumerate(masks.windows):
        full = np.zeros((height, width), bool)
        full[y0:y1, x0:x1] = masks.masks[index] == FOREGROUND
        if not full.any():
            continue
        rows.append(
            {
                "id": first_id + len(rows),
                "image_id": image_id,
                "category_id": int(masks.classes[index]),
                "bbox": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)],
                "area": int(full.sum()),
                "iscrowd": int(masks.crowd[index]),
                "segmentation": encode_rle(full),
            }
        )
    return rows


def coco_file(classes: Classes, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> str:
    """A whole COCO file as text."""
    categories = [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(classes.names, 1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


class MaskScore:
    """Composed masks against true ones: the four scores over pixels that neither calls void, the share that the masks ignore, boundary recall."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.matrix = np.zeros((len(classes), len(classes)), np.int64)
        self.images = self.ignored = self.pixels = 0
        self.boundary = self.found = 0
        self.seconds = 0.0
        self.computed = 0

    def add(self, truth: np.ndarray[Any, np.dtype[np.uint8]], target: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Counts one image; both H×W class ids, 255 void."""
        self.matrix += metrics.confusion(truth, target, len(self.classes))
        known = truth != VOID
        self.ignored += int((target[known] == VOID).sum())
        self.pixels += int(known.sum())
        found, boundary = metrics.boundary_recall(truth, target)
        self.found, self.boundary = self.found + found, self.boundary + boundary
        self.images += 1

    def result(self) -> dict[str, Any]:
        """`metrics.scores` + `ignored` and `boundary_recall` (0 to 1; None without a boundary), `seconds_per_image` (None: all were found) and `images`."""
        per_image = self.seconds / self.computed if self.computed else None
        ignored = self.ignored / max(self.pixels, 1)
        return {
            **metrics.scores(self.matrix, self.classes.all()),
            "ignored": ignored,
            "boundary_recall": self.found / self.boundary if self.boundary else None,
            "seconds_per_image": per_image,
            "images": self.images,
        }


def export_masks(
    dataset: Dataset, source: MaskSource, out: Path | None, store: MaskStore, *, score: bool = False, jobs: int = -1, cluster: str | None = None,
    skip_bad: bool = False,
) -> tuple[dict[str, Any] | None, list[Problem]]:  # fmt: skip
    """Writes `<out>/<image id>.png` (palette, 255 ignored), `<out>/masks.json` (COCO, one code a box) and `<out>/labels.txt`.

    Args:
        dataset: samples with boxes (or masks to derive them from).
        source: of the masks.
        out: folder to write to; None writes nothing.
        store: of computed masks.
        score: compare with the true masks of the samples that have any.
        jobs: cores, -1 for all.
        cluster: address of a Dask scheduler, see `MaskStore.make_all`.
        skip_bad: go on without images at fault.

    Returns:
        The score (None without `score`) and the faults met.

    Raises:
        DataError: images at fault, after all others were written (unless `skip_bad`).
        MixsupError: no sample has boxes, or `score` was asked for and none has a true mask.
    """
    boxed = [sample for sample in dataset.samples if "boxes" in sample.kinds()]
    if not boxed:
        raise MixsupError(f"{dataset.source}: no image has boxes or a mask to derive them from; source {source.name!r} needs them")
    if score and not any(sample.mask is not None for sample in boxed):
        raise MixsupError(f"{dataset.source}: no true mask to score against; leave --score out")
    common = Path(os.path.commonpath([sample.image.parent for sample in boxed]))  # file names start from here
    tally = MaskScore(dataset.classes)
    problems: list[Problem] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers = {sample.id: index for index, sample in enumerate(boxed, 1)}
    for sample, made, seconds in make_masks(dataset.with_samples(boxed), source, store, jobs, cluster):
        if isinstance(made, Problem):
            problems.append(made)
            continue
        target = compose(made)
        tally.seconds += seconds
        tally.computed += seconds > 0
        if out is not None:
            write_bytes(out / f"{sample.id}.png", palette_png(target))
            images.append(
                {
                    "id": numbers[sample.id],
                    "file_name": sample.image.relative_to(common).as_posix(),
                    "height": sample.size[0],
                    "width": sample.size[1],
                }
            )
            annotations += coco_rows(made, numbers[sample.id], 1)
        if score and sample.mask is not None:
            try:
                tally.add(load_mask(sample, len(dataset.classes)), target)
            except DataError as error:
                problems += error.problems
    if out is not None:
        images.sort(key=lambda row: int(row["id"]))
        annotations.sort(key=lambda row: (int(row["image_id"]), int(row["id"])))
        for number, row in enumerate(annotations, 1):
            row["id"] = number
        write_text(out / "masks.json", coco_file(dataset.classes, images, annotations))
        write_text(out / "labels.txt", "\n".join(dataset.classes.all()) + "\n")
    pools: dict[str, Any] = {}
    if score and hasattr(source, "propose"):
        bad = {problem.sample for problem in problems}
        scored = [sample for sample in boxed if sample.mask is not None and sample.id not in bad]
        pools, faults = score_pools(dataset.with_samples(scored), source, jobs)
        problems += faults
    if problems and not skip_bad:
        raise DataError(problems)
    return ({**tally.result(), **pools} if score else None), problems
