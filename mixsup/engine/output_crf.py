"""The fully connected CRF on the output of a network, as DeepLab-CRF has it and BoxSup (section 3) uses it: only at test time, never in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from mixsup.crf import mean_field
from mixsup.crf.settings import Settings
from mixsup.data.sample import UInt8
from mixsup.masks.source import STRICT
from mixsup.settings import checked


@dataclass(frozen=True, config=STRICT)
class OutputCRF:
    """Settings of the CRF on predictions, and the call that applies it.

    The numbers are common in code for DeepLab-CRF-LargeFOV, whose authors found theirs by cross-validation on VOC; they are given here from memory, and
    other scripts have 49 for `theta_alpha` (`mixsup.refresh.sdi`). Distances are in pixels of what the CRF sees, for images of about 500 pixels.

    Attributes:
        iterations, w1, theta_alpha, theta_beta, w2, theta_gamma: see `mixsup.crf.mean_field`.
        max_side: a longer image is reduced to this many pixels on its longer side, which bounds memory; the result is enlarged.
    """

    iterations: int = 10
    w1: float = 4.0
    theta_alpha: float = 121.0
    theta_beta: float = 5.0
    w2: float = 3.0
    theta_gamma: float = 3.0
    max_side: Annotated[int, Field(ge=1)] = 1000

    def __post_init__(self) -> None:
        # The same check as the inference makes, but before the first image.
        Settings(self.iterations, self.w1, self.theta_alpha, self.theta_beta, self.w2, self.theta_gamma, 0.0)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) at which the CRF works on an image of (H, W)."""
        scale = min(1.0, self.max_side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def __call__(self, probabilities: Tensor, image: UInt8) -> Tensor:
        """Sharpens predictions along the edges of the image.

        Args:
            probabilities: C×h×w at `size(...)` of the image; the unary energy is -log of them.
            image: H×W×3 uint8.

        Returns:
            C×h×w float32 probabilities, on the device of `probabilities`.
        """
        height, width = int(probabilities.shape[-2]), int(probabilities.shape[-1])
        if image.shape[:2] != (height, width):
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        # A probability that underflowed to 0 is unlikely, not forbidden.
        unary = -probabilities.float().clamp(min=torch.finfo(torch.float32).tiny).log()
        return mean_field(
            unary, np.ascontiguousarray(image), iterations=self.iterations, w1=self.w1, theta_alpha=self.theta_alpha, theta_beta=self.theta_beta,
            w2=self.w2, theta_gamma=self.theta_gamma,
        )  # fmt: skip


def build_crf(crf: bool | Mapping[str, Any]) -> OutputCRF | None:
    """The CRF that `crf=` and `--crf` ask for.

    Args:
        crf: False for none, True for the settings of `OutputCRF`, or a dictionary of those that differ.

    Raises:
        MixsupError: a setting that it does not have, or a value outside its range.
    """
    if crf is False:
        return None
    with checked("CRF", OutputCRF, "--set"):
        return OutputCRF(**({} if crf is True else crf))
