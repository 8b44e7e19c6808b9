"""`filling-rate`: the filling-rate guided loss (BCM paper, section 3.3).

    eq. 4   L_fr = Σ_c Σ_{i=1..top(FR_c)} L_c(i)      the pixels i of class c by falling score, L_c the softmax cross-entropy
    eq. 5   the same with FR_(c,sc), the rate of the box's sub-class

What the paper leaves open, and what is done here:

- Pixels are ranked inside each box, by the score of the box's class before the softmax. An object pixel belongs to the smallest box of its class around
  it, so boxes on top of others of their class keep their own pixels.
- Eq. 3 measures rates as shares of the BOX, so top(FR) is FR × the pixels of the whole box in the view, whoever they belong to, void ones left out: to one
  pixel the kept share of a box is its rate, or less where it has fewer pixels of its label than that. At least one is kept. All others that carry the
  box's label are ignored.
- Background, and whatever no box claims, is kept. So is all of an image with a true mask, which has no wrong pixels, and of a box without a rate.
- What is ignored does not count in the mean either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from mixsup.data.sample import BACKGROUND, VOID, Float32, Int64
from mixsup.losses.cross_entropy import cross_entropy
from mixsup.masks import MaskSource, build_source
from mixsup.masks.filling import FillingRates
from mixsup.masks.source import STRICT

_TOGETHER = 32  # boxes of an image that are looked at at once; a byte names one of them


@dataclass(frozen=True, config=STRICT)
class FillingRate:
    """Cross-entropy over the pixels that a box's filling rate lets through.

    Attributes:
        variant: whose rate a box takes: `global` (one for all), its `class`'s (eq. 4) or its `sub-class`'s (eq. 5).
        rate: of `global`; 0.6 in the paper's Table 1.
        measured_on: the mask source that rates are measured on; None for the first masks that are trained on, whose rates are 1 when they are rectangles.
            Where a refresh rule chooses from a pool of `masks.source`, that source's own masks. Not with `global`, which measures nothing.
        measured_options: settings of that source.
    """

    variant: Literal["global", "class", "sub-class"] = "class"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.6
    measured_on: str | None = None
    measured_options: dict[str, Any] = Field(default_factory=dict)
    name: ClassVar[str] = "filling-rate"

    def __post_init__(self) -> None:
        if self.variant == "global" and self.measured_on is not None:
            raise ValueError("variant 'global' takes its rate from `rate` and measures none; leave `measured_on` out")
        if self.measured_options and self.measured_on is None:
            raise ValueError("`measured_options` are those of `measured_on`, which is not given")

    def source(self) -> MaskSource | None:
        """What rates are measured on, where it is not what makes the first masks.

        Raises:
            MixsupError: no such source, or a setting that it does not have or accept.
        """
        place = "loss_options.boxes.measured_options"
        return None if self.measured_on is None else build_source(self.measured_on, self.measured_options, place)

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
            # A crowd of no class has no rate of its own; nobody is charged for it.
            own = rates.per_class[names[class_id]].mean if class_id != BACKGROUND else None
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
    device = target.device
    windows = Windows.of(batch, counts, target)
    rates = torch.cat([rates[:count] for rates, count in zip(batch["box_rates"], counts, strict=True)]).to(device, non_blocking=True)
    quota = (windows.areas(target != VOID) * rates.nan_to_num(1.0)).round().long().clamp(min=1)  # top(FR)

    owner = windows.owners(target)  # B×H×W, counted through the batch, -1 for none
    candidate = owner >= 0
    label = torch.where(candidate, target, 0).long()
    mine = owner[candidate]
    score = scores.detach().gather(1, label[:, None])[:, 0][candidate]
    order = torch.argsort((mine << 32) - _ordered(score), stable=True)  # by box, then by falling score
    mine = mine[order]
    first = torch.searchsorted(mine, torch.arange(windows.total, device=device))
    rank = torch.arange(len(mine), device=device) - first[mine]
    through = torch.empty_like(mine, dtype=torch.bool)
    through[order] = rank < quota[mine]
    kept = torch.ones_like(candidate)
    kept[candidate] = through
    return kept


class Windows(NamedTuple):
    """The boxes of a batch as rows and columns of pixels, M an image, in their order, the largest first; a crowd and a place that is not taken have no pixel.

    Attributes:
        rows, columns: B×M×H and B×M×W bool; a pixel is in a box when its middle is, as where masks are resized by nearest neighbour.
        classes: B×M uint8.
        numbers: B×M int64, the box's number through the batch, -1 for a place that is not taken.
        total: boxes of the batch.
    """

    rows: Tensor
    columns: Tensor
    classes: Tensor
    numbers: Tensor
    total: int

    @staticmethod
    def of(batch: Mapping[str, Any], counts: list[int], target: Tensor) -> Windows:
        """The first `counts` boxes of each image, in views of the size of `target` (B×H×W) and on its device."""
        most, (height, width) = max(counts), target.shape[-2:]
        edges, classes = torch.zeros(len(counts), most, 4), torch.zeros(len(counts), most, dtype=torch.uint8)
        numbers = torch.full((len(counts), most), -1)
        before = 0
        for image, count in enumerate(counts):
            boxes = batch["boxes"][image][:count]
            edges[image, :count] = boxes * ~batch["box_crowd"][image][:count, None]
            classes[image, :count] = batch["box_classes"][image][:count].to(torch.uint8)
            numbers[image, :count] = torch.arange(before, before + count)
            before += count
        edges, classes, numbers = (values.to(target.device, non_blocking=True) for values in (edges, classes, numbers))
        x, y = torch.arange(width, device=target.device) + 0.5, torch.arange(height, device=target.device) + 0.5
        columns = (edges[..., 0, None] <= x) & (x < edges[..., 2, None])
        rows = (edges[..., 1, None] <= y) & (y < edges[..., 3, None])
        return Windows(rows, columns, classes, numbers, before)

    def areas(self, known: Tensor) -> Tensor:
        """How many known pixels (B×H×W bool) each box has, float32 by its number."""
        with torch.autocast(known.device.type, enabled=False):  # bfloat16 does not count beyond 256
            inside = ((self.rows.float() @ known.float()) * self.columns).sum(dim=2)
        places = torch.where(self.numbers < 0, self.total, self.numbers).flatten()
        return torch.zeros(self.total + 1, device=inside.device).scatter_(0, places, inside.flatten())[: self.total]

    def owners(self, target: Tensor) -> Tensor:
        """The number of the smallest box around each pixel that is no crowd and of the pixel's class (B×H×W uint8), B×H×W int64, -1 for none."""
        last = torch.zeros(target.shape, dtype=torch.int64, device=target.device)
        for first in range(0, self.numbers.shape[1], _TOGETHER):
            rows, columns, classes = (values[:, first : first + _TOGETHER] for values in (self.rows, self.columns, self.classes))
            # The smallest box comes last: the largest place of those around a pixel is its box, 0 for none. One byte is enough for these.
            places = rows * torch.arange(1, rows.shape[1] + 1, device=target.device, dtype=torch.uint8)[:, None]
            around = places[..., :, None] * columns[..., None, :]  # B×M×H×W
            around *= target[:, None] == classes[..., None, None]
            found = around.amax(dim=1).long()
            last = torch.where(found > 0, found + first, last)
        return torch.where(last > 0, self.numbers.gather(1, (last - 1).clamp(min=0).flatten(1)).view_as(last), -1)


def _ordered(scores: Tensor) -> Tensor:
    """int64 within ±2^31 that have the order of float32 scores: the bits of a float are in order but for the sign."""
    bits = scores.float().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
