"""`direct`: plain re-prediction, the control that MCOF (figure 8) and SDI ("naive") compare with. What lies outside of all boxes is background here, as masks
of boxes are; SDI's naive control has no such rule."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.source import STRICT
from mixsup.refresh.rule import Case, RefreshRule


@dataclass(frozen=True, config=STRICT)
class Direct(RefreshRule):
    """Inside its box, what the network now calls the box's class is foreground and all else background; crowds stay as they are.

    There is no way back: a box whose class the network finds nowhere in it is empty from then on. It has no settings.
    """

    name: ClassVar[str] = "direct"
    looks: ClassVar[bool] = False

    def __call__(self, case: Case) -> BoxMasks:
        first, winner = case.first, case.winner()
        masks = []
        for index, (x0, y0, x1, y1) in enumerate(first.windows):
            found = np.where(winner[y0:y1, x0:x1] == first.classes[index], FOREGROUND, 0).astype(np.uint8)
            masks.append(first.masks[index] if first.crowd[index] else found)
        return BoxMasks(first.size, first.windows, first.classes, first.crowd, tuple(masks))
