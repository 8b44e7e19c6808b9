"""Every network through one contract; the papers' layouts; weights by file."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from mixsup.engine.model import SegmentationModel, build_model, refuse_one_image, refuse_size
from mixsup.engine.optimiser import parameter_groups
from mixsup.errors import MixsupError
from mixsup.networks import Network, build_network
from mixsup.networks.deeplab_v2 import DeepLabV2
from mixsup.networks.vgg import FCN, DeepLabLargeFOV
from mixsup.networks.zoo import ARCHITECTURES
from mixsup.recipe import NetworkChoice
from mixsup.recipes import network_choice

ENCODERS = {"dpt": "tu-test_vit", "segformer": "tu-test_convnext"}  # else the smallest that there is
SMALL = [
    *({"arch": arch, "encoder": ENCODERS.get(arch, "tu-test_efficientnet")} for arch in ARCHITECTURES),
    {"arch": "unet", "encoder": "mobilenet_v2"},
    {"arch": "fcn", "options": {"fc_channels": 16, "stride": 8}},
    {"arch": "fcn", "options": {"fc_channels": 16, "stride": 16}},
    {"arch": "fcn", "options": {"fc_channels": 16, "stride": 32}},
    {"arch": "fcn", "encoder": "tu-test_resnet"},
    {"arch": "fcn", "encoder": "tu-test_convnext", "options": {"stride": 32}},
    {"arch": "deeplab-largefov", "options": {"fc_channels": 16}},
    {"arch": "deeplab-v2"},
]


@pytest.mark.parametrize("choice", SMALL, ids=lambda choice: "-".join(map(str, choice.values())))
def test_contract(choice: dict[str, Any]) -> None:
    """Scores of the image's own size for any size, gradients everywhere, each parameter in exactly one group."""
    model = build_model(NetworkChoice(weights="none", **choice), "plain", 5)
    model.eval()
    with torch.inference_mode():
        for size in ((67, 90), (32, 32)):
            scores = model(torch.zeros(1, 3, *size, dtype=torch.uint8))["scores"]
            assert scores.shape == (1, 5, *size)
            assert scores.dtype == torch.float32
        # uint8 0..255 and float 0..1 are the same picture
        picture = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
        assert torch.allclose(model(picture)["scores"], model(picture.float() / 255)["scores"])
    model.train()
    model(torch.rand(2, 3, 64, 64))["scores"].square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # Encoders may have a last stage that an architecture does not read; everything behind the encoder must learn.
    assert not [name for name in without if ".encoder." not in name and "backbone" not in name]
    groups = parameter_groups(model, model.network, 1.0, 10.0, 0.1)
    assert sorted(id(parameter) for group in groups for parameter in group["params"]) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("choice", [*SMALL, {"arch": "unet", "encoder": "mit_b0"}], ids=lambda choice: "-".join(map(str, choice.values())))
def test_pyramid(choice: dict[str, Any]) -> None:
    """Maps of the backbone alone, with the channels that the network tells, from a quarter of the size down."""
    network = build_network(NetworkChoice(weights="none", **choice)).eval()
    with torch.inference_mode():
        maps = network.pyramid(torch.rand(2, 3, 128, 256))
    assert [tuple(features.shape[:2]) for features in maps] == [(2, channels) for channels in network.pyramid_channels]
    assert 1 <= len(maps) <= 4
    heights = [features.shape[2] for features in maps]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] == (8 if choice["arch"] == "dpt" else 32)  # a ViT has the resolution of its patches everywhere
    assert all(features.shape[3] == 2 * features.shape[2] for features in maps)


