"""`boxsup`: each box picks one of the candidates that suit it and the network best (BoxSup, section 4).

    E_o  eq. 2   1 - IoU(B, tight box of S)        how well a candidate fits the box
    E_r  eq. 3   Σ_p e(X(p), l_S(p))               what the network loses on the labels that the candidate gives
    cost eq. 4   E_o + λ E_r,  λ = 3

All candidates and boxes of an image are scored at once: the loss of every class is counted per superpixel (one bincount a class), and what a
candidate costs is a sum over its superpixels (one matrix product for all).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import BACKGROUND, Float32, Int64
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.mcg import MCG
from mixsup.masks.proposals import Proposals, ProposalSource
from mixsup.masks.source import STRICT, MaskSource
from mixsup.refresh.rule import Case, RefreshRule


@dataclass(frozen=True, config=STRICT)
class BoxSup(RefreshRule):
    """One candidate a box, the rest background; drawn from the k cheapest.

    Attributes:
        weight: λ of eq. 4.
        sample: k; 1 takes the cheapest itself ("ours w/o sampling" in Table 2).
        normalise: E_r is divided by the pixels of the image, or of the box.
        floor: a box whose every candidate overlaps it less stays a rectangle.
    """

    weight: Annotated[float, Field(ge=0)] = 3.0
    sample: Annotated[int, Field(ge=1)] = 5
    normalise: Literal["image", "box"] = "image"
    others: bool = True
    floor: Annotated[float, Field(ge=0, le=1)] = 0.2
    name: ClassVar[str] = "boxsup"

    def pool(self, masks: MaskSource) -> ProposalSource:
        return masks if isinstance(masks, ProposalSource) else MCG()

    def __call__(self, case: Case) -> BoxMasks:
        pool, first = case.pool, case.first
        assert pool is not None
        overlap = box_overlaps(first.windows, pool.boxes())  # N×P
        chosen = np.full(len(first), -1)
        losses = pixel_losses(pool, case)
        order = [index for index in first.order() if not first.crowd[index] and overlap[index].max() >= self.floor]
        members = pool.members.astype(np.float32)
        pixels = first.size[0] * first.size[1]
        area = (first.windows[:, 2:] - first.windows[:, :2]).prod(axis=1) if self.normalise == "box" else np.full(len(first), pixels)
        for _ in range(2 if self.others and len(order) > 1 else 1):
            for place, index in enumerate(order):
                below, above = np.full(members.shape[1], BACKGROUND), np.zeros(members.shape[1], bool)
                if self.others:
                    for at, other in enumerate(order):
                        if other != index and chosen[other] >= 0:
                            inside = pool.members[chosen[other]]
                            below[inside] = first.classes[other]
                            if at > place:
                                above |= inside
                gain = losses[:, first.classes[index]] - losses[np.arange(len(losses)), below]
                gain[above] = 0
                cost = 1 - overlap[index] + self.weight * (members @ gain) / area[index]
                chosen[index] = cost.argmin()
                if _ or not (self.others and len(order) > 1):
                    k = min(self.sample, len(cost))
                    best = np.argpartition(cost, k - 1)[:k]
                    chosen[index] = case.draw.choice(np.sort(best))
        masks = []
        for index, (x0, y0, x1, y1) in enumerate(first.windows):
            if chosen[index] < 0:
                masks.append(first.masks[index] if first.crowd[index] else np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8))
            else:
                masks.append(pool.members[chosen[index]][pool.superpixels[y0:y1, x0:x1]].astype(np.uint8))
        return BoxMasks(first.size, first.windows, first.classes, first.crowd, tuple(masks))


def box_overlaps(windows: Int64, others: Int64) -> Float32:
    """IoU of N windows with P others (x0, y0, x1, y1), N×P float32."""
    low = np.maximum(windows[:, None, :2], others[None, :, :2])
    high = np.minimum(windows[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(one[:, 2:] - one[:, :2]).prod(axis=1) for one in (windows, others)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1), np.float32)


def pixel_losses(pool: Proposals, case: Case) -> Float32:
    """S×C"""
    count, flat = pool.members.shape[1], pool.superpixels.ravel()
    classes = [BACKGROUND, *np.unique(case.first.classes)]
    result = np.zeros((count, case.scores.shape[0]), np.float32)
    cap = np.log(len(case.scores))
    for class_id, one in zip(classes, case.probabilities(classes), strict=True):
        e = np.minimum(-np.log(np.maximum(one, 1e-9)), cap) / cap
        result[:, class_id] = np.bincount(flat, e.ravel(), minlength=count)
    return result
