"""Faults of a data set: one line each, with file, place and remedy. Each test here is a row of docs/robustness.md."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixsup.data import load_dataset
from mixsup.data.check import check
from mixsup.errors import DataError, MixsupError

from . import test_misread
from .make import (
    OBJECTS,
    SPLITS,
    coco_json,
    make_coco,
    make_coco_boxes,
    make_folders,
    make_roboflow,
    make_tags,
    make_voc,
    make_yolo_boxes,
    make_yolo_polygons,
    mask_of,
    write,
    write_image,
    write_mask,
)


def faults(path: Path, split: str | None = None) -> list[str]:
    """The lines that a user sees: from reading, else from decoding everything. Each names a file and ends with a remedy."""
    with pytest.raises(MixsupError) as caught:
        check(load_dataset(path, split))
    lines = str(caught.value).splitlines()
    if isinstance(caught.value, DataError):
        assert [str(problem) for problem in caught.value.problems] == lines
        assert all(problem.file and problem.message and problem.remedy for problem in caught.value.problems)
    assert lines
    assert all("; " in line for line in lines)
    return lines


def only(path: Path, split: str | None = None) -> str:
    lines = faults(path, split)
    assert len(lines) == 1
    return lines[0]


def skipped(path: Path) -> list[str]:
    """Ids that `--skip-bad` leaves out."""
    left = {sample.id for sample in check(load_dataset(path, skip_bad=True), skip_bad=True).samples}
    return sorted(set(OBJECTS) - left)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def change_coco(root: Path, change: Callable[[dict[str, Any]], object], outlines: str = "polygons") -> Path:
    data = coco_json(SPLITS["train"], outlines)
    change(data)
    (make_coco(root, outlines) / "annotations/instances_train.json").write_text(json.dumps(data))
    return root


def voc_with_box(root: Path, xmin: object, ymin: object, xmax: object, ymax: object, name: str = "cat") -> Path:
    make_voc(root)
    frame = f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"
    write(root / "Annotations/a.xml", f"<annotation>\n<object>\n<name>{name}</name>\n{frame}\n</object>\n</annotation>")
    return root


class TestImages:
    def test_truncated_jpeg(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "JPEGImages/a.jpg"
        path.write_bytes(path.read_bytes()[:700])
        assert only(tmp_path).startswith(f"{path}: the image is broken or cut short (")
        assert only(tmp_path).endswith("; fetch it again")
        assert skipped(tmp_path) == ["a"]

    def test_zero_byte_file(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "JPEGImages/a.jpg"
        path.write_bytes(b"")
        assert only(tmp_path) == f"{path}: the file is empty; fetch it again"

    @pytest.mark.parametrize("text", ["<!DOCTYPE html><html>404", "\n <HTML><body>", "<?xml version='1.0'?><Error/>"])
    def test_html_called_jpg(self, tmp_path: Path, text: str) -> None:
        path = make_voc(tmp_path) / "JPEGImages/a.jpg"
        path.write_text(text)
        assert only(tmp_path) == f"{path}: this is a web page, not an image (a failed download?); fetch it again"

    def test_other_bytes(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "JPEGImages/a.jpg"
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n")
        assert only(tmp_path) == f"{path}: not an image of a known format; convert it to JPEG or PNG"

    def test_name_that_is_too_long(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path)
        name = 241 * "n"
        (path / "JPEGImages/a.jpg").rename(path / f"JPEGImages/{name}.jpg")
        (path / "Annotations/a.xml").rename(path / f"Annotations/{name}.xml")
        (path / "SegmentationClass/a.png").unlink(missing_ok=True)
        for lines in (path / "ImageSets").rglob("*.txt"):
            lines.write_text(lines.read_text().replace("a\n", f"{name}\n"))
        assert only(path).endswith(f"image id '{79 * 'n'}... is too long to name files by; rename the image")

    def test_gigantic_png_header(self, tmp_path: Path) -> None:
        path = make_tags(tmp_path) / "images/a.jpg"
        path.write_bytes(png_header(60_000, 60_000))
        assert only(tmp_path) == f"{path}: 60000 x 60000 pixels is beyond the limit of 300,000,000; cut it into tiles"

    def test_missing_image(self, tmp_path: Path) -> None:
        (make_voc(tmp_path) / "JPEGImages/a.jpg").unlink()
        assert only(tmp_path) == f"{tmp_path}/JPEGImages/a.jpg: no such image; remove it from the split or bring the file"

    def test_pipe_called_jpg(self, tmp_path: Path) -> None:
        path = make_tags(tmp_path) / "images/a.jpg"
        path.unlink()
        os.mkfifo(path)
        assert only(tmp_path).startswith(f"{tmp_path}/tags.csv, line 2: no image 'a.jpg'")
        path.unlink()
        os.mkfifo(make_folders(tmp_path / "pairs") / "images/train/b.png")
        (tmp_path / "pairs/images/train/b.jpg").unlink()
        assert only(tmp_path / "pairs") == f"{tmp_path}/pairs/images/train/b.png: not a regular file; bring the image itself"

    def test_labels_for_another_size(self, tmp_path: Path) -> None:
        write_image(make_voc(tmp_path) / "JPEGImages/a.jpg", (60, 80))
        first = faults(tmp_path)[0]
        assert (
            first
            == f"{tmp_path}/Annotations/a.xml: labels are for 40 x 30 pixels but the image has 80 x 60; bring the image that was labelled"
        )

    def test_labels_from_before_a_rotation(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "JPEGImages/a.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)
        said = "labels are for 40 x 30 pixels but the upright image has 30 x 40: they were drawn before its EXIF rotation"
        assert faults(tmp_path)[0] == f"{tmp_path}/Annotations/a.xml: {said}; rotate the labels, or strip the EXIF tag"


class TestMasks:
    def test_mask_of_another_size(self, tmp_path: Path) -> None:
        path = write_mask(make_voc(tmp_path) / "SegmentationClass/a.png", np.zeros((15, 20), np.uint8))
        said = "the mask has 20 x 15 pixels, its image 40 x 30"
        assert only(tmp_path) == f"{path}: {said}; write the mask at the size of the upright image"
        assert skipped(tmp_path) == ["a"]

    def test_mask_ids_outside_the_class_list(self, tmp_path: Path) -> None:
        mask = mask_of("a")
        mask[3, 3] = 4
        path = write_mask(make_voc(tmp_path) / "SegmentationClass/a.png", mask)
        said = "class id 4 is not in the class list (0 to 3, 255 is void)"
        assert only(tmp_path) == f"{path}: {said}; correct the mask or the class list"

    def test_mask_of_colours(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "SegmentationClass/a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(path)
        said = "pixels are colours or ids above 255, not class ids"
        assert only(tmp_path) == f"{path}: {said}; save the mask as an 8-bit palette or grey PNG of ids"

    def test_truncated_mask(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "SegmentationClass/a.png"
        path.write_bytes(path.read_bytes()[:60])
        assert only(tmp_path).startswith(f"{path}: the mask is broken or cut short (")
        assert only(tmp_path).endswith("; write it again")

    def test_gigantic_mask(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "SegmentationClass/a.png"
        path.write_bytes(png_header(60_000, 60_000))
        assert only(tmp_path) == f"{path}: 60000 x 60000 pixels is beyond the limit of 300,000,000; cut it into tiles"


SKIP = "correct it, or leave the image out with --skip-bad"


class TestBoxes:
    @pytest.mark.parametrize(
        ("edges", "said"),
        [
            ((101, 1, 120, 9), "box (100, 0, 120, 9) lies outside its image of 40 x 30 pixels"),
            ((5, 5, 60, 20), "box (4, 4, 60, 20) reaches out of its image of 40 x 30 pixels"),
            ((20, 5, 10, 20), "box (19, 4, 10, 20) is inverted (x0, y0, x1, y1 must grow)"),
            ((10, 5, 9, 20), "box (9, 4, 9, 20) has no area"),
            (("nan", 5, 9, 20), "box (nan, 4, 9, 20) is not four finite numbers"),
            ((1, 5, "inf", 20), "box (0, 4, inf, 20) is not four finite numbers"),
            (("left", 5, 9, 20), "box (nan, 4, 9, 20) is not four finite numbers"),
            (("", 5, 9, 20), "box (nan, 4, 9, 20) is not four finite numbers"),
        ],
        ids=["outside", "reaching out", "inverted", "no area", "nan", "inf", "word", "empty"],
    )
    def test_box_outside_inverted_empty_or_nan(self, tmp_path: Path, edges: tuple[object, object, object, object], said: str) -> None:
        voc_with_box(tmp_path, *edges)
        assert only(tmp_path) == f"{tmp_path}/Annotations/a.xml, line 2: {said}; {SKIP}"
        assert skipped(tmp_path) == ["a"]

    def test_the_same_in_coco(self, tmp_path: Path) -> None:
        for index, box in enumerate(
            ([100, 0, 5, 5], [0, 0, -5, 5], [0, 0, 0, 5], [float("nan"), 0, 5, 5], [1, 2, 3], "x", {}, [[], 0, 1, 1])
        ):
            root = change_coco(tmp_path / str(index), lambda data, box=box: data["annotations"][0].update(bbox=box))  # type: ignore[misc]
            line = only(root)
            assert line.startswith(f"{root}/annotations/instances_train.json, annotations[0]: box (")
            assert line.endswith(SKIP)

    def test_empty_outlines_and_boxes_are_none(self, tmp_path: Path) -> None:
        root = change_coco(tmp_path / "all", lambda data: [row.update(segmentation=[[]]) for row in data["annotations"]])
        assert {sample.kinds()[0] for sample in load_dataset(root, "train").samples} == {
            "boxes"
        }  # nor has the image without annotations a mask
        root = change_coco(tmp_path / "some", lambda data: [row["segmentation"].append([]) for row in data["annotations"]])
        assert {sample.kinds()[0] for sample in load_dataset(root, "train").samples} == {"masks"}
        root = change_coco(tmp_path / "box", lambda data: data["annotations"][0].update(bbox=[]))
        boxes = load_dataset(root, "train").samples[0].boxes
        assert boxes is not None
        assert boxes.xyxy.tolist() == [[4, 3, 20, 18]]
        root = change_coco(tmp_path / "neither", lambda data: data["annotations"][0].update(bbox=[], segmentation=[[]]))
        assert "annotations[0]: has neither bbox nor segmentation" in only(root)

    def test_the_same_in_yolo(self, tmp_path: Path) -> None:
        rows = ("1 3 3 .1 .1", "1 .5 .5 -.1 .1", "1 .5 .5 0 .1", "1 nan .5 .1 .1", "1 inf .5 .1 .1", "1 .5 .5 1.9 .1")
        path = write(make_yolo_boxes(tmp_path) / "labels/train/a.txt", "\n".join(rows))
        lines = faults(tmp_path)
        assert len(lines) == len(rows)
        assert all(line.startswith(f"{path}, line {number}: box (") for number, line in enumerate(lines, 1))

    def test_rounding_by_two_pixels_is_no_fault(self, tmp_path: Path) -> None:
        boxes = load_dataset(voc_with_box(tmp_path, 0, -1, 42, 32)).samples[0].boxes
        assert boxes is not None
        assert boxes.xyxy.tolist() == [[0, 0, 40, 30]]

    def test_wrong_number_of_columns(self, tmp_path: Path) -> None:
        path = write(make_yolo_boxes(tmp_path) / "labels/train/a.txt", "1 .5 .5 .1\n")
        assert only(tmp_path) == f"{path}, line 1: 3 numbers behind the class; a box has 4, a polygon 6 or more in pairs; {SKIP}"

    def test_neither_box_nor_outline(self, tmp_path: Path) -> None:
        root = change_coco(tmp_path, lambda data: data["annotations"][0].pop("bbox"), "none")
        assert only(root) == f"{root}/annotations/instances_train.json, annotations[0]: has neither bbox nor segmentation; {SKIP}"


class TestClasses:
    def test_unknown_class_voc(self, tmp_path: Path) -> None:
        voc_with_box(tmp_path, 1, 1, 9, 9, name="yak")
        said = "unknown class 'yak'; add it to labels.txt, or rename it in a YAML file"
        assert only(tmp_path) == f"{tmp_path}/Annotations/a.xml, line 2: {said}"

    def test_unknown_class_voc_without_a_list(self, tmp_path: Path) -> None:
        voc_with_box(tmp_path, 1, 1, 9, 9, name="yak")
        (tmp_path / "labels.txt").unlink()
        said = "class 'yak' is not one of VOC's 20; write labels.txt, one class a line in the order of the mask ids"
        assert only(tmp_path) == f"{tmp_path}/Annotations/a.xml: {said}"

    def test_unknown_class_coco(self, tmp_path: Path) -> None:
        root = change_coco(tmp_path, lambda data: data["annotations"][0].update(category_id=5))
        assert only(root) == f"{root}/annotations/instances_train.json, annotations[0]: unknown class id 5; add it to categories"

    def test_unknown_class_yolo(self, tmp_path: Path) -> None:
        path = write(
            make_yolo_boxes(tmp_path) / "labels/train/a.txt",
            "3 .5 .5 .1 .1\n-1 .5 .5 .1 .1\n1.5 .5 .5 .1 .1\ncat .5 .5 .1 .1\ninf 1 1 1 1\n",
        )
        lines = faults(tmp_path)
        assert lines[0] == f"{path}, line 1: unknown class '3', data.yaml names 3; add its name or correct the row"
        assert len(lines) == 5

    def test_unknown_class_tags(self, tmp_path: Path) -> None:
        write(make_tags(tmp_path) / "labels.txt", "bird\ndog\n")
        assert faults(tmp_path)[0] == f"{tmp_path}/tags.csv, line 2: unknown class 'cat'; add it to labels.txt"

    def test_class_named_script(self, tmp_path: Path) -> None:
        # Data keeps the name as it is; whoever writes HTML escapes it, and messages quote it.
        name = "<script>alert(1)</script>"
        write(make_folders(tmp_path) / "labels.txt", f"bird\n{name}\ndog\n")
        assert load_dataset(tmp_path).classes.names[1] == name
        escaped = "&lt;script&gt;"
        voc_with_box(tmp_path / "voc", 1, 1, 9, 9, name=escaped)
        assert only(tmp_path / "voc").startswith(f"{tmp_path}/voc/Annotations/a.xml, line 2: unknown class '<script>'; ")

    def test_class_name_with_control_characters(self, tmp_path: Path) -> None:
        write(make_yolo_boxes(tmp_path) / "data.yaml", 'train: images/train\nnames: [bird, "c\\nat\\e[2J", dog]\n')
        said = r"class name 'c\nat\x1b[2J' is empty or holds control characters; give the class a name that can be printed"
        assert only(tmp_path) == f"{tmp_path}/data.yaml: {said}"

    def test_class_twice(self, tmp_path: Path) -> None:
        write(make_folders(tmp_path) / "labels.txt", "bird\ncat\ncat\n")
        assert only(tmp_path) == f"{tmp_path}/labels.txt: class 'cat' stands twice in the class list; remove one"

    def test_background_among_the_objects(self, tmp_path: Path) -> None:
        write(make_folders(tmp_path) / "labels.txt", "bird\nbackground\n")
        said = "'background' cannot be an object class; leave it out, class 0 is always the background"
        assert only(tmp_path) == f"{tmp_path}/labels.txt: {said}"

    def test_too_many_classes(self, tmp_path: Path) -> None:
        write(make_folders(tmp_path) / "labels.txt", "\n".join(f"c{index}" for index in range(300)))
        said = "300 classes, but a mask holds at most 254; merge or drop some in a YAML file"
        assert only(tmp_path) == f"{tmp_path}/labels.txt: {said}"


class TestDuplicates:
    def test_voc(self, tmp_path: Path) -> None:
        path = write(make_voc(tmp_path) / "ImageSets/Segmentation/train.txt", "a\nb\na\n")
        assert only(tmp_path) == f"{path}, line 3: image 'a' is listed twice; remove one of the lines"

    def test_coco_images(self, tmp_path: Path) -> None:
        root = change_coco(tmp_path, lambda data: data["images"].append(data["images"][0]))
        assert only(root) == f"{root}/annotations/instances_train.json, images[4]: image id 100 occurs twice; give each image its own"

    def test_coco_annotations(self, tmp_path: Path) -> None:
        root = change_coco(tmp_path, lambda data: data["annotations"].append(data["annotations"][0]))
        assert only(root) == f"{root}/annotations/instances_train.json, annotations[5]: annotation id 1 occurs twice; give each its own"
        assert skipped(root) == ["a"]

    def test_coco_file_names_of_two_splits(self, tmp_path: Path) -> None:
        """No fault: many tools number each split from 0. Read together, the later split's ids begin with its name."""
        write_image(make_coco(tmp_path) / "images/val/a.jpg")
        write(tmp_path / "annotations/instances_val.json", json.dumps(coco_json(["a"])))
        both = load_dataset(tmp_path)
        assert {sample.id: sample.image.parent.name for sample in both.samples} == dict.fromkeys("abcd", "train") | {"val-a": "val"}
        assert [sample.id for sample in load_dataset(tmp_path, "val").samples] == ["a"]

    def test_coco_image_of_two_files(self, tmp_path: Path) -> None:
        for name in ("train", "all"):
            write(tmp_path / f"{name}.json", json.dumps(coco_json(["a"])))
        write_image(tmp_path / "a.jpg")
        assert (
            only(tmp_path)
            == f"{tmp_path}/train.json, images[0]: 'a.jpg' is in another file, too; name the split to read, or remove one of them"
        )
        assert len(load_dataset(tmp_path, "train")) == 1

    def test_tags(self, tmp_path: Path) -> None:
        path = write(make_tags(tmp_path) / "tags.csv", "image,tags\na.jpg,cat\na,dog\n")
        assert only(path.parent) == f"{path}, line 3: image 'a' occurs twice; write all its tags in one row"

    def test_folders(self, tmp_path: Path) -> None:
        """No fault, as with COCO."""
        write_image(make_folders(tmp_path) / "images/val/a.jpg")
        write_mask(tmp_path / "masks/val/a.png", mask_of("a"))
        assert [sample.id for sample in load_dataset(tmp_path).samples] == ["a", "b", "c", "d", "val-a", "val-e", "val-f"]
        assert [sample.id for sample in load_dataset(tmp_path, "val").samples] == ["a", "e", "f"]

    def test_category_ids(self, tmp_path: Path) -> None:
        root = change_coco(tmp_path, lambda data: data["categories"].append({"id": 11, "name": "yak"}))
        assert only(root) == f"{root}/annotations/instances_train.json, categories[3]: id 11 occurs twice; give each category its own"


