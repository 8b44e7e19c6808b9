"""The numbers behind `mixsup inspect`."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsup.data import Boxes, Classes, Dataset, Sample, load_dataset
from mixsup.data.summary import as_json, summarise
from mixsup.show import show_summary

from .make import CARRIES, OBJECTS, WRITERS, class_id, make_folders, make_tags, make_voc, mask_of, write_mask


def boxed(rows: Sequence[tuple[tuple[float, float, float, float], int, bool]], size: tuple[int, int] = (100, 100)) -> Dataset:
    return Dataset(Classes(("one", "two", "three")), [Sample("a", Path("a.jpg"), size, boxes=Boxes.of(rows))])


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_format(tmp_path: Path, name: str) -> None:
    summary = summarise(load_dataset(WRITERS[name](tmp_path / "set")), pixels=True)
    assert summary.images == len(OBJECTS)
    assert summary.strongest[CARRIES[name]] == len(OBJECTS)
    assert summary.can_give["tags"] == len(OBJECTS)
    assert summary.unlabelled == ()
    assert summary.smallest == summary.largest == (30, 40)
    assert summary.median == (30.0, 40.0)
    assert [row.images for row in summary.classes] == [2, 3, 2]  # bird in b and e, cat in a, c and e, dog in b and f
    if CARRIES[name] == "masks":
        expected = np.sum([np.bincount(mask_of(key).ravel(), minlength=4) for key in OBJECTS], axis=0)
        assert [summary.background_pixels, *(row.pixels for row in summary.classes)] == expected.tolist()
        assert summary.void_pixels == 0
    json.dumps(as_json(summary), allow_nan=False)


def test_boxes_and_tags(tmp_path: Path) -> None:
    summary = summarise(load_dataset(make_voc(tmp_path)))
    cat = summary.classes[class_id("cat") - 1]
    assert (cat.boxes, cat.tags, cat.pixels) == (4, 0, None)
    assert cat.small == 1.0
    assert cat.median_side == pytest.approx((12 * 12 * 1.0) ** 0.5 / 2 + (16 * 15) ** 0.5 / 2)
    assert summary.background_pixels is None
    tagged = summarise(load_dataset(make_tags(tmp_path / "tags")))
    assert tagged.classes[class_id("cat") - 1].tags == 3
    assert tagged.covered is None


def test_masks_alone_count_only_when_asked(tmp_path: Path) -> None:
    dataset = load_dataset(make_folders(tmp_path))
    (tmp_path / "masks/val/e.png").write_bytes(b"broken")
    (tmp_path / "masks/val/f.png").unlink()
    assert [row.images for row in summarise(dataset).classes] == [0, 0, 0]
    counted = summarise(dataset, pixels=True)
    assert [row.images for row in counted.classes] == [1, 2, 1]
    assert counted.broken_masks == ("e", "f")


def test_unlabelled(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "masks/val/f.png").unlink()
    summary = summarise(load_dataset(tmp_path))
    assert summary.unlabelled == ("f",)
    assert summary.can_give == {"masks": 5, "boxes": 5, "tags": 5}


def test_images_that_show_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`d` is one in every format; a mask file has to be asked."""
    for name, make in WRITERS.items():
        dataset = load_dataset(make(tmp_path / name))
        assert summarise(dataset).empty == (0 if name == "folders" else 1)
        assert summarise(dataset, pixels=True).empty == as_json(summarise(dataset, pixels=True))["empty"] == 1
    show_summary(summarise(dataset))
    assert "1 images show no object (taught as background)" in capsys.readouterr().out
    assert summarise(boxed([((0, 0, 9, 9), 1, True)])).empty == 0  # a crowd is void and no background
    assert summarise(Dataset(Classes(("one",)), [Sample("a", Path("a.jpg"), (9, 9))])).empty == 0
    mask = mask_of("d")
    for mask[0, 0], mask[1:, 1:], empty in ((255, 0, 1), (255, 255, 1), (0, 2, 0)):
        write_mask(tmp_path / "folders/masks/train/d.png", mask)
        assert summarise(load_dataset(tmp_path / "folders"), pixels=True).empty == empty


def test_overlaps() -> None:
    same = summarise(boxed([((0, 0, 10, 10), 1, False), ((0, 0, 10, 10), 1, False)]))
    assert (same.overlapping_pairs, same.covered) == (0, 0.0)
    other = summarise(boxed([((0, 0, 10, 10), 1, False), ((5, 0, 15, 10), 2, False)]))
    assert (other.overlapping_pairs, other.covered) == (1, 0.5)
    little = summarise(boxed([((0, 0, 10, 10), 1, False), ((9, 0, 19, 10), 2, False)]))
    assert little.overlapping_pairs == 0
    assert little.covered == pytest.approx(0.1)
    crowd = summarise(boxed([((0, 0, 10, 10), 1, False), ((0, 0, 10, 10), 2, True)]))
    assert (crowd.overlapping_pairs, crowd.covered, crowd.crowds, crowd.classes[1].boxes) == (0, 0.0, 1, 0)


EDGES = st.tuples(st.integers(0, 14), st.integers(0, 14), st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(EDGES, st.integers(1, 3)), max_size=6))
def test_covered_share_is_that_of_the_pixels(rows: list[tuple[tuple[int, int, int, int], int]]) -> None:
    boxes = [((x, y, x + w, y + h), label, False) for (x, y, w, h), label in rows]
    summary = summarise(boxed(boxes, (20, 20)))
    covered = total = 0
    for index, ((x0, y0, x1, y1), label, _) in enumerate(boxes):
        others = np.zeros((20, 20), bool)
        for other, ((a0, b0, a1, b1), theirs, _) in enumerate(boxes):
            if other != index and theirs != label:
                others[b0:b1, a0:a1] = True
        covered += int(others[y0:y1, x0:x1].sum())
        total += (x1 - x0) * (y1 - y0)
    assert summary.covered == (pytest.approx(covered / total) if total else None)


def test_thousands_of_boxes_in_one_image() -> None:
    corners = np.random.default_rng(0).uniform(0, 1900, (1500, 2))
    dataset = boxed([((x, y, x + 100, y + 90), index % 3 + 1, False) for index, (x, y) in enumerate(corners)], (2000, 2000))
    tracemalloc.start()
    summary = summarise(dataset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # it was 300 MB
    assert summary.covered is not None
    assert 0.8 < summary.covered < 1


def test_nothing_at_all() -> None:
    summary = summarise(Dataset(Classes(()), []))
    assert (summary.images, summary.smallest, summary.median, summary.classes) == (0, None, None, ())
    json.dumps(as_json(summary), allow_nan=False)
