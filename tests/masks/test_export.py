"""What `mixsup masks` writes is what other tools read, and its score is the confusion matrix's."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mixsup.data import load_dataset
from mixsup.data.derive import load_mask
from mixsup.data.sample import Bool, Boxes, Classes, Dataset, MaskFile, Sample, UInt8
from mixsup.errors import DataError, MixsupError
from mixsup.masks import BoxMasks, build_source, compose
from mixsup.masks.export import MaskScore, export_masks
from mixsup.masks.source import MaskSource
from mixsup.masks.store import MaskStore
from mixsup.metrics import boundary_hits, boundary_recall, confusion, scores
from mixsup.show import show_scores
from tests.data.make import make_coco, make_coco_boxes, make_tags, make_voc, write


def test_palette_png_and_coco_codes(tmp_path: Path) -> None:
    dataset = load_dataset(make_coco(tmp_path / "data"), "train")
    export_masks(dataset, build_source("rectangle"), tmp_path / "out", MaskStore(tmp_path / "store"))
    written = json.loads((tmp_path / "out" / "masks.json").read_text())
    by_image = {row["id"]: row["file_name"] for row in written["images"]}
    for sample in dataset.samples:
        assert sample.boxes is not None
        picture = Image.open(tmp_path / "out" / f"{sample.id}.png")
        assert picture.mode == "P"
        target = compose(build_source("rectangle")(np.zeros((*sample.size, 3), np.uint8), sample.boxes, sample))
        assert np.array_equal(np.array(picture), target)
        rows = [row for row in written["annotations"] if by_image[row["image_id"]] == sample.image.name]
        assert [row["category_id"] for row in rows] == sample.boxes.classes.tolist()
        for row, box in zip(rows, sample.boxes.xyxy, strict=True):
            x0, y0, x1, y1 = box
            assert row["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert coco_mask.decode(row["segmentation"]).sum() == row["area"]
    assert len({row["id"] for row in written["annotations"]}) == len(written["annotations"])


def test_score(tmp_path: Path) -> None:
    dataset = load_dataset(make_coco(tmp_path / "data"))
    result, problems = export_masks(dataset, build_source("rectangle"), None, MaskStore(tmp_path / "store"), score=True)
    matrix = np.zeros((4, 4), np.int64)
    for sample in dataset.samples:
        assert sample.boxes is not None
        target = compose(build_source("rectangle")(np.zeros((*sample.size, 3), np.uint8), sample.boxes, sample))
        matrix += confusion(load_mask(sample, 4), target, 4)
    assert not problems
    assert result is not None
    assert {key: result[key] for key in ("miou", "per_class")} == {
        key: scores(matrix, dataset.classes.all())[key] for key in ("miou", "per_class")
    }
    assert result["ignored"] == 0
    assert result["seconds_per_image"] > 0


@dataclass
class Pool:
    """Two candidates: the left half of the image, and its upper half."""

    members: Bool
    halves: list[Bool]

    def best_iou_with(self, masks: list[Bool]) -> list[float]:
        return [max(float((half & mask).sum() / (half | mask).sum()) for half in self.halves) for mask in masks]


@dataclass(frozen=True)
class Halves(MaskSource):
    """Rectangles that come with a pool."""

    name: ClassVar[str] = "halves"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        return build_source("rectangle")(image, boxes, sample)

    def propose(self, image: UInt8) -> Pool:
        if image[0, 0, 0] == 1:
            raise ValueError("one too many")
        left, upper = np.zeros(image.shape[:2], bool), np.zeros(image.shape[:2], bool)
        left[:, : image.shape[1] // 2], upper[: image.shape[0] // 2] = True, True
        return Pool(np.ones((2, 1), bool), [left, upper])


def test_score_of_a_pool(tmp_path: Path) -> None:
    """Three objects: the left half itself, two thirds of it, and a quarter of the image."""
    truth = np.zeros((30, 40), np.uint8)
    truth[:, :20] = 1
    other = np.zeros((30, 40), np.uint8)
    other[:20, :20] = 1
    other[20:, 30:] = 2
    samples = []
    for name, mask, rows in (
        ("a", truth, [((0, 0, 20, 30), 1, False)]),
        ("b", other, [((0, 0, 20, 20), 1, False), ((30, 20, 40, 30), 2, False), ((0, 0, 9, 9), 2, True), ((22, 0, 25, 3), 1, False)]),
    ):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.jpg")
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        samples.append(Sample(name, tmp_path / f"{name}.jpg", (30, 40), boxes=Boxes.of(rows), mask=MaskFile(tmp_path / f"{name}.png")))
    dataset = Dataset(Classes(("one", "two")), samples)
    result, _ = export_masks(dataset, Halves(), None, MaskStore(tmp_path / "store"), score=True, jobs=1)
    assert result is not None
    # Left half: 1. Two thirds of it: 400 of 600 pixels, and upper half 300 of 700. The corner: none.
    assert result["best_candidate_iou"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert result["recall_50"] == pytest.approx(2 / 3)
    assert result["recall_70"] == pytest.approx(1 / 3)
    assert result["proposals"] == 2
    assert result["per_class_best_candidate_iou"] == {"background": None, "one": pytest.approx((1 + 2 / 3) / 2), "two": 0}
    show_scores(result)

    Image.new("RGB", (40, 30), (1, 1, 1)).save(tmp_path / "a.jpg", quality=100)
    result, problems = export_masks(dataset, Halves(), None, MaskStore(tmp_path / "store"), score=True, jobs=1, skip_bad=True)
    assert "ValueError: one too many" in str(problems[0])
    assert result is not None
    assert result["recall_70"] == 0


def test_scores_by_true_class() -> None:
    generator = np.random.default_rng(3)
    tally, images = MaskScore(Classes(("a", "b"))), []
    for _ in range(2):
        truth = np.repeat(np.repeat(generator.choice([0, 1, 255], (4, 5)), 6, axis=0), 7, axis=1).astype(np.uint8)
        target = np.where(generator.random(truth.shape) < 0.2, 255, np.roll(truth, 3, axis=1)).astype(np.uint8)
        tally.add(truth, target)
        images.append((truth, target))
    result = tally.result()
    for class_id, name in enumerate(("background", "a")):
        pixels = sum((truth == class_id).sum() for truth, _ in images)
        ignored = sum(((truth == class_id) & (target == 255)).sum() for truth, target in images)
        assert result["per_class_ignored"][name] == ignored / pixels
        wanted, found = (sum(boundary_hits(*pair)[which][pair[0] == class_id].sum() for pair in images) for which in (0, 1))
        assert result["per_class_boundary_recall"][name] == found / wanted
    assert result["per_class_ignored"]["b"] is None
    assert result["per_class_boundary_recall"]["b"] is None


def test_boundary_recall_is_summed_over_images(tmp_path: Path) -> None:
    dataset = load_dataset(make_coco(tmp_path / "data"))
    result, _ = export_masks(dataset, build_source("rectangle"), None, MaskStore(tmp_path / "store"), score=True)
    found = wanted = 0
    for sample in dataset.samples:
        assert sample.boxes is not None
        target = compose(build_source("rectangle")(np.zeros((*sample.size, 3), np.uint8), sample.boxes, sample))
        one, all_of_them = boundary_recall(load_mask(sample, 4), target)
        found, wanted = found + one, wanted + all_of_them
    assert result is not None
    assert result["boundary_recall"] == found / wanted > 0.9


def test_refusals(tmp_path: Path) -> None:
    store = MaskStore(tmp_path / "store")
    with pytest.raises(MixsupError, match="no true mask to score against"):
        export_masks(load_dataset(make_coco_boxes(tmp_path / "boxes")), build_source("rectangle"), None, store, score=True)
    with pytest.raises(MixsupError, match="no image has boxes"):
        export_masks(load_dataset(make_tags(tmp_path / "tags")), build_source("rectangle"), tmp_path / "out", store)


def test_a_bad_image_is_named_after_the_others_are_written(tmp_path: Path) -> None:
    dataset = load_dataset(make_coco(tmp_path / "data"), "train")
    dataset.samples[0].image.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty") as caught:
        export_masks(dataset, build_source("rectangle"), tmp_path / "out", MaskStore(tmp_path / "store"))
    assert len(caught.value.problems) == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == len(dataset) - 1


@pytest.mark.parametrize("place", ["SegmentationClass", "JPEGImages", "."])
def test_the_data_sets_own_files_stay(tmp_path: Path, place: str) -> None:
    data = make_voc(tmp_path / "data")
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(MixsupError, match=r"holds files of the data set .*give another --out"):
        export_masks(load_dataset(data), build_source("rectangle"), data / place, MaskStore(tmp_path / "store"))
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_what_others_wrote_stays(tmp_path: Path) -> None:
    """Masks of the same names, and masks of an earlier command that were corrected since; what a killed command left goes."""
    dataset, out = load_dataset(make_voc(tmp_path / "data"), "train"), tmp_path / "out"

    def export(name: str = "rectangle") -> None:
        export_masks(dataset, build_source(name), out, MaskStore(tmp_path / "store"), jobs=1)

    own = write(out / "b.png", "a mask of mine")
    with pytest.raises(MixsupError, match=r"out/b\.png: would be overwritten, and mixsup has not written it"):
        export()
    assert own.read_text() == "a mask of mine"
    assert [path.name for path in out.iterdir()] == ["b.png"]
    own.unlink()
    export()
    export("grabcut")
    corrected = out / "c.png"
    corrected.write_bytes(b"corrected")
    os.utime(corrected, ns=(0, (out / "masks.json").stat().st_mtime_ns + 10**9))
    with pytest.raises(MixsupError, match=r"out/c\.png: would be overwritten, and was changed after masks\.json was written"):
        export()
    assert corrected.read_bytes() == b"corrected"
    os.utime(out / "labels.txt", ns=(0, (out / "masks.json").stat().st_mtime_ns + 1))  # as after a kill
    export()
    assert corrected.read_bytes() != b"corrected"


def test_the_file_that_describes_the_data_set_stays(tmp_path: Path) -> None:
    data = make_coco(tmp_path / "data")
    described = (data / "annotations/instances_train.json").rename(tmp_path / "masks.json")
    shutil.copytree(data / "images/train", tmp_path / "images")
    with pytest.raises(MixsupError, match="holds files of the data set"):
        export_masks(load_dataset(described), build_source("rectangle"), tmp_path, MaskStore(tmp_path / "store"))


def test_sources_of_relative_and_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_coco(tmp_path / "one")
    make_coco(tmp_path / "two")
    (tmp_path / "join.yaml").write_text(
        f"classes: [bird, cat, dog]\nsources: [{{path: one, name: one}}, {{path: {tmp_path / 'two'}, name: two}}]\n"
    )
    monkeypatch.chdir(tmp_path)
    export_masks(load_dataset(Path("join.yaml")), build_source("rectangle"), Path("out"), MaskStore(tmp_path / "store"))
    names = {row["file_name"] for row in json.loads(Path("out/masks.json").read_text())["images"]}
    assert {name.split("/")[0] for name in names} == {"one", "two"}


def test_what_a_joined_data_set_ignores_is_nobodys_crowd(tmp_path: Path) -> None:
    make_coco_boxes(tmp_path / "set")
    (tmp_path / "join.yaml").write_text("classes: [dog, cat]\nsources: [{path: set, ignore: [bird]}]\n")
    dataset = load_dataset(tmp_path / "join.yaml")
    assert any((sample.boxes.classes == 0).any() for sample in dataset.samples if sample.boxes is not None)
    export_masks(dataset, build_source("rectangle"), tmp_path / "out", MaskStore(tmp_path / "store"))
    assert not any(row["iscrowd"] for row in json.loads((tmp_path / "out/masks.json").read_text())["annotations"])


def test_a_class_that_is_ignored_altogether_counts() -> None:
    truth = np.repeat(np.array([0, 1, 2], np.uint8), 4).reshape(3, 4)
    tally = MaskScore(Classes(("a", "b")))
    tally.add(truth, np.where(truth == 1, 255, truth).astype(np.uint8))
    result = tally.result()
    assert result["per_class"] == {"background": 1.0, "a": 0.0, "b": 1.0}
    assert result["miou"] == pytest.approx(2 / 3)
