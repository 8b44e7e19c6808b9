"""The size of the store on disk, and its limit: what was used longest ago goes first.

A file's last use is the later of its times of access and of writing; `MaskStore` sets the access time itself when it finds a mask, since many disks are
mounted without. Nothing here locks: a file that disappears under another process is made anew by it.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mixsup.errors import MixsupError

DEFAULT_LIMIT = "20G"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_OURS = re.compile(r"[0-9a-f]{40}\.npz")  # nothing else in the folder is ever removed,
_UNFINISHED = re.compile(r"\.[0-9a-f]{40}\.npz\..*\.tmp")  # but for what a killed process left behind
_STALE_SECONDS = 24 * 3600.0  # no mask takes a day to write
_MARGIN_SECONDS = 60.0  # the clocks of a cluster and of a file server differ


@dataclass(frozen=True)
class CacheSize:
    """What `trim` found and did.

    Attributes:
        folder: of the store.
        bytes, files: left on the disk, in whole blocks.
        removed_bytes, removed_files: gone.
        limit: in bytes; None for none.
    """

    folder: Path
    bytes: int
    files: int
    removed_bytes: int
    removed_files: int
    limit: int | None

    def __str__(self) -> str:
        allowed = "no limit" if self.limit is None else f"limit {readable(self.limit)}"
        text = f"cache: {readable(self.bytes)} in {self.files} files, {allowed}, {self.folder}"
        if self.removed_files:
            text += f"; removed {self.removed_files} files used longest ago ({readable(self.removed_bytes)})"
        if self.limit is not None and self.bytes > self.limit:
            text += (
                "; the rest is of this run or used since it began: raise --cache-limit ($MIXSUP_CACHE_LIMIT) to keep this data set whole"
            )
        return text


def parse_size(text: str) -> int | None:
    """Bytes from `20G`, `500M`, `1.5 TB`, `20GiB` or a plain number; None from `none`.

    Raises:
        MixsupError: neither.
    """
    if text.strip().lower() == "none":
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if found is None or found[2] not in _UNITS:
        raise MixsupError(f"cache limit {text[:40]!r}: give a size as in 20G or 500M, or none")
    return int(float(found[1]) * _UNITS[found[2]])


def default_limit() -> int | None:
    """$MIXSUP_CACHE_LIMIT, else 20 GB; in bytes, None for none."""
    return parse_size(os.environ.get("MIXSUP_CACHE_LIMIT") or DEFAULT_LIMIT)


def readable(size: float) -> str:
    """A number of bytes for people: three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def trim(folder: Path, limit: int | None, since: float) -> CacheSize:
    """Measures the store and, above the limit, removes what was used longest ago until it fits.

    Args:
        folder: of the store.
        limit: bytes, None for none.
        since: seconds since the epoch when this run began; what was used after is kept, whatever the limit.

    Returns:
        What is left.
    """
    # Bytes by the second of last use: bounded by time and not by the number of files, of which there may be millions.
    by_second: Counter[int] = Counter()
    files = 0
    for entry in _files(folder):
        measured = _measure(entry)
        if measured is not None:
            by_second[measured[0]] += measured[1]
            files += 1
    total = by_second.total()
    excess = total - limit if limit is not None else 0
    if excess <= 0:
        return CacheSize(folder, total, files, 0, 0, limit)
    last = int(since - _MARGIN_SECONDS)
    reached, cutoff = 0, 0
    for second in sorted(by_second):
        if second >= last or reached >= excess:
            break
        reached, cutoff = reached + by_second[second], second + 1
    removed_bytes = removed_files = 0
    for entry in _files(folder):
        measured = _measure(entry)
        if measured is not None and measured[0] < cutoff:
            with suppress(OSError):
                os.unlink(entry.path)
                removed_bytes, removed_files = removed_bytes + measured[1], removed_files + 1
    return CacheSize(folder, total - removed_bytes, files - removed_files, removed_bytes, removed_files, limit)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The store's files, in any order; what a killed process left half-written is removed on the way."""
    try:
        entries = os.scandir(folder)
    except OSError:
        return
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            elif _OURS.fullmatch(entry.name):
                yield entry
            elif _UNFINISHED.fullmatch(entry.name):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        os.unlink(entry.path)


def _measure(entry: os.DirEntry[str]) -> tuple[int, int] | None:
    """Second of last use, and bytes on the disk; None for a file that is gone."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    size = status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    return int(max(status.st_atime, status.st_mtime)), size
