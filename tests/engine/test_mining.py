"""Labels of tagged images in a run: seeds, MCOF's rounds, what they leave, what an interruption and bad input do to them."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mixsup.data import load_dataset
from mixsup.data.derive import tags_of
from mixsup.data.image import read_mask
from mixsup.data.sample import BACKGROUND, Sample
from mixsup.engine import helping, mining, refresh, seeds
from mixsup.engine.helping import round_folder
from mixsup.engine.initialise import begin_with
from mixsup.engine.predict import tiles
from mixsup.engine.refresh import read_rounds
from mixsup.engine.run import BEST, Run
from mixsup.errors import DataError, MixsupError
from mixsup.masks.superpixels import Superpixels
from mixsup.networks import build_network
from mixsup.saliency.background import Background
from tests import processes, tiny
from tests.data.make import OBJECTS, make_coco, make_voc, voc_xml, write
from tests.engine.test_diverse import discs_and_squares
from tests.engine.test_kill import command, kill, train
from tests.engine.test_train import same

QUICK = (
    "masks.tag_options.training=0.5", "masks.tag_options.scales=[1.0]", "refresh.options.training=0.3", "refresh.options.hidden=8", "refresh.rounds=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "data")


def mcof(data: Path, out: Path, name: str = "mcof", **options: Any) -> Run:
    settings = options.pop("settings", QUICK)
    return tiny.run(data, out, name, **{"labels": "tags", "steps": 6, "settings": settings, **options})


def maps_of(run: Path, folder: str) -> dict[str, Any]:
    return {path.stem: read_mask(path) for path in sorted((run / "masks" / folder).glob("*.png"))}


@pytest.mark.parametrize("name", ["mcof", "mcof-no-saliency", "direct"])
def test_rounds(data: Path, tmp_path: Path, name: str) -> None:
    run = mcof(data, tmp_path / "run", name)
    tagged = set(run.kinds())
    assert [(row["round"], row["step"], row["kind"]) for row in read_rounds(run.folder)] == [(1, 0, "tags"), (2, 2, "tags"), (3, 4, "tags")]
    assert all(row["images"] == row["boxes"] == len(tagged) for row in read_rounds(run.folder))
    for number in range(4):
        assert set(maps_of(run.folder, f"round-{number}")) == tagged
    assert set(maps_of(run.folder, "round-2/seeds")) == tagged
    assert not (run.folder / "masks" / "round-1" / "seeds").exists()  # they are round 0
    mined = [number for number in (1, 2, 3) if (run.folder / "masks" / f"round-{number}" / "regions").exists()]
    assert mined == ([1] if name == "direct" else [1, 2, 3])
    if name == "direct":
        for number in (2, 3):
            seeds, labels = maps_of(run.folder, f"round-{number}/seeds"), maps_of(run.folder, f"round-{number}")
            assert all(np.array_equal(seeds[key], labels[key]) for key in tagged)
    if name == "mcof-no-saliency":
        regions, labels = maps_of(run.folder, "round-1/regions"), maps_of(run.folder, "round-1")
        assert all(np.array_equal(regions[key], labels[key]) for key in tagged)
    assert (run.folder / "last.safetensors").is_file()


def test_shares_are_held(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `offsets` is asked, and that its answer decides S and O."""
    asked = []

    def prefers(target: Any, scores: Any, weights: Any, objects: bool, classes: Any) -> Any:
        asked.append(objects)
        assert target.sum() == pytest.approx(1, abs=1e-5)
        assert weights.sum() == pytest.approx(1, abs=1e-5)
        assert np.isneginf(scores).any()  # images have different numbers of tags
        assert np.isfinite(scores[:, 0]).all()
        assert (classes[:, 0] == BACKGROUND).all()
        return np.array([0, 100, 0, 0], np.float32)

    monkeypatch.setattr("mixsup.refresh.mcof.offsets", prefers)
    run = mcof(data, tmp_path / "run", settings=(*QUICK, "refresh.options.kept=0", "refresh.options.held=objects"))
    assert asked == [True] * 5  # O of three rounds, S of the two that are not seeds
    tags = {sample.id: tags_of(sample, 4) for sample in load_dataset(data, "train").samples}
    for place in ("round-2/seeds", "round-2/regions", "round-3"):
        for key, labels in maps_of(run.folder, place).items():
            assert (labels == 1).all() if 1 in tags[key] else not (labels == 1).any()


