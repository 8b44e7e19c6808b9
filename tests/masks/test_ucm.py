"""`ucm` through the contract, and what diverse supervision's section 3.2 promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.source import MaskSource
from tests.masks.contract import MaskSourceContract, many_boxes, picture


class TestUCM(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("ucm")

    def test_finds_a_disc(self, source: MaskSource, tmp_path: Path) -> None:
        assert self.disc_overlap(source, tmp_path) > 0.9

    def test_confident_masks_take_their_share_or_all_there_is(self, source: MaskSource, tmp_path: Path) -> None:
        boxes = many_boxes((96, 128), 20)
        for mask in self.make(source, picture(96, 128, 5), boxes, tmp_path).masks:
            assert (mask == 1).any()
            assert (mask == 1).mean() >= 0.3 or not (mask == 255).any()

    def test_settings_are_checked(self) -> None:
        for options in ({"thresholds": []}, {"thresholds": [1.5]}, {"alpha": 2.0}):
            with pytest.raises(MixsupError, match="ucm"):
                build_source("ucm", options)
