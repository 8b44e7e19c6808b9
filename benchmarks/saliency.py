"""Saliency sources against true masks, any class being the object.

    python benchmarks/saliency.py DATA [--split val] [--limit N] [--sources background,opencv] [--options files.folder=MAPS]

Prints a Markdown table: mean absolute error (MAE, lower is better), area under the ROC curve of the pixels of an image (AUC), the highest F-measure over
256 thresholds shared by all images (beta² = 0.3, as the literature on saliency has it), and the median seconds an image. Each is a mean over images; void
pixels count nowhere, and images whose mask is all object or all background are left out. `uniform` is a map of 0.5 everywhere, for comparison.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from mixsup.data import load_dataset
from mixsup.data.derive import load_mask
from mixsup.data.image import read_image
from mixsup.data.sample import BACKGROUND, VOID, Dataset
from mixsup.saliency import build_saliency
from mixsup.workers import one_thread

SOURCES = ("uniform", "background", "opencv", "opencv:spectral-residual")
BETA2 = 0.3


def counts(saliency: Any, truth: Any) -> tuple[Any, Any]:
    """How many object pixels, and how many ground pixels, lie in each of 256 steps of saliency."""
    steps = np.round(saliency * 255).astype(np.int64)
    return np.bincount(steps[truth], minlength=256), np.bincount(steps[~truth], minlength=256)


def auc(objects: Any, ground: Any) -> float:
    """Probability that an object pixel lies above a ground pixel; equal ones count half."""
    below = np.cumsum(ground) - ground
    return float((objects * (below + ground / 2)).sum() / (objects.sum() * ground.sum()))


def f_measures(objects: Any, ground: Any) -> Any:
    """F-measure of `saliency >= threshold` at each of 256 thresholds."""
    hits, false = np.cumsum(objects[::-1])[::-1], np.cumsum(ground[::-1])[::-1]
    precision, recall = hits / np.maximum(hits + false, 1), hits / objects.sum()
    return (1 + BETA2) * precision * recall / np.maximum(BETA2 * precision + recall, 1e-12)


def measure(dataset: Dataset, name: str, options: dict[str, str]) -> dict[str, float]:
    """One source over all images whose masks have object and background."""
    kind, _, method = name.partition(":")
    source = None if kind == "uniform" else build_saliency(kind, {**options, **({"method": method} if method else {})})
    if source is not None:
        source.check()
    errors, areas, curves, seconds = [], [], [], []
    for sample in dataset.samples:
        mask = load_mask(sample, len(dataset.classes))
        truth, seen = mask != BACKGROUND, mask != VOID
        if not truth[seen].any() or truth[seen].all():
            continue
        image = read_image(sample.image)
        start = time.perf_counter()
        saliency = np.full(mask.shape, 0.5, np.float32) if source is None else source(image, sample)
        seconds.append(time.perf_counter() - start)
        errors.append(np.abs(saliency - truth)[seen].mean())
        both = counts(saliency[seen], truth[seen])
        areas.append(auc(*both))
        curves.append(f_measures(*both))
    best = np.mean(curves, axis=0).max()
    return {"images": len(errors), "mae": np.mean(errors), "auc": np.mean(areas), "f": best, "seconds": np.median(seconds)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--limit", type=int, help="the first N images with a mask")
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--options", nargs="*", default=[], metavar="SOURCE.SETTING=VALUE")
    arguments = parser.parse_args()
    data = load_dataset(arguments.data, arguments.split)
    data = data.with_samples([sample for sample in data.samples if sample.mask is not None][: arguments.limit])
    given: dict[str, dict[str, str]] = {}
    for option in arguments.options:
        place, _, value = option.partition("=")
        owner, _, setting = place.partition(".")
        given.setdefault(owner, {})[setting] = value
    print("| source | images | MAE | AUC | highest F | median s / image |\n|---|---|---|---|---|---|")
    with one_thread():
        for each in arguments.sources.split(","):
            row = measure(data, each, given.get(each.partition(":")[0], {}))
            print(
                f"| `{each}` | {row['images']} | {row['mae']:.3f} | {row['auc']:.3f} | {row['f']:.3f} | {row['seconds']:.3f} |",
                flush=True,
            )
