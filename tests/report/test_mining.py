"""Mining on the page: the numbers of each step of a round, and the pictures; of a run that lost files as well."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import mixsup.report.mining as module
from mixsup.data import load_dataset
from mixsup.data.image import read_mask
from mixsup.data.sample import Float32, Sample
from mixsup.engine.checkpoint import load_weights
from mixsup.engine.helping import tagged_samples
from mixsup.engine.mining import _predict_seeds
from mixsup.engine.options import Options
from mixsup.engine.prepare import prepare
from mixsup.engine.refresh import use_round
from mixsup.engine.run import Run
from mixsup.engine.seeds import plant
from mixsup.masks.superpixels import Regions
from mixsup.metrics import confusion, iou_per_class
from mixsup.recipe import Refresh, Stage
from mixsup.refresh.mcof import MCOF
from mixsup.report import write_report
from mixsup.report.mining import (
    PIXELS,
    REFINED,
    REGIONS,
    SEEDS,
    STAGES,
    VALIDATION,
    Mined,
    Mining,
    Score,
    by_round,
    read_mining,
    write_mining,
)
from mixsup.report.page import _render
from mixsup.report.rounds import Progress, Quality, read_quality
from tests import tiny
from tests.data.make import make_voc, mask_of
from tests.report.test_page import HOSTILE, make_hostile

SETTINGS = ("masks.tag_options.training=0.5", "masks.tag_options.scales=[1.0]")
ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, at steps 0 and 2 of 5; class `cat` has a name that wants to be HTML."""
    folder = tmp_path_factory.mktemp("mining")
    tiny.run(make_hostile(folder / "data"), folder / "run", "mcof", 5, (*SETTINGS, "refresh.rounds=1"), labels="tags", report=True)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def section(page: Path, name: str = "mining") -> str:
    text = page.read_text()
    return text[text.index(f'id="{name}"') :].split("</section>")[0]


def captions(text: str) -> list[str]:
    return re.findall(r"<figcaption>(.*?)</figcaption>", text)


def change_options(run: Path, **options: object) -> None:
    """As if the run had been made with other settings of its rule."""
    opened = Run.load(run)
    refresh = opened.recipe.refresh.model_copy(update={"options": options})
    (run / "recipe.yaml").write_text(opened.recipe.model_copy(update={"refresh": refresh}).to_yaml())


def move_away(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "data": "nowhere"}))


def miou(folder: Path) -> float:
    matrix = sum(confusion(mask_of(key), read_mask(folder / f"{key}.png"), 4) for key in "abcd")
    return float(np.nanmean(iou_per_class(np.asarray(matrix))))


