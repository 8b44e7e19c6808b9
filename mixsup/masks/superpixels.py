"""Superpixels by Felzenszwalb and Huttenlocher's graph-based segmentation (IJCV 2004), as MCOF (section 4.1) takes them."""

from __future__ import annotations

from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass
from skimage.segmentation import felzenszwalb

from mixsup.data.sample import UInt8
from mixsup.masks.source import STRICT

Regions = npt.NDArray[np.uint16]


@dataclass(frozen=True, config=STRICT)
class Superpixels:
    """Cuts an image into regions of like colour. The paper names the method and no constant; these are for any image size.

    Attributes:
        scale: the method's k, for an image whose longer side is 500 pixels; it grows with the side, because a boundary's length does.
        sigma: of the blur before, in pixels.
        smallest: share of the image's area below which a region is joined to its neighbour.
        max_side: a longer image is reduced to this many pixels on its longer side first.
    """

    scale: Annotated[float, Field(gt=0)] = 200.0
    sigma: Annotated[float, Field(ge=0)] = 0.5
    smallest: Annotated[float, Field(ge=0, le=1)] = 5e-4
    max_side: Annotated[int, Field(ge=8, le=4000)] = 500

    def __call__(self, image: UInt8) -> Regions:
        """H×W×3 uint8 in, h×w region numbers 0..R-1 out, without gaps; the longer of h and w is `max_side` at most."""
        height, width = image.shape[:2]
        factor = min(1.0, self.max_side / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        seen = image if size == (height, width) else cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
        scale = self.scale * max(size) / 500
        found = felzenszwalb(
            seen, scale=scale, sigma=self.sigma, min_size=max(1, round(self.smallest * size[0] * size[1])), channel_axis=-1
        )
        numbers, regions = np.unique(found, return_inverse=True)
        # 65,535 stands for no region; with a smallest region of a pixel there could be more.
        return np.minimum(regions.reshape(size), min(len(numbers) - 1, 65534)).astype(np.uint16)


def enlarge(labels: UInt8, size: tuple[int, int]) -> UInt8:
    """h×w class ids at H×W, nearest neighbour."""
    if labels.shape == size:
        return labels
    return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
