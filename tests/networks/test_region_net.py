"""Masked RoI pooling against its description taken word for word; RegionNet's promises; eq. 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixsup.networks import build_network
from mixsup.networks.region_net import RegionNet, _pool, masked_roi_pool, region_loss
from mixsup.recipe import NetworkChoice


def pool_by_loops(features: Tensor, regions: Tensor, counts: list[int], grid: int) -> Tensor:
    """Region by region: cut out the external rectangle, set what is not the region's to zero, divide, and take the maximum of each cell."""
    found = []
    for image, count in enumerate(counts):
        for region in range(count):
            cells = torch.zeros(features.shape[1], grid, grid, dtype=features.dtype)
            own = regions[image] == region
            if own.any():
                rows, columns = own.any(1).nonzero()[:, 0], own.any(0).nonzero()[:, 0]
                window = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
                rectangle = torch.where(own[window], features[image][(slice(None), *window)], 0)
                height, width = rectangle.shape[1:]
                for i in range(grid):
                    for j in range(grid):
                        inside = rectangle[:, [y for y in range(height) if y * grid // height == i]]
                        inside = inside[:, :, [x for x in range(width) if x * grid // width == j]]
                        if inside.numel():
                            cells[:, i, j] = inside.amax((1, 2))
            found.append(cells)
    return torch.stack(found) if found else torch.zeros(0, features.shape[1], grid, grid, dtype=features.dtype)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 6), st.sampled_from([-1.0, 0.0]), st.booleans())
def test_pooling_is_its_description(seed: int, grid: int, most: int, lowest: float, blocks: bool) -> None:
    """Any label map: scattered regions and blocks, numbers that no position has, positions without region, one region alone; both signs or ReLU's."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = (int(torch.randint(1, most, (1,), generator=generator)) for most in (4, 12, 12))
    features = torch.randn(batch, 3, height, width, generator=generator).clamp(min=lowest * 100)
    side = 3 if blocks else 1
    regions = torch.randint(-1, most, (batch, height, width), generator=generator) if most else torch.zeros(batch, height, width).long() - 1
    regions = regions.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
    counts = (regions.flatten(1).amax(1) + 1 + torch.randint(0, 2, (batch,), generator=generator)).tolist()
    pooled = masked_roi_pool(features, regions, counts, grid)
    assert torch.equal(pooled, pool_by_loops(features, regions, counts, grid))


def test_gradients_of_pooling() -> None:
    torch.manual_seed(0)
    regions = torch.randint(-1, 4, (2, 5, 6))
    for features in (torch.randn(2, 2, 5, 6), torch.rand(2, 2, 5, 6)):
        features = features.double().requires_grad_()
        assert torch.autograd.gradcheck(lambda features: masked_roi_pool(features, regions, [4, 4], 2), features)


def test_ties_share_their_gradient_and_nothing_else_takes_any() -> None:
    regions = torch.zeros(1, 2, 2, dtype=torch.long)
    for value in (0.0, 1.0):
        features = torch.full((1, 1, 2, 2), value, requires_grad=True)
        masked_roi_pool(features, regions, [1], 1).sum().backward()
        assert features.grad is not None
        assert features.grad.flatten().tolist() == [0.25] * 4


def test_gradients_do_not_depend_on_how_threads_take_turns() -> None:
    """Positions of several regions, as superpixels without a centre of a cell have them: their gradients are added up, in one order."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 256, 16, 16, generator=generator)
    cells = torch.stack([torch.randint(0, most, (5000,), generator=generator) for most in (300, 4, 16, 16)])
    taught = torch.randn(300, 256, 2, 2, generator=generator)

    def gradient() -> Tensor:
        asked = features.clone().requires_grad_()
        _pool(asked, cells, 300, 2).backward(taught)
        assert asked.grad is not None
        return asked.grad

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(5))
    finally:
        torch.set_num_threads(before)


def test_pooling_in_bfloat16() -> None:
    features, regions = torch.randn(2, 3, 7, 9).bfloat16(), torch.randint(-1, 5, (2, 7, 9))
    pooled = masked_roi_pool(features, regions, [5, 5], 3)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, masked_roi_pool(features.float(), regions, [5, 5], 3).bfloat16())


