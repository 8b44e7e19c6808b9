"""Draws and views are a function of (seed, step) alone, and a view is what resizing the whole image would show."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset, get_worker_info
from torchvision.transforms.v2 import functional

from mixsup.data import load_dataset
from mixsup.data.augment import fit_scale, training_view
from mixsup.data.budget import draw, restrict
from mixsup.data.derive import load_mask
from mixsup.data.sample import Boxes, LabelKind, Sample
from mixsup.engine.batches import Draws, Targets, TrainingViews, as_tensors, training_loader, whole_loader
from mixsup.masks import build_source, compose
from mixsup.masks.store import MaskStore
from mixsup.recipe import Augmentation, Schedule
from tests.data.make import make_voc

PLAIN = Augmentation(scale=(1.0, 1.0), flip=0.0, colour=0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 12), st.integers(0, 3))
def test_draws(count: int, batch: int, cut: int, seed: int) -> None:
    steps = 14
    whole = list(Draws(["masks"] * count, batch, 0, steps, seed))
    assert whole[cut:] == list(Draws(["masks"] * count, batch, cut, steps, seed))  # going on after a stop
    flat = [index for step in whole for index, _ in step]
    for epoch in range(len(flat) // count):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))  # each image once an epoch
    assert [number for step in whole for _, number in step] == list(range(steps * batch))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4), st.booleans())
def test_no_stage_shows_a_view_again(stages: list[tuple[int, int]], kinds: bool) -> None:
    """Stages of (steps, images a step): numbers of draws run on, whatever the batch."""
    names: list[LabelKind] = ["masks", *["boxes"] * 3]
    found, first, drawn = [], 0, 0
    for steps, batch in stages:
        sampling: dict[LabelKind, float] | None = {"masks": 1, "boxes": 1} if kinds else None
        own = list(Draws(names, batch, first, first + steps, 0, sampling=sampling, shift=drawn - first * batch))
        cut = steps // 2
        assert own[cut:] == list(Draws(names, batch, first + cut, first + steps, 0, sampling=sampling, shift=drawn - first * batch))
        found += [number for step in own for _, number in step]
        first, drawn = first + steps, drawn + steps * batch
    assert found == list(range(drawn))


def test_boxes_of_a_view_come_as_masks_are_laid(tmp_path: Path) -> None:
    """The largest of the image first, whatever a crop leaves of it: here it leaves less of the large one."""
    large, small = ((0.0, 0.0, 40.0, 12.0), 1, False), ((0.0, 4.0, 20.0, 20.0), 2, False)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    for rows in ([large, small], [small, large]):
        sample = Sample("a", tmp_path / "a.png", (30, 40), boxes=Boxes.of(rows), label="boxes")
        targets = Targets(3, build_source("rectangle"), MaskStore(tmp_path / "store"))
        targets.rates["a"] = np.array([row[1] / 8 for row in rows], np.float32)
        views = TrainingViews([sample], targets, Schedule(size=20, resolution="native", augment=PLAIN), seed=0)
        seen = [views[0, draw] for draw in range(30)]
        both = [view for view in seen if len(view["boxes"]) == 2]
        sides = [np.diff(view["boxes"].xyxy.reshape(2, 2, 2), axis=1).prod(axis=(1, 2)) for view in both]
        assert any(one < two for one, two in sides)
        assert all(view["boxes"].classes.tolist() == [1, 2] for view in both)
        assert all(np.allclose(view["rates"] * 8, view["boxes"].classes) for view in seen)


def test_processes_share_a_batch() -> None:
    whole = list(Draws(["masks"] * 10, 6, 0, 5, 0))
    parts = [list(Draws(["masks"] * 10, 6, 0, 5, 0, rank, 3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert [item for part in parts for item in part[step]] == batch


def _loader(folder: Path, workers: int) -> list[dict[str, object]]:
    dataset = load_dataset(make_voc(folder / "data") if not (folder / "data").exists() else folder / "data", "train")
    dataset = restrict(dataset, draw(dataset.samples, "boxes", 0))
    targets = Targets(4, build_source("rectangle"), MaskStore(folder / "store"))
    views = TrainingViews(dataset.samples, targets, Schedule(size=24), seed=3)
    return list(training_loader(views, Draws(["masks"] * len(views), 3, 0, 4, 3), workers, pin=False))


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    for one, two in zip(_loader(tmp_path, 0), _loader(tmp_path, 2), strict=True):
        assert one["id"] == two["id"]
        for key in ("boxes", "box_classes", "box_crowd"):
            for ours, theirs in zip(one[key], two[key], strict=True):  # type: ignore[call-overload]
                assert np.array_equal(ours, theirs)
        assert one["tags"] == two["tags"]
        for key in ("image", "target"):
            first, second = one[key], two[key]
            assert isinstance(first, torch.Tensor)
            assert isinstance(second, torch.Tensor)
            assert torch.equal(first, second)


class Interrupted(Dataset[int]):
    """Whose processes are stopped by the user halfway, as Ctrl-C stops all processes of a command."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if get_worker_info() is not None and index == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return index


