"""The filling rates that a stage's loss needs, measured on first masks before its first step."""

from __future__ import annotations

from pathlib import Path

from lightning_fabric import Fabric

from mixsup.data.sample import Dataset, Float32
from mixsup.errors import MixsupError
from mixsup.losses import FillingRate
from mixsup.masks.filling import FillingRates, box_features, box_rates, summarise_rates
from mixsup.masks.store import load
from mixsup.progress import track

FILE = "filling_rates.json"  # in the run's folder, as `mixsup inspect --filling-rates --json` writes them


def measured(dataset: Dataset, source: str, paths: dict[str, Path], fabric: Fabric) -> FillingRates:
    """Rates of all boxed images, by the first process; the others are told, since k-means may differ in its last digits from machine to machine.

    Args:
        dataset: the training images.
        source: name of the masks' source.
        paths: of the masks, by sample id.
        fabric: of the run.

    Raises:
        MixsupError: a file has gone since it was made.
    """
    found, failure = None, ""
    if fabric.is_global_zero:
        ids = sorted(sample.id for sample in dataset.samples if sample.label == "boxes")
        images = []
        for key in track(ids, "filling rates", len(ids)):
            masks = load(paths[key])
            if masks is None:
                failure = f"{paths[key]}: the masks were removed while they were read; give the cache more room (--cache, $MIXSUP_CACHE)"
                break
            images.append((masks.classes, box_rates(masks), box_features(masks)))
        else:
            found = summarise_rates(source, dataset.classes.all(), ids, images)
    found, failure = fabric.broadcast((found, failure), src=0)
    if found is None:
        raise MixsupError(failure)
    return found


def rates_of_boxes(loss: FillingRate, rates: FillingRates | None, dataset: Dataset) -> dict[str, Float32]:
    """The rate of each box, by sample id, in the order of the boxes."""
    names = dataset.classes.all()
    found = {}
    for sample in dataset.samples:
        if sample.label == "boxes" and sample.boxes is not None:
            parts = rates.assignment[sample.id] if rates is not None else [-1] * len(sample.boxes)
            found[sample.id] = loss.box_rates(rates, names, sample.boxes.classes, parts)
    return found
