"""The cache's limit: what was used longest ago goes first, what this run used stays, and nothing that is not ours is touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from mixsup.data.sample import Sample
from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.cache import default_limit, parse_size, readable, trim
from mixsup.masks.store import MaskStore
from tests.masks.contract import many_boxes, picture


def fill(folder: Path, ages: list[float]) -> list[Path]:
    """One block-sized file for each age in seconds."""
    paths = []
    for index, age in enumerate(ages):
        path = folder / "grabcut" / f"{index:02x}" / f"{index:040x}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 8192)
        used = time.time() - age
        os.utime(path, (used, used - 1e6))  # written long before it was used
        paths.append(path)
    return paths


def test_sizes() -> None:
    assert parse_size("20G") == 20 * 10**9
    assert parse_size("1.5 TB") == 15 * 10**11
    assert parse_size("512MiB") == 512 * 2**20
    assert parse_size("100") == 100
    assert parse_size("none") is None
    for text in ("", "G", "-1G", "20X", "lots"):
        with pytest.raises(MixsupError, match="give a size as in 20G"):
            parse_size(text)
    assert readable(999) == "999 B"
    assert readable(20e9) == "20 GB"


def test_limit_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXSUP_CACHE_LIMIT", raising=False)
    assert default_limit() == 20 * 10**9
    monkeypatch.setenv("MIXSUP_CACHE_LIMIT", "3M")
    assert default_limit() == 3_000_000


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    paths = fill(tmp_path, [4000, 9000, 3000, 8000])
    whole = trim(tmp_path, None, time.time())
    assert (whole.files, whole.removed_files) == (4, 0)
    after = trim(tmp_path, whole.bytes // 2, time.time())
    assert [path.exists() for path in paths] == [True, False, True, False]
    assert after.bytes <= whole.bytes // 2
    assert after.removed_files == 2
    assert "removed 2 files" in str(after)


def test_this_run_is_never_touched(tmp_path: Path) -> None:
    paths = fill(tmp_path, [500, 5000, 10])
    after = trim(tmp_path, 0, time.time() - 1000)
    assert [path.exists() for path in paths] == [True, False, True]
    assert "raise --cache-limit" in str(after)


def test_only_our_files(tmp_path: Path) -> None:
    fill(tmp_path, [5000])
    foreign = tmp_path / "thesis.npz"
    foreign.write_bytes(b"mine")
    half = tmp_path / "grabcut" / f".{1:040x}.npz.abc.tmp"
    fresh = tmp_path / "grabcut" / f".{2:040x}.npz.abc.tmp"
    for path in (half, fresh):
        path.write_bytes(b"x")
    for path in (foreign, half):
        os.utime(path, (1, 1))
    trim(tmp_path, 0, time.time())
    assert foreign.exists()
    assert fresh.exists()  # somebody may be writing it
    assert not half.exists()


def test_no_cache_at_all(tmp_path: Path) -> None:
    assert trim(tmp_path / "nowhere", 1, time.time()).files == 0


def test_a_mask_that_is_found_counts_as_used_and_not_as_written(tmp_path: Path) -> None:
    Image.fromarray(picture(48, 64)).save(tmp_path / "one.png")
    sample = Sample("one", tmp_path / "one.png", (48, 64), boxes=many_boxes((48, 64), 4))
    store, source = MaskStore(tmp_path / "store"), build_source("rectangle")
    path = store.make(sample, source, 4).path
    assert path is not None
    os.utime(path, (1000, 1000))
    assert store.make(sample, source, 4).seconds == 0
    assert path.stat().st_mtime == 1000
    assert time.time() - path.stat().st_atime < 60
    assert trim(store.folder, 0, time.time()).files == 1
