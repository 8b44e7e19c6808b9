"""What a box chooses from: the candidates of a pool that agree best with a segmentation of the box.

MCG ranks its candidates by what it has learned from masks, and BoxSup chooses among the first ones. Here nobody has masks: of all regions that touch a
box, those come first that overlap most with segmentations of it, the dense CRF's (`crf`), GrabCut's and the tight one of the two (`tight`), which know
colours but no shape and no class. The tight one weighs as much as both together; where all have an object's pixel it is wanted most. Either of the two
alone fails on some kind of photograph (docs/results.md). Where they disagree the candidates nearest to their mean are near none of them, and the one that was
right could not be chosen by a network that knows better: so the last of a list are the segmentations themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mixsup.data.sample import Bool, Boxes, Float32, Int64, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.crf import BoxCRF
from mixsup.masks.grabcut import GrabCut
from mixsup.masks.proposals import Proposals, ProposalSource, distinct
from mixsup.masks.source import MaskSource
from mixsup.masks.tight import smallest_tight

_SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)  # a superpixel is the segmentations' when at least so much of it is
_WEIGHTS = (0.5, 0.25, 0.25)  # of the tight segmentation, of GrabCut's and of the CRF's


@dataclass(frozen=True)
class BoxPool(MaskSource):
    """The best candidates of each box, by their overlap with its segmentations. Among them are what these agree on, on the superpixels, and what that has
    in common with the nearest candidates and what either has, so that the k first are good ones that differ and not one good one and k - 1 others. At the
    end of the list, in place of its last, stand those of the three segmentations that are not in it, on the superpixels.

    As a mask source it gives each box the first of its list.

    Attributes:
        inner: the pool.
        candidates: of each box.
        crf, grabcut: make the segmentations that they are compared with.
    """

    inner: ProposalSource
    candidates: int = 10
    crf: BoxCRF = field(default_factory=BoxCRF)
    grabcut: GrabCut = field(default_factory=GrabCut)
    name: ClassVar[str] = "box-pool"
    version: ClassVar[int] = 5

    def settings(self) -> dict[str, Any]:
        return {
            "candidates": self.candidates,
            "inner": [self.inner.key, self.inner.version, self.inner.settings()],
            "ranking": [[source.version, source.settings()] for source in (self.crf, self.grabcut)],
        }

    def check(self) -> None:
        self.inner.check()

    def fingerprint(self, sample: Sample) -> bytes:
        return self.inner.fingerprint(sample)

    def propose(self, image: UInt8, boxes: Boxes, sample: Sample) -> Proposals:
        """The pool of an image whose `lists` name the candidates of each box, best first and then the segmentations; a crowd has none.

        Args:
            image: H×W×3 uint8 RGB.
            boxes: N boxes.
            sample: the sample that they come from.
        """
        pool = self.inner.propose(image)
        inside, areas = pool.box_counts(boxes), np.maximum(pool.counts(), 1)  # N×S, S
        crf, grabcut = self.crf(image, boxes, sample), self.grabcut(image, boxes, sample)
        sources = (smallest_tight(crf, grabcut), grabcut, crf)
        pixels = np.array([[_foreground(pool, source, box) for box in range(len(boxes))] for source in sources]).reshape(
            len(sources), *inside.shape
        )
        wanted = np.tensordot(np.array(_WEIGHTS, np.float32), pixels, axes=1)  # N×S, pixels that are the object's, counted by weight
        snapped = [wanted >= share * areas for share in _SHARES]  # N×S each
        best = np.argsort(-_agreement(pool.members, wanted, inside), axis=0, kind="stable")[: self.candidates].T  # N×K
        mixed = [
            part for index in range(len(boxes)) for part in _mixed(pool.members[best[index]], wanted[index] >= areas / 2, inside[index] > 0)
        ]
        themselves = (pixels >= areas / 2).reshape(-1, len(areas))  # the first source's of each box, the second's, ...
        members, places = _different(np.concatenate([themselves, pool.members, *snapped, *mixed]))
        agreement = _agreement(members, wanted, inside)  # P×N
        lists = np.full((len(boxes), self.candidates), -1)
        for index in np.flatnonzero(~boxes.crowd):
            best = np.argsort(-agreement[:, index], kind="stable")[: self.candidates]
            best = best[agreement[best, index] > 0]
            found = _ended(best, places[: len(themselves)].reshape(len(sources), -1)[:, index], self.candidates)
            lists[index, : len(found)] = found
        # Only what some box may choose is kept, so that a pool is small on the disk.
        kept, numbers = np.unique(lists[lists >= 0], return_inverse=True)
        lists[lists >= 0] = numbers
        return Proposals(pool.size, pool.superpixels, members[kept], lists)

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size, pool = (image.shape[0], image.shape[1]), self.propose(image, boxes, sample)
        assert pool.lists is not None
        masks = []
        for (x0, y0, x1, y1), found in zip(boxes.windows(size), pool.lists[:, 0], strict=True):
            whole = np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8)
            masks.append(pool.members[found][pool.superpixels[y0:y1, x0:x1]].astype(np.uint8) if found >= 0 else whole)
        return BoxMasks.of(boxes, size, masks)


def _mixed(candidates: Bool, segmented: Bool, box: Bool) -> tuple[Bool, Bool]:
    """What a candidate (K×S) and the segmentation (S) have in common, and what either has in the box: halfway between the two."""
    return candidates & segmented, (candidates & box) | segmented


def _agreement(members: Bool, wanted: Float32, inside: Float32) -> Float32:
    """IoU, in the box, of P candidates (P×S) with N weighted segmentations (N×S pixels, of N×S in the box), P×N float32."""
    shared = members.astype(np.float32) @ wanted.T
    union = members.astype(np.float32) @ inside.T + wanted.sum(axis=1) - shared
    return np.asarray(shared / np.maximum(union, 1), np.float32)


def _foreground(pool: Proposals, masks: BoxMasks, index: int) -> Float32:
    """S: pixels of each superpixel that are foreground of a box's mask."""
    x0, y0, x1, y1 = masks.windows[index]
    ids = pool.superpixels[y0:y1, x0:x1][masks.masks[index] == FOREGROUND]
    return np.bincount(ids, minlength=pool.members.shape[1]).astype(np.float32)


def _ended(best: Int64, sources: Int64, length: int) -> Int64:
    """A list of at most `length` candidates: `best` in its order, and at the end those of `sources` (-1 for none) that are not among its first ones."""
    first = best[: max(length - len(sources), 1)].tolist()
    last = [one for one in dict.fromkeys(sources.tolist()) if one >= 0 and one not in first][: length - len(first)]
    between = [one for one in best[len(first) :].tolist() if one not in last]
    return np.array([*first, *between[: length - len(first) - len(last)], *last], np.int64)


def _different(members: Bool) -> tuple[Bool, Int64]:
    """Candidates without repetition and without empty ones, in their order; and for each that was given its place among them, -1 for an empty one."""
    first, groups = distinct(members)
    leads: Int64 = first[groups]  # the first that is like it
    kept = (leads == np.arange(len(members))) & members.any(axis=1)
    return members[kept], np.where(kept[leads], np.cumsum(kept)[leads] - 1, -1)
