"""`boxsup`: each box picks one of the candidates that suit it and the network best (BoxSup, section 4).

    E_o  eq. 2   1 - IoU(B, tight box of S)        how well a candidate fits the box
    E_r  eq. 3   Σ_p e(X(p), l_S(p))               what the network loses on the labels that the candidate gives
    cost eq. 4   E_o + λ E_r,  λ = 3

What a superpixel costs under each label is counted once (one bincount a label), and what a candidate costs is a sum over its superpixels, so that all
candidates of a box are one matrix product.

Beside E_r stands what the candidates of a box say of each other, `list_gain`. MCG's ranking has learned from masks what an object looks like; here nothing
has, and where objects fill their images a network that takes a little too much chooses the larger candidates, learns them, and takes more.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import BACKGROUND, Bool, Float32, Int64, UInt8
from mixsup.masks.box_masks import FOREGROUND, BoxMasks
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.hierarchy import resized
from mixsup.masks.mcg import MCG
from mixsup.masks.proposals import Proposals, ProposalSource
from mixsup.masks.source import STRICT, MaskSource
from mixsup.refresh.rule import Case, RefreshRule


@dataclass(frozen=True, config=STRICT)
class BoxSup(RefreshRule):
    """One candidate a box, the rest background; drawn from the k cheapest (section 4.3; the text says "largest costs" where the smallest are meant).

    Boxes choose one after the other, from the largest to the smallest and then once more, each given what the others have chosen: where no box has a
    candidate the label is background, and where several have one the smallest box is on top, as in `compose`; a crowd's pixels, which nobody is charged for,
    cost nothing as background, and a box that has to stay a rectangle lies above or below the others as one. The paper's single pass with background everywhere
    else is `passes=0`. What of a candidate leaves its box counts in both terms and, for the boxes that choose after it, as taken; in the mask it is cut off.

    Attributes:
        weight: λ of eq. 4.
        agreement: weight of `list_gain` against E_r in a box that has a list of its own; 0 for the paper's cost.
        sample: k; 1 takes the cheapest itself ("ours w/o sampling" in Table 2).
        similar: a candidate is drawn only if its IoU with the cheapest one is at least this. MCG proposes thousands, so that the k cheapest of a box are
            nearly the same; of the ten here the fifth may be another object. 0 for the paper's text (docs/results.md has both).
        candidates: of each box, see `BoxPool`.
        passes: over the boxes; 0 for one pass that takes no notice of other boxes.
        floor: a box whose every candidate overlaps it less (E_o above 1 - floor) stays a rectangle.
    """

    weight: Annotated[float, Field(ge=0)] = 3.0
    agreement: Annotated[float, Field(ge=0)] = 0.67
    sample: Annotated[int, Field(ge=1)] = 5
    similar: Annotated[float, Field(ge=0, le=1)] = 0.8
    candidates: Annotated[int, Field(ge=1)] = 10
    passes: Annotated[int, Field(ge=0)] = 2
    floor: Annotated[float, Field(ge=0, le=1)] = 0.2
    name: ClassVar[str] = "boxsup"
    looks: ClassVar[bool] = False

    def pool(self, masks: MaskSource) -> BoxPool:
        return BoxPool(masks if isinstance(masks, ProposalSource) else MCG(), self.candidates)

    def __call__(self, case: Case) -> BoxMasks:
        first, pool = case.first, case.pool
        assert pool is not None
        chosen = self.choose(case, pool)
        masks = []
        for index, (x0, y0, x1, y1) in enumerate(first.windows):
            if chosen[index] >= 0:
                masks.append(pool.members[chosen[index]][pool.superpixels[y0:y1, x0:x1]].astype(np.uint8))
            else:
                masks.append(first.masks[index] if first.crowd[index] else np.full((y1 - y0, x1 - x0), FOREGROUND, np.uint8))
        return BoxMasks(first.size, first.windows, first.classes, first.crowd, tuple(masks))

    def choose(self, case: Case, pool: Proposals) -> Int64:
        """The candidate of each box, N int64, -1 for a crowd and for a box that no candidate overlaps by `floor`."""
        first = case.first
        chosen = np.full(len(first), -1)
        overlaps = box_overlaps(first.windows, pool.boxes())
        lists = [_list(pool, overlap, index, self.floor) for index, overlap in enumerate(overlaps)]
        order = [index for index in first.order() if not first.crowd[index]]
        losses, classes = superpixel_losses(pool, case), first.classes[order]  # S×C
        members = [pool.members[lists[index]] for index in order]  # each K×S
        areas = pool.counts()
        agreement = self.agreement if pool.lists is not None else 0.0  # the mean of a whole pool says nothing of a box
        told = [agreement * list_gain(own, areas) if len(own) else 0.0 for own in members]  # each S
        taken = np.zeros((len(order), pool.members.shape[1]), bool)  # by each box, from the bottom to the top
        for place, index in enumerate(order):
            if not len(lists[index]):
                taken[place] = _rectangle(pool, first.windows[index], areas)
        for number in range(max(self.passes, 1)):
            for place, index in enumerate(order):
                own = lists[index]
                if not len(own):
                    continue
                gain = regression_gain(losses, classes, taken if self.passes else np.zeros_like(taken), place)  # S
                costs = (1 - overlaps[index, own]) + self.weight * (members[place] @ (gain + told[place]))  # eq. 4, and the list's word
                cheapest = np.argsort(costs, kind="stable")[: self.sample if number >= self.passes - 1 else 1]
                if len(cheapest) > 1:
                    cheapest = cheapest[_ious(members[place][cheapest], areas) >= self.similar]
                best = case.draw.choice(cheapest) if len(cheapest) > 1 else cheapest[0]
                chosen[index], taken[place] = own[best], members[place][best]
        return chosen


def regression_gain(losses: Float32, classes: Int64, taken: Bool, place: int) -> Float32:
    """What each superpixel adds to E_r (eq. 3) when a box takes it, S float32, given what the other boxes have taken.

    Where no other box lies the label changes from background to the box's class, on a larger box's candidate from that box's class; under a
    smaller box's candidate nothing changes. What all candidates of the box cost alike is left out.

    Args:
        losses: S×C, see `superpixel_losses`.
        classes: of the boxes from the bottom to the top, M.
        taken: M×S, the superpixels of each box's candidate; none for a box that has not chosen.
        place: of the box that chooses.
    """
    beneath = taken[:place][::-1]  # the uppermost first
    below = np.where(beneath.any(axis=0), classes[place - 1 - beneath.argmax(axis=0)], BACKGROUND) if place else BACKGROUND
    change = losses[:, classes[place]] - losses[np.arange(len(losses)), below]
    return np.asarray(np.where(taken[place + 1 :].any(axis=0), 0, change), np.float32)


def list_gain(members: Bool, areas: Float32) -> Float32:
    """What each superpixel costs a box that takes it, by how many of the box's candidates hold it: S float32, in units of E_r's.

    |1 - share| - |0 - share|: one that half of them hold costs nothing, one that none holds its share of the image, and one that all hold gains as much.

    Args:
        members: K×S, the superpixels of each candidate of the box.
        areas: S, in pixels.
    """
    return np.asarray((1 - 2 * members.mean(axis=0)) * areas / areas.sum(), np.float32)


def _rectangle(pool: Proposals, window: Int64, areas: Float32) -> Bool:
    """S bool: the superpixels of which at least half lies in a window."""
    x0, y0, x1, y1 = window
    inside = np.bincount(pool.superpixels[y0:y1, x0:x1].ravel(), minlength=len(areas))
    return np.asarray((inside > 0) & (inside >= areas / 2), bool)


def _ious(members: Bool, areas: Float32) -> Float32:
    """IoU of K candidates (K×S) with the first of them, K float32; 1 for two that are empty."""
    shared, either = (members & members[0]) @ areas, (members | members[0]) @ areas
    return np.asarray(np.where(either > 0, shared / np.maximum(either, 1), 1), np.float32)


def box_overlaps(windows: Int64, others: Int64) -> Float32:
    """IoU(B, S) of eq. 2: N windows with P tight boxes (x0, y0, x1, y1), N×P float32."""
    low = np.maximum(windows[:, None, :2], others[None, :, :2])
    high = np.minimum(windows[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(one[:, 2:] - one[:, :2]).prod(axis=1) for one in (windows, others)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1), np.float32)


def superpixel_losses(pool: Proposals, case: Case) -> Float32:
    """What each superpixel adds to E_r under each label, S×C float32 (0 for classes without a box).

    E_r is the MEAN of e over the pixels of the image, the very number that training minimises, so that λ means the same at any size: λ = 3 weighs
    a third of the image, wrongly labelled, like a tight box that misses its object. e is -log of the probability, at least 1/C, over log C: 0 for a
    sure network, 1 for one that knows nothing, and a confident mistake costs no more than that. Pixels are those at which the network was asked. As
    background a crowd's cost nothing: they are void until a box claims them.
    """
    count, size = pool.members.shape[1], case.scores.shape[1:]
    classes = [BACKGROUND, *np.unique(case.first.classes)]
    ceiling = np.log(max(len(case.scores), 2))
    flat = resized(pool.superpixels, size).ravel()
    crowd = resized(_crowds(case.first), size) > 0
    result = np.zeros((count, len(case.scores)), np.float32)
    for class_id in classes:
        loss = np.minimum(-np.log(np.maximum(case.scores[class_id], 1e-12)), ceiling) / ceiling
        if class_id == BACKGROUND:
            loss = np.where(crowd, 0, loss)
        result[:, class_id] = np.bincount(flat, loss.ravel(), minlength=count) / flat.size
    return result


def _crowds(first: BoxMasks) -> UInt8:
    """H×W uint8, 1 where a crowd lies."""
    found = np.zeros(first.size, np.uint8)
    for index in np.flatnonzero(first.crowd):
        x0, y0, x1, y1 = first.windows[index]
        found[y0:y1, x0:x1][first.masks[index] != 0] = 1
    return found


def _list(pool: Proposals, overlap: Float32, index: int, floor: float) -> Int64:
    """The candidates of a box, none when none of them overlaps it by `floor`."""
    if not len(pool):
        return np.zeros(0, np.int64)
    found = np.arange(len(pool)) if pool.lists is None else pool.lists[index][pool.lists[index] >= 0]
    return found if len(found) and overlap[found].max() >= floor else np.zeros(0, np.int64)
