"""What labels cost, and which of them to make next.

**Cost.** Whoever labels an image looks for each class, and then draws each object: `tag` seconds for every class of the class list, and `box` or `mask`
seconds for every object. The defaults are measured times:

- 1 s a class and image: 20 s a VOC image of tags (Bearman et al., What's the Point, ECCV 2016).
- 7 s a box: extreme clicking (Papadopoulos et al., ICCV 2017); with the older way of drawing, 35 s (Su et al., HCOMP workshop 2012).
- 79 s a mask of one object: COCO (Lin et al., ECCV 2014). With VOC's 2.8 objects an image this is 241 s an image; Bearman et al., who count the time of
  looking for absent classes only, have 239.7 s.

**Model.** Images with weak labels are worth a share of images with masks, and mean IoU grows by the same amount whenever that number doubles:

    mIoU = a + b · log2(n_masks + w_boxes · n_boxes + w_tags · n_tags) + noise

with 0 <= w_tags <= w_boxes <= 1, uniform over that triangle, and b >= 0. (a, b, variance of the noise) have the conjugate normal-inverse-gamma prior on
each cell of a grid over (w_boxes, w_tags), cells are weighed by their marginal likelihood, and everything is computed without drawing random numbers.

Prior, in points of mean IoU: the level in the middle of the runs 50 ± 30, a doubling 3 ± 3 (cut off at 0), noise of a run about 1.

Assumptions: the runs differ in nothing but their labels; images are drawn at random, so that the next ones are like the last ones; a doubling is worth the same
everywhere, which fails near saturation; an exchange rate does not change with the number of images; and labels never hurt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from mixsup.data.sample import KINDS, LabelKind
from mixsup.errors import MixsupError

Float64 = npt.NDArray[np.float64]

GRID = 120  # exchange rates a side; half as many move the probability of being the best choice by a point or so
LEVEL, SLOPE = (50.0, 30.0), (3.0, 3.0)  # prior mean, and deviation in units of the noise's
SHAPE, RATE = 2.0, 2.0  # of the variance's inverse-gamma prior: its median is 1.2 square points
COVER = 0.8  # of the intervals


@dataclass(frozen=True)
class Seconds:
    """Working time of labels.

    Attributes:
        tag: seconds for each class of the class list on each image, whatever its kind of label.
        box: seconds for each object of an image with boxes.
        mask: seconds for each object of an image with masks.

    Raises:
        MixsupError: a time that is not above 0.
    """

    tag: float = 1.0
    box: float = 7.0
    mask: float = 79.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < math.inf:
                raise MixsupError(f"--{field.name}-seconds {value:g}: labels take time; give seconds above 0")

    def image(self, kind: LabelKind, objects: float, classes: int) -> float:
        """Seconds for one image.

        Args:
            kind: of label.
            objects: in the image, or the mean over images.
            classes: in the class list, without background.
        """
        return self.tag * classes + {"masks": self.mask, "boxes": self.box, "tags": 0.0}[kind] * objects


@dataclass(frozen=True)
class Estimate:
    """A mean and the interval around the median that holds 80 %."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """The posterior of mIoU = a + b · (x - mean of x), for C cells at once. In points of mean IoU; b is a shifted and scaled Student's t, cut off at 0.

    Attributes:
        slope: C, the location of b.
        scale: C, the scale of b.
        freedom: degrees of freedom.
        evidence: C, log marginal likelihood of the scores.
    """

    slope: Float64
    scale: Float64
    freedom: float
    evidence: Float64

    def mean(self) -> Float64:
        """C, the mean of b >= 0."""
        from scipy.stats import t

        edge = -self.slope / self.scale
        heavier = (self.freedom + edge**2) / (self.freedom - 1) * np.exp(t.logpdf(edge, self.freedom) - t.logsf(edge, self.freedom))
        return np.asarray(self.slope + self.scale * heavier, np.float64)

    def below(self, value: Float64) -> Float64:
        """C, the probability that b is at most `value` (C, 0 or more)."""
        from scipy.stats import t

        edge = -self.slope / self.scale
        # Upper tails: where the slope lies far below 0, both are tiny and their ratio is not.
        beyond = np.exp(t.logsf((value - self.slope) / self.scale, self.freedom) - t.logsf(edge, self.freedom))
        return np.asarray(1 - beyond, np.float64)


def fit_line(x: Float64, y: Float64) -> Line:
    """Conjugate posterior and marginal likelihood of a line with a slope of 0 or more.

    Args:
        x: C×R, log2 of the images' worth, of R runs in C cells.
        y: R scores in points of mean IoU.
    """
    from scipy.special import gammaln
    from scipy.stats import t

    count = len(y)
    centred = x - x.mean(axis=1, keepdims=True)  # so that level and slope do not depend on each other
    tight = np.array([LEVEL[1] ** -2, SLOPE[1] ** -2])
    spread = (centred**2).sum(axis=1)  # C
    level = (tight[0] * LEVEL[0] + y.sum()) / (tight[0] + count)
    slope = (tight[1] * SLOPE[0] + centred @ y) / (tight[1] + spread)
    left = ((y - level - slope[:, None] * centred) ** 2).sum(axis=1)
    rate = RATE + 0.5 * (left + tight[0] * (level - LEVEL[0]) ** 2 + tight[1] * (slope - SLOPE[0]) ** 2)
    shape = SHAPE + 0.5 * count
    scale = np.sqrt(rate / shape / (tight[1] + spread))
    evidence = (
        gammaln(shape) - gammaln(SHAPE) + SHAPE * math.log(RATE) - shape * np.log(rate) - 0.5 * count * math.log(2 * math.pi)
        + 0.5 * np.log(tight.prod() / (tight[0] + count) / (tight[1] + spread))
    )  # fmt: skip
    # Slopes below 0 are cut out of prior and posterior alike.
    evidence = evidence + t.logsf(-slope / scale, 2 * shape) - t.logsf(-SLOPE[0] / (SLOPE[1] * math.sqrt(RATE / SHAPE)), 2 * SHAPE)
    return Line(slope, scale, 2 * shape, np.asarray(evidence, np.float64))


@dataclass(frozen=True)
class Posterior:
    """What the runs say about exchange rates and slope.

    Attributes:
        worth: C×3, worth of an image with masks (1), boxes and tags in images with masks.
        probability: C, of the cells; sums to 1.
        line: the posterior of the slope in each cell.
    """

    worth: Float64
    probability: Float64
    line: Line

    def rate(self, kind: LabelKind) -> Estimate:
        """How many images with masks an image of this kind is worth."""
        values = self.worth[:, KINDS.index(kind)]
        order = np.argsort(values, kind="stable")
        heap = np.cumsum(self.probability[order])
        low, high = (float(values[order][np.flatnonzero(heap >= edge)[0]]) for edge in _edges())
        return Estimate(float(self.probability @ values), low, high)

    def doublings(self, before: Float64, after: Float64) -> Float64:
        """C, log2 of how many times more the images are worth. `before` and `after`: numbers of images by kind, in the order of `KINDS`."""
        return np.asarray(np.log2((self.worth @ after) / (self.worth @ before)), np.float64)

    def gain(self, before: Float64, after: Float64) -> Estimate:
        """How much the curve rises, 0 to 1 of mean IoU; a single run scatters around the curve besides."""
        steps = self.doublings(before, after)
        if not steps.max() > 0:
            return Estimate(0.0, 0.0, 0.0)
        low, high = (self._quantile(steps, edge) / 100 for edge in _edges())
        return Estimate(float(self.probability @ (self.line.mean() * steps)) / 100, low, high)

    def _quantile(self, steps: Float64, share: float) -> float:
        """Where the mixture of all cells' gains, in points, reaches a share; by bisection."""
        steps = np.maximum(steps, 1e-12)
        low, high = 0.0, 1.0
        while self.probability @ self.line.below(high / steps) < share:
            high *= 2
        for _ in range(50):
            middle = (low + high) / 2
            if self.probability @ self.line.below(middle / steps) < share:
                low = middle
            else:
                high = middle
        return high


