"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from mixsup.errors import MixsupError
from mixsup.named import named as by_name
from mixsup.named import no_class_of
from mixsup.networks.base import Network
from mixsup.networks.deeplab_v2 import DeepLabV2, fetch_resnet101
from mixsup.networks.fcn import EncoderFCN
from mixsup.networks.vgg import FCN, DeepLabLargeFOV, fetch_vgg16
from mixsup.networks.weights import State, from_hub, load_into, read_state
from mixsup.networks.zoo import ARCHITECTURES, ZooNetwork
from mixsup.recipe import NetworkChoice

__all__ = ["NETWORKS", "Network", "build_network", "network_names"]

# The papers' networks: a builder and where the named weights come from. Everything else is the zoo's.
NETWORKS: dict[str, tuple[Callable[..., Network], Callable[[], State]]] = {
    "fcn": (FCN, fetch_vgg16),
    "deeplab-largefov": (DeepLabLargeFOV, fetch_vgg16),
    "deeplab-v2": (DeepLabV2, fetch_resnet101),
}


def network_names() -> str:
    """What `--network` takes, for messages."""
    return f"{', '.join(NETWORKS)}, or ARCHITECTURE+ENCODER with one of fcn, {', '.join(ARCHITECTURES)}, and your own as module:name"


def build_network(choice: NetworkChoice, pretrained: bool = True) -> Network:
    """Builds a network and, with `pretrained`, loads its backbone.

    Raises:
        MixsupError: an unknown name, options that it does not take, or weights that cannot be had or do not fit.
    """
    named, fresh = choice.weights == "imagenet", choice.weights == "none" or not pretrained
    own = ":" in choice.arch
    if own or (choice.arch in NETWORKS and not (choice.arch == "fcn" and choice.encoder is not None)):
        builder, fetch = (by_name(choice.arch, {}, "network", no_class_of(Network, settings=False)), None) if own else NETWORKS[choice.arch]
        if choice.encoder is not None:
            raise MixsupError(f"network {choice.arch!r} has its own encoder; leave {choice.encoder!r} out")
        try:
            network = builder(**choice.options)
        except (TypeError, KeyError, ValueError, RuntimeError) as error:
            raise MixsupError(f"network {choice.arch!r}: {' '.join(str(error).split())[:200]}; correct its options") from None
        if not fresh:
            if fetch is None and (named or not hasattr(network, "load_pretrained")):
                reason = "has no weights that go by a name" if named else "takes no weights (`load_pretrained`)"
                raise MixsupError(f"network {choice.arch!r} {reason}; set network.weights=none")
            state = from_hub(choice.arch, fetch) if named and fetch is not None else read_state(Path(choice.weights))
            try:
                network.load_pretrained(state)  # type: ignore[operator]
            except (KeyError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:150]
                raise MixsupError(
                    f"{choice.weights}: weights of another architecture than {choice.arch} ({reason}); give the right file"
                ) from None
    elif choice.arch == "fcn" or choice.arch in ARCHITECTURES:
        network = _on_encoder(choice, download=named and not fresh)
        if not named and not fresh:
            inner = network.backbone
            while isinstance(getattr(inner, "model", None), nn.Module):
                inner = inner.model  # type: ignore[assignment]  # timm's encoders are wrapped, some of them twice
            load_into(inner, read_state(Path(choice.weights)), choice.weights)
    else:
        raise MixsupError(f"no network {choice.arch!r}; there are {network_names()}")
    network.pretraining = choice.weights if choice.weights in ("none", "imagenet") else Path(choice.weights).name
    if choice.mean is not None:
        network.mean = choice.mean
    if choice.std is not None:
        network.std = choice.std
    if choice.weights == "none":
        network.freeze_batchnorm = False  # there are no statistics to keep
    if choice.freeze_batchnorm is not None:
        network.freeze_batchnorm = choice.freeze_batchnorm
    return network


def _on_encoder(choice: NetworkChoice, download: bool) -> Network:
    """An architecture of the zoo, or FCN, on an encoder of the zoo."""
    if choice.arch != "fcn":
        return ZooNetwork(
            choice.arch, choice.encoder or "resnet34", choice.encoder_options, choice.output_stride, choice.options, named_weights=download
        )
    assert choice.encoder is not None
    if choice.output_stride is not None:
        raise MixsupError("network 'fcn' takes no output_stride; how fine its scores are is `options: {stride: 8}`")
    try:
        return EncoderFCN(choice.encoder, choice.encoder_options, named_weights=download, **choice.options)
    except TypeError as error:
        raise MixsupError(f"network fcn+{choice.encoder}: {error}; correct its options") from None
