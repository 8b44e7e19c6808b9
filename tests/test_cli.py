"""The command line end to end on tiny data, and what it says when people err."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixsup import cli
from mixsup.cli import main
from tests import processes
from tests.data.make import make_voc, make_yolo_polygons

COMMANDS = ("inspect", "masks", "train", "evaluate", "predict", "report", "compare", "recipes", "demo")


mixsup = processes.run  # in a process of its own


def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What a command that succeeds prints, in this process: a new one takes seconds to begin."""
    monkeypatch.setattr(sys, "argv", ["mixsup", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['mixsup', '--help']\ntry:\n  from mixsup.cli import main; main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "inspect" in found.stdout
    loaded = set(found.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "torchvision", "numpy", "cv2", "matplotlib", "segmentation_models_pytorch", "lightning_fabric"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mixsup", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"Example: mixsup {name}" in " ".join(capsys.readouterr().out.split())


def test_help_names_every_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mixsup.masks import SOURCES

    monkeypatch.setattr(sys, "argv", ["mixsup", "masks", "--help"])
    with pytest.raises(SystemExit):
        main()
    text = "".join(capsys.readouterr().out.split())  # the help breaks lines at hyphens too
    assert all(name in text for name in SOURCES)


def test_from_boxes_to_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = make_yolo_polygons(tmp_path / "data"), tmp_path / "run"
    env = {"MIXSUP_CACHE": str(tmp_path / "cache")}
    (tmp_path / "net.yaml").write_text("arch: linknet\nencoder: tu-test_efficientnet\nweights: none\n")

    assert "6 images" in typed(monkeypatch, capsys, "inspect", data)
    numbers = json.loads(typed(monkeypatch, capsys, "inspect", data, "--json", "-", "--pixels", "--full"))
    assert numbers["images"] == 6
    assert numbers["problems"] == []

    made = mixsup(
        "masks", data, "--source", "rectangle", "--out", tmp_path / "masks", "--split", "train", "--score", "--json", "-", env=env
    )
    assert made.returncode == 0, made.stderr
    assert set(json.loads(made.stdout)) >= {
        "miou",
        "pixel_accuracy",
        "mean_accuracy",
        "fw_iou",
        "per_class",
        "ignored",
        "boundary_recall",
        "seconds_per_image",
    }
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4

    trained = mixsup(
        "train", data, "--recipe", "rectangles", "--labels", "boxes", "--out", run, "--network", tmp_path / "net.yaml", "--size", "32", "--batch", "2",
        "--steps", "4", "--accelerator", "cpu", env=env,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "mean IoU" in trained.stdout
    assert "pretraining: none" in trained.stdout
    assert (run / "report.html").is_file()

    scored = mixsup(
        "evaluate", run, data, "--split", "val", "--json", tmp_path / "scores.json", "--boundary", "--flip", "--scales", "0.8,1,1.2"
    )
    assert scored.returncode == 0, scored.stderr
    result = json.loads((tmp_path / "scores.json").read_text())
    assert set(result) >= {"miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "per_class", "trimap", "boundary_iou"}
    assert 0 <= result["miou"] <= 1
    assert set(result["per_class"]) == {"background", "bird", "cat", "dog"}

    words = ("--scales", "0.8,1,1.2", "--crf", "--set", "w1=1", "--set", "max_side=30", "--json", "-")
    refined = json.loads(typed(monkeypatch, capsys, "evaluate", run, data, *words))
    assert refined["images"] == 2
    assert refined["per_class"].keys() == result["per_class"].keys()

    image = next((data / "images").rglob("*.png"), None) or next((data / "images").rglob("*.jpg"))
    predicted = mixsup("predict", run, image, "--out", tmp_path / "out", "--overlay", "--tile", "32", "--crf")
    assert predicted.returncode == 0, predicted.stderr
    assert np.array(Image.open(tmp_path / "out" / f"{image.stem}.png")).shape == (30, 40)
    assert (tmp_path / "out" / "predictions.json").is_file()
    assert typed(monkeypatch, capsys, "report", run).strip() == str(run / "report.html")
    assert "rectangles" in typed(monkeypatch, capsys, "recipes")
    assert typed(monkeypatch, capsys, "recipes", "full").startswith("name: full")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect", "nowhere"], "no such file or folder"),
        (["inspect"], "Missing argument"),
        (["inspekt"], "No such command"),
        (["masks", "DATA"], "nothing to do"),
        (["masks", "DATA", "--source", "magic", "--score"], "no mask source 'magic'"),
        (["masks", "DATA", "--source", "grabcut", "--set", "colour=1", "--score"], "setting 'colour'"),
        (["masks", "DATA", "--source", "files", "--set", "folder=nowhere", "--score"], "no such folder; give the setting `folder`"),
        (
            ["masks", "DATA", "--source", "sam", "--set", "checkpoint=/nowhere/sam", "--score"],
            "no such folder, or no config.json in it; give the setting `checkpoint`",
        ),
        (["masks", "DATA", "--cluster", "nonsense", "--score"], "--cluster nonsense: no Dask scheduler answers"),
        (["masks", "DATA", "--cache-limit", "much", "--score"], "cache limit 'much': give a size as in 20G"),
        (["masks", "DATA", "--score", "--jobs", "0"], "--jobs 0: give a number"),
        (["inspect", "DATA", "--filling-rates", "magic"], "no mask source 'magic'"),
        (["inspect", "DATA", "--plot", "x.png"], "--plot and --set belong to --filling-rates"),
        (["inspect", "DATA", "--filling-rates", "rectangle", "--plot", "x.doc"], "ends in .png, .pdf or .svg"),
        (
            [
                "train",
                "DATA",
                "--out",
                "x",
                "--recipe",
                "rectangles",
                "--labels",
                "boxes",
                "--network",
                "NETWORK",
                "--cluster",
                "nonsense",
                "--accelerator",
                "cpu",
            ],
            "--cluster nonsense: no Dask scheduler answers",
        ),
        (["train", "DATA"], "Missing option '--out'"),
        (["train", "DATA", "--out", "x", "--recipe", "magic"], "no recipe 'magic'"),
        (["train", "DATA", "--out", "x", "--labels", "boxes=-1"], "boxes cannot be -1"),
        (["train", "DATA", "--out", "x", "--set", "train.colour=1"], "train.colour"),
        (["train", "DATA", "--out", "x", "--steps", "many"], "--steps"),
        (["train", "DATA", "--out", "x", "--network", "pidnet", "--recipe", "full", "--labels", "masks"], "no network 'pidnet'"),
        (["evaluate", "nowhere", "DATA"], "not a run folder"),
        (["predict", "nowhere", "x.jpg", "--out", "y"], "not a run folder"),
        (["evaluate", "nowhere", "DATA", "--scales", "big"], "--scales 'big'"),
        (["evaluate", "nowhere", "DATA", "--crf", "--set", "colour=1"], "CRF has no setting 'colour'"),
        (["evaluate", "nowhere", "DATA", "--crf", "--set", "theta_beta=0"], "CRF: theta_beta 0.0; a standard deviation is above 0"),
        (["predict", "nowhere", "x.jpg", "--out", "y", "--set", "w1=1"], "--set belongs to --crf"),
        (["report", "nowhere"], "not a run folder"),
        (["recipes", "magic"], "no recipe 'magic'"),
        (["demo", "--out", "DATA"], "holds something that is no demo"),
    ],
)
def test_an_error_is_one_line_and_code_2(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    base = tmp_path_factory.getbasetemp() / "cli-data"
    if not base.exists():
        make_voc(base)
    out = tmp_path_factory.mktemp("out")
    (out / "net.yaml").write_text("arch: linknet\nencoder: tu-test_efficientnet\nweights: none\n")
    places = {"DATA": str(base), "NETWORK": str(out / "net.yaml"), "x": str(out / "x"), "y": str(out / "y")}
    monkeypatch.setattr(sys, "argv", ["mixsup", *[places.get(word, word) for word in words]])
    monkeypatch.setenv("MIXSUP_CACHE", str(out / "cache"))
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert ended.value.code == 2, said
    assert message in said
    assert "Traceback" not in said
    assert len(lines) == 1


def test_sam_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(
        sys, "argv", ["mixsup", "masks", str(make_voc(tmp_path / "data")), "--source", "sam", "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capfd.readouterr().err == "error: source 'sam' needs transformers; pip install 'mixsup[sam]'\n"


def test_a_full_disk_while_masks_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(sys, "argv", ["mixsup", "masks", str(make_voc(tmp_path / "data")), "--score", "--cache", str(tmp_path / "cache")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "cannot write (No space left on device)" in said[0]
    assert "free space or choose another folder, then go on" in said[0]
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 3


def test_files_of_another_size(tmp_path: Path) -> None:
    data, env = make_voc(tmp_path / "data"), {"MIXSUP_CACHE": str(tmp_path / "cache")}
    assert mixsup("masks", data, "--out", tmp_path / "mine", env=env).returncode == 0
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "mine" / "a.png")
    found = mixsup("masks", data, "--source", "files", "--set", f"folder={tmp_path / 'mine'}", "--score", env=env)
    assert found.returncode == 2
    assert [line for line in found.stderr.splitlines() if line.startswith("error:")] == [
        f"error: {data / 'JPEGImages' / 'a.jpg'}: {tmp_path / 'mine' / 'a.png'}: the mask has 9 x 9 pixels, its image 40 x 30; "
        "write it at the size of the upright image"
    ]
    skipped = mixsup("masks", data, "--source", "files", "--set", f"folder={tmp_path / 'mine'}", "--score", "--skip-bad", env=env)
    assert skipped.returncode == 0
    assert "1 images left out" in skipped.stderr


def test_cache_is_kept_below_its_limit(tmp_path: Path) -> None:
    data, env = make_voc(tmp_path / "data"), {"MIXSUP_CACHE": str(tmp_path / "cache"), "MIXSUP_CACHE_LIMIT": "1K"}
    words = ("masks", data, "--out", tmp_path / "out")
    first = mixsup(*words, env=env)
    assert "limit 1 kB" in first.stderr
    assert "raise --cache-limit" in first.stderr  # six images of this run: none is removed
    made = list((tmp_path / "cache").rglob("*.npz"))
    assert len(made) == 6
    for path in made:
        os.utime(path, (1, 1))
    second = mixsup(*words, "--source", "grabcut", "--split", "val", "--cache-limit", "0", env=env)
    assert "removed 6 files" in second.stderr
    assert {path.parent.parent.name for path in (tmp_path / "cache").rglob("*.npz")} == {"grabcut"}


def test_filling_rates(tmp_path: Path) -> None:
    data, env = make_voc(tmp_path / "data"), {"MIXSUP_CACHE": str(tmp_path / "cache")}
    found = mixsup("inspect", data, "--filling-rates", "grabcut", "--set", "iterations=1", "--plot", tmp_path / "rates.png", env=env)
    assert found.returncode == 0, found.stderr
    assert "filling rates of grabcut masks over 8 boxes" in found.stdout
    assert Image.open(tmp_path / "rates.png").format == "PNG"
    numbers = json.loads(mixsup("inspect", data, "--filling-rates", "rectangle", "--json", "-", env=env).stdout)
    assert numbers["filling_rates"]["global_rate"] == 1
    assert numbers["filling_rates"]["per_class"]["cat"] == {"boxes": 4, "mean": 1.0, "std": 0.0}


def test_debug_shows_the_traceback() -> None:
    found = subprocess.run([sys.executable, "-m", "mixsup", "--debug", "inspect", "nowhere"], capture_output=True, text=True, timeout=300)
    assert found.returncode == 1
    assert "Traceback" in found.stderr


def test_problems_are_listed_with_file_and_line(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    path = data / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<name>cat</name>", "<name>unicorn</name>"))
    found = mixsup("inspect", data)
    assert found.returncode == 0
    assert "5 images" in found.stdout
    assert "a.xml, line" in found.stderr
    assert "unknown class 'unicorn'" in found.stderr


def test_python_face(tmp_path: Path) -> None:
    import mixsup as face
    from mixsup.masks import BoxMasks

    dataset = face.load_dataset(make_voc(tmp_path / "data"), "train")
    made = {sample.id: masks for sample, masks in face.make_masks(dataset, "rectangle", cache=tmp_path / "cache", jobs=1)}
    assert made.keys() == {"a", "b", "c", "d"}
    assert all(isinstance(masks, BoxMasks) for masks in made.values())
    with pytest.raises(AttributeError):
        face.magic  # noqa: B018


@pytest.mark.parametrize("how", ["code", "exception"])
def test_stopped_by_the_user(how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Typer turns Ctrl-C into code 130 where it runs the command, and lets it through elsewhere."""

    def stopped(**_: object) -> int:
        if how == "exception":
            raise KeyboardInterrupt
        return 130

    monkeypatch.setattr(cli, "app", stopped)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: stopped; a training run goes on with --resume, masks that were made stay\n"


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(**_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err.startswith("error: out of memory; lower --tile, --scales")


def test_inspect_lists_faults_where_nothing_is_left(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    for path in data.glob("JPEGImages/*"):
        path.write_bytes(path.read_bytes()[:-30])
    found = mixsup("inspect", data, "--full")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("broken or cut short") == 6
    assert "6 problems" in found.stderr


def test_no_command_is_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = typed(monkeypatch, capsys)
    assert all(name in text for name in COMMANDS)
    assert "error:" not in text


def test_a_reader_that_has_read_enough() -> None:
    """`mixsup recipes | head -1` is no failure."""
    code = "import sys, time; time.sleep(3); sys.argv = ['mixsup', 'recipes']; from mixsup.cli import main; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 0


def test_a_terminal_that_knows_no_accents(tmp_path: Path) -> None:
    """A character is lost, and not the table."""
    data = make_yolo_polygons(tmp_path / "data")
    (data / "data.yaml").write_text((data / "data.yaml").read_text().replace("dog", "chien mouillé"), encoding="utf-8")
    for encoding in ("ascii", "latin-1", "utf-8"):
        env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        code = f"import sys; sys.argv = ['mixsup', 'inspect', {str(data)!r}, *sys.argv[1:]]; from mixsup.cli import main; main()"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True).stdout
        assert b"chien mouill" in shown
        printed = subprocess.run([sys.executable, "-c", code, "--json", "-", "--full"], capture_output=True, env=env, check=True).stdout
        assert "chien mouillé" in str(json.loads(printed.decode(encoding)))


def test_tables_in_a_pipe_do_not_wrap(capsys: pytest.CaptureFixture[str]) -> None:
    from mixsup.show import show_scores

    name = "a-name-that-is-longer-than-any-terminal-" * 5
    show_scores({"per_class": {name: 0.5}, "miou": 0.5})
    assert any(name in line and "50.0" in line for line in capsys.readouterr().out.splitlines())
