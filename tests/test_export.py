"""ONNX: what the file says is what the run says, and the page's lines do what `predict` does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import mixsup
from mixsup import export
from mixsup.cli import app
from mixsup.data import load_dataset
from mixsup.demo.scenes import write_dataset
from mixsup.engine.checkpoint import load_model
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from tests import tiny

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
PAGE = Path(__file__).parent.parent / "docs" / "export.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, a `run` of a few steps and its `first.onnx`."""
    folder = tmp_path_factory.mktemp("export")
    write_dataset(folder / "data", train=6, val=2, seed=0, size=70)
    tiny.run(folder / "data", folder / "run", steps=12)
    shown = CliRunner().invoke(app, ["export", str(folder / "run"), "--onnx", str(folder / "first.onnx")])
    assert shown.exit_code == 0 and "first.onnx: " in shown.stdout and "differ by" in shown.stdout
    return folder


@pytest.mark.parametrize(("number", "height", "width"), [(1, 32, 32), (3, 64, 32), (2, 96, 160)])
def test_the_file_says_what_the_run_says(made: Path, number: int, height: int, width: int) -> None:
    image = torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(height))
    with torch.inference_mode():
        said = load_model(Run.load(made / "run"))(image)["scores"].softmax(1).numpy()
    found = onnxruntime.InferenceSession(str(made / "first.onnx")).run(["probabilities"], {"image": image.numpy()})[0]
    assert found.dtype == np.float32 and np.abs(found - said).max() < 1e-4


def test_the_file_knows_its_classes_and_size(made: Path) -> None:
    facts = onnxruntime.InferenceSession(str(made / "first.onnx")).get_modelmeta().custom_metadata_map
    run = Run.load(made / "run")
    expected = {
        "classes": list(run.classes.all()),
        "size": 32,
        "resolution": "fit",
        "multiple": 32,
        "pretraining": "none",
        "checkpoint": "best",
    }
    assert {key: json.loads(facts[key]) for key in expected} == expected


def test_the_pages_lines_predict_as_the_run_does(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    picture = load_dataset(made / "data", "val").samples[0].image
    Image.open(picture).save(made / "photo.jpg", quality=95)
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(lines, names)
    ids = mixsup.load("run", device="cpu").predict("photo.jpg")
    found = np.asarray(names["ids"])
    assert found.shape == ids.shape and (found == ids).mean() > 0.99  # libraries round resized pixels differently


def test_a_graph_of_one_size(made: Path) -> None:
    file = made / "one.onnx"
    assert mixsup.export_onnx(made / "run", file, checkpoint="last", fixed=(64, 96)) < export.TOLERANCE
    (put,) = onnxruntime.InferenceSession(str(file)).get_inputs()
    assert put.shape == [1, 3, 64, 96]


@pytest.mark.parametrize(
    ("size", "says"), [("64x70", "multiples of 32"), ("0x32", "multiples of 32"), ("64", "height x width"), ("axb", "height x width")]
)
def test_sizes_that_cannot_be(
    made: Path, size: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mixsup.cli import main

    monkeypatch.setattr(sys, "argv", ["mixsup", "export", str(made / "run"), "--onnx", str(made / "none.onnx"), "--size", size])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and says in capsys.readouterr().err and not (made / "none.onnx").exists()


def test_missing_packages_are_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MixsupError, match=r"onnxscript; pip install 'mixsup\[export\]'"):
        mixsup.export_onnx(made / "run", made / "none.onnx")


def test_a_network_that_onnx_cannot_express(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(self: nn.Module, image: torch.Tensor) -> torch.Tensor:
        return image.softmax(1) if image.sum().item() > 0 else image  # depends on the values

    monkeypatch.setattr(export.Graph, "forward", asks)
    with pytest.raises(MixsupError, match=r"cannot be written as ONNX .*--size"):
        mixsup.export_onnx(made / "run", made / "none.onnx")
    assert not (made / "none.onnx").exists()


def test_a_file_that_says_something_else_is_not_kept(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made / "old.onnx").write_bytes(b"before")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(MixsupError, match="something else than the run"):
        mixsup.export_onnx(made / "run", made / "old.onnx", fixed=(32, 32))
    assert (made / "old.onnx").read_bytes() == b"before" and not list(made.glob(".*.tmp"))