class TestTable:
    def test_numbers_are_those_of_the_files(self, trained: Path) -> None:
        rows, masks = read_mining(trained / "run"), trained / "run" / "masks"
        assert [(row.round, row.stage) for row in rows] == [
            *((1, stage) for stage in STAGES),
            *((2, stage) for stage in (SEEDS, REGIONS, PIXELS, VALIDATION)),
        ]
        assert [row.images for row in rows] == [4, 4, 4, 4, 2, 4, 4, 4, 2]
        found = {(row.round, row.stage): row.miou for row in rows}
        expected = {
            (1, SEEDS): masks / "round-0",
            (1, REGIONS): masks / "round-1" / "regions",
            (1, REFINED): masks / "round-1",
            (1, PIXELS): masks / "round-2" / "seeds",
            (2, SEEDS): masks / "round-2" / "seeds",
            (2, REGIONS): masks / "round-2" / "regions",
        }
        for key, folder in expected.items():
            assert found[key] == pytest.approx(miou(folder), abs=1e-6), key
        validations = [float(row["miou"]) for row in Run.load(trained / "run").metrics() if row["miou"]]
        assert [found[1, VALIDATION], found[2, VALIDATION]] == pytest.approx(validations)

    def test_the_file(self, trained: Path) -> None:
        lines = (trained / "run" / "mining.csv").read_text().splitlines()
        assert lines[0] == "round,stage,images,miou"
        assert re.fullmatch(r"1,seeds,4,0\.\d{6}", lines[1])

    def test_written_again_it_is_the_same(self, run: Path) -> None:
        before = [(run / name).read_bytes() for name in ("mining.csv", "report.html")]
        write_report(run)
        assert [(run / name).read_bytes() for name in ("mining.csv", "report.html")] == before

    def test_the_last_round_is_that_of_the_last_weights(self, run: Path) -> None:
        """The best weights may be of an earlier round."""
        before = read_mining(run)
        (run / "last.safetensors").unlink()
        write_report(run)
        assert read_mining(run) == [row for row in before if (row.round, row.stage) != (2, PIXELS)]

    @pytest.mark.parametrize("noise", [False, True])
    def test_the_last_round_is_what_another_one_would_begin_with(
        self, run: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: bool
    ) -> None:
        """Shares of the classes are held in it as in the rounds before; what the run's own function makes of the last weights, and of scores that are noise."""

        def noisy(model: object, seen: object, sample: Sample, regions: Regions, *more: object) -> Float32:
            return np.random.default_rng(ord(sample.id)).normal(size=(4, *regions.shape)).astype(np.float32)

        for place in ("engine", "report") if noise else ():
            monkeypatch.setattr(f"mixsup.{place}.mining.log_scores", noisy)
        opened, dataset = Run.load(run), load_dataset(trained / "data", "train")
        options = Options(labels="tags", resume=True, accelerator="cpu", precision="32-true", workers=0, quiet=True)
        job = prepare(trained / "data", opened.recipe, run, options)[-1]
        plant(job)
        mining = Mining(opened, dataset)
        use_round(job, mining.rounds[-1].number)
        load_weights(run / "last.safetensors", job.bare)
        assert isinstance(job.rule, MCOF)
        assert job.rule.held == "all"
        assert job.cam is not None
        tagged = tagged_samples(job)
        paths = {sample.id: tmp_path / f"{sample.id}.png" for sample in tagged}
        _predict_seeds(job, job.rule, job.cam.superpixels, tagged, paths, dict(job.targets.labels))
        for sample in tagged:
            assert np.array_equal(mining.labels(sample, mining.rounds[-1], PIXELS), read_mask(paths[sample.id]))
        assert np.abs(mining._offsets).max() > 0.1 or not noise

    def test_weights_of_before_the_last_round_say_nothing_of_it(self, run: Path, trained: Path) -> None:
        """A run that was stopped: the weights are those that made the round."""
        mining = Mining(Run.load(run), load_dataset(trained / "data", "train"))
        assert mining._pixel_net is not None
        assert mining._pixel_net[1] == 5
        mining._pixel_net = (mining._pixel_net[0], 2)
        assert (2, PIXELS) not in {(row.round, row.stage) for row in mining.scores()}

    def test_only_some_images_are_predicted_again(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "PREDICTED", 2)
        text = section(write_report(run))
        assert [row.images for row in read_mining(run) if row.stage == PIXELS] == [4, 2]
        assert text.count("(2 images)") == 1

    def test_rounds_that_do_not_mine_have_no_regions(self, run: Path) -> None:
        change_options(run, mined=1)
        write_report(run)
        assert [row.round for row in read_mining(run) if row.stage == REGIONS] == [1]

    def test_without_saliency_nothing_is_refined(self, run: Path) -> None:
        change_options(run, saliency="none")
        text = section(write_report(run))
        assert {row.stage for row in read_mining(run)} == set(STAGES) - {REFINED}
        assert "with saliency" not in text

    def test_settings_that_no_rule_has(self, run: Path) -> None:
        change_options(run, nonsense=1)
        assert 'id="mining"' not in write_report(run).read_text()
        assert not (run / "mining.csv").exists()

    def test_a_stage_ends_its_last_round(self, trained: Path) -> None:
        """What the network is at the end of the run says nothing of a round in an earlier stage."""
        loaded = Run.load(trained / "run")
        stages = [Stage(name="mining", share=4, refresh=loaded.recipe.refresh), Stage(name="after")]
        staged = Run(loaded.folder, loaded.recipe.model_copy(update={"refresh": Refresh(), "stages": stages}), loaded.classes, loaded.facts)
        mining = Mining(staged, load_dataset(trained / "data", "train"))
        assert [(one.number, one.step, one.end, one.last) for one in mining.rounds] == [(1, 0, 2, False), (2, 2, 4, False)]
        assert {row.stage for row in mining.scores() if row.round == 2} == {SEEDS, REGIONS}

    def test_a_broken_file_is_none(self, tmp_path: Path) -> None:
        assert read_mining(tmp_path) == []
        rows = [Score(1, SEEDS, 3, 0.25), Score(2, VALIDATION, 2, 0.5)]
        write_mining(tmp_path, rows)
        assert read_mining(tmp_path) == rows
        assert [(number, list(cells)) for number, cells in by_round(rows)] == [(1, [SEEDS]), (2, [VALIDATION])]
        for text in ("", "round\n1\n", "round,stage,images,miou\n1,seeds,x,0.5\n", "round,stage,images,miou\n1,nonsense,2,0.5\n"):
            (tmp_path / "mining.csv").write_text(text)
            assert read_mining(tmp_path) == []
        write_mining(tmp_path, [])
        assert not (tmp_path / "mining.csv").exists()


