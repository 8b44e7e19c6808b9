"""Every refresh rule through one contract, and what each promises besides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsup.crf import mean_field
from mixsup.data.sample import Boxes, Float32, Sample
from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.box_masks import BoxMasks
from mixsup.refresh import RULES, Case, RefreshRule, build_rule
from mixsup.refresh.direct import Direct
from mixsup.refresh.sdi import SDI
from tests.masks.contract import many_boxes, picture

SIZE = (24, 32)


def rectangles(boxes: Boxes) -> BoxMasks:
    return BoxMasks.of(boxes, SIZE, [np.ones((y1 - y0, x1 - x0), np.uint8) for x0, y0, x1, y1 in boxes.windows(SIZE)])


def probabilities(seed: int = 0) -> Float32:
    values = np.random.default_rng(seed).random((4, *SIZE))
    return np.asarray(values / values.sum(0), np.float32)


class RuleContract:
    """Subclasses set `name`."""

    name: str
    options: dict[str, object] = {}  # noqa: RUF012

    def rule(self) -> RefreshRule:
        built = build_rule(self.name, self.options)
        assert isinstance(built, RefreshRule)
        assert RULES[self.name] is type(built)
        return built

    def case(self, first: BoxMasks) -> Case:
        image = picture(*SIZE)
        source = self.rule().pool(build_source("rectangle"))
        boxes = Boxes(first.windows.astype(np.float32), first.classes, first.crowd)
        pool = source.propose(image, boxes, Sample("one", Path("one.png"), SIZE)) if source is not None else None
        return Case(image, probabilities(), first, first, np.random.default_rng(3), pool)

    @pytest.mark.parametrize("count", [0, 1, 6])
    def test_same_boxes_out_as_in(self, count: int) -> None:
        first = rectangles(many_boxes(SIZE, count))
        new = self.rule()(self.case(first))
        assert len(new) == len(first)
        assert np.array_equal(new.classes, first.classes)
        for mask in new.masks:
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 1, 255}

    def test_same_input_same_masks(self) -> None:
        first = rectangles(many_boxes(SIZE, 4))
        one, two = (self.rule()(self.case(first)) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one.masks, two.masks, strict=True))

    def test_crowd_stays(self) -> None:
        first = rectangles(Boxes.of([((2, 2, 20, 20), 1, True)]))
        assert np.array_equal(self.rule()(self.case(first)).masks[0], first.masks[0])


class TestDirect(RuleContract):
    name = "direct"

    def test_takes_the_winner_inside_the_box(self) -> None:
        first = rectangles(many_boxes(SIZE, 5))
        scores = probabilities()
        new = self.rule()(self.case(first))
        for (x0, y0, x1, y1), class_id, mask in zip(first.windows, first.classes, new.masks, strict=True):
            for row in range(y0, y1):
                for column in range(x0, x1):
                    assert mask[row - y0, column - x0] == (scores[:, row, column].argmax() == class_id)

    def test_ignores_what_the_network_is_not_sure_of(self) -> None:
        first = rectangles(many_boxes(SIZE, 5))
        case = self.case(first)
        sure = case.scores.max(axis=0) >= 0.5
        assert 0.1 < sure.mean() < 0.9
        found, plain = Direct(sure=0.5)(case), Direct()(case)
        for (x0, y0, x1, y1), mask, whole in zip(first.windows, found.masks, plain.masks, strict=True):
            assert np.array_equal(mask, np.where(sure[y0:y1, x0:x1], whole, 255))


class TestBoxSup(RuleContract):
    name = "boxsup"


def slow_sdi(case: Case, labels: dict[int, Float32], least: float) -> list[list[list[int]]]:
    """Simple Does It's box rules pixel by pixel, given the probability of each label that may occur."""
    masks = []
    for index, (x0, y0, x1, y1) in enumerate(case.first.windows):
        own = int(case.first.classes[index])
        mask = [[0] * (x1 - x0) for _ in range(y1 - y0)]
        for row in range(y0, y1):
            for column in range(x0, x1):
                best = max(sorted(labels), key=lambda label: labels[label][row, column])
                mask[row - y0][column - x0] = int(best == own)
        share = sum(map(sum, mask)) / ((x1 - x0) * (y1 - y0))
        masks.append(case.first.masks[index].tolist() if share < least or case.first.crowd[index] else mask)
    return masks


