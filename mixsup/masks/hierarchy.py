"""Boundary strength, superpixels and the ultrametric contour map of an image, without learning.

Three steps, after gPb-OWT-UCM (Arbeláez 2011), with what can be had without training and in a fraction of a second:

1. Boundary strength (`boundaries.py`).
2. Superpixels: the basins of that strength, merged (Ward's criterion on colour, plus the contour between) until `regions` are left
   (`merging.py`).
3. `Regions.tree`: the two neighbours that differ least are merged, over and over, by the mean strength along their common contour, colour and
   texture. A merge is never lower than those below it, so altitudes are an ultrametric: a contour lasts until the threshold of its altitude.

Photographs above `max_side` are reduced and the labels enlarged, so time and memory have a bound. Constants were chosen on 20 training images of CCP
and 20 of the even-numbered images of coco128, by the IoU of the best node of the tree with each object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from skimage import segmentation

from mixsup.data.sample import Bool, Float32, Int64, UInt8
from mixsup.masks.boundaries import CHROMA, channels, strength
from mixsup.masks.merging import Int32, edges, merge, neighbours, shrink

_watershed: Callable[[Int32], Int32] = segmentation.watershed  # it has no types
_LEVELS = 4096  # of strength in the watershed
_BINS = 8  # of each Lab channel in a region's histogram


@dataclass(frozen=True)
class Weights:
    """How the cues of a merge are weighed: (contour + histogram + texture) · (smaller area / image)^size / contact share^contact.

    Attributes:
        contour: of the mean boundary strength along the common contour.
        histogram: of half the L1 distance of the Lab histograms (0 to 1, mean over channels).
        texture: of the difference of the mean band energies (0 to 1).
        size: above 0 small regions go first.
        contact: above 0 regions that share much of the smaller one's outline go first.
    """

    contour: float = 1.0
    histogram: float = 0.75
    texture: float = 0.3
    size: float = 0.45
    contact: float = 0.1


@dataclass(frozen=True)
class Tree:
    """A binary merge tree over S superpixels.

    Attributes:
        parents: 2S-1 int64; leaves are 0..S-1, a parent has a higher number than its children, the root is its own parent.
        altitudes: 2S-1 float32; 0 at leaves, never decreasing towards the root.
    """

    parents: Int64
    altitudes: Float32

    @property
    def leaves(self) -> int:
        """S."""
        return (len(self.parents) + 1) // 2

    def members(self) -> Bool:
        """(2S-1)×S bool: the superpixels of each node."""
        inside = np.zeros((len(self.parents), self.leaves), bool)
        inside[np.arange(self.leaves), np.arange(self.leaves)] = True
        for node, parent in enumerate(self.parents[:-1]):
            inside[parent] |= inside[node]
        return inside

    def sums(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values of the superpixels (S×...) summed over each node, (2S-1)×...."""
        total = np.zeros((len(self.parents), *values.shape[1:]), values.dtype)
        total[: self.leaves] = values
        for node, parent in enumerate(self.parents[:-1]):
            total[parent] += total[node]
        return total

    def cut(self, threshold: float) -> Int64:
        """S int64: the node that each superpixel belongs to when all merges up to `threshold` (inclusive) are done."""
        node = np.arange(len(self.parents))
        for child in range(len(self.parents) - 2, -1, -1):
            if self.altitudes[self.parents[child]] <= threshold:
                node[child] = node[self.parents[child]]
        return node[: self.leaves]

    def distances(self) -> Float32:
        """S×S float32: the altitude at which two superpixels become one region (the ultrametric)."""
        inside: list[Int64] = [np.array([leaf]) for leaf in range(self.leaves)]
        result = np.zeros((self.leaves, self.leaves), np.float32)
        order = np.argsort(self.parents[:-1], kind="stable")  # two children of each parent, parents ascending
        for parent, (first, second) in enumerate(order.reshape(-1, 2), self.leaves):
            one, two = inside[first], inside[second]
            result[np.ix_(one, two)] = result[np.ix_(two, one)] = self.altitudes[parent]
            inside.append(np.concatenate([one, two]))
        return result


