"""Weights of backbones: by name from the usual hubs, or from a file. Both end in the same dictionary and the same loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mixsup.errors import MixsupError

State = dict[str, Tensor]


def read_state(path: Path) -> State:
    """A state dictionary from a safetensors or PyTorch file, float32; nothing but tensors is ever unpickled.

    Raises:
        MixsupError: no such file, or it holds no state dictionary.
    """
    if not path.is_file():
        raise MixsupError(f"{path}: no such weights file; correct `weights`, or use `imagenet` or `none`")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise MixsupError(f"{path}: broken or no weights file ({error}); fetch it again") from None
    except Exception as error:
        raise MixsupError(f"{path}: not a file of weights alone ({type(error).__name__}); save a state dictionary") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise MixsupError(f"{path}: holds no state dictionary; save `model.state_dict()`")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def from_hub(what: str, fetch: Any) -> Any:
    """Calls a function that downloads, and says in one line what to do when the network is not there."""
    try:
        return fetch()
    except MixsupError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise MixsupError(
            f"cannot fetch the pretrained weights of {what} ({reason}); give a file, as --set network.weights=FILE, or train without by "
            "--set network.weights=none"
        ) from None


def load_into(module: nn.Module, state: State, what: str) -> None:
    """Loads a state dictionary into a module, all of the module's entries or an error; further entries (a classifier, say) are left aside.

    Keys are compared with '.' and '_' as one, because feature extractors rename `stages.0` to `stages_0`.

    Raises:
        MixsupError: an entry is missing or of another shape.
    """
    given = {key.replace(".", "_"): value for key, value in state.items()}
    own = module.state_dict()
    matched: State = {}
    for key, value in own.items():
        found = given.get(key.replace(".", "_"))
        if found is None and key.endswith("num_batches_tracked"):
            found = value
        if found is None:
            raise MixsupError(f"{what}: no entry {key!r} for this backbone; is it a file of another architecture?")
        if found.shape != value.shape:
            shapes = f"{tuple(found.shape)}, the backbone needs {tuple(value.shape)}"
            raise MixsupError(f"{what}: entry {key!r} is {shapes}; is it a file of another architecture?")
        matched[key] = found
    module.load_state_dict(matched)
