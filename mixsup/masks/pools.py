"""How good a pool of proposals could be: for each true object, the best candidate of its image, whether or not anything would choose it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mixsup.data.derive import boxes_of, load_mask
from mixsup.data.image import read_image
from mixsup.data.sample import Bool, Boxes, Dataset, Sample, UInt8
from mixsup.errors import Problem
from mixsup.masks.source import MaskSource, fault
from mixsup.progress import track
from mixsup.workers import spread

_AT_ONCE = 16  # objects whose full-size masks are held together


def true_objects(truth: UInt8, boxes: Boxes) -> list[tuple[int, Bool]]:
    """The objects of an image: class, and the pixels of it inside a box's window, H×W bool; crowds and empty ones left out.

    Args:
        truth: H×W class ids, 255 void.
        boxes: N boxes.
    """
    found = []
    for (x0, y0, x1, y1), class_id, crowd in zip(boxes.windows(truth.shape), boxes.classes, boxes.crowd, strict=True):
        if crowd:
            continue
        whole = np.zeros(truth.shape, bool)
        whole[y0:y1, x0:x1] = truth[y0:y1, x0:x1] == class_id
        if whole.any():
            found.append((int(class_id), whole))
    return found


def score_pools(dataset: Dataset, source: MaskSource, jobs: int = -1) -> tuple[dict[str, Any], list[Problem]]:
    """Scores the proposals of a source that has `propose`.

    Args:
        dataset: samples with true masks.
        source: with a method `propose(image)`, whose result has `members` (P×S) and `best_iou_with(masks)`.
        jobs: processes, -1 for one a core.

    Returns:
        `best_candidate_iou` (mean over objects, 0 to 1), `recall_50` and `recall_70` (share of objects with a candidate of that IoU), `proposals` (mean
        of an image), each None where there is nothing to average; `per_class_best_candidate_iou` (class name → mean, None without objects); and the
        faults met.
    """
    best: list[tuple[int, float]] = []
    sizes: list[int] = []
    problems: list[Problem] = []
    one = partial(_score_image, source=source, num_classes=len(dataset.classes))
    results = spread(one, dataset.samples, jobs if len(dataset.samples) >= 8 else 1)
    for found in track(results, f"proposals ({source.name})", len(dataset.samples)):
        if isinstance(found, Problem):
            problems.append(found)
        else:
            best += found[0]
            sizes.append(found[1])
    values = np.array([value for _, value in best])
    by_class = {name: [value for index, value in best if index == number] for number, name in enumerate(dataset.classes.all())}
    return {
        "best_candidate_iou": float(values.mean()) if best else None,
        "recall_50": float((values >= 0.5).mean()) if best else None,
        "recall_70": float((values >= 0.7).mean()) if best else None,
        "proposals": float(np.mean(sizes)) if sizes else None,
        "per_class_best_candidate_iou": {name: float(np.mean(each)) if each else None for name, each in by_class.items()},
    }, problems


def _score_image(sample: Sample, source: Any, num_classes: int) -> tuple[list[tuple[int, float]], int] | Problem:
    try:
        boxes, truth = boxes_of(sample, num_classes), load_mask(sample, num_classes)
        proposals = source.propose(read_image(sample.image))
        best: list[tuple[int, float]] = []
        for start in range(0, len(boxes), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            objects = true_objects(truth, Boxes(boxes.xyxy[part], boxes.classes[part], boxes.crowd[part]))
            if objects:
                values = proposals.best_iou_with([mask for _, mask in objects])
                best += [(class_id, float(value)) for (class_id, _), value in zip(objects, values, strict=True)]
        return best, len(proposals.members)
    except Exception as error:
        return fault(source, sample, error)
