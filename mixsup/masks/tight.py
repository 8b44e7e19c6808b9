"""`tight`: of the CRF's mask of a box, and of GrabCut's and what both share where these still reach the sides of the box, the smallest.

An annotator draws a box so that its object touches all four sides: a mask that stays away from one has lost part of the object (the bounding box prior of
Lempitsky, Kohli, Rother and Sharp, "Image segmentation with a bounding box prior", ICCV 2009, who make it a constraint of the cut). Nothing in a box says as
plainly that a mask is too large. Two sources that know different things say it together: where one explains the whole box with fewer pixels, the other has
kept ground. The CRF decides between boxes that overlap and keeps too much where an object and its surroundings look alike; GrabCut cuts out what stands alone,
and loses objects among others. No true mask is asked which is right; docs/results.md has both and this one on four sets.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.data.segments import tight_box
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.crf import BoxCRF
from mixsup.masks.grabcut import GrabCut
from mixsup.masks.source import STRICT, MaskSource, identity


@dataclass(frozen=True, config=STRICT)
class Tight(MaskSource):
    """Both sources with their own defaults, and:

    Attributes:
        tightness: a mask reaches the sides of its box when the tight box around it has at least this share of the box.
        least: a mask that holds less than this share of its box is a few specks that span it, as two sources that disagree may share; it is not taken.
    """

    tightness: Annotated[float, Field(ge=0, le=1)] = 0.9
    least: Annotated[float, Field(ge=0, le=1)] = GrabCut.least
    name: ClassVar[str] = "tight"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        return smallest_tight(BoxCRF()(image, boxes, sample), GrabCut()(image, boxes, sample), self.tightness, self.least)

    def fingerprint(self, sample: Sample) -> bytes:
        return identity(BoxCRF(), GrabCut())


def smallest_tight(first: BoxMasks, second: BoxMasks, tightness: float = Tight.tightness, least: float = Tight.least) -> BoxMasks:
    """Of two masks of each box and what both call foreground, the one with the fewest pixels that is tight; `first` where neither other is.

    Args:
        first: its masks need not be tight.
        second: of the same boxes.
        tightness, least: see `Tight`.
    """
    masks: list[UInt8] = []
    for one, two in zip(first.masks, second.masks, strict=True):
        shared = ((one == FOREGROUND) & (two == FOREGROUND)).astype(np.uint8)
        tight = [mask for mask in (two, shared) if tightness_of(mask) >= tightness and (mask == FOREGROUND).mean() >= max(least, 1e-9)]
        masks.append(min([one, *tight], key=lambda mask: np.count_nonzero(mask == FOREGROUND)))
    return BoxMasks(first.size, first.windows, first.classes, first.crowd, tuple(masks))


def tightness_of(mask: UInt8) -> float:
    """The share of a window (h×w) that the tight box around its foreground has: eq. 2 of BoxSup for a mask that lies within its box; 0 without foreground."""
    box = tight_box(mask == FOREGROUND)
    return 0.0 if box is None else (box[2] - box[0]) * (box[3] - box[1]) / mask.size