class TestLabelFiles:
    def test_json_cut_in_half(self, tmp_path: Path) -> None:
        path = make_coco(tmp_path) / "annotations/instances_train.json"
        text = json.dumps(coco_json(SPLITS["train"]), indent=1)
        path.write_text(text[: len(text) // 2])
        line = only(tmp_path)
        assert line.startswith(f"{path}, line {text[: len(text) // 2].count(chr(10)) + 1}: JSON that is broken or cut short (")
        assert line.endswith("; write the file again")

    def test_json_that_is_no_coco_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.json", '{"images": []}')
        assert only(path) == f"{path}: no list 'annotations'; a COCO file has images, annotations and categories"

    def test_annotation_of_no_image(self, tmp_path: Path) -> None:
        root = change_coco(tmp_path, lambda data: data["annotations"][0].update(image_id=999))
        said = "belongs to no image of this file; correct its image_id or remove it"
        assert only(root) == f"{root}/annotations/instances_train.json, annotations[0]: {said}"

    def test_whole_numbers_with_a_point(self, tmp_path: Path) -> None:
        """No fault: tables with gaps write 1.0 for 1."""

        def change(data: dict[str, Any]) -> None:
            for table, key in (("images", "id"), ("annotations", "image_id"), ("annotations", "category_id"), ("categories", "id")):
                for row in data[table][::2]:
                    row[key] = float(row[key])

        boxes = [sample.boxes for sample in load_dataset(change_coco(tmp_path, change), "train").samples]
        assert [None if found is None else len(found) for found in boxes] == [len(OBJECTS[name]) for name in SPLITS["train"]]
        root = change_coco(tmp_path / "half", lambda data: data["annotations"][0].update(image_id=100.5))
        assert only(root).endswith("annotations[0]: belongs to no image of this file; correct its image_id or remove it")

    def test_ids_of_two_types(self, tmp_path: Path) -> None:
        remedy = "write both as whole numbers"
        root = change_coco(tmp_path / "one", lambda data: data["annotations"][0].update(image_id="100"))
        said = f"image_id '100' is a text, the image's id is a number; {remedy}"
        assert only(root) == f"{root}/annotations/instances_train.json, annotations[0]: {said}"
        assert skipped(root) == ["a"]
        root = change_coco(tmp_path / "other", lambda data: data["images"][0].update(id="100"))
        assert "image_id 100 is a number, the image's id is a text" in only(root)
        assert skipped(root) == ["a"]
        root = change_coco(
            tmp_path / "point", lambda data: [data["annotations"][0].update(image_id=100.0), data["images"][0].update(id="100")]
        )
        assert "image_id 100.0 is a number, the image's id is a text" in only(root)
        root = change_coco(tmp_path / "class", lambda data: data["annotations"][0].update(category_id="21"))
        assert f"category_id '21' is a text, the category's id is a number; {remedy}" in only(root)

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ({"size": [30, 40], "counts": [5, 5]}, "the run-length code covers 10 pixels, the image has 1200"),
            ({"size": [30, 40], "counts": [1300, 5]}, "the run-length code holds a run that is negative or longer than the image"),
            ({"size": [30, 40], "counts": [-5, 1205]}, "the run-length code holds a run that is negative or longer than the image"),
            ({"size": [30, 40], "counts": "0" * 9}, "the run-length code covers 0 pixels, the image has 1200"),
            ({"size": [30, 40], "counts": "o"}, "the run-length code is cut short"),
            ({"size": [30, 40], "counts": "caf\u00e9"}, "the run-length code holds a character that no code has"),
            ({"size": [40, 30], "counts": [1200]}, "run-length code of size [40, 30], the image has [30, 40]"),
            ({"size": [30, 40]}, "run-length code without counts"),
            ("words", "segmentation is neither polygons nor a run-length code"),
        ],
        ids=["short", "long", "negative", "zeros", "cut", "letters", "size", "counts", "words"],
    )
    def test_rle_of_the_wrong_length(self, tmp_path: Path, code: object, said: str) -> None:
        root = change_coco(tmp_path, lambda data: data["annotations"][0].update(segmentation=code))
        assert only(root) == f"{root}/annotations/instances_train.json, annotations[0]: {said}; {SKIP}"

    @pytest.mark.parametrize(
        ("polygon", "said"),
        [
            ([1, 1, 5, 5], "polygon has 2 points, it needs 3"),
            ([1, 1, 5, 5, 9], "polygon is not a list of finite x, y pairs"),
            ([1, 1, 5, 5, 9, float("nan")], "polygon is not a list of finite x, y pairs"),
            ([1, 1, 5, 5, 99, 5], "polygon reaches out of its image of 40 x 30 pixels"),
        ],
    )
    def test_polygon_with_two_points(self, tmp_path: Path, polygon: list[float], said: str) -> None:
        root = change_coco(tmp_path, lambda data: data["annotations"][0].update(segmentation=[polygon]))
        assert only(root) == f"{root}/annotations/instances_train.json, annotations[0]: {said}; {SKIP}"

    def test_polygon_outside_in_yolo(self, tmp_path: Path) -> None:
        path = write(make_yolo_polygons(tmp_path) / "labels/train/a.txt", "1 0 0 2 0 1 1\n")
        assert only(tmp_path) == f"{path}, line 1: polygon reaches out of its image of 40 x 30 pixels; {SKIP}"

    def test_csv_without_header(self, tmp_path: Path) -> None:
        for text in ("a.jpg,cat\nb.jpg,dog\n", "", "\n\n"):
            path = write(make_tags(tmp_path) / "tags.csv", text)
            assert only(tmp_path) == f"{path}, line 1: no header; begin with a line image,tags"

    def test_csv_with_a_column_too_many(self, tmp_path: Path) -> None:
        path = write(make_tags(tmp_path) / "tags.csv", 'image,tags\n"b.jpg","cat"\na.jpg,cat,dog\n')
        assert (
            only(tmp_path)
            == f"{path}, line 3: 3 columns where the header has 2; separate tags by ;, and quote other fields that hold a comma"
        )

    def test_csv_that_is_neither_zero_nor_one(self, tmp_path: Path) -> None:
        path = write(make_tags(tmp_path) / "tags.csv", "image,cat\na.jpg,maybe\n")
        assert only(tmp_path) == f"{path}, line 2: 'maybe' is not 0 or 1; write 1 where the class is in the image"

    def test_csv_with_an_open_quote(self, tmp_path: Path) -> None:
        path = write(make_tags(tmp_path) / "tags.csv", 'image,tags\na.jpg,"cat\n')
        assert only(tmp_path) == f"{path}, line 2: CSV that cannot be read (unexpected end of data); write the file again"

    def test_text_that_is_not_utf8(self, tmp_path: Path) -> None:
        path = make_tags(tmp_path) / "tags.csv"
        path.write_bytes(b"image,tags\na.jpg,\xff\xfe\n")
        assert only(tmp_path) == f"{path}: not UTF-8 text; save it as UTF-8"

    def test_xml_with_an_external_entity(self, tmp_path: Path) -> None:
        secret = write(tmp_path / "secret.txt", "cat")
        root = make_voc(tmp_path / "set")
        text = f'<!DOCTYPE annotation [<!ENTITY x SYSTEM "file://{secret}">]>\n<annotation><object><name>&x;</name></object></annotation>'
        path = write(root / "Annotations/a.xml", text)
        said = "XML with a document type or entities, which a label file never needs; remove the <!DOCTYPE ...>"
        assert only(root) == f"{path}: {said}"

    def test_xml_with_a_billion_laughs(self, tmp_path: Path) -> None:
        entities = "".join(f'<!ENTITY l{index} "{f"&l{index - 1};" * 10}">' for index in range(1, 10))
        text = f'<!DOCTYPE a [<!ENTITY l0 "lol">{entities}]>\n<annotation><object><name>&l9;</name></object></annotation>'
        path = write(make_voc(tmp_path) / "Annotations/a.xml", text)
        assert only(tmp_path).startswith(f"{path}: XML with a document type or entities")

    def test_xml_cut_short(self, tmp_path: Path) -> None:
        path = make_voc(tmp_path) / "Annotations/a.xml"
        path.write_text(path.read_text()[:150])
        assert only(tmp_path).startswith(f"{path}, line 6: XML that cannot be read; write the file again")

    def test_yaml_with_a_billion_laughs(self, tmp_path: Path) -> None:
        laughs = "\n".join(f"l{index}: &l{index} [{', '.join([f'*l{index - 1}'] * 10)}]" for index in range(1, 10))
        path = write(make_yolo_boxes(tmp_path) / "data.yaml", f"l0: &l0 lol\n{laughs}\nnames: *l9\ntrain: images/train\n")
        assert only(tmp_path) == f"{path}, line 2: YAML that cannot be read (aliases (*name) are not read); correct it"

    def test_yaml_that_is_huge(self, tmp_path: Path) -> None:
        path = write(make_yolo_boxes(tmp_path) / "data.yaml", "names: [cat]\n" + "# \n" * 500_000)
        assert only(tmp_path).startswith(f"{path}: 1,500,013 characters are too many for a settings file; ")


