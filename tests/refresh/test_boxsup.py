"""BoxSup's choice against the paper's formulas, written pixel by pixel; and what is no case for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixsup.data.sample import Bool, Boxes, Float32
from mixsup.masks import build_source
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.proposals import Proposals, ProposalSource
from mixsup.masks.tight import smallest_tight
from mixsup.refresh.boxsup import BoxSup, superpixel_losses
from mixsup.refresh.rule import Case
from tests.masks.contract import many_boxes, picture

SIZE = (10, 13)


def random_case(
    seed: int, boxes: int = 3, candidates: int = 8, superpixels: int = 12, classes: int = 4, crowd: bool = False, listed: bool = False
) -> Case:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, superpixels, SIZE).astype(np.int32)
    members = generator.random((candidates, superpixels)) < 0.4
    rows = many_boxes(SIZE, boxes)
    given = Boxes(rows.xyxy, generator.integers(1, classes, boxes), np.array([crowd and index == 0 for index in range(boxes)], bool))
    first = BoxMasks.of(given, SIZE, [np.ones((y1 - y0, x1 - x0), np.uint8) for x0, y0, x1, y1 in given.windows(SIZE)])
    scores = generator.random((classes, *SIZE)) ** 4
    image = generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    lists = np.array([generator.permutation(candidates)[:5] for _ in range(boxes)]).reshape(boxes, 5) if listed else None
    pool = Proposals(SIZE, ids, members, lists)
    return Case(image, (scores / scores.sum(0)).astype(np.float32), first, first, np.random.default_rng(seed), pool)


def tight_box(mask: Bool) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1) if len(rows) else (0, 0, 0, 0)


def iou(one: tuple[int, ...], two: tuple[int, ...]) -> float:
    """Of two windows, by painting them."""
    painted = np.zeros((2, *SIZE), bool)
    for layer, (x0, y0, x1, y1) in zip(painted, (one, two), strict=True):
        layer[y0:y1, x0:x1] = True
    union = (painted[0] | painted[1]).sum()
    return float((painted[0] & painted[1]).sum() / union) if union else 0.0


def regression(scores: Float32, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> float:
    """Eq. 3: the mean over pixels of the loss of a label map, in units of what a network that knows nothing loses; void costs nothing."""
    classes = len(scores)
    total = 0.0
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            if labels[row, column] == 255:
                continue
            total += min(-np.log(max(float(scores[labels[row, column], row, column]), 1e-12)), np.log(classes)) / np.log(classes)
    return total / (SIZE[0] * SIZE[1])


RECTANGLE = -2  # chosen: the box has to stay one


def most_of(ids: np.ndarray[tuple[int, ...], np.dtype[np.int32]], window: tuple[int, ...]) -> Bool:
    """The superpixels that lie in a window by at least half."""
    x0, y0, x1, y1 = window
    found = np.zeros(SIZE, bool)
    for superpixel in np.unique(ids[y0:y1, x0:x1]):
        if (ids[y0:y1, x0:x1] == superpixel).sum() >= (ids == superpixel).sum() / 2:
            found |= ids == superpixel
    return found


def own_candidates(case: Case, index: int) -> list[int]:
    assert case.pool is not None
    return list(range(len(case.pool))) if case.pool.lists is None else [int(one) for one in case.pool.lists[index]]


def told(case: Case, index: int, candidate: int) -> float:
    """What the box's list says of a candidate, pixel by pixel: each that it takes costs what is left of the list less the share that holds it."""
    assert case.pool is not None
    if case.pool.lists is None:
        return 0.0
    masks, total = [case.pool.mask(one) for one in own_candidates(case, index)], 0.0
    for row, column in np.argwhere(case.pool.mask(candidate)):
        holding = sum(bool(mask[row, column]) for mask in masks) / len(masks)
        total += abs(1 - holding) - abs(0 - holding)
    return total / (SIZE[0] * SIZE[1])


