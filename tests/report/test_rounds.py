"""How the masks of boxes got better over the rounds: the numbers, and the section of the report that shows them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mixsup.cli import main
from mixsup.engine.run import Run
from mixsup.masks.box_masks import compose
from mixsup.masks.store import load
from mixsup.metrics import confusion, iou_per_class
from mixsup.report import write_report
from mixsup.report.page import _render
from mixsup.report.rounds import Progress, Quality, mask_quality, read_quality, shown_rounds, spread, write_quality
from mixsup.show import show_run
from tests import tiny
from tests.data.make import make_voc, mask_of

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    settings = ("refresh=direct", "refresh.rounds=2")
    tiny.run(make_voc(folder / "data"), folder / "run", steps=9, labels="masks=1,boxes=3", report=True, settings=settings)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def section(page: Path) -> str:
    text = page.read_text()
    return text[text.index('id="rounds"') :].split("</section>")[0]


def move_away(run: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "data": "nowhere"}))


def test_numbers_are_those_of_the_composed_masks(trained: Path) -> None:
    rows = read_quality(trained / "run")
    assert [row.round for row in rows] == [0, 1, 2]
    boxed = [key for key, kind in Run.load(trained / "run").kinds().items() if kind == "boxes"]
    assert len(boxed) == 3
    for row in rows:
        matrix = np.zeros((4, 4), np.int64)
        for key in boxed:
            masks = load(trained / "run" / "masks" / f"round-{row.round}" / f"{key}.npz")
            assert masks is not None
            matrix += confusion(mask_of(key), compose(masks), 4)
        assert row.miou == pytest.approx(float(np.nanmean(iou_per_class(matrix))), abs=1e-6)
        assert row.ignored == 0
    assert rows[0].miou == pytest.approx(1)  # objects of this data are rectangles
    assert rows[0].changed == 0


def test_the_section(trained: Path) -> None:
    text = section(trained / "run" / "report.html")
    assert "<svg" in text
    boxed = [key for key, kind in Run.load(trained / "run").kinds().items() if kind == "boxes" and key != "d"]  # d has no object
    assert re.findall(r"<header><b>(\w+)</b>", text) == sorted(boxed)
    assert text.count("<img") == len(boxed) * 5  # boxes, first masks, two rounds, truth
    assert text.count("<figcaption>round 2</figcaption>") == len(boxed)


def test_written_again_it_is_the_same(run: Path) -> None:
    before = (run / "mask_quality.csv").read_bytes(), (run / "report.html").read_bytes()
    write_report(run)
    assert (run / "mask_quality.csv").read_bytes() == before[0]
    assert (run / "report.html").read_bytes() == before[1]


def test_lines_of_report_and_train(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["mixsup", "report", str(run)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(run / "report.html")
    assert lines[1] == "first masks: mean IoU with truth 100.0 %"
    assert re.fullmatch(r"round 1, step \d+: \d+ of \d+ boxes changed, mean IoU with truth \d+\.\d %", lines[2])
    assert len(lines) == 4
    show_run(Run.load(run))
    assert capsys.readouterr().out.splitlines()[1:4] == lines[1:]


def test_lines() -> None:
    assert str(Quality(3, 112, 1066, 812, 0.761, 0.0)) == "round 3, step 112: 812 of 1066 boxes changed, mean IoU with truth 76.1 %"
    assert str(Quality(3, 112, 1066, 812)) == "round 3, step 112: 812 of 1066 boxes changed"
    assert str(Quality(0, 0, 1066, 0)) == "first masks"
    assert str(Quality(0, 0, 9, 0, 0.5, 0.25)) == "first masks: mean IoU with truth 50.0 % (25.0 % of pixels ignored)"


def test_without_photographs_the_table_stays(run: Path) -> None:
    text = section(write_report(run, pictures=False))
    assert "<svg" in text
    assert text.count("<tr>") == 4
    assert "<img" not in text
    assert "data:image" not in text


def test_moved_data_keep_the_numbers_of_the_first_report(run: Path) -> None:
    before = read_quality(run)
    move_away(run)
    text = section(write_report(run))
    assert read_quality(run) == before
    assert "<img" not in text
    (run / "mask_quality.csv").unlink()
    text = section(write_report(run))
    assert [row.miou for row in read_quality(run)] == [None, None, None]
    assert "<svg" in text


def test_moved_data_are_found_again(run: Path, trained: Path) -> None:
    move_away(run)
    (run / "mask_quality.csv").unlink()
    assert "<img" in section(write_report(run, data=trained / "data"))
    assert read_quality(run) == read_quality(trained / "run")


def test_rounds_that_are_gone(run: Path) -> None:
    shutil.rmtree(run / "masks" / "round-1")
    broken = next((run / "masks" / "round-2").glob("*.npz"))
    broken.write_bytes(b"nothing")
    text = section(write_report(run))
    assert "no round 1" in text
    assert [row.miou is None for row in read_quality(run)] == [False, True, False]
    shutil.rmtree(run / "masks")
    assert "<img" not in section(write_report(run, pictures=True))
    (run / "rounds.csv").unlink()
    assert 'id="rounds"' not in write_report(run).read_text()
    assert not (run / "mask_quality.csv").exists()


def test_without_truth(run: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "data", tmp_path / "boxes")
    shutil.rmtree(tmp_path / "boxes" / "SegmentationClass")
    (run / "mask_quality.csv").unlink()
    text = section(write_report(run, data=tmp_path / "boxes"))
    assert "no truth" in text
    assert "<svg" in text
    assert [row.miou for row in read_quality(run)] == [None, None, None]


def test_other_classes_and_other_images_are_not_compared(run: Path, tmp_path: Path) -> None:
    from mixsup.data import load_dataset

    other = make_voc(tmp_path / "other")
    (other / "labels.txt").write_text("background\nbird\ncat\ndog\ncow\n")
    assert all(row.miou is None for row in mask_quality(Run.load(run), load_dataset(other, "train")))


def test_names_are_text(run: Path) -> None:
    rows = [Quality(0, 0, 3, 0), Quality(1, 4, 3, 3)]
    page = _render(Run.load(run), None, [], rows, [Progress(HOSTILE, "data:,", ("", ""), "")])
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_which_rounds_are_shown() -> None:
    rows = [Quality(number, number, 1, 1) for number in range(13)]
    assert [row.round for row in shown_rounds(rows)] == [0, 1, 4, 7, 9, 12]
    assert [row.round for row in shown_rounds(rows[:3])] == [0, 1, 2]
    assert [row.round for row in shown_rounds(rows[:2])] == [0, 1]
    assert shown_rounds([]) == []
    assert spread(1, 5) == [0]
    assert spread(0, 5) == []


def test_a_broken_file_is_none(tmp_path: Path) -> None:
    assert read_quality(tmp_path) == []
    rows = [Quality(0, 0, 3, 0, 0.25, 0.5), Quality(1, 4, 3, 2)]
    write_quality(tmp_path, rows)
    assert read_quality(tmp_path) == rows
    for text in ("", "round\n1\n", "round,step,boxes,changed,miou,ignored\n1,x,2,3,,\n", "round,step,boxes,changed,miou,ignored\n1,2\n"):
        (tmp_path / "mask_quality.csv").write_text(text)
        assert read_quality(tmp_path) == []
