"""What every mask source is: a small object of settings that turns one image with boxes into per-box masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.masks.box_masks import BoxMasks

STRICT = ConfigDict(extra="forbid")  # of the settings: a misspelt one is an error, not a silence


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

    def settings(self) -> dict[str, Any]:
        """All that decides the result besides image and boxes; part of the cache's key."""
        return asdict(self) if is_dataclass(self) and not isinstance(self, type) else {}

    def fingerprint(self, sample: Sample) -> bytes:
        """Content of further files that decide the result for this sample; part of the cache's key."""
        return b""
