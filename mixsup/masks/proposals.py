"""A pool of candidate masks of one image: superpixels and which of them each candidate holds.

So every question about all candidates is one count over pixels and one matrix product, and no pass over pixels for each candidate: overlap with boxes
(BoxSup, eq. 2), with true masks, and later with a network's scores (eq. 3).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixsup.data.sample import Bool, Boxes, Float32, Int64, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.source import MaskSource

Ids = npt.NDArray[np.integer[Any]]  # in whatever type is large enough


@dataclass(frozen=True)
class Proposals:
    """Candidates of one image, the most likely object first.

    Attributes:
        size: (H, W) of the image.
        superpixels: H×W ids 0..S-1.
        members: P×S bool; a candidate is the union of its superpixels.
        lists: N×K int64, for N boxes the candidates that each may choose, best first, -1 behind the last; None where any box may choose any.
        tight: what `boxes` says, where it is known already.
    """

    size: tuple[int, int]
    superpixels: Ids
    members: Bool
    lists: Int64 | None = None
    tight: Int64 | None = None

    def __post_init__(self) -> None:
        if self.superpixels.shape != self.size:
            raise ValueError(f"superpixels of {self.superpixels.shape} for an image of {self.size}")
        least, most = int(self.superpixels.min()), int(self.superpixels.max())
        if least < 0 or most >= self.members.shape[1]:
            raise ValueError(f"superpixel ids {least}..{most} for {self.members.shape[1]} columns of members")
        if self.lists is not None and (
            self.lists.ndim != 2 or (self.lists.size and not -1 <= self.lists.min() <= self.lists.max() < len(self.members))
        ):
            raise ValueError(f"lists of candidates that are not there, among {len(self.members)}")
        if self.tight is not None and self.tight.shape != (len(self.members), 4):
            raise ValueError(f"tight windows of {self.tight.shape} for {len(self.members)} candidates")

    def __len__(self) -> int:
        return len(self.members)

    def counts(self, where: Bool | None = None) -> Float32:
        """S float32: pixels of each superpixel, of those in `where` (H×W) if given."""
        ids = self.superpixels.ravel() if where is None else self.superpixels[where]
        return np.bincount(ids, minlength=self.members.shape[1]).astype(np.float32)

    def areas(self, weights: Float32 | None = None) -> Float32:
        """The sum of `weights` (S or S×K, one value or row a superpixel; default its pixels) over each candidate: P or P×K float32."""
        return np.asarray(self.members.astype(np.float32) @ (self.counts() if weights is None else weights), np.float32)

    def mask(self, proposal: int) -> Bool:
        """H×W bool of one candidate."""
        return np.asarray(self.members[proposal][self.superpixels], bool)

    def boxes(self) -> Int64:
        """P×4 int64: the tight window x0, y0, x1, y1 of each candidate (all 0 where it is empty)."""
        if self.tight is not None:
            return self.tight
        result = np.zeros((len(self), 4), np.int64)
        # Sorted by where they begin (or end), the first superpixel of a candidate decides its side.
        for side, place in enumerate(_extents(self.superpixels, self.members.shape[1])):
            order = np.argsort(place if side < 2 else -place, kind="stable")
            result[:, side] = place[order[self.members[:, order].argmax(axis=1)]]
        result[~(self.members & (self.counts() > 0)).any(axis=1)] = 0
        return result

    def overlaps(self, counts: Float32) -> Float32:
        """P×N float32 IoU with N masks, each given by how many of its pixels lie in each superpixel (N×S)."""
        inside = self.areas(np.ascontiguousarray(counts.T, np.float32))
        union = self.areas()[:, None] + counts.sum(axis=1)[None] - inside
        return np.asarray(inside / np.maximum(union, 1), np.float32)

    def box_counts(self, boxes: Boxes) -> Float32:
        """N×S float32: pixels of each superpixel in the window of each box."""
        rows = [
            np.bincount(self.superpixels[y0:y1, x0:x1].ravel(), minlength=self.members.shape[1])
            for x0, y0, x1, y1 in boxes.windows(self.size)
        ]
        return np.array(rows, np.float32).reshape(len(boxes), self.members.shape[1])

    def best_for_boxes(self, boxes: Boxes) -> tuple[Int64, Float32]:
        """For each box the candidate that overlaps its filled rectangle most, N int64, and their IoU, N float32 (the first of equals).

        Raises:
            ValueError: the pool is empty.
        """
        overlaps = self.overlaps(self.box_counts(boxes))
        best = overlaps.argmax(axis=0)
        return best, overlaps[best, np.arange(len(boxes))]

    def best_iou_with(self, masks: Sequence[Bool]) -> Float32:
        """The IoU of the best candidate with each of N true masks (H×W bool): how good the pool could be. N float32."""
        if not len(masks):
            return np.zeros(0, np.float32)
        return np.asarray(self.overlaps(np.stack([self.counts(mask) for mask in masks])).max(axis=0), np.float32)

    def to_bytes(self) -> bytes:
        """As an npz file: ids in the smallest type that holds them, members one bit each, and the tight windows, which take longer to find than to read."""
        stream = io.BytesIO()
        count = self.members.shape[1]
        small = self.superpixels.astype(np.min_scalar_type(max(count - 1, 0)))
        lists = np.zeros((0, 0), np.int32) if self.lists is None else self.lists.astype(np.int32)
        members, tight = np.packbits(self.members, axis=1), self.boxes().astype(np.int32)
        arrays = {"superpixels": small, "members": members, "count": np.int64(count), "lists": lists, "tight": tight}
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        return stream.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> Proposals | None:
        """Reads `to_bytes`; None when the data are damaged, so that they are made anew. Nothing is unpickled."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                superpixels = arrays["superpixels"]
                if not np.issubdtype(superpixels.dtype, np.integer):
                    return None
                members = np.unpackbits(arrays["members"], axis=1, count=int(arrays["count"])).astype(bool)
                height, width = superpixels.shape
                lists, tight = arrays["lists"].astype(np.int64), arrays["tight"].astype(np.int64)
                return Proposals((height, width), superpixels, members, lists if lists.shape[1] else None, tight)
        except (OSError, ValueError, KeyError, EOFError, TypeError, IndexError, zipfile.BadZipFile, zlib.error, NotImplementedError):
            return None


