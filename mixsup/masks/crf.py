"""`crf`: a conditional random field decides between the boxes of an image and the background (WSSL's Bbox-Seg, which BCM section 3.1 starts from).

Papandreou et al. (2015) fix the pixels outside all boxes as background, pull the centre of each box to the foreground, and leave the rest to a fully
connected CRF whose parameters they search on true masks; BCM uses the same. Neither gives the numbers. Those below were set once for all data, on 40 training
images of CCP and 40 images of coco128, `spread` and `narrow` later on the demo's as well (docs/results.md has the story, and other images). All boxes that lie
close together are inferred at once, in two steps:

1. On superpixels, where sums over all pairs are exact and cheap. A label's unary is its place in its box (`centre`, `rim`, `spread`; in a large box the centre
   reaches less far, or the ground in it begins as foreground and stays; a smaller box has more to say about a pixel than a larger one) times how likely its
   colours are: a kernel density over the superpixels that hold the label so far, near ones counting more, estimated anew in each of `rounds`, as GrabCut does
   with its mixtures. A box that is losing everything is pulled up until it keeps the share `floor` of its pixels (the cardinality idea of WSSL's EM-Adapt; the
   30 % are those of diverse supervision, section 3.2).
2. On pixels, with the fully connected CRF of `mixsup.crf`, which moves the outlines from the superpixels' to the image's.

`rounds = 0` leaves the colour densities out: centre, rim and the CRF alone, the plain form of WSSL. docs/results.md has the scores of both.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import BACKGROUND, Bool, Boxes, Float32, Int64, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.source import STRICT, MaskSource

Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Above = Annotated[float, Field(gt=0)]

_FEW = 1024  # pixels; in a window with fewer each pixel is its own superpixel
_UNLIKELY = 1e-3  # probability below which the superpixels have no more say over a pixel
_SMALL = 12.0  # superpixels
_MIXED = 0.1  # share of the mean of all densities in each, so that an unseen colour excludes no label


@dataclass(frozen=True, config=STRICT)
class BoxCRF(MaskSource):
    """A CRF over the boxes of an image.

    Attributes:
        rounds: of colour densities and inference on superpixels; 0 leaves them out.
        pixels: a group of boxes is reduced to this many pixels.
        context: how much of the surroundings is seen, in box sides on each side of a box.
        superpixel: side in working pixels.
        centre: prior probability of the foreground at the centre of a box.
        rim: and far from it.
        spread: standard deviation of the way between them, in half box sides, in a box up to 12 superpixels wide (the root of its area). In a wider one it
            falls inversely with the width, so that less of what lies far from the centre and from the known background begins as foreground,
        narrow: down to this.
        trust: exponent of the densities; below 1 because neighbouring superpixels are no independent witnesses.
        colour: standard deviation of the densities in CIE Lab units.
        reach: how far a superpixel speaks for the colours of others, standard deviation in working pixels.
        smooth: weight of the messages between neighbouring superpixels.
        floor: a label is pulled up until it holds this share of its box.
        least: a mask that holds less than this share of its box has collapsed; the box stays a rectangle.
        iterations, w1, theta_alpha, theta_beta, w2, theta_gamma: of the CRF on pixels, see `mixsup.crf.mean_field`.
    """

    rounds: Annotated[int, Field(ge=0)] = 3
    pixels: Annotated[int, Field(ge=4096, le=4_000_000)] = 120_000
    context: Annotated[float, Field(ge=0)] = 0.25
    superpixel: Annotated[int, Field(ge=4)] = 7
    centre: Probability = 0.9
    rim: Probability = 0.5
    spread: Above = 0.6
    narrow: Above = 0.36
    trust: Annotated[float, Field(ge=0)] = 0.5
    colour: Above = 12.0
    reach: Above = 80.0
    smooth: Annotated[float, Field(ge=0)] = 1.0
    floor: Share = 0.3
    least: Share = 0.2
    iterations: Annotated[int, Field(ge=0)] = 10
    w1: Annotated[float, Field(ge=0)] = 6.0
    theta_alpha: Above = 30.0
    theta_beta: Above = 6.0
    w2: Annotated[float, Field(ge=0)] = 1.0
    theta_gamma: Above = 2.0
    name: ClassVar[str] = "crf"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        windows = boxes.windows(size)
        masks = [np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8) for x0, y0, x1, y1 in windows]  # crowds stay whole
        for window, members in groups(windows, ~boxes.crowd, self.context, size):
            labels = self._infer(image, window, windows[members], boxes.classes[members])
            for index in members:
                x0, y0, x1, y1 = windows[index] - np.tile(window[:2], 2)
                mask = (labels[y0:y1, x0:x1] == boxes.classes[index]).astype(np.uint8)
                if mask.mean() >= max(self.least, 1e-9):
                    masks[index] = mask
        return BoxMasks.of(boxes, size, masks)

    def _infer(self, image: UInt8, window: Int64, boxes: Int64, classes: Int64) -> UInt8:
        """The class of each pixel of a window that holds the given boxes; h×w uint8."""
        from mixsup.crf import mean_field

        x0, y0, x1, y1 = window
        seen = np.ascontiguousarray(image[y0:y1, x0:x1])
        scale = min(1.0, np.sqrt(self.pixels / (seen.shape[0] * seen.shape[1])))
        reduced = max(1, round(seen.shape[1] * scale)), max(1, round(seen.shape[0] * scale))
        small = np.asarray(cv2.resize(seen, reduced, interpolation=cv2.INTER_AREA), np.uint8) if scale < 1 else seen
        height, width = small.shape[:2]
        factors = np.array([width / seen.shape[1], height / seen.shape[0]] * 2)
        places = (boxes - np.tile(window[:2], 2)) * factors
        inner = np.clip(np.round(places).astype(np.int64), 0, [width - 1, height - 1, width, height])
        inner[:, 2:] = np.maximum(inner[:, 2:], inner[:, :2] + 1)

        parts = superpixels(small, self.superpixel)
        beliefs = self._superpixels(small, parts, places, _with_rim(inner, (height, width), self.superpixel))  # (boxes + 1) × S

        names, of_class = np.unique(classes, return_inverse=True)
        share = np.zeros((len(names) + 1, beliefs.shape[1]), np.float32)
        share[BACKGROUND] = beliefs[0]
        np.add.at(share, of_class + 1, beliefs[1:])
        allowed = np.zeros((len(names) + 1, height, width), bool)
        allowed[BACKGROUND] = True
        for (a, b, c, d), label in zip(inner, of_class + 1, strict=True):
            allowed[label, b:d, a:c] = True
        unary = np.where(allowed, -np.log(np.maximum(share, _UNLIKELY))[:, parts], np.float32(np.inf))
        probabilities = mean_field(
            unary.astype(np.float32, copy=False), small, iterations=self.iterations, w1=self.w1, theta_alpha=self.theta_alpha,
            theta_beta=self.theta_beta, w2=self.w2, theta_gamma=self.theta_gamma, negligible=_UNLIKELY,
        )  # fmt: skip
        found = np.concatenate([[BACKGROUND], names]).astype(np.uint8)[probabilities.argmax(axis=0)]
        return found if scale == 1 else np.asarray(cv2.resize(found, seen.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.uint8)

    def _superpixels(self, image: UInt8, parts: Int64, places: Float64, inner: Int64) -> Float32:
        """The first step: how far each superpixel belongs to the background and to each box, (K+1)×S float32, columns sum to 1."""
        count = int(parts.max()) + 1
        pixels = np.bincount(parts.ravel(), minlength=count).astype(np.float32)
        colours, centres = means(image, parts, pixels)
        prior = self._prior(parts, pixels, centres, places, inner)
        if self.rounds == 0:
            return prior
        density = affinity(colours / self.colour, centres / self.reach)
        # Messages go between superpixels that are near and alike; one from a large neighbour weighs more.
        message = affinity(colours / (self.colour * 2 / 3), centres / (1.7 * self.superpixel)) * pixels
        message /= np.maximum(message.sum(axis=1, keepdims=True), 1e-6)
        possible = prior > 0
        first = np.log(np.maximum(prior, 1e-20))
        capacity = np.maximum(possible @ pixels, 1)  # a box thinner than a superpixel has none; it stays a rectangle
        pull = np.zeros((len(prior), 1), np.float32)
        beliefs = prior
        for _ in range(self.rounds):
            weights = beliefs * pixels
            held = weights.sum(axis=1)
            missing = np.log(self.floor * capacity[1:] / np.maximum(held[1:], 1e-4 * capacity[1:])) if self.floor > 0 else 0.0
            pull[1:, 0] += np.clip(missing, 0, 3)
            likely = (weights @ density) / np.maximum(held, 1e-6)[:, None]
            likely += _MIXED * likely.mean(axis=0) + 1e-9
            logits = np.where(possible, first + pull + self.trust * np.log(likely) + self.smooth * (beliefs @ message.T), np.float32(-1e5))
            beliefs = np.exp(logits - logits.max(axis=0))
            beliefs /= beliefs.sum(axis=0)
        return beliefs

    def _prior(self, parts: Int64, pixels: Float32, centres: Float32, places: Float64, inner: Int64) -> Float32:
        """The prior of background and boxes from places alone, (K+1)×S float32, columns sum to 1."""
        prior = np.zeros((len(places) + 1, len(pixels)), np.float32)
        free = np.ones(len(pixels), np.float32)
        for index, ((left, top, right, bottom), (a, b, c, d)) in enumerate(zip(places, inner, strict=True), 1):
            covered = np.bincount(parts[b:d, a:c].ravel(), minlength=len(pixels)) >= 0.5 * pixels
            u = (2 * centres[:, 0] - left - right) / (right - left)
            v = (2 * centres[:, 1] - top - bottom) / (bottom - top)
            side = np.sqrt((right - left) * (bottom - top)) / self.superpixel
            spread = self.spread * max(min(self.narrow / self.spread, 1.0), min(_SMALL / side, 1.0))
            probability = self.rim + (self.centre - self.rim) * np.exp(-(u**2 + v**2) / (2 * spread**2))
            probability = np.where(covered, probability, 0).astype(np.float32)
            # Of two boxes over a pixel the smaller one is the likelier: it was drawn for fewer of them.
            prior[index] = probability / (1 - probability) / np.sqrt((right - left) * (bottom - top))
            free = np.minimum(free, 1 - probability)
        prior[1:] *= (1 - free) / np.maximum(prior[1:].sum(axis=0), 1e-12)
        prior[0] = free
        return prior


Float64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def groups(windows: Int64, used: Bool, context: float, size: tuple[int, int]) -> list[tuple[Int64, Int64]]:
    """Boxes whose surroundings touch, together: (window x0, y0, x1, y1; indices of its boxes) for each group.

    Args:
        windows: N×4 int64.
        used: N, the boxes that take part.
        context: in box sides; at least 8 pixels.
        size: (H, W) of the image.
    """
    indices = np.flatnonzero(used)
    sides = windows[indices, 2:] - windows[indices, :2]
    margin = np.maximum(np.ceil(context * sides), 8).astype(np.int64)
    grown = np.concatenate([windows[indices, :2] - margin, windows[indices, 2:] + margin], axis=1)
    grown = np.clip(grown, 0, [size[1], size[0]] * 2)
    touch = (grown[:, None, :2] < grown[None, :, 2:]).all(-1)
    touch &= touch.T
    group = np.arange(len(indices))
    while True:
        # The lowest number among all that touch, until nothing changes: a chain of boxes is one group.
        lowest = np.where(touch, group[None], len(group)).min(axis=1, initial=len(group))
        if np.array_equal(lowest, group):
            break
        group = lowest
    found = []
    for number in np.unique(group):
        members = group == number
        found.append((np.concatenate([grown[members, :2].min(axis=0), grown[members, 2:].max(axis=0)]), indices[members]))
    return found


def _with_rim(inner: Int64, size: tuple[int, int], rim: int) -> Int64:
    """Windows N×4, those that are all of an h×w image without `rim` pixels on each side: otherwise there would be no background to learn from."""
    rim = max(1, min(rim, min(size) // 8))
    whole = (inner == [0, 0, size[1], size[0]]).all(axis=1, keepdims=True) & (min(size) > 2)
    return np.asarray(np.where(whole, [rim, rim, size[1] - rim, size[0] - rim], inner), np.int64)


def superpixels(image: UInt8, side: int) -> Int64:
    """H×W int64 labels from 0 without gaps: SLICO superpixels of about `side` × `side` pixels; in a small image its pixels."""
    height, width = image.shape[:2]
    if height * width <= _FEW or min(height, width) < 2 * side:
        if height * width <= 4 * _FEW:
            return np.arange(height * width).reshape(height, width)
        rows, columns = np.arange(height) // side, np.arange(width) // side
        return np.asarray(rows[:, None] * (columns[-1] + 1) + columns[None], np.int64)
    slic = cv2.ximgproc.createSuperpixelSLIC(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), cv2.ximgproc.SLICO, side, 10.0)
    slic.iterate(5)
    labels = slic.getLabels()
    used = np.bincount(labels.ravel()) > 0
    return np.asarray((np.cumsum(used) - 1)[labels], np.int64)


def means(image: UInt8, parts: Int64, pixels: Float32) -> tuple[Float32, Float32]:
    """Mean colour (S×3, CIE Lab in units of OpenCV's bytes) and centre (S×2, x and y) of each superpixel."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    rows, columns = np.indices(parts.shape)
    flat = parts.ravel()
    sums = [np.bincount(flat, values.ravel(), len(pixels)) for values in (*lab.T, columns + 0.5, rows + 0.5)]
    mean = (np.stack(sums, axis=1) / pixels[:, None]).astype(np.float32)
    return mean[:, :3], mean[:, 3:]


def affinity(colours: Float32, centres: Float32) -> Float32:
    """S×S float32, exp(-|difference|² / 2) of all pairs, 0 on the diagonal: nothing speaks for itself."""
    features = np.concatenate([colours, centres], axis=1)
    features -= features.mean(axis=0)  # keeps the difference of squares below exact enough in float32
    half = 0.5 * (features**2).sum(axis=1)
    kernel = features @ features.T
    kernel -= half
    kernel -= half[:, None]
    np.minimum(kernel, 0, out=kernel)
    np.exp(kernel, out=kernel)
    np.fill_diagonal(kernel, 0)
    return np.asarray(kernel, np.float32)
