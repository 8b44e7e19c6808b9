"""The permutohedral lattice on the CPU (Adams, Baek and Davis 2010): Gaussian filtering in any number of dimensions, in time linear in the pixels.

Pixels are points in a space of d features (position and colour, each divided by its standard deviation). The lattice cuts that space into simplices; a
pixel spreads its value over the d + 1 corners of its simplex (splat), each corner mixes with its neighbours along d + 1 axes (blur), and the pixel
reads its corners again (slice). Only corners that some pixel touches exist; they live in a hash table.

What makes it fast: a corner's coordinates are packed into one integer, so that a neighbour along an axis lies at a constant distance; corners are numbered in
the order in which the rows of the image meet them, so that memory is read nearly in order; and the splat runs in a fixed number of strips with sums of
their own, so that cores do not meet and the result does not depend on how many of them there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import get_num_threads, prange

from mixsup.compiling import njit
from mixsup.data.sample import Float32, Int64
from mixsup.errors import MixsupError

Float64 = np.ndarray[Any, np.dtype[np.float64]]

_STRIPS = 4  # of the splat; more would cost more in adding up than they win
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads packed coordinates over the hash table


@dataclass(frozen=True)
class Lattice:
    """The lattice of one image.

    Attributes:
        corners: N×(d+1) int32, the corners of each pixel's simplex, 0..M-1.
        weights: N×(d+1) float32, barycentric coordinates; each row sums to 1.
        neighbours: (d+1)×M×2 int32, the corners before and after each corner on each axis; M where there is none.
    """

    corners: np.ndarray[Any, np.dtype[np.int32]]
    weights: Float32
    neighbours: np.ndarray[Any, np.dtype[np.int32]]

    @staticmethod
    def of(features: Float32) -> Lattice:
        """Builds the lattice.

        Args:
            features: N×d float32; the filter's kernel is exp(-|f_i - f_j|² / 2).

        Raises:
            MixsupError: the features span more cells than an integer can number (standard deviations far too small).
        """
        count, dimensions = features.shape
        scale = coordinate_scale(dimensions)
        low, stride = packing(_extent(features).astype(np.float64) * scale)
        corners = np.empty((count, dimensions + 1), np.int32)
        weights = np.empty((count, dimensions + 1), np.float32)
        strips = max(1, min(get_num_threads(), count // 1024))
        known = np.empty(count * (dimensions + 1), np.int64)  # packed coordinates by number; most of it is never touched
        totals = np.zeros(strips, np.int64)
        _number(features, scale, low, stride, corners, weights, known, totals)
        table, merged = _merge(corners, known, totals)
        return Lattice(corners, weights, _link(table, merged, stride))

    def filter(self, values: Float32) -> Float32:
        """Filters N×C values; returns N×C float32, up to a constant factor that symmetric normalisation cancels."""
        out = np.empty_like(values)
        cells = self.splat(values, np.ones((len(values), 1), np.float32), self.room(values.shape[1]))
        _slice(cells, self.corners, self.weights, out)
        return out

    def room(self, channels: int) -> Float32:
        """Memory for `splat`, S×(M+1)×C float32; to be kept between calls, because fresh memory costs as much as the work in it."""
        return np.zeros((_STRIPS, self.neighbours.shape[1] + 1, channels), np.float32)

    def splat(self, values: Float32, factors: Float32, room: Float32) -> Float32:
        """Splats N×C values times N×1 factors, and blurs them: (M+1)×C float32 in `room`, the last row is zero."""
        one = values.shape[1] == 1
        (_splat_one if one else _splat)(values, factors[:, 0], self.corners, self.weights, room)
        cells: Float32 = room[0]
        other: Float32 = room[1]
        other[-1] = 0
        for axis in range(self.neighbours.shape[0]):
            (_blur_one if one else _blur)(cells, self.neighbours[axis], other)
            cells, other = other, cells
        return cells


def coordinate_scale(dimensions: int) -> Float32:
    """Factors that bring features of standard deviation 1 to the lattice, whose own blur has variance 2/3 (d+1)²."""
    index = np.arange(dimensions)
    return np.asarray(np.sqrt(2 / 3) * (dimensions + 1) / np.sqrt((index + 1) * (index + 2)), np.float32)


def packing(ends: Float64) -> tuple[Int64, Int64]:
    """The lowest coordinate and the stride of each dimension, so that coordinates and their neighbours pack into one integer.

    Args:
        ends: 2×d, the lowest and highest scaled feature.
    """
    dimensions = ends.shape[1]
    # Coordinate i of the lattice is a sum of features: sum over j >= i, less i times the one before. Its bounds follow from theirs.
    low, high = np.zeros(dimensions), np.zeros(dimensions)
    for i in range(dimensions):
        low[i] += ends[0, i:].sum()
        high[i] += ends[1, i:].sum()
        if i > 0:
            low[i] -= i * ends[1, i - 1]
            high[i] -= i * ends[0, i - 1]
    margin = 3 * (dimensions + 1)  # rounding to the simplex, its corners, and the corners' neighbours
    first = np.floor(low).astype(np.int64) - margin
    sizes = np.ceil(high).astype(np.int64) + margin - first + 1
    if np.prod(sizes.astype(np.float64)) >= 2.0**62:
        raise MixsupError("CRF: the standard deviations are too small for an image of this size; raise theta_alpha or theta_beta")
    return first, np.concatenate([[1], np.cumprod(sizes[:-1])]).astype(np.int64)


def gaussian_taps(deviation: float, longest: int) -> Float32:
    """exp(-x²/2σ²) at x = 0, 1, ..., 3n: one half of the smoothness kernel, up to four deviations or the image's side."""
    radius = 3 * int(np.ceil(min(4 * deviation, longest) / 3))
    return np.asarray(np.exp(-0.5 * (np.arange(radius + 1) / deviation) ** 2), np.float32)


