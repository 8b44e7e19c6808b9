"""Before the first step: everything that can be wrong is found here, and everything that the loop needs is made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything

from mixsup.data.budget import restrict, split_csv
from mixsup.data.check import check
from mixsup.data.sample import Dataset, Float32, LabelKind
from mixsup.engine.batches import Targets
from mixsup.engine.choices import Choices, choose, refuse_meaningless, refuse_two_seeds
from mixsup.engine.evaluate import refuse_other_classes, refuse_void
from mixsup.engine.images import draw_kinds, load_splits, refuse_no_object, refuse_unlabelled_classes, shows_object
from mixsup.engine.initialise import take_over
from mixsup.engine.made import Made
from mixsup.engine.model import SegmentationModel, build_model, refuse_one_image, refuse_size
from mixsup.engine.options import Options, refuse_flags, start_fabric
from mixsup.engine.rates import FILE, measured, rates_of_boxes
from mixsup.engine.run import LABELS, STATE, Log, Run
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.files import write_text
from mixsup.heads import build_head
from mixsup.losses import NONE, Criterion
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.cam import CAM
from mixsup.masks.pool_store import PoolStore
from mixsup.masks.store import MaskStore, default_cache
from mixsup.progress import track
from mixsup.recipe import Recipe, Schedule
from mixsup.refresh import RefreshRule, SetRule, StepRule
from mixsup.version import __version__


@dataclass
class Pools:
    """The candidates of the boxed images.

    Attributes:
        store, source: make the pool of a sample whose file is gone.
        paths: of the files, by sample id.
    """

    store: PoolStore
    source: BoxPool
    paths: dict[str, Path] = field(default_factory=dict)


@dataclass
class Job:
    """Everything that the loop needs and that stays as it is through a stage; a run without stages is one stage.

    Attributes:
        run: the folder.
        fabric: device, precision, processes.
        train, val: the images; of the training ones those whose kind the stage charges.
        targets: what the network is taught for them.
        criterion: the losses.
        rule: a refresh rule of rounds; a stage has this or `step_rule`, or neither.
        cam: of the seeds of tagged images; None where tags get no labels of pixels.
        options: see `Options`.
        log: to log.txt and stderr.
        bare: the model; all stages share it and give it heads of their own.
        recipe: of the stage, see `Recipe.stage`.
        steps: of the whole run; all steps are counted through it.
        started: the folder holds a state to go on from.
        boundaries: steps after which masks are refreshed.
        pools: for a rule that chooses from candidates.
        step_rule: makes targets at every step.
        stage: counted from 0.
        first, until: the stage trains steps first+1 ... until.
        rounds: refresh rounds before the stage.
        mined: those of them that were of a rule of the set.
        epochs, drawn: before the stage; the latter are images, as many as its steps had in their batches.
    """

    run: Run
    fabric: Fabric
    train: Dataset
    val: Dataset | None
    targets: Targets
    criterion: Criterion
    rule: RefreshRule | SetRule | None
    cam: CAM | None
    options: Options
    log: Log
    bare: SegmentationModel
    recipe: Recipe
    steps: int
    started: bool
    boundaries: list[int] = field(default_factory=list)
    pools: Pools | None = None
    step_rule: StepRule | None = None
    stage: int = 0
    first: int = 0
    until: int = 0
    rounds: int = 0
    mined: int = 0
    epochs: float = 0.0
    drawn: int = 0

    @property
    def length(self) -> float:
        """Epochs of the stage."""
        return (self.until - self.first) * self.schedule.batch / len(self.train)

    @property
    def schedule(self) -> Schedule:
        return self.recipe.train

    @property
    def workers(self) -> int:
        """Loader processes."""
        if self.options.workers is not None:
            return self.options.workers
        cores = os.cpu_count() or 1
        return (
            min(8, max(1, cores * self.options.nodes // self.fabric.world_size)) if self.fabric.device.type != "cpu" else min(2, cores - 1)
        )


def prepare(data: str | Path, recipe: Recipe, out: str | Path, options: Options) -> list[Job]:
    """Reads and checks the data, draws the label budget, makes the first masks of all stages, builds the network and opens the run folder.

    Returns:
        One job a stage, in their order.

    Raises:
        DataError: images or labels at fault, all of them.
        MixsupError: a choice that has no meaning for this data, or a run folder that holds another run.
    """
    out = Path(out)
    refuse_flags(options)
    fabric = start_fabric(options)
    dataset, val = load_splits(Path(data), options)
    dataset.refuse_results([out / "recipe.yaml"])
    names = [stage.name for stage in recipe.stages] or [""]
    stages = []
    for index, name in enumerate(names):
        with _in_stage(name):
            stages.append(choose(recipe.stage(index)))
    kinds = draw_kinds(dataset, recipe, [stage.recipe for stage in stages], options)
    for name, stage in zip(names, stages, strict=True):
        with _in_stage(name):
            refuse_meaningless(stage, {kind for kind in kinds.values() if stage.recipe.loss[kind] != NONE}, fabric)
    refuse_two_seeds(stages)
    refuse_unlabelled_classes(dataset, kinds)
    if recipe.train.steps is not None:
        recipe.stage_ends(recipe.train.steps)
    fabric.barrier()  # nobody writes before everybody has looked
    resuming = options.resume and (out / "recipe.yaml").is_file()
    if not resuming and (out / "recipe.yaml").is_file():
        raise MixsupError(f"{out}: holds a run already; add --resume to go on with it, or choose another folder")
    labels = out / LABELS  # of a data set, it may be; a run that was killed before its recipe.yaml left the same as this one writes
    if not resuming and labels.is_file() and labels.read_bytes() != dataset.classes.lines().encode():
        raise MixsupError(f"{labels}: would be overwritten, and is not of this run; give another folder to --out")
    if resuming:
        _refuse_other_recipe(out, recipe)
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise MixsupError(f"{out}: {place} is no folder that can be written to; choose another --out")
    # Before the masks, which may take hours: a misspelt network should not cost them, nor a head that a later stage cannot have.
    seed_everything(options.seed, verbose=False)
    started = resuming and (out / STATE).is_file()  # a run killed before its first checkpoint begins again
    fresh = not started and options.init is None
    model = build_model(recipe.network, stages[0].recipe.head, len(dataset.classes), pretrained=fresh)
    refuse_size(model, recipe.network, recipe.train.size)
    if min(stage.recipe.train.batch for stage in stages) == fabric.world_size:
        refuse_one_image(model, recipe.train.size)
    for name, stage in list(zip(names, stages, strict=True))[1:]:
        with _in_stage(name):
            build_head(stage.recipe.head, model.network, len(dataset.classes))
    log = Log(out / "log.txt" if fabric.is_global_zero else None, options.quiet)
    if options.init is not None and not started:
        log(take_over(options.init, model, dataset.classes, recipe.network.freeze_batchnorm))
    if started:  # what `take_over` said of the network decides its learning rates and norms, and is not in its weights
        stored = Run.load(out).facts
        model.network.pretraining, model.carried = str(stored["pretraining"]), tuple(stored.get("carried", ()))
        model.network.freeze_batchnorm = bool(stored.get("freeze_batchnorm", model.network.freeze_batchnorm))

    # Labels outside the budget are gone from here on, and their files are not opened.
    unused = sum(sample.id not in kinds for sample in dataset.samples)
    train_set = check(restrict(dataset, kinds, skip_bad=options.skip_bad), skip_bad=options.skip_bad, title="checking training images")
    refuse_no_object(train_set)
    train_set = _with_what_is_needed(train_set, stages, skip_bad=options.skip_bad)
    val = check(val, skip_bad=options.skip_bad, title="checking validation images") if val is not None else None
    if val is not None:
        refuse_void(val)
        taught_on = {sample.image for sample in train_set.samples}
        both = sum(sample.image in taught_on for sample in val.samples)
        if both:
            log(f"{both} of the {len(val)} validation images are training images, too: their scores say little about new ones")
    for text in dict.fromkeys(str(problem) for part in (train_set, val) if part is not None for problem in part.problems):
        log(f"left out: {text}")
    for text in dict.fromkeys(note for part in (train_set, val) if part is not None for note in part.notes):
        log(f"note: {text}")
    empty = sum(sample.label != "masks" and not shows_object(sample, len(dataset.classes)) for sample in train_set.samples)
    if empty:
        log(f"{empty} training images with boxes or tags show no object: they teach background")
    cache = Path(options.cache) if options.cache is not None else default_cache()
    pool_store = PoolStore(cache / "pools")
    first, pooled = Made(MaskStore(cache / "masks")), Made(pool_store)
    for stage in stages:
        for store, source in ((first, stage.source), (first, stage.measured_on), (pooled, stage.proposer)):
            train_set = store.make(train_set, source, fabric, log, skip_bad=options.skip_bad, cluster=options.cluster)
    counts = {kind: sum(sample.label == kind for sample in train_set.samples) for kind in sorted(set(kinds.values()))}
    shown = []  # what each stage charges
    for name, stage in zip(names, stages, strict=True):
        with _in_stage(name):
            shown.append(_shown(train_set, stage.recipe))

    steps = recipe.train.steps or max(1, math.ceil(recipe.train.epochs * len(train_set) / recipe.train.batch))
    ends = recipe.stage_ends(steps)
    boundaries = []  # before there is a run folder: a stage may have no room for them
    for name, stage, images, begin, end in zip(names, stages, shown, [0, *ends], ends, strict=False):
        with _in_stage(name):
            taught = begin > 0 or model.scores_carried
            own = _boundaries(stage, end - begin, len(images) / stage.recipe.train.batch, taught, log)
            boundaries.append([begin + step for step in own])
    facts = _facts(data, options, fabric, counts, unused, steps, model, val)
    if resuming:
        run = _same_run(out, recipe, facts, dataset, kinds)
        if facts["device"] != run.facts.get("device"):
            log(f"began on {run.facts.get('device')} and goes on on {facts['device']}: its last digits are not those of an unbroken run")
        if fabric.is_global_zero:
            run.clear()
    else:
        run = Run(out, recipe, dataset.classes, facts)
        if fabric.is_global_zero:
            Run.create(out, recipe, dataset.classes, split_csv(dataset, kinds), facts)
    fabric.barrier()
    amounts = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    log(
        f"{len(train_set)} training images ({amounts}), {unused} unused; {_for_validation(val, options)}; {len(dataset.classes)} classes; "
        f"{steps} steps; pretraining: {facts['pretraining']}; {facts['device']}, {facts['precision']}"
    )
    jobs: list[Job] = []
    for index, (stage, images, begin, end) in enumerate(zip(stages, shown, [0, *ends], ends, strict=False)):
        targets = Targets(
            len(dataset.classes),
            stage.source,
            first.store,
            first.of(stage.source, images),
            box_masks="attention" in stage.criterion.head,
            soft=stage.criterion.soft(),
            seed=options.seed,
        )
        targets.rates = _rates(stage, images, first, fabric, run)
        pools = Pools(pool_store, stage.proposer, pooled.of(stage.proposer, images)) if stage.proposer is not None else None
        rounds = jobs[-1].rounds + len(jobs[-1].boundaries) if jobs else 0
        mined = sum(len(job.boundaries) for job in jobs if isinstance(job.rule, SetRule))
        jobs.append(Job(
            run, fabric, images, val, targets, stage.criterion, stage.rule, stage.cam, options, log, model, stage.recipe, steps, started,
            boundaries[index], pools, stage.step_rule, index, begin, end, rounds, mined,
            jobs[-1].epochs + jobs[-1].length if jobs else 0.0, sum((job.until - job.first) * job.schedule.batch for job in jobs),
        ))  # fmt: skip
    return jobs


def _for_validation(val: Dataset | None, options: Options) -> str:
    if val is not None:
        return f"{len(val)} for validation"
    return (
        "0 for validation"
        if options.val == "none"
        else "0 for validation (no split val with true masks: nothing is measured, and the last weights are kept; --split 'NAME[20%:]' --val 'NAME[:20%]' "
        "hold a fifth of a split out)"
    )


def _boundaries(stage: Choices, steps: int, epoch: float, taught: bool, log: Log) -> list[int]:
    """The steps of a stage after which masks are refreshed, see `Refresh.boundaries`.

    A rule that takes the network's own masks has nothing before somebody has taught the last layer (`taught`): it does not begin before the first step.

    Raises:
        MixsupError: no round is left.
    """
    refresh = stage.recipe.refresh
    if stage.rule is None:
        return []
    if refresh.start and not taught and isinstance(stage.rule, RefreshRule) and stage.proposer is None:
        log(f"refresh {refresh.rule!r} takes its masks from the network, which nobody has taught yet: no round before the first step")
        refresh = refresh.model_copy(update={"start": False})
    found = refresh.boundaries(steps, epoch)
    if not found:
        raise MixsupError(f"refresh {refresh.rule!r} would have no round in {steps} steps; give more --steps, or set refresh=none")
    wanted = refresh.rounds + refresh.start
    if refresh.every is None and len(found) < wanted:
        log(f"refresh {refresh.rule!r}: {steps} steps have room for {len(found)} of its {wanted} rounds")
    shortest = min(then - now for now, then in pairwise([*found, steps]))
    if isinstance(stage.rule, SetRule) and 2 * shortest <= epoch:  # with 0.9 of an epoch quality rose over the rounds, with 0.3 it did not
        log(
            f"refresh {refresh.rule!r}: a round has {shortest} of the {math.ceil(epoch)} steps that see each image once, too few to learn the labels that it "
            "has made; more --steps, or fewer rounds (refresh.rounds), would help"
        )
    return found


def _with_what_is_needed(train_set: Dataset, stages: Sequence[Choices], *, skip_bad: bool) -> Dataset:
    """The images that bring what seeds of tags, and rules of the set in their rounds, hours later, will ask of them.

    Raises:
        DataError: some do not, unless `skip_bad`.
    """
    looks = [(stage.rule.look, stage.rule.renews) for stage in stages if isinstance(stage.rule, SetRule)]
    cam = next((stage.cam for stage in stages if stage.cam is not None), None)  # all stages have the same
    if cam is not None:
        looks.append((cam.look, ("tags",)))
    asked = [(look, sample) for look, kinds in looks for sample in train_set.samples if sample.label in kinds]
    problems: list[Problem] = []
    for look, sample in track(asked, "checking what seeds and refresh need", len(asked)):
        try:
            look(sample)
        except MixsupError as error:
            message, _, remedy = str(error).partition("; ")
            problems.append(Problem(str(sample.image), "", message, remedy, sample.id))
    if problems and not skip_bad:
        raise DataError(problems)
    bad = {problem.sample for problem in problems}
    good = [sample for sample in train_set.samples if sample.id not in bad]
    return replace(train_set, samples=good, problems=[*train_set.problems, *problems])


def _shown(train_set: Dataset, recipe: Recipe) -> Dataset:
    """The images that a stage charges.

    Raises:
        MixsupError: all of them are among those that were left out for a fault.
    """
    found = train_set.with_samples([sample for sample in train_set.samples if sample.label and recipe.loss[sample.label] != NONE])
    if not found.samples:
        raise MixsupError(f"{train_set.source}: all images to learn from are at fault; correct some of them")
    return found


@contextmanager
def _in_stage(name: str) -> Iterator[None]:
    """Puts the stage in front of what is refused in it."""
    try:
        yield
    except MixsupError as error:
        if not name:
            raise
        raise MixsupError(f"stage {name!r}: {error}") from None


def _rates(stage: Choices, train_set: Dataset, first: Made, fabric: Fabric, run: Run) -> dict[str, Float32]:
    """Rates by sample id for a stage that is charged by them; written into the run's folder for people."""
    loss = stage.criterion.filling_rate()
    if loss is None:
        return {}
    rates = None
    if stage.measured_on is not None:
        rates = measured(train_set, stage.measured_on.name, first.of(stage.measured_on, train_set), fabric)
        if fabric.is_global_zero:
            write_text(run.folder / FILE, json.dumps({"filling_rates": rates.to_json()}) + "\n")
    return rates_of_boxes(loss, rates, train_set)