class TestPaths:
    def test_file_name_that_climbs_out(self, tmp_path: Path) -> None:
        for index, name in enumerate(("../../x.jpg", "/etc/passwd", "C:\\x.jpg", "..\\x.jpg", "a\0b.jpg", "")):
            root = change_coco(tmp_path / str(index), lambda data, name=name: data["images"][0].update(file_name=name))  # type: ignore[misc]
            line = only(root)
            assert line == f"{root}/annotations/instances_train.json, images[0]: {name!r} leaves the data folder; name a file inside it"

    def test_the_same_in_tags(self, tmp_path: Path) -> None:
        write_image(tmp_path / "x.jpg")
        path = write(make_tags(tmp_path / "set") / "tags.csv", "image,tags\n../../x.jpg,cat\n")
        assert only(path.parent) == f"{path}, line 2: '../../x.jpg' leaves the data folder; name a file inside it"

    def test_the_same_in_voc(self, tmp_path: Path) -> None:
        write_image(tmp_path / "x.jpg")
        path = write(make_voc(tmp_path / "set") / "ImageSets/Segmentation/train.txt", "../../x\na\n")
        assert only(tmp_path / "set") == f"{path}, line 1: '../../x' leaves the data folder; list image names without a folder"

    def test_the_same_in_yolo(self, tmp_path: Path) -> None:
        root = make_yolo_boxes(tmp_path / "set")
        write_image(tmp_path / "x.jpg")
        path = write(root / "list.txt", "../x.jpg\n")
        write(root / "data.yaml", "names: [bird, cat, dog]\ntrain: list.txt\nval: images/val\n")
        assert only(root, "train") == f"{path}, line 1: '../x.jpg' leaves the data folder; name a file inside it"
        for entry in ("/etc", "../../etc", "~/../x"):
            write(root / "data.yaml", f"names: [cat]\ntrain: {entry}\n")
            assert only(root).startswith(f"{root}/data.yaml: train: {entry!r} leaves the data folder; ")

    def test_a_name_that_no_disk_takes(self, tmp_path: Path) -> None:
        name = "x" * 5000
        root = change_coco(tmp_path / "coco", lambda data: data["images"][0].update(file_name=name + ".jpg"))
        assert "no image 'xxxx" in only(root)
        write(make_tags(tmp_path / "tags") / "tags.csv", f"image,tags\n{name},cat\n")
        assert "no image 'xxxx" in only(tmp_path / "tags")
        write(make_voc(tmp_path / "voc") / "ImageSets/Segmentation/train.txt", f"{name}\n")
        assert only(tmp_path / "voc", "train").endswith("no such image; remove it from the split or bring the file")
        write(make_yolo_boxes(tmp_path / "yolo") / "data.yaml", f"names: [cat]\ntrain: {name}\npath: {name}\n")
        assert "no folder or list 'xxxx" in only(tmp_path / "yolo")
        write(make_folders(tmp_path / "folders") / "images/train.txt", name)
        assert len(load_dataset(tmp_path / "folders")) == len(OBJECTS)
        with pytest.raises(MixsupError, match="cannot be read"):
            load_dataset(tmp_path / name)


