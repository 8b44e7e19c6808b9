"""How the masks of boxes, or the labels of tagged images, got better over the refresh rounds: scores against the truth, and pictures (BoxSup, figure 3).

Training never looks at the truth of a boxed or tagged image; this does, after training, where the data set happens to have it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from mixsup.data.derive import load_mask, tags_of
from mixsup.data.image import ImageError, read_image, read_mask
from mixsup.data.sample import VOID, Boxes, Dataset, LabelKind, Sample, UInt8
from mixsup.engine.helping import round_folder
from mixsup.engine.refresh import followed, read_rounds
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.files import write_text
from mixsup.masks.box_masks import BoxMasks, compose
from mixsup.masks.store import load
from mixsup.metrics import confusion, scores
from mixsup.progress import track
from mixsup.report.pictures import boxes_picture, map_picture, photo

FILE = "mask_quality.csv"
IMAGES, SHOWN = 8, 5  # rows of pictures, and rounds in them beside the first masks
_PIXELS = 250_000  # of an image that are compared; a larger one is compared on a grid


@dataclass(frozen=True)
class Quality:
    """The masks of boxes, or the labels of tagged images, of one round.

    Attributes:
        round: 0 are the first masks, or the seeds of tagged images.
        step: after which the round was made.
        boxes: of all boxed images; or the tagged images.
        changed: how many of them got another mask, or other labels, than in the round before.
        miou: of the composed masks of the followed images that have a truth, over pixels that the masks do not ignore, 0 to 1; None: nothing to compare.
        ignored: the share of pixels that they do ignore, 0 to 1.
        kind: of the labels, "boxes" or "tags".
    """

    round: int
    step: int
    boxes: int
    changed: int
    miou: float | None = None
    ignored: float | None = None
    kind: str = "boxes"

    def __str__(self) -> str:
        things, first = ("tagged images", "seeds") if self.kind == "tags" else ("boxes", "first masks")
        text = f"round {self.round}, step {self.step}: {self.changed} of {self.boxes} {things} changed" if self.round else first
        if self.miou is None:
            return text
        left_out = f" ({100 * self.ignored:.1f} % of pixels ignored)" if self.ignored is not None and self.ignored >= 0.0005 else ""
        return f"{text}{', ' if self.round else ': '}mean IoU with truth {100 * self.miou:.1f} %{left_out}"


@dataclass(frozen=True)
class Progress:
    """One image of the figure; pictures are data addresses, "" where there is none.

    Attributes:
        name: id of the sample.
        given: the image, with its boxes where it has such.
        masks: the composed masks of the shown rounds, round 0 first.
        truth: the true mask.
        kind: of its label.
        tags: class names, when tags are the label.
    """

    name: str
    given: str
    masks: tuple[str, ...]
    truth: str
    kind: str = "boxes"
    tags: tuple[str, ...] = ()


def mask_quality(run: Run, train: Dataset | None) -> list[Quality]:
    """Scores the masks of each round against the true masks of the followed images.

    Args:
        run: a run; one without refresh rounds and without seeds of tagged images has no rows.
        train: its training images, true masks where known; None or another class list leaves the scores out.

    Returns:
        A row a round, round 0 first; of a run that renewed both kinds, boxes come first. A round whose files are gone has no score.
    """
    return [*_kind_quality(run, train, "boxes"), *_kind_quality(run, train, "tags")]


def _kind_quality(run: Run, train: Dataset | None, kind: LabelKind) -> list[Quality]:
    rounds = [row for row in read_rounds(run.folder) if row["kind"] == kind]
    images = rounds[0]["boxes"] if rounds else len(seeded(run)) if kind == "tags" else 0
    if not images and not rounds:
        return []
    count = len(run.classes)
    numbers = [0, *(row["round"] for row in rounds)]
    matrices = np.zeros((len(numbers), count, count), np.int64)
    ignored, pixels = np.zeros(len(numbers), np.int64), np.zeros((len(numbers), count), np.int64)
    samples = followed_samples(run, train, kind)
    for sample in track(samples, f"report: {'labels' if kind == 'tags' else 'masks'} over the rounds", len(samples)):
        truth = true_mask(sample, count)
        if truth is None:
            continue
        grid = comparison_grid(truth)
        truth = truth[grid]
        for index, number in enumerate(numbers):
            labels = _labels(run, number, sample, kind)
            if labels is not None:
                target = labels[grid]
                matrices[index] += confusion(truth, target, count)
                ignored[index] += int(((target == VOID) & (truth != VOID)).sum())
                pixels[index] += np.bincount(truth[truth != VOID], minlength=count)
    rows = [{"round": 0, "step": 0, "boxes": images, "changed": 0}, *rounds]
    return [
        Quality(
            row["round"],
            row["step"],
            row["boxes"],
            row["changed"],
            scores(matrix, run.classes.all(), counts)["miou"] if matrix.any() else None,
            float(left_out / counts.sum()) if counts.any() else None,
            kind,
        )
        for row, matrix, left_out, counts in zip(rows, matrices, ignored, pixels, strict=True)
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
                int(row["round"]),
                int(row["step"]),
                int(row["boxes"]),
                int(row["changed"]),
                float(row["miou"]) if row["miou"] else None,
                float(row["ignored"]) if row["ignored"] else None,
                row.get("kind") or "boxes",
            )
            for row in table
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def shown_rounds(rows: Sequence[Quality]) -> list[Quality]:
    """The rounds of one kind that have a picture: the first masks, and up to five rounds evenly spread, the last among them."""
    return [*rows[:1], *(rows[1 + index] for index in spread(len(rows) - 1, SHOWN))]


def progress(run: Run, train: Dataset, rows: Sequence[Quality]) -> list[Progress]:
    """The figure: of each kind up to eight followed images with objects, evenly spread; of a kind without rounds none."""
    boxed, tagged = ([row for row in rows if row.kind == kind] for kind in ("boxes", "tags"))
    return [*_boxed_progress(run, train, boxed), *_tagged_progress(run, train, tagged)]


def _boxed_progress(run: Run, train: Dataset, rows: Sequence[Quality]) -> list[Progress]:
    def first_of(sample: Sample) -> BoxMasks | None:
        return _masks(run, 0, sample)

    # Masks of all followed images at once would be gigabytes where photographs are large.
    candidates = [sample for sample in (followed_samples(run, train, "boxes") if rows else []) if len(first_of(sample) or ())]
    found = []
    for sample in (candidates[place] for place in spread(len(candidates), IMAGES)):
        try:
            image, first = read_image(sample.image), first_of(sample)
        except ImageError:
            continue  # a file that went bad since training costs its row, not the page
        if first is not None and image.shape[:2] == first.size:
            boxes = Boxes(first.windows.astype(np.float32), first.classes, first.crowd)
            found.append(_row(run, sample, image, boxes_picture(image, boxes), rows))
    return found


def _tagged_progress(run: Run, train: Dataset, rows: Sequence[Quality]) -> list[Progress]:
    found = []
    candidates = tagged_samples(run, train) if len(rows) > 1 else []
    for sample, tags in (candidates[place] for place in spread(len(candidates), IMAGES)):
        try:
            image = read_image(sample.image)
        except ImageError:
            continue  # as above
        if image.shape[:2] == sample.size:
            found.append(_row(run, sample, image, photo(image), rows, tags))
    return found


def _row(run: Run, sample: Sample, image: UInt8, given: str, rows: Sequence[Quality], tags: Sequence[int] = ()) -> Progress:
    shown, names = shown_rounds(rows), run.classes.all()
    labels = [_labels(run, row.round, sample, "tags" if row.kind == "tags" else "boxes") for row in shown]
    truth = true_mask(sample, len(names))
    return Progress(
        sample.id,
        given,
        tuple(map_picture(one, image) if one is not None else "" for one in labels),
        map_picture(truth, image) if truth is not None else "",
        shown[0].kind,
        tuple(names[tag] for tag in tags),
    )


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


def comparison_grid(truth: UInt8) -> tuple[slice, slice]:
    """Which rows and columns of a mask are compared: all, or of a large image a grid."""
    step = slice(None, None, int(np.ceil(np.sqrt(truth.size / _PIXELS))))
    return step, step


def seeded(run: Run) -> list[str]:
    """The tagged images of a run that have seeds."""
    folder = round_folder(run.folder, 0)
    return [key for key, kind in run.kinds().items() if kind == "tags" and (folder / f"{key}.png").is_file()]


def followed_samples(run: Run, train: Dataset | None, kind: LabelKind) -> list[Sample]:
    """The samples whose masks or labels of every round were kept, as far as they are still there."""
    if train is None or train.classes != run.classes:
        return []
    by_id = {sample.id: sample for sample in train.samples}
    labelled = [key for key, its in run.kinds().items() if its == kind]
    # Images that --skip-bad left out shift the choice; what lies in the folder of round 0 is what was trained on.
    folder, suffix = round_folder(run.folder, 0), "png" if kind == "tags" else "npz"
    kept = [key for key in labelled if (folder / f"{key}.{suffix}").is_file()] or labelled
    return [by_id[key] for key in followed(kept) if key in by_id]


def tagged_samples(run: Run, train: Dataset | None) -> list[tuple[Sample, list[int]]]:
    """The followed tagged images that have a tag, and their tags in ascending order."""
    found = []
    for sample in followed_samples(run, train, "tags"):
        tags = known_tags(sample, len(run.classes))
        if tags:
            found.append((sample, tags))
    return found


def known_tags(sample: Sample, num_classes: int) -> list[int]:
    """The tags of a sample in ascending order; none where the file that says them went bad."""
    try:
        return sorted(tags_of(sample, num_classes))
    except MixsupError:
        return []


def read_labels(path: Path, sample: Sample, num_classes: int) -> UInt8 | None:
    """Labels of pixels that a round left; None where they are gone, broken, or of another image or class list."""
    try:
        labels = read_mask(path)
    except MixsupError:
        return None
    if labels.shape != sample.size or ((labels >= num_classes) & (labels != VOID)).any():
        return None
    return labels


def _labels(run: Run, number: int, sample: Sample, kind: LabelKind) -> UInt8 | None:
    """What an image taught in a round, H×W class ids; None where it is gone."""
    if kind == "tags":
        return read_labels(round_folder(run.folder, number) / f"{sample.id}.png", sample, len(run.classes))
    masks = _masks(run, number, sample)
    return compose(masks) if masks is not None else None


def latest_masks(run: Run, sample: Sample) -> BoxMasks | None:
    """The masks of an image in the last round that refreshed masks of boxes in the run's last stage; None without one."""
    steps = int(run.facts["steps"])
    begins = run.recipe.stage_ends(steps)[-2] if len(run.recipe.stages) > 1 else 0
    rounds = [row["round"] for row in read_rounds(run.folder) if row["kind"] == "boxes" and row["step"] >= begins]
    return _masks(run, rounds[-1], sample) if rounds and run.recipe.refresh.rule != "none" else None


def _masks(run: Run, number: int, sample: Sample) -> BoxMasks | None:
    """The masks of an image in a round; None where they are gone, broken, or of another image or class list."""
    masks = load(round_folder(run.folder, number) / f"{sample.id}.npz")
    if masks is None or masks.size != sample.size or (masks.classes >= len(run.classes)).any():
        return None
    return masks