def slow_costs(case: Case, index: int, chosen: list[int], rule: BoxSup) -> list[float]:
    """Eq. 4 of every candidate of a box, the other boxes as they are: the whole label map is painted and charged, once a candidate."""
    assert case.pool is not None
    window = tuple(int(value) for value in case.first.windows[index])
    costs = []
    for candidate in own_candidates(case, index):
        labels = np.zeros(SIZE, np.int64)
        for other in case.first.order():
            own = candidate if other == index else chosen[other] if rule.passes else -1
            x0, y0, x1, y1 = (int(value) for value in case.first.windows[other])
            if case.first.crowd[other]:
                labels[y0:y1, x0:x1] = 255
            elif own >= 0:
                labels[case.pool.mask(own)] = case.first.classes[other]
            elif own == RECTANGLE:
                labels[most_of(case.pool.superpixels, (x0, y0, x1, y1))] = case.first.classes[other]
        overlap = iou(window, tight_box(case.pool.mask(candidate)))
        costs.append((1 - overlap) + rule.weight * (regression(case.scores, labels) + rule.agreement * told(case, index, candidate)))
    return costs


def slow_choice(case: Case, rule: BoxSup) -> list[int]:
    """Section 4.3, box after box. Cases in which float32 and float64 may rank two candidates differently are none."""
    assert case.pool is not None
    windows = [tuple(int(value) for value in window) for window in case.first.windows]
    own = [own_candidates(case, index) for index in range(len(windows))]
    best = [max(iou(window, tight_box(case.pool.mask(one))) for one in mine) for window, mine in zip(windows, own, strict=True)]
    chosen = [RECTANGLE if not crowd and overlap < rule.floor else -1 for crowd, overlap in zip(case.first.crowd, best, strict=True)]
    for number in range(max(rule.passes, 1)):
        for index in case.first.order():
            if case.first.crowd[index] or best[index] < rule.floor:
                continue
            costs = slow_costs(case, int(index), chosen, rule)
            assume(rule.weight == 0 or np.diff(np.sort(costs)).min() > 1e-6)
            cheapest = np.array(own[index])[np.argsort(costs, kind="stable")]
            chosen[index] = int(cheapest[0])
            if rule.sample > 1 and number >= rule.passes - 1:
                masks = [case.pool.mask(int(candidate)) for candidate in cheapest[: rule.sample]]
                union = [max((mask | masks[0]).sum(), 1) for mask in masks]
                like = [(mask & masks[0]).sum() / either >= rule.similar or not either for mask, either in zip(masks, union, strict=True)]
                left = cheapest[: rule.sample][like]
                chosen[index] = int(case.draw.choice(left)) if len(left) > 1 else int(left[0])
    return chosen


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    boxes=st.integers(0, 4),
    weight=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    passes=st.integers(0, 3),
    crowd=st.booleans(),
    floor=st.sampled_from([0.2, 0.4]),
    draw=st.sampled_from([(1, 0.8), (3, 0.0), (5, 0.2), (5, 0.8)]),
    agreement=st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_the_same_candidates_as_the_formulas(
    seed: int, boxes: int, weight: float, passes: int, crowd: bool, floor: float, draw: tuple[int, float], agreement: float | None
) -> None:
    """`agreement` None is a pool without lists, of which it takes no notice."""
    rule = BoxSup(
        weight=weight, sample=draw[0], similar=draw[1], passes=passes, floor=floor, agreement=0.67 if agreement is None else agreement
    )
    fast, slow = (
        random_case(seed, boxes, crowd=crowd, listed=agreement is not None) for _ in range(2)
    )  # each draws from its own generator
    assert fast.pool is not None
    expected = [max(one, -1) for one in slow_choice(slow, rule)]
    assert rule.choose(fast, fast.pool).tolist() == expected


def test_only_overlap_finds_the_best_box() -> None:
    """Section 4.2: with E_o alone the candidate of the largest IoU with the box."""
    case, rule = random_case(5), BoxSup(weight=0, sample=1, floor=0)
    assert case.pool is not None
    for index, found in enumerate(rule.choose(case, case.pool)):
        window = tuple(int(value) for value in case.first.windows[index])
        overlaps = [iou(window, tight_box(case.pool.mask(candidate))) for candidate in range(len(case.pool))]
        assert overlaps[found] == max(overlaps)


@pytest.mark.parametrize(("similar", "left"), [(0.0, 3), (0.1, 2), (1.0, 1)])
def test_draws_from_the_k_cheapest_that_are_like_the_first(similar: float, left: int) -> None:
    rule = BoxSup(sample=3, similar=similar, passes=0, floor=0)
    seen: set[int] = set()
    case = random_case(1, boxes=1)
    assert case.pool is not None
    pool, order = case.pool, np.argsort(slow_costs(case, 0, [-1], rule))[:3].tolist()
    masks = [pool.mask(index) for index in order]
    cheapest = {index for index, mask in zip(order, masks, strict=True) if (mask & masks[0]).sum() / (mask | masks[0]).sum() >= similar}
    assert len(cheapest) == left  # so that the case means something
    for seed in range(60):
        again = Case(case.image, case.scores, case.first, case.present, np.random.default_rng(seed), case.pool)
        seen.add(int(rule.choose(again, case.pool)[0]))
    assert seen == cheapest


