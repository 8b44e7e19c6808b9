"""mixsup: semantic segmentation from image tags, bounding boxes and pixel masks, mixed freely.

import mixsup
data = mixsup.load_dataset("my-data", "train")
run = mixsup.train("my-data", "grabcut", "runs/first", labels="boxes", network="deeplabv3plus+resnet50")
ids = mixsup.load("runs/first").predict("photo.jpg")        # H×W uint8 class ids
scores = mixsup.evaluate("runs/first", "my-data", "val")    # {"miou": ..., "per_class": {...}, ...}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixsup.errors import DataError, MixsupError, Problem
from mixsup.version import __version__

if TYPE_CHECKING:
    from mixsup.api import compare, evaluate, export_onnx, load, load_dataset, load_recipe, make_masks, train

__all__ = [
    "DataError",
    "MixsupError",
    "Problem",
    "__version__",
    "compare",
    "evaluate",
    "export_onnx",
    "load",
    "load_dataset",
    "load_recipe",
    "make_masks",
    "train",
]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import; `mixsup --help` and `mixsup inspect` do without it.
    if name in __all__:
        from mixsup import api

        return getattr(api, name)
    raise AttributeError(f"module 'mixsup' has no attribute {name!r}")
