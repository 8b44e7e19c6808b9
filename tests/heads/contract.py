"""What every head must do. A new head inherits all of it."""

from __future__ import annotations

import pytest
import torch

from mixsup.engine.model import SegmentationModel
from mixsup.heads import HEADS, build_head, head_losses
from mixsup.losses import HEAD_LOSSES
from mixsup.networks import build_network
from mixsup.recipe import NetworkChoice

# A network that is all backbone, one of the zoo whose decoder gives 32 channels, and one that adds the scores of earlier maps.
NETWORKS = {
    "plain": NetworkChoice(arch="deeplab-largefov", weights="none", options={"fc_channels": 25}),
    "zoo": NetworkChoice(arch="linknet", encoder="tu-test_efficientnet", weights="none"),
    "skips": NetworkChoice(arch="fcn", weights="none", options={"fc_channels": 24, "stride": 8}),
}
CLASSES = 7  # divides none of 25, 32 and 24


class HeadContract:
    """Subclasses set `name`."""

    name: str

    def model(self, network: str) -> SegmentationModel:
        torch.manual_seed(0)
        built = build_network(NETWORKS[network])
        assert built.channels % CLASSES
        return SegmentationModel(built, build_head(self.name, built, CLASSES), CLASSES)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_shapes(self, network: str) -> None:
        """At a size that no network likes; maps beside the scores are small and say how large their cells are."""
        outputs = self.model(network).eval()(torch.rand(2, 3, 45, 61))
        assert outputs["scores"].shape == (2, CLASSES, 45, 61)
        assert all(torch.isfinite(value).all() for value in outputs.values())
        assert all(len(value) == 2 for value in outputs.values())
        if "attention" in outputs:
            maps, cell = outputs["attention"], outputs["cell"]
            assert maps.shape[1] in (1, CLASSES)
            assert 0 < float(maps.min()) <= float(maps.max()) < 1
            height, width = (float(cell[0, axis]) * maps.shape[2 + axis] for axis in (0, 1))
            assert height >= 45
            assert width >= 61

    @pytest.mark.parametrize("network", NETWORKS)
    def test_the_gradient_of_the_scores_reaches_every_weight(self, network: str) -> None:
        model = self.model(network).train()
        torch.nn.functional.cross_entropy(model(torch.rand(2, 3, 64, 64))["scores"], torch.randint(0, CLASSES, (2, 64, 64))).backward()
        for name, parameter in model.head.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_weights_can_be_kept(self) -> None:
        one, other = self.model("zoo").eval(), self.model("zoo").eval()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        other.load_state_dict(one.state_dict())
        images = torch.rand(1, 3, 64, 64)
        assert torch.equal(one(images)["scores"], other(images)["scores"])

    def test_its_own_losses_exist(self) -> None:
        assert set(head_losses(self.name)) <= set(HEAD_LOSSES)
        assert all(weight > 0 for weight in head_losses(self.name).values())

    def test_under_autocast(self) -> None:
        model = self.model("zoo").train()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(torch.rand(2, 3, 64, 64))
        assert outputs["scores"].dtype == torch.float32
        outputs["scores"].sum().backward()

    @pytest.mark.parametrize("other", HEADS)
    def test_takes_the_place_of_another(self, other: str) -> None:
        """A trained classifier stays, for all of these heads have the architecture's own."""
        model = self.model("zoo")
        before = {key: value.clone() for key, value in model.head.state_dict().items()}
        model.change_head(other)
        assert type(model.head) is HEADS[other]
        own = model.head.state_dict()
        shared = [key for key in before if key in own and own[key].shape == before[key].shape]
        assert any(key.startswith("classifier.") for key in shared)
        assert all(torch.equal(before[key], own[key]) for key in shared)
