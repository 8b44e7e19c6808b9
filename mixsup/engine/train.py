"""Training: one run from labels to checkpoint, report and scores.

    mixsup train DATA --recipe rectangles --labels boxes --out RUN
    torchrun --nproc-per-node 4 -m mixsup train DATA ... --devices 4 --strategy ddp

Which image is drawn when, its view and the dropout of a step depend on (seed, step) alone. So a run that was killed goes on from its last state
and ends with the same bits on the same machine, and no state of a random generator has to be kept.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor, nn

import mixsup
from mixsup.data import format_splits, load_dataset
from mixsup.data.budget import draw, restrict, split_csv
from mixsup.data.check import check
from mixsup.data.image import read_image
from mixsup.data.sample import Dataset, LabelKind
from mixsup.engine.batches import Draws, Targets, TrainingViews, training_loader
from mixsup.engine.checkpoint import load_state, save_state, save_weights
from mixsup.engine.evaluate import Evaluation, evaluate, with_masks
from mixsup.engine.initialise import take_over
from mixsup.engine.model import SegmentationModel, build_model
from mixsup.engine.predict import Predictor
from mixsup.engine.run import BEST, LAST, STATE, Log, MetricsFile, Run
from mixsup.errors import DataError, MixsupError
from mixsup.losses import Criterion
from mixsup.masks import build_source
from mixsup.masks.store import MaskStore, default_cache, load, save
from mixsup.progress import Steps
from mixsup.recipe import Recipe, Schedule
from mixsup.refresh import RefreshRule, build_rule

LOG_EVERY = 10  # steps between two rows of metrics.csv; also how late a loss that is not finite is noticed


@dataclass(frozen=True)
class Options:
    """What is not part of the recipe.

    Attributes:
        labels: label budget, as `--labels`; None uses the strongest label of each image.
        split, val: names of the splits; None takes `train` and `val` where there are such.
        format: of the data set, when its layout is ambiguous.
        seed: of all draws.
        init: a run whose network to start from.
        resume: go on with an interrupted run.
        skip_bad: leave images at fault out.
        cache: folder of first masks; None for the user's cache.
        accelerator, devices, nodes, strategy, precision: as Lightning Fabric; precision `auto` is bf16 where the hardware has it.
        workers: loader processes; None chooses.
        report: write report.html at the end.
        quiet: nothing on stderr.
    """

    labels: str | None = None
    split: str | None = None
    val: str | None = None
    format: str | None = None
    seed: int = 0
    init: str | None = None
    resume: bool = False
    skip_bad: bool = False
    cache: Path | None = None
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    report: bool = True
    quiet: bool = False


@dataclass
class Progress:
    """What changes while a run runs, besides weights and optimiser."""

    step: int = 0
    round: int = 0
    best: float = -1.0
    best_step: int = 0


@dataclass
class _Setting:
    """Everything that the loop needs and that stays as it is."""

    run: Run
    fabric: Fabric
    train: Dataset
    val: Dataset | None
    targets: Targets
    criterion: Criterion
    rule: RefreshRule | None
    options: Options
    log: Log
    bare: SegmentationModel
    steps: int
    boundaries: list[int] = field(default_factory=list)  # steps after which masks are refreshed

    @property
    def schedule(self) -> Schedule:
        return self.run.recipe.train


def train(data: str | Path, recipe: Recipe, out: str | Path, options: Options = Options()) -> Run:
    """Trains a network.

    Args:
        data: the data set, see `load_dataset`.
        recipe: resolved, see `load_recipe`.
        out: the run folder; must not hold a run, unless `options.resume`.
        options: see `Options`.

    Returns:
        The run, whose folder holds the best and last weights, metrics, and the report.

    Raises:
        DataError: images or labels at fault, all of them, before training starts.
        MixsupError: a choice that has no meaning for this data, a loss that is not finite, a disk that is full.
    """
    out = Path(out)
    fabric = _fabric(options)
    dataset, val = _load(Path(data), options)
    criterion = Criterion(recipe.loss)
    source = build_source(recipe.masks.source, recipe.masks.options)
    rule = build_rule(recipe.refresh.rule, recipe.refresh.options)
    kinds = _draw(dataset, recipe, options)
    _refuse_meaningless(recipe, set(kinds.values()), rule, fabric)

    resuming = options.resume and (out / "recipe.yaml").is_file()
    if not resuming and (out / "recipe.yaml").is_file():
        raise MixsupError(f"{out}: holds a run already; add --resume to go on with it, or choose another folder")
    log = Log(out / "log.txt" if fabric.is_global_zero else None, options.quiet)

    # Everything that can be wrong with the files is found here; labels outside the budget are gone by now and are not opened.
    unused = [sample for sample in dataset.samples if sample.id not in kinds]
    train_set = check(restrict(dataset, kinds), skip_bad=options.skip_bad, title="checking training images")
    val = check(val, skip_bad=options.skip_bad, title="checking validation images") if val is not None else None

    store = MaskStore((options.cache or default_cache()) / "masks")
    targets = Targets(len(dataset.classes), source, store)
    train_set = _first_masks(train_set, targets, fabric, options, log)
    counts = {kind: sum(sample.label == kind for sample in train_set.samples) for kind in sorted(set(kinds.values()))}

    seed_everything(options.seed, verbose=False)
    steps = _steps(recipe.train, len(train_set))
    model = build_model(recipe.network, recipe.head, len(dataset.classes), pretrained=not resuming)
    facts = _facts(data, recipe, options, fabric, counts, len(unused), steps, model, val)
    if fabric.is_global_zero and not resuming:
        Run.create(out, recipe, dataset.classes, split_csv(dataset, kinds), facts)
    fabric.barrier()
    run = _same_run(out, recipe, facts) if resuming else Run(out, recipe, dataset.classes, facts)

    if options.init is not None and not resuming:
        log(take_over(options.init, model, run.classes))
    log(f"{len(train_set)} training images ({', '.join(f'{n} {kind}' for kind, n in counts.items())}), {len(unused)} unused; "
        f"{len(val) if val else 0} for validation; {len(dataset.classes)} classes; {steps} steps; "
        f"pretraining: {facts['pretraining']}; {facts['device']}, {facts['precision']}")  # fmt: skip
    boundaries = []
    if rule is not None:
        boundaries = [round(steps * number / (recipe.refresh.rounds + 1)) for number in range(1, recipe.refresh.rounds + 1)]
    setting = _Setting(run, fabric, train_set, val, targets, criterion, rule, options, log, model, steps, boundaries)
    _optimise(setting, resuming)
    if fabric.is_global_zero and options.report:
        from mixsup.report import write_report

        write_report(run.folder, data=Path(data))
        log(f"report: {run.folder / 'report.html'}")
    fabric.barrier()
    return run


# ---------------------------------------------------------------------------------------------------------------- the loop


def _optimise(setting: _Setting, resuming: bool) -> None:
    """The whole optimisation, readable from top to bottom: restore, then steps, then a validation, a refresh, a checkpoint where they are due."""
    run, fabric, schedule, steps = setting.run, setting.fabric, setting.schedule, setting.steps
    groups = setting.bare.parameter_groups(schedule.lr, schedule.new_layers, schedule.weight_decay)
    optimizer: torch.optim.Optimizer
    if schedule.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=schedule.lr)
    rates = [group["lr"] for group in optimizer.param_groups]
    setting.bare.to(memory_format=torch.channels_last)
    model, optimizer = fabric.setup(setting.bare, optimizer)

    progress = Progress()
    if resuming and (run.folder / STATE).is_file():
        rest = load_state(fabric, run.folder / STATE, {"model": model, "optimizer": optimizer})
        progress = Progress(**rest["progress"])
        setting.log(f"going on after step {progress.step} of {steps}")
    metrics = MetricsFile(run.folder / "metrics.csv", progress.step) if fabric.is_global_zero else None
    _use_round(setting, progress.round)

    stops = _stops(setting, len(setting.train))
    with Steps(f"training {run.folder.name}", steps, quiet=setting.options.quiet or not fabric.is_global_zero) as bar:
        while progress.step < steps:
            until = next(step for step in stops if step > progress.step)
            _stretch(setting, model, optimizer, rates, metrics, bar, progress.step, until)
            progress.step = until
            if until in setting.boundaries:
                progress.round = setting.boundaries.index(until) + 1
                _refresh(setting, progress.round)
                _use_round(setting, progress.round)
            found = _validate(setting)
            if fabric.is_global_zero:
                _note(setting, progress, found, metrics)
            save_state(fabric, run.folder / STATE, {"model": model, "optimizer": optimizer, "progress": vars(progress)})
    if fabric.is_global_zero:
        save_weights(run.folder / LAST, setting.bare, steps)


def _stretch(
    setting: _Setting,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    metrics: MetricsFile | None,
    bar: Steps,
    first: int,
    until: int,
) -> None:
    """Steps first+1 ... until."""
    fabric, schedule = setting.fabric, setting.schedule
    views = TrainingViews(setting.train.samples, setting.targets, schedule, setting.options.seed)
    draws = Draws(len(views), schedule.batch, first, until, setting.options.seed, fabric.global_rank, fabric.world_size)
    loader = training_loader(views, draws, _workers(setting.options, fabric), pin=fabric.device.type == "cuda")
    model.train()
    waiting: list[tuple[int, list[str], dict[str, Tensor]]] = []
    for step, batch in enumerate(loader, first + 1):
        factor = learning_rate(step - 1, setting.steps, schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        # The only randomness inside the network is dropout; its draw is a function of the step, so a resumed run draws the same.
        torch.manual_seed((setting.options.seed * 1_000_003 + step) * 4099 + fabric.global_rank)
        images = batch["image"].to(fabric.device, non_blocking=True).float().div_(255).contiguous(memory_format=torch.channels_last)
        batch["target"] = batch["target"].to(fabric.device, non_blocking=True)

        losses = setting.criterion(model(images), batch)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        fabric.backward(loss)
        if schedule.clip:
            fabric.clip_gradients(model, optimizer, max_norm=schedule.clip)
        optimizer.step()

        waiting.append((step, batch["id"], {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}))
        if step % LOG_EVERY == 0 or step == until:
            means = _means(setting, waiting)
            waiting.clear()
            if metrics is not None:
                epoch = step * schedule.batch / len(views)
                row = {
                    "step": step,
                    "epoch": f"{epoch:.3f}",
                    "lr": f"{schedule.lr * factor:.6g}",
                    **{name: f"{value:.6g}" for name, value in means.items()},
                }
                metrics.add(row)
            bar.show(step, f"loss {means['loss']:.3f}")


def _means(setting: _Setting, waiting: list[tuple[int, list[str], dict[str, Tensor]]]) -> dict[str, float]:
    """Mean losses of the waiting steps by column of metrics.csv; reading them is the one moment where the device is waited for.

    Raises:
        MixsupError: a loss is not finite, with its step and images.
    """
    totals: dict[str, list[float]] = {}
    for step, images, losses in waiting:
        for name, value in losses.items():
            number = float(value)
            if not math.isfinite(number):
                raise MixsupError(
                    f"step {step}: {name} became {number} on images {', '.join(images)}; lower train.lr, set train.clip=1, "
                    f"or look at these images (training stopped, the last checkpoint is whole)"
                )
            totals.setdefault(name.split("/")[0], []).append(number)
    if setting.fabric.world_size > 1:
        shared: Any = setting.fabric.all_reduce(torch.tensor(sum(totals["loss"]) / len(totals["loss"])), reduce_op="mean")
        return {"loss": float(shared)}
    return {name: sum(values) / len(values) for name, values in totals.items()}


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """The factor of the base rates at a step (counted from 0) of `steps`.

    `poly` is DeepLab's (1 - step/steps)^power; `step` divides by 10 after every `step_epochs` epochs (BoxSup, section 4.3).
    """
    if schedule.decay == "poly":
        factor = (1 - step / steps) ** schedule.power
    elif schedule.decay == "step":
        # With --steps the whole shape is stretched or squeezed to them.
        epoch = step / steps * schedule.epochs
        factor = 0.1 ** int(epoch / schedule.step_epochs)
    else:
        factor = 1.0
    factor = float(factor)
    return factor * min(1.0, 0.1 + 0.9 * step / schedule.warmup) if schedule.warmup else factor


def _validate(setting: _Setting) -> Evaluation | None:
    if setting.val is None:
        return None
    setting.bare.eval()
    predictor = predictor_of(setting.bare, setting.schedule, setting.fabric)
    return evaluate(predictor, setting.val, setting.fabric, workers=_workers(setting.options, setting.fabric), title="validating")


def _note(setting: _Setting, progress: Progress, found: Evaluation | None, metrics: MetricsFile | None) -> None:
    """Writes the scores, and the weights when they are the best so far; without validation the latest are the best."""
    score = found.scores["miou"] if found is not None else float(progress.step)
    if found is not None and metrics is not None:
        names = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")
        metrics.add({"step": progress.step, **{name: f"{found.scores[name]:.6f}" for name in names}})
        setting.log(f"step {progress.step} of {setting.steps}: mean IoU {100 * score:.2f} %")
    if score > progress.best:
        progress.best, progress.best_step = score, progress.step
        save_weights(setting.run.folder / BEST, setting.bare, progress.step)


def _refresh(setting: _Setting, number: int) -> None:
    """Gives every boxed image new masks from the network as it is; each process does its share."""
    assert setting.rule is not None
    setting.bare.eval()
    predictor = predictor_of(setting.bare, setting.schedule, setting.fabric)
    boxed = [sample for sample in setting.train.samples if sample.label == "boxes"]
    folder = setting.run.folder / "masks" / f"round-{number}"
    start = time.monotonic()
    for sample in boxed[setting.fabric.global_rank :: setting.fabric.world_size]:
        first = load(setting.targets.first[sample.id])
        present = load(setting.targets.paths[sample.id])
        if first is None or present is None:
            raise MixsupError(f"{sample.image}: its masks are gone; keep --cache as it is while a run runs, then --resume")
        image = read_image(sample.image)
        save(folder / f"{sample.id}.npz", setting.rule(predictor.probabilities(image), image, first, present))
    setting.fabric.barrier()
    setting.log(f"refreshed the masks of {len(boxed)} images in {time.monotonic() - start:.1f} s (round {number})")


def _use_round(setting: _Setting, number: int) -> None:
    """Points the targets at the masks of a round; round 0 are the first masks."""
    folder = setting.run.folder / "masks" / f"round-{number}"
    setting.targets.paths = {key: folder / f"{key}.npz" if number else path for key, path in setting.targets.first.items()}


# ------------------------------------------------------------------------------------------------------------- preparation


def predictor_of(model: SegmentationModel, schedule: Schedule, fabric: Fabric) -> Predictor:
    """Prediction as the schedule trains: same working size, same precision."""
    return Predictor(model, schedule.size, schedule.resolution, fabric.device, autocast=fabric.autocast)


def _fabric(options: Options) -> Fabric:
    precision: Any = default_precision(options.accelerator) if options.precision == "auto" else options.precision
    try:
        fabric = Fabric(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=options.strategy,
            precision=precision,
        )
        fabric.launch()
    except (ValueError, TypeError, RuntimeError) as error:
        raise MixsupError(
            f"cannot start on {options.accelerator} x {options.devices}: {' '.join(str(error).split())[:200]}; correct the flags"
        ) from None
    return fabric


def default_precision(accelerator: str) -> str:
    """bf16 where the hardware computes in it, else float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return "bf16-mixed" if any(check is not None and check() for check in checks) else "32-true"
    return "32-true"


