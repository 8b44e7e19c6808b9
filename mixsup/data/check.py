"""The full check before training: every image and every mask that will be used is decoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from mixsup.data.derive import load_mask
from mixsup.data.image import ImageError, palette_of, read_image
from mixsup.data.sample import Classes, Dataset, MaskFile, Sample
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.progress import track


def check_sample(sample: Sample, num_classes: int) -> tuple[list[Problem], dict[int, int]]:
    """Decodes one image and, where the sample has one, its mask.

    Labels that a budget has taken from the sample are not opened.

    Returns:
        What is at fault, and the colours (0xRRGGBB) that the ids in its mask have in the file's palette, if they have any.
    """
    shown: dict[int, int] = {}
    problems: list[Problem] = []
    try:
        read_image(sample.image)
    except ImageError as error:
        message, _, remedy = str(error).rpartition("; ")
        problems.append(Problem(str(sample.image), "", message, remedy, sample.id))
    if sample.mask is not None:
        try:
            mask = load_mask(sample, num_classes)
            if isinstance(sample.mask, MaskFile) and sample.mask.colours is None and sample.mask.ids is None:
                palette = palette_of(sample.mask.path)
                shown = {value: palette[value] for value in np.flatnonzero(np.bincount(mask.ravel())).tolist() if value in palette}
        except DataError as error:
            problems += error.problems
        except MixsupError as error:
            problems.append(Problem(str(sample.image), "mask", str(error), "correct it", sample.id))
    return problems, shown


def contradiction(sample: Sample, classes: Classes) -> list[Problem]:
    """Boxes of classes that the image's tags leave out; no file is opened."""
    if sample.label == "tags" or sample.boxes is None or sample.tags is None:
        return []
    missing = sorted({int(class_id) for class_id in sample.boxes.classes[~sample.boxes.crowd]} - sample.tags)
    names = ", ".join(classes.all()[class_id] for class_id in missing)
    fault = Problem(str(sample.image), "tags", f"the tags leave out {names}, of which there are boxes", "correct one of them", sample.id)
    return [fault] if missing else []


def check(dataset: Dataset, *, skip_bad: bool = False, title: str = "checking images") -> Dataset:
    """Decodes everything that will be used, on all cores (decoders release the interpreter's lock).

    Returns:
        The data set without the samples at fault, and their faults in `problems`; with a note where the ids of masks seem to mean something else in each.

    Raises:
        DataError: samples at fault, unless `skip_bad`; or nothing is left, with all that was found before, too.
    """
    found = [problem for sample in dataset.samples for problem in contradiction(sample, dataset.classes)]
    workers = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    results = workers(delayed(check_sample)(sample, len(dataset.classes)) for sample in dataset.samples)
    first: dict[int, tuple[int, Path]] = {}  # the colour of each id, and the mask that showed it
    note: list[str] = []
    for sample, (problems, shown) in zip(dataset.samples, track(results, title, len(dataset.samples)), strict=True):
        found += problems
        if isinstance(sample.mask, MaskFile):
            mine = {value: (colour, sample.mask.path) for value, colour in shown.items()}
            first = mine | first
            note = note or [_two_colours(value, first[value], own) for value, own in mine.items() if own[0] != first[value][0]][:1]
    if found and not skip_bad:
        raise DataError(found)
    bad = {problem.sample for problem in found}
    good = [sample for sample in dataset.samples if sample.id not in bad]
    if not good:
        raise DataError([*dataset.problems, *found])
    return replace(dataset, samples=good, problems=[*dataset.problems, *found], notes=(*dataset.notes, *note))


def _two_colours(value: int, *shown: tuple[int, Path]) -> str:
    """Drawing programs number the colours of each picture anew when they save it with a palette."""
    one, other = (f"{colour >> 16},{colour >> 8 & 255},{colour & 255} in {path}" for colour, path in shown)
    return f"id {value} has colour {one} and {other}; if colours are the classes, say which in labelmap.txt (docs/data.md): then they count, and not the ids"
