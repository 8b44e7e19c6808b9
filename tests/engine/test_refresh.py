"""Rounds of refreshing in a run: when they happen, what they leave, what an interruption and bad input do to them."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from mixsup.data.sample import Float32
from mixsup.engine import refresh as rounds
from mixsup.engine.choices import first_source
from mixsup.engine.predict import Predictor
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.masks.store import load
from mixsup.recipe import Refresh
from mixsup.recipes import load_recipe
from tests import processes, tiny
from tests.data.make import make_coco_boxes, make_voc
from tests.engine.test_kill import command, kill, train
from tests.engine.test_train import same

BOXSUP = ("refresh.options.candidates=4", "refresh.options.sample=2", "masks.options.proposals=20")

FEWER = """
from typing import ClassVar

from pydantic.dataclasses import dataclass

from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.source import STRICT
from mixsup.refresh.rule import Case, RefreshRule


@dataclass(frozen=True, config=STRICT)
class Fewer(RefreshRule):
    name: ClassVar[str] = "fewer"

    def __call__(self, case: Case) -> BoxMasks:
        one = case.first
        return BoxMasks(one.size, one.windows[:0], one.classes[:0], one.crowd[:0], ())
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "data")


def boxsup(data: Path, out: Path, **options: Any) -> Run:
    settings = options.pop("settings", BOXSUP)
    return tiny.run(data, out, "boxsup", **{"labels": "boxes", "steps": 5, "settings": settings, **options})


def test_boundaries() -> None:
    """BoxSup: before the first step and after every epoch; the others evenly over the run. Never after the last step, whose masks nobody would see."""
    assert Refresh(rule="boxsup", every=1, start=True).boundaries(522, 698 / 8) == [0, 87, 174, 262, 349, 436]
    assert Refresh(rule="boxsup", every=1, start=True).boundaries(87, 698 / 8) == [0]
    assert Refresh(rule="boxsup", every=0.5).boundaries(100, 100) == [50]
    assert Refresh(rule="sdi", rounds=3).boundaries(100, 10) == [25, 50, 75]
    assert Refresh(rule="sdi", rounds=50).boundaries(3, 10) == [1, 2]
    assert Refresh(rule="boxsup", every=0.001).boundaries(4, 1) == [1, 2, 3]  # at most once a step
    assert Refresh(rule="none", rounds=3, start=True).boundaries(100, 10) == []


def test_large_views_of_many_classes_go_through_the_network_alone() -> None:
    """Probabilities of all that waits are in memory at once: here 400 MB an image, and 2 MB."""
    large, small = np.zeros((1000, 1000, 3), np.uint8), np.zeros((100, 50, 3), np.uint8)
    views: list[Any] = [(str(number), seen, None) for number, seen in enumerate([large] * 3 + [small] * 10)]
    assert [len(group) for group in rounds._groups(views, 100)] == [1, 1, 1, 8, 2]
    assert [len(group) for group in rounds._groups(views, 2, 2_000_000)] == [2, 1, 8, 2]  # a processor's caches hold fewer than memory does
    assert [len(group) for group in rounds._groups(views, 2, 10_000)] == [1, 1, 1, 2, 2, 2, 2, 2]