@dataclass(frozen=True)
class Regions:
    """The superpixels of an image and how they differ.

    Attributes:
        size: (H, W) of the image.
        small: h×w int32 ids 0..S-1 at working size.
        strength: h×w float32 boundary strength, 0 to 1.
        lengths: S×S float32, pixel sides that two superpixels share; 0 where they do not touch.
        contours: S×S float32, strength summed over those sides.
        areas: S float32, pixels at working size.
        histograms: S×24 float32, sums over pixels of soft Lab histograms.
        textures: S×7 float32, sums over pixels of band energies.
    """

    size: tuple[int, int]
    small: Int32
    strength: Float32
    lengths: Float32
    contours: Float32
    areas: Float32
    histograms: Float32
    textures: Float32

    def __len__(self) -> int:
        return len(self.areas)

    def labels(self) -> Int32:
        """H×W int32 ids at the size of the image."""
        return resized(self.small, self.size)

    def tree(self, weights: Weights = Weights()) -> Tree:
        """The merge tree under `weights`."""
        constants = np.array([weights.contour, weights.histogram, weights.texture, weights.size, weights.contact], np.float32)
        state = (self.lengths.copy(), self.contours.copy(), self.areas.copy(), self.histograms.copy(), self.textures.copy())
        return Tree(*merge(*state, constants))

    def contour_map(self, tree: Tree) -> Float32:
        """The ultrametric contour map, h×w float32: between superpixels the altitude at which they merge, 0 inside them."""
        distances = tree.distances()
        result = np.zeros(self.small.shape, np.float32)
        across = distances[self.small[:, :-1], self.small[:, 1:]]
        down = distances[self.small[:-1], self.small[1:]]
        np.maximum(result[:, :-1], across, out=result[:, :-1])
        np.maximum(result[:-1], down, out=result[:-1])
        return result


def resized(labels: npt.NDArray[np.integer[Any]], size: tuple[int, int]) -> Int32:
    """Ids at another size, by the pixel under the centre of each; none is lost as long as no side shrinks."""
    if labels.shape == size:
        return labels.astype(np.int32, copy=False)
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, labels.shape, strict=True))
    return np.asarray(labels[rows[:, None], columns[None]], np.int32)


def reduced(image: UInt8, max_side: int) -> UInt8:
    """The image with its longer side reduced to `max_side` pixels; a smaller one as it is."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return image
    return np.asarray(
        cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA), np.uint8
    )


def find_regions(image: UInt8, regions: int = 1200, max_side: int = 800) -> Regions:
    """Superpixels of an image.

    Args:
        image: H×W×3 uint8 RGB, any size from 1×1.
        regions: at most so many.
        max_side: a larger image is worked on at this size.
    """
    small = reduced(image, max_side)
    lab, texture = channels(small)
    contour = strength(lab, texture)
    # Every dent of the strength is a basin; the least smoothing halves their number and costs no boundary.
    levels = (cv2.GaussianBlur(contour, (0, 0), 0.5) * (_LEVELS - 1) / max(float(contour.max()), 1e-6)).astype(np.int32)
    basins = np.maximum(_watershed(levels).astype(np.int32) - 1, 0)  # a plain image has no minimum: one region
    count = int(basins.max()) + 1
    if count > regions:
        areas = _sums(basins, np.ones((*basins.shape, 1), np.float32), count)[:, 0]
        first, second, lengths, contours = edges(basins, contour, count)
        basins = shrink(first, second, lengths, contours, _sums(basins, lab, count), areas, regions)[basins]
        count = int(basins.max()) + 1
    lengths, contours = neighbours(basins, contour, count)
    return Regions(
        size=(image.shape[0], image.shape[1]),
        small=basins,
        strength=contour,
        lengths=lengths,
        contours=contours,
        areas=np.bincount(basins.ravel(), minlength=count).astype(np.float32),
        histograms=_histograms(basins, lab, count),
        textures=_sums(basins, texture, count),
    )


def _sums(labels: Int32, values: Float32, count: int) -> Float32:
    """Values (H×W×C) summed over each region, count×C."""
    flat = labels.ravel()
    channels = [np.bincount(flat, values[..., channel].ravel(), minlength=count) for channel in range(values.shape[2])]
    return np.stack(channels, axis=1).astype(np.float32)


def _histograms(labels: Int32, lab: Float32, count: int) -> Float32:
    """Soft histograms of the three channels, a pixel shared by its two nearest bins; count×24 sums."""
    parts = []
    for channel, (low, high) in enumerate(((0.0, 100.0), (-50.0 * CHROMA, 60.0 * CHROMA), (-50.0 * CHROMA, 60.0 * CHROMA))):
        position = np.clip((lab[..., channel].ravel() - low) / (high - low) * _BINS - 0.5, 0, _BINS - 1.001)
        below = position.astype(np.int64)
        share = position - below
        place = labels.ravel().astype(np.int64) * _BINS + below
        part = np.bincount(place, 1 - share, minlength=count * _BINS) + np.bincount(place + 1, share, minlength=count * _BINS)
        parts.append(part.reshape(count, _BINS))
    return np.hstack(parts).astype(np.float32)
