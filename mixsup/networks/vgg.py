"""The papers' networks on VGG16: FCN (Long, Shelhamer, Darrell; CVPR 2015) and DeepLab-LargeFOV (Chen et al.; ICLR 2015)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torchvision
from torch import Tensor, nn

from mixsup.networks.base import Network
from mixsup.networks.fcn import SkipScores
from mixsup.networks.weights import State, without_prefix

# Output channels of VGG16's convolutions, by block.
VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_KEYS = ("features.0.weight", "features.0.bias", "classifier.0.weight", "classifier.0.bias")  # of torchvision's, to know its file by
_POOLED = tuple(widths[-1] for widths in VGG16_BLOCKS[1:])  # of pool2 to pool5


def fetch_vgg16() -> State:
    """torchvision's ImageNet VGG16, from its hub."""
    return dict(torchvision.models.VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True))


def copy_convolutions(target: nn.Module, state: State) -> None:
    """Copies VGG16's 13 convolutions in their order (torchvision's `features.N.weight`).

    Raises:
        ValueError: there are not 13.
    """
    indices = sorted({int(key.split(".")[1]) for key in state if key.startswith("features.")})
    own = [module for module in target.modules() if isinstance(module, nn.Conv2d)]
    if len(indices) != len(own):
        raise ValueError(f"{len(indices)} layers called `features`, VGG16 has {len(own)}")
    for module, index in zip(own, indices, strict=True):
        _fill(module, state[f"features.{index}.weight"], state[f"features.{index}.bias"])


def _fill(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.load_state_dict({"weight": weight, "bias": bias})


class VGG(nn.Module):
    """VGG16 as both networks see it: convolutions, and the fully connected layers as convolutions."""

    def __init__(self, blocks: list[nn.Module], fc: nn.Sequential) -> None:
        super().__init__()
        self.blocks, self.fc = nn.ModuleList(blocks), fc


class FCN(SkipScores):
    """FCN-32s, -16s or -8s with the paper's layers.

    Args:
        stride: 32, 16 or 8.
        fc_channels: of fc6 and fc7; 4096 in the paper.
        dropout: after fc6 and fc7.
    """

    pyramid_channels = _POOLED
    pool_channels = (512, 256)

    def __init__(self, stride: int = 8, fc_channels: int = 4096, dropout: float = 0.5) -> None:
        super().__init__(stride)
        blocks: list[nn.Module] = []
        previous = 3
        for widths in VGG16_BLOCKS:
            layers: list[nn.Module] = []
            for before, after in pairwise((previous, *widths)):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
            previous = widths[-1]
        self.channels = fc_channels
        self.backbone: VGG = VGG(
            blocks,
            nn.Sequential(
                    nn.Conv2d(512, fc_channels, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout(dropout),
                    nn.Conv2d(fc_channels, fc_channels, 1), nn.ReLU(inplace=True), nn.Dropout(dropout),
            ),
        )  # fmt: skip

    @property
    def pretrained(self) -> nn.Module:
        return self.backbone if self.channels == 4096 else self.backbone.blocks

    def load_pretrained(self, state: State) -> None:
        """Takes over VGG16, its fully connected layers as convolutions (only where the widths agree)."""
        state = without_prefix(state, _KEYS)
        copy_convolutions(self.backbone.blocks, state)
        if self.channels == 4096:
            fc = self.backbone.fc
            _fill(fc[0], state["classifier.0.weight"].view(4096, 512, 7, 7), state["classifier.0.bias"])
            _fill(fc[3], state["classifier.3.weight"].view(4096, 4096, 1, 1), state["classifier.3.bias"])

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        pools = self.pyramid(images)
        return self.backbone.fc(pools[3]), [pools[2], pools[1]][: self._used]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Pools 2 to 5."""
        pools = []
        for block in self.backbone.blocks:
            images = block(images)
            pools.append(images)
        return pools[1:]


class _LatePool(nn.MaxPool2d):
    """3×3 with stride 2, one row and column beyond the end and none before the beginning. It stands behind a ReLU: 0 is as good as nothing there."""

    def __init__(self) -> None:
        super().__init__(3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        pooled: Tensor = super().forward(nn.functional.pad(images, (0, 1, 0, 1)))
        return pooled


class DeepLabLargeFOV(Network):
    """DeepLab-LargeFOV: BoxSup's and BCM's network.

    Pools 1 to 3 halve (3×3, stride 2), pools 4 and 5 keep the size (3×3, stride 1), conv5 is dilated by 2, then a 3×3 average, fc6 3×3 dilated by
    12 and fc7 1×1 with 1024 channels each; scores at an eighth of the image's size.

    The original pads all pools on both sides, so that its cells lie on every eighth pixel from the first one on, and enlarges an image of 8n + 1 pixels
    corner to corner. Scores are enlarged here, for all networks and sizes, as if each cell lay in the middle of its 8 pixels, which is 3.5 pixels further;
    the third pool looks 4 pixels further, too.
    """

    multiple = 8
    pyramid_channels = _POOLED

    def __init__(self, fc_channels: int = 1024, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for block, widths in enumerate(VGG16_BLOCKS):
            dilation = 2 if block == 4 else 1
            for before, after in pairwise((previous, *widths)):
                layers += [nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
            layers.append(_LatePool() if block == 2 else nn.MaxPool2d(3, stride=2 if block < 3 else 1, padding=1))
            previous = widths[-1]
        layers.append(nn.AvgPool2d(3, stride=1, padding=1))
        self.channels = fc_channels
        self.backbone: VGG = VGG(
            layers,
            nn.Sequential(
                    nn.Conv2d(512, fc_channels, 3, padding=12, dilation=12), nn.ReLU(inplace=True), nn.Dropout(dropout),
                    nn.Conv2d(fc_channels, fc_channels, 1), nn.ReLU(inplace=True), nn.Dropout(dropout),
            ),
        )  # fmt: skip

    @property
    def pretrained(self) -> nn.Module:
        return self.backbone if self.channels <= 4096 else self.backbone.blocks

    def load_pretrained(self, state: State) -> None:
        """Takes over VGG16; fc6 and fc7 keep every fourth channel and fc6 the outer and middle taps of its 7×7 (DeepLab's decimation)."""
        state = without_prefix(state, _KEYS)
        copy_convolutions(self.backbone.blocks, state)
        if self.channels > 4096:
            return
        keep = torch.linspace(0, 4095, self.channels).round().long()
        fc = self.backbone.fc
        taps = torch.tensor([0, 3, 6])
        fc6 = state["classifier.0.weight"].view(4096, 512, 7, 7)[keep][:, :, taps][:, :, :, taps]
        _fill(fc[0], fc6, state["classifier.0.bias"][keep])
        fc7 = state["classifier.3.weight"][keep][:, keep]
        _fill(fc[3], fc7[:, :, None, None], state["classifier.3.bias"][keep])

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        for layer in self.backbone.blocks:
            images = layer(images)
        return self.backbone.fc(images), []

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Pools 2 to 5, of which all but pool2 are at an eighth."""
        pools = []
        for layer in self.backbone.blocks:
            images = layer(images)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(images)
        return pools[1:]
