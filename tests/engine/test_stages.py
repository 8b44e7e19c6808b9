"""Runs in stages, with masking heads and the filling-rate loss, on tiny data: what they leave, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixsup.data import load_dataset
from mixsup.data.palette import palette_png
from mixsup.data.sample import Boxes
from mixsup.engine import train as engine
from mixsup.engine.api import evaluate
from mixsup.engine.api import load as load_run
from mixsup.engine.batches import Targets, TrainingViews
from mixsup.engine.options import Options
from mixsup.engine.prepare import prepare
from mixsup.engine.refresh import read_rounds
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.files import write_bytes
from mixsup.losses import Criterion
from mixsup.masks.filling import load_rates, measure
from mixsup.masks.store import load
from mixsup.recipes import load_recipe
from tests import processes, tiny
from tests.data.make import make_coco, make_folders, make_voc
from tests.engine.test_kill import command
from tests.engine.test_train import same, weights

BCM = ["baseline-crf", "bcm", "bcm-only", "bcm-semi", "bgm", "cm", "fr-loss", "fr-loss-refine", "global-loss"]
FAST = ("masks=ucm",)  # the first masks of the CRF take seconds; these do not, and fill noise by 60 to 90 %


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "data")


@pytest.mark.parametrize("name", BCM)
def test_every_recipe_of_the_paper_trains(data: Path, tmp_path: Path, name: str) -> None:
    run = tiny.run(data, tmp_path / "run", name, steps=10, settings=FAST, labels="masks=1,boxes=3", report=name == "bcm")
    rows = [row for row in run.metrics() if row["loss"]]
    assert [int(row["step"]) for row in rows] == [1, 5, 8, 10]
    assert [bool(row["head"]) for row in rows] == [False, False, False, name in ("bcm", "bcm-only", "bcm-semi", "bgm")]
    assert ("head.weight" in weights(tmp_path / "run")) == (run.recipe.head != "plain")
    assert load_run(tmp_path / "run").predict(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40)
    if name in ("bcm", "fr-loss"):
        rates = load_rates(tmp_path / "run" / "filling_rates.json")
        assert rates.source == "ucm"
        assert set(rates.assignment) == {key for key, kind in run.kinds().items() if kind == "boxes"}


@pytest.mark.parametrize(
    ("restart", "left"), [("never", [7 / 8, 4 / 8, 1 / 8]), ("stages", [1 / 2, 4 / 6, 1 / 6]), ("rounds", [1 / 2, 1 / 3, 1 / 3])]
)
def test_rates_fall_over_the_run_a_stage_or_a_round(data: Path, tmp_path: Path, restart: str, left: list[float]) -> None:
    """Stages of two and six steps, the second with a refresh in its middle; `left` is what poly's share is at the last step of each stretch."""
    settings = (
        "stages=[{name: one, refresh: {rule: none}}, {name: two, share: 3}]",
        "refresh=direct",
        "refresh.rounds=1",
        f"train.restart={restart}",
        "train.power=1",
        "train.validations=1",
    )
    run = tiny.run(data, tmp_path / "run", steps=8, settings=settings, labels="boxes")
    rates = {int(row["step"]): float(row["lr"]) / run.recipe.train.lr for row in run.metrics() if row["lr"]}
    assert rates == pytest.approx(dict(zip([2, 5, 8], left, strict=True)), rel=1e-5)


def test_stages_learn_at_their_own_rates(data: Path, tmp_path: Path) -> None:
    settings = ("stages=[{name: one, train: {decay: constant}}, {name: two, share: 3, train: {lr: 1e-5, decay: constant}}]",)
    run = tiny.run(data, tmp_path / "run", steps=8, settings=settings, labels="boxes")
    assert {int(row["step"]): float(row["lr"]) for row in run.metrics() if row["loss"]} == {2: 2.5e-4, 4: 1e-5, 8: 1e-5}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "stage 1 of 2, one: steps 1 to 2" in log
    assert "stage 2 of 2, two: steps 3 to 8" in log


def test_the_weight_of_the_maps_loss(data: Path, tmp_path: Path) -> None:
    """λ of eq. 6: 0.01, or what the recipe says; the first step of the stage is the same."""
    found = {}
    for weight in (None, 1):
        settings = (*FAST, "stages=[]", "train.validations=2", *(() if weight is None else (f"head_loss.attention={weight}",)))
        rows = tiny.run(data, tmp_path / str(weight), "bcm", steps=2, settings=settings, labels="boxes").metrics()
        found[weight] = next(float(row["head"]) for row in rows if row["step"] == "1" and row["head"])
    assert found[1] == pytest.approx(100 * found[None], rel=1e-4)


