"""Labels -> first masks, before any network has learned: one file a source."""

from __future__ import annotations

from typing import Any

from mixsup.masks.box_masks import BoxMasks, compose, compose_shared
from mixsup.masks.crf import BoxCRF
from mixsup.masks.files import Files
from mixsup.masks.geodesic import Geodesic
from mixsup.masks.grabcut import GrabCut
from mixsup.masks.grabcut_plus import GrabCutPlus
from mixsup.masks.mcg import MCG
from mixsup.masks.mcg_grabcut import MCGGrabCut
from mixsup.masks.rectangle import Rectangle
from mixsup.masks.sam import SAM
from mixsup.masks.selective_search import SelectiveSearch
from mixsup.masks.source import MaskSource
from mixsup.masks.tight import Tight
from mixsup.masks.ucm import UCM
from mixsup.named import named, no_class_of
from mixsup.settings import checked

__all__ = ["SOURCES", "BoxMasks", "MaskSource", "build_source", "compose", "compose_shared"]

SOURCES: dict[str, type[MaskSource]] = {
    "rectangle": Rectangle,
    "grabcut": GrabCut,
    "crf": BoxCRF,
    "tight": Tight,
    "ucm": UCM,
    "mcg": MCG,
    "selective-search": SelectiveSearch,
    "geodesic": Geodesic,
    "grabcut-plus": GrabCutPlus,
    "mcg-grabcut": MCGGrabCut,
    "sam": SAM,
    "files": Files,
}


def build_source(name: str, options: dict[str, Any] | None = None, place: str = "masks.options") -> MaskSource:
    """A mask source by name.

    Args:
        name: a key of `SOURCES`, or `module:Class` of a source of your own.
        options: its settings, see the class.
        place: where a user writes those, for messages.

    Raises:
        MixsupError: no such source, or a setting that it does not have or accept.
    """
    source: type[MaskSource] = named(name, SOURCES, "mask source", no_class_of(MaskSource))
    with checked(f"mask source {name!r}", source, place):
        return source(**(options or {}))
