"""`plain`: the architecture's own classifier."""

from __future__ import annotations

from torch import Tensor, nn

from mixsup.networks.base import Network


class PlainHead(nn.Module):
    """Scores straight from the features, as the architecture's authors do it."""

    def __init__(self, network: Network, num_classes: int) -> None:
        super().__init__()
        self.classifier = network.classifier(num_classes)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """B×F×h×w in; `scores` B×C×h×w out."""
        return {"scores": self.classifier(features)}
