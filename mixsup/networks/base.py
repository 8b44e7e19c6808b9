"""What every network is: features, a way to turn them into scores, and what it knows about its own input and pretraining."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A fully convolutional network without its last layer, which is the head's business.

    Attributes:
        channels: F, channels of the last feature map.
        mean, std: of the RGB input in 0..1 that the backbone was trained with; 3 numbers each.
        backbone: the pretrained part; its layers learn at the base rate, all others are new layers.
        pretraining: where the backbone's weights come from, for reports ("none", "imagenet", a file's name).
        freeze_batchnorm: keep the running statistics of the backbone's batch norms, as one must with small batches.
        multiple: input sides are padded to multiples of this.
        pyramid_channels: of the maps of `pyramid`, in its order.
    """

    channels: int
    backbone: nn.Module
    pretraining: str = "none"
    freeze_batchnorm: bool = False
    multiple: int = 1
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @abstractmethod
    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last feature map and what `fuse` will need besides.

        Args:
            images: B×3×H×W, normalised, sides multiples of `multiple`.

        Returns:
            B×F×h×w, and earlier maps (empty for most networks).
        """

    @property
    def pretrained(self) -> nn.Module:
        """What named weights, or those of a file, fill of the backbone; the rest of it is as new as the layers behind it."""
        return self.backbone

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        return (self.channels,)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The backbone's own feature maps, for what needs features of several resolutions and no scores.

        Unless a network says otherwise these are the last maps of `features`, as many as `pyramid_channels` tells.

        Args:
            images: B×3×H×W, normalised, sides multiples of `multiple`.

        Returns:
            One to four maps B×F_k×h_k×w_k, the finest first (at a quarter of the input's size where the backbone has such a map) and the deepest
            last; several may share a resolution, and values may be negative.
        """
        last, earlier = self.features(images)
        return [*reversed(earlier), last][-len(self.pyramid_channels) :]

    def classifier(self, num_classes: int) -> nn.Module:
        """How this architecture turns B×F×h×w features into B×C×h×w scores; the `plain` head is this."""
        return nn.Conv2d(self.channels, num_classes, kernel_size=1)

    def skips(self, num_classes: int) -> nn.Module | None:
        """Layers that score the earlier maps, for networks that add scores of several resolutions."""
        return None

    def fuse(self, scores: Tensor, earlier: list[Tensor], skips: nn.Module | None) -> Tensor:
        """Adds the scores of earlier maps to those of the last one; B×C×h×w in, B×C×h'×w' out."""
        return scores

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if mode and self.freeze_batchnorm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class OnNetwork(nn.Module):
    """A model around a network: takes RGB as it comes and gives the network what it was trained with.

    Args:
        network: kept as `network`; its mean and std are read here, once.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(network.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(network.std).view(1, 3, 1, 1), persistent=False)
        # A norm that has one channel a group needs two cells of the deepest map to tell their mean from their spread.
        groups = (part for part in network.modules() if isinstance(part, nn.GroupNorm))
        self.cells = 2 if any(part.num_groups == part.num_channels for part in groups) else 1

    def prepare(self, images: Tensor) -> Tensor:
        """B×3×H×W uint8 0..255 or float 0..1 in; normalised, float, padded at the bottom and right to the network's multiple out."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return pad_to_multiple((images - self.mean) / self.std, self.network.multiple, self.cells)


def pad_to_multiple(images: Tensor, multiple: int, cells: int = 1) -> Tensor:
    """Repeats the last row and column until both sides are multiples, and the picture has at least so many squares of that side; B×C×H×W."""
    height, width = images.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if height + down == multiple:
        right = max(right, cells * multiple - width)
    return nn.functional.pad(images, (0, right, 0, down), mode="replicate") if down or right else images


def resize_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing of B×C×h×w maps to B×C×H×W."""
    if scores.shape[-2:] == size:
        return scores
    return torch.nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=False)
