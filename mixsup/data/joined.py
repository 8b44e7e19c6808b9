"""Several sources under one class list, from a YAML file:

    classes: [person, aeroplane, sofa]      # the joint list; background is understood
    sources:
      - path: VOC2012                       # from the folder of this file
        split: {train: train, val: val}     # ours: theirs, nothing for all of it (default: the same names; without splits it is all for train)
      - path: coco
        name: coco                          # prefix of its image ids (default: name of the folder)
        format: coco                        # default: recognised
        label: boxes                        # the strongest kind that this source may give
        rename: {airplane: aeroplane, couch: sofa}     # two names to one merges them
        drop: rest                          # classes that become background: a list, or `rest`
        ignore: [bench]                     # classes that become void
        complete: true                      # it would show every class of the joint list, though its own list lacks some (default: false)
      - path: persons                       # mask files whose ids are not those of a class list after the background
        ids: {0: void, 255: person}         # what they are; these names are the source's class list, but for `background` and `void`

A source whose list lacks some of the joint classes never teaches that its background is none of them: `Sample.known` says which it annotates.

Unlike the label files of a data set, which are never trusted, this file is the user's own: its paths may lead anywhere.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixsup.data.collect import case_notes, choose_splits, is_file, make_classes
from mixsup.data.derive import boxes_of, tags_of
from mixsup.data.sample import (
    BACKGROUND,
    BACKGROUND_NAMES,
    KINDS,
    VOID,
    Boxes,
    Classes,
    Dataset,
    LabelKind,
    MaskFile,
    MaskSegments,
    Sample,
    plain,
    quoted,
)
from mixsup.data.yolo import load_yaml
from mixsup.errors import DataError, MixsupError, Problem

_FIXED = {**dict.fromkeys(BACKGROUND_NAMES, BACKGROUND), "void": VOID}  # names in `ids` that are no class


class Source(BaseModel):
    """One entry of `sources`."""

    model_config = ConfigDict(extra="forbid")
    path: str
    name: str | None = None
    format: str | None = None
    label: LabelKind | None = None
    rename: dict[str, str] = {}
    drop: list[str] | str = []
    ignore: list[str] = []
    ids: dict[Annotated[int, Field(ge=0, le=255)], str] = {}
    complete: bool = False
    split: dict[str, str | None] | None = None


class Joined(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid")
    classes: list[str]
    sources: list[Source]


def recognises(path: Path) -> bool:
    """Whether a YAML file joins sources."""
    return is_file(path) and "sources" in load_yaml(path)


def parse(path: Path) -> Joined:
    """Reads and checks the file.

    Raises:
        MixsupError: a key that does not exist, or a value of the wrong type, with its place.
    """
    try:
        joined = Joined.model_validate(load_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        place, message = " ".join(place.split()), " ".join(first["msg"].split())
        raise MixsupError(f"{path}, {place}: {message}; see docs/data.md for the keys") from None
    if not joined.sources:
        raise MixsupError(f"{path}: no sources; list at least one")
    for source in joined.sources:
        if isinstance(source.drop, str) and source.drop != "rest":
            raise MixsupError(f"{path}, source {quoted(source.path)}: drop must be a list of classes or `rest`; correct it")
        if source.name is not None and (not plain(source.name) or "/" in source.name or "\\" in source.name):
            raise MixsupError(f"{path}, source {quoted(source.path)}: name {quoted(source.name)} cannot begin a file name; choose another")
        # One inside the other could go round in a circle, and its splits would need names of three kinds.
        root = path.parent / source.path
        if source.format == "joined" or (root.suffix.lower() in (".yaml", ".yml") and recognises(root)):
            raise MixsupError(f"{path}, source {quoted(source.path)}: it joins sources itself; list its sources here")
    return joined


def splits(path: Path) -> list[str]:
    """Our names of the splits that any source fills."""
    return list(dict.fromkeys(name for source in parse(path).sources for name in _table(source, path.parent / source.path)))


def _table(source: Source, root: Path) -> dict[str, str | None]:
    """Our names of a source's splits: theirs, None for the whole source. One without splits has nothing to measure on set apart: it is there to train on."""
    from mixsup.data import format_splits

    if source.split is not None:
        return source.split
    return {name: name for name in format_splits(root, source.format)} or {"train": None}


