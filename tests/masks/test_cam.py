"""Seeds from class activation maps: the rule against the paper's words, and a threshold that no true mask has chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mixsup.data.sample import BACKGROUND, Float32
from mixsup.masks.cam import CAM, otsu, region_means, scaled
from mixsup.masks.superpixels import Regions, Superpixels, enlarge

MAPS = arrays.arrays(np.float32, (3, 6, 8), elements=st.floats(-4, 4, width=16))
REGIONS = arrays.arrays(np.uint16, (6, 8), elements=st.integers(0, 9))


def compact(regions: Regions) -> Regions:
    return np.unique(regions, return_inverse=True)[1].reshape(regions.shape).astype(np.uint16)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=12))
def test_otsu(values: list[tuple[int, int]]) -> None:
    """No threshold between two values leaves less variance within the groups, counted pixel by pixel."""
    means, weights = np.array([value / 50 for value, _ in values], np.float32), np.array([weight for _, weight in values])
    pixels = np.repeat(means.astype(np.float64), weights)

    def within(threshold: float) -> float:
        return sum(((part - part.mean()) ** 2).sum() for part in (pixels[pixels <= threshold], pixels[pixels > threshold]) if len(part))

    found = otsu(means, weights)
    if len(set(means)) == 1:
        assert found == pytest.approx(means[0])
        return
    assert within(found) <= min(within(value) for value in sorted(set(pixels))[:-1]) + 1e-9


@settings(max_examples=60, deadline=None)
@given(maps=MAPS, regions=REGIONS)
def test_region_means(maps: Float32, regions: Regions) -> None:
    regions = compact(regions)
    found = region_means(maps, regions)
    for place, one in enumerate(maps):
        for region in range(int(regions.max()) + 1):
            assert found[place, region] == pytest.approx(float(one[regions == region].astype(np.float64).mean()), abs=1e-5)


def slow_seeds(cam: CAM, maps: Float32, classes: list[int], regions: Regions, saliency: Float32 | None) -> list[int]:
    """Section 4.1 and what the module adds to it, written out region by region."""
    count, areas = int(regions.max()) + 1, np.bincount(regions.ravel())
    heat = scaled(np.stack([one - one.mean() if cam.centred else one for one in maps]))
    means = region_means(heat, regions)
    labels, quiet = [BACKGROUND] * count, [False] * count
    for region in range(count):
        above = []
        for place in range(len(classes)):
            if means[place, region] > (otsu(means[place], areas) if cam.threshold == "otsu" else float(cam.threshold)):
                above.append(place)
        if above:
            labels[region] = classes[max(above, key=lambda place: (means[place, region], -place))]
        if saliency is not None:
            salience = region_means(saliency[None], regions)[0]
            middle = otsu(salience, areas)
            quiet[region] = middle > 0 and salience[region] <= cam.ground * middle
            labels[region] = BACKGROUND if quiet[region] else labels[region]
    taken: list[int] = []
    for place in sorted(range(len(classes)), key=lambda place: (-means[place].max(), place)):
        free = [region for region in range(count) if region not in taken]
        if free:
            threshold = otsu(means[place], areas) if cam.threshold == "otsu" else float(cam.threshold)
            peak = min(free, key=lambda region: (quiet[region] or means[place, region] <= threshold, -means[place, region], region))
            labels[peak] = classes[place]
            taken.append(peak)
    return labels


@settings(max_examples=150, deadline=None)
@given(
    maps=MAPS,
    regions=REGIONS,
    threshold=st.sampled_from(["otsu", 0.0, 0.3, 0.7, 1.0]),
    centred=st.booleans(),
    saliency=st.none() | arrays.arrays(np.float32, (6, 8), elements=st.floats(0, 1, width=16)),
    ground=st.sampled_from([0.0, 0.6, 1.5]),
)
def test_seeds(maps: Float32, regions: Regions, threshold: float | str, centred: bool, saliency: Float32 | None, ground: float) -> None:
    """Every class has a region, a region above a threshold has the class that is highest there, and what is not salient is background."""
    regions, classes = compact(regions), [2, 5, 6]
    cam = CAM(threshold=threshold, centred=centred, ground=ground)  # type: ignore[arg-type]
    labels = cam.seeds(maps, classes, regions, saliency)
    assert labels.dtype == np.uint8
    assert labels.tolist() == slow_seeds(cam, maps, classes, regions, saliency)
    assert len(set(labels.tolist()) - {BACKGROUND}) == min(int(regions.max()) + 1, 3)


def test_a_class_that_is_everywhere_claims_no_more_than_its_share() -> None:
    """The classifier is sure of it at every pixel, as it learns from tags that every image has; a little surer at the object."""
    regions = np.repeat(np.arange(4, dtype=np.uint16), 4).reshape(4, 4)
    everywhere = np.repeat([5.0, 4.6, 4.6, 4.5], 4).reshape(1, 4, 4).astype(np.float32)
    assert CAM(threshold=0.5).seeds(everywhere, [3], regions).tolist() == [3, 0, 0, 0]
    assert CAM(threshold=0.5, centred=False).seeds(everywhere, [3], regions).tolist() == [3, 3, 3, 3]


def test_saliency_that_says_nothing_takes_nothing_away() -> None:
    regions = np.repeat(np.arange(4, dtype=np.uint16), 4).reshape(4, 4)
    maps = np.repeat([1.0, 0.9, 0.0, 0.0], 4).reshape(1, 4, 4).astype(np.float32)
    for flat in (0.0, 1.0):
        assert CAM().seeds(maps, [1], regions, np.full((4, 4), flat, np.float32)).tolist() == [1, 1, 0, 0]
    salient = np.repeat([0.0, 1.0, 0.0, 0.0], 4).reshape(4, 4).astype(np.float32)
    assert CAM().seeds(maps, [1], regions, salient).tolist() == [0, 1, 0, 0]


def test_a_thing_that_is_not_salient_keeps_its_peak() -> None:
    """The boat's map knows one place, on the ground: it is not planted on the person, where its map is 0."""
    regions = np.repeat(np.arange(4, dtype=np.uint16), 4).reshape(4, 4)
    person, boat = np.repeat([1.0, 0.9, 0.0, 0.0], 4), np.repeat([0.0, 0.0, 0.8, 0.1], 4)
    salient = np.repeat([1.0, 1.0, 0.0, 0.0], 4).reshape(4, 4).astype(np.float32)
    assert CAM().seeds(np.stack([person, boat]).reshape(2, 4, 4).astype(np.float32), [1, 2], regions, salient).tolist() == [1, 1, 2, 0]


