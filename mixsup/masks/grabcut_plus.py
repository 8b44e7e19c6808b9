"""`grabcut-plus`: many GrabCuts a box, each a little different, and a vote (Khoreva et al., Simple Does It, CVPR 2017, section 4.2: GrabCut+).

The paper's vote, the variant of GrabCut+ that ignores, shifts the sides of the box by up to 5 % and lets a cut see 10 to 60 % of a box side around it; where at
least 70 % of the cuts say foreground it is foreground, where at most 20 % do it is background, and what lies between is ignored. So it is here, from memory of
the paper, but for two things: the paper's cuts weigh neighbours by a learned boundary detector (HED) and OpenCV's by colour contrast, and the paper makes 150
cuts a box where `runs` makes 7: the time of a box grows in proportion. The paper's GrabCut+ proper, one cut, is `grabcut` here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Boxes, Float32, Sample, UInt8
from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.masks.grabcut import View, cut
from mixsup.masks.source import STRICT, MaskSource


@dataclass(frozen=True, config=STRICT)
class GrabCutPlus(MaskSource):
    """A vote of perturbed GrabCuts.

    Attributes:
        runs: cuts a box; 5 of 7 votes make foreground, 1 is background still.
        iterations: of colour model and cut, in each; the vote makes up for cuts that are not driven to their end.
        shift: how far a side of the box moves at most, in box sides.
        near, far: a cut sees between these many box sides around its box.
        max_side: the longer side of what is seen is reduced to this many pixels; it bounds the time a box takes.
        foreground, background: from this share of votes on a pixel is foreground, up to this one background.
        least: a cut that keeps less than this share of its box has collapsed and has no vote; where all have, the box stays a rectangle.
    """

    runs: Annotated[int, Field(ge=1)] = 7
    iterations: Annotated[int, Field(ge=1)] = 1
    shift: Annotated[float, Field(ge=0, le=0.25)] = 0.05
    near: Annotated[float, Field(ge=0)] = 0.1
    far: Annotated[float, Field(ge=0)] = 0.6
    max_side: Annotated[int, Field(ge=16)] = 256
    foreground: Annotated[float, Field(gt=0, le=1)] = 0.7
    background: Annotated[float, Field(ge=0, lt=1)] = 0.2
    least: Annotated[float, Field(ge=0, le=1)] = 0.05
    name: ClassVar[str] = "grabcut-plus"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        masks = []
        for (x0, y0, x1, y1), crowd in zip(boxes.windows(size), boxes.crowd, strict=True):
            share = None if crowd else self.vote(image, (int(x0), int(y0), int(x1), int(y1)))
            masks.append(np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8) if share is None else self._decide(share))
        return BoxMasks.of(boxes, size, masks)

    def vote(self, image: UInt8, box: tuple[int, int, int, int]) -> Float32 | None:
        """Share of the cuts (0 to 1) that call each pixel of the box foreground; None where none came to anything."""
        view = View.of(image, box, max(self.near, self.far), self.max_side)
        if view is None:
            return None
        height, width = view.image.shape[:2]
        x0, y0, x1, y1 = view.inner
        sides = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        # Of every box the same shifts: a box alone decides its mask.
        generator = np.random.default_rng(0)
        total, counted = np.zeros((height, width), np.float32), 0
        for run in range(self.runs):
            corners = np.round(np.array(view.inner) + generator.uniform(-self.shift, self.shift, 4) * sides).astype(int)
            around = generator.uniform(min(self.near, self.far), max(self.near, self.far)) * sides
            left, top = np.maximum(corners[:2], 0)
            right, bottom = np.minimum(corners[2:], (width, height))
            # At least a rim of two pixels, to have some background to learn from.
            grow = np.maximum(np.round(around), 2).astype(int)
            from_x, from_y = max(0, left - grow[0]), max(0, top - grow[1])
            to_x, to_y = min(width, right + grow[0]), min(height, bottom + grow[1])
            part = np.ascontiguousarray(view.image[from_y:to_y, from_x:to_x])
            found = cut(part, (left - from_x, top - from_y, right - from_x, bottom - from_y), self.iterations, seed=run)
            if found is not None and found.sum() >= self.least * (right - left) * (bottom - top):
                total[from_y:to_y, from_x:to_x] += found
                counted += 1
        if not counted:
            return None
        share = view.back(total / counted, cv2.INTER_LINEAR)
        # Cuts that agree on no pixel at all: an empty box would teach its object as background.
        return np.asarray(share, np.float32) if (share >= self.foreground).any() else None

    def _decide(self, share: Float32) -> UInt8:
        within = 1e-4  # of rounding
        sure = np.where(share >= self.foreground - within, FOREGROUND, IGNORE)
        return np.where(share <= self.background + within, 0, sure).astype(np.uint8)
