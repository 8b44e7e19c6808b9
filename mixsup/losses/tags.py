"""`gap-bce`: tags against the mean score of each class (diverse-supervision paper, section 3.1).

    eq. 1   v_c = Σ_i f_i,c / |Ω|                                                   global average pooling
    eq. 2   L_image = -1/C Σ_c l_c log σ(v_c) + (1 - l_c) log(1 - σ(v_c))           over the C object classes, background left out

Ω are the pixels of the picture; the padding of a view is none. Eq. 5 adds this to sums over pixels (eqs. 3 and 4) and does not say how those are
normalised; as they are written, with 1/C before them, a tagged image would weigh what some C of its pixels weigh, which is next to nothing. Here a
tagged image weighs what its pixels would weigh with labels: the sum is |Ω| L_image and the number of charged pixels |Ω|, so that the loss of a batch is
the mean over its pixels, each of which is charged by its image's branch. `loss_weights.tags` makes tags weigh more or less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mixsup.data.sample import VOID


def gap_bce(outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Σ_n |Ω_n| L_image(n) over the tagged images n, eqs. 1 and 2.

    Args:
        outputs: `scores` B×C×H×W, before the softmax.
        batch: `target` B×H×W uint8, 255 outside the picture; `tags`, B lists of ids of the object classes in the image. Where `unknown` (B×C bool) is
            given, a class that the image's source does not annotate is left out of the mean; an image of which none is annotated costs nothing.

    Returns:
        The sum (scalar), and the number of pixels of the pictures (scalar).
    """
    scores, inside = outputs["scores"], batch["target"] != VOID
    pixels = inside.flatten(1).sum(dim=1)  # B
    unknown = batch.get("unknown")
    if unknown is not None:
        scores = scores.masked_fill(unknown[:, :, None, None], 0)  # they are -inf there, see `fold_unknown`
    pooled = torch.einsum("bchw,bhw->bc", scores, inside.to(scores.dtype)) / pixels.clamp(min=1)[:, None]
    labels = torch.zeros(pooled.shape, dtype=torch.bool)
    for image, tags in enumerate(batch["tags"]):
        labels[image, list(tags)] = True
    costs = functional.binary_cross_entropy_with_logits(pooled, labels.to(pooled), reduction="none")[:, 1:]
    charged = torch.ones_like(costs) if unknown is None else (~unknown[:, 1:]).to(costs)
    means = (costs * charged).sum(dim=1) / charged.sum(dim=1).clamp(min=1)
    return (means * pixels).sum(), pixels.sum()