class TestSplits:
    def test_missing_split_file(self, tmp_path: Path) -> None:
        (make_voc(tmp_path) / "ImageSets/Segmentation/val.txt").unlink()
        assert only(tmp_path, "val") == f"{tmp_path}: no split 'val'; it has train"

    @pytest.mark.parametrize("lines", ["", "\n \n"])
    def test_empty_split(self, tmp_path: Path, lines: str) -> None:
        write(make_voc(tmp_path) / "ImageSets/Segmentation/val.txt", lines)
        assert only(tmp_path, "val") == f"{tmp_path}: split 'val' is empty; check the split list and the image folder"

    def test_empty_split_of_every_format(self, tmp_path: Path) -> None:
        empty = coco_json([])
        write(make_coco_boxes(tmp_path / "coco") / "annotations/instances_val.json", json.dumps(empty))
        write(make_roboflow(tmp_path / "roboflow") / "valid/_annotations.coco.json", json.dumps(empty))
        for root in (make_yolo_boxes(tmp_path / "yolo"), make_folders(tmp_path / "folders")):
            for name in SPLITS["val"]:
                (root / f"images/val/{name}.jpg").unlink()
        for name in ("coco", "roboflow", "yolo", "folders"):
            assert only(tmp_path / name, "val") == f"{tmp_path}/{name}: split 'val' is empty; check the split list and the image folder"

    def test_nothing_left(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        for path in (root / "JPEGImages").iterdir():
            path.write_bytes(b"")
        with pytest.raises(MixsupError) as caught:
            load_dataset(root, skip_bad=True)
        said = f"no image in it (6 problems; `mixsup inspect {root}` lists them); check the split list and the image folder"
        assert str(caught.value) == f"{root}: {said}"


def test_many_problems_are_cut(tmp_path: Path) -> None:
    root = make_tags(tmp_path)
    write(root / "tags.csv", "image,tags\n" + "".join(f"missing{index},cat\n" for index in range(50)))
    with pytest.raises(DataError) as caught:
        load_dataset(root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more problems; `mixsup inspect DATA --full` lists all of them"


def test_every_row_of_the_table_has_its_test() -> None:
    text = (Path(__file__).parents[2] / "docs" / "robustness.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("## Data")[1].split("## Runs")[0].splitlines() if line.startswith("|")][2:]
    named = [line.rstrip("| ").rsplit("`", 2)[1] for line in rows]
    groups = [*globals().items(), *vars(test_misread).items()]
    here = {f"{name}.{test}" for name, group in groups if name.startswith("Test") for test in vars(group) if test.startswith("test")}
    assert len(rows) > 40
    assert set(named) <= here | {"test_fuzz.py"}
