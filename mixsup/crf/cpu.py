"""Mean field on the CPU: one pass over the pixels per iteration, on all cores.

The appearance kernel is filtered on the permutohedral lattice, the smoothness kernel by two one-dimensional convolutions, which is exact where a lattice
is not. The kernels are linear and probabilities sum to 1, so the message of the last label follows from those of the others: two labels cost one channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from mixsup.compiling import njit
from mixsup.crf.lattice import Lattice, gaussian_taps
from mixsup.crf.settings import FORBIDDEN, Settings, negligible_gap
from mixsup.data.sample import Float32, UInt8

_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST = np.float32(-40.0)  # exp() of less is 0: products of tiny numbers would soon be no normal floats, and slow tenfold


def mean_field(unary: Float32, image: UInt8, settings: Settings) -> Float32:
    """See `mixsup.crf.mean_field`; unary L×H×W finite, image H×W×3, contiguous."""
    return Kernels(image, settings)(unary)


class Kernels:
    """The kernels of one image, for any number of inferences.

    Args:
        image: H×W×3 uint8, contiguous.
        settings: of the CRF.
    """

    def __init__(self, image: UInt8, settings: Settings) -> None:
        self.size = height, width = image.shape[:2]
        count = height * width
        self.settings = settings
        self._weights = np.array([settings.w1, settings.w2], np.float32)
        self._lattice = Lattice.of(features(image, settings.theta_alpha, settings.theta_beta)) if settings.w1 > 0 else _no_lattice(count)
        self._taps = gaussian_taps(settings.theta_gamma, max(height, width)) if settings.w2 > 0 else np.zeros(1, np.float32)
        # Symmetric normalisation: each kernel k(i, j) becomes k(i, j) / sqrt(sum_j k(i, j) sum_i k(i, j)).
        self._norms = norms = np.ones((2, count, 1), np.float32)
        self._reach = np.zeros((count, 1), np.float32)
        for index in np.flatnonzero(self._weights):
            norms[index] = 1 / np.sqrt(self._filter(int(index), np.ones((count, 1), np.float32)) + np.float32(1e-20))
            self._reach += self._weights[index] * norms[index] * self._filter(int(index), norms[index])
        self._ratio = norms[0] / norms[1]

    def _filter(self, index: int, values: Float32) -> Float32:
        return self._lattice.filter(values) if index == 0 else smooth(values, self.size[1], self._taps)

    def __call__(self, unary: Float32) -> Float32:
        """The marginals; unary and result L×H×W float32, energies at most `FORBIDDEN`."""
        out = np.zeros_like(unary)
        lowest = unary.min(axis=0)
        gap = np.array([(energy - lowest).min() for energy in unary])
        kept = np.flatnonzero(gap < negligible_gap(float(self._reach.max()), self.settings.negligible))
        if len(kept) == 1:
            out[kept] = 1
            return out
        energies = np.ascontiguousarray(unary[kept].reshape(len(kept), -1).T)  # N×L
        # All but the last label's probabilities times the smoothness kernel's norm; that of the appearance kernel is reached by their ratio.
        values, other = (np.empty((len(energies), len(kept) - 1), np.float32) for _ in range(2))
        step = _update_two if len(kept) == 2 else _update
        lattice, appears = self._lattice, self.settings.w1 > 0
        constants = (lattice.corners, lattice.weights, self._norms[0, :, 0], self._norms[1, :, 0], self._reach[:, 0], self.size[1])
        room = lattice.room(values.shape[1])
        nothing = np.zeros_like(room[0])
        step(energies, nothing, other, np.zeros(1, np.float32), np.zeros(2, np.float32), *constants, values)  # softmax of the unary
        for _ in range(self.settings.iterations):
            cells = lattice.splat(values, self._ratio, room) if appears else nothing
            step(energies, cells, values, self._taps, self._weights, *constants, other)
            values, other = other, values
        values /= self._norms[1]
        for channel, label in enumerate(kept[:-1]):
            out[label] = values[:, channel].reshape(self.size)
        last = kept[-1]
        out[last] = np.where(unary[last] < FORBIDDEN, np.maximum(0, 1 - out.sum(axis=0)), 0)
        return out


def _no_lattice(count: int) -> Lattice:
    return Lattice(np.zeros((count, 0), np.int32), np.zeros((count, 0), np.float32), np.zeros((0, 0, 2), np.int32))


def smooth(values: Float32, width: int, taps: Float32) -> Float32:
    """The smoothness kernel alone: N×C values filtered with half a kernel of `taps`; outside the image is 0."""
    out = np.empty_like(values)
    _smooth(values.reshape(-1, width * values.shape[1]), taps, values.shape[1], out.reshape(-1, width * values.shape[1]))
    return out


@njit(parallel=True, fastmath=True)
def features(image: Any, theta_alpha: float, theta_beta: float) -> Any:  # pragma: no cover
    """N×5 float32: x and y over theta_alpha, the three colours over theta_beta."""
    height, width = image.shape[:2]
    out = np.empty((height * width, 5), np.float32)
    space, colour = np.float32(1 / theta_alpha), np.float32(1 / theta_beta)
    for y in prange(height):
        for x in range(width):
            pixel = y * width + x
            out[pixel, 0] = x * space
            out[pixel, 1] = y * space
            for c in range(3):
                out[pixel, 2 + c] = image[y, x, c] * colour
    return out


@njit(fastmath=True)
def _smooth_row(values: Any, y: int, taps: Any, channels: int, padded: Any, out: Any) -> None:  # pragma: no cover
    """One row of the smoothness kernel on H×(W·C) values: down the columns into a padded row, then along it.

    Three taps at a time: what limits a sum of long rows is reading and writing the sum.
    """
    height, length = values.shape
    radius = len(taps) - 1
    pad = radius * channels
    middle, nothing = padded[pad : pad + length], np.zeros(length, np.float32)
    for i in range(length):
        middle[i] = taps[0] * values[y, i]
    for t in range(1, radius, 3):
        a, b, c = taps[t], taps[t + 1], taps[t + 2]
        above1 = values[y - t] if y - t >= 0 else nothing
        above2 = values[y - t - 1] if y - t - 1 >= 0 else nothing
        above3 = values[y - t - 2] if y - t - 2 >= 0 else nothing
        below1 = values[y + t] if y + t < height else nothing
        below2 = values[y + t + 1] if y + t + 1 < height else nothing
        below3 = values[y + t + 2] if y + t + 2 < height else nothing
        for i in range(length):
            middle[i] += a * (above1[i] + below1[i]) + b * (above2[i] + below2[i]) + c * (above3[i] + below3[i])
    for i in range(length):
        out[i] = taps[0] * middle[i]
    for t in range(1, radius, 3):
        a, b, c = taps[t], taps[t + 1], taps[t + 2]
        left1, right1 = padded[pad - t * channels :], padded[pad + t * channels :]
        left2, right2 = padded[pad - (t + 1) * channels :], padded[pad + (t + 1) * channels :]
        left3, right3 = padded[pad - (t + 2) * channels :], padded[pad + (t + 2) * channels :]
        for i in range(length):
            out[i] += a * (left1[i] + right1[i]) + b * (left2[i] + right2[i]) + c * (left3[i] + right3[i])


@njit(parallel=True, fastmath=True)
def _smooth(values: Any, taps: Any, channels: int, out: Any) -> None:  # pragma: no cover
    for y in prange(len(values)):
        padded = np.zeros(values.shape[1] + 2 * (len(taps) - 1) * channels, np.float32)
        _smooth_row(values, np.int64(y), taps, channels, padded, out[y])


@njit(fastmath=True, inline="always")
def _exp(x: Any) -> Any:  # pragma: no cover
    """exp of a float32 that is at most 0, to one part in ten million; unlike the library's it is vectorised without an extra package."""
    seen = max(x, _LOWEST)
    whole = np.floor(seen * _LOG2E + np.float32(0.5))
    rest = seen - whole * _LN2_HIGH - whole * _LN2_LOW
    poly = np.float32(1.9875691500e-4)
    poly = poly * rest + np.float32(1.3981999507e-3)
    poly = poly * rest + np.float32(8.3334519073e-3)
    poly = poly * rest + np.float32(4.1665795894e-2)
    poly = poly * rest + np.float32(1.6666665459e-1)
    poly = poly * rest + np.float32(5.0000001201e-1)
    poly = poly * rest * rest + rest + np.float32(1)
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return poly * power if x > _LOWEST else np.float32(0)