def net(choice: dict[str, Any] | None = None, **sizes: int) -> RegionNet:
    torch.manual_seed(0)
    choice = choice or {"arch": "deeplabv3plus", "encoder": "tu-test_efficientnet", "output_stride": 16}
    return RegionNet(build_network(NetworkChoice(weights="none", **choice)), 5, **{"width": 4, "hidden": 8, **sizes}).eval()


def blocks(batch: int, height: int, width: int, side: int) -> Tensor:
    """A chessboard of regions, numbered along its rows."""
    y, x = torch.arange(height)[:, None] // side, torch.arange(width) // side
    return (y * (-(-width // side)) + x).expand(batch, -1, -1).contiguous()


@pytest.mark.parametrize(
    "choice",
    [
        {"arch": "unet", "encoder": "tu-test_efficientnet"},
        {"arch": "deeplabv3plus", "encoder": "tu-test_resnet", "output_stride": 8},
        {"arch": "dpt", "encoder": "tu-test_vit"},
        {"arch": "segformer", "encoder": "tu-test_convnext"},
        {"arch": "pspnet", "encoder": "mobilenet_v2"},
        {"arch": "fcn", "options": {"fc_channels": 8}},
        {"arch": "deeplab-largefov", "options": {"fc_channels": 8}},
    ],
    ids=lambda choice: choice["arch"],
)
def test_contract(choice: dict[str, Any]) -> None:
    """A row a region for pictures of any size and kind, and gradients in all that is new and in the backbone."""
    model = net(choice)
    with torch.inference_mode():
        regions = blocks(1, 45, 70, 12)
        picture = torch.randint(0, 256, (1, 3, 45, 70), dtype=torch.uint8)
        scores = model(picture, regions)
        assert scores.shape == (int(regions.max()) + 1, 5)
        assert scores.dtype == torch.float32
        assert torch.allclose(scores, model(picture.float() / 255, regions), atol=1e-6)
    model.train()
    regions = blocks(2, 64, 64, 16)
    regions[1, 40:] = -1
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(torch.rand(2, 3, 64, 64), regions)
    assert scores.dtype == torch.float32
    assert len(scores) == 16 + 12
    region_loss(scores, torch.randint(0, 5, (28,))).backward()
    assert all(parameter.grad is not None for module in (model.reduce, model.classifier) for parameter in module.parameters())
    first = next(parameter for parameter in model.network.backbone.parameters() if parameter.ndim == 4)
    assert first.grad is not None


def test_rows_follow_the_regions_numbers() -> None:
    model, picture = net(), torch.rand(2, 3, 64, 64)
    regions = blocks(2, 64, 64, 8)
    order = torch.randperm(64)
    with torch.inference_mode():
        scores = model(picture, regions)
        renamed = model(picture, order[regions])
        single = model(picture[1:], regions[1:])
    assert torch.allclose(renamed.view(2, 64, 5)[:, order], scores.view(2, 64, 5), atol=1e-6)
    assert torch.allclose(single, scores[64:], atol=1e-5)
    assert scores.std(dim=0).min() > 1e-4, "regions differ"


def pooled_by(model: RegionNet, picture: Tensor, regions: Tensor) -> Tensor:
    """What the layers behind the pooling are given, ΣR×F×grid×grid."""
    seen = []
    handle = model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(picture, regions)
    handle.remove()
    return seen[0].view(len(seen[0]), -1, model.grid, model.grid)


def finest(model: RegionNet, picture: Tensor) -> Tensor:
    """The feature map that is pooled."""
    height, width = picture.shape[-2] // 4, picture.shape[-1] // 4
    whole = torch.arange(height * width).view(1, height, width)  # each cell a region of its own
    enlarged = whole.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return pooled_by(model, picture, enlarged)[:, :, 0, 0].T.reshape(-1, height, width)


def test_an_image_that_is_one_region() -> None:
    model, picture = net(), torch.rand(1, 3, 64, 64)
    pooled = pooled_by(model, picture, torch.zeros(1, 64, 64, dtype=torch.long))
    features = finest(model, picture)
    assert torch.allclose(pooled, masked_roi_pool(features[None], torch.zeros(1, 16, 16, dtype=torch.long), [1], 3), atol=1e-6)


def test_regions_too_small_for_the_map() -> None:
    """One pixel, a corner's pixel and a thin line: each takes the cell of its pixel nearest to its centroid, and nobody loses it."""
    model, picture = net(), torch.rand(1, 3, 64, 64)
    regions = torch.zeros(1, 64, 64, dtype=torch.long)
    regions[0, 20, 33] = 1  # cell 5, 8; its centre is pixel 22, 34
    regions[0, 63, 63] = 2  # cell 15, 15
    regions[0, 40, 37:46] = 3  # from cell 10, 9 to 10, 11; its centroid is in 10, 10
    pooled, features = pooled_by(model, picture, regions), finest(model, picture)
    for region, (y, x) in {1: (5, 8), 2: (15, 15), 3: (10, 10)}.items():
        assert torch.allclose(pooled[region, :, 0, 0], features[:, y, x], atol=1e-6)
        assert not pooled[region, :, 1:].any()
    alone = pooled_by(model, picture, torch.zeros(1, 64, 64, dtype=torch.long))
    assert torch.allclose(pooled[0], alone[0], atol=1e-6)


def test_more_regions_than_cells() -> None:
    model, picture = net(), torch.rand(1, 3, 32, 32)
    pooled, features = pooled_by(model, picture, torch.arange(32 * 32).view(1, 32, 32)), finest(model, picture)
    assert torch.allclose(pooled[:, :, 0, 0].T.reshape(-1, 32, 32), features.repeat_interleave(4, 1).repeat_interleave(4, 2), atol=1e-6)


def test_padding_is_nobodys() -> None:
    """Views are padded with -1 and networks pad to their multiple; neither adds a region or a feature."""
    model = net()
    picture, regions = torch.rand(1, 3, 40, 50), blocks(1, 40, 50, 10)
    scores = model(picture, regions)
    padded = torch.nn.functional.pad(picture, (0, 14, 0, 24), mode="replicate")
    assert torch.allclose(scores, model(padded, torch.nn.functional.pad(regions, (0, 14, 0, 24), value=-1)), atol=1e-6)


def test_numbers_without_a_pixel_and_images_without_a_region() -> None:
    model, picture = net(), torch.rand(2, 3, 32, 32)
    regions = torch.full((2, 32, 32), -1)
    regions[1, :16] = 2
    pooled = pooled_by(model, picture, regions)
    assert len(pooled) == 3
    assert pooled.flatten(1).any(dim=1).tolist() == [False, False, True]
    scores = model(picture, torch.full((2, 32, 32), -1))
    assert scores.shape == (0, 5)
    region_loss(scores, torch.zeros(0, dtype=torch.uint8)).backward()


def test_regions_of_another_size() -> None:
    with pytest.raises(ValueError, match="one number a pixel"):
        net()(torch.rand(1, 3, 32, 32), torch.zeros(1, 16, 16, dtype=torch.long))


def test_equation_1() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 4, dtype=torch.double, requires_grad=True)
    labels = torch.tensor([2, 255, 0, 3, 255, 1], dtype=torch.uint8)
    weights = torch.tensor([1.0, 7.0, 0.5, 0.0, 1.0, 2.0], dtype=torch.double)
    total = weighted = 0.0
    for region, label in enumerate(labels.tolist()):
        for c in range(4):
            one_hot = float(label == c)
            f = math.exp(scores[region, c].item()) / sum(math.exp(scores[region, k].item()) for k in range(4))
            total -= one_hot * math.log(f)
            weighted -= weights[region].item() * one_hot * math.log(f)
    assert region_loss(scores, labels).item() == pytest.approx(total / 4)
    assert region_loss(scores, labels.long(), weights).item() == pytest.approx(weighted / 3.5)
    assert torch.autograd.gradcheck(lambda scores: region_loss(scores, labels, weights), scores)


def test_nothing_charged_costs_nothing() -> None:
    for weights, label in ((None, 255), (torch.zeros(3), 1)):
        scores = torch.randn(3, 4, requires_grad=True)
        loss = region_loss(scores, torch.full((3,), label), weights)
        loss.backward()
        assert loss.item() == 0
        assert scores.grad is not None
        assert not scores.grad.any()
