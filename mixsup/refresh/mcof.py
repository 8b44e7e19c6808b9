"""`mcof`: mining common object features (Wang, You, Li, Ma; CVPR 2018), for images that have tags and nothing else.

    algorithm 1   train RegionNet on the superpixels and their seeds S, let it say what each superpixel is (O),
                  in the first round supplement O with saliency (O^R), train PixelNet on that, and let PixelNet predict the next S

Rounds are the engine's (`mixsup/engine/mining.py`); here is what they ask for each image. RegionNet is `mixsup/networks/region_net.py`, saliency
`mixsup/saliency/`, PixelNet the run's own network, trained by the seed loss (eq. 3), which is `cross-entropy`: the mean over the labelled pixels. It goes on
from its weights of the round before, and its learning rate falls once over the run or, with `train.restart: rounds`, in each round; the paper does not say.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from mixsup.data.sample import BACKGROUND, VOID, Float32, LabelKind, Sample, UInt8
from mixsup.masks.source import STRICT
from mixsup.masks.superpixels import Regions
from mixsup.refresh.rule import SetRule
from mixsup.saliency import SaliencySource
from mixsup.saliency.chosen import WithSaliency
from mixsup.saliency.source import resized
from mixsup.saliency.supplement import supplement

_ITERATIONS = 300  # of `offsets`
_LITTLE = 1e-4  # a share that a class may have or miss without being pushed hard


@dataclass(frozen=True, config=STRICT)
class MCOF(WithSaliency, SetRule):
    """Settings of a round.

    Attributes:
        mined: rounds that mine with RegionNet; in later ones PixelNet's predictions are the next labels as they are. None mines in all; 1 is the
            control of figure 8, "direct iterative training".
        training: steps that RegionNet is trained for in a round, as a share of the run's; it goes on from its weights of the round before, in the first
            round from the classification network's backbone.
        kept: the share of the pixels that a tagged class had before below which it may not fall: then it keeps those pixels, in S and in O alike. The tag says
            that it is there, and a small or rare class is what re-prediction loses first. 0 is the paper's, which says nothing of it. What saliency makes
            of O is not held to it.
        held: whose share of all pixels is held to that of the first seeds, in S and in O alike (see `offsets`): `none`, as in the paper; `objects`, the
            object classes' among each other; `all`, the background's too. Where nearly every image is tagged with a class, no tag ever takes a pixel
            back from it, and each round teaches it as a little more. Where shares are held, a region that RegionNet calls a class which is not there becomes
            the likeliest of the background and the tagged classes, as PixelNet's pixels do; without, background, as in section 4.2.
        grid, width, hidden: of RegionNet.
        saliency, saliency_options: see `WithSaliency`; `none` is "without saliency-guided refinement" (table 4).
    """

    mined: Annotated[int, Field(ge=0)] | None = None
    training: Annotated[float, Field(gt=0)] = 0.2
    kept: Annotated[float, Field(ge=0, le=1)] = 0.5
    held: Literal["none", "objects", "all"] = "none"
    grid: Annotated[int, Field(ge=1, le=14)] = 3
    width: Annotated[int, Field(ge=1)] = 64
    hidden: Annotated[int, Field(ge=1)] = 256
    place: ClassVar[str] = "refresh.options.saliency_options"
    name: ClassVar[str] = "mcof"
    renews: ClassVar[tuple[LabelKind, ...]] = ("tags",)

    def look(self, sample: Sample) -> None:
        if self.mines(1) and self.refines(sample):
            super().look(sample)

    def mines(self, number: int) -> bool:
        """Whether the round of mining `number`, counted from 1, trains RegionNet."""
        return self.mined is None or number <= self.mined

    def refines(self, sample: Sample) -> bool:
        """Whether saliency may supplement what was mined in an image: where it has one class, see `refine`."""
        return _supplemented(sample) is not None

    def refine(self, image: UInt8, labels: UInt8, sample: Sample, saliency: SaliencySource) -> UInt8:
        """Section 4.3: object regions O to refined ones O^R, both H×W. Images of several classes stay as they are: saliency does not tell them apart."""
        class_id = _supplemented(sample)
        return labels if class_id is None else supplement(image, resized(saliency(image, sample), labels.shape), labels, class_id)


def _supplemented(sample: Sample) -> int | None:
    """The one class that saliency may supplement; None where there are several, or where what stands out may be of a class that nobody looked for."""
    tags = sorted(sample.tags or ())
    return tags[0] if len(tags) == 1 and sample.known is None else None


def allowed(labels: UInt8, tags: Collection[int]) -> UInt8:
    """Section 4.2: "we can remove wrong predictions and label them as background"; of any shape, 255 stays."""
    return np.where(np.isin(labels, [BACKGROUND, VOID, *tags]), labels, BACKGROUND).astype(np.uint8)


def predicted_seeds(scores: Float32, tags: Collection[int]) -> UInt8:
    """M, the next S: the likeliest of the background and the tagged classes at each pixel (C×h×w scores); h×w class ids.

    The paper says what becomes of a region that RegionNet calls a class that is not there, and nothing about PixelNet's pixels. An object that is mistaken for
    another class is still an object here.
    """
    labels = np.array([BACKGROUND, *sorted(tags)], np.uint8)
    found: UInt8 = labels[scores[labels].argmax(axis=0)]
    return found


def keep_tagged(found: UInt8, before: UInt8, tags: Collection[int], share: float) -> UInt8:
    """Gives each tagged class that has less than `share` of the pixels that it had before those pixels back, but for those of classes that stay; H×W."""
    if share == 0:
        return found
    result: UInt8 = found.copy()
    counts, past = (np.bincount(one.ravel(), minlength=256) for one in (found, before))
    lost = [tag for tag in tags if counts[tag] < share * past[tag]]
    for tag in sorted(lost, key=lambda tag: -past[tag]):  # the smallest last, on top
        result[(before == tag) & np.isin(found, [BACKGROUND, *lost])] = tag
    return result


class Shares:
    """The classes' shares of the first seeds, and what some images' scores would make of them."""

    def __init__(self, num_classes: int) -> None:
        self._target, self._images = np.zeros(num_classes), 0
        self._scores: list[Float32] = []
        self._classes: list[UInt8] = []
        self._weights: list[Float32] = []

    def add(self, seeds: UInt8, scores: Float32, weights: Float32, tags: Collection[int]) -> None:
        """An image.

        Args:
            seeds: H×W class ids of its first seeds.
            scores: N×C, logarithms or before a softmax, of some of its pixels or of its regions.
            weights: N, the part of the image that each stands for.
            tags: of the image; all other object classes are excluded.
        """
        counts = np.bincount(seeds.ravel(), minlength=256)[: len(self._target)]
        self._target += counts / max(counts.sum(), 1)
        self._images += 1
        candidates = np.array([BACKGROUND, *sorted(tags)], np.uint8)
        self._scores.append(scores[:, candidates])
        self._classes.append(candidates)
        self._weights.append(weights)

    def offsets(self, objects: bool) -> Float32:
        """C, what holds the shares, see the function of this name; zeros where no image was added."""
        if not self._images:
            return np.zeros(len(self._target), np.float32)
        most = max(len(candidates) for candidates in self._classes)
        pads = [most - len(candidates) for candidates in self._classes]
        scores = [np.pad(some, ((0, 0), (0, pad)), constant_values=-np.inf) for some, pad in zip(self._scores, pads, strict=True)]
        classes = [
            np.broadcast_to(np.pad(candidates, (0, pad)), (len(some), most))
            for candidates, some, pad in zip(self._classes, self._scores, pads, strict=True)
        ]
        target = (self._target / self._images).astype(np.float32)
        weights = np.concatenate(self._weights) / np.float32(self._images)
        return offsets(target, np.concatenate(scores), weights, objects, np.concatenate(classes))


def offsets(target: Float32, scores: Float32, weights: Float32, objects: bool, classes: UInt8 | None = None) -> Float32:
    """What to add to the classes' scores so that each class is the likeliest on the share of all pixels that it is to have.

    Distribution alignment (Berthelot et al., ReMixMatch, ICLR 2020), which scales probabilities by wanted over present shares, for labels that are an arg max:
    each class's offset goes by the logarithm of that quotient, in ever smaller parts; the nearest of all is taken.

    Args:
        target: C, the shares; they add up to 1.
        scores: N×K of some pixels or regions, logarithms, or before a softmax; -inf for a class that the image's tags exclude.
        weights: N, the part of all pixels that each stands for; they add up to 1.
        objects: the background keeps what it has, and the target is that of the object classes among each other.
        classes: N×K, the class of each score; None where they are all classes, in their order.

    Returns:
        C, within 10 of the background's 0.
    """
    found, wanted, every = np.zeros(len(target)), target.astype(np.float64), np.arange(len(scores))
    best, least = found, np.inf
    for number in range(_ITERATIONS):
        chosen = (scores + (found if classes is None else found[classes])).argmax(axis=1)
        share = np.bincount(chosen if classes is None else classes[every, chosen], weights, len(target))
        if objects and number == 0:
            wanted *= (1 - share[BACKGROUND]) / max(1 - wanted[BACKGROUND], 1e-12)
            wanted[BACKGROUND] = share[BACKGROUND]
        away = float(np.abs(share - wanted).sum())
        if away < least:
            best, least = found, away
        found = found + (0.5 * 0.985**number + 0.01) * np.log((wanted + _LITTLE) / (share + _LITTLE))
        found = np.clip(found - found[BACKGROUND], -10, 10)
    return best.astype(np.float32)


def object_regions(scores: Float32, tags: Collection[int]) -> UInt8:
    """O: the likeliest class of each region (R×C scores), background where the image is not tagged with it; R class ids."""
    return allowed(scores.argmax(axis=1).astype(np.uint8), tags)


def region_labels(labels: UInt8, regions: Regions, num_classes: int) -> UInt8:
    """S of each region: the class of most of its pixels, 255 where most are void. labels and regions h×w; R class ids."""
    flat, count = regions.ravel().astype(np.int64), int(regions.max()) + 1
    votes = np.minimum(labels.ravel(), num_classes).astype(np.int64)  # void votes last
    table = np.bincount(flat * (num_classes + 1) + votes, minlength=count * (num_classes + 1)).reshape(count, num_classes + 1)
    found = table.argmax(axis=1)
    return np.where(found == num_classes, VOID, found).astype(np.uint8)
