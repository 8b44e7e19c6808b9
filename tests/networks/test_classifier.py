"""Class activation maps: what Zhou et al. define, computed apart, and where the maps lie on the picture."""

from __future__ import annotations

import pytest
import torch

from mixsup.losses.tags import gap_bce
from mixsup.networks import build_network
from mixsup.networks.base import resize_scores
from mixsup.networks.classifier import Classifier
from mixsup.recipe import NetworkChoice


def classifier(arch: str = "unet", encoder: str | None = "tu-test_efficientnet", **more: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(build_network(NetworkChoice(arch=arch, encoder=encoder, weights="none", **more)), 4).eval()  # type: ignore[arg-type]


def test_maps_are_zhous() -> None:
    """GAP of the features and a linear unit give the class's score; the unit's weights over the features give its map."""
    model = classifier()
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        scores = model(images)["scores"]
        features = model.network.pyramid((images - model.mean) / model.std)[-1]
    weights, bias = model.classifiers[0].weight[:, :, 0, 0], model.classifiers[0].bias
    assert scores.shape == (2, 4, 2, 3)
    assert torch.allclose(scores.mean((2, 3)), features.mean((2, 3)) @ weights.T + bias, atol=1e-6)
    assert torch.allclose(scores, torch.einsum("bfhw,cf->bchw", features, weights) + bias[:, None, None], atol=1e-6)


def test_several_maps_add_up() -> None:
    """Each map's units are a linear classifier of their own; the finest of them says how fine the sum is."""
    torch.manual_seed(0)
    model = Classifier(build_network(NetworkChoice(arch="unet", encoder="tu-test_efficientnet", weights="none")), 4, maps=3).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        scores = model(images)["scores"]
        features = model.network.pyramid((images - model.mean) / model.std)[-3:]
        parts = [unit(one) for unit, one in zip(model.classifiers, features, strict=True)]
    assert scores.shape == (1, 4, 8, 8)
    assert torch.allclose(scores, sum(resize_scores(part, (8, 8)) for part in parts), atol=1e-6)


@pytest.mark.parametrize(("size", "cells"), [((64, 96), (2, 3)), ((65, 79), (2, 2)), ((81, 95), (3, 3)), ((3, 33), (1, 1))])
def test_maps_cover_the_picture_and_not_its_padding(size: tuple[int, int], cells: tuple[int, int]) -> None:
    scores = classifier()(torch.rand(1, 3, *size))["scores"]
    assert scores.shape == (1, 4, *cells)
    assert scores.dtype == torch.float32


def test_pictures_of_both_kinds() -> None:
    model = classifier()
    picture = torch.randint(0, 256, (1, 3, 40, 64), dtype=torch.uint8)
    assert torch.equal(model(picture)["scores"], model(picture.float() / 255)["scores"])


@pytest.mark.parametrize(
    ("arch", "encoder"), [("dpt", "tu-test_vit"), ("segformer", "tu-test_convnext"), ("pspnet", "tu-test_resnet"), ("fcn", None)]
)
def test_any_backbone_learns_tags(arch: str, encoder: str | None) -> None:
    model = classifier(arch, encoder, **({} if encoder else {"options": {"fc_channels": 8}})).train()
    scores = resize_scores(model(torch.rand(2, 3, 64, 64))["scores"], (64, 64))
    cost, pixels = gap_bce({"scores": scores}, {"target": torch.zeros(2, 64, 64, dtype=torch.uint8), "tags": [[1], [2, 3]]})
    (cost / pixels).backward()
    weight = model.classifiers[0].weight.grad
    assert weight is not None
    assert not weight[0].any(), "background is never charged"
    assert all(row.any() for row in weight[1:])
    first = next(parameter for parameter in model.network.backbone.parameters() if parameter.ndim == 4)
    assert first.grad is not None
    assert first.grad.any()
