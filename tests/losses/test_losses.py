"""Every loss through the contract and against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mixsup.data.sample import LabelKind
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

    def test_against_the_seed_loss(self) -> None:
        """MCOF eq. 3, what tagged images are charged on their seeds: -1 / Σ_c |S_c| · Σ_c Σ_{u in S_c} log H_{u,c}, S_c the places seeded with class c."""
        outputs, batch = batch_of(["tags", "tags"])
        probabilities = outputs["scores"].softmax(dim=1)
        seeded = {label: [place.tolist() for place in (batch["target"] == label).nonzero()] for label in range(4)}
        costs = [
            -math.log(float(probabilities[image, label, row, column])) for label, places in seeded.items() for image, row, column in places
        ]
        (loss,) = Criterion({"tags": self.name})(outputs, batch).values()
        assert float(loss) == pytest.approx(sum(costs) / sum(map(len, seeded.values())), rel=1e-12)

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


def test_a_loss_of_the_users_own_sees_the_pictures_of_its_kind() -> None:
    """In a batch of one kind, and in a mixed one."""

    def colour(outputs: Any, batch: Any) -> Any:
        assert len(batch["image"]) == len(batch["kind"]) == len(outputs["scores"])
        return batch["image"].sum() + 0 * outputs["scores"].sum(), torch.tensor(1.0)

    criterion = Criterion({"masks": "cross-entropy", "boxes": "cross-entropy"})
    criterion.losses["boxes"] = colour
    for kinds, own in ((["boxes", "boxes"], [0, 1]), (["masks", "boxes", "boxes"], [1, 2])):
        outputs, batch = batch_of(kinds)
        batch["image"] = 10.0 ** torch.arange(len(kinds))[:, None, None, None]
        found = criterion(outputs, batch)["boxes/cross-entropy"]
        count = 1 + sum(int((batch["target"][index] != 255).sum()) for index, kind in enumerate(kinds) if kind == "masks")
        assert float(found) == pytest.approx(sum(10.0**index for index in own) / count)


def test_unknown_loss() -> None:
    with pytest.raises(MixsupError, match="no loss 'hinge'; there are cross-entropy, filling-rate"):
        Criterion({"masks": "hinge"})


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ({"boxes": "cross-entropy"}, {"boxes": {"variant": "class"}}, "loss 'cross-entropy' has no settings; leave loss_options.boxes out"),
        ({"boxes": "filling-rate"}, {"boxes": {"variant": "instance"}}, "loss 'filling-rate', setting 'variant'"),
        ({"boxes": "filling-rate"}, {"boxes": {"rate": 0}}, "loss 'filling-rate', setting 'rate'"),
        ({"boxes": "filling-rate"}, {"boxes": {"colour": 1}}, "loss 'filling-rate' has no setting 'colour'"),
        ({"boxes": "filling-rate"}, {"masks": {"rate": 0.5}}, "loss_options.masks has settings, but nothing charges masks"),
    ],
)
def test_settings_that_do_not_fit(losses: dict[LabelKind, str], options: dict[LabelKind, dict[str, Any]], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        Criterion(losses, options)
    assert len(str(caught.value).splitlines()) == 1
