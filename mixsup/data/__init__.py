"""Labels in: one reader a format, and `load_dataset`, which finds the right one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mixsup.data import coco, folders, joined, tags, voc, yolo
from mixsup.data.collect import common_name, images_below, is_file
from mixsup.data.sample import Boxes, Classes, Dataset, LabelKind, Sample
from mixsup.errors import DataError, MixsupError

__all__ = ["FORMATS", "Boxes", "Classes", "Dataset", "LabelKind", "Sample", "format_splits", "load_dataset", "read_format"]


@dataclass(frozen=True)
class Format:
    """One file format: whether a path looks like it, which splits it has, and its reader.

    `named` is the reader with a class list in place of the folder's own, for masks whose ids a joined file explains; None where label files hold names.
    """

    recognises: Callable[[Path], bool]
    splits: Callable[[Path], Iterable[str]]
    read: Callable[[Path, str | None], Dataset]
    named: Callable[[Path, str | None, Classes], Dataset] | None = None


# In the order in which a folder is tried: the most telling layout first.
FORMATS: dict[str, Format] = {
    "joined": Format(joined.recognises, joined.splits, joined.read),
    "voc": Format(voc.recognises, voc.splits, voc.read, voc.read),
    "yolo": Format(yolo.recognises, yolo.splits, yolo.read),
    "coco": Format(coco.recognises, coco.splits, coco.read),
    "folders": Format(folders.recognises, folders.splits, folders.read, folders.read),
    "tags": Format(tags.recognises, tags.splits, tags.read),
}
_SHARE = re.compile(r"(?P<name>[^\[\]]+)\[(?:(?P<low>\d+(?:\.\d+)?)%)?:(?:(?P<high>\d+(?:\.\d+)?)%)?\]")
_LAYOUTS = "VOC (JPEGImages/), COCO (*.json), YOLO (data.yaml), paired folders (images/ + masks/) or images + tags.csv"


def load_dataset(path: str | Path, split: str | None = None, *, format: str | None = None, skip_bad: bool = False) -> Dataset:
    """Reads the labels and image headers of a data set; no pixel is decoded yet.

    Args:
        path: a folder (Pascal VOC, COCO, YOLO, paired folders, images + tags.csv; recognised by its layout), a COCO JSON file,
            or a YAML file (YOLO's `data.yaml`, or one that joins several sources).
        split: "train", "val" or whatever the data set has; "a+b" reads two; None reads all. A share of the images may stand behind it, "train[:20%]" and
            "train[20%:]", or "all[20%:]" of a data set without splits: which images these are depends on their ids alone.
        format: a key of `FORMATS` when the layout is ambiguous.
        skip_bad: go on without the samples at fault; `Dataset.problems` lists what was wrong with them.

    Returns:
        The data set, samples sorted by id.

    Raises:
        DataError: samples at fault, one line each with file, place and remedy (unless `skip_bad`).
        MixsupError: no such folder or split, an unknown layout, or nothing left to use.
    """
    dataset = read_format(Path(path), split, format)
    if dataset.problems and not skip_bad:
        raise DataError(dataset.problems)
    if not dataset.samples:
        what = f"split {split!r} is empty" if split else "no image in it"
        bad = f" ({len(dataset.problems)} problems; `mixsup inspect {path}` lists them)" if dataset.problems else ""
        raise MixsupError(f"{path}: {what}{bad}; check the split list and the image folder")
    return dataset


def read_format(path: Path, split: str | None, format: str | None, classes: Classes | None = None) -> Dataset:
    """Reads a data set and keeps its faults in `Dataset.problems`; with `classes` in place of its own list, where the format has mask files."""
    with _readable(path):
        chosen = _format(path, format)
        own = list(chosen.splits(path))
        share = _SHARE.fullmatch(split) if split is not None and split not in own else None
        name = share["name"].strip() if share else split
        whole = name is None or (share is not None and name == "all" and "all" not in own)
        wanted = None if whole or name is None else _own_names(name, own)
        if classes is None:
            dataset = chosen.read(path, wanted)
        elif chosen.named is not None:
            dataset = chosen.named(path, wanted, classes)
        else:
            raise MixsupError(f"{path}: ids are those of mask files, and this format names its classes itself; leave them out")
    return _part(dataset, float(share["low"] or 0) / 100, float(share["high"] or 100) / 100) if share else dataset


def _part(dataset: Dataset, low: float, high: float) -> Dataset:
    """The images, and their faults, whose ids fall between two shares of all that there could be: it does not matter which others are there."""
    if not 0 <= low < high <= 1:
        raise MixsupError(f"{dataset.source}: no images between {low:.0%} and {high:.0%}; write shares as train[20%:] and train[:20%]")

    def inside(key: str) -> bool:
        place = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=6).digest()
        return low <= int.from_bytes(place, "big") / 2**48 < high

    return replace(
        dataset,
        samples=[sample for sample in dataset.samples if inside(sample.id)],
        problems=[problem for problem in dataset.problems if not problem.sample or inside(problem.sample)],
    )


def format_splits(path: Path, format: str | None = None) -> list[str]:
    """The splits that a data set has, by every name that can be asked for."""
    with _readable(path):
        own = list(_format(path, format).splits(path))
        return list(dict.fromkeys([*own, *map(common_name, own)]))


def _own_names(split: str, own: list[str]) -> str:
    """What was asked for ("train+val") by the data set's own names ("training+Val"); a name that it does not have stays for its reader to refuse."""
    parts = [part.strip() for part in split.split("+")]
    return "+".join(part if part in own else next((name for name in own if common_name(name) == part), part) for part in parts)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a folder without permission, a name that is too long, a disk that fails
        raise MixsupError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error


def _format(path: Path, name: str | None) -> Format:
    if not path.exists():
        raise MixsupError(f"{path}: no such file or folder; check the path")
    if name is not None:
        if name not in FORMATS:
            raise MixsupError(f"no data format {name!r}; there are {', '.join(FORMATS)}; choose one")
        return FORMATS[name]
    if path.is_file():
        if path.suffix.lower() == ".json":
            return FORMATS["coco"]
        if path.suffix.lower() in (".yaml", ".yml"):
            return FORMATS["joined"] if joined.recognises(path) else FORMATS["yolo"]
        raise MixsupError(f"{path}: neither a folder nor a YAML or COCO JSON file; give the data set's folder")
    for candidate in FORMATS.values():
        if candidate.recognises(path):
            return candidate
    raise MixsupError(f"{path}: no known layout{_looks_like(path)}; mixsup reads {_LAYOUTS}, see docs/data.md")


def _looks_like(root: Path) -> str:
    """What an unknown layout may be, and what makes a known one of it; nothing where that cannot be told."""
    images = images_below(root)
    beside = {path.suffix.lower() for path in root.iterdir() if path.stem in images}
    drawn = next((path for path in sorted(root.rglob("*.json")) if is_file(path)), None)
    if drawn is not None:
        with suppress(MixsupError, OSError), drawn.open("rb") as file:
            if b'"shapes"' in file.read(1 << 20):
                return f" ({drawn.relative_to(root)} looks like LabelMe's, which is not read: convert the files to COCO, as `labelme2coco` does)"
    if ".xml" in beside:
        return " (XML files beside images: if they are Pascal VOC's, move them into Annotations/ and the images into JPEGImages/)"
    if ".txt" in beside:
        return " (text files beside images: if they are YOLO's, write a data.yaml with `names: [...]` and `train: .`)"
    return ""
