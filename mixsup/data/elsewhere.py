"""Images that a label file names by another path than they have here."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mixsup.data.collect import common_name, is_file
from mixsup.data.image import EXTENSIONS


class Elsewhere:
    """Images that a file names by another path than they have here: in other letters (.JPG for .jpg; é as one sign or as two, as macOS packs it; %20 for
    a blank), or with the folders of the machine that they were labelled on.

    Args:
        root: of the data set, a folder or a file in one.
        folders: where its images should lie.
        splits: of the data set. In other folders that are called like one nothing is looked for: the pictures may be called the same.
        names: all that the file names.

    Attributes:
        found: the names that were asked for, and where the images were.
    """

    def __init__(self, root: Path, folders: list[Path], splits: set[str], names: list[Any]) -> None:
        self.root, self.folders, self.splits, self.names = root, folders, splits, names
        self.found: list[tuple[str, Path]] = []

    def __call__(self, name: str) -> Path | None:
        """The only image that `name` can mean, where no other name can mean it; else None."""
        images = self._images.get(_alike(name), [])
        if len(images) != 1 or self._asked[_alike(name)] != 1 or not is_file(images[0]):
            return None
        self.found.append((name, images[0]))
        return images[0]

    @cached_property
    def _asked(self) -> Counter[str]:
        return Counter(_alike(name) for name in self.names if isinstance(name, str))

    @cached_property
    def _images(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for folder in dict.fromkeys([*self.folders, *self._beside()]):
            for image in sorted(folder.iterdir()):
                if image.suffix.lower() in EXTENSIONS:
                    found[_alike(image.name)].append(image)
        return found

    def _beside(self) -> list[Path]:
        """Other folders of the data set."""
        base = self.root.parent if self.root.is_file() else self.root
        names = {name.lower() for name in self.splits} | {"train", "val", "test"}
        return [folder for folder in sorted(base.iterdir()) if folder.is_dir() and common_name(folder.name).lower() not in names]


def _alike(name: str) -> str:
    """What names of one file have in common: the last part of the path, whatever its letters."""
    return unicodedata.normalize("NFC", unquote(re.split(r"[/\\]", name)[-1])).casefold()