class TestPictures:
    def test_the_section(self, trained: Path) -> None:
        text = section(trained / "run" / "report.html")
        assert re.findall(r"<header><b>(\w+)</b>", text) == ["a", "b", "c"]  # d has no tag
        steps = ["seeds", "RegionNet, round 1", "with saliency", "PixelNet, round 1", "PixelNet, round 2", "truth"]
        assert captions(text) == [
            *("image", f"map: {ESCAPED}", *steps),
            *("image", "map: bird", "map: dog", *steps),
            *("image", f"map: {ESCAPED}", *steps),
        ]
        assert text.count("<img") == len(captions(text))
        assert HOSTILE not in text

    def test_names_are_text(self, run: Path) -> None:
        page = _render(
            Run.load(run), None, [], [], [], mined=[Score(1, SEEDS, 4, 0.5)], mined_images=[Mined(HOSTILE, ((HOSTILE, "data:,"),))]
        )
        assert HOSTILE not in page
        assert page.count(ESCAPED) > 3

    def test_files_that_are_gone_cost_their_pictures(self, run: Path) -> None:
        (run / "mining" / "classifier.safetensors").write_bytes(b"nothing")
        (run / "masks" / "round-1" / "regions" / "a.png").unlink()
        (run / "masks" / "round-0" / "b.png").write_bytes(b"nothing")
        shutil.rmtree(run / "masks" / "round-2")
        found = captions(section(write_report(run)))
        assert found.count("no RegionNet, round 1") == 1
        assert found.count("no seeds") == 1
        assert found.count("no PixelNet, round 2") == 3
        assert sum(caption.startswith("no map: ") for caption in found) == 4
        assert found.count("truth") == 3
        images = {(row.round, row.stage): row.images for row in read_mining(run)}
        assert images == {(1, SEEDS): 3, (1, REGIONS): 3, (1, REFINED): 4, (1, VALIDATION): 2, (2, VALIDATION): 2}

    def test_labels_of_another_image_are_not_shown(self, run: Path) -> None:
        from PIL import Image

        Image.fromarray(np.zeros((7, 9), np.uint8)).save(run / "masks" / "round-0" / "a.png")
        Image.fromarray(np.full((30, 40), 99, np.uint8)).save(run / "masks" / "round-0" / "b.png")
        assert captions(section(write_report(run))).count("no seeds") == 2

    def test_without_any_labels(self, run: Path) -> None:
        shutil.rmtree(run / "masks")
        shutil.rmtree(run / "mining")
        (run / "mining.csv").unlink()
        text = section(write_report(run))
        assert "<img" not in text
        assert {row.stage for row in read_mining(run)} == {VALIDATION}

    def test_images_that_are_gone(self, run: Path, trained: Path, tmp_path: Path) -> None:
        shutil.copytree(trained / "data", tmp_path / "data")
        (tmp_path / "data" / "JPEGImages" / "a.jpg").unlink()
        text = section(write_report(run, data=tmp_path / "data"))
        assert re.findall(r"<header><b>(\w+)</b>", text) == ["b", "c"]

    def test_without_photographs_the_table_stays(self, run: Path) -> None:
        text = section(write_report(run, pictures=False))
        assert "<img" not in text
        assert text.count("<tr>") == 3

    def test_without_truth(self, run: Path, trained: Path, tmp_path: Path) -> None:
        shutil.copytree(trained / "data", tmp_path / "data")
        shutil.rmtree(tmp_path / "data" / "SegmentationClass")
        (run / "mining.csv").unlink()
        text = section(write_report(run, data=tmp_path / "data"))
        assert captions(text).count("no truth") == 3
        assert {row.stage for row in read_mining(run)} == {VALIDATION}

    def test_moved_data_keep_the_numbers_of_the_first_report(self, run: Path) -> None:
        before = read_mining(run)
        move_away(run)
        text = section(write_report(run))
        assert read_mining(run) == before
        assert "<img" not in text
        (run / "mining.csv").unlink()
        write_report(run)
        assert {row.stage for row in read_mining(run)} == {VALIDATION}


