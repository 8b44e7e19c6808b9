"""The losses of diverse supervision through the contract and against their formulas; and labels of some classes only."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixsup.data.sample import LabelKind
from mixsup.losses import Criterion
from mixsup.losses.partial import fold_unknown
from tests.losses.contract import LossContract, batch_of, part_of


def softmax(values: Tensor) -> list[float]:
    exponentials = [math.exp(float(value)) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def pixels(batch: dict[str, Any], index: int) -> list[tuple[int, int]]:
    height, width = batch["target"].shape[1:]
    return [(row, column) for row in range(height) for column in range(width)]


def slow_tags(scores: Tensor, batch: dict[str, Any], index: int) -> tuple[float, int]:
    """Eqs. 1 and 2 of one image, and |Ω|."""
    inside = [place for place in pixels(batch, index) if batch["target"][(index, *place)] != 255]
    total, classes = 0.0, scores.shape[1] - 1
    for class_id in range(1, classes + 1):
        pooled = sum(float(scores[index, class_id, row, column]) for row, column in inside) / len(inside)
        likely = 1 / (1 + math.exp(-pooled))
        total -= math.log(likely) if class_id in batch["tags"][index] else math.log(1 - likely)
    return total / classes, len(inside)


def slow_soft(scores: Tensor, batch: dict[str, Any], index: int) -> tuple[float, int]:
    """Eq. 3 of one image without 1/C, and the number of charged pixels."""
    total, count = 0.0, 0
    for row, column in pixels(batch, index):
        label, number = int(batch["target"][index, row, column]), int(batch["claims"][index, row, column])
        claimed = batch["claim_sets"][index][number] if number != 255 else (label,) if label != 255 else ()
        likely = softmax(scores[index, :, row, column])
        total -= sum(math.log(likely[class_id]) / len(claimed) for class_id in claimed)
        count += bool(claimed)
    return total, count


def slow_masks(scores: Tensor, batch: dict[str, Any], index: int) -> tuple[float, int]:
    """Eq. 4 of one image without 1/C, and the number of labelled pixels."""
    total, count = 0.0, 0
    for row, column in pixels(batch, index):
        label = int(batch["target"][index, row, column])
        if label != 255:
            total -= math.log(softmax(scores[index, :, row, column])[label])
            count += 1
    return total, count


class TestGapBCE(LossContract):
    name = "gap-bce"

    def test_against_the_formula(self) -> None:
        outputs, batch = batch_of(["tags"] * 3)
        parts = [slow_tags(outputs["scores"], batch, index) for index in range(3)]
        (loss,) = Criterion({"tags": self.name})(outputs, batch).values()
        assert float(loss) == pytest.approx(sum(cost * area for cost, area in parts) / sum(area for _, area in parts), rel=1e-6)

    def test_classes_that_nobody_looked_for(self) -> None:
        """They are left out of the mean; an image of which no class was looked for costs nothing."""
        outputs, batch = batch_of(["tags"] * 2)
        batch["tags"] = [[1], []]
        batch["unknown"] = torch.tensor([[False, False, True, False], [False, True, True, True]])
        (loss,) = Criterion({"tags": self.name})(outputs, batch).values()
        inside = (batch["target"] != 255).double()
        pooled = (outputs["scores"] * inside[:, None]).sum((2, 3)) / inside.sum((1, 2))[:, None]
        first = (-pooled[0, 1].sigmoid().log() - (1 - pooled[0, 3].sigmoid()).log()) / 2
        assert float(loss) == pytest.approx(float(first * inside[0].sum() / inside.sum()), rel=1e-6)


class TestSoft(LossContract):
    name = "soft"

    def test_against_the_formula(self) -> None:
        outputs, batch = batch_of(["boxes"] * 3)
        parts = [slow_soft(outputs["scores"], batch, index) for index in range(3)]
        (loss,) = Criterion({"boxes": self.name})(outputs, batch).values()
        assert float(loss) == pytest.approx(sum(cost for cost, _ in parts) / sum(count for _, count in parts), rel=1e-6)

    def test_without_shared_pixels_it_is_cross_entropy(self) -> None:
        outputs, batch = batch_of(["boxes"] * 2)
        batch["claims"][:] = 255
        batch["claim_sets"] = [(), ()]
        (loss,) = Criterion({"boxes": self.name})(outputs, batch).values()
        (plain,) = Criterion({"boxes": "cross-entropy"})(outputs, batch).values()
        assert torch.equal(loss, plain)


ALL: dict[LabelKind, str] = {"masks": "cross-entropy", "boxes": "soft", "tags": "gap-bce"}
SLOW = {"masks": slow_masks, "boxes": slow_soft}


def test_a_mixed_batch_is_the_sum_over_its_kinds() -> None:
    """Eq. 5: each image by its branch; over the charged pixels of the batch."""
    kinds: list[LabelKind] = ["tags", "masks", "boxes", "masks", "tags", "boxes"]
    outputs, batch = batch_of(kinds)
    total, count = 0.0, 0
    for index, kind in enumerate(kinds):
        if kind == "tags":
            cost, area = slow_tags(outputs["scores"], batch, index)
            total, count = total + cost * area, count + area
        else:
            cost, area = SLOW[kind](outputs["scores"], batch, index)
            total, count = total + cost, count + area
    found = Criterion(ALL)(outputs, batch)
    assert float(torch.stack(list(found.values())).sum()) == pytest.approx(total / count, rel=1e-6)


def test_a_mixed_batch_is_exactly_the_sum_of_the_kinds_alone() -> None:
    kinds: list[LabelKind] = ["tags", "masks", "boxes", "masks", "tags", "boxes"]
    outputs, batch = batch_of(kinds)
    criterion = Criterion(ALL)
    found = criterion(outputs, batch)
    parts = {kind: part_of(outputs, batch, [index for index, own in enumerate(kinds) if own == kind]) for kind in ALL}
    sums = {kind: criterion.losses[kind](*parts[kind]) for kind in ALL}
    charged = sum(int(count) for _, count in sums.values())
    for kind, name in ALL.items():
        assert torch.equal(found[f"{kind}/{name}"], sums[kind][0] / charged)


def test_weights_of_kinds() -> None:
    outputs, batch = batch_of(["tags", "masks", "boxes"])
    plain, weighed = Criterion(ALL)(outputs, batch), Criterion(ALL, weights={"tags": 0.5, "boxes": 3.0})(outputs, batch)
    for name, factor in (("masks/cross-entropy", 1.0), ("boxes/soft", 3.0), ("tags/gap-bce", 0.5)):
        assert torch.allclose(weighed[name], factor * plain[name])


def test_a_kind_with_none_has_no_loss() -> None:
    assert set(Criterion({"masks": "cross-entropy", "boxes": "none"}).losses) == {"masks"}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), unknown=st.sets(st.integers(1, 3)))
def test_unknown_classes_count_as_background(seed: int, unknown: set[int]) -> None:
    """Softmax of the folded scores is that of the scores with the probabilities of unknown classes moved to the background."""
    outputs, _ = batch_of(["masks"] * 2, seed=seed)
    flags = torch.zeros(2, 4, dtype=torch.bool)
    flags[0, sorted(unknown)] = True
    folded = fold_unknown(outputs["scores"], flags).softmax(1)
    expected = outputs["scores"].softmax(1).detach().clone()
    for class_id in unknown:
        expected[0, 0] += expected[0, class_id]
        expected[0, class_id] = 0
    assert torch.allclose(folded, expected)
    assert torch.allclose(folded[1], outputs["scores"][1].softmax(0))


@pytest.mark.parametrize(("kind", "loss"), [("masks", "cross-entropy"), ("boxes", "soft"), ("boxes", "filling-rate"), ("tags", "gap-bce")])
def test_no_source_teaches_background_over_the_classes_of_another(kind: LabelKind, loss: str) -> None:
    """Over a background pixel an unknown class and the background are the same thing: nothing pushes one against the other, and what pulls them up
    together pulls each as much as it is likely. In tags an unknown class has no gradient at all. Without the flag, background pushes it down."""
    outputs, batch = batch_of([kind] * 2)
    batch["target"][batch["target"] != 255] = 0
    batch["claims"][:], batch["claim_sets"] = 255, [(), ()]
    batch["unknown"] = torch.tensor([[False, False, False, True]] * 2)
    batch["tags"] = [[1], [2]]
    batch["box_classes"] = [classes.clamp(max=2) for classes in batch["box_classes"]]
    scores = outputs["scores"]

    def gradient() -> Tensor:
        (loss_value,) = Criterion({kind: loss})({"scores": scores}, batch).values()
        return torch.autograd.grad(loss_value, scores)[0]

    pulled = gradient()
    if kind == "tags":
        assert not pulled[:, 3].any()
    else:
        charged = batch["target"] == 0
        likely = scores.softmax(1)
        ratio = pulled[:, 3] / pulled[:, 0]
        assert torch.allclose(ratio[charged], (likely[:, 3] / likely[:, 0])[charged])
        assert (pulled[:, 3][charged] < 0).all()  # towards more of it, together with the background
    del batch["unknown"]
    assert (gradient()[:, 3][batch["target"] == 0] > 0).all()  # towards less of it


def test_a_pixel_of_a_known_class_is_charged_as_ever() -> None:
    outputs, batch = batch_of(["masks"])
    batch["target"][batch["target"] == 3] = 1
    batch["target"][batch["target"] == 0] = 2
    (plain,) = Criterion({"masks": "cross-entropy"})(outputs, batch).values()
    batch["unknown"] = torch.tensor([[False, False, False, True]])
    (folded,) = Criterion({"masks": "cross-entropy"})(outputs, batch).values()
    assert torch.allclose(plain, folded)
