"""Runs side by side: scores against the cost of their labels, and what to label next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixsup.data import format_splits
from mixsup.data.sample import KINDS, LabelKind
from mixsup.engine.run import BEST, LAST, Run
from mixsup.errors import MixsupError
from mixsup.report.labelling import Seconds
from mixsup.report.objects import Objects, count_objects
from mixsup.report.suggest import Row, Suggestion, suggest


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        rows: the runs in the order in which they were given.
        seconds: what labels cost.
        suggestion: what to label next; None where the runs cannot tell.
        notes: sentences on what the suggestion rests on, or why there is none.
        warnings: sentences on what makes the scores hard to compare.
    """

    rows: tuple[Row, ...]
    seconds: Seconds
    suggestion: Suggestion | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        return {
            "runs": [
                {
                    "name": row.name, "folder": str(row.run.folder), "recipe": row.run.recipe.name, "images": row.images,
                    "objects_per_image": row.objects.labelled, "hours": row.hours, **row.scores,
                    **{key: row.run.facts.get(key) for key in ("labels", "steps", "seed", "pretraining", "device", "data", "validation_images")},
                }
                for row in self.rows
            ],
            "seconds": asdict(self.seconds),
            "suggestion": asdict(self.suggestion) if self.suggestion is not None else None,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }  # fmt: skip


def compare(
    runs: Sequence[str | Path], *, data: str | Path | None = None, split: str | None = None, hours: float = 10.0, base: str | Path | None = None,
    seconds: Seconds = Seconds(), objects: float | None = None, unlabelled: int | None = None, checkpoint: str = "best", device: str = "auto",
    format: str | None = None,
) -> Comparison:  # fmt: skip
    """Compares runs, and asks which further labels would pay most; see `mixsup.report.labelling` for cost, model and assumptions.

    Args:
        runs: run folders.
        data: evaluate all runs on this data set now, instead of taking the scores of their own validation; also where objects are counted if a run's own
            data set is gone.
        split: of `data` to evaluate on; None for `val` where there is one.
        hours: of further labelling, above 0.
        base: the run whose labels are added to; None for the best of those that the model sees.
        seconds: what labels cost.
        objects: mean number of objects an image; None to count them in the data sets.
        unlabelled: images that are left to label; None for those that `base` did not use.
        checkpoint: `best` or `last`, whose scores are taken.
        device, format: of the evaluation and of `data`, see `mixsup.evaluate`.

    Folders that are no runs, or have no score (with `data`: no checkpoint) yet, are left out; `Comparison.warnings` names them.

    Raises:
        MixsupError: no run that can be compared, the same run twice, a data set that is gone (unless `objects`), or a number that cannot be.
    """
    _refuse(hours, objects, unlabelled)
    if data is not None:
        format_splits(Path(data), format)  # a wrong path should not cost the counting of objects
    if split is not None and data is None:
        raise MixsupError(f"--split {split}: it belongs to --data; give --data DATA too, or leave it out")
    folders = _distinct(runs)
    faults = _faults(folders, checkpoint, data is None)
    if base is not None and (start_from := folders[_index(folders, Path(base))]) in faults:
        raise faults[start_from]
    folders = [folder for folder in folders if folder not in faults]
    opened = [_open(folder) for folder in folders]
    start = None if base is None else _index(folders, Path(base))
    kinds = [_kinds(run) for run in opened]
    if data is None:
        scores = [_stored(run, checkpoint) for run in opened]
    counted = (
        count_objects(opened, kinds, Path(data) if data is not None else None, format)
        if objects is None
        else [Objects(dict.fromkeys(KINDS, objects), objects)] * len(opened)
    )
    if data is not None:
        scores = [_measured(run, data, split, checkpoint, device, format) for run in opened]
    rows = tuple(
        _row(name, run, own, seconds, found) for name, run, own, found in zip(_names(folders), opened, counted, scores, strict=True)
    )
    suggestion, notes = suggest(rows, seconds, hours, start, unlabelled)
    return Comparison(
        rows, seconds, suggestion, tuple(notes), (*(f"left out: {error}" for error in faults.values()), *_warnings(rows, data is not None))
    )


def _refuse(hours: float, objects: float | None, unlabelled: int | None) -> None:
    if not 0 < hours < math.inf:
        raise MixsupError(f"--hours {hours:g}: give a number of hours above 0")
    if objects is not None and not 0 < objects < math.inf:
        raise MixsupError(f"--objects {objects:g}: give the mean number of objects an image, above 0")
    if unlabelled is not None and unlabelled < 0:
        raise MixsupError(f"--unlabelled {unlabelled}: give a number of images, 0 or more")


