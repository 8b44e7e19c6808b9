"""Every refresh rule through one contract, and what each promises besides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixsup.data.sample import Boxes, Float32, Sample
from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.box_masks import BoxMasks
from mixsup.refresh import RULES, Case, RefreshRule, build_rule
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
        assert built is not None
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


class TestBoxSup(RuleContract):
    name = "boxsup"


def test_names() -> None:
    assert build_rule("none") is None
    with pytest.raises(MixsupError, match="no refresh rule 'magic'; there are none, boxsup, direct"):
        build_rule("magic")
    with pytest.raises(MixsupError, match="setting 'speed'"):
        build_rule("direct", {"speed": 1})
