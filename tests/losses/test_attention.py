"""What masking heads are taught, against eq. 1 cell by cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixsup.losses import Criterion
from mixsup.losses.attention import attention, box_maps
from tests.losses.contract import part_of
from tests.losses.test_filling_rate import random_batch


def with_maps(seed: int, maps: int, cell: tuple[float, float] = (4.0, 3.0)) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A map of 3×5 cells over views of 11×13 pixels: as in a network, the last cells reach beyond the view."""
    outputs, batch = random_batch(seed)
    alpha = torch.rand(3, maps, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)
    return {**outputs, "attention": alpha, "cell": torch.tensor([cell] * 3)}, batch


def slow_maps(batch: dict[str, Any], classes: int, size: tuple[int, int], cell: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The largest share of a cell that a box covers, and whether the cell is charged."""
    target = batch["target"]
    maps, charged = torch.zeros(len(target), classes, *size), torch.zeros(len(target), *size)
    for image in range(len(target)):
        for row in range(size[0]):
            for column in range(size[1]):
                top, left = row * cell[0], column * cell[1]
                covered = [0.0] * classes
                boxes = zip(
                    batch["boxes"][image].tolist(), batch["box_classes"][image].tolist(), batch["box_crowd"][image].tolist(), strict=True
                )
                for (x0, y0, x1, y1), class_id, crowd in boxes:
                    down, across = min(y1, top + cell[0]) - max(y0, top), min(x1, left + cell[1]) - max(x0, left)
                    if not crowd and down > 0 and across > 0:
                        covered[class_id] = max(covered[class_id], down * across / (cell[0] * cell[1]))
                covered[0] = 1 - max(covered[1:])
                maps[image, :, row, column] = torch.tensor(covered)
                y, x = int(top + cell[0] / 2), int(left + cell[1] / 2)
                seen = y < target.shape[1] and x < target.shape[2] and target[image, y, x] != 255
                charged[image, row, column] = float(seen or covered[0] < 1)
    return maps, charged


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("maps", [4, 1])
def test_against_the_formula(seed: int, maps: int) -> None:
    """Eq. 1; a class that is absent is taught 0, the background what boxes leave, a single map the union of the boxes."""
    outputs, batch = with_maps(seed, maps)
    taught, charged = slow_maps(batch, 4, (3, 5), (4.0, 3.0))
    found = box_maps(batch, 4, (3, 5), outputs["cell"])
    assert torch.allclose(found[0], taught, atol=1e-6)
    assert torch.equal(found[1], charged)
    total, count = attention(outputs, batch)
    wanted = taught if maps == 4 else 1 - taught[:, :1]
    assert float(total.detach()) == pytest.approx(float(((wanted - outputs["attention"]) ** 2 * charged[:, None]).sum().detach()), rel=1e-5)
    assert int(count) == int(charged.sum())
    for image in range(3):
        absent = set(range(1, 4)) - set(batch["box_classes"][image][~batch["box_crowd"][image]].tolist())
        assert not any(found[0][image, class_id].any() for class_id in absent)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("maps", [4, 1])
def test_classes_that_nobody_looked_for(seed: int, maps: int) -> None:
    """Their maps are not charged, and the background's only where a box lies; images of which all is known are charged as ever."""
    outputs, batch = with_maps(seed, maps)
    batch["unknown"] = torch.tensor([[False, False, True, True], [False] * 4, [False, True, False, False]])
    taught, charged = slow_maps(batch, 4, (3, 5), (4.0, 3.0))
    wanted, total = taught if maps == 4 else 1 - taught[:, :1], 0.0
    for image, row, column in charged.nonzero().tolist():
        for index in range(maps):
            known = not batch["unknown"][image, index]
            if index == 0 and batch["unknown"][image].any():
                known = bool(taught[image, 0, row, column] < 1)
            total += known * float((wanted[image, index, row, column] - outputs["attention"][image, index, row, column].detach()) ** 2)
    found, count = attention(outputs, batch)
    assert float(found.detach()) == pytest.approx(total, rel=1e-5)
    assert int(count) == int(charged.sum())


def test_gradient_goes_to_the_maps_alone() -> None:
    outputs, batch = with_maps(1, 4)
    attention(outputs, batch)[0].backward()
    assert outputs["scores"].grad is None
    alpha, (taught, charged) = outputs["attention"], box_maps(batch, 4, (3, 5), outputs["cell"])
    assert alpha.grad is not None
    assert torch.allclose(alpha.grad, 2 * (alpha.detach() - taught) * charged[:, None], atol=1e-6)


def test_the_criterion_adds_it_with_its_weight() -> None:
    """Eq. 6, over images with masks and boxes: λ is against their own loss. A tagged image is not charged, and takes nothing away."""
    outputs, batch = with_maps(3, 4)
    batch["kind"] = ["boxes", "tags", "masks"]
    losses = {"masks": "cross-entropy", "boxes": "cross-entropy", "tags": "cross-entropy"}
    found = Criterion(losses, head={"attention": 0.01})(outputs, batch)  # type: ignore[arg-type]
    total, count = attention(*part_of(outputs, batch, [0, 2]))
    charged = (batch["target"] != 255).flatten(1).sum(dim=1)
    share = int(charged[[0, 2]].sum()) / int(charged.sum())
    assert 0.3 < share < 0.9
    assert float(found["head/attention"].detach()) == pytest.approx(0.01 * share * float(total.detach()) / int(count), rel=1e-6)
    alone = dict(zip(("outputs", "batch"), part_of(outputs, batch, [0, 2]), strict=True))
    own = Criterion(losses, head={"attention": 0.01})(**alone)  # type: ignore[arg-type]
    ratios = [
        float(each["head/attention"].detach() / (each["masks/cross-entropy"] + each["boxes/cross-entropy"]).detach())
        for each in (found, own)
    ]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-5)
    assert set(Criterion(losses)(outputs, batch)) == set(found) - {"head/attention"}  # type: ignore[arg-type]
    batch["kind"] = ["tags"] * 3
    assert set(Criterion(losses, head={"attention": 0.01})(outputs, batch)) == {"tags/cross-entropy"}  # type: ignore[arg-type]


def test_nothing_to_charge() -> None:
    outputs, batch = with_maps(0, 4)
    batch["target"][:] = 255
    for name in ("boxes", "box_classes", "box_crowd"):
        batch[name] = [value[:0] for value in batch[name]]
    batch["kind"] = ["boxes"] * 3
    found = Criterion({"boxes": "cross-entropy"}, head={"attention": 0.01})(outputs, batch)
    assert float(found["head/attention"].detach()) == 0