def test_the_peak_of_each_class_survives() -> None:
    """Two classes see the same place; the weaker one gets the next best region, and not nothing."""
    regions = np.repeat(np.arange(4, dtype=np.uint16), 4).reshape(4, 4)
    maps = np.stack([np.repeat([1.0, 0.0, 0.0, 0.0], 4), np.repeat([0.9, 0.8, 0.0, 0.0], 4)]).reshape(2, 4, 4).astype(np.float32)
    assert CAM().seeds(maps, [1, 2], regions).tolist() == [1, 2, 0, 0]


def test_a_tag_that_nothing_activates() -> None:
    """The classifier does not see it anywhere: where it is least unlikely is its seed."""
    regions = np.repeat(np.arange(4, dtype=np.uint16), 4).reshape(4, 4)
    maps = np.repeat([-3.0, -1.0, -4.0, -4.0], 4).reshape(1, 4, 4).astype(np.float32)
    assert CAM().seeds(maps, [7], regions)[1] == 7
    flat = CAM().seeds(np.full((1, 4, 4), -2, np.float32), [7], regions)
    assert (flat == 7).sum() == 1


def test_images_without_tags_or_with_one_superpixel() -> None:
    regions = np.zeros((5, 5), np.uint16)
    assert CAM().seeds(np.zeros((0, 5, 5), np.float32), [], regions).tolist() == [BACKGROUND]
    assert CAM().seeds(np.ones((1, 5, 5), np.float32), [3], regions).tolist() == [3]
    assert CAM().seeds(np.ones((2, 5, 5), np.float32), [3, 4], regions).tolist() in ([3], [4])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 50), (700, 300)])
def test_superpixels(size: tuple[int, int]) -> None:
    """Numbers without gaps at a bounded size, the same each time; one colour is one region."""
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    regions = Superpixels()(image)
    assert regions.dtype == np.uint16
    assert max(regions.shape) == min(max(size), 500)
    assert set(np.unique(regions)) == set(range(int(regions.max()) + 1))
    assert np.array_equal(regions, Superpixels()(image))
    assert Superpixels()(np.full((*size, 3), 90, np.uint8)).max() == 0
    assert enlarge(regions.astype(np.uint8), size).shape == size


def test_superpixels_follow_edges() -> None:
    image = np.zeros((80, 120, 3), np.uint8)
    image[:, 60:] = (200, 40, 40)
    regions = Superpixels()(image)
    assert set(np.unique(regions[:, :58])).isdisjoint(np.unique(regions[:, 62:]))
