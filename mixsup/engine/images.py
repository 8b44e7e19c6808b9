"""Which images a run trains and measures on, and with which labels; and what is refused of them before anything is computed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixsup.data import format_splits, load_dataset
from mixsup.data.budget import draw
from mixsup.data.collect import common_name
from mixsup.data.derive import load_mask
from mixsup.data.sample import BACKGROUND, KINDS, VOID, Dataset, LabelKind, Sample
from mixsup.engine.evaluate import refuse_other_classes, with_masks
from mixsup.engine.options import Options
from mixsup.errors import DataError, MixsupError
from mixsup.losses import NONE
from mixsup.recipe import Recipe


def load_splits(data: Path, options: Options) -> tuple[Dataset, Dataset | None]:
    """The training images, and those to measure on; None where there are none with masks.

    Raises:
        DataError: images or labels at fault.
        MixsupError: no such split, or classes that differ between the two.
    """
    names = format_splits(data, options.format) if data.exists() else []
    split = options.split or ("train" if "train" in names else None)
    val_name = options.val or ("val" if "val" in names else None)
    if split is None and (val_name not in (None, "none") or several(names)):
        raise MixsupError(f"{data}: no split 'train', it has {', '.join(names)}; name the one to train on with --split")
    dataset = load_dataset(data, split, format=options.format, skip_bad=options.skip_bad)
    if val_name in (None, "none"):
        return dataset, None
    try:
        val = load_dataset(data, val_name, format=options.format, skip_bad=options.skip_bad)
    except DataError:
        raise
    except MixsupError as error:
        raise MixsupError(f"{error} (or train without validation: --val none)") from None
    try:
        samples = with_masks(val)
    except MixsupError:
        if options.val is not None:
            raise
        dataset = replace(dataset, notes=(*dataset.notes, *val.notes))  # which may say why
        return dataset, None  # the data set's own val has no masks: nothing to measure, but training needs none
    remedy = "give both the same classes in the same order, join them in a YAML file, or train without validation (--val none)"
    refuse_other_classes(dataset.classes, val.classes, f"{data}, split {val_name!r}", "those of the training images", remedy)
    return dataset, val.with_samples(samples)


def several(names: list[str]) -> bool:
    """Whether names are those of more than one split, of which all together are then no set to train or to measure on; COCO's test2017 is test, too."""
    return len({common_name(re.sub(r"\d{4}$", "", name)) for name in names}) > 1


def draw_kinds(dataset: Dataset, recipe: Recipe, stages: list[Recipe], options: Options) -> dict[str, LabelKind]:
    """The kind of label that each image of the budget gives, by sample id.

    Raises:
        MixsupError: the budget asks for more than there is, or for what the recipe cannot learn from.
    """
    usable: list[LabelKind] = [kind for kind in KINDS if all(kind in stage.loss for stage in stages)]
    idle = {kind for kind in usable if all(stage.loss[kind] == NONE for stage in stages)}
    kinds = draw(dataset.samples, options.labels, options.seed, [kind for kind in usable if kind not in idle])
    # Idle kinds take part in the draw, so that recipes that leave one out see the same images of the others.
    kinds = {key: kind for key, kind in kinds.items() if kind not in idle}
    for kind in sorted(set(kinds.values())):
        if kind not in usable:
            raise MixsupError(
                f"recipe {recipe.name!r} has no loss for {kind}, it learns from {' and '.join(usable)}; choose another recipe or --labels"
            )
    if not kinds:
        raise MixsupError(
            f"{dataset.source}: no image has labels that recipe {recipe.name!r} learns from "
            f"({' or '.join(kind for kind in usable if kind not in idle)}); choose another recipe"
        )
    for stage in stages:
        if all(stage.loss[kind] == NONE for kind in kinds.values()):
            raise MixsupError(
                f"a stage of recipe {recipe.name!r} charges none of {' and '.join(sorted(set(kinds.values())))}; give one a loss"
            )
    return kinds


def refuse_no_object(dataset: Dataset) -> None:
    """Refuses training images that are background alone: a network learns nothing else from them, and what a user meant is something else."""
    if not any(shows_object(sample, len(dataset.classes)) for sample in dataset.samples):
        raise MixsupError(
            f"{dataset.source}: no training image shows an object, all their labels are background (or void, which is 255 in masks: an object is 1 or more); "
            f"`mixsup inspect {dataset.source}` shows what was read"
        )


def shows_object(sample: Sample, num_classes: int) -> bool:
    """Whether the labels that training may look at show an object; masks are decoded for that."""
    if sample.label == "masks":
        return bool(np.setdiff1d(load_mask(sample, num_classes), (BACKGROUND, VOID)).size)
    return bool(sample.tags) if sample.label == "tags" else sample.boxes is not None and not bool(sample.boxes.crowd.all())


def refuse_unlabelled_classes(dataset: Dataset, kinds: dict[str, LabelKind]) -> None:
    """Refuses a class of a joint list that no source annotates: it would be taught by nothing, not even as background."""
    unknown = np.logical_and.reduce([sample.unknown(len(dataset.classes)) for sample in dataset.samples if sample.id in kinds])
    if unknown.any():
        names = ", ".join(name for name, missing in zip(dataset.classes.all(), unknown, strict=True) if missing)
        raise MixsupError(
            f"{dataset.source}: no training image comes from a source that annotates {names}; take it out of `classes`, or add a source"
        )
