"""The Python face of mixsup: the commands as functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixsup.data import Dataset, Sample, load_dataset
from mixsup.engine.api import evaluate, load
from mixsup.engine.run import Run
from mixsup.engine.train import Options
from mixsup.engine.train import train as _train
from mixsup.errors import Problem
from mixsup.export import export_onnx
from mixsup.masks import BoxMasks, build_source
from mixsup.masks.export import make_masks as _make_masks
from mixsup.masks.store import MaskStore, default_cache
from mixsup.recipe import Recipe
from mixsup.recipes import load_recipe
from mixsup.report.compare import compare

__all__ = ["compare", "evaluate", "export_onnx", "load", "load_dataset", "load_recipe", "make_masks", "train"]


def make_masks(
    dataset: Dataset,
    source: str = "grabcut",
    *,
    cache: str | Path | None = None,
    jobs: int = -1,
    cluster: str | None = None,
    **options: Any,
) -> Iterator[tuple[Sample, BoxMasks | Problem]]:
    """Turns the boxes of a data set into one mask a box.

    Args:
        dataset: samples with boxes (or masks to derive them from).
        source: a key of `mixsup.masks.SOURCES`.
        cache: folder of computed masks; None for the user's cache.
        jobs: processes, -1 for all cores.
        cluster: address of a Dask scheduler, whose workers compute instead.
        options: settings of the source.

    Yields:
        Each sample, as it gets done, with its masks or the problem that it has. `mixsup.masks.compose` makes a training target of the masks.

    Raises:
        MixsupError: no such source or setting, or a cache that cannot be written.
    """
    store = MaskStore((Path(cache) if cache is not None else default_cache()) / "masks")
    boxed = dataset.with_samples([sample for sample in dataset.samples if "boxes" in sample.kinds()])
    for sample, made, _ in _make_masks(boxed, build_source(source, options), store, jobs, cluster):
        yield sample, made


def train(
    data: str | Path, recipe: str | Path | Recipe, out: str | Path, *, network: str | Path | None = None, settings: Sequence[str] = (),
    size: int | None = None, batch: int | None = None, steps: int | None = None, **options: Any,
) -> Run:  # fmt: skip
    """Trains a network, as `mixsup train` does.

    Args:
        data: the data set, see `load_dataset`.
        recipe: a name, a YAML file or a resolved recipe (then the next five arguments must be left alone).
        out: the run folder.
        network: name or YAML file.
        settings: `key=value` strings, as `--set`.
        size, batch, steps: as the flags.
        options: fields of `mixsup.engine.train.Options`: labels, split, val, seed, init, resume, skip_bad, devices, precision, ...

    Returns:
        The run.

    Raises:
        DataError, MixsupError: see `mixsup.engine.train.train`.
    """
    if isinstance(settings, str) or not all(isinstance(setting, str) for setting in settings) or isinstance(settings, Mapping):
        raise TypeError("settings are a list of `key=value` strings, as in settings=['train.lr=0.01']")
    if network is not None and not isinstance(network, (str, Path)):
        raise TypeError(f"a network is a name or a YAML file, not {type(network).__name__}; write the mapping into a file")
    if isinstance(recipe, (str, Path)):
        recipe = load_recipe(str(recipe), network=network, settings=settings, overrides={"size": size, "batch": batch, "steps": steps})
    elif network is not None or settings or size or batch or steps:
        raise TypeError("a resolved recipe already says network, size, batch, steps and settings")
    return _train(data, recipe, out, Options(**options))
