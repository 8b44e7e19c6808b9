"""The filling-rate loss through the contract, against its formula pixel by pixel, and what it keeps."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixsup.losses import Criterion, FillingRate
from mixsup.losses.filling_rate import _ordered, kept_pixels
from mixsup.masks.filling import FillingRates, Rate
from tests.losses.contract import LossContract, batch_of


class TestFillingRate(LossContract):
    name = "filling-rate"


def random_batch(
    seed: int, images: int = 3, size: tuple[int, int] = (11, 13), classes: int = 4
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Images with up to five boxes, the largest first, whole pixels, some crowds, some kinds masks; targets that know nothing of the boxes."""
    draw = np.random.default_rng(seed)
    boxes, labels, crowd, rates, kinds = [], [], [], [], []
    for _ in range(images):
        count = int(draw.integers(0, 6))
        x, y = np.sort(draw.integers(0, size[1] + 1, (count, 2)), axis=1), np.sort(draw.integers(0, size[0] + 1, (count, 2)), axis=1)
        order = np.argsort(-(np.diff(x) * np.diff(y))[:, 0], kind="stable")
        boxes.append(torch.tensor(np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)[order], dtype=torch.float32))
        labels.append(torch.tensor(draw.integers(1, classes, count)))
        crowd.append(torch.tensor(draw.random(count) < 0.2))
        rates.append(torch.tensor(draw.random(count), dtype=torch.float32))
        kinds.append("masks" if draw.random() < 0.2 else "boxes")
    target = draw.choice([0, *range(1, classes), 255], (images, *size)).astype(np.uint8)
    scores = torch.tensor(draw.standard_normal((images, classes, *size)), dtype=torch.float32, requires_grad=True)
    return {"scores": scores}, {
        "target": torch.from_numpy(target), "kind": kinds, "boxes": boxes, "box_classes": labels, "box_crowd": crowd, "box_rates": rates,
    }  # fmt: skip


def slow_kept(scores: Tensor, batch: dict[str, Any]) -> Tensor:
    """Eq. 4 in words: of the pixels with its label that no smaller box of its class takes, each box keeps the top ones by its class's score, as many as its
    rate is of all its known pixels."""
    kept = torch.ones_like(batch["target"], dtype=torch.bool)
    for image, kind in enumerate(batch["kind"]):
        if kind != "boxes":
            continue
        target, boxes = batch["target"][image], batch["boxes"][image]
        own: dict[int, list[tuple[int, int]]] = {index: [] for index in range(len(boxes))}
        known = [0] * len(boxes)
        for y in range(target.shape[0]):
            for x in range(target.shape[1]):
                owner, smallest = None, math.inf
                for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                    if not (x0 <= x < x1 and y0 <= y < y1) or batch["box_crowd"][image][index]:
                        continue
                    known[index] += int(target[y, x]) != 255
                    if int(target[y, x]) == int(batch["box_classes"][image][index]) and (x1 - x0) * (y1 - y0) <= smallest:
                        owner, smallest = index, (x1 - x0) * (y1 - y0)
                if owner is not None:
                    own[owner].append((y, x))
        for index, labelled in own.items():
            top = max(1, round(float(batch["box_rates"][image][index] * known[index])))
            class_id = int(batch["box_classes"][image][index])
            for place in sorted(labelled, key=lambda place: -float(scores[image, class_id][place]))[top:]:
                kept[image][place] = False
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_against_the_formula(seed: int) -> None:
    outputs, batch = random_batch(seed)
    kept = slow_kept(outputs["scores"].detach(), batch)
    assert torch.equal(kept_pixels(outputs["scores"], batch), kept)
    with mock.patch("mixsup.losses.filling_rate._TOGETHER", 2):
        assert torch.equal(kept_pixels(outputs["scores"], batch), kept)
    total, count = torch.zeros(()), 0
    logs = outputs["scores"].log_softmax(1)
    for image, y, x in kept.nonzero().tolist():
        label = int(batch["target"][image, y, x])
        if label != 255:
            total, count = total - logs[image, label, y, x], count + 1
    found = FillingRate()(outputs, batch)
    assert torch.allclose(found[0], total, rtol=1e-5)
    assert int(found[1]) == count


def test_gradient_only_through_kept_pixels() -> None:
    outputs, batch = random_batch(5)
    kept = kept_pixels(outputs["scores"], batch) & (batch["target"] != 255)
    assert not kept.all()
    FillingRate()(outputs, batch)[0].backward()
    grad = outputs["scores"].grad
    assert grad is not None
    assert torch.equal(grad.abs().sum(1) > 0, kept)