def _load(data: Path, options: Options) -> tuple[Dataset, Dataset | None]:
    names = format_splits(data, options.format) if data.exists() else []
    split = options.split or ("train" if "train" in names else None)
    val_name = options.val or ("val" if "val" in names else None)
    dataset = load_dataset(data, split, format=options.format, skip_bad=options.skip_bad)
    if val_name in (None, "none"):
        return dataset, None
    val = load_dataset(data, val_name, format=options.format, skip_bad=options.skip_bad)
    try:
        samples = with_masks(val)
    except MixsupError:
        if options.val is not None:
            raise
        return dataset, None  # the data set's own val has no masks: nothing to measure, but training needs none
    return dataset, val.with_samples(samples)


def _draw(dataset: Dataset, recipe: Recipe, options: Options) -> dict[str, LabelKind]:
    usable: list[LabelKind] = [kind for kind in ("masks", "boxes", "tags") if kind in recipe.loss]
    kinds = draw(dataset.samples, options.labels, options.seed, usable)
    for kind in sorted(set(kinds.values())):
        if kind not in usable:
            raise MixsupError(
                f"recipe {recipe.name!r} has no loss for {kind}, it learns from {' and '.join(usable)}; choose another recipe or --labels"
            )
    if not kinds:
        raise MixsupError(
            f"{dataset.source}: no image has labels that recipe {recipe.name!r} learns from ({' or '.join(usable)}); choose another recipe"
        )
    return kinds