def test_a_process_of_a_loader_leaves_ctrl_c_to_the_command() -> None:
    assert list(whole_loader(Interrupted(), 2)) == [0, 1, 2, 3]


def test_targets(tmp_path: Path) -> None:
    dataset = load_dataset(make_voc(tmp_path / "data"), "train")
    targets = Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store"))
    for sample in restrict(dataset, dict.fromkeys((item.id for item in dataset.samples), "masks")).samples:
        assert np.array_equal(targets(sample).labels, load_mask(sample, 4))
    for sample in restrict(dataset, dict.fromkeys((item.id for item in dataset.samples), "boxes")).samples:
        assert sample.boxes is not None
        made = build_source("rectangle")(np.zeros((*sample.size, 3), np.uint8), sample.boxes, sample)
        assert np.array_equal(targets(sample).labels, compose(made))


def test_a_plain_view_is_a_crop() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    target = generator.integers(0, 4, (40, 50), dtype=np.uint8)
    for seed in range(5):
        view, mask, _ = training_view(image, target, 40, "native", PLAIN, np.random.default_rng(seed))
        found = [left for left in range(11) if np.array_equal(view.permute(1, 2, 0).numpy(), image[:, left : left + 40])]
        assert len(found) == 1
        assert np.array_equal(mask.numpy(), target[:, found[0] : found[0] + 40])


def test_a_small_image_is_padded_with_void() -> None:
    image, target = np.full((10, 20, 3), 7, np.uint8), np.ones((10, 20), np.uint8)
    view, mask, _ = training_view(image, target, 32, "fit", PLAIN, np.random.default_rng(1))
    assert view.shape == (3, 32, 32)
    assert (mask == 1).sum() == 200
    assert (mask == 255).sum() == 32 * 32 - 200
    assert (view[:, mask == 1] == 7).all()


