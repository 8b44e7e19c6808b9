"""`files`: masks that the user brings, one index PNG an image (from any tool, another trainer, or `mixsup masks`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from mixsup.data.image import ImageError, read_mask
from mixsup.data.sample import VOID, Boxes, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.masks.source import STRICT, MaskSource


@dataclass(frozen=True, config=STRICT)
class Files(MaskSource):
    """Reads `folder`/<image id>.png, pixels are class ids of the data set, 255 is ignored.

    Inside its box a pixel of the box's class is foreground and every other one background. What the file says outside the boxes is not used: the
    boxes are labels, the file is a guess. A file in which no box of its image has a pixel of its class is refused: it would teach that there is nothing.
    """

    folder: Annotated[str, AfterValidator(lambda text: str(Path(text).absolute()))]  # a worker has a working folder of its own
    name: ClassVar[str] = "files"

    def check(self) -> None:
        if not Path(self.folder).is_dir():
            raise MixsupError(f"{self.folder}: no such folder; give the setting `folder` one that has a PNG an image, named by its id")

    def _path(self, sample: Sample) -> Path:
        return Path(self.folder) / f"{sample.id}.png"

    def fingerprint(self, sample: Sample) -> bytes:
        try:
            return self._path(sample).read_bytes()
        except OSError as error:
            raise MixsupError(f"{self._path(sample)}: cannot be read ({error.strerror}); write one PNG an image, named by its id") from None

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        path = self._path(sample)
        try:
            ids = read_mask(path)
        except ImageError as error:
            raise MixsupError(f"{path}: {error}") from error
        size = (image.shape[0], image.shape[1])
        if ids.shape != size:
            found, wanted = (f"{width} x {height}" for height, width in (ids.shape, size))
            raise MixsupError(f"{path}: the mask has {found} pixels, its image {wanted}; write it at the size of the upright image")
        masks = []
        for (x0, y0, x1, y1), class_id, crowd in zip(boxes.windows(size), boxes.classes, boxes.crowd, strict=True):
            part = ids[y0:y1, x0:x1]
            mask = np.where(part == VOID, IGNORE, np.where(part == class_id, FOREGROUND, 0)).astype(np.uint8)
            masks.append(np.full_like(mask, FOREGROUND) if crowd else mask)
        real = [mask for mask, crowd in zip(masks, boxes.crowd, strict=True) if not crowd]
        if real and not any((mask == FOREGROUND).any() for mask in real):
            shown = ", ".join(map(str, np.unique(ids)[:8]))
            raise MixsupError(
                f"{path}: no box has a pixel of its class in it (its pixels are {shown}); pixels are class ids of the data set, 0 the background, 255 ignored"
            )
        return BoxMasks.of(boxes, size, masks)