def _refuse_meaningless(recipe: Recipe, kinds: set[LabelKind], rule: RefreshRule | None, fabric: Fabric) -> None:
    if rule is not None and "boxes" not in kinds:
        raise MixsupError(
            f"refresh {recipe.refresh.rule!r} renews the masks of boxes, but the label budget has none; use refresh=none or give boxes"
        )
    if rule is not None and recipe.refresh.rounds < 1:
        raise MixsupError(f"refresh {recipe.refresh.rule!r} with 0 rounds does nothing; set refresh.rounds, or refresh=none")
    if recipe.train.batch % fabric.world_size:
        raise MixsupError(f"a batch of {recipe.train.batch} cannot be shared by {fabric.world_size} processes; set --batch to a multiple")


def _first_masks(dataset: Dataset, targets: Targets, fabric: Fabric, options: Options, log: Log) -> Dataset:
    """Makes the masks of all boxed images (the first process does), and leaves out images for which there can be none."""
    boxed = [sample for sample in dataset.samples if sample.label == "boxes"]
    if not boxed:
        return dataset
    if not fabric.is_global_zero:
        fabric.barrier()
    start = time.monotonic()
    bad, computed = [], 0
    for made in targets.store.make_all(dataset.with_samples(boxed), targets.source):
        computed += made.seconds > 0
        if made.path is not None:
            targets.first[made.sample] = made.path
        elif made.problem is not None:
            bad.append(made.problem)
    if bad and not options.skip_bad:
        raise DataError(bad)
    if fabric.is_global_zero:
        log(f"first masks ({targets.source.name}) of {len(boxed)} images: {computed} made, {len(boxed) - computed - len(bad)} found, "
            f"in {time.monotonic() - start:.1f} s")  # fmt: skip
        fabric.barrier()
    lost = {problem.sample for problem in bad}
    return dataset.with_samples([sample for sample in dataset.samples if sample.id not in lost])


