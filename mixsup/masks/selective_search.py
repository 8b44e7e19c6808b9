"""`selective-search`: greedy grouping by colour, texture, size and fill (Uijlings 2013; BoxSup, table 3), regions and not only their boxes.

OpenCV's own selective search returns boxes; the regions that BoxSup needs stay inside it. So its graph segmentation (Felzenszwalb 2004) makes the
initial regions, and the grouping is here: diversified, as in the paper, by two colour spaces, two initial segmentations and two sets of similarities.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Bool, Float32, Int64, UInt8
from mixsup.masks.compiled import compiled
from mixsup.masks.hierarchy import Tree, reduced, resized
from mixsup.masks.merging import Int32
from mixsup.masks.proposals import Proposals, ProposalSource, distinct, without_twins
from mixsup.masks.source import STRICT

_BINS = 25  # of a colour channel (Uijlings 2013, section 3.2)
_TEXTURE_BINS = 10  # of a directed derivative
_SIGMA = 0.8  # of the smoothing before the graph segmentation


@dataclass(frozen=True, config=STRICT)
class SelectiveSearch(ProposalSource):
    """Selective search with regions.

    Attributes:
        proposals: candidates kept, at most.
        scale: of the finer initial segmentation (Felzenszwalb's k); the coarser one has three times as much.
        least: pixels of an initial region.
        twins: candidates with at least this IoU are one.
        regions: initial regions, at most.
        max_side: a larger image is worked on at this size.
        floor: a box whose best candidate overlaps it less stays a rectangle.
    """

    proposals: Annotated[int, Field(ge=1, le=5000)] = 1000
    scale: Annotated[float, Field(gt=0)] = 50.0
    least: Annotated[int, Field(ge=1)] = 20
    twins: Annotated[float, Field(gt=0, le=1)] = 0.95
    regions: Annotated[int, Field(ge=2, le=3000)] = 1200
    max_side: Annotated[int, Field(ge=16)] = 800
    floor: Annotated[float, Field(ge=0, le=1)] = 0.2
    name: ClassVar[str] = "selective-search"
    version: ClassVar[int] = 2

    def propose(self, image: UInt8) -> Proposals:
        small = reduced(image, self.max_side)
        lab = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), np.uint8)
        fine = self._initial(lab, self.scale)
        count = int(fine.max()) + 1
        areas = np.bincount(fine.ravel(), minlength=count).astype(np.float32)
        coarse = _onto(fine, self._initial(lab, 3 * self.scale))
        found: list[Bool] = []
        ranks: list[Int64] = []
        for colours in (lab, np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2HSV), np.uint8)):
            for start in (np.arange(count), coarse):
                initial = start[fine].astype(np.int32)
                described = _describe(initial, colours)
                for similarities in ((1.0, 1.0, 1.0, 1.0), (0.0, 1.0, 1.0, 1.0)):
                    near, colour, texture, sizes, boxes = (array.copy() for array in described)
                    tree = Tree(*_group(near, colour, texture, sizes, boxes, np.array(similarities, np.float32)))
                    found.append(tree.members()[:, start])
                    ranks.append(np.arange(len(found[-1]))[::-1])
        # As in the paper: a place high in a hierarchy counts, times a random number, so that the large ones do not all come first.
        order = np.argsort(np.concatenate(ranks) * np.random.default_rng(0).random(sum(map(len, ranks))), kind="stable")
        members = np.concatenate(found)[order]
        members = members[np.sort(distinct(members)[0])[: 4 * self.proposals]]
        kept = without_twins(members, areas, self.proposals, self.twins)
        return Proposals((image.shape[0], image.shape[1]), resized(fine, (image.shape[0], image.shape[1])), members[kept])

    def _initial(self, lab: UInt8, scale: float) -> Int32:
        """Felzenszwalb's regions; a busy image gets larger ones until there are no more than `regions`."""
        least = self.least
        while True:
            if min(lab.shape[:2]) < 2:  # OpenCV's graph has no edges then
                return np.zeros(lab.shape[:2], np.int32)
            labels = cv2.ximgproc.segmentation.createGraphSegmentation(_SIGMA, scale, least).processImage(lab).astype(np.int32)
            _, dense = np.unique(labels, return_inverse=True)
            if dense.max() < self.regions:
                return np.asarray(dense.reshape(labels.shape), np.int32)
            least *= 2


def _onto(fine: Int32, coarse: Int32) -> Int64:
    """For each fine region the coarse one that holds most of it, numbered without gaps."""
    shared = np.zeros((int(fine.max()) + 1, int(coarse.max()) + 1), np.int64)
    np.add.at(shared, (fine.ravel(), coarse.ravel()), 1)
    return np.asarray(np.unique(shared.argmax(axis=1), return_inverse=True)[1].ravel(), np.int64)


def _describe(labels: Int32, colours: UInt8) -> tuple[Bool, Float32, Float32, Float32, Int64]:
    """Neighbours (S×S), normalised colour histograms (S×75), texture histograms (S×240), areas (S) and boxes (S×4) of regions."""
    count = int(labels.max()) + 1
    flat = labels.ravel().astype(np.int64)
    areas = np.bincount(flat, minlength=count).astype(np.float32)

    def histogram(values: Float32, bins: int, low: float, high: float) -> Float32:
        place = np.clip((values.ravel() - low) * (bins / (high - low)), 0, bins - 1).astype(np.int64)
        return np.bincount(flat * bins + place, minlength=count * bins).reshape(count, bins).astype(np.float32)

    colour, texture = [], []
    for channel in range(3):
        plane = np.ascontiguousarray(colours[..., channel]).astype(np.float32)
        colour.append(histogram(plane, _BINS, 0, 256))
        across, down = cv2.Scharr(plane, cv2.CV_32F, 1, 0, scale=1 / 32), cv2.Scharr(plane, cv2.CV_32F, 0, 1, scale=1 / 32)
        for part in (across, down, (across + down) / 2, (across - down) / 2):
            for sign in (1, -1):  # eight directions, each with its own derivative
                texture.append(histogram(np.log1p(np.maximum(sign * part, 0)), _TEXTURE_BINS, 0, 5))
    near = np.zeros((count, count), bool)
    for one, two in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        near[one.ravel(), two.ravel()] = near[two.ravel(), one.ravel()] = True
    np.fill_diagonal(near, False)
    rows, columns = np.indices(labels.shape)
    boxes = np.empty((count, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = max(labels.shape), 0
    for axis, places in ((0, columns), (1, rows)):
        np.minimum.at(boxes[:, axis], flat, places.ravel())
        np.maximum.at(boxes[:, axis + 2], flat, places.ravel() + 1)
    colour_part, texture_part = (np.hstack(parts) / (areas[:, None] * len(parts)) for parts in (colour, texture))
    return near, colour_part.astype(np.float32), texture_part.astype(np.float32), areas, boxes


@compiled
def _likeness(
    one: int, two: int, colour: Float32, texture: Float32, areas: Float32, boxes: Int64, total: np.float32, weights: Float32
) -> float:
    """Uijlings 2013, equations 2 to 6."""
    same_colour, same_texture = np.float32(0), np.float32(0)
    if weights[0] > 0:
        for index in range(colour.shape[1]):
            same_colour += min(colour[one, index], colour[two, index])
    for index in range(texture.shape[1]):
        same_texture += min(texture[one, index], texture[two, index])
    width = max(boxes[one, 2], boxes[two, 2]) - min(boxes[one, 0], boxes[two, 0])
    height = max(boxes[one, 3], boxes[two, 3]) - min(boxes[one, 1], boxes[two, 1])
    both = areas[one] + areas[two]
    size, fill = 1 - both / total, 1 - (width * height - both) / total
    return float(weights[0] * same_colour + weights[1] * same_texture + weights[2] * size + weights[3] * fill)


@compiled
def _group(near: Bool, colour: Float32, texture: Float32, areas: Float32, boxes: Int64, weights: Float32) -> tuple[Int64, Float32]:
    """The grouping as a merge tree (its altitudes are the order of merges). The arrays are used up."""
    count, total = areas.size, areas.sum()
    likeness = np.full((count, count), -np.inf, np.float32)
    nearest, highest = np.full(count, -1, np.int64), np.full(count, -np.inf, np.float32)
    nodes, live = np.arange(count), np.ones(count, np.bool_)
    parents, altitudes = np.arange(2 * count - 1), np.zeros(2 * count - 1, np.float32)
    for one in range(count):
        for two in range(count):
            if near[one, two]:
                likeness[one, two] = _likeness(min(one, two), max(one, two), colour, texture, areas, boxes, total, weights)
                if likeness[one, two] > highest[one]:
                    highest[one], nearest[one] = likeness[one, two], two
    for made in range(count, 2 * count - 1):
        one, best = -1, np.float32(-np.inf)
        for region in range(count):
            if live[region] and highest[region] > best:
                one, best = region, highest[region]
        two = nearest[one]
        parents[nodes[one]] = parents[nodes[two]] = made
        altitudes[made] = made - count + 1
        nodes[one], live[two] = made, False
        share = areas[one] / (areas[one] + areas[two])
        for index in range(colour.shape[1]):
            colour[one, index] = share * colour[one, index] + (1 - share) * colour[two, index]
        for index in range(texture.shape[1]):
            texture[one, index] = share * texture[one, index] + (1 - share) * texture[two, index]
        areas[one] += areas[two]
        for side in range(2):
            boxes[one, side] = min(boxes[one, side], boxes[two, side])
            boxes[one, side + 2] = max(boxes[one, side + 2], boxes[two, side + 2])
        highest[one], nearest[one] = -np.inf, -1
        for other in range(count):
            if other == one or not live[other] or not (near[one, other] or near[two, other]):
                continue
            near[one, other] = near[other, one] = True
            value = _likeness(one, other, colour, texture, areas, boxes, total, weights)
            likeness[one, other] = likeness[other, one] = value
            likeness[other, two] = -np.inf
            if value > highest[one]:
                highest[one], nearest[one] = value, other
            if nearest[other] == one or nearest[other] == two:
                highest[other] = -np.inf
                for region in range(count):
                    if live[region] and likeness[other, region] > highest[other]:
                        highest[other], nearest[other] = likeness[other, region], region
            elif value > highest[other]:
                highest[other], nearest[other] = value, one
    return parents, altitudes
