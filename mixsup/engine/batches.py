"""Batches: which image, which view, which target, as a function of (seed, step) alone."""

from __future__ import annotations

import math
import os
import signal
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mixsup.data.augment import training_view
from mixsup.data.derive import boxes_from_mask, boxes_of, load_mask, tags_from_boxes
from mixsup.data.image import ImageError, read_image, read_mask
from mixsup.data.sample import BACKGROUND, KINDS, VOID, Boxes, Float32, Int64, LabelKind, MaskFile, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.losses import BY_IMAGE, SoftCrossEntropy
from mixsup.masks.box_masks import BoxMasks, SharedTarget, compose
from mixsup.masks.source import MaskSource
from mixsup.masks.store import MaskStore, load
from mixsup.recipe import Schedule

_AHEAD = 4  # batches that a loader's process makes ahead
_PLANES = 5  # bytes a pixel of a batch's image, target and claims


@dataclass
class Targets:
    """What the network is taught for a sample: its true mask, or its per-box masks composed; tags have a placeholder.

    Attributes:
        num_classes: background included.
        source, store: make the masks of a sample whose file is gone.
        first: where the per-box masks of each boxed sample lie that were made before training.
        paths: where the present ones lie; a refresh moves them.
        rates: filling rates of the boxes of each boxed sample, N float32, for a loss that needs them.
        box_masks: give images with true masks their boxes too, for a head that is taught boxes.
        labels: where the labels of pixels of each tagged sample lie (PNG), when the recipe makes any; a refresh moves them.
        soft: composes the masks of boxes whose classes may share pixels; None for one class a pixel, the smallest box on top.
        seed: of the lots that classes may draw for such a pixel.
    """

    num_classes: int
    source: MaskSource
    store: MaskStore
    first: dict[str, Path] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    rates: dict[str, Float32] = field(default_factory=dict)
    box_masks: bool = False
    labels: dict[str, Path] = field(default_factory=dict)
    soft: SoftCrossEntropy | None = None
    seed: int = 0

    def __call__(self, sample: Sample) -> SharedTarget:
        """The labels of each pixel; only boxes under `soft` share any.

        Of a tagged image whose recipe makes no labels of pixels nobody knows them before a rule or a loss has looked at scores: all are background
        here, so that those that are not void in a view are the ones of the picture. `prepare` refuses to charge them as they are.

        Raises:
            MixsupError: a file has become unreadable since the check.
        """
        if sample.label == "boxes" and self.soft is not None:
            return self.soft.target(self.masks(sample), np.random.default_rng(zlib.crc32(sample.id.encode()) + (self.seed << 32)))
        if sample.label == "boxes":
            labels = compose(self.masks(sample))
        elif sample.label == "masks":
            labels = load_mask(sample, self.num_classes)
        elif sample.id in self.labels:
            labels = self._read(sample)
        else:
            labels = np.full(sample.size, BACKGROUND, np.uint8)
        return SharedTarget(labels, np.full((0, 0), VOID, np.uint8), ())

    def _read(self, sample: Sample) -> UInt8:
        path = self.labels[sample.id]
        try:
            labels = read_mask(path)
        except MixsupError as error:
            raise MixsupError(f"{path}: {error}; remove the run's folder and start again") from None
        if labels.shape != sample.size:
            raise MixsupError(f"{path}: has another size than its image; remove the run's folder and start again")
        return labels

    def boxes(self, sample: Sample, target: UInt8) -> Boxes | None:
        """The boxes that go with a target: those of a boxed sample; of one with a true mask its own or tight ones around its objects, if asked for."""
        if sample.label == "boxes":  # a budget leaves an image its weaker labels, too; only its kind counts
            return sample.boxes
        if sample.label != "masks" or not self.box_masks:
            return None
        if sample.boxes is None and isinstance(sample.mask, MaskFile):
            return boxes_from_mask(target)  # which is that mask
        return boxes_of(sample, self.num_classes)

    def masks(self, sample: Sample, first: bool = False) -> BoxMasks:
        """The present (or the first) per-box masks of a boxed sample.

        Raises:
            MixsupError: they are gone and cannot be made again.
        """
        path = (self.first if first else self.paths).get(sample.id)
        masks = load(path) if path is not None else None
        if masks is not None:
            return masks
        if path is not None and path != self.first.get(sample.id):
            raise MixsupError(f"{path}: the masks of this round are missing or broken; remove the run's folder and start again")
        made = self.store.make(sample, self.source, self.num_classes)
        masks = load(made.path) if made.path is not None else None
        if masks is None:
            raise MixsupError(
                str(made.problem) if made.problem else f"{sample.image}: its masks cannot be read; start with another --cache"
            )
        return masks