def test_each_class_has_a_say_in_its_share() -> None:
    """Class 1 is on every image, class 2 on every tenth; class 3 is rare, class 4 on two images, and evenly spread images show neither."""
    tags = [
        {1, *([2] if index % 10 == 0 else []), *([3] if index % 50 == 7 else []), *([4] if index in (501, 777) else [])}
        for index in range(1000)
    ]
    some = mining.looked_at(tags)
    assert some == sorted(set(some))
    assert set(range(0, 1000, 10)) <= set(some)
    assert [sum(class_id in tags[index] for index in some) for class_id in (1, 2, 3, 4)] == [110, 100, 8, 2]
    assert [index for index in some if 3 in tags[index]] == [7 + 50 * number for number in (0, 2, 5, 7, 10, 12, 15, 17)]
    assert mining.looked_at([{1}] * 5) == [0, 1, 2, 3, 4]
    assert mining.looked_at([]) == []


def test_no_tagged_image_is_left(data: Path, tmp_path: Path) -> None:
    """What nobody can read goes with --skip-bad; the others are trained on."""
    bad = Path(shutil.copytree(data, tmp_path / "data"))
    tagged = [key for key, kind in mcof(data, tmp_path / "whole", labels="masks=2,tags=2").kinds().items() if kind == "tags"]
    assert len(tagged) == 2
    for key in tagged:
        image = bad / "JPEGImages" / f"{key}.jpg"
        image.write_bytes(image.read_bytes()[:-200])  # its size can still be read
    run = mcof(bad, tmp_path / "run", labels="masks=2,tags=2", skip_bad=True)
    assert (run.folder / "last.safetensors").is_file()
    assert [(row["images"], row["changed"]) for row in read_rounds(run.folder)] == [(0, 0)] * 3


def test_a_large_image_is_asked_about_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the scale of training; a superpixel in two tiles counts in each by the pixels that it shows there."""

    class Reddest:
        def __call__(self, pixels: Tensor, regions: Tensor) -> Tensor:
            assert max(pixels.shape[-2:]) <= 80
            red = pixels[0, 0].float()
            means = [red[regions[0] == number].mean() for number in range(int(regions.max()) + 1)]
            return torch.stack([torch.tensor([0.0, float(mean)]) for mean in means])

    monkeypatch.setattr(mining, "tiles", lambda size: tiles(size, tile=64, margin=8))
    image = np.zeros((40, 200, 3), np.uint8)
    image[:, :, 0] = np.arange(200)
    regions = np.repeat(np.arange(4, dtype=np.uint16), 5)[None].repeat(4, 0)  # bands of 50 pixels
    job: Any = SimpleNamespace(fabric=SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext))
    network: Any = Reddest()
    found = mining.region_scores(network, image, regions, job)
    # Of the second band, 50 to 99, the first tile shows 50 to 71 and the second, which sees 56 to 135, 56 to 99.
    assert found[1].tolist() == pytest.approx([0, (22 * 60.5 + 44 * 77.5) / 66])
    assert found.shape == (4, 2)

    monkeypatch.setattr(mining, "TILE", 64)

    def scores(pixels: Tensor) -> dict[str, Tensor]:
        return {"scores": torch.stack([pixels[:, 0] * 0, pixels[:, 0]], 1)}

    asked = mining.pixel_scores(scores, image, torch.device("cpu"))
    assert asked.shape == (1, 2, 13, 64)
    assert bool((asked[0, 1, 6].diff() >= -1e-3).all())


def test_labels_hold_no_class_that_is_not_tagged(data: Path, tmp_path: Path) -> None:
    run = mcof(data, tmp_path / "run")
    dataset = load_dataset(data, "train")
    for sample in dataset.samples:
        tags = tags_of(sample, len(dataset.classes))
        for path in (run.folder / "masks").rglob(f"{sample.id}.png"):
            labels = read_mask(path)
            assert labels.shape == sample.size
            assert set(np.unique(labels)) <= {BACKGROUND, *tags}


def test_seeds_alone(data: Path, tmp_path: Path) -> None:
    """`cam`: one set of labels for the whole run, each tagged class among them."""
    run = mcof(data, tmp_path / "run", "cam", settings=QUICK[:2])
    assert read_rounds(run.folder) == []
    assert {path.name for path in (run.folder / "masks").iterdir()} == {"round-0"}
    dataset = load_dataset(data, "train")
    for sample in dataset.samples:  # one of them has no tag at all
        assert set(np.unique(maps_of(run.folder, "round-0")[sample.id])) - {BACKGROUND} == tags_of(sample, len(dataset.classes))


def test_rounds_that_are_too_short_are_named(data: Path, tmp_path: Path) -> None:
    """What a round has made has to be learned before it is asked for again."""
    run = mcof(data, tmp_path / "short", steps=3)
    assert "refresh 'mcof': a round has 1 of the 2 steps that see each image once" in (run.folder / "log.txt").read_text()
    assert "too few to learn" not in (mcof(data, tmp_path / "long").folder / "log.txt").read_text()


def test_mixture(data: Path, tmp_path: Path) -> None:
    """Tags are mined, boxes and masks are taught as they are, all in one network."""
    run = mcof(data, tmp_path / "run", labels="masks=1,boxes=1,tags=2")
    tagged = {key for key, kind in run.kinds().items() if kind == "tags"}
    assert len(tagged) == 2
    assert set(maps_of(run.folder, "round-3")) == tagged
    header = (run.folder / "metrics.csv").read_text().splitlines()[0]
    assert all(kind in header for kind in ("masks", "boxes", "tags"))
    assert not list((run.folder / "masks").rglob("*.npz"))


def test_labels_reach_the_network(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stretch of training sees the labels of its own round."""
    from mixsup.losses import Criterion

    seen: list[set[int]] = []
    original = Criterion.__call__

    def looks(self: Any, outputs: Any, batch: Any) -> Any:
        seen.append(set(np.unique(batch["target"].numpy()).tolist()))
        return original(self, outputs, batch)

    written: list[int] = []

    def paints(job: Any, number: int) -> tuple[int, int, int]:
        written.append(number)
        for key in job.targets.labels:
            path = round_folder(job.run.folder, number) / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(read_mask(job.targets.labels[key]).shape, number - 1, np.uint8)).save(path)
        return 1, 1, 1

    monkeypatch.setattr(Criterion, "__call__", looks)
    monkeypatch.setattr("mixsup.engine.refresh.mine", paints)
    mcof(data, tmp_path / "run")
    assert written == [1, 2, 3]
    assert [labels - {255} for labels in seen] == [{0}, {0}, {1}, {1}, {2}, {2}]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    return mcof(data, tmp_path_factory.mktemp("whole") / "run").folder


