"""Pictures of any kind come out as upright 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixsup.data.image import ImageError, image_size, read_image, read_mask

GREY = np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)


def picture() -> Image.Image:
    """40 x 30, four flat colours, so that JPEG keeps them."""
    values = np.zeros((30, 40, 3), np.uint8)
    values[:15, :20], values[:15, 20:], values[15:, :20], values[15:, 20:] = (250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 240)
    return Image.fromarray(values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_all_exif_rotations_give_the_same_picture(tmp_path: Path, orientation: int, suffix: str) -> None:
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = picture()
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    stored.save(
        path, exif=exif, **({"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0} if suffix == "jpg" else {})
    )
    assert image_size(path) == (30, 40)
    image = read_image(path)
    assert image.shape == (30, 40, 3)
    assert np.abs(image.astype(int) - np.asarray(picture()).astype(int)).max() < (60 if suffix == "jpg" else 1)


def test_rgb(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(picture()))


def test_grey(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), np.repeat(GREY[..., None], 3, axis=2))


def test_cmyk(tmp_path: Path) -> None:
    picture().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (30, 40, 3)
    assert image[2, 2, 0] > 200
    assert image[2, 2, 1] < 60


def test_palette(tmp_path: Path) -> None:
    picture().quantize(4).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - np.asarray(picture()).astype(int)).max() < 20


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.arange(40)[None, :] < 20, 0, 255).astype(np.uint8).repeat(30, axis=0)))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read[:, :20] == 255).all()
    np.testing.assert_array_equal(read[:, 20:], np.asarray(picture())[:, 20:])


def test_one_bit_and_floating_point(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}
    Image.fromarray(GREY.astype(np.float32) / 7 - 3).save(tmp_path / "float.tif")
    read = read_image(tmp_path / "float.tif")
    assert read.min() == 0
    assert read.max() == 255


def test_a_broken_exif_block_is_no_fault(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert image_size(tmp_path / "a.jpg") == (30, 40)
    assert read_image(tmp_path / "a.jpg").shape == (30, 40, 3)


class TestMasks:
    def test_palette_indices(self, tmp_path: Path) -> None:
        image = Image.fromarray(GREY)
        image.putpalette(list(range(256)) * 3)
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY)

    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
    def test_ids_in_grey_of_any_depth(self, tmp_path: Path, mode: str) -> None:
        image = Image.fromarray(GREY.astype(np.uint16)) if mode == "I;16" else Image.fromarray(GREY).convert(mode)
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY)

    def test_one_bit(self, tmp_path: Path) -> None:
        Image.fromarray(GREY > 100).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), GREY > 100)

    def test_colours_and_large_ids_are_refused(self, tmp_path: Path) -> None:
        picture().save(tmp_path / "colours.png")
        Image.fromarray(GREY.astype(np.uint16) * 100).save(tmp_path / "large.png")
        for name in ("colours.png", "large.png"):
            with pytest.raises(ImageError, match="not class ids; save the mask as an 8-bit palette or grey PNG of ids"):
                read_mask(tmp_path / name)
