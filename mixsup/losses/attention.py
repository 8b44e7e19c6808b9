"""`attention`: what the maps of a masking head are taught (BCM paper, section 3.2).

    eq. 1   L_bcm(c) = Σ_h,w ‖M_c(h,w) − α_c(h,w)‖²      M_c the box mask of class c, at the size of the map

Eq. 6 adds λ Σ_c L_bcm(c) to the loss of the scores; both are sums over pixels there, and both are means over theirs here. A framework that averages the
loss of the scores over pixels and sums squares over each image gives the same λ a weight that is larger by the number of cells; `head_loss` sets another.

What the paper leaves open:

- A cell of the map is larger than a pixel: M_c is the largest share of it that one box of class c covers, so that no box is lost between cells.
- An absent class is taught 0 everywhere: its branch has nothing to say about this image. The background is taught what boxes leave, 1 − max_c M_c. A single
  map (`bgm`) is taught the union of all boxes, max_c M_c.
- Of an image whose source annotates some classes only, the maps of the others are not charged, and the background's only inside its boxes.
- A cell whose middle is void and that no box touches (around the picture, in a crowd) is not charged.
- An image with a true mask is taught its boxes too (its own, or tight ones around the mask's components): a map that were an outline in some images and
  a box in others would mean neither. A tagged image is not charged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixsup.data.sample import BACKGROUND, VOID


def attention(outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Σ_c L_bcm(c), eq. 1.

    Args:
        outputs: `attention` α, B×C×h×w or B×1×h×w within (0, 1); `cell` B×2, height and width of a cell of it in pixels of the view.
        batch: `target` B×H×W, 255 void; `boxes`, `box_classes`, `box_crowd`, lists of B, see `mixsup.engine.batches.collate`.

    Returns:
        The sum over cells and classes (scalar), and the number of charged cells (scalar).
    """
    alpha = outputs["attention"].float()
    taught, charged = box_maps(batch, outputs["scores"].shape[1], (alpha.shape[-2], alpha.shape[-1]), outputs["cell"])
    weights = charged[:, None]
    if "unknown" in batch:
        partial = batch["unknown"].any(dim=1)[:, None, None]
        known = torch.where(batch["unknown"][:, :, None, None], 0.0, weights.expand_as(taught))
        known[:, BACKGROUND] = torch.where(partial, (taught[:, BACKGROUND] < 1).float(), 1.0) * charged
        weights = known
    if alpha.shape[1] == 1:
        taught, weights = 1 - taught[:, BACKGROUND : BACKGROUND + 1], weights[:, BACKGROUND : BACKGROUND + 1]
    return ((taught - alpha).square() * weights).sum(), charged.sum()


@torch.no_grad()
def box_maps(batch: Mapping[str, Any], num_classes: int, size: tuple[int, int], cell: Tensor) -> tuple[Tensor, Tensor]:
    """The box masks M of all classes and images, without a loop over either.

    Args:
        batch: see `attention`.
        num_classes: C, background included.
        size: (h, w) of the maps.
        cell: B×2 float32, the same for all images.

    Returns:
        B×C×h×w float32 within 0..1, and B×h×w float32, 1 where a cell is charged.
    """
    target: Tensor = batch["target"]
    images, device = len(target), target.device
    owner = torch.repeat_interleave(torch.arange(images), torch.tensor([len(boxes) for boxes in batch["boxes"]]))
    kept = ~torch.cat(batch["box_crowd"])
    place = (owner * num_classes + torch.cat(batch["box_classes"]))[kept].to(device, non_blocking=True)
    boxes = torch.cat(batch["boxes"])[kept].to(device, non_blocking=True)  # N×4

    covered_y = _covered(boxes[:, 1], boxes[:, 3], size[0], cell[0, 0])
    covered_x = _covered(boxes[:, 0], boxes[:, 2], size[1], cell[0, 1])
    maps = torch.zeros((images * num_classes, *size), device=device)
    covered = covered_y[:, :, None] * covered_x[:, None, :]  # N×h×w
    maps.scatter_reduce_(0, place[:, None, None].expand_as(covered), covered, "amax")
    maps = maps.view(images, num_classes, *size)
    inside = maps.amax(dim=1)
    maps[:, BACKGROUND] = 1 - inside
    return maps, ((inside > 0) | _known(target, size, cell)).float()


def _covered(low: Tensor, high: Tensor, cells: int, cell: Tensor) -> Tensor:
    """N×cells: the share of each cell along one axis between N low and N high edges, in pixels."""
    start = torch.arange(cells, device=low.device) * cell
    return (torch.minimum(high[:, None], start + cell) - torch.maximum(low[:, None], start)).clamp(min=0) / cell


def _known(target: Tensor, size: tuple[int, int], cell: Tensor) -> Tensor:
    """B×h×w bool: the middle of the cell lies in the view and is not void."""
    rows, columns = (((torch.arange(count, device=target.device) + 0.5) * cell[0, axis]).long() for axis, count in enumerate(size))
    height, width = target.shape[-2:]
    seen = (rows < height)[:, None] & (columns < width)
    return (target[:, rows.clamp(max=height - 1)][:, :, columns.clamp(max=width - 1)] != VOID) & seen
