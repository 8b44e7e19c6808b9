"""Merging of regions: who touches whom and along how strong a contour, basins to superpixels, superpixels to a tree. Compiled loops."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from mixsup.data.sample import Float32, Int64
from mixsup.masks.boundaries import HALF_TEXTURE
from mixsup.masks.compiled import compiled

Int32 = npt.NDArray[np.int32]
WARD_CONTOUR, WARD_SIZE = 30.0, 0.4  # Lab units that strength 1 is worth, and the exponent of the size, while superpixels are made


@compiled
def neighbours(labels: Int32, strength: Float32, count: int) -> tuple[Float32, Float32]:
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


@compiled
def edges(labels: Int32, strength: Float32, count: int) -> tuple[Int64, Int64, Float32, Float32]:
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


@compiled
def _ward(one: int, two: int, length: float, contour: float, colours: Float32, areas: Float32) -> float:
    square = np.float32(0)
    for channel in range(colours.shape[1]):
        step = colours[one, channel] / areas[one] - colours[two, channel] / areas[two]
        square += step * step
    size = areas[one] * areas[two] / (areas[one] + areas[two])
    return float((np.sqrt(square) + np.float32(WARD_CONTOUR) * contour / length) * size ** np.float32(WARD_SIZE))


@compiled
def shrink(first: Int64, second: Int64, lengths: Float32, contours: Float32, colours: Float32, areas: Float32, target: int) -> Int32:
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


@compiled
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
    cost += weights[2] * root / (root + np.float32(HALF_TEXTURE))
    contact = lengths[one, two] / min(outlines[one], outlines[two])
    return float(cost * (min(areas[one], areas[two]) / total) ** weights[3] / contact ** weights[4])


@compiled
def merge(
    lengths: Float32, contours: Float32, areas: Float32, histograms: Float32, textures: Float32, weights: Float32
) -> tuple[Int64, Float32]:
    """The merge tree, O(S²): every region remembers its nearest neighbour. The arrays are used up."""
    count = areas.size
    total, outlines = areas.sum(), np.zeros(count, np.float32)
    for one in range(count):
        for two in range(count):
            outlines[one] += lengths[one, two]
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
        for bin_ in range(histograms.shape[1]):
            histograms[one, bin_] += histograms[two, bin_]
        for band in range(textures.shape[1]):
            textures[one, band] += textures[two, band]
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
