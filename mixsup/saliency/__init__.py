"""Saliency maps, and what MCOF section 4.3 does with them: one file a source, `supplement.py` for the method."""

from __future__ import annotations

from typing import Any

from mixsup.named import named, no_class_of
from mixsup.saliency.background import Background
from mixsup.saliency.files import Files
from mixsup.saliency.network import Network
from mixsup.saliency.opencv import OpenCV
from mixsup.saliency.source import SaliencySource
from mixsup.saliency.supplement import Refinement, only_class, posterior, supplement
from mixsup.settings import checked

__all__ = ["SALIENCY", "Refinement", "SaliencySource", "build_saliency", "only_class", "posterior", "supplement"]

SALIENCY: dict[str, type[SaliencySource]] = {
    "background": Background,
    "opencv": OpenCV,
    "files": Files,
    "transformers": Network,
}


def build_saliency(name: str, options: dict[str, Any] | None = None, place: str = "saliency_options") -> SaliencySource:
    """A saliency source by name.

    Args:
        name: a key of `SALIENCY`, or `module:Class` of a source of your own.
        options: its settings, see the class.
        place: where a user writes those, for messages.

    Raises:
        MixsupError: no such source, or a setting that it does not have or accept.
    """
    source: type[SaliencySource] = named(name, SALIENCY, "saliency source", no_class_of(SaliencySource))
    with checked(f"saliency source {name!r}", source, place):
        return source(**(options or {}))
