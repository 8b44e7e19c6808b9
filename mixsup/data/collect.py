"""What every reader needs: a place to put the faults that it meets, and the checks that all formats share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixsup.data.image import EXTENSIONS, ImageError, image_size
from mixsup.data.sample import BACKGROUND, BACKGROUND_NAMES, Classes, Dataset, MaskSegments, Sample, plain, quoted
from mixsup.data.segments import is_rectangle, slack
from mixsup.errors import MixsupError, Problem
from mixsup.files import inside, too_long

LEAST_RECTANGLES = 10  # so many outlines, all of them upright rectangles, are no chance
LABELMAP = "labelmap.txt"
LEAVE_OUT = "correct it, or leave the image out with --skip-bad"


class Collector:
    """Gathers samples and problems while a reader walks through its files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.samples: dict[str, Sample] = {}
        self.notes: list[str] = []
        self._bad: set[str] = set()

    def problem(self, file: Path | str, place: str, message: str, remedy: str = LEAVE_OUT, sample: str = "") -> None:
        """Notes a fault; a `sample` named here is left out of the data set."""
        self.problems.append(Problem(str(file), place, message, remedy, sample))
        if sample:
            self._bad.add(sample)

    def size(self, sample: str, image: Path) -> tuple[int, int] | None:
        """The upright (height, width) of an image, or None after noting why it has none."""
        try:
            return image_size(image)
        except ImageError as error:
            message, _, remedy = str(error).rpartition("; ")
            self.problem(image, "", message, remedy, sample)
            return None

    def path(self, file: Path, place: str, name: str, sample: str) -> Path | None:
        """Joins a name from a label file to the data folder, or None after noting that it leaves it."""
        path = inside(self.root, name)
        if path is None:
            self.problem(file, place, f"{quoted(name)} leaves the data folder", "name a file inside it", sample)
        return path

    def box(self, file: Path, place: str, xyxy: Sequence[float], size: tuple[int, int], sample: str) -> tuple[float, ...] | None:
        """A box cut to its image, or None after noting what is wrong with it."""
        fault = box_fault(xyxy, size)
        if fault:
            self.problem(file, place, fault, LEAVE_OUT, sample)
            return None
        return clip_box(xyxy, size)

    def declared_size(self, file: Path, sample: str, declared: tuple[int, int], actual: tuple[int, int]) -> None:
        """Notes labels that were drawn on a picture of another size than the one that is here."""
        if declared == actual or min(declared) <= 0:
            return
        said, found = (f"{width} x {height}" for height, width in (declared, actual))
        if declared == actual[::-1]:
            message = f"labels are for {said} pixels but the upright image has {found}: they were drawn before its EXIF rotation"
            self.problem(file, "", message, "rotate the labels, or strip the EXIF tag", sample)
        else:
            self.problem(file, "", f"labels are for {said} pixels but the image has {found}", "bring the image that was labelled", sample)

    def add(self, sample: Sample, file: Path | str, place: str = "") -> None:
        """Adds a sample; a second one of the same id is a fault, and so is an id that no file could be called by."""
        if not plain(sample.id):
            self.problem(file, place, f"image id {quoted(sample.id)} holds control characters", "rename the image", sample.id)
        elif too_long(sample.id):
            self.problem(file, place, f"image id {quoted(sample.id)} is too long to name files by", "rename the image", sample.id)
        elif sample.id in self.samples:
            self.problem(file, place, f"image id {quoted(sample.id)} occurs twice", "remove or rename one of them", sample.id)
        else:
            self.samples[sample.id] = sample

    def rectangles(self, file: Path, ids: Iterable[str]) -> None:
        """Takes the masks from the samples of a file whose outlines are boxes drawn as polygons: as masks they would be wrong at every rim. Where all outlines
        of the file are such, those without any have none either."""
        mine = [self.samples[key] for key in ids if key in self.samples]
        alike = {
            sample.id: [
                is_rectangle(segment, box, sample.size)
                for segment, box in zip(sample.mask.segments, sample.boxes.xyxy, strict=False)  # a sample at fault may lack boxes
            ]
            for sample in mine
            if isinstance(sample.mask, MaskSegments) and sample.boxes is not None
        }
        every = [one for found in alike.values() for one in found]
        if sum(every) < LEAST_RECTANGLES:
            return
        boxed = [sample for sample in mine if all(every) or (alike.get(sample.id) and all(alike[sample.id]))]
        if not boxed:
            return
        self.samples |= {sample.id: replace(sample, mask=None) for sample in boxed}
        what = f"each of its {len(every)} outlines" if all(every) else f"each outline of {len(boxed)} of its {len(mine)} images"
        self.notes.append(f"{file}: {what} is an upright rectangle, so they are taken for boxes and not for masks")

    def look_at_names(
        self, images: Path, masks: Path | None = None, mask_of: Callable[[str], Iterable[str]] = lambda name: (name,)
    ) -> None:
        """Notes images that no one reads, because another of the same name comes first, and masks that go with no image.

        Args:
            images, masks: folders.
            mask_of: names, without extension, that the mask of an image may have.

        Raises:
            MixsupError: there are masks, and none of them goes with an image.
        """
        files = _images(images)
        first = _by_name(files)
        if len(files) > len(first):
            other = next(path for path in files if first[path.stem] != path)
            self.notes.append(
                f"{images}: {len(files) - len(first)} of {len(files)} images are called like another but for the ending, as {quoted(other.name)}; "
                "they are not read"
            )
        made = masks_below(masks) if masks is not None and first else {}
        lonely = sorted(made.keys() - {name for image in first for name in mask_of(image)})
        if lonely and len(lonely) == len(made):
            raise MixsupError(
                f"{masks}: none of its {len(made)} masks is called like an image; {quoted(made[lonely[0]].name)} would be that of "
                f"{quoted(lonely[0])}, and there is {quoted(next(iter(first.values())).name)}; rename them"
            )
        if lonely:
            self.notes.append(
                f"{masks}: {len(lonely)} of {len(made)} masks go with no image, as {quoted(made[lonely[0]].name)}; they are not read"
            )

    def dataset(self, classes: Classes, source: Path) -> Dataset:
        """All samples without a fault, sorted by id."""
        good = [self.samples[key] for key in sorted(self.samples) if key not in self._bad]
        self.notes += case_notes(classes, source)
        return Dataset(classes=classes, samples=good, problems=self.problems, source=str(source), notes=tuple(self.notes))