@njit()
def _extent(features: Any) -> Any:  # pragma: no cover
    """2×d, the lowest and highest value of each feature (numpy's reduction over the long axis is many times slower)."""
    ends = np.empty((2, features.shape[1]), features.dtype)
    for j in range(features.shape[1]):
        ends[0, j] = ends[1, j] = features[0, j]
    for pixel in range(len(features)):
        for j in range(features.shape[1]):
            value = features[pixel, j]
            ends[0, j] = min(ends[0, j], value)
            ends[1, j] = max(ends[1, j], value)
    return ends


@njit(parallel=True, fastmath=True)
def _number(
    features: Any, scale: Any, low: Any, stride: Any, corners: Any, weights: Any, known: Any, totals: Any
) -> None:  # pragma: no cover
    """Locates the pixels of each strip of the image and numbers their corners within the strip."""
    count, width = corners.shape
    strips = len(totals)
    for strip in prange(strips):
        start, stop = strip * count // strips, (strip + 1) * count // strips
        part = known[start * width : stop * width]
        totals[strip] = _number_strip(features[start:stop], scale, low, stride, corners[start:stop], weights[start:stop], part)


@njit(fastmath=True)
def _number_strip(features: Any, scale: Any, low: Any, stride: Any, corners: Any, weights: Any, known: Any) -> int:  # pragma: no cover
    """Barycentric coordinates, and the corners numbered in the order in which they are met; returns how many there are."""
    count, d = features.shape
    every = stride.sum()
    elevated = np.empty(d + 1, np.float32)
    nearest = np.empty(d + 1, np.int32)
    rank = np.empty(d + 1, np.int32)
    place = np.empty(d + 1, np.int32)
    bary = np.empty(d + 2, np.float32)
    last_key = np.full(d + 1, -1, np.int64)
    table = np.full(1 << 16, -1, np.int32)
    shift, total = np.uint64(48), 0
    for pixel in range(count):
        # Into the hyperplane of d + 1 coordinates that sum to 0.
        over = np.float32(0)
        for j in range(d, 0, -1):
            value = features[pixel, j - 1] * scale[j - 1]
            elevated[j] = over - j * value
            over += value
        elevated[0] = over
        # The nearest point whose coordinates are multiples of d + 1 ...
        excess = 0
        for i in range(d + 1):
            rounded = np.int32(np.floor(elevated[i] / np.float32(d + 1) + np.float32(0.5)))
            nearest[i] = rounded * (d + 1)
            excess += rounded
            rank[i] = 0
        # ... and the order of the differences to it say which simplex this is.
        for i in range(d):
            difference = elevated[i] - nearest[i]
            for j in range(i + 1, d + 1):
                less = difference < elevated[j] - nearest[j]
                rank[i] += less
                rank[j] += not less
        for i in range(d + 1):
            rank[i] += excess
            if rank[i] < 0:
                rank[i] += d + 1
                nearest[i] += d + 1
            elif rank[i] > d:
                rank[i] -= d + 1
                nearest[i] -= d + 1
            place[rank[i]] = i
            bary[i] = 0
        bary[d + 1] = 0
        for i in range(d + 1):
            share = (elevated[i] - nearest[i]) / np.float32(d + 1)
            bary[d - rank[i]] += share
            bary[d + 1 - rank[i]] -= share
        bary[0] += np.float32(1) + bary[d + 1]
        # Corner r has r more in every coordinate, but d + 1 less in the r coordinates of the highest ranks.
        key = np.int64(0)
        for i in range(d):
            key += (nearest[i] - low[i]) * stride[i]
        for r in range(d + 1):
            if r > 0:
                key += every
                moved = place[d - r + 1]
                if moved < d:
                    key -= (d + 1) * stride[moved]
            weights[pixel, r] = bary[r]
            if key == last_key[r]:  # more often than not the pixel to the left has the same corner
                corners[pixel, r] = corners[pixel - 1, r]
                continue
            last_key[r] = key
            slot = _find(key, table, known, shift)
            number = table[slot]
            if number < 0:
                number = total
                table[slot] = number
                known[total] = key
                total += 1
                if 2 * total >= len(table):
                    table = _index(known[:total])
                    shift = np.uint64(64 - _bits(len(table)))
            corners[pixel, r] = number
    return total


