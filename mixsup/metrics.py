"""Scores from one confusion matrix, and where along the boundaries the errors lie.

With n_ij the number of pixels of class i predicted as class j and t_i = Σ_j n_ij (diverse-supervision paper, section 4.1):

    pixel accuracy  Σ_i n_ii / Σ_i t_i                         mean accuracy  1/C Σ_i n_ii / t_i
    mean IoU        1/C Σ_i n_ii / (t_i + Σ_j n_ji - n_ii)     fw IoU         1/Σ_k t_k  Σ_i t_i n_ii / (t_i + Σ_j n_ji - n_ii)

Means run over the classes for which the fraction exists: a class that occurs neither in the truth nor in the predictions has no IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from mixsup.data.sample import VOID, Bool, Int64, UInt8

SEAM = 6.0  # pixels from the middle of a void seam to its rims; VOC's are 5 wide in all, wider ones appear where images were resized
TRIMAP_WIDTHS = (1, 2, 4, 8, 16)  # pixels; BoxSup's figure 4 shows the widths up to 40 of 500-pixel images


def confusion(truth: UInt8, predicted: UInt8, num_classes: int, where: Bool | None = None) -> Int64:
    """The confusion matrix of one image, C×C int64, rows are the truth.

    Args:
        truth: H×W class ids; 255 counts nowhere.
        predicted: H×W class ids; 255 counts nowhere.
        num_classes: C, background included.
        where: H×W, count only these pixels.
    """
    counted = (truth != VOID) & (predicted != VOID)
    if where is not None:
        counted &= where
    flat = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou_per_class(matrix: Int64) -> np.ndarray[Any, np.dtype[np.float64]]:
    """C float64 from 0 to 1, NaN for a class that occurs nowhere."""
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.asarray(np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0))


def scores(matrix: Int64, names: Sequence[str], truth: Int64 | None = None) -> dict[str, Any]:
    """The four scores (0 to 1) and `per_class` (name → IoU, None for a class that occurs nowhere).

    Args:
        matrix: C×C, rows are the truth.
        names: C class names, background first.
        truth: C, the pixels of each class in the truth, for labels that may ignore some: a class that they ignore altogether has an IoU and an accuracy of 0
            (in the matrix it is as if it occurred nowhere, and the mean over the rest would be the better for it).
    """
    iou = iou_per_class(matrix)
    hits, total = np.diag(matrix).astype(np.float64), matrix.sum(1).astype(np.float64)
    present = total > 0 if truth is None else truth > 0
    iou[present & np.isnan(iou)] = 0.0
    pixels = max(total.sum(), 1.0)
    return {
        "miou": _mean(iou[~np.isnan(iou)]),
        "pixel_accuracy": float(hits.sum() / pixels),
        "mean_accuracy": _mean(hits[present] / np.maximum(total[present], 1)),
        "fw_iou": float((total[present] * iou[present]).sum() / pixels),
        "per_class": {name: None if np.isnan(value) else float(value) for name, value in zip(names, iou, strict=True)},
    }


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _mean_or_none(values: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    """As `_mean`, without the NaN; None where nothing is left, as a score of 0 is another thing than none."""
    return _mean(values[~np.isnan(values)]) if (~np.isnan(values)).any() else None


def boundary_distance(truth: UInt8) -> np.ndarray[Any, np.dtype[np.float32]]:
    """H×W float32, the distance in pixels of each pixel to the nearest boundary in `truth`; 1 for a pixel on it. See `true_boundary`."""
    edge = true_boundary(truth)
    if not edge.any():
        return np.full(truth.shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32) + 1


def true_boundary(truth: UInt8) -> Bool:
    """H×W bool, the pixels of `truth` that lie at a boundary: beside another label, or beside a void seam that parts two labels.

    Pascal VOC draws boundaries as seams of void, 5 pixels wide. A seam is void within `SEAM` pixels of where the labels nearest to it meet; a broader
    void region, and one within a single label, is unknown ground, and nobody said that a boundary lies there.
    """
    edge, void = _edges(truth), truth == VOID
    if void.any() and not void.all():
        places = ndimage.distance_transform_edt(void, return_distances=False, return_indices=True)
        middle = _edges(truth[tuple(places)]) & void
        if middle.any():
            near = cv2.distanceTransform((~middle).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= SEAM
            beside = cv2.dilate(void.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) > 0
            edge |= beside & ~void & near
    return edge


def _edges(ids: UInt8, to_void: bool = False) -> Bool:
    """H×W bool, the pixels on both sides of a change of label; a change to void counts only `to_void`."""
    edge = np.zeros(ids.shape, bool)
    for axis in (0, 1):
        one = [slice(None), slice(None)]
        two = [slice(None), slice(None)]
        one[axis], two[axis] = slice(1, None), slice(None, -1)
        a, b = ids[tuple(one)], ids[tuple(two)]
        change = a != b
        if not to_void:
            change &= (a != VOID) & (b != VOID)
        edge[tuple(one)] |= change
        edge[tuple(two)] |= change
    return edge


def boundary_recall(truth: UInt8, target: UInt8, tolerance: float = 0.0075) -> tuple[int, int]:
    """How many boundary pixels of the truth have a boundary of the target near them, and how many there are.

    Near is within `tolerance` times the diagonal (at least 1 pixel), as in the Berkeley benchmark (Martin 2004), whose one-to-one matching is left
    out: this is recall alone. The edge of an ignored region is a boundary of the target: a source that ignores a thin seam has found the outline,
    one that ignores a broad region has not found what lies inside.

    Args:
        truth: H×W class ids; see `true_boundary` for void (255).
        target: H×W class ids, 255 ignored.
        tolerance: share of the image diagonal.
    """
    wanted, hit = boundary_hits(truth, target, tolerance)
    return int(hit.sum()), int(wanted.sum())


def boundary_hits(truth: UInt8, target: UInt8, tolerance: float = 0.0075) -> tuple[Bool, Bool]:
    """The pixels that `boundary_recall` counts: the boundary of the truth, H×W bool, and those of it that are found, H×W bool."""
    wanted = true_boundary(truth)
    found = _edges(target, to_void=True)
    if not wanted.any() or not found.any():
        return wanted, np.zeros_like(wanted)
    reach = max(1, round(tolerance * float(np.hypot(*truth.shape))))
    distance = cv2.distanceTransform((~found).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return wanted, wanted & (distance <= reach + 1e-3)


def boundary_band(mask: Bool, width: int) -> Bool:
    """H×W bool, the pixels of a region within `width` pixels of its outline; the image border is an outline (Cheng 2021)."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return np.asarray(mask & (inner == 0))


