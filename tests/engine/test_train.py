"""Training on tiny data: what a run leaves behind, what it refuses, what it must never see."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from safetensors.torch import load_file

import mixsup
from mixsup.data import load_dataset
from mixsup.engine import train as engine
from mixsup.engine.api import Segmenter, evaluate, load, predict_files
from mixsup.engine.checkpoint import load_state, load_weights, save_state, save_weights
from mixsup.engine.model import build_model
from mixsup.engine.optimiser import learning_rate, parameter_groups
from mixsup.engine.run import Run
from mixsup.errors import DataError, MixsupError
from mixsup.losses import Criterion
from mixsup.masks.store import load as load_masks
from mixsup.recipe import NetworkChoice, Schedule
from tests import tiny
from tests.data.make import make_coco, make_coco_boxes, make_tags, make_voc


def weights(folder: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "data")


def test_a_run_leaves_all_that_it_is(data: Path, tmp_path: Path) -> None:
    run = tiny.run(data, tmp_path / "run", labels="boxes", report=True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {
        "recipe.yaml", "labels.txt", "split.csv", "run.json", "metrics.csv", "log.txt", "checkpoint.safetensors", "last.safetensors", "training.pt",
        "report.html",
    }  # fmt: skip
    assert not list((tmp_path / "run").glob(".*"))
    again = Run.load(tmp_path / "run")
    assert again.classes == run.classes
    assert again.recipe.model_dump(exclude={"schedules"}) == run.recipe.model_dump(exclude={"schedules"})
    assert set(again.kinds().values()) == {"boxes"}
    rows = again.metrics()
    assert [int(row["step"]) for row in rows if row["miou"]] == [3, 6]
    scores = evaluate(tmp_path / "run", data, "val", checkpoint="last")
    assert scores["miou"] == pytest.approx(float(rows[-1]["miou"]), abs=1e-6)
    assert scores["pretraining"] == "none"


def test_predict_needs_nothing_but_the_run(data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    tiny.run(mine, tmp_path / "run", labels="masks")
    pictures = tmp_path / "pictures"
    shutil.copytree(mine / "JPEGImages", pictures / "below")
    shutil.rmtree(mine)
    assert predict_files(tmp_path / "run", [pictures], tmp_path / "out", overlay=True) == 6
    assert len(list((tmp_path / "out" / "below").glob("*.png"))) == 6
    assert len(list((tmp_path / "out" / "below").glob("*.overlay.jpg"))) == 6
    segmenter = load(tmp_path / "run")
    ids = segmenter.predict(next((pictures / "below").iterdir()))
    assert ids.dtype == np.uint8
    assert ids.max() < len(segmenter.classes)
    with pytest.raises(MixsupError, match="must be H x W x 3 uint8"):
        segmenter.predict(np.zeros((4, 4), np.uint8))
    (pictures / "below" / "bad.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match="web page"):
        predict_files(tmp_path / "run", [pictures], tmp_path / "out")
    assert predict_files(tmp_path / "run", [pictures], tmp_path / "out", skip_bad=True) == 6


def test_a_name_that_leaves_no_room_for_results(data: Path, tmp_path: Path) -> None:
    run, pictures = tiny.run(data, tmp_path / "run", labels="boxes", steps=1), tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a", 245 * "n"):
        shutil.copy(data / "JPEGImages" / "a.jpg", pictures / f"{name}.jpg")
    with pytest.raises(DataError, match="its name is too long to name results by; rename the image"):
        predict_files(run.folder, [pictures], tmp_path / "out", overlay=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "a.overlay.jpg", "labels.txt", "predictions.json"}


def test_little_shared_memory_changes_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches come through a pipe then, from the same processes."""
    tiny.run(data, tmp_path / "ample", labels="boxes", workers=1)
    monkeypatch.setattr("mixsup.engine.batches.shared_memory", lambda: 0.0)
    tiny.run(data, tmp_path / "little", labels="boxes", workers=1)
    assert same(tmp_path / "ample", tmp_path / "little")