def test_each_epoch_has_masks_of_its_own(data: Path, tmp_path: Path) -> None:
    run = boxsup(data, tmp_path / "run")
    log = rounds.read_rounds(tmp_path / "run")
    assert [(row["round"], row["step"]) for row in log] == [(1, 0), (2, 2), (3, 4)]
    assert all(row["images"] == 4 and row["boxes"] == 5 for row in log)
    for number in range(4):
        assert {path.stem for path in rounds.round_folder(tmp_path / "run", number).iterdir()} == set(run.kinds())
    counted = 0
    for number in (1, 2, 3):
        for key in run.kinds():
            old, new = (load(rounds.round_folder(tmp_path / "run", at) / f"{key}.npz") for at in (number - 1, number))
            assert old is not None
            assert new is not None
            counted += sum(not np.array_equal(*pair) for pair in zip(old.masks, new.masks, strict=True))
    assert counted == sum(row["changed"] for row in log)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images a refresh shows the network, each time."""
    counts: list[int] = []
    original = Predictor.scores

    def spy(self: Predictor, views: Tensor) -> Float32:
        counts.append(len(views))
        return original(self, views)

    monkeypatch.setattr(Predictor, "scores", spy)
    return counts


def test_a_last_layer_that_knows_nothing_has_no_say(data: Path, tmp_path: Path, asked: list[int]) -> None:
    """Before the first step all classes are alike, whatever was drawn for the last layer; what another run has learned is asked."""
    settings = (*BOXSUP, "refresh.options.sample=1")
    found = [boxsup(data, tmp_path / str(seed), seed=seed, steps=1, settings=settings) for seed in (0, 1)]
    assert not asked
    first, second = ([load(path) for path in sorted(rounds.round_folder(run.folder, 1).iterdir())] for run in found)
    for one, other in zip(first, second, strict=True):
        assert one is not None and other is not None
        assert all(np.array_equal(*pair) for pair in zip(one.masks, other.masks, strict=True))
    boxsup(data, tmp_path / "then", init=found[0].folder, steps=1, settings=settings)
    assert asked == [4]


def test_masks_of_the_budget_stay_and_boxes_choose(data: Path, tmp_path: Path) -> None:
    """Section 4.3, semi-supervised: an image with a true mask uses it, and no round touches it."""
    run = boxsup(data, tmp_path / "run", labels="masks=2,boxes=2")
    boxed = {key for key, kind in run.kinds().items() if kind == "boxes"}
    assert {path.stem for path in rounds.round_folder(tmp_path / "run", 2).iterdir()} == boxed


@pytest.mark.parametrize("moment", ["before", "halfway", "after", "scored"])
def test_interrupted_around_a_refresh(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The round is done again, the steps before it are not."""
    boxsup(data, tmp_path / "whole")
    original, saved = rounds.save, 0

    def dies(path: Path, masks: Any) -> None:
        nonlocal saved
        if "round-2" in str(path):
            saved += 1
            if saved > {"before": 0, "halfway": 2}.get(moment, 9):
                raise KeyboardInterrupt
        original(path, masks)

    monkeypatch.setattr(rounds, "save", dies)
    if moment == "after":  # the masks are all there, the state is not yet
        monkeypatch.setattr("mixsup.engine.train.use_round", interrupt_at(2))
    if moment == "scored":  # what the step scored is in metrics.csv, the state is not yet there
        monkeypatch.setattr("mixsup.engine.train.save_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        boxsup(data, tmp_path / "cut")
    monkeypatch.undo()
    boxsup(data, tmp_path / "cut", resume=True)
    assert "going on after step 2 of 5" in (tmp_path / "cut" / "log.txt").read_text()
    assert same(tmp_path / "whole", tmp_path / "cut")
    for name in ("metrics.csv", "rounds.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "cut" / name).read_text()
    for path in sorted((tmp_path / "whole" / "masks").rglob("*.npz")):
        one, two = load(path), load(tmp_path / "cut" / path.relative_to(tmp_path / "whole"))
        assert one is not None
        assert two is not None
        assert all(np.array_equal(*pair) for pair in zip(one.masks, two.masks, strict=True))


def interrupt(*given: Any) -> None:
    raise KeyboardInterrupt


def interrupt_at(number: int) -> Any:
    def use(job: Any, now: int) -> None:
        if now == number:
            raise KeyboardInterrupt
        rounds.use_round(job, now)

    return use


def test_killed_while_boxes_choose(tmp_path: Path) -> None:
    """SIGKILL as soon as a round has begun to write, twice; the same bits in the end."""
    data = make_voc(tmp_path / "data")
    more = ("--recipe", "boxsup", "--steps", "8", *(part for setting in BOXSUP for part in ("--set", setting)))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(data, whole, *more)
    for number in (2, 5):
        process = processes.start(*command(data, cut, *more, "--resume"))
        while process.is_alive() and not list((cut / "masks").glob(f"round-{number}/*.npz")):
            time.sleep(0.001)
        assert process.is_alive()
        kill(process)
    train(data, cut, *more, "--resume")
    for name in ("metrics.csv", "rounds.csv", "last.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_a_fault_of_another_process_ends_the_round(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others say so, instead of waiting for it, or for a connection that it has closed."""
    monkeypatch.setattr(rounds, "_together", lambda job, *counts: [*counts[:-1], 1])
    with pytest.raises(MixsupError, match="round 1: another process could not refresh its masks"):
        boxsup(data, tmp_path / "run")


def test_two_processes_refresh_their_shares(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    more = ("--recipe", "boxsup", "--steps", "2", *(part for setting in BOXSUP for part in ("--set", setting)))
    processes.run_together(*command(data, tmp_path / "run", *more))
    assert rounds.read_rounds(tmp_path / "run")[0]["boxes"] == 5
    assert len(list(rounds.round_folder(tmp_path / "run", 2).iterdir())) == 4


def test_processes_choose_what_the_thread_chooses(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU, which leaves the cores free, as many processes as there are workers apply the rule; what a box draws does not depend on who draws."""
    one = boxsup(data, tmp_path / "one")
    monkeypatch.setattr(rounds, "_processes", lambda job, images: 2)
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(folder)
        boxsup(data, Path("two"))
        assert same(one.folder, folder / "two")
        assert rounds.read_rounds(one.folder) == rounds.read_rounds(folder / "two")


def test_how_many_processes_apply_the_rule() -> None:
    def processes(device: str, workers: int, images: int) -> int:
        job: Any = SimpleNamespace(fabric=SimpleNamespace(device=torch.device(device)), workers=workers)
        return rounds._processes(job, images)

    assert processes("cpu", 2, 5000) == 1
    assert processes("cuda", 8, 5000) == 8
    assert processes("cuda", 2, 5000) == processes("cuda", 0, 5000) == 1
    assert processes("cuda", 8, 20) == 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_rule_that_gives_something_else_is_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(rounds, "_processes", lambda job, images: jobs)
    rule = tmp_path / "fewer.py"
    rule.write_text(FEWER)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MixsupError, match=r"refresh rule 'fewer' gives \w+ other boxes than it has; a rule returns a mask of each"):
        tiny.run(data, tmp_path / "run", "wssl-seg", labels="boxes", steps=4, settings=("refresh=fewer:Fewer", "refresh.rounds=1"))


def test_a_process_that_is_killed_is_one_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_processes", lambda job, images: 2)
    monkeypatch.setattr(rounds, "Renewal", lambda *_: _end)
    with pytest.raises(
        MixsupError, match="a worker process was killed, most often because memory ran out; free memory, or give fewer --workers"
    ):
        boxsup(data, tmp_path / "run")


def _end(item: Any) -> None:
    os._exit(1)


def test_only_the_present_round_is_kept_of_images_that_nobody_follows(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "FOLLOWED", 2)
    boxsup(data, tmp_path / "run")
    counts = [len(list(rounds.round_folder(tmp_path / "run", number).iterdir())) for number in range(4)]
    assert counts == [2, 2, 2, 4]


def test_images_of_one_size_go_through_the_network_together(data: Path, tmp_path: Path, asked: list[int]) -> None:
    boxsup(data, tmp_path / "run", steps=3)
    assert asked == [4]


@pytest.mark.parametrize("masks", ["selective-search", "geodesic", "crf"])
def test_any_pool_and_any_first_masks(data: Path, tmp_path: Path, masks: str) -> None:
    settings = (f"masks={masks}", "masks.options={}", "refresh.options.candidates=4")
    boxsup(data, tmp_path / "run", steps=1, settings=settings)
    assert len(rounds.read_rounds(tmp_path / "run")) == 1


def test_an_image_that_changed_since_the_start(tmp_path: Path) -> None:
    """Its pool no longer fits: one line, and the run is as it was."""
    data = make_voc(tmp_path / "data")
    boxsup(data, tmp_path / "run", steps=2)
    original = rounds.load_pool

    def smaller(path: Path) -> Any:
        pool = original(path)
        return None if pool is None else type(pool)((2, 2), np.zeros((2, 2), np.int32), pool.members)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "load_pool", smaller)
        with pytest.raises(MixsupError, match="its proposals cannot be made again") as caught:
            boxsup(data, tmp_path / "other", steps=2)
    assert len(str(caught.value).splitlines()) == 1


def test_a_trimmed_cache_is_made_anew(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxsup(data, tmp_path / "whole")
    original = rounds.refresh

    def forgetful(job: Any, number: int, step: int) -> None:
        for path in (tmp_path / "cache" / "pools").rglob("*.npz"):
            path.unlink()
        original(job, number, step)

    monkeypatch.setattr("mixsup.engine.train.refresh", forgetful)
    boxsup(data, tmp_path / "again")
    assert same(tmp_path / "whole", tmp_path / "again")


def test_the_masks_of_a_round_are_not_replaced_in_silence(data: Path, tmp_path: Path) -> None:
    boxsup(data, tmp_path / "run", steps=3, settings=(*BOXSUP, "train.validations=1"))
    for path in rounds.round_folder(tmp_path / "run", 2).iterdir():
        path.unlink()
    state = torch.load(tmp_path / "run" / "training.pt", weights_only=False)
    state["progress"] |= {"step": 2}
    torch.save(state, tmp_path / "run" / "training.pt")
    with pytest.raises(MixsupError, match="masks of this round are missing"):
        boxsup(data, tmp_path / "run", steps=3, settings=(*BOXSUP, "train.validations=1"), resume=True)


def test_more_boxes_from_a_data_set_of_other_classes(tmp_path: Path) -> None:
    """The COCO 80 -> VOC 20 case of section 5.1: masks of one source, boxes of another under the first one's names."""
    voc, coco = make_voc(tmp_path / "voc"), make_coco_boxes(tmp_path / "coco")
    joined = {
        "classes": ["bird", "animal"],
        "sources": [
            {"path": str(voc), "rename": {"cat": "animal", "dog": "animal"}},
            {
                "path": str(coco),
                "name": "coco",
                "label": "boxes",
                "rename": {"dog": "animal"},
                "drop": ["cat"],
                "split": {"train": "train"},
            },
        ],
    }
    (tmp_path / "joined.yaml").write_text(yaml.safe_dump(joined))
    run = boxsup(tmp_path / "joined.yaml", tmp_path / "run", labels=None, steps=3)
    assert run.facts["images"] == {"boxes": 4, "masks": 4}
    assert all(key.startswith("coco-") for key, kind in run.kinds().items() if kind == "boxes")


def test_a_box_that_is_the_whole_image_and_one_of_a_pixel(tmp_path: Path) -> None:
    """Through the whole command: a plain image is one superpixel, and a box of a pixel has next to nothing to choose from."""
    data = make_voc(tmp_path / "data")
    for path in (data / "JPEGImages").iterdir():
        Image.fromarray(np.full((30, 40, 3), 90, np.uint8)).save(path)
    boxsup(data, tmp_path / "run", steps=2)


def test_rounds_that_were_damaged_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "rounds.csv").write_text("round,step,images,boxes,changed\n1,0,4,5,5\n2,x,4\n")
    assert rounds.read_rounds(tmp_path) == [{"round": 1, "step": 0, "images": 4, "boxes": 5, "changed": 5, "kind": "boxes"}]
    with (tmp_path / "rounds.csv").open() as handle:
        assert len(list(csv.DictReader(handle))) == 2


def test_recipes_of_the_paper() -> None:
    for name in ("boxsup", "boxsup-unsampled"):
        recipe = load_recipe(name, settings=["schedule=paper"])
        assert (recipe.train.batch, recipe.train.lr, recipe.train.step_epochs, recipe.train.epochs) == (20, 1e-3, 15, 45)
        assert (recipe.refresh.every, recipe.refresh.start) == (1, True)


def test_the_networks_own_masks_wait_until_it_has_learned_some(data: Path, tmp_path: Path) -> None:
    """`boxsup` begins before the first step; `direct` in its place would call all boxes what a new last layer happens to say."""
    run = tiny.run(data, tmp_path / "run", "boxsup", steps=6, settings=("refresh=direct",), labels="boxes")
    assert [row["step"] for row in rounds.read_rounds(run.folder)] == [2, 4]
    assert "which nobody has taught yet: no round before the first step" in (run.folder / "log.txt").read_text()
    run = tiny.run(data, tmp_path / "then", "boxsup", steps=6, settings=("refresh=direct",), labels="boxes", init=str(run.folder))
    assert [row["step"] for row in rounds.read_rounds(run.folder)] == [0, 2, 4]


def test_rounds_that_have_no_step(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MixsupError, match="refresh 'direct' would have no round in 1 steps; give more --steps"):
        tiny.run(data, tmp_path / "none", steps=1, settings=("refresh=direct", "refresh.rounds=2"), labels="boxes")
    assert not (tmp_path / "none/recipe.yaml").exists()  # the same folder may be named again, with more steps
    run = tiny.run(data, tmp_path / "some", steps=3, settings=("refresh=direct", "refresh.rounds=9"), labels="boxes")
    assert "3 steps have room for 2 of its 9 rounds" in (run.folder / "log.txt").read_text()


@pytest.mark.parametrize(("name", "settings", "source"), [
    ("boxsup", (), "rectangle"), ("mcof", ("masks=mcg",), "mcg"), ("sdi-box", ("masks=mcg", "refresh.start=true"), "mcg"),
])  # fmt: skip
def test_rectangles_only_where_a_pool_is_chosen_from_at_once(name: str, settings: tuple[str, ...], source: str) -> None:
    assert first_source(tiny.recipe(name, settings=settings)).name == source
