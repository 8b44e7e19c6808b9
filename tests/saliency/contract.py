"""What every saliency source must do. A new source inherits all of it with a class of three lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixsup.data.sample import Bool, Float32, Sample, UInt8
from mixsup.saliency.source import SaliencySource


def disc(height: int, width: int, radius: float = 0.25) -> Bool:
    """A disc in the middle; the radius in parts of the shorter side."""
    rows, columns = np.indices((height, width))
    return (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (radius * min(height, width)) ** 2


def picture(height: int, width: int, seed: int = 0) -> UInt8:
    """A bright warm disc on a dark textured ground."""
    generator = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    texture = 60 + 25 * np.sin(columns / 5) * np.cos(rows / 7)
    image = np.stack([texture, texture + 15, texture + 25], axis=2)
    image[disc(height, width)] = [215, 160, 60]
    return np.clip(image + generator.normal(0, 10, image.shape), 0, 255).astype(np.uint8)


def sample_of(image: UInt8, name: str = "one") -> Sample:
    return Sample(id=name, image=Path(f"{name}.jpg"), size=(image.shape[0], image.shape[1]))


class SaliencySourceContract:
    """Subclasses give `source`, a fixture; one that reads files also `prepare`."""

    flat_is_zero = True  # of sources that look at the image and compare

    @pytest.fixture
    def source(self, tmp_path: Path) -> SaliencySource:
        raise AssertionError("the subclass gives the source")

    def prepare(self, image: UInt8, sample: Sample, folder: Path) -> None:
        """Puts files there that the source reads for this sample."""

    def make(self, source: SaliencySource, image: UInt8, folder: Path) -> Float32:
        sample, before = sample_of(image), image.copy()
        self.prepare(image, sample, folder)
        source.check()
        saliency = source(image, sample)
        assert saliency.shape == image.shape[:2]
        assert saliency.dtype == np.float32
        assert np.isfinite(saliency).all()
        assert saliency.min() >= 0
        assert saliency.max() <= 1
        assert np.array_equal(image, before)
        return saliency

    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 200), (16, 16), (33, 50), (400, 301)])
    def test_sizes(self, source: SaliencySource, size: tuple[int, int], tmp_path: Path) -> None:
        self.make(source, picture(*size), tmp_path)
        self.make(source, np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8), tmp_path)

    @pytest.mark.parametrize("size", [(1, 7), (33, 50)])
    @pytest.mark.parametrize("level", [0, 77, 255])
    def test_one_colour(self, source: SaliencySource, size: tuple[int, int], level: int, tmp_path: Path) -> None:
        saliency = self.make(source, np.full((*size, 3), level, np.uint8), tmp_path)
        if self.flat_is_zero:
            assert not saliency.any()

    def test_grey_picture(self, source: SaliencySource, tmp_path: Path) -> None:
        self.make(source, np.repeat(picture(40, 60)[..., :1], 3, axis=2), tmp_path)

    def test_view_of_a_larger_array(self, source: SaliencySource, tmp_path: Path) -> None:
        """A flipped crop, as an augmentation gives it: not contiguous."""
        view = picture(60, 80)[5:45, ::-1][:, 3:63]
        assert np.array_equal(self.make(source, view, tmp_path), self.make(source, view.copy(), tmp_path))

    def test_same_image_same_map(self, source: SaliencySource, tmp_path: Path) -> None:
        one, two = (self.make(source, picture(48, 64), tmp_path) for _ in range(2))
        assert np.array_equal(one, two)

    def test_name_and_settings(self, source: SaliencySource) -> None:
        from mixsup.saliency import SALIENCY, build_saliency

        assert SALIENCY[source.name] is type(source)
        assert build_saliency(source.name, source.settings()) == source
