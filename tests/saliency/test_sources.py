"""Every saliency source through the contract, and what each promises besides."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixsup.data.sample import Bool, Float32, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.saliency import build_saliency
from mixsup.saliency.background import distances, geodesic, neighbours, superpixels
from mixsup.saliency.files import read_map
from mixsup.saliency.source import SaliencySource, resized, stretched
from tests.saliency.contract import SaliencySourceContract, disc, picture, sample_of


def auc(saliency: Float32, truth: Bool) -> float:
    """Probability that a pixel of the truth lies above one outside it; equal ones count half."""
    inside, outside = saliency[truth], np.sort(saliency[~truth])
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.mean() / 2 / len(outside))


class TestBackground(SaliencySourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> SaliencySource:
        return build_saliency("background")

    @pytest.mark.parametrize("size", [(120, 160), (64, 64), (700, 500)])
    def test_disc_stands_out(self, source: SaliencySource, size: tuple[int, int], tmp_path: Path) -> None:
        saliency = self.make(source, picture(*size), tmp_path)
        assert auc(saliency, disc(*size)) > 0.97
        assert saliency[disc(*size)].mean() > saliency[~disc(*size)].mean() + 0.5

    def test_what_reaches_far_along_the_border_is_ground(self, source: SaliencySource, tmp_path: Path) -> None:
        """A bright band at the border is as unusual as the disc, but touches the border for a long way."""
        image = picture(120, 160)
        image[:25] = [215, 160, 60]
        saliency = self.make(source, image, tmp_path)
        assert saliency[disc(120, 160)].mean() > saliency[:25].mean() + 0.3

    def test_turned_picture_turned_map(self, source: SaliencySource, tmp_path: Path) -> None:
        image = picture(90, 90)
        one, two = self.make(source, image, tmp_path), self.make(source, np.rot90(image).copy(), tmp_path)
        assert np.abs(np.rot90(one) - two).mean() < 0.05  # superpixels are not quite the same

    def test_geodesic_against_all_ways(self) -> None:
        """Floyd and Warshall's three loops, straight from the definition."""
        generator = np.random.default_rng(0)
        lab = generator.normal(0, 20, (4, 5, 3))
        parts = np.arange(20).reshape(4, 5)
        apart, pairs = distances(lab.reshape(20, 3)), neighbours(parts, 20)
        border = np.ones((4, 5), bool)
        border[1:-1, 1:-1] = False
        usual = np.mean([min(apart[i, j] for j in range(20) if pairs[i, j]) for i in range(20)])
        wanted = np.full((20, 20), np.inf)
        for i in range(20):
            for j in range(20):
                if i == j:
                    wanted[i, j] = 0
                elif pairs[i, j] or (border.ravel()[i] and border.ravel()[j]):
                    wanted[i, j] = max(0.0, apart[i, j] - usual)
        for k in range(20):
            for i in range(20):
                for j in range(20):
                    wanted[i, j] = min(wanted[i, j], wanted[i, k] + wanted[k, j])
        np.testing.assert_allclose(geodesic(apart, pairs, border.ravel()), wanted, atol=1e-6)

    def test_neighbours_share_an_edge(self) -> None:
        assert neighbours(np.array([[0, 0, 1], [2, 1, 1]]), 3).tolist() == [[False, True, True], [True, False, True], [True, True, False]]
        assert neighbours(np.array([[0, 1], [2, 3]]), 4)[0].tolist() == [False, True, True, False]

    @pytest.mark.parametrize("size", [(1, 1), (1, 300), (9, 11), (40, 60)])
    def test_superpixels_have_no_gaps(self, size: tuple[int, int]) -> None:
        parts = superpixels(np.random.default_rng(0).normal(0, 20, (*size, 3)).astype(np.float32), 100)
        assert parts.shape == size
        assert np.array_equal(np.unique(parts), np.arange(parts.max() + 1))


