"""Images + `tags.csv`: which classes an image shows, and nothing about where.

Two forms, told apart by the header:

    image,tags                  image,cat,dog
    0001.jpg,cat;dog            0001.jpg,1,1
    0002.jpg,                   0002.jpg,0,0

The image is named with or without its extension, from the image folder or from that of the list. A column `split` is optional in both.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from mixsup.data.collect import Collector, choose_splits, class_list, images_below, is_file, make_classes, read_text
from mixsup.data.image import EXTENSIONS
from mixsup.data.sample import BACKGROUND_NAMES, Classes, Dataset, Sample, quoted
from mixsup.errors import MixsupError
from mixsup.files import inside

_IMAGE_COLUMNS = ("image", "file", "file_name", "filename", "id")
_TAG_COLUMNS = ("tags", "labels", "classes", "tag", "label", "class")
_HEADER = "begin with a line image,tags"


def recognises(root: Path) -> bool:
    """Whether a folder has a tag list."""
    return (root / "tags.csv").is_file()


def rows(path: Path, collector: Collector) -> list[tuple[int, str, tuple[str, ...], str]]:
    """(line, image, tags, split) for each row of a tag list.

    Raises:
        MixsupError: the file is no CSV with a header.
    """
    text = read_text(path)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        table = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise MixsupError(f"{path}, line {reader.line_num}: CSV that cannot be read ({error}); write the file again") from None
    header = [cell.strip() for cell in table[0][1]] if table else []
    if header and re.split(r"[;\t]", header[0])[0].strip().lower() in set(_IMAGE_COLUMNS) - {header[0].lower()}:
        raise MixsupError(f"{path}, line 1: {quoted(header[0])} is one column; separate columns by commas, and tags by ;")
    if not header or header[0].lower() not in _IMAGE_COLUMNS:
        raise MixsupError(f"{path}, line 1: no header; {_HEADER}")
    columns = {index: name for index, name in enumerate(header) if index and name.lower() != "split"}
    split_column = next((index for index, name in enumerate(header) if index and name.lower() == "split"), None)
    listed = next((index for index, name in columns.items() if name.lower() in _TAG_COLUMNS), None)
    if not columns:
        raise MixsupError(f"{path}, line 1: no column of tags; {_HEADER}")

    classes = class_list(path.parent)
    found = []
    for line, cells in table[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        name = cells[0].strip()
        if len(cells) != len(header):
            message = f"{len(cells)} columns where the header has {len(header)}"
            collector.problem(path, f"line {line}", message, "separate tags by ;, and quote other fields that hold a comma", _id(name))
            continue
        if listed is not None:
            tags = tuple(tag.strip() for tag in cells[listed].replace("|", ";").split(";") if tag.strip())
            joined = [tag for tag in tags if ("," in tag or tag.startswith("[")) and (classes is None or classes.id(tag) is None)]
            if joined:
                collector.problem(path, f"line {line}", f"{quoted(joined[0])} would be one class", "separate tags by ;", _id(name))
                continue
        else:
            wrong = [cells[index] for index in columns if cells[index].strip() not in ("0", "1", "")]
            if wrong:
                collector.problem(
                    path, f"line {line}", f"{quoted(wrong[0])} is not 0 or 1", "write 1 where the class is in the image", _id(name)
                )
                continue
            tags = tuple(tag for index, tag in columns.items() if cells[index].strip() == "1")
        found.append((line, name, tags, cells[split_column].strip() if split_column is not None else ""))
    return found


def read_tags(path: Path, collector: Collector, wanted: set[str], images: set[str]) -> dict[str, tuple[str, ...]]:
    """Tag names by image id (name without extension), for a data set of another layout that has a tag list beside it.

    Args:
        path: the list.
        collector: of the data set; takes the faults of `wanted`.
        wanted: ids of the images that are read.
        images: ids of all images that there are.
    """
    tags: dict[str, tuple[str, ...]] = {}
    faults = Collector(collector.root)
    for line, name, names, _ in rows(path, faults):
        key = _id(name)
        if key in tags:
            faults.problem(path, f"line {line}", f"image {quoted(name)} occurs twice", "write all its tags in one row", key)
        tags[key] = names
    if tags and images.isdisjoint(tags):
        collector.problem(path, "", f"names {quoted(next(iter(tags)))} and others, and none of the images", "correct the names")
    for problem in faults.problems:
        if problem.sample in wanted:
            collector.problem(path, problem.place, problem.message, problem.remedy, problem.sample)
    return tags


def _id(name: str) -> str:
    """What a row calls an image, without folders and extension; a name may hold a point of its own."""
    return Path(name).stem if Path(name).suffix.lower() in EXTENSIONS else Path(name).name


def tag_ids(path: Path, names: tuple[str, ...], classes: Classes, sample: str, collector: Collector) -> frozenset[int]:
    """Class ids of an image's tags; an unknown class is noted."""
    found = {name: classes.id(name) for name in names}
    for name, class_id in found.items():
        if class_id is None:
            collector.problem(path, f"image {sample}", f"unknown class {quoted(name)}", "add it to labels.txt", sample)
    return frozenset(class_id for class_id in found.values() if class_id)


def splits(root: Path) -> list[str]:
    """Names in the split column."""
    return sorted({row[3] for row in rows(root / "tags.csv", Collector(root)) if row[3]})


def read(root: Path, split: str | None) -> Dataset:
    """Reads images + `tags.csv`; images lie in `images/` or beside the list.

    Raises:
        MixsupError: no such split, or a list without a header.
    """
    path = root / "tags.csv"
    collector = Collector(root)
    table = rows(path, collector)
    wanted = choose_splits(split, sorted({row[3] for row in table if row[3]}), root)
    classes = class_list(root) or make_classes(
        sorted({tag for row in table for tag in row[2] if tag.lower() not in BACKGROUND_NAMES}), path
    )
    folder = next((root / name for name in ("images", "JPEGImages") if (root / name).is_dir()), root)
    images = images_below(folder)
    for line, name, tags, row_split in table:
        if wanted is not None and row_split not in wanted:
            continue
        place = f"line {line}"
        if not name:
            collector.problem(path, place, "no image name in the first column", "name the image")
            continue
        named, beside = inside(folder, name), inside(root, name)
        if named is not None and not is_file(named) and beside is not None and is_file(beside):
            named = beside
        above = folder if named is not None and named.is_relative_to(folder) else root
        key = named.relative_to(above).as_posix() if named is not None else name
        key = key[: -len(Path(key).suffix)] if named is not None and named.suffix and is_file(named) else key
        key = key.replace("/", "-").replace("\\", "-")
        if named is None:
            collector.problem(path, place, f"{quoted(name)} leaves the data folder", "name a file inside it", key)
            continue
        image = named if is_file(named) else images.get(name)
        if image is None:
            collector.problem(path, place, f"no image {quoted(name)} in {folder}", "correct the name or bring the file", key)
            continue
        if key in collector.samples and collector.samples[key].image == image:
            collector.problem(path, place, f"image {quoted(name)} occurs twice", "write all its tags in one row", key)
            continue
        ids = [0 if tag.lower() in BACKGROUND_NAMES else classes.id(tag) for tag in tags]
        unknown = [tag for tag, class_id in zip(tags, ids, strict=True) if class_id is None]
        if unknown:
            collector.problem(path, place, f"unknown class {quoted(unknown[0])}", "add it to labels.txt", key)
            continue
        size = collector.size(key, image)
        if size is not None:
            collector.add(Sample(id=key, image=image, size=size, tags=frozenset(class_id for class_id in ids if class_id)), path, place)
    return collector.dataset(classes, root)
