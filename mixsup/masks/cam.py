"""`cam`: what a tag becomes before any segmentation network has learned (MCOF, section 4.1).

A classification network learns the tags; its class activation maps (Zhou et al., CVPR 2016) say where it sees each. A map is averaged within superpixels
(`mixsup/masks/superpixels.py`), and of each tagged class the regions that stand out become seeds:

- the region with the highest mean ("its local maximum region"; of several, the highest: the others are found by the threshold),
- every region whose mean is above a threshold.

All other regions are background, which is as wrong as it is in the paper and what mining is there to mend.

The threshold. The paper does not say how it was chosen, and the usual way is a search on true masks. Here it needs none: `otsu` splits the
regions of each map, weighed by their pixels, into two groups with the least variance within them (Otsu, 1979). A number is a threshold for all maps, each
scaled so that its own highest value is 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import BACKGROUND, Float32, Int64, UInt8
from mixsup.masks.source import STRICT
from mixsup.masks.superpixels import Regions, Superpixels

Threshold = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class CAM:
    """Settings of the seeds.

    Attributes:
        training: steps of the classification network, as a share of the run's.
        maps: of the backbone's feature maps, how many the classifier looks at; 1 is the paper's.
        scales: factors of the working size at which the classifier is asked; the maps are averaged.
        flip: also ask for the mirrored image.
        threshold: `otsu`, or a number between 0 and 1.
        superpixels: the regions.
    """

    training: Annotated[float, Field(gt=0)] = 1.0
    maps: Annotated[int, Field(ge=1)] = 3
    scales: Annotated[tuple[Annotated[float, Field(ge=0.1, le=4)], ...], Field(min_length=1)] = (1.0, 1.5, 2.0)
    flip: bool = True
    threshold: Threshold | Literal["otsu"] = "otsu"
    superpixels: Superpixels = Superpixels()

    def seeds(self, maps: Float32, classes: list[int], regions: Regions) -> UInt8:
        """The class of each region.

        Args:
            maps: K×h×w class activation maps, one for each tagged class; of any range.
            classes: K class ids, ascending.
            regions: h×w region numbers 0..R-1.

        Returns:
            R class ids, `BACKGROUND` where no map stands out. Every class has a region, unless there are fewer regions than classes. Where several
            maps stand out, the highest (each on its own scale) has the region.
        """
        count = int(regions.max()) + 1
        labels = np.full(count, BACKGROUND, np.uint8)
        if not classes:
            return labels
        means, areas = region_means(scaled(maps), regions), np.bincount(regions.ravel(), minlength=count)
        thresholds = [otsu(row, areas) if self.threshold == "otsu" else float(self.threshold) for row in means]
        above = means > np.array(thresholds)[:, None]
        best = np.where(above, means, -1.0).argmax(axis=0)
        labels = np.where(above.any(axis=0), np.array(classes, np.uint8)[best], labels)
        # The peaks come last, so that no class is drowned by another; that with the lowest peak first, whose region may be the peak of a surer one.
        taken: set[int] = set()
        for place in np.argsort(-means.max(axis=1), kind="stable"):
            free = [region for region in np.argsort(-means[place], kind="stable") if region not in taken]
            if free:
                labels[free[0]] = classes[place]
                taken.add(int(free[0]))
        return labels.astype(np.uint8)


def scaled(maps: Float32) -> Float32:
    """K×h×w maps, each with its negative part cut off and its highest value at 1.

    A class whose map is nowhere positive (a tag that the classifier does not see in the image) is scaled from its lowest value instead: where it is least
    unlikely is all that is known of it.
    """
    found = np.empty(maps.shape, np.float32)
    for place, one in enumerate(maps):
        one = np.maximum(one, 0) if one.max() > 0 else one - one.min()
        found[place] = one / max(float(one.max()), 1e-12)
    return found


def region_means(maps: Float32, regions: Regions) -> Float32:
    """K×R: the mean of each of K maps over each of R regions."""
    flat = regions.ravel().astype(np.int64)
    count = int(flat.max()) + 1
    areas = np.bincount(flat, minlength=count)
    return np.stack([np.bincount(flat, weights=one.ravel(), minlength=count) / np.maximum(areas, 1) for one in maps]).astype(np.float32)


def otsu(values: Float32, weights: Int64) -> float:
    """The threshold between two groups of weighted values that leaves the least variance within them (equivalently, the most between them).

    Exact: every gap between neighbouring values is tried, its middle is the threshold. With fewer than two different values, that value.
    """
    order = np.argsort(values, kind="stable")
    sorted_values, sorted_weights = values[order].astype(np.float64), weights[order].astype(np.float64)
    below, total = np.cumsum(sorted_weights)[:-1], sorted_weights.sum()
    moments = np.cumsum(sorted_weights * sorted_values)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (moments[:-1] / below - (moments[-1] - moments[:-1]) / above) ** 2
    gaps = np.diff(sorted_values) > 0
    if not gaps.any():
        return float(sorted_values[0])
    place = int(np.where(gaps, np.nan_to_num(between), -1.0).argmax())
    return float((sorted_values[place] + sorted_values[place + 1]) / 2)
