"""Every architecture of segmentation_models_pytorch with every encoder, its own and timm's (`tu-...`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import segmentation_models_pytorch as smp
import timm
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder
from torch import Tensor, nn

from mixsup.errors import MixsupError
from mixsup.networks.base import Network
from mixsup.networks.weights import from_hub

ARCHITECTURES: tuple[str, ...] = tuple(sorted(smp.MODEL_ARCHITECTURES_MAPPING))
_REFUSALS = (LookupError, ValueError, TypeError, RuntimeError, AttributeError, AssertionError, ArithmeticError)  # of the two libraries
# Encoders of segmentation_models_pytorch whose weights were not trained with ImageNet's mean and std: what timm, which has them as well, calls them.
_ALSO_TIMMS = {
    "xception": "legacy_xception",
    "inceptionv4": "inception_v4",
    "inceptionresnetv2": "inception_resnet_v2",
    **{name: name for name in ("dpn68", "dpn92", "dpn98", "dpn107", "dpn131")},
    "dpn68b": "dpn68",
}
_STRIDED = ("deeplabv3", "deeplabv3plus", "pan")  # architectures whose encoder takes an output stride


class ZooNetwork(Network):
    """An architecture whose last layer was taken off: its features are what it fed to it.

    Args:
        arch: a name in `ARCHITECTURES`.
        encoder: an encoder of the library, or `tu-` and any timm model that gives features.
        encoder_options: passed on to the encoder's constructor (timm's `pad_type`, say).
        output_stride: of the encoder, for DeepLab and PAN.
        options: further arguments of the architecture (decoder widths, say).
        named_weights: download the library's ImageNet weights.
    """

    multiple = 32

    def __init__(
        self,
        arch: str,
        encoder: str,
        encoder_options: dict[str, Any] | None = None,
        output_stride: int | None = None,
        options: dict[str, Any] | None = None,
        named_weights: bool = False,
    ) -> None:
        super().__init__()
        arguments: dict[str, Any] = {**(encoder_options or {}), **(options or {})}
        if output_stride is not None:
            if arch not in _STRIDED:
                raise MixsupError(f"network {arch!r} takes no output_stride; {', '.join(_STRIDED)} do")
            arguments["encoder_output_stride"] = output_stride
        if encoder.startswith("tu-swin"):
            arguments.setdefault("strict_img_size", False)  # the same, for Swin
        if arch == "pan":
            self.multiple = 128  # its pyramid halves three times behind the encoder

        def build(weights: str | None) -> Any:
            if arch == "dpt" and "dynamic_img_size" not in arguments:  # without it a ViT takes nothing but its pretraining's 224 pixels
                with suppress(TypeError):  # and some do not know it
                    return smp.create_model(arch, encoder, weights, classes=1, dynamic_img_size=True, **arguments)
            return smp.create_model(arch, encoder, weights, classes=1, **arguments)

        model = constructed(f"{arch}+{encoder}", build, named_weights)
        layers = list(next(part for part in model.segmentation_head.modules() if isinstance(part, nn.Sequential)))
        index, final = [(index, layer) for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)][-1]
        self.channels = final.in_channels
        self._kernel = final.kernel_size[0]
        model.segmentation_head = nn.Sequential(*layers[:index])  # DPT's has a hidden layer, the others' are empty
        model.requires_divisible_input_shape = False  # `multiple` sees to it
        self.model = model
        self.mean, self.std = normalisation(encoder, model.encoder)
        widths = list(model.encoder.out_channels)
        # Map k is at 1/2^k, and dilation makes only deep ones finer; all maps of a ViT share its patch size. Without width: stands for a missing one.
        first = 0 if isinstance(model.encoder, TimmViTEncoder) else 2
        full = [index for index, width in enumerate(widths) if width > 0]
        self._stages = ([index for index in full if index >= first] or full[-1:])[-4:]
        self._widths = tuple(widths[index] for index in self._stages)

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """The encoder."""
        return self.model.encoder  # type: ignore[no-any-return]

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.model(images), []

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        return self._widths

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The encoder's last four stages from 1/4 on, or the deepest one of an encoder too shallow to have any."""
        maps = self.model.encoder(images)
        if isinstance(maps, tuple):  # a ViT's maps come with its class tokens
            maps = maps[0]
        return [maps[index] for index in self._stages]

    def classifier(self, num_classes: int) -> nn.Module:
        return nn.Conv2d(self.channels, num_classes, self._kernel, padding=self._kernel // 2)


def constructed(what: str, build: Callable[[str | None], Any], named_weights: bool) -> Any:
    """What `build` makes of the name of its weights, with its errors in one line.

    Args:
        what: the network's name, for messages.
        build: takes `imagenet` or None.
        named_weights: download the library's ImageNet weights.

    Raises:
        MixsupError: the library refuses, or the weights cannot be had.
    """

    def plain() -> Any:
        try:
            return build(None)
        except _REFUSALS as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise MixsupError(f"network {what} cannot be built ({reason}); correct the encoder or its options") from None

    def with_weights() -> Any:
        try:
            return build("imagenet")
        except _REFUSALS:
            plain()  # what cannot be built without weights either is no matter of the hub
            raise

    return from_hub(what, with_weights) if named_weights else plain()


def normalisation(encoder: str, built: nn.Module) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std that the ImageNet weights of an encoder were trained with.

    Args:
        encoder: its name.
        built: the encoder itself; one of timm's knows.
    """
    settings = getattr(getattr(built, "model", None), "pretrained_cfg", None)
    name = encoder.removeprefix("timm-") if encoder.startswith("timm-tf_efficientnet_lite") else _ALSO_TIMMS.get(encoder)
    if settings is None and name is not None:
        settings = vars(timm.get_pretrained_cfg(name))
    return (tuple(settings["mean"]), tuple(settings["std"])) if settings else (Network.mean, Network.std)
