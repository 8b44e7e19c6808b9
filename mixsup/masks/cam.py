"""`cam`: what a tag becomes before any segmentation network has learned (MCOF, section 4.1).

A classification network learns the tags; its class activation maps (Zhou et al., CVPR 2016) say where it sees each. A map is averaged within superpixels
(`mixsup/masks/superpixels.py`), and of each tagged class the regions that stand out become seeds:

- the region with the highest mean ("its local maximum region"; of several, the highest: the others are found by the threshold),
- every region whose mean is above a threshold.

All other regions are background, which is as wrong as it is in the paper and what mining is there to mend.

Beyond the paper, two things that tags cannot tell are not asked of them:

- Whether a class is in the image is known, so only how a map differs from its own mean says where (`centred`). The map of a class that nearly every image
  has is positive everywhere, and would claim everything.
- What is not salient is background (`saliency`, `ground`). The paper uses saliency after the first RegionNet and for images of one class, because it does
  not tell classes apart; but it tells objects from ground in any image, which a map of tags does badly.

The threshold. The paper does not say how it was chosen, and the usual way is a search on true masks. Here it needs none: `otsu` splits the
regions of each map, weighed by their pixels, into two groups with the least variance within them (Otsu, 1979). A number is a threshold for all maps, each
scaled so that its own highest value is 1.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import BACKGROUND, Float32, Int64, UInt8
from mixsup.masks.source import STRICT
from mixsup.masks.superpixels import Regions, Superpixels
from mixsup.saliency.chosen import WithSaliency

Threshold = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class CAM(WithSaliency):
    """Settings of the seeds.

    Attributes:
        training: steps of the classification network, as a share of the run's.
        maps: of the backbone's feature maps, how many the classifier looks at; 1 is the paper's.
        scales: at which the classifier is asked, as factors of the size at which it learned whole images; the maps are averaged.
        flip: also ask for the mirrored image.
        threshold: `otsu`, or a number between 0 and 1.
        centred: take its mean over the image off each map.
        saliency, saliency_options: see `WithSaliency`; without, and with `centred: false`, the seeds are the paper's.
        ground: a region is background where its mean saliency is at most this share of Otsu's threshold over all regions of the image.
        superpixels: the regions.
    """

    training: Annotated[float, Field(gt=0)] = 1.0
    maps: Annotated[int, Field(ge=1)] = 3
    scales: Annotated[tuple[Annotated[float, Field(ge=0.1, le=4)], ...], Field(min_length=1)] = (1.0, 1.5, 2.0)
    flip: bool = True
    threshold: Threshold | Literal["otsu"] = "otsu"
    centred: bool = True
    ground: Annotated[float, Field(ge=0, le=2)] = 0.6
    superpixels: Superpixels = Superpixels()
    place: ClassVar[str] = "masks.tag_options.saliency_options"

    def heat(self, maps: Float32) -> Float32:
        """K×h×w activation maps of any range, within 0 to 1: see `centred` and `scaled`."""
        return scaled(maps - maps.mean(axis=(1, 2), keepdims=True) if self.centred else maps)

    def seeds(self, maps: Float32, classes: list[int], regions: Regions, saliency: Float32 | None = None) -> UInt8:
        """The class of each region.

        Args:
            maps: K×h×w class activation maps, one for each tagged class; of any range.
            classes: K class ids, ascending.
            regions: h×w region numbers 0..R-1.
            saliency: h×w within 0..1, or None.

        Returns:
            R class ids, `BACKGROUND` where no map stands out and where nothing is salient. Every class has a region, unless there are fewer regions than
            classes. Where several maps stand out, the highest (each on its own scale) has the region.
        """
        count = int(regions.max()) + 1
        labels = np.full(count, BACKGROUND, np.uint8)
        if not classes:
            return labels
        means, areas = region_means(self.heat(maps), regions), np.bincount(regions.ravel(), minlength=count)
        thresholds = [otsu(row, areas) if self.threshold == "otsu" else float(self.threshold) for row in means]
        above = means > np.array(thresholds)[:, None]
        best = np.where(above, means, -1.0).argmax(axis=0)
        labels = np.where(above.any(axis=0), np.array(classes, np.uint8)[best], labels)
        quiet = np.zeros(count, bool)
        if saliency is not None:
            salience = region_means(saliency[None], regions)[0]
            middle = otsu(salience, areas)
            quiet = (salience <= self.ground * middle) & (middle > 0)  # where nothing stands out at all, that says nothing
            labels[quiet] = BACKGROUND
        # The peaks come last, so that no class is drowned by another, nor by the ground: the surest first, and what is salient before what is not as long as
        # the class stands out there. Where it does not, its peak may lie on the ground, or a thing that nobody looks at would be planted on another.
        taken: set[int] = set()
        for place in np.argsort(-means.max(axis=1), kind="stable"):
            free = [region for region in np.lexsort((-means[place], quiet | ~above[place])) if region not in taken]
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
