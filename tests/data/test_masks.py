"""Outlines, run-length codes, and weaker labels from stronger ones."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from mixsup.data.collect import box_fault, clip_box
from mixsup.data.derive import boxes_from_mask, tags_from_boxes
from mixsup.data.palette import COLOURS, overlay, palette_png
from mixsup.data.sample import VOID, Boxes, MaskSegments, Segment
from mixsup.data.segments import decode_rle, encode_rle, encode_window, paint, segment_box, tight_box
from mixsup.errors import MixsupError

from .make import plain_counts

SMALL_MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))
ID_MASKS = arrays(np.uint8, st.tuples(st.integers(1, 10), st.integers(1, 10)), elements=st.sampled_from([0, 0, 1, 2, VOID]))


def flood_fill(mask: npt.NDArray[np.uint8], min_area: int) -> set[tuple[float, ...]]:
    """The definition, slowly: components of equal ids under the eight neighbours."""
    seen: set[tuple[int, int]] = set()
    found: set[tuple[float, ...]] = set()
    for start in np.ndindex(mask.shape):
        label = mask[start]
        if label in (0, VOID) or start in seen:
            continue
        component, stack = {start}, [start]
        while stack:
            row, column = stack.pop()
            for other in [(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if 0 <= other[0] < mask.shape[0] and 0 <= other[1] < mask.shape[1] and mask[other] == label and other not in component:
                    component.add(other)
                    stack.append(other)
        seen |= component
        if len(component) >= min_area:
            rows, columns = zip(*component, strict=True)
            found.add((int(label), float(min(columns)), float(min(rows)), float(max(columns) + 1), float(max(rows) + 1)))
    return found


@settings(max_examples=80, deadline=None)
@given(mask=ID_MASKS, min_area=st.integers(1, 6))
def test_boxes_from_mask_are_those_of_a_flood_fill(mask: npt.NDArray[np.uint8], min_area: int) -> None:
    boxes = boxes_from_mask(mask, min_area)
    found = {(int(label), *map(float, box)) for label, box in zip(boxes.classes, boxes.xyxy, strict=True)}
    assert found == flood_fill(mask, min_area)
    assert not boxes.crowd.any()


def test_components_below_the_least_area_are_noise() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:5, :6] = 1  # 30 pixels
    mask[10:18, 10:14] = 1  # 32 pixels
    assert boxes_from_mask(mask).xyxy.tolist() == [[10, 10, 14, 18]]


def test_tags_from_boxes_name_crowds_but_not_those_of_no_class() -> None:
    boxes = Boxes.of([((0, 0, 1, 1), 3, False), ((0, 0, 2, 2), 3, False), ((0, 0, 1, 1), 5, True), ((0, 0, 1, 1), 0, True)])
    assert tags_from_boxes(boxes) == {3, 5}
    assert tags_from_boxes(Boxes.of([])) == frozenset()


@settings(max_examples=80, deadline=None)
@given(pixels=SMALL_MASKS)
def test_run_length_codes_go_round(pixels: npt.NDArray[np.bool_]) -> None:
    code = encode_rle(pixels)
    assert code["size"] == list(pixels.shape)
    assert isinstance(code["counts"], str)
    np.testing.assert_array_equal(decode_rle(code["counts"], pixels.shape), pixels)
    theirs = coco_mask.decode({"size": list(pixels.shape), "counts": code["counts"].encode()})
    np.testing.assert_array_equal(np.asarray(theirs, bool), pixels)


@settings(max_examples=80, deadline=None)
@given(pixels=SMALL_MASKS)
def test_uncompressed_codes(pixels: npt.NDArray[np.bool_]) -> None:
    counts = plain_counts(pixels)
    np.testing.assert_array_equal(decode_rle(counts, pixels.shape), pixels)
    theirs = coco_mask.decode(coco_mask.frPyObjects({"size": list(pixels.shape), "counts": counts}, *pixels.shape))
    np.testing.assert_array_equal(np.asarray(theirs, bool), pixels)


@settings(max_examples=200, deadline=None)
@given(pixels=SMALL_MASKS, data=st.data())
def test_the_code_of_a_window(pixels: npt.NDArray[np.bool_], data: st.DataObject) -> None:
    """Of any window that holds the object, one that ends at the image's edges and one that is empty."""
    height, width = (pixels.shape[axis] + data.draw(st.integers(0, 3)) for axis in (0, 1))
    y0, x0 = (data.draw(st.integers(0, whole - own)) for whole, own in ((height, pixels.shape[0]), (width, pixels.shape[1])))
    full = np.zeros((height, width), bool)
    full[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]] = pixels
    assert encode_window(pixels, x0, y0, full.shape) == encode_rle(full)


