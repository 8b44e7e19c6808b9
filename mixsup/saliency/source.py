"""What every saliency source is: a small object of settings that turns one image into a map of how much each pixel stands out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt

from mixsup.data.sample import Float32, Sample, UInt8


class SaliencySource(ABC):
    """Base of all sources; subclasses are frozen (pydantic) dataclasses whose fields are the settings.

    Attributes:
        name: the key in `SALIENCY`.
        version: raise it when the same settings begin to give other maps, so that cached ones are made anew.
        in_workers: whether processes beside the one that trains may be asked, many at once; not where the source holds a network on a device.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    in_workers: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, image: UInt8, sample: Sample) -> Float32:
        """Makes the map.

        Args:
            image: H×W×3 uint8, upright RGB; any size from 1×1.
            sample: the sample that it comes from, for sources that read files.

        Returns:
            H×W float32 from 0 (ground) to 1 (object), no NaN. The same image and settings give the same map.

        Raises:
            MixsupError: this image cannot have a map; the text says why.
        """

    def check(self) -> None:  # noqa: B027, most sources need nothing
        """Asks whether the source can work at all, once before the first image.

        Raises:
            MixsupError: a package, a model or a folder that it needs is missing; the text says what to do.
        """

    def look(self, sample: Sample) -> None:  # noqa: B027, most sources need nothing but the image
        """Asks, before training, whether a sample can have a map.

        Raises:
            MixsupError: what the source has to have for this sample is missing or broken; the text says what to do.
        """

    def settings(self) -> dict[str, Any]:
        """All that decides the result besides the image."""
        return asdict(self) if is_dataclass(self) and not isinstance(self, type) else {}

    def fingerprint(self, sample: Sample) -> bytes:
        """Content of further files that decide the result for this sample."""
        return b""


def stretched(values: npt.NDArray[Any]) -> Float32:
    """Values brought to 0..1 by their own minimum and maximum; NaN and infinities count as the minimum.

    A map that says the same everywhere (up to rounding) says nothing stands out: zeros.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.float32)
    low, high = float(values[finite].min()), float(values[finite].max())
    if high - low <= 1e-6 * max(1.0, abs(high)):
        return np.zeros(values.shape, np.float32)
    scaled = (np.where(finite, values, low) - low) / (high - low)
    return np.asarray(np.clip(scaled, 0, 1), np.float32)


def resized(saliency: Float32, size: tuple[int, int]) -> Float32:
    """A map of any size at `size` (H, W), bilinear; float32, never outside 0..1."""
    if saliency.shape != size:
        saliency = np.asarray(cv2.resize(saliency, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.float32).reshape(size)
    return np.clip(saliency, 0, 1)
