"""The demo from end to end, with a few scenes and steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mixsup.demo.run import run_demo
from mixsup.errors import MixsupError


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    results = run_demo(out, steps=3, train_scenes=10, val_scenes=4)
    assert [result.recipe for result in results] == ["full", "rectangles", "boxsup"]
    printed = capsys.readouterr().out
    assert "mean IoU %" in printed
    assert "pretraining: none" in printed
    for name in ("full", "rectangles", "boxsup"):
        assert (out / name / "report.html").is_file()
    assert Image.open(out / "comparison.png").width > 900

    again = run_demo(out, steps=3, train_scenes=10, val_scenes=4)  # deterministic, and an earlier demo is replaced
    assert [result.miou for result in again] == [result.miou for result in results]
    assert [result.per_class for result in again] == [result.per_class for result in results]

    with pytest.raises(MixsupError, match="steps"):
        run_demo(out, steps=0)
    assert all((out / name / "report.html").is_file() for name in ("full", "rectangles", "boxsup"))  # nothing was replaced yet

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(MixsupError, match="holds something that is no demo"):
        run_demo(tmp_path / "mine")
