"""`sdi`: recursive training with three rules between the rounds (Khoreva et al., Simple Does It, CVPR 2017).

The paper's rules, here in the order in which they are applied:

    3. a fully connected CRF moves the outlines of the network's output to the image's
    1. outside the boxes is background, which per-box masks are by themselves
    2. a segment that covers too little of its box (IoU below one half) goes back to the box's first label

The paper was not at hand and the rules are from memory of it. So are the CRF's parameters, of a script for DeepLab-LargeFOV, which the paper trains; of such
scripts there are several, and `mixsup.engine.output_crf` has another one's range of positions (121 where this has 49).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import cv2
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import BACKGROUND, UInt8
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.source import STRICT
from mixsup.refresh.rule import Case, RefreshRule

Weight = Annotated[float, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]

_UNLIKELY = 1e-5  # the smallest probability that the CRF sees; 0 would forbid what a neighbour may yet call for


@dataclass(frozen=True, config=STRICT)
class SDI(RefreshRule):
    """Inside its box, what the network and the CRF call the box's class; too small a segment goes back to the first mask; crowds stay.

    Only the background and the classes of the image's own boxes compete, which also bounds the cost of the CRF.

    Attributes:
        least: smallest IoU of a segment with its box.
        crf: whether the CRF is applied.
        max_side: the CRF works on at most this many pixels a side.
        iterations, w1, theta_alpha, theta_beta, w2, theta_gamma: of the CRF, see `mixsup.crf.mean_field`.
    """

    least: Annotated[float, Field(ge=0, le=1)] = 0.5
    crf: bool = True
    max_side: Annotated[int, Field(ge=16)] = 500
    iterations: Annotated[int, Field(ge=0)] = 10
    w1: Weight = 4.0
    theta_alpha: Above = 49.0
    theta_beta: Above = 5.0
    w2: Weight = 3.0
    theta_gamma: Above = 3.0
    name: ClassVar[str] = "sdi"

    def __call__(self, case: Case) -> BoxMasks:
        first = case.first
        if first.crowd.all():
            return first
        labels = self.labels(case)
        masks = []
        for index, (x0, y0, x1, y1) in enumerate(first.windows):
            found = np.where(labels[y0:y1, x0:x1] == first.classes[index], FOREGROUND, 0).astype(np.uint8)
            # A segment lies inside its box, so that their IoU is the share of the box that it covers.
            masks.append(first.masks[index] if first.crowd[index] or found.mean() < self.least else found)
        return BoxMasks(first.size, first.windows, first.classes, first.crowd, tuple(masks))

    def labels(self, case: Case) -> UInt8:
        """H×W uint8: what the network, and the CRF after it, call each pixel, among the background and the classes of the boxes."""
        first = case.first
        classes = np.unique([BACKGROUND, *first.classes[~first.crowd]]).astype(np.uint8)
        if not self.crf:
            return np.asarray(classes[case.probabilities(classes.tolist()).argmax(axis=0)])
        from mixsup.crf import mean_field  # here, because numba takes a second to load

        assert case.image is not None
        scale = min(1.0, self.max_side / max(first.size))
        height, width = (max(1, round(side * scale)) for side in first.size)
        image = case.image if scale == 1 else np.asarray(cv2.resize(case.image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        share = np.maximum(case.probabilities(classes.tolist(), (height, width)), np.float32(1e-20))
        unary = -np.log(np.maximum(share / share.sum(axis=0), np.float32(_UNLIKELY)))
        marginals = mean_field(
            unary, image, iterations=self.iterations, w1=self.w1, theta_alpha=self.theta_alpha, theta_beta=self.theta_beta,
            w2=self.w2, theta_gamma=self.theta_gamma,
        )  # fmt: skip
        found = classes[marginals.argmax(axis=0)]
        return np.asarray(cv2.resize(found, first.size[::-1], interpolation=cv2.INTER_NEAREST) if scale < 1 else found, np.uint8)
