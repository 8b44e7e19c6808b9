"""Boundary strength, superpixels and the ultrametric contour map of an image, without learning.

Three steps, after gPb-OWT-UCM (Arbeláez 2011), with what can be had without training and in a fraction of a second:

1. `boundary_strength`: at every pixel and in eight directions, how much do colour (Lab) and texture (band energies) differ between the two sides,
   in windows of three sizes? The sum over sizes is what makes a fold in a dress weaker than the dress's outline: the small window alone sees the
   fold, all of them see the outline.
2. Superpixels: the basins of that strength, merged (Ward's criterion on colour, plus the contour between) until `regions` are left.
3. `Regions.tree`: the two neighbours that differ least are merged, over and over, by the mean strength along their common contour, colour and
   texture. A merge is never lower than those below it, so altitudes are an ultrametric: a contour lasts until the threshold of its altitude.

Photographs above `max_side` are reduced and the labels enlarged, so time and memory have a bound. Constants were chosen on 20 training images of CCP
and 20 of the even-numbered images of coco128, by the IoU of the best node of the tree with each object.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import cv2
import numba
import numpy as np
import numpy.typing as npt
from skimage import segmentation

from mixsup.data.sample import Bool, Float32, Int64, UInt8

Int32 = npt.NDArray[np.int32]
_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])

_watershed: Callable[[Int32], Int32] = segmentation.watershed  # it has no types
_RADII = (1, 3, 7)  # pixels, of the windows that are compared
_DIRECTIONS = 8
_HALF_COLOUR = 20.0  # Lab units at which a difference of colour counts half
_HALF_TEXTURE = 0.6  # log energy at which a difference of texture counts half
_TEXTURE = 0.25  # weight of texture beside colour; the smallest window is too small to have a texture
_CHROMA = 1.5  # a and b against L: shading changes L most, objects differ in all three
_LEVELS = 4096  # of strength in the watershed
_BINS = 8  # of each Lab channel in a region's histogram
_WARD_CONTOUR, _WARD_SIZE = 30.0, 0.4  # Lab units that strength 1 is worth, and the exponent of the size, while superpixels are made


def _compiled(function: _Kernel) -> _Kernel:
    kernel: Any = numba.njit(cache=True, nogil=True)(function)
    return cast(_Kernel, kernel)


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
        return enlarge(self.small, self.size)

    def tree(self, weights: Weights = Weights()) -> Tree:
        """The merge tree under `weights`."""
        constants = np.array([weights.contour, weights.histogram, weights.texture, weights.size, weights.contact], np.float32)
        state = (self.lengths.copy(), self.contours.copy(), self.areas.copy(), self.histograms.copy(), self.textures.copy())
        return Tree(*_merge(*state, constants))

    def contour_map(self, tree: Tree) -> Float32:
        """The ultrametric contour map, h×w float32: between superpixels the altitude at which they merge, 0 inside them."""
        distances = tree.distances()
        result = np.zeros(self.small.shape, np.float32)
        across = distances[self.small[:, :-1], self.small[:, 1:]]
        down = distances[self.small[:-1], self.small[1:]]
        np.maximum(result[:, :-1], across, out=result[:, :-1])
        np.maximum(result[:-1], down, out=result[:-1])
        return result


def enlarge(labels: Int32, size: tuple[int, int]) -> Int32:
    """Ids at another size, by the nearest pixel; none is lost as long as no side shrinks."""
    if labels.shape == size:
        return labels
    rows = np.arange(size[0]) * labels.shape[0] // size[0]
    columns = np.arange(size[1]) * labels.shape[1] // size[1]
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
    lab, texture = _channels(small)
    strength = _strength(lab, texture)
    # Every dent of the strength is a basin; the least smoothing halves their number and costs no boundary.
    levels = (cv2.GaussianBlur(strength, (0, 0), 0.5) * (_LEVELS - 1) / max(float(strength.max()), 1e-6)).astype(np.int32)
    basins = np.maximum(_watershed(levels).astype(np.int32) - 1, 0)  # a plain image has no minimum: one region
    count = int(basins.max()) + 1
    if count > regions:
        areas = _sums(basins, np.ones((*basins.shape, 1), np.float32), count)[:, 0]
        first, second, lengths, contours = _edges(basins, strength, count)
        basins = _shrink(first, second, lengths, contours, _sums(basins, lab, count), areas, regions)[basins]
        count = int(basins.max()) + 1
    lengths, contours = _neighbours(basins, strength, count)
    return Regions(
        size=(image.shape[0], image.shape[1]),
        small=basins,
        strength=strength,
        lengths=lengths,
        contours=contours,
        areas=np.bincount(basins.ravel(), minlength=count).astype(np.float32),
        histograms=_histograms(basins, lab, count),
        textures=_sums(basins, texture, count),
    )


def boundary_strength(image: UInt8) -> Float32:
    """Boundary strength of an H×W×3 uint8 RGB image at its own size: H×W float32, 0 to 1."""
    return _strength(*_channels(image))


def _channels(image: UInt8) -> tuple[Float32, Float32]:
    """Lab with a and b stretched (H×W×3), and log energies of four directions and three bands of L (H×W×7)."""
    lab = np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    light = np.ascontiguousarray(lab[..., 0])
    one, two, four = (cv2.GaussianBlur(light, (0, 0), sigma) for sigma in (1.0, 2.0, 4.0))
    across, down = cv2.Scharr(one, cv2.CV_32F, 1, 0, scale=1 / 32), cv2.Scharr(one, cv2.CV_32F, 0, 1, scale=1 / 32)
    bands = [across, down, (across + down) * np.float32(0.5**0.5), (across - down) * np.float32(0.5**0.5)]
    bands += [light - one, one - two, two - four]
    scaled = lab * np.array([1, _CHROMA, _CHROMA], np.float32)
    return np.asarray(scaled, np.float32), np.asarray(np.log1p(np.abs(np.dstack(bands))), np.float32)


def _strength(lab: Float32, texture: Float32) -> Float32:
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    total = np.zeros((*lab.shape[:2], _DIRECTIONS), np.float32)
    for radius in _RADII:
        offsets = np.stack([np.rint(radius * np.sin(angles)), np.rint(radius * np.cos(angles))], axis=1).astype(np.int64)
        textured = radius > 1
        smooth = np.asarray(cv2.GaussianBlur(texture, (0, 0), radius), np.float32) if textured else texture
        _differences(
            np.asarray(cv2.GaussianBlur(lab, (0, 0), 0.6 * radius), np.float32),
            smooth,
            offsets,
            np.float32(_TEXTURE if textured else 0),
            total,
        )
    return np.asarray(total.max(axis=2) / (len(_RADII) * (1 + _TEXTURE)), np.float32)


@_compiled
def _differences(colour: Float32, texture: Float32, offsets: Int64, weight: np.float32, total: Float32) -> None:
    """Adds to `total` how much the windows at +offset and -offset of each pixel differ, saturating."""
    height, width, channels = colour.shape
    half_colour, half_texture = np.float32(_HALF_COLOUR), np.float32(_HALF_TEXTURE)
    for y in range(height):
        for x in range(width):
            for direction in range(offsets.shape[0]):
                dy, dx = offsets[direction]
                y0, y1 = min(max(y - dy, 0), height - 1), min(max(y + dy, 0), height - 1)
                x0, x1 = min(max(x - dx, 0), width - 1), min(max(x + dx, 0), width - 1)
                square = np.float32(0)
                for channel in range(channels):
                    step = colour[y0, x0, channel] - colour[y1, x1, channel]
                    square += step * step
                root = np.sqrt(square)
                found = root / (root + half_colour)
                if weight > 0:
                    square = np.float32(0)
                    for channel in range(texture.shape[2]):
                        step = texture[y0, x0, channel] - texture[y1, x1, channel]
                        square += step * step
                    root = np.sqrt(square)
                    found += weight * root / (root + half_texture)
                total[y, x, direction] += found


def _sums(labels: Int32, values: Float32, count: int) -> Float32:
    """Values (H×W×C) summed over each region, count×C."""
    flat = labels.ravel()
    channels = [np.bincount(flat, values[..., channel].ravel(), minlength=count) for channel in range(values.shape[2])]
    return np.stack(channels, axis=1).astype(np.float32)


def _histograms(labels: Int32, lab: Float32, count: int) -> Float32:
    """Soft histograms of the three channels, a pixel shared by its two nearest bins; count×24 sums."""
    parts = []
    for channel, (low, high) in enumerate(((0.0, 100.0), (-50.0 * _CHROMA, 60.0 * _CHROMA), (-50.0 * _CHROMA, 60.0 * _CHROMA))):
        position = np.clip((lab[..., channel].ravel() - low) / (high - low) * _BINS - 0.5, 0, _BINS - 1.001)
        below = position.astype(np.int64)
        share = position - below
        place = labels.ravel().astype(np.int64) * _BINS + below
        part = np.bincount(place, 1 - share, minlength=count * _BINS) + np.bincount(place + 1, share, minlength=count * _BINS)
        parts.append(part.reshape(count, _BINS))
    return np.hstack(parts).astype(np.float32)


@_compiled
def _neighbours(labels: Int32, strength: Float32, count: int) -> tuple[Float32, Float32]:
    """Sides shared by two regions and the strength along them, dense."""
    height, width = labels.shape
    lengths, contours = np.zeros((count, count), np.float32), np.zeros((count, count), np.float32)
    for y in range(height):
        for x in range(width):
            for step in range(2):
                y1, x1 = y + step, x + 1 - step
                if y1 < height and x1 < width and labels[y, x] != labels[y1, x1]:
                    one, two = labels[y, x], labels[y1, x1]
                    value = max(strength[y, x], strength[y1, x1])
                    lengths[one, two] += 1
                    lengths[two, one] += 1
                    contours[one, two] += value
                    contours[two, one] += value
    return lengths, contours


@_compiled
def _edges(labels: Int32, strength: Float32, count: int) -> tuple[Int64, Int64, Float32, Float32]:
    """The same as a list, for tens of thousands of basins: first < second, sides, strength along them."""
    height, width = labels.shape
    starts = np.zeros(count + 1, np.int64)
    for y in range(height):
        for x in range(width):
            for step in range(2):
                y1, x1 = y + step, x + 1 - step
                if y1 < height and x1 < width and labels[y, x] != labels[y1, x1]:
                    starts[min(labels[y, x], labels[y1, x1]) + 1] += 1
    starts = np.cumsum(starts)
    place = starts[:-1].copy()
    others, values = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.float32)
    for y in range(height):
        for x in range(width):
            for step in range(2):
                y1, x1 = y + step, x + 1 - step
                if y1 < height and x1 < width and labels[y, x] != labels[y1, x1]:
                    low = min(labels[y, x], labels[y1, x1])
                    others[place[low]] = max(labels[y, x], labels[y1, x1])
                    values[place[low]] = max(strength[y, x], strength[y1, x1])
                    place[low] += 1
    first, second = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int64)
    lengths, contours = np.zeros(starts[-1], np.float32), np.zeros(starts[-1], np.float32)
    slot, used = np.full(count, -1, np.int64), 0
    for low in range(count):
        base = used
        for index in range(starts[low], starts[low + 1]):
            other = others[index]
            if slot[other] < base:
                slot[other] = used
                first[used], second[used] = low, other
                used += 1
            lengths[slot[other]] += 1
            contours[slot[other]] += values[index]
    return first[:used], second[:used], lengths[:used], contours[:used]


@_compiled
def _ward(one: int, two: int, length: float, contour: float, colours: Float32, areas: Float32) -> float:
    square = np.float32(0)
    for channel in range(colours.shape[1]):
        step = colours[one, channel] / areas[one] - colours[two, channel] / areas[two]
        square += step * step
    size = areas[one] * areas[two] / (areas[one] + areas[two])
    return float((np.sqrt(square) + np.float32(_WARD_CONTOUR) * contour / length) * size ** np.float32(_WARD_SIZE))


@_compiled
def _shrink(first: Int64, second: Int64, lengths: Float32, contours: Float32, colours: Float32, areas: Float32, target: int) -> Int32:
    """Merges the cheapest neighbours until `target` regions are left; gives the new id of each region.

    Edges hang in linked lists of their regions (half-edge 2e at first[e], 2e+1 at second[e]); outdated entries of the heap are known by an edge's
    version.
    """
    count, edges = areas.size, first.size
    head, following = np.full(count, -1, np.int64), np.full(2 * edges, -1, np.int64)
    for edge in range(edges):
        following[2 * edge], head[first[edge]] = head[first[edge]], 2 * edge
        following[2 * edge + 1], head[second[edge]] = head[second[edge]], 2 * edge + 1
    alive, version = np.ones(edges, np.bool_), np.zeros(edges, np.int32)
    heap = [
        (_ward(first[edge], second[edge], lengths[edge], contours[edge], colours, areas), np.int32(edge), np.int32(0))
        for edge in range(edges)
    ]
    heapq.heapify(heap)
    parent, mark, slot = np.arange(count), np.full(count, -1, np.int64), np.empty(count, np.int64)
    left, stamp = count, 0
    while left > target and len(heap) > 0:
        _, edge, made = heapq.heappop(heap)
        if not alive[edge] or version[edge] != made:
            continue
        one, two = first[edge], second[edge]
        alive[edge] = False
        parent[two] = one
        left -= 1
        stamp += 1
        areas[one] += areas[two]
        for channel in range(colours.shape[1]):
            colours[one, channel] += colours[two, channel]
        chain = -1
        for side in range(2):
            half = head[one] if side == 0 else head[two]
            while half >= 0:
                other, after = half >> 1, following[half]
                if alive[other]:
                    if half & 1:
                        second[other], far = one, first[other]
                    else:
                        first[other], far = one, second[other]
                    if mark[far] == stamp:  # both touched it: one contour now
                        lengths[slot[far]] += lengths[other]
                        contours[slot[far]] += contours[other]
                        alive[other] = False
                    else:
                        mark[far], slot[far] = stamp, other
                        following[half], chain = chain, half
                half = after
        head[one] = chain
        while chain >= 0:
            other = chain >> 1
            version[other] += 1
            cost = _ward(first[other], second[other], lengths[other], contours[other], colours, areas)
            heapq.heappush(heap, (cost, np.int32(other), version[other]))
            chain = following[chain]
    ids, result, used = np.full(count, -1, np.int32), np.empty(count, np.int32), 0
    for region in range(count):
        root = region
        while parent[root] != root:
            root = parent[root]
        if ids[root] < 0:
            ids[root] = used
            used += 1
        result[region] = ids[root]
    return result


@_compiled
def _difference(
    one: int,
    two: int,
    lengths: Float32,
    contours: Float32,
    areas: Float32,
    histograms: Float32,
    textures: Float32,
    outlines: Float32,
    total: np.float32,
    weights: Float32,
) -> float:
    """What `Weights` says, of two neighbours."""
    cost = weights[0] * contours[one, two] / lengths[one, two]
    distance = np.float32(0)
    for bin_ in range(histograms.shape[1]):
        distance += abs(histograms[one, bin_] / areas[one] - histograms[two, bin_] / areas[two])
    cost += weights[1] * distance / 6
    square = np.float32(0)
    for band in range(textures.shape[1]):
        step = textures[one, band] / areas[one] - textures[two, band] / areas[two]
        square += step * step
    root = np.sqrt(square)
    cost += weights[2] * root / (root + np.float32(_HALF_TEXTURE))
    contact = lengths[one, two] / min(outlines[one], outlines[two])
    return float(cost * (min(areas[one], areas[two]) / total) ** weights[3] / contact ** weights[4])


@_compiled
def _merge(
    lengths: Float32, contours: Float32, areas: Float32, histograms: Float32, textures: Float32, weights: Float32
) -> tuple[Int64, Float32]:
    """The merge tree, O(S²): every region remembers its nearest neighbour. The arrays are used up."""
    count = areas.size
    total, outlines = areas.sum(), lengths.sum(axis=1)
    costs = np.full((count, count), np.inf, np.float32)
    nearest, lowest = np.full(count, -1, np.int64), np.full(count, np.inf, np.float32)
    nodes, live = np.arange(count), np.ones(count, np.bool_)
    parents, altitudes = np.arange(2 * count - 1), np.zeros(2 * count - 1, np.float32)
    for one in range(count):
        for two in range(count):
            if lengths[one, two] > 0:
                low, high = min(one, two), max(one, two)
                cost = _difference(low, high, lengths, contours, areas, histograms, textures, outlines, total, weights)
                costs[one, two] = cost
                if cost < lowest[one]:
                    lowest[one], nearest[one] = cost, two
    for made in range(count, 2 * count - 1):
        one, best = -1, np.float32(np.inf)
        for region in range(count):
            if live[region] and lowest[region] < best:
                one, best = region, lowest[region]
        two = nearest[one]
        parents[nodes[one]] = parents[nodes[two]] = made
        altitudes[made] = max(best, altitudes[nodes[one]], altitudes[nodes[two]])
        nodes[one] = made
        live[two] = False
        outlines[one] += outlines[two] - 2 * lengths[one, two]
        areas[one] += areas[two]
        histograms[one] += histograms[two]
        textures[one] += textures[two]
        lowest[one], nearest[one] = np.inf, -1
        for other in range(count):
            if other == one or not live[other] or (lengths[one, other] == 0 and lengths[two, other] == 0):
                continue
            lengths[one, other] += lengths[two, other]
            contours[one, other] += contours[two, other]
            lengths[other, one], contours[other, one] = lengths[one, other], contours[one, other]
            cost = _difference(one, other, lengths, contours, areas, histograms, textures, outlines, total, weights)
            costs[one, other] = costs[other, one] = cost
            costs[other, two] = np.inf
            if cost < lowest[one]:
                lowest[one], nearest[one] = cost, other
            if nearest[other] == one or nearest[other] == two:
                lowest[other] = np.inf
                for region in range(count):
                    if live[region] and costs[other, region] < lowest[other]:
                        lowest[other], nearest[other] = costs[other, region], region
            elif cost < lowest[other]:
                lowest[other], nearest[other] = cost, one
    return parents, altitudes
