"""Methods of a user's own, named as module:name; the page that says how is run as it stands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixsup.cli import app
from mixsup.engine.refresh import read_rounds
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.heads import build_head
from mixsup.masks import build_source
from mixsup.networks import build_network
from mixsup.recipe import NetworkChoice
from mixsup.recipes import load_recipe
from mixsup.refresh import build_rule
from tests import tiny
from tests.data.make import make_voc, write
from tests.engine.test_train import same

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the page's file in it."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in blocks:
        write(tmp_path / name, text)
    make_voc(tmp_path / "DATA")
    monkeypatch.chdir(tmp_path)
    before = sys.path[:]
    yield tmp_path
    sys.path[:] = before
    for name, _ in blocks:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_page(folder: Path) -> None:
    lines = re.findall(r"^(mixsup .*?[^\\])$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    write(folder / "net.yaml", "{arch: linknet, encoder: tu-test_efficientnet, weights: none}")
    for line in lines:
        words = shlex.split(line.replace("\\\n", ""))[1:]
        if words[0] == "train":
            words += ["--network", "net.yaml", "--size", "32", "--batch", "2", "--steps", "8"]
        done = CliRunner().invoke(app, [*words, *(["--cache", "cache"] if words[0] in ("train", "masks") else [])])
        assert done.exit_code == 0, (line, done.output)
    run = Run.load(folder / "runs" / "agree")
    assert (run.recipe.masks.source, run.recipe.masks.options) == ("agree:Ellipse", {"size": 0.9})
    assert [row["round"] for row in read_rounds(run.folder)] == [1, 2, 3]


def test_a_run_with_ones_own_is_resumed_and_mixed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("masks=agree:Ellipse", "refresh=agree:Agree", "refresh.rounds=2", "loss.boxes=agree:focal", "head=agree:Dropped")
    kept = {"steps": 9, "labels": "masks=1,boxes=2,tags=1", "settings": settings}
    tiny.run(folder / "DATA", folder / "whole", **kept)
    tiny.interrupt_at_call(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(folder / "DATA", folder / "cut", **kept)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    tiny.run(folder / "DATA", folder / "cut", resume=True, **kept)
    assert same(folder / "whole", folder / "cut")


def test_a_step_rule_takes_no_rounds(folder: Path) -> None:
    write(folder / "agree.py", "from mixsup.refresh.em import EM\nclass Mine(EM):\n    name = 'mine'\n")
    recipe = load_recipe("boxsup", settings=["refresh=agree:Mine"])
    assert recipe.refresh.rule == "agree:Mine"
    assert not recipe.refresh.start
    assert recipe.refresh.every is None


def test_a_network_and_a_loss_of_its_head(folder: Path) -> None:
    write(
        folder / "agree.py",
        """
from torch import nn
from mixsup.networks.base import Network

class Small(Network):
    channels, multiple = 8, 2
    def __init__(self, width=8):
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 3, 2, 1)
    def features(self, images):
        return self.backbone(images), []

def small(outputs, batch):
    return outputs["scores"].square().sum(), outputs["scores"][:, 0].numel() * outputs["scores"].new_ones(())

class Head(nn.Module):
    losses = {"agree:small": 0.5}
    def __init__(self, network, num_classes):
        super().__init__()
        self.classifier = network.classifier(num_classes)
    def forward(self, features):
        return {"scores": self.classifier(features)}
""",
    )
    recipe = load_recipe(
        "full", network="agree:Small", settings=["network.weights=none", "head=agree:Head"], overrides={"size": 32, "batch": 2, "steps": 2}
    )
    run = tiny.train(
        folder / "DATA", recipe, folder / "run", tiny.Options(labels="masks", accelerator="cpu", workers=0, report=False, quiet=True)
    )
    assert float(run.metrics()[0]["head"]) > 0
    with pytest.raises(MixsupError, match=r"has no weights that go by a name; set network\.weights=none"):
        build_network(NetworkChoice(arch="agree:Small"))
    with pytest.raises(MixsupError, match="takes no weights"):
        build_network(NetworkChoice(arch="agree:Small", weights="some.safetensors"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Mine", "mask source 'nowhere:Mine' cannot be imported .ModuleNotFoundError"),
        ("agree:Nothing", "cannot be imported .AttributeError"),
        ("agree:focal", "mask source 'agree:focal' is none; see docs/extending.md"),
        ("agree:Agree", "is none"),
        ("agree:MaskSource", "is none"),
        (":Mine", "no mask source ':Mine'"),
        ("agree:", "no mask source 'agree:'"),
        ("broken:Mine", "cannot be imported .SyntaxError"),
    ],
)
def test_what_is_not_there(folder: Path, name: str, message: str) -> None:
    write(folder / "broken.py", "class Mine(:\n")
    with pytest.raises(MixsupError, match=message):
        build_source(name)


def test_settings_of_ones_own_are_checked(folder: Path) -> None:
    with pytest.raises(MixsupError, match=r"mask source 'agree:Ellipse' has no setting 'sise', see `masks\.options`; there are size"):
        build_source("agree:Ellipse", {"sise": 1})
    with pytest.raises(MixsupError, match="refresh rule 'agree:Agree', setting 'sure': Input should be less than or equal to 1"):
        build_rule("agree:Agree", {"sure": 2})
    with pytest.raises(MixsupError, match="loss 'agree:focal' cannot charge tags"):
        tiny.run(folder / "DATA", folder / "run", labels="tags", settings=("loss.tags=agree:focal",))
    with pytest.raises(MixsupError, match="head 'agree:nothing' cannot be imported"):
        build_head("agree:nothing", build_network(tiny.NETWORK), 3)
