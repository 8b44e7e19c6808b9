"""Every loss through the contract and against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from mixsup.errors import MixsupError
from mixsup.losses import Criterion
from tests.losses.contract import LossContract, batch_of


class TestCrossEntropy(LossContract):
    name = "cross-entropy"

    def test_against_the_formula(self) -> None:
        """BoxSup eq. 1: Σ_p -log softmax(X(p))_{l(p)}, here over the number of labelled pixels."""
        outputs, batch = batch_of(["boxes", "boxes"])
        total, count = 0.0, 0
        for index in range(2):
            for row in range(5):
                for column in range(6):
                    label = int(batch["target"][index, row, column])
                    if label != 255:
                        exponentials = [math.exp(float(value)) for value in outputs["scores"][index, :, row, column]]
                        total -= math.log(exponentials[label] / sum(exponentials))
                        count += 1
        (loss,) = Criterion({"boxes": self.name})(outputs, batch).values()
        assert float(loss) == pytest.approx(total / count, rel=1e-12)

    def test_a_batch_of_one_kind_is_pytorchs_mean(self) -> None:
        outputs, batch = batch_of(["masks"] * 4)
        (loss,) = Criterion({"masks": self.name})(outputs, batch).values()
        expected = torch.nn.functional.cross_entropy(outputs["scores"], batch["target"].long(), ignore_index=255)
        assert torch.allclose(loss, expected)

    def test_kinds_of_one_loss_add_up_to_the_plain_mean(self) -> None:
        outputs, batch = batch_of(["masks", "boxes", "boxes", "masks"])
        found = Criterion({"masks": self.name, "boxes": self.name})(outputs, batch)
        expected = torch.nn.functional.cross_entropy(outputs["scores"], batch["target"].long(), ignore_index=255)
        assert set(found) == {"masks/cross-entropy", "boxes/cross-entropy"}
        assert torch.allclose(sum(found.values()), expected)  # type: ignore[arg-type]


def test_unknown_loss() -> None:
    with pytest.raises(MixsupError, match="no loss 'hinge'; there are cross-entropy"):
        Criterion({"masks": "hinge"})
