"""`mixsup masks`: first masks for any trainer, as palette PNG and COCO run-length codes, and their score against true masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from mixsup import metrics
from mixsup.data.derive import load_mask
from mixsup.data.palette import palette_png
from mixsup.data.sample import VOID, Classes, Dataset, Sample
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.files import write_bytes, write_text
from mixsup.masks.box_masks import BoxMasks, compose
from mixsup.masks.coco import CocoSpool, coco_rows, refuse_foreign
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


class MaskScore:
    """Composed masks against true ones: the four scores over pixels that neither calls void, the share that the masks ignore, boundary recall."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.matrix = np.zeros((len(classes), len(classes)), np.int64)
        # Per class of the truth: pixels, those ignored, boundary pixels, and those of them that are found.
        self.counts = np.zeros((4, len(classes)), np.int64)
        self.images = 0
        self.seconds = 0.0
        self.computed = 0

    def add(self, truth: np.ndarray[Any, np.dtype[np.uint8]], target: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Counts one image; both H×W class ids, 255 void."""
        self.matrix += metrics.confusion(truth, target, len(self.classes))
        known = truth != VOID
        boundary, found = metrics.boundary_hits(truth, target)
        for row, where in enumerate((known, known & (target == VOID), boundary & known, found & known)):
            self.counts[row] += np.bincount(truth[where], minlength=len(self.classes))
        self.images += 1

    def result(self) -> dict[str, Any]:
        """`metrics.scores`, `ignored` and `boundary_recall` (0 to 1; None without a boundary), `seconds_per_image` (None: all were found) and `images`.

        `per_class_ignored` and `per_class_boundary_recall` are the same by the true class (None for one that does not occur).
        """
        per_image = self.seconds / self.computed if self.computed else None
        pixels, ignored, boundary, found = (int(row.sum()) for row in self.counts)
        names = self.classes.all()
        return {
            **metrics.scores(self.matrix, self.classes.all(), self.counts[0]),
            "ignored": ignored / max(pixels, 1),
            "boundary_recall": found / boundary if boundary else None,
            "per_class_ignored": {
                name: int(part) / int(of) if of else None for name, part, of in zip(names, self.counts[1], self.counts[0], strict=True)
            },
            "per_class_boundary_recall": {
                name: int(part) / int(of) if of else None for name, part, of in zip(names, self.counts[3], self.counts[2], strict=True)
            },
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
        MixsupError: no sample has boxes, `score` was asked for and none has a true mask, or a file that mixsup did not write, the data
            set's own among them, would be written over.
    """
    boxed = [sample for sample in dataset.samples if "boxes" in sample.kinds()]
    if not boxed:
        raise MixsupError(f"{dataset.source}: no image has boxes or a mask to derive them from; source {source.name!r} needs them")
    if score and not any(sample.mask is not None for sample in boxed):
        raise MixsupError(f"{dataset.source}: no true mask to score against; leave --score and --json out")
    if out is not None:
        dataset.refuse_results([out / "masks.json", out / "labels.txt", *(out / f"{sample.id}.png" for sample in boxed)])
        names = dataset.classes.lines()
        refuse_foreign(out / "masks.json", names, (out / f"{sample.id}.png" for sample in boxed))
        write_text(out / "labels.txt", names)  # first: it says whose masks these are
    common = Path(os.path.commonpath([sample.image.absolute().parent for sample in boxed]))  # file names start from here
    tally = MaskScore(dataset.classes)
    problems: list[Problem] = []
    numbers = {sample.id: index for index, sample in enumerate(boxed, 1)}
    with CocoSpool(out / "masks.json", dataset.classes) if out is not None else nullcontext() as spool:
        for sample, made, seconds in make_masks(dataset.with_samples(boxed), source, store, jobs, cluster):
            if isinstance(made, Problem):
                problems.append(made)
                continue
            target = compose(made)
            tally.seconds += seconds
            tally.computed += seconds > 0
            if out is not None and spool is not None:
                write_bytes(out / f"{sample.id}.png", palette_png(target))
                name, (height, width) = sample.image.absolute().relative_to(common).as_posix(), sample.size
                spool.add({"id": numbers[sample.id], "file_name": name, "height": height, "width": width}, coco_rows(made))
            if score and sample.mask is not None:
                try:
                    tally.add(load_mask(sample, len(dataset.classes)), target)
                except DataError as error:
                    problems += error.problems
        if out is not None and spool is not None:
            spool.finish()
    pools: dict[str, Any] = {}
    if score and hasattr(source, "propose"):
        bad = {problem.sample for problem in problems}
        scored = [sample for sample in boxed if sample.mask is not None and sample.id not in bad]
        pools, faults = score_pools(dataset.with_samples(scored), source, jobs)
        problems += faults
    if problems and not skip_bad:
        raise DataError(problems)
    return ({**tally.result(), **pools} if score else None), problems
