"""`mcg-grabcut`: M∩G+ of Khoreva et al., Simple Does It, CVPR 2017, section 4.2: where the box's best proposal and GrabCut+ agree; ignored elsewhere."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.masks.grabcut_plus import GrabCutPlus
from mixsup.masks.mcg import MCG
from mixsup.masks.source import STRICT, MaskSource, identity


@dataclass(frozen=True, config=STRICT)
class MCGGrabCut(MaskSource):
    """Both sources with their own defaults, but for:

    Attributes:
        runs, max_side: of `grabcut-plus`.
    """

    runs: Annotated[int, Field(ge=1)] = GrabCutPlus.runs
    max_side: Annotated[int, Field(ge=16)] = GrabCutPlus.max_side
    name: ClassVar[str] = "mcg-grabcut"
    version: ClassVar[int] = 2

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        return agree(MCG()(image, boxes, sample), GrabCutPlus(runs=self.runs, max_side=self.max_side)(image, boxes, sample))

    def fingerprint(self, sample: Sample) -> bytes:
        return identity(MCG(), GrabCutPlus(runs=self.runs, max_side=self.max_side))


def agree(one: BoxMasks, two: BoxMasks) -> BoxMasks:
    """What two masks of the same boxes both say; a pixel on which they differ, or that either ignores, is ignored.

    Where they share no foreground pixel at all there is nothing to teach the class with: the box is ignored but for what both call background.
    A crowd stays whole.
    """
    masks: list[UInt8] = []
    for first, second, crowd in zip(one.masks, two.masks, one.crowd, strict=True):
        masks.append(np.full_like(first, FOREGROUND) if crowd else np.where(first == second, first, IGNORE).astype(np.uint8))
    return BoxMasks(one.size, one.windows, one.classes, one.crowd, tuple(masks))