class TestRoundsOfTags:
    def test_quality_is_that_of_the_labels(self, trained: Path) -> None:
        rows = read_quality(trained / "run")
        assert [(row.round, row.step, row.boxes, row.kind) for row in rows] == [(0, 0, 4, "tags"), (1, 0, 4, "tags"), (2, 2, 4, "tags")]
        for row in rows:
            assert row.miou == pytest.approx(miou(trained / "run" / "masks" / f"round-{row.round}"), abs=1e-6)

    def test_the_section(self, trained: Path) -> None:
        text = section(trained / "run" / "report.html", "rounds")
        assert "Labels over the rounds" in text
        assert re.findall(r"<header><b>(\w+)</b>", text) == ["a", "b", "c"]
        steps = ["seeds", "round 1", "round 2", "truth"]
        assert captions(text) == [f"tags: {ESCAPED}", *steps, "tags: bird, dog", *steps, f"tags: {ESCAPED}", *steps]
        assert "boxes" not in text

    def test_lines(self) -> None:
        assert str(Quality(3, 9, 20, 7, 0.5, 0.0, "tags")) == "round 3, step 9: 7 of 20 tagged images changed, mean IoU with truth 50.0 %"
        assert str(Quality(0, 0, 20, 0, 0.5, kind="tags")) == "seeds: mean IoU with truth 50.0 %"

    def test_older_files_are_of_boxes(self, tmp_path: Path) -> None:
        (tmp_path / "mask_quality.csv").write_text("round,step,boxes,changed,miou,ignored\n0,0,3,0,0.25,\n")
        assert read_quality(tmp_path) == [Quality(0, 0, 3, 0, 0.25)]

    def test_a_run_that_renewed_both_kinds_has_two_sections(self, run: Path) -> None:
        rows = [Quality(0, 0, 3, 0), Quality(1, 4, 3, 3), *(Quality(number, 0, 4, number, kind="tags") for number in range(3))]
        figure = [Progress("of boxes", "data:,", ("", ""), ""), Progress("of tags", "data:,", ("", "", ""), "", "tags", (HOSTILE,))]
        (run / "report.html").write_text(_render(Run.load(run), None, [], rows, figure))
        boxes, tags = section(run / "report.html", "rounds"), section(run / "report.html", "rounds-tags")
        assert "of boxes" in boxes
        assert "of tags" not in boxes
        assert ESCAPED in tags
        assert HOSTILE not in tags


def test_seeds_alone(tmp_path: Path) -> None:
    """The recipe `cam` has no rounds."""
    run = tiny.run(make_voc(tmp_path / "data"), tmp_path / "run", "cam", 3, SETTINGS, labels="tags", report=True).folder
    page = run / "report.html"
    assert [(row.round, row.boxes, row.kind) for row in read_quality(run)] == [(0, 4, "tags")]
    assert read_quality(run)[0].miou == pytest.approx(miou(run / "masks" / "round-0"), abs=1e-6)
    assert "<svg" not in section(page, "rounds")
    assert captions(section(page)) == [
        *("image", "map: cat", "seeds", "truth"),
        *("image", "map: bird", "map: dog", "seeds", "truth"),
        *("image", "map: cat", "seeds", "truth"),
    ]
    assert not (run / "mining.csv").exists()
    move_away(run)
    assert [row.miou for row in read_quality(run)] != [None]
    assert 'id="mining"' not in write_report(run).read_text()
