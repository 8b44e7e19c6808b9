"""`cross-entropy`: BoxSup eqs. 1 and 3, the sum over pixels of the softmax cross-entropy to the target's label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from mixsup.data.sample import VOID


def cross_entropy(outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Σ_p e(X(p), l(p)) over the pixels p whose label l(p) is not void.

    Args:
        outputs: `scores` B×C×H×W.
        batch: `target` B×H×W uint8 class ids below C, 255 void.

    Returns:
        The sum (scalar), and the number of labelled pixels (scalar).
    """
    target: Tensor = batch["target"]
    total = functional.cross_entropy(outputs["scores"], target.long(), ignore_index=VOID, reduction="sum")
    return total, (target != VOID).sum()