@pytest.mark.parametrize("moment", ["classifier", "seeds", "region-net", "regions", "state"])
def test_interrupted(data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Inside and between rounds: the resumed run ends with the same bits."""
    calls = 0

    def counted(original: Any, number: int) -> Any:
        def dies(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                raise KeyboardInterrupt
            return original(*given, **named)

        return dies

    module, name, number = {
        "classifier": (seeds, "gap_bce", 2), "seeds": (seeds, "write_bytes", 3), "region-net": (mining, "region_loss", 4),
        "regions": (mining, "region_scores", 15), "state": (refresh, "forget_tagged", 2),
    }[moment]  # fmt: skip
    monkeypatch.setattr(module, name, counted(getattr(module, name), number))
    with pytest.raises(KeyboardInterrupt):
        mcof(data, tmp_path / "cut")
    monkeypatch.undo()
    mcof(data, tmp_path / "cut", resume=True)
    assert same(whole, tmp_path / "cut")
    for name in ("metrics.csv", "rounds.csv"):
        assert (whole / name).read_text() == (tmp_path / "cut" / name).read_text()
    for path in sorted((whole / "masks").rglob("*.png")):
        assert path.read_bytes() == (tmp_path / "cut" / path.relative_to(whole)).read_bytes()


def test_killed_while_mining(data: Path, tmp_path: Path) -> None:
    more = ("--recipe", "mcof", "--labels", "tags", "--steps", "6", *(part for setting in QUICK for part in ("--set", setting)))
    through, cut = tmp_path / "through", tmp_path / "cut"
    train(data, through, *more)
    process = processes.start(*command(data, cut, *more, "--resume"))
    while process.is_alive() and not list((cut / "masks").glob("round-2/regions/*.png")):
        time.sleep(0.001)
    assert process.is_alive()
    kill(process)
    train(data, cut, *more, "--resume")
    for name in ("metrics.csv", "rounds.csv", "last.safetensors"):
        assert (through / name).read_bytes() == (cut / name).read_bytes()


def test_files_of_images_that_are_not_followed_go(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixsup.engine.refresh.FOLLOWED", 1)
    run = mcof(data, tmp_path / "run")
    counts = [len(maps_of(run.folder, f"round-{number}")) for number in range(4)]
    assert counts == [4, 1, 1, 4]  # seeds and the present round are whole
    assert len(maps_of(run.folder, "round-3/seeds")) == 1
    assert [path.name for path in sorted((run.folder / "mining").glob("region-net-*"))] == ["region-net-3.safetensors"]


def test_two_processes_share_the_images(data: Path, tmp_path: Path) -> None:
    """And each batch of the networks that help: with norms that count nothing, the classification network learns what it learns in one process."""
    quick = (*QUICK, "network.freeze_batchnorm=true")
    more = ("--recipe", "mcof", "--labels", "tags", "--steps", "4", *(part for setting in quick for part in ("--set", setting)))
    processes.run_together(*command(data, tmp_path / "run", *more))
    train(data, tmp_path / "alone", *more)
    together, alone = (load_file(tmp_path / name / "mining" / "classifier.safetensors") for name in ("run", "alone"))
    assert all(torch.allclose(together[key], value, atol=1e-5) for key, value in alone.items())
    rows = read_rounds(tmp_path / "run")
    assert [row["boxes"] for row in rows] == [4] * len(rows)
    assert len(maps_of(tmp_path / "run", "round-2")) == 4


def test_a_class_that_is_never_tagged(tmp_path: Path) -> None:
    """It is in the class list and in no image: nothing is ever labelled with it."""
    data = make_coco(tmp_path / "data")
    for path in data.rglob("*.json"):
        content = json.loads(path.read_text())
        content["categories"].append({"id": 77, "name": "zebra"})
        path.write_text(json.dumps(content))
    run = mcof(data, tmp_path / "run")
    zebra = run.classes.id("zebra")
    assert zebra is not None
    assert all(zebra not in read_mask(path) for path in (run.folder / "masks").rglob("*.png"))


def test_sources_that_annotate_some_classes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RegionNet is never taught "background" where the other source's class may be: its score is added to the background's."""
    root = discs_and_squares(tmp_path / "data", count=12)
    sources = [{"path": name, "label": "tags"} for name in ("discs", "squares")] + [{"path": "both"}]
    data = write(root / "all.yaml", yaml.safe_dump({"classes": ["disc", "square"], "sources": sources}))
    rows: list[tuple[int, ...]] = []
    original = mining.region_loss

    def looks(scores: Tensor, labels: Tensor) -> Tensor:
        for row, label in zip(scores, labels, strict=True):
            lost = torch.nonzero(row.isinf()).flatten().tolist()
            assert int(label) not in lost
            rows.append(tuple(lost))
        return original(scores, labels)

    monkeypatch.setattr(mining, "region_loss", looks)
    mcof(data, tmp_path / "run")
    assert set(rows) == {(1,), (2,)}


def test_images_of_one_superpixel(data: Path, tmp_path: Path) -> None:
    """Each is one region and gets one label; one of them has no tag at all."""
    run = mcof(data, tmp_path / "run", settings=(*QUICK, "masks.tag_options.superpixels.smallest=1.0"))
    for labels in maps_of(run.folder, "round-0").values():
        assert len(np.unique(labels)) == 1


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (("masks.tags=none",), "set masks.tags=cam"),
        (("refresh.start=false",), "set refresh.start=true"),
        (("masks.tag_options.threshold=2",), "correct it in `masks.tag_options`"),
        (("masks.tag_options.scales=[]",), "correct it in `masks.tag_options`"),
        (("stages=[{name: a, masks: {tags: cam, tag_options: {maps: 1}}}, {name: b}]",), "give all of them the same"),
        (("masks.tag_options.saliency=drfi",), "no saliency"),
        (("masks.tag_options.saliency_options={sides: 3}",), "sides"),
        (("masks.tag_options.saliency_options={sides: 3}",), "see `masks.tag_options.saliency_options`"),
        (("loss.tags=gap-bce",), "loss.tags=cross-entropy"),
        (("refresh.options.saliency=drfi",), "no saliency"),
        (("refresh.options.saliency_options={sides: 3}",), "sides"),
    ],
)
def test_refused(data: Path, tmp_path: Path, settings: tuple[str, ...], remedy: str) -> None:
    with pytest.raises(MixsupError) as error:
        mcof(data, tmp_path / "run", settings=(*QUICK, *settings))
    assert remedy in str(error.value)
    assert not (tmp_path / "run").exists()


