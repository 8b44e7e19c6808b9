"""Pools of candidates on disk, beside the masks and by the same keys: made once for an image, its boxes and a source's settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mixsup.data.sample import Boxes, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.proposals import Proposals
from mixsup.masks.source import MaskSource
from mixsup.masks.store import MaskStore


@dataclass(frozen=True)
class PoolStore(MaskStore):
    """A folder of `Proposals`; see `MaskStore`."""

    title: ClassVar[str] = "proposals"

    def _content(self, source: MaskSource, image: UInt8, boxes: Boxes, sample: Sample) -> bytes:
        if not isinstance(source, BoxPool):
            raise MixsupError(f"source {source.name!r} has no candidates to choose from; use mcg, selective-search or geodesic")
        return source.propose(image, boxes, sample).to_bytes()

    def _whole(self, path: Path) -> bool:
        return load_pool(path) is not None


def load_pool(path: Path) -> Proposals | None:
    """Reads a pool; None when the file is missing or damaged, so that it is made anew."""
    try:
        return Proposals.from_bytes(path.read_bytes())
    except OSError:
        return None
