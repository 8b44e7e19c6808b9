"""What every loss must do. A new loss inherits all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mixsup.data.sample import LabelKind
from mixsup.losses import LOSSES, Criterion


def batch_of(kinds: list[LabelKind], classes: int = 4, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Scores and a batch of 5×6 pixels with some void; images of kind boxes have three boxes, one of them a crowd, with rates, and some shared pixels."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(len(kinds), classes, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, classes, (len(kinds), 5, 6), generator=generator, dtype=torch.uint8)
    target[:, 0, :2] = 255
    boxes = torch.tensor([[1.0, 1.0, 6.0, 5.0], [0.0, 0.0, 4.0, 4.0], [0.0, 3.0, 6.0, 5.0]])
    counts = [3 if kind == "boxes" else 0 for kind in kinds]
    claims = torch.full((len(kinds), 5, 6), 255, dtype=torch.uint8)
    for index, kind in enumerate(kinds):
        if kind == "boxes":
            claims[index, 2, 1:4] = torch.tensor([0, 1, 0], dtype=torch.uint8)
            target[index, 2, 1:4] = 255
    return {"scores": scores}, {
        "target": target,
        "claims": claims,
        "claim_sets": [((1, 2), (1, 2, 3)) if kind == "boxes" else () for kind in kinds],
        "tags": [sorted({1 + index % (classes - 1), classes - 1}) for index in range(len(kinds))],
        "kind": kinds,
        "id": [str(index) for index in range(len(kinds))],
        "boxes": [boxes[:count] for count in counts],
        "box_classes": [torch.tensor([1, 2, 3])[:count] for count in counts],
        "box_crowd": [torch.tensor([False, False, True])[:count] for count in counts],
        "box_rates": [torch.tensor([0.3, 0.1, 1.0])[:count] for count in counts],
    }


def part_of(outputs: dict[str, Tensor], batch: dict[str, Any], chosen: list[int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Some images of a batch."""
    part = {name: [value[index] for index in chosen] if isinstance(value, list) else value[chosen] for name, value in batch.items()}
    return {name: value[chosen] for name, value in outputs.items()}, part


class LossContract:
    """Subclasses set `name`."""

    name: str

    def kinds(self) -> tuple[LabelKind, ...]:
        return LOSSES[self.name][1]

    def test_finite_and_not_negative(self) -> None:
        for kind in self.kinds():
            outputs, batch = batch_of([kind] * 3)
            (loss,) = Criterion({kind: self.name})(outputs, batch).values()
            assert torch.isfinite(loss)
            assert loss >= 0

    def test_gradient(self) -> None:
        for kind in self.kinds():
            outputs, batch = batch_of([kind])
            criterion = Criterion({kind: self.name})

            def total(scores: Tensor, criterion: Criterion = criterion, batch: dict[str, Any] = batch) -> Tensor:
                return torch.stack(list(criterion({"scores": scores}, batch).values())).sum()

            assert torch.autograd.gradcheck(total, (outputs["scores"],))

    def test_void_charges_nothing(self) -> None:
        for kind in self.kinds():
            outputs, batch = batch_of([kind] * 2)
            batch["target"][:] = 255
            batch["claims"][:] = 255
            (loss,) = Criterion({kind: self.name})(outputs, batch).values()
            loss.backward()
            assert loss == 0
            grad = outputs["scores"].grad
            assert grad is not None
            assert not grad.any()

    def test_a_mixed_batch_is_the_sum_of_its_parts(self) -> None:
        """Each part over what the whole batch charges."""
        kinds = self.kinds()
        mixed: list[LabelKind] = [kinds[index % len(kinds)] for index in range(5)]
        outputs, batch = batch_of(mixed)
        criterion = Criterion(dict.fromkeys(kinds, self.name))
        found = criterion(outputs, batch)
        parts = {kind: part_of(outputs, batch, [index for index, own in enumerate(mixed) if own == kind]) for kind in set(mixed)}
        counts = {kind: criterion.losses[kind](*part)[1] for kind, part in parts.items()}
        for kind, part in parts.items():
            (alone,) = criterion(*part).values()
            assert torch.allclose(found[f"{kind}/{self.name}"], alone * counts[kind] / sum(counts.values()))

    def test_refuses_other_kinds(self) -> None:
        from mixsup.errors import MixsupError

        others: set[LabelKind] = {"masks", "boxes", "tags"} - set(self.kinds())
        for kind in others:
            with pytest.raises(MixsupError, match="cannot charge"):
                Criterion({kind: self.name})
