"""A round of refreshing: every boxed image gets new masks from the network as it is, and the next epoch is trained on them.

The masks of round n lie in `masks/round-n/`; `rounds.csv` says what changed. Draws are a function of (seed, round, image), so a run that is killed
anywhere repeats them and nothing of them has to be kept.
"""

from __future__ import annotations

import csv
import io
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mixsup.data.image import read_image
from mixsup.data.sample import BACKGROUND, Float32, Sample, UInt8
from mixsup.engine.batches import fault_text, whole_loader
from mixsup.engine.helping import round_folder
from mixsup.engine.mining import forget as forget_tagged
from mixsup.engine.mining import mine
from mixsup.engine.predict import Predictor, reduced, view
from mixsup.engine.prepare import Job
from mixsup.errors import MixsupError
from mixsup.files import write_text
from mixsup.masks.pool_store import load_pool
from mixsup.masks.source import refuse_values
from mixsup.masks.store import load, save
from mixsup.progress import track
from mixsup.refresh.rule import Case, RefreshRule, SetRule
from mixsup.workers import beside

FOLLOWED = 256  # images whose masks of every round are kept, for the report; of all others only the present round is
_TOGETHER = 8  # images that the network sees at once
_PIXELS = 320_000  # of all these together on a CPU: by eight an image of 321 x 484 took twice as long as by two (DeepLabV3+, two cores)
_MANY = 200  # images of a round below which processes take longer to start than they save
_FEW = 4  # workers up to which the loader needs all of them
_WAITING = 512 * 2**20  # bytes of probabilities that may wait for the rule
Found = tuple[str, UInt8, Case]  # an image's id, its view for the network, and the case without scores
COLUMNS = ("round", "step", "images", "boxes", "changed")
KIND = "kind"  # the last column: of the labels that were renewed; older runs have boxes alone


def followed(ids: list[str]) -> list[str]:
    """The images whose masks of every round are kept: all, or evenly spread ones."""
    places, ordered = np.linspace(0, len(ids) - 1, min(len(ids), FOLLOWED)).round().astype(int) if ids else [], sorted(ids)
    return [ordered[place] for place in places]


