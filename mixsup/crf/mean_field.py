"""Mean-field inference in a fully connected CRF (Krähenbühl and Koltun 2011)."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mixsup.crf.settings import FORBIDDEN, Settings
from mixsup.data.sample import Float32, UInt8
from mixsup.errors import MixsupError

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", "Float32", "torch.Tensor")

_NO_ENERGIES = "CRF: energies are NaN or -inf, or a pixel has no label with a finite energy; correct the unary"
_FAR = 100.0  # from 0: where a pixel's lowest energy is further, float32 has too few digits for what the others add to it
_ONE_AT_A_TIME = threading.Lock()  # numba's portable thread pool cannot be entered twice; each call uses all cores anyway


def mean_field(
    unary: Array,
    image: UInt8 | torch.Tensor,
    *,
    iterations: int = 10,
    w1: float = 10.0,
    theta_alpha: float = 80.0,
    theta_beta: float = 13.0,
    w2: float = 3.0,
    theta_gamma: float = 3.0,
    negligible: float = 1e-4,
) -> Array:
    """The marginals of the mean-field approximation.

    The energy of a labelling x is the sum of its unary energies and, over all pairs of pixels, of the Potts term [x_i ≠ x_j] k(i, j) with

        k(i, j) = w1 exp(-|p_i - p_j|² / 2 θα² - |I_i - I_j|² / 2 θβ²) + w2 exp(-|p_i - p_j|² / 2 θγ²),

    positions p in pixels and colours I from 0 to 255, each kernel normalised symmetrically (divided by the root of both pixels' sums). As in the
    authors' code a pixel also speaks to itself. The defaults are those that circulate with that code; pydensecrf calls θα, θβ, θγ `sxy`, `srgb`
    and `sxy`, and the weights `compat`. Numba runs on all cores for arrays and CPU tensors, torch on the GPU for CUDA tensors.

    Args:
        unary: L×H×W float energies, -log of probabilities; inf forbids a label.
        image: H×W×3 uint8.
        iterations: of the mean field; 0 gives the softmax of the unary.
        w1: weight of the appearance kernel; 0 leaves it out.
        theta_alpha: its standard deviation in pixels.
        theta_beta: its standard deviation in grey levels.
        w2: weight of the smoothness kernel; 0 leaves it out.
        theta_gamma: its standard deviation in pixels.
        negligible: labels that cannot reach this probability at any pixel, by a bound and not by a guess, take no part and come out as 0.

    Returns:
        L×H×W float32 probabilities that sum to 1 at each pixel, of the type of `unary` and on its device.

    Raises:
        MixsupError: shapes that do not fit, energies that are NaN or -inf or leave a pixel without a label, or a parameter outside its range.
    """
    settings = Settings(iterations, w1, theta_alpha, theta_beta, w2, theta_gamma, negligible)
    if not all(hasattr(given, "shape") and hasattr(given, "dtype") for given in (unary, image)):
        raise MixsupError(f"CRF: energies of type {type(unary).__name__}, an image of type {type(image).__name__}; give arrays or tensors")
    _check(tuple(unary.shape), tuple(image.shape), str(image.dtype))
    if isinstance(unary, np.ndarray):
        with _ONE_AT_A_TIME:
            return _on_cpu(unary, np.asarray(image), settings)
    import torch

    pixels = torch.as_tensor(image)
    if unary.device.type == "cuda":
        from mixsup.crf import gpu

        return gpu.mean_field(_checked_tensor(unary), pixels.to(unary.device), settings)
    with _ONE_AT_A_TIME:
        found = _on_cpu(_at_least_32_bits(unary).cpu().numpy(), pixels.cpu().numpy(), settings)
    return torch.from_numpy(found).to(unary.device)


def _on_cpu(unary: Float32, image: UInt8, settings: Settings) -> Float32:
    import numba

    from mixsup.crf import cpu  # first: where its kernels cannot be kept as usual, numba reads its settings anew

    # The default, OpenMP, waits by spinning and slows down tenfold where another process has a core; it also needs a system library.
    if "NUMBA_THREADING_LAYER" not in os.environ:
        numba.config.THREADING_LAYER = "workqueue"  # type: ignore[attr-defined]
    lowest = unary.min(axis=0)
    if not np.isfinite(lowest).all():
        raise MixsupError(_NO_ENERGIES)
    energies = np.array(unary - lowest.astype(np.float64) if np.abs(lowest).max() > _FAR else unary, np.float32, order="C")
    np.minimum(energies, FORBIDDEN, out=energies)
    return cpu.mean_field(energies, np.ascontiguousarray(image), settings)


def _checked_tensor(unary: torch.Tensor) -> torch.Tensor:
    energies = _at_least_32_bits(unary)
    lowest = energies.amin(dim=0)
    if not bool(lowest.isfinite().all()):
        raise MixsupError(_NO_ENERGIES)
    if bool(lowest.abs().max() > _FAR):
        energies = energies - lowest.double()
    return energies.float().clamp(max=FORBIDDEN)


def _at_least_32_bits(unary: torch.Tensor) -> torch.Tensor:
    return unary.detach() if unary.element_size() == 8 else unary.detach().float()


def _check(unary: tuple[int, ...], image: tuple[int, ...], kind: str) -> None:
    if len(unary) != 3 or unary[0] < 1 or len(image) != 3 or image[2] != 3 or unary[1:] != image[:2] or 0 in image:
        raise MixsupError(f"CRF: energies of shape {unary} and an image of shape {image}; they must be L x H x W and H x W x 3")
    if kind not in ("uint8", "torch.uint8"):
        raise MixsupError(f"CRF: an image of type {kind}; give uint8, 0 to 255")
