"""The store: found again by content, written whole, shared by processes, bad images reported and survived."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixsup.data.sample import Boxes, Classes, Dataset, Sample
from mixsup.masks import build_source
from mixsup.masks.store import MaskStore, load, save
from tests.masks.contract import many_boxes, picture


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    Image.fromarray(picture(48, 64)).save(tmp_path / "one.png")
    return Sample("one", tmp_path / "one.png", (48, 64), boxes=many_boxes((48, 64), 4))


def test_round_trip(tmp_path: Path, sample: Sample) -> None:
    assert sample.boxes is not None
    for boxes in (sample.boxes, Boxes.of([])):
        masks = build_source("rectangle")(picture(48, 64), boxes, sample)
        save(tmp_path / "a.npz", masks)
        again = load(tmp_path / "a.npz")
        assert again is not None
        assert again.size == masks.size
        assert np.array_equal(again.windows, masks.windows)
        assert all(np.array_equal(a, b) for a, b in zip(again.masks, masks.masks, strict=True))


def test_computed_once_and_by_content(tmp_path: Path, sample: Sample) -> None:
    store, source = MaskStore(tmp_path / "store"), build_source("rectangle")
    first, second = store.make(sample, source, 4), store.make(sample, source, 4)
    assert first.seconds > 0
    assert second.seconds == 0
    assert first.path == second.path

    copy = tmp_path / "copy.png"
    copy.write_bytes(sample.image.read_bytes())
    assert store.make(replace(sample, id="two", image=copy), source, 4).path == first.path  # the same photo under another name
    Image.fromarray(picture(48, 64, seed=9)).save(sample.image)
    assert store.make(sample, source, 4).path != first.path  # another photo under the same name
    assert store.make(sample, build_source("grabcut"), 4).path != store.make(sample, build_source("grabcut", {"iterations": 1}), 4).path


def test_damaged_file_is_made_anew(tmp_path: Path, sample: Sample) -> None:
    store, source = MaskStore(tmp_path / "store"), build_source("rectangle")
    path = store.make(sample, source, 4).path
    assert path is not None
    for junk in (b"", path.read_bytes()[:60], b"not a zip file at all"):
        path.write_bytes(junk)
        assert load(path) is None
        assert store.make(sample, source, 4).seconds > 0
        assert load(path) is not None


def test_any_damaged_block_is_noticed(tmp_path: Path, sample: Sample) -> None:
    """Zip, zlib, NumPy's header and the shapes behind it fail in ways of their own; whatever still reads is what was written."""
    source = build_source("rectangle")
    path = MaskStore(tmp_path).make(sample, source, 4).path
    assert path is not None
    whole, right = path.read_bytes(), load(path)
    assert right is not None
    for start in range(0, len(whole), 16):
        path.write_bytes(whole[:start] + bytes(byte ^ 0x5A for byte in whole[start : start + 16]) + whole[start + 16 :])
        found = load(path)
        assert found is None or all(np.array_equal(one, two) for one, two in zip(found.masks, right.masks, strict=True))


def test_a_bad_image_costs_only_itself(tmp_path: Path, sample: Sample) -> None:
    (tmp_path / "bad.png").write_bytes(b"<html>")
    bad = replace(sample, id="bad", image=tmp_path / "bad.png")
    dataset = Dataset(Classes(("a", "b", "c")), [bad, sample])
    made = {item.sample: item for item in MaskStore(tmp_path / "store").make_all(dataset, build_source("rectangle"), jobs=1)}
    assert made["one"].path is not None
    assert made["bad"].path is None
    assert "web page" in str(made["bad"].problem)


def _work(folder: Path, sample: Sample) -> None:
    for _ in range(5):
        made = MaskStore(folder).make(sample, build_source("rectangle"), 4)
        assert made.path is not None
        assert load(made.path) is not None
        made.path.unlink(missing_ok=True)


def test_many_processes_share_a_store(tmp_path: Path, sample: Sample) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path / "store", sample)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    # Another process may remove the file between two of our lines; what must never happen is a file that is there and damaged.
    assert not list((tmp_path / "store").rglob("*.tmp"))


def test_parallel_equals_serial(tmp_path: Path) -> None:
    samples = []
    for index in range(9):
        Image.fromarray(picture(48, 64, seed=index)).save(tmp_path / f"{index}.png")
        samples.append(Sample(str(index), tmp_path / f"{index}.png", (48, 64), boxes=many_boxes((48, 64), 2)))
    dataset = Dataset(Classes(("a", "b", "c")), samples)
    one = {made.sample: made.path for made in MaskStore(tmp_path / "one").make_all(dataset, build_source("grabcut"), jobs=1)}
    two = {made.sample: made.path for made in MaskStore(tmp_path / "two").make_all(dataset, build_source("grabcut"), jobs=2)}
    assert one.keys() == two.keys()
    for key in one:
        first, second = one[key], two[key]
        assert first is not None
        assert second is not None
        assert first.read_bytes() == second.read_bytes()
