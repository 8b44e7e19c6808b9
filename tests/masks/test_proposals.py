"""Pools of candidates: the contract as mask sources, counts against slow versions, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixsup.data.sample import Bool, Boxes, Sample
from mixsup.masks import build_source
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.pool_store import PoolStore, load_pool
from mixsup.masks.proposals import Proposals, ProposalSource, distinct, without_twins
from mixsup.masks.source import MaskSource
from tests.masks.contract import MaskSourceContract, many_boxes, picture

SIZE = (9, 11)


class ProposalContract(MaskSourceContract):
    def test_pool(self, source: ProposalSource) -> None:
        image = picture(120, 120)
        pool = source.propose(image)
        limit = source.settings()["proposals"]
        assert 1 <= len(pool) <= limit
        assert pool.members.shape[1] <= 1500
        assert pool.members.any(axis=1).all()
        assert len(np.unique(pool.members, axis=0)) == len(pool)
        rows, columns = np.indices((120, 120)) - 60
        assert pool.best_iou_with([rows**2 + columns**2 < 40**2])[0] > 0.9
        again = source.propose(image)
        assert np.array_equal(pool.superpixels, again.superpixels)
        assert np.array_equal(pool.members, again.members)

    def test_a_box_that_nothing_overlaps_stays_a_rectangle(self, source: ProposalSource, tmp_path: Path) -> None:
        strict = build_source(source.name, {"floor": 1.0})
        boxes = Boxes.of([((5, 5, 33, 17), 1, False)])
        assert (self.make(strict, picture(60, 60), boxes, tmp_path).masks[0] == 1).all()


class TestMCG(ProposalContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("mcg")


class TestSelectiveSearch(ProposalContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("selective-search")


class TestGeodesic(ProposalContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("geodesic")


def pool_of(seed: int, count: int = 12, candidates: int = 20) -> Proposals:
    generator = np.random.default_rng(seed)
    return Proposals(SIZE, generator.integers(0, count, SIZE, dtype=np.int32), generator.random((candidates, count)) < 0.4)


def iou(one: Bool, two: Bool) -> float:
    return float((one & two).sum()) / max(float((one | two).sum()), 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_overlaps_against_pixels(seed: int) -> None:
    """BoxSup, eq. 2: the overlap of a candidate and a filled box, and of a candidate and a true mask, asked of each pixel."""
    pool, boxes = pool_of(seed), many_boxes(SIZE, 4)
    filled = []
    for x0, y0, x1, y1 in boxes.windows(SIZE):
        mask = np.zeros(SIZE, bool)
        mask[y0:y1, x0:x1] = True
        filled.append(mask)
    slow = np.array([[iou(pool.mask(index), mask) for mask in filled] for index in range(len(pool))])
    best, overlap = pool.best_for_boxes(boxes)
    assert np.allclose(overlap, slow.max(axis=0), atol=1e-6)
    assert np.allclose(slow[best, np.arange(4)], slow.max(axis=0), atol=1e-6)
    truth = [np.random.default_rng(seed + index).random(SIZE) < 0.5 for index in range(3)]
    slow_best = [max(iou(pool.mask(index), mask) for index in range(len(pool))) for mask in truth]
    assert np.allclose(pool.best_iou_with(truth), slow_best, atol=1e-6)
    weights = np.random.default_rng(seed).random(12, np.float32)
    assert np.allclose(pool.areas(weights), [weights[inside].sum() for inside in pool.members], atol=1e-4)
    assert np.array_equal(pool.areas(), [pool.mask(index).sum() for index in range(len(pool))])
    for index, (x0, y0, x1, y1) in enumerate(pool.boxes()):
        rows, columns = np.nonzero(pool.mask(index))
        assert (x0, y0, x1, y1) == ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0))


@pytest.mark.parametrize(("count", "width"), [(0, 5), (1, 1), (60, 3), (200, 9), (200, 17)])
def test_different_candidates_are_found_in_the_order_of_their_superpixels(count: int, width: int) -> None:
    members = (
        np.random.default_rng(count + width).random((count, width)) < 0.2
    )  # many all empty: their bytes are those that end a string in C
    first, groups = distinct(members)
    rows = [tuple(row) for row in members.tolist()]
    assert [rows[index] for index in first] == sorted(set(rows))
    assert all(index == rows.index(rows[index]) for index in first)
    assert [rows[first[group]] for group in groups] == rows


def test_no_twin_is_kept_and_each_dropped_one_has_a_twin() -> None:
    pool = pool_of(3, candidates=40)
    kept = without_twins(pool.members, pool.counts(), 1000, 0.6)
    masks = [pool.mask(index) for index in range(len(pool))]
    for index in range(len(pool)):
        earlier = [iou(masks[index], masks[other]) for other in kept if other < index]
        assert (index in kept) == (max(earlier, default=0.0) < 0.6)
    assert np.array_equal(without_twins(pool.members, pool.counts(), 3, 0.6), kept[:3])


@pytest.mark.parametrize("count", [12, 300])
def test_round_trip_and_damage(count: int) -> None:
    pool = pool_of(1, count=count)
    data = pool.to_bytes()
    again = Proposals.from_bytes(data)
    assert again is not None
    assert again.size == pool.size
    assert again.superpixels.dtype == (np.uint8 if count < 256 else np.uint16)  # as it lies on the disk
    assert np.array_equal(again.superpixels, pool.superpixels)
    assert np.array_equal(again.members, pool.members)
    assert again.tight is not None
    assert np.array_equal(again.boxes(), pool.boxes())
    for junk in (b"", b"not a zip", data[: len(data) // 2], data[:200] + b"\0" * 40 + data[240:]):
        assert Proposals.from_bytes(junk) is None


def test_members_must_fit_the_superpixels() -> None:
    with pytest.raises(ValueError, match="columns of members"):
        Proposals(SIZE, np.full(SIZE, 3, np.int32), np.ones((2, 3), bool))


def test_pools_are_kept_beside_the_masks(tmp_path: Path) -> None:
    Image.fromarray(picture(40, 40)).save(tmp_path / "one.png")
    sample = Sample("one", tmp_path / "one.png", (40, 40), boxes=many_boxes((40, 40), 3))
    inner = build_source("geodesic", {"seeds": 5})
    assert isinstance(inner, ProposalSource)
    store, source = PoolStore(tmp_path / "store"), BoxPool(inner)
    made = store.make(sample, source, 4)
    assert made.path is not None
    pool = load_pool(made.path)
    assert pool is not None
    assert store.make(sample, source, 4).seconds == 0
    made.path.write_bytes(made.path.read_bytes()[:50])
    assert load_pool(made.path) is None
    assert store.make(sample, source, 4).seconds > 0
    again = load_pool(made.path)
    assert again is not None
    assert np.array_equal(again.members, pool.members)
    assert store.make(sample, build_source("rectangle"), 4).problem is not None  # it has no candidates
    assert load_pool(tmp_path / "none.npz") is None


def test_boxes_of_candidates() -> None:
    """The tight box of each candidate, against its pixels."""
    pool = build_source("mcg", {"proposals": 30})
    assert isinstance(pool, ProposalSource)
    found = pool.propose(picture(50, 70))
    empty = Proposals(found.size, found.superpixels, np.concatenate([found.members, np.zeros((1, found.members.shape[1]), bool)]))
    for index, box in enumerate(empty.boxes()):
        rows, columns = np.nonzero(empty.mask(index))
        slow = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)
        assert tuple(box) == slow


def test_a_pool_asks_what_its_proposals_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = build_source("geodesic")
    assert isinstance(inner, ProposalSource)
    monkeypatch.setattr(type(inner), "fingerprint", lambda self, sample: b"a file")
    monkeypatch.setattr(type(inner), "check", lambda self: pytest.fail("asked"))
    assert BoxPool(inner).fingerprint(Sample("one", Path("one.png"), (4, 4))) == b"a file"
    with pytest.raises(pytest.fail.Exception, match="asked"):
        BoxPool(inner).check()