def _extents(superpixels: Ids, count: int) -> Int64:
    """4×S int64: x0, y0, x1, y1 of each superpixel; one without a pixel begins behind the image and ends before it."""
    height, width = superpixels.shape
    result = np.empty((4, count), np.int64)
    result[:2], result[2:] = max(height, width) + 1, -1
    for index, found in enumerate(ndimage.find_objects(superpixels.astype(np.int32) + 1, max_label=count)):
        if found is not None:
            rows, columns = found
            result[:, index] = columns.start, rows.start, columns.stop, rows.stop
    return result


class ProposalSource(MaskSource):
    """A source that makes a pool of candidates. As a mask source it gives each box the candidate that overlaps the filled box most.

    BoxSup's eq. 2, which `refresh=boxsup` has, compares the box with the tight box of a candidate. Without a network beside it that takes thin things that only
    touch the box's sides: on five photographs of CCP another candidate for 25 of 65 boxes, of IoU 0.70 with the truth where these have 0.72.

    A box whose best candidate overlaps it less than `floor` stays a rectangle; crowds stay whole.
    """

    floor: float

    @abstractmethod
    def propose(self, image: UInt8) -> Proposals:
        """The pool of an H×W×3 uint8 RGB image, at least one candidate, the most likely object first."""

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        if not len(boxes):
            return BoxMasks.of(boxes, size, [])
        pool = self.propose(image)
        masks = []
        for (x0, y0, x1, y1), crowd, best, overlap in zip(boxes.windows(size), boxes.crowd, *pool.best_for_boxes(boxes), strict=True):
            if crowd or overlap < self.floor:
                masks.append(np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8))
            else:
                masks.append(np.where(pool.members[best][pool.superpixels[y0:y1, x0:x1]], FOREGROUND, 0).astype(np.uint8))
        return BoxMasks.of(boxes, size, masks)


def distinct(members: Bool) -> tuple[Int64, Int64]:
    """Which of P candidates (P×S bool) differ.

    Rows are compared as strings of bytes; `np.unique(axis=0)` compares them field by field, which took a sixth of all that a pool takes.

    Returns:
        The first of each group of equals, in the order of their superpixels (0 before 1, the first superpixel first), K; and for each candidate its
        group's place there, P.
    """
    packed = np.packbits(members, axis=1)
    _, first, groups = np.unique(packed.view(f"S{packed.shape[1]}").ravel(), return_index=True, return_inverse=True)
    return first, groups


def without_twins(members: Bool, areas: Float32, limit: int, most: float) -> Int64:
    """Goes through ranked candidates and keeps the first of each group of near equals.

    Args:
        members: P×S bool, best first.
        areas: S float32, pixels of the superpixels.
        limit: at most so many are kept.
        most: a candidate with at least this IoU with a kept one is dropped.

    Returns:
        Indices of the kept ones, ascending.
    """
    inside = members.astype(np.float32)
    sizes = inside @ areas
    shared = (inside * areas) @ inside.T
    twins = shared >= most * (sizes[:, None] + sizes[None] - shared)
    gone = np.zeros(len(members), bool)
    kept: list[int] = []
    for index in range(len(members)):
        if not gone[index] and sizes[index] > 0:
            kept.append(index)
            if len(kept) == limit:
                break
            gone |= twins[index]
    return np.array(kept, np.int64)