@pytest.mark.parametrize("method", ["fine-grained", "spectral-residual"])
class TestOpenCV(SaliencySourceContract):
    @pytest.fixture
    def source(self, method: str, tmp_path: Path) -> SaliencySource:
        return build_saliency("opencv", {"method": method})

    def test_uses_its_whole_range(self, source: SaliencySource, tmp_path: Path) -> None:
        saliency = self.make(source, picture(120, 160), tmp_path)
        assert (saliency.min(), saliency.max()) == (0, 1)

    def test_without_contrib(self, source: SaliencySource, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(cv2, "saliency")
        with pytest.raises(MixsupError, match="pip install --force-reinstall opencv-contrib"):
            source.check()


class TestFiles(SaliencySourceContract):
    flat_is_zero = False  # the map says what the file says

    @pytest.fixture
    def source(self, tmp_path: Path) -> SaliencySource:
        return build_saliency("files", {"folder": str(tmp_path)})

    def prepare(self, image: UInt8, sample: Sample, folder: Path) -> None:
        Image.fromarray(np.ascontiguousarray(image[..., 0])).save(folder / f"{sample.id}.png")

    @pytest.mark.parametrize("mode", ["8", "16", "rgb", "palette", "1", "jpg"])
    def test_kinds_of_picture(self, source: SaliencySource, mode: str, tmp_path: Path) -> None:
        wanted = np.linspace(0, 1, 12 * 16, dtype=np.float32).reshape(12, 16)
        eight = np.round(wanted * 255).astype(np.uint8)
        if mode == "16":
            Image.fromarray(np.round(wanted * 65535).astype(np.uint16)).save(tmp_path / "one.png")
        elif mode == "rgb":
            Image.fromarray(np.repeat(eight[..., None], 3, axis=2)).save(tmp_path / "one.png")
        elif mode == "palette":
            Image.fromarray(eight).convert("P").save(tmp_path / "one.png")
        elif mode == "1":
            wanted = (wanted > 0.5).astype(np.float32)
            Image.fromarray(wanted > 0.5).save(tmp_path / "one.png")
        elif mode == "jpg":
            Image.fromarray(eight).save(tmp_path / "one.jpg", quality=100)
        else:
            Image.fromarray(eight).save(tmp_path / "one.png")
        image = np.zeros((12, 16, 3), np.uint8)
        found = source(image, sample_of(image))
        assert np.abs(found - wanted).max() <= {"16": 1e-5, "1": 0, "jpg": 0.02}.get(mode, 0.5 / 255 + 1e-6)

    @pytest.mark.parametrize("size", [(1, 1), (9, 13), (60, 80), (7, 300)])
    def test_map_of_another_size_is_resized_bilinearly(self, source: SaliencySource, size: tuple[int, int], tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "one.png")
        image = np.zeros((30, 40, 3), np.uint8)
        found = source(image, sample_of(image))
        assert found.shape == (30, 40)
        # Bilinear by hand: pixel centres, clamped at the rim.
        y = np.clip((np.arange(30) + 0.5) * size[0] / 30 - 0.5, 0, size[0] - 1)[:, None]
        x = np.clip((np.arange(40) + 0.5) * size[1] / 40 - 0.5, 0, size[1] - 1)[None]
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        bottom, right = np.minimum(top + 1, size[0] - 1), np.minimum(left + 1, size[1] - 1)
        grey, down, across = values / 255, y - top, x - left
        wanted = (1 - down) * ((1 - across) * grey[top, left] + across * grey[top, right])
        wanted += down * ((1 - across) * grey[bottom, left] + across * grey[bottom, right])
        np.testing.assert_allclose(found, wanted, atol=2e-3)

    def test_id_with_a_folder(self, source: SaliencySource, tmp_path: Path) -> None:
        (tmp_path / "part").mkdir()
        image = picture(20, 30)
        self.prepare(image, sample_of(image, "part/two"), tmp_path)
        assert source(image, sample_of(image, "part/two")).shape == (20, 30)

    @pytest.mark.parametrize("name", ["../secret", "part/../../secret", "..\\secret", "/secret", "C:\\secret", "se\0cret"])
    def test_ids_that_lead_out(self, name: str, tmp_path: Path) -> None:
        image = picture(20, 30)
        self.prepare(image, sample_of(image, "secret"), tmp_path)
        (tmp_path / "maps" / "part").mkdir(parents=True)
        source = build_saliency("files", {"folder": str(tmp_path / "maps")})
        for use in (lambda: source(image, sample_of(image, name)), lambda: source.fingerprint(sample_of(image, name))):
            with pytest.raises(MixsupError, match="leads out of the folder of saliency maps; rename the image"):
                use()

    @given(name=st.text(st.sampled_from("./\\secrt\0~ "), min_size=1, max_size=12))
    @settings(max_examples=150, deadline=None)
    def test_no_id_reaches_outside(self, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
        root = tmp_path_factory.getbasetemp() / "fence"
        maps = root / "maps"
        if not maps.is_dir():
            maps.mkdir(parents=True)
            for outside in ("secret", "s", "..s"):
                Image.new("L", (3, 3), 255).save(root / f"{outside}.png")
        image = np.zeros((3, 3, 3), np.uint8)
        with pytest.raises(MixsupError):  # there is nothing inside the folder
            build_saliency("files", {"folder": str(maps)})(image, sample_of(image, name))

    def test_missing(self, source: SaliencySource, tmp_path: Path) -> None:
        image = picture(5, 5)
        for name in ("one", "a" * 400):
            with pytest.raises(MixsupError, match=r"no saliency map of image .*write one grey PNG or JPG an image, named by its id"):
                source(image, sample_of(image, name))
        with pytest.raises(MixsupError, match="no saliency map"):
            source.fingerprint(sample_of(image))

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(MixsupError, match="no such folder"):
            build_saliency("files", {"folder": str(tmp_path / "nowhere")}).check()

    def test_fingerprint_is_the_content(self, source: SaliencySource, tmp_path: Path) -> None:
        image = picture(5, 5)
        self.prepare(image, sample_of(image), tmp_path)
        one = source.fingerprint(sample_of(image))
        self.prepare(255 - image, sample_of(image), tmp_path)
        assert source.fingerprint(sample_of(image)) != one

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "the file is empty"),
            (b"<html>not found</html>", "web page"),
            (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "not an image"),
            (b"hello", "not an image"),
        ],
    )
    def test_no_picture(self, content: bytes, message: str, tmp_path: Path) -> None:
        image = picture(5, 5)
        (tmp_path / "one.png").write_bytes(content)
        with pytest.raises(MixsupError, match=message) as caught:
            build_saliency("files", {"folder": str(tmp_path)})(image, sample_of(image))
        assert "one.png" in str(caught.value)

    def test_colours_and_other_kinds_are_refused(self, source: SaliencySource, tmp_path: Path) -> None:
        image = picture(20, 30)
        for content, kind in ((Image.fromarray(image), "PNG"), (Image.new("LA", (3, 3)), "PNG"), (Image.new("F", (3, 3)), "TIFF")):
            content.save(tmp_path / "one.png", format=kind)
            with pytest.raises(MixsupError, match="grey PNG"):
                source(image, sample_of(image))

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_corrupt_files(self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
        """A file cut short or with bytes changed gives a map or an error of ours, never another one."""
        stream = io.BytesIO()
        Image.fromarray(picture(9, 12)[..., 0].copy()).save(stream, format=data.draw(st.sampled_from(["PNG", "JPEG"])))
        content = bytearray(stream.getvalue()[: data.draw(st.integers(1, len(stream.getvalue())))])
        for _ in range(data.draw(st.integers(0, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.getbasetemp() / "corrupt.png"
        path.write_bytes(content)
        try:
            found = read_map(path)
        except MixsupError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert found.min() >= 0
            assert found.max() <= 1


def save_network(folder: Path, labels: int = 1, processor: bool = True) -> Path:
    """A SegFormer of random weights, saved as any model is."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=labels, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8,
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    if processor:
        transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("one"))


class TestTransformers(SaliencySourceContract):
    flat_is_zero = False

    @pytest.fixture
    def source(self, network: Path) -> SaliencySource:
        return build_saliency("transformers", {"model": str(network)})

    def test_is_what_transformers_says(self, source: SaliencySource, network: Path, tmp_path: Path) -> None:
        import torch
        from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

        image = picture(50, 70)
        ready = AutoImageProcessor.from_pretrained(network)(images=image, return_tensors="pt")
        with torch.no_grad():
            logits = SegformerForSemanticSegmentation.from_pretrained(network)(**ready).logits.sigmoid()
        wanted = torch.nn.functional.interpolate(logits, (50, 70), mode="bilinear")[0, 0].numpy()
        np.testing.assert_allclose(self.make(source, image, tmp_path), wanted, atol=1e-3)

    def test_two_channels_are_ground_and_object(self, tmp_path: Path) -> None:
        import torch
        from transformers import SegformerForSemanticSegmentation

        folder = save_network(tmp_path / "two", labels=2, processor=False)
        model = SegformerForSemanticSegmentation.from_pretrained(folder)
        with torch.no_grad():
            model.decode_head.classifier.bias[:] = torch.tensor([-20.0, 20.0])
        model.save_pretrained(folder)
        source = build_saliency("transformers", {"model": str(folder), "side": 64, "device": "cpu"})
        assert self.make(source, picture(30, 40), tmp_path).min() > 0.9

    def test_several_labels(self, tmp_path: Path) -> None:
        folder = save_network(tmp_path / "three", labels=3)
        with pytest.raises(MixsupError, match="has 3 labels, not ground and object; give model="):
            build_saliency("transformers", {"model": str(folder)}).check()

    def test_without_a_processor(self, tmp_path: Path) -> None:
        folder = save_network(tmp_path / "bare", processor=False)
        image = picture(20, 30)
        with pytest.raises(MixsupError, match=r"has no image processor .*; give side=1024"):
            build_saliency("transformers", {"model": str(folder), "device": "cpu"})(image, sample_of(image))
        self.make(build_saliency("transformers", {"model": str(folder), "side": 48, "device": "cpu"}), image, tmp_path)

    def test_code_of_the_model_runs_only_when_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model as BiRefNet is: a module beside the weights, named in config.json, whose forward gives a list of score maps."""
        modules = pytest.importorskip("transformers.dynamic_module_utils")
        monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))  # where it copies such code to
        monkeypatch.setattr(sys, "path", list(sys.path))
        (tmp_path / "config.json").write_text(
            '{"model_type": "tiny_saliency", "auto_map": {"AutoConfig": "own.TinyConfig", "AutoModelForImageSegmentation": "own.Tiny"}}'
        )
        marker = tmp_path / "ran"
        (tmp_path / "own.py").write_text(
            "import pathlib\nimport torch\nfrom transformers import PretrainedConfig, PreTrainedModel\n"
            f"pathlib.Path({str(marker)!r}).touch()\n"
            "class TinyConfig(PretrainedConfig):\n    model_type = 'tiny_saliency'\n"
            "class Tiny(PreTrainedModel):\n    config_class = TinyConfig\n"
            "    def __init__(self, config):\n        super().__init__(config)\n"
            "        self.scale = torch.nn.Parameter(torch.ones(1))\n        self.post_init()\n"
            "    def forward(self, x):\n        return [x * 0, self.scale * x.mean(dim=1, keepdim=True)]\n"
        )
        import torch
        from safetensors.torch import save_file

        save_file({"scale": torch.tensor([3.0])}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        options = {"model": str(tmp_path), "side": 32, "device": "cpu"}
        with pytest.raises(MixsupError, match="brings Python code of its own; set trust_remote_code=true"):
            build_saliency("transformers", options).check()
        assert not marker.exists()
        image = picture(60, 80)
        found = self.make(build_saliency("transformers", {**options, "trust_remote_code": True}), image, tmp_path)
        assert marker.exists()
        assert auc(found, disc(60, 80)) > 0.95  # this network's saliency is brightness

    def test_another_model_is_another_key(self, source: SaliencySource, tmp_path: Path) -> None:
        image = picture(5, 5)
        other = build_saliency("transformers", {"model": str(save_network(tmp_path / "other", labels=2))})
        assert other.fingerprint(sample_of(image)) != source.fingerprint(sample_of(image))

    def test_no_such_model(self, tmp_path: Path) -> None:
        with pytest.raises(MixsupError, match=r"no such folder.*give model=NAME"):
            build_saliency("transformers", {"model": str(tmp_path / "nowhere")}).check()

    def test_no_segmentation_network(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "bert", "num_labels": 1}')
        image = picture(5, 5)
        with pytest.raises(MixsupError, match="cannot be loaded on cpu") as caught:
            build_saliency("transformers", {"model": str(tmp_path), "side": 32, "device": "cpu"})(image, sample_of(image))
        assert len(str(caught.value).splitlines()) == 1


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MixsupError, match=r"needs transformers; pip install 'mixsup\[sam\]'"):
        build_saliency("transformers", {"model": str(tmp_path)}).check()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "no saliency source 'magic'; there are background"),
        ("background", {"side": 0}, "setting 'side'"),
        ("background", {"colours": 1}, "setting 'colours'"),
        ("opencv", {"method": "magic"}, "setting 'method'"),
        ("files", {}, "setting 'folder'"),
        ("transformers", {}, "setting 'model'"),
    ],
)
def test_bad_choice(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        build_saliency(name, options)
    assert len(str(caught.value).splitlines()) == 1


def test_stretched() -> None:
    assert stretched(np.array([[np.nan, 2.0], [3.0, 4.0]])).tolist() == [[0, 0], [0.5, 1]]
    assert stretched(np.array([[np.inf, 2.0], [-np.inf, 4.0]])).tolist() == [[0, 0], [0, 1]]
    for flat in (np.full((2, 2), np.nan), np.full((2, 2), 7.0), np.array([[5.0, 5.0 + 1e-9]])):
        assert not stretched(flat).any()


def test_resized_stays_in_range() -> None:
    assert resized(np.array([[1.0]], np.float32), (3, 4)).tolist() == [[1.0] * 4] * 3
    assert resized(np.array([[0.0, 1.0]], np.float32), (1, 2)).tolist() == [[0.0, 1.0]]
