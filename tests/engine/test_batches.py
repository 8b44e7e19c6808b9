"""Draws and views are a function of (seed, step) alone, and a view is what resizing the whole image would show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from mixsup.data import load_dataset
from mixsup.data.augment import fit_scale, training_view
from mixsup.data.budget import draw, restrict
from mixsup.data.derive import load_mask
from mixsup.engine.batches import Draws, Targets, TrainingViews, training_loader
from mixsup.masks import build_source, compose
from mixsup.masks.store import MaskStore
from mixsup.recipe import Augmentation, Schedule
from tests.data.make import make_voc

PLAIN = Augmentation(scale=(1.0, 1.0), flip=0.0, colour=0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 12), st.integers(0, 3))
def test_draws(count: int, batch: int, cut: int, seed: int) -> None:
    steps = 14
    whole = list(Draws(count, batch, 0, steps, seed))
    assert whole[cut:] == list(Draws(count, batch, cut, steps, seed))  # going on after a stop
    flat = [index for step in whole for index, _ in step]
    for epoch in range(len(flat) // count):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))  # each image once an epoch
    assert [number for step in whole for _, number in step] == list(range(steps * batch))


def test_processes_share_a_batch() -> None:
    whole = list(Draws(10, 6, 0, 5, 0))
    parts = [list(Draws(10, 6, 0, 5, 0, rank, 3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        assert [item for part in parts for item in part[step]] == batch


def _loader(folder: Path, workers: int) -> list[dict[str, object]]:
    dataset = load_dataset(make_voc(folder / "data") if not (folder / "data").exists() else folder / "data", "train")
    dataset = restrict(dataset, draw(dataset.samples, "boxes", 0))
    targets = Targets(4, build_source("rectangle"), MaskStore(folder / "store"))
    views = TrainingViews(dataset.samples, targets, Schedule(size=24), seed=3)
    return list(training_loader(views, Draws(len(views), 3, 0, 4, 3), workers, pin=False))


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    for one, two in zip(_loader(tmp_path, 0), _loader(tmp_path, 2), strict=True):
        assert one["id"] == two["id"]
        for key in ("image", "target"):
            first, second = one[key], two[key]
            assert isinstance(first, torch.Tensor)
            assert isinstance(second, torch.Tensor)
            assert torch.equal(first, second)


def test_targets(tmp_path: Path) -> None:
    dataset = load_dataset(make_voc(tmp_path / "data"), "train")
    targets = Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store"))
    for sample in restrict(dataset, dict.fromkeys((item.id for item in dataset.samples), "masks")).samples:
        assert np.array_equal(targets(sample), load_mask(sample, 4))
    for sample in restrict(dataset, dict.fromkeys((item.id for item in dataset.samples), "boxes")).samples:
        assert sample.boxes is not None
        made = build_source("rectangle")(np.zeros((*sample.size, 3), np.uint8), sample.boxes, sample)
        assert np.array_equal(targets(sample), compose(made))


def test_a_plain_view_is_a_crop() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    target = generator.integers(0, 4, (40, 50), dtype=np.uint8)
    for seed in range(5):
        view, mask = training_view(image, target, 40, "native", PLAIN, np.random.default_rng(seed))
        found = [left for left in range(11) if np.array_equal(view.permute(1, 2, 0).numpy(), image[:, left : left + 40])]
        assert len(found) == 1
        assert np.array_equal(mask.numpy(), target[:, found[0] : found[0] + 40])


def test_a_small_image_is_padded_with_void() -> None:
    image, target = np.full((10, 20, 3), 7, np.uint8), np.ones((10, 20), np.uint8)
    view, mask = training_view(image, target, 32, "fit", PLAIN, np.random.default_rng(1))
    assert view.shape == (3, 32, 32)
    assert (mask == 1).sum() == 200
    assert (mask == 255).sum() == 32 * 32 - 200
    assert (view[:, mask == 1] == 7).all()


def test_scaled_view_keeps_ids_and_resembles_the_resized_image() -> None:
    rows, columns = np.indices((64, 64))
    image = np.stack([rows * 4, columns * 4, rows * 0], -1).astype(np.uint8)
    target = np.where((rows // 16 + columns // 16) % 2, 3, 255).astype(np.uint8)
    settings = Augmentation(scale=(0.5, 0.5), flip=0.0, colour=0.0)
    view, mask = training_view(image, target, 32, "native", settings, np.random.default_rng(2))
    expected = functional.resize(torch.from_numpy(image).permute(2, 0, 1), [32, 32], antialias=True)
    assert (view.int() - expected.int()).abs().max() <= 1
    assert set(np.unique(mask)) == {3, 255}
    assert np.array_equal(mask.numpy(), target[1::2, 1::2])


def test_flip_mirrors_both() -> None:
    image, target = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    image[:, :4], target[:, :4] = 200, 2
    view, mask = training_view(image, target, 16, "native", Augmentation(scale=(1, 1), flip=1.0, colour=0.0), np.random.default_rng(0))
    assert (mask[:, -4:] == 2).all()
    assert (view[:, :, -4:] == 200).all()
    assert not mask[:, :12].any()


def test_colour_leaves_the_target_alone() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    target = generator.integers(0, 4, (16, 16), dtype=np.uint8)
    view, mask = training_view(image, target, 16, "native", Augmentation(scale=(1, 1), flip=0.0, colour=0.5), np.random.default_rng(0))
    assert np.array_equal(mask.numpy(), target)
    assert not np.array_equal(view.permute(1, 2, 0).numpy(), image)
    assert view.dtype == torch.uint8


def test_working_size() -> None:
    assert fit_scale((300, 400), 150, "fit") == 0.5
    assert fit_scale((300, 400), 600, "fit") == 1.0  # never enlarged
    assert fit_scale((300, 400), 150, "native") == 1.0
