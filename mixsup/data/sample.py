"""What one image and its labels look like once they are read, whatever file format they came from."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from mixsup.errors import MixsupError, Problem

LabelKind = Literal["masks", "boxes", "tags"]
KINDS: tuple[LabelKind, ...] = ("masks", "boxes", "tags")  # strongest first
VOID = 255  # pixel id that is charged nowhere
BACKGROUND = 0
MAX_CLASSES = 254  # ids 1..254 are objects, 0 is background, 255 is void: a mask is one byte a pixel

BACKGROUND_NAMES = frozenset({"background", "__background__", "_background_"})

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def plain(text: str) -> bool:
    """Whether a name can stand in a list, a CSV file or a file name: not empty, no control characters, line breaks or half code points."""
    return bool(text.strip()) and not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def quoted(value: object, limit: int = 80) -> str:
    """A value of a data set's making for a message: quoted, on one line, and cut where it would fill the screen."""
    if value is not None and not isinstance(value, (str, int, float)):
        return f"a {type(value).__name__}"
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image.

    Attributes:
        xyxy: N×4 float32, left, top, right, bottom in pixels of the upright image; edges, so that a box of one pixel
            at the origin is (0, 0, 1, 1). Always inside the image, width and height above 0.
        classes: N int64, class ids from 1; 0 for a crowd that is of no class (one that a joined data set ignores).
        crowd: N bool; a crowd region (COCO's iscrowd) is void: it neither teaches its class nor background.
    """

    xyxy: Float32
    classes: Int64
    crowd: Bool

    def __len__(self) -> int:
        return len(self.classes)

    @staticmethod
    def of(rows: Sequence[tuple[Sequence[float], int, bool]]) -> Boxes:
        """Builds boxes from rows of ((x0, y0, x1, y1), class id, crowd)."""
        return Boxes(
            xyxy=np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
            classes=np.array([row[1] for row in rows], np.int64),
            crowd=np.array([row[2] for row in rows], bool),
        )

    def windows(self, size: tuple[int, int]) -> Int64:
        """N×4 int64, the smallest whole-pixel windows that cover the boxes, inside an image of `size` (H, W)."""
        height, width = size
        edges = np.concatenate([np.floor(self.xyxy[:, :2] + 1e-3), np.ceil(self.xyxy[:, 2:] - 1e-3)], axis=1).astype(np.int64)
        limit = np.array([width, height, width, height])
        edges = np.clip(edges, 0, limit)
        # A sliver thinner than the rounding above still covers one pixel.
        edges[:, :2] = np.minimum(edges[:, :2], limit[2:] - 1)
        edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
        return edges


@dataclass(frozen=True)
class MaskFile:
    """A mask that lies in an image file of class ids (palette or grey PNG), or of colours.

    `ids` translates the file's ids to the data set's; an id that is not a key is a fault of the file. None keeps
    ids as they are. `colours` (0xRRGGBB) are the file's ids, where its pixels are colours.
    """

    path: Path
    ids: dict[int, int] | None = None
    colours: dict[int, int] | None = None


@dataclass(frozen=True)
class Segment:
    """One object's outline: polygons (each flat float32 x0, y0, x1, y1, ... in pixels) or a run-length code."""

    class_id: int
    polygons: tuple[Float32, ...] = ()
    rle: str | tuple[int, ...] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class MaskSegments:
    """A mask that is kept as the outlines of its objects and painted when it is asked for."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Sample:
    """One image with the labels that it has. Nothing of the image itself is in memory.

    Attributes:
        id: unique in its data set; file names of results come from it.
        image: path of the image file.
        size: (height, width) of the upright image in pixels.
        tags: ids of the object classes in the image, or None when nobody said.
        boxes: boxes, or None when nobody drew any (an empty `Boxes` says "looked, found none").
        mask: where the class of each pixel is found, or None.
        label: the kind that training may look at; a budget sets it, until then it is the strongest present.
        known: ids of the object classes that were looked for in this image, None for all. An object of another class is background in its labels.
    """

    id: str
    image: Path
    size: tuple[int, int]
    tags: frozenset[int] | None = None
    boxes: Boxes | None = None
    mask: MaskFile | MaskSegments | None = None
    label: LabelKind | None = None
    known: frozenset[int] | None = None

    def unknown(self, num_classes: int) -> Bool:
        """C bool: the classes that nobody looked for in this image; never the background."""
        flags = np.full(num_classes, self.known is not None)
        flags[[BACKGROUND, *sorted(self.known or ())]] = False
        return flags

    def kinds(self) -> tuple[LabelKind, ...]:
        """The kinds of label that this image can give, strongest first; weaker ones follow from stronger ones."""
        if self.mask is not None:
            return KINDS
        if self.boxes is not None:
            return KINDS[1:]
        return KINDS[2:] if self.tags is not None else ()


@dataclass(frozen=True)
class Classes:
    """The class list. Id 0 is background; object classes follow from 1 in the order of `names`."""

    names: tuple[str, ...]  # object classes only

    def __post_init__(self) -> None:
        for name in self.names:
            if not plain(name):
                raise MixsupError(
                    f"class name {quoted(name)} is empty or holds control characters; give the class a name that can be printed"
                )
            if name.lower() in BACKGROUND_NAMES:
                raise MixsupError(f"{name!r} cannot be an object class; leave it out, class 0 is always the background")
        if len(self.names) > MAX_CLASSES:
            raise MixsupError(f"{len(self.names)} classes, but a mask holds at most {MAX_CLASSES}; merge or drop some in a YAML file")
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise MixsupError(f"class {quoted(min(twice))} stands twice in the class list; remove one")

    def __len__(self) -> int:
        """Number of score channels, background included."""
        return len(self.names) + 1

    def id(self, name: str) -> int | None:
        """The id of a class name, or None."""
        return self._ids.get(name)

    @property
    def _ids(self) -> dict[str, int]:
        ids: dict[str, int] | None = self.__dict__.get("_lookup")
        if ids is None:
            ids = {"background": 0, **{name: index for index, name in enumerate(self.names, 1)}}
            object.__setattr__(self, "_lookup", ids)
        return ids

    def all(self) -> tuple[str, ...]:
        """Names by id, background first."""
        return ("background", *self.names)

    def lines(self) -> str:
        """The text of a `labels.txt`: the same, a name a line."""
        return "\n".join(self.all()) + "\n"


@dataclass
class Dataset:
    """Samples under one class list, and what was wrong with the ones that could not be read.

    Attributes:
        classes: the class list.
        samples: sorted by id.
        problems: faults found so far; a sample at fault is not in `samples`.
        source: what the user typed, for messages.
        notes: sentences on how labels were taken where that is no fault, but not what one would expect.
    """

    classes: Classes
    samples: list[Sample]
    problems: list[Problem] = field(default_factory=list)
    source: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def with_samples(self, samples: list[Sample]) -> Dataset:
        """The same data set with other samples."""
        return replace(self, samples=samples)

    def refuse_results(self, paths: Iterable[Path]) -> None:
        """Refuses files to be written among the data set's own, where they would take the place of images and labels, or be read as such.

        Raises:
            MixsupError: one lies in the data set's folder itself or in one with its images or masks, or it is the file that describes the data set.
        """
        paths, place = set(paths), Path(self.source).resolve()
        files = {path for sample in self.samples for path in (sample.image, getattr(sample.mask, "path", None)) if path is not None}
        own = {folder.resolve() for folder in {path.parent for path in files}} | {place}
        described = {path.parent for path in paths if path.name == place.name and path.resolve() == place}
        for folder in sorted({path.parent for path in paths}):
            if folder in described or folder.resolve() in own:
                raise MixsupError(
                    f"{folder}: holds files of the data set {self.source}, which results would be mixed with; give another --out"
                )
