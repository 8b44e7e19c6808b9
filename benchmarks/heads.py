"""Time and memory of the heads on one network, and of the filling-rate loss against cross-entropy.

    python benchmarks/heads.py --network NAME_OR_YAML [--classes 21] [--size 321] [--batch 8] [--steps 3] [--rounds 5] [--device auto]

Training steps (forward, criterion with the head's own loss, backward, AdamW) and inference of single images, on noise with two boxes an image; weights
are not loaded. All variants take turns in every round, and the order turns with the rounds, so that a machine whose speed drifts favours none. Printed:
the median over the rounds of each variant's time over that of `plain` with cross-entropy, and the peak of memory over plain's: what a GPU has allocated, or on
the CPU the largest resident set of a process that trains this variant alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mixsup.engine.api import choose_device
from mixsup.engine.model import SegmentationModel
from mixsup.engine.options import default_precision
from mixsup.heads import build_head, head_losses
from mixsup.losses import Criterion
from mixsup.networks import build_network
from mixsup.recipe import NetworkChoice
from mixsup.recipes import network_choice

VARIANTS = {
    "plain": ("plain", "cross-entropy"),
    "bgm": ("bgm", "cross-entropy"),
    "cm": ("cm", "cross-entropy"),
    "bcm": ("bcm", "cross-entropy"),
    "plain, filling-rate": ("plain", "filling-rate"),
    "bcm, filling-rate": ("bcm", "filling-rate"),
}


def noise(batch: int, size: int, classes: int, device: torch.device) -> tuple[torch.Tensor, dict[str, Any]]:
    """Images 0..1, and a batch as the loader makes it: two boxes an image whose masks are filled, a quarter and a ninth of the view."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator)
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.6], [0.5, 0.5, 0.83, 0.83]]) * size
    target = torch.zeros(batch, size, size, dtype=torch.uint8)
    ids = torch.randint(1, classes, (batch, 2), generator=generator)
    for image in range(batch):
        for box, class_id in zip(boxes.round().int().tolist(), ids[image], strict=True):
            target[image, box[1] : box[3], box[0] : box[2]] = class_id
    return images.to(device).contiguous(memory_format=torch.channels_last), {
        "target": target.to(device),
        "kind": ["boxes"] * batch,
        "id": [""] * batch,
        "boxes": [boxes] * batch,
        "box_classes": list(ids),
        "box_crowd": [torch.zeros(2, dtype=torch.bool)] * batch,
        "box_rates": [torch.tensor([0.6, 0.4])] * batch,
    }


def contestant(name: str, arguments: argparse.Namespace, device: torch.device) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step and an inference of one variant."""
    head, loss = VARIANTS[name]
    choice = NetworkChoice.model_validate({**network_choice(arguments.network), "weights": "none"})
    torch.manual_seed(0)
    network = build_network(choice)
    model = SegmentationModel(network, build_head(head, network, arguments.classes), arguments.classes)
    model = model.to(device, memory_format=torch.channels_last)
    criterion = Criterion({"boxes": loss}, head=head_losses(head))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    images, batch = noise(arguments.batch, arguments.size, arguments.classes, device)
    bf16 = default_precision(device.type) == "bf16-mixed"

    def train() -> None:
        model.train()
        for _ in range(arguments.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                outputs = model(images)
            optimizer.zero_grad()
            torch.stack(list(criterion(outputs, batch).values())).sum().backward()
            optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        model.eval()
        for index in range(arguments.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                model(images[index % len(images)][None])

    return train, infer


def timed(run: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds, and on a GPU the peak of allocated memory in MiB."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else float("nan")
    return time.perf_counter() - start, peak


def resident(name: str, arguments: argparse.Namespace) -> float:
    """MiB that a process of its own has held at most after training steps of one variant on the CPU."""
    contestant(name, arguments, torch.device("cpu"))[0]()
    # Linux; what getrusage says of a new process counts from its parent's peak.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="deeplab-largefov")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    runs = {name: contestant(name, arguments, device) for name in VARIANTS}
    for train, infer in runs.values():  # warm up
        train(), infer()
    # Of each variant: per round the seconds of training and inference; on a GPU all models stay in memory, so peaks are compared by their differences.
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    peaks: dict[str, float] = {}
    names = list(VARIANTS)
    for number in range(arguments.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            train, infer = runs[name]
            (training, peaks[name]), (inference, _) = timed(train, device), timed(infer, device)
            seconds[name].append((training / arguments.steps, inference / arguments.steps))
    if device.type == "cpu":
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            peaks = dict(zip(names, pool.starmap(resident, [(name, arguments) for name in names], chunksize=1), strict=True))
    print(
        f"{arguments.network}, {arguments.classes} classes, {arguments.batch} x {arguments.size} pixels, {device.type}, {arguments.rounds} rounds"
    )
    for name in names:
        ratios = [
            statistics.median(mine[part] / plain[part] for mine, plain in zip(seconds[name], seconds["plain"], strict=True))
            for part in (0, 1)
        ]
        print(
            f"{name:22} training step x {ratios[0]:.3f}, inference x {ratios[1]:.3f}, peak {peaks[name]:.0f} MiB ({peaks[name] - peaks['plain']:+.0f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
