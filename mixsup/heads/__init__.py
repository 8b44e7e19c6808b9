"""What stands between features and scores: one file a head.

A head maps B×F×h×w features to a dictionary with `scores` (B×C×h×w) and whatever its loss needs besides, by name.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mixsup.errors import MixsupError
from mixsup.heads.plain import PlainHead
from mixsup.networks.base import Network

HEADS: dict[str, Callable[[Network, int], nn.Module]] = {"plain": PlainHead}


def build_head(name: str, network: Network, num_classes: int) -> nn.Module:
    """A head by name, for a network and C classes (background included).

    Raises:
        MixsupError: no such head.
    """
    if name not in HEADS:
        raise MixsupError(f"no head {name!r}; there are {', '.join(HEADS)}")
    return HEADS[name](network, num_classes)
