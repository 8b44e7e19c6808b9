"""The store: per-box masks on disk, computed once for an image, its boxes and a source's settings.

Its key is content (bytes of the image, boxes, source, settings, version), so a changed image or setting never meets an old mask, and the same photo
under another name is not computed again. Files are written whole; any number of processes may share a store.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from mixsup.data.derive import boxes_of
from mixsup.data.image import read_image
from mixsup.data.sample import Boxes, Dataset, MaskFile, Sample, UInt8
from mixsup.errors import MixsupError, Problem
from mixsup.files import write_bytes
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.source import MaskSource, as_key, fault, refuse_masks
from mixsup.progress import track
from mixsup.workers import spread, spread_on_cluster

_FORMAT = 1  # of the files below


def default_cache() -> Path:
    """The folder of caches: $MIXSUP_CACHE, else `mixsup` in the user's cache folder."""
    own = os.environ.get("MIXSUP_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixsup"


@dataclass(frozen=True)
class Made:
    """What became of one image: the file with its masks, or the problem that it has."""

    sample: str
    path: Path | None
    seconds: float  # 0 when the masks were there
    problem: Problem | None = None


@dataclass(frozen=True)
class MaskStore:
    """A folder of per-box masks.

    Attributes:
        folder: where the files lie.
        title: what they hold, for messages.
    """

    folder: Path
    title: ClassVar[str] = "first masks"

    def path(self, sample: Sample, boxes: Boxes, source: MaskSource) -> Path:
        """Where the masks of a sample lie, whether or not they are there yet.

        Raises:
            MixsupError: the image or a further file of the source cannot be read.
        """
        digest = hashlib.blake2b(digest_size=20)
        recipe = {"format": _FORMAT, "source": source.key, "version": source.version, "settings": source.settings(), "size": sample.size}
        digest.update(as_key(recipe))
        for array in (boxes.xyxy, boxes.classes, boxes.crowd):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(source.fingerprint(sample))
        try:
            digest.update(sample.image.read_bytes())
        except OSError as error:
            raise MixsupError(f"{sample.image}: cannot be read ({error.strerror}); check the path") from None
        key = digest.hexdigest()
        return self.folder / source.name / key[:2] / f"{key}.npz"

    def make(self, sample: Sample, source: MaskSource, num_classes: int) -> Made:
        """Finds or computes the masks of one sample.

        A fault of its files, and whatever the source fails with on this image, becomes a `problem` and is not raised.

        Raises:
            MixsupError: the store cannot be written.
        """
        try:
            boxes = boxes_of(sample, num_classes)
            path = self.path(sample, boxes, source)
            if path.is_file() and self._whole(path):
                _touch(path)
                return Made(sample.id, path, 0.0)
            start = time.perf_counter()
            content = self._content(source, read_image(sample.image), boxes, sample)
            seconds = time.perf_counter() - start
        except Exception as error:
            # One image among a hundred thousand that OpenCV, memory or a defect of ours stumbles over must not cost the others.
            return Made(sample.id, None, 0.0, fault(source, sample, error))
        write_bytes(path, content)
        return Made(sample.id, path, seconds)

    def make_all(self, dataset: Dataset, source: MaskSource, jobs: int = -1, cluster: str | None = None) -> Iterator[Made]:
        """Finds or computes the masks of all samples, as they get done.

        Args:
            dataset: samples with boxes, or masks to derive them from.
            source: of the masks.
            jobs: processes on this machine, -1 for one a core.
            cluster: address of a Dask scheduler, whose workers compute instead; they must see the images and the store under the same paths.

        Raises:
            MixsupError: the source cannot work at all, the store cannot be written, a worker process was killed, or the cluster does not answer.
                What was computed stays.
        """
        source.check()
        title, count = f"{self.title} ({source.name})", len(dataset.samples)
        if cluster is None:
            # Processes cost seconds to start; a few images are better served here.
            jobs = 1 if count < 8 else jobs
            make = partial(self._make, source=source, num_classes=len(dataset.classes))
            yield from track(spread(make, dataset.samples, jobs), title, count)
            return
        store = replace(self, folder=self.folder.absolute())  # a worker has a working folder of its own
        make = partial(store._make, source=source, num_classes=len(dataset.classes))
        samples = (_absolute(sample) for sample in dataset.samples)
        with store._token() as token:
            shared = [token, *(_absolute(sample).image for sample in dataset.samples[:1])]
            yield from track(spread_on_cluster(make, samples, cluster, shared, _killed), title, count)

    def _make(self, sample: Sample, source: MaskSource, num_classes: int) -> Made:
        return self.make(sample, source, num_classes)

    def _content(self, source: MaskSource, image: UInt8, boxes: Boxes, sample: Sample) -> bytes:
        """What a file of the store holds."""
        masks = source(image, boxes, sample)
        try:
            refuse_masks(masks, boxes, (image.shape[0], image.shape[1]))
        except MixsupError as error:
            raise MixsupError(f"source {source.name!r} {error}") from None
        return to_bytes(masks)

    def _whole(self, path: Path) -> bool:
        return load(path) is not None

    @contextmanager
    def _token(self) -> Iterator[Path]:
        """A file that exists only now: who sees it, sees this store and not another folder of the same name."""
        path = self.folder / f".{os.getpid()}-{time.time_ns()}.token"
        write_bytes(path, b"")
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _absolute(sample: Sample) -> Sample:
    mask = replace(sample.mask, path=sample.mask.path.absolute()) if isinstance(sample.mask, MaskFile) else sample.mask
    return replace(sample, image=sample.image.absolute(), mask=mask)


def _killed(sample: Sample) -> Made:
    message, remedy = "every worker that tried it was killed (out of memory?)", "give the workers more memory, or leave the image out"
    return Made(sample.id, None, 0.0, Problem(str(sample.image), "", message, remedy, sample.id))


def _touch(path: Path) -> None:
    """Notes that the file was used, for `cache.trim`; its time of writing stays."""
    with suppress(OSError):  # a store that may only be read, or a file that another process has removed
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def save(path: Path, masks: BoxMasks) -> None:
    """Writes per-box masks, whole or not at all."""
    write_bytes(path, to_bytes(masks))


def to_bytes(masks: BoxMasks) -> bytes:
    """Per-box masks as an npz file."""
    stream = io.BytesIO()
    flat = np.concatenate([mask.ravel() for mask in masks.masks]) if len(masks) else np.zeros(0, np.uint8)
    np.savez_compressed(stream, size=np.array(masks.size), windows=masks.windows, classes=masks.classes, crowd=masks.crowd, masks=flat)
    return stream.getvalue()


def load(path: Path) -> BoxMasks | None:
    """Reads per-box masks; None when the file is missing or damaged, so that they are made anew."""
    try:
        with np.load(path, allow_pickle=False) as data:
            windows = data["windows"]
            areas = ((windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])).astype(np.int64)
            parts = np.split(data["masks"], np.cumsum(areas)[:-1]) if len(windows) else []
            shapes = [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in windows]
            masks = tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
            height, width = data["size"]
            return BoxMasks((int(height), int(width)), windows, data["classes"], data["crowd"], masks)
    except Exception:  # zip, zlib, tokenizer and NumPy each have errors of their own for bytes that are none of theirs
        return None