def test_the_scale_of_half_precision_is_state(tmp_path: Path) -> None:
    """`16-mixed` scales its gradients by a factor that grows and halves on the way; going on with the first one would be another run."""

    def at(factor: float) -> Fabric:
        scaler = torch.amp.GradScaler("cpu", init_scale=factor)
        fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        scaler.scale(torch.ones(1))  # which is when the factor becomes a tensor
        return fabric

    save_state(at(1024.0), tmp_path / "state.pt", {"progress": {"step": 3}})
    resumed = at(65536.0)
    assert load_state(resumed, tmp_path / "state.pt", {}) == {"progress": {"step": 3}}
    assert resumed._precision.state_dict()["scale"] == 1024.0


def test_same_seed_same_bits_other_seed_other_bits(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny.run(data, tmp_path / name, labels="boxes", seed=seed)
    assert same(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "metrics.csv").read_text() == (tmp_path / "b" / "metrics.csv").read_text()
    assert not same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("how", ["noise", "other masks", "missing"])
def test_hidden_masks_reach_nothing(data: Path, tmp_path: Path, how: str) -> None:
    """With --labels boxes the weights are the same bits whatever the training images' mask files hold."""
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    tiny.run(data, tmp_path / "clean", labels="boxes")
    for sample in load_dataset(data, "train").samples:
        path = mine / "SegmentationClass" / f"{sample.id}.png"
        if how == "noise":
            path.write_bytes(np.random.default_rng(0).bytes(500))
        elif how == "other masks":
            path.write_bytes((data / "SegmentationClass" / "f.png").read_bytes())
        else:
            path.unlink()
    tiny.run(mine, tmp_path / "dirty", labels="boxes")
    assert same(tmp_path / "clean", tmp_path / "dirty")
    assert (tmp_path / "clean" / "split.csv").read_text() == (tmp_path / "dirty" / "split.csv").read_text()


def test_hidden_boxes_of_a_mixture_reach_nothing(tmp_path: Path) -> None:
    """COCO outlines hold boxes and masks at once; a box image learns from its box alone."""
    import json

    one, two = make_coco(tmp_path / "one"), make_coco(tmp_path / "two")
    budget = "masks=2,boxes=2"
    run = tiny.run(one, tmp_path / "clean", labels=budget)
    boxed = {key for key, kind in run.kinds().items() if kind == "boxes"}
    path = next(two.rglob("instances_train.json"))
    content = json.loads(path.read_text())
    names = {row["id"]: Path(row["file_name"]).stem for row in content["images"]}
    for row in content["annotations"]:
        if names[row["image_id"]] in boxed:
            x, y, w, h = row["bbox"]
            row["segmentation"] = [[x, y, x + w, y, x, y + h]]  # another outline in the same box
    path.write_text(json.dumps(content))
    tiny.run(two, tmp_path / "dirty", labels=budget)
    assert same(tmp_path / "clean", tmp_path / "dirty")


def test_mixture_uses_each_images_own_label(data: Path, tmp_path: Path) -> None:
    run = tiny.run(data, tmp_path / "run", labels="masks=1:boxes=3")
    kinds = run.kinds()
    assert sorted(kinds.values()) == ["boxes", "boxes", "boxes", "masks"]
    rows = [row for row in run.metrics() if row["loss"]]
    assert any(row["boxes"] for row in rows)


def test_a_killed_run_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two checkpoints, resumed, and the same to the last bit; the same command again does nothing."""
    tiny.run(data, tmp_path / "whole", labels="boxes", steps=8)
    tiny.interrupt_at_call(monkeypatch, 6)  # after the checkpoint of step 4
    with pytest.raises(KeyboardInterrupt):
        tiny.run(data, tmp_path / "cut", labels="boxes", steps=8)
    with pytest.raises(MixsupError, match="holds a run already; add --resume"):
        tiny.run(data, tmp_path / "cut", labels="boxes", steps=8)
    with pytest.raises(MixsupError, match="cannot go on, seed was 0 and is now 5"):
        tiny.run(data, tmp_path / "cut", labels="boxes", steps=8, seed=5, resume=True)
    with pytest.raises(MixsupError, match=r"cannot go on, train\.steps was 8 and is now 9; repeat"):
        tiny.run(data, tmp_path / "cut", labels="boxes", steps=9, resume=True)
    tiny.run(data, tmp_path / "cut", labels="boxes", steps=8, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "cut" / "metrics.csv").read_text()
    before = weights(tmp_path / "cut")
    tiny.run(data, tmp_path / "cut", labels="boxes", steps=8, resume=True)
    assert all(torch.equal(value, before[key]) for key, value in weights(tmp_path / "cut").items())


def test_refresh_rounds(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("refresh=direct", "refresh.rounds=2")
    run = tiny.run(data, tmp_path / "whole", labels="masks=1,boxes=3", steps=9, settings=settings)
    boxed = {key for key, kind in run.kinds().items() if kind == "boxes"}
    for number in (1, 2):
        files = {path.stem: load_masks(path) for path in (tmp_path / "whole" / "masks" / f"round-{number}").iterdir()}
        assert files.keys() == boxed
        assert all(masks is not None for masks in files.values())

    rounds = 0
    original = engine.refresh

    def dies(job: Any, number: int, step: int) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 2:
            raise KeyboardInterrupt
        original(job, number, step)

    monkeypatch.setattr(engine, "refresh", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(data, tmp_path / "cut", labels="masks=1,boxes=3", steps=9, settings=settings)
    monkeypatch.setattr(engine, "refresh", original)
    tiny.run(data, tmp_path / "cut", labels="masks=1,boxes=3", steps=9, settings=settings, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    tiny.run(data, tmp_path / "still", labels="masks=1,boxes=3", steps=9)
    assert not same(tmp_path / "whole", tmp_path / "still")


@pytest.mark.parametrize("kind", [str, Path])
def test_files_as_text_or_paths(data: Path, tmp_path: Path, kind: type[str] | type[Path]) -> None:
    network, cache = tmp_path / "network.yaml", tmp_path / "masks"
    network.write_text("{arch: linknet, encoder: tu-test_efficientnet, weights: none}")
    first = tiny.run(data, tmp_path / "first", labels="masks", steps=1)
    run = mixsup.train(
        kind(data), "rectangles", kind(tmp_path / "run"), labels="boxes", network=kind(network), init=kind(first.folder), cache=kind(cache), size=32,
        batch=2, steps=1, accelerator="cpu", workers=0, report=False, quiet=True,
    )  # fmt: skip
    assert Run.load(run.folder).facts["init"] == str(first.folder)
    assert any(cache.rglob("*.npz"))


def test_arguments_of_another_kind(data: Path, tmp_path: Path) -> None:
    for wrong in ({"network": {"arch": "unet"}}, {"settings": "train.lr=1"}, {"settings": {"train.lr": 1}}):
        with pytest.raises(TypeError, match=r"a name or a YAML file|a list of `key=value`"):
            mixsup.train(data, "rectangles", tmp_path / "run", **wrong)  # type: ignore[arg-type]
    run = tiny.run(data, tmp_path / "run", labels="masks", steps=1)
    with pytest.raises(MixsupError, match="checkpoint 'x': there are best and last"):
        load(run.folder, checkpoint="x")
    for scales in (1.0, ["a"]):
        with pytest.raises(MixsupError, match="--scales"):
            load(run.folder, scales=scales)  # type: ignore[arg-type]


def test_a_picture_on_which_the_network_fails_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.run(data, tmp_path / "run", labels="masks", steps=1)
    pictures, original = sorted((data / "JPEGImages").iterdir()), Segmenter.predict
    calls: list[int] = []

    def fails(self: Any, image: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("kernel size can't be\ngreater than input size")
        return original(self, image)

    monkeypatch.setattr(Segmenter, "predict", fails)
    with pytest.raises(
        DataError, match=r"the network fails on its \d+ x \d+ pixels \(kernel size can't be greater than input size\)"
    ) as caught:
        predict_files(tmp_path / "run", pictures, tmp_path / "out")
    assert [problem.file for problem in caught.value.problems] == [str(pictures[1])]
    assert len(list((tmp_path / "out").glob("*.png"))) == len(pictures) - 1


def test_start_from_another_run(data: Path, tmp_path: Path) -> None:
    tiny.run(data, tmp_path / "first", labels="masks", steps=4)
    tiny.run(data, tmp_path / "same", labels="masks", steps=1, init=str(tmp_path / "first"), settings=("train.lr=1e-12",))
    first, then = weights(tmp_path / "first", "checkpoint.safetensors"), weights(tmp_path / "same")
    learned = [key for key in first if first[key].is_floating_point() and "running" not in key]
    assert all(torch.allclose(first[key], then[key], atol=1e-6) for key in learned)

    other = make_voc(tmp_path / "other")
    (other / "labels.txt").write_text("background\nbird\ncat\ndog\ncow\n")
    tiny.run(other, tmp_path / "new", labels="masks", steps=1, init=str(tmp_path / "first"), settings=("train.lr=1e-12",))
    new = weights(tmp_path / "new")
    assert new["head.classifier.weight"].shape[0] == 5
    assert all(torch.allclose(first[key], new[key], atol=1e-6) for key in learned if key.startswith("network."))
    run = Run.load(tmp_path / "new")
    model = build_model(run.recipe.network, run.recipe.head, 5, pretrained=False)
    groups = parameter_groups(model, model.network, 1.0, 10.0, 0.0, tuple(run.facts["carried"]))
    quick = {id(parameter) for group in groups if group["lr"] == 10 for parameter in group["params"]}
    assert {name.split(".")[0] for name, parameter in model.named_parameters() if id(parameter) in quick} == {
        "head"
    }  # section 5.2: the last layer
    assert {part.split(".")[0] for part in Run.load(tmp_path / "same").facts["carried"]} == {"network", "head"}
    with pytest.raises(MixsupError, match="not a run folder"):
        tiny.run(data, tmp_path / "x", labels="masks", init=str(tmp_path / "nothing"))


def test_weights_that_two_layers_share(tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    layers[1].weight = layers[0].weight
    save_weights(tmp_path / "w.safetensors", layers, 1)
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(found[key], value) for key, value in layers.state_dict().items())
    load_weights(tmp_path / "w.safetensors", layers)


def test_another_process_is_gone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one at fault says what is wrong; that its connection is closed is no defect of the others."""

    def closed(*_: Any) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")

    for place in ("optimise", "prepare"):
        with monkeypatch.context() as one:
            one.setattr(engine, place, closed)
            with pytest.raises(RuntimeError):
                tiny.run(data, tmp_path / f"{place}-alone", labels="boxes")
            one.setattr("torch.distributed.is_initialized", lambda: True)
            if place == "optimise":
                one.setattr(engine, "prepare", lambda *_: [])
            with pytest.raises(MixsupError, match="another process of the run has ended; its line says why"):
                tiny.run(data, tmp_path / place, labels="boxes")


def test_another_backbone_is_no_start(data: Path, tmp_path: Path) -> None:
    """Weights of a few layers would fit by chance, and the rest would learn at the rate of pretrained ones."""
    first = tiny.run(data, tmp_path / "first", labels="masks", steps=1)
    other = tiny.recipe(steps=1).model_copy(update={"network": tiny.NETWORK.model_copy(update={"encoder": "resnet18"})})
    options = engine.Options(
        labels="masks", init=first.folder, accelerator="cpu", workers=0, report=False, quiet=True, cache=tmp_path / "cache"
    )
    with pytest.raises(MixsupError, match="its network has another architecture"):
        engine.train(data, other, tmp_path / "then", options)


def test_a_start_of_another_normalisation(data: Path, tmp_path: Path) -> None:
    """The same weights on other inputs know nothing."""
    first = tiny.run(data, tmp_path / "first", labels="masks", steps=1)
    network = tiny.NETWORK.model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    other = tiny.recipe(steps=1).model_copy(update={"network": network})
    options = engine.Options(
        labels="masks", init=first.folder, accelerator="cpu", workers=0, report=False, quiet=True, cache=tmp_path / "cache"
    )
    with pytest.raises(
        MixsupError, match=r"was trained with mean \[0.485, .*, here it has \[0.5, 0.5, 0.5\].*give the run's own as `mean`"
    ):
        engine.train(data, other, tmp_path / "then", options)
    assert not (tmp_path / "then").exists()


def test_a_start_from_a_masking_head(data: Path, tmp_path: Path) -> None:
    """Its maps are as learned as its scores; where training begins with another head, that they are left behind is said."""
    settings = ("stages=[]", "masks=ucm", "train.validations=1")
    first = tiny.run(data, tmp_path / "first", "bcm", labels="boxes", steps=2, settings=settings)
    then = tiny.run(data, tmp_path / "then", "bcm", labels="boxes", steps=1, settings=settings, init=str(first.folder))
    model = build_model(then.recipe.network, "bcm", 4, pretrained=False)
    groups = parameter_groups(model, model.network, 1.0, 10.0, 0.0, tuple(then.facts["carried"]))
    assert {group["lr"] for group in groups} == {1.0}
    assert "not head" not in (then.folder / "log.txt").read_text()
    plain = tiny.run(data, tmp_path / "plain", labels="boxes", steps=1, init=str(first.folder))
    assert "; not head.bias, head.weight: the head that training begins with has none" in (plain.folder / "log.txt").read_text()


@pytest.mark.parametrize(("restart", "left"), [("rounds", [1 / 4, 1 / 4]), ("stages", [5 / 8, 1 / 8]), ("never", [5 / 8, 1 / 8])])
def test_rates_begin_anew_after_each_refresh(data: Path, tmp_path: Path, restart: str, left: list[float]) -> None:
    """Each of two rounds of four steps is a training of its own (MCOF, algorithm 1), or half of one; `left` is what poly's share is at their last steps."""
    settings = (
        "refresh=direct",
        "refresh.rounds=1",
        f"train.restart={restart}",
        "train.validations=1",
        "train.warmup=0",
        "train.power=1",
    )
    run = tiny.run(data, tmp_path / "run", labels="boxes", steps=8, settings=settings)
    rates = [float(row["lr"]) / run.recipe.train.lr for row in run.metrics() if row.get("lr")]
    assert rates == pytest.approx(left)


@pytest.mark.parametrize("settings", [(), ("train.clip=1",)])
def test_a_loss_that_is_not_finite_names_step_and_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    original = Criterion.__call__
    calls = 0

    def breaks(self: Any, outputs: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        found = original(self, outputs, batch)
        return {name: value * float("nan") for name, value in found.items()} if calls == 2 else found

    monkeypatch.setattr(Criterion, "__call__", breaks)
    with pytest.raises(MixsupError, match=r"step 2: loss became nan on images [a-d], [a-d]; start again with a lower train.lr") as caught:
        tiny.run(data, tmp_path / "run", labels="boxes", settings=settings)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_losses_by_kind_add_up_to_the_loss(data: Path, tmp_path: Path) -> None:
    """Also over steps that had no image of a kind: of four images one has a mask."""
    rows = tiny.run(data, tmp_path / "run", labels="masks=1,boxes=3", settings=("train.validations=1",)).metrics()
    (row,) = [row for row in rows if row["loss"]]
    assert float(row["masks"]) + float(row["boxes"]) == pytest.approx(float(row["loss"]), rel=1e-4)
    assert not row["tags"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "tags", "name": "full"}, "recipe 'full' has no loss for tags, it learns from masks; choose"),
        ({"labels": "boxes", "name": "full"}, "recipe 'full' has no loss for boxes"),
        ({"labels": "masks", "settings": ("refresh=direct", "refresh.rounds=1")}, "the label budget has none"),
        ({"labels": "boxes", "settings": ("refresh=direct",)}, "0 rounds does nothing"),
        ({"labels": "boxes", "settings": ("masks=magic",)}, "no mask source 'magic'"),
        ({"labels": "boxes", "settings": ("head=magic",)}, "no head 'magic'"),
        ({"labels": "boxes", "settings": ("loss=magic",)}, "no loss 'magic'"),
        ({"labels": "boxes", "split": "nowhere"}, "no split 'nowhere'; it has train, val"),
        ({"labels": "masks=99"}, "99 images with masks asked for"),
        ({"labels": "boxes", "accelerator": "abacus"}, "cannot start on abacus"),
        ({"labels": "boxes", "accelerator": "cuda", "devices": 99}, "cannot start on cuda x 99"),
        ({"labels": "boxes", "strategy": "fsdp"}, "--strategy fsdp: use auto, ddp"),
        ({"labels": "boxes", "precision": "bf16-true"}, "--precision bf16-true: use auto, 32-true, bf16-mixed or 16-mixed"),
        ({"labels": "boxes", "seed": -1}, "--seed -1"),
        ({"labels": "boxes", "workers": -1}, "--workers -1"),
        ({"labels": "boxes", "init": "nowhere"}, "not a run folder"),
        ({"labels": "boxes", "settings": ("train.augment.scale=[1.5,0.75]",)}, "smallest and then the largest"),
    ],
)
def test_refused_at_start(data: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        tiny.run(data, tmp_path / "run", **options)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_network_that_cannot_take_the_pictures_costs_no_masks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "NETWORK", tiny.NETWORK.model_copy(update={"options": {"in_channels": 1}}))
    with pytest.raises(MixsupError, match=r"network linknet\+tu-test_efficientnet cannot take pictures of 32 x 32 pixels"):
        tiny.run(data, tmp_path / "run", labels="boxes")
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_one_image_a_device_that_a_norm_cannot_learn_from_costs_no_masks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "NETWORK", tiny.NETWORK.model_copy(update={"arch": "deeplabv3plus"}))
    options = engine.Options(labels="boxes", accelerator="cpu", workers=0, report=False, quiet=True, cache=tmp_path / "cache")
    with pytest.raises(MixsupError, match="a norm of this network has one value a channel to go by; raise --batch"):
        engine.train(data, tiny.recipe(batch=1), tmp_path / "run", options)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_data_that_a_recipe_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(MixsupError, match="no image has labels that recipe 'full' learns from"):
        tiny.run(make_tags(tmp_path / "tags"), tmp_path / "run", "full")
    with pytest.raises(MixsupError, match="no image can give masks"):
        tiny.run(make_coco_boxes(tmp_path / "boxes"), tmp_path / "run", labels="masks")


