"""What MCOF's rounds ask for each image, against the paper's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mixsup.data.sample import BACKGROUND, VOID, Float32, Sample, UInt8
from mixsup.losses import Criterion
from mixsup.masks.superpixels import Regions
from mixsup.refresh.mcof import MCOF, Shares, allowed, keep_tagged, object_regions, offsets, predicted_seeds, region_labels

CLASSES = 6
TAGS = st.frozensets(st.integers(1, CLASSES - 1))
LABELS = arrays.arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 0, 1, 2, 3, 4, 5, VOID]))
REGIONS = arrays.arrays(np.uint16, (5, 7), elements=st.integers(0, 5))


@settings(max_examples=60, deadline=None)
@given(scores=arrays.arrays(np.float32, (9, CLASSES), elements=st.floats(-5, 5, width=16)), tags=TAGS)
def test_object_regions(scores: Float32, tags: frozenset[int]) -> None:
    """Section 4.2: what the image is not tagged with becomes background, and nothing else changes."""
    for row, label in zip(scores, object_regions(scores, tags), strict=True):
        best = int(np.argmax(row))
        assert label == (best if best in tags else BACKGROUND)


@settings(max_examples=60, deadline=None)
@given(scores=arrays.arrays(np.float32, (CLASSES, 4, 3), elements=st.floats(-5, 5, width=16)), tags=TAGS)
def test_predicted_seeds(scores: Float32, tags: frozenset[int]) -> None:
    found = predicted_seeds(scores, tags)
    for y in range(4):
        for x in range(3):
            assert found[y, x] == max([BACKGROUND, *sorted(tags)], key=lambda label: (scores[label, y, x], -label))


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, regions=REGIONS)
def test_region_labels(labels: UInt8, regions: Regions) -> None:
    regions = np.unique(regions, return_inverse=True)[1].reshape(regions.shape).astype(np.uint16)
    for region, label in enumerate(region_labels(labels, regions, CLASSES)):
        pixels = labels[regions == region].tolist()
        assert pixels.count(label) == max(pixels.count(other) for other in set(pixels))


@settings(max_examples=100, deadline=None)
@given(found=LABELS, before=LABELS, tags=TAGS, share=st.sampled_from([0.0, 0.2, 1.0]))
def test_a_tagged_class_does_not_vanish(found: UInt8, before: UInt8, tags: frozenset[int], share: float) -> None:
    found = allowed(found, tags)
    result = keep_tagged(found, before, tags, share)
    lost = [tag for tag in tags if (found == tag).sum() < share * (before == tag).sum()]
    assert set(np.unique(result)) <= {*np.unique(found), *lost}
    for tag in tags:
        assert (result == tag).sum() >= (found == tag).sum() or lost
    if not lost:
        assert np.array_equal(result, found)
    taken = np.isin(found, [BACKGROUND, *lost])
    assert np.array_equal(result[~taken], found[~taken])  # classes that stay keep what they have
    if len(lost) == 1:
        assert (result[taken & (before == lost[0])] == lost[0]).all()


def test_allowed_keeps_void() -> None:
    assert allowed(np.array([0, 1, 2, VOID], np.uint8), {2}).tolist() == [0, 0, 2, VOID]


def test_seed_loss() -> None:
    """Eq. 3: the mean of -log f over all locations that are labelled with any class; what is not labelled costs nothing."""
    torch.manual_seed(0)
    scores, target = torch.randn(2, CLASSES, 4, 5), torch.randint(0, CLASSES, (2, 4, 5)).to(torch.uint8)
    target[0, :2] = VOID
    total, count = 0.0, 0
    for image in range(2):
        for y in range(4):
            for x in range(5):
                label = int(target[image, y, x])
                if label != VOID:
                    total -= float(scores[image, :, y, x].softmax(0)[label].log())
                    count += 1
    found = Criterion({"tags": "cross-entropy"})({"scores": scores}, {"target": target, "kind": ["tags", "tags"], "tags": [[1], [2]]})
    assert torch.isclose(torch.stack(list(found.values())).sum(), torch.tensor(total / count), atol=1e-5)


def test_rounds_that_mine() -> None:
    assert [MCOF(mined=1).mines(number) for number in (1, 2, 5)] == [True, False, False]
    assert all(MCOF().mines(number) for number in (1, 5))


def test_saliency_only_for_one_class() -> None:
    """Section 4.3: images of several classes stay as they are."""

    def never(image: UInt8, sample: object) -> Float32:
        raise AssertionError

    labels = np.eye(4, dtype=np.uint8)
    for tags in (frozenset({1, 2}), frozenset[int]()):
        sample = type("S", (), {"tags": tags, "known": None})()
        assert MCOF().refine(np.zeros((4, 4, 3), np.uint8), labels, sample, never) is labels  # type: ignore[arg-type]


@pytest.mark.parametrize("objects", [False, True])
def test_classes_get_the_shares_that_they_are_to_have(objects: bool) -> None:
    """One class is a little ahead everywhere; images are tagged with some classes each."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(4000, CLASSES)).astype(np.float32)
    scores[:, 2] += 3
    for image in range(40):
        scores[100 * image : 100 * image + 100, generator.permutation(np.arange(3, CLASSES))[:1]] = -np.inf
    weights = generator.uniform(1, 3, 4000).astype(np.float32)
    weights /= weights.sum()
    target = np.array([0.6, 0.15, 0.1, 0.08, 0.05, 0.02], np.float32)
    before = np.bincount(scores.argmax(axis=1), weights, CLASSES)
    more = offsets(target, scores, weights, objects)
    after = np.bincount((scores + more).argmax(axis=1), weights, CLASSES)
    wanted = target if not objects else np.append(before[0], target[1:] / 0.4 * (1 - before[0]))
    assert before[2] > 0.5
    np.testing.assert_allclose(after, wanted, atol=0.01)
    assert more[0] == 0


