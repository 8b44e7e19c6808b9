"""`opencv`: the static saliency of OpenCV's contrib modules. Fast and rough; two methods.

`fine-grained` is Montabone and Soto (2010): centre against surround at several scales, on grey levels. `spectral-residual` is Hou and Zhang (CVPR 2007):
what the spectrum of the image has beyond its smooth average, on 64×64 pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Float32, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.masks.source import STRICT
from mixsup.saliency.source import SaliencySource, stretched

_CREATE = {"fine-grained": "StaticSaliencyFineGrained_create", "spectral-residual": "StaticSaliencySpectralResidual_create"}


@dataclass(frozen=True, config=STRICT)
class OpenCV(SaliencySource):
    """Static saliency by OpenCV, stretched to 0..1 over the image. An image of one colour gives zeros.

    Attributes:
        method: fine-grained or spectral-residual.
    """

    method: Literal["fine-grained", "spectral-residual"] = "fine-grained"
    name: ClassVar[str] = "opencv"
    in_workers: ClassVar[bool] = True

    def check(self) -> None:
        self._detector()

    def __call__(self, image: UInt8, sample: Sample) -> Float32:
        zeros = np.zeros(image.shape[:2], np.float32)
        if (image == image[0, 0]).all():
            return zeros  # the spectral residual of a constant is rounding noise
        done, found = self._detector().computeSaliency(np.ascontiguousarray(image[..., ::-1]))
        return stretched(np.asarray(found, np.float32).reshape(zeros.shape)) if done else zeros

    def _detector(self) -> Any:
        create = getattr(getattr(cv2, "saliency", None), _CREATE[self.method], None)
        if create is None:
            # A plain opencv-python, installed beside the contrib package, overwrites it.
            raise MixsupError(
                "source 'opencv' needs OpenCV's contrib modules, which this installation lacks; "
                "pip uninstall the other opencv packages, then pip install --force-reinstall opencv-contrib-python-headless"
            )
        return create()
