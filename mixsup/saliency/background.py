"""`background`: robust background detection (Zhu, Liang, Wei and Sun, "Saliency optimization from robust background detection", CVPR 2014).

MCOF takes the maps of DRFI (Jiang et al., CVPR 2013), a regressor that has no maintained package and no weights to rely on. This replaces it: nothing is
trained, and all of it is here. What touches the border of the picture for a long way is ground; what stands out from that ground is object.

The image is reduced to `side` pixels on its longer side and cut into about `superpixels` SLIC superpixels p of mean colour (CIE Lab, L from 0 to 100)
and centre (in parts of the longer side). Equations of the paper, in its order:

    d_app(p, q)  distance of the mean colours
    d_geo(p, q)  the shortest way from p to q over neighbours, each step costing d_app; superpixels at the border are neighbours of each other (eq. 2)
    S(p, q)      exp(-d_geo(p, q)² / 2 σ_clr²), how much of q belongs to the region of p
    BndCon(p)    Σ_{q at the border} S(p, q) / √(Σ_q S(p, q)), boundary connectivity (eq. 3 to 5)
    w_bg(p)      1 - exp(-BndCon(p)² / 2 σ_bnd²)  (eq. 7)
    w_ctr(p)     Σ_q d_app(p, q) exp(-d_spa(p, q)² / 2 σ_spa²) w_bg(q), contrast against probable ground (eq. 8)
    s            minimises Σ_p w_bg(p) s_p² + Σ_p w_fg(p) (s_p - 1)² + Σ_{neighbours p, q} w_pq (s_p - s_q)²  (eq. 9), that is, solves
                 (diag(w_bg + w_fg) + D - W) s = w_fg with D the row sums of W, a small linear system

with w_pq = exp(-d_app(p, q)² / 2 σ_clr²) + μ. σ_clr = 10, σ_bnd = 1, σ_spa = 0.25 and μ = 0.1 as the paper has them; its text and these numbers are
given from memory of it. Where it leaves something open:

- w_fg is w_ctr stretched to 0..1 over the image, since w_bg lies there, too. The solution is stretched in the same way.
- Many small steps inside a smooth region add up to a long way. As Wei et al. (ECCV 2012) do, a step first loses what is the rule in this image: the mean
  over all superpixels of the distance to their most similar neighbour; it never costs less than 0.
- Border superpixels are neighbours of each other for d_geo alone; the smoothness term of eq. 9 takes neighbours in the image.
- The map is painted on the reduced image and enlarged bilinearly.

A picture in which nothing contrasts (one colour, one superpixel) gives zeros. A picture of few pixels has one superpixel a pixel.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Bool, Float32, Int64, Sample, UInt8
from mixsup.masks.source import STRICT
from mixsup.saliency.source import SaliencySource, resized, stretched

Above = Annotated[float, Field(gt=0)]
Float64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_COMPACTNESS = 10.0  # of SLIC: distance in pixels, over the side of a superpixel, that weighs as much as one unit of CIE Lab


@dataclass(frozen=True, config=STRICT)
class Background(SaliencySource):
    """Robust background detection on superpixels; the module's text has the formulas.

    Attributes:
        side: the image is reduced to this many pixels on its longer side.
        superpixels: about how many; with more than some hundreds the time grows with their cube.
        colour: σ_clr, in CIE Lab units.
        boundary: σ_bnd.
        space: σ_spa, in parts of the longer side.
        floor: μ, the least weight between neighbours.
    """

    side: Annotated[int, Field(ge=16, le=2000)] = 300
    superpixels: Annotated[int, Field(ge=4, le=1000)] = 250
    colour: Above = 10.0
    boundary: Above = 1.0
    space: Above = 0.25
    floor: Above = 0.1
    name: ClassVar[str] = "background"
    in_workers: ClassVar[bool] = True

    def __call__(self, image: UInt8, sample: Sample) -> Float32:
        size = (image.shape[0], image.shape[1])
        small = reduced(image, self.side)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        parts = superpixels(np.asarray(lab, np.float32), self.superpixels)
        values = self._values(np.asarray(lab, np.float64), parts)
        return resized(values.astype(np.float32)[parts], size)

    def _values(self, lab: Float64, parts: Int64) -> Float64:
        """Saliency of each superpixel, N float64 in 0..1."""
        count = int(parts.max()) + 1
        if count == 1:
            return np.zeros(1)
        colours, centres = means(lab, parts, count)
        apart = distances(colours)
        pairs = neighbours(parts, count)
        border = np.zeros(count, bool)
        border[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = True

        belonging = np.exp(-(geodesic(apart, pairs, border) ** 2) / (2 * self.colour**2))
        connectivity = belonging[:, border].sum(axis=1) / np.sqrt(belonging.sum(axis=1))
        ground = 1 - np.exp(-(connectivity**2) / (2 * self.boundary**2))
        near = np.exp(-(distances(centres) ** 2) / (2 * self.space**2))
        contrast = (apart * near) @ ground
        objects = stretched(contrast).astype(np.float64)
        if not objects.any():
            return objects

        weights = np.where(pairs, np.exp(-(apart**2) / (2 * self.colour**2)) + self.floor, 0)
        system = np.diag(ground + objects + weights.sum(axis=1)) - weights
        # Border superpixels are connected to the border at least by themselves, so `ground` is above 0 there and the system has one solution.
        return stretched(np.linalg.solve(system, objects)).astype(np.float64)


def reduced(image: UInt8, side: int) -> UInt8:
    """The image with at most `side` pixels on its longer side, h×w×3 uint8."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def superpixels(lab: Float32, count: int) -> Int64:
    """h×w int64 labels from 0 without gaps: about `count` SLIC superpixels of an image in CIE Lab; in a smaller image its pixels."""
    from skimage.segmentation import slic

    height, width = lab.shape[:2]
    if height * width <= count:
        return np.arange(height * width).reshape(height, width)
    labels = slic(lab, n_segments=count, compactness=_COMPACTNESS, convert2lab=False, start_label=0, channel_axis=-1)
    return np.asarray(np.unique(labels, return_inverse=True)[1], np.int64).reshape(height, width)


