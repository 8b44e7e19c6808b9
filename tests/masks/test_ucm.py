"""`ucm` through the contract, and what diverse supervision's section 3.2 promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixsup.data.sample import Boxes
from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.source import MaskSource
from tests.masks.contract import MaskSourceContract, many_boxes, picture


class TestUCM(MaskSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> MaskSource:
        return build_source("ucm")

    def test_finds_a_disc(self, source: MaskSource, tmp_path: Path) -> None:
        masks = self.make(source, picture(120, 120), Boxes.of([((18, 18, 102, 102), 1, False)]), tmp_path)
        rows, columns = np.indices((84, 84)) - 42
        disc = rows**2 + columns**2 < 40**2
        found = masks.masks[0] == 1
        assert (found & disc).sum() / (found | disc).sum() > 0.9

    def test_confident_masks_take_their_share_or_all_there_is(self, source: MaskSource, tmp_path: Path) -> None:
        boxes = many_boxes((96, 128), 20)
        for mask in self.make(source, picture(96, 128, 5), boxes, tmp_path).masks:
            assert (mask == 1).any()
            assert (mask == 1).mean() >= 0.3 or not (mask == 255).any()

    def test_settings_are_checked(self) -> None:
        for options in ({"thresholds": []}, {"thresholds": [1.5]}, {"alpha": 2.0}):
            with pytest.raises(MixsupError, match="ucm"):
                build_source("ucm", options)