@njit(inline="always")
def _find(key: Any, table: Any, known: Any, shift: Any) -> Any:  # pragma: no cover
    """The slot of a key in the hash table, or the free slot where it belongs (open addressing)."""
    slot = np.int64((np.uint64(key) * _MULTIPLIER) >> shift)
    while table[slot] >= 0 and known[table[slot]] != key:
        slot = (slot + 1) & (len(table) - 1)
    return slot


@njit()
def _bits(length: int) -> int:  # pragma: no cover
    bits = 0
    while (1 << bits) < length:
        bits += 1
    return bits


@njit()
def _index(known: Any) -> Any:  # pragma: no cover
    """The hash table of given keys, at most a quarter full."""
    bits = _bits(4 * len(known))
    table = np.full(1 << bits, -1, np.int32)
    shift = np.uint64(64 - bits)
    for number in range(len(known)):
        table[_find(known[number], table, known, shift)] = number
    return table


@njit(parallel=True)
def _merge(corners: Any, known: Any, totals: Any) -> tuple[Any, Any]:  # pragma: no cover
    """One numbering for all strips; returns its hash table and its keys."""
    count, width = corners.shape
    strips = len(totals)
    merged = np.empty(totals.sum(), np.int64)
    total = totals[0]
    for number in range(total):
        merged[number] = known[number]
    table = np.full(1 << _bits(4 * len(merged)), -1, np.int32)
    shift = np.uint64(64 - _bits(len(table)))
    for number in range(total):
        table[_find(merged[number], table, merged, shift)] = number
    for strip in range(1, strips):
        first = strip * count // strips * width
        for index in range(first, first + totals[strip]):
            slot = _find(known[index], table, merged, shift)
            if table[slot] < 0:
                table[slot] = total
                merged[total] = known[index]
                total += 1
            known[index] = table[slot]  # from here on the number of the key, not the key
    for strip in prange(1, strips):
        start, stop = strip * count // strips, (strip + 1) * count // strips
        for pixel in range(start, stop):
            for r in range(width):
                corners[pixel, r] = known[start * width + corners[pixel, r]]
    return table, merged[:total]