@pytest.mark.parametrize("objects", [False, True])
def test_shares_of_images_are_those_of_all_their_scores(objects: bool) -> None:
    """Each image brings the scores of its own tags; that is the same as those of all classes, -inf for the excluded ones."""
    generator, shares, target, rows, parts = np.random.default_rng(0), Shares(CLASSES), np.zeros(CLASSES), [], []
    for image in range(7):
        tags = frozenset((generator.permutation(CLASSES - 1)[: image % 4] + 1).tolist())
        seeds = generator.choice([BACKGROUND, *tags, VOID], size=(6, 5)).astype(np.uint8)
        scores, weights = generator.normal(size=(50 + image, CLASSES)).astype(np.float32), generator.random(50 + image).astype(np.float32)
        shares.add(seeds, scores, weights / weights.sum(), tags)
        counts = np.bincount(seeds[seeds != VOID], minlength=CLASSES)
        target += counts / counts.sum() / 7
        rows.append(np.where(np.isin(np.arange(CLASSES), [BACKGROUND, *tags]), scores, -np.inf).astype(np.float32))
        parts.append(weights / weights.sum() / 7)
    found = shares.offsets(objects)
    np.testing.assert_allclose(found, offsets(target.astype(np.float32), np.concatenate(rows), np.concatenate(parts), objects), atol=1e-5)
    assert not Shares(CLASSES).offsets(objects).any()


def test_saliency_of_another_size() -> None:
    """A source of one's own may forget the size of the image; for seeds such a map is resized, too."""
    sample = Sample("a", Path("a.png"), (32, 40), tags=frozenset({1}))
    image, labels = np.zeros((32, 40, 3), np.uint8), np.zeros((32, 40), np.uint8)
    image[8:24, 10:30] = 200
    labels[10:20, 12:28] = 1
    whole = np.zeros((32, 40), np.float32)
    whole[8:24, 10:30] = 1
    found = [MCOF().refine(image, labels, sample, lambda image, sample, found=found: found) for found in (whole, whole[::4, ::2])]  # type: ignore[arg-type, misc]
    assert all(np.array_equal(one, np.uint8(whole)) for one in found)


def test_shares_that_cannot_be_had_end() -> None:
    """A class that no image may have stays without pixels, and the others keep theirs."""
    scores = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    scores[:, 2] = -np.inf
    more = offsets(np.array([0.5, 0.2, 0.3], np.float32), scores, np.full(500, 1 / 500, np.float32), objects=False)
    assert np.isfinite(more).all()
    assert set((scores + more).argmax(axis=1)) == {0, 1}
