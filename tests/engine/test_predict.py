"""Prediction: tiles, strips, scales and the mirror give what the whole picture would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mixsup.engine.predict import Predictor, upsampled_argmax
from mixsup.errors import MixsupError

CPU = torch.device("cpu")


def pointwise(images: Tensor) -> dict[str, Tensor]:
    """Scores of a pixel from its own colours alone."""
    return {"scores": torch.stack([images[:, 0], images[:, 1], images[:, 2], 1 - images.sum(1)], 1) * 10}


def local(images: Tensor) -> dict[str, Tensor]:
    """Scores that see 7 pixels around, as a network does; zeros outside."""
    return pointwise(functional.avg_pool2d(images, 7, stride=1, padding=3))


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 500))
def test_strips_equal_the_whole(rows: int, columns: int, height: int, width: int, at_once: int) -> None:
    scores = torch.rand(3, rows, columns, generator=torch.Generator().manual_seed(rows * 10 + columns))
    whole = functional.interpolate(scores[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    found = upsampled_argmax(scores, (height, width), at_once)
    best = whole.max(0).values
    chosen = whole.gather(0, found[None].long())[0]
    assert torch.allclose(best, chosen, atol=1e-5)  # equal up to ties


@pytest.mark.parametrize("size", [(70, 90), (64, 200), (33, 31)])
def test_tiles_equal_the_whole(size: tuple[int, int]) -> None:
    image = picture(*size)
    whole = Predictor(local, 16, "native", CPU)(image)
    tiled = Predictor(local, 16, "native", CPU, tile=32, margin=8)(image)
    assert np.array_equal(whole, tiled)


def test_tiles_bound_what_the_network_sees() -> None:
    seen: list[tuple[int, int]] = []

    def spy(images: Tensor) -> dict[str, Tensor]:
        seen.append((images.shape[-2], images.shape[-1]))
        return pointwise(images)

    Predictor(spy, 16, "native", CPU, tile=64, margin=8)(picture(500, 700))
    assert len(seen) > 1
    assert max(max(size) for size in seen) <= 64 + 16


def test_fit_predicts_at_the_working_size_and_answers_at_the_images() -> None:
    seen: list[tuple[int, int]] = []

    def spy(images: Tensor) -> dict[str, Tensor]:
        seen.append((images.shape[-2], images.shape[-1]))
        return pointwise(images)

    assert Predictor(spy, 50, "fit", CPU)(picture(100, 200)).shape == (100, 200)
    assert seen == [(50, 100)]


def test_scales_and_flip_are_averaged() -> None:
    image = picture(40, 60)
    predictor = Predictor(pointwise, 40, "native", CPU, scales=(0.5, 1.0), flip=True)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    total = torch.zeros(4, 40, 60)
    for size in ((20, 30), (40, 60)):
        view = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True) if size != (40, 60) else pixels
        for mirrored in (False, True):
            found = pointwise((view.flip(-1) if mirrored else view) / 255)["scores"].softmax(1)
            found = found.flip(-1) if mirrored else found
            total += functional.interpolate(found, size=(40, 60), mode="bilinear")[0]
    assert np.array_equal(predictor(image), total.argmax(0).numpy())


def test_scores_of_images_of_one_size() -> None:
    images = [picture(40, 60), picture(40, 60)[::-1].copy()]
    predictor = Predictor(pointwise, 20, "fit", CPU)
    found = predictor.scores(images)
    assert found.shape == (2, 4, 20, 30)
    assert np.allclose(found.sum(1), 1, atol=1e-5)
    assert np.allclose(found[1], predictor.scores(images[1:])[0], atol=1e-6)
    assert predictor.scores(images, 0.5).shape == (2, 4, 10, 15)
    # A photograph at its own size stays within the memory of a tile.
    assert Predictor(pointwise, 20, "native", CPU, tile=64).scores([picture(200, 400)]).shape == (1, 4, 32, 64)


def test_one_pixel() -> None:
    assert Predictor(pointwise, 16, "fit", CPU)(picture(1, 1)).shape == (1, 1)


def test_bad_scales() -> None:
    for scales in ((), (0.0,), (-1.0,), (100.0,)):
        with pytest.raises(MixsupError, match="--scales"):
            Predictor(pointwise, 16, "fit", CPU, scales=scales)
