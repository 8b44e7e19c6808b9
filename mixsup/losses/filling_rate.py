"""`filling-rate`: the filling-rate guided loss (BCM paper, section 3.3).

    eq. 4   L_fr = Σ_c Σ_{i=1..top(FR_c)} L_c(i)      the pixels i of class c by falling score, L_c the softmax cross-entropy
    eq. 5   the same with FR_(c,sc), the rate of the box's sub-class

What the paper leaves open, and what is done here:

- Pixels are ranked inside each box, by the score of the box's class before the softmax. An object pixel belongs to the smallest box of its class around
  it, a background pixel to the smallest box of any class; so boxes on top of others keep their own pixels.
- Eq. 3 measures rates as shares of the BOX, so top(FR) is FR × the box's pixels in the view, void ones left out: to one pixel the kept share of a box is
  its rate, or less where its mask has fewer pixels than that. At least one is kept. All others that carry the box's label are ignored.
- Background, and whatever no box claims, is kept. So is all of an image with a true mask, which has no wrong pixels, and of a box without a rate.
- What is ignored does not count in the mean either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from mixsup.data.sample import BACKGROUND, VOID, Float32, Int64
from mixsup.losses.cross_entropy import cross_entropy
from mixsup.masks.filling import FillingRates
from mixsup.masks.source import STRICT


@dataclass(frozen=True, config=STRICT)
class FillingRate:
    """Cross-entropy over the pixels that a box's filling rate lets through.

    Attributes:
        variant: whose rate a box takes: `global` (one for all), its `class`'s (eq. 4) or its `sub-class`'s (eq. 5).
        rate: of `global`; 0.6 in the paper's Table 1.
        measured_on: the mask source that rates are measured on; None for the first masks that are trained on, whose rates are 1 when they are rectangles.
    """

    variant: Literal["global", "class", "sub-class"] = "class"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.6
    measured_on: str | None = None
    name: ClassVar[str] = "filling-rate"

    def __call__(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Eqs. 4 and 5.

        Args:
            outputs: `scores` B×C×H×W.
            batch: `target` B×H×W uint8, 255 void; `boxes`, `box_classes`, `box_crowd`, `box_rates` and `kind`, lists of B.

        Returns:
            The sum over kept pixels (scalar), and their number (scalar).
        """
        kept = kept_pixels(outputs["scores"], batch)
        return cross_entropy(outputs, {"target": batch["target"].masked_fill(~kept, VOID)})

    def box_rates(self, rates: FillingRates | None, names: tuple[str, ...], classes: Int64, sub_classes: list[int]) -> Float32:
        """The rate of each of N boxes, by the variant.

        A sub-class without a rate takes its class's, a class without one that of all boxes, and if no box at all has one, `rate`.

        Args:
            rates: as measured; None for `global`.
            names: class names by id.
            classes: N class ids.
            sub_classes: N, -1 for none; see `FillingRates.assignment`.
        """
        if rates is None or self.variant == "global":
            return np.full(len(classes), self.rate, np.float32)
        overall = self.rate if rates.global_rate is None else rates.global_rate
        found = np.zeros(len(classes), np.float32)
        for index, (class_id, part) in enumerate(zip(classes, sub_classes, strict=True)):
            own = rates.per_class[names[class_id]].mean
            finer = rates.per_subclass[names[class_id]][part].mean if self.variant == "sub-class" and part >= 0 else None
            found[index] = next(value for value in (finer, own, overall) if value is not None)
        return found


