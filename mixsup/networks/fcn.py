"""FCN (Long, Shelhamer, Darrell; CVPR 2015), 32s, 16s and 8s: what all have in common, and the one on any encoder.

Two later habits: fc6 is padded by 3, so that a map keeps its size without the 100 pixels of padding around the image, and scores are enlarged
bilinearly and not by a learnt deconvolution that starts bilinear.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from mixsup.errors import MixsupError
from mixsup.networks.base import Network, resize_scores
from mixsup.networks.zoo import constructed, normalisation


class SkipScores(Network):
    """A network that scores its deepest map at 1/32 and adds the scores of the maps at 1/16 and 1/8.

    Args:
        stride: of the finest scores: 32, 16 or 8.

    Attributes:
        pool_channels: of the maps at 1/16 and 1/8.

    Raises:
        MixsupError: another stride.
    """

    multiple = 32
    pool_channels: tuple[int, int]

    def __init__(self, stride: int) -> None:
        super().__init__()
        if stride not in (32, 16, 8):
            raise MixsupError(f"network fcn: stride {stride} is not 32, 16 or 8")
        self.stride = stride

    @property
    def _used(self) -> int:
        """How many of the two finer maps are scored."""
        return {32: 0, 16: 1, 8: 2}[self.stride]

    def skips(self, num_classes: int) -> nn.Module | None:
        layers = nn.ModuleList([nn.Conv2d(width, num_classes, 1) for width in self.pool_channels[: self._used]])
        for layer in layers:
            # The paper's start: the finer stream adds nothing until it has learned to.
            assert isinstance(layer, nn.Conv2d)
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        return layers if len(layers) else None

    def fuse(self, scores: Tensor, earlier: list[Tensor], skips: nn.Module | None) -> Tensor:
        assert skips is not None or not earlier
        for index, pool in enumerate(earlier):
            assert isinstance(skips, nn.ModuleList)
            fine = skips[index](pool)
            scores = resize_scores(scores, (fine.shape[-2], fine.shape[-1])) + fine
        return scores


class EncoderFCN(SkipScores):
    """FCN on an encoder that halves five times, whose deepest map takes the place of fc7.

    Args:
        encoder: an encoder of segmentation_models_pytorch, or `tu-` and a timm model.
        encoder_options: passed on to the encoder's constructor.
        stride: 32, 16 or 8.
        named_weights: download the library's ImageNet weights.

    Raises:
        MixsupError: no such encoder, options that it does not take, or maps that are not at 1/8, 1/16 and 1/32.
    """

    def __init__(self, encoder: str, encoder_options: dict[str, Any] | None = None, stride: int = 8, named_weights: bool = False) -> None:
        super().__init__(stride)
        self.backbone = constructed(
            f"fcn+{encoder}", lambda weights: smp.encoders.get_encoder(encoder, weights=weights, **(encoder_options or {})), named_weights
        )
        widths: list[int] = list(self.backbone.out_channels)  # type: ignore[arg-type]
        if len(widths) != 6 or not all(widths[3:]) or self.backbone.output_stride != 32:
            raise MixsupError(
                f"network fcn+{encoder}: FCN adds scores at 1/32, 1/16 and 1/8, and this encoder has no such maps; use a convolutional one"
            )
        self.channels, self.pool_channels = widths[5], (widths[4], widths[3])
        self.mean, self.std = normalisation(encoder, self.backbone)
        self._stages = [index for index in (2, 3, 4, 5) if widths[index] > 0]
        self._widths = tuple(widths[index] for index in self._stages)

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.backbone(images)
        return maps[5], [maps[4], maps[3]][: self._used]

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        return self._widths

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The encoder's stages from 1/4 on."""
        maps = self.backbone(images)
        return [maps[index] for index in self._stages]