def test_scaled_view_keeps_ids_and_resembles_the_resized_image() -> None:
    rows, columns = np.indices((64, 64))
    image = np.stack([rows * 4, columns * 4, rows * 0], -1).astype(np.uint8)
    target = np.where((rows // 16 + columns // 16) % 2, 3, 255).astype(np.uint8)
    settings = Augmentation(scale=(0.5, 0.5), flip=0.0, colour=0.0)
    view, mask, _ = training_view(image, target, 32, "native", settings, np.random.default_rng(2))
    expected = functional.resize(torch.from_numpy(image).permute(2, 0, 1), [32, 32], antialias=True)
    assert (view.int() - expected.int()).abs().max() <= 1
    assert set(np.unique(mask)) == {3, 255}
    assert np.array_equal(mask.numpy(), target[1::2, 1::2])


def test_flip_mirrors_both() -> None:
    image, target = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    image[:, :4], target[:, :4] = 200, 2
    view, mask, _ = training_view(image, target, 16, "native", Augmentation(scale=(1, 1), flip=1.0, colour=0.0), np.random.default_rng(0))
    assert (mask[:, -4:] == 2).all()
    assert (view[:, :, -4:] == 200).all()
    assert not mask[:, :12].any()


def test_colour_leaves_the_target_alone() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    target = generator.integers(0, 4, (16, 16), dtype=np.uint8)
    view, mask, _ = training_view(image, target, 16, "native", Augmentation(scale=(1, 1), flip=0.0, colour=0.5), np.random.default_rng(0))
    assert np.array_equal(mask.numpy(), target)
    assert not np.array_equal(view.permute(1, 2, 0).numpy(), image)
    assert view.dtype == torch.uint8


def test_working_size() -> None:
    assert fit_scale((300, 400), 150, "fit") == 0.5
    assert fit_scale((300, 400), 600, "fit") == 1.0  # never enlarged
    assert fit_scale((300, 400), 150, "native") == 1.0


def _drawn(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[Boxes, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]:
    """A box, and a mask that fills its window."""
    boxes, target = Boxes.of([(box, 2, False)]), np.zeros(size, np.uint8)
    ((x0, y0, x1, y1),) = boxes.windows(size)
    target[y0:y1, x0:x1] = 2
    return boxes, target


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_boxes_of_a_crop_are_those_of_its_mask(flip: float, seed: int) -> None:
    """Exactly, where nothing is resized."""
    boxes, target = _drawn((11.3, 5.0, 30.6, 33.2), (40, 50))
    plain = Augmentation(scale=(1.0, 1.0), flip=flip, colour=0.0)
    _, mask, seen = training_view(np.zeros((40, 50, 3), np.uint8), target, 24, "native", plain, np.random.default_rng(seed))
    assert len(seen) == 0
    _, mask, seen = training_view(np.zeros((40, 50, 3), np.uint8), target, 24, "native", plain, np.random.default_rng(seed), boxes)
    rows, columns = np.nonzero(mask.numpy() == 2)
    assert seen.xyxy.dtype == np.float32
    assert seen.xyxy.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    assert (seen.classes.tolist(), seen.crowd.tolist()) == ([2], [False])


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_boxes_follow_scale_crop_and_flip(data: st.DataObject) -> None:
    """A view's box is the drawn rectangle in the view's mask, but for a pixel at each edge: masks are resized by nearest neighbour."""
    size = data.draw(st.integers(8, 70)), data.draw(st.integers(8, 70))
    (x0, x1), (y0, y1) = (sorted(data.draw(st.tuples(st.floats(0, side), st.floats(0, side)))) for side in reversed(size))
    boxes, target = _drawn((x0, y0, x1, y1), size)
    resolution, side = data.draw(st.sampled_from(["fit", "native"])), data.draw(st.integers(16, 40))
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    augment = Augmentation(scale=(0.4, 2.5), flip=0.5, colour=0.0)
    _, mask, seen = training_view(np.zeros((*size, 3), np.uint8), target, side, resolution, augment, generator, boxes)
    assert (seen.xyxy >= 0).all()
    assert (seen.xyxy <= side).all()
    assert (seen.xyxy[:, :2] < seen.xyxy[:, 2:]).all()
    rows, columns = np.nonzero(mask.numpy() == 2)
    if len(rows):
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(seen.xyxy - drawn).max() <= 1 + 1e-4
    else:  # too thin for a pixel of the view
        assert all((box[2:] - box[:2]).min() <= 1 for box in seen.xyxy)


def test_a_box_outside_the_crop_is_left_out() -> None:
    rows = [((0, 0, 4, 4), 1, False), ((36, 0, 40, 40), 2, True), ((0, 10, 40, 12), 3, False)]
    image, target = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    _, _, seen = training_view(image, target, 16, "native", PLAIN, np.random.default_rng(3), Boxes.of(rows))
    whole = [training_view(image, target, 16, "native", PLAIN, np.random.default_rng(3), Boxes.of([row]))[2] for row in rows]
    assert seen.classes.tolist() == [int(class_id) for each in whole for class_id in each.classes]
    assert len(seen) < 3


def test_boxes_change_no_draw() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    boxes, target = _drawn((5, 6, 20, 30), (40, 50))
    views = [training_view(image, target, 24, "fit", Augmentation(), np.random.default_rng(1), each) for each in (None, boxes)]
    assert torch.equal(views[0][0], views[1][0])
    assert torch.equal(views[0][1], views[1][1])


def test_no_tensor_travels_where_shared_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = restrict(load_dataset(make_voc(tmp_path / "data"), "train"), dict.fromkeys("abcd", "masks")).samples
    views = TrainingViews(
        samples, Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store")), Schedule(size=48, augment=PLAIN), 0
    )
    needed = 3 * 4 * 4 * 5 * 48**2  # three processes, four batches of four images, five bytes a pixel
    found = []
    for free in (2 * needed, 2 * needed - 1):
        monkeypatch.setattr("mixsup.engine.batches.shared_memory", lambda free=free: free)
        loader = training_loader(views, Draws(["masks"] * 4, 4, 0, 1, 0), 3, pin=False)
        batch = loader.collate_fn([views[(index, 0)] for index in range(4)])
        found.append([name for name, value in batch.items() if isinstance(value, torch.Tensor)])
    assert found == [["image", "target"], []]


def test_a_batch_shows_each_image_what_its_kind_allows(tmp_path: Path) -> None:
    dataset = load_dataset(make_voc(tmp_path / "data"), "train")
    kinds: dict[str, LabelKind] = {"a": "masks", "b": "boxes", "c": "tags", "d": "boxes"}
    samples = restrict(dataset, kinds).samples
    views = TrainingViews(
        samples, Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store")), Schedule(size=48, augment=PLAIN), 0
    )
    (batch,) = training_loader(views, Draws(["masks"] * 4, 4, 0, 1, 0), 0, pin=False)
    as_tensors(batch, torch.device("cpu"))
    at = {key: index for index, key in enumerate(batch["id"])}
    assert {key: batch["kind"][index] for key, index in at.items()} == kinds
    assert {key: len(batch["boxes"][index]) for key, index in at.items()} == {"a": 0, "b": 2, "c": 0, "d": 0}
    assert {key: batch["tags"][index] for key, index in at.items()} == {"a": [], "b": [1, 3], "c": [2], "d": []}
    assert batch["box_classes"][at["b"]].tolist() == [3, 1]
    assert (batch["boxes"][at["b"]].dtype, batch["box_crowd"][at["b"]].dtype) == (torch.float32, torch.bool)
    tagged = batch["target"][at["c"]]
    assert set(tagged.unique().tolist()) == {0, 255}  # a placeholder, and the padding of 40 x 30 pixels
    assert int((tagged == 0).sum()) == 40 * 30
