"""`files`: saliency maps that the user brings, one grey picture an image (DRFI's, or any network's)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image, ImageOps
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from mixsup.data.image import ImageError, image_size
from mixsup.data.sample import Float32, Sample, UInt8, quoted
from mixsup.errors import MixsupError
from mixsup.files import inside
from mixsup.masks.source import STRICT
from mixsup.saliency.source import SaliencySource, resized

_ENDINGS = (".png", ".jpg", ".jpeg")  # in the order in which they are looked for
_REMEDY = "write one grey PNG or JPG an image, named by its id"


@dataclass(frozen=True, config=STRICT)
class Files(SaliencySource):
    """Reads `folder`/<image id>.png (or .jpg, .jpeg): grey, black is 0 and white is 1, in 8 or 16 bit.

    A map of another size than its image is resized bilinearly to it. An id that leads out of the folder is refused; symbolic links inside it are
    followed, as they are of the user's own making.
    """

    folder: Annotated[str, AfterValidator(lambda text: str(Path(text).absolute()))]  # a worker has a working folder of its own
    name: ClassVar[str] = "files"
    in_workers: ClassVar[bool] = True

    def check(self) -> None:
        if not Path(self.folder).is_dir():
            raise MixsupError(f"{self.folder}: no such folder; {_REMEDY}, and give their folder")

    def _path(self, sample: Sample) -> Path:
        """The file of a sample.

        Raises:
            MixsupError: there is none, or the id leads out of the folder.
        """
        for ending in _ENDINGS:
            path = inside(Path(self.folder), f"{sample.id}{ending}")
            if path is None:
                raise MixsupError(f"image id {quoted(sample.id)} leads out of the folder of saliency maps; rename the image")
            try:
                if path.is_file():
                    return path
            except OSError:  # a name that is too long for the disk: no such file
                continue
        raise MixsupError(f"{self.folder}: no saliency map of image {quoted(sample.id)}; {_REMEDY}")

    def fingerprint(self, sample: Sample) -> bytes:
        path = self._path(sample)
        try:
            return path.read_bytes()
        except OSError as error:
            raise MixsupError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None

    def __call__(self, image: UInt8, sample: Sample) -> Float32:
        return resized(self._read(sample), (image.shape[0], image.shape[1]))

    def look(self, sample: Sample) -> None:
        self._read(sample)

    def _read(self, sample: Sample) -> Float32:
        path = self._path(sample)
        try:
            return read_map(path)
        except ImageError as error:
            raise MixsupError(f"{path}: {error}") from error


def read_map(path: Path) -> Float32:
    """Reads a grey picture of 1, 8 or 16 bit as h×w float32, from 0 (black) to 1 (white).

    Palettes and RGB are accepted where the colours are grey: many tools save grey pictures so.

    Raises:
        ImageError: the file is missing, broken, too large, neither PNG nor JPEG, or not grey.
    """
    image_size(path)  # refuses bombs, pipes, web pages and the like, with the words that other images get
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:
        raise ImageError(f"the saliency map is broken, or neither PNG nor JPEG ({error}); write it again as a grey PNG") from error
    if picture.mode in ("1", "L"):
        return np.asarray(np.asarray(picture.convert("L")) / 255, np.float32)
    if picture.mode.startswith("I"):  # 16 bit; Pillow widens it
        return np.asarray(np.clip(np.asarray(picture) / 65535, 0, 1), np.float32)
    if picture.mode in ("P", "RGB"):
        values = np.asarray(picture.convert("RGB"))
        if (values == values[..., :1]).all():
            return np.asarray(values[..., 0] / 255, np.float32)
    raise ImageError(f"a picture of kind {picture.mode} is no saliency map; save it as a grey PNG of 8 or 16 bit")
