"""Composition of per-box masks against a slow version that asks each pixel."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsup.data.sample import Float32, UInt8
from mixsup.masks.box_masks import BoxMasks, SharedTarget, compose, compose_shared

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


def slow_soft(boxes: BoxMasks, uncertain: bool) -> Float32:
    """Diverse supervision, eq. 3: 1/K for each of the K classes that claim a pixel, nothing where it is void."""
    target = np.zeros((4, *SIZE), np.float32)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            classes, unsure, ignored = set(), set(), False
            for index, (x0, y0, x1, y1) in enumerate(boxes.windows):
                if x0 <= column < x1 and y0 <= row < y1:
                    value = boxes.masks[index][row - y0, column - x0]
                    if boxes.crowd[index]:
                        ignored |= value != 0
                    elif value == 1:
                        classes.add(int(boxes.classes[index]))
                    elif value == 255:
                        unsure.add(int(boxes.classes[index]))
            if classes and uncertain:
                classes |= unsure
            for class_id in classes:
                target[class_id, row, column] = 1 / len(classes)
            if not classes and not ignored and not unsure:
                target[0, row, column] = 1
    return target


def dense(shared: SharedTarget) -> Float32:
    """C×H×W, as `slow_soft`."""
    target = np.zeros((4, *SIZE), np.float32)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            number, label = shared.claims[row, column], shared.labels[row, column]
            assert number == 255 or label == 255
            for class_id in shared.sets[number] if number != 255 else [label] if label != 255 else []:
                target[class_id, row, column] = 1 / (len(shared.sets[number]) if number != 255 else 1)
    return target


@settings(max_examples=60, deadline=None)
@given(box_masks())
def test_hard_target(boxes: BoxMasks) -> None:
    assert np.array_equal(compose(boxes), slow_compose(boxes))


@settings(max_examples=60, deadline=None)
@given(box_masks(), st.booleans())
def test_soft_target(boxes: BoxMasks, uncertain: bool) -> None:
    assert np.allclose(dense(compose_shared(boxes, uncertain)), slow_soft(boxes, uncertain))


def test_more_classes_than_bits_and_more_sets_than_numbers() -> None:
    """70 classes share a row each with another 70: bits of two planes; the sets beyond 255 are void."""
    size = (2, 400)
    first = [((column, 0, column + 1, 2), 1 + column % 70) for column in range(400)]
    second = [((column, 0, column + 1, 1), 71 + column % 69) for column in range(400)]
    windows = np.array([window for window, _ in first + second], np.int64)
    masks = tuple(np.ones((window[3] - window[1], 1), np.uint8) for window in windows)
    classes = np.array([class_id for _, class_id in first + second], np.int64)
    found = compose_shared(BoxMasks(size, windows, classes, np.zeros(800, bool), masks))
    assert (found.labels[0] == 255).all()
    assert np.array_equal(found.labels[1], classes[:400])
    assert len(found.sets) == 255
    for column, number in enumerate(found.claims[0]):
        assert number == 255 or found.sets[number] == (classes[column], classes[400 + column])
    assert (found.claims[0] == 255).sum() == 400 - 255