def _facts(
    data: str | Path, options: Options, fabric: Fabric, counts: dict[LabelKind, int], unused: int, steps: int,
    model: SegmentationModel, val: Dataset | None,
) -> dict[str, Any]:  # fmt: skip
    name = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    return {
        "data": str(Path(data).absolute()),
        "format": options.format,
        "split": options.split,
        "val": options.val,
        "labels": options.labels,
        "images": counts,
        "unused": unused,
        "validation_images": len(val) if val is not None else 0,
        "seed": options.seed,
        "init": None if options.init is None else str(options.init),
        "steps": steps,
        "precision": str(fabric._precision.precision) if hasattr(fabric, "_precision") else options.precision,
        "device": f"{name} x {fabric.world_size}",
        "pretraining": model.network.pretraining,
        "carried": list(model.carried),
        "freeze_batchnorm": model.network.freeze_batchnorm,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mixsup": __version__,
        "torch": torch.__version__,
    }


def _refuse_other_recipe(out: Path, recipe: Recipe) -> None:
    """Refuses to go on with a run by another recipe, before anything is made for it."""
    mine, stored = (one.model_dump(mode="json", exclude={"schedules"}) for one in (recipe, Run.load(out).recipe))
    for key, was, now in _differences(stored, mine):
        raise MixsupError(f"{out}: cannot go on, {key} was {was!r} and is now {now!r}; repeat the first command with --resume")


