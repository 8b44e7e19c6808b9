"""The choice of a saliency source, as a part of the settings of whatever uses one."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import Sample
from mixsup.masks.source import STRICT
from mixsup.saliency import SaliencySource, build_saliency


@dataclass(frozen=True, config=STRICT)
class WithSaliency:
    """Settings that name a saliency source.

    Attributes:
        saliency: a key of `mixsup.saliency.SALIENCY`, or `none`.
        saliency_options: its settings.
        place: where a user writes those, for messages.
    """

    saliency: str = "background"
    saliency_options: dict[str, Any] = Field(default_factory=dict)
    place: ClassVar[str]

    def source(self) -> SaliencySource | None:
        """The saliency source; None without.

        Raises:
            MixsupError: no such source, or a setting that it does not have or accept.
        """
        return None if self.saliency == "none" else build_saliency(self.saliency, self.saliency_options, self.place)

    def check(self) -> None:
        """Asks whether saliency maps can be made at all, once before training.

        Raises:
            MixsupError: see `source` and `SaliencySource.check`.
        """
        source = self.source()
        if source is not None:
            source.check()

    def look(self, sample: Sample) -> None:
        """Asks, before training, whether a sample can have a saliency map.

        Raises:
            MixsupError: see `SaliencySource.look`.
        """
        source = self.source()
        if source is not None:
            source.look(sample)
