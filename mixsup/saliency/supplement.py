"""MCOF section 4.3: object regions are supplemented by what is salient and looks like them (Wang, You, Li and Ma, CVPR 2018).

For an image with a single object class, the regions mined so far (key parts) and a saliency map become one map by Bayes' rule,

    p(obj|v) = p(obj) p(v|obj) / (p(obj) p(v|obj) + p(bg) p(v|bg))    (eq. 2),

where p(obj) is the saliency, p(bg) = 1 - p(obj), and p(v|obj) and p(v|bg) are the distributions of a pixel's feature v over the object regions and over
the rest. A CRF binarises the map. Images with several object classes stay as they are.

What the paper leaves open:

- The feature v: CIE Lab colour, one histogram a channel, the three multiplied as if independent. So do Rahtu et al. (ECCV 2010) and Xie, Lu and Yang
  (IEEE Trans. Image Processing 2013), from whom this use of Bayes' rule comes. A joint histogram of few regions would be mostly empty.
- Its smoothing: each histogram is convolved with a Gaussian of one bin, reflected at the ends, so that a shade beside a seen one is not impossible.
- The CRF's numbers: those of DeepLab-CRF that `mixsup.engine.output_crf` has, in parts of the image's longer side.
- "Refined object regions" replace the old ones: what the CRF takes away becomes background. Where it leaves no object at all the labels stay.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.crf import mean_field
from mixsup.crf.settings import Settings
from mixsup.data.sample import BACKGROUND, VOID, Bool, Float32, Int64, UInt8
from mixsup.masks.source import STRICT

Float64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_RANGES = ((0.0, 100.0), (-100.0, 100.0), (-100.0, 100.0))  # of L, a and b; the few colours beyond count in the last bins
_PER = 500  # pixels of the longer side for which the CRF's distances are given


@dataclass(frozen=True, config=STRICT)
class Refinement:
    """Settings of the posterior and of the CRF that binarises it.

    Attributes:
        bins: of each histogram.
        smooth: standard deviation in bins of the Gaussian that smooths them; 0 leaves it out.
        iterations, w1, theta_beta, w2: of the CRF, see `mixsup.crf.mean_field`; theta_beta is in grey levels.
        theta_alpha, theta_gamma: its distances, in pixels of an image of 500 pixels on its longer side; in proportion for others.
        max_side: a longer image is reduced to this many pixels on its longer side; the result is enlarged.
    """

    bins: Annotated[int, Field(ge=2, le=256)] = 64
    smooth: Annotated[float, Field(ge=0, le=100)] = 1.0
    iterations: int = 10
    w1: float = 4.0
    theta_alpha: float = 121.0
    theta_beta: float = 5.0
    w2: float = 3.0
    theta_gamma: float = 3.0
    max_side: Annotated[int, Field(ge=1)] = 500

    def __post_init__(self) -> None:
        # The same check as the inference makes, but before the first image.
        Settings(self.iterations, self.w1, self.theta_alpha, self.theta_beta, self.w2, self.theta_gamma, 0.0)


def posterior(
    image: UInt8, saliency: Float32, regions: Bool, *, ground: Bool | None = None, bins: int = 64, smooth: float = 1.0
) -> Float32:
    """Equation 2: how likely each pixel is object, given how salient it is and how alike its colour is to the regions'.

    Args:
        image: H×W×3 uint8 RGB.
        saliency: H×W float32 in 0..1, p(obj).
        regions: H×W bool, the object regions, from which p(v|obj) is counted.
        ground: H×W bool, from which p(v|bg) is counted; None for all that is not in `regions`.
        bins: of each histogram, at least 1.
        smooth: standard deviation in bins of the Gaussian that smooths the histograms; 0 for none.

    Returns:
        H×W float32 in 0..1. Where eq. 2 is 0 / 0 (a colour that neither distribution knows, or one that the certain side of the saliency excludes) the
        colour says nothing and the saliency stays. So it does everywhere when `regions` or `ground` is empty: there is nothing to compare.
    """
    prior = np.clip(saliency.astype(np.float64), 0, 1)
    ground = ~regions if ground is None else ground
    if not regions.any() or not ground.any():
        return prior.astype(np.float32)
    indices = _bins(image, bins)  # 3×H×W
    objects = prior * _likelihood(indices, regions, bins, smooth)
    total = objects + (1 - prior) * _likelihood(indices, ground, bins, smooth)
    return np.divide(objects, total, out=prior, where=total > 0).astype(np.float32)


def supplement(image: UInt8, saliency: Float32, labels: UInt8, class_id: int, settings: Refinement | None = None) -> UInt8:
    """Refined object regions of an image with one object class: eq. 2, binarised by the dense CRF.

    The labels come back as they are where there is nothing to refine or nothing to refine from: no pixel of `class_id`, no background, pixels of another
    object class, or no object left by the CRF.

    Args:
        image: H×W×3 uint8 RGB.
        saliency: H×W float32 in 0..1.
        labels: H×W uint8: class ids, 0 for the background, 255 for void. Void pixels count for neither distribution and stay void.
        class_id: of the one object class, 1 to 254; see `only_class`.
        settings: None for the defaults.

    Returns:
        H×W uint8, a new array: `class_id` where the binarised map has the object, 0 elsewhere, 255 where it was.
    """
    settings = settings or Refinement()
    held = set(np.unique(labels).tolist()) - {VOID}
    if held != {BACKGROUND, class_id}:
        return np.array(labels, np.uint8)
    found = _binarised(image, saliency, labels, class_id, settings) & (labels != VOID)
    if not found.any():
        return np.array(labels, np.uint8)
    return np.where(labels == VOID, VOID, np.where(found, class_id, BACKGROUND)).astype(np.uint8)


def only_class(labels: UInt8, tags: Collection[int] | None = None) -> int | None:
    """The one object class of an image, or None where it has none or several.

    Args:
        labels: H×W uint8, 0 background, 255 void.
        tags: ids of the object classes that are known to be in the image; they decide where they are given.
    """
    present = set(np.unique(labels).tolist()) - {BACKGROUND, VOID} if tags is None else set(tags)
    return int(present.pop()) if len(present) == 1 else None


def _binarised(image: UInt8, saliency: Float32, labels: UInt8, class_id: int, settings: Refinement) -> Bool:
    """H×W bool, where the CRF on the posterior has the object."""
    size = (image.shape[0], image.shape[1])
    scale = min(1.0, settings.max_side / max(size))
    if scale < 1:
        small = max(1, round(size[1] * scale)), max(1, round(size[0] * scale))
        image = np.asarray(cv2.resize(image, small, interpolation=cv2.INTER_AREA), np.uint8)
        saliency = np.asarray(cv2.resize(saliency, small, interpolation=cv2.INTER_AREA), np.float32)
        labels = np.asarray(cv2.resize(labels, small, interpolation=cv2.INTER_NEAREST), np.uint8)
    regions, ground = labels == class_id, labels == BACKGROUND
    if not regions.any() or not ground.any():  # too small to be seen at this size; saliency alone must not decide
        return np.zeros(size, bool)
    refined = posterior(image, saliency, regions, ground=ground, bins=settings.bins, smooth=settings.smooth)
    # A probability of 0 is unlikely, not forbidden: the map is made of rough guesses.
    both = np.maximum(np.stack([1 - refined, refined]), np.float32(1e-4))
    factor = max(image.shape[:2]) / _PER
    probabilities = mean_field(
        -np.log(both), np.ascontiguousarray(image), iterations=settings.iterations, w1=settings.w1, theta_alpha=settings.theta_alpha * factor,
        theta_beta=settings.theta_beta, w2=settings.w2, theta_gamma=settings.theta_gamma * factor,
    )  # fmt: skip
    objects = probabilities[1]
    if scale < 1:
        objects = np.asarray(cv2.resize(objects, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(objects.reshape(size) > 0.5)


def _bins(image: UInt8, bins: int) -> Int64:
    """3×H×W int64, the bin of each pixel's L, a and b."""
    lab = cv2.cvtColor(np.ascontiguousarray(image).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    scaled = [(lab[..., channel] - low) / (high - low) for channel, (low, high) in enumerate(_RANGES)]
    return np.asarray(np.clip(np.floor(np.stack(scaled) * bins), 0, bins - 1), np.int64)


def _likelihood(indices: Int64, members: Bool, bins: int, smooth: float) -> Float64:
    """H×W float64, p(v) of each pixel under the colours of `members`: the product of three normalised histograms."""
    from scipy.ndimage import gaussian_filter1d

    product = np.ones(members.shape)
    for channel in indices:
        histogram = np.bincount(channel[members], minlength=bins) / members.sum()
        if smooth > 0:
            histogram = gaussian_filter1d(histogram, smooth, mode="reflect")
        product *= histogram[channel]
    return product