def _differences(one: Any, other: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The values in which two recipes differ, by their dotted keys."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            yield from _differences(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    elif one != other:
        yield key, one, other


def _same_run(out: Path, recipe: Recipe, facts: dict[str, Any], dataset: Dataset, kinds: dict[str, LabelKind]) -> Run:
    """The stored run, when the command asks for the same one.

    Raises:
        MixsupError: a setting differs, or the data; going on would mix two runs.
    """
    run = Run.load(out)
    refuse_other_classes(
        run.classes, dataset.classes, dataset.source, "the run's", "repeat the first command with --resume, on the same data"
    )
    for key in ("split", "val", "labels", "seed", "steps", "images", "init"):
        if facts[key] != run.facts.get(key):
            raise MixsupError(
                f"{out}: cannot go on, {key} was {run.facts.get(key)!r} and is now {facts[key]!r}; repeat the first command with --resume"
            )
    if facts["precision"] != run.facts.get("precision"):
        raise MixsupError(
            f"{out}: cannot go on, it began with --precision {run.facts.get('precision')} and would go on with {facts['precision']}; name the first one"
        )
    if run.kinds() != kinds:
        raise MixsupError(
            f"{out}: cannot go on, {dataset.source} has other images or labels than when the run began (split.csv lists them)"
        )
    return run
