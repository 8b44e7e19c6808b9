"""Methods of a user's own, named as module:name; the page that says how is run as it stands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mixsup.api import make_masks
from mixsup.cli import app, main
from mixsup.data import load_dataset
from mixsup.engine.refresh import read_rounds
from mixsup.engine.run import Run
from mixsup.errors import MixsupError, Problem
from mixsup.heads import build_head
from mixsup.losses import Criterion
from mixsup.masks import BoxMasks, build_source
from mixsup.networks import build_network
from mixsup.recipe import NetworkChoice
from mixsup.recipes import load_recipe
from mixsup.refresh import build_rule
from mixsup.report.page import write_report
from tests import tiny
from tests.data.make import make_voc, write
from tests.engine.test_train import same

HEADER = "from pydantic.dataclasses import dataclass\nfrom mixsup.masks.source import STRICT\n"
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
    write(
        folder / "agree.py",
        HEADER + "from mixsup.refresh.em import EM\n@dataclass(frozen=True, config=STRICT)\nclass Mine(EM):\n    name = 'mine'\n",
    )
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
        (
            "nowhere:Mine",
            r"mask source 'nowhere:Mine' cannot be imported .ModuleNotFoundError.*; run this in the folder of that file, or put it on PYTHONPATH",
        ),
        ("time:Mine", "time has no 'Mine'; correct the name"),
        ("agree:Nothing", r"agree\.py has no 'Nothing'; correct the name"),
        ("agree:focal", "mask source 'agree:focal' is no MaskSource; see docs/extending.md"),
        ("agree:Agree", "is no MaskSource"),
        ("agree:MaskSource", "is no MaskSource"),
        (":Mine", "no mask source ':Mine'"),
        ("agree:", "no mask source 'agree:'"),
        ("broken:Mine", "cannot be imported .SyntaxError"),
        ("failing:Mine", r"cannot be imported .NameError: name 'nothing' is not defined, .*failing\.py line 3.; correct it"),
        ("leaving:Mine", "cannot be imported .SystemExit"),
        ("half:Abstract", "does not define __call__"),
        ("half:Nameless", "does not say its name"),
        ("half:Plain", "is no dataclass of pydantic's"),
        ("half:Inherits", "is no dataclass of pydantic's"),
    ],
)
def test_what_is_not_there(folder: Path, name: str, message: str) -> None:
    write(folder / "broken.py", "class Mine(:\n")
    write(folder / "failing.py", "import os\n\nnothing\n")
    write(folder / "leaving.py", "raise SystemExit(2)\n")
    write(folder / "half.py", HALF)
    with pytest.raises(MixsupError, match=message) as caught:
        build_source(name)
    assert len(str(caught.value).splitlines()) == 1


HALF = """
from pydantic.dataclasses import dataclass
from mixsup.masks.rectangle import Rectangle
from mixsup.masks.source import STRICT, MaskSource
from mixsup.refresh.rule import RefreshRule, StepRule

class Abstract(MaskSource):
    name = "abstract"

@dataclass(frozen=True, config=STRICT)
class Nameless(MaskSource):
    def __call__(self, image, boxes, sample): ...

class Plain(MaskSource):
    name = "plain"
    def __init__(self, v=1): self.v = v
    def __call__(self, image, boxes, sample): ...

class Inherits(Rectangle):
    def __call__(self, image, boxes, sample): ...

@dataclass(frozen=True, config=STRICT)
class Same(Rectangle):  # keeps the name
    def __call__(self, image, boxes, sample):
        found = super().__call__(image, boxes, sample)
        for mask in found.masks:
            mask[:] = 255
        return found

@dataclass(frozen=True, config=STRICT)
class Fails(Rectangle):
    name = "fails"
    def __call__(self, image, boxes, sample):
        return nothing

@dataclass(frozen=True, config=STRICT)
class NoRenews(StepRule):
    name = "norenews"
    def labels(self, view): ...

@dataclass(frozen=True, config=STRICT)
class TooFew(RefreshRule):
    name = "toofew"
    def __call__(self, case):
        return type(case.first)(case.first.size, case.first.windows[:0], case.first.classes[:0], case.first.crowd[:0], ())

@dataclass(frozen=True, config=STRICT)
class Ids(RefreshRule):
    name = "ids"
    def __call__(self, case):
        kind, first = type(case.first), case.first
        return kind(first.size, first.windows, first.classes, first.crowd, tuple(mask * 7 for mask in first.masks))

def fails(outputs, batch):
    return outputs["nothing"]

def everywhere(outputs, batch):
    return outputs["scores"].square().sum(), outputs["scores"].new_tensor(outputs["scores"].numel())
everywhere.kinds = ("masks", "boxes", "tags")

def by_image(outputs, batch):
    return everywhere(outputs, batch)