def fit(images: Sequence[Mapping[LabelKind, int]], miou: Sequence[float]) -> Posterior:
    """Fits the model.

    Args:
        images: of each run, numbers of images by kind of label; at least one image a run.
        miou: of each run, 0 to 1.
    """
    # Roots of the rates are evenly spread: what a tag is worth matters down to a hundredth, because it costs so little.
    roots = (np.arange(GRID) + 0.5) / GRID
    boxes, tags = (part.ravel() for part in np.meshgrid(roots, roots, indexing="ij"))
    prior = boxes * tags * np.select([tags < boxes, tags == boxes], [1.0, 0.5], 0.0)  # the rates' own prior is uniform
    inside = prior > 0
    worth = np.stack([np.ones(int(inside.sum())), boxes[inside] ** 2, tags[inside] ** 2], axis=1)
    counts = np.array([vector(row) for row in images])  # R×3
    line = fit_line(np.log2(worth @ counts.T), 100 * np.asarray(miou, np.float64))
    weight = prior[inside] * np.exp(line.evidence - line.evidence.max())
    return Posterior(worth, weight / weight.sum(), line)


@dataclass(frozen=True)
class Option:
    """One thing that could be labelled next.

    Attributes:
        images: so many more of this kind.
        hours: that they take; fewer than asked for when the images run out.
        gain: in mean IoU, 0 to 1.
        best: probability that no other kind gains more.
    """

    images: int
    hours: float
    gain: Estimate
    best: float


def options(
    posterior: Posterior, before: Mapping[LabelKind, int], seconds: Mapping[LabelKind, float], hours: float, unlabelled: int
) -> dict[LabelKind, Option]:
    """What a number of hours would bring, spent on each kind of label alone.

    Args:
        posterior: see `fit`.
        before: images by kind that are labelled already.
        seconds: an image takes, by the kinds to choose from.
        hours: of labelling.
        unlabelled: images that are left to label.
    """
    start = vector(before)
    more = {kind: int(min(hours * 3600 / each, unlabelled)) for kind, each in seconds.items()}
    after = {kind: start + vector({kind: count}) for kind, count in more.items()}
    # The slope is the same for all kinds, so the exchange rates alone decide which is best.
    steps = np.stack([posterior.doublings(start, value) for value in after.values()], axis=1)  # C×kinds
    leads = steps >= steps.max(axis=1, keepdims=True) - 1e-12
    best = posterior.probability @ (leads / leads.sum(axis=1, keepdims=True))
    return {
        kind: Option(more[kind], more[kind] * seconds[kind] / 3600, posterior.gain(start, after[kind]), float(chance))
        for kind, chance in zip(after, best, strict=True)
    }


def vector(images: Mapping[LabelKind, int]) -> Float64:
    """Numbers of images in the order of `KINDS`."""
    return np.array([images.get(kind, 0) for kind in KINDS], np.float64)


def _edges() -> tuple[float, float]:
    return (1 - COVER) / 2, (1 + COVER) / 2