@torch.no_grad()
def kept_pixels(scores: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Which pixels eq. 4 keeps, by one sort over all boxes of the batch.

    Args:
        scores: B×C×H×W.
        batch: see `FillingRate`.

    Returns:
        B×H×W bool; True also for all that is not a box's to drop.
    """
    target: Tensor = batch["target"]
    counts = [len(boxes) if kind == "boxes" else 0 for boxes, kind in zip(batch["boxes"], batch["kind"], strict=True)]
    if not any(counts):
        return torch.ones_like(target, dtype=torch.bool)
    owner = box_of_pixels(target, batch, counts)  # B×H×W, counted through the batch, -1 for none
    device, total = target.device, sum(counts)
    rates = torch.cat([rates[:count] for rates, count in zip(batch["box_rates"], counts, strict=True)]).to(device, non_blocking=True)

    known = target != VOID
    amounts = torch.zeros(total + 1, dtype=torch.long, device=device)  # pixels of each box; the last is of those without one
    amounts.scatter_add_(0, owner.flatten() % (total + 1), known.flatten().long())
    quota = (amounts[:total] * rates.nan_to_num(1.0)).round().long().clamp(min=1)  # top(FR)

    candidate = known & (target != BACKGROUND) & (owner >= 0)
    label = torch.where(candidate, target, 0).long()
    mine = owner[candidate]
    score = scores.detach().gather(1, label[:, None])[:, 0][candidate]
    order = torch.argsort((mine << 32) - _ordered(score), stable=True)  # by box, then by falling score
    mine = mine[order]
    first = torch.searchsorted(mine, torch.arange(total, device=device))
    rank = torch.arange(len(mine), device=device) - first[mine]
    through = torch.empty_like(mine, dtype=torch.bool)
    through[order] = rank < quota[mine]
    kept = torch.ones_like(known)
    kept[candidate] = through
    return kept


def box_of_pixels(target: Tensor, batch: Mapping[str, Any], counts: list[int]) -> Tensor:
    """The box that each pixel belongs to: the smallest around it that is no crowd and, for an object's pixel, of its class.

    Args:
        target: B×H×W uint8.
        batch: `boxes`, `box_classes`, `box_crowd`.
        counts: how many of the boxes of each image to look at, from the first.

    Returns:
        B×H×W int64, the box's number through the batch (in order, `counts` boxes an image), -1 for none.
    """
    device, most = target.device, max(counts)
    height, width = target.shape[-2:]
    # Padded to M boxes an image, largest first; a place that is not taken is a box of no pixel.
    edges, classes, number = (
        torch.zeros(len(counts), most, 4),
        torch.zeros(len(counts), most, dtype=torch.uint8),
        torch.full((len(counts), most), -1),
    )
    before = 0
    for image, count in enumerate(counts):
        boxes = batch["boxes"][image][:count]
        order = torch.argsort((boxes[:, 2:] - boxes[:, :2]).prod(dim=1), descending=True, stable=True)
        edges[image, :count] = boxes[order] * ~batch["box_crowd"][image][:count][order, None]
        classes[image, :count] = batch["box_classes"][image][:count][order].to(torch.uint8)
        number[image, :count] = order + before
        before += count
    edges, classes, number = (values.to(device, non_blocking=True) for values in (edges, classes, number))
    # A pixel is in a box when its middle is, as where masks are resized by nearest neighbour.
    x, y = torch.arange(width, device=device) + 0.5, torch.arange(height, device=device) + 0.5
    columns = (edges[..., 0, None] <= x) & (x < edges[..., 2, None])  # B×M×W
    rows = (edges[..., 1, None] <= y) & (y < edges[..., 3, None])  # B×M×H
    # The smallest box comes last: the largest number of those around a pixel is its box, 0 for none. One byte a number where that is enough.
    kind = torch.uint8 if most < 256 else torch.int16
    numbers = rows * torch.arange(1, most + 1, device=device, dtype=kind)[:, None]  # B×M×H
    around = numbers[..., :, None] * columns[..., None, :]  # B×M×H×W
    around *= (target[:, None] == classes[..., None, None]) | (target == BACKGROUND)[:, None]
    last = around.amax(dim=1).long()
    return torch.where(last > 0, number.gather(1, (last - 1).clamp(min=0).flatten(1)).view_as(last), -1)


def _ordered(scores: Tensor) -> Tensor:
    """int64 within ±2^31 that have the order of float32 scores: the bits of a float are in order but for the sign."""
    bits = scores.float().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
