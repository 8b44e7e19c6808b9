"""What it costs to refresh BoxSup's masks: scoring by superpixels against scoring by pixels, and a whole round against its epoch.

    python benchmarks/refresh.py DATA --network NAME_OR_YAML [--size 256] [--images 12] [--steps 24] [--rounds 3]

First all candidates of each image's whole pool (`mcg`, some hundred) are scored for all its boxes (BoxSup, eqs. 2 to 4, without notice of other boxes): by
the counts over superpixels and the matrix product of `mixsup.refresh.boxsup`, and candidate by candidate on H×W masks. Both must name the same ones.
Then a refresh of all boxed images and a stretch of training take turns in one run, as `mixsup train --recipe boxsup` does them, with their loader
processes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mixsup.data.derive import boxes_of
from mixsup.data.image import read_image
from mixsup.engine.optimiser import parameter_groups
from mixsup.engine.options import Options
from mixsup.engine.predict import Predictor, view
from mixsup.engine.prepare import Job, prepare
from mixsup.engine.refresh import refresh, use_round
from mixsup.engine.run import MetricsFile
from mixsup.engine.train import stretch
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.mcg import MCG
from mixsup.progress import Steps
from mixsup.recipes import load_recipe
from mixsup.refresh.boxsup import BoxSup
from mixsup.refresh.rule import Case


def cases(job: Job, count: int) -> list[Case]:
    """Images spread over the training set, each with its whole pool and the network's scores."""
    predictor = Predictor(job.bare.eval(), job.schedule.size, job.schedule.resolution, job.fabric.device, autocast=job.fabric.autocast)
    found = []
    for index in np.linspace(0, len(job.train) - 1, count).round().astype(int):
        sample = job.train.samples[index]
        image, boxes = read_image(sample.image), boxes_of(sample, len(job.run.classes))
        masks = [np.ones((y1 - y0, x1 - x0), np.uint8) for x0, y0, x1, y1 in boxes.windows(sample.size)]
        seen = view(image, job.schedule.size, job.schedule.resolution, job.run.recipe.refresh.scale)
        scores = predictor.scores(torch.from_numpy(seen[None]))[0]
        first = BoxMasks.of(boxes, sample.size, masks)
        found.append(Case(image, scores, first, first, pool=MCG().propose(image)))
    return found


def by_pixels(case: Case) -> list[int]:
    """The cheapest candidate of each box, from H×W masks of all candidates: one mask, its box and its loss at a time."""
    assert case.pool is not None
    height, width = case.scores.shape[1:]
    ceiling = np.log(len(case.scores))
    loss = np.minimum(-np.log(np.maximum(case.scores, 1e-12)), ceiling) / ceiling
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip((height, width), case.first.size, strict=True))
    best = [(np.inf, -1)] * len(case.first)
    for candidate in range(len(case.pool)):
        whole = case.pool.mask(candidate)
        y, x = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
        box = (x[0], y[0], x[-1] + 1, y[-1] + 1) if len(y) else (0, 0, 0, 0)
        small = whole[rows[:, None], columns[None]]
        for index, ((x0, y0, x1, y1), class_id) in enumerate(zip(case.first.windows, case.first.classes, strict=True)):
            shared = max(0, min(x1, box[2]) - max(x0, box[0])) * max(0, min(y1, box[3]) - max(y0, box[1]))
            union = (x1 - x0) * (y1 - y0) + (box[2] - box[0]) * (box[3] - box[1]) - shared
            energy = float(np.where(small, loss[class_id], loss[0]).mean())
            best[index] = min(best[index], ((1 - shared / max(union, 1)) + 3.0 * energy, candidate))
    return [candidate for _, candidate in best]


def scoring(found: list[Case], rounds: int) -> None:
    rule = BoxSup(sample=1, passes=0, floor=0)
    fast: list[float] = []
    slow: list[float] = []
    differ = boxes = 0
    for number in range(rounds):
        for case in found:
            assert case.pool is not None
            start = time.perf_counter()
            one = rule.choose(case, case.pool)
            middle = time.perf_counter()
            fast.append(middle - start)
            if number == 0:  # the slow way is slow, and steady
                two = by_pixels(case)
                slow.append(time.perf_counter() - middle)
                boxes += len(two)
                differ += sum(a != b for a, b in zip(one, two, strict=True))
    candidates = statistics.mean(len(case.pool or ()) for case in found)
    ratio = statistics.median(slow) / statistics.median(fast)
    print(f"scoring {candidates:.0f} candidates for {boxes / len(found):.1f} boxes an image: by superpixels {1e3 * statistics.median(fast):.2f} ms, "
          f"by pixels {1e3 * statistics.median(slow):.0f} ms, {ratio:.0f} times; {differ} of {boxes} boxes differ (float32 ties)")  # fmt: skip


def rounds_against_epochs(job: Job, steps: int, rounds: int, folder: Path) -> None:
    schedule = job.schedule
    optimizer = torch.optim.AdamW(parameter_groups(job.bare, job.bare.network, schedule.lr, schedule.new_layers, schedule.weight_decay))
    rates = [group["lr"] for group in optimizer.param_groups]
    job.bare.to(memory_format=torch.channels_last)
    model, optimizer = job.fabric.setup(job.bare, optimizer)
    metrics = MetricsFile(folder / "metrics.csv", 0)
    use_round(job, 0)
    shares = []
    with Steps("", job.steps, quiet=True) as bar:
        for number in range(rounds + 1):
            start = time.perf_counter()
            refresh(job, number + 1, number * steps + 1)  # before the first step the network would not be asked
            middle = time.perf_counter()
            use_round(job, number + 1)
            stretch(job, model, optimizer, rates, metrics, bar, number * steps, (number + 1) * steps)
            end = time.perf_counter()
            epoch = (end - middle) / steps * len(job.train) / schedule.batch
            if number:  # the first pair warms up
                shares.append((middle - start) / epoch)
                print(
                    f"round {number}: refresh {middle - start:.1f} s, epoch {epoch:.1f} s ({steps} steps measured), {100 * shares[-1]:.1f} %",
                    flush=True,
                )
    print(f"refresh / epoch: median {100 * statistics.median(shares):.1f} % on {job.run.facts['device']}, {job.run.facts['precision']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    overrides = {"size": arguments.size, "batch": arguments.batch, "steps": 100_000}
    recipe = load_recipe("boxsup", network=arguments.network, overrides=overrides, settings=arguments.settings)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(labels="boxes", val="none", quiet=True, cache=arguments.cache)
        (job,) = prepare(arguments.data, recipe, Path(folder) / "run", options)
        scoring(cases(job, arguments.images), arguments.rounds)
        rounds_against_epochs(replace(job), arguments.steps, arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