@dataclass
class BoundaryScores:
    """Boundary and interior mean IoU over trimap widths (BoxSup, section 5.1, figure 4), and boundary IoU (Cheng 2021).

    A pixel closer than the width to a change of the true label is boundary, the rest interior. Boundary IoU compares, per class, only the
    bands of 2 % of the image diagonal inside the outlines of truth and prediction. `widths` ascend.
    """

    num_classes: int
    widths: tuple[int, ...] = TRIMAP_WIDTHS
    band: float = 0.02
    _rings: Int64 = field(init=False)  # confusion matrices of the pixels between two widths; the last are those beyond all of them
    _hits: Int64 = field(init=False)
    _union: Int64 = field(init=False)

    def __post_init__(self) -> None:
        self._rings = np.zeros((len(self.widths) + 1, self.num_classes, self.num_classes), np.int64)
        self._hits, self._union = np.zeros(self.num_classes, np.int64), np.zeros(self.num_classes, np.int64)

    def add(self, truth: UInt8, predicted: UInt8) -> None:
        """Counts one image; both masks H×W class ids, 255 in the truth counts nowhere."""
        counted = (truth != VOID) & (predicted != VOID)
        ring = np.searchsorted(np.array(self.widths, np.float32), boundary_distance(truth)[counted])
        flat = (ring * self.num_classes + truth[counted]) * self.num_classes + predicted[counted]
        self._rings += np.bincount(flat, minlength=self._rings.size).reshape(self._rings.shape)
        width = max(1, round(self.band * float(np.hypot(*truth.shape))))
        known = truth != VOID
        filled = np.where(known, truth, predicted)  # void is not where an object ends: nobody said so
        for class_id in np.union1d(np.unique(truth[known]), np.unique(predicted[known])):
            one = boundary_band(filled == class_id, width) & known
            two = boundary_band(predicted == class_id, width) & known
            self._hits[class_id] += int((one & two).sum())
            self._union[class_id] += int((one | two).sum())

    def result(self) -> dict[str, Any]:
        """`trimap`: rows of width, boundary and interior mean IoU, None where no pixel is; `boundary_iou`: mean over classes. All 0 to 1."""
        rows = []
        for index, width in enumerate(self.widths):
            near, far = (iou_per_class(part.sum(0)) for part in (self._rings[: index + 1], self._rings[index + 1 :]))
            rows.append({"width": width, "boundary": _mean_or_none(near), "interior": _mean_or_none(far)})
        seen = self._union > 0
        return {"trimap": rows, "boundary_iou": _mean(self._hits[seen] / self._union[seen])}
