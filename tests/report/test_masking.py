"""The report of a run with a masking head and the filling-rate loss: what it draws, with hostile class names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixsup.data import load_dataset
from mixsup.data.sample import Boxes
from mixsup.engine.api import load
from mixsup.engine.refresh import read_rounds
from mixsup.engine.run import Run
from mixsup.masks.rectangle import Rectangle
from mixsup.masks.store import load as stored
from mixsup.masks.ucm import UCM
from mixsup.report import write_report
from mixsup.report.masking import kept_of_image, whole_maps, working_outputs
from mixsup.report.rounds import latest_masks
from tests import tiny
from tests.report.test_page import HOSTILE, make_hostile


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masking")
    data = make_hostile(folder / "data")
    tiny.run(data, folder / "run", "bcm", settings=("masks=ucm",), labels="boxes", report=True)
    return folder / "run"


def test_maps_rates_and_kept_pixels(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert HOSTILE not in page
    rates, masking = (page[page.index(f'id="{name}"') :].split("</section>")[0] for name in ("rates", "masking"))
    assert "by ucm masks of 5 boxes" in rates
    assert "<svg" in rates
    assert masking.count("map: background") == 4  # a map a class that is in the image, and the background's
    assert masking.count("map: ") == 4 + 1 + 2 + 1
    assert masking.count("kept by the loss") == 4
    before = (run / "report.html").read_bytes()
    write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_an_image_on_which_the_source_fails_costs_its_row(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under --skip-bad, which left it out of training."""
    moved, at_fault = tmp_path / "run", min(Run.load(run).kinds())
    shutil.copytree(run, moved)
    made = UCM.__call__

    def fails(self: UCM, *inputs: Any) -> Any:
        if inputs[2].id == at_fault:
            raise ValueError("no such colour")
        return made(self, *inputs)

    monkeypatch.setattr(UCM, "__call__", fails)
    assert write_report(moved).read_text().count("kept by the loss") == 3


def test_a_plain_run_has_neither(run: Path, tmp_path: Path) -> None:
    made = tiny.run(run.parent / "data", tmp_path / "plain", labels="boxes", report=True)
    page = (made.folder / "report.html").read_text()
    assert 'id="rates"' not in page
    assert 'id="masking"' not in page


def test_broken_rates_cost_their_section(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    (moved / "filling_rates.json").write_text("{")
    page = write_report(moved).read_text()
    assert 'id="rates"' not in page
    assert 'id="masking"' in page
    assert "data:image" not in write_report(moved, pictures=False).read_text()


def test_maps_are_cut_to_the_picture(run: Path) -> None:
    """Of the network's padded input (64 x 64 here) the picture is the upper left part."""
    outputs, size = working_outputs(load(run, device="cpu"), np.zeros((60, 80, 3), np.uint8))
    assert size == (32, 43)  # the run's working size
    assert whole_maps(outputs, size).shape == (4, 32, 43)


def test_kept_pixels_of_a_picture() -> None:
    """A box of 16 × 16 pixels at half its size, 0.25 of it kept: the 16 pixels with the highest scores."""
    boxes = Boxes.of([((4, 4, 20, 20), 1, False)])
    masks = Rectangle()(np.zeros((24, 24, 3), np.uint8), boxes, None)  # type: ignore[arg-type]
    target, scores = np.zeros((12, 12), np.uint8), torch.zeros(1, 2, 12, 12)
    target[2:10, 2:10] = 1
    scores[0, 1] = -torch.arange(12.0)[:, None]
    found = kept_of_image(scores, target, masks, np.array([0.25], np.float32))
    assert (found[2:4, 2:10] == 1).all()
    assert (found[4:10, 2:10] == 255).all()
    assert (found == 0).sum() == 144 - 64


def test_a_small_box_before_a_larger_one_of_its_class() -> None:
    """Whatever the order of the label file, a pixel belongs to the smallest box around it, as in training."""
    small, large = ((4, 4, 8, 8), 1, False), ((0, 0, 16, 16), 1, False)
    target, scores = np.ones((16, 16), np.uint8), torch.zeros(1, 2, 16, 16)
    scores[0, 1, 12:] = 1
    found = []
    for boxes, rates in (([small, large], [1.0, 0.25]), ([large, small], [0.25, 1.0])):
        masks = Rectangle()(np.zeros((16, 16, 3), np.uint8), Boxes.of(boxes), None)  # type: ignore[arg-type]
        found.append(kept_of_image(scores, target, masks, np.array(rates, np.float32)))
    assert np.array_equal(found[0], found[1])
    assert (found[0][4:8, 4:8] == 1).all()


def test_what_the_loss_keeps_is_of_the_masks_that_were_taught(tmp_path: Path) -> None:
    """A run that chooses its masks from a pool: neither rectangles nor what the pool's source would make alone."""
    data = make_hostile(tmp_path / "data")
    settings = ("loss.boxes=filling-rate", "loss_options.boxes.variant=class", "refresh.every=1")
    made = tiny.run(data, tmp_path / "run", "boxsup", settings=settings, labels="boxes", report=True)
    dataset, last = load_dataset(data, "train"), read_rounds(made.folder)[-1]["round"]
    assert last > 1
    for sample in dataset.samples:
        latest, kept = latest_masks(made, sample), stored(made.folder / "masks" / f"round-{last}" / f"{sample.id}.npz")
        assert latest is not None
        assert kept is not None
        assert all(np.array_equal(one, other) for one, other in zip(latest.masks, kept.masks, strict=True))
    assert made.folder.joinpath("report.html").read_text().count("kept by the loss") == 4
    plain = tiny.run(data, tmp_path / "plain", settings=("masks=ucm",), labels="boxes")
    assert all(latest_masks(plain, sample) is None for sample in dataset.samples)


def test_rates_that_the_last_loss_does_not_go_by_are_not_shown(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    opened = Run.load(moved)
    recipe = opened.recipe.model_copy(update={"loss_options": {"boxes": {"variant": "global"}}})
    (moved / "recipe.yaml").write_text(recipe.to_yaml())
    page = write_report(moved).read_text()
    assert 'id="rates"' not in page
    assert "kept by the loss" in page
