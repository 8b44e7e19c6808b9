"""How the masks of boxes got better over the refresh rounds: their scores against the truth, and pictures (BoxSup, figure 3).

Training never looks at the truth of a boxed image; this does, after training, where the data set happens to have it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from mixsup.data.derive import load_mask
from mixsup.data.image import ImageError, read_image
from mixsup.data.sample import VOID, Boxes, Dataset, Sample, UInt8
from mixsup.engine.refresh import followed, read_rounds, round_folder
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.files import write_text
from mixsup.masks.box_masks import BoxMasks, compose
from mixsup.masks.store import load
from mixsup.metrics import confusion, scores
from mixsup.progress import track
from mixsup.report.pictures import boxes_picture, map_picture

FILE = "mask_quality.csv"
IMAGES, SHOWN = 8, 5  # rows of pictures, and rounds in them beside the first masks
_PIXELS = 250_000  # of an image that are compared; a larger one is compared on a grid


@dataclass(frozen=True)
class Quality:
    """The masks of one round.

    Attributes:
        round: 0 are the first masks.
        step: after which the round was made.
        boxes: of all boxed images.
        changed: how many of them got another mask than in the round before.
        miou: of the composed masks of the followed images that have a truth, over pixels that the masks do not ignore, 0 to 1; None: nothing to compare.
        ignored: the share of pixels that they do ignore, 0 to 1.
    """

    round: int
    step: int
    boxes: int
    changed: int
    miou: float | None = None
    ignored: float | None = None

    def __str__(self) -> str:
        text = f"round {self.round}, step {self.step}: {self.changed} of {self.boxes} boxes changed" if self.round else "first masks"
        if self.miou is None:
            return text
        left_out = f" ({100 * self.ignored:.1f} % of pixels ignored)" if self.ignored is not None and self.ignored >= 0.0005 else ""
        return f"{text}{', ' if self.round else ': '}mean IoU with truth {100 * self.miou:.1f} %{left_out}"


@dataclass(frozen=True)
class Progress:
    """One image of the figure; pictures are data addresses, "" where there is none.

    Attributes:
        name: id of the sample.
        given: the image with its boxes.
        masks: the composed masks of the shown rounds, round 0 first.
        truth: the true mask.
    """

    name: str
    given: str
    masks: tuple[str, ...]
    truth: str


def mask_quality(run: Run, train: Dataset | None) -> list[Quality]:
    """Scores the masks of each round against the true masks of the followed images.

    Args:
        run: a run; one without refresh rounds has no rows.
        train: its training images, true masks where known; None or another class list leaves the scores out.

    Returns:
        A row a round, round 0 first. A round whose files are gone has no score.
    """
    rounds = read_rounds(run.folder)
    if not rounds:
        return []
    count = len(run.classes)
    numbers = [0, *(row["round"] for row in rounds)]
    matrices = np.zeros((len(numbers), count, count), np.int64)
    ignored, pixels = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
    samples = _followed(run, train)
    for sample in track(samples, "report: masks over the rounds", len(samples)):
        truth = true_mask(sample, count)
        if truth is None:
            continue
        grid = slice(None, None, int(np.ceil(np.sqrt(truth.size / _PIXELS))))
        truth = truth[grid, grid]
        for index, number in enumerate(numbers):
            masks = _masks(run, number, sample)
            if masks is not None:
                target = compose(masks)[grid, grid]
                matrices[index] += confusion(truth, target, count)
                ignored[index] += int(((target == VOID) & (truth != VOID)).sum())
                pixels[index] += int((truth != VOID).sum())
    rows = [{"round": 0, "step": 0, "boxes": rounds[0]["boxes"], "changed": 0}, *rounds]
    return [
        Quality(
            row["round"],
            row["step"],
            row["boxes"],
            row["changed"],
            scores(matrix, run.classes.all())["miou"] if matrix.any() else None,
            float(left_out / total) if total else None,
        )
        for row, matrix, left_out, total in zip(rows, matrices, ignored, pixels, strict=True)
    ]


def write_quality(run: Path, rows: Sequence[Quality]) -> None:
    """Writes `mask_quality.csv` into the run folder; without rows it removes an old one."""
    if not rows:
        (run / FILE).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Quality)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shares = {key: f"{value:.6f}" if value is not None else "" for key, value in (("miou", row.miou), ("ignored", row.ignored))}
        writer.writerow({**asdict(row), **shares})
    write_text(run / FILE, text.getvalue())


def read_quality(run: Path) -> list[Quality]:
    """The rows of `mask_quality.csv`; none where the file is missing or broken."""
    try:
        table = list(csv.DictReader(io.StringIO((run / FILE).read_text(encoding="utf-8"))))
        return [
            Quality(
                *(int(row[key]) for key in ("round", "step", "boxes", "changed")),
                *(float(row[key]) if row[key] else None for key in ("miou", "ignored")),
            )
            for row in table
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def shown_rounds(rows: Sequence[Quality]) -> list[Quality]:
    """The rounds that have a picture: the first masks, and up to five rounds evenly spread, the last among them."""
    return [*rows[:1], *(rows[1 + index] for index in spread(len(rows) - 1, SHOWN))]


def progress(run: Run, train: Dataset, rows: Sequence[Quality]) -> list[Progress]:
    """The figure: up to eight followed images with boxes, evenly spread."""
    candidates = []
    for sample in _followed(run, train):
        first = _masks(run, 0, sample)
        if first is not None and len(first):
            candidates.append((sample, first))
    found = []
    for sample, first in (candidates[place] for place in spread(len(candidates), IMAGES)):
        try:
            image = read_image(sample.image)
        except ImageError:
            continue  # a file that went bad since training costs its row, not the page
        if image.shape[:2] != first.size:
            continue
        boxes = Boxes(first.windows.astype(np.float32), first.classes, first.crowd)
        masks = [_masks(run, row.round, sample) for row in shown_rounds(rows)]
        truth = true_mask(sample, len(run.classes))
        found.append(
            Progress(
                sample.id,
                boxes_picture(image, boxes),
                tuple(map_picture(compose(one), image) if one is not None else "" for one in masks),
                map_picture(truth, image) if truth is not None else "",
            )
        )
    return found


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the places 0 ... count - 1, evenly spread, the first and the last among them."""
    return sorted({round(value) for value in np.linspace(0, count - 1, min(count, wanted))}) if count > 0 else []


def true_mask(sample: Sample, num_classes: int) -> UInt8 | None:
    """The true mask for showing. Training never sees it where the budget hides it, and a broken one only leaves its picture out."""
    if sample.mask is None:
        return None
    try:
        return load_mask(sample, num_classes)
    except MixsupError:
        return None


def _followed(run: Run, train: Dataset | None) -> list[Sample]:
    """The samples whose masks of every round were kept, as far as they are still there."""
    if train is None or train.classes != run.classes:
        return []
    by_id = {sample.id: sample for sample in train.samples}
    boxed = [key for key, kind in run.kinds().items() if kind == "boxes"]
    # Images that --skip-bad left out shift the choice; what lies in the folder of round 0 is what was followed.
    folder = round_folder(run.folder, 0)
    kept = [key for key in boxed if (folder / f"{key}.npz").is_file()] or followed(boxed)
    return [by_id[key] for key in sorted(kept) if key in by_id]


def _masks(run: Run, number: int, sample: Sample) -> BoxMasks | None:
    """The masks of an image in a round; None where they are gone, broken, or of another image or class list."""
    masks = load(round_folder(run.folder, number) / f"{sample.id}.npz")
    if masks is None or masks.size != sample.size or (masks.classes >= len(run.classes)).any():
        return None
    return masks