@pytest.mark.parametrize(
    ("choice", "heights"),
    [
        ({"arch": "fcn", "options": {"fc_channels": 8}}, [16, 8, 4, 2]),
        ({"arch": "fcn", "encoder": "resnet18"}, [16, 8, 4, 2]),
        ({"arch": "deeplab-largefov", "options": {"fc_channels": 8}}, [16, 8, 8, 8]),
        ({"arch": "deeplab-v2"}, [16, 8, 8, 8]),
        ({"arch": "deeplabv3plus", "encoder": "resnet18", "output_stride": 8}, [16, 8, 8, 8]),
        ({"arch": "deeplabv3plus", "encoder": "tu-test_resnet", "output_stride": 16}, [16, 8, 4, 4]),
        ({"arch": "unet", "encoder": "vgg11"}, [16, 8, 4, 2]),
        ({"arch": "unet", "encoder": "tu-test_convnext"}, [16, 8, 4, 2]),
        ({"arch": "pspnet", "encoder": "resnet18"}, [16, 8]),
        ({"arch": "pspnet", "encoder": "resnet18", "options": {"encoder_depth": 1}}, [32]),
    ],
    ids=lambda value: "-".join(map(str, value.values() if isinstance(value, dict) else value)),
)
def test_strides_of_the_pyramid(choice: dict[str, Any], heights: list[int]) -> None:
    network = build_network(NetworkChoice(weights="none", **choice)).eval()
    with torch.inference_mode():
        assert [features.shape[2] for features in network.pyramid(torch.rand(1, 3, 64, 64))] == heights


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (5, 40), (40, 5), (64, 32)])
@pytest.mark.parametrize("training", [False, True])
def test_a_norm_of_one_channel_a_group_takes_small_pictures(size: tuple[int, int], training: bool) -> None:
    """The demo's FPN: alone in its group a channel of a single cell has no spread; pictures are padded to two."""
    options = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
    model = build_model(NetworkChoice(arch="fpn", encoder="tu-test_efficientnet", weights="none", options=options), "plain", 3)
    scores = model.train(training)(torch.rand(2, 3, *size))["scores"]
    assert scores.shape == (2, 3, *size)
    assert torch.isfinite(scores).all()


def test_pyramid_of_a_network_that_says_nothing_of_it() -> None:
    class Bare(Network):
        channels = 5

        def features(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return images.mean(1, keepdim=True).expand(-1, 5, -1, -1)[:, :, ::8, ::8], [images[:, :, ::4, ::4]]

    class Told(Bare):
        pyramid_channels = (3, 5)

    for network in (Bare(), Told()):
        maps = network.pyramid(torch.rand(1, 3, 32, 32))
        assert tuple(features.shape[1] for features in maps) == network.pyramid_channels


def test_rates_of_pretrained_and_new_layers() -> None:
    model = build_model(NetworkChoice(arch="linknet", encoder="tu-test_efficientnet", weights="none"), "plain", 3)
    assert {group["lr"] for group in parameter_groups(model, model.network, 0.1, 10, 0.5)} == {1.0}  # nothing is pretrained, so all is new
    model.network.pretraining = "imagenet"
    backbone = {id(parameter) for parameter in model.network.backbone.parameters()}
    for group in parameter_groups(model, model.network, 0.1, 10, 0.5):
        for parameter in group["params"]:
            assert group["lr"] == (0.1 if id(parameter) in backbone else 1.0)
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0)


def test_layers_that_pretraining_cannot_fill_are_new() -> None:
    for arch, width, new in (("fcn", 8, True), ("deeplab-largefov", 8, False)):
        network = build_network(NetworkChoice(arch=arch, options={"fc_channels": width}, weights="none"))
        network.pretraining = "imagenet"
        groups = parameter_groups(network, network, 1.0, 10.0, 0.0)
        quick = {id(parameter) for group in groups if group["lr"] == 10 for parameter in group["params"]}
        assert quick == ({id(parameter) for parameter in network.backbone.fc.parameters()} if new else set())  # type: ignore[union-attr]


def test_largefov_is_the_layout_of_2015() -> None:
    network = DeepLabLargeFOV()
    convolutions = [module for module in network.backbone.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.dilation[0] for layer in convolutions] == [1] * 10 + [2] * 3 + [12, 1]
    assert [layer.out_channels for layer in convolutions[-2:]] == [1024, 1024]
    assert [layer.kernel_size[0] for layer in convolutions[-2:]] == [3, 1]
    pools = [module for module in network.backbone.modules() if isinstance(module, nn.MaxPool2d)]
    assert [pool.stride for pool in pools] == [2, 2, 2, 1, 1]
    assert network.features(torch.zeros(1, 3, 64, 96))[0].shape == (1, 1024, 8, 12)