@njit(parallel=True)
def _link(table: Any, known: Any, stride: Any) -> Any:  # pragma: no cover
    """The neighbours of each corner: one more in every coordinate, d less in that of the axis."""
    total, d = len(known), len(stride)
    shift = np.uint64(64 - _bits(len(table)))
    neighbours = np.full((d + 1, total, 2), total, np.int32)
    for axis in prange(d + 1):
        step = stride.sum()
        if axis < d:
            step -= (d + 1) * stride[axis]
        for number in range(total):
            other = table[_find(known[number] + step, table, known, shift)]
            if other >= 0:
                neighbours[axis, number, 1] = other
                neighbours[axis, other, 0] = number
    return neighbours


@njit(parallel=True, fastmath=True)
def _splat(values: Any, factors: Any, corners: Any, weights: Any, strips: Any) -> None:  # pragma: no cover
    count, width = corners.shape
    number, rows, channels = strips.shape
    for strip in prange(number):
        own = strips[strip]
        own[:] = 0
        for pixel in range(strip * count // number, (strip + 1) * count // number):
            for r in range(width):
                corner = corners[pixel, r]
                weight = weights[pixel, r] * factors[pixel]
                for c in range(channels):
                    own[corner, c] += weight * values[pixel, c]
    for corner in prange(rows):
        for strip in range(1, number):
            for c in range(channels):
                strips[0, corner, c] += strips[strip, corner, c]


@njit(parallel=True, fastmath=True)
def _splat_one(values: Any, factors: Any, corners: Any, weights: Any, strips: Any) -> None:  # pragma: no cover
    # One channel: the inner loop's overhead would be as dear as its work.
    count, width = corners.shape
    number, rows, _ = strips.shape
    for strip in prange(number):
        own = strips[strip, :, 0]
        own[:] = 0
        for pixel in range(strip * count // number, (strip + 1) * count // number):
            value = values[pixel, 0] * factors[pixel]
            for r in range(width):
                own[corners[pixel, r]] += weights[pixel, r] * value
    for corner in prange(rows):
        for strip in range(1, number):
            strips[0, corner, 0] += strips[strip, corner, 0]


@njit(parallel=True, fastmath=True)
def _blur(cells: Any, neighbours: Any, out: Any) -> None:  # pragma: no cover
    channels = cells.shape[1]
    for corner in prange(len(neighbours)):
        before, after = neighbours[corner, 0], neighbours[corner, 1]
        for c in range(channels):
            out[corner, c] = cells[corner, c] + np.float32(0.5) * (cells[before, c] + cells[after, c])


@njit(parallel=True, fastmath=True)
def _blur_one(cells: Any, neighbours: Any, out: Any) -> None:  # pragma: no cover
    for corner in prange(len(neighbours)):
        out[corner, 0] = cells[corner, 0] + np.float32(0.5) * (cells[neighbours[corner, 0], 0] + cells[neighbours[corner, 1], 0])


@njit(parallel=True, fastmath=True)
def _slice(cells: Any, corners: Any, weights: Any, out: Any) -> None:  # pragma: no cover
    count, width = corners.shape
    channels = cells.shape[1]
    for pixel in prange(count):
        for c in range(channels):
            out[pixel, c] = 0
        for r in range(width):
            corner = corners[pixel, r]
            weight = weights[pixel, r]
            for c in range(channels):
                out[pixel, c] += weight * cells[corner, c]
