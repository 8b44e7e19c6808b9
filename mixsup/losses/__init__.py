"""How each kind of label is charged: one file an idea, one function an equation; the criterion adds them up.

A loss is a function of the model's outputs and the images of one label kind: it returns a SUM over what it charges and the number of things charged
(pixels, for pixel losses), so that a mixed batch can be normalised as one. One with settings is a frozen (pydantic) dataclass whose call is that function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixsup.data.sample import KINDS, LabelKind
from mixsup.errors import MixsupError
from mixsup.losses.attention import attention
from mixsup.losses.cross_entropy import cross_entropy
from mixsup.losses.filling_rate import FillingRate
from mixsup.losses.partial import fold_unknown
from mixsup.losses.soft import SoftCrossEntropy
from mixsup.losses.tags import gap_bce
from mixsup.named import named, no_loss
from mixsup.settings import checked

__all__ = ["HEAD_LOSSES", "LOSSES", "NONE", "Criterion", "FillingRate", "Loss", "SoftCrossEntropy", "charges_pixels"]

Outputs = Mapping[str, Tensor]
Batch = Mapping[str, Any]
Loss = Callable[[Outputs, Batch], tuple[Tensor, Tensor]]

NONE = "none"  # images of a kind with this in place of a loss are left out of training

# A function, or the class of a loss with settings; and the kinds that it can charge. Tags have a target only where a refresh rule makes one at every step;
# `prepare` refuses to charge them by cross-entropy without.
LOSSES: dict[str, tuple[Loss | type[Any], tuple[LabelKind, ...]]] = {
    "cross-entropy": (cross_entropy, ("masks", "boxes", "tags")),
    "filling-rate": (FillingRate, ("masks", "boxes")),
    "soft": (SoftCrossEntropy, ("boxes",)),
    "gap-bce": (gap_bce, ("tags",)),
}

# What heads charge besides (`losses` of a head), and the kinds that they charge it on.
HEAD_LOSSES: dict[str, tuple[Loss, tuple[LabelKind, ...]]] = {"attention": (attention, ("masks", "boxes"))}


BY_IMAGE = ("image", "target", "claims", "unknown")  # tensors of a batch


class Criterion:
    """The losses of a recipe, by label kind, and those of its head.

    Args:
        losses: name of the loss by label kind, as in `Recipe.loss`; kinds with `none` are never charged.
        options: settings of the losses by label kind, as in `Recipe.loss_options`.
        head: weight of each of the head's own losses, see `mixsup.heads.head_losses`.
        weights: factors of the losses by label kind, 1 where none is given.

    Raises:
        MixsupError: no such loss, one that cannot charge that kind, or a setting that it does not have or accept.
    """

    def __init__(
        self,
        losses: Mapping[LabelKind, str],
        options: Mapping[LabelKind, dict[str, Any]] | None = None,
        head: Mapping[str, float] | None = None,
        weights: Mapping[LabelKind, float] | None = None,
    ) -> None:
        options = options or {}
        losses = {kind: name for kind, name in losses.items() if name != NONE}
        for kind in options:
            if kind not in losses:
                raise MixsupError(f"loss_options.{kind} has settings, but nothing charges {kind}; name its loss, or leave the settings out")
        self.losses = {kind: _build_loss(name, kind, options.get(kind, {})) for kind, name in losses.items()}
        self.names = dict(losses)
        self.head = dict(head or {})
        self._of_head = {name: _with_kinds(name, HEAD_LOSSES, "loss of a head") for name in self.head}
        self.weights = dict(weights or {})

    def filling_rate(self) -> FillingRate | None:
        """The loss of boxes, where it is the one that needs filling rates."""
        loss = self.losses.get("boxes")
        return loss if isinstance(loss, FillingRate) else None

    def soft(self) -> SoftCrossEntropy | None:
        """The loss of boxes, where it is the one whose targets share pixels."""
        loss = self.losses.get("boxes")
        return loss if isinstance(loss, SoftCrossEntropy) else None

    def __call__(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Charges each image by the loss of its kind.

        Args:
            outputs: of the model; all tensors begin with the batch dimension.
            batch: `target` B×H×W uint8 class ids, 255 void, and `kind`, B label kinds; what a loss needs besides, in lists of B or tensors that
                begin with B. Where `unknown` (B×C bool) is there, a loss over pixels takes a class that is unknown in an image for background in it.

        Returns:
            Named losses, e.g. `boxes/cross-entropy`; their sum is what training minimises. Each is its sum over all charged pixels divided
            by the number of charged pixels of the WHOLE batch, so that a pixel weighs the same whatever its image's label, and a batch of
            one kind gives the plain mean; then times its weight. So without weights the parts of a mixed batch are the losses of its kinds alone,
            each times its share of the charged pixels. A batch without any labelled pixel costs 0. With several processes, the batch is each one's own.
            A head's own losses follow, e.g. `head/attention`: weight × sum / number of what that loss charged, times the share of the charged pixels that
            its images have, so that the weight is against their own loss whatever else is in the batch.
        """
        kinds: list[LabelKind] = batch["kind"]
        if "unknown" in batch:
            outputs = {**outputs, "scores": fold_unknown(outputs["scores"], batch["unknown"])}
        parts = {kind: self.losses[kind](*_part(outputs, batch, (kind,))) for kind in KINDS if kind in kinds}
        pixels = {kind: amount for kind, (_, amount) in parts.items()}
        count = torch.stack(list(pixels.values())).sum().clamp(min=1)
        found = {f"{kind}/{self.names[kind]}": self.weights.get(kind, 1.0) * total / count for kind, (total, _) in parts.items()}
        for name, weight in self.head.items():
            loss, charged = self._of_head[name]
            own = [pixels[kind] for kind in pixels if kind in charged]
            if own:
                total, amount = loss(*_part(outputs, batch, charged))
                found[f"head/{name}"] = weight * total / amount.clamp(min=1) * torch.stack(own).sum() / count
        return found


