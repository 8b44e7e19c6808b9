"""Weights of backbones: by name from the usual hubs, or from a file. Both end in the same dictionary and the same loading."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mixsup.errors import MixsupError

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model_state", "model")  # keys of training scripts' files below which the weights are


def read_state(path: Path) -> State:
    """A state dictionary from a safetensors or PyTorch file, float32; nothing but tensors is ever unpickled.

    Raises:
        MixsupError: no such file, or it holds no state dictionary.
    """
    path = path.expanduser()
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
    if isinstance(state, dict):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
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


def without_prefix(state: State, wanted: Collection[str]) -> State:
    """The entries below the prefix (`module.`, `backbone.`, `encoder.model.`, ...) under which most of the wanted keys are found; all where none is better.

    Keys are compared with '.' and '_' as one, see `load_into`.
    """
    names = {key.replace(".", "_") for key in wanted}
    parts = [key.split(".") for key in state]
    prefixes = {"", *(".".join(key[:depth]) + "." for key in parts for depth in (1, 2, 3) if depth < len(key))}

    def fit(prefix: str) -> int:
        return sum(key.startswith(prefix) and key[len(prefix) :].replace(".", "_") in names for key in state)

    best = max(sorted(prefixes), key=fit)  # the shortest of several that are as good
    return {key[len(best) :]: value for key, value in state.items() if key.startswith(best)}


def load_into(module: nn.Module, state: State, what: str) -> None:
    """Loads a state dictionary into a module, all of the module's entries or an error; further entries (a classifier, say) are left aside.

    Keys are compared with '.' and '_' as one, because feature extractors rename `stages.0` to `stages_0`; a prefix that all entries share is left out.

    Raises:
        MixsupError: an entry is missing or of another shape.
    """
    own = module.state_dict()
    given = {key.replace(".", "_"): value for key, value in without_prefix(state, own).items()}
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
