"""Scores against the formulas of the diverse-supervision paper, trimaps and boundary IoU against slow versions."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsup.data.sample import UInt8
from mixsup.metrics import BoundaryScores, boundary_band, boundary_distance, boundary_recall, confusion, iou_per_class, scores

NAMES = ("background", "a", "b", "c")
ids = st.lists(st.sampled_from([0, 1, 2, 3, 255]), min_size=20, max_size=20)


@settings(max_examples=80, deadline=None)
@given(ids, st.lists(st.sampled_from([0, 1, 2, 3]), min_size=20, max_size=20))
def test_four_scores(truth_ids: list[int], predicted_ids: list[int]) -> None:
    truth, predicted = np.array(truth_ids, np.uint8).reshape(4, 5), np.array(predicted_ids, np.uint8).reshape(4, 5)
    pairs = [(t, p) for t, p in zip(truth_ids, predicted_ids, strict=True) if t != 255]
    found = scores(confusion(truth, predicted, 4), NAMES)
    if not pairs:
        assert found["miou"] == found["pixel_accuracy"] == 0
        return
    n = [[sum(pair == (i, j) for pair in pairs) for j in range(4)] for i in range(4)]
    t = [sum(row) for row in n]
    union = [t[i] + sum(n[j][i] for j in range(4)) - n[i][i] for i in range(4)]
    seen, true = [i for i in range(4) if union[i]], [i for i in range(4) if t[i]]
    assert found["pixel_accuracy"] == pytest.approx(sum(n[i][i] for i in range(4)) / sum(t))
    assert found["mean_accuracy"] == pytest.approx(sum(n[i][i] / t[i] for i in true) / len(true))
    assert found["miou"] == pytest.approx(sum(n[i][i] / union[i] for i in seen) / len(seen))
    assert found["fw_iou"] == pytest.approx(sum(t[i] * n[i][i] / union[i] for i in true) / sum(t))
    for i, name in enumerate(NAMES):
        assert found["per_class"][name] == (pytest.approx(n[i][i] / union[i]) if union[i] else None)


@settings(max_examples=40, deadline=None)
@given(ids)
def test_distance_to_the_nearest_change(truth_ids: list[int]) -> None:
    truth = np.array(truth_ids, np.uint8).reshape(4, 5)
    edge = [
        (r, c)
        for r in range(4)
        for c in range(5)
        for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
        if 0 <= r + dr < 4 and 0 <= c + dc < 5 and truth[r, c] != truth[r + dr, c + dc] and 255 not in (truth[r, c], truth[r + dr, c + dc])
    ]
    with mock.patch("mixsup.metrics.SEAM", 0.0):  # seams of void have tests of their own
        found = boundary_distance(truth)
    for r in range(4):
        for c in range(5):
            expected = min((math.hypot(r - er, c - ec) + 1 for er, ec in edge), default=math.inf)
            assert found[r, c] == pytest.approx(expected, rel=1e-3)


def test_band_is_what_erosion_takes_away() -> None:
    mask = np.zeros((12, 12), bool)
    mask[2:10, 3:12] = True  # touches the right border, which is an outline too
    expected = mask.copy()
    expected[4:8, 5:10] = False
    assert np.array_equal(boundary_band(mask, 2), expected)


def test_boundary_scores() -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30] = 1
    tally = BoundaryScores(2, widths=(1, 3))
    tally.add(truth, truth)
    perfect = tally.result()
    assert perfect["boundary_iou"] == 1
    assert all(row["boundary"] == row["interior"] == 1 for row in perfect["trimap"])

    shifted = np.roll(truth, 1, axis=1)
    tally = BoundaryScores(2, widths=(1, 3))
    tally.add(truth, shifted)
    result = tally.result()
    near = confusion(truth, shifted, 2, boundary_distance(truth) <= 1)
    assert result["trimap"][0]["boundary"] == pytest.approx(float(np.nanmean(iou_per_class(near))))
    assert result["trimap"][0]["boundary"] < result["trimap"][1]["boundary"] < result["trimap"][1]["interior"]
    assert result["boundary_iou"] < 0.9


def test_trimaps_are_confusions_inside_and_outside_the_band() -> None:
    generator = np.random.default_rng(0)
    tally, widths = BoundaryScores(3, widths=(1, 2, 5)), (1, 2, 5)
    parts = np.zeros((2, len(widths), 3, 3), np.int64)
    for _ in range(3):
        truth = np.kron(generator.choice([0, 1, 2, 255], (4, 5)), np.ones((6, 6), int)).astype(np.uint8)
        predicted = generator.integers(0, 3, truth.shape).astype(np.uint8)
        tally.add(truth, predicted)
        distance = boundary_distance(truth)
        for index, width in enumerate(widths):
            for part, where in enumerate((distance <= width, distance > width)):
                parts[part, index] += confusion(truth, predicted, 3, where)
    for index, row in enumerate(tally.result()["trimap"]):
        assert row["boundary"] == pytest.approx(float(np.nanmean(iou_per_class(parts[0, index]))))
        assert row["interior"] == pytest.approx(float(np.nanmean(iou_per_class(parts[1, index]))))


def test_a_picture_of_one_class_has_no_boundary() -> None:
    tally = BoundaryScores(2, widths=(2,))
    tally.add(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8))
    assert tally.result()["trimap"][0] == {"width": 2, "boundary": None, "interior": 1.0}


def test_a_seam_of_void_is_a_boundary() -> None:
    """As Pascal VOC draws its objects: 5 pixels of void around each. Distances count from the seam's rims."""
    truth = np.zeros((40, 40), np.uint8)
    truth[8:32, 8:32], truth[13:27, 13:27] = 255, 1
    distance = boundary_distance(truth)
    assert (distance[20, [13, 14, 15]] == [1, 2, 3]).all()
    assert (distance[20, [7, 6, 5]] == [1, 2, 3]).all()
    tally = BoundaryScores(2, widths=(1,))
    predicted = np.where(truth == 255, 0, truth)
    predicted[20, 13] = 0
    tally.add(truth, predicted)
    (row,) = tally.result()["trimap"]
    assert row["interior"] == 1
    assert 0.9 < row["boundary"] < 1


