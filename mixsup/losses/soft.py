"""`soft`: boxes whose classes may share pixels (diverse-supervision paper, section 3.2).

    eq. 3   L_box = -Σ_i Σ_c s_i,c / s_i log softmax_c(f_i)      s_i,c = 1 where class c claims pixel i, s_i = Σ_c s_i,c

A pixel that K classes claim is an instance of each of them with weight 1/K; one that is uncertain is not charged. The paper's factor 1/C is left out, here
as in the loss of masks (eq. 4): it weighs both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from mixsup.data.sample import VOID, UInt8
from mixsup.losses.cross_entropy import cross_entropy
from mixsup.masks.box_masks import BoxMasks, SharedTarget, compose_shared
from mixsup.masks.source import STRICT


@dataclass(frozen=True, config=STRICT)
class SoftCrossEntropy:
    """Cross-entropy over the classes that claim a pixel.

    Attributes:
        overlap: `shared` is eq. 3; `drawn` gives each set of classes that share pixels of an image one of them, at random and for good
            ("hard segmentation" in the paper's Table 6).
        uncertain: whether a class also claims pixels of which its boxes are uncertain, where another class is sure ("including uncertain regions").
    """

    overlap: Literal["shared", "drawn"] = "shared"
    uncertain: bool = True
    name: ClassVar[str] = "soft"

    def __call__(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Eq. 3.

        Args:
            outputs: `scores` B×C×H×W.
            batch: `target` B×H×W uint8, 255 where void or shared; `claims` B×H×W uint8, number of the set of classes that share the pixel, 255 for
                none; `claim_sets`, B lists of sets of class ids.

        Returns:
            The sum over labelled and shared pixels (scalar), and their number (scalar).
        """
        total, count = cross_entropy(outputs, batch)
        sets = [classes for image in batch["claim_sets"] for classes in image]
        if not sets:
            return total, count
        scores, claims = outputs["scores"], batch["claims"]
        weights = torch.zeros(len(sets), scores.shape[1])
        for number, classes in enumerate(sets):
            weights[number, list(classes)] = 1 / len(classes)
        firsts = torch.tensor(np.cumsum([0, *(len(image) for image in batch["claim_sets"])])[:-1], device=claims.device)
        image, row, column = (claims != VOID).nonzero(as_tuple=True)
        number = claims[image, row, column].long() + firsts[image]
        logs = scores[image, :, row, column].log_softmax(dim=1)  # shared pixels × C
        weighted = torch.where((share := weights.to(logs)[number]) > 0, share * logs, 0)  # a class that is ruled out has -inf and no share
        return total - weighted.sum(), count + len(image)

    def target(self, masks: BoxMasks, draw: np.random.Generator) -> SharedTarget:
        """The target of one image.

        Args:
            masks: its per-box masks.
            draw: for `drawn`; the same at every visit of the image.
        """
        shared = compose_shared(masks, self.uncertain)
        if self.overlap == "shared" or not shared.sets:
            return shared
        winners = np.array([draw.choice(classes) for classes in shared.sets], np.uint8)
        labels, several = shared.labels.copy(), shared.claims != VOID
        labels[several] = winners[shared.claims[several]]
        nobody: UInt8 = np.full_like(shared.claims, VOID)
        return SharedTarget(labels, nobody, ())