def test_cells_of_largefov_lie_in_the_middle_of_their_pixels() -> None:
    """Scores are enlarged as if they did. Each convolution passes on what is under its middle, so that a ramp tells where a cell looks; maxima look
    upwards, so that the same ramp downwards is taken, too."""
    network = DeepLabLargeFOV(fc_channels=4, dropout=0).eval()
    for layer in network.backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.weight.data[:, :, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1 / layer.in_channels
    ramp = torch.arange(128.0)
    with torch.inference_mode():
        rows, columns = (network.features(ramp.view(shape).expand(1, 3, 128, 128))[0][0, 0] for shape in ((-1, 1), (1, -1)))
        up, left = (127 - network.features(127 - ramp.view(shape).expand(1, 3, 128, 128))[0][0, 0] for shape in ((-1, 1), (1, -1)))
    middles = torch.arange(16) * 8 + 3.5
    for found in ((rows + up)[:, 8] / 2, (columns + left)[8] / 2):
        assert (found - middles)[4:-4].abs().max() <= 0.5


@pytest.mark.parametrize("choice", [{"options": {"fc_channels": 8}}, {"encoder": "resnet18", "options": {}}], ids=["vgg16", "encoder"])
def test_fcn_strides_add_finer_scores(choice: dict[str, Any]) -> None:
    for stride, side in ((32, 2), (16, 4), (8, 8)):
        options = {**choice["options"], "stride": stride}
        model = build_model(NetworkChoice(arch="fcn", weights="none", **{**choice, "options": options}), "plain", 3).eval()
        features, earlier = model.network.features(torch.rand(1, 3, 64, 64))
        assert features.shape[-1] == 2
        assert model.network.fuse(model.head(features)["scores"], earlier, model.skips).shape == (1, 3, side, side)


def test_deeplab_v2_pyramid() -> None:
    network = DeepLabV2()
    assert network.freeze_batchnorm
    classifier = network.classifier(7)
    layers = [module for module in classifier.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.dilation[0] for layer in layers] == [6, 12, 18, 24]
    features = torch.rand(1, 2048, 5, 5)
    assert torch.allclose(
        classifier(features), layers[0](features) + layers[1](features) + layers[2](features) + layers[3](features), atol=1e-5
    )
    with torch.inference_mode():
        assert network.eval().features(torch.zeros(1, 3, 64, 64))[0].shape == (1, 2048, 8, 8)


def test_vgg_weights_go_where_they_belong() -> None:
    state = {}
    for index, (before, after) in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        ((3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), *[(512, 512)] * 5),
        strict=True,
    ):
        state[f"features.{index}.weight"] = torch.full((after, before, 3, 3), float(index))
        state[f"features.{index}.bias"] = torch.full((after,), float(index))
    state["classifier.0.weight"] = torch.arange(4096.0)[:, None].expand(4096, 512 * 49)
    state["classifier.0.bias"] = torch.arange(4096.0)
    state["classifier.3.weight"] = torch.arange(4096.0)[:, None].expand(4096, 4096)
    state["classifier.3.bias"] = torch.arange(4096.0)
    network = DeepLabLargeFOV(fc_channels=4)
    network.load_pretrained(state)
    assert network.backbone.fc[0].bias.tolist() == [0, 1365, 2730, 4095]
    assert network.backbone.fc[3].weight[:, 0, 0, 0].tolist() == [0, 1365, 2730, 4095]
    fcn = FCN(fc_channels=8)
    with pytest.raises(ValueError, match="12 layers called `features`, VGG16 has 13"):
        fcn.load_pretrained({key: value for key, value in state.items() if not key.startswith("features.28.")})
    fcn.load_pretrained({f"module.{key}": value for key, value in state.items()})
    convolutions = [module for module in fcn.backbone.blocks.modules() if isinstance(module, nn.Conv2d)]
    assert [float(layer.bias[0]) for layer in convolutions if layer.bias is not None] == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_zoo_network_is_the_librarys_own(arch: str) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS.get(arch, "tu-test_efficientnet")
    strided = arch == "deeplabv3plus"
    model = build_model(NetworkChoice(arch=arch, encoder=encoder, output_stride=16 if strided else None, weights="none"), "plain", 6).eval()
    options = {"encoder_output_stride": 16} if strided else {"dynamic_img_size": True} if arch == "dpt" else {}
    reference = smp.create_model(arch, encoder, encoder_weights=None, classes=6, **options).eval()
    name, final = [(name, part) for name, part in reference.named_modules() if isinstance(part, nn.Conv2d)][-1]
    assert name.startswith("segmentation_head.")
    state = {key.removeprefix("network.model."): value for key, value in model.state_dict().items() if key.startswith("network.")}
    if arch == "dpt":  # its hidden layer
        state = {key.replace("segmentation_head.", "segmentation_head.head."): value for key, value in state.items()}
    state |= {key.replace("head.classifier", name): value for key, value in model.state_dict().items() if key.startswith("head.")}
    reference.load_state_dict(state)
    images, seen = torch.rand(1, 3, 128, 256), []
    final.register_forward_hook(lambda *taken: seen.append(taken[2]))
    with torch.inference_mode():
        reference((images - model.mean) / model.std)
        ours = model.head(model.network.features((images - model.mean) / model.std)[0])["scores"]
    assert torch.allclose(ours, seen[0], atol=1e-6)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_backbone_from_a_file_equals_timms_own(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    classifier = timm.create_model(name)
    save_file(classifier.state_dict(), tmp_path / "w.safetensors")
    torch.save(classifier.state_dict(), tmp_path / "w.pth")
    extractor = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")})
    for file in ("w.safetensors", "w.pth"):
        for arch in ("unet", "fcn"):
            network = build_network(NetworkChoice(arch=arch, encoder=f"tu-{name}", weights=str(tmp_path / file)))
            loaded = network.backbone.model.state_dict()  # type: ignore[union-attr]
            assert network.pretraining == file
            for key, value in extractor.state_dict().items():
                assert torch.equal(loaded[key], value), key  # type: ignore[index]


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder.model."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state"])
def test_weights_as_training_scripts_save_them(tmp_path: Path, prefix: str, wrapper: str) -> None:
    theirs = timm.create_model("test_resnet").state_dict()
    rest = {"head.weight": torch.zeros(2), "epoch": torch.ones(1)}
    torch.save({wrapper: {**{prefix + key: value for key, value in theirs.items()}, **rest}, "epoch": 3}, tmp_path / "w.pth")
    found = build_network(NetworkChoice(arch="fcn", encoder="tu-test_resnet", weights=str(tmp_path / "w.pth"))).backbone.state_dict()
    assert torch.equal(found["model.conv1.0.weight"], theirs["conv1.0.weight"])


