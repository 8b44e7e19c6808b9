"""What every mask source is: a small object of settings that turns one image with boxes into per-box masks."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.named import own_place

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # of the settings: a misspelt one is an error, not a silence


class MaskSource(ABC):
    """Base of all sources; subclasses are frozen (pydantic) dataclasses whose fields are the settings.

    Attributes:
        name: the key in `SOURCES`.
        version: raise it when the same settings begin to give other masks, so that cached ones are made anew.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        """Makes the masks.

        Args:
            image: H×W×3 uint8, upright RGB.
            boxes: N boxes inside the image; N may be 0.
            sample: the sample that they come from, for sources that read files; its boxes may be None where `boxes` were derived.

        Returns:
            N masks in the order of the boxes.

        Raises:
            MixsupError: this image cannot have masks; the text says why.
        """

    @property
    def key(self) -> str:
        """The name under which the masks are kept; a user's own class may be called as another one is."""
        kind = type(self)
        return self.name if kind.__module__.partition(".")[0] == "mixsup" else f"{self.name} {kind.__module__}:{kind.__qualname__}"

    def check(self) -> None:  # noqa: B027, most sources need nothing
        """Asks whether the source can work at all, once before the first image.

        Raises:
            MixsupError: a package, a checkpoint or a folder that it needs is missing; the text says what to do.
        """

    def settings(self) -> dict[str, Any]:
        """All that decides the result besides image and boxes; part of the cache's key."""
        return asdict(self) if is_dataclass(self) and not isinstance(self, type) else {}

    def fingerprint(self, sample: Sample) -> bytes:
        """Content of further files that decide the result for this sample; part of the cache's key."""
        return b""


def identity(*parts: MaskSource) -> bytes:
    """What decides the masks of the sources that another one is made of; its fingerprint."""
    return as_key([[part.key, part.version, part.settings()] for part in parts])


def as_key(settings: object) -> bytes:
    """Settings as a part of a cache's key, of whatever types: those that JSON does not know by their text."""
    return json.dumps(
        settings, sort_keys=True, default=lambda value: sorted(map(str, value)) if isinstance(value, Set) else str(value)
    ).encode()


def refuse_masks(found: object, boxes: Boxes, size: tuple[int, int]) -> None:
    """Refuses what is not a mask of each box: of a method of the user's own, wrong ones would be taught without a word.

    Raises:
        MixsupError: what is wrong.
    """
    remedy = "return BoxMasks.of(boxes, size, masks)"
    if not isinstance(found, BoxMasks):
        raise MixsupError(f"gives a {type(found).__name__} and no BoxMasks; {remedy}")
    wanted: dict[str, Any] = {"size": size, "windows": boxes.windows(size), "classes": boxes.classes, "crowd": boxes.crowd}
    if not all(np.array_equal(getattr(found, name), value) for name, value in wanted.items()):
        raise MixsupError(
            f"gives {len(found.masks)} masks, or their places or classes, that are not those of the {len(boxes)} boxes; {remedy}"
        )
    refuse_values(found)


def refuse_values(found: BoxMasks) -> None:
    """Refuses masks of other values than background, foreground and ignored.

    Raises:
        MixsupError: there are some.
    """
    if not all(mask.dtype == np.uint8 and ((mask <= FOREGROUND) | (mask == IGNORE)).all() for mask in found.masks):
        raise MixsupError("gives masks that hold more than 0 (background), 1 (the object) and 255 (ignored), as uint8; convert them")


def fault(source: MaskSource, sample: Sample, error: Exception) -> Problem:
    """What a source, or reading the files of an image, failed with, as a problem of that image."""
    if isinstance(error, DataError) and error.problems:
        return error.problems[0]
    if isinstance(error, MixsupError):
        message, _, remedy = str(error).rpartition("; ")
        return Problem(str(sample.image), "", message or str(error), remedy or "leave it out", sample.id)
    said, own = " ".join(str(error).split())[:200], own_place(error, {type(source).__call__.__code__.co_filename})
    kind = type(error).__name__ if type(error).__module__ == "builtins" else f"{type(error).__module__}.{type(error).__name__}"
    remedy = "free memory, or use a smaller image" if isinstance(error, MemoryError) else "leave the image out, or report it"
    if own is not None and source.key != source.name and not isinstance(error, MemoryError):
        said, remedy = f"{said} ({own})", "correct it there, or leave the image out"
    return Problem(str(sample.image), "", f"source {source.name!r} failed on it, {kind}{': ' if said else ''}{said}", remedy, sample.id)
