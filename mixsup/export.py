"""ONNX: a run's network as one file that other programs and devices run, without Python or PyTorch (`pip install 'mixsup[export]'`).

    image          B×3×H×W float32, RGB, 0 to 1; H and W multiples of the network's (32 for most)
    probabilities  B×C×H×W float32; class 0 is background

The mean and deviation that the backbone was trained with are in the graph. What stands around the network is not: an image comes at the run's working size, its
last row and column repeated up to the next multiples, and the classes are enlarged afterwards, as `mixsup predict` does it. The file says which size and
multiple these are (docs/export.md has the dozen lines).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixsup.data.sample import Float32
from mixsup.engine.checkpoint import load_model
from mixsup.engine.model import SegmentationModel
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.files import write_with
from mixsup.progress import track
from mixsup.version import __version__

_CELLS = (
    (4, 6),
    (4, 9),
    (5, 4),
    (7, 5),
)  # squares, of 16 pixels at least, down and across at which a free graph is traced (the first) and compared
TOLERANCE = 1e-3  # largest difference of a probability between the run and its file; float32 in another order of sums makes 1e-5


class Graph(nn.Module):
    """What is exported.

    Args:
        model: of a run, in evaluation mode.
    """

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """B×3×H×W float32 in 0..1 in, B×C×H×W float32 probabilities out."""
        scores: Tensor = self.model(image)["scores"]
        return scores.softmax(1)


def export_onnx(run: str | Path, file: str | Path, *, checkpoint: str = "best", fixed: tuple[int, int] | None = None) -> float:
    """Writes the network of a run as ONNX, and compares what the file says with what the run says, by ONNX Runtime on the CPU.

    Args:
        run: the run folder.
        file: to write; large networks' weights lie in it, too.
        checkpoint: `best` or `last`.
        fixed: (H, W) for a graph of one image of that size alone, which some devices want and some encoders need; None for any number of images of
            any size whose sides are multiples of the network's.

    Returns:
        The largest difference of a probability between file and run, on random images of one or four sizes; below `TOLERANCE`.

    Raises:
        MixsupError: no run, no checkpoint, packages that are missing, a network that ONNX or this PyTorch cannot express, or a file that says something else.
    """
    runtime = _packages()
    opened, file = Run.load(run), Path(file)
    model = load_model(opened, checkpoint)
    multiple = model.network.multiple
    if fixed is not None and any(side < 1 or side % multiple for side in fixed):
        raise MixsupError(
            f"a graph of {fixed[0]} x {fixed[1]} pixels: this network's sides are multiples of {multiple}; give --size such sides"
        )
    cell = -(-16 // multiple) * multiple
    sizes = [fixed] if fixed is not None else [(rows * cell, columns * cell) for rows, columns in _CELLS]
    graph = Graph(model).eval()
    different = 0.0

    def write(target: Path) -> None:
        nonlocal different
        program.save(str(target))
        different = _difference(runtime, target, graph, sizes, batch=1 if fixed else 2)

    for _ in track((file,), "writing ONNX", 1):
        program = _traced(graph, sizes[0], free=fixed is None)
        program.model.metadata_props.update(_facts(opened, checkpoint, multiple))
        write_with(file, write)
    return different


def _packages() -> Any:
    """onnxruntime, where all that an export needs is there."""
    try:
        for name in ("onnx", "onnxscript"):
            import_module(name)
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise MixsupError(f"an ONNX file needs {error.name}; pip install 'mixsup[export]'") from None
    if not hasattr(torch.export.Dim, "DYNAMIC"):
        raise MixsupError(f"an ONNX file needs PyTorch 2.6 or newer, this is {torch.__version__}; pip install -U torch torchvision")
    return runtime


def _traced(graph: Graph, size: tuple[int, int], free: bool) -> Any:
    """The ONNX program of a graph."""
    image, axis = torch.rand(2 if free else 1, 3, *size), torch.export.Dim.DYNAMIC
    try:
        with _quiet():
            return torch.onnx.export(
                graph, (image,), dynamo=True, input_names=["image"], output_names=["probabilities"], verbose=False,
                dynamic_shapes={"image": {0: axis, 2: axis, 3: axis}} if free else None,
            )  # fmt: skip
    except Exception as error:  # of torch.export, of its decompositions and of onnxscript, each in its own words
        reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
        remedy = "give --size for a graph of one size alone, or train another network" if free else "train another network"
        raise MixsupError(f"this network cannot be written as ONNX ({reason}); {remedy}") from error


def _facts(run: Run, checkpoint: str, multiple: int) -> dict[str, str]:
    """What a program needs to know beside the graph: lies in the file's metadata, each value as JSON."""
    facts: dict[str, Any] = {
        "classes": run.classes.all(),
        "size": run.recipe.train.size,
        "resolution": run.recipe.train.resolution,
        "multiple": multiple,
        "pretraining": run.facts.get("pretraining", ""),
        "checkpoint": checkpoint,
        "mixsup": __version__,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


@torch.inference_mode()
def _difference(runtime: Any, file: Path, graph: Graph, sizes: list[tuple[int, int]], batch: int) -> float:
    """The largest difference of a probability between a file and the model that it was made of.

    Raises:
        MixsupError: it is above `TOLERANCE`, or the file cannot be run.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        different = 0.0
        for number, size in enumerate(sizes):
            image = torch.rand(1 + number % batch, 3, *size, generator=generator)
            found: Float32 = session.run(None, {"image": image.numpy()})[0]
            said = graph(image).numpy()
            different = max(different, float(np.abs(found - said).max()) if found.shape == said.shape else 1.0)
    except Exception as error:  # of ONNX Runtime, which has kinds of its own
        reason = " ".join(str(error).split())[:200]
        raise MixsupError(
            f"the file that was made cannot be run ({reason}); give --size for a graph of one size alone, or train another network"
        ) from None
    if not different <= TOLERANCE:
        raise MixsupError(
            f"the file that was made says something else than the run (probabilities differ by {different:.2g}); give --size for a graph of one size alone, "
            "or train another network"
        )
    return different


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's pages of progress and of warnings about its own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
