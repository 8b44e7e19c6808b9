"""Box-driven class-wise masking (BCM paper, section 3.2) and its two simpler relatives.

    eq. 2   Φ_c = F_c ⊗ α_c      the branch F_c of class c, masked by its attention map α_c

The last feature map (fc7 in DeepLab, the decoder's output elsewhere) is cut into one branch a class, background included. The paper leaves open:

- Where F channels do not divide by C classes: channel f belongs to branch ⌊f·C/F⌋, so that branches differ by one channel at most.
- The attention model of a branch: one linear unit and a sigmoid, so α is within (0, 1). It starts open, at α ≈ α_0 = 0.88.
- The scale of a masked branch: F_c ⊗ α_c / α_0, so that a head which takes the place of a trained plain one begins with its scores. The factor is one
  that a classifier can take up as well; a short fine-tuning at low rates has no steps for that.
- How masked branches are combined into scores: by the architecture's own classifier over all of them. It has the name that it has in `plain`, so a
  stage of training takes it over. What FCN-16s and 8s add to these scores from earlier maps is not masked: it has no branches.

`bcm` and `bgm` have a loss of their own, which teaches the maps boxes (eq. 1, `mixsup/losses/attention.py`).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixsup.errors import MixsupError
from mixsup.networks.base import Network

LAMBDA = 0.01  # eq. 6
_OPEN = 2.0  # bias of the attention units at the start
_BEGIN = 1 / (1 + math.exp(-_OPEN))  # α_0


class CM(nn.Module):
    """`cm`: a mask a class, taught by the scores alone.

    Raises:
        MixsupError: the network has fewer channels than there are classes.
    """

    membership: Tensor
    losses: ClassVar[dict[str, float]] = {}

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        if network.channels < num_classes:
            raise MixsupError(
                f"a class-wise head needs a channel a class, and this network's last feature map has {network.channels} channels for {num_classes} "
                f"classes; use head=bgm or head=plain, or a network with a wider decoder"
            )
        self.weight = nn.Parameter(torch.randn(1, network.channels) * (num_classes / network.channels) ** 0.5 * 0.1)
        self.bias = nn.Parameter(torch.full((num_classes,), _OPEN))
        self.register_buffer("membership", branches(network.channels, num_classes), persistent=False)
        self.classifier = network.classifier(num_classes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """B×F×h×w in; `scores` B×C×h×w and `attention` α, B×C×h×w within (0, 1), out."""
        # Both sums over branches are matrix products with the 0/1 membership: all classes at once, whatever the branches' widths.
        attention = functional.conv2d(features, (self.membership * self.weight)[:, :, None, None], self.bias).sigmoid()
        spread = functional.conv2d(
            attention / _BEGIN, self.membership.T[:, :, None, None].to(attention.dtype)
        )  # B×F×h×w, α / α_0 of each channel's branch
        return {"scores": self.classifier(features * spread), "attention": attention}


class BCM(CM):
    """`bcm`: a mask a class, taught the boxes of its class as well."""

    losses: ClassVar[dict[str, float]] = {"attention": LAMBDA}


class BGM(nn.Module):
    """`bgm`: one mask for all channels, taught the union of all boxes."""

    losses: ClassVar[dict[str, float]] = {"attention": LAMBDA}

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, network.channels) * network.channels**-0.5 * 0.1)
        self.bias = nn.Parameter(torch.full((1,), _OPEN))
        self.classifier = network.classifier(num_classes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """B×F×h×w in; `scores` B×C×h×w and `attention` B×1×h×w within (0, 1) out."""
        attention = functional.conv2d(features, self.weight[:, :, None, None], self.bias).sigmoid()
        return {"scores": self.classifier(features * (attention / _BEGIN)), "attention": attention}


def branches(channels: int, num_classes: int) -> Tensor:
    """C×F float32: 1 where channel f belongs to the branch of class c, ⌊f·C/F⌋ = c; else 0."""
    owner = torch.arange(channels) * num_classes // channels
    return (owner == torch.arange(num_classes)[:, None]).float()
