"""Where inside their boxes masks and networks are wrong: what holds a recipe back, in a picture that shows no photograph.

    python benchmarks/box_errors.py DATA [--split val] --picture FILE.png SOURCE_OR_RUN ...

Each column is a mask source, or a run whose network predicts. Every box of at least 16 × 16 pixels is laid on one square, top to top, and the share of boxes
that are wrong at each place is drawn: above what is taken for the object and is not, below what is of the object and is missed. Void pixels count nowhere.
Printed: both shares of the boxes' area, in per cent, the mean IoU over boxes, and the share of errors within 2 % of the box's longer side of a true boundary,
where a mask is wrong by its outline and not by what it takes for the object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

import mixsup
from mixsup.data import load_dataset
from mixsup.data.derive import boxes_of, load_mask
from mixsup.data.image import read_image
from mixsup.data.sample import VOID, Bool, Dataset, Sample, UInt8
from mixsup.masks import build_source, compose

CELLS, SMALLEST, OUTLINE = 64, 16, 0.02


@dataclass
class Errors:
    """Sums over boxes; the maps are CELLS × CELLS."""

    extra: np.ndarray = field(default_factory=lambda: np.zeros((CELLS, CELLS)))
    missed: np.ndarray = field(default_factory=lambda: np.zeros((CELLS, CELLS)))
    seen: np.ndarray = field(default_factory=lambda: np.zeros((CELLS, CELLS)))
    ious: list[float] = field(default_factory=list)
    wrong: int = 0
    at_outline: int = 0

    def add(self, found: Bool, truth: Bool, known: Bool) -> None:
        """One box: what is taken for the object, what is of it, and where that is known, each h×w."""
        for total, part in ((self.extra, found & ~truth & known), (self.missed, truth & ~found & known), (self.seen, known)):
            total += cv2.resize(part.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        either = int(((found | truth) & known).sum())
        self.ious.append(float((found & truth & known).sum() / either) if either else 1.0)
        errors = (found != truth) & known
        self.wrong += int(errors.sum())
        self.at_outline += int((errors & outline(truth, round(OUTLINE * max(truth.shape)))).sum())


def outline(truth: Bool, width: int) -> Bool:
    """The pixels at most `width` (at least 1) from the boundary of a mask; the frame of the window is none."""
    size = 2 * max(width, 1) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    mask = truth.astype(np.uint8)
    return np.asarray(cv2.dilate(mask, kernel) != cv2.erode(mask, kernel), bool)


def labeller(name: str, classes: int) -> Callable[[Sample], UInt8]:
    """What a run's network, or a mask source given the boxes, makes of an image, H×W."""
    if Path(name).is_dir():
        network = mixsup.load(name, checkpoint="last")
        return lambda sample: np.asarray(network.predict(read_image(sample.image)), np.uint8)
    source = build_source(name)
    return lambda sample: compose(source(read_image(sample.image), boxes_of(sample, classes), sample))


def measure(dataset: Dataset, label: Callable[[Sample], UInt8]) -> Errors:
    """The errors of one column over all boxes of images with a true mask."""
    errors, count = Errors(), len(dataset.classes)
    for sample in dataset.samples:
        if sample.mask is None:
            continue
        labels, truth, boxes = label(sample), load_mask(sample, count), boxes_of(sample, count)
        for (x0, y0, x1, y1), class_id, crowd in zip(boxes.windows(truth.shape), boxes.classes, boxes.crowd, strict=True):
            if crowd or min(x1 - x0, y1 - y0) < SMALLEST:
                continue
            inside = truth[y0:y1, x0:x1]
            errors.add(labels[y0:y1, x0:x1] == class_id, inside == class_id, inside != VOID)
    return errors


def draw(results: dict[str, Errors], path: Path) -> None:
    """A column a source or run, above what is taken too much, below what is missed."""
    from matplotlib.figure import Figure

    shares = {name: [total / np.maximum(one.seen, 1) for total in (one.extra, one.missed)] for name, one in results.items()}
    highest = max(float(share.max()) for pair in shares.values() for share in pair)
    figure = Figure(figsize=(1.7 * len(shares) + 1.2, 3.7), layout="constrained")
    axes = figure.subplots(2, len(shares), squeeze=False)
    for column, (name, pair) in enumerate(shares.items()):
        for place, share, title in zip(axes[:, column], pair, ("too much", "missed"), strict=True):
            picture = place.imshow(share, vmin=0, vmax=highest, cmap="magma_r")
            place.set(xticks=[], yticks=[])
            place.set_title(f"{name if place is axes[0, column] else ''}\n{title} {100 * share.mean():.1f} %", fontsize=8)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of boxes that are wrong here")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("columns", nargs="+", metavar="SOURCE_OR_RUN")
    parser.add_argument("--split", default="val")
    parser.add_argument("--picture", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data, arguments.split)
    results = {}
    print("| | mean IoU over boxes % | too much, % of the boxes | missed, % | errors at the outline, % |\n|---|---:|---:|---:|---:|")
    for column in arguments.columns:
        name = Path(column).name
        found = results[name] = measure(dataset, labeller(column, len(dataset.classes)))
        if not found.ious:
            raise SystemExit(f"{arguments.data}: no box of {SMALLEST} pixels a side with a true mask")
        extra, missed = (100 * float((total / np.maximum(found.seen, 1)).mean()) for total in (found.extra, found.missed))
        print(
            f"| {name} | {100 * np.mean(found.ious):.1f} | {extra:.1f} | {missed:.1f} | {100 * found.at_outline / max(found.wrong, 1):.0f} |",
            flush=True,
        )
    draw(results, arguments.picture)


if __name__ == "__main__":
    main()
