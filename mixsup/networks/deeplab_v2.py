"""DeepLab-v2 on ResNet-101 (Chen et al.; 2016): output stride 8 and atrous spatial pyramid pooling of scores, rates 6, 12, 18 and 24."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from mixsup.networks.base import Network
from mixsup.networks.weights import State, load_into


def fetch_resnet101() -> State:
    """torchvision's ImageNet ResNet-101, from its hub."""
    return dict(torchvision.models.ResNet101_Weights.IMAGENET1K_V2.get_state_dict(progress=False, check_hash=True))


class ASPP(nn.Module):
    """The sum of one 3×3 classifier a rate; B×F×h×w in, B×C×h×w out."""

    def __init__(self, channels: int, num_classes: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate) for rate in rates])

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([branch(features) for branch in self.branches]).sum(0)


class DeepLabV2(Network):
    """ResNet-101 whose last two stages dilate and do not stride; the paper keeps its batch norms frozen (at what pretraining counted; without, they learn)."""

    multiple = 8
    channels = 2048
    freeze_batchnorm = True
    pyramid_channels = (256, 512, 1024, 2048)

    def __init__(self, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        if not rates or not all(isinstance(rate, int) and rate > 0 for rate in rates):
            raise ValueError(f"rates are {list(rates)}, and must be whole numbers above 0, at least one")
        resnet = torchvision.models.resnet101(replace_stride_with_dilation=[False, True, True])
        del resnet.avgpool, resnet.fc
        self.rates = tuple(rates)
        self.backbone = resnet

    def load_pretrained(self, state: State) -> None:
        """Takes over an ImageNet ResNet-101."""
        load_into(self.backbone, state, "ResNet-101 weights")

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.pyramid(images)[-1], []

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Layers 1 to 4, of which all but layer1 are at an eighth."""
        net = self.backbone
        images = net.maxpool(net.relu(net.bn1(net.conv1(images))))  # type: ignore[operator]
        maps = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            images = layer(images)  # type: ignore[operator]
            maps.append(images)
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        return ASPP(self.channels, num_classes, self.rates)
