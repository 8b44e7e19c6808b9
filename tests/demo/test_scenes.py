"""The demo's scenes: repeatable, labelled to the pixel, and of kinds that fill their boxes from little to nearly all."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from mixsup.data import load_dataset
from mixsup.data.derive import boxes_of, load_mask
from mixsup.data.image import read_image
from mixsup.demo.kinds import CLASSES, KINDS
from mixsup.demo.scenes import KEEP, VAL_FROM, Scene, draw_scene, write_dataset
from mixsup.errors import MixsupError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, index) for index in range(300)]


def filling_rates(scenes: list[Scene]) -> dict[str, float]:
    """Mean share of the tight box that the visible part of an object covers, by class."""
    rates: dict[str, list[float]] = defaultdict(list)
    for scene in scenes:
        for (class_id, seen), (x0, y0, x1, y1) in zip(scene.instances, scene.boxes.xyxy, strict=True):
            rates[CLASSES.all()[class_id]].append(float(seen.sum() / ((x1 - x0) * (y1 - y0))))
    return {name: float(np.mean(values)) for name, values in rates.items()}


def test_same_numbers_give_the_same_scene() -> None:
    one, two = draw_scene(3, 7), draw_scene(3, 7)
    assert np.array_equal(one.image, two.image) and np.array_equal(one.mask, two.mask)
    assert np.array_equal(one.boxes.xyxy, two.boxes.xyxy) and np.array_equal(one.boxes.classes, two.boxes.classes)
    for other in (draw_scene(3, 8), draw_scene(4, 7)):
        assert not np.array_equal(one.image, other.image)


def test_filling_rates_run_from_little_to_nearly_all(scenes: list[Scene]) -> None:
    rates = filling_rates(scenes)
    assert len(rates) == len(KINDS) >= 7
    assert min(rates.values()) < 0.3 and max(rates.values()) > 0.85
    for kind in KINDS:
        assert kind.fill[0] <= rates[kind.name] <= kind.fill[1], (kind.name, rates[kind.name])


def test_labels_agree_with_each_other(scenes: list[Scene]) -> None:
    for scene in scenes[:60]:
        painted = np.zeros_like(scene.mask)
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == scene.mask.dtype == np.uint8
        assert 2 <= len(scene.instances) <= 5 and len(scene.instances) == len(scene.boxes) and not scene.boxes.crowd.any()
        rows = zip(scene.instances, scene.boxes.xyxy.astype(int), scene.boxes.classes, strict=True)
        for (class_id, seen), (x0, y0, x1, y1), boxed in rows:
            assert boxed == class_id and not painted[seen].any()
            painted[seen] = class_id
            inside = seen[y0:y1, x0:x1]
            assert inside.sum() == seen.sum()  # nothing outside
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()  # and no empty rim
        assert np.array_equal(painted, scene.mask)


def test_no_object_is_a_mere_remnant() -> None:
    # The smallest stick is about 50 x 6 pixels; no object loses more than 1 - KEEP of its pixels.
    smallest = min(int(seen.sum()) for index in range(60) for _, seen in draw_scene(1, index).instances)
    assert smallest > KEEP * 300


def test_objects_stand_out_from_their_surroundings(scenes: list[Scene]) -> None:
    differences = []
    for scene in scenes[:60]:
        for _, seen in scene.instances:
            around = cv2.dilate(seen.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & (scene.mask == 0)
            if around.any():
                differences.append(np.abs(scene.image[seen].mean(axis=0) - scene.image[around].mean(axis=0)).max())
    assert np.median(differences) > 40


def test_classes_are_drawn_independently(scenes: list[Scene]) -> None:
    present = np.array([[class_id in scene.boxes.classes for class_id in range(1, len(CLASSES))] for scene in scenes])
    counts = np.bincount(np.concatenate([scene.boxes.classes for scene in scenes]), minlength=len(CLASSES))[1:]
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.4 * counts.mean()
    correlations = np.corrcoef(present.T.astype(float))
    assert max(abs(correlations[a, b]) for a, b in itertools.combinations(range(len(KINDS)), 2)) < 0.2


@pytest.mark.parametrize("size", [32, 200])
def test_other_sizes(size: int) -> None:
    for index in range(4):
        scene = draw_scene(0, index, size)
        assert scene.image.shape == (size, size, 3) and scene.mask.any()


def test_a_size_too_small_is_refused() -> None:
    with pytest.raises(MixsupError, match="too small"):
        draw_scene(0, 0, 16)


def test_the_written_data_set_is_what_was_drawn(tmp_path: Path) -> None:
    write_dataset(tmp_path / "demo", train=6, val=3, seed=5)
    for split, start, count in (("train", 0, 6), ("val", VAL_FROM, 3)):
        dataset = load_dataset(tmp_path / "demo", split)
        assert dataset.classes == CLASSES and len(dataset) == count and not dataset.problems
        for index, sample in enumerate(dataset.samples):
            scene = draw_scene(5, start + index)
            assert np.array_equal(read_image(sample.image), scene.image)
            assert np.array_equal(load_mask(sample, len(CLASSES)), scene.mask)
            boxes = boxes_of(sample, len(CLASSES))
            assert np.array_equal(boxes.xyxy, scene.boxes.xyxy) and np.array_equal(boxes.classes, scene.boxes.classes)
    assert len(load_dataset(tmp_path / "demo")) == 9


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_writing_again_does_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path, train=2, val=1)
    before = times(tmp_path)
    write_dataset(tmp_path, train=2, val=1)
    assert times(tmp_path) == before
    next(tmp_path.glob("images/train/*")).unlink()
    write_dataset(tmp_path, train=2, val=1)
    assert times(tmp_path).keys() == before.keys()


def test_other_numbers_and_broken_off_writing_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, train=2, val=1)
    first = (tmp_path / "images/train/train_0001.png").read_bytes()

    def killed(seed: int, index: int, size: int) -> Scene:
        if index == 1:
            raise KeyboardInterrupt
        return draw_scene(seed, index, size)

    with monkeypatch.context() as patch:
        patch.setattr("mixsup.demo.scenes.draw_scene", killed)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path, train=2, val=1, seed=9)
    assert not json.loads((tmp_path / "demo.json").read_text())["complete"]
    write_dataset(tmp_path, train=2, val=1)
    assert (tmp_path / "images/train/train_0001.png").read_bytes() == first
    assert np.array_equal(read_image(tmp_path / "images/train/train_0000.png"), draw_scene(0, 0).image)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    with pytest.raises(MixsupError, match="empty folder"):
        write_dataset(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["annotations"]
