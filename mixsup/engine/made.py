"""What is made of boxed images before the first step and kept in the cache: first masks, and pools of candidates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lightning_fabric import Fabric

from mixsup.data.sample import Dataset
from mixsup.engine.run import Log
from mixsup.errors import DataError, MixsupError
from mixsup.masks.cache import default_limit, trim
from mixsup.masks.source import MaskSource
from mixsup.masks.store import Made as Item
from mixsup.masks.store import MaskStore

SILENCE = 60.0  # seconds after which the first process says that it is at work
_AT_WORK = "at work"


@dataclass
class Made:
    """What a store holds for the boxed images, by source: a source that several stages share is asked once."""

    store: MaskStore
    began: float = field(default_factory=time.time)  # what any stage of the run has asked for since is not trimmed
    done: list[tuple[MaskSource, dict[str, Path]]] = field(default_factory=list)

    def make(
        self, dataset: Dataset, source: MaskSource | None, fabric: Fabric, log: Log, *, skip_bad: bool, cluster: str | None
    ) -> Dataset:
        """Makes what is missing; leaves out images for which there can be none, see `_make`."""
        if source is None or any(source == other for other, _ in self.done):
            return dataset
        dataset, paths = _make(dataset, self.store, source, fabric, log, self.began, skip_bad=skip_bad, cluster=cluster)
        self.done.append((source, paths))
        return dataset

    def of(self, source: MaskSource, dataset: Dataset) -> dict[str, Path]:
        """The files of a source by sample id, of the images that are in the data set in the end."""
        paths = next(paths for other, paths in self.done if other == source)
        return {sample.id: paths[sample.id] for sample in dataset.samples if sample.id in paths}


def _make(
    dataset: Dataset, store: MaskStore, source: MaskSource, fabric: Fabric, log: Log, began: float, *, skip_bad: bool, cluster: str | None
) -> tuple[Dataset, dict[str, Path]]:
    """Makes what a store keeps for all boxed images (masks or pools), and leaves out images for which there can be none.

    The first process makes them, the others wait for it; its failure is everybody's. On another machine that does not see them they are made again.

    Returns:
        The data set, and the files by sample id.
    """
    boxed = dataset.with_samples([sample for sample in dataset.samples if sample.label == "boxes"])
    if not boxed.samples:
        return dataset, {}
    start = time.monotonic()
    limit = default_limit()  # before the masks, which may take hours: a misspelt limit should not cost them
    made = _of_the_first(lambda: store.make_all(boxed, source, cluster=cluster), fabric)
    if not fabric.is_global_zero and any(item.path is not None and not item.path.is_file() for item in made):
        made = list(store.make_all(boxed, source))
    bad = [item.problem for item in made if item.problem is not None]
    if bad and not skip_bad:
        raise DataError(bad)
    for problem in bad:
        log(f"left out: {problem}")
    paths = {item.sample: item.path for item in made if item.path is not None}
    computed = sum(item.seconds > 0 for item in made)
    seconds = time.monotonic() - start
    log(
        f"{store.title} ({source.name}) of {len(made)} images: {computed} made, {len(made) - computed - len(bad)} found, in {seconds:.1f} s"
    )
    if fabric.is_global_zero:
        log(str(trim(store.folder, limit, began)))
    return dataset.with_samples([sample for sample in dataset.samples if sample.label != "boxes" or sample.id in paths]), paths


def _of_the_first(make: Callable[[], Iterator[Item]], fabric: Fabric) -> list[Item]:
    """What the first process makes, in all processes.

    Processes that wait for another give up after half an hour (of PyTorch), so the first one says now and then that it is at work.

    Raises:
        MixsupError: the first process's.
    """
    made: list[Item] = []
    if not fabric.is_global_zero:
        while (word := fabric.broadcast("", src=0)) == _AT_WORK:
            pass
    else:
        word, said = "", time.monotonic()
        try:
            for item in make():
                made.append(item)
                if time.monotonic() - said > SILENCE:
                    fabric.broadcast(_AT_WORK, src=0)
                    said = time.monotonic()
        except MixsupError as error:
            word = str(error)
        fabric.broadcast(word, src=0)
    if word:
        raise MixsupError(word)
    return fabric.broadcast(made, src=0)
