"""`geodesic`: level sets of geodesic distances from seeds (Geodesic Object Proposals, Krähenbühl and Koltun 2014; BoxSup, table 3), nothing learned.

Superpixels form a graph whose edges cost what boundary lies between them. Seeds are placed by farthest points: each next one where the geodesic
distance to all before is greatest. The distance from a seed, less the distance from the image's frame in a second set, gives one candidate for each
level; kept are the levels at which the region pauses in growing (critical points), where it has filled something. The learnt seeds and masks are left out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from mixsup.data.sample import Bool, Float32, UInt8
from mixsup.masks.hierarchy import find_regions
from mixsup.masks.proposals import Proposals, ProposalSource, without_twins
from mixsup.masks.source import STRICT

_STEP = 1e-3  # cost of an edge without a boundary: distances grow even on a plain
_SHARPNESS = 2.0  # exponent of strength: many weak contours must not cost as much as a strong one


@dataclass(frozen=True, config=STRICT)
class Geodesic(ProposalSource):
    """Geodesic object proposals.

    Attributes:
        proposals: candidates kept, at most.
        seeds: in an image.
        levels: octaves of area, from the whole image down, at each of which a distance map gives a candidate.
        twins: candidates with at least this IoU are one.
        regions: superpixels, at most.
        max_side: a larger image is worked on at this size.
        floor: a box whose best candidate overlaps it less stays a rectangle.
    """

    proposals: Annotated[int, Field(ge=1, le=5000)] = 700
    seeds: Annotated[int, Field(ge=1, le=1000)] = 120
    levels: Annotated[int, Field(ge=1, le=20)] = 10
    twins: Annotated[float, Field(gt=0, le=1)] = 0.9
    regions: Annotated[int, Field(ge=2, le=3000)] = 1200
    max_side: Annotated[int, Field(ge=16)] = 800
    floor: Annotated[float, Field(ge=0, le=1)] = 0.2
    name: ClassVar[str] = "geodesic"
    version: ClassVar[int] = 2

    def propose(self, image: UInt8) -> Proposals:
        regions = find_regions(image, self.regions, self.max_side)
        count = len(regions)
        rows, columns = np.nonzero(regions.lengths)
        costs = (regions.contours[rows, columns] / regions.lengths[rows, columns]) ** _SHARPNESS + _STEP
        graph = csr_matrix((costs, (rows, columns)), shape=(count, count))
        edge = np.unique(np.concatenate([regions.small[0], regions.small[-1], regions.small[:, 0], regions.small[:, -1]]))
        frame = dijkstra(graph, indices=edge, min_only=True)
        distances = _farthest(graph, frame, self.seeds)
        maps = np.concatenate([distances, distances - frame[None]])
        candidates, gaps = _critical(maps, regions.areas, self.levels)
        order = np.argsort(-gaps, kind="stable")
        candidates = candidates[order]
        return Proposals(regions.size, regions.labels(), candidates[without_twins(candidates, regions.areas, self.proposals, self.twins)])


def _farthest(graph: csr_matrix, frame: Float32, count: int) -> Float32:
    """The geodesic distances of seeds (K×S). The first is farthest from the frame, each next farthest from those before."""
    nearest = np.full(graph.shape[0], np.inf)
    seed, distances = int(frame.argmax()), []
    for _ in range(min(count, graph.shape[0])):
        away = dijkstra(graph, indices=seed)
        distances.append(away)
        nearest = np.minimum(nearest, away)
        seed = int(nearest.argmax())
    return np.array(distances)


def _critical(maps: Float32, areas: Float32, levels: int) -> tuple[Bool, Float32]:
    """The level sets of each map (K×S) at its critical points, P×S bool, and how wide each gap is against the map's mean gap, P.

    A gap in the sorted distances is a level at which the region does not grow. The widest gap is taken in each octave of area (half to all of the
    image, a quarter to a half, ...): the widest of all would be the same few large regions for every seed.
    """
    order = np.argsort(maps, axis=1, kind="stable")
    values = np.take_along_axis(maps, order, axis=1)
    filled = np.cumsum(areas[order], axis=1)
    ranks = np.argsort(order, axis=1, kind="stable")
    gaps = np.diff(values, axis=1)
    octave = np.floor(-np.log2(np.minimum(filled[:, :-1] / areas.sum(), 1 - 1e-6))).astype(np.int64)
    candidates, weights = [np.ones((1, maps.shape[1]), bool)], [np.zeros(1)]
    for level in range(levels):
        within = np.where(octave == level, gaps, -1)
        if not within.size:
            break
        best = within.argmax(axis=1)
        width = within[np.arange(len(maps)), best]
        candidates.append((ranks <= best[:, None])[width > 0])
        weights.append((width / np.maximum(gaps.mean(axis=1), 1e-9))[width > 0])
    return np.concatenate(candidates), np.concatenate(weights)
