"""What every refresh rule is, and what it gets to see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import cv2
import numpy as np

from mixsup.data.sample import Float32, UInt8
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.proposals import Proposals
from mixsup.masks.source import MaskSource


@dataclass(frozen=True)
class Case:
    """One image at a refresh.

    Attributes:
        image: H×W×3 uint8.
        scores: C×h×w float32 class probabilities of the network as it is, at the working size of the refresh.
        first: the masks that the source made before training.
        present: the masks of the round that ends.
        draw: all randomness of a rule; a function of (seed, round, image), so that nothing has to be kept for a resumed run.
        pool: the candidates of the image, for a rule that asked for them (`RefreshRule.pool`).
    """

    image: UInt8
    scores: Float32
    first: BoxMasks
    present: BoxMasks
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    pool: Proposals | None = None

    def probabilities(self, classes: Sequence[int] | None = None, size: tuple[int, int] | None = None) -> Float32:
        """Probabilities of some classes (default: all) at another size (default: the image's own), bilinear, K×H×W float32."""
        height, width = size or self.first.size
        chosen = self.scores if classes is None else self.scores[list(classes)]
        if chosen.shape[1:] == (height, width):
            return chosen
        return np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in chosen])


class RefreshRule(ABC):
    """Base of all rules; subclasses are frozen (pydantic) dataclasses whose fields are the settings.

    Attributes:
        name: the key in `RULES`.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, case: Case) -> BoxMasks:
        """New masks for the boxes of one image.

        Returns:
            As many masks as `case.first` has, in the same order and of the same classes; crowds stay as they were.
        """

    def pool(self, masks: MaskSource) -> BoxPool | None:
        """The source of the candidates that the rule chooses from, given the source of first masks; None for a rule that needs none.

        Raises:
            MixsupError: the rule cannot work with these first masks.
        """
        return None