def _part(outputs: Outputs, batch: Batch, chosen: tuple[LabelKind, ...]) -> tuple[Outputs, Batch]:
    """The images of some kinds."""
    members = [index for index, kind in enumerate(batch["kind"]) if kind in chosen]
    if len(members) == len(batch["kind"]):
        return outputs, batch
    places = torch.tensor(members, device=batch["target"].device)
    part = {
        name: [value[index] for index in members] if isinstance(value, list) else value[places]
        for name, value in batch.items()
        if isinstance(value, list) or name in BY_IMAGE
    }
    return {name: value[places] for name, value in outputs.items()}, part


def charges_pixels(name: str) -> bool:
    """Whether a loss needs a class for each pixel. Of the user's own all do that do not say `pixels = False`."""
    return name not in (NONE, "gap-bce") and getattr(_with_kinds(name, LOSSES, "loss")[0], "pixels", True)


def _with_kinds(name: str, table: Mapping[str, Any], what: str) -> tuple[Any, tuple[LabelKind, ...]]:
    """A loss by name and the kinds that it can charge; one of the user's own says so in an attribute `kinds`, or charges pixels of masks and boxes."""
    found = named(name, table, what, no_loss)
    if isinstance(found, tuple):
        return found
    return found, getattr(found, "kinds", ("masks", "boxes"))


def _build_loss(name: str, kind: LabelKind, options: dict[str, Any]) -> Loss:
    loss, kinds = _with_kinds(name, LOSSES, "loss")
    if kind not in kinds:
        raise MixsupError(f"loss {name!r} cannot charge {kind}; it charges {' and '.join(kinds)}")
    if not isinstance(loss, type):
        if options:
            raise MixsupError(f"loss {name!r} has no settings; leave loss_options.{kind} out")
        function: Loss = loss
        return function
    with checked(f"loss {name!r}", loss, f"loss_options.{kind}"):
        made: Loss = loss(**options)
    return made
