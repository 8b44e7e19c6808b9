"""Every head through the contract, and the masking heads against their formula."""

from __future__ import annotations

import pytest
import torch

from mixsup.errors import MixsupError
from mixsup.heads import HEADS, build_head
from mixsup.heads.bcm import BCM, BGM, branches
from mixsup.networks import build_network
from mixsup.recipe import NetworkChoice
from tests.heads.contract import CLASSES, NETWORKS, HeadContract


class TestPlain(HeadContract):
    name = "plain"


class TestBCM(HeadContract):
    name = "bcm"

    def test_against_the_formula(self) -> None:
        """Eq. 2, branch by branch: Φ_c = F_c ⊗ α_c, α_c a linear unit over the channels of F_c and a sigmoid; in units of the α that heads begin with."""
        network = build_network(NETWORKS["zoo"])
        head = BCM(network, CLASSES)
        torch.nn.init.normal_(head.weight)
        torch.nn.init.normal_(head.bias)
        features = torch.randn(2, network.channels, 5, 6)
        masked, maps = torch.zeros_like(features), torch.zeros(2, CLASSES, 5, 6)
        for c in range(CLASSES):
            own = [f for f in range(network.channels) if f * CLASSES // network.channels == c]
            assert len(own) in (network.channels // CLASSES, network.channels // CLASSES + 1)
            maps[:, c] = (sum(head.weight[0, f] * features[:, f] for f in own) + head.bias[c]).sigmoid()
            for f in own:
                masked[:, f] = features[:, f] * maps[:, c]
        found = head(features)
        assert torch.allclose(found["attention"], maps, atol=1e-6)
        assert torch.allclose(found["scores"], head.classifier(masked / torch.tensor(2.0).sigmoid()), atol=1e-5)

    def test_a_channel_a_class_is_the_least(self) -> None:
        network = build_network(NetworkChoice(arch="deeplab-largefov", weights="none", options={"fc_channels": 8}))
        assert build_head("bcm", network, 8)(torch.rand(1, 8, 2, 2))["attention"].shape == (1, 8, 2, 2)
        for name in ("bcm", "cm"):
            with pytest.raises(MixsupError, match="last feature map has 8 channels for 9 classes; use head=bgm or head=plain") as caught:
                build_head(name, network, 9)
            assert len(str(caught.value).splitlines()) == 1


class TestCM(HeadContract):
    name = "cm"


class TestBGM(HeadContract):
    name = "bgm"

    def test_against_the_formula(self) -> None:
        head = BGM(build_network(NETWORKS["zoo"]), CLASSES)
        features = torch.randn(2, 32, 5, 6)
        alpha = ((head.weight[:, :, None, None] * features).sum(1) + head.bias).sigmoid()
        found = head(features)
        assert torch.allclose(found["attention"][:, 0], alpha, atol=1e-6)
        assert torch.allclose(found["scores"], head.classifier(features * alpha[:, None] / torch.tensor(2.0).sigmoid()), atol=1e-5)


@pytest.mark.parametrize(("channels", "classes"), [(1024, 21), (22, 21), (21, 21), (256, 4), (7, 3)])
def test_branches_share_the_channels_evenly(channels: int, classes: int) -> None:
    cut = branches(channels, classes)
    assert (cut.sum(0) == 1).all()
    assert set(cut.sum(1).tolist()) <= {channels // classes, -(-channels // classes)}


@pytest.mark.parametrize("name", ["bcm", "cm", "bgm"])
def test_a_masking_head_begins_like_the_plain_one(name: str) -> None:
    """Its maps are nearly open and their scale is taken out, so that fine-tuning starts from what was learned."""
    network = build_network(NETWORKS["zoo"])
    plain, head = build_head("plain", network, CLASSES), build_head(name, network, CLASSES)
    head.load_state_dict(plain.state_dict(), strict=False)
    features = torch.randn(1, network.channels, 8, 8)
    mine, theirs = head(features)["scores"], plain(features)["scores"]
    assert torch.corrcoef(torch.stack([mine.flatten(), theirs.flatten()]))[0, 1] > 0.99
    assert (mine - theirs).std() < 0.1 * theirs.std()


def test_unknown_head() -> None:
    with pytest.raises(MixsupError, match="no head 'magic'; there are plain, bcm, cm, bgm"):
        build_head("magic", build_network(NETWORKS["zoo"]), 3)
    assert set(HEADS) == {"plain", "bcm", "cm", "bgm"}