@pytest.mark.parametrize(("inside", "width"), [(0, 3), (1, 24)])
def test_other_void_is_none(inside: int, width: int) -> None:
    """Within one label, and where it is too broad to say where the boundary lies: all of what is near it is interior."""
    truth = np.full((40, 60), 255, np.uint8)
    truth[:, : 30 - width // 2], truth[:, 30 + width - width // 2 :] = 0, inside
    assert np.isinf(boundary_distance(truth)).all()


def slow_recall(truth: UInt8, target: UInt8, reach: int) -> tuple[int, int]:
    """Each boundary pixel of the truth looks for one of the target, pixel by pixel."""

    def edge(ids: UInt8, to_void: bool) -> list[tuple[int, int]]:
        found = []
        for r, c in np.ndindex(*ids.shape):
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= r + dr < ids.shape[0] and 0 <= c + dc < ids.shape[1]:
                    a, b = ids[r, c], ids[r + dr, c + dc]
                    if a != b and (to_void or 255 not in (a, b)):
                        found.append((r, c))
                        break
        return found

    wanted, there = edge(truth, False), edge(target, True)
    return sum(any(math.hypot(r - x, c - y) <= reach for x, y in there) for r, c in wanted), len(wanted)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [0.0075, 0.1, 0.2])
def test_boundary_recall_against_slow_version(seed: int, tolerance: float) -> None:
    generator = np.random.default_rng(seed)
    truth, target = np.zeros((18, 24), np.uint8), np.zeros((18, 24), np.uint8)
    for ids in (truth, target):
        for label in (1, 2, 255):
            y, x = generator.integers(0, 12), generator.integers(0, 16)
            ids[y : y + generator.integers(2, 9), x : x + generator.integers(2, 9)] = label
    with mock.patch("mixsup.metrics.SEAM", 0.0):
        found = boundary_recall(truth, target, tolerance)
    assert found == slow_recall(truth, target, max(1, round(tolerance * 30)))


def test_boundary_recall_of_a_shift() -> None:
    truth = np.zeros((400, 300), np.uint8)  # a diagonal of 500 pixels: 4 of tolerance
    truth[100:300, 100:200] = 1
    assert boundary_recall(truth, truth) == (2 * (2 * 200 + 2 * 100) - 4, 2 * (2 * 200 + 2 * 100) - 4)
    found, wanted = boundary_recall(truth, np.roll(truth, 4, axis=1))
    assert found == wanted
    found, wanted = boundary_recall(truth, np.roll(truth, 20, axis=1))
    assert 0.2 < found / wanted < 0.4
    assert boundary_recall(truth, np.zeros_like(truth)) == (0, wanted)
    assert boundary_recall(np.zeros_like(truth), truth) == (0, 0)


@pytest.mark.parametrize("void", ["seam", "inside", "edge"])
def test_boundary_iou_of_a_perfect_prediction_is_1_beside_void(void: str) -> None:
    predicted = np.zeros((75, 100), np.uint8)
    predicted[20:60, 30:80] = 1
    truth = predicted.copy()
    if void == "seam":
        truth[17:63, 27:83] = 255
        truth[23:57, 33:77] = 1
    elif void == "inside":
        truth[30:45, 50:60] = 255
    else:
        truth[:, :5] = 255
    tally = BoundaryScores(2)
    tally.add(truth, predicted)
    assert tally.result()["boundary_iou"] == 1
