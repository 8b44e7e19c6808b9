"""`ucm`: regions of an ultrametric contour map, filled from the inner centre of each box (diverse supervision, section 3.2).

The paper is terse. What is read into it here, judged by the composed masks of 24 training images of CCP and 24 images of COCO128:

- "Normalise boundary strength within each box": altitudes are divided by the highest altitude at which two superpixels of the box merge.
- "Fill regions from the inner center to the maximum occluded boundary": at one threshold the foreground is every region that reaches into the `inner`
  part of the box and lies inside the box with at least `closed` of its area. A region that runs on outside is not closed off by the box: it is ground
  behind the object.
- "Choose a mask of a scale until it takes up at least α % of the box": from the finest segmentation (the lowest threshold) to the coarsest, the first
  whose foreground is large enough is confident. If none is, all that is foreground at any threshold is confident.
- "The remaining regions segmented in the coarsest segmentation" are uncertain: foreground at any threshold, but not in the confident mask. Regions that
  are foreground at no threshold are background, as the paper says.

A box in which nothing is found stays a rectangle. Small regions merge a little earlier than their contrast says (`Weights.size`), less than proposals
want it: with none, textures stay in pieces; with more, altitudes follow area and a threshold says little about boundaries.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Float32, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.masks.hierarchy import Weights, find_regions
from mixsup.masks.merging import Int32
from mixsup.masks.source import STRICT, MaskSource

_WEIGHTS = Weights(size=0.3)


@dataclass(frozen=True, config=STRICT)
class UCM(MaskSource):
    """Masks from an ultrametric contour map.

    Attributes:
        thresholds: of boundary strength, 0 to 1 in each box.
        alpha: share of the box that the confident mask takes, where it can.
        inner: sides of the inner part against the box's.
        closed: share of a region's area that lies inside the box, at least, for foreground.
        least: a confident mask below this share of its box has collapsed; the box stays a rectangle.
        regions: superpixels in an image, at most.
        max_side: a larger image is worked on at this size.
    """

    thresholds: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.3
    inner: Annotated[float, Field(gt=0, le=1)] = 0.75
    closed: Annotated[float, Field(ge=0, le=1)] = 0.9
    least: Annotated[float, Field(ge=0, le=1)] = 0.05
    regions: Annotated[int, Field(ge=2, le=3000)] = 1200
    max_side: Annotated[int, Field(ge=16)] = 800
    name: ClassVar[str] = "ucm"
    version: ClassVar[int] = 3

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        if not len(boxes):
            return BoxMasks.of(boxes, size, [])
        regions = find_regions(image, self.regions, self.max_side)
        labels, distances = regions.labels(), regions.tree(_WEIGHTS).distances()
        areas = np.bincount(labels.ravel(), minlength=len(regions)).astype(np.float32)
        masks = [
            np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8) if crowd else self._fill(labels[y0:y1, x0:x1], distances, areas)
            for (x0, y0, x1, y1), crowd in zip(boxes.windows(size), boxes.crowd, strict=True)
        ]
        return BoxMasks.of(boxes, size, masks)

    def _fill(self, window: Int32, distances: Float32, areas: Float32) -> UInt8:
        """The mask of one box, from the superpixel ids of its window."""
        height, width = window.shape
        inside = np.bincount(window.ravel(), minlength=len(areas))
        here = np.flatnonzero(inside)  # the superpixels of the box; what follows has one entry for each
        inside = inside[here]
        rim_y, rim_x = int(height * (1 - self.inner) / 2), int(width * (1 - self.inner) / 2)
        central = np.bincount(window[rim_y : height - rim_y, rim_x : width - rim_x].ravel(), minlength=len(areas))[here]
        among = distances[np.ix_(here, here)]
        masks = []
        for threshold in sorted(self.thresholds):
            # The distance is an ultrametric, so "near enough" is an equivalence and the first member can name its region.
            near = threshold * among.max()
            group = (among <= near).argmax(axis=1)
            held, middle = (np.bincount(group, values, len(here)) for values in (inside, central))
            named = np.unique(group)
            whole = np.zeros(len(here), np.float32)
            whole[named] = (distances[here[named]] <= near) @ areas  # with what lies outside the box
            foreground = (middle > 0) & (held >= self.closed * whole)
            if not foreground.any():
                foreground[middle.argmax()] = True  # all run on outside; the one that fills the centre is still the likeliest
            masks.append(foreground[group])
        any_scale = np.any(masks, axis=0)
        wanted = self.alpha * window.size
        confident = next((mask for mask in masks if inside[mask].sum() >= wanted), any_scale)
        if inside[confident].sum() < max(self.least * window.size, 1):
            return np.full(window.shape, FOREGROUND, np.uint8)
        values = np.zeros(len(areas), np.uint8)
        values[here[any_scale]] = IGNORE
        values[here[confident]] = FOREGROUND
        return np.asarray(values[window], np.uint8)
