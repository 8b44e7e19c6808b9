"""The store: found again by content, written whole, shared by processes, bad images reported and survived."""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from mixsup.data.sample import Boxes, Classes, Dataset, Sample
from mixsup.masks import build_source
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.source import MaskSource
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


@dataclass(frozen=True)
class Odd(MaskSource):
    """A method of the user's own that makes one of the first mistakes."""

    how: str = "right"
    folder: Path = Path("mine")
    classes: frozenset[str] = frozenset(("b", "a"))
    name: ClassVar[str] = "odd"

    def __call__(self, image: Any, boxes: Boxes, sample: Sample) -> BoxMasks:
        size = (image.shape[0], image.shape[1])
        masks: list[Any] = [np.ones((y1 - y0, x1 - x0), np.uint8) for x0, y0, x1, y1 in boxes.windows(size)]
        if self.how == "size":
            size = (size[1], size[0])
        if self.how == "fewer":
            boxes, masks = Boxes(boxes.xyxy[1:], boxes.classes[1:], boxes.crowd[1:]), masks[1:]
        factor = {"bytes": 255, "ids": 7, "probabilities": 0.7, "negative": True}.get(self.how, 1)
        masks = [mask * factor if self.how != "negative" else mask.astype(bool) for mask in masks]
        masks = [mask.astype(np.uint8) if self.how in ("bytes", "ids") else mask for mask in masks]
        if self.how == "bytes":
            masks = [np.where(mask == 255, np.uint8(254), mask) for mask in masks]
        return masks if self.how == "list" else BoxMasks(size, boxes.windows(sample.size), boxes.classes, boxes.crowd, tuple(masks))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("ids", "source 'odd' gives masks that hold more than 0 .background., 1 .the object. and 255 .ignored., as uint8; convert them"),
        ("bytes", "hold more than 0"),
        ("probabilities", "hold more than 0"),
        ("negative", "as uint8; convert them"),
        ("fewer", "gives 3 masks, or their places or classes, that are not those of the 4 boxes; return BoxMasks.of"),
        ("size", "not those of the 4 boxes"),
        ("list", "gives a list and no BoxMasks"),
    ],
)
def test_what_is_no_mask_is_not_kept(tmp_path: Path, sample: Sample, how: str, message: str) -> None:
    """It would be taught without a word, and found again in the cache after the method has been corrected."""
    store = MaskStore(tmp_path / "store")
    made = store.make(sample, Odd(how), 4)
    assert made.path is None
    assert re.search(message, str(made.problem))
    assert store.make(sample, Odd(), 4).path is not None


def test_settings_of_any_type_are_part_of_the_key(tmp_path: Path, sample: Sample) -> None:
    store = MaskStore(tmp_path / "store")
    paths = {store.path(sample, sample.boxes or Boxes.of([]), Odd(folder=Path(name), classes=frozenset(name))) for name in ("a", "b", "a")}
    assert len(paths) == 2


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