def test_refused_without_tags(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MixsupError, match="label budget has none"):
        mcof(data, tmp_path / "run", labels="boxes")


def test_a_network_without_pretraining_begins_with_the_classifier(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it begins with another run's."""
    found: list[bool] = []

    def looks(job: Any, number: int, step: int) -> None:
        learned = load_file(job.run.folder / "mining" / "classifier.safetensors")
        own = job.bare.network.backbone.state_dict()
        found.append(all(torch.equal(learned[f"network.model.encoder.{key}"], value) for key, value in own.items()))
        raise KeyboardInterrupt

    tiny.run(data, tmp_path / "other", labels="boxes", steps=1)
    monkeypatch.setattr("mixsup.engine.train.refresh", looks)
    for name, more in (("run", {}), ("run", {"resume": True}), ("init", {"init": str(tmp_path / "other")})):
        with pytest.raises(KeyboardInterrupt):
            mcof(data, tmp_path / name, **more)
    assert found == [True, True, False]


def test_the_classifier_begins_with_the_run_that_init_names(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched for it, and its layers learn at the rate of pretrained ones."""
    found: list[bool] = []

    def looks(job: Any, classifier: Any, network: Any, *_: Any) -> None:
        other = load_file(tmp_path / "other" / BEST)
        own = network.backbone.state_dict()
        assert network.pretraining == job.bare.network.pretraining != "none"
        found.append(all(torch.equal(other[f"network.model.encoder.{key}"], value) for key, value in own.items()))
        raise KeyboardInterrupt

    def builds(choice: Any, pretrained: bool = True) -> Any:
        assert not pretrained
        return build_network(choice, pretrained)

    tiny.run(data, tmp_path / "other", labels="boxes", steps=1)
    monkeypatch.setattr("mixsup.engine.seeds.build_network", builds)
    monkeypatch.setattr("mixsup.engine.seeds.fit", looks)
    for more in ({}, {"resume": True}):
        with pytest.raises(KeyboardInterrupt):
            mcof(data, tmp_path / "run", init=str(tmp_path / "other"), **more)
    assert found == [True, True]
    nothing: Any = None
    with pytest.raises(MixsupError, match="not there any more"):
        begin_with(tmp_path / "gone", nothing, nothing)


@pytest.mark.parametrize("name", ["mcof", "mcof-no-saliency", "direct"])
def test_saliency_in_the_first_round_for_images_of_one_tag(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[int] = []

    def paints(image: Any, saliency: Any, labels: Any, class_id: int) -> Any:
        asked.append(class_id)
        return np.full_like(labels, class_id)

    monkeypatch.setattr("mixsup.refresh.mcof.supplement", paints)
    run = mcof(data, tmp_path / "run", name)
    tags = {sample.id: tags_of(sample, 4) for sample in load_dataset(data, "train").samples}
    single = [key for key, its in tags.items() if len(its) == 1] if name != "mcof-no-saliency" else []
    assert asked == [next(iter(tags[key])) for key in single]
    regions, labels = maps_of(run.folder, "round-1/regions"), maps_of(run.folder, "round-1")
    for key in tags:
        assert (labels[key] == next(iter(tags[key]))).all() if key in single else np.array_equal(labels[key], regions[key])


def test_where_saliency_is_computed_changes_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For seeds by the loader's processes or by the one that trains; for refined regions by processes of their own or by that one."""
    here = mcof(data, tmp_path / "here", workers=0)
    monkeypatch.setattr(mining, "_MANY", 1)
    there = mcof(data, tmp_path / "there", workers=2)
    monkeypatch.setattr(Background, "in_workers", False)
    alone = mcof(data, tmp_path / "alone", workers=2)
    for folder in ("round-0", "round-1/regions", "round-1"):
        found = [maps_of(run.folder, folder) for run in (here, there, alone)]
        assert found[0]
        assert all(np.array_equal(found[0][key], other[key]) for other in found[1:] for key in found[0])
    assert any(not np.array_equal(found[0][key], image) for key, image in maps_of(here.folder, "round-1/regions").items())


def test_hidden_labels_are_not_read(tmp_path: Path) -> None:
    """Masks that are noise and boxes that are elsewhere: the same bits."""
    for name in ("clean", "dirty"):
        root = make_voc(tmp_path / name / "data")
        write(
            root / "tags.csv",
            "image,tags\n" + "".join(f"{key},{';'.join(sorted({one for one, _ in its}))}\n" for key, its in OBJECTS.items()),
        )
        if name == "dirty":
            for path in (root / "SegmentationClass").iterdir():
                path.write_bytes(np.random.default_rng(0).bytes(500))
            for key, its in OBJECTS.items():
                write(root / "Annotations" / f"{key}.xml", voc_xml(key, [(one, (0, 0, 3, 3)) for one, _ in its]))
        mcof(root, tmp_path / name / "run", val="none")
    assert same(tmp_path / "clean" / "run", tmp_path / "dirty" / "run")
    assert maps_of(tmp_path / "clean" / "run", "round-3").keys() == {"a", "b", "c", "d"}


def test_after_a_stage_with_rounds_of_another_rule(data: Path, tmp_path: Path) -> None:
    """The first round of mining is the first iteration, whatever its number: its seeds are those of the tags."""
    stages = "stages=[{name: a, loss: {boxes: cross-entropy, tags: none}, refresh: {rule: direct, rounds: 1}}, {name: b}]"
    run = mcof(
        data,
        tmp_path / "run",
        "direct",
        labels="boxes=2,tags=2",
        steps=8,
        settings=(*QUICK, stages, "refresh.rounds=1", "masks.source=rectangle"),
    )
    assert [(row["round"], row["step"], row["kind"]) for row in read_rounds(run.folder)] == [
        (1, 2, "boxes"),
        (2, 4, "tags"),
        (3, 6, "tags"),
    ]
    assert not (run.folder / "masks" / "round-2" / "seeds").exists()
    assert len(maps_of(run.folder, "round-2/regions")) == 2
    assert len(maps_of(run.folder, "round-3/seeds")) == 2
    assert not (run.folder / "masks" / "round-3" / "regions").exists()


def test_the_network_is_asked_at_the_scale_of_the_refresh(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[tuple[int, ...]] = set()
    original = mining.pixel_scores

    def looks(model: Any, seen: Any, *more: Any) -> Tensor:
        sizes.add(seen.shape)
        return original(model, seen, *more)

    monkeypatch.setattr(mining, "pixel_scores", looks)
    mcof(data, tmp_path / "run", settings=(*QUICK, "refresh.scale=0.5"))
    assert sizes == {(15, 20, 3)}


def test_regions_may_be_classes_that_nobody_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tagged class is the likeliest, but less likely than the background and the unknown class together."""
    root = discs_and_squares(tmp_path / "data", count=6)
    sources = [{"path": name, "label": "tags"} for name in ("discs", "squares")] + [{"path": "both"}]
    data = write(root / "all.yaml", yaml.safe_dump({"classes": ["disc", "square"], "sources": sources}))

    def guesses(net: Any, seen: Any, regions: Any, job: Any) -> Any:
        row = [0.3, 0.4, 0.3] if guesses.disc else [0.3, 0.3, 0.4]  # type: ignore[attr-defined]
        return np.tile(np.log(np.array(row, np.float32)), (int(regions.max()) + 1, 1))

    monkeypatch.setattr(mining, "region_scores", guesses)
    for name, disc in (("discs", True), ("squares", False)):
        guesses.disc = disc  # type: ignore[attr-defined]
        run = mcof(data, tmp_path / name, settings=(*QUICK, "refresh.options.kept=0", "refresh.rounds=0"))
        labels = {key: one for key, one in maps_of(run.folder, "round-1/regions").items() if key.startswith(name)}
        assert labels
        assert all((one == BACKGROUND).all() for one in labels.values())


def test_damaged_superpixels_are_made_anew(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    sample = Sample("x", tmp_path / "x.png", (40, 60))
    whole, path = helping.load_regions(tmp_path, sample, image, Superpixels()), tmp_path / "mining" / "superpixels" / "x.npz"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        assert np.array_equal(helping.load_regions(tmp_path, sample, image, Superpixels()), whole)


def test_every_process_does_what_the_first_one_sees(tmp_path: Path) -> None:
    """A process that looks after the first has written must not skip the training and with it the barrier behind it."""
    job: Any = SimpleNamespace(fabric=SimpleNamespace(broadcast=lambda value, src: False))
    write(tmp_path / "classifier.safetensors", "there by now")
    assert not helping.trained_before(job, tmp_path / "classifier.safetensors")


def test_helping_networks_are_clipped_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, max_norm, **more: norms.append(max_norm))
    mcof(data, tmp_path / "run", "cam", settings=(*QUICK[:2], "train.clip=0.5"))
    assert norms == [0.5] * (3 + 6)  # of the classification network, and of the run's own


class TestActivationMaps:
    """The classifier here sees how red a pixel is, and what the test adds to the columns."""

    @staticmethod
    def maps(scales: tuple[int, ...], flip: bool, ramp: float) -> Any:
        asked: list[tuple[int, ...]] = []

        def classifier(images: Tensor) -> dict[str, Tensor]:
            asked.append(tuple(images.shape))
            red = images[:, :1].float() + ramp * torch.arange(images.shape[-1])
            return {"scores": torch.cat([torch.zeros_like(red), red, -red], dim=1)}

        image = np.zeros((8, 8, 3), np.uint8)
        image[:, :4, 0] = 100
        views = [np.repeat(np.repeat(image, scale, 0), scale, 1) * scale for scale in scales]
        return seeds.activation_maps(classifier, views, [1, 2], (8, 8), flip, torch.device("cpu")), asked

    def test_scales_are_averaged(self) -> None:
        found, asked = self.maps((1, 2), flip=False, ramp=0)
        assert [shape[-1] for shape in asked] == [8, 16]
        np.testing.assert_allclose(found[0, :, 0], 150)
        np.testing.assert_allclose(found[0, :, 7], 0)
        np.testing.assert_allclose(found[1], -found[0])

    def test_mirror_images(self) -> None:
        """Columns that the classifier prefers by themselves are evened out, and what it sees in the picture stays on its side."""
        found, asked = self.maps((1,), flip=True, ramp=2)
        assert asked == [(2, 3, 8, 8)]
        np.testing.assert_allclose(found[0, 0], [107] * 4 + [7] * 4)


def test_saliency_maps_that_are_missing_or_broken_are_found_before_training(data: Path, tmp_path: Path) -> None:
    """Of images of one tag alone; with --skip-bad they are left out. A map of another size than its image is none of them."""
    folder = tmp_path / "maps"
    folder.mkdir()
    settings = (*QUICK, "refresh.options.saliency=files", f"refresh.options.saliency_options={{folder: {folder}}}")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (7, 9)).astype(np.uint8)).save(folder / "a.png")
    for name, fault in (("missing", "no saliency map of image 'c'"), ("broken", "c.png")):
        if name == "broken":
            (folder / "c.png").write_bytes(b"no picture")
        with pytest.raises(DataError) as error:
            mcof(data, tmp_path / name, settings=settings)
        assert [problem.sample for problem in error.value.problems] == ["c"]
        assert fault in str(error.value)
        assert not (tmp_path / name).exists()
    run = mcof(data, tmp_path / "skipped", settings=settings, skip_bad=True)
    assert set(maps_of(run.folder, "round-1")) == {"a", "b", "d"}


def test_saliency_maps_of_seeds_are_asked_for_before_training(data: Path, tmp_path: Path) -> None:
    """Of every tagged image; and they decide the seeds."""
    folder = tmp_path / "maps"
    folder.mkdir()
    settings = (*QUICK, "masks.tag_options.saliency=files", f"masks.tag_options.saliency_options={{folder: {folder}}}")
    tagged = [sample.id for sample in load_dataset(data, "train").samples]
    with pytest.raises(DataError) as error:
        mcof(data, tmp_path / "missing", "cam", settings=settings)
    assert sorted(problem.sample for problem in error.value.problems) == sorted(tagged)
    upper = np.zeros((9, 7), np.uint8)
    upper[:5] = 255
    for key in tagged:
        Image.fromarray(upper).save(folder / f"{key}.png")
    run = mcof(data, tmp_path / "run", "cam", settings=settings)
    without = mcof(data, tmp_path / "without", "cam", settings=(*QUICK, "masks.tag_options.saliency=none"))
    seeds, plain = maps_of(run.folder, "round-0"), maps_of(without.folder, "round-0")
    assert any(not np.array_equal(seeds[key], plain[key]) for key in tagged)
