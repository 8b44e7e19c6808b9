"""What every refresh rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from mixsup.data.sample import Float32, UInt8
from mixsup.masks.box_masks import BoxMasks


class RefreshRule(ABC):
    """Base of all rules; subclasses are frozen (pydantic) dataclasses whose fields are the settings."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, probabilities: Float32, image: UInt8, first: BoxMasks, present: BoxMasks) -> BoxMasks:
        """New masks for the boxes of one image.

        Args:
            probabilities: C×H×W float32, of the network at the image's own size.
            image: H×W×3 uint8.
            first: the masks that the source made before training.
            present: the masks of the round that ends.

        Returns:
            As many masks as `first` has, in the same order and of the same classes.
        """