def test_without_validation_masks_the_last_weights_are_the_best(tmp_path: Path) -> None:
    run = tiny.run(make_coco_boxes(tmp_path / "boxes"), tmp_path / "run", report=True)
    assert not any(row["miou"] for row in run.metrics())
    best, last = weights(tmp_path / "run", "checkpoint.safetensors"), weights(tmp_path / "run")
    assert all(torch.equal(best[key], last[key]) for key in last)
    assert "mean IoU" not in (tmp_path / "run" / "report.html").read_text().split("<script>")[0].split("Pictures")[0]


def test_bad_images_are_found_before_training_or_skipped(data: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    victim = load_dataset(mine, "train").samples[0].image
    victim.write_bytes(victim.read_bytes()[:-30])
    with pytest.raises(DataError, match="broken or cut short"):
        tiny.run(mine, tmp_path / "run", labels="boxes")
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "checkpoint.safetensors").exists()
    run = tiny.run(mine, tmp_path / "skipped", labels="boxes", skip_bad=True)
    assert run.facts["images"] == {"boxes": 3}


def test_evaluation_refuses_other_classes(data: Path, tmp_path: Path) -> None:
    tiny.run(data, tmp_path / "run", labels="boxes")
    other = make_voc(tmp_path / "other")
    (other / "labels.txt").write_text("background\nbird\ndog\ncat\n")
    with pytest.raises(MixsupError, match="classes differ from the run's"):
        evaluate(tmp_path / "run", other, "val")
    with pytest.raises(MixsupError, match="not a run folder"):
        evaluate(tmp_path / "nothing", data)


