"""Filling rates against the formula, sub-classes that are what they should be, and the way in and out of JSON."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from mixsup.data import load_dataset
from mixsup.data.sample import Boxes, Classes, Dataset, Sample
from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.filling import FillingRates, box_features, box_rates, load_rates, measure, plot_rates, summarise_rates
from mixsup.masks.store import MaskStore
from tests.data.make import make_coco, make_tags
from tests.masks.test_compose import box_masks

NAMES = ("background", "a", "b", "c")


def slow_rate(images: list[BoxMasks], class_id: int) -> Fraction | None:
    """BCM, eq. 3: FR_c = 1/N_c Σ P_proposal(i) / P_box(i), pixel by pixel; ignored pixels in neither count."""
    terms = []
    for image in images:
        for index, mask in enumerate(image.masks):
            if image.classes[index] != class_id or image.crowd[index]:
                continue
            proposal = box = 0
            for row in mask.tolist():
                for value in row:
                    proposal += value == 1
                    box += value != 255
            if box:
                terms.append(Fraction(proposal, box))
    return sum(terms, Fraction(0)) / len(terms) if terms else None


@settings(max_examples=40, deadline=None)
@given(box_masks(), box_masks())
def test_per_class_is_the_formula(one: BoxMasks, two: BoxMasks) -> None:
    images = [one, two]
    rates = summarise_rates("any", NAMES, ["1", "2"], [(image.classes, box_rates(image), box_features(image)) for image in images])
    for class_id, name in enumerate(NAMES[1:], 1):
        expected, found = slow_rate(images, class_id), rates.per_class[name]
        assert (found.mean is None) == (expected is None)
        if expected is not None:
            assert found.mean == pytest.approx(float(expected))
        # Sub-classes part the boxes of their class: their means, weighted, are its mean.
        parts = rates.per_subclass[name]
        assert sum(part.boxes for part in parts) == found.boxes
        assert len(parts) <= min(3, found.boxes)
        if parts:
            assert sum(part.boxes * (part.mean or 0) for part in parts) / found.boxes == pytest.approx(found.mean)
    for key, image in zip(("1", "2"), images, strict=True):
        assert [number == -1 for number in rates.assignment[key]] == np.isnan(box_rates(image)).tolist()


def shapes() -> list[BoxMasks]:
    """Thirty images with a box each: filled squares, thin bars across wide boxes, discs in tall ones; sizes vary a little."""
    images = []
    for index in range(30):
        grow = index // 3
        if index % 3 == 0:
            mask = np.ones((40 + grow, 40 + grow), np.uint8)
        elif index % 3 == 1:
            mask = np.zeros((20 + grow, 80 + 2 * grow), np.uint8)
            mask[8:12] = 1
        else:
            rows, columns = np.indices((80 + grow, 40))
            mask = (((rows - 40) / 38) ** 2 + ((columns - 20) / 18) ** 2 < 1).astype(np.uint8)
        window = np.array([[0, 0, mask.shape[1], mask.shape[0]]])
        images.append(BoxMasks((120, 120), window, np.array([1]), np.array([False]), (mask,)))
    return images


def test_sub_classes_are_the_shapes() -> None:
    images, ids = shapes(), [f"{index:02}" for index in range(30)]
    rates = summarise_rates("any", ("background", "a"), ids, [(image.classes, box_rates(image), box_features(image)) for image in images])
    # From the least filled on: bars, discs, squares.
    assert [rates.assignment[key][0] for key in ids] == [{0: 2, 1: 0, 2: 1}[index % 3] for index in range(30)]
    means = [part.mean for part in rates.per_subclass["a"]]
    assert means[0] < 0.3 < means[1] < 0.9 < means[2] == 1  # type: ignore[operator]
    # A box that was not measured goes where its like went.
    for index, image in enumerate(images[:3]):
        assert rates.assign(image, ("background", "a")).tolist() == rates.assignment[ids[index]]
    assert rates.assign(images[0], ("background", "unheard of")).tolist() == [-1]


def test_few_boxes_and_boxes_all_alike() -> None:
    images = shapes()
    for chosen, count in ((images[:1], 1), (images[:2], 2), ([images[0]] * 9, 1)):
        ids = [str(index) for index in range(len(chosen))]
        found = [(image.classes, box_rates(image), box_features(image)) for image in chosen]
        assert len(summarise_rates("any", ("background", "a"), ids, found).per_subclass["a"]) == count
    empty = summarise_rates("any", ("background", "a"), [], [])
    assert empty.global_rate is None
    assert empty.per_subclass["a"] == []


def test_features_of_boxes_smaller_than_the_layout() -> None:
    mask = np.array([[1, 0, 0]], np.uint8)
    row = box_features(BoxMasks((9, 9), np.array([[2, 3, 5, 4]]), np.array([1]), np.array([False]), (mask,)))[0]
    assert row[0] == pytest.approx(np.log2(3))
    layout = row[2:].reshape(8, 8)
    assert layout.mean() == pytest.approx(1 / 3, abs=0.01)
    assert (layout[:, 0] == 1).all()
    assert (layout[:, -1] == 0).all()


def test_measure_is_the_same_in_any_order_and_survives_json(tmp_path: Path) -> None:
    dataset = load_dataset(make_coco(tmp_path / "data"))
    store, source = MaskStore(tmp_path / "store"), build_source("grabcut")
    rates, problems = measure(dataset, source, store, jobs=1)
    backwards, _ = measure(dataset.with_samples(dataset.samples[::-1]), source, store, jobs=1)
    assert not problems
    assert rates == backwards
    assert FillingRates.from_json(json.loads(json.dumps(rates.to_json()))) == rates
    (tmp_path / "rates.json").write_text(json.dumps({"filling_rates": rates.to_json()}))
    assert load_rates(tmp_path / "rates.json") == rates
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(MixsupError, match="no filling rates"):
        load_rates(tmp_path / "other.json")
    with pytest.raises(MixsupError, match="cannot be read"):
        load_rates(tmp_path / "nowhere.json")


def test_rectangles_fill_their_boxes_and_crowds_have_no_rate(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    boxes = Boxes.of([((0, 0, 10, 10), 1, False), ((5, 5, 20, 20), 1, True)])
    dataset = Dataset(Classes(("x$^2$", "y")), [Sample("a", tmp_path / "a.png", (30, 40), boxes=boxes)])
    rates, _ = measure(dataset, build_source("rectangle"), MaskStore(tmp_path / "store"))
    assert rates.global_rate == 1
    assert rates.per_class["x$^2$"].boxes == 1
    assert rates.per_class["y"].mean is None
    assert rates.assignment == {"a": [0, -1]}
    plot_rates(rates, tmp_path / "rates.png")
    assert Image.open(tmp_path / "rates.png").size[0] > 300
    with pytest.raises(MixsupError, match=r"ends in \.png"):
        plot_rates(rates, tmp_path / "rates.txt")


def test_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(MixsupError, match="no image has boxes"):
        measure(load_dataset(make_tags(tmp_path / "tags")), build_source("rectangle"), MaskStore(tmp_path / "store"))
