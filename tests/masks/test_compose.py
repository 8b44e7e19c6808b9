"""Composition of per-box masks against a slow version that asks each pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsup.data.sample import Float32, UInt8
from mixsup.masks.box_masks import BoxMasks, compose, compose_soft

SIZE = (7, 9)


@st.composite
def box_masks(draw: st.DrawFn) -> BoxMasks:
    windows, masks, classes, crowd = [], [], [], []
    for _ in range(draw(st.integers(0, 5))):
        x0, y0 = draw(st.integers(0, SIZE[1] - 1)), draw(st.integers(0, SIZE[0] - 1))
        x1, y1 = draw(st.integers(x0 + 1, SIZE[1])), draw(st.integers(y0 + 1, SIZE[0]))
        values = draw(st.lists(st.sampled_from([0, 1, 255]), min_size=(x1 - x0) * (y1 - y0), max_size=(x1 - x0) * (y1 - y0)))
        windows.append((x0, y0, x1, y1))
        masks.append(np.array(values, np.uint8).reshape(y1 - y0, x1 - x0))
        classes.append(draw(st.integers(1, 3)))
        crowd.append(draw(st.booleans()))
    array = np.array(windows, np.int64).reshape(-1, 4)
    return BoxMasks(SIZE, array, np.array(classes, np.int64), np.array(crowd, bool), tuple(masks))


def slow_compose(boxes: BoxMasks) -> UInt8:
    """Each pixel asks its boxes from the smallest on: the first that says foreground or ignore decides; crowds are asked last."""
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes.windows]
    target = np.zeros(SIZE, np.uint8)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            said = []
            for index, (x0, y0, x1, y1) in enumerate(boxes.windows):
                if x0 <= column < x1 and y0 <= row < y1:
                    value = boxes.masks[index][row - y0, column - x0]
                    if value:
                        said.append((bool(boxes.crowd[index]), areas[index], -index, int(value)))
            if said:
                crowd, _, index, value = min(said)
                target[row, column] = 255 if crowd or value == 255 else boxes.classes[-index]
    return target


def slow_soft(boxes: BoxMasks) -> Float32:
    """Diverse supervision, eq. 3: s_i,c = 1/K for the K classes that claim pixel i."""
    target = np.zeros((4, *SIZE), np.float32)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            classes, ignored = set(), False
            for index, (x0, y0, x1, y1) in enumerate(boxes.windows):
                if x0 <= column < x1 and y0 <= row < y1:
                    value = boxes.masks[index][row - y0, column - x0]
                    if boxes.crowd[index]:
                        ignored |= value != 0
                    elif value == 1:
                        classes.add(int(boxes.classes[index]))
                    elif value == 255:
                        ignored = True
            for class_id in classes:
                target[class_id, row, column] = 1 / len(classes)
            if not classes and not ignored:
                target[0, row, column] = 1
    return target


@settings(max_examples=60, deadline=None)
@given(box_masks())
def test_hard_target(boxes: BoxMasks) -> None:
    assert np.array_equal(compose(boxes), slow_compose(boxes))


@settings(max_examples=60, deadline=None)
@given(box_masks())
def test_soft_target(boxes: BoxMasks) -> None:
    assert np.allclose(compose_soft(boxes, 4), slow_soft(boxes))
