"""Kernels on machines whose package and home folder cannot be written to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mixsup

PROGRAM = """
import os, numpy as np, mixsup
from mixsup.masks.boundaries import _differences
from mixsup.crf import cpu
print(mixsup.__file__)
print(os.environ["NUMBA_CACHE_DIR"])
print(cpu.features(np.zeros((2, 3, 3), np.uint8), 1.0, 1.0).shape)
"""


def test_nothing_can_be_written_beside_the_package_or_at_home(tmp_path: Path) -> None:
    """Files where the folders would be stand for folders that refuse, which none does to root."""
    shutil.copytree(Path(mixsup.__file__).parent, tmp_path / "mixsup", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("masks", "crf"):
        (tmp_path / "mixsup" / folder / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_", "XDG_", "MIXSUP_"))}
    for cache in (tmp_path / "cache", tmp_path / "file" / "cache"):
        environment = {**plain, "HOME": str(tmp_path / "file"), "PYTHONPATH": str(tmp_path), "MIXSUP_CACHE": str(cache)}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        package, kept, shape = done.stdout.split("\n")[:3]
        assert Path(package).parent == tmp_path / "mixsup"
        assert shape == "(6, 5)"
        if cache.is_dir():
            assert Path(kept) == cache / "numba"
            assert list(cache.rglob("cpu.features*.nbc"))
        else:  # of no use to a later run
            assert "mixsup-numba-" in kept
            assert not Path(kept).exists()
