"""Saliency maps, and what MCOF section 4.3 does with them: one file a source, `supplement.py` for the method."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from mixsup.errors import MixsupError
from mixsup.saliency.background import Background
from mixsup.saliency.files import Files
from mixsup.saliency.network import Network
from mixsup.saliency.opencv import OpenCV
from mixsup.saliency.source import SaliencySource
from mixsup.saliency.supplement import Refinement, only_class, posterior, supplement

__all__ = ["SALIENCY", "Refinement", "SaliencySource", "build_saliency", "only_class", "posterior", "supplement"]

SALIENCY: dict[str, type[SaliencySource]] = {
    "background": Background,
    "opencv": OpenCV,
    "files": Files,
    "transformers": Network,
}


def build_saliency(name: str, options: dict[str, Any] | None = None) -> SaliencySource:
    """A saliency source by name.

    Args:
        name: a key of `SALIENCY`.
        options: its settings, see the class.

    Raises:
        MixsupError: no such source, or a setting that it does not have or accept.
    """
    if name not in SALIENCY:
        raise MixsupError(f"no saliency source {name!r}; there are {', '.join(SALIENCY)}")
    try:
        return SALIENCY[name](**(options or {}))
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        raise MixsupError(
            f"saliency source {name!r}, setting {setting!r}: {first['msg']}; correct it in `refresh.options.saliency_options`"
        ) from None
