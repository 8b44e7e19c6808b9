"""Equation 2 of MCOF against a loop over pixels written from the formula, and the supplement of object regions."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.ndimage import gaussian_filter1d

from mixsup.data.sample import Bool, Float32, UInt8
from mixsup.errors import MixsupError
from mixsup.saliency import Refinement, build_saliency, only_class, posterior, supplement
from tests.saliency.contract import disc, picture, sample_of


def slow_posterior(image: UInt8, saliency: Float32, regions: Bool, ground: Bool, bins: int, smooth: float) -> Float32:
    """One pixel after the other."""
    height, width = regions.shape
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    ends = [(0, 100), (-100, 100), (-100, 100)]

    def bin_of(y: int, x: int, channel: int) -> int:
        low, high = ends[channel]
        return min(bins - 1, max(0, int((lab[y, x, channel] - np.float32(low)) / np.float32(high - low) * bins)))

    def likelihood(y: int, x: int, members: Bool) -> float:
        product = 1.0
        for channel in range(3):
            counts = [0.0] * bins
            for v in range(height):
                for u in range(width):
                    if members[v, u]:
                        counts[bin_of(v, u, channel)] += 1
            shares = np.array(counts) / sum(counts)
            if smooth:
                shares = gaussian_filter1d(shares, smooth)
            product *= shares[bin_of(y, x, channel)]
        return product

    found = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            p_obj = float(saliency[y, x])
            p_bg = 1 - p_obj
            if not regions.any() or not ground.any():
                found[y, x] = p_obj
                continue
            above = p_obj * likelihood(y, x, regions)
            below = above + p_bg * likelihood(y, x, ground)
            found[y, x] = above / below if below > 0 else p_obj
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[UInt8, Float32, Bool, Bool]:
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    levels = st.sampled_from([0, 40, 200, 255]) if draw(st.booleans()) else st.integers(0, 255)
    image = draw(npst.arrays(np.uint8, (*size, 3), elements=levels))
    saliency = draw(npst.arrays(np.float32, size, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)))
    regions = draw(npst.arrays(np.bool_, size))
    return image, saliency, regions, ~regions & draw(npst.arrays(np.bool_, size))


@given(case=cases(), bins=st.integers(2, 9), smooth=st.sampled_from([0.0, 0.0, 0.7]))
@settings(max_examples=120, deadline=None)
def test_posterior_is_equation_2(case: tuple[UInt8, Float32, Bool, Bool], bins: int, smooth: float) -> None:
    image, saliency, regions, ground = case
    found = posterior(image, saliency, regions, ground=ground, bins=bins, smooth=smooth)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_posterior(image, saliency, regions, ground, bins, smooth), atol=1e-5)
    whole = posterior(image, saliency, regions, bins=bins, smooth=smooth)
    np.testing.assert_array_equal(whole, posterior(image, saliency, regions, ground=~regions, bins=bins, smooth=smooth))
    assert whole.min() >= 0
    assert whole.max() <= 1


class TestPosterior:
    image = picture(40, 60)
    truth = disc(40, 60)
    half = truth & (np.indices((40, 60))[1] < 30)

    @pytest.mark.parametrize("full", [False, True])
    def test_nothing_to_compare_gives_the_saliency(self, full: bool) -> None:
        saliency = np.random.default_rng(0).random((40, 60), np.float32)
        assert np.array_equal(posterior(self.image, saliency, np.full((40, 60), full)), saliency)

    def test_colours_in_neither_give_the_saliency(self) -> None:
        image = np.zeros((1, 3, 3), np.uint8)
        image[0] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
        saliency = np.array([[0.2, 0.4, 0.6]], np.float32)
        regions, ground = np.array([[True, False, False]]), np.array([[False, True, False]])
        found = posterior(image, saliency, regions, ground=ground, smooth=0)
        assert found.tolist() == [[1.0, 0.0, pytest.approx(0.6)]]

    def test_certain_saliency_stays(self) -> None:
        for value in (0.0, 1.0):
            saliency = np.full((40, 60), value, np.float32)
            for smooth in (0.0, 1.0):
                assert (posterior(self.image, saliency, self.half, smooth=smooth) == value).all()

    def test_alike_colours_gain_and_others_lose(self) -> None:
        found = posterior(self.image, np.full((40, 60), 0.5, np.float32), self.half)
        assert found[self.truth & ~self.half].mean() > 0.75  # although they count as ground
        assert found[~self.truth].mean() < 0.1

    def test_one_colour_says_nothing(self) -> None:
        saliency = np.random.default_rng(0).random((40, 60), np.float32)
        found = posterior(np.full((40, 60, 3), 90, np.uint8), saliency, self.half)
        np.testing.assert_allclose(found, saliency, atol=1e-6)

    def test_arguments_are_left_alone(self) -> None:
        saliency = np.random.default_rng(0).random((40, 60), np.float32)
        before = saliency.copy()
        posterior(self.image, saliency, self.half)
        assert np.array_equal(saliency, before)


def overlap(labels: UInt8, truth: Bool, class_id: int) -> float:
    return float(((labels == class_id) & truth).sum() / ((labels == class_id) | truth).sum())


class TestSupplement:
    @staticmethod
    def case(height: int = 120, width: int = 160) -> tuple[UInt8, Float32, UInt8, Bool]:
        """Image, its saliency, labels of class 3 in a third of the disc, and the disc."""
        image, truth = picture(height, width), disc(height, width)
        part = truth & (np.indices(truth.shape)[0] < height * 0.42)
        return image, build_saliency("background")(image, sample_of(image)), np.where(part, 3, 0).astype(np.uint8), truth

    @pytest.mark.parametrize("size", [(120, 160), (60, 60), (700, 900)])
    def test_grows_a_part_to_the_disc(self, size: tuple[int, int]) -> None:
        image, saliency, labels, truth = self.case(*size)
        assert overlap(labels, truth, 3) < 0.4
        before = labels.copy()
        found = supplement(image, saliency, labels, 3)
        assert found.dtype == np.uint8
        assert set(np.unique(found)) == {0, 3}
        assert overlap(found, truth, 3) > 0.9
        assert np.array_equal(labels, before)

    def test_does_not_take_what_is_salient_and_unlike(self) -> None:
        """Figure 5 of the paper: the salient thing is not always the object that is looked for."""
        image, saliency, labels, truth = self.case()
        image[10:40, 10:40] = [20, 220, 240]
        saliency[10:40, 10:40] = 0.9
        found = supplement(image, saliency, labels, 3)
        assert (found[10:40, 10:40] == 3).mean() < 0.1
        assert overlap(found, truth, 3) > 0.9

    def test_wrong_regions_become_background(self) -> None:
        image, saliency, labels, _ = self.case()
        labels[100:110, 5:15] = 3
        saliency[100:110, 5:15] = 0
        assert not supplement(image, saliency, labels, 3)[100:110, 5:15].any()

    def test_void_stays_void(self) -> None:
        image, saliency, labels, truth = self.case()
        labels[70:80, 60:100] = 255
        found = supplement(image, saliency, labels, 3)
        assert np.array_equal(found == 255, labels == 255)
        assert overlap(found, truth & (labels != 255), 3) > 0.85

    def test_what_stays_as_it_is(self) -> None:
        image, saliency, labels, _ = self.case(40, 50)
        several = labels.copy()
        several[-1, -1] = 7
        only_void = np.where(labels == 0, 255, labels).astype(np.uint8)
        for kept in (several, np.zeros_like(labels), np.full_like(labels, 3), np.full_like(labels, 255), only_void):
            found = supplement(image, saliency, kept, 3)
            assert np.array_equal(found, kept)
            assert found is not kept
        assert np.array_equal(supplement(image, saliency, labels, 4), labels)

    def test_an_object_that_vanishes_keeps_its_labels(self) -> None:
        image, saliency, labels, _ = self.case(40, 50)
        assert np.array_equal(supplement(image, np.zeros_like(saliency), labels, 3), labels)

    @pytest.mark.parametrize("size", [(1, 2), (1, 7), (7, 1), (33, 50), (2, 900)])
    def test_odd_sizes(self, size: tuple[int, int]) -> None:
        image = picture(*size)
        labels = np.zeros(size, np.uint8)
        labels.ravel()[0] = 1
        found = supplement(image, np.random.default_rng(0).random(size, np.float32), labels, 1)
        assert found.shape == size
        assert set(np.unique(found)) <= {0, 1}

    def test_saliency_alone_decides_nothing(self) -> None:
        """A region that is lost when a large image is reduced leaves nothing to compare with."""
        image, saliency, _, _ = self.case(700, 900)
        labels = np.zeros((700, 900), np.uint8)
        labels[351, 451] = 3
        assert np.array_equal(supplement(image, saliency, labels, 3, Refinement(max_side=30)), labels)

    def test_same_again(self) -> None:
        image, saliency, labels, _ = self.case()
        assert np.array_equal(supplement(image, saliency, labels, 3), supplement(image, saliency, labels, 3))

    def test_settings_are_checked(self) -> None:
        for wrong in ({"bins": 1}, {"colour": 3}, {"max_side": 0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                Refinement(**wrong)  # type: ignore[arg-type]
        with pytest.raises(MixsupError, match="theta_alpha"):
            Refinement(theta_alpha=0)


@pytest.mark.parametrize(
    ("labels", "tags", "wanted"),
    [
        ([0, 0, 255], None, None),
        ([0, 2, 255], None, 2),
        ([0, 2, 3], None, None),
        ([0, 2, 0], {2}, 2),
        ([0, 0, 0], {2}, 2),
        ([0, 2, 0], {2, 5}, None),
        ([0, 2, 0], frozenset(), None),
    ],
)
def test_only_class(labels: list[int], tags: set[int] | None, wanted: int | None) -> None:
    assert only_class(np.array([labels], np.uint8), tags) == wanted
