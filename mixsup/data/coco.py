"""COCO: JSON files with `images`, `annotations` and `categories`; boxes, polygons, run-length codes, crowds."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from mixsup.data.collect import LEAST_RECTANGLES, LEAVE_OUT, Collector, choose_splits, common_name, is_file, make_classes, number
from mixsup.data.elsewhere import Elsewhere
from mixsup.data.sample import BACKGROUND_NAMES, Boxes, Classes, Dataset, MaskSegments, Sample, Segment, quoted
from mixsup.data.segments import decode_rle, polygon_fault, segment_box
from mixsup.errors import MixsupError
from mixsup.files import inside

_HEAD = 1 << 16
_ONE_TYPE = "write both as whole numbers"
_NOT_LABELS = ("captions", "keypoints", "person_keypoints", "stuff", "panoptic", "image_info")


def label_files(root: Path) -> dict[str, Path]:
    """JSON files by split: `instances_train2017.json` is "train2017", `valid/_annotations.coco.json` is "valid"."""
    if root.is_file():
        return {_split_name(root): root}
    files: dict[str, Path] = {}
    candidates = [*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json")), *sorted(root.glob("*/_annotations.coco.json"))]
    for path in candidates:
        if not path.name.startswith(_NOT_LABELS) and _looks_like_coco(path):
            files.setdefault(_split_name(path), path)
    return files


def recognises(root: Path) -> bool:
    """Whether a folder has COCO files."""
    return bool(label_files(root))


def _split_name(path: Path) -> str:
    if path.name == "_annotations.coco.json":
        return path.parent.name
    return re.sub(r"^(instances|annotations|_annotations)[_.-]?", "", path.stem) or path.stem


def _looks_like_coco(path: Path) -> bool:
    """Whether a file has the keys of COCO: `images` and another one, or any of them in the first and last lines of a large file."""
    if not is_file(path):
        return False
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
            handle.seek(max(0, size - _HEAD))
            tail = handle.read()
    except OSError:
        return False
    found = [key for key in ("images", "annotations", "categories") if f'"{key}"'.encode() in head + tail]
    return bool(found) if size > 2 * _HEAD else "images" in found and len(found) > 1


def splits(root: Path) -> dict[str, Path]:
    """Label files by every name that a user may type: "train2017" and "train", "valid" and "val"."""
    found = dict(label_files(root))
    for name, path in list(found.items()):
        for alias in _common_names(name):
            found.setdefault(alias, path)
    return found


def _common_names(split: str) -> list[str]:
    """What else a split is called: "train2017" is "train", "valid" is "val"."""
    short = re.sub(r"\d{4}$", "", split)
    return [name for name in dict.fromkeys((short, common_name(short))) if name]


def read(root: Path, split: str | None) -> Dataset:
    """Reads a folder of COCO files, or one file.

    Classes are the categories in the order of their ids. An image has a mask when all its annotations have outlines.

    Raises:
        MixsupError: no such split, a file that is no COCO JSON, or files whose categories differ.
    """
    files = splits(root)
    names = choose_splits(split, files, root)
    wanted = list(dict.fromkeys(files.values() if names is None else [files[name] for name in names]))
    collector = Collector(root.parent if root.is_file() else root)
    classes: Classes | None = None
    first: Path | None = None
    seen: set[str] = set()
    for path in wanted:
        data = _load(path)
        mine, ids = _categories(data, path, collector)
        if classes is not None and mine != classes:
            raise MixsupError(f"{path}: its categories differ from those of {first}; join the two as sources of a YAML file")
        classes, first = mine, first or path
        _read_file(data, path, root, ids, collector, seen)
    if classes is None:
        raise MixsupError(f"{root}: no COCO file in it; give a JSON with images, annotations and categories")
    return collector.dataset(classes, root)


def _load(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise MixsupError(f"{path}, line {error.lineno}: JSON that is broken or cut short ({error.msg}); write the file again") from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise MixsupError(f"{path}: not JSON text; write the file again") from None
    except OSError as error:
        raise MixsupError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise MixsupError(f"{path}: no list {key!r}; a COCO file has images, annotations and categories")
    if any(isinstance(row, dict) and "segments_info" in row for row in data["annotations"][:1]):
        raise MixsupError(
            f"{path}: a panoptic file, which is not read; give the file of instances, or masks of class ids as paired folders"
        )
    return data


def _groups(data: dict[str, Any]) -> list[Any]:
    """Ids of categories that are no class: Roboflow writes one, with the supercategory "none", that is the supercategory of all others."""
    used = {row["category_id"] for row in data["annotations"] if isinstance(row, dict) and _is_id(row.get("category_id"))}
    rows = data["categories"]
    return [
        row["id"]
        for row in rows
        if row.get("supercategory") == "none"
        and row["id"] not in used
        and any(row["name"] in (other.get("supercategory"), other["name"]) for other in rows if other is not row)
    ]


def _categories(data: dict[str, Any], path: Path, collector: Collector) -> tuple[Classes, dict[Any, int]]:
    """The class list, and class ids by category id; a category called background maps to 0."""
    rows: dict[Any, str] = {}
    for index, row in enumerate(data["categories"]):
        if not isinstance(row, dict) or not _is_id(row.get("id"), text=False) or not isinstance(row.get("name"), str):
            raise MixsupError(f"{path}, categories[{index}]: needs an integer id and a name; correct it")
        if row["id"] in rows:
            raise MixsupError(f"{path}, categories[{index}]: id {quoted(row['id'])} occurs twice; give each category its own")
        rows[row["id"]] = row["name"]
    for key in _groups(data):
        collector.notes.append(
            f"{path}: category {quoted(rows.pop(key))} has no annotation and only names a group of the others; it is left out"
        )
    ordered = [(key, rows[key]) for key in sorted(rows)]
    objects = [(key, name) for key, name in ordered if name.lower() not in BACKGROUND_NAMES]
    ids = dict.fromkeys(rows, 0) | {key: index for index, (key, _) in enumerate(objects, 1)}
    return make_classes((name for _, name in objects), path), ids


def _image_folders(root: Path, path: Path) -> list[Path]:
    """Where the images of a label file may lie, most likely first; none is outside the data folder."""
    base = root.parent if root.is_file() else root
    split = _split_name(path)
    names = dict.fromkeys([split, *_common_names(split)])  # never another split's: its pictures may be called the same
    bases = [base, base.parent] if root.is_file() and path.parent.name == "annotations" else [base]
    folders = [path.parent]
    for above in bases:
        folders += [above / "images" / name for name in names] + [above / name for name in names]
        folders += [above / "images", above / "data", above / "JPEGImages", above]  # FiftyOne writes data/ and labels.json
    return [folder for folder in folders if folder.is_dir()]


def _read_file(data: dict[str, Any], path: Path, root: Path, ids: dict[Any, int], collector: Collector, before: set[str]) -> None:
    """Adds the samples of one file. `before` holds the names of the files before it: splits that number their images alike are told apart by their names."""
    folders = _image_folders(root, path)
    crowds = _crowds(data["annotations"], path, collector)
    _refuse_shares(data["annotations"], path)
    mine = {_name_to_id(row["file_name"]) for row in data["images"] if isinstance(row, dict) and isinstance(row.get("file_name"), str)}
    prefix = "" if before.isdisjoint(mine) else f"{_split_name(path)}-"
    before |= mine
    by_image: dict[Any, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    seen: set[Any] = set()
    known: dict[Any, str] = {}  # sample id by image id
    for row in data["images"]:
        if isinstance(row, dict) and _is_id(row.get("id")):
            known.setdefault(row["id"], prefix + _name_to_id(row["file_name"]) if isinstance(row.get("file_name"), str) else "")
    texts = {_text(key): key for key in known}
    outlines = False
    for index, row in enumerate(data["annotations"]):
        place = f"annotations[{index}]"
        asked = row.get("image_id") if isinstance(row, dict) else None
        if _is_id(asked) and asked not in known and _text(asked) in texts:
            key = texts[_text(asked)]  # left out with its annotations; without them it would be taught as empty
            collector.problem(
                path, place, f"image_id {quoted(asked)} is {_kind(asked)}, the image's id is {_kind(key)}", _ONE_TYPE, known[key]
            )
            continue
        if not _is_id(asked) or asked not in known:
            collector.problem(path, place, "belongs to no image of this file", "correct its image_id or remove it")
            continue
        key = row.get("id")
        if _is_id(key):
            if key in seen:
                collector.problem(path, place, f"annotation id {quoted(key)} occurs twice", "give each its own", known[row["image_id"]])
            seen.add(key)
        by_image[row["image_id"]].append((index, row))
        outlines = outlines or bool(_outline(row))

    image_ids: set[Any] = set()
    added: list[str] = []
    elsewhere = Elsewhere(root, folders, set(label_files(root)), [row.get("file_name") for row in data["images"] if isinstance(row, dict)])
    for index, row in enumerate(data["images"]):
        place = f"images[{index}]"
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not _is_id(row.get("id")):
            collector.problem(path, place, "needs an id and a file_name", "correct the entry")
            continue
        sample = prefix + _name_to_id(name)
        if row["id"] in image_ids:
            collector.problem(path, place, f"image id {quoted(row['id'])} occurs twice", "give each image its own", sample)
            continue
        image_ids.add(row["id"])
        image = next((found for folder in folders if (found := inside(folder, name)) is not None and is_file(found)), None)
        image = elsewhere(name) if image is None else image
        if image is None and inside(collector.root, name) is None:
            collector.problem(path, place, f"{quoted(name)} leaves the data folder", "name a file inside it", sample)
            continue
        if image is None:
            collector.problem(path, place, f"no image {quoted(name)}", "bring the file or remove the entry", sample)
            continue
        same = collector.samples.get(_name_to_id(name))
        if prefix and same is not None and same.image == image:
            collector.problem(
                path, place, f"{quoted(name)} is in another file, too", "name the split to read, or remove one of them", sample
            )
            continue
        size = collector.size(sample, image)
        if size is None:
            continue
        sides = number(row.get("height", math.nan)), number(row.get("width", math.nan))
        if all(math.isfinite(side) for side in sides):
            collector.declared_size(path, sample, (int(sides[0]), int(sides[1])), size)
        boxes, mask = _labels(by_image[row["id"]], path, size, ids, sample, collector, crowds)
        collector.add(Sample(id=sample, image=image, size=size, boxes=boxes, mask=mask if outlines else None), path, place)
        added.append(sample)
    collector.rectangles(path, added)
    if elsewhere.found:
        said, image = elsewhere.found[0]
        collector.notes.append(
            f"{path}: {len(elsewhere.found)} images are not where it says but under a like name, as {quoted(said)} in "
            f"{quoted(image.relative_to(collector.root).as_posix())}"
        )


def _is_crowd(row: Any) -> bool:
    value = row.get("iscrowd") if isinstance(row, dict) else None
    return value is True or number(value) > 0


def _crowds(rows: list[Any], path: Path, collector: Collector) -> bool:
    """Whether `iscrowd` says what it says in COCO. There it is one annotation in a hundred; tools that write 1 for all that is no polygon have far more, and
    taken at its word their objects would be void."""
    count = sum(map(_is_crowd, rows))
    if count <= len(rows) / 10 or LEAST_RECTANGLES > count < len(rows):
        return True
    collector.notes.append(
        f"{path}: `iscrowd` is 1 for {count} of {len(rows)} annotations, too many for crowds; they are taken for objects"
    )
    return False


def _refuse_shares(rows: list[Any], path: Path) -> None:
    """Boxes between 0 and 1 would pass for boxes of a pixel in a corner."""
    boxes = [row["bbox"] for row in rows if isinstance(row, dict) and isinstance(row.get("bbox"), list) and row["bbox"]]
    if len(boxes) >= LEAST_RECTANGLES and all(0 <= number(value) <= 1 for box in boxes for value in box):
        raise MixsupError(
            f"{path}: each of its {len(boxes)} boxes lies between 0 and 1, as shares of the image's sides; write them in pixels"
        )


def _is_id(value: object, *, text: bool = True) -> bool:
    """Whether a value can be an id: a whole number, as 1.0 is too (tables with gaps write it so), or a text."""
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer()) or (text and isinstance(value, str))


def _text(key: Any) -> str:
    return str(int(key) if isinstance(key, float) else key)


def _kind(key: object) -> str:
    return "a text" if isinstance(key, str) else "a number"


def _name_to_id(name: str) -> str:
    name = name.removeprefix("./")
    return (name[: -len(Path(name).suffix)] if Path(name).suffix else name).replace("/", "-").replace("\\", "-")


def _labels(
    rows: list[tuple[int, dict[str, Any]]], path: Path, size: tuple[int, int], ids: dict[Any, int], sample: str, collector: Collector,
    crowds: bool,
) -> tuple[Boxes, MaskSegments | None]:  # fmt: skip
    """The boxes of an image and its mask, None where an annotation has no outline; `crowds` tells whether crowds of the file are such."""
    boxes: list[tuple[tuple[float, ...], int, bool]] = []
    segments: list[Segment] = []
    complete = True
    for index, row in rows:
        place = f"annotations[{index}]"
        category = row.get("category_id")
        class_id = ids.get(category) if _is_id(category) else None
        if class_id is None and isinstance(category, str) and category in map(_text, ids):
            collector.problem(path, place, f"category_id {quoted(category)} is a text, the category's id is a number", _ONE_TYPE, sample)
            continue
        if class_id is None:
            collector.problem(path, place, f"unknown class id {quoted(category)}", "add it to categories", sample)
            continue
        if class_id == 0:
            continue  # somebody outlined the background, which is what is left over anyway
        crowd = crowds and _is_crowd(row)
        try:
            segment = _segment(_outline(row), class_id, crowd, size)
        except MixsupError as error:
            collector.problem(path, place, str(error), LEAVE_OUT, sample)
            continue
        if segment is None:
            complete = False
        else:
            segments.append(segment)
        xywh = row.get("bbox")
        if xywh is not None and xywh != []:
            x, y, w, h = [number(value) for value in xywh] if isinstance(xywh, list) and len(xywh) == 4 else [math.nan] * 4
            box = collector.box(path, place, (x, y, x + w, y + h), size, sample)
        elif segment is not None:
            box = segment_box(segment, size)
        else:
            collector.problem(path, place, "has neither bbox nor segmentation", LEAVE_OUT, sample)
            continue
        if box is not None:
            boxes.append((box, class_id, crowd))
    return Boxes.of(boxes), MaskSegments(tuple(segments)) if complete else None


def _size(value: Any) -> str:
    return f"[{', '.join(quoted(side) for side in value)}]" if isinstance(value, list) and len(value) == 2 else quoted(value)


def _outline(row: dict[str, Any]) -> Any:
    """An annotation's `segmentation`; empty polygons, which tools write for none, are left out."""
    value = row.get("segmentation")
    return [polygon for polygon in value if polygon != []] if isinstance(value, list) else value


def _segment(value: Any, class_id: int, crowd: bool, size: tuple[int, int]) -> Segment | None:
    """One annotation's outline, or None when it has none.

    Raises:
        MixsupError: an outline that cannot be painted.
    """
    if not value:
        return None
    if isinstance(value, dict):
        counts, declared = value.get("counts"), value.get("size")
        if declared != [size[0], size[1]]:
            raise MixsupError(f"run-length code of size {_size(declared)}, the image has [{size[0]}, {size[1]}]")
        if isinstance(counts, list) and all(isinstance(count, int) for count in counts):
            counts = tuple(counts)
        elif not isinstance(counts, str):
            raise MixsupError("run-length code without counts")
        decode_rle(counts, size)  # now, so that a lie is found before training starts
        return Segment(class_id, rle=counts, crowd=crowd)
    if not isinstance(value, list):
        raise MixsupError("segmentation is neither polygons nor a run-length code")
    polygons = []
    for polygon in value:
        flat = [number(item) for item in polygon] if isinstance(polygon, list) else []
        fault = polygon_fault(flat, size)
        if fault:
            raise MixsupError(fault)
        polygons.append(np.asarray(flat, np.float32))
    return Segment(class_id, polygons=tuple(polygons), crowd=crowd)