def one_box(rate: float, side: int = 20) -> tuple[Tensor, dict[str, Any]]:
    """A filled box of `side`² pixels in a view of 32×32."""
    target = torch.zeros(1, 32, 32, dtype=torch.uint8)
    target[0, 4 : 4 + side, 6 : 6 + side] = 2
    box = torch.tensor([[6.0, 4.0, 6.0 + side, 4.0 + side]])
    batch = {
        "target": target, "kind": ["boxes"], "boxes": [box], "box_classes": [torch.tensor([2])], "box_crowd": [torch.tensor([False])],
        "box_rates": [torch.tensor([rate])],
    }  # fmt: skip
    return torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)), batch


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.2, 1 / 3, 0.6, 0.999, 1.0])
@pytest.mark.parametrize("side", [1, 3, 20])
def test_the_kept_share_is_the_rate_to_one_pixel(rate: float, side: int) -> None:
    scores, batch = one_box(rate, side)
    kept = kept_pixels(scores, batch)
    inside = batch["target"] == 2
    assert abs(int(kept[inside].sum()) - rate * side**2) <= 1
    assert int(kept[inside].sum()) >= 1
    assert kept[~inside].all()
    if 0 < int(kept[inside].sum()) < side**2:
        assert scores[:, 2][kept & inside].min() > scores[:, 2][~kept].max()


def test_a_mask_that_fills_less_than_its_rate_is_kept_whole() -> None:
    scores, batch = one_box(0.6)
    batch["target"][0, 12:] = 0  # 40 % of the box is left
    assert kept_pixels(scores, batch).all()


@pytest.mark.parametrize("label", [1, 0, 255])
def test_the_share_is_of_the_whole_box_whatever_lies_on_it(label: int) -> None:
    """400 pixels of which another object has 160: the rate of 0.6 was measured on boxes like this one, and lets the 240 others through."""
    scores, batch = one_box(0.6)
    batch["target"][0, 16:24, 6:26] = label
    batch["boxes"] = [torch.cat([batch["boxes"][0], torch.tensor([[6.0, 16.0, 26.0, 24.0]])])]
    batch["box_classes"], batch["box_crowd"] = [torch.tensor([2, 1])], [torch.tensor([False, False])]
    batch["box_rates"] = [torch.tensor([0.6, 1.0])]
    kept = kept_pixels(scores, batch)
    assert int(kept[batch["target"] == 2].sum()) == (240 if label != 255 else 144)  # void pixels are not known to be of the box
    assert kept[batch["target"] != 2].all()


def test_a_box_of_which_nothing_is_left() -> None:
    """Composition or a refresh may leave a box without a pixel of its label, or void all of it: it charges nothing and disturbs nobody."""
    scores, batch = one_box(0.5)
    for left in (0, 3, 255):
        batch["target"][0, 4:24, 6:26] = left
        assert kept_pixels(scores, batch).all()
    assert torch.isfinite(FillingRate()({"scores": scores}, batch)[0])
    batch["boxes"], batch["box_classes"] = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)]
    batch["box_crowd"], batch["box_rates"] = [torch.zeros(0, dtype=torch.bool)], [torch.zeros(0)]
    assert kept_pixels(scores, batch).all()


def test_true_masks_are_charged_whole() -> None:
    outputs, batch = batch_of(["masks"] * 2)
    named = [Criterion({"masks": name})(outputs, batch)[f"masks/{name}"] for name in ("cross-entropy", "filling-rate")]
    assert torch.equal(*named)


def test_under_autocast() -> None:
    scores, batch = one_box(0.4)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = FillingRate()({"scores": scores.bfloat16().requires_grad_()}, batch)
    assert total.dtype == torch.float32
    assert int(count) == 32 * 32 - 400 + 160


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
def test_integers_in_the_order_of_floats(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    found = _ordered(scores + 0.0)
    for one in range(len(values)):
        assert torch.equal(found > found[one], scores > scores[one]) or bool((scores == 0).any())  # but for the two zeros


def test_rates_by_variant() -> None:
    """A sub-class without a rate takes its class's, a class without boxes that of all, and nothing at all the setting."""
    per_class = {"cat": Rate.of(np.array([0.2, 0.4])), "dog": Rate.of(np.zeros(0))}
    parts = {"cat": [Rate.of(np.array([0.2])), Rate.of(np.array([0.4])), Rate.of(np.zeros(0))], "dog": []}
    rates = FillingRates("crf", 2, 0.3, per_class, parts, {}, {}, {})
    names, classes, sub = ("background", "cat", "dog"), np.array([1, 1, 1, 1, 2]), [0, 1, 2, -1, -1]
    assert FillingRate("global").box_rates(rates, names, classes, sub).tolist() == pytest.approx([0.6] * 5)
    assert FillingRate("class").box_rates(rates, names, classes, sub).tolist() == pytest.approx([0.3, 0.3, 0.3, 0.3, 0.3])
    assert FillingRate("sub-class").box_rates(rates, names, classes, sub).tolist() == pytest.approx([0.2, 0.4, 0.3, 0.3, 0.3])
    none = FillingRates("crf", 0, None, {"cat": Rate(0, None, None)}, {"cat": []}, {}, {}, {})
    assert FillingRate("sub-class", rate=0.5).box_rates(none, names[:2], np.array([1]), [-1]).tolist() == [0.5]