def _distinct(runs: Sequence[str | Path]) -> list[Path]:
    if not runs:
        raise MixsupError("no run to compare; give the folders that `mixsup train --out` wrote")
    folders = [Path(run) for run in runs]
    for index, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:index]}:
            raise MixsupError(f"{folder}: the same run twice; name each run once")
    return folders


def _index(folders: Sequence[Path], base: Path) -> int:
    for index, folder in enumerate(folders):
        if folder.resolve() == base.resolve():
            return index
    raise MixsupError(f"--from {base}: not among the compared runs; name one of them")


def _names(folders: Sequence[Path]) -> list[str]:
    last = [folder.resolve().name for folder in folders]
    return [str(folder) if last.count(name) > 1 else name for folder, name in zip(folders, last, strict=True)]


def _faults(folders: Sequence[Path], checkpoint: str, stored: bool) -> dict[Path, MixsupError]:
    """Why folders cannot be compared: strays of `runs/*`, and runs that have only begun.

    Raises:
        MixsupError: none can.
    """
    found = {}
    for folder in folders:
        try:
            run = _open(folder)
            _kinds(run)
            if stored:
                _stored(run, checkpoint)
            else:
                _refuse_begun(run, checkpoint)
        except MixsupError as error:
            found[folder] = error
    if len(found) == len(folders):
        raise found[folders[0]]
    return found


def _open(folder: Path) -> Run:
    run = Run.load(folder)
    images = run.facts.get("images")
    if (
        not isinstance(images, dict)
        or not images.keys() <= set(KINDS)
        or not sum(images.values())
        or not {"data", "steps"} <= run.facts.keys()
    ):
        raise MixsupError(f"{folder}: its run.json does not say what it has learned from; give what `mixsup train --out` wrote")
    return run


def _kinds(run: Run) -> dict[str, LabelKind]:
    try:
        return run.kinds()
    except (OSError, UnicodeDecodeError, IndexError):
        raise MixsupError(
            f"{run.folder}: not a run folder (split.csv is missing or broken); give what `mixsup train --out` wrote"
        ) from None


def _refuse_begun(run: Run, checkpoint: str) -> None:
    if not (run.folder / {"best": BEST, "last": LAST}[checkpoint]).is_file():
        raise MixsupError(f"{run.folder}: it has only begun, with neither a score nor a checkpoint yet; wait, or go on with it by --resume")


def _stored(run: Run, checkpoint: str) -> dict[str, float]:
    found = run.validation(checkpoint)
    if found is None:
        _refuse_begun(run, checkpoint)
        raise MixsupError(f"{run.folder}: it never validated, so it has no score; give --data DATA --split SPLIT to evaluate all runs now")
    return {name: found[name] for name in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")}


def _measured(run: Run, data: str | Path, split: str | None, checkpoint: str, device: str, form: str | None) -> dict[str, float]:
    from mixsup.engine.api import evaluate

    found = evaluate(run.folder, data, split, checkpoint=checkpoint, device=device, format=form)
    return {name: found[name] for name in ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")}


def _row(name: str, run: Run, objects: Objects, seconds: Seconds, scores: dict[str, float]) -> Row:
    images = {kind: int(run.facts["images"].get(kind, 0)) for kind in KINDS}
    classes = len(run.classes.names)
    spent = sum(count * seconds.image(kind, objects.labelled[kind], classes) for kind, count in images.items())
    return Row(name, run, images, objects, spent / 3600, scores)


def _warnings(rows: Sequence[Row], measured: bool) -> list[str]:
    found = []
    for row in rows:
        steps, reached = int(row.run.facts["steps"]), int((row.run.validation("last") or {"step": 0})["step"])
        if 0 < reached < steps:
            found.append(f"{row.name} was last validated after step {reached} of {steps}: it has not ended")
    seen = Counter(
        (str(Path(str(row.run.facts.get("data"))).resolve()), row.run.facts.get("val") or "val", row.run.facts.get("validation_images"))
        for row in rows
    )
    if not measured and len(seen) > 1:
        sets = "; ".join(f"{data}, {val}: {count} images" for data, val, count in seen)
        found.append(
            f"the runs were validated on different images ({sets}), so their scores do not compare; --data DATA evaluates all on the same"
        )
    return found
