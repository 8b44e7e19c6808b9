"""Every reader goes through one contract; then what is special to each format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mixsup.data import Dataset, Sample, format_splits, load_dataset, read_format
from mixsup.data.derive import boxes_of, load_mask, tags_of
from mixsup.data.sample import KINDS, VOID, MaskSegments
from mixsup.errors import DataError, MixsupError

from .make import (
    CARRIES,
    CLASSES,
    HEIGHT,
    OBJECTS,
    SIZE,
    SPLITS,
    WIDTH,
    WRITERS,
    class_id,
    coco_json,
    make_coco,
    make_folders,
    make_tags,
    make_voc,
    make_yolo_boxes,
    mask_of,
    rectangle,
    voc_xml,
    write,
    write_image,
    write_mask,
)


def by_id(dataset: Dataset) -> dict[str, Sample]:
    return {sample.id: sample for sample in dataset.samples}


class ReaderContract:
    """What holds for every reader. A subclass names a format of `make.WRITERS`."""

    format: ClassVar[str]

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return WRITERS[self.format](tmp_path / "set")

    def test_ids_are_sorted_and_unique(self, path: Path) -> None:
        ids = [sample.id for sample in load_dataset(path).samples]
        assert ids == sorted(set(ids)) == sorted(OBJECTS)

    def test_shares_of_the_images(self, path: Path) -> None:
        """Two that make the whole, whatever the images are called; which these are depends on their ids alone."""
        every = [sample.id for sample in load_dataset(path).samples]
        parts = [[sample.id for sample in read_format(path, f"all[{share}]", None).samples] for share in (":40%", "40%:", ":", "12.5%:40%")]
        assert sorted(parts[0] + parts[1]) == parts[2] == every
        assert set(parts[3]) <= set(parts[0])
        some = [sample.id for sample in read_format(path, "train[:40%]", None).samples]
        assert some == [key for key in parts[0] if key in SPLITS["train"]]
        both = [sample.id for sample in read_format(path, "train+val[:40%]", None).samples]
        assert both == parts[0]
        for share in ("40%:40%", "60%:40%", "0%:101%"):
            with pytest.raises(MixsupError, match=r"no images between .*; write shares as train\[20%:\] and train\[:20%\]"):
                load_dataset(path, f"train[{share}]")

    def test_classes(self, path: Path) -> None:
        assert load_dataset(path).classes.names == CLASSES
        assert load_dataset(path, "val").classes.names == CLASSES

    def test_sizes_and_images(self, path: Path) -> None:
        for sample in load_dataset(path).samples:
            assert sample.size == SIZE
            assert sample.image.is_file()
            assert sample.image.stem == sample.id

    def test_the_strongest_label_is_what_the_format_carries(self, path: Path) -> None:
        for sample in load_dataset(path).samples:
            assert sample.kinds() == KINDS[KINDS.index(CARRIES[self.format]) :]
            assert sample.label is None

    def test_boxes_are_those_of_the_objects(self, path: Path) -> None:
        if CARRIES[self.format] == "tags":
            return
        for sample in load_dataset(path).samples:
            boxes = boxes_of(sample, len(CLASSES) + 1)
            assert boxes.xyxy.dtype == np.float32
            assert boxes.classes.dtype == np.int64
            assert not boxes.crowd.any()
            found = sorted((int(label), *np.round(box, 3).tolist()) for label, box in zip(boxes.classes, boxes.xyxy, strict=True))
            assert found == sorted((class_id(label), *map(float, box)) for label, box in OBJECTS[sample.id])

    def test_boxes_are_inside(self, path: Path) -> None:
        for sample in load_dataset(path).samples:
            if sample.boxes is not None and len(sample.boxes):
                assert (sample.boxes.xyxy >= 0).all()
                assert (sample.boxes.xyxy <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
                assert (sample.boxes.xyxy[:, 2:] > sample.boxes.xyxy[:, :2]).all()

    def test_masks_decode_to_the_size_and_the_same_pixels(self, path: Path) -> None:
        if CARRIES[self.format] != "masks":
            return
        for sample in load_dataset(path).samples:
            mask = load_mask(sample, len(CLASSES) + 1)
            assert mask.dtype == np.uint8
            assert mask.shape == sample.size
            np.testing.assert_array_equal(mask, mask_of(sample.id))

    def test_tags(self, path: Path) -> None:
        for sample in load_dataset(path).samples:
            assert tags_of(sample, len(CLASSES) + 1) == {class_id(label) for label, _ in OBJECTS[sample.id]}

    def test_splits(self, path: Path) -> None:
        assert {"train", "val"} <= set(format_splits(path))
        for split, names in SPLITS.items():
            assert [sample.id for sample in load_dataset(path, split).samples] == names

    def test_two_splits(self, path: Path) -> None:
        for form in ("train+val", "val+train", "val + train", "train+train+val"):
            assert [sample.id for sample in load_dataset(path, form).samples] == sorted(OBJECTS)

    def test_unknown_split(self, path: Path) -> None:
        for split in ("nowhere", "train+nowhere", "", "../train"):
            with pytest.raises(MixsupError) as caught:
                load_dataset(path, split)
            assert "no split" in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1

    def test_nothing_is_read_twice_into_one_object(self, path: Path) -> None:
        first, second = load_dataset(path), load_dataset(path)
        assert [sample.id for sample in first.samples] == [sample.id for sample in second.samples]
        assert first.source == str(path)
        assert first.problems == []


class TestVoc(ReaderContract):
    format = "voc"

    def test_boxes_are_one_based_and_inclusive(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        frame = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
        write(root / "Annotations/a.xml", f"<annotation><object><name>cat</name>{frame}</object></annotation>")
        boxes = by_id(load_dataset(root))["a"].boxes
        assert boxes is not None
        assert boxes.xyxy.tolist() == [[0, 0, WIDTH, HEIGHT]]

    def test_one_pixel_is_a_box(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        frame = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>5</xmax><ymax>6</ymax></bndbox>"
        write(root / "Annotations/a.xml", f"<annotation><object><name>cat</name>{frame}</object></annotation>")
        boxes = by_id(load_dataset(root))["a"].boxes
        assert boxes is not None
        assert boxes.xyxy.tolist() == [[4, 5, 5, 6]]

    def test_void_stays_void(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        mask = mask_of("a")
        mask[:2] = VOID
        write_mask(root / "SegmentationClass/a.png", mask)
        np.testing.assert_array_equal(load_mask(by_id(load_dataset(root))["a"], 4), mask)

    def test_twenty_classes_without_a_list(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        (root / "labels.txt").unlink()
        shutil.rmtree(root / "SegmentationClass")
        dataset = load_dataset(root)
        assert len(dataset.classes.names) == 20
        boxes = by_id(dataset)["a"].boxes
        assert boxes is not None
        assert dataset.classes.names[boxes.classes[0] - 1] == "cat"

    def test_other_names_without_a_list_are_the_same_for_every_split(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        (root / "labels.txt").unlink()
        shutil.rmtree(root / "SegmentationClass")
        write(root / "Annotations/a.xml", voc_xml("a", [("yak", (1, 1, 9, 9))]))
        write(root / "Annotations/f.xml", voc_xml("f", [("ant", (1, 1, 9, 9))]))
        assert load_dataset(root, "train").classes == load_dataset(root, "val").classes == load_dataset(root).classes
        assert load_dataset(root).classes.names == ("ant", "bird", "cat", "dog", "yak")

    def test_without_lists_all_images_count(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        shutil.rmtree(root / "ImageSets")
        assert len(load_dataset(root)) == len(OBJECTS)
        with pytest.raises(MixsupError, match="no splits; leave --split out"):
            load_dataset(root, "train")

    def test_lists_of_main_and_of_one_class(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        write(root / "ImageSets/Main/train.txt", "f\n")
        write(root / "ImageSets/Main/cat_train.txt", "a  1\nb -1\n")
        assert [sample.id for sample in load_dataset(root, "Main/train").samples] == ["f"]
        assert [sample.id for sample in load_dataset(root, "train").samples] == SPLITS["train"]
        assert [sample.id for sample in load_dataset(root, "cat_train").samples] == ["a", "b"]

    def test_a_tag_list_beside_it(self, tmp_path: Path) -> None:
        root = make_voc(tmp_path)
        (root / "SegmentationClass/a.png").unlink()
        (root / "Annotations/a.xml").unlink()
        write(root / "tags.csv", "image,tags\na,cat;dog\nzzz,not,used\n")
        sample = by_id(load_dataset(root))["a"]
        assert sample.kinds() == ("tags",)
        assert sample.tags == frozenset({class_id("cat"), class_id("dog")})


class TestVocColours(ReaderContract):
    format = "voc-colours"


class TestCocoPolygons(ReaderContract):
    format = "coco"

    def change(self, root: Path, change: Any) -> Path:
        path = root / "annotations/instances_train.json"
        data = coco_json(SPLITS["train"])
        change(data)
        path.write_text(json.dumps(data))
        return root

    def test_crowds_are_void_where_no_object_is(self, tmp_path: Path) -> None:
        root = make_coco(tmp_path)

        def crowd(data: dict[str, Any]) -> None:
            row = data["annotations"][1] | {"id": 99, "iscrowd": 1, "bbox": [0, 0, 40, 10], "segmentation": [[0, 0, 40, 0, 40, 10, 0, 10]]}
            data["annotations"].append(row)

        sample = by_id(load_dataset(self.change(root, crowd)))["b"]
        expected = mask_of("b")
        expected[rectangle((0, 0, 40, 10)) & (expected == 0)] = VOID
        np.testing.assert_array_equal(load_mask(sample, 4), expected)
        assert sample.boxes is not None
        assert sample.boxes.crowd.tolist() == [False, False, True]

    def test_a_crowd_is_a_tag_of_its_class(self, tmp_path: Path) -> None:
        """Without it the image would teach that the class is absent."""
        root = make_coco(tmp_path)

        def only_crowd(data: dict[str, Any]) -> None:
            data["annotations"][0]["iscrowd"] = 1

        assert (
            tags_of(by_id(load_dataset(root))["a"], 4) == tags_of(by_id(load_dataset(self.change(root, only_crowd)))["a"], 4) != frozenset()
        )

    def test_an_image_with_one_box_more_than_outlines_has_no_mask(self, tmp_path: Path) -> None:
        root = make_coco(tmp_path)

        def bare(data: dict[str, Any]) -> None:
            del data["annotations"][0]["segmentation"]

        samples = by_id(load_dataset(self.change(root, bare)))
        assert samples["a"].kinds()[0] == "boxes"
        assert samples["b"].kinds()[0] == "masks"

    def test_a_background_category(self, tmp_path: Path) -> None:
        root = make_coco(tmp_path)

        def background(data: dict[str, Any]) -> None:
            data["categories"].append({"id": 0, "name": "background"})
            data["annotations"].append({"id": 77, "image_id": 100, "category_id": 0, "bbox": [0, 0, 5, 5]})

        dataset = load_dataset(self.change(root, background), "train")
        assert dataset.classes.names == CLASSES
        np.testing.assert_array_equal(load_mask(by_id(dataset)["a"], 4), mask_of("a"))

    def test_a_box_is_taken_from_the_outline_where_bbox_is_left_out(self, tmp_path: Path) -> None:
        root = make_coco(tmp_path)

        def no_box(data: dict[str, Any]) -> None:
            del data["annotations"][0]["bbox"]

        boxes = by_id(load_dataset(self.change(root, no_box)))["a"].boxes
        assert boxes is not None
        assert boxes.xyxy.tolist() == [[4, 3, 20, 18]]

    def test_one_file_alone(self, tmp_path: Path) -> None:
        path = make_coco(tmp_path) / "annotations/instances_val.json"
        assert [sample.id for sample in load_dataset(path).samples] == SPLITS["val"]

    def test_names_of_splits(self, tmp_path: Path) -> None:
        root = make_coco(tmp_path)
        (root / "annotations/instances_train.json").rename(root / "annotations/instances_train2017.json")
        (root / "images/train").rename(root / "images/train2017")
        assert [sample.id for sample in load_dataset(root, "train").samples] == SPLITS["train"]
        assert [sample.id for sample in load_dataset(root, "train2017+val").samples] == sorted(OBJECTS)

    def test_files_in_folders_and_windows_paths(self, tmp_path: Path) -> None:
        root = make_coco(tmp_path)

        def folders(data: dict[str, Any]) -> None:
            data["images"][0]["file_name"] = "sub/a.jpg"
            data["images"][1]["file_name"] = "sub\\b.jpg"

        for name in "ab":
            write_image(root / f"images/train/sub/{name}.jpg")
        samples = by_id(load_dataset(self.change(root, folders), "train"))
        assert list(samples) == ["c", "d", "sub-a", "sub-b"]


class TestCocoCompressedRle(ReaderContract):
    format = "coco-rle"

    def test_outlines_are_kept_not_painted(self, path: Path) -> None:
        sample = load_dataset(path).samples[0]
        assert isinstance(sample.mask, MaskSegments)
        assert isinstance(sample.mask.segments[0].rle, str)


class TestCocoUncompressedRle(ReaderContract):
    format = "coco-counts"


class TestCocoBoxes(ReaderContract):
    format = "coco-boxes"


class TestRoboflow(ReaderContract):
    format = "roboflow"

    def test_valid_is_val(self, path: Path) -> None:
        assert [sample.id for sample in load_dataset(path, "valid").samples] == SPLITS["val"]


class TestYoloBoxes(ReaderContract):
    format = "yolo-boxes"

    def test_a_list_of_images(self, tmp_path: Path) -> None:
        root = make_yolo_boxes(tmp_path)
        write(root / "some.txt", "./images/train/a.jpg\nimages/val/e.jpg\n")
        write(root / "data.yaml", "names: [bird, cat, dog]\ntrain: some.txt\nval: images/val\n")
        assert [sample.id for sample in load_dataset(root, "train").samples] == ["a", "e"]

    def test_equal_names_in_two_folders(self, tmp_path: Path) -> None:
        root = make_yolo_boxes(tmp_path)
        write_image(root / "images/val/a.jpg")
        assert [sample.id for sample in load_dataset(root).samples][:2] == ["images-train-a", "images-train-b"]

    def test_the_folder_beside_data_yaml_that_exporters_call_the_parents(self, tmp_path: Path) -> None:
        root = make_yolo_boxes(tmp_path)
        write(root / "data.yaml", "path: /somewhere/else\nnames: [bird, cat, dog]\ntrain: ../images/train\n")
        assert [sample.id for sample in load_dataset(root, "train").samples] == SPLITS["train"]

    def test_a_class_called_background(self, tmp_path: Path) -> None:
        root = make_yolo_boxes(tmp_path)
        write(root / "data.yaml", "names: [background, cat, dog]\ntrain: images/train\n")
        dataset = load_dataset(root)
        assert dataset.classes.names == ("cat", "dog")
        assert tags_of(by_id(dataset)["b"], 3) == {2}  # its bird was class 0


class TestYoloPolygons(ReaderContract):
    format = "yolo-polygons"


class TestFolders(ReaderContract):
    format = "folders"

    def test_flat_folders_with_lists(self, tmp_path: Path) -> None:
        for name in OBJECTS:
            write_image(tmp_path / "images" / f"{name}.v1.jpg")
            write_mask(tmp_path / "masks" / f"{name}.v1.png", mask_of(name))
        write(tmp_path / "train.txt", "a.v1\nimages/b.v1.jpg\n")
        assert [sample.id for sample in load_dataset(tmp_path, "train").samples] == ["a.v1", "b.v1"]
        assert len(load_dataset(tmp_path)) == len(OBJECTS)

    def test_folders_below_the_split(self, tmp_path: Path) -> None:
        for split, names in SPLITS.items():
            for name in names:
                write_image(tmp_path / split / "images" / f"{name}.jpg")
                write_mask(tmp_path / split / "masks" / f"{name}_mask.png", mask_of(name))
        assert [sample.id for sample in load_dataset(tmp_path, "val").samples] == SPLITS["val"]
        assert all(sample.mask is not None for sample in load_dataset(tmp_path).samples)

    def test_without_names_the_classes_are_numbers_and_the_same_for_every_split(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path)
        (root / "labels.txt").unlink()
        write_mask(root / "masks/val/e.png", mask_of("a"))  # the highest id of this split is 3, of the other 3
        write_mask(root / "masks/val/f.png", mask_of("a"))  # now 2
        assert load_dataset(root, "val").classes.names == load_dataset(root, "train").classes.names == ("1", "2", "3")

    def test_an_image_without_a_mask_has_no_label(self, tmp_path: Path) -> None:
        root = make_folders(tmp_path)
        (root / "masks/train/a.png").unlink()
        assert load_dataset(root).samples[0].kinds() == ()


class TestTags(ReaderContract):
    format = "tags"

    def test_one_column_a_class(self, tmp_path: Path) -> None:
        root = make_tags(tmp_path)
        write(root / "tags.csv", "image,bird,cat,dog\na,0,1,0\nb.jpg,1,0,1\nd,0,0,0\n")
        tags = {sample.id: sample.tags for sample in load_dataset(root).samples}
        assert tags == {"a": {2}, "b": {1, 3}, "d": frozenset()}

    def test_quoted_fields_and_background(self, tmp_path: Path) -> None:
        root = make_tags(tmp_path)
        write(root / "tags.csv", 'image,tags\n"a.jpg","cat|background"\n')
        dataset = load_dataset(root)
        assert dataset.classes.names == ("cat",)
        assert dataset.samples[0].tags == frozenset({1})


class TestJoined(ReaderContract):
    format = "joined"


def test_unknown_layout_names_what_is_read(tmp_path: Path) -> None:
    write(tmp_path / "notes.md", "nothing here")
    with pytest.raises(MixsupError, match="no known layout; mixsup reads VOC"):
        load_dataset(tmp_path)
    with pytest.raises(MixsupError, match="neither a folder nor a YAML"):
        load_dataset(tmp_path / "notes.md")
    with pytest.raises(MixsupError, match="no such file or folder; check the path"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(MixsupError, match="no data format 'jpeg'"):
        load_dataset(tmp_path, format="jpeg")


def test_the_format_can_be_forced(tmp_path: Path) -> None:
    root = make_coco(make_voc(tmp_path))
    for path in (root / "JPEGImages").iterdir():
        shutil.copy(path, root / "images")
    assert load_dataset(root).classes.names == CLASSES
    assert isinstance(load_dataset(root, format="coco").samples[0].mask, MaskSegments)


def test_skip_bad_goes_on_without_the_broken(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    (root / "JPEGImages/a.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_dataset(root)
    assert [problem.sample for problem in caught.value.problems] == ["a"]
    dataset = load_dataset(root, skip_bad=True)
    assert [sample.id for sample in dataset.samples] == ["b", "c", "d", "e", "f"]
    assert len(dataset.problems) == 1