def test_two_processes_go_through_the_stages(data: Path, tmp_path: Path) -> None:
    """DDP: all stages, a head that comes in between, rates that the first process measures; and a resume that finds nothing left to do."""
    words = command(data, tmp_path / "run", "--recipe", "bcm", "--labels", "masks=1,boxes=3", "--steps", "10", "--set", "masks=ucm")
    for _ in range(2):
        processes.run_together(*words, "--resume")
    assert "head.weight" in weights(tmp_path / "run")
    rates = load_rates(tmp_path / "run" / "filling_rates.json")
    assert rates.source == "ucm"
    assert any(row["masks"] and row["boxes"] and row["head"] for row in Run.load(tmp_path / "run").metrics())
    measured = Run.load(tmp_path / "run").validation("last")
    assert measured is not None  # with the batch norms that are stored, not with those that each process counted
    scores = evaluate(tmp_path / "run", data, checkpoint="last", device="cpu")
    assert all(scores[name] == pytest.approx(measured[name], abs=2e-6) for name in ("miou", "pixel_accuracy"))


def test_one_stage_is_no_stage(data: Path, tmp_path: Path) -> None:
    tiny.run(data, tmp_path / "whole", labels="boxes")
    tiny.run(data, tmp_path / "one", labels="boxes", settings=("stages=[{name: all}]",))
    assert same(tmp_path / "whole", tmp_path / "one")


def test_the_masks_of_a_stage_are_what_it_learns_from(data: Path, tmp_path: Path) -> None:
    """Both stages with the recipe's masks are not the same as other masks first, and all are made before the first step."""
    seen: list[str] = []
    for name, first in (("same", "ucm"), ("other", "rectangle")):
        stages = f"stages=[{{name: one, masks: {{source: {first}}}}}, {{name: two}}]"
        run = tiny.run(data, tmp_path / name, settings=("masks=ucm", stages), labels="boxes")
        log = (run.folder / "log.txt").read_text()
        seen.append(log.split("stage 1 of 2")[0])
        assert "first masks" not in log.split("stage 1 of 2")[1]
    assert not same(tmp_path / "same", tmp_path / "other")
    assert seen[0].count("first masks (") == 1
    assert "first masks (rectangle)" in seen[1]
    assert "first masks (ucm)" in seen[1]


