"""What labels cost, and the model behind "what should I label next?"."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from mixsup.data.sample import LabelKind
from mixsup.errors import MixsupError
from mixsup.report import labelling
from mixsup.report.labelling import Posterior, Seconds, fit, fit_line, options

# Images by kind: budgets of a careful person, who varies one kind at a time.
BUDGETS: list[dict[LabelKind, int]] = [
    {"masks": 50},
    {"masks": 100},
    {"masks": 200},
    {"masks": 400},
    {"masks": 50, "boxes": 100},
    {"masks": 50, "boxes": 400},
    {"boxes": 200},
    {"boxes": 800},
    {"masks": 50, "tags": 800},
]


def simulate(boxes: float, tags: float, noise: float = 0.3, slope: float = 4.0, seed: int = 0) -> Posterior:
    """The posterior of runs that follow the model; noise and slope in points."""
    rng = np.random.default_rng(seed)
    worth = [row.get("masks", 0) + boxes * row.get("boxes", 0) + tags * row.get("tags", 0) for row in BUDGETS]
    return fit(BUDGETS, [(20 + slope * math.log2(value) + rng.normal(0, noise)) / 100 for value in worth])


def test_cost_of_an_image_of_voc() -> None:
    cost = Seconds()
    assert cost.image("tags", 2.8, 20) == pytest.approx(20)
    assert cost.image("boxes", 2.8, 20) == pytest.approx(20 + 19.6)
    assert cost.image("masks", 2.8, 20) == pytest.approx(239.7, abs=1.5)  # Bearman et al.: 18.5 absent classes and 2.8 objects


@pytest.mark.parametrize(("name", "value"), [("tag", 0.0), ("box", -1.0), ("mask", math.nan), ("mask", math.inf)])
def test_labels_take_time(name: str, value: float) -> None:
    with pytest.raises(MixsupError, match=f"--{name}-seconds {value:g}: .* give seconds above 0"):
        Seconds(**{name: value})


X, Y = np.array([5.0, 6.0, 6.5, 8.0]), np.array([41.0, 43.5, 44.0, 50.0])


def slow(y: Any) -> tuple[float, float, Any]:
    """(evidence, mean slope, its distribution function) by quadrature over level, slopes of 0 or more and variance, from the densities themselves."""
    centred = X - X.mean()
    wide = stats.t(2 * labelling.SHAPE, labelling.SLOPE[0], labelling.SLOPE[1] * math.sqrt(labelling.RATE / labelling.SHAPE))
    levels, slopes = np.linspace(y.mean() - 12, y.mean() + 12, 301), np.linspace(0, 12, 201)
    fitted = levels[:, None, None] + slopes[None, :, None] * centred  # A×B×R
    errors = ((y - fitted) ** 2).sum(axis=2)

    def given(variance: float) -> Any:
        deviation = math.sqrt(variance)
        likelihood = np.exp(-0.5 * errors / variance) / (2 * math.pi * variance) ** (len(y) / 2)
        level = stats.norm.pdf(levels, labelling.LEVEL[0], labelling.LEVEL[1] * deviation)
        slope = stats.norm.pdf(slopes, labelling.SLOPE[0], labelling.SLOPE[1] * deviation) / (
            1 - wide.cdf(0)
        )  # the cut makes the rest weigh more
        return slope * integrate.trapezoid(likelihood * level[:, None], levels, axis=0)

    precision = np.exp(np.linspace(math.log(5e-3), math.log(20), 61))
    prior = stats.gamma(labelling.SHAPE, scale=1 / labelling.RATE).pdf(precision)
    values = [given(1 / value) * weight * value for value, weight in zip(precision, prior, strict=True)]
    density = integrate.trapezoid(values, np.log(precision), axis=0)  # of the slope, times the evidence
    evidence = float(integrate.trapezoid(density, slopes))
    heap = integrate.cumulative_trapezoid(density, slopes, initial=0) / evidence
    return evidence, float(integrate.trapezoid(density * slopes, slopes)) / evidence, lambda value: np.interp(value, slopes, heap)


@pytest.mark.parametrize("y", [Y, Y[::-1]], ids=["rising", "falling"])
def test_a_line_is_what_slow_integration_finds(y: Any) -> None:
    line = fit_line(X[None], y)
    evidence, mean, below = slow(y)
    assert math.exp(line.evidence[0]) == pytest.approx(evidence, rel=5e-3)
    assert line.mean()[0] == pytest.approx(mean, rel=5e-3)
    for share in (0.5, 1.0, 1.5):
        assert line.below(share * line.mean())[0] == pytest.approx(below(share * mean), abs=5e-3)


def test_cells_are_weighed_by_their_evidence() -> None:
    """The grid against a plain loop over its cells."""
    scores = [0.40, 0.44, 0.47, 0.45]
    rows: list[dict[LabelKind, int]] = [{"masks": 50}, {"masks": 100}, {"masks": 200}, {"masks": 50, "boxes": 100}]
    found = fit(rows, scores)
    assert found.probability.sum() == pytest.approx(1)
    weights, total = [], 0.0
    for boxes, tags in found.worth[:, 1:]:
        assert 0 < tags <= boxes < 1
        x = np.array([[math.log2(row.get("masks", 0) + boxes * row.get("boxes", 0)) for row in rows]])
        corner = 0.5 if tags == boxes else 1.0
        weights.append(corner * math.sqrt(boxes * tags) * math.exp(fit_line(x, 100 * np.array(scores)).evidence[0]))
        total += weights[-1]
    np.testing.assert_allclose(found.probability, np.array(weights) / total, rtol=1e-9)


def test_before_any_run_the_rates_are_uniform_over_the_triangle() -> None:
    found = fit([{"masks": 10}] * 2, [0.3, 0.3])  # says nothing about boxes and tags
    boxes, tags = found.rate("boxes"), found.rate("tags")
    assert boxes.mean == pytest.approx(2 / 3, abs=0.01)
    assert tags.mean == pytest.approx(1 / 3, abs=0.01)
    assert boxes.low == pytest.approx(math.sqrt(0.1), abs=0.03)
    assert boxes.high == pytest.approx(math.sqrt(0.9), abs=0.03)


@pytest.mark.parametrize(("boxes", "tags"), [(0.7, 0.2), (0.3, 0.02), (0.9, 0.6)])
def test_exchange_rates_are_recovered(boxes: float, tags: float) -> None:
    inside = 0
    for seed in range(5):
        found = simulate(boxes, tags, seed=seed)
        assert found.rate("boxes").mean == pytest.approx(boxes, abs=0.15)
        assert found.rate("tags").mean == pytest.approx(tags, abs=0.2)
        inside += found.rate("boxes").low <= boxes <= found.rate("boxes").high
    assert inside >= 3


def test_the_slope_is_recovered() -> None:
    gain = simulate(0.5, 0.1).gain(np.array([100.0, 0, 0]), np.array([200.0, 0, 0]))  # a doubling
    assert gain.mean == pytest.approx(0.04, abs=0.004)
    assert gain.low < 0.04 < gain.high
    assert gain.low < gain.mean < gain.high


def test_intervals_hold_four_fifths() -> None:
    """The mixture's quantiles against draws from it."""
    found = simulate(0.4, 0.1, noise=1.0)
    before, after = np.array([50.0, 400, 0]), np.array([50.0, 400, 3000])
    rng = np.random.default_rng(0)
    cells = rng.choice(len(found.probability), 40_000, p=found.probability)
    slope = found.line.slope[cells] + found.line.scale[cells] * rng.standard_t(found.line.freedom, len(cells))
    drawn = (slope * found.doublings(before, after)[cells] / 100)[slope >= 0]
    gain = found.gain(before, after)
    assert gain.low == pytest.approx(np.quantile(drawn, 0.1), rel=0.03)
    assert gain.high == pytest.approx(np.quantile(drawn, 0.9), rel=0.03)
    assert gain.mean == pytest.approx(drawn.mean(), rel=0.03)