def case_notes(classes: Classes, source: Path | str) -> list[str]:
    """A note on each group of classes whose names differ in upper and lower case alone."""
    by_letters: dict[str, list[str]] = {}
    for name in classes.names:
        by_letters.setdefault(name.casefold(), []).append(name)
    return [
        f"{source}: classes {', '.join(map(quoted, names))} differ in upper and lower case alone; if they are one, `rename` joins them (docs/data.md)"
        for names in by_letters.values()
        if len(names) > 1
    ]


def box_fault(xyxy: Sequence[float], size: tuple[int, int]) -> str:
    """What is wrong with a box (x0, y0, x1, y1) in an image of `size` (H, W); "" when nothing is.

    Annotation tools round: a box may reach past its image by 2 pixels or 0.5 % of the side, and is cut there.
    """
    if len(xyxy) != 4 or not all(math.isfinite(value) for value in xyxy):
        return f"box {_numbers(xyxy)} is not four finite numbers"
    x0, y0, x1, y1 = xyxy
    height, width = size
    if x1 < x0 or y1 < y0:
        return f"box {_numbers(xyxy)} is inverted (x0, y0, x1, y1 must grow)"
    if x1 == x0 or y1 == y0:
        return f"box {_numbers(xyxy)} has no area"
    slack_x, slack_y = slack(width), slack(height)
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return f"box {_numbers(xyxy)} lies outside its image of {width} x {height} pixels"
    if x0 < -slack_x or y0 < -slack_y or x1 > width + slack_x or y1 > height + slack_y:
        return f"box {_numbers(xyxy)} reaches out of its image of {width} x {height} pixels"
    left, top, right, bottom = np.asarray(clip_box(xyxy, size), np.float32)
    if left >= right or top >= bottom:  # boxes are kept as float32
        return f"box {_numbers(xyxy)} has no area"
    return ""


