"""Every mask source through the contract, and what each promises besides."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixsup.data.palette import palette_png
from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.masks import BoxMasks, build_source
from mixsup.masks.crf import BoxCRF, affinity, groups
from mixsup.masks.grabcut_plus import GrabCutPlus
from mixsup.masks.mcg_grabcut import agree
from mixsup.masks.source import MaskSource
from mixsup.masks.tight import smallest_tight
from tests.masks.contract import MaskSourceContract, many_boxes, picture


class TestRectangle(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("rectangle")

    def test_fills_the_box(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(30, 40), Boxes.of([((2.5, 3.2, 20.7, 19.9), 1, False)]), tmp_path)
        assert masks.windows.tolist() == [[2, 3, 21, 20]]
        assert (masks.masks[0] == 1).all()


class TestInnerRectangle(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("rectangle", {"inner": 0.2})

    @pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
    def test_the_middle_has_its_share_and_the_rest_is_ignored(self, share: float, tmp_path: Path) -> None:
        boxes = Boxes.of([((10, 20, 110, 80), 1, False), ((3, 3, 4, 4), 2, False)])
        large, small = self.make(build_source("rectangle", {"inner": share}), picture(100, 120), boxes, tmp_path).masks
        assert set(np.unique(large)) == {1, 255}
        assert (large == 1).mean() == pytest.approx(share, abs=0.02)
        rows, columns = np.nonzero(large == 1)
        assert abs((rows.min() + rows.max()) / 2 - 29.5) <= 0.5
        assert abs((columns.min() + columns.max()) / 2 - 49.5) <= 0.5
        assert (columns.max() + 1 - columns.min()) / (rows.max() + 1 - rows.min()) == pytest.approx(100 / 60, rel=0.05)
        assert small.tolist() == [[1]]

    def test_filled_boxes_keep_their_place_in_the_cache(self) -> None:
        assert build_source("rectangle").settings() == build_source("rectangle", {"inner": 1.0}).settings() == {}
        assert build_source("rectangle", {"inner": 0.2}).settings() == {"inner": 0.2}


class TestGrabCut(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("grabcut")

    def test_finds_a_disc(self, source: MaskSource, tmp_path: Path) -> None:
        assert self.disc_overlap(source, tmp_path) > 0.97

    def test_a_collapsed_cut_stays_a_rectangle(self, tmp_path: Path) -> None:
        source = build_source("grabcut", {"least": 1.0})
        assert (self.make(source, picture(60, 60), Boxes.of([((5, 5, 55, 55), 1, False)]), tmp_path).masks[0] == 1).all()

    def test_small_box_of_a_large_image_keeps_its_detail(self, source: MaskSource, tmp_path: Path) -> None:
        image = np.random.default_rng(3).integers(20, 60, (2000, 2000, 3), dtype=np.uint8)
        image[700:760, 700:760] = picture(60, 60)
        masks = self.make(source, image, Boxes.of([((705, 705, 755, 755), 1, False)]), tmp_path)
        assert 0.4 < (masks.masks[0] == 1).mean() < 0.6  # the disc of radius 20 has 1257 of 2500 pixels


class TestFiles(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("files", {"folder": str(tmp_path)})

    def prepare(self, image: UInt8, sample: Sample, folder: Path) -> None:
        target = np.zeros(sample.size, np.uint8)
        assert sample.boxes is not None
        for (x0, y0, x1, y1), class_id in zip(sample.boxes.windows(sample.size), sample.boxes.classes, strict=True):
            target[y0:y1, x0:x1] = class_id
        target[-1:] = 255
        (folder / "one.png").write_bytes(palette_png(target))

    def test_reads_foreground_and_void(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(30, 40), Boxes.of([((5, 5, 20, 30), 3, False)]), tmp_path)
        assert (masks.masks[0][:-1] == 1).all()
        assert (masks.masks[0][-1] == 255).all()

    def test_mask_of_another_size(self, source: MaskSource, tmp_path: Path) -> None:
        (tmp_path / "one.png").write_bytes(palette_png(np.zeros((9, 9), np.uint8)))
        boxes = Boxes.of([((0, 0, 5, 5), 1, False)])
        with pytest.raises(MixsupError, match="9 x 9 pixels, its image 40 x 30; write it at the size"):
            source(picture(30, 40), boxes, Sample("one", Path("one.png"), (30, 40), boxes=boxes))

    @pytest.mark.parametrize("value", [255, 101])
    def test_pixels_that_are_no_class_ids(self, source: MaskSource, tmp_path: Path, value: int) -> None:
        target = np.zeros((30, 40), np.uint8)
        target[5:20, 5:20] = value
        (tmp_path / "one.png").write_bytes(palette_png(target))
        boxes = Boxes.of([((5, 5, 20, 20), 1, False)])
        with pytest.raises(MixsupError, match=f"no box has a pixel of its class in it .its pixels are 0, {value}.; pixels are class ids"):
            source(picture(30, 40), boxes, Sample("one", Path("one.png"), (30, 40), boxes=boxes))


@pytest.mark.parametrize("name", ["grabcut", "grabcut-plus", "tight", "crf", "mcg-grabcut"])
def test_a_very_long_image(name: str) -> None:
    image, boxes = np.random.default_rng(0).integers(0, 256, (6, 7000, 3), dtype=np.uint8), Boxes.of([((0, 0, 6900, 6), 1, False)])
    source = build_source(name)
    assert len(source(image, boxes, Sample("one", Path("one.png"), (6, 7000), boxes=boxes))) == 1

    def test_missing_mask(self, source: MaskSource) -> None:
        with pytest.raises(MixsupError, match=r"one\.png: cannot be read"):
            source.fingerprint(Sample("one", Path("one.png"), (30, 40)))


class TestGrabCutPlus(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("grabcut-plus")

    def test_finds_a_disc(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(120, 120), Boxes.of([((18, 18, 102, 102), 1, False)]), tmp_path)
        rows, columns = np.indices((84, 84)) - 42
        disc = rows**2 + columns**2 < 40**2
        known = masks.masks[0] != 255
        found = masks.masks[0] == 1
        assert known.mean() > 0.95
        assert (found & disc).sum() / ((found | disc) & known).sum() > 0.97

    def test_decides_as_the_paper_says(self) -> None:
        share = np.array([[0.0, 0.2, 0.21, 0.5, 0.69, 0.7, 1.0]], np.float32)
        assert GrabCutPlus()._decide(share).tolist() == [[0, 0, 255, 255, 255, 1, 1]]

    def test_a_box_alone_decides_its_mask(self, source: MaskSource, tmp_path: Path) -> None:
        box, other = ((18, 18, 102, 102), 1, False), ((0, 0, 60, 60), 2, False)
        alone = self.make(source, picture(120, 120), Boxes.of([box]), tmp_path).masks[0]
        assert np.array_equal(alone, self.make(source, picture(120, 120), Boxes.of([other, box]), tmp_path).masks[1])


class TestMCGGrabCut(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("mcg-grabcut")


def test_agreement() -> None:
    values = np.array([0, 1, 255], np.uint8)
    one, two = np.repeat(values, 3)[None], np.tile(values, 3)[None]
    window, classes = np.array([[0, 0, 9, 1]]), np.array([1])
    agreed = agree(*(BoxMasks((1, 9), window, classes, np.array([False]), (mask,)) for mask in (one, two)))
    for first, second, both in zip(one[0], two[0], agreed.masks[0][0], strict=True):
        assert both == (first if first == second else 255)
    crowd = agree(*(BoxMasks((1, 9), window, classes, np.array([True]), (mask,)) for mask in (one, two)))
    assert (crowd.masks[0] == 1).all()


class TestTight(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("tight")

    def test_finds_a_disc(self, source: MaskSource, tmp_path: Path) -> None:
        assert self.disc_overlap(source, tmp_path) > 0.97

    def test_is_one_of_three(self, source: MaskSource, tmp_path: Path) -> None:
        image, boxes = picture(60, 80), many_boxes((60, 80), 6)
        crf, grabcut, found = (
            self.make(each, image, boxes, tmp_path).masks for each in (build_source("crf"), build_source("grabcut"), source)
        )
        for one, two, mask in zip(crf, grabcut, found, strict=True):
            assert any(np.array_equal(mask, candidate) for candidate in (one, two, one & two))
            assert mask.sum() <= one.sum()


def slow_choice(one: list[list[int]], two: list[list[int]], tightness: float, least: float) -> list[list[int]]:
    """The smallest of three masks, by loops over their pixels."""

    def pixels(mask: list[list[int]]) -> list[tuple[int, int]]:
        return [(y, x) for y, row in enumerate(mask) for x, value in enumerate(row) if value == 1]

    best = one
    for mask in (two, [[int(a == 1 and b == 1) for a, b in zip(*rows, strict=True)] for rows in zip(one, two, strict=True)]):
        found = pixels(mask)
        if not found or len(found) < least * len(mask) * len(mask[0]):
            continue
        tall, wide = (max(place[axis] for place in found) - min(place[axis] for place in found) + 1 for axis in (0, 1))
        if tall * wide >= tightness * len(mask) * len(mask[0]) and len(found) < len(pixels(best)):
            best = mask
    return best


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    fill=st.floats(0, 1),
    tightness=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    least=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_smallest_that_is_tight(seed: int, height: int, width: int, fill: float, tightness: float, least: float) -> None:
    generator = np.random.default_rng(seed)
    one, two = (
        np.where(generator.random((height, width)) < fill, 1, generator.choice([0, 255], (height, width))).astype(np.uint8)
        for _ in range(2)
    )
    window, classes, crowd = np.array([[0, 0, width, height]]), np.array([1]), np.array([False])
    first, second = (BoxMasks((height, width), window, classes, crowd, (mask,)) for mask in (one, two))
    assert smallest_tight(first, second, tightness, least).masks[0].tolist() == slow_choice(one.tolist(), two.tolist(), tightness, least)


@pytest.fixture(scope="module")
def tiny_sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SAM of 27,000 random weights, saved as any checkpoint is."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
              "mlp_dim": 16, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 8}  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_depth": 2,
        "iou_head_hidden_dim": 16,
    }
    folder = tmp_path_factory.mktemp("sam")
    transformers.SamModel(
        transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    ).save_pretrained(folder)
    sizes = {"pad_size": {"height": 64, "width": 64}, "mask_size": {"longest_edge": 16}, "mask_pad_size": {"height": 16, "width": 16}}
    transformers.SamProcessor(transformers.SamImageProcessor(size={"longest_edge": 64}, **sizes)).save_pretrained(folder)
    return folder


class TestSAM(MaskSourceContract):
    @pytest.fixture
    def source(self, tiny_sam: Path) -> MaskSource:
        return build_source("sam", {"checkpoint": str(tiny_sam)})

    @pytest.mark.parametrize("height", [1, 3])
    def test_picture_of_as_many_rows_as_channels(self, height: int, source: MaskSource, tmp_path: Path) -> None:
        self.make(source, picture(height, 40), Boxes.of([((2, 0, 30, height), 1, False)]), tmp_path)

    def test_is_what_transformers_says(self, source: MaskSource, tiny_sam: Path, tmp_path: Path) -> None:
        """Against the plain use of the library: all boxes at once, all three masks at full size."""
        import torch
        from transformers import SamModel, SamProcessor

        image, boxes = picture(50, 70), many_boxes((50, 70), 7)
        model, processor = SamModel.from_pretrained(tiny_sam).eval(), SamProcessor.from_pretrained(tiny_sam)
        ready = processor(image, input_boxes=[boxes.xyxy.tolist()], return_tensors="pt")
        with torch.no_grad():
            answer = model(pixel_values=ready["pixel_values"], input_boxes=ready["input_boxes"].float())
        whole = processor.image_processor.post_process_masks(answer.pred_masks, ready["original_sizes"], ready["reshaped_input_sizes"])[0]
        in_parts = build_source("sam", {"checkpoint": str(tiny_sam), "batch": 3})
        for made in (self.make(source, image, boxes, tmp_path), self.make(in_parts, image, boxes, tmp_path)):
            for index, (x0, y0, x1, y1) in enumerate(made.windows):
                best = whole[index, int(answer.iou_scores[0, index].argmax()), y0:y1, x0:x1].numpy()
                assert (made.masks[index] == (best if best.any() else 1)).mean() > 0.999  # what it does not find stays a rectangle

    def test_another_checkpoint_is_another_key(self, source: MaskSource, tiny_sam: Path, tmp_path: Path) -> None:
        sample = Sample("one", Path("one.png"), (5, 5))
        copy = tmp_path / "copy"
        shutil.copytree(tiny_sam, copy)
        other = build_source("sam", {"checkpoint": str(copy)})
        assert other.fingerprint(sample) == source.fingerprint(sample)
        changed = tmp_path / "changed"
        shutil.copytree(tiny_sam, changed)
        with (changed / "model.safetensors").open("r+b") as handle:
            handle.seek(-1, 2)
            handle.write(b"x")
        assert build_source("sam", {"checkpoint": str(changed)}).fingerprint(sample) != source.fingerprint(sample)

    def test_no_such_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(MixsupError, match=r"no such folder.*give the setting `checkpoint`"):
            build_source("sam", {"checkpoint": str(tmp_path / "nowhere")}).check()

    def test_another_model(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises(MixsupError, match="is no SAM"):
            build_source("sam", {"checkpoint": str(tmp_path)}).check()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "no mask source 'magic'; there are rectangle"),
        ("grabcut", {"iterations": 0}, "setting 'iterations'"),
        ("grabcut", {"colour": 1}, "setting 'colour'"),
        ("files", {}, "setting 'folder'"),
    ],
)
def test_bad_choice(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        build_source(name, options)
    assert len(str(caught.value).splitlines()) == 1


class TestBoxCRF(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("crf")

    def test_finds_the_disc(self, source: MaskSource, tmp_path: Path) -> None:
        image = picture(90, 120)
        boxes = Boxes.of([((30, 15, 90, 75), 2, False)])
        mask = self.make(source, image, boxes, tmp_path).masks[0]
        truth = image[15:75, 30:90, 0] > 100
        assert (mask[truth] == 1).mean() > 0.95
        assert (mask[~truth] == 1).mean() < 0.1

    def test_plain_form(self, tmp_path: Path) -> None:
        boxes = Boxes.of([((30, 15, 90, 75), 2, False)])
        mask = self.make(build_source("crf", {"rounds": 0}), picture(90, 120), boxes, tmp_path).masks[0]
        assert 0.5 < (mask == 1).mean() < 0.98

    @pytest.mark.parametrize(
        "side, options, spread",
        [
            (20, {}, 0.6),
            (84, {}, 0.6),
            (105, {}, 0.48),
            (140, {}, 0.36),
            (300, {}, 0.36),
            (300, {"narrow": 0.9}, 0.6),
            (42, {"superpixel": 4}, 0.6),
        ],
    )
    def test_prior(self, side: int, options: dict[str, float], spread: float) -> None:
        source = BoxCRF(**options)  # type: ignore[arg-type]
        parts = np.arange(side * (side + 6)).reshape(side, side + 6)  # each pixel its own superpixel
        rows, columns = np.indices(parts.shape)
        centres = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1).astype(np.float32)
        inner = np.array([[3, 0, side + 3, side]])
        prior = source._prior(parts, np.ones(parts.size, np.float32), centres, inner.astype(np.float64), inner)
        for y, x in ((0, 3), (side // 2, side // 2), (side // 4, 3 + side // 3), (side - 1, side + 2)):
            u, v = ((x + 0.5 - 3) / side * 2 - 1, (y + 0.5) / side * 2 - 1)
            assert prior[1, parts[y, x]] == pytest.approx(0.5 + 0.4 * np.exp(-(u**2 + v**2) / (2 * spread**2)), abs=1e-5)
        assert (prior[1, parts[:, :3].ravel()] == 0).all()
        np.testing.assert_allclose(prior.sum(axis=0), 1, atol=1e-5)

    def test_box_that_is_the_whole_picture(self, source: MaskSource, tmp_path: Path) -> None:
        image = picture(90, 120)
        mask = self.make(source, image, Boxes.of([((0, 0, 120, 90), 2, False)]), tmp_path).masks[0]
        truth = image[..., 0] > 100
        assert (mask[truth] == 1).mean() > 0.95
        assert (mask[~truth] == 1).mean() < 0.3  # without a rim of ground the whole picture would be the object

    def test_far_boxes_are_apart(self) -> None:
        windows = np.array([[0, 0, 20, 20], [15, 15, 40, 40], [900, 900, 950, 960], [930, 880, 990, 930], [500, 10, 510, 20]])
        found = groups(windows, np.array([True, True, True, True, False]), 0.25, (1000, 1000))
        assert [members.tolist() for _, members in found] == [[0, 1], [2, 3]]
        for window, members in found:
            assert (window[:2] <= windows[members, :2]).all()
            assert (window[2:] >= windows[members, 2:]).all()

    def test_affinity(self) -> None:
        generator = np.random.default_rng(0)
        one, two = generator.normal(size=(7, 3)).astype(np.float32), generator.normal(size=(7, 2)).astype(np.float32)
        for i in range(7):
            for j in range(7):
                wanted = 0.0 if i == j else np.exp(-0.5 * (((one[i] - one[j]) ** 2).sum() + ((two[i] - two[j]) ** 2).sum()))
                assert affinity(one, two)[i, j] == pytest.approx(wanted, abs=1e-5)
