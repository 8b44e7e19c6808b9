"""Pascal VOC: `JPEGImages`, `Annotations` (XML boxes), `SegmentationClass` (palette PNG), `ImageSets` (split lists)."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from mixsup.data.coco import label_files
from mixsup.data.collect import (
    Collector,
    choose_splits,
    class_colours,
    class_list,
    images_below,
    is_file,
    make_classes,
    masks_below,
    number,
    read_text,
)
from mixsup.data.image import EXTENSIONS
from mixsup.data.sample import BACKGROUND_NAMES, Boxes, Classes, Dataset, MaskFile, Sample, quoted
from mixsup.data.tags import read_tags, tag_ids
from mixsup.errors import MixsupError

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on


@dataclass(frozen=True)
class _Annotation:
    """What is kept of an XML file; the trees of a large data set are hundreds of megabytes.

    Attributes:
        sides: height and width that it was drawn for; None where it does not say, NaN for what is no number.
        rows: class name and (xmin, ymin, xmax, ymax) of each object, as they stand there.
    """

    sides: tuple[float, float] | None
    rows: tuple[tuple[str, tuple[float, ...]], ...]


def recognises(root: Path) -> bool:
    """Whether a folder has VOC's layout; COCO files may lie beside `JPEGImages`, too."""
    own = any((root / name).is_dir() for name in ("Annotations", "SegmentationClass", "ImageSets"))
    return (root / "JPEGImages").is_dir() and (own or not label_files(root))


def splits(root: Path) -> dict[str, Path]:
    """Split lists by name. `ImageSets/Segmentation` comes before `Main`; "Main/train" names the other one."""
    found: dict[str, Path] = {}
    for folder in ("Segmentation", "Main"):
        for path in sorted((root / "ImageSets" / folder).glob("*.txt")):
            found.setdefault(path.stem, path)
            found[f"{folder}/{path.stem}"] = path
    # Every list has two names; the long one is needed only where the short one means another file.
    return {name: path for name, path in found.items() if "/" not in name or found[path.stem] != path}


def read(root: Path, split: str | None, given: Classes | None = None) -> Dataset:
    """Reads a VOC folder.

    Class ids come from `given`, else from `labels.txt` (or `classes.txt`), else from VOC's own 20 names when no other occurs, else, where there are
    no masks whose ids would need an order, from the sorted names in all XML files and `tags.csv`, whatever the split.

    Raises:
        MixsupError: no such split, a split list that cannot be read, or masks without a class list.
    """
    collector = Collector(root)
    images = images_below(root / "JPEGImages")
    ids = _ids(root, split, images, collector)
    parsed = {name: _parse(root / "Annotations" / f"{name}.xml", name, collector) for name in ids}
    tags = read_tags(root / "tags.csv", collector, set(ids), set(images)) if (root / "tags.csv").is_file() else {}

    classes = given or class_list(root) or _classes(root, parsed, tags)
    colours = class_colours(root, classes) if given is None else None
    folder = root / "SegmentationClass"
    masks = {key: path for key, path in masks_below(folder).items() if path.suffix.lower() == ".png"} if folder.is_dir() else {}
    collector.look_at_names(root / "JPEGImages", folder if masks else None)

    for name in ids:
        image = images.get(name)
        if image is None:
            collector.problem(root / "JPEGImages" / f"{name}.jpg", "", "no such image", "remove it from the split or bring the file", name)
            continue
        size = collector.size(name, image)
        if size is None:
            continue
        mask = masks.get(name)
        found = parsed[name]
        sample = Sample(
            id=name,
            image=image,
            size=size,
            tags=tag_ids(root / "tags.csv", tags[name], classes, name, collector) if name in tags else None,
            boxes=_boxes(root / "Annotations" / f"{name}.xml", found, size, classes, name, collector) if found is not None else None,
            mask=MaskFile(mask, colours=colours) if mask is not None else None,
        )
        collector.add(sample, image)
    return collector.dataset(classes, root)


def _classes(root: Path, parsed: dict[str, _Annotation | None], tags: dict[str, tuple[str, ...]]) -> Classes:
    """The class list of a folder without `labels.txt`."""
    where = {tag: root / "tags.csv" for row in tags.values() for tag in row}
    where |= {name: root / "Annotations" / f"{key}.xml" for key, found in parsed.items() for name in _names(found)}
    strange = sorted(name for name in where.keys() - set(VOC_CLASSES) if name.lower() not in BACKGROUND_NAMES)
    if (root / "SegmentationClass").is_dir():
        if not strange:
            return Classes(VOC_CLASSES)
        message = f"class {quoted(strange[0])} is not one of VOC's 20; write labels.txt, one class a line in the order of the mask ids"
        raise MixsupError(f"{where[strange[0]]}: {message}")
    # One split alone would give ids that differ from those of the next, so every file has its say; faults are told when it is read.
    names = set(where)
    silent = Collector(root)
    for path in (root / "Annotations").glob("*.xml"):
        names |= _names(parsed[path.stem] if path.stem in parsed else _parse(path, path.stem, silent))
    if (root / "tags.csv").is_file():
        names |= {tag for row in read_tags(root / "tags.csv", silent, set(), set()).values() for tag in row}
    names = {name for name in names if name.lower() not in BACKGROUND_NAMES}
    return Classes(VOC_CLASSES) if names <= set(VOC_CLASSES) else make_classes(sorted(names), root / "Annotations")


