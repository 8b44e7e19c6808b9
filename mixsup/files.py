"""Files: written whole or not at all, and never outside the folder that they belong to."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from mixsup.errors import MixsupError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` and moves it over `path` when the block ends without an error.

    A reader, or a process killed at any moment, sees the old content or the new one and nothing between. Several
    processes may write the same path; the last one wins whole.

    Raises:
        MixsupError: the disk is full, read-only or otherwise refuses the file. The old content stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{_hidden(path)}.", suffix=".tmp", delete=False)  # noqa: SIM115
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(handle.name)
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        _publish(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data`, whole or not at all."""
    with atomic_write(path) as handle:
        handle.write(data)


def write_with(path: Path, writer: Callable[[Path], object]) -> None:
    """Lets `writer` fill a temporary path of its own (for libraries that insist on a path), then moves it to `path`."""
    temporary = path.with_name(f"{_hidden(path)}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        _publish(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    except RuntimeError as error:
        # torch.save and safetensors report a full disk as a RuntimeError or an error of their own kind.
        raise MixsupError(f"{path}: cannot write ({error}); what was there before is whole; free space, then go on") from error
    finally:
        temporary.unlink(missing_ok=True)


def too_long(name: str) -> bool:
    """Whether a file system may refuse `name.overlay.jpg`, the longest of the names that are made of an image's: most take 255 bytes."""
    return len(os.fsencode(name)) > 240


def _hidden(path: Path) -> str:
    """How the temporary files of a path are called: by its name's beginning, for a name may be as long as names can be, and a number that is its own."""
    return f".{path.name[:50]}.{zlib.crc32(os.fsencode(path.name)):08x}"


def drawing_format(path: Path) -> str:
    """What the ending of a drawing's name asks for: png, pdf or svg.

    Raises:
        MixsupError: another ending.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "pdf", "svg"):
        raise MixsupError(f"{path}: a drawing ends in .png, .pdf or .svg; choose one of them")
    return kind


def _publish(temporary: Path, path: Path) -> None:
    """Moves a finished file to its place. Temporary files are private; a run folder is shared like any other output."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    os.replace(temporary, path)


def _cannot_write(path: Path, error: OSError) -> MixsupError:
    reason = error.strerror or str(error)
    return MixsupError(f"{path}: cannot write ({reason}); what was there before is whole; free space or choose another folder, then go on")


def inside(root: Path, name: str) -> Path | None:
    """Joins a file name that a data set gives to the data set's folder.

    Returns:
        The path, or None when the name is absolute or climbs out of `root`. Symbolic links below `root` are
        followed: they are the work of whoever unpacked the data, not of the label file.
    """
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        return None
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or (parts and parts[0] == "/"):
        return None
    return root.joinpath(*parts)
