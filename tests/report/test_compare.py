"""`mixsup compare`: runs side by side, and what to label next."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mixsup.report.objects as objects_module
from mixsup.cli import main
from mixsup.data import load_dataset
from mixsup.data.budget import draw, split_csv
from mixsup.data.sample import Sample
from mixsup.engine.run import BEST, MetricsFile, Run
from mixsup.errors import MixsupError
from mixsup.report.compare import compare
from mixsup.report.compare_plot import comparison_figure, points
from mixsup.report.labelling import Seconds
from tests import tiny
from tests.data.make import make_folders, make_tags, make_voc


def make_run(
    folder: Path, place: Path, labels: str, miou: float | None = 0.5, *, recipe: str = "wssl-em", seed: int = 0, **facts: Any
) -> Path:
    """A run folder as training leaves it, without the training."""
    dataset, chosen = load_dataset(place, "train"), tiny.recipe(recipe)
    kinds = draw(dataset.samples, labels, seed)
    images = {kind: list(kinds.values()).count(kind) for kind in sorted(set(kinds.values()))}
    known = {
        "data": str(place), "format": None, "split": None, "val": None, "labels": labels, "images": images, "unused": len(dataset) - len(kinds),
        "validation_images": 2, "seed": seed, "init": None, "steps": 6, "pretraining": "none", "device": "cpu x 1",
    }  # fmt: skip
    Run.create(folder, chosen, dataset.classes, split_csv(dataset, kinds), {**known, **facts})
    table = MetricsFile(folder / "metrics.csv", 0)
    table.add({"step": 3, "loss": "0.7"})
    if miou is not None:
        for step, score in ((3, miou), (6, miou - 0.1)):  # the best is not the last
            table.add({"step": step, **dict.fromkeys(("miou", "pixel_accuracy", "mean_accuracy", "fw_iou"), f"{score:.6f}")})
    return folder


BUDGETS = {"one": ("masks=1", 0.30), "two": ("masks=2", 0.35), "mixed": ("masks=1,boxes=2", 0.37), "tagged": ("masks=1,tags=2", 0.31)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("compare") / "data")


@pytest.fixture
def runs(data: Path, tmp_path: Path) -> list[Path]:
    """Four budgets of one setting, so that the model has something to say."""
    return [make_run(tmp_path / name, data, labels, miou) for name, (labels, miou) in BUDGETS.items()]


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Exit code of `mixsup compare WORDS`."""
    monkeypatch.setattr(sys, "argv", ["mixsup", "compare", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_from_training_to_the_picture(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two real runs, whose scores are those that they wrote; then evaluated anew, where one has none."""
    first = tiny.run(data, tmp_path / "first", labels="masks=2")
    second = tiny.run(data, tmp_path / "second", labels="boxes=2", val="none")
    assert call(monkeypatch, first.folder, second.folder) == 0
    assert f"warning: left out: {second.folder}: it never validated" in capfd.readouterr().err
    assert call(monkeypatch, first.folder, "--plot", tmp_path / "one.svg") == 0
    said = capfd.readouterr().out
    best = max(float(row["miou"]) for row in first.metrics() if row["miou"])
    assert f"{100 * best:.1f}" in said
    assert "cannot be told from 1 run with 1 label budget" in said
    assert (tmp_path / "one.svg").read_text().count("</svg>") == 1

    words = ("--data", data, "--split", "val", "--device", "cpu", "--json", tmp_path / "out.json", "--plot", tmp_path / "two.png")
    assert call(monkeypatch, first.folder, second.folder, *words) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["images"] for row in found["runs"]] == [{"masks": 2, "boxes": 0, "tags": 0}, {"masks": 0, "boxes": 2, "tags": 0}]
    assert found["runs"][0]["miou"] == pytest.approx(best, abs=0.02)
    assert 0 <= found["runs"][1]["miou"] <= 1
    assert found["suggestion"] is None
    assert Image.open(tmp_path / "two.png").format == "PNG"


def test_table_and_suggestion(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *runs, "--hours", "0.01", "--unlabelled", "50", "--plot", tmp_path / "out.pdf") == 0
    said = capfd.readouterr()
    assert not said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert ["mixed", "wssl-em", "1", "2", "0"] in [line[:5] for line in lines]
    assert "0.01 hours more of one kind, on top of mixed, by a model of 4 runs" in said.out
    options = {line[0]: line for line in lines if line and line[0] in ("masks", "boxes", "tags")}
    assert options.keys() == {"masks", "boxes", "tags"}
    assert abs(sum(int(line[7]) for line in options.values()) - 100) <= 1
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    capfd.readouterr()
    assert call(monkeypatch, *runs, "--hours", "0.01", "--json", "-") == 0
    numbers = json.loads(capfd.readouterr().out)
    assert sum(option["best"] for option in numbers["suggestion"]["options"].values()) == pytest.approx(1)
    assert numbers["suggestion"]["unlabelled"] == 1
    assert numbers["seconds"] == {"tag": 1.0, "box": 7.0, "mask": 79.0}


def test_hours_are_what_the_objects_take(data: Path, tmp_path: Path) -> None:
    """Every image counted, so the cost is exact: 3 classes to look for on each image, and the objects of the drawn ones."""
    everything = make_run(tmp_path / "all", data, "boxes=4")
    found = compare([everything])
    assert found.rows[0].hours * 3600 == pytest.approx(4 * 3 + 5 * 7)
    masks = make_run(tmp_path / "masks", data, "masks=4")
    assert compare([masks], seconds=Seconds(2, 1, 100)).rows[0].hours * 3600 == pytest.approx(4 * 3 * 2 + 5 * 100)
    tags = make_run(tmp_path / "tags", data, "tags=3")
    assert compare([tags]).rows[0].hours * 3600 == pytest.approx(3 * 3)
    assert compare([masks], objects=10).rows[0].hours * 3600 == pytest.approx(4 * (3 + 790))


def test_objects_are_counted_once_and_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_folders(tmp_path / "data")  # masks alone: each has to be decoded
    calls: list[str] = []
    original = objects_module.boxes_of

    def spy(sample: Sample, *words: Any) -> Any:
        calls.append(sample.id)
        return original(sample, *words)

    monkeypatch.setattr(objects_module, "boxes_of", spy)
    runs = [make_run(tmp_path / name, data, labels) for name, labels in (("a", "masks=4"), ("b", "boxes=4"), ("c", "masks=2,boxes=2"))]
    found = compare(runs)
    assert len(calls) == len(set(calls)) == 4
    assert found.rows[0].objects.further == pytest.approx(5 / 4)
    monkeypatch.setattr(objects_module, "MOST", 2)
    calls.clear()
    assert compare(runs[:1]).rows[0].objects.labelled["masks"] * 4 in (2, 4, 6)  # twice what the first and the last image have
    assert len(calls) == 2


def test_best_or_last(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", data, "boxes=2", 0.5)
    assert compare([run]).rows[0].scores["miou"] == pytest.approx(0.5)
    assert compare([run], checkpoint="last").rows[0].scores["miou"] == pytest.approx(0.4)


def test_other_settings_are_left_out(runs: list[Path], data: Path, tmp_path: Path) -> None:
    other = [
        make_run(tmp_path / "other", data, "boxes=2", 0.9, recipe="rectangles"),
        make_run(tmp_path / "longer", data, "masks=2", 0.8, steps=12),
    ]
    found = compare([*other, *runs], unlabelled=100)
    assert found.suggestion is not None
    assert found.suggestion.runs == tuple(BUDGETS)
    assert found.suggestion.base == "mixed"  # the best of those, whatever the others have reached
    assert any("wssl-em" in note and "other, longer" in note for note in found.notes)
    chosen = compare([*other, *runs], base=other[1])
    assert chosen.suggestion is None
    assert any("1 run with 1 label budget" in note for note in chosen.notes)
    moved = compare(runs, base=runs[0], unlabelled=100)
    assert moved.suggestion is not None
    assert moved.suggestion.base == "one"


def test_runs_on_other_data_are_neither_seeds_nor_on_the_curve(runs: list[Path], data: Path, tmp_path: Path) -> None:
    elsewhere = make_run(tmp_path / "elsewhere", make_voc(tmp_path / "copy"), "masks=1", 0.6, seed=1)
    whole = make_run(tmp_path / "whole", data, "masks=1", 0.6, seed=1, split="train+val")
    found = compare([elsewhere, whole, *runs], unlabelled=100)
    assert found.suggestion is not None
    assert found.suggestion.runs == tuple(BUDGETS)
    assert any("left out, with other data" in note and note.endswith(": elsewhere, whole") for note in found.notes)
    assert [point.name for point in points(found.rows)] == ["elsewhere", "whole", *BUDGETS]


def test_the_same_data_by_other_words_are_one_curve(runs: list[Path], data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    seed = make_run(tmp_path / "seed", data, "masks=1", 0.3, seed=1, data=str(tmp_path / "link"), split="train")
    assert points(compare([*runs, seed]).rows)[0].name == "one and 1 more seed"


def test_masks_alone_belong_to_every_recipe(data: Path, tmp_path: Path) -> None:
    """`em` refuses a run without boxes and tags, so its curve begins with runs of other recipes."""
    masks = [
        make_run(tmp_path / labels, data, labels, 0.3, recipe=recipe) for labels, recipe in (("masks=1", "full"), ("masks=2", "rectangles"))
    ]
    em = [make_run(tmp_path / labels, data, labels, 0.4) for labels in ("masks=1,boxes=1", "masks=1,boxes=2")]
    other = make_run(tmp_path / "boxes=2", data, "boxes=2", 0.2, recipe="grabcut")
    found = compare([*masks, *em, other], unlabelled=9)
    assert found.suggestion is not None
    assert found.suggestion.runs == ("masks=1", "masks=2", "masks=1,boxes=1", "masks=1,boxes=2")
    assert found.suggestion.options.keys() == {"masks", "boxes", "tags"}
    assert found.notes[0].startswith("modelled are the runs of wssl-em, linknet, 32 px, 6 steps; left out")
    assert found.notes[0].endswith(": boxes=2")
    alone = compare([*masks, other], base=masks[0])
    assert alone.suggestion is not None
    assert alone.suggestion.runs == ("masks=1", "masks=2", "boxes=2")


def test_what_the_model_cannot_know_is_said(runs: list[Path], data: Path, tmp_path: Path) -> None:
    two = make_run(tmp_path / "seed", data, "masks=1", 0.32, seed=1)
    few = compare([runs[0], two, runs[1]])
    assert few.suggestion is None  # three runs, two budgets
    assert any("3 runs with 2 label budgets" in note for note in few.notes)
    without_tags = compare([*runs[:3], two], unlabelled=5)
    assert without_tags.suggestion is not None
    assert any(note.startswith("no run has used tags") for note in without_tags.notes)
    assert without_tags.suggestion.guessed == ("tags",)
    assert [note for note in without_tags.notes if "would label more than the 5 images" in note]
    assert all(option.images == 5 for option in without_tags.suggestion.options.values())
    full = compare([*runs, make_run(tmp_path / "full", data, "masks=4", 0.9)])
    assert full.suggestion is None
    assert any("labels on all of its images" in note for note in full.notes)


def test_gains_above_all_there_is_are_named(runs: list[Path]) -> None:
    said = "the intervals reach above 100 % mean IoU"
    assert not any(said in note for note in compare(runs, unlabelled=5).notes)
    assert any("would label more than the 5 images" in note for note in compare(runs, hours=1e306, unlabelled=5).notes)
    assert any(said in note for note in compare(runs, hours=1e6, unlabelled=10_000_000).notes)


def test_many_runs_of_one_budget_do_not_hide_those_that_can_tell(runs: list[Path], data: Path, tmp_path: Path) -> None:
    seeds = [make_run(tmp_path / f"longer-{seed}", data, "masks=2", 0.4, seed=seed, steps=12) for seed in range(5)]
    found = compare([*seeds, *runs], unlabelled=100)
    assert found.suggestion is not None
    assert found.suggestion.runs == tuple(BUDGETS)


def test_one_validation_set_by_two_names(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(data)
    runs = [make_run(tmp_path / "a", data, "masks=1"), make_run(tmp_path / "b", data, "masks=2", data=str(tmp_path / "link"), val="val")]
    assert call(monkeypatch, *runs) == 0
    assert "validated on different images" not in capfd.readouterr().err


def test_labels_that_hurt_are_named(runs: list[Path], data: Path, tmp_path: Path) -> None:
    assert not any("the model cannot explain" in note for note in compare(runs, unlabelled=5).notes)
    worse = make_run(tmp_path / "worse", data, "masks=1,tags=3", 0.2)
    said = compare([*runs, worse], unlabelled=5).notes[-1]
    assert said.startswith("with more labels to lower scores: worse (11.0 points below tagged); the model cannot explain that")


def test_kinds_that_the_recipe_cannot_learn_from(data: Path, tmp_path: Path) -> None:
    rows = [make_run(tmp_path / name, data, name, 0.3, recipe="full") for name in ("masks=1", "masks=2", "masks=3")]
    found = compare(rows, unlabelled=10)
    assert found.suggestion is not None
    assert found.suggestion.options.keys() == {"masks"}
    assert found.suggestion.options["masks"].best == pytest.approx(1)
    assert "recipe full does not learn from boxes and tags" in found.notes


def test_seeds_are_one_point(runs: list[Path], data: Path, tmp_path: Path) -> None:
    more = [make_run(tmp_path / f"seed-{seed}", data, "masks=1", 0.30 + 0.02 * seed, seed=seed) for seed in (1, 2)]
    found = compare([*runs, *more], unlabelled=100)
    first = points(found.rows)[0]
    assert first.name == "one and 2 more seeds"
    assert first.miou == pytest.approx(32)
    assert first.deviation == pytest.approx(2)
    assert len(points(found.rows)) == 4
    assert {"masks", "boxes", "tags"} <= {text.get_text() for text in comparison_figure(found).legends[0].get_texts()}


@pytest.mark.parametrize("hours", [(6.32, 7.37), (6.3, 6.4), (1.5, 1.6), (0.9, 12.0), (1.0, 400.0), (3.0,)])
def test_the_axis_of_hours_has_numbers(data: Path, tmp_path: Path, hours: tuple[float, ...]) -> None:
    found = compare([make_run(tmp_path / str(value), data, "masks=1") for value in hours])
    figure = comparison_figure(replace(found, rows=tuple(replace(row, hours=value) for row, value in zip(found.rows, hours, strict=True))))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    low, high = axes.get_xlim()
    ticks = [*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()]
    assert sum(low <= tick.get_loc() <= high and bool(tick.label1.get_text()) for tick in ticks) >= 2


def test_names_that_are_alike_and_hostile(data: Path, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / part / "[red]$x_{$", data, "masks=1", 0.3) for part in ("a", "b")]
    found = compare(runs)
    assert [row.name for row in found.rows] == [str(run) for run in runs]
    comparison_figure(found)
    assert np.isfinite(found.rows[0].hours)


def test_warnings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / "a", data, "masks=1"), make_run(tmp_path / "b", data, "masks=2", validation_images=9, steps=10)]
    assert call(monkeypatch, *runs) == 0
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "warning: b was last validated after step 6 of 10: it has not ended"
    assert lines[1].startswith("warning: the runs were validated on different images")


def test_what_is_no_run_or_has_only_begun_is_left_out(runs: list[Path], data: Path, tmp_path: Path) -> None:
    begun = make_run(tmp_path / "begun", data, "masks=3", None)
    (tmp_path / "stray").mkdir()
    found = compare([begun, *runs, tmp_path / "stray", Path(__file__)], base=runs[1], unlabelled=100)
    assert [row.name for row in found.rows] == list(BUDGETS)
    assert found.suggestion is not None
    assert found.suggestion.base == "two"
    assert [warning.split(": ")[:2] for warning in found.warnings] == [
        ["left out", str(folder)] for folder in (begun, tmp_path / "stray", Path(__file__))
    ]


def test_a_data_set_that_is_gone(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", data, "masks=2", data="nowhere")
    with pytest.raises(MixsupError, match=r"its data set nowhere is gone.*give --data DATA where it is now, or --objects N"):
        compare([run])
    assert compare([run], objects=2.5).rows[0].hours * 3600 == pytest.approx(2 * (3 + 2.5 * 79))
    with pytest.raises(MixsupError, match="has none of its labelled images"):
        compare([make_run(tmp_path / "tags", make_tags(tmp_path / "tagged"), "tags=2", data=str(make_other(tmp_path / "other")))])
    with pytest.raises(MixsupError, match="no boxes or masks in which objects could be counted; give --objects N"):
        compare([make_run(tmp_path / "unboxed", tmp_path / "tagged", "tags=2")])


def make_other(root: Path) -> Path:
    """A data set with other images."""
    make_folders(root)
    for path in [*root.glob("images/train/*"), *root.glob("masks/train/*")]:
        path.rename(path.with_stem(f"other-{path.stem}"))
    return root


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument 'RUN"),
        (["nowhere"], "nowhere: not a run folder (recipe.yaml is missing or broken)"),
        (["DATA"], "not a run folder"),
        (["one", "one"], "one: the same run twice; name each run once"),
        (["one", "two/../one"], "the same run twice"),
        (["blind"], "blind: it never validated, so it has no score; give --data DATA --split SPLIT"),
        (["begun", "nowhere"], "begun: it has only begun, with neither a score nor a checkpoint yet; wait"),
        (["one", "begun", "--from", "begun"], "begun: it has only begun"),
        (["begun", "--data", "DATA"], "begun: it has only begun"),
        (["torn"], "torn: not a run folder (split.csv is missing or broken)"),
        (["empty"], "empty: its run.json does not say what it has learned from"),
        (["one", "--tag-seconds", "0"], "--tag-seconds 0: labels take time; give seconds above 0"),
        (["one", "--box-seconds", "-7"], "--box-seconds -7: labels take time"),
        (["one", "--mask-seconds", "nan"], "--mask-seconds nan: labels take time"),
        (["one", "--hours", "0"], "--hours 0: give a number of hours above 0"),
        (["one", "--hours", "-1"], "--hours -1: give a number of hours above 0"),
        (["one", "--objects", "0"], "--objects 0: give the mean number of objects an image"),
        (["one", "--unlabelled", "-1"], "--unlabelled -1: give a number of images, 0 or more"),
        (["one", "--from", "two"], "two: not among the compared runs; name one of them"),
        (["one", "--split", "val"], "--split val: it belongs to --data"),
        (["one", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["one", "--plot", "x.doc"], "ends in .png, .pdf or .svg"),
    ],
)
def test_an_error_is_one_line_and_code_2(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    for name in ("one", "two", "torn", "empty"):
        make_run(tmp_path / name, data, "masks=1")
    (make_run(tmp_path / "blind", data, "masks=1", None) / BEST).touch()
    make_run(tmp_path / "begun", data, "masks=1", None)
    (tmp_path / "torn" / "split.csv").unlink()
    (tmp_path / "empty" / "run.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *[str(data) if word == "DATA" else word for word in words]) == 2
    said = capfd.readouterr()
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("error: ")
    assert message in said.err
    assert not said.out


def test_a_run_that_was_cut_while_it_wrote(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", data, "masks=2")
    with (run / "metrics.csv").open("a") as table:
        table.write("6,,,,,,,,0.9")
    assert compare([run]).rows[0].scores["miou"] == pytest.approx(0.5)
    shutil.rmtree(run)


def test_python_face(runs: list[Path]) -> None:
    import mixsup as face

    found = face.compare(runs, hours=1, unlabelled=1000)
    assert found.to_json()["suggestion"]["base"] == "mixed"
