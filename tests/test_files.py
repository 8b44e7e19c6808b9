"""Files are written whole or not at all, whatever happens meanwhile, and stay inside their folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixsup.errors import MixsupError
from mixsup.files import atomic_write, inside, write_bytes, write_text, write_with


def test_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as handle:
        handle.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses(tmp_path: Path, code: int) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def full(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(MixsupError, match="what was there before is whole; free space") as caught:
        write_with(path, full)
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MixsupError, match="cannot write"):
        write_text(tmp_path / "file" / "below.txt", "x")


@pytest.mark.parametrize("ending", ["a", "é", "図"])
def test_names_as_long_as_names_can_be(tmp_path: Path, ending: str) -> None:
    """The temporary file's is no longer, and names that begin alike have files of their own."""
    for last in "12":
        path = tmp_path / (ending * ((255 - 1) // len(ending.encode())) + last)
        write_text(path, last)
        write_with(path, lambda temporary, last=last: temporary.write_text(2 * last))  # type: ignore[misc]
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["11", "22"]


def test_killed_while_writing(tmp_path: Path) -> None:
    """A writer that is killed at any moment leaves one of its whole contents."""
    path = tmp_path / "big.bin"
    write_bytes(path, bytes(8_000_000))
    code = (
        "import sys; from pathlib import Path; from mixsup.files import write_bytes\n"
        "print('go', flush=True)\n"
        "for value in range(1, 255): write_bytes(Path(sys.argv[1]), bytes([value]) * 8_000_000)\n"
    )
    for delay in (0.005, 0.02, 0.05):
        worker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(delay)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        content = path.read_bytes()
        assert len(content) == 8_000_000
        assert content == content[:1] * 8_000_000


def test_names_stay_inside(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/etc/passwd", "C:\\x", "..\\x", "", "a\0b"):
        assert inside(tmp_path, name) is None
    assert inside(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"
    assert inside(tmp_path, "./a.jpg") == tmp_path / "a.jpg"
