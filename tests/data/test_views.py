"""Training views: what the target says lies where the picture shows it."""

from __future__ import annotations

import numpy as np
import pytest

from mixsup.data.augment import training_view
from mixsup.data.sample import UInt8
from mixsup.recipe import Augmentation


@pytest.mark.parametrize("size", [(400, 265), (281, 500), (90, 120), (1600, 1200)])
@pytest.mark.parametrize("seed", range(3))
def test_the_target_lies_on_the_picture(size: tuple[int, int], seed: int) -> None:
    """The middle of a disc is the same in both, to a fifth of a pixel (half a pixel is what it must not be), whatever the factor between image and view."""
    rows, columns = np.indices(size)
    disc = ((rows - 0.49 * size[0]) ** 2 + (columns - 0.52 * size[1]) ** 2 < (0.2 * min(size)) ** 2).astype(np.uint8)
    image: UInt8 = np.repeat(255 * disc[..., None], 3, axis=2)
    settings = Augmentation(scale=(0.75, 1.5), colour=0.0, flip=0.0)
    view, target, _ = training_view(image, disc, 192, "fit", settings, np.random.default_rng(seed))
    shown, labels = view.numpy()[0].astype(float), target.numpy()
    inside = labels != 255
    assert middle(np.where(inside, shown, 0)) == pytest.approx(middle(np.where(inside, labels, 0)), abs=0.2)


def middle(weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
    rows, columns = np.indices(weights.shape)
    return float((rows * weights).sum() / weights.sum()), float((columns * weights).sum() / weights.sum())
