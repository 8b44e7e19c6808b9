"""Labels of some classes only: what a data set that is joined from several sources teaches about the classes that a source does not annotate.

A source that annotates cats says "background" of a dog. So for its images that label means "background or a class that nobody annotated here": their
probabilities are added up, and the loss is -log of the sum. No pixel is taught to be none of them, and none to be one of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixsup.data.sample import BACKGROUND


def fold_unknown(scores: Tensor, unknown: Tensor) -> Tensor:
    """Scores under which the background stands for itself and for all unknown classes, so that every loss over pixels may go on as usual.

    Args:
        scores: B×C×H×W, before the softmax.
        unknown: B×C bool, False for the background.

    Returns:
        B×C×H×W of the same kind: the background has the log of the summed exponentials, unknown classes have -inf, the others what they had; the softmax
        of these is that of `scores` with the probabilities of unknown classes moved to the background.
    """
    others = unknown[:, :, None, None]
    together = others.clone()
    together[:, BACKGROUND] = True
    background = scores.masked_fill(~together, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background.to(scores.dtype), scores[:, BACKGROUND + 1 :].masked_fill(others[:, BACKGROUND + 1 :], -torch.inf)], dim=1)