def read(path: Path, split: str | None) -> Dataset:
    """Reads all sources under the joint class list.

    Raises:
        MixsupError: a source that cannot be read, a split that none has, or a class that is neither in the list nor renamed,
            dropped or ignored.
    """
    from mixsup.data import read_format

    joined = parse(path)
    names = joined.classes
    classes = make_classes(names[1:] if names and names[0].lower() in BACKGROUND_NAMES else names, path)
    choose_splits(split, splits(path), path)
    samples: list[Sample] = []
    problems: list[Problem] = []
    notes: list[str] = []
    names = [source.name or (path.parent / source.path).absolute().name for source in joined.sources]
    if len(set(names)) != len(names):
        raise MixsupError(f"{path}: two sources are called {quoted(next(n for n in names if names.count(n) > 1))}; give each a `name`")
    for source, name in zip(joined.sources, names, strict=True):
        root = path.parent / source.path
        theirs: str | None = None
        if split is not None:
            table = _table(source, root)
            asked = [part.strip() for part in split.split("+")]
            if "train" in asked and source.split is None and not {"train", "val"} & table.keys():
                raise MixsupError(
                    f"{path}, source {quoted(source.path)}: no split 'train', it has {', '.join(table)}; "
                    "say which is to train on, as in `split: {train: NAME}`, or leave the source out by `split: {}`"
                )
            wanted = [table[part] for part in asked if part in table]
            if not wanted:
                continue
            theirs = _added(wanted)
        elif source.split is not None:
            if not source.split:
                continue
            theirs = _added(list(source.split.values()))
        listed = make_classes(dict.fromkeys(name for name in source.ids.values() if name not in _FIXED), path) if source.ids else None
        dataset = read_format(root, theirs, source.format, listed)
        ids = _translation(source, dataset.classes, classes, path)
        file_ids = _file_ids(source, dataset.classes, ids)
        annotated = frozenset(ids.values()) - {BACKGROUND, VOID}
        if not annotated and not source.complete:
            raise MixsupError(
                f"{path}, source {quoted(source.path)}: it annotates none of `classes` (it has {', '.join(dataset.classes.names[:30])}); rename some, "
                "or say `complete: true` if its images show none of them"
            )
        known = None if source.complete or len(annotated) == len(classes.names) else annotated
        prefix = f"{name}-" if len(joined.sources) > 1 else ""
        faults = list(dataset.problems)
        notes += [note for note in dataset.notes if note not in case_notes(dataset.classes, dataset.source)]
        for sample in dataset.samples:
            try:
                samples.append(replace(_translate(sample, prefix, ids, file_ids, source.label, len(classes)), known=known))
            except DataError as error:  # a mask that boxes or tags have to be derived from
                faults += error.problems
        problems += [replace(item, sample=f"{prefix}{item.sample}" if item.sample else "") for item in faults]
    samples.sort(key=lambda sample: sample.id)
    for one, other in pairwise(samples):
        if one.id == other.id:
            raise MixsupError(
                f"{path}: {one.image} and {other.image} are both called {quoted(one.id)}; give one of their sources another `name`"
            )
    return Dataset(classes, samples, problems, str(path), (*notes, *case_notes(classes, path)))


def _added(names: list[str | None]) -> str | None:
    """Splits of a source as one; None, which is the whole source, where that is among them."""
    parts = list(dict.fromkeys(name for name in names if name is not None))
    return "+".join(parts) if None not in names else None


def _translation(source: Source, theirs: Classes, ours: Classes, path: Path) -> dict[int, int]:
    """Our class id for each of the source's; background for dropped classes, void for ignored ones."""
    known = set(theirs.names)
    for name in [*source.rename, *source.ignore, *(source.drop if isinstance(source.drop, list) else [])]:
        if name not in known:
            raise MixsupError(
                f"{path}, source {quoted(source.path)}: it has no class {quoted(name)}; it has {', '.join(theirs.names[:30])}"
            )
    ids = {BACKGROUND: BACKGROUND}
    for index, name in enumerate(theirs.names, 1):
        mine = ours.id(source.rename.get(name, name))
        if name in source.ignore:
            ids[index] = VOID
        elif isinstance(source.drop, list) and name in source.drop:
            ids[index] = BACKGROUND
        elif mine is not None:
            ids[index] = mine
        elif source.drop == "rest" and name not in source.rename:
            ids[index] = BACKGROUND
        else:
            wanted = source.rename.get(name, name)
            raise MixsupError(
                f"{path}, source {quoted(source.path)}: class {quoted(wanted)} is not in `classes`; add it, or rename, drop or ignore it"
            )
    return ids


def _file_ids(source: Source, theirs: Classes, ids: dict[int, int]) -> dict[int, int]:
    """What the ids in a source's mask files are to us."""
    if not source.ids:
        return {**ids, VOID: VOID}
    ours = {name: ids[index] for index, name in enumerate(theirs.names, 1)} | _FIXED
    return {BACKGROUND: BACKGROUND, VOID: VOID} | {value: ours[name] for value, name in source.ids.items()}


def _translate(
    sample: Sample, prefix: str, ids: dict[int, int], file_ids: dict[int, int], label: LabelKind | None, num_classes: int
) -> Sample:
    """A sample under the joint classes, cut down to the label kind of its source; what is weaker is derived before the cut.

    Raises:
        DataError: the mask that boxes or tags have to be derived from is at fault.
    """
    allowed = KINDS[KINDS.index(label) :] if label is not None else KINDS
    boxes, tags, mask = sample.boxes, sample.tags, sample.mask
    if boxes is not None:
        mapped = np.array([ids[int(class_id)] for class_id in boxes.classes], np.int64)
        kept = mapped != BACKGROUND
        # An ignored class is void wherever it is: the crowd flag says just that. It has no class here.
        void = mapped == VOID
        boxes = Boxes(boxes.xyxy[kept], np.where(void, BACKGROUND, mapped)[kept], (boxes.crowd | void)[kept])
    if tags is not None:
        tags = frozenset(ids[tag] for tag in tags) - {BACKGROUND, VOID}
    if isinstance(mask, MaskSegments):
        renamed = [
            replace(
                item,
                class_id=BACKGROUND if ids[item.class_id] == VOID else ids[item.class_id],
                crowd=item.crowd or ids[item.class_id] == VOID,
            )
            for item in mask.segments
            if ids[item.class_id] != BACKGROUND
        ]
        mask = MaskSegments(tuple(renamed))
    elif isinstance(mask, MaskFile):
        mask = replace(mask, ids=file_ids)
    whole = replace(sample, tags=tags, boxes=boxes, mask=mask)
    if label == "boxes" and whole.kinds()[:1] == ("masks",):
        boxes = boxes_of(whole, num_classes)
    if label == "tags" and whole.kinds():
        tags = tags_of(whole, num_classes)
    return replace(
        whole,
        id=f"{prefix}{sample.id}",
        tags=tags,
        boxes=boxes if "boxes" in allowed else None,
        mask=mask if "masks" in allowed else None,
    )
