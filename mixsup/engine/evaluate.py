"""Evaluation: one streaming confusion matrix on the device, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch.utils.data import Subset
from torchmetrics.classification import MulticlassConfusionMatrix

from mixsup import metrics
from mixsup.data.derive import load_mask
from mixsup.data.sample import BACKGROUND, VOID, Classes, Dataset, Sample
from mixsup.engine.batches import Pictures, whole_loader
from mixsup.engine.predict import Predictor
from mixsup.errors import MixsupError
from mixsup.progress import track


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        scores: see `metrics.scores`; with `boundary` also `metrics.BoundaryScores.result`.
        matrix: C×C int64, rows are the truth.
        per_image: mean IoU (0 to 1) by sample id over the classes of that image, of the images that this process saw.
    """

    scores: dict[str, Any]
    matrix: np.ndarray[Any, np.dtype[np.int64]]
    per_image: dict[str, float] = field(default_factory=dict)


def with_masks(dataset: Dataset) -> list[Sample]:
    """The samples that can be evaluated on, without the labels that evaluation does not look at.

    Raises:
        MixsupError: none has a mask.
    """
    samples = [replace(sample, tags=None, boxes=None) for sample in dataset.samples if sample.mask is not None]
    if not samples:
        raise MixsupError(f"{dataset.source}: no image of this split has a mask, so nothing can be measured; name a split with masks")
    return samples


def refuse_void(dataset: Dataset) -> None:
    """Raises a MixsupError when all masks are void from edge to edge: a score of 0 would say something else."""
    if all((load_mask(sample, len(dataset.classes)) == VOID).all() for sample in dataset.samples):
        raise MixsupError(
            f"{dataset.source}: every mask of this split is void from edge to edge, so nothing can be measured; name another split"
        )


def refuse_other_classes(ours: Classes, theirs: Classes, what: str, whose: str, remedy: str) -> None:
    """Raises a MixsupError when two class lists differ, with the first difference."""
    if theirs != ours:
        pairs = zip(ours.names, theirs.names, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), tuple(f"{len(each.names)} classes" for each in (ours, theirs)))
        raise MixsupError(f"{what}: its classes differ from {whose} ({first[1]!r} for {first[0]!r}); {remedy}")


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    fabric: Fabric | None = None,
    *,
    workers: int = 0,
    boundary: bool = False,
    title: str = "evaluating",
) -> Evaluation:
    """Predicts the images that have masks, at their own size, and counts.

    Args:
        predictor: the model with its settings.
        dataset: the split.
        fabric: with several processes, each takes its share and the counts are summed.
        workers: loader processes.
        boundary: also boundary and interior IoU and boundary IoU (on the CPU; this process's share only).
        title: of the progress bar.

    Raises:
        MixsupError: no image has a mask.
    """
    samples = with_masks(dataset)
    num_classes = len(dataset.classes)
    rank, world = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    # Without `fabric` this process counts alone, even where others exist (the first one writes the report while they wait).
    tally = MulticlassConfusionMatrix(num_classes, ignore_index=VOID, validate_args=False, sync_on_compute=world > 1).to(predictor.device)
    edges = metrics.BoundaryScores(num_classes) if boundary else None
    own: Sequence[int] = range(rank, len(samples), world)
    loader = whole_loader(Subset(Pictures(samples, num_classes), own), workers)
    per_image: dict[str, float] = {}
    for item in track(loader, title, len(own)):
        if isinstance(item, str):
            raise MixsupError(item)
        index, image, truth = item
        found = predictor.classes(image)
        unknown = samples[index].unknown(num_classes)
        if unknown.any():  # nobody looked for these here, so the truth calls them background
            found[torch.from_numpy(unknown).to(found.device)[found.long()]] = BACKGROUND
        before = tally.confmat.clone()
        tally.update(found[None].long(), torch.as_tensor(truth, device=predictor.device)[None].long())
        part = metrics.iou_per_class((tally.confmat - before).cpu().numpy())
        per_image[samples[index].id] = float(np.nanmean(part)) if not np.isnan(part).all() else 1.0
        if edges is not None:
            edges.add(np.asarray(truth), found.cpu().numpy())
    matrix = np.asarray(tally.compute().cpu().numpy(), np.int64)
    scores = metrics.scores(matrix, dataset.classes.all())
    if edges is not None:
        scores |= edges.result()
    return Evaluation(scores, matrix, per_image)