@njit(parallel=True, fastmath=True)
def _update(
    energies: Any, cells: Any, values: Any, taps: Any, weights: Any,
    corners: Any, bary: Any, norm1: Any, norm2: Any, reach: Any, width: int, out: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """One iteration behind the splat, a row at a time: smooths, slices, adds both messages to the unary and takes the softmax."""
    count, labels = energies.shape
    last = labels - 1
    image = values.reshape(count // width, width * last)
    for y in prange(count // width):
        row = np.zeros(width * last, np.float32)
        if weights[1] > 0:
            _smooth_row(image, np.int64(y), taps, last, np.zeros(width * last + 2 * (len(taps) - 1) * last, np.float32), row)
        message = np.empty(last, np.float32)
        scores = np.empty((labels, width), np.float32)  # label by label, so that the exponentials are taken of many pixels at once
        for x in range(width):
            pixel = y * width + x
            for c in range(last):
                message[c] = 0
            for r in range(corners.shape[1]):
                corner, share = corners[pixel, r], bary[pixel, r]
                for c in range(last):
                    message[c] += share * cells[corner, c]
            first, second = weights[0] * norm1[pixel], weights[1] * norm2[pixel]
            rest = reach[pixel] if weights[0] + weights[1] > 0 else np.float32(0)
            for c in range(last):
                value = first * message[c] + second * row[x * last + c]
                rest -= value
                scores[c, x] = value - energies[pixel, c]
            scores[last, x] = rest - energies[pixel, last]
        highest = scores[0].copy()
        for c in range(1, labels):
            for x in range(width):
                highest[x] = max(highest[x], scores[c, x])
        total = np.zeros(width, np.float32)
        for c in range(labels):
            for x in range(width):
                scores[c, x] = _exp(scores[c, x] - highest[x])
                total[x] += scores[c, x]
        for x in range(width):
            pixel = y * width + x
            factor = norm2[pixel] / total[x]
            for c in range(last):
                out[pixel, c] = scores[c, x] * factor


@njit(parallel=True, fastmath=True)
def _update_two(
    energies: Any, cells: Any, values: Any, taps: Any, weights: Any,
    corners: Any, bary: Any, norm1: Any, norm2: Any, reach: Any, width: int, out: Any,
) -> None:  # pragma: no cover  # fmt: skip
    """`_update` for two labels: the softmax is a sigmoid of the difference."""
    count, channels = values.shape
    image = values.reshape(count // width, width)
    for y in prange(count // width):
        row = np.zeros(width, np.float32)
        if weights[1] > 0:
            _smooth_row(image, np.int64(y), taps, channels, np.zeros(width + 2 * (len(taps) - 1), np.float32), row)
        for x in range(width):
            pixel = y * width + x
            message = np.float32(0)
            for r in range(corners.shape[1]):
                message += bary[pixel, r] * cells[corners[pixel, r], 0]
            message = weights[0] * norm1[pixel] * message + weights[1] * norm2[pixel] * row[x]
            rest = reach[pixel] - message if weights[0] + weights[1] > 0 else np.float32(0)
            difference = (message - energies[pixel, 0]) - (rest - energies[pixel, 1])
            small = _exp(-abs(difference))
            share = np.float32(1) / (np.float32(1) + small)
            if difference < 0:
                share = small * share
            out[pixel, 0] = norm2[pixel] * share
