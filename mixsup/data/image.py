"""Image files of any kind in, upright 8-bit RGB out."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mixsup.data.sample import UInt8
from mixsup.errors import MixsupError

MAX_PIXELS = 300_000_000  # a 17k × 17k aerial picture passes; a decompression bomb does not
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")  # no PostScript, no font files: data is untrusted
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap width and height

Image.MAX_IMAGE_PIXELS = None  # `_open` has a limit of its own, which says what to do


class ImageError(MixsupError):
    """An image file that cannot be used. The text says why, without the path."""


def _open(path: Path) -> Image.Image:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise ImageError("not a regular file; bring the image itself")
        if status.st_size == 0:
            raise ImageError("the file is empty; fetch it again")
        image = Image.open(path, formats=_FORMATS)
    except FileNotFoundError:
        raise ImageError("no such file; check the path or remove the entry") from None
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_not_an_image(path, error)) from error
    if image.width * image.height == 0:
        image.close()
        raise ImageError("the image has no pixel; fetch it again")
    if image.width * image.height > MAX_PIXELS:
        width, height = image.size
        image.close()
        raise ImageError(f"{width} x {height} pixels is beyond the limit of {MAX_PIXELS:,}; cut it into tiles")
    return image


def _not_an_image(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as handle:
            head = handle.read(256).lstrip().lower()
    except OSError as unreadable:
        return f"cannot be opened ({unreadable.strerror}); check its permissions"
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "this is a web page, not an image (a failed download?); fetch it again"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be opened ({error.strerror}); check its permissions"
    return "not an image of a known format; convert it to JPEG or PNG"


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright image, read from the header alone.

    Raises:
        ImageError: the file is missing, empty, no image, or larger than `MAX_PIXELS`.
    """
    with _open(path) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width, height = image.size
        orientation = 1
        with suppress(Exception):  # EXIF blocks are often broken; without one the image is upright
            orientation = image.getexif().get(0x0112, 1)
        if image.format == "TIFF":  # some releases of Pillow have turned its size by now, and others have not
            with suppress(Exception):
                width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
    return (width, height) if orientation in _TURNED else (height, width)


def read_image(path: Path) -> UInt8:
    """Reads an image as upright RGB, H×W×3 uint8.

    Grey, palette, transparent (over white), CMYK and 16-bit pictures are converted, and EXIF rotation is applied. 16-bit values are
    scaled by 1/257 (the whole range), floating point ones from their own minimum and maximum.

    Raises:
        ImageError: the file is missing, empty, truncated, no image, or larger than `MAX_PIXELS`.
    """
    with _open(path) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about odd EXIF or palette blocks help nobody here
        try:
            image.load()
        except Exception as error:
            raise ImageError(f"the image is broken or cut short ({error}); fetch it again") from error
        upright = image
        with suppress(Exception):
            upright = ImageOps.exif_transpose(image)
        try:
            return np.array(to_rgb(upright), np.uint8)
        except Exception as error:
            raise ImageError(f"pixels of kind {image.mode} cannot become RGB ({error}); convert it to JPEG or PNG") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright picture of any kind as 8-bit RGB, see `read_image`."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit or 32-bit grey; Pillow's own conversion clips at 255
        values = np.asarray(image, np.float64)
        top = 65535.0 if values.size == 0 or values.max() <= 65535 else float(values.max())
        return Image.fromarray(np.round(np.clip(values, 0, top) * (255.0 / top)).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        return Image.fromarray(np.round((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _lossy(path: Path) -> bool:
    """Whether a WebP keeps its pixels as VP8, which is lossy, and not as VP8L."""
    with path.open("rb") as handle:
        handle.seek(12)
        while len(chunk := handle.read(8)) == 8 and chunk[:4] not in (b"VP8 ", b"VP8L"):
            size = int.from_bytes(chunk[4:], "little")
            handle.seek(size + size % 2, 1)
    return chunk[:4] == b"VP8 "


def _by_colour(pixels: UInt8, colours: Mapping[int, int]) -> tuple[UInt8, list[int]]:
    """H×W class ids of H×W×3 colours, and the colours that have none."""
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    known = np.array(sorted(colours), np.uint32)
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    there = known[place] == packed
    ids = np.array([colours[int(colour)] for colour in known], np.uint8)[place]
    return ids, [] if there.all() else [int(packed[~there].flat[0])]


def palette_of(path: Path) -> dict[int, int]:
    """The colours (0xRRGGBB) of the ids in a palette picture, read from the header alone; empty where there is none, or one of greys.

    Raises:
        ImageError: the file is missing, empty or no image.
    """
    with _open(path) as image:
        colours = np.array(image.getpalette() or [], np.int64).reshape(-1, 3)
    if (colours == colours[:, :1]).all():
        return {}
    return dict(enumerate((colours @ [1 << 16, 1 << 8, 1]).tolist()))


def read_mask(path: Path, colours: Mapping[int, int] | None = None) -> UInt8:
    """Reads a mask of class ids, H×W uint8; palette images give their indices.

    Args:
        path: of the file.
        colours: class ids by colour (0xRRGGBB), for masks of colours; a palette whose colours are among them counts by these, not by its indices.

    Raises:
        ImageError: the file is missing, broken, a JPEG or a lossy WebP, or its pixels are colours rather than ids up to 255, or none of `colours`.
    """
    with _open(path) as image:
        try:
            image.load()
        except Exception as error:
            raise ImageError(f"the mask is broken or cut short ({error}); write it again") from error
        lossy = "JPEG" if image.format == "JPEG" else "lossy WebP" if image.format == "WEBP" and _lossy(path) else None
        if lossy is not None:
            raise ImageError(f"a {lossy} does not keep class ids as they were written; save the mask as an 8-bit PNG of ids")
        if colours and image.mode in ("P", "RGB", "RGBA"):
            found, unknown = _by_colour(np.asarray(image.convert("RGB")), colours)
            if not unknown:
                return found
            if image.mode != "P":
                red, green, blue = unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255
                raise ImageError(f"colour {red},{green},{blue} is not in the list of colours; add it to labelmap.txt, or correct the mask")
        if image.mode in ("P", "L", "1"):
            return np.array(image, np.uint8)
        try:
            values = np.asarray(image)
        except Exception as error:
            raise ImageError(f"pixels of kind {image.mode} are no class ids ({error}); save the mask as an 8-bit PNG of ids") from error
        if values.ndim == 3 and values.shape[2] >= 3 and (values[..., :1] == values[..., :3]).all():
            return np.ascontiguousarray(values[..., 0]).astype(np.uint8)  # a grey picture saved as RGB
        if values.ndim == 2 and values.size and values.min() >= 0 and values.max() <= 255:
            return values.astype(np.uint8)
    raise ImageError("pixels are colours or ids above 255, not class ids; save the mask as an 8-bit palette or grey PNG of ids")
