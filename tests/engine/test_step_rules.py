"""Training with a rule of steps (`em`) and with `sdi` on tiny data: boxes, tags and masks, resuming, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixsup.data.sample import KINDS
from mixsup.errors import MixsupError
from mixsup.masks.store import load as load_masks
from tests import tiny
from tests.data.make import make_tags, make_voc
from tests.engine.test_train import same


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "data")


def test_em_learns_from_boxes(data: Path, tmp_path: Path) -> None:
    """Other targets than the first masks; an image without boxes (d) takes part; no rounds."""
    run = tiny.run(data, tmp_path / "em", "wssl-em", labels="boxes")
    assert run.kinds() == dict.fromkeys("abcd", "boxes")
    assert not (tmp_path / "em" / "masks").exists()
    tiny.run(data, tmp_path / "rect", "wssl-rect", labels="boxes")
    assert not same(tmp_path / "em", tmp_path / "rect")
    far = ("refresh.options.b_fg=1000",)  # every box wins all its pixels, which are then rectangles but for where boxes overlap
    tiny.run(data, tmp_path / "far", "wssl-em", settings=far, labels="boxes")
    assert not same(tmp_path / "em", tmp_path / "far")


def test_em_learns_from_tags_alone(tmp_path: Path) -> None:
    run = tiny.run(make_tags(tmp_path / "data"), tmp_path / "run", "wssl-em", report=True)
    assert run.facts["images"] == {"tags": 4}
    rows = [row for row in run.metrics() if row["loss"]]
    assert all(float(row["tags"]) > 0 for row in rows)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("workers", [0, 1])
def test_em_learns_from_all_kinds_together(data: Path, tmp_path: Path, workers: int) -> None:
    run = tiny.run(data, tmp_path / "run", "wssl-em", steps=10, labels="masks=1,boxes=2,tags=1", workers=workers)
    rows = [row for row in run.metrics() if row["loss"]]
    assert all(any(float(row[kind] or 0) > 0 for row in rows) for kind in KINDS)


def test_a_killed_run_of_em_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = "masks=1,boxes=2,tags=1"
    tiny.run(data, tmp_path / "whole", "wssl-em", steps=8, labels=budget)
    tiny.interrupt_at_call(monkeypatch, 6)  # after the checkpoint of step 4
    with pytest.raises(KeyboardInterrupt):
        tiny.run(data, tmp_path / "cut", "wssl-em", steps=8, labels=budget)
    monkeypatch.undo()
    tiny.run(data, tmp_path / "cut", "wssl-em", steps=8, labels=budget, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "cut" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": "tags", "settings": ("refresh=none",)},
            "loss 'cross-entropy' needs a class for each pixel, and tags give none; set masks.tags=cam or refresh=em",
        ),
        (
            {"labels": "boxes=2,tags=2", "settings": ("refresh=direct", "refresh.rounds=1")},
            "tags give none; set masks.tags=cam or refresh=em",
        ),
        ({"labels": "boxes", "settings": ("refresh.rounds=2",)}, "'em' works in every step and knows no refresh.rounds"),
        ({"labels": "boxes", "settings": ("refresh.every=1",)}, "knows no refresh.every"),
        ({"labels": "boxes", "settings": ("refresh.start=true",)}, "knows no refresh.start"),
        ({"labels": "boxes", "settings": ("refresh.scale=0.5",)}, "knows no refresh.scale"),
        ({"labels": "boxes", "settings": ("refresh.options.b_fg=much",)}, "refresh rule 'em', setting 'b_fg'"),
        (
            {"labels": "masks"},
            "'em' renews the masks of boxes and tags, but the label budget has none; use refresh=none or give boxes or tags",
        ),
        ({"labels": "tags", "name": "sdi-box"}, "'sdi' renews the masks of boxes, but the label budget has none"),
        (  # `gap-bce` looks at no pixel's class, so that the rule would do nothing
            {"labels": "masks=1,tags=2", "name": "rectangles", "settings": ("refresh=em",)},
            "'em' renews the masks of boxes, but the label budget has none",
        ),
        ({"labels": "tags", "name": "full"}, "recipe 'full' has no loss for tags"),
    ],
)
def test_refused_at_start(data: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MixsupError, match=message) as caught:
        tiny.run(data, tmp_path / "run", **{"name": "wssl-em", **options})
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_sdi_runs_its_rounds(data: Path, tmp_path: Path) -> None:
    run = tiny.run(data, tmp_path / "run", "sdi-box-inner", steps=8, labels="masks=1,boxes=3")
    boxed = {key for key, kind in run.kinds().items() if kind == "boxes"}
    for number in range(4):
        found = {path.stem: load_masks(path) for path in (tmp_path / "run" / "masks" / f"round-{number}").iterdir()}
        assert found.keys() == boxed
        for masks in found.values():
            assert masks is not None
            # A mask of a round covers half of its box, or is the first one again, of which a fifth is foreground and the rest ignored.
            assert all((mask == 1).mean() >= 0.5 or set(np.unique(mask)) == {1, 255} for mask in masks.masks)