def test_a_large_compressed_code() -> None:
    pixels = np.random.default_rng(0).random((311, 203)) < 0.01  # long runs need several characters a count, and negative differences
    np.testing.assert_array_equal(decode_rle(str(encode_rle(pixels)["counts"]), pixels.shape), pixels)


@settings(max_examples=200, deadline=None)
@given(
    code=st.one_of(
        st.text(max_size=30), st.text(alphabet=[chr(48 + bits) for bits in range(64)], max_size=30), st.lists(st.integers(), max_size=9)
    )
)
def test_any_code_decodes_or_says_why_not(code: str | list[int]) -> None:
    said = ""
    try:
        assert decode_rle(code, (5, 7)).shape == (5, 7)
    except MixsupError as error:
        said = str(error)
    assert not said or "run-length code" in said


@settings(max_examples=40, deadline=None)
@given(pixels=SMALL_MASKS)
def test_tight_box(pixels: npt.NDArray[np.bool_]) -> None:
    box = tight_box(pixels)
    if box is None:
        assert not pixels.any()
        return
    x0, y0, x1, y1 = (int(edge) for edge in box)
    cut = pixels[y0:y1, x0:x1]
    assert cut.sum() == pixels.sum()
    assert all(edge.any() for edge in (cut[0], cut[-1], cut[:, 0], cut[:, -1]))


@settings(max_examples=200, deadline=None)
@given(xyxy=st.lists(st.floats(), min_size=4, max_size=4), size=st.tuples(st.integers(1, 500), st.integers(1, 500)))
def test_a_box_without_fault_is_inside_and_has_an_area(xyxy: list[float], size: tuple[int, int]) -> None:
    if not box_fault(xyxy, size):
        x0, y0, x1, y1 = Boxes.of([(clip_box(xyxy, size), 1, False)]).xyxy[0]
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]


def square(x0: float, y0: float, x1: float, y1: float) -> tuple[npt.NDArray[np.float32], ...]:
    return (np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float32),)


class TestPaint:
    def test_smaller_objects_lie_on_top_whatever_their_order(self) -> None:
        large, small = Segment(1, polygons=square(0, 0, 10, 10)), Segment(2, polygons=square(2, 2, 5, 5))
        for order in ((large, small), (small, large)):
            target = paint(MaskSegments(order), (12, 12))
            assert (target == 2).sum() == 9
            assert (target == 1).sum() == 91
            assert (target == 0).sum() == 44

    def test_a_crowd_is_void_below_the_objects(self) -> None:
        crowd, thing = Segment(1, polygons=square(0, 0, 10, 10), crowd=True), Segment(2, polygons=square(0, 0, 2, 2))
        target = paint(MaskSegments((thing, crowd)), (10, 10))
        assert (target == VOID).sum() == 96
        assert (target == 2).sum() == 4

    def test_nothing(self) -> None:
        assert not paint(MaskSegments(()), (4, 6)).any()
        assert not paint(MaskSegments((Segment(1, rle=(24,)),)), (4, 6)).any()

    def test_several_polygons_are_one_object(self) -> None:
        two = Segment(3, polygons=(*square(0, 0, 2, 2), *square(5, 5, 8, 9)))
        assert (paint(MaskSegments((two,)), (10, 10)) == 3).sum() == 16
        assert segment_box(two, (10, 10)) == (0, 0, 8, 9)

    def test_a_line_has_no_box(self) -> None:
        assert segment_box(Segment(1, polygons=(np.array([1, 1, 1, 5, 1, 9], np.float32),)), (10, 10)) is None


def test_palette_png_keeps_ids_and_shows_the_colours_of_voc() -> None:
    mask = np.array([[0, 1, 20], [255, 15, 2]], np.uint8)
    image = Image.open(io.BytesIO(palette_png(mask)))
    np.testing.assert_array_equal(np.asarray(image), mask)
    assert COLOURS[1].tolist() == [128, 0, 0]
    assert COLOURS[15].tolist() == [192, 128, 128]
    assert COLOURS[255].tolist() == [224, 224, 192]


def test_overlay_leaves_background_alone() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 1
    shown = overlay(image, mask)
    assert (shown[:3] == 100).all()
    np.testing.assert_allclose(shown[10, 10], [115, 45, 45], atol=1)


def test_windows_cover_their_boxes() -> None:
    boxes = Boxes.of([((0.5, 1.2, 3.1, 4.0), 1, False), ((9.9999, 0, 10, 10), 1, False)])
    assert boxes.windows((10, 10)).tolist() == [[0, 1, 4, 4], [9, 0, 10, 10]]


@pytest.mark.parametrize("size", [(1, 1), (3, 7)])
def test_an_empty_mask_has_no_boxes(size: tuple[int, int]) -> None:
    assert len(boxes_from_mask(np.zeros(size, np.uint8))) == 0
    assert len(boxes_from_mask(np.full(size, VOID, np.uint8), 1)) == 0