def _steps(schedule: Schedule, images: int) -> int:
    return schedule.steps or max(1, math.ceil(schedule.epochs * images / schedule.batch))


def _stops(setting: _Setting, images: int) -> list[int]:
    """Steps after which the run validates and writes its state; a refresh is one too."""
    wanted = {round(setting.steps * number / setting.schedule.validations) for number in range(1, setting.schedule.validations + 1)}
    return sorted((wanted | set(setting.boundaries) | {setting.steps}) - {0})


def _workers(options: Options, fabric: Fabric) -> int:
    if options.workers is not None:
        return options.workers
    cores = os.cpu_count() or 1
    return min(8, max(1, cores // fabric.world_size)) if fabric.device.type != "cpu" else min(2, cores - 1)


def _facts(
    data: str | Path, recipe: Recipe, options: Options, fabric: Fabric, counts: dict[LabelKind, int], unused: int, steps: int,
    model: SegmentationModel, val: Dataset | None,
) -> dict[str, Any]:  # fmt: skip
    name = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    return {
        "data": str(data),
        "format": options.format,
        "split": options.split,
        "val": options.val,
        "labels": options.labels,
        "images": counts,
        "unused": unused,
        "validation_images": len(val) if val is not None else 0,
        "seed": options.seed,
        "init": options.init,
        "steps": steps,
        "precision": str(fabric._precision.precision) if hasattr(fabric, "_precision") else options.precision,
        "device": f"{name} x {fabric.world_size}",
        "pretraining": model.network.pretraining,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "mixsup": mixsup.__version__,
        "torch": torch.__version__,
    }


def _same_run(out: Path, recipe: Recipe, facts: dict[str, Any]) -> Run:
    """The stored run, when the command asks for the same one.

    Raises:
        MixsupError: a setting differs; going on would mix two runs.
    """
    run = Run.load(out)
    mine, stored = recipe.model_dump(mode="json", exclude={"schedules"}), run.recipe.model_dump(mode="json", exclude={"schedules"})
    for key in mine:
        if mine[key] != stored[key]:
            raise MixsupError(
                f"{out}: cannot go on, {key} was {stored[key]!r} and is now {mine[key]!r}; repeat the first command with --resume"
            )
    for key in ("labels", "seed", "steps", "images", "init"):
        if facts[key] != run.facts.get(key):
            raise MixsupError(
                f"{out}: cannot go on, {key} was {run.facts.get(key)!r} and is now {facts[key]!r}; repeat the first command with --resume"
            )
    return run
