"""What stands between features and scores: one file a head.

A head maps B×F×h×w features to a dictionary with `scores` (B×C×h×w) and whatever its loss needs besides, by name. A head that has losses of its own
names them in `losses`, each with its weight (`mixsup.losses.HEAD_LOSSES`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mixsup.heads.bcm import BCM, BGM, CM
from mixsup.heads.plain import PlainHead
from mixsup.named import named, no_class_of
from mixsup.networks.base import Network

HEADS: dict[str, Callable[[Network, int], nn.Module]] = {"plain": PlainHead, "bcm": BCM, "cm": CM, "bgm": BGM}


def head_losses(name: str) -> Mapping[str, float]:
    """Weights of a head's own losses, by name; empty for most heads.

    Raises:
        MixsupError: no such head.
    """
    losses: Mapping[str, float] = getattr(_named(name), "losses", {})
    return losses


def build_head(name: str, network: Network, num_classes: int) -> nn.Module:
    """A head by name, for a network and C classes (background included).

    Raises:
        MixsupError: no such head, or one that cannot work on this network.
    """
    return _named(name)(network, num_classes)


def _named(name: str) -> Callable[[Network, int], nn.Module]:
    head: Callable[[Network, int], nn.Module] = named(name, HEADS, "head", no_class_of(nn.Module, settings=False))
    return head