def _names(found: _Annotation | None) -> set[str]:
    return {name for name, _ in found.rows if name} if found is not None else set()


def _ids(root: Path, split: str | None, images: dict[str, Path], collector: Collector) -> list[str]:
    lists = splits(root)
    names = choose_splits(split, lists, root)
    if names is None and not lists:
        return sorted(images)
    ids: dict[str, None] = {}
    for file in dict.fromkeys([lists[name] for name in names] if names is not None else lists.values()):
        mine: set[str] = set()
        for line_number, line in enumerate(read_text(file).splitlines(), 1):
            name = line.strip()
            if not name:
                continue
            if name not in images:  # lists of one class ("aeroplane_train.txt") have a second column, -1 where the class is absent
                name = re.sub(r"\s+(-1|0|1)$", "", name)
            if name not in images and Path(name).suffix.lower() in EXTENSIONS:
                name = name[: -len(Path(name).suffix)]
            if name in mine:
                collector.problem(file, f"line {line_number}", f"image {quoted(name)} is listed twice", "remove one of the lines", name)
            elif "/" in name or "\\" in name or name in (".", ".."):
                collector.problem(
                    file, f"line {line_number}", f"{quoted(name)} leaves the data folder", "list image names without a folder", name
                )
                continue
            mine.add(name)
            ids[name] = None
    return sorted(ids)


def _parse(path: Path, name: str, collector: Collector) -> _Annotation | None:
    if not is_file(path):
        return None
    try:
        return _annotation(fromstring(path.read_bytes(), forbid_dtd=True))
    except DefusedXmlException:
        collector.problem(
            path, "", "XML with a document type or entities, which a label file never needs", "remove the <!DOCTYPE ...>", name
        )
    except ParseError as error:
        collector.problem(path, f"line {error.position[0]}", "XML that cannot be read", "write the file again", name)
    except (OSError, ValueError, LookupError, RecursionError) as error:
        collector.problem(path, "", f"XML that cannot be read ({error})", "write the file again", name)
    return None


def _annotation(tree: Element) -> _Annotation:
    declared, rows = tree.find("size"), []
    for item in tree.iter("object"):
        frame = item.find("bndbox")
        edges = [number(_text(frame, key)) if frame is not None else math.nan for key in ("xmin", "ymin", "xmax", "ymax")]
        rows.append((sys.intern(_text(item, "name")), tuple(edges)))
    sides = None if declared is None else (number(_text(declared, "height")), number(_text(declared, "width")))
    return _Annotation(sides, tuple(rows))


def _boxes(path: Path, found: _Annotation, size: tuple[int, int], classes: Classes, sample: str, collector: Collector) -> Boxes:
    if found.sides is not None and all(math.isfinite(side) for side in found.sides):
        collector.declared_size(path, sample, (int(found.sides[0]), int(found.sides[1])), size)
    rows = []
    lines = _lines(path)
    for index, (name, edges) in enumerate(found.rows):
        place = lines[index] if index < len(lines) else f"object {index + 1}"
        class_id = classes.id(name)
        if name.lower() in BACKGROUND_NAMES:
            continue  # what is left over anyway
        if not class_id:
            message = f"unknown class {quoted(name)}"
            collector.problem(path, place, message, "add it to labels.txt, or rename it in a YAML file", sample)
            continue
        # VOC counts pixels from 1 and includes the last one; ours are edges from 0.
        xyxy = (edges[0] - 1, edges[1] - 1, edges[2], edges[3])
        box = collector.box(path, place, xyxy, size, sample)
        if box is not None:
            rows.append((box, class_id, False))
    return Boxes.of(rows)


def _lines(path: Path) -> list[str]:
    """The lines on which the XML's objects begin; the parser does not keep them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [f"line {line_number}" for line_number, line in enumerate(lines, 1) for _ in range(line.count("<object>"))]


def _text(parent: Element, key: str) -> str:
    child = parent.find(key)
    return (child.text or "").strip() if child is not None else ""
