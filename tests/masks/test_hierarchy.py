"""Hierarchies: the ultrametric property, counts against slow versions, and images at the edge of what there is."""

from __future__ import annotations

import numpy as np
import pytest

from mixsup.data.sample import UInt8
from mixsup.masks.boundaries import boundary_strength
from mixsup.masks.hierarchy import Tree, Weights, find_regions, resized
from tests.masks.contract import picture


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [Weights(), Weights(size=0, contact=0)])
def test_altitudes_never_decrease_upwards_and_distances_are_an_ultrametric(seed: int, weights: Weights) -> None:
    regions = find_regions(picture(48, 64, seed), regions=60)
    tree = regions.tree(weights)
    assert (tree.altitudes[tree.parents] >= tree.altitudes).all()
    assert (tree.parents[:-1] > np.arange(len(tree.parents) - 1)).all()
    assert (np.bincount(tree.parents[:-1], minlength=len(tree.parents))[tree.leaves :] == 2).all()
    distances = tree.distances()
    assert np.array_equal(distances, distances.T)
    assert (distances[:, :, None] <= np.maximum(distances[:, None, :], distances.T[None]) + 1e-6).all()
    for threshold in np.quantile(tree.altitudes, (0.0, 0.5, 0.9, 1.0)):
        together = tree.cut(float(threshold))
        assert np.array_equal(together[:, None] == together[None], (distances <= threshold) | np.eye(tree.leaves, dtype=bool))


def test_members_and_sums_of_a_small_tree() -> None:
    tree = Tree(np.array([3, 3, 4, 4, 4]), np.array([0, 0, 0, 1, 2], np.float32))
    assert tree.members().astype(int).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert tree.sums(np.array([1.0, 2.0, 4.0])).tolist() == [1, 2, 4, 3, 7]
    assert tree.distances().tolist() == [[0, 1, 2], [1, 0, 2], [2, 2, 0]]


def test_neighbours_against_a_slow_count() -> None:
    regions = find_regions(picture(20, 24), regions=30)
    lengths = np.zeros((len(regions), len(regions)))
    for row in range(20):
        for column in range(24):
            for other in ((row + 1, column), (row, column + 1)):
                if other[0] < 20 and other[1] < 24 and regions.small[row, column] != regions.small[other]:
                    lengths[regions.small[row, column], regions.small[other]] += 1
                    lengths[regions.small[other], regions.small[row, column]] += 1
    assert np.array_equal(regions.lengths, lengths)
    assert regions.areas.sum() == 20 * 24


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 5), (40, 30)])
@pytest.mark.parametrize("plain", [True, False])
def test_tiny_and_plain_images(size: tuple[int, int], plain: bool) -> None:
    image = np.full((*size, 3), 90, np.uint8) if plain else np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    regions = find_regions(image)
    tree = regions.tree()
    assert set(np.unique(regions.labels())) == set(range(len(regions)))
    assert regions.contour_map(tree).shape == size
    assert 0 <= regions.strength.min() <= regions.strength.max() <= 1
    if plain:
        assert len(regions) == 1


def test_a_disc_is_a_region_of_the_tree() -> None:
    image = picture(120, 120)
    regions = find_regions(image)
    rows, columns = np.indices((120, 120)) - 60
    disc = rows**2 + columns**2 < 40**2
    scores = [((inside := node[regions.labels()]) & disc).sum() / (inside | disc).sum() for node in regions.tree().members()]
    assert max(scores) > 0.95
    assert np.array_equal(boundary_strength(image), regions.strength)


def test_a_large_image_is_bounded_and_keeps_every_region() -> None:
    image: UInt8 = np.kron(picture(60, 80), np.ones((30, 30, 1), np.uint8))
    regions = find_regions(image, regions=200, max_side=160)
    assert max(regions.small.shape) == 160
    assert regions.labels().shape == image.shape[:2]
    assert set(np.unique(regions.labels())) == set(range(len(regions)))
    assert resized(regions.small, regions.small.shape) is regions.small


def test_same_image_same_tree() -> None:
    one, two = (find_regions(picture(60, 80), regions=100).tree() for _ in range(2))
    assert np.array_equal(one.parents, two.parents)
    assert np.array_equal(one.altitudes, two.altitudes)
