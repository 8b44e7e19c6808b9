"""Real data, where the folder `shared/` lies beside the checkout."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mixsup.data import load_dataset
from mixsup.data.derive import boxes_of, load_mask
from mixsup.data.sample import VOID
from mixsup.data.summary import summarise

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no folder shared/data beside the checkout")
LEAST = 40  # pixels; the COCO file holds no smaller component


def small_components(mask: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """H x W bool, pixels of components below 40 pixels. Components are joined by a 3 x 3 closing, as the boxes were."""
    small = np.zeros(mask.shape, bool)
    for label in set(np.unique(mask).tolist()) - {0, VOID}:
        own = (mask == label).astype(np.uint8)
        count, ids = cv2.connectedComponents(cv2.morphologyEx(own, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), connectivity=8)
        sizes = np.bincount(ids[own == 1], minlength=count)
        small |= (own == 1) & (sizes[ids] < LEAST)
    return small


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_voc_and_the_coco_form_of_ccp_are_the_same(split: str) -> None:
    voc, coco = load_dataset(DATA / "ccp", split, format="voc"), load_dataset(DATA / "ccp", split, format="coco")
    assert voc.classes == coco.classes
    assert [sample.id for sample in voc.samples] == [sample.id for sample in coco.samples]
    assert len(voc) == {"train": 698, "val": 104}[split]
    for index, (one, other) in enumerate(zip(voc.samples, coco.samples, strict=True)):
        assert (one.image, one.size) == (other.image, other.size)
        assert one.boxes is not None
        assert other.boxes is not None
        np.testing.assert_array_equal(one.boxes.xyxy, other.boxes.xyxy)
        np.testing.assert_array_equal(one.boxes.classes, other.boxes.classes)
        assert not one.boxes.crowd.any()
        assert not other.boxes.crowd.any()
        if index % 7:  # masks of every seventh image: decoding all of them takes longer than it tells
            continue
        mask, painted = load_mask(one, len(voc.classes)), load_mask(other, len(coco.classes))
        differs = mask != painted
        assert (painted[differs] == 0).all()
        assert (~differs | (mask == VOID) | small_components(mask)).all()


def test_ccp_in_numbers() -> None:
    summary = summarise(load_dataset(DATA / "ccp"))
    assert summary.images == 698 + 104 + 1094
    assert summary.strongest == {"masks": 802, "boxes": 0, "tags": 1094}
    hair = summary.classes[0]
    assert (hair.name, hair.boxes, hair.tags) == ("hair", 794 + 120, 668 + 99 + 1046)


def test_coco128() -> None:
    dataset = load_dataset(DATA / "coco128-seg")
    assert len(dataset) == 128
    assert len(dataset.classes.names) == 80
    assert sum(len(sample.boxes) for sample in dataset.samples if sample.boxes is not None) == 929
    assert all(sample.kinds()[0] == "masks" for sample in dataset.samples)
    person = sum(int((boxes_of(sample, 81).classes == 1).sum()) for sample in dataset.samples)
    assert person == 254
    assert load_mask(dataset.samples[0], 81).shape == dataset.samples[0].size