def means(lab: Float64, parts: Int64, count: int) -> tuple[Float64, Float64]:
    """Mean colour (N×3) and centre (N×2, x and y in parts of the longer side) of each superpixel."""
    flat = parts.ravel()
    rows, columns = np.indices(parts.shape)
    pixels = np.bincount(flat, minlength=count)
    sums = [np.bincount(flat, plane.ravel(), count) / pixels for plane in (*np.moveaxis(lab, 2, 0), columns, rows)]
    return np.stack(sums[:3], axis=1), np.stack(sums[3:], axis=1) / max(parts.shape)


def distances(points: Float64) -> Float64:
    """N×N Euclidean distances of all pairs of N×D points."""
    return np.asarray(np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2)), np.float64)


def neighbours(parts: Int64, count: int) -> Bool:
    """N×N symmetric: which superpixels share an edge of a pixel; False on the diagonal."""
    pairs = np.zeros((count, count), bool)
    pairs[parts[:, :-1], parts[:, 1:]] = True
    pairs[parts[:-1], parts[1:]] = True
    pairs |= pairs.T
    np.fill_diagonal(pairs, False)
    return pairs


def geodesic(apart: Float64, pairs: Bool, border: Bool) -> Float64:
    """d_geo of all pairs.

    Args:
        apart: N×N, d_app.
        pairs: N×N, which are neighbours in the image.
        border: N, which touch the border of the image.

    Returns:
        N×N float64, 0 on the diagonal.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    usual = float(np.where(pairs, apart, np.inf).min(axis=1).mean())
    rows, columns = np.nonzero(pairs | (border[:, None] & border[None]))
    steps = np.maximum(apart[rows, columns] - usual, 1e-9)  # a step of exactly 0 might be taken for no step
    return np.asarray(dijkstra(csr_matrix((steps, (rows, columns)), shape=apart.shape), directed=False), np.float64)
