"""Recipes: names, settings, schedules, and a line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mixsup.engine.optimiser import learning_rate
from mixsup.errors import MixsupError
from mixsup.heads import HEADS
from mixsup.losses import LOSSES, NONE
from mixsup.masks import SOURCES
from mixsup.networks import NETWORKS
from mixsup.recipes import load_recipe, recipe_names, recipe_text, resolved_recipe
from mixsup.refresh import RULES


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    assert recipe.paper
    assert recipe.masks.source in SOURCES
    assert recipe.network.arch in NETWORKS
    assert recipe.head in HEADS
    assert set(recipe.loss.values()) <= {NONE, *LOSSES}
    assert recipe.refresh.rule in ("none", *RULES)
    assert {"short", "paper"} <= set(recipe.schedules)
    assert resolved_recipe(recipe.to_yaml(), "again").model_dump(exclude={"schedules"}) == recipe.model_dump(exclude={"schedules"})


def test_the_papers_numbers() -> None:
    """BoxSup, section 4.3: mini-batch 20, rate 0.001 divided by 10 after every 15 epochs, 45 epochs."""
    train = load_recipe("rectangles", settings=["schedule=paper"]).train
    assert (train.batch, train.lr, train.decay, train.step_epochs, train.epochs, train.optimizer) == (20, 0.001, "step", 15, 45, "sgd")


@pytest.mark.parametrize("name", ["wssl-rect", "wssl-seg", "wssl-em", "sdi-box", "sdi-box-inner", "sdi-mg"])
def test_a_tenth_of_the_rate_after_every_2000_of_6000_steps(name: str) -> None:
    train = load_recipe(name, settings=["schedule=paper"]).train
    assert train.steps == 6000
    rates = [train.lr * learning_rate(step, 6000, train) for step in (0, 1999, 2000, 3999, 4000, 5999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


BCM = ["baseline-crf", "bcm", "bcm-only", "bcm-semi", "bgm", "cm", "fr-loss", "fr-loss-refine", "global-loss"]


@pytest.mark.parametrize("name", BCM)
def test_the_stages_of_bcm(name: str) -> None:
    """Section 4.1: 20,000 steps of the baseline and 5,000 of fine-tuning, rate 0.001, a tenth after every 3,000 steps; rectangles first, then CRF masks."""
    recipe = load_recipe(name, settings=["schedule=paper"])
    assert recipe.train.steps == 25000
    ends = recipe.stage_ends(25000)
    assert ends == [10000, 20000, 25000]
    short = load_recipe(name)
    assert short.stage_ends(1000) == [100, 800, 1000]
    assert [short.stage(index).masks.source for index in range(3)] == ["rectangle", "tight", "tight"]
    assert load_recipe(name, settings=["masks=crf"]).masks.source == "crf"
    stages = [recipe.stage(index) for index in range(3)]
    assert [stage.masks.source for stage in stages] == ["rectangle", "crf", "crf"]
    assert [stage.head for stage in stages] == ["plain", "plain", recipe.head]
    assert [stage.loss["boxes"] for stage in stages] == ["cross-entropy", "cross-entropy", recipe.loss["boxes"]]
    assert not stages[0].loss_options
    assert stages[2].loss_options == recipe.loss_options
    assert [stage.train.batch for stage in stages] == [20, 20, 20 if recipe.head == "plain" else 16]
    for stage, steps in zip(stages, (10000, 10000, 5000), strict=True):
        rates = [stage.train.lr * learning_rate(step, steps, stage.train) for step in (0, 2999, 3001, steps - 1)]
        assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-6 if steps == 10000 else 1e-4])


def test_stages_give_way_to_the_command() -> None:
    recipe = load_recipe("bcm", settings=["schedule=paper", "train.step_epochs=2"], overrides={"batch": 4})
    assert [recipe.stage(index).train.batch for index in range(3)] == [4, 4, 4]
    assert recipe.stage(2).train.step_epochs == 2
    assert load_recipe("bcm", settings=["stages=[]"]).stage(0).head == "bcm"
    changed = load_recipe("bcm", settings=["head=cm", "loss=cross-entropy"])
    assert (changed.stage(2).head, changed.loss_options) == ("cm", {})
    assert changed.loss == {"masks": "cross-entropy", "boxes": "cross-entropy", "tags": "gap-bce"}  # a loss over pixels is none of tags
    assert set(load_recipe("bcm", settings=["loss=none"]).loss.values()) == {"none"}
    options = load_recipe("boxsup", settings=["loss_options.boxes.variant=global", "loss=filling-rate"]).loss_options
    assert options == {"boxes": {"variant": "global"}}


def test_settings_reach_every_choice() -> None:
    recipe = load_recipe(
        "rectangles",
        settings=["masks=grabcut", "masks.options.iterations=5", "network=unet+resnet18", "train.lr=1e-3", "train.augment.flip=0", "refresh=direct",
                  "refresh.rounds=3", "loss=cross-entropy"],
        overrides={"size": 96, "batch": None, "steps": 7},
    )  # fmt: skip
    assert recipe.masks.source == "grabcut"
    assert recipe.masks.options == {"iterations": 5}
    assert (recipe.network.arch, recipe.network.encoder) == ("unet", "resnet18")
    assert (recipe.train.lr, recipe.train.size, recipe.train.steps, recipe.train.batch) == (0.001, 96, 7, 8)
    assert recipe.train.augment.flip == 0
    assert recipe.train.augment.colour > 0  # its neighbours stay
    assert (recipe.refresh.rule, recipe.refresh.rounds) == ("direct", 3)


def test_own_recipe_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text("rectangles").replace("name: rectangles", "name: mine"))
    assert load_recipe(str(path)).name == "mine"
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(load_recipe("grabcut", overrides={"steps": 5}).to_yaml())
    assert load_recipe(str(resolved)).train.steps == 5  # what a run stored is a recipe again


def test_train_overrides_single_values_of_the_schedule(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(recipe_text("full").replace("schedule: short", "schedule: paper\ntrain: {lr: 0.01}"))
    train = load_recipe(str(path), settings=["train.batch=4"]).train
    assert (train.lr, train.optimizer, train.epochs, train.batch) == (0.01, "sgd", 45, 4)


def test_network_file_is_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("arch: unet\nencoder: resnet18\nweights: w.pth\n")
    assert load_recipe("full", network=str(tmp_path / "net.yaml")).network.weights == str((tmp_path / "w.pth").resolve())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.lr"], "write key=value"),
        (["=3"], "write key=value"),
        (["train.lr=fast"], "train.lr"),
        (["train.lr=-1"], "train.lr"),
        (["train.speed=3"], "no key 'train.speed'; there are size, resolution, batch"),
        (["train.augment.speed=3"], "no key 'train.augment.speed'; there are scale, flip, colour"),
        (["colour=red"], "no key 'colour'; there are name, about"),
        (["train=5"], "train: 5 is no mapping"),
        (["schedules=5"], "it has none"),
        (["schedules.short=5"], "schedules.short: 5 is no mapping"),
        (["schedule=[1]"], r"no schedule \[1.*\]; it has short, paper"),
        (["train.size.=5"], "train.size"),
        (["train.lr.x=1"], "train.lr"),
        (["schedule=overnight"], "no schedule 'overnight'; it has short, paper"),
        (["head.size=3"], "has no settings below it"),
        (["train.lr={"], "cannot be read"),
        (["loss.pixels=cross-entropy"], "loss.pixels"),
        (["train.augment.flip=2"], "train.augment.flip"),
        (["stages=[{name: a, train: {lr: fast}}]"], "stage 'a', train.lr: "),
        (["stages=[{name: a, train: {speed: 3}}]"], "stage 'a', train.speed: no such key; there are size"),
        (["stages=[{name: a, train: {size: 32}}]"], "stage 'a' cannot have its own size"),
        (["stages=[{name: a, train: {steps: 32}}]"], "stage 'a' cannot have its own steps"),
        (["stages=[{name: a, train: {validations: 2}}]"], "stage 'a' cannot have its own validations"),
        (["stages=[{name: a}, {name: a}]"], "two stages have the same name"),
        (["stages=[{name: a, head: bcm}]"], "the last stage is the recipe itself; write its masks, head, head_loss"),
        (["stages=[{name: a, share: 0}]"], "stages.0.share"),
        (["stages=[{share: 1}]"], "stages.0.name"),
        (["stages=3"], "stages"),
    ],
)
def test_mistakes(settings: list[str], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        load_recipe("rectangles", settings=settings)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(
        MixsupError,
        match=re.escape(f"no recipe 'boxsoup'; there are {', '.join(recipe_names())}, or give"),
    ):
        load_recipe("boxsoup")
    with pytest.raises(MixsupError, match="no such network file"):
        load_recipe("full", network=str(tmp_path / "nothing.yaml"))
    (tmp_path / "bad.yaml").write_text("- a\n- b\n")
    with pytest.raises(MixsupError, match="not a YAML mapping"):
        load_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "worse.yaml").write_text("a: [")
    with pytest.raises(MixsupError, match=r"worse\.yaml, line \d"):
        load_recipe(str(tmp_path / "worse.yaml"))
    (tmp_path / "net.yaml").write_text("arch: unet\ncolour: red\n")
    with pytest.raises(MixsupError, match="colour"):
        load_recipe("full", network=str(tmp_path / "net.yaml"))


def test_yaml_is_yaml() -> None:
    assert yaml.safe_load(load_recipe("full").to_yaml())["train"]["lr"] == 2.5e-4


def test_an_empty_mapping_empties() -> None:
    assert load_recipe("diverse").train.sampling == {"masks": 1, "boxes": 1, "tags": 1}
    last = load_recipe("diverse", settings=["train.balance=0.5"]).train  # of two ways to say one thing the last counts
    assert (last.sampling, last.balance) == ({}, 0.5)
    last = load_recipe("boxsup", settings=["train.sampling={masks: 1, boxes: 2}"]).train
    assert (last.sampling, last.balance) == ({"masks": 1, "boxes": 2}, 0)
    emptied = load_recipe("diverse", settings=["train.sampling={}", "loss_weights={}"])
    assert not emptied.train.sampling
    assert not emptied.loss_weights


def test_what_is_replaced_takes_its_settings_along() -> None:
    recipe = load_recipe("sdi-box-inner", settings=["masks.options.iterations=5", "masks=grabcut"])
    assert recipe.masks.options == {"iterations": 5}
    assert load_recipe("mcof-no-saliency", settings=["refresh=boxsup"]).refresh.options == {}
    assert load_recipe("mcof-no-saliency", settings=["refresh=mcof"]).refresh.options == {"saliency": "none"}
    assert load_recipe("boxsup", settings=["refresh=em"]).refresh == load_recipe("wssl-rect", settings=["refresh=em"]).refresh
    changed = load_recipe("diverse", settings=["loss.tags=cross-entropy", "masks.tags=cam"])
    assert "tags" not in changed.loss_weights


def test_first_masks_of_a_schedule(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nloss: {boxes: cross-entropy}\nmasks: {source: crf, options: {rounds: 0}, tags: cam}\n"
        "schedules:\n  short: {masks: {source: tight}, size: 64}\n  long: {epochs: 50}\n"
    )
    short, long = load_recipe(str(path)), load_recipe(str(path), settings=["schedule=long"])
    assert (short.masks.source, short.masks.options, short.masks.tags, short.train.size) == ("tight", {}, "cam", 64)
    assert (long.masks.source, long.masks.options, long.train.epochs) == ("crf", {"rounds": 0}, 50)
    assert load_recipe(str(path), settings=["masks=grabcut"]).masks.source == "grabcut"


def test_a_schedule_that_a_resolved_recipe_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(load_recipe("grabcut").to_yaml())
    with pytest.raises(MixsupError, match="no schedule 'paper'; it has short"):
        load_recipe(str(path), settings=["schedule=paper"])


def test_a_stages_other_values_stay(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nloss: {boxes: cross-entropy}\nstages:\n- {name: first, train: {augment: {colour: 0, scale: [1, 1]}}}\n- {name: last}\n"
    )
    augment = load_recipe(str(path), settings=["train.augment.flip=0"]).stage(0).train.augment
    assert (augment.flip, augment.colour, augment.scale) == (0, 0, (1, 1))


@pytest.mark.parametrize("text", ["loss: cross-entropy", "loss:", "loss: {boxes: cross-entropy}\nloss_options:"])
@pytest.mark.parametrize("setting", ["loss.boxes=soft", "loss=soft"])
def test_settings_of_a_recipe_that_is_none(tmp_path: Path, text: str, setting: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\n{text}\n")
    with pytest.raises(MixsupError, match=r"mine\.yaml|has no settings below it"):
        load_recipe(str(path), settings=[setting])


@pytest.mark.parametrize("setting", ["train.epochs=.inf", "train.lr=.nan", "loss_weights.boxes=.inf", "train.sampling={masks: .inf}"])
def test_numbers_are_finite(setting: str) -> None:
    with pytest.raises(MixsupError, match="finite number"):
        load_recipe("grabcut", settings=[setting])
