"""Tags, boxes and masks in one run: batches, recipes, labels of some classes only, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mixsup.data import load_dataset
from mixsup.data.augment import training_view
from mixsup.data.budget import draw, restrict
from mixsup.data.sample import KINDS, LabelKind
from mixsup.engine.api import evaluate, load
from mixsup.engine.batches import Draws, Targets, TrainingViews, training_loader
from mixsup.engine.evaluate import evaluate as evaluate_images
from mixsup.engine.options import Options
from mixsup.engine.prepare import prepare
from mixsup.errors import DataError, MixsupError
from mixsup.losses import Criterion, SoftCrossEntropy
from mixsup.masks import BoxMasks, build_source, compose_shared
from mixsup.masks.store import MaskStore
from mixsup.recipe import Augmentation, Schedule
from mixsup.refresh.direct import Direct
from mixsup.refresh.rule import Case
from mixsup.report import page
from tests import tiny
from tests.data.make import make_tags, make_voc, write
from tests.engine.test_train import same

BUDGET = "masks=1,boxes=2,tags=1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "data")


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 7.0])] * 3),
    batch=st.integers(1, 5),
    cut=st.integers(0, 20),
    one_kind=st.booleans(),
    own=st.booleans(),
    balance=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_shares_of_kinds(
    kinds: list[LabelKind], weights: tuple[float, float, float], batch: int, cut: int, one_kind: bool, own: bool, balance: float
) -> None:
    steps = 40
    sampling = {kind: weight for kind, weight in zip(KINDS, weights, strict=True) if kind in kinds} if own else {}
    if not sampling and not one_kind and not balance:
        return
    whole = list(Draws(kinds, batch, 0, steps, 3, sampling=sampling, one_kind=one_kind, balance=balance))
    assert whole[cut:] == list(Draws(kinds, batch, cut, steps, 3, sampling=sampling, one_kind=one_kind, balance=balance))  # after a stop
    if len(set(kinds)) == 1:
        assert whole == list(Draws(kinds, batch, 0, steps, 3))  # nothing to share out
    drawn = [index for step in whole for index, _ in step]
    units = [kinds[step[0][0]] for step in whole] if one_kind else [kinds[index] for index in drawn]
    if one_kind:
        assert all(len({kinds[index] for index, _ in step}) == 1 for step in whole)
    shares = sampling or {kind: count ** (1 - balance) for kind, count in Counter(kinds).items()}
    total = sum(shares[kind] for kind in set(kinds))
    for place in range(1, len(units) + 1):  # at every moment, not only in the end
        for kind in set(kinds):
            assert abs(units[:place].count(kind) - place * shares[kind] / total) <= 2
    for kind in set(kinds):  # each image of a kind once an epoch of its kind
        members = [index for index, other in enumerate(kinds) if other == kind]
        mine = [index for index in drawn if kinds[index] == kind]
        for epoch in range(len(mine) // len(members)):
            assert sorted(mine[epoch * len(members) : (epoch + 1) * len(members)]) == members


@pytest.mark.parametrize("resolution", ["fit", "native"])
def test_a_tagged_image_is_seen_whole(resolution: str) -> None:
    """Its four corners are in every view, whatever the scale that is drawn."""
    target = np.full((40, 70), 9, np.uint8)
    target[0, 0], target[0, -1], target[-1, 0], target[-1, -1] = 1, 2, 3, 4
    for corner in ((0, 0), (0, 55), (25, 0), (25, 55)):
        target[corner[0] : corner[0] + 15, corner[1] : corner[1] + 15] = target[0 if not corner[0] else -1, 0 if not corner[1] else -1]
    for seed in range(20):
        settings = Augmentation(scale=(0.5, 2.0))
        generator = np.random.default_rng(seed)
        _, mask, _ = training_view(np.zeros((40, 70, 3), np.uint8), target, 24, resolution, settings, generator, whole=True)
        assert {1, 2, 3, 4} <= set(np.unique(mask))


def test_tagged_images_of_a_batch_are_seen_whole(data: Path, tmp_path: Path) -> None:
    """40 x 30 pixels in a crop of 24 are 24 x 18, whatever the scale that is drawn; a boxed image fills the crop."""
    samples = load_dataset(data, "train").samples
    shown = {}
    for kind in ("tags", "boxes"):
        chosen = restrict(load_dataset(data, "train"), {sample.id: kind for sample in samples}).samples  # type: ignore[misc]
        targets = Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store"))
        views = TrainingViews(chosen, targets, Schedule(size=24, augment=Augmentation(scale=(1, 2))), seed=1)
        shown[kind] = {int((views[index, draw]["target"] != 255).sum()) for index in range(4) for draw in range(6)}
    assert shown == {"tags": {24 * 18}, "boxes": {24 * 24}}


def test_shared_pixels_reach_the_loss(data: Path, tmp_path: Path) -> None:
    """Image b has a box within a box of another class: through crops, flips and the loader its shared pixels stay those of both classes."""
    dataset = restrict(load_dataset(data, "train"), draw(load_dataset(data, "train").samples, "boxes", 0))
    targets = Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store"), soft=SoftCrossEntropy())
    views = TrainingViews(dataset.samples, targets, Schedule(size=24, augment=Augmentation(scale=(1, 2), flip=0.5)), seed=1)
    hard = TrainingViews(
        dataset.samples, Targets(4, targets.source, targets.store), Schedule(size=24, augment=views.schedule.augment), seed=1
    )
    seen = 0
    for ours, theirs in zip(*(training_loader(one, Draws(["boxes"] * 4, 4, 0, 6, 0), 0, pin=False) for one in (views, hard)), strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        shared = ours["claims"] != 255
        assert torch.equal(ours["target"][~shared], theirs["target"][~shared])
        assert (ours["target"][shared] == 255).all()
        for index, name in enumerate(ours["id"]):
            assert ours["claim_sets"][index] == (((1, 3),) if name == "b" else ())
            assert name == "b" or not shared[index].any()
            assert (theirs["target"][index][shared[index]] == 1).all()  # the smaller box is on top
            seen += int(shared[index].sum())
    assert seen > 20


def test_lots_are_drawn_once(data: Path, tmp_path: Path) -> None:
    dataset = restrict(load_dataset(data, "train"), draw(load_dataset(data, "train").samples, "boxes", 0))
    targets = Targets(4, build_source("rectangle"), MaskStore(tmp_path / "store"), soft=SoftCrossEntropy(overlap="drawn"))
    sample = next(sample for sample in dataset.samples if sample.id == "b")
    first = targets(sample)
    assert first.sets == ()
    assert np.array_equal(first.labels, targets(sample).labels)
    shared = compose_shared(targets.masks(sample)).claims != 255
    assert set(np.unique(first.labels[shared])) < {1, 3}
    winners = {
        int(SoftCrossEntropy(overlap="drawn").target(targets.masks(sample), np.random.default_rng(seed)).labels[shared][0])
        for seed in range(20)
    }
    assert winners == {1, 3}


@pytest.mark.parametrize("name", ["diverse", "diverse-hard", "diverse-raw-box", "bcm", "boxsup", "sdi-box", "fr-loss", "cm"])
def test_every_kind_in_one_run(data: Path, tmp_path: Path, name: str) -> None:
    """Any recipe, head and rule on a mixed budget."""
    run = tiny.run(data, tmp_path / "run", name, steps=12, labels=BUDGET)
    rows = [row for row in run.metrics() if row["loss"]]
    assert all(any(float(row[kind] or 0) > 0 for row in rows) for kind in KINDS)


def test_a_ratio_of_one_to_five_to_ten(tmp_path: Path) -> None:
    """`--recipe bcm --labels masks=1:boxes=5:tags=10`, on as many images as that takes, a quarter of them with nothing but tags."""
    data = make_voc(tmp_path / "data")
    names = []
    for number in range(16):
        name = f"n{number:02}"
        for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
            if folder == "JPEGImages" or number % 4:
                shutil.copy(data / folder / f"abc.{ending}".replace("abc", "abc"[number % 3]), data / folder / f"{name}.{ending}")
        names.append(name)
    write(data / "ImageSets" / "Segmentation" / "train.txt", "\n".join(names) + "\n")
    write(data / "tags.csv", "\n".join(["image,tags", *(f"{name}.jpg,cat;dog;bird" for name in names)]) + "\n")
    run = tiny.run(data, tmp_path / "run", "bcm", labels="masks=1:boxes=5:tags=10")
    assert run.facts["images"] == {"masks": 1, "boxes": 5, "tags": 10}


def test_a_killed_run_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("train.sampling={masks: 2, boxes: 1, tags: 1}", "train.one_kind=true")
    tiny.run(data, tmp_path / "whole", "diverse", steps=8, labels=BUDGET, settings=settings)
    tiny.interrupt_at_call(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(data, tmp_path / "cut", "diverse", steps=8, labels=BUDGET, settings=settings)
    monkeypatch.undo()
    tiny.run(data, tmp_path / "cut", "diverse", steps=8, labels=BUDGET, settings=settings, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_run_draws_by_its_shares(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list[LabelKind]] = []
    original = Criterion.__call__

    def spy(self: Criterion, outputs: Any, batch: Any) -> Any:
        steps.append(batch["kind"])
        return original(self, outputs, batch)

    monkeypatch.setattr(Criterion, "__call__", spy)
    settings = ("train.sampling={masks: 2, boxes: 1, tags: 1}", "train.one_kind=true")
    tiny.run(data, tmp_path / "run", "diverse", steps=8, labels=BUDGET, settings=settings)
    assert Counter(map(tuple, steps)) == {("masks",) * 2: 4, ("boxes",) * 2: 2, ("tags",) * 2: 2}


def test_choices_of_a_recipe_reach_its_stages(data: Path, tmp_path: Path) -> None:
    """Where they did not, `soft` would charge one class a pixel and weights would be 1, without an error."""
    options = Options(labels=BUDGET, accelerator="cpu", precision="32-true", workers=0, quiet=True, cache=tmp_path / "cache")
    (job,) = prepare(data, tiny.recipe("diverse-hard", settings=("loss_weights.tags=0.5",)), tmp_path / "hard", options)
    assert job.targets.soft == SoftCrossEntropy(overlap="drawn")
    assert job.criterion.weights == {"tags": 0.5}
    jobs = prepare(data, tiny.recipe("bcm", settings=("loss_weights.tags=0.5",)), tmp_path / "bcm", options)
    assert [(job.targets.soft, job.criterion.weights) for job in jobs] == [(None, {"tags": 0.5})] * 3


@pytest.mark.parametrize(
    ("name", "kinds"), [("diverse-p", {"masks"}), ("diverse-p-i", {"masks", "tags"}), ("diverse-p-b", {"masks", "boxes"})]
)
def test_a_kind_that_is_left_out(data: Path, tmp_path: Path, name: str, kinds: set[str]) -> None:
    """The others are the ones that the whole recipe draws."""
    whole = draw(load_dataset(data, "train").samples, BUDGET, 5)
    run = tiny.run(data, tmp_path / "run", name, steps=2, labels=BUDGET, seed=5)
    assert run.kinds() == {key: kind for key, kind in whole.items() if kind in kinds}


def test_a_stage_may_leave_a_kind_out(data: Path, tmp_path: Path) -> None:
    """First the boxes alone, then everything: the second stage's kinds are unknown to the first."""
    whole = tiny.recipe("diverse", steps=8).model_dump(exclude={"schedules"})
    whole["stages"] = [{"name": "boxes", "loss": {"masks": "none", "boxes": "soft", "tags": "none"}}, {"name": "all"}]
    path = write(tmp_path / "staged.yaml", yaml.safe_dump({**whole, "schedules": {"short": whole.pop("train")}}))
    run = tiny.run(data, tmp_path / "run", str(path), steps=8, labels=BUDGET, settings=("train.val_every=4",))
    rows = [row for row in run.metrics() if row["loss"]]
    assert [bool(float(row["tags"] or 0)) for row in rows] == [False, True]


