"""The CRF against the exact sums over all pairs of pixels, against pydensecrf where it is installed, and its two backends against each other."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixsup.crf import gpu, mean_field
from mixsup.crf.lattice import Lattice
from mixsup.crf.mean_field import _checked_tensor
from mixsup.crf.settings import Settings
from mixsup.errors import MixsupError

PARAMETERS: dict[str, Any] = {"w1": 4.0, "theta_alpha": 10.0, "theta_beta": 20.0, "w2": 2.0, "theta_gamma": 2.0, "iterations": 5}


def scene(height: int, width: int, labels: int, seed: int = 0) -> tuple[Any, Any]:
    """Flat regions of noisy colours, and energies of which two thirds say the region's label."""
    generator = np.random.default_rng(seed)
    regions = cv2.resize(generator.integers(0, labels, (4, 5), dtype=np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    colours = generator.integers(30, 225, (labels, 3))
    image = np.clip(colours[regions] + generator.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
    said = np.where(generator.random((height, width)) < 2 / 3, regions, generator.integers(0, labels, (height, width)))
    unary = np.full((labels, height, width), -np.log(0.4 / labels), np.float32)
    np.put_along_axis(unary, said[None].astype(np.int64), np.float32(-np.log(0.6)), axis=0)
    return image, unary


def kernels(image: Any, theta_alpha: float, theta_beta: float, theta_gamma: float) -> list[Any]:
    """Both kernels between all pairs of pixels, normalised symmetrically."""
    height, width = image.shape[:2]
    place = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2).astype(np.float64)
    colour = image.reshape(-1, 3).astype(np.float64)
    far = ((place[:, None] - place[None]) ** 2).sum(-1)
    unlike = ((colour[:, None] - colour[None]) ** 2).sum(-1)
    both = [np.exp(-far / (2 * theta_alpha**2) - unlike / (2 * theta_beta**2)), np.exp(-far / (2 * theta_gamma**2))]
    return [kernel / np.sqrt(np.outer(kernel.sum(0), kernel.sum(1))) for kernel in both]


def exact(unary: Any, image: Any, *, iterations: int, w1: float, w2: float, **thetas: float) -> Any:
    """Mean field with the sums over all pairs, as the paper writes it (algorithm 1)."""
    one, two = kernels(image, **thetas)
    flat = unary.reshape(len(unary), -1).astype(np.float64)

    def softmax(values: Any) -> Any:
        values = np.exp(values - values.max(axis=0))
        return values / values.sum(axis=0)

    current = softmax(-flat)
    for _ in range(iterations):
        current = softmax(-flat + current @ (w1 * one + w2 * two))
    return current.reshape(unary.shape)


def test_the_exact_sums() -> None:
    for seed, labels in enumerate((2, 3, 6)):
        image, unary = scene(40, 40, labels, seed)
        found, wanted = mean_field(unary, image, **PARAMETERS), exact(unary, image, **PARAMETERS)
        # The lattice's own error; benchmarks/crf.py states it on photographs.
        assert np.abs(found - wanted).mean() < 0.02
        assert (found.argmax(0) == wanted.argmax(0)).mean() > 0.98


def test_smoothness_alone_is_exact() -> None:
    image, unary = scene(40, 33, 3)
    parameters = {**PARAMETERS, "w1": 0.0}
    assert np.abs(mean_field(unary, image, **parameters) - exact(unary, image, **parameters)).max() < 2e-3


def test_the_filter_on_the_lattice() -> None:
    image, _ = scene(40, 40, 4)
    rows, columns = np.mgrid[:40, :40]
    features = np.concatenate([np.stack([columns, rows], -1) / 10, image / 20], axis=-1).reshape(-1, 5).astype(np.float32)
    lattice = Lattice.of(features)
    assert np.allclose(lattice.weights.sum(axis=1), 1, atol=1e-5)
    assert lattice.weights.min() > -1e-4
    values = np.random.default_rng(1).random((1600, 3), np.float32)
    kernel = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
    found, wanted = (run(values) / run(np.ones((1600, 1), np.float32)) for run in (lattice.filter, lambda v: kernel @ v))
    assert np.abs(found - wanted).mean() < 0.02  # of weighted means of values between 0 and 1
    alone = np.concatenate([lattice.filter(np.ascontiguousarray(values[:, [c]])) for c in range(3)], axis=1)
    assert np.allclose(alone, lattice.filter(values), rtol=1e-5)


def test_pydensecrf() -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 has no wheel; where a compiler built it, it is compared")
    image, unary = scene(120, 160, 4)
    crf = densecrf.DenseCRF2D(160, 120, 4)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(4, -1)))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    wanted = np.array(crf.inference(10)).reshape(unary.shape)
    found = mean_field(unary, image)
    assert (found.argmax(0) == wanted.argmax(0)).mean() >= 0.995
    assert np.abs(found - wanted).mean() <= 0.01


