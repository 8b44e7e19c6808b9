"""How many objects the labelled images of runs have: what their boxes and masks cost is counted in objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixsup.data import format_splits, load_dataset
from mixsup.data.derive import boxes_of
from mixsup.data.sample import KINDS, LabelKind, Sample
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.progress import track
from mixsup.report.rounds import spread

MOST = 500  # images of a data set and a kind of label in which objects are counted


@dataclass(frozen=True)
class Objects:
    """Mean numbers of objects an image.

    Attributes:
        labelled: of a run's labelled images, by the kind of their label.
        further: of all counted images of the data set: what to expect of images that nobody has labelled.
    """

    labelled: Mapping[LabelKind, float]
    further: float


def count_objects(
    runs: Sequence[Run], kinds: Sequence[Mapping[str, LabelKind]], data: Path | None, format: str | None = None
) -> list[Objects]:
    """Counts objects as `boxes_of` finds them, crowds left out; each image once, however many runs have used it.

    Of each data set, and each kind of label that its runs have drawn, at most 500 images are counted, evenly spread; their mean stands for all.

    Args:
        runs: any number, of any data sets.
        kinds: of each run, the drawn label kind by image id.
        data, format: where the data set of a run is that is no longer where it was at training, and its format where that is ambiguous.

    Raises:
        MixsupError: a data set is gone, has none of a run's images, or no boxes or masks to count in.
    """
    found: dict[int, Objects] = {}
    places = [_place(run, data, format) for run in runs]
    for place in dict.fromkeys(places):
        mine = [index for index, other in enumerate(places) if other == place]
        counts = _counts(place, [runs[index] for index in mine], [kinds[index] for index in mine])
        mean = float(np.mean(list(counts.values())))
        for index in mine:
            by_kind = {kind: [counts[key] for key, own in kinds[index].items() if own == kind and key in counts] for kind in KINDS}
            found[index] = Objects({kind: float(np.mean(values)) if values else mean for kind, values in by_kind.items()}, mean)
    return [found[index] for index in range(len(runs))]


def _place(run: Run, data: Path | None, format: str | None) -> tuple[Path, str | None, str | None]:
    """(data set, format, training split) of a run."""
    place, form = Path(run.facts["data"]), run.facts.get("format")
    if not place.exists():
        if data is None:
            raise MixsupError(
                f"{run.folder}: its data set {place} is gone, and with it the objects that labelling cost is counted in; "
                "give --data DATA where it is now, or --objects N, their mean number an image"
            )
        place, form = data, format
    return place.resolve(), form, run.facts.get("split") or ("train" if "train" in format_splits(place, form) else None)


def _counts(place: tuple[Path, str | None, str | None], runs: Sequence[Run], kinds: Sequence[Mapping[str, LabelKind]]) -> dict[str, int]:
    """Number of objects by id of the chosen images of a data set."""
    path, form, split = place
    dataset = load_dataset(path, split, format=form, skip_bad=True)
    samples = {sample.id: sample for sample in dataset.samples}
    for run, drawn in zip(runs, kinds, strict=True):
        if not samples.keys() & drawn.keys():
            raise MixsupError(f"{run.folder}: {path} has none of its labelled images; give --data the data set of the run, or --objects N")
    chosen: dict[str, Sample] = {}
    for kind in KINDS:
        used = sorted({key for drawn in kinds for key, own in drawn.items() if own == kind and key in samples})
        countable = [samples[key] for key in used if "boxes" in samples[key].kinds()]
        chosen |= {countable[index].id: countable[index] for index in spread(len(countable), MOST)}
    counts = {}
    for sample in track(chosen.values(), "counting objects", len(chosen)):
        try:
            counts[sample.id] = int((~boxes_of(sample, len(dataset.classes)).crowd).sum())
        except MixsupError:
            continue  # a file that went bad since training does not stand for others
    if not counts:
        raise MixsupError(f"{path}: no boxes or masks in which objects could be counted; give --objects N, their mean number an image")
    return counts