def test_a_stage_whose_images_are_all_at_fault(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    kinds = draw(load_dataset(data, "train").samples, "masks=3,boxes=1", 0)
    boxed = next(data / "JPEGImages" / f"{key}.jpg" for key, kind in kinds.items() if kind == "boxes")
    boxed.write_bytes(boxed.read_bytes()[:-400])  # its header is whole, so that only the check before training finds it
    stages = ("stages=[{name: first, loss: {masks: none, boxes: soft, tags: none}}, {name: second}]",)
    with pytest.raises(MixsupError, match=r"stage 'first': .*: all images to learn from are at fault; correct some of them"):
        tiny.run(data, tmp_path / "run", "diverse", steps=8, labels="masks=3,boxes=1", settings=stages, skip_bad=True)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def discs_and_squares(root: Path, count: int = 24) -> Path:
    """Red discs and blue squares, one of each in every picture of 32 x 32. Half of the training pictures say where the discs are, the others squares."""
    generator = np.random.default_rng(0)
    for number in range(count):
        source, part = ("discs", "train") if number % 3 == 0 else ("squares", "train") if number % 3 == 1 else ("both", "val")
        image = Image.new("RGB", (32, 32), (90, 140, 90))
        mask = Image.new("L", (32, 32))
        left, right = generator.permutation([2, 17])
        for place, colour, shape in ((left, (200, 40, 40), "disc"), (right, (40, 40, 200), "square")):
            box = [int(place), int(top := generator.integers(2, 18)), int(place) + 12, int(top) + 12]
            for canvas, fill in (
                (image, colour),
                (mask, {"disc": 1, "square": 2}[shape] if source == "both" else 1 if source[:-1] == shape else 0),
            ):
                (ImageDraw.Draw(canvas).ellipse if shape == "disc" else ImageDraw.Draw(canvas).rectangle)(box, fill=fill)
        for folder, picture in (("images", image), ("masks", mask)):
            path = root / source / folder / part / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    for source, names in (("discs", "disc"), ("squares", "square"), ("both", "disc\nsquare")):
        write(root / source / "labels.txt", names + "\n")
    return root


@pytest.mark.parametrize("complete", [False, True])
def test_two_sources_with_different_classes(tmp_path: Path, complete: bool) -> None:
    """Each annotates one of two classes that are in every picture. The network learns both; told that the lists were complete, it learns neither well."""
    root = discs_and_squares(tmp_path / "data")
    sources = [{"path": name, "complete": complete} for name in ("discs", "squares")] + [{"path": "both"}]
    data = write(root / "all.yaml", yaml.safe_dump({"classes": ["disc", "square"], "sources": sources}))
    known = {sample.id.split("-")[0]: sample.known for sample in load_dataset(data, "train").samples}
    assert known == ({"discs": None, "squares": None} if complete else {"discs": {1}, "squares": {2}})
    settings = ("train.lr=3e-3", "train.augment.colour=0", "train.augment.scale=[1, 1]", "train.validations=1")
    tiny.run(data, tmp_path / "run", "full", steps=60, settings=settings, labels="masks")
    scores = evaluate(tmp_path / "run", data, "val", checkpoint="last", device="cpu")["per_class"]
    least = min(scores["disc"], scores["square"])
    assert least < 0.6 if complete else least > 0.75


def test_a_partly_labelled_picture_is_not_judged_by_other_classes(tmp_path: Path) -> None:
    """Where nobody looked for squares, a square that the network finds counts as background; here it finds nothing else. So says the report, too."""
    root = discs_and_squares(tmp_path / "data", count=12)
    data = write(root / "all.yaml", yaml.safe_dump({"classes": ["disc", "square"], "sources": [{"path": "discs"}, {"path": "both"}]}))
    run = tiny.run(data, tmp_path / "run", "full", steps=2, labels="masks", split="train+val", val="none")
    segmenter = load(run.folder, checkpoint="last", device="cpu")
    segmenter._predictor.model = lambda images: {
        "scores": torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(len(images), 3, *images.shape[-2:])
    }
    partly, wholly = load_dataset(data, "train"), load_dataset(data, "val")
    found = evaluate_images(segmenter._predictor, partly)
    assert not found.matrix[:, 2].any()
    assert found.matrix[:, 0].sum() == found.matrix.sum()
    assert evaluate_images(segmenter._predictor, wholly).matrix[:, 2].sum() > 0
    for row in page._rows(segmenter, partly, "training", dict.fromkeys(found.per_image, "masks"), list(found.per_image)):
        assert row.score == pytest.approx(found.per_image[row.name])


def test_a_refresh_takes_classes_that_nobody_looked_for_as_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources with boxes, each of which lacks one of four classes."""
    make_voc(tmp_path / "one")
    make_voc(tmp_path / "two")
    sources = [{"path": "one", "label": "boxes"}, {"path": "two", "label": "boxes", "rename": {"cat": "yak"}}]
    data = write(tmp_path / "all.yaml", yaml.safe_dump({"classes": ["bird", "cat", "dog", "yak"], "sources": sources}))
    seen: list[set[int]] = []
    original = Direct.__call__

    def spy(self: Direct, case: Case) -> BoxMasks:
        seen.append(set(np.flatnonzero(case.scores.max(axis=(1, 2)) == 0).tolist()))
        assert np.allclose(case.scores.sum(axis=0), 1, atol=1e-5)
        return original(self, case)

    monkeypatch.setattr(Direct, "__call__", spy)
    tiny.run(data, tmp_path / "run", steps=2, labels="boxes", settings=("refresh=direct", "refresh.rounds=1"))
    assert Counter(map(tuple, seen)) == {(4,): 4, (2,): 4}


@pytest.mark.parametrize(
    ("name", "labels", "settings", "message"),
    [
        ("boxsup", BUDGET, ("train.sampling={masks: 1, boxes: 1}",), "train.sampling leaves out tags, which the label budget has"),
        ("diverse", BUDGET, ("train={balance: 0.5}",), "train.sampling gives each kind of label its share, and train.balance would"),
        ("diverse", BUDGET, ("train.sampling={masks: 0, boxes: 1, tags: 1}",), "train.sampling.masks: Input should be greater than 0"),
        ("diverse", BUDGET, ("loss_weights.tags=0",), "loss_weights.tags: Input should be greater than 0"),
        ("diverse", BUDGET, ("loss.boxes=gap-bce",), "loss 'gap-bce' cannot charge boxes; it charges tags"),
        ("diverse", BUDGET, ("refresh=em",), "refresh 'em' gives each pixel of a box one class in every step, and loss 'soft'"),
        ("diverse", BUDGET, ("loss=none",), "no image has labels that recipe 'diverse' learns from"),
        ("diverse", "masks=3,boxes=3", (), "3 images with boxes asked for, 1 can give them; ask for fewer"),
        ("diverse", "masks=0:boxes=0", (), "all zero, nothing would be left to learn from"),
        ("diverse-p", "boxes", (), "no image has labels that recipe 'diverse-p' learns from"),
        ("full", BUDGET, (), "recipe 'full' has no loss for boxes"),
    ],
)
def test_what_has_no_meaning(data: Path, tmp_path: Path, name: str, labels: str, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(MixsupError, match=message.replace("(", r"\(")) as caught:
        tiny.run(data, tmp_path / "run", name, labels=labels, settings=settings)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_kind_that_no_image_can_give(tmp_path: Path) -> None:
    with pytest.raises(MixsupError, match="no image can give boxes; ask for a kind that the data set has"):
        tiny.run(make_tags(tmp_path / "data"), tmp_path / "run", "diverse", labels="masks=0:boxes=1:tags=1")


def test_tags_that_contradict_boxes(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    write(data / "tags.csv", "image,tags\na.jpg,dog\nb.jpg,bird;dog\n")
    with pytest.raises(DataError, match=r"a.jpg, tags: the tags leave out cat, of which there are boxes; correct one of them"):
        tiny.run(data, tmp_path / "run", "diverse", labels="boxes")
    run = tiny.run(data, tmp_path / "run", "diverse", steps=2, labels="boxes", skip_bad=True)
    assert run.facts["images"] == {"boxes": 3}


def test_evaluation_does_not_look_at_tags_and_boxes(data: Path, tmp_path: Path) -> None:
    """So what contradicts there is no fault of a validation image."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    write(copy / "tags.csv", "image,tags\ne.jpg,dog\n")
    tiny.run(copy, tmp_path / "run", "full", steps=2, labels="masks")
    assert evaluate(tmp_path / "run", copy, "val", device="cpu")["images"] == 2


def test_a_class_that_no_source_annotates(tmp_path: Path) -> None:
    root = discs_and_squares(tmp_path / "data", count=6)
    data = write(root / "all.yaml", yaml.safe_dump({"classes": ["disc", "square"], "sources": [{"path": "discs"}]}))
    with pytest.raises(
        MixsupError, match="no training image comes from a source that annotates square; take it out of `classes`, or add a source"
    ):
        tiny.run(data, tmp_path / "run", "full", labels="masks")
