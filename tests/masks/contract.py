"""What every mask source must do. A new source inherits all of it with a class of three lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.masks.box_masks import BoxMasks, compose
from mixsup.masks.source import MaskSource


def picture(height: int, width: int, seed: int = 0) -> UInt8:
    """A bright disc on a dark noisy ground."""
    generator = np.random.default_rng(seed)
    image = generator.integers(20, 60, (height, width, 3), dtype=np.uint8)
    rows, columns = np.indices((height, width))
    image[(rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 3) ** 2] += np.uint8(150)
    return image


def many_boxes(size: tuple[int, int], count: int) -> Boxes:
    generator = np.random.default_rng(1)
    height, width = size
    rows = []
    for _ in range(count):
        x0, y0 = generator.uniform(0, width - 2), generator.uniform(0, height - 2)
        x1, y1 = generator.uniform(x0 + 1, width), generator.uniform(y0 + 1, height)
        rows.append(((x0, y0, x1, y1), int(generator.integers(1, 4)), False))
    return Boxes.of(rows)


class MaskSourceContract:
    """Subclasses give `source`, a fixture; one that reads files also `prepare`."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        raise AssertionError("the subclass gives the source")

    def prepare(self, image: UInt8, sample: Sample, folder: Path) -> None:
        """Puts files there that the source reads for this sample."""

    def disc_overlap(self, source: MaskSource, folder: Path) -> float:
        """IoU of what is found in a box around the disc of a picture with that disc; ignored pixels are not found."""
        found = self.make(source, picture(120, 120), Boxes.of([((18, 18, 102, 102), 1, False)]), folder).masks[0] == 1
        rows, columns = np.indices((84, 84)) - 42
        disc = rows**2 + columns**2 < 40**2
        return float((found & disc).sum() / (found | disc).sum())

    def make(self, source: MaskSource, image: UInt8, boxes: Boxes, folder: Path) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        sample = Sample(id="one", image=Path("one.png"), size=size, boxes=boxes)
        self.prepare(image, sample, folder)
        masks = source(image, boxes, sample)
        assert len(masks) == len(boxes)
        assert masks.size == size
        assert np.array_equal(masks.classes, boxes.classes)
        for (x0, y0, x1, y1), mask in zip(masks.windows, masks.masks, strict=True):
            assert 0 <= x0 < x1 <= size[1]
            assert 0 <= y0 < y1 <= size[0]
            assert mask.dtype == np.uint8
            assert set(np.unique(mask)) <= {0, 1, 255}
        target = compose(masks)
        assert set(np.unique(target)) <= {0, 255, *boxes.classes.tolist()}
        return masks

    def test_no_boxes(self, source: MaskSource, tmp_path: Path) -> None:
        assert not compose(self.make(source, picture(30, 40), Boxes.of([]), tmp_path)).any()

    def test_one_pixel_box(self, source: MaskSource, tmp_path: Path) -> None:
        self.make(source, picture(30, 40), Boxes.of([((3, 4, 4, 5), 2, False)]), tmp_path)

    def test_box_that_is_the_image(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(60, 80), Boxes.of([((0, 0, 80, 60), 1, False)]), tmp_path)
        assert (masks.masks[0] == 1).any()

    def test_fifty_overlapping_boxes(self, source: MaskSource, tmp_path: Path) -> None:
        self.make(source, picture(48, 64), many_boxes((48, 64), 50), tmp_path)

    def test_grey_image(self, source: MaskSource, tmp_path: Path) -> None:
        self.make(source, np.full((40, 40, 3), 128, np.uint8), Boxes.of([((5, 5, 30, 30), 1, False)]), tmp_path)

    def test_image_of_five_pixels(self, source: MaskSource, tmp_path: Path) -> None:
        self.make(source, picture(5, 5), Boxes.of([((0, 0, 5, 5), 1, False), ((1, 1, 4, 4), 2, False)]), tmp_path)

    def test_large_image(self, source: MaskSource, tmp_path: Path) -> None:
        image = np.tile(picture(400, 600), (10, 10, 1))  # 24 million pixels of noise would take longer to draw than to mask
        self.make(source, image, Boxes.of([((1500, 750, 4500, 3250), 1, False), ((10, 10, 40, 30), 2, False)]), tmp_path)

    def test_fractional_boxes(self, source: MaskSource, tmp_path: Path) -> None:
        self.make(source, picture(30, 40), Boxes.of([((2.5, 3.2, 20.7, 19.9), 1, False)]), tmp_path)

    def test_crowd_is_kept_whole(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(40, 40), Boxes.of([((5, 5, 30, 30), 1, True)]), tmp_path)
        assert (compose(masks)[5:30, 5:30] == 255).all()

    def test_same_input_same_masks(self, source: MaskSource, tmp_path: Path) -> None:
        boxes = many_boxes((48, 64), 5)
        one, two = (self.make(source, picture(48, 64), boxes, tmp_path) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(one.masks, two.masks, strict=True))

    def test_name_and_settings(self, source: MaskSource) -> None:
        from mixsup.masks import SOURCES, build_source

        assert SOURCES[source.name] is type(source)
        assert build_source(source.name, source.settings()) == source
