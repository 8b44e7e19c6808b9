"""Training: one run from labels to checkpoint, report and scores.

    mixsup train DATA --recipe rectangles --labels boxes --out RUN
    torchrun --nproc-per-node 4 -m mixsup train DATA ... --devices 4 --strategy ddp

Which image is drawn when, its view and the dropout of a step depend on (seed, step) alone. So a run that was killed goes on from
its last state and ends with the same bits on the same machine, and no state of a random generator has to be kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixsup.engine.batches import Draws, TrainingViews, as_tensors, training_loader
from mixsup.engine.checkpoint import load_state, save_state, save_weights
from mixsup.engine.evaluate import Evaluation, evaluate
from mixsup.engine.model import ONE_VALUE, idle_parameters, is_one_value
from mixsup.engine.optimiser import build_optimizer, learning_rate
from mixsup.engine.options import Options, peer_gone
from mixsup.engine.predict import Predictor
from mixsup.engine.prepare import Job, prepare
from mixsup.engine.refresh import forget, refresh, use_round
from mixsup.engine.run import BEST, LAST, STATE, MetricsFile, Run
from mixsup.engine.seeds import plant, warm
from mixsup.errors import MixsupError
from mixsup.progress import Steps
from mixsup.recipe import Recipe

__all__ = ["Options", "Progress", "train"]

LOG_EVERY = 10  # steps between two rows of metrics.csv; also how late a loss that is not finite is noticed


@dataclass
class Progress:
    """What changes while a run runs, besides weights and optimiser. `round` is 0 until the stage refreshes its masks, `best` the stage's best score; `due`
    says that step `step` is taken and what comes behind it, a refresh first, is not done yet."""

    step: int = 0
    stage: int = 0
    round: int = 0
    best: float = -1.0
    best_step: int = 0
    due: bool = False


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
    try:
        jobs = prepare(data, recipe, out, options)
        optimise(jobs)
    except torch.cuda.OutOfMemoryError as error:
        raise MixsupError(f"the device is out of memory ({str(error).splitlines()[0][:120]}); lower --batch or --size") from None
    except RuntimeError as error:
        if not peer_gone(error):
            raise
        raise MixsupError("another process of the run has ended; its line says why (--resume goes on from the last checkpoint)") from None
    except ValueError as error:
        if not is_one_value(error):
            raise
        raise MixsupError(ONE_VALUE) from None
    job = jobs[-1]
    if job.fabric.is_global_zero and options.report:
        from mixsup.report import write_report

        write_report(job.run.folder, data=Path(data))
        job.log(f"report: {job.run.folder / 'report.html'}")
    job.fabric.barrier()
    return job.run


def optimise(jobs: list[Job]) -> None:
    """The whole optimisation: where the run stands, then stage after stage; a run without stages has one."""
    run, fabric, steps, progress = jobs[0].run, jobs[0].fabric, jobs[0].steps, Progress()
    if jobs[0].started:
        progress = Progress(**load_state(fabric, run.folder / STATE, {})["progress"])
        jobs[0].log(f"going on after step {progress.step} of {steps}")
    metrics = MetricsFile(run.folder / "metrics.csv", progress.step, not progress.due) if fabric.is_global_zero else None
    with Steps(f"training {run.folder.name}", steps, quiet=jobs[0].options.quiet or not fabric.is_global_zero) as bar:
        for job in jobs[progress.stage :]:
            train_stage(job, progress, metrics, bar)


def train_stage(job: Job, progress: Progress, metrics: MetricsFile | None, bar: Steps) -> None:
    """A stage, readable from top to bottom: head and optimiser, restore, then steps, then a validation, a refresh, a checkpoint where they are due."""
    run, fabric, schedule = job.run, job.fabric, job.schedule
    if job.stage:
        # A head that the stage brings anew must not depend on what was drawn before, or a resumed run would begin it with another one.
        torch.manual_seed(job.options.seed * 1_000_003 + job.stage)
        job.bare.change_head(job.recipe.head)
    plant(job)
    if job.first == 0 and not job.started and run.facts["init"] is None:
        warm(job)
    optimizer = build_optimizer(job.bare, job.bare.network, schedule, job.bare.carried)
    rates = [group["lr"] for group in optimizer.param_groups]
    job.bare.to(memory_format=torch.channels_last)
    # Processes that train together wait for the gradient of each parameter that is asked for one.
    idle = idle_parameters(job.bare, schedule.size) if fabric.world_size > 1 else []
    for parameter in idle:
        parameter.requires_grad_(False)
    model, optimizer = fabric.setup(job.bare, optimizer)
    for parameter in idle:
        parameter.requires_grad_(True)

    if job.started and progress.stage == job.stage:
        load_state(fabric, run.folder / STATE, {"model": model, "optimizer": optimizer})
    elif job.stage:
        # Weights of an earlier stage may have another head: their score is not to be compared.
        progress.stage, progress.round, progress.best = job.stage, 0, -1.0
    if run.recipe.stages:
        job.log(
            f"stage {job.stage + 1} of {len(run.recipe.stages)}, {run.recipe.stages[job.stage].name}: steps {job.first + 1} to {job.until}"
        )
    use_round(job, progress.round)
    if progress.round == 0 and job.first in job.boundaries:
        progress.round = job.rounds + 1
        refresh(job, progress.round, job.first)
        use_round(job, progress.round)

    state = {"model": model, "optimizer": optimizer, "progress": vars(progress)}  # as they are whenever it is written
    validations = _validations(job)
    stops = sorted({*validations, *job.boundaries} - {job.first})
    while progress.due or progress.step < job.until:
        if not progress.due:
            until = next(step for step in stops if step > progress.step)
            stretch(job, model, optimizer, rates, metrics, bar, progress.step, until)
            _share_buffers(job)
            progress.step, progress.due = until, until in job.boundaries
            if progress.due:  # a refresh may take as long as the steps before it: whatever stops it must not cost them as well
                save_state(fabric, run.folder / STATE, state)
        until = progress.step
        if progress.due:
            progress.round = job.rounds + job.boundaries.index(until) + 1
            refresh(job, progress.round, until)
            use_round(job, progress.round)
        if until in validations:
            found = _validate(job)
            if fabric.is_global_zero:
                _note(job, progress, found, metrics)
        progress.due = False
        save_state(fabric, run.folder / STATE, state)
        if until in job.boundaries and fabric.is_global_zero:
            forget(job, progress.round)


def stretch(
    job: Job,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
    metrics: MetricsFile | None,
    bar: Steps,
    first: int,
    until: int,
) -> None:
    """Steps first+1 ... until."""
    fabric, schedule = job.fabric, job.schedule
    views = TrainingViews(job.train.samples, job.targets, schedule, job.options.seed)
    kinds = [sample.label for sample in job.train.samples if sample.label is not None]
    draws = Draws(
        kinds, schedule.batch, first, until, job.options.seed, fabric.global_rank, fabric.world_size, schedule.sampling, schedule.one_kind,
        job.drawn - job.first * schedule.batch, schedule.balance,
    )  # fmt: skip
    loader = training_loader(views, draws, job.workers, pin=fabric.device.type == "cuda")
    model.train()
    falls = (
        [0, job.steps] if schedule.restart == "never" else [job.first, *(job.boundaries if schedule.restart == "rounds" else ()), job.until]
    )
    begun, ends = max(step for step in falls if step <= first), min(step for step in falls if step > first)
    waiting: list[tuple[int, list[str], dict[str, Tensor]]] = []
    bar.begin(first)
    for step, batch in enumerate(loader, first + 1):
        if "fault" in batch:
            raise MixsupError(f"step {step}: {batch['fault']} (it was whole when training began; --resume goes on)")
        factor = learning_rate(step - 1 - begun, ends - begun, schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        # The only randomness inside the network is dropout; its draw is a function of the step, so a resumed run draws the same.
        torch.manual_seed((job.options.seed * 1_000_003 + step) * 4099 + fabric.global_rank)
        as_tensors(batch, fabric.device)
        images = batch["image"].float().div_(255).contiguous(memory_format=torch.channels_last)

        outputs = model(images)
        if job.step_rule is not None:
            batch["target"] = job.step_rule(outputs["scores"].detach(), batch, (step - 1 - job.first) / (job.until - job.first))
        losses = job.criterion(outputs, batch)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        fabric.backward(loss)
        if schedule.clip:
            # Gradients that are not finite are the business of the loss scaler, which leaves out the step, or of `_means`, which says where it began.
            fabric.clip_gradients(model, optimizer, max_norm=schedule.clip, error_if_nonfinite=False)
        optimizer.step()

        waiting.append((step, batch["id"], {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}))
        if step % LOG_EVERY == 0 or step == until:
            means = _means(job, waiting)
            waiting.clear()
            if metrics is not None:
                epoch = job.epochs + (step - job.first) * schedule.batch / len(views)
                row = {
                    "step": step,
                    "epoch": f"{epoch:.3f}",
                    "lr": f"{schedule.lr * factor:.6g}",
                    **{name: f"{value:.6g}" for name, value in means.items()},
                }
                metrics.add(row)
            bar.show(step, f"loss {means['loss']:.3f}")


def _share_buffers(job: Job) -> None:
    """What batch norms have counted: each process has its own, and the network that is refreshed with, measured and stored must be one."""
    if job.fabric.world_size > 1:
        for buffer in job.bare.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _means(job: Job, waiting: list[tuple[int, list[str], dict[str, Tensor]]]) -> dict[str, float]:
    """Mean losses of the waiting steps by column of metrics.csv, which add up to the loss; reading them is the one moment where the device is waited for.

    A step without images of a kind, or a process's part of it, counts 0 for that kind's loss; one that no step had has no mean.

    Raises:
        MixsupError: a loss is not finite, with its step and images.
    """
    totals: dict[str, list[float]] = {}
    if job.fabric.world_size > 1:
        finite = torch.stack([losses["loss"].isfinite().float() for _, _, losses in waiting]).min()
        # All processes stop at the same place, or those without a fault would wait for the others for ever. What is reduced is written over.
        together: Any = job.fabric.all_reduce(finite.clone(), reduce_op="sum")
        if float(together) < job.fabric.world_size and bool(finite):
            raise MixsupError(f"a loss of another process is not finite up to step {waiting[-1][0]}; its line says where")
    for step, images, losses in waiting:
        for name, value in losses.items():
            number = float(value)
            if not math.isfinite(number):
                raise MixsupError(
                    f"step {step}: {name} became {number} on images {', '.join(images)}; start again with a lower "
                    f"train.lr or train.clip=1, or look at these images (training stopped, the last checkpoint is whole)"
                )
            totals.setdefault(name.split("/")[0], []).append(number)
    found = [totals.get(name, []) for name in MetricsFile.LOSSES]
    sums = torch.tensor([[sum(values), len(values)] for values in found], dtype=torch.float64)
    if job.fabric.world_size > 1:
        shared: Any = job.fabric.all_reduce(sums, reduce_op="sum")
        sums = shared
    steps = len(waiting) * job.fabric.world_size
    return {name: float(total / steps) for name, (total, count) in zip(MetricsFile.LOSSES, sums, strict=True) if count}


def _validate(job: Job) -> Evaluation | None:
    if job.val is None:
        return None
    job.bare.eval()
    predictor = _predictor(job)
    return evaluate(predictor, job.val, job.fabric, workers=job.workers, title="validating")


def _note(job: Job, progress: Progress, found: Evaluation | None, metrics: MetricsFile | None) -> None:
    """Writes the scores, and the weights when they are the best so far; without validation the latest are the best."""
    score = found.scores["miou"] if found is not None else float(progress.step)
    if found is not None and metrics is not None:
        names = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")
        metrics.add({"step": progress.step, **{name: f"{found.scores[name]:.6f}" for name in names}})
        job.log(f"step {progress.step} of {job.steps}: mean IoU {100 * score:.2f} %")
    if score > progress.best:
        progress.best, progress.best_step = score, progress.step
        save_weights(job.run.folder / BEST, job.bare, progress.step)
    save_weights(job.run.folder / LAST, job.bare, progress.step)


def _predictor(job: Job) -> Predictor:
    """Prediction as the schedule trains: same working size, same precision."""
    return Predictor(job.bare, job.schedule.size, job.schedule.resolution, job.fabric.device, autocast=job.fabric.autocast)


def _validations(job: Job) -> list[int]:
    """Steps of the stage after which the run validates and writes its weights, its end included; after a refresh it writes its state too."""
    every, count = job.run.recipe.train.val_every, job.run.recipe.train.validations
    wanted = set(range(every, job.steps, every)) if every else {round(job.steps * number / count) for number in range(1, count + 1)}
    return sorted({step for step in wanted if job.first < step < job.until} | {job.until})