class TrainingViews(Dataset[dict[str, Any]]):
    """Random views of the training images; an item is asked for by (index of the sample, number of the draw)."""

    def __init__(self, samples: list[Sample], targets: Targets, schedule: Schedule, seed: int) -> None:
        self.samples, self.targets, self.schedule, self.seed = samples, targets, schedule, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, draw = key
        sample, schedule = self.samples[index], self.schedule
        try:
            image, target = read_image(sample.image), self.targets(sample)
        except MixsupError as error:
            return {"fault": fault_text(sample, error)}
        generator = np.random.default_rng([self.seed, 1, draw])
        own = self.targets.boxes(sample, target.labels) or Boxes.of([])
        rates = (
            self.targets.rates.get(sample.id, np.ones(len(own), np.float32)) if sample.label == "boxes" else np.ones(len(own), np.float32)
        )
        # Boxes go through the view under their numbers, which say what belongs to those that are still seen; the largest first, as `compose` lays them,
        # for a crop may leave less of a large box than of a small one.
        sides = np.diff(own.windows(sample.size).reshape(-1, 2, 2), axis=1)
        order = np.argsort(-sides.prod(axis=(1, 2)), kind="stable")
        numbered = Boxes(own.xyxy[order], order, own.crowd[order])
        planes = np.stack([target.labels, target.claims]) if target.sets else target.labels
        # A tag says nothing about a part of an image; labels of pixels do.
        whole = sample.label == "tags" and sample.id not in self.targets.labels
        view, found, seen = training_view(
            image, planes, schedule.size, schedule.resolution, schedule.augment, generator, numbered, whole=whole
        )
        labels, claims = found.as_subclass(torch.Tensor).unbind(0) if target.sets else (found.as_subclass(torch.Tensor), None)
        boxes, rates = replace(seen, classes=own.classes[seen.classes]), rates[seen.classes]
        tags = {"tags": sample.tags or frozenset(), "boxes": tags_from_boxes(boxes)}.get(str(sample.label), frozenset())
        return {
            "image": view,
            "target": labels,
            "claims": claims,
            "claim_sets": target.sets,
            "unknown": None if sample.known is None else sample.unknown(self.targets.num_classes),
            "boxes": boxes,
            "rates": rates,
            "tags": sorted(tags),
            "kind": sample.label,
            "id": sample.id,
        }