def refresh(job: Job, number: int, step: int) -> None:
    """Gives every boxed image new masks; each process does its share.

    Raises:
        MixsupError: an image, its masks or its pool cannot be read any more, or the disk is full. Nothing is lost: --resume does the round again.
    """
    rule = job.rule
    assert rule is not None
    if isinstance(rule, SetRule):
        _refresh_tagged(job, number, step)
        return
    job.bare.eval()
    predictor = Predictor(job.bare, job.schedule.size, job.schedule.resolution, job.fabric.device, autocast=job.fabric.autocast)
    boxed = [sample for sample in job.train.samples if sample.label == "boxes"]
    if number == 1 and job.fabric.is_global_zero:
        _keep_first(job, boxed)
    # By size, because images of one size go through the network together.
    own = sorted(boxed[job.fabric.global_rank :: job.fabric.world_size], key=lambda sample: sample.size)
    folder, start, boxes, changed = round_folder(job.run.folder, number), time.monotonic(), 0, 0

    # Before the first step nothing has taught the last layer, unless another run has (`--init`). A rule that chooses from candidates can do without it; others
    # do not begin there (`prepare`).
    learned = step > 0 or job.bare.scores_carried
    partial_labels = {sample.id: sample.unknown(len(job.run.classes)) for sample in own if sample.known is not None}

    def known(key: str, scores: Float32) -> Float32:
        """Probabilities with those of classes that nobody looked for in the image counted as background, as the loss counts them."""
        unknown = partial_labels.get(key)
        if unknown is not None:
            scores[BACKGROUND] += scores[unknown].sum(axis=0)
            scores[unknown] = 0
        return scores

    # The first round of a later stage begins with that stage's first masks; what it is compared with is the round before all the same.
    earlier = round_folder(job.run.folder, number - 1).absolute() if job.stage and number == job.rounds + 1 > 1 else None
    # Paths as they are everywhere: processes that stay from an earlier run may have begun in another working folder.
    renew, jobs = Renewal(rule, folder.absolute(), earlier), _processes(job, len(own))
    loader = whole_loader(Cases(own, job, number), job.workers)
    pixels = _PIXELS if job.fabric.device.type == "cpu" else None
    fault: MixsupError | None = None
    waiting: deque[Future[tuple[int, int]]] = deque()
    try:
        with beside(jobs) as submit:
            for group in _groups(track(loader, f"refreshing masks, round {number}", len(own)), len(job.run.classes), pixels):
                if learned:
                    found = predictor.scores(torch.from_numpy(np.stack([seen for _, seen, _ in group])))
                    scored = [known(key, scores) for (key, _, _), scores in zip(group, found, strict=True)]
                else:
                    scored = [indifferent(seen, len(job.run.classes)) for _, seen, _ in group]
                waiting += [
                    submit(renew, (key, replace(case, scores=scores))) for (key, _, case), scores in zip(group, scored, strict=True)
                ]
                while len(waiting) > max(1, min(2 * max(_TOGETHER, jobs), _WAITING // scored[0].nbytes)):
                    boxes, changed = (total + more for total, more in zip((boxes, changed), waiting.popleft().result(), strict=True))
            for future in waiting:
                boxes, changed = (total + more for total, more in zip((boxes, changed), future.result(), strict=True))
    except MixsupError as error:
        fault = error
    finally:
        for future in waiting:
            future.cancel()
    # All processes stop at the same place, or those without a fault would wait for the others.
    boxes, changed, faults = _together(job, boxes, changed, int(fault is not None))
    if fault is not None:
        raise fault
    if faults:
        raise MixsupError(f"round {number}: another process could not refresh its masks; its line says why (--resume does the round again)")
    seconds = time.monotonic() - start
    if job.fabric.is_global_zero:
        _note(job.run.folder, {"round": number, "step": step, "images": len(boxed), "boxes": boxes, "changed": changed, KIND: "boxes"})
    job.log(f"round {number} at step {step}: {changed} of {boxes} boxes of {len(boxed)} images got another mask, in {seconds:.1f} s")


def _processes(job: Job, images: int) -> int:
    """How many processes apply the rule. Where the network computes on the CPU it needs the cores, and one thread keeps up with it; beside a GPU the rule would
    be what all wait for. On two cores two processes were no faster than the thread (7.3 and 6.5 s for 698 images), and took 8 s to start."""
    return job.workers if job.fabric.device.type != "cpu" and job.workers > _FEW and images >= _MANY else 1


@dataclass(frozen=True)
class Renewal:
    """Makes and keeps the new masks of one image, in this process or another.

    Attributes:
        rule: of the round.
        folder: of the new masks.
        earlier: of the masks that they are compared with, where these are not the present ones.
    """

    rule: RefreshRule
    folder: Path
    earlier: Path | None

    def __call__(self, item: tuple[str, Case]) -> tuple[int, int]:
        """How many boxes the image has, and how many of them have another mask now.

        Raises:
            MixsupError: the rule gives what is no mask of each box, or the disk is full.
        """
        key, case = item
        masks = self.rule(case)
        if not np.array_equal(masks.windows, case.first.windows) or not np.array_equal(masks.classes, case.first.classes):
            raise MixsupError(
                f"refresh rule {self.rule.name!r} gives {key} other boxes than it has; a rule returns a mask of each, in their order"
            )
        try:
            refuse_values(masks)
        except MixsupError as error:
            raise MixsupError(f"refresh rule {self.rule.name!r} {error} (image {key})") from None
        earlier = load(self.earlier / f"{key}.npz") if self.earlier is not None else None
        before = case.present if earlier is None or len(earlier) != len(masks) else earlier
        save(self.folder / f"{key}.npz", masks)
        return len(masks), sum(not np.array_equal(new, old) for new, old in zip(masks.masks, before.masks, strict=True))


def indifferent(seen: UInt8, classes: int) -> Float32:
    """C×h×w probabilities of a last layer that knows nothing about a view: all classes alike.

    Caffe, in which the papers' networks are written, fills new layers with next to nothing, so that theirs say about this. PyTorch's numbers are large
    enough to prefer some class nearly everywhere, at random, and every box of every image would follow that.
    """
    return np.full((classes, *reduced((seen.shape[0], seen.shape[1]))), 1 / classes, np.float32)


def _refresh_tagged(job: Job, number: int, step: int) -> None:
    """A round of a rule that renews the labels of tagged images; one image is one label here."""
    start = time.monotonic()
    images, renewed, changed = mine(job, number)
    renewed, changed = _together(job, renewed, changed)
    if job.fabric.is_global_zero:
        _note(job.run.folder, {"round": number, "step": step, "images": images, "boxes": renewed, "changed": changed, KIND: "tags"})
    job.log(f"round {number} at step {step}: {changed} of {images} tagged images got other labels, in {time.monotonic() - start:.1f} s")


def _together(job: Job, *counts: int) -> list[int]:
    """Counts over all processes, once all have come here."""
    if job.fabric.world_size == 1:
        return list(counts)
    totals: Any = job.fabric.all_reduce(torch.tensor(counts, device=job.fabric.device), reduce_op="sum")
    job.fabric.barrier()
    return [int(value) for value in totals]


def _groups(cases: Iterable[Found | str], classes: int, pixels: int | None = None) -> Iterator[list[Found]]:
    """Neighbours whose views have one size, at most `_TOGETHER`, and fewer where views are large and classes many; of no more than `pixels` together.

    Raises:
        MixsupError: a case is the text of a fault.
    """
    group: list[Found] = []
    most = _TOGETHER
    for item in cases:
        if isinstance(item, str):
            raise MixsupError(item)
        if group and (len(group) == most or group[0][1].shape != item[1].shape):
            yield group
            group = []
        group.append(item)
        height, width, _ = item[1].shape
        held = _WAITING // 2 // (4 * classes)  # pixels; float32
        most = max(1, min(_TOGETHER, (held if pixels is None else min(held, pixels)) // (height * width)))
    if group:
        yield group


def use_round(job: Job, number: int) -> None:
    """Points the targets at the masks of a round; round 0 are the first masks. A rule moves the labels of its own kind."""
    folder, renewed = round_folder(job.run.folder, number), isinstance(job.rule, SetRule)
    if renewed:
        job.targets.labels = {key: folder / path.name for key, path in job.targets.labels.items()}
    moved = number and not renewed
    job.targets.paths = {key: folder / f"{key}.npz" if moved else path for key, path in job.targets.first.items()}


def forget(job: Job, number: int) -> None:
    """Removes what earlier rounds left of images that are not followed; only after the state with round `number` is on the disk."""
    if isinstance(job.rule, SetRule):
        forget_tagged(job, number, set(followed(list(job.targets.labels))))
        return
    kept = set(followed(list(job.targets.first)))
    for earlier in range(max(1, number - 2), number):  # the last round's, and the one's before, should the run have been killed here then
        for key in job.targets.first:
            if key not in kept:
                (round_folder(job.run.folder, earlier) / f"{key}.npz").unlink(missing_ok=True)


class Cases(Dataset[Found | str]):
    """What the network and then a rule see of each image, read by the loader's processes while the network works. What goes from process to process is
    copied, so that nothing goes which the rule does not look at."""

    def __init__(self, samples: list[Sample], job: Job, number: int) -> None:
        self.samples, self.number, self.seed = samples, number, job.options.seed
        self.targets, self.pools, self.looks = job.targets, job.pools, isinstance(job.rule, RefreshRule) and job.rule.looks
        self.view = partial(view, side=job.schedule.size, resolution=job.schedule.resolution, factor=job.recipe.refresh.scale)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Found | str:
        sample = self.samples[index]
        try:
            image = read_image(sample.image)
            first, present = self.targets.masks(sample, first=True), self.targets.masks(sample)
            pool = None
            if self.pools is not None:
                pool = load_pool(self.pools.paths[sample.id])
                if pool is None:  # the cache was trimmed
                    made = self.pools.store.make(sample, self.pools.source, self.targets.num_classes)
                    pool = load_pool(made.path) if made.path is not None else None
                if pool is None or pool.size != first.size or (pool.lists is not None and len(pool.lists) != len(first)):
                    return f"{sample.image}: its proposals cannot be made again; is the image another one than at the start? Start again"
        except MixsupError as error:
            return fault_text(sample, error)
        draw = np.random.default_rng([self.seed, 2, self.number, zlib.crc32(sample.id.encode())])
        return sample.id, self.view(image), Case(image if self.looks else None, np.zeros((0, 0, 0), np.float32), first, present, draw, pool)


def _keep_first(job: Job, boxed: list[Sample]) -> None:
    kept = set(followed(list(job.targets.first)))
    for sample in boxed:
        if sample.id in kept:
            save(round_folder(job.run.folder, 0) / f"{sample.id}.npz", job.targets.masks(sample, first=True))


def read_rounds(run: Path) -> list[dict[str, Any]]:
    """The rows of `rounds.csv`: round, step, images, boxes (or tagged images), changed (those whose mask differs from the round before), and `kind`."""
    try:
        text = (run / "rounds.csv").read_text(encoding="utf-8")
    except OSError:
        return []
    rows = csv.DictReader(io.StringIO(text))
    return [
        {**{key: int(row[key]) for key in COLUMNS}, KIND: row.get(KIND) or "boxes"}
        for row in rows
        if all((row.get(key) or "").isdigit() for key in COLUMNS)
    ]


def _note(run: Path, row: dict[str, Any]) -> None:
    rows = [old for old in read_rounds(run) if old["round"] < row["round"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, KIND], lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, row])
    write_text(run / "rounds.csv", text.getvalue())
