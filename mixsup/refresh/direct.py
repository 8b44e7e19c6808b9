"""`direct`: plain re-prediction, the control that MCOF (figure 8) and SDI ("naive") compare with. What lies outside of all boxes is background here, as masks
of boxes are; SDI's naive control has no such rule."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.masks.source import STRICT
from mixsup.refresh.rule import Case, RefreshRule


@dataclass(frozen=True, config=STRICT)
class Direct(RefreshRule):
    """Inside its box, what the network now calls the box's class is foreground and all else background; crowds stay as they are.

    There is no way back: a box whose class the network finds nowhere in it is empty from then on.

    Attributes:
        sure: pixels of a box whose likeliest class has a smaller probability are ignored.
    """

    sure: Annotated[float, Field(ge=0, le=1)] = 0.0
    name: ClassVar[str] = "direct"
    looks: ClassVar[bool] = False

    def __call__(self, case: Case) -> BoxMasks:
        first, (winner, probability) = case.first, case.winner()
        masks = []
        for index, (x0, y0, x1, y1) in enumerate(first.windows):
            found = np.where(winner[y0:y1, x0:x1] == first.classes[index], FOREGROUND, 0).astype(np.uint8)
            found[probability[y0:y1, x0:x1] < self.sure] = IGNORE
            masks.append(first.masks[index] if first.crowd[index] else found)
        return BoxMasks(first.size, first.windows, first.classes, first.crowd, tuple(masks))