class Draws(Sampler[list[tuple[int, int]]]):
    """Batches of (sample index, draw number) from step `first` on: one permutation an epoch, batches run on across epochs.

    Which kind of label a draw shows, and which image of it, depends on the draw's number alone.

    Args:
        kinds: of the samples, in their order.
        batch: images a step over all processes.
        first, steps: the steps first+1 ... steps.
        seed: of the permutations.
        rank, world: this process and how many there are; each takes its own part of every batch.
        sampling: share of each kind in what is drawn. Each kind then has epochs of its own.
        one_kind: all images of a step have one kind (diverse supervision, section 3.4), the kinds taking turns by their shares.
        shift: what the draws' numbers are ahead of `step * batch`: earlier stages may have had other batches, and no view is shown again.
        balance: without `sampling`, n samples of a kind are drawn as n^(1 - balance).
    """

    def __init__(
        self, kinds: Sequence[LabelKind], batch: int, first: int, steps: int, seed: int, rank: int = 0, world: int = 1,
        sampling: Mapping[LabelKind, float] | None = None, one_kind: bool = False, shift: int = 0, balance: float = 0.0,
    ) -> None:  # fmt: skip
        self.batch, self.first, self.steps, self.seed, self.rank, self.world = batch, first, steps, seed, rank, world
        groups = {kind: [index for index, own in enumerate(kinds) if own == kind] for kind in KINDS}
        if not sampling and not one_kind and not balance:  # as if all were of one kind
            groups = {"masks": list(range(len(kinds)))}
        shares = sampling or {kind: len(members) ** (1 - balance) for kind, members in groups.items()}
        self.groups = {kind: np.array(members) for kind, members in groups.items() if members and shares.get(kind, 0) > 0}
        self.shares = {kind: shares[kind] / sum(shares[kind] for kind in self.groups) for kind in self.groups}
        self.one_kind, self.shift = one_kind, shift

    def __len__(self) -> int:
        return self.steps - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: dict[LabelKind, tuple[int, Int64]] = {}  # of each kind, the epoch and its permutation
        each = 1 if self.one_kind else self.batch  # turns a step
        turns = _turns(tuple(self.shares.items()), self.steps * each)
        # Earlier draws of several kinds are counted: a resumed run goes on where it was.
        drawn = {kind: turns.count(KINDS.index(kind), 0, self.first * each) * (self.batch // each) for kind in self.groups}
        if len(self.groups) == 1:
            drawn = dict.fromkeys(self.groups, self.first * self.batch + self.shift)
        for step in range(self.first, self.steps):
            chosen = [KINDS[kind] for kind in turns[step * each : (step + 1) * each]] * (self.batch // each)
            batch = []
            for draw, kind in enumerate(chosen, step * self.batch + self.shift):
                members, number = self.groups[kind], drawn[kind]
                drawn[kind] += 1
                epoch, place = divmod(number, len(members))
                if kind not in order or order[kind][0] != epoch:
                    name = [self.seed, 0, epoch] if len(self.groups) == 1 else [self.seed, 0, epoch, KINDS.index(kind)]
                    order[kind] = epoch, np.random.default_rng(name).permutation(len(members))
                batch.append((int(members[order[kind][1][place]]), draw))
            share = self.batch // self.world
            yield batch[self.rank * share : (self.rank + 1) * share]


def _turns(shares: tuple[tuple[LabelKind, float], ...], count: int) -> bytearray:
    """At least `count` kinds by their numbers, so that after any number of them each has come up as often as its share says, to within one or so.

    Every stretch of a run asks for them from the first one on, so they are kept.
    """
    turns, credit = _begun(shares)
    if len(shares) == 1:
        turns.extend(bytes([KINDS.index(shares[0][0])]) * (count - len(turns)))
    while len(turns) < count:
        for kind, share in shares:
            credit[kind] += share
        chosen = max(credit, key=lambda kind: (round(credit[kind], 9), -KINDS.index(kind)))
        credit[chosen] -= 1
        turns.append(KINDS.index(chosen))
    return turns


@lru_cache(maxsize=4)
def _begun(shares: tuple[tuple[LabelKind, float], ...]) -> tuple[bytearray, dict[LabelKind, float]]:
    return bytearray(), dict.fromkeys((kind for kind, _ in shares), 0.0)


def fault_text(sample: Sample, error: MixsupError) -> str:
    """What went wrong, as text: an exception that leaves a loader process comes back as one whose message is a whole traceback."""
    text = str(error).splitlines()[0]
    return f"{sample.image}: {text}" if isinstance(error, ImageError) else text


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch, or `fault`, the first of them.

    Returns:
        `image` B×3×S×S uint8 and `target` B×S×S uint8, and lists of B: `kind` and `id`; `boxes` (N×4 float32: x0, y0, x1, y1 in the view; those that
        are largest in the image first),
        `box_classes` (N int64), `box_crowd` (N bool) and `box_rates` (N float32, filling rates, 1 where none were measured) of the images whose kind
        is boxes, and of those with masks when `Targets.box_masks`, else empty; `tags`, ascending class ids: of
        the image for the kind tags, of the boxes in the view for the kind boxes, empty for masks. Lists are of arrays, which `as_tensors` turns into
        tensors: as tensors each would travel from a loader process through shared memory and an open file of its own. `claim_sets` are the sets of
        classes that share pixels of each image; where there is one, `claims` B×S×S uint8 says which pixels (`SharedTarget`). Where an image's source
        annotates some classes only, `unknown` B×C bool names the others.
    """
    faults = [item["fault"] for item in items if "fault" in item]
    if faults:
        return {"fault": faults[0]}
    more: dict[str, Any] = {}
    if any(item["claims"] is not None for item in items):
        nobody = torch.full_like(items[0]["target"], VOID)
        more["claims"] = torch.stack([nobody if item["claims"] is None else item["claims"] for item in items])
    if any(item["unknown"] is not None for item in items):
        classes = next(len(item["unknown"]) for item in items if item["unknown"] is not None)
        more["unknown"] = torch.from_numpy(
            np.stack([np.zeros(classes, bool) if item["unknown"] is None else item["unknown"] for item in items])
        )
    return {
        **more,
        "image": torch.stack([item["image"].as_subclass(torch.Tensor) for item in items]),
        "target": torch.stack([item["target"] for item in items]),
        "claim_sets": [item["claim_sets"] for item in items],
        "boxes": [item["boxes"].xyxy for item in items],
        "box_classes": [item["boxes"].classes for item in items],
        "box_crowd": [item["boxes"].crowd for item in items],
        "box_rates": [item["rates"] for item in items],
        "tags": [item["tags"] for item in items],
        "kind": [item["kind"] for item in items],
        "id": [item["id"] for item in items],
    }


def collate_arrays(items: list[dict[str, Any]]) -> dict[str, Any]:
    """`collate` with arrays in place of all tensors."""
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in collate(items).items()}


def as_tensors(batch: dict[str, Any], device: torch.device) -> None:
    """Puts a batch's pictures and target on a device, and makes tensors of its boxes, which stay on the CPU: they are few, and to read them there waits for
    nothing."""
    for name in BY_IMAGE:
        if name in batch:
            batch[name] = torch.as_tensor(batch[name]).to(device, non_blocking=True)
    for name in ("boxes", "box_classes", "box_crowd", "box_rates"):
        batch[name] = [torch.from_numpy(array) for array in batch[name]]


def training_loader(views: TrainingViews, draws: Draws, workers: int, pin: bool) -> DataLoader[dict[str, Any]]:
    """The loader of a stretch of training.

    Batches come from its processes as tensors through shared memory, or as arrays through a pipe where all that may wait would not fit: containers often
    have 64 MB of it, and PyTorch waits without end for a batch that was lost for want of it.
    """
    waiting = workers * _AHEAD * draws.batch * _PLANES * views.schedule.size**2  # bytes, of all processes that train together
    return DataLoader(
        views, batch_sampler=draws, collate_fn=collate if 2 * waiting <= shared_memory() else collate_arrays, num_workers=workers, pin_memory=pin,
        prefetch_factor=_AHEAD if workers else None, worker_init_fn=leave_interrupts,
    )  # fmt: skip


def shared_memory() -> float:
    """Free bytes of the shared memory that tensors travel through; without end on systems that have no such folder."""
    try:
        place = os.statvfs("/dev/shm")
    except (AttributeError, OSError):
        return math.inf
    return place.f_bavail * place.f_frsize


def whole_loader(images: Dataset[Any], workers: int) -> DataLoader[Any]:
    """The loader of whole images, one at a time and as they are."""
    return DataLoader(images, batch_size=None, num_workers=workers, collate_fn=identity, worker_init_fn=leave_interrupts)


def leave_interrupts(worker: int) -> None:
    """For all loaders' processes: Ctrl-C reaches each of them, and one that dies before the command itself stops would look like a defect."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def identity(item: Any) -> Any:
    """For loaders of whole images: as arrays they travel through a pipe, as tensors they would need shared memory, which containers are short of."""
    return item


class Pictures(Dataset[tuple[int, UInt8, UInt8] | str]):
    """Whole images and their true masks, for evaluation: (index, H×W×3, H×W), or a text that says what is wrong with the file."""

    def __init__(self, samples: list[Sample], num_classes: int) -> None:
        self.samples, self.num_classes = samples, num_classes

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, UInt8, UInt8] | str:
        sample = self.samples[index]
        try:
            return index, read_image(sample.image), load_mask(sample, self.num_classes)
        except MixsupError as error:
            return fault_text(sample, error)
