"""Training speed of batches that mix tags, boxes and masks against batches of masks, on one network and one data set.

    python benchmarks/mixed.py DATA --network NAME_OR_YAML [--split train+tagged] [--size 256] [--batch 8] [--steps 16] [--rounds 5] [--cache FOLDER]

Two runs take turns: `full` on true masks and `diverse` on masks=1:boxes=1:tags=1, with their loaders, as `mixsup train` runs them; first masks are made
before. Printed: the median over the rounds of images per second of the mixed run over those of the plain one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mixsup.engine.optimiser import parameter_groups
from mixsup.engine.options import Options
from mixsup.engine.prepare import prepare
from mixsup.engine.refresh import use_round
from mixsup.engine.run import MetricsFile
from mixsup.engine.train import stretch
from mixsup.progress import Steps
from mixsup.recipes import load_recipe


def contestant(name: str, labels: str, folder: Path, arguments: argparse.Namespace) -> Callable[[int], float]:
    """A run; called with a number it trains another stretch and returns images per second."""
    overrides = {"size": arguments.size, "batch": arguments.batch, "steps": 100_000}
    recipe = load_recipe(name, network=arguments.network, overrides=overrides)
    options = Options(labels=labels, split=arguments.split, val="none", quiet=True, cache=arguments.cache)
    (job,) = prepare(arguments.data, recipe, folder, options)
    optimizer = torch.optim.AdamW(
        parameter_groups(job.bare, job.bare.network, job.schedule.lr, job.schedule.new_layers, job.schedule.weight_decay)
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    job.bare.to(memory_format=torch.channels_last)
    model, optimizer = job.fabric.setup(job.bare, optimizer)
    metrics = MetricsFile(folder / "metrics.csv", 0)
    use_round(job, 0)

    def train(number: int) -> float:
        with Steps("", job.steps, quiet=True) as bar:
            start = time.perf_counter()
            stretch(job, model, optimizer, rates, metrics, bar, number * arguments.steps, (number + 1) * arguments.steps)
            return float(arguments.steps * arguments.batch / (time.perf_counter() - start))

    print(f"{name}: {job.run.facts['images']} on {job.run.facts['device']}, {job.run.facts['precision']}", flush=True)
    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            contestant("full", "masks", Path(folder) / "plain", arguments),
            contestant("diverse", "masks=1:boxes=1:tags=1", Path(folder) / "mixed", arguments),
        ]
        ratios = []
        for number in range(arguments.rounds + 1):
            order = runs if number % 2 else runs[::-1]
            speeds = {run: run(number) for run in order}
            if number:  # the first pair warms up
                plain, mixed = (speeds[run] for run in runs)
                ratios.append(mixed / plain)
                print(f"round {number}: plain {plain:.2f}, mixed {mixed:.2f} images per second, {ratios[-1]:.3f}", flush=True)
    print(f"mixed / plain: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
