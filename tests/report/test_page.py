"""The report: in a real browser, with hostile class names, and without anything beside it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import mixsup.report.page as page_module
from mixsup.report import write_report
from tests import tiny
from tests.data.make import make_voc

HOSTILE = "<img src=x onerror=alert(1)>"


def make_hostile(root: Path) -> Path:
    """The data set of `make_voc` whose class `cat` has a name that wants to be HTML."""
    data = make_voc(root)
    for path in [*data.glob("Annotations/*.xml"), *data.glob("*.txt"), *data.glob("*.csv")]:
        name = HOSTILE.replace("<", "&lt;").replace(">", "&gt;") if path.suffix == ".xml" else HOSTILE
        path.write_text(re.sub(r"\bcat\b", name, path.read_text()))
    return data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose class `cat` has a name that wants to be HTML."""
    folder = tmp_path_factory.mktemp("report")
    data = make_hostile(folder / "data")
    tiny.run(data, folder / "run", labels="masks=1,boxes=3", report=True, settings=("refresh=direct", "refresh.rounds=2"))
    return folder / "run"


def test_nothing_comes_from_outside(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert HOSTILE not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    text = re.sub(r"data:[^\"]*", "", page)
    addresses = set(re.findall(r"https?://[^\"' <>)]+", text))
    assert all("w3.org" in address or "purl.org" in address for address in addresses)  # names of XML dialects inside the SVG, never fetched
    assert not re.search(r"<(link|script|img)[^>]+(src|href)=\"(?!data:|\")", text)


def test_written_again_it_is_the_same(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_without_the_data_there_are_no_pictures(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    facts = moved / "run.json"
    facts.write_text(facts.read_text().replace(str(run.parent / "data"), "nowhere"))
    page = write_report(moved).read_text()
    assert "Pictures" not in page
    assert "training loss" in page or "<svg" in page
    assert "Pictures" in write_report(moved, data=run.parent / "data").read_text()


def test_without_pictures_the_scores_stay(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    page = write_report(moved, pictures=False).read_text()
    assert "data:image" not in page
    assert 'id="classes"' in page


def test_boundaries_are_measured_in_the_same_pass(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    original = page_module.evaluate

    def spy(*words: Any, **named: Any) -> Any:
        found = original(*words, **named)
        passes.append(found.scores)
        return found

    monkeypatch.setattr(page_module, "evaluate", spy)
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    page = write_report(moved, pictures=False).read_text()
    assert len(passes) == 1
    assert f"<b>{100 * passes[0]['boundary_iou']:.1f} %</b>boundary IoU" in page
    section = page[page.index('id="trimap"') : page.index('id="rounds"')]
    assert "<svg" in section
    for row in passes[0]["trimap"]:
        cells = (str(row["width"]), f"{100 * row['boundary']:.1f}", f"{100 * row['interior']:.1f}")
        assert "".join(f'<td class="number">{cell}</td>' for cell in cells) in section


def test_in_a_browser(run: Path) -> None:
    """No console error, pictures load, the filter works, and the hostile class name is text."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_file = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if browser_file is None:
        pytest.skip("no Chromium here; `make test` installs one where apt can")
    with playwright.sync_playwright() as tools:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        browser = tools.chromium.launch(executable_path=browser_file, args=flags)
        page = browser.new_page()
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(f"dialog {dialog.message}"))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((run / "report.html").as_uri())
        assert page.locator("#pictures .row").count() == 6
        assert page.locator("#rounds .progress").count() >= 2
        assert page.locator("#rounds .legend", has_text=HOSTILE).count() == 1
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.locator("#classes td", has_text=HOSTILE).count() == 1

        page.select_option("#class", "2")
        shown = page.locator("#pictures .row:visible")
        assert shown.count() == page.evaluate("rows.filter(row => row.dataset.classes.split(' ').includes('2')).length")
        page.select_option("#class", "")
        page.select_option("#part", "training")
        assert shown.count() == 4
        assert page.locator("#count").inner_text() == "4 of 6 images"
        browser.close()
    assert not messages
    assert all(url.startswith(("file:", "data:")) for url in requests)
