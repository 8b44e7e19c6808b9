"""The model that training and prediction share: normalisation + network + head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixsup.errors import MixsupError
from mixsup.heads import build_head
from mixsup.networks import build_network
from mixsup.networks.base import Network, OnNetwork, resize_scores
from mixsup.recipe import NetworkChoice

ONE_VALUE = "a norm of this network has one value a channel to go by; raise --batch (or lower --devices) to 2 images a device, or --size"


class SegmentationModel(OnNetwork):
    """RGB in, class scores of the same size out.

    Args:
        network: features.
        head: what stands between features and scores.
        num_classes: C, background included.

    Attributes:
        carried: parts that another run has trained (`--init`), by the beginning of their parameters' names; they learn at the rate of pretrained layers.
    """

    carried: tuple[str, ...] = ()

    @property
    def scores_carried(self) -> bool:
        """Whether another run has taught the layers that score classes."""
        return any(part.startswith("head.") for part in self.carried)

    def __init__(self, network: Network, head: nn.Module, num_classes: int) -> None:
        super().__init__(network)
        self.head, self.num_classes = head, num_classes
        self.skips = network.skips(num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: B×3×H×W, RGB, uint8 0..255 or float 0..1; any H and W.

        Returns:
            `scores`: B×C×H×W before the softmax; whatever else the head gives, by name. Maps besides the scores stay small; `cell`, B×2 float32, is
            what one of their cells covers, in pixels down and across.
        """
        size = (images.shape[-2], images.shape[-1])
        images = self.prepare(images)
        padded = (images.shape[-2], images.shape[-1])
        features, earlier = self.network.features(images)  # B×F×h×w
        outputs: dict[str, Tensor] = self.head(features)
        scores = self.network.fuse(outputs["scores"], earlier, self.skips)  # B×C×h'×w'
        if len(outputs) > 1:
            cells = [
                outputs["scores"].new_full((len(images), 1), padded[axis] / features.shape[axis - 2], dtype=torch.float32)
                for axis in (0, 1)
            ]
            outputs["cell"] = torch.cat(cells, dim=1)
        # Maps cover the padded image; enlarge to that, then cut, or predictions would shift.
        outputs["scores"] = resize_scores(scores.float(), padded)[..., : size[0], : size[1]]
        return outputs

    def change_head(self, name: str) -> None:
        """Another head in place of this one; what both have by the same name and shape is taken over (the classifier, for heads of one architecture)."""
        head, old = build_head(name, self.network, self.num_classes), self.head.state_dict()
        own = head.state_dict()
        head.load_state_dict({key: value for key, value in old.items() if key in own and own[key].shape == value.shape}, strict=False)
        self.head = head.to(next(self.parameters()).device)
        self.carried = tuple(part for part in self.carried if not part.startswith("head."))


def refuse_size(model: SegmentationModel, choice: NetworkChoice, size: int) -> None:
    """A trial pass of a square view and of one that is longer than wide: some encoders take nothing but their pretraining's size, or squares alone.

    Args:
        model: of any mode, in which it is left.
        choice: of its network, for the message.
        size: side of the training views in pixels.

    Raises:
        MixsupError: the network fails on either.
    """
    name = choice.arch if choice.encoder is None else f"{choice.arch}+{choice.encoder}"
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for height in (size, size + model.network.multiple):
                model(torch.zeros(1, 3, height, size))
    except Exception as error:  # of any encoder of two libraries, in its own words
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MixsupError(
            f"network {name} cannot take pictures of {size} x {height} pixels ({reason}); choose another encoder or size, or correct its options"
        ) from None
    finally:
        model.train(training)


def idle_parameters(model: SegmentationModel, size: int) -> list[nn.Parameter]:
    """Parameters on which no output depends, as encoders have whose last blocks a decoder leaves aside.

    Args:
        model: of any mode, in which it is left.
        size: side of the training views in pixels.
    """
    training = model.training
    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        outputs = model(torch.zeros(1, 3, size, size, device=model.mean.device))
        total = torch.stack([output.float().sum() for output in outputs.values() if output.requires_grad]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    model.train(training)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]


def refuse_one_image(model: SegmentationModel, size: int) -> None:
    """A trial pass of one image, as training sees it where a device has no more: a norm that comes after pooling to one cell has nothing to count.

    Args:
        model: on the CPU, of any mode, in which it is left; neither what its norms have counted nor the random state changes.
        size: side of the training views in pixels.

    Raises:
        MixsupError: a norm has one value a channel.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.func.functional_call(model, buffers, (torch.zeros(1, 3, size, size),))
    except ValueError as error:
        if not is_one_value(error):
            raise
        raise MixsupError(ONE_VALUE) from None
    finally:
        model.train(training)


def is_one_value(error: ValueError) -> bool:
    """Whether this is PyTorch's refusal to train a norm on one value a channel."""
    return "more than 1 value per channel" in str(error)


def build_model(choice: NetworkChoice, head: str, num_classes: int, pretrained: bool = True) -> SegmentationModel:
    """Network + head for C classes (background included).

    Args:
        choice: of the network.
        head: a key of `mixsup.heads.HEADS`.
        num_classes: C.
        pretrained: load the backbone's weights; False where a checkpoint will bring all of them.

    Raises:
        MixsupError: see `build_network` and `build_head`.
    """
    network = build_network(choice, pretrained)
    return SegmentationModel(network, build_head(head, network, num_classes), num_classes)