@pytest.mark.parametrize("dies_at", [3, 5, 8, 9, 12])
def test_a_run_killed_in_any_stage_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
    """Stages of steps 1 to 4 (rectangles), 5 to 8 (with a round of refreshing) and 9 to 12 (another head and loss); the same bits in the end."""
    settings = (
        *FAST,
        "stages=[{name: a, masks: {source: rectangle}, head: plain, loss: {masks: cross-entropy, boxes: cross-entropy}}, "
        "{name: b, head: plain, loss: {masks: cross-entropy, boxes: cross-entropy}, refresh: {rule: direct, rounds: 1}}, {name: c}]",
    )
    tiny.run(data, tmp_path / "whole", "bcm", steps=12, settings=settings, labels="masks=1,boxes=3")
    calls, original = 0, Criterion.__call__

    def dies(self: Any, outputs: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == dies_at:
            raise KeyboardInterrupt
        return original(self, outputs, batch)

    monkeypatch.setattr(Criterion, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(data, tmp_path / "cut", "bcm", steps=12, settings=settings, labels="masks=1,boxes=3")
    monkeypatch.setattr(Criterion, "__call__", original)
    if (tmp_path / "cut" / "checkpoint.safetensors").exists():  # of whatever stage: it can be looked at
        load_run(tmp_path / "cut").predict(np.zeros((30, 40, 3), np.uint8))
    tiny.run(data, tmp_path / "cut", "bcm", steps=12, settings=settings, labels="masks=1,boxes=3", resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    for name in ("metrics.csv", "rounds.csv", "filling_rates.json"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()


def test_rounds_count_on_through_the_stages(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("stages=[{name: a, refresh: {rule: direct, rounds: 1}}, {name: b}]", "refresh=direct", "refresh.start=true")
    found: list[tuple[int, int, bool]] = []
    original = engine.refresh

    def notes(job: Any, number: int, step: int) -> None:
        found.append((number, step, job.targets.paths == job.targets.first))
        original(job, number, step)

    monkeypatch.setattr(engine, "refresh", notes)
    run = tiny.run(data, tmp_path / "run", steps=8, settings=settings, labels="boxes")
    assert found == [(1, 2, True), (2, 4, True)]  # each stage begins from its first masks
    assert run.recipe.stage(0).refresh.rounds == 1


def test_best_is_the_last_stages_best(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain head that scored better before cannot be the weights of a run whose recipe says bcm."""
    original = engine._validate

    def falling(job: Any) -> Any:
        found = original(job)
        assert found is not None
        found.scores["miou"] = 1 - 0.1 * job.stage
        return found

    monkeypatch.setattr(engine, "_validate", falling)
    tiny.run(data, tmp_path / "run", "bcm", steps=10, settings=FAST, labels="boxes")
    assert "head.weight" in weights(tmp_path / "run", "checkpoint.safetensors")


@pytest.mark.parametrize("network", ["linknet+tu-test_efficientnet", "unet+tu-test_efficientnet"])
def test_what_no_paper_tried(data: Path, tmp_path: Path, network: str) -> None:
    """Refreshing by BoxSup, the filling-rate loss and a mask a class, on any network."""
    settings = ("refresh=boxsup", "refresh.every=1", "loss=filling-rate", "head=bcm", "masks=ucm", "train.validations=1")
    recipe = load_recipe("grabcut", network=network, settings=settings, overrides={"size": 32, "batch": 2, "steps": 4})
    recipe = recipe.model_copy(update={"network": recipe.network.model_copy(update={"weights": "none"})})
    options = Options(
        labels="masks=1,boxes=3", accelerator="cpu", precision="32-true", workers=0, report=False, quiet=True, cache=tmp_path / "cache"
    )
    run = engine.train(data, recipe, tmp_path / "run", options)
    rows = [row for row in run.metrics() if row["loss"]]
    assert all(float(row["head"]) > 0 for row in rows)


def test_filling_rate_under_em(data: Path, tmp_path: Path) -> None:
    tiny.run(data, tmp_path / "run", "wssl-em", settings=("loss.boxes=filling-rate", "loss_options.boxes.variant=global"), labels="boxes")


@pytest.mark.parametrize("variant", ["global", "class", "sub-class"])
def test_the_rates_of_a_run_are_those_of_its_first_masks(data: Path, tmp_path: Path, variant: str) -> None:
    """Eq. 3, as `mixsup inspect` measures them; each box of the last stage carries its own."""
    settings = (*FAST, f"loss_options.boxes.variant={variant}")
    options = Options(labels="boxes", accelerator="cpu", precision="32-true", workers=0, quiet=True, cache=tmp_path / "cache")
    jobs = prepare(data, tiny.recipe("bcm", settings=settings), tmp_path / "run", options)
    assert [bool(job.targets.rates) for job in jobs] == [False, False, True]
    found, last = jobs[2].targets.rates, jobs[2]
    assert set(found) == {sample.id for sample in last.train.samples}
    names = last.train.classes.all()
    rates, problems = measure(last.train, last.targets.source, last.targets.store)
    assert not problems
    for sample in last.train.samples:
        masks = last.targets.masks(sample)
        for rate, class_id, part in zip(found[sample.id], masks.classes, rates.assign(masks, names), strict=True):
            own = {
                "global": 0.6,
                "class": rates.per_class[names[class_id]].mean,
                "sub-class": rates.per_subclass[names[class_id]][part].mean,
            }
            assert rate == pytest.approx(own[variant])
    assert (tmp_path / "run" / "filling_rates.json").exists() == (variant != "global")


def test_rates_may_come_from_other_masks(data: Path, tmp_path: Path) -> None:
    """BCM, Table 2, raw boxes: rectangles are trained on, and how full a box is comes from elsewhere."""
    settings = ("loss=filling-rate", "loss_options.boxes.measured_on=ucm")
    tiny.run(data, tmp_path / "run", settings=settings, labels="boxes")
    assert load_rates(tmp_path / "run" / "filling_rates.json").source == "ucm"


def test_rates_of_masks_that_the_user_brings(data: Path, tmp_path: Path) -> None:
    """The source that rates are measured on has settings of its own, whatever the masks that are trained on have."""
    folder = tmp_path / "brought"
    dataset = load_dataset(data, "train")
    for sample in dataset.samples:
        boxes, ids = sample.boxes or Boxes.of([]), np.zeros(sample.size, np.uint8)
        for (left, top, right, bottom), class_id in zip(boxes.xyxy.astype(int), boxes.classes, strict=True):
            ids[top : (top + bottom) // 2, left:right] = class_id  # the upper half of each box
        write_bytes(folder / f"{sample.id}.png", palette_png(ids))
    options = f"loss_options.boxes.measured_options={{folder: {folder}}}"
    made = tiny.run(data, tmp_path / "run", "bcm", settings=("loss_options.boxes.measured_on=files", options), labels="boxes", report=True)
    rates = load_rates(made.folder / "filling_rates.json")
    assert rates.source == "files"
    assert 0.3 < rates.global_rate < 0.6
    with pytest.raises(MixsupError, match=r"folder.*loss_options\.boxes\.measured_options"):
        tiny.run(data, tmp_path / "without", "bcm", settings=("loss_options.boxes.measured_on=files",), labels="boxes")


def test_changed_boxes_are_counted_against_the_round_before(data: Path, tmp_path: Path) -> None:
    """Also where a stage begins anew from its own first masks."""
    stages = "stages=[{name: a, masks: {source: rectangle}}, {name: b, masks: {source: grabcut}}, {name: c}]"
    made = tiny.run(data, tmp_path / "run", "sdi-box", settings=(stages, "masks=ucm", "refresh.rounds=1"), labels="boxes", steps=9)
    rounds = read_rounds(made.folder)
    assert [row["round"] for row in rounds] == [1, 2, 3]
    for row in rounds[1:]:
        changed = 0
        for key in ("a", "b", "c", "d"):
            new, old = (load(made.folder / "masks" / f"round-{number}" / f"{key}.npz") for number in (row["round"], row["round"] - 1))
            assert new is not None
            assert old is not None
            changed += sum(not np.array_equal(one, other) for one, other in zip(new.masks, old.masks, strict=True))
        assert row["changed"] == changed


@pytest.mark.parametrize("make", [make_voc, make_folders, make_coco])
def test_boxes_and_rates_of_views(tmp_path: Path, make: Any) -> None:
    """Boxes keep their classes and rates through crops; images with masks have boxes only for a head that is taught them; no draw changes."""
    from mixsup.data import load_dataset
    from mixsup.data.budget import restrict
    from mixsup.data.sample import Boxes
    from mixsup.masks import build_source
    from mixsup.masks.store import MaskStore
    from mixsup.recipe import Schedule

    dataset = load_dataset(make(tmp_path / "data"), "train")
    for kind in ("masks", "boxes"):
        samples = restrict(dataset, dict.fromkeys((sample.id for sample in dataset.samples), kind)).samples  # type: ignore[arg-type]
        views = {}
        for box_masks in (False, True):
            targets = Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store"), box_masks=box_masks)
            for sample in samples:
                count = len(targets.boxes(sample, targets(sample).labels) or Boxes.of([]))
                targets.rates[sample.id] = (np.arange(count) + 1).astype(np.float32) / 8
            views[box_masks] = TrainingViews(samples, targets, Schedule(size=24), seed=3)
        seen = 0
        for index, sample in enumerate(samples):
            for draw in range(8):
                without, item = views[False][index, draw], views[True][index, draw]
                assert torch.equal(without["image"], item["image"])
                assert torch.equal(without["target"], item["target"])
                assert without["tags"] == item["tags"]
                assert len(item["boxes"]) == len(item["rates"])
                if kind == "masks":
                    assert not len(without["boxes"])
                    assert (item["rates"] == 1).all()
                    seen += len(item["boxes"])
                else:
                    assert sample.boxes is not None
                    places = (item["rates"] * 8 - 1).astype(int)
                    assert np.array_equal(item["boxes"].classes, sample.boxes.classes[places])
                    seen += len(places)
        assert seen > 8


@pytest.mark.parametrize(
    ("name", "labels", "settings", "message"),
    [
        ("bcm-only", "masks", (), "stage 'fine-tune': head 'bcm' learns its maps from boxes, and the label budget has none"),
        ("bgm", "masks", (), "head 'bgm' learns its maps from boxes"),
        ("fr-loss", "masks", (), "stage 'fine-tune': loss 'filling-rate' drops pixels of boxes, and the label budget has none"),
        (
            "rectangles",
            "boxes",
            ("loss=filling-rate",),
            "filled rectangles fill their boxes, so that loss 'filling-rate' would drop nothing",
        ),
        ("rectangles", "boxes", ("loss=filling-rate", "loss_options.boxes.measured_on=magic"), "no mask source 'magic'"),
        ("rectangles", "boxes", ("loss.boxes=filling-rate", "loss_options.boxes.variant=some"), "'filling-rate', setting 'variant'"),
        (
            "global-loss",
            "boxes",
            ("loss_options.boxes.measured_on=crf",),
            "loss 'filling-rate': variant 'global' takes its rate from `rate`",
        ),
        ("bcm", "boxes", ("stages=[{name: a, masks: {source: magic}}, {name: b}]",), "stage 'a': no mask source 'magic'"),
        ("bcm", "boxes", ("stages=[{name: a, head: magic}, {name: b}]",), "stage 'a': no head 'magic'"),
        (
            "bcm",
            "boxes",
            ("head=cm", "head_loss.attention=1"),
            "stage 'fine-tune': head 'cm' has no loss 'attention' that head_loss could weigh",
        ),
        ("bcm", "boxes", ("stages=[{name: a, refresh: {rule: direct}}, {name: b}]",), "stage 'a': refresh 'direct' with 0 rounds"),
        ("bcm", "boxes", ("stages=[{name: a, loss: {masks: cross-entropy}}, {name: b}]",), "has no loss for boxes, it learns from masks"),
        ("bcm", "boxes", ("train.steps=2",), "stage '.*' would get none of 2 steps; give more --steps"),
    ],
)
def test_refused_at_start(data: Path, tmp_path: Path, name: str, labels: str, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        tiny.run(data, tmp_path / "run", name, steps=6 if "train.steps=2" not in settings else 2, settings=settings, labels=labels)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_too_few_channels_are_refused_before_masks_are_made(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = tiny.NETWORK.model_copy(update={"arch": "unet", "options": {"decoder_channels": [16, 16, 16, 8, 3]}})
    monkeypatch.setattr(tiny, "NETWORK", narrow)
    with pytest.raises(MixsupError, match=r"stage 'fine-tune': a class-wise head needs a channel a class, .* has 3 channels for 4 classes"):
        tiny.run(data, tmp_path / "run", "bcm", settings=FAST, labels="boxes")
    assert not (tmp_path / "cache").exists()


def test_an_image_without_boxes_and_a_class_without_any(tmp_path: Path) -> None:
    """Nobody drew a dog: no rate, no box, and the run goes through; its map is taught nothing but absence."""
    data = make_voc(tmp_path / "data")
    for path in (data / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<name>dog</name>", "<name>cat</name>"))
    run = tiny.run(data, tmp_path / "run", "bcm", steps=6, settings=FAST, labels="boxes")
    rates = json.loads((run.folder / "filling_rates.json").read_text())["filling_rates"]
    assert rates["per_class"]["dog"] == {"boxes": 0, "mean": None, "std": None}


def test_an_older_runs_recipe_can_be_read(data: Path, tmp_path: Path) -> None:
    """Recipes and states from before there were stages."""
    import yaml

    tiny.run(data, tmp_path / "run", labels="boxes")
    path = tmp_path / "run" / "recipe.yaml"
    stored = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({key: value for key, value in stored.items() if key not in ("stages", "loss_options")}))
    assert Run.load(tmp_path / "run").recipe.stages == []
    shutil.copy(tmp_path / "run" / "last.safetensors", tmp_path / "kept.safetensors")
    tiny.run(data, tmp_path / "run", labels="boxes", resume=True)
    load_run(tmp_path / "run")


def test_epochs_count_on_through_the_stages(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    both, half = "{masks: cross-entropy, boxes: cross-entropy}", "{masks: none, boxes: cross-entropy}"
    path.write_text(f"name: mine\nloss: {both}\nstages:\n- {{name: first}}\n- {{name: half, loss: {half}}}\n- {{name: last}}\n")
    run = tiny.run(data, tmp_path / "run", str(path), steps=6, labels="masks=2,boxes=2", settings=("train.val_every=1",))
    assert [float(row["epoch"]) for row in run.metrics() if row["epoch"]] == [0.5, 1.0, 2.0, 3.0, 3.5, 4.0]


def test_the_best_of_the_stage_that_is_running(data: Path, tmp_path: Path) -> None:
    run = tiny.run(data, tmp_path / "run", "bcm", steps=10, settings=FAST, labels="boxes")
    rows = [{"step": step, "miou": miou} for step, miou in ((1, 0.9), (5, 0.6), (6, 0.2))]
    text = run.folder / "metrics.csv"
    text.write_text("step,miou,pixel_accuracy,mean_accuracy,fw_iou\n" + "".join(f"{row['step']},{row['miou']},0,0,0\n" for row in rows))
    assert run.recipe.stage_ends(10)[:2] == [1, 8]
    found = run.validation()
    assert found is not None
    assert found["miou"] == 0.6
