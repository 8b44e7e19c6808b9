"""Every mask source through the contract, and what each promises besides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixsup.data.palette import palette_png
from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.source import MaskSource
from tests.masks.contract import MaskSourceContract, picture


class TestRectangle(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("rectangle")

    def test_fills_the_box(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(30, 40), Boxes.of([((2.5, 3.2, 20.7, 19.9), 1, False)]), tmp_path)
        assert masks.windows.tolist() == [[2, 3, 21, 20]]
        assert (masks.masks[0] == 1).all()


class TestGrabCut(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("grabcut")

    def test_finds_a_disc(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(120, 120), Boxes.of([((18, 18, 102, 102), 1, False)]), tmp_path)
        rows, columns = np.indices((84, 84)) - 42
        disc = rows**2 + columns**2 < 40**2
        found = masks.masks[0] == 1
        assert (found & disc).sum() / (found | disc).sum() > 0.97

    def test_a_collapsed_cut_stays_a_rectangle(self, tmp_path: Path) -> None:
        source = build_source("grabcut", {"least": 1.0})
        assert (self.make(source, picture(60, 60), Boxes.of([((5, 5, 55, 55), 1, False)]), tmp_path).masks[0] == 1).all()

    def test_small_box_of_a_large_image_keeps_its_detail(self, source: MaskSource, tmp_path: Path) -> None:
        image = np.random.default_rng(3).integers(20, 60, (2000, 2000, 3), dtype=np.uint8)
        image[700:760, 700:760] = picture(60, 60)
        masks = self.make(source, image, Boxes.of([((705, 705, 755, 755), 1, False)]), tmp_path)
        assert 0.4 < (masks.masks[0] == 1).mean() < 0.6  # the disc of radius 20 has 1257 of 2500 pixels


class TestFiles(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("files", {"folder": str(tmp_path)})

    def prepare(self, image: UInt8, sample: Sample, folder: Path) -> None:
        target = np.zeros(sample.size, np.uint8)
        assert sample.boxes is not None
        for (x0, y0, x1, y1), class_id in zip(sample.boxes.windows(sample.size), sample.boxes.classes, strict=True):
            target[y0:y1, x0:x1] = class_id
        target[-1:] = 255
        (folder / "one.png").write_bytes(palette_png(target))

    def test_reads_foreground_and_void(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(30, 40), Boxes.of([((5, 5, 20, 30), 3, False)]), tmp_path)
        assert (masks.masks[0][:-1] == 1).all()
        assert (masks.masks[0][-1] == 255).all()

    def test_mask_of_another_size(self, source: MaskSource, tmp_path: Path) -> None:
        (tmp_path / "one.png").write_bytes(palette_png(np.zeros((9, 9), np.uint8)))
        boxes = Boxes.of([((0, 0, 5, 5), 1, False)])
        with pytest.raises(MixsupError, match="9 x 9 pixels, its image 40 x 30; write it at the size"):
            source(picture(30, 40), boxes, Sample("one", Path("one.png"), (30, 40), boxes=boxes))

    def test_missing_mask(self, source: MaskSource) -> None:
        with pytest.raises(MixsupError, match=r"one\.png: cannot be read"):
            source.fingerprint(Sample("one", Path("one.png"), (30, 40)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "no mask source 'magic'; there are rectangle"),
        ("grabcut", {"iterations": 0}, "setting 'iterations'"),
        ("grabcut", {"colour": 1}, "setting 'colour'"),
        ("files", {}, "setting 'folder'"),
    ],
)
def test_bad_choice(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        build_source(name, options)
    assert len(str(caught.value).splitlines()) == 1