def clip_box(xyxy: Sequence[float], size: tuple[int, int]) -> tuple[float, ...]:
    """A box cut to its image."""
    height, width = size
    x0, y0, x1, y1 = xyxy
    return (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def number(text: object) -> float:
    """A number from a label file; NaN for whatever is none, which the box check then names."""
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        return math.nan
    try:
        return float(text)
    except (ValueError, OverflowError):
        return math.nan


def is_file(path: Path) -> bool:
    """Whether a regular file is there; False too for a name that no file system takes (too long, no permission)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def images_below(folder: Path) -> dict[str, Path]:
    """Image files directly in a folder, by name without extension; of several equal names the first in order."""
    return _by_name(_images(folder))


def masks_below(folder: Path) -> dict[str, Path]:
    """The same for masks: of several equal names the one whose format keeps class ids (previews lie beside masks)."""
    return _by_name(sorted(_images(folder), key=lambda path: path.suffix.lower() in (".jpg", ".jpeg")))


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(path.stem, path)
    return found


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")]


def read_text(path: Path) -> str:
    """A text file as UTF-8 (a byte order mark is dropped).

    Raises:
        MixsupError: it cannot be opened or is no text.
    """
    if not is_file(path):  # a pipe would be waited for without end
        raise MixsupError(f"{path}: no such file, or not a regular one; check the path")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise MixsupError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise MixsupError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def class_list(root: Path) -> Classes | None:
    """The class list of a folder: `labels.txt` or `classes.txt`, a name a line, background first or left out; or CVAT's `labelmap.txt`."""
    for name in ("labels.txt", "classes.txt"):
        if (root / name).is_file():
            names = [line.strip() for line in read_text(root / name).splitlines() if line.strip()]
            if names and names[0].lower() in BACKGROUND_NAMES:
                names = names[1:]
            return make_classes(names, root / name)
    if (root / LABELMAP).is_file():
        return make_classes((name for name, _ in _labelmap(root / LABELMAP) if name.lower() not in BACKGROUND_NAMES), root / LABELMAP)
    return None


def class_colours(root: Path, classes: Classes) -> dict[int, int] | None:
    """Class ids by colour (0xRRGGBB) of a folder with a `labelmap.txt`, in which CVAT says what the colours of its masks mean; None without one.

    Raises:
        MixsupError: a line that cannot be read.
    """
    if not (root / LABELMAP).is_file():
        return None
    found = {0: BACKGROUND}
    for name, colour in _labelmap(root / LABELMAP):
        class_id = BACKGROUND if name.lower() in BACKGROUND_NAMES else classes.id(name)
        if class_id is not None:  # else a mask with this colour is at fault
            found[colour] = class_id
    return found


def _labelmap(path: Path) -> list[tuple[str, int]]:
    """Names and colours of `name:red,green,blue:parts:actions`, in their order."""
    rows: list[tuple[str, int]] = []
    for line_number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colour, *_ = [*line.split(":"), ""]
        parts = [int(part) if part.strip().isdecimal() else 256 for part in colour.split(",")]
        if not name.strip() or len(parts) != 3 or max(parts) > 255:
            raise MixsupError(f"{path}, line {line_number}: no class with its colour; write name:red,green,blue::")
        rows.append((name.strip(), parts[0] << 16 | parts[1] << 8 | parts[2]))
    if len({colour for _, colour in rows}) < len(rows):
        raise MixsupError(f"{path}: two classes have one colour; give each its own")
    return rows


def make_classes(names: Iterable[str], file: Path) -> Classes:
    """A class list that a file gives.

    Raises:
        MixsupError: too many names, one that stands twice, or one that cannot be printed; with the file.
    """
    try:
        return Classes(tuple(names))
    except MixsupError as error:
        raise MixsupError(f"{file}: {error}") from None


def common_name(split: str) -> str:
    """The name under which a split is looked for when nobody names one: `train` or `val` for their other forms (Train, validation), else its own."""
    short = {"training": "train", "valid": "val", "validation": "val"}.get(split.lower(), split.lower())
    return short if short in ("train", "val") else split


def choose_splits(asked: str | None, available: Iterable[str], source: Path) -> list[str] | None:
    """Resolves what `--split` says ("train", "train+tagged") against the splits that a data set has.

    Returns:
        The names, or None when no split was asked for (everything).

    Raises:
        MixsupError: a split that the data set does not have.
    """
    if asked is None:
        return None
    known = list(available)
    names = [name.strip() for name in asked.split("+")]
    for name in names:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has no splits; leave --split out"
            raise MixsupError(f"{source}: no split {quoted(name)}; {has}")
    return names