by_image.kinds, by_image.pixels = everywhere.kinds, False
"""


def test_what_cannot_be_one(folder: Path) -> None:
    write(folder / "half.py", HALF)
    for what, make in {
        "refresh rule 'half:NoRenews' does not say its renews": lambda: build_rule("half:NoRenews"),
        "head 'half:fails' is no Module": lambda: build_head("half:fails", build_network(tiny.NETWORK), 3),
        "loss 'half:TooFew' does not take outputs and a batch": lambda: Criterion({"boxes": "half:TooFew"}),
        "loss 'half:Plain' is neither a function nor": lambda: Criterion({"boxes": "half:Plain"}),
        "loss of a head 'half:no' cannot|half.py has no 'no'": lambda: Criterion({"boxes": "cross-entropy"}, head={"half:no": 1.0}),
    }.items():
        with pytest.raises(MixsupError, match=what):
            make()


def test_ones_own_shares_no_masks_with_another(folder: Path) -> None:
    """A class that keeps the name of the one it derives from, in one cache, computed by other processes."""
    write(folder / "half.py", HALF)
    dataset = load_dataset("DATA", "train")
    for name, ignored in (("rectangle", False), ("half:Same", True), ("rectangle", False)):
        for jobs in (1, 2):
            for _, made in make_masks(dataset, name, cache="cache", jobs=jobs):
                assert isinstance(made, BoxMasks)
                assert all((mask == 255).all() == ignored for mask in made.masks)


def test_failures_of_ones_own_say_where(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "half.py", HALF)
    (_, found), *_ = make_masks(load_dataset("DATA", "train"), "half:Fails", cache="cache", jobs=2)
    assert isinstance(found, Problem)
    line = HALF.splitlines().index("        return nothing") + 1
    assert f"half.py:{line}" in found.message
    assert found.remedy == "correct it there, or leave the image out"
    with pytest.raises(MixsupError, match=r"refresh rule 'toofew' gives .* other boxes than it has"):
        tiny.run(folder / "DATA", folder / "few", labels="boxes", settings=("refresh=half:TooFew", "refresh.rounds=1"))
    with pytest.raises(MixsupError, match=r"refresh rule 'ids' gives masks that hold more than 0 .* \(image "):
        tiny.run(folder / "DATA", folder / "ids", labels="boxes", settings=("refresh=half:Ids", "refresh.rounds=1"))
    words = "train DATA --recipe full --labels masks --network net.yaml --size 32 --batch 2 --steps 2 --cache cache --workers 0 --out run"
    write(folder / "net.yaml", "{arch: linknet, encoder: tu-test_efficientnet, weights: none}")
    monkeypatch.setattr(sys, "argv", ["mixsup", *words.split(), "--set", "loss.masks=half:fails"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert (
        f"half.py:{HALF.splitlines().index('    return outputs[' + chr(34) + 'nothing' + chr(34) + ']') + 1}: KeyError"
        in capsys.readouterr().err
    )


def test_losses_of_tags_need_labels_of_pixels(folder: Path) -> None:
    write(folder / "half.py", HALF)
    with pytest.raises(MixsupError, match="loss 'half:everywhere' needs a class for each pixel, and tags give none"):
        tiny.run(folder / "DATA", folder / "run", labels="tags", settings=("loss.tags=half:everywhere",))
    tiny.run(folder / "DATA", folder / "run", labels="tags", steps=2, settings=("loss.tags=half:by_image",))


def test_a_report_without_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prediction needs networks and heads; a page leaves out what needs the rest."""
    settings = ("masks=agree:Ellipse", "refresh=agree:Agree", "refresh.rounds=1", "loss.boxes=agree:focal")
    run = tiny.run(folder / "DATA", folder / "run", steps=4, labels="boxes", settings=settings).folder
    (folder / "agree.py").unlink()
    sys.modules.pop("agree")
    write_report(run)
    assert (run / "report.html").is_file()


def test_settings_of_ones_own_are_checked(folder: Path) -> None:
    with pytest.raises(MixsupError, match=r"mask source 'agree:Ellipse' has no setting 'sise', see `masks\.options`; there are size"):
        build_source("agree:Ellipse", {"sise": 1})
    with pytest.raises(MixsupError, match="refresh rule 'agree:Agree', setting 'sure': Input should be less than or equal to 1"):
        build_rule("agree:Agree", {"sure": 2})
    with pytest.raises(MixsupError, match="loss 'agree:focal' cannot charge tags"):
        tiny.run(folder / "DATA", folder / "run", labels="tags", settings=("loss.tags=agree:focal",))
    with pytest.raises(MixsupError, match=r"head .agree:nothing.: .*agree\.py has no"):
        build_head("agree:nothing", build_network(tiny.NETWORK), 3)
