"""`mcg`: regions of several hierarchies and their combinations (Multiscale Combinatorial Grouping, Pont-Tuset 2016; BoxSup's default pool).

MCG trains its boundaries, the choice of its regions and its ranking; here nothing is trained. Its hierarchies of several image scales are here several
weightings of the cues over one set of superpixels, and its learnt ranking a sum of four features of a candidate's outline, shape and size.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.sparse import csr_matrix

from mixsup.data.sample import Bool, Float32, UInt8
from mixsup.masks.hierarchy import Regions, Weights, find_regions
from mixsup.masks.proposals import Proposals, ProposalSource, distinct, without_twins
from mixsup.masks.source import STRICT

# Apart from the default: contact ignored (long and thin), colour above all (parts of one material), no contours (through strong shading).
_WEIGHTS = (Weights(), Weights(contact=0), Weights(histogram=3, contact=0), Weights(contour=0, histogram=1, contact=0.2))
_LEAST = 24  # pixels at working size
_SHARES = (0.85, 0.09, 0.04, 0.02)  # of the pool: single regions, pairs, triples, quadruples
_EXAMINED = 3  # candidates looked at for each one that is kept
_COMBINED = 60  # regions whose neighbours are tried


@dataclass(frozen=True, config=STRICT)
class MCG(ProposalSource):
    """Multiscale combinatorial grouping.

    Attributes:
        proposals: candidates kept.
        combine: regions in a combination, at most.
        twins: candidates with at least this IoU are one.
        regions: superpixels, at most.
        max_side: a larger image is worked on at this size.
        floor: a box whose best candidate overlaps it less stays a rectangle.
    """

    proposals: Annotated[int, Field(ge=1, le=5000)] = 500
    combine: Annotated[int, Field(ge=1, le=4)] = 4
    twins: Annotated[float, Field(gt=0, le=1)] = 0.95
    regions: Annotated[int, Field(ge=2, le=3000)] = 1200
    max_side: Annotated[int, Field(ge=16)] = 800
    floor: Annotated[float, Field(ge=0, le=1)] = 0.2
    name: ClassVar[str] = "mcg"
    version: ClassVar[int] = 2

    def propose(self, image: UInt8) -> Proposals:
        regions = find_regions(image, self.regions, self.max_side)
        members = np.concatenate(
            [np.eye(len(regions), dtype=bool), *(regions.tree(weights).members()[len(regions) :] for weights in _WEIGHTS)]
        )
        members = members[members @ regions.areas >= _LEAST]
        if not len(members):  # a tiny or plain image
            members = np.ones((1, len(regions)), bool)
        shares = _SHARES[: self.combine]
        quotas = [max(1, round(self.proposals * share / sum(shares))) for share in shares]
        single = self._best(members, regions, quotas[0])
        found, grown = [single], single
        touching = csr_matrix(regions.lengths) @ csr_matrix(single[:_COMBINED].T.astype(np.float32))  # S×K
        for quota in quotas[1:]:
            joined = _joined(grown[:_COMBINED], single[:_COMBINED], touching)
            if not len(joined):
                break
            grown = self._best(joined, regions, quota)
            found.append(grown)
        return Proposals(regions.size, regions.labels(), self._best(np.concatenate(found), regions, self.proposals))

    def _best(self, members: Bool, regions: Regions, limit: int) -> Bool:
        """The `limit` best ranked of different candidates."""
        members = members[distinct(members)[0]]  # hierarchies share many regions
        order = np.argsort(-rank(members, regions), kind="stable")
        # Taken in turns from each octave of area: one ranking for all would prefer one size, and objects have many.
        octave = np.log2(members[order] @ regions.areas / regions.areas.sum()).astype(np.int64)
        turn = np.empty(len(order), np.int64)
        for each in np.unique(octave):
            turn[octave == each] = np.arange((octave == each).sum())
        members = members[order[np.argsort(turn, kind="stable")[: _EXAMINED * limit]]]
        return members[without_twins(members, regions.areas, limit, self.twins)]


def _joined(grown: Bool, single: Bool, touching: csr_matrix) -> Bool:
    """All unions of a grown candidate and a region that touches it and shares nothing with it; each size of combination grows from the best before."""
    inside = csr_matrix(grown.astype(np.float32))
    near = (inside @ touching).toarray() > 0
    apart = (inside @ csr_matrix(single.T.astype(np.float32))).toarray() == 0
    first, second = np.nonzero(near & apart)
    return np.asarray(grown[first] | single[second], bool)


def rank(members: Bool, regions: Regions) -> Float32:
    """How much each candidate (P×S bool) looks like an object, P float32, by four features that nobody trained.

    Mean strength along the outline, less the mean strength of contours inside; compactness (4π area / outline²); and the share of the outline that is
    the image's frame, against.
    """
    inside = csr_matrix(members.astype(np.float32))
    areas = inside @ regions.areas
    sides = np.asarray(regions.lengths.sum(axis=1))
    frame = np.zeros(len(regions), np.float32)
    for edge in (regions.small[0], regions.small[-1], regions.small[:, 0], regions.small[:, -1]):
        frame += np.bincount(edge, minlength=len(regions))

    def within(matrix: Float32) -> Float32:
        return np.asarray(inside.multiply(inside @ csr_matrix(matrix)).sum(axis=1), np.float32).ravel()

    inner_length, inner_contour = within(regions.lengths), within(regions.contours)
    outer_length = inside @ sides - inner_length
    outer_contour = inside @ np.asarray(regions.contours.sum(axis=1)) - inner_contour
    rim = inside @ frame
    strength = outer_contour / np.maximum(outer_length, 1) - 0.3 * inner_contour / np.maximum(inner_length, 1)
    compact = np.minimum(4 * np.pi * areas / np.maximum(outer_length + rim, 1) ** 2, 1)
    size = areas / regions.areas.sum()
    return np.asarray(strength + 0.1 * compact - 0.2 * rim / np.maximum(outer_length + rim, 1) + 0.03 * np.log(size), np.float32)