class TestSDI(RuleContract):
    name = "sdi"

    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 6), st.integers(0, 99), st.floats(0, 1))
    def test_the_box_rules_against_a_slow_version(self, count: int, seed: int, least: float) -> None:
        boxes = many_boxes(SIZE, count)
        first = build_source("rectangle", {"inner": 0.5})(picture(*SIZE), boxes, Sample("one", Path("one.png"), SIZE, boxes=boxes))
        case = Case(picture(*SIZE), probabilities(seed), first, first)
        allowed = {int(label): case.scores[label] for label in {0, *first.classes.tolist()}}
        new = SDI(crf=False, least=least)(case)
        assert [mask.tolist() for mask in new.masks] == slow_sdi(case, allowed, least)

    def test_the_crf_against_a_plain_use_of_it(self) -> None:
        """Its labels are the background and the classes of the boxes, their probabilities those of the network, made to sum to 1."""
        first = rectangles(Boxes.of([((2, 2, 28, 20), 1, False), ((4, 4, 14, 14), 3, False)]))
        case = Case(picture(*SIZE), probabilities(4), first, first)
        chosen = case.scores[[0, 1, 3]].astype(np.float64)
        marginals = mean_field(
            -np.log(chosen / chosen.sum(0)).astype(np.float32), case.image, w1=4, theta_alpha=49, theta_beta=5, w2=3, theta_gamma=3
        )
        new = SDI(least=0.1)(case)
        expected = slow_sdi(case, dict(zip((0, 1, 3), marginals, strict=True)), 0.1)
        assert [mask.tolist() for mask in new.masks] == expected
        assert [mask.tolist() for mask in SDI(least=0.1, crf=False)(case).masks] != expected

    def test_the_crf_follows_the_image(self) -> None:
        """The network sees the bright disc only roughly; the CRF finds its outline."""
        size = (60, 80)
        image = picture(*size)
        disc = image.min(axis=2) > 100
        scores = np.full((2, *size), 0.3, np.float32)
        scores[1][disc] = 0.6
        scores[1][20:40, 10:30] = 0.55  # and sees something where nothing is
        scores[0] = 1 - scores[1]
        first = BoxMasks.of(Boxes.of([((5, 5, 75, 55), 1, False)]), size, [np.ones((50, 70), np.uint8)])
        found = SDI(least=0.1)(Case(image, scores, first, first)).masks[0] == 1
        truth = disc[5:55, 5:75]
        assert (found & truth).sum() / (found | truth).sum() > 0.97

    def test_a_small_working_size(self) -> None:
        first = rectangles(many_boxes(SIZE, 5))
        one = SDI(max_side=16)(self.case(first))
        assert [mask.shape for mask in one.masks] == [mask.shape for mask in first.masks]

    def test_too_small_a_segment_goes_back_to_the_first_mask_not_to_the_present_one(self) -> None:
        boxes = Boxes.of([((4, 4, 20, 20), 1, False)])
        first, present = rectangles(boxes), BoxMasks.of(boxes, SIZE, [np.zeros((16, 16), np.uint8)])
        scores = np.zeros((4, *SIZE), np.float32)
        scores[0], scores[1, :, :13] = 0.5, 1.0  # 9 of 16 columns
        for least, expected in ((0.5, [1] * 9 + [0] * 7), (0.6, [1] * 16)):
            new = SDI(crf=False, least=least)(Case(picture(*SIZE), scores, first, present))
            assert new.masks[0][3].tolist() == expected


def test_names() -> None:
    assert build_rule("none") is None
    with pytest.raises(MixsupError, match="no refresh rule 'magic'; there are none, boxsup, direct, em, mcof, sdi"):
        build_rule("magic")
    with pytest.raises(MixsupError, match="setting 'speed'"):
        build_rule("direct", {"speed": 1})
