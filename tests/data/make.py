"""One tiny data set, written in every format: six pictures of 40 x 30 pixels, three classes, rectangles as objects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 40, 30
SIZE = (HEIGHT, WIDTH)
CLASSES = ("bird", "cat", "dog")  # in alphabetical order, which is what a format without a class list falls back to
Box = tuple[int, int, int, int]
OBJECTS: dict[str, list[tuple[str, Box]]] = {
    "a": [("cat", (4, 3, 20, 18))],
    "b": [("dog", (2, 2, 30, 26)), ("bird", (10, 8, 20, 18))],  # one inside the other: the smaller lies on top
    "c": [("cat", (0, 0, 12, 12)), ("cat", (20, 10, 40, 30))],
    "d": [],
    "e": [("bird", (5, 5, 25, 20)), ("cat", (26, 4, 38, 14))],
    "f": [("dog", (1, 1, 39, 29))],
}
SPLITS = {"train": ["a", "b", "c", "d"], "val": ["e", "f"]}


def class_id(name: str) -> int:
    return CLASSES.index(name) + 1


def mask_of(name: str) -> npt.NDArray[np.uint8]:
    """H x W uint8 class ids; no void."""
    mask = np.zeros(SIZE, np.uint8)
    for label, (x0, y0, x1, y1) in sorted(OBJECTS[name], key=lambda item: -(item[1][2] - item[1][0]) * (item[1][3] - item[1][1])):
        mask[y0:y1, x0:x1] = class_id(label)
    return mask


def rectangle(box: Box) -> npt.NDArray[np.bool_]:
    x0, y0, x1, y1 = box
    pixels = np.zeros(SIZE, bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def write_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.stem)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_mask(path: Path, mask: npt.NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def voc_xml(name: str, objects: list[tuple[str, Box]], size: tuple[int, int] = SIZE) -> str:
    """Pixels count from 1 and the last one is included."""
    lines = [
        f"<annotation>\n<filename>{name}.jpg</filename>\n<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    ]
    for label, (x0, y0, x1, y1) in objects:
        frame = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        lines.append(f"<object>\n<name>{label}</name>\n<bndbox>{frame}</bndbox>\n</object>")
    return "\n".join([*lines, "</annotation>\n"])


def make_voc(root: Path) -> Path:
    for name, objects in OBJECTS.items():
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", voc_xml(name, objects))
        write_mask(root / "SegmentationClass" / f"{name}.png", mask_of(name))
    for split, names in SPLITS.items():
        write(root / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(names) + "\n")
    write(root / "labels.txt", "\n".join(("background", *CLASSES)) + "\n")
    return root


COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [250, 50, 83]], np.uint8)


def make_voc_colours(root: Path) -> Path:
    """As CVAT writes it: masks of colours, and a list that says which class each is."""
    make_voc(root)
    (root / "labels.txt").unlink()
    rows = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(["background", *CLASSES], COLOURS.tolist(), strict=True)]
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "\n".join(rows) + "\n")
    for path in (root / "SegmentationClass").iterdir():
        Image.fromarray(COLOURS[mask_of(path.stem)]).save(path)
    return root


def coco_json(names: list[str], outlines: str = "polygons", folder: str = "") -> dict[str, Any]:
    """A COCO file. `outlines` is polygons, rle (compressed), counts (a list) or none. Category ids have gaps, as COCO's own have."""
    annotations: list[dict[str, Any]] = []
    for image_id, name in enumerate(names, 100):
        for label, box in OBJECTS[name]:
            x0, y0, x1, y1 = box
            row: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 10 * class_id(label) + 1, "iscrowd": 0}
            row |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            if outlines == "polygons":
                row["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            elif outlines == "rle":
                code = coco_mask.encode(np.asfortranarray(rectangle(box).astype(np.uint8)))
                row["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}
            elif outlines == "counts":
                row["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": plain_counts(rectangle(box))}
            annotations.append(row)
    return {
        "images": [{"id": i, "file_name": f"{folder}{name}.jpg", "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names, 100)],
        "annotations": annotations,
        "categories": [{"id": 10 * class_id(name) + 1, "name": name} for name in reversed(CLASSES)],
    }


def plain_counts(pixels: npt.NDArray[np.bool_]) -> list[int]:
    """Run lengths, columns first, zeros first."""
    flat = np.concatenate([[False], pixels.T.ravel(), [not pixels.T.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(run) for run in np.diff(np.concatenate([[0], edges]))]


def make_coco(root: Path, outlines: str = "polygons") -> Path:
    for split, names in SPLITS.items():
        write(root / "annotations" / f"instances_{split}.json", json.dumps(coco_json(names, outlines)))
        for name in names:
            write_image(root / "images" / split / f"{name}.jpg")
    return root


def make_coco_rle(root: Path) -> Path:
    return make_coco(root, "rle")


def make_coco_counts(root: Path) -> Path:
    return make_coco(root, "counts")


def make_coco_boxes(root: Path) -> Path:
    return make_coco(root, "none")


def make_roboflow(root: Path) -> Path:
    for split, names in (("train", SPLITS["train"]), ("valid", SPLITS["val"])):
        write(root / split / "_annotations.coco.json", json.dumps(coco_json(names)))
        for name in names:
            write_image(root / split / f"{name}.jpg")
    return root


def _make_yolo(root: Path, polygons: bool) -> Path:
    for split, names in SPLITS.items():
        for name in names:
            write_image(root / "images" / split / f"{name}.jpg")
            rows = []
            for label, (x0, y0, x1, y1) in OBJECTS[name]:
                box = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
                corners = [value for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1)) for value in (x / WIDTH, y / HEIGHT)]
                rows.append(" ".join(str(value) for value in (class_id(label) - 1, *(corners if polygons else box))))
            if rows:  # an image without an object has no label file
                write(root / "labels" / split / f"{name}.txt", "\n".join(rows) + "\n")
    settings = {"path": ".", "train": "images/train", "val": "images/val", "names": dict(enumerate(CLASSES))}
    write(root / "data.yaml", yaml.safe_dump(settings))
    return root


def make_yolo_boxes(root: Path) -> Path:
    return _make_yolo(root, polygons=False)


def make_yolo_polygons(root: Path) -> Path:
    return _make_yolo(root, polygons=True)


def make_folders(root: Path) -> Path:
    for split, names in SPLITS.items():
        for name in names:
            write_image(root / "images" / split / f"{name}.jpg")
            write_mask(root / "masks" / split / f"{name}.png", mask_of(name))
    write(root / "labels.txt", "\n".join(CLASSES) + "\n")
    return root


def make_tags(root: Path) -> Path:
    rows = ["image,tags,split"]
    for split, names in SPLITS.items():
        for name in names:
            write_image(root / "images" / f"{name}.jpg")
            rows.append(f"{name}.jpg,{';'.join(sorted({label for label, _ in OBJECTS[name]}))},{split}")
    write(root / "tags.csv", "\n".join(rows) + "\n")
    return root


def make_joined(root: Path) -> Path:
    make_voc(root / "pictures")
    return write(root / "all.yaml", yaml.safe_dump({"classes": list(CLASSES), "sources": [{"path": "pictures"}]}))


WRITERS: dict[str, Callable[[Path], Path]] = {
    "voc": make_voc,
    "voc-colours": make_voc_colours,
    "coco": make_coco,
    "coco-rle": make_coco_rle,
    "coco-counts": make_coco_counts,
    "coco-boxes": make_coco_boxes,
    "roboflow": make_roboflow,
    "yolo-boxes": make_yolo_boxes,
    "yolo-polygons": make_yolo_polygons,
    "folders": make_folders,
    "tags": make_tags,
    "joined": make_joined,
}
CARRIES = dict.fromkeys(WRITERS, "masks") | {"coco-boxes": "boxes", "yolo-boxes": "boxes", "tags": "tags"}  # the strongest kind of label
