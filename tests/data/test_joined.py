"""Several sources under one class list: rename, merge, drop, ignore, label kinds, and COCO's 80 classes as VOC's 20."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mixsup.data import Dataset, Sample, format_splits, load_dataset
from mixsup.data.budget import draw, restrict
from mixsup.data.derive import boxes_of, load_mask, tags_of
from mixsup.data.sample import VOID, MaskFile
from mixsup.data.voc import VOC_CLASSES
from mixsup.errors import DataError, MixsupError

from .make import (
    CLASSES,
    OBJECTS,
    SIZE,
    SPLITS,
    make_coco,
    make_folders,
    make_tags,
    make_voc,
    make_yolo_polygons,
    mask_of,
    rectangle,
    write,
    write_image,
    write_mask,
)

_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,"
    "zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,"
    "kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,"
    "spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,"
    "cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,"
    "keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
)
COCO_NAMES = _COCO.split(",")
COCO_TO_VOC = {
    "airplane": "aeroplane",
    "motorcycle": "motorbike",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}


def join(root: Path, sources: list[dict[str, Any]], classes: list[str] | None = None) -> Path:
    return write(root / "joined.yaml", yaml.safe_dump({"classes": list(classes or CLASSES), "sources": sources}, sort_keys=False))


def one(dataset: Dataset, name: str) -> Sample:
    return next(sample for sample in dataset.samples if sample.id == name)


def yolo_with(root: Path, names: list[str], rows: str) -> None:
    write(root / "data.yaml", yaml.safe_dump({"names": names, "train": "images", "val": "images"}))
    write_image(root / "images/p.jpg")
    write(root / "labels/p.txt", rows)


class TestCocoAsVoc:
    def source(self, **more: Any) -> dict[str, Any]:
        return {"path": "coco", "rename": COCO_TO_VOC, "drop": "rest", **more}

    def test_all_twenty_classes_arrive(self, tmp_path: Path) -> None:
        rows = "".join(f"{index} 0.5 0.5 0.25 0.25\n" for index in range(80))
        yolo_with(tmp_path / "coco", COCO_NAMES, rows)
        dataset = load_dataset(join(tmp_path, [self.source()], list(VOC_CLASSES)))
        boxes = dataset.samples[0].boxes
        assert boxes is not None
        assert sorted(dataset.classes.names[label - 1] for label in boxes.classes) == sorted(VOC_CLASSES)
        assert not boxes.crowd.any()

    def test_with_a_voc_source_beside_it(self, tmp_path: Path) -> None:
        yolo_with(tmp_path / "coco", COCO_NAMES, "4 0.5 0.5 0.25 0.25\n13 0.1 0.1 0.1 0.1\n57 0.5 0.5 0.1 0.1\n")
        make_voc(tmp_path / "VOC2012")
        (tmp_path / "VOC2012/labels.txt").unlink()
        for name in OBJECTS:
            mask = np.zeros(SIZE, np.uint8)
            mask[3:9, 3:9] = VOC_CLASSES.index("cat") + 1
            write_mask(tmp_path / f"VOC2012/SegmentationClass/{name}.png", mask)
        sources = [{"path": "VOC2012"}, self.source(ignore=["bench"])]
        dataset = load_dataset(join(tmp_path, sources, list(VOC_CLASSES)), "train")
        assert [sample.id for sample in dataset.samples] == [*(f"VOC2012-{name}" for name in SPLITS["train"]), "coco-p"]
        boxes = one(dataset, "coco-p").boxes
        assert boxes is not None
        names = [dataset.classes.names[label - 1] for label in boxes.classes]
        assert (names[0], names[2]) == ("aeroplane", "sofa")
        assert boxes.crowd.tolist() == [False, True, False]
        assert load_mask(one(dataset, "VOC2012-a"), 21)[5, 5] == VOC_CLASSES.index("cat") + 1


class TestClasses:
    def test_two_names_to_one_merges_them(self, tmp_path: Path) -> None:
        make_voc(tmp_path / "set")
        path = join(tmp_path, [{"path": "set", "rename": {"cat": "pet", "dog": "pet"}}], ["pet", "bird"])
        dataset = load_dataset(path)
        expected = np.array([0, 2, 1, 1], np.uint8)[mask_of("b")]
        np.testing.assert_array_equal(load_mask(one(dataset, "b"), 3), expected)
        boxes = one(dataset, "b").boxes
        assert boxes is not None
        assert boxes.classes.tolist() == [1, 2]

    @pytest.mark.parametrize("maker", [make_voc, make_coco, make_yolo_polygons, make_folders])
    def test_dropped_classes_are_background_and_ignored_ones_void(self, tmp_path: Path, maker: Any) -> None:
        maker(tmp_path / "set")
        dataset = load_dataset(join(tmp_path, [{"path": "set", "drop": ["cat"], "ignore": ["bird"]}], ["dog"]))
        assert not load_mask(one(dataset, "a"), 2).any()
        mask = load_mask(one(dataset, "e"), 2)
        assert (mask[rectangle((5, 5, 25, 20))] == VOID).all()
        assert not mask[rectangle((26, 4, 38, 14))].any()
        assert tags_of(one(dataset, "a"), 2) == tags_of(one(dataset, "e"), 2) == frozenset()
        assert tags_of(one(dataset, "f"), 2) == {1}

    def test_an_ignored_object_does_not_cut_a_hole_into_another(self, tmp_path: Path) -> None:
        # With outlines the object under the ignored one is known; a mask file only knows what lies on top.
        make_coco(tmp_path / "set")
        dataset = load_dataset(join(tmp_path, [{"path": "set", "drop": "rest", "ignore": ["bird"]}], ["dog"]))
        np.testing.assert_array_equal(load_mask(one(dataset, "b"), 2), rectangle((2, 2, 30, 26)).astype(np.uint8))

    def test_drop_the_rest(self, tmp_path: Path) -> None:
        make_tags(tmp_path / "set")
        dataset = load_dataset(join(tmp_path, [{"path": "set", "drop": "rest"}], ["dog"]))
        assert [sorted(sample.tags or ()) for sample in dataset.samples] == [[], [1], [], [], [], [1]]

    def test_the_background_may_be_written_down(self, tmp_path: Path) -> None:
        make_voc(tmp_path / "set")
        assert load_dataset(join(tmp_path, [{"path": "set"}], ["background", *CLASSES])).classes.names == CLASSES

    def test_an_id_outside_the_sources_own_list_is_a_fault(self, tmp_path: Path) -> None:
        make_folders(tmp_path / "set")
        mask = mask_of("a")
        mask[0, 0] = 9
        write_mask(tmp_path / "set/masks/train/a.png", mask)
        dataset = load_dataset(join(tmp_path, [{"path": "set", "drop": "rest"}], ["dog"]))
        with pytest.raises(DataError, match=r"class id 9 is not in the class list \(0 to 3, 255 is void\)"):
            load_mask(one(dataset, "a"), 2)


class TestLabels:
    @pytest.mark.parametrize("maker", [make_voc, make_coco, make_yolo_polygons, make_folders])
    def test_a_source_may_be_cut_down(self, tmp_path: Path, maker: Any) -> None:
        maker(tmp_path / "set")
        whole = load_dataset(join(tmp_path, [{"path": "set"}]))
        boxes = load_dataset(join(tmp_path, [{"path": "set", "label": "boxes"}]))
        tags = load_dataset(join(tmp_path, [{"path": "set", "label": "tags"}]))
        assert {sample.kinds() for sample in whole.samples} == {("masks", "boxes", "tags")}
        assert {sample.kinds() for sample in boxes.samples} == {("boxes", "tags")}
        assert {sample.kinds() for sample in tags.samples} == {("tags",)}
        for full, boxed, tagged in zip(whole.samples, boxes.samples, tags.samples, strict=True):
            np.testing.assert_array_equal(boxes_of(boxed, 4).xyxy, boxes_of(full, 4).xyxy)
            assert tagged.tags == tags_of(full, 4)

    def test_a_broken_mask_that_boxes_come_from_is_a_fault(self, tmp_path: Path) -> None:
        make_folders(tmp_path / "set")
        (tmp_path / "set/masks/train/b.png").write_bytes(b"broken")
        path = join(tmp_path, [{"path": "set", "label": "boxes"}])
        with pytest.raises(DataError, match=r"b\.png"):
            load_dataset(path)
        assert [sample.id for sample in load_dataset(path, skip_bad=True).samples] == ["a", "c", "d", "e", "f"]

    def test_a_budget_over_three_sources(self, tmp_path: Path) -> None:
        make_voc(tmp_path / "pixels")
        make_coco(tmp_path / "frames", "none")
        make_tags(tmp_path / "words")
        dataset = load_dataset(join(tmp_path, [{"path": "pixels"}, {"path": "frames"}, {"path": "words", "name": "w"}]))
        assert len(dataset) == 3 * len(OBJECTS)
        assert {sample.id.split("-")[0] for sample in dataset.samples} == {"pixels", "frames", "w"}
        drawn = draw(dataset.samples, "masks=6,boxes=6,tags=6", 0)
        for sample in restrict(dataset, drawn).samples:
            assert sample.label == {"pixels": "masks", "frames": "boxes", "w": "tags"}[sample.id.split("-")[0]]


class TestSplits:
    def test_ours_and_theirs(self, tmp_path: Path) -> None:
        make_voc(tmp_path / "one")
        make_voc(tmp_path / "two")
        sources = [{"path": "one", "split": {"train": "train", "test": "val"}}, {"path": "two", "split": {"train": "train+val"}}]
        path = join(tmp_path, sources)
        assert format_splits(path) == ["train", "test"]
        assert [sample.id for sample in load_dataset(path, "test").samples] == ["one-e", "one-f"]
        assert len(load_dataset(path, "train").samples) == 4 + 6
        assert len(load_dataset(path, "train + test").samples) == 6 + 6
        with pytest.raises(MixsupError, match="no split 'val'; it has train, test"):
            load_dataset(path, "val")

    def test_an_empty_table_leaves_the_source_out(self, tmp_path: Path) -> None:
        make_voc(tmp_path / "one")
        make_voc(tmp_path / "two")
        path = join(tmp_path, [{"path": "one"}, {"path": "two", "split": {}}])
        assert len(load_dataset(path)) == len(OBJECTS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: [cat]\nsources: []", "no sources; list at least one"),
        ("classes: [cat]\nsources: [{path: set, colour: red}]", "sources.0.colour: Extra inputs are not permitted; see docs/data.md"),
        ("classes: cat\nsources: [{path: set}]", "classes: Input should be a valid list"),
        ("sources: [{path: set}]", "classes: Field required"),
        ("classes: [cat]\nsources: [{path: set, label: pixels}]", "sources.0.label: Input should be 'masks', 'boxes' or 'tags'"),
        ("classes: [cat]\nsources: [{path: set}]", "class 'bird' is not in `classes`; add it, or rename, drop or ignore it"),
        ("classes: [cat]\nsources: [{path: set, drop: all}]", "drop must be a list of classes or `rest`"),
        ("classes: [cat]\nsources: [{path: set, drop: [yak]}]", "it has no class 'yak'; it has bird, cat, dog"),
        ("classes: [cat]\nsources: [{path: set, drop: rest, rename: {dog: wolf}}]", "class 'wolf' is not in `classes`"),
        ("classes: [cat, cat]\nsources: [{path: set}]", "class 'cat' stands twice in the class list; remove one"),
        ("classes: [cat]\nsources: [{path: set, drop: rest}, {path: set, drop: rest}]", "two sources are called 'set'; give each a `name`"),
        ("classes: [cat]\nsources: [{path: set, name: ../x, drop: rest}]", "name '../x' cannot begin a file name; choose another"),
        ("classes: [cat]\nsources: [{path: joined.yaml}]", "it joins sources itself; list its sources here"),
        ("classes: [cat]\nsources: [{path: set, format: joined}]", "it joins sources itself; list its sources here"),
        ("classes: [cat]\nsources: [{path: nowhere}]", "no such file or folder; check the path"),
        ("classes: &a [cat]\nsources: *a", "aliases (*name) are not read"),
        ("classes: [cat\nsources:", "YAML that cannot be read"),
        ("classes: [cat]\nsources: [{path: set, ids: {256: cat}}]", "sources.0.ids.256.[key]: Input should be less than or equal to 255"),
        ("classes: [cat]\nsources: [{path: set, ids: {1: yak}}]", "class 'yak' is not in `classes`"),
        ("classes: [cat]\nsources: [{path: set, ids: {1: void}}]", "it annotates none of `classes`"),
        (
            "classes: [cat]\nsources: [{path: boxed, ids: {1: cat}}]",
            "ids are those of mask files, and this format names its classes itself",
        ),
    ],
)
def test_faults_of_the_file_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    make_voc(tmp_path / "set")
    make_yolo_polygons(tmp_path / "boxed")
    path = write(tmp_path / "joined.yaml", text)
    with pytest.raises(MixsupError) as caught:
        load_dataset(path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_source_without_splits_is_there_to_train_on(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc")
    for name in ("a", "b"):
        write_image(tmp_path / "flat/images" / f"{name}.jpg")
        write_mask(tmp_path / "flat/masks" / f"{name}.png", mask_of(name))
    write(tmp_path / "flat/labels.txt", "\n".join(CLASSES) + "\n")
    path = join(tmp_path, [{"path": "voc"}, {"path": "flat"}])
    assert format_splits(path) == ["train", "val"]
    assert [sample.id for sample in load_dataset(path, "train").samples] == ["flat-a", "flat-b", "voc-a", "voc-b", "voc-c", "voc-d"]
    assert [sample.id for sample in load_dataset(path, "val").samples] == ["voc-e", "voc-f"]
    whole = join(tmp_path, [{"path": "voc", "split": {"train": None}}, {"path": "flat", "split": {"val": None}}])
    assert len(load_dataset(whole, "train").samples) == 6
    assert [sample.id for sample in load_dataset(whole, "val").samples] == ["flat-a", "flat-b"]


def test_a_source_whose_splits_are_called_otherwise(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc")
    lists = make_voc(tmp_path / "other") / "ImageSets/Segmentation"
    (lists / "train.txt").rename(lists / "first.txt")
    (lists / "val.txt").unlink()
    path = join(tmp_path, [{"path": "voc"}, {"path": "other"}])
    with pytest.raises(MixsupError, match="no split 'train', it has first; say which is to train on"):
        load_dataset(path, "train")
    assert len(load_dataset(join(tmp_path, [{"path": "voc"}, {"path": "other", "split": {"train": "first"}}]), "train").samples) == 8
    assert len(load_dataset(join(tmp_path, [{"path": "voc"}, {"path": "other", "split": {}}]), "train").samples) == 4


def test_a_source_without_any_joint_class(tmp_path: Path) -> None:
    make_voc(tmp_path / "voc")
    other = make_folders(tmp_path / "other")
    write(other / "labels.txt", "Bird\nCat\nDog\n")
    with pytest.raises(MixsupError, match="it annotates none of `classes`"):
        load_dataset(join(tmp_path, [{"path": "voc"}, {"path": "other", "drop": "rest"}]))
    complete = load_dataset(join(tmp_path, [{"path": "voc"}, {"path": "other", "drop": "rest", "complete": True}]))
    assert len(complete.samples) == 12


class TestIds:
    """Masks whose ids are not those of a class list that begins after the background."""

    def source(self, root: Path, ids: dict[int, int]) -> Path:
        """Folders without `labels.txt` whose masks hold `ids` in place of background, bird, cat and dog."""
        table = np.array([ids.get(value, value) for value in range(256)], np.uint8)
        for path in sorted(make_folders(root).glob("masks/*/*.png")):
            write_mask(path, table[mask_of(path.stem)])
        (root / "labels.txt").unlink()
        return root

    def masks(self, path: Path) -> dict[str, Any]:
        data = load_dataset(path)
        assert not data.problems
        return {sample.id: load_mask(sample, len(data.classes)) for sample in data.samples}

    def test_the_first_class_is_zero(self, tmp_path: Path) -> None:
        self.source(tmp_path / "flat", {0: 255, 1: 0, 2: 1, 3: 2})
        found = self.masks(join(tmp_path, [{"path": "flat", "ids": {0: "bird", 1: "cat", 2: "dog"}}]))
        for name, mask in found.items():
            assert (mask == np.where(mask_of(name) == 0, VOID, mask_of(name))).all()

    def test_ids_with_gaps_and_two_to_one(self, tmp_path: Path) -> None:
        self.source(tmp_path / "flat", {1: 7, 2: 200, 3: 33})
        ids = {7: "bird", 33: "dog", 200: "cat"}
        path = join(tmp_path, [{"path": "flat", "ids": ids, "rename": {"cat": "dog"}}], ["dog", "bird"])
        for name, mask in self.masks(path).items():
            assert (mask == np.array([0, 2, 1, 1])[mask_of(name)]).all()

    def test_black_and_white(self, tmp_path: Path) -> None:
        self.source(tmp_path / "flat", {1: 255, 2: 255, 3: 255})
        path = join(tmp_path, [{"path": "flat", "ids": {255: "cell"}}], ["cell"])
        for name, mask in self.masks(path).items():
            assert (mask == (mask_of(name) > 0)).all()
        for sample in load_dataset(path).samples:
            boxes = boxes_of(sample, 2)
            assert not boxes.crowd.any()
            assert tags_of(sample, 2) == ({1} if OBJECTS[sample.id] else set())

    def test_what_colours_mean_does_not_count_then(self, tmp_path: Path) -> None:
        root = self.source(tmp_path / "flat", {})
        for path in root.glob("masks/*/*.png"):
            picture = Image.fromarray(mask_of(path.stem), "P")
            picture.putpalette([0, 0, 0, 250, 0, 0, 0, 250, 0, 0, 0, 250])
            picture.save(path)
        write(root / "labelmap.txt", "dog:250,0,0::\ncat:0,250,0::\nbird:0,0,250::\n")
        path = join(tmp_path, [{"path": "flat", "ids": {1: "bird", 2: "cat", 3: "dog"}}])
        for name, mask in self.masks(path).items():
            assert (mask == mask_of(name)).all()

    def test_void_and_ignored(self, tmp_path: Path) -> None:
        self.source(tmp_path / "flat", {})
        path = join(tmp_path, [{"path": "flat", "ids": {1: "bird", 2: "void", 3: "dog"}, "ignore": ["dog"]}], ["bird"])
        for name, mask in self.masks(path).items():
            assert (mask == np.array([0, 1, VOID, VOID])[mask_of(name)]).all()

    def test_an_id_that_is_not_named(self, tmp_path: Path) -> None:
        self.source(tmp_path / "flat", {})
        data = load_dataset(join(tmp_path, [{"path": "flat", "ids": {1: "bird", 3: "dog"}}], ["bird", "dog"]))
        with pytest.raises(
            DataError, match=r"class id 2 is not in the class list \(0 1 3, 255 is void\); correct the mask or the class list"
        ):
            [load_mask(sample, 3) for sample in data.samples]

    def test_in_pascal_voc(self, tmp_path: Path) -> None:
        """Boxes keep their names; no `labels.txt` is needed."""
        (make_voc(tmp_path / "voc") / "labels.txt").unlink()
        path = join(tmp_path, [{"path": "voc", "ids": {1: "bird", 2: "cat", 3: "dog"}}], ["dog", "cat", "bird"])
        for name, mask in self.masks(path).items():
            assert (mask == np.array([0, 3, 2, 1])[mask_of(name)]).all()
        assert {int(value) for sample in load_dataset(path).samples for value in boxes_of(sample, 4).classes} == {1, 2, 3}


def test_two_images_of_one_name(tmp_path: Path) -> None:
    for source, name in (("v", "2-a"), ("v-2", "a")):
        write_image(tmp_path / source / "images" / f"{name}.jpg")
        write_mask(tmp_path / source / "masks" / f"{name}.png", mask_of("a"))
        write(tmp_path / source / "labels.txt", "\n".join(CLASSES) + "\n")
    with pytest.raises(MixsupError, match="are both called 'v-2-a'; give one of their sources another `name`"):
        load_dataset(join(tmp_path, [{"path": "v"}, {"path": "v-2"}]))


def test_what_a_mask_file_ignores_is_no_background_of_its_boxes(tmp_path: Path) -> None:
    make_folders(tmp_path / "flat")
    for options in ({}, {"label": "boxes"}):
        data = load_dataset(join(tmp_path, [{"path": "flat", "ignore": ["dog"], **options}], ["bird", "cat", "dog"]))
        kinds = draw(data.samples, "boxes", 0)
        dog = CLASSES.index("dog") + 1
        for sample in restrict(data, kinds).samples:
            assert sample.boxes is not None
            truth = boxes_of(
                Sample(sample.id, sample.image, sample.size, mask=MaskFile(tmp_path / f"flat/masks/{_split(sample.id)}/{sample.id}.png")), 4
            )
            assert sorted(map(tuple, sample.boxes.xyxy[sample.boxes.crowd])) == sorted(map(tuple, truth.xyxy[truth.classes == dog]))
            assert (sample.boxes.classes[sample.boxes.crowd] == 0).all()
            assert (sample.boxes.classes[~sample.boxes.crowd] != dog).all()


def _split(name: str) -> str:
    return next(split for split, names in SPLITS.items() if name in names)
