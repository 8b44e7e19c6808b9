"""Every rule of steps through one contract, and `em` against slow versions of its two formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixsup.data.sample import Boxes, Float32, LabelKind, UInt8
from mixsup.errors import MixsupError
from mixsup.refresh import RULES, StepRule, build_rule
from mixsup.refresh.em import EM, covered
from tests.masks.contract import many_boxes

SIZE = (18, 22)
CLASSES = 5


def scores_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, CLASSES, *SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def batch_of(kinds: list[LabelKind], boxes: Boxes | None = None, tags: tuple[int, ...] = ()) -> dict[str, Any]:
    """Valid pixels are background but for masks, whose target is class 4; two rows are void, as padding is."""
    boxes = Boxes.of([]) if boxes is None else boxes
    target = torch.zeros(len(kinds), *SIZE, dtype=torch.uint8)
    for index, kind in enumerate(kinds):
        target[index] = 4 if kind == "masks" else 0
    target[:, :2] = 255
    own = [boxes if kind == "boxes" else Boxes.of([]) for kind in kinds]
    return {
        "target": target,
        "kind": kinds,
        "boxes": [torch.from_numpy(each.xyxy) for each in own],
        "box_classes": [torch.from_numpy(each.classes) for each in own],
        "box_crowd": [torch.from_numpy(each.crowd) for each in own],
        "tags": [list(tags) if kind == "tags" else [] for kind in kinds],
    }


class StepRuleContract:
    """Subclasses set `name`."""

    name: str
    options: dict[str, object] = {}  # noqa: RUF012

    def rule(self) -> StepRule:
        built = build_rule(self.name, self.options)
        assert isinstance(built, StepRule)
        assert RULES[self.name] is type(built)
        return built

    def batch(self) -> dict[str, Any]:
        return batch_of(["boxes", "masks", "tags", "boxes"], many_boxes(SIZE, 4), (1, 3))

    def test_labels_that_the_image_may_have(self) -> None:
        batch = self.batch()
        new = self.rule()(scores_of(4), batch)
        assert new.shape == batch["target"].shape
        assert new.dtype == torch.uint8
        for index in (0, 3):
            assert set(new[index].unique().tolist()) <= {0, 255, *batch["box_classes"][index].tolist()}
        assert set(new[2].unique().tolist()) <= {0, 1, 3, 255}

    def test_kinds_that_it_does_not_renew_keep_their_target(self) -> None:
        batch = batch_of(["masks", "boxes", "tags"], many_boxes(SIZE, 3), (2,))
        batch["target"][:] = torch.randint(0, CLASSES, batch["target"].shape, generator=torch.Generator().manual_seed(1))
        new = self.rule()(scores_of(3), batch)
        kept = [index for index, kind in enumerate(batch["kind"]) if kind not in self.rule().renews]
        assert kept
        assert torch.equal(new[kept], batch["target"][kept])

    def test_void_stays_void(self) -> None:
        batch = self.batch()
        batch["target"][:, :, 5] = 255
        new = self.rule()(scores_of(4), batch)
        assert (new[batch["target"] == 255] == 255).all()
        batch["target"][:] = 255
        assert (self.rule()(scores_of(4), batch) == 255).all()

    def test_nothing_is_changed_in_place_and_nothing_has_a_gradient(self) -> None:
        batch, scores = self.batch(), scores_of(4).requires_grad_()
        target, before = batch["target"].clone(), scores.detach().clone()
        new = self.rule()(scores, batch)
        assert not new.requires_grad
        assert torch.equal(batch["target"], target)
        assert torch.equal(scores.detach(), before)

    def test_same_input_same_targets_whatever_stands_beside_it(self) -> None:
        batch, scores = self.batch(), scores_of(4)
        new = self.rule()(scores, batch)
        assert torch.equal(new, self.rule()(scores, batch))
        for index in range(4):
            alone = {key: value[index : index + 1] for key, value in batch.items()}
            assert torch.equal(self.rule()(scores[index : index + 1], alone)[0], new[index])

    def test_an_image_without_any_object_is_background(self) -> None:
        batch = batch_of(["boxes", "tags"])
        assert torch.equal(self.rule()(scores_of(2), batch), batch["target"])

    def test_half_precision(self) -> None:
        batch = self.batch()
        scores = scores_of(4).bfloat16()
        assert torch.equal(self.rule()(scores, batch), self.rule()(scores.float(), batch))


def slow_fixed(scores: Float32, boxes: Boxes, b_fg: float, b_bg: float, smallest: bool) -> UInt8:
    """At each pixel the best of background + b_bg and of the classes of the boxes over its centre (or of the smallest one's) + b_fg."""
    found = np.zeros(SIZE, np.uint8)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            best, value, crowded, over = 0, scores[0, row, column] + np.float32(b_bg), False, []
            for (x0, y0, x1, y1), class_id, crowd in zip(boxes.xyxy, boxes.classes, boxes.crowd, strict=True):
                if x0 <= column + 0.5 < x1 and y0 <= row + 0.5 < y1:
                    crowded |= bool(crowd)
                    over += [] if crowd else [((x1 - x0) * (y1 - y0), int(class_id))]
            least = min((area for area, _ in over), default=0)
            for class_id in [[each for area, each in over if area == least][-1]] if smallest and over else sorted(each for _, each in over):
                own = scores[class_id, row, column] + np.float32(b_fg)
                if own > value:
                    best, value = class_id, own
            found[row, column] = 255 if crowded and best == 0 else best
    return found


def slow_adapt(scores: Float32, valid: np.ndarray[Any, Any], tags: list[int], rho_fg: float, rho_bg: float, sweeps: int) -> UInt8:
    """Raises each label so that it reaches the best of the others at its share of the valid pixels, where it does not by itself."""
    scores = scores.copy()
    pixels = [(row, column) for row in range(SIZE[0]) for column in range(SIZE[1]) if valid[row, column]]
    for _ in range(sweeps):
        for label in [0, *tags]:
            others = [other for other in [0, *tags] if other != label]
            lacking = sorted(max(scores[other, row, column] for other in others) - scores[label, row, column] for row, column in pixels)
            wanted = int((rho_bg if label == 0 else rho_fg) * len(pixels))
            scores[label] += max(lacking[min(wanted, len(lacking) - 1)], np.float32(0))
    found = np.full(SIZE, 255, np.uint8)
    for row, column in pixels:
        found[row, column] = max([0, *tags], key=lambda label: (scores[label, row, column], -label))
    return found


class TestEM(StepRuleContract):
    name = "em"

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 8), st.integers(0, 99), st.floats(-5, 5), st.floats(-5, 5), st.booleans())
    def test_boxes_against_the_formula(self, count: int, seed: int, b_fg: float, b_bg: float, smallest: bool) -> None:
        boxes = many_boxes(SIZE, count)
        order = np.argsort(-(boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(axis=1), kind="stable")  # as views have them
        boxes = Boxes(boxes.xyxy[order], boxes.classes[order], np.arange(count) % 4 == 3)
        scores, batch = scores_of(1, seed), batch_of(["boxes"], boxes)
        expected = slow_fixed(scores[0].numpy(), boxes, b_fg, b_bg, smallest)
        expected[:2] = 255
        assert np.array_equal(EM(b_fg=b_fg, b_bg=b_bg, smallest=smallest)(scores, batch)[0].numpy(), expected)

    def test_boxes_as_they_are_until_it_is_warm(self) -> None:
        boxes, scores = many_boxes(SIZE, 4), scores_of(2)
        batch = {**batch_of(["boxes", "tags"], boxes, (2,)), "target": torch.full((2, *SIZE), 3, dtype=torch.uint8)}
        later = EM()(scores, batch, 0.5)
        assert not torch.equal(later[0], batch["target"][0])
        early = EM()(scores, batch, 0.49)
        assert torch.equal(early[0], batch["target"][0])
        assert torch.equal(early[1], later[1])  # tags need no warming
        assert torch.equal(EM(warm=0)(scores, batch, 0.0), later)

    @settings(max_examples=25, deadline=None)
    @given(st.sets(st.integers(1, CLASSES - 1), min_size=1), st.integers(0, 99), st.floats(0, 1), st.floats(0, 1), st.integers(1, 3))
    def test_tags_against_the_formula(self, tags: set[int], seed: int, rho_fg: float, rho_bg: float, sweeps: int) -> None:
        scores, batch = scores_of(1, seed), batch_of(["tags"], tags=tuple(sorted(tags)))
        expected = slow_adapt(scores[0].numpy(), batch["target"][0].numpy() != 255, sorted(tags), rho_fg, rho_bg, sweeps)
        found = EM(rho_fg=rho_fg, rho_bg=rho_bg, sweeps=sweeps)(scores, batch)[0].numpy()
        # At the quantile's own pixel two labels draw level but for rounding.
        assert (found != expected).sum() <= 1 + len(tags)

    def test_a_tagged_class_gets_its_share_however_low_its_scores(self) -> None:
        scores, batch = scores_of(1), batch_of(["tags"], tags=(1, 2))
        scores[:, 1] -= 50
        scores[:, 4] += 100  # a class that is not in the image
        new = EM()(scores, batch)[0][2:]
        shares = [float((new == label).float().mean()) for label in range(CLASSES)]
        assert shares[0] == pytest.approx(0.4, abs=0.05)
        assert min(shares[1], shares[2]) > 0.15
        assert shares[3] == shares[4] == 0

    def test_a_single_tag_gets_exactly_its_share(self) -> None:
        scores, batch = scores_of(1), batch_of(["tags"], tags=(2,))
        scores[:, 2] -= 50
        new = EM(rho_fg=0.25, rho_bg=0.5)(scores, batch)[0][2:]
        assert int((new == 2).sum()) == 0.25 * new.numel()

    def test_biases_decide_where_scores_do_not(self) -> None:
        boxes = Boxes.of([((3, 4, 12, 15), 2, False)])
        batch, scores = batch_of(["boxes"], boxes), torch.zeros(1, CLASSES, *SIZE)
        for rule, inside in ((EM(), 2), (EM(b_fg=2), 0)):
            new = rule(scores, batch)[0][2:]
            assert (new[2:13, 3:12] == inside).all()
            assert int((new != 0).sum()) == (9 * 11 if inside else 0)

    def test_what_a_crowd_covers_and_no_box_claims_is_void(self) -> None:
        boxes = Boxes.of([((0, 2, 10, 18), 1, True), ((5, 2, 15, 18), 2, False)])
        scores = torch.zeros(1, CLASSES, *SIZE)
        scores[:, 2, 10:] = -9  # inside the box the lower half is background
        new = EM()(scores, batch_of(["boxes"], boxes))[0]
        assert (new[2:10, :5] == 255).all()
        assert (new[2:10, 5:15] == 2).all()
        assert (new[10:, :10] == 255).all()
        assert not new[10:, 10:].any()


def test_classes_that_nobody_looked_for_count_as_background() -> None:
    """Class 2 is the likeliest everywhere: in an image where nobody looked for it, it makes the background win over the box's class."""
    scores = torch.zeros(2, CLASSES, *SIZE)
    scores[:, 1], scores[:, 2] = 1.0, 3.0
    batch = batch_of(["boxes"] * 2, Boxes.of([((0, 0, SIZE[1], SIZE[0]), 1, False)]))
    batch["unknown"] = torch.tensor([[False] * CLASSES, [False, False, True, False, False]])
    found = EM(b_fg=0.0, b_bg=0.0)(scores, batch)
    valid = batch["target"][0] != 255
    assert (found[0][valid] == 1).all()
    assert (found[1][valid] == 0).all()


@given(st.lists(st.tuples(*[st.floats(-2, 24)] * 4), max_size=4))
def test_covered(rows: list[tuple[float, float, float, float]]) -> None:
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    found = covered(boxes, torch.zeros(3, *SIZE))
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            inside = any(x0 <= column + 0.5 < x1 and y0 <= row + 0.5 < y1 for x0, y0, x1, y1 in boxes.tolist())
            assert bool(found[row, column]) == inside


@pytest.mark.parametrize("options", [{"rho_fg": 1.5}, {"sweeps": 0}, {"b_fg": "much"}, {"b_bg": float("nan")}, {"rounds": 1}])
def test_bad_settings(options: dict[str, Any]) -> None:
    with pytest.raises(MixsupError, match=f"refresh rule 'em'(,| has no) setting '{next(iter(options))}'") as caught:
        build_rule("em", options)
    assert len(str(caught.value).splitlines()) == 1