@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("change", [{}, {"w1": 0.0}, {"w2": 0.0}, {"w1": 0.0, "w2": 0.0}, {"iterations": 0}])
def test_torch_gives_the_same(labels: int, change: dict[str, Any]) -> None:
    image, unary = scene(30, 45, labels)
    parameters = {**PARAMETERS, **change}
    on_gpu = gpu.mean_field(torch.from_numpy(unary), torch.from_numpy(image), Settings(**parameters, negligible=1e-4))
    found = mean_field(unary, image, **parameters)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(axis=0), 1, atol=1e-5)
    assert np.allclose(on_gpu.numpy(), found, atol=2e-4)
    tensor = mean_field(torch.from_numpy(unary), torch.from_numpy(image), **parameters)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_gives_the_same() -> None:
    image, unary = scene(120, 160, 5)
    found = mean_field(torch.from_numpy(unary).cuda(), torch.from_numpy(image).cuda())
    assert found.is_cuda
    assert np.allclose(found.cpu().numpy(), mean_field(unary, image), atol=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 1000))
def test_any_size(height: int, width: int, labels: int, seed: int) -> None:
    image, unary = scene(height, width, labels, seed)
    parameters = {**PARAMETERS, "iterations": 1}  # more of them would amplify the lattice's error where two labels are nearly even
    found = mean_field(unary, image, **parameters)
    assert np.allclose(found.sum(axis=0), 1, atol=1e-5)
    assert np.abs(found - exact(unary, image, **parameters)).mean() < 0.1


def test_labels_that_cannot_win_take_no_part() -> None:
    image, unary = scene(40, 50, 3)
    unlikely = np.concatenate([unary, np.full((2, 40, 50), 14.0, np.float32)])
    unlikely[4] = np.inf
    all_take_part, pruned = mean_field(unlikely, image, negligible=0.0, **PARAMETERS), mean_field(unlikely, image, **PARAMETERS)
    assert not pruned[3:].any()
    assert 0 < all_take_part[3].max() < 1e-4  # as the bound says
    assert np.abs(all_take_part - pruned).max() < 1e-3
    assert np.allclose(pruned[:3], mean_field(unary, image, **PARAMETERS), atol=1e-6)


def test_a_label_that_is_forbidden_somewhere_stays_out_there() -> None:
    image, unary = scene(30, 30, 3)
    unary[2, :15] = np.inf
    found = mean_field(unary, image)
    assert found[2, :15].max() == 0
    assert found[2, 15:].max() > 0


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_what_all_energies_of_a_pixel_share_says_nothing(kind: Any) -> None:
    image, unary = scene(30, 40, 3)
    unary[2, :5] = np.inf
    expected = mean_field(unary, image, **PARAMETERS)
    for offset in (2e5, -1e4):
        assert np.abs(np.asarray(mean_field(kind(unary.astype(np.float64) + offset), image, **PARAMETERS)) - expected).max() < 1e-4
        assert _checked_tensor(torch.from_numpy(unary.astype(np.float64) + offset)).amin(dim=0).abs().max() < 1e-6


def test_bad_input() -> None:
    image, unary = scene(8, 9, 2)
    broken, certain, impossible = unary.copy(), unary.copy(), unary.copy()
    broken[0, 0, 0] = np.nan
    certain[0, 0, 0] = -np.inf
    impossible[:, 3, 3] = np.inf
    calls: list[tuple[Any, Any, dict[str, Any]]] = [
        (unary[:, :4], image, {}),
        (unary[0], image, {}),
        (unary, image.astype(np.float32), {}),
        (broken, image, {}),
        (certain, image, {}),
        (impossible, image, {}),
        (unary, image, {"theta_alpha": 0.0}),
        (unary, image, {"iterations": -1}),
        (unary, image, {"iterations": 2.5}),
        (unary, image, {"w1": float("nan")}),
        (unary, image, {"w1": "4"}),
        (unary.tolist(), image, {}),
        (unary, Image.fromarray(image), {}),
        (unary, image, {"theta_beta": 1e-5, "theta_alpha": 1e-5}),
    ]
    for energies, pixels, change in calls:
        with pytest.raises(MixsupError, match="CRF"):
            mean_field(energies, pixels, **change)
