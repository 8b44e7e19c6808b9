"""What `mixsup masks` writes is what other tools read, and its score is the confusion matrix's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mixsup.data import load_dataset
from mixsup.data.derive import load_mask
from mixsup.errors import DataError, MixsupError
from mixsup.masks import build_source, compose
from mixsup.masks.export import export_masks
from mixsup.masks.store import MaskStore
from mixsup.metrics import confusion, scores
from tests.data.make import make_coco, make_coco_boxes, make_tags


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
