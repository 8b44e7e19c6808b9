"""Networks of transformers, from the Hugging Face hub or a folder of the user's: what every source that asks one has in common."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from mixsup.errors import MixsupError


def place(text: str) -> str:
    """A folder by its whole path, since a worker has a working folder of its own; a name as it is."""
    return str(Path(text).absolute()) if Path(text).is_dir() else text


def transformers_for(source: str) -> Any:
    """The package, kept from talking.

    Args:
        source: what needs it, as in "source 'sam'".

    Raises:
        MixsupError: it is not installed.
    """
    try:
        found = import_module("transformers")
    except ImportError:
        raise MixsupError(f"{source} needs transformers; pip install 'mixsup[sam]'") from None
    found.utils.logging.set_verbosity_error()
    found.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return found


def is_missing_folder(name: str) -> bool:
    """Whether a name can only mean a folder, and none with a model is there: the hub should not be asked for it."""
    folder = Path(name)
    looks_like_a_path = folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    return looks_like_a_path and not (folder / "config.json").is_file()


def device_named(name: str) -> str:
    """The device that `auto` stands for; any other name as it is."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def content_of(name: str, config: Callable[[], Any]) -> bytes:
    """Bytes that change with the model: of a folder's files, or the commit of the hub, which its configuration knows."""
    folder = Path(name)
    if not folder.is_dir():
        return str(getattr(config(), "_commit_hash", None)).encode()
    digest = hashlib.blake2b(digest_size=20)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".py"):
            digest.update(path.name.encode())
            with path.open("rb") as handle:
                while block := handle.read(1 << 22):
                    digest.update(block)
    return digest.digest()


def short(error: Exception) -> str:
    """What an error of the hub, of a file or of the network says, in part of a line; the remedy follows behind a semicolon of ours."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160].replace(";", ",")