def test_learning_rates() -> None:
    poly = Schedule(decay="poly", power=0.9)
    assert learning_rate(0, 100, poly) == 1
    assert learning_rate(50, 100, poly) == pytest.approx(0.5**0.9)
    stepped = Schedule(decay="step", epochs=45, step_epochs=15)  # BoxSup: divided by 10 after every 15 of 45 epochs
    assert [learning_rate(step, 45, stepped) for step in (0, 14, 15, 29, 30, 44)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = Schedule(decay="constant", warmup=10)
    assert [learning_rate(step, 100, warm) for step in (0, 5, 10, 50)] == pytest.approx([0.1, 0.55, 1, 1])


@pytest.mark.parametrize(
    "settings", [("train.optimizer=sgd", "train.clip=1.0"), ("schedule=paper",), ("train.warmup=3", "train.decay=constant")]
)
def test_other_schedules_run(data: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    tiny.run(data, tmp_path / "run", labels="boxes", steps=4, settings=settings)
    assert (tmp_path / "run" / "last.safetensors").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_while_training(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """One line, also when a loader process meets it."""
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    original = engine.stretch

    def without(job: Any, *rest: Any) -> None:
        job.train.samples[0].image.unlink(missing_ok=True)
        original(job, *rest)

    monkeypatch.setattr(engine, "stretch", without)
    with pytest.raises(MixsupError, match=r"step \d: .*no such file") as caught:
        tiny.run(mine, tmp_path / "run", labels="boxes", workers=workers)
    assert len(str(caught.value).splitlines()) == 1


def test_validation_every_so_many_steps(data: Path, tmp_path: Path) -> None:
    run = tiny.run(data, tmp_path / "run", labels="boxes", steps=7, settings=("train.val_every=3",))
    assert [int(row["step"]) for row in run.metrics() if row["miou"]] == [3, 6, 7]


def test_boxes_from_broken_masks_can_be_skipped(tmp_path: Path) -> None:
    from tests.data.make import make_folders

    data = make_folders(tmp_path / "data")
    dataset = load_dataset(data, "train")
    victims = [sample.mask for sample in dataset.samples[:2]]
    for victim in victims:
        victim.path.write_bytes(b"junk")  # type: ignore[union-attr]
    (data / "labels.txt").write_text("background\nbird\ncat\ndog\n")
    with pytest.raises(DataError) as caught:
        tiny.run(data, tmp_path / "run", labels="boxes")
    assert len(caught.value.problems) == 2
    assert tiny.run(data, tmp_path / "skipped", labels="boxes", skip_bad=True).facts["images"] == {"boxes": 2}


def test_a_run_whose_creation_was_killed_is_no_run(data: Path, tmp_path: Path) -> None:
    """`recipe.yaml` is written last, so a folder without it can be used again."""
    whole = tiny.run(data, tmp_path / "run", labels="boxes")
    (whole.folder / "recipe.yaml").unlink()
    (whole.folder / ".training.pt.123.tmp").write_bytes(b"half")
    tiny.run(data, tmp_path / "run", labels="boxes")
    assert not list(whole.folder.glob(".*.tmp"))


def test_what_a_run_started_from_stands_beside_its_scores(data: Path, tmp_path: Path) -> None:
    tiny.run(data, tmp_path / "first", labels="masks", steps=2)
    run = tiny.run(data, tmp_path / "then", labels="masks", steps=2, init=str(tmp_path / "first"))
    assert run.facts["pretraining"] == "run first (none)"


def test_a_start_from_another_run_fetches_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet's weights would be written over at once. What norms have counted is the other run's, and is kept as there, or as the recipe says."""
    monkeypatch.setattr("mixsup.networks.zoo.from_hub", lambda *_: pytest.fail("fetched"))
    tiny.run(data, tmp_path / "first", labels="masks", steps=1)
    for name, start, changes, frozen in (
        ("then", "first", {"weights": "imagenet"}, False),
        ("kept", "first", {"weights": "none", "freeze_batchnorm": True}, True),
        ("next", "kept", {"weights": "none"}, True),
        ("last", "next", {"freeze_batchnorm": False}, False),
    ):
        monkeypatch.setattr(tiny, "NETWORK", NetworkChoice(**{**tiny.NETWORK.model_dump(), "freeze_batchnorm": None, **changes}))
        run = tiny.run(data, tmp_path / name, labels="masks", steps=1, init=str(tmp_path / start))
        assert run.facts["freeze_batchnorm"] == frozen
        assert run.facts["pretraining"].startswith(f"run {start} (")
        statistics = [key for key in weights(run.folder) if key.endswith("running_mean") and ".encoder." in key]
        assert frozen == all(torch.equal(weights(run.folder)[key], weights(tmp_path / start)[key]) for key in statistics)


def test_a_run_that_started_from_another_can_be_interrupted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken over decides which layers learn slowly; a resumed run must know it without reading that run again."""
    tiny.run(data, tmp_path / "first", labels="masks", steps=2)
    for name in ("whole", "cut"):
        if name == "cut":
            tiny.interrupt_at_call(monkeypatch, 5)
            with pytest.raises(KeyboardInterrupt):
                tiny.run(data, tmp_path / name, labels="masks", init=str(tmp_path / "first"))
            monkeypatch.undo()
        tiny.run(data, tmp_path / name, labels="masks", init=str(tmp_path / "first"), resume=name == "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert Run.load(tmp_path / "cut").facts["pretraining"] == "run first (none)"


def test_norms_of_another_run_stay_as_they_are_after_an_interruption(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the recipe nor a weights file says so, only the run that was started from."""

    def network(**changes: Any) -> None:
        monkeypatch.setattr(tiny, "NETWORK", NetworkChoice(**{**plain.model_dump(), **changes}))

    plain, begun = tiny.NETWORK, str(tmp_path / "first")
    network(freeze_batchnorm=True)
    first = tiny.run(data, tmp_path / "first", labels="masks", steps=2)
    network(freeze_batchnorm=None)
    with monkeypatch.context() as cut:
        tiny.interrupt_at_call(cut, 5)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(data, tmp_path / "then", labels="masks", init=begun)
    run = tiny.run(data, tmp_path / "then", labels="masks", init=begun, resume=True)
    statistics = [key for key in weights(run.folder) if key.endswith("running_mean") and ".encoder." in key]
    assert all(torch.equal(weights(run.folder)[key], weights(first.folder)[key]) for key in statistics)


def test_no_mask_file_at_all_is_read(data: Path, tmp_path: Path) -> None:
    """Every mask file of the data set is noise, those of the validation images too: same bits, since nothing opens them."""
    mine = tmp_path / "data"
    shutil.copytree(data, mine)
    for path in (mine / "SegmentationClass").iterdir():
        path.write_bytes(np.random.default_rng(0).bytes(500))
    for name, place in (("clean", data), ("dirty", mine)):
        tiny.run(place, tmp_path / name, labels="boxes", val="none")
    assert same(tmp_path / "clean", tmp_path / "dirty")
