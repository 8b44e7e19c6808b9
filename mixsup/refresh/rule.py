"""What every refresh rule is, and what it gets to see: of whole images or of all of them between two stretches of training, or of views at every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

from mixsup.data.sample import VOID, Float32, LabelKind, Sample, UInt8
from mixsup.losses.partial import fold_unknown
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.proposals import Proposals
from mixsup.masks.source import MaskSource


@dataclass(frozen=True)
class Case:
    """One image at a refresh.

    Attributes:
        image: H×W×3 uint8; None for a rule that does not look at it (`RefreshRule.looks`).
        scores: C×h×w float32 class probabilities of the network as it is, at the working size of the refresh; all alike for
            a rule with a pool before the last layer has learned anything.
        first: the masks that the source made before training.
        present: the masks of the round that ends.
        draw: all randomness of a rule; a function of (seed, round, image), so that nothing has to be kept for a resumed run.
        pool: the candidates of the image, for a rule that asked for them (`RefreshRule.pool`).
    """

    image: UInt8 | None
    scores: Float32
    first: BoxMasks
    present: BoxMasks
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    pool: Proposals | None = None

    def probabilities(self, classes: Sequence[int] | None = None, size: tuple[int, int] | None = None) -> Float32:
        """Probabilities of some classes (default: all) at another size (default: the image's own), bilinear, K×H×W float32."""
        height, width = size or self.first.size
        chosen = self.scores if classes is None else self.scores[list(classes)]
        if chosen.shape[1:] == (height, width):
            return chosen
        return np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in chosen])

    def winner(self) -> tuple[UInt8, Float32]:
        """The most likely class of each pixel at the image's own size (the first of equals) and its probability, H×W uint8 and float32, with two planes in
        memory and not one a class."""
        height, width = self.first.size
        found, highest = np.zeros((height, width), np.uint8), np.full((height, width), -np.inf, np.float32)
        for class_id, plane in enumerate(self.scores):
            likely = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
            higher = likely > highest
            found[higher], highest[higher] = class_id, likely[higher]
        return found, highest


class RefreshRule(ABC):
    """Base of the rules that work in rounds; subclasses are frozen (pydantic) dataclasses whose fields are the settings.

    Attributes:
        name: the key in `RULES`.
        looks: whether the rule looks at the image itself, or at the scores alone; then the image need not be passed between processes.
    """

    name: ClassVar[str]
    looks: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, case: Case) -> BoxMasks:
        """New masks for the boxes of one image.

        Returns:
            As many masks as `case.first` has, in the same order and of the same classes; crowds stay as they were.
        """

    def pool(self, masks: MaskSource) -> BoxPool | None:
        """The source of the candidates that the rule chooses from, given the source of first masks; None for a rule that needs none.

        Raises:
            MixsupError: the rule cannot work with these first masks.
        """
        return None


class SetRule(ABC):
    """Base of the rules that work in rounds on the whole training set, because they train a network of their own; subclasses are frozen (pydantic)
    dataclasses whose fields are the settings.

    Attributes:
        name: the key in `RULES`.
        renews: the label kinds whose targets the rule makes; the others keep theirs.
    """

    name: ClassVar[str]
    renews: ClassVar[tuple[LabelKind, ...]]

    @abstractmethod
    def check(self) -> None:
        """Asks whether the rule can work at all, once before training.

        Raises:
            MixsupError: a name or a setting of what it uses is wrong, or a package or file that it needs is missing.
        """

    def look(self, sample: Sample) -> None:  # noqa: B027, a rule may need nothing but images and labels
        """Asks, before training, whether a sample of a kind that the rule renews brings what the rule will need.

        Raises:
            MixsupError: something is missing or broken; the text says what to do.
        """


@dataclass(frozen=True)
class View:
    """One training view at a step; boxes and tags are what the image's label kind allows to know.

    Attributes:
        scores: C×H×W float32 of the network as it is, before the softmax, without a gradient.
        valid: H×W bool; all other pixels are void and stay so.
        kind: of the image's label.
        boxes: N×4 float32, x0, y0, x1, y1 in pixels of the view, for kind `boxes`; their edges, as in `Boxes`. The box that is largest in the image
            comes first, as where masks are laid over each other; the view may have cut it.
        classes: N int64, of the boxes.
        crowd: N bool, of the boxes.
        tags: classes in the image, ascending.
        first: H×W uint8, the target that the mask source gave.
        done: share of the stage's steps that lie behind this one, 0 to 1.
    """

    scores: Tensor
    valid: Tensor
    kind: LabelKind
    boxes: Tensor
    classes: Tensor
    crowd: Tensor
    tags: Sequence[int]
    first: Tensor
    done: float


class StepRule(ABC):
    """Base of the rules that renew the target of each view in every training step, from the scores that the step is about to charge.

    Nothing is kept between steps, so there are no rounds, no files, and nothing to resume. Subclasses are frozen (pydantic) dataclasses whose
    fields are the settings.

    Attributes:
        name: the key in `RULES`.
        renews: the label kinds whose targets the rule makes; the others keep theirs.
    """

    name: ClassVar[str]
    renews: ClassVar[tuple[LabelKind, ...]]

    @abstractmethod
    def labels(self, view: View) -> Tensor:
        """New labels of one view, H×W uint8 class ids, 255 void, on the device of its scores; what it says outside `valid` is not used."""

    @torch.no_grad()
    def __call__(self, scores: Tensor, batch: Mapping[str, Any], done: float = 1.0) -> Tensor:
        """New targets of a batch.

        Args:
            scores: B×C×H×W, detached.
            batch: as `mixsup.engine.batches.collate` makes it; `target` on the device of the scores.
            done: see `View`.

        Returns:
            B×H×W uint8 class ids. An image of a kind that the rule does not renew keeps its target, and a pixel that is void stays void. Classes
            that are unknown in an image (`unknown`, B×C bool, where given) count as background.
        """
        target: Tensor = batch["target"].clone()
        if "unknown" in batch:
            scores = fold_unknown(scores, batch["unknown"])
        for index, kind in enumerate(batch["kind"]):
            if kind in self.renews:
                valid = target[index] != VOID
                boxes, classes, crowd, tags = (batch[name][index] for name in ("boxes", "box_classes", "box_crowd", "tags"))
                view = View(scores[index].float(), valid, kind, boxes, classes, crowd, tags, target[index].clone(), done)
                target[index] = torch.where(valid, self.labels(view), VOID)
        return target
