"""Checkpoints: weights as safetensors, and the training state that an interrupted run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mixsup.engine.model import SegmentationModel, build_model
from mixsup.engine.options import peer_gone
from mixsup.engine.run import BEST, LAST, Run
from mixsup.errors import MixsupError
from mixsup.files import write_with

_SCALE = "gradient_scale"  # key in the training state


def save_weights(path: Path, model: nn.Module, step: int) -> None:
    """Writes the weights, whole or not at all; the step is in the file's metadata."""
    # Copies: safetensors refuses weights that share memory, as two layers of a network may.
    state = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()}
    try:
        write_with(path, lambda temporary: save_file(state, temporary, metadata={"step": str(step)}))
    except SafetensorError as error:
        raise MixsupError(
            f"{path}: cannot write ({error}); what was there before is whole; free space, then go on with --resume"
        ) from error


def load_weights(path: Path, model: nn.Module) -> None:
    """Loads weights into a model of the same architecture.

    Raises:
        MixsupError: the file is missing or broken, or belongs to another architecture.
    """
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise MixsupError(f"{path}: no checkpoint yet; train first, or go on with --resume") from None
    except (SafetensorError, OSError) as error:
        raise MixsupError(f"{path}: broken checkpoint ({error}); go on with --resume") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:150]
        raise MixsupError(
            f"{path}: weights of another network than recipe.yaml says ({reason}); restore the run's own recipe.yaml"
        ) from None


def load_model(run: Run, which: str = "best", device: torch.device | str = "cpu") -> SegmentationModel:
    """The model of a run, in evaluation mode.

    Args:
        run: the run.
        which: `best` (highest validation mean IoU) or `last`.
        device: to put it on.

    Raises:
        MixsupError: another name, no checkpoint, or one of another architecture.
    """
    files = {"best": BEST, "last": LAST}
    if which not in files:
        raise MixsupError(f"checkpoint {which!r}: there are {' and '.join(files)}; choose one of them")
    path = run.folder / files[which]
    model = build_model(run.recipe.network, _head_of(run, path), len(run.classes), pretrained=False)
    load_weights(path, model)
    return model.to(device).eval()


def _head_of(run: Run, path: Path) -> str:
    """The head that a weights file has: of the stage that wrote it, which in a run that is not at its end may not be the last."""
    if not run.recipe.stages or not path.is_file():
        return run.recipe.head
    try:
        with safe_open(path, "pt") as file:
            step = int((file.metadata() or {}).get("step", "0"))
    except SafetensorError:
        return run.recipe.head  # `load_weights` says what is wrong with it
    ends = run.recipe.stage_ends(int(run.facts["steps"]))
    return run.recipe.stage(next((index for index, end in enumerate(ends) if step <= end), len(ends) - 1)).head


def save_state(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Writes the whole training state (model, optimiser, progress, and the scale of gradients of `16-mixed`); every process must call it."""
    state = {**state, _SCALE: fabric._precision.state_dict()}
    if fabric.world_size == 1:
        write_with(path, lambda temporary: fabric.save(temporary, state))
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        fabric.save(temporary, state)  # the first process writes
    except (OSError, RuntimeError) as error:
        if peer_gone(error):  # no matter of this disk
            raise
        raise MixsupError(
            f"{path}: cannot write ({error}); what was there before is whole; free space, then go on with --resume"
        ) from error
    fabric.barrier()
    if fabric.is_global_zero:
        write_with(path, lambda own: temporary.replace(own))
    fabric.barrier()


def load_state(fabric: Fabric, path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Restores model and optimiser in place, and the scale of gradients; returns the rest of the state.

    Raises:
        MixsupError: the file is broken or of another network.
    """
    try:
        rest = fabric.load(path, state)
        scale = rest.pop(_SCALE, None)
        if scale:
            fabric._precision.load_state_dict(scale)
        return rest
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise MixsupError(f"{path}: training state that cannot be used ({reason}); start again in another folder") from None
