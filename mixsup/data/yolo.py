"""YOLO: a `data.yaml` with names and splits, `images/...` and, at the same place below `labels/...`, a text file an image.

A row is `class cx cy w h` (a box) or `class x1 y1 x2 y2 x3 y3 ...` (a polygon), all as shares of the image's sides. As in every YOLO
trainer, an image without a label file shows no object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mixsup.data.collect import LEAVE_OUT, Collector, choose_splits, common_name, images_below, is_file, make_classes, number, read_text
from mixsup.data.image import EXTENSIONS
from mixsup.data.sample import BACKGROUND_NAMES, Boxes, Classes, Dataset, MaskSegments, Sample, Segment, quoted
from mixsup.data.segments import polygon_fault, segment_box
from mixsup.errors import MixsupError
from mixsup.files import inside

_SPLITS = ("train", "val", "test")
_MAX_YAML = 1 << 20  # bytes; settings are a page, and the parser is slow


def settings_file(root: Path) -> Path | None:
    """The `data.yaml` of a folder, or the file itself when one was given."""
    if root.is_file():
        return root
    return next((root / name for name in ("data.yaml", "data.yml", "dataset.yaml") if (root / name).is_file()), None)


def recognises(root: Path) -> bool:
    """Whether a folder has a `data.yaml`."""
    return settings_file(root) is not None


class _Loader(yaml.SafeLoader):
    """YAML without aliases: a few of them, one inside the other, grow to more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        return super().compose_node(parent, index)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        MixsupError: it cannot be read or holds something else.
    """
    text = read_text(path)
    if len(text) > _MAX_YAML:
        raise MixsupError(f"{path}: {len(text):,} characters are too many for a settings file; give the data set's own data.yaml")
    try:
        data = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise MixsupError(f"{path}{place}: YAML that cannot be read ({reason}); correct it") from error
    except Exception as error:  # the parser lets many kinds through: `!!float x`, `2001-99-99`, deep nesting, ...
        reason = " ".join(str(error).split())
        raise MixsupError(f"{path}: YAML that cannot be read ({reason}); correct it") from error
    if not isinstance(data, dict):
        raise MixsupError(f"{path}: not a YAML mapping; write `key: value` lines")
    return data


def _classes(data: dict[str, Any], path: Path) -> tuple[Classes, list[int]]:
    """The class list, and our id for each of the file's; a class called background maps to 0."""
    names = data.get("names")
    if isinstance(names, dict):
        by_number = {str(key): name for key, name in names.items()}  # "0" is 0
        if by_number.keys() != {str(index) for index in range(len(names))}:
            raise MixsupError(f"{path}: names must be numbered 0 to {len(names) - 1}; correct them")
        names = [by_number[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise MixsupError(f"{path}: no class names; add `names: [cat, dog]`")
    if not all(isinstance(name, (str, int, float)) for name in names):
        wrong = next(name for name in names if not isinstance(name, (str, int, float)))
        raise MixsupError(f"{path}: {quoted(wrong)} among the names is no name; write it in quotes")
    objects = [str(name) for name in names if str(name).lower() not in BACKGROUND_NAMES]
    table = {name: index for index, name in enumerate(objects, 1)}
    return make_classes(objects, path), [table.get(str(name), 0) for name in names]


def _base(data: dict[str, Any], path: Path) -> Path:
    """The folder that split paths start from. `path:` counts only where it stays inside the folder of the file: copies of a data set keep
    the path of the machine that they were made on."""
    given = data.get("path")
    below = inside(path.parent, given) if isinstance(given, str) else None
    return below if below is not None and _exists(below) and below.is_dir() else path.parent


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def splits(root: Path) -> list[str]:
    """Names of the splits that `data.yaml` fills."""
    path = settings_file(root)
    data = load_yaml(path) if path is not None else {}
    return _filled(data)


def _filled(data: dict[str, Any]) -> list[str]:
    """The keys that name images, `valid` and `Train` among them, train first."""
    return [name for split in _SPLITS for name in data if isinstance(name, str) and common_name(name).lower() == split and data[name]]


def read(root: Path, split: str | None) -> Dataset:
    """Reads a YOLO data set; an image gets a mask when every row of its label file is a polygon. One without rows, which shows no object, is as most are.

    Raises:
        MixsupError: no such split, or a `data.yaml` that cannot be used.
    """
    path = settings_file(root)
    if path is None:
        raise MixsupError(f"{root}: no data.yaml; write one with names, train and val")
    data = load_yaml(path)
    if data.get("kpt_shape"):
        raise MixsupError(f"{path}: kpt_shape makes these labels of key points, which are not read; export boxes or outlines")
    classes, table = _classes(data, path)
    base = _base(data, path)
    collector = Collector(base)
    names = choose_splits(split, splits(root), root)
    images: dict[str, Path] = {}
    for name in _filled(data) if names is None else names:
        entries = data[name]
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                raise MixsupError(f"{path}: {name}: {quoted(entry)} is no path; give a folder or a list of images")
            for image in _images(entry, base, path, name, collector):
                key = image.relative_to(base).with_suffix("").as_posix()
                images.setdefault(key, image)
    short = [Path(key).name for key in images]
    unique = len(set(short)) == len(short)  # ids are file names, with folders only where names repeat

    files = {key: _label_file(image, base) for key, image in images.items()}
    if files and not any(is_file(file) for file in files.values()):
        key, file = next(iter(files.items()))
        raise MixsupError(
            f"{root}: none of {len(files)} images has a label file; that of {quoted(images[key].relative_to(base).as_posix())} would be "
            f"{quoted(file.relative_to(base).as_posix())}; put pictures below images/ and their text files at the same place below labels/"
        )
    labels: dict[str, tuple[Path, tuple[int, int], Boxes, tuple[Segment, ...] | None]] = {}
    for key, image in images.items():
        sample = Path(key).name if unique else key.replace("/", "-")
        size = collector.size(sample, image)
        if sample in labels:
            collector.problem(image, "", f"image id {quoted(sample)} occurs twice", "remove or rename one of them", sample)
        elif size is not None:
            labels[sample] = (image, size, *_rows(files[key], size, table, sample, collector))
    outlined = sum(bool(segments) for _, _, _, segments in labels.values())
    boxed = sum(segments is None for _, _, _, segments in labels.values())
    if outlined and _all_rotated([item for _, _, _, segments in labels.values() for item in segments or ()]):
        raise MixsupError(
            f"{root}: every outline is a rotated rectangle: these are oriented boxes, which are not read; export upright boxes or outlines"
        )
    for sample, (image, size, boxes, segments) in labels.items():
        mask = MaskSegments(segments) if segments or (segments is not None and outlined > boxed) else None
        collector.add(Sample(id=sample, image=image, size=size, boxes=boxes, mask=mask), image)
    collector.rectangles(path, labels)
    if outlined and boxed:
        collector.notes.append(
            f"{path}: {boxed} images have rows of 4 numbers, which are boxes: they have no mask, as the {outlined} of outlines alone have"
        )
    return collector.dataset(classes, root)


def _all_rotated(segments: list[Segment]) -> bool:
    """Whether all outlines are rectangles and some of them turned: labels of oriented boxes, which would pass for true masks."""
    turned = False
    for segment in segments:
        points = segment.polygons[0].reshape(-1, 2)
        if len(points) != 4:
            return False
        one, two = points[2] - points[0], points[3] - points[1]
        if np.abs(points[0] + points[2] - points[1] - points[3]).max() > 2 or abs(np.hypot(*one) - np.hypot(*two)) > 2:
            return False  # diagonals of a rectangle halve each other and are equally long; coordinates are rounded
        turned |= bool(np.abs(points[1] - points[0]).min() > 2 and np.abs(points[2] - points[1]).min() > 2)
    return turned


def _images(entry: str, base: Path, path: Path, split: str, collector: Collector) -> list[Path]:
    """Image files of one entry: a folder with all below it, or a text file that lists them."""
    place = inside(base, entry)
    if place is None or not _exists(place):
        # Some exporters write ../train/images for a folder that lies beside data.yaml.
        below = inside(base, entry.lstrip("./")) if entry.startswith("../") else None
        if below is not None and _exists(below):
            place = below
    if place is None and not (entry.startswith("../") and entry.count("..") == 1):
        raise MixsupError(f"{path}: {split}: {quoted(entry)} leaves the data folder; give a folder inside it")
    if place is None:
        raise MixsupError(f"{path}: {split}: no folder {quoted(entry)}, beside data.yaml or above it; bring it, or remove the line")
    if _exists(place) and place.is_dir():
        return [image for folder in [place, *sorted(place.rglob("*"))] if folder.is_dir() for image in images_below(folder).values()]
    if not is_file(place) or place.suffix != ".txt":
        raise MixsupError(f"{path}: {split}: no folder or list {quoted(entry)}; correct the path")
    listed = []
    for line_number, line in enumerate(read_text(place).splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        image = collector.path(place, f"line {line_number}", name.removeprefix("./"), Path(name).stem)
        if image is None:
            continue
        if image.suffix.lower() in EXTENSIONS:
            listed.append(image)
        else:
            collector.problem(place, f"line {line_number}", f"{quoted(name)} is not called like an image", "list image files", image.stem)
    return listed


def _label_file(image: Path, base: Path) -> Path:
    """`labels/` in the place of the last `images/` of the path; beside the image where there is none."""
    parts = list(image.relative_to(base).parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return base.joinpath(*parts).with_suffix(".txt")


def _rows(
    path: Path, size: tuple[int, int], table: list[int], sample: str, collector: Collector
) -> tuple[Boxes, tuple[Segment, ...] | None]:
    """The boxes of a label file, and its outlines, None when a row is a box. `table` holds our class id for each of the file's."""
    if not is_file(path):
        return Boxes.of([]), ()
    try:
        lines = read_text(path).splitlines()
    except MixsupError:
        collector.problem(path, "", "not UTF-8 text", "write the file again", sample)
        return Boxes.of([]), ()
    height, width = size
    boxes: list[tuple[tuple[float, ...], int, bool]] = []
    segments: list[Segment] = []
    only_polygons = True
    for line_number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        place = f"line {line_number}"
        values = [number(word) for word in words[1:]]
        index = number(words[0])
        if not (0 <= index < len(table) and index == int(index)):
            message = f"unknown class {quoted(words[0])}, data.yaml names {len(table)}"
            collector.problem(path, place, message, "add its name or correct the row", sample)
            continue
        class_id = table[int(index)]
        if class_id == 0:
            continue  # somebody outlined the background, which is what is left over anyway
        if len(values) == 4:
            only_polygons = False
            cx, cy, w, h = values
            xyxy = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            box = collector.box(path, place, xyxy, size, sample)
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = np.asarray(values, np.float64) * np.tile([width, height], len(values) // 2)
            fault = polygon_fault(points.tolist(), size)
            if fault:
                collector.problem(path, place, fault, LEAVE_OUT, sample)
                continue
            segment = Segment(class_id, polygons=(points.astype(np.float32),))
            box = segment_box(segment, size)
            segments.append(segment)
        else:
            message = f"{len(values)} numbers behind the class; a box has 4, a polygon 6 or more in pairs"
            collector.problem(path, place, message, LEAVE_OUT, sample)
            continue
        if box is not None:
            boxes.append((box, class_id, False))
    return Boxes.of(boxes), tuple(segments) if only_polygons else None
