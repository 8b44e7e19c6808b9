"""`ucm` through the contract, and what diverse supervision's section 3.2 promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.source import MaskSource
from mixsup.masks.ucm import UCM
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

    @given(st.integers(0, 2**31))
    @settings(max_examples=40, deadline=None)
    def test_a_region_that_runs_on_outside_is_ground(self, seed: int) -> None:
        """Against the rule in words, on trees of random merges over small superpixels."""
        draw = np.random.default_rng(seed)
        source = UCM(thresholds=(0.3, 0.7), least=0.0)
        labels = np.arange(36, dtype=np.int32).reshape(6, 6).repeat(2, axis=0).repeat(2, axis=1)
        distances = np.full((36, 36), np.inf, np.float32)
        np.fill_diagonal(distances, 0)
        parts = [[part] for part in range(36)]
        for height in np.sort(draw.random(35)).astype(np.float32):
            one, two = (parts.pop(int(draw.integers(len(parts)))) for _ in range(2))
            distances[np.ix_(one, two)] = height
            distances[np.ix_(two, one)] = height
            parts.append(one + two)
        window = labels[2:9, 1:10]
        found = source._fill(window, distances, np.bincount(labels.ravel()).astype(np.float32))

        here = np.unique(window)
        scales = []
        rim_y, rim_x = int(7 * (1 - source.inner) / 2), int(9 * (1 - source.inner) / 2)
        central = window[rim_y : 7 - rim_y, rim_x : 9 - rim_x]
        for threshold in source.thresholds:
            near = threshold * distances[np.ix_(here, here)].max()
            regions = {frozenset(np.flatnonzero(distances[part] <= near)) for part in here}
            middle = {region: int(np.isin(central, list(region)).sum()) for region in regions}
            share = {region: np.isin(window, list(region)).sum() / np.isin(labels, list(region)).sum() for region in regions}
            chosen = [region for region in regions if middle[region] and share[region] >= source.closed]
            scales.append(np.isin(window, [part for region in chosen for part in region]))
        if all(mask.any() for mask in scales):  # otherwise one that fills the centre is taken all the same
            wanted = source.alpha * window.size
            any_scale = scales[0] | scales[1]
            confident = next((mask for mask in scales if mask.sum() >= wanted), any_scale)
            assert np.array_equal(found == 1, confident)
            assert np.array_equal(found != 0, any_scale)

    def test_settings_are_checked(self) -> None:
        for options in ({"thresholds": []}, {"thresholds": [1.5]}, {"alpha": 2.0}):
            with pytest.raises(MixsupError, match="ucm"):
                build_source("ucm", options)