def test_a_network_that_takes_everything_does_not_lead_the_boxes_astray() -> None:
    """A cross that spans its image, nine candidates that know it and one that is the whole box: the list outweighs a network that sees objects only."""
    rows, columns = (np.arange(side) * 3 // side for side in SIZE)
    superpixels = (3 * rows[:, None] + columns).astype(np.int32)
    object_, whole = np.array([0, 1, 0, 1, 1, 1, 0, 1, 0], bool), np.ones(9, bool)
    pool = Proposals(SIZE, superpixels, np.array([*[object_] * 9, whole]), np.arange(10)[None])
    first = BoxMasks.of(Boxes.of([((0, 0, 13, 10), 1, False)]), SIZE, [np.ones(SIZE, np.uint8)])
    scores = np.stack([np.full(SIZE, 0.3), np.full(SIZE, 0.7)]).astype(np.float32)
    case = Case(np.zeros((*SIZE, 3), np.uint8), scores, first, first, pool=pool)
    assert BoxSup(sample=1, agreement=0).choose(case, pool).tolist() == [9]
    assert BoxSup(sample=1).choose(case, pool)[0] < 9


def test_a_box_keeps_to_its_list() -> None:
    case = random_case(2, boxes=2)
    assert case.pool is not None
    pool = Proposals(SIZE, case.pool.superpixels, case.pool.members, np.array([[4, 1, -1], [6, -1, -1]]))
    found = BoxSup(floor=0).choose(case, pool)
    assert found[0] in (4, 1)
    assert found[1] == 6


def test_no_candidate_touches_the_box() -> None:
    """It stays a rectangle; an empty pool, and a box without a list, likewise."""
    case = random_case(3, boxes=1)
    assert case.pool is not None
    nothing = Proposals(SIZE, case.pool.superpixels, np.zeros((2, case.pool.members.shape[1]), bool))
    empty = Proposals(SIZE, case.pool.superpixels, np.zeros((0, case.pool.members.shape[1]), bool))
    unlisted = Proposals(SIZE, case.pool.superpixels, case.pool.members, np.full((1, 4), -1))
    for pool in (nothing, empty, unlisted):
        masks = BoxSup()(Case(case.image, case.scores, case.first, case.present, pool=pool))
        assert (masks.masks[0] == 1).all()


def test_scores_of_another_size_than_the_image() -> None:
    """The network may be asked at any size: a constant gain of probability for one region is found at half the size, too."""
    source = build_source("mcg", {"proposals": 50})
    assert isinstance(source, ProposalSource)
    image = picture(48, 64)
    disc = image.mean(axis=2) > 100
    boxes = Boxes.of([((14, 6, 50, 42), 1, False)])
    pool = source.propose(image)
    first = BoxMasks.of(boxes, (48, 64), [np.ones((36, 36), np.uint8)])
    for step in (1, 2, 3):
        likely = np.where(disc[::step, ::step], 0.9, 0.1).astype(np.float32)
        masks = BoxSup(sample=1)(Case(image, np.stack([1 - likely, likely]), first, first, pool=pool))
        window = disc[6:42, 14:50]
        assert (window & (masks.masks[0] == 1)).sum() / (window | (masks.masks[0] == 1)).sum() > 0.9


@pytest.mark.parametrize("size", [(96, 128), (100, 131), (33, 47), (20, 20)])
def test_what_the_network_says_of_a_superpixel_is_said_where_it_lies(size: tuple[int, int]) -> None:
    """Scores as the network would give them for a view of the image, whose pixels are means; half a pixel beside would cost the outlines of the disc."""
    whole = (200, 261)
    rows, columns = np.indices(whole) + 0.5
    disc = (rows - 90) ** 2 + (columns - 130) ** 2 < 60**2
    ids = np.unique((rows // 4 * 80 + columns // 4) * 2 + disc, return_inverse=True)[1].reshape(whole).astype(np.int32)
    inside = np.bincount(ids.ravel(), disc.ravel()) > 0
    boxes = BoxMasks.of(Boxes.of([((70, 30, 190, 150), 1, False)]), whole, [np.ones((120, 120), np.uint8)])
    share = cv2.resize(disc.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)

    def wrong(down: int, right: int) -> float:
        """The pixels at which the disc's superpixels and the network, moved, disagree, in units of one wrong pixel's loss."""
        likely = np.roll(np.where(share > 0.5, 1.0, 0.5), (down, right), axis=(0, 1)).astype(np.float32)
        losses = superpixel_losses(Proposals(whole, ids, inside[None]), Case(None, np.stack([1 - likely / 2, likely]), boxes, boxes))
        return float(losses[inside, 1].sum())

    moved = [wrong(*way) for way in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    assert wrong(0, 0) < 0.6 * min(moved), moved


def snapped(pool: Proposals, mask: Bool) -> Bool:
    """The superpixels that have at least half of their pixels in a mask."""
    found = np.zeros_like(mask)
    for superpixel in np.unique(pool.superpixels):
        where = pool.superpixels == superpixel
        found[where] = mask[where].mean() >= 0.5
    return found


def test_lists_are_the_candidates_nearest_to_the_segmentations() -> None:
    """Against the masks of all candidates, pixel by pixel; and these segmentations themselves."""
    image, boxes = picture(40, 56), many_boxes((40, 56), 4)
    boxes.crowd[1] = True
    inner = build_source("mcg", {"proposals": 40})
    assert isinstance(inner, ProposalSource)
    source = BoxPool(inner, candidates=8)
    pool = source.propose(image, boxes, None)  # type: ignore[arg-type]
    one, two = (each(image, boxes, None) for each in (source.crf, source.grabcut))  # type: ignore[arg-type]
    tight = smallest_tight(one, two)
    assert pool.lists is not None
    assert (pool.lists[1] == -1).all()
    whole = source.inner.propose(image)
    for index in (0, 2, 3):
        x0, y0, x1, y1 = one.windows[index]
        wanted = 0.25 * (one.masks[index] == 1) + 0.25 * (two.masks[index] == 1) + 0.5 * (tight.masks[index] == 1)

        def agreement(mask: Bool, window: tuple[slice, slice] = (slice(y0, y1), slice(x0, x1)), wanted: Float32 = wanted) -> float:
            shared = (mask[window] * wanted).sum()
            return float(shared / max(mask[window].sum() + wanted.sum() - shared, 1))

        listed = [pool.mask(int(candidate)) for candidate in pool.lists[index] if candidate >= 0]
        found = [agreement(mask) for mask in listed[:5]]  # all but the three segmentations
        assert found == pytest.approx(sorted(found, reverse=True), abs=1e-5)
        assert found[-1] >= sorted((agreement(whole.mask(candidate)) for candidate in range(len(whole))), reverse=True)[4] - 1e-5
        for source in (one, two, tight):
            object_pixels = np.zeros(image.shape[:2], bool)
            object_pixels[y0:y1, x0:x1] = source.masks[index] == 1
            assert any((mask == snapped(whole, object_pixels)).all() for mask in listed)


@pytest.mark.parametrize("candidates", [1, 2, 3, 4])
def test_short_lists(candidates: int) -> None:
    """The best candidate comes first in a list of any length, and no list names one twice."""
    image, boxes = picture(40, 56), many_boxes((40, 56), 3)
    inner = build_source("mcg", {"proposals": 40})
    assert isinstance(inner, ProposalSource)
    long, short = (BoxPool(inner, candidates=number).propose(image, boxes, None) for number in (10, candidates))  # type: ignore[arg-type]
    assert long.lists is not None and short.lists is not None
    for one, other in zip(long.lists, short.lists, strict=True):
        assert (short.mask(int(other[0])) == long.mask(int(one[0]))).all()
        named = other[other >= 0]
        assert len(named) == len(set(named)) <= candidates


@pytest.mark.parametrize("masks", ["mcg", "selective-search", "geodesic", "grabcut"])
def test_which_pool(masks: str) -> None:
    """A source that proposes is the pool; any other gives the first masks alone, and the pool is mcg's."""
    found = BoxSup(candidates=7).pool(build_source(masks))
    assert found.inner.name == ("mcg" if masks == "grabcut" else masks)
    assert found.candidates == 7