def test_weights_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "net.yaml").write_text("{arch: unet, encoder: tu-test_resnet, weights: ~/w.pth}")
    assert network_choice(str(tmp_path / "net.yaml"))["weights"] == str((tmp_path / "w.pth").resolve())


def test_network_file_and_normalisation(tmp_path: Path) -> None:
    save_file(timm.create_model("test_efficientnet").half().state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "net.yaml").write_text(
        "arch: deeplabv3plus\nencoder: tu-test_efficientnet\noutput_stride: 16\nencoder_options: {pad_type: same}\nweights: w.safetensors\n"
        "mean: [0.5, 0.5, 0.5]\nstd: [0.25, 0.25, 0.25]\nfreeze_batchnorm: true\n"
    )
    model = build_model(NetworkChoice.model_validate(network_choice(str(tmp_path / "net.yaml"))), "plain", 3)
    assert model.mean.flatten().tolist() == [0.5] * 3
    assert model.std.flatten().tolist() == [0.25] * 3
    model.train()
    norms = [module for module in model.network.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(module.training for module in norms)
    before = norms[0].running_mean.clone()  # type: ignore[union-attr]
    model(torch.rand(2, 3, 64, 64))
    assert torch.equal(norms[0].running_mean, before)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"arch": "pidnet"}, "no network 'pidnet'; there are fcn"),
        ({"arch": "unet", "encoder": "resnet19"}, "cannot be built"),
        ({"arch": "unet", "encoder": "tu-nothing"}, "cannot be built"),
        ({"arch": "deeplabv3plus", "encoder": "tu-hrnet_w18"}, r"cannot be built \(AssertionError\)"),
        ({"arch": "unet", "encoder": "resnet18", "output_stride": 8}, "takes no output_stride"),
        ({"arch": "unet", "encoder": "resnet18", "options": {"depth": 3}}, "cannot be built"),
        ({"arch": "deeplab-v2", "encoder": "resnet18"}, "has its own encoder"),
        ({"arch": "fcn", "options": {"stride": 4}}, "stride 4 is not 32, 16 or 8"),
        ({"arch": "fcn", "encoder": "resnet18", "options": {"stride": 4}}, "stride 4 is not 32, 16 or 8"),
        ({"arch": "fcn", "encoder": "resnet18", "options": {"colour": 1}}, "correct its options"),
        ({"arch": "fcn", "encoder": "resnet18", "output_stride": 8}, "takes no output_stride"),
        ({"arch": "fcn", "encoder": "resnet19"}, "cannot be built"),
        ({"arch": "fcn", "encoder": "tu-test_vit"}, "cannot be built"),
        ({"arch": "fcn", "encoder": "resnet18", "encoder_options": {"depth": 3}}, "has no such maps"),
        ({"arch": "fcn", "options": {"colour": 1}}, "correct its options"),
        ({"arch": "deeplab-largefov", "options": {"dropout": 1.5}}, "correct its options"),
        ({"arch": "deeplab-largefov", "options": {"fc_channels": -3}}, "correct its options"),
        ({"arch": "deeplab-v2", "options": {"rates": []}}, "rates are .* correct its options"),
        ({"arch": "deeplab-v2", "options": {"rates": ["a"]}}, "rates are .* correct its options"),
        ({"arch": "fcn", "options": {"fc_channels": 4}, "weights": "nowhere.pth"}, "no such weights file"),
    ],
)
def test_bad_choice(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        build_network(NetworkChoice(**{"weights": "none", **choice}))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "choice",
    [
        {"arch": "fcn", "encoder": "tu-test_vit"},
        {"arch": "unet", "encoder": "resnet18", "options": {"depth": 3}},
        {"arch": "deeplabv3plus", "encoder": "tu-hrnet_w18"},
    ],
)
def test_what_cannot_be_built_is_no_matter_of_the_hub(choice: dict[str, Any]) -> None:
    with pytest.raises(MixsupError, match="cannot be built"):
        build_network(NetworkChoice(weights="imagenet", **choice))


