"""The network of class activation maps (MCOF paper, section 4.1, after Zhou et al., CVPR 2016), on any backbone.

Zhou et al. pool the deepest feature map over the picture and put one linear unit a class behind it; the class's map is the same weighting of the map's
channels before pooling. Mean and weighting commute, so here the weighting comes first, as a 1×1 convolution: its output *is* the class activation map,
and the mean of a map over the picture, through a sigmoid, is the classifier. A unit has a bias, which is the same everywhere in its map: with most classes
absent from most pictures it is below zero, and what stays above zero has more than the habit of the data for it.

The paper's map is that of the deepest features alone. Here those of the last few (`maps`) have units too, and what they say is added: a map of 4 cells a side
knows what is in a small picture, one of 16 knows where. It is still a weighting of channels and a mean, so everything above holds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixsup.networks.base import Network, OnNetwork, resize_scores


class Classifier(OnNetwork):
    """Pictures in, class activation maps out; `gap_bce` trains it with tags.

    Args:
        network: only its backbone is used; what stands behind it stays untouched.
        num_classes: C, background included, so that class ids index the maps; the tags loss never charges background.
        maps: of the backbone's maps, how many are looked at, the deepest first; 1 is the paper's.
    """

    def __init__(self, network: Network, num_classes: int, maps: int = 1) -> None:
        super().__init__(network)
        self.num_classes = num_classes
        self.classifiers = nn.ModuleList([nn.Conv2d(channels, num_classes, kernel_size=1) for channels in network.pyramid_channels[-maps:]])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: B×3×H×W, RGB, uint8 0..255 or float 0..1; any H and W.

        Returns:
            `scores`: B×C×h×w float32, the activation maps before the sigmoid, at the resolution of the finest map that is looked at. That map
            covers the image padded to the network's multiple; what covers padding is cut off to the nearest whole row and column, so that the maps
            cover the image but for half a cell at the bottom and right, and exactly where both sides are multiples.
        """
        padded = self.prepare(images)
        found = [
            unit(features).float()
            for unit, features in zip(self.classifiers, self.network.pyramid(padded)[-len(self.classifiers) :], strict=True)
        ]
        size = (found[0].shape[-2], found[0].shape[-1])
        scores = torch.stack([resize_scores(one, size) for one in found]).sum(dim=0)
        rows, columns = (max(1, round(scores.shape[axis] * images.shape[axis] / padded.shape[axis])) for axis in (-2, -1))
        return {"scores": scores[..., :rows, :columns]}
