"""`em`: hard EM in every training step (WSSL: Papandreou et al., Weakly- and semi-supervised learning of a DCNN, ICCV 2015, section 3).

    E-step   l(p) = argmax_l f_l(p) + b_l    over the labels that the image may have
    M-step   the training step on these targets, like any other

The boxes of an image get fixed biases (Bbox-EM-Fixed), its tags adaptive ones (EM-Adapt). The paper was not at hand: the constants are from memory
of it and of its authors' experiments; the order of work in EM-Adapt is that of their published caffe layer (AdaptiveBiasChannel).

Two things differ from Bbox-EM-Fixed, because its steps alone forgot what boxes say (docs/results.md). Where boxes overlap only the smallest one's class
competes with the background, as in Bbox-Rect; and the first half of the steps learns from the boxes as they are. A last layer that knows nothing yet calls
everything what is most frequent; once that is more than b_fg - b_bg ahead in its scores the E-step teaches it so, and small classes vanish in the background
or in what lies around them. WSSL's thousands of slow steps on VOC, where few objects share a pixel, get around both. `smallest=false, warm=0` is its text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from mixsup.data.sample import BACKGROUND, VOID, LabelKind
from mixsup.masks.source import STRICT
from mixsup.refresh.rule import StepRule, View

Bias = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class EM(StepRule):
    """The E-step of WSSL; boxes and tags each have settings of their own.

    Attributes:
        b_fg, b_bg: of boxes: what is added to the score of a box's class inside the box, and to that of the background.
        smallest: of boxes: only the class of the smallest box over a pixel competes with the background there; false for all whose boxes cover it.
        warm: of boxes: before this share of the steps they teach what the mask source made of them (`rectangle` in `wssl-em`).
        rho_fg, rho_bg: of tags: the share of the pixels that each tagged class, and the background, shall win.
        sweeps: of tags: how often the labels are visited in turn.
    """

    b_fg: Bias = 5.0
    b_bg: Bias = 3.0
    smallest: bool = True
    warm: Share = 0.5
    rho_fg: Share = 0.2
    rho_bg: Share = 0.4
    sweeps: Annotated[int, Field(ge=1)] = 5
    name: ClassVar[str] = "em"
    renews: ClassVar[tuple[LabelKind, ...]] = ("boxes", "tags")

    def labels(self, view: View) -> Tensor:
        if view.kind == "tags":
            return self._adapt(view)
        return view.first if view.done < self.warm else self._fixed(view)

    def _fixed(self, view: View) -> Tensor:
        """Bbox-EM-Fixed: the background and the class of the smallest box over a pixel (or of all of them) compete for it; outside all boxes is background.

        The paper boosts the classes inside their boxes and forbids nothing; here a box also says where its class is not, as in all its methods for
        boxes. What a crowd covers and no box claims is void.
        """
        classes = sorted({int(value) for value in view.classes[~view.crowd]})
        chosen = view.scores[[BACKGROUND, *classes]]
        chosen[BACKGROUND] += self.b_bg
        boxes, owners = view.boxes[~view.crowd], view.classes[~view.crowd]
        top = smallest(boxes, owners, chosen) if self.smallest else None
        for place, class_id in enumerate(classes, 1):
            inside = covered(boxes[owners == class_id], chosen) if top is None else top == class_id
            chosen[place] = torch.where(inside, chosen[place] + self.b_fg, -torch.inf)
        found = names([BACKGROUND, *classes], chosen.argmax(0))
        if bool(view.crowd.any()):
            found[covered(view.boxes[view.crowd], chosen) & (found == BACKGROUND)] = VOID
        return found

    def _adapt(self, view: View) -> Tensor:
        """EM-Adapt: each label of the image in turn is raised until it wins its share of the pixels; labels that the image lacks take no part.

        Raising one may take pixels from those before it, so the shares are reached only about (and cannot all be where they sum to more than 1); the
        authors sweep over the labels several times for that reason. They shuffle the classes, here they go by id: the targets are a function of the
        scores alone. The background goes first, as theirs does.
        """
        labels = [BACKGROUND, *view.tags]
        chosen = view.scores[labels]  # (K+1)×H×W
        pixels = chosen[:, view.valid]  # (K+1)×V
        count = pixels.shape[1]
        if len(labels) > 1 and count:
            for _ in range(self.sweeps):
                for place, label in enumerate(labels):
                    share = self.rho_bg if label == BACKGROUND else self.rho_fg
                    missing = pixels.amax(0) - pixels[place]  # 0 where the label wins already
                    # One pixel more than the share, because at the quantile's own pixel it only draws level.
                    bias = missing.kthvalue(min(int(share * count) + 1, count)).values
                    pixels[place] += bias
            chosen[:, view.valid] = pixels
        return names(labels, chosen.argmax(0))


def covered(boxes: Tensor, like: Tensor) -> Tensor:
    """Where any of the boxes (N×4: x0, y0, x1, y1 in pixels) covers the centre of a pixel: H×W bool, on the device and of the size of `like`, ...×H×W."""
    height, width = like.shape[-2:]
    x0, y0, x1, y1 = boxes.to(like.device)[:, :, None].unbind(1)  # each N×1
    x, y = (torch.arange(side, device=like.device) + 0.5 for side in (width, height))
    columns, rows = (x0 <= x) & (x < x1), (y0 <= y) & (y < y1)  # N×W, N×H
    return rows.float().T @ columns.float() > 0  # the number of boxes over each pixel, in one product


def smallest(boxes: Tensor, classes: Tensor, like: Tensor) -> Tensor:
    """The class (N int64, above 0) of the smallest box over the centre of a pixel, which is the last one; 0 outside all: H×W int64, on the device of
    `like`."""
    found = torch.zeros(like.shape[-2:], dtype=torch.int64, device=like.device)
    for index in range(len(boxes)):
        # The first pixels whose centres are not before the edges.
        x0, y0, x1, y1 = (max(0, math.ceil(edge - 0.5)) for edge in boxes[index].tolist())
        found[y0:y1, x0:x1] = int(classes[index])
    return found


def names(labels: Sequence[int], places: Tensor) -> Tensor:
    """Class ids, uint8, for places in a list of labels."""
    return torch.tensor(labels, dtype=torch.uint8, device=places.device)[places]
