"""What `mixsup train` is told besides the recipe: labels, splits, seed, and the machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from mixsup.errors import MixsupError

# What gloo and NCCL say of a process that is not there any more.
_GONE = ("closed by peer", "reset by peer", "NCCL error", "remote process exited")
_PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Options:
    """What is not part of the recipe.

    Attributes:
        labels: label budget, as `--labels`; None uses the strongest label of each image.
        split, val: names of the splits; None takes `train` and `val` where there are such.
        format: of the data set, when its layout is ambiguous.
        seed: of all draws.
        init: a run whose network to start from.
        resume: go on with an interrupted run.
        skip_bad: leave images at fault out.
        cache: folder of first masks; None for the user's cache.
        cluster: address of a Dask scheduler, whose workers make the first masks; None for the cores of this machine.
        accelerator, devices, nodes, strategy: as Lightning Fabric.
        precision: auto (bf16 where the hardware has it), 32-true, bf16-mixed or 16-mixed; weights are float32 in all of them.
        workers: loader processes; None chooses.
        report: write report.html at the end.
        quiet: nothing on stderr.
    """

    labels: str | None = None
    split: str | None = None
    val: str | None = None
    format: str | None = None
    seed: int = 0
    init: str | Path | None = None
    resume: bool = False
    skip_bad: bool = False
    cache: str | Path | None = None
    cluster: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    report: bool = True
    quiet: bool = False


def refuse_flags(options: Options) -> None:
    """Refuses flags that mean nothing on any machine.

    Raises:
        MixsupError: the flag, and what it can be.
    """
    if options.strategy != "auto" and not options.strategy.startswith("ddp"):
        raise MixsupError(
            f"--strategy {options.strategy}: use auto, ddp or ddp_find_unused_parameters_true; checkpoints of sharded models are not written yet"
        )
    if options.precision not in _PRECISIONS:
        raise MixsupError(f"--precision {options.precision}: use {', '.join(_PRECISIONS[:-1])} or {_PRECISIONS[-1]}; weights stay float32")
    if not 0 <= options.seed < 2**32:
        raise MixsupError(f"--seed {options.seed}: give a whole number from 0 to {2**32 - 1}")
    if options.workers is not None and options.workers < 0:
        raise MixsupError(f"--workers {options.workers}: give 0 or more loader processes")


def start_fabric(options: Options) -> Fabric:
    """Device, precision and processes as the flags have them; the processes are started.

    Raises:
        MixsupError: the machine has no such device, or the flags do not go together.
    """
    precision: Any = default_precision(options.accelerator) if options.precision == "auto" else options.precision
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # the run says its precision itself
    try:
        fabric = Fabric(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=options.strategy,
            precision=precision,
        )
        fabric.launch()
    except Exception as error:  # Fabric has error classes of its own for flags that do not fit the machine
        raise MixsupError(
            f"cannot start on {options.accelerator} x {options.devices}: {' '.join(str(error).split())[:200]}; correct the flags"
        ) from None
    return fabric


def peer_gone(error: Exception) -> bool:
    """Whether an error says that another process of the run has ended."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return together and any(word in str(error) for word in _GONE)


def default_precision(accelerator: str) -> str:
    """bf16 where the hardware computes in it, else float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        # Older cards say that they support bf16 and emulate it; float16 would need a loss scale, which is one more state to resume.
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return "bf16-mixed" if any(check is not None and check() for check in checks) else "32-true"
    return "32-true"
