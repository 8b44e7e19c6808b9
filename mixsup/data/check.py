"""The full check before training: every image and every mask that will be used is decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from joblib import Parallel, delayed

from mixsup.data.derive import load_mask
from mixsup.data.image import ImageError, read_image
from mixsup.data.sample import Classes, Dataset, Sample
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.progress import track


def check_sample(sample: Sample, num_classes: int) -> list[Problem]:
    """Decodes one image and, where the sample has one, its mask.

    Labels that a budget has taken from the sample are not opened.
    """
    problems: list[Problem] = []
    try:
        read_image(sample.image)
    except ImageError as error:
        message, _, remedy = str(error).rpartition("; ")
        problems.append(Problem(str(sample.image), "", message, remedy, sample.id))
    if sample.mask is not None:
        try:
            load_mask(sample, num_classes)
        except DataError as error:
            problems += error.problems
        except MixsupError as error:
            problems.append(Problem(str(sample.image), "mask", str(error), "correct it", sample.id))
    return problems


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
        The data set without the samples at fault, and their faults in `problems`.

    Raises:
        DataError: samples at fault, unless `skip_bad`; or nothing is left, with all that was found before, too.
    """
    found = [problem for sample in dataset.samples for problem in contradiction(sample, dataset.classes)]
    workers = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    results: Sequence[list[Problem]] = workers(delayed(check_sample)(sample, len(dataset.classes)) for sample in dataset.samples)
    for problems in track(results, title, len(dataset.samples)):
        found += problems
    if found and not skip_bad:
        raise DataError(found)
    bad = {problem.sample for problem in found}
    good = [sample for sample in dataset.samples if sample.id not in bad]
    if not good:
        raise DataError([*dataset.problems, *found])
    return replace(dataset, samples=good, problems=[*dataset.problems, *found])
