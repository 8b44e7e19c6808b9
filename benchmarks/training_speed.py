"""Steps per second of mixsup's training loop against a bare PyTorch loop.

    python benchmarks/training_speed.py DATA --network NAME_OR_YAML [--size 256] [--batch 8] [--steps 12] [--rounds 6]

Both train the same network on the same views (files, decoding, targets, augmentation, loader processes); the bare loop is what one writes by hand:
the library's model, cross-entropy, AdamW, autocast. They take turns in one process, so that a machine whose speed drifts does not favour one of
them; each turn includes the start of its loader. Printed: seconds a step of both, and the ratio round by round with its median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.utils.data import DataLoader

from mixsup.engine.batches import Draws, TrainingViews, collate
from mixsup.engine.optimiser import parameter_groups
from mixsup.engine.options import Options
from mixsup.engine.prepare import prepare
from mixsup.engine.run import MetricsFile
from mixsup.engine.train import stretch
from mixsup.networks.weights import load_into, read_state
from mixsup.progress import Steps
from mixsup.recipes import load_recipe


def bare_turns(job, steps: int) -> Iterator[float]:  # type: ignore[no-untyped-def]
    """A loop without mixsup around the views; yields seconds for each turn of `steps` steps."""
    choice, schedule, device = job.run.recipe.network, job.schedule, job.fabric.device
    model = smp.create_model(
        choice.arch, choice.encoder, encoder_weights=None, classes=len(job.run.classes),
        **({"encoder_output_stride": choice.output_stride} if choice.output_stride else {}), **choice.encoder_options,
    )  # fmt: skip
    if choice.weights not in ("none", "imagenet"):
        load_into(model.encoder.model, read_state(Path(choice.weights)), choice.weights)
    model = model.to(device, memory_format=torch.channels_last)
    mean, std = (
        torch.tensor(value, device=device).view(1, 3, 1, 1)
        for value in (choice.mean or (0.485, 0.456, 0.406), choice.std or (0.229, 0.224, 0.225))
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": model.encoder.parameters(), "lr": schedule.lr},
            {"params": model.decoder.parameters()},
            {"params": model.segmentation_head.parameters()},
        ],
        lr=schedule.lr * schedule.new_layers,
    )
    loss_function = nn.CrossEntropyLoss(ignore_index=255)
    model.train()
    if choice.freeze_batchnorm:
        for module in model.encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    bf16 = job.run.facts["precision"] == "bf16-mixed"
    first = 0
    while True:
        start = time.perf_counter()
        views = TrainingViews(job.train.samples, job.targets, schedule, 0)
        draws = Draws(["masks"] * len(views), schedule.batch, first, first + steps, 0)
        loader = DataLoader(
            views, batch_sampler=draws, collate_fn=collate, num_workers=job.workers, prefetch_factor=4 if job.workers else None
        )
        for batch in loader:
            images = (batch["image"].to(device).float() / 255 - mean) / std
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                scores = model(images)
            loss = loss_function(scores.float(), batch["target"].to(device).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        first += steps
        yield time.perf_counter() - start


def mixsup_turns(job, steps: int, folder: Path) -> Iterator[float]:  # type: ignore[no-untyped-def]
    """mixsup's own loop, metrics.csv and all."""
    schedule = job.schedule
    optimizer = torch.optim.AdamW(parameter_groups(job.bare, job.bare.network, schedule.lr, schedule.new_layers, schedule.weight_decay))
    rates = [group["lr"] for group in optimizer.param_groups]
    job.bare.to(memory_format=torch.channels_last)
    model, optimizer = job.fabric.setup(job.bare, optimizer)
    metrics, first = MetricsFile(folder / "metrics.csv", 0), 0
    job.targets.paths = dict(job.targets.first)
    with Steps("", job.steps, quiet=True) as bar:
        while True:
            start = time.perf_counter()
            stretch(job, model, optimizer, rates, metrics, bar, first, first + steps)
            if job.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            first += steps
            yield time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--labels", default="masks")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    overrides = {"size": arguments.size, "batch": arguments.batch, "steps": 100_000}
    recipe = load_recipe("rectangles", network=arguments.network, overrides=overrides)
    with tempfile.TemporaryDirectory() as folder:
        (job,) = prepare(arguments.data, recipe, Path(folder) / "run", Options(labels=arguments.labels, quiet=True))
        ours, bare = mixsup_turns(job, arguments.steps, Path(folder)), bare_turns(job, arguments.steps)
        next(ours), next(bare)  # warm up
        pairs = []
        for number in range(arguments.rounds):
            # Who goes first alternates, in case the second one finds warmer caches.
            pair = (next(ours), next(bare)) if number % 2 else tuple(reversed((next(bare), next(ours))))
            pairs.append(pair)
            mine, theirs = (seconds / arguments.steps for seconds in pair)
            print(f"round {number + 1}: mixsup {mine:.3f} s a step, bare {theirs:.3f} s a step, ratio {mine / theirs:.3f}", flush=True)
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    print(f"median ratio of time mixsup / bare: {ratio:.3f} on {job.run.facts['device']}, {job.run.facts['precision']}")


if __name__ == "__main__":
    main()