@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        ("resnet18", 0.485, 0.229),
        ("efficientnet-b3", 0.485, 0.229),
        ("xception", 0.5, 0.5),
        ("inceptionv4", 0.5, 0.5),
        ("inceptionresnetv2", 0.5, 0.5),
        ("timm-tf_efficientnet_lite4", 0.5, 0.5),
        ("dpn68", 124 / 255, 1 / (0.0167 * 255)),
        ("timm-mobilenetv3_small_minimal_100", 0.5, 0.5),
        ("tu-mobilenetv2_100", 0.485, 0.229),
        ("tu-test_vit", 0.5, 0.5),
        ("tu-local-dir:FOLDER", 0.25, 0.125),
    ],
)
def test_input_that_an_encoder_was_trained_with(tmp_path: Path, encoder: str, mean: float, std: float) -> None:
    settings = {"mean": [0.25] * 3, "std": [0.125] * 3, "input_size": [3, 160, 160]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_efficientnet", "pretrained_cfg": settings}))
    arch = "dpt" if encoder == "tu-test_vit" else "unet"
    found = build_network(NetworkChoice(arch=arch, encoder=encoder.replace("FOLDER", str(tmp_path)), weights="none"))
    assert found.mean[0] == pytest.approx(mean, abs=1e-3)
    assert found.std[0] == pytest.approx(std, abs=1e-3)


def test_mean_and_std_of_bytes_are_refused() -> None:
    for name, value in (("mean", (123.675, 116.28, 103.53)), ("std", (58.395, 57.12, 57.375)), ("std", (0.0, 0.5, 0.5))):
        with pytest.raises(ValidationError, match="divide numbers for 0 to 255 by 255"):
            NetworkChoice.model_validate({name: value})


def test_norms_that_have_counted_nothing_are_not_frozen(tmp_path: Path) -> None:
    """DeepLab-v2's are frozen at what pretraining counted; at 0 and 1 the features of 100 layers would explode."""
    assert not build_network(NetworkChoice(arch="deeplab-v2", weights="none")).freeze_batchnorm
    assert build_network(NetworkChoice(arch="deeplab-v2", weights="none", freeze_batchnorm=True)).freeze_batchnorm
    assert build_network(NetworkChoice(arch="deeplab-v2"), pretrained=False).freeze_batchnorm  # a checkpoint brings them


def test_weights_of_an_encoder_that_timm_wraps_twice(tmp_path: Path) -> None:
    theirs = timm.create_model("hiera_tiny_224").state_dict()
    torch.save(theirs, tmp_path / "w.pth")
    found = build_network(NetworkChoice(arch="unet", encoder="tu-hiera_tiny_224", weights=str(tmp_path / "w.pth"))).backbone.state_dict()
    assert torch.equal(found["model.model.pos_embed"], theirs["pos_embed"])


def test_swin_takes_other_sizes_than_its_pretrainings() -> None:
    choice = NetworkChoice(arch="unet", encoder="tu-swin_tiny_patch4_window7_224", weights="none")
    refuse_size(build_model(choice, "plain", 3), choice, 96)


def test_a_vit_that_knows_no_other_size_is_built_all_the_same() -> None:
    network = build_network(NetworkChoice(arch="dpt", encoder="tu-vit_relpos_small_patch16_224", weights="none"))
    with torch.inference_mode():
        assert network.eval().features(torch.rand(1, 3, 224, 224))[0].shape == (1, 256, 112, 112)


def test_a_network_that_cannot_take_the_size_is_found_out() -> None:
    class Square(Network):
        channels, multiple = 3, 32

        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(3, 3, 1)

        def features(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            assert images.shape[-1] == images.shape[-2], "squares alone"
            return self.backbone(images), []

    model = SegmentationModel(Square(), nn.Sequential(), 3)
    model.head.forward = lambda features: {"scores": features}  # type: ignore[method-assign, assignment]
    choice = NetworkChoice(arch="unet", encoder="square")
    with pytest.raises(MixsupError, match=r"network unet\+square cannot take pictures of 64 x 96 pixels \(squares alone"):
        refuse_size(model, choice, 64)
    assert model.training


def test_one_image_a_step_is_tried() -> None:
    """DeepLab pools to one cell, and a norm follows; the trial leaves no trace."""
    for arch, fails in (("deeplabv3plus", True), ("dpt", False)):
        model = build_model(NetworkChoice(arch=arch, encoder=ENCODERS.get(arch, "tu-test_efficientnet"), weights="none"), "plain", 3)
        before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
        with pytest.raises(MixsupError, match="one value a channel") if fails else nullcontext():
            refuse_one_image(model.eval(), 64)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert not model.training


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(MixsupError, match="another architecture"):
        build_network(NetworkChoice(arch="unet", encoder="tu-test_efficientnet", weights=str(tmp_path / "w.safetensors")))
    for arch in ("deeplab-largefov", "fcn"):
        with pytest.raises(MixsupError, match="another architecture"):
            build_network(NetworkChoice(arch=arch, options={"fc_channels": 4}, weights=str(tmp_path / "w.safetensors")))


def test_file_that_is_no_weights(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pth"):
        (tmp_path / name).write_bytes(b"garbage")
        with pytest.raises(MixsupError, match=name):
            build_network(NetworkChoice(arch="unet", encoder="tu-test_efficientnet", weights=str(tmp_path / name)))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(MixsupError, match="not a file of weights alone"):
        build_network(NetworkChoice(arch="unet", encoder="tu-test_efficientnet", weights=str(tmp_path / "bomb.pth")))
    assert not (tmp_path / "pwned").exists()


def test_real_weights() -> None:
    shared = Path(__file__).parents[2].parent / "shared" / "weights"
    if not shared.is_dir():
        pytest.skip("the ImageNet backbone for measuring is not beside the checkout")
    choice = NetworkChoice.model_validate(network_choice(str(shared / "deeplabv3plus-mobilenetv2.yaml")))
    network = build_network(choice).eval()
    weights = str(shared / "mobilenetv2_100.imagenet.safetensors")
    reference = timm.create_model("mobilenetv2_100", pad_type="same", features_only=True, output_stride=16, pretrained=True,
                                  pretrained_cfg_overlay={"file": weights}).eval()  # fmt: skip
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        for ours, theirs in zip(network.backbone(image)[-4:], reference(image)[-4:], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named weights that cannot be fetched end in one line, for the papers' networks and for the zoo."""
    import urllib.error

    def refused(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("mixsup.networks.NETWORKS", {"deeplab-largefov": (DeepLabLargeFOV, refused)})
    monkeypatch.setattr(smp, "create_model", refused)
    for choice in ({"arch": "deeplab-largefov", "options": {"fc_channels": 4}}, {"arch": "unet", "encoder": "resnet18"}):
        with pytest.raises(MixsupError, match=r"cannot fetch the pretrained weights of .*; give a file") as caught:
            build_network(NetworkChoice(**choice))  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) == 1