SECONDS: dict[LabelKind, float] = {"masks": 241.0, "boxes": 40.0, "tags": 20.0}


def test_options() -> None:
    found = options(simulate(0.8, 0.01), {"masks": 50}, SECONDS, 10, 5000)
    assert sum(option.best for option in found.values()) == pytest.approx(1)
    assert found["boxes"].best > 0.95  # 900 images at 0.8 against 149 masks, or 1800 tags at 0.01
    assert {kind: option.images for kind, option in found.items()} == {"masks": 149, "boxes": 900, "tags": 1800}
    assert all(option.hours <= 10 for option in found.values())
    swapped = options(simulate(0.02, 0.001), {"masks": 50}, SECONDS, 10, 5000)
    assert swapped["masks"].best > 0.95
    assert swapped["masks"].gain.mean == max(option.gain.mean for option in swapped.values())


def test_the_grid_is_fine_enough() -> None:
    scores = [0.4, 0.43, 0.43, 0.41]
    found = fit([{"masks": 50}, {"masks": 100}, {"masks": 50, "boxes": 200}, {"masks": 50, "tags": 300}], scores)
    best = [option.best for option in options(found, {"masks": 50}, SECONDS, 10, 5000).values()]
    assert best == pytest.approx([0.0594, 0.8018, 0.1388], abs=2e-3)  # on a grid of 240


def test_hours_without_end() -> None:
    found = options(simulate(0.5, 0.1), {"masks": 100}, SECONDS, 1e306, 120)
    assert {option.images for option in found.values()} == {120}


def test_more_hours_never_bring_less() -> None:
    posterior = simulate(0.5, 0.1)
    rows = [options(posterior, {"masks": 100}, SECONDS, hours, 10**6) for hours in (0.01, 1, 5, 10, 40, 200)]
    for kind in SECONDS:
        for bound in ("mean", "low", "high"):
            values = [getattr(row[kind].gain, bound) for row in rows]
            assert values == sorted(values)
    assert rows[0]["masks"].images == 0
    assert rows[0]["masks"].gain.high == 0


def test_images_run_out() -> None:
    found = options(simulate(0.5, 0.1), {"masks": 100}, SECONDS, 10, 120)
    assert {kind: option.images for kind, option in found.items()} == {"masks": 120, "boxes": 120, "tags": 120}
    assert found["tags"].hours == pytest.approx(120 * 20 / 3600)
    # The same number of images: the strongest label cannot lose.
    assert found["masks"].best == pytest.approx(1)
    none_left = options(simulate(0.5, 0.1), {"masks": 100}, SECONDS, 10, 0)
    assert [option.best for option in none_left.values()] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("scores", [(0.5, 0.4, 0.3), (0.0, 0.0, 0.0), (1.0, 0.0, 1.0)])
def test_scores_that_do_not_fit(scores: tuple[float, ...]) -> None:
    """Less with more labels, nothing at all, or chaos: numbers stay finite and gains are never negative."""
    posterior = fit([{"masks": 10}, {"masks": 1000}, {"boxes": 100000}], scores)
    found = options(posterior, {"boxes": 100000}, SECONDS, 1000, 10**7)
    for option in found.values():
        assert 0 <= option.gain.low <= option.gain.high < 1
        assert math.isfinite(option.gain.mean)
        assert option.gain.mean >= 0
