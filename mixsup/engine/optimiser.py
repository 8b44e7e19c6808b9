"""The optimiser of a schedule, for the network of a run and for those that help it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixsup.networks.base import Network
from mixsup.recipe import Schedule


def build_optimizer(module: nn.Module, network: Network, schedule: Schedule, carried: tuple[str, ...] = ()) -> torch.optim.Optimizer:
    """The optimiser of a schedule for `module`, of which `network` is the part that has a backbone; `carried` as in `parameter_groups`."""
    groups = parameter_groups(module, network, schedule.lr, schedule.new_layers, schedule.weight_decay, carried)
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
    return torch.optim.AdamW(groups, lr=schedule.lr)


def parameter_groups(
    module: nn.Module, network: Network, lr: float, new_layers: float, weight_decay: float, carried: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Groups for an optimiser: pretrained layers at `lr`, new ones at `lr * new_layers`; norms and biases without decay.

    A backbone without pretraining is as new as the rest, and so is what pretraining cannot fill of one. Layers whose names begin with one of
    `carried` are as old as a pretrained backbone.
    """
    old = set() if network.pretraining == "none" else {id(parameter) for parameter in network.pretrained.parameters()}
    old |= {id(parameter) for name, parameter in module.named_parameters() if name.startswith(carried)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in old, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": lr if pretrained else lr * new_layers, "weight_decay": weight_decay if decayed else 0.0}
        for (pretrained, decayed), parameters in groups.items()
    ]


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """The factor of the base rates at a step (counted from 0) of `steps`.

    `poly` is DeepLab's (1 - step/steps)^power; `step` divides by 10 after every `step_epochs` epochs (BoxSup, section 4.3).
    """
    if schedule.decay == "poly":
        factor = (1 - step / steps) ** schedule.power
    elif schedule.decay == "step":
        # With --steps the whole shape is stretched or squeezed to them.
        epoch = step / steps * schedule.epochs
        factor = 0.1 ** int(epoch / schedule.step_epochs)
    else:
        factor = 1.0
    factor = float(factor)
    return factor * min(1.0, 0.1 + 0.9 * step / schedule.warmup) if schedule.warmup else factor
