"""How each kind of label is charged: one file an idea, one function an equation; the criterion adds them up.

A loss is a function of the model's outputs and the images of one label kind: it returns a SUM over what it charges and the number of things charged
(pixels, for pixel losses), so that a mixed batch can be normalised as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixsup.data.sample import KINDS, LabelKind
from mixsup.errors import MixsupError
from mixsup.losses.cross_entropy import cross_entropy

Outputs = Mapping[str, Tensor]
Batch = Mapping[str, Any]
Loss = Callable[[Outputs, Batch], tuple[Tensor, Tensor]]

# Tags have a target only where a refresh rule makes one at every step; `prepare` refuses to charge them by cross-entropy without.
LOSSES: dict[str, tuple[Loss, tuple[LabelKind, ...]]] = {"cross-entropy": (cross_entropy, ("masks", "boxes", "tags"))}


class Criterion:
    """The losses of a recipe, by label kind.

    Args:
        losses: name of the loss by label kind, as in `Recipe.loss`.

    Raises:
        MixsupError: no such loss, or one that cannot charge that kind.
    """

    def __init__(self, losses: Mapping[LabelKind, str]) -> None:
        self.losses: dict[LabelKind, Loss] = {}
        self.names = dict(losses)
        for kind, name in losses.items():
            if name not in LOSSES:
                raise MixsupError(f"no loss {name!r}; there are {', '.join(LOSSES)}")
            loss, kinds = LOSSES[name]
            if kind not in kinds:
                raise MixsupError(f"loss {name!r} cannot charge {kind}; it charges {' and '.join(kinds)}")
            self.losses[kind] = loss

    def __call__(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Charges each image by the loss of its kind.

        Args:
            outputs: of the model; all tensors begin with the batch dimension.
            batch: `target` B×H×W uint8 class ids, 255 void, and `kind`, B label kinds.

        Returns:
            Named losses, e.g. `boxes/cross-entropy`; their sum is what training minimises. Each is its sum over all charged pixels divided
            by the number of charged pixels of the WHOLE batch, so that a pixel weighs the same whatever its image's label, and a batch of
            one kind gives the plain mean. A batch without any labelled pixel costs 0. With several processes, the batch is each one's own.
        """
        kinds: list[LabelKind] = batch["kind"]
        parts: dict[str, tuple[Tensor, Tensor]] = {}
        for kind in KINDS:
            members = [index for index, own in enumerate(kinds) if own == kind]
            if members:
                part = batch["target"], outputs
                if len(members) < len(kinds):
                    chosen = torch.tensor(members, device=batch["target"].device)
                    part = batch["target"][chosen], {name: value[chosen] for name, value in outputs.items()}
                parts[f"{kind}/{self.names[kind]}"] = self.losses[kind](part[1], {**batch, "target": part[0]})
        count = torch.stack([amount for _, amount in parts.values()]).sum().clamp(min=1)
        return {name: total / count for name, (total, _) in parts.items()}
