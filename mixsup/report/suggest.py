"""What to label next: which runs lie on one curve, and what the model of `mixsup.report.labelling` says of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixsup.data.sample import KINDS, LabelKind
from mixsup.engine.run import Run
from mixsup.losses import NONE
from mixsup.report.labelling import Estimate, Option, Seconds, fit, options
from mixsup.report.objects import Objects

LEAST = 3  # different label budgets from which on the model is asked
HARM = 0.04  # of mean IoU that a run with more labels may score less before it is said: above what the scatter of two runs explains
_MIXING = ("sampling", "balance", "one_kind")  # values of the schedule that do nothing where there is one kind of label


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        name: the last part of its folder, or the folder where two would be named alike.
        run: the run.
        images: it has learned from, by kind of label.
        objects: mean numbers an image.
        hours: of labelling these images.
        scores: `miou`, `pixel_accuracy`, `mean_accuracy`, `fw_iou`, 0 to 1.
    """

    name: str
    run: Run
    images: dict[LabelKind, int]
    objects: Objects
    hours: float
    scores: dict[str, float]

    def budget(self) -> tuple[int, ...]:
        """Numbers of images in the order of `KINDS`."""
        return tuple(self.images.get(kind, 0) for kind in KINDS)

    def setting(self) -> str:
        """What must be the same, besides `method`, for two runs to lie on one curve: data, network, head, loss of masks, schedule, steps, where the
        weights started from, classes."""
        recipe, facts = self.run.recipe, self.run.facts
        masks = [part.get("masks") for part in (recipe.loss, recipe.loss_options, recipe.loss_weights)]
        schedule = recipe.train.model_dump(mode="json", exclude={"steps", "validations", "val_every", *_MIXING})
        start = [facts["steps"], facts.get("init"), facts.get("pretraining"), self.run.classes.names]
        # Without --split a run takes the split `train`, or all of a data set that has none.
        data = [str(Path(str(facts["data"])).resolve()), facts.get("format"), facts.get("split") or "train"]
        return json.dumps([data, recipe.network.model_dump(mode="json"), recipe.head, recipe.head_loss, masks, schedule, start])

    def method(self) -> str | None:
        """How the run learned from boxes and tags; None for one with masks alone, which is the same run under every such method."""
        recipe = self.run.recipe
        if {kind for kind, count in self.images.items() if count} == {"masks"} and not recipe.stages:
            return None
        rest = recipe.model_dump(mode="json", exclude={"about", "paper", "schedule", "schedules", "network", "train"})
        return json.dumps([rest, recipe.train.model_dump(mode="json", include=set(_MIXING))])

    def setting_text(self) -> str:
        """The setting for people."""
        recipe = self.run.recipe
        return f"{recipe.name}, {recipe.network.arch}, {recipe.train.size} px, {self.run.facts['steps']} steps"


@dataclass(frozen=True)
class Suggestion:
    """What to label next.

    Attributes:
        base: name of the run whose labels are added to.
        hours: that were asked for.
        unlabelled: images that are left to label.
        runs: names of the runs that the model has seen.
        seconds: an image takes, by kind.
        options: by kind, what these hours would bring.
        rates: how many images with masks an image with boxes, and one with tags, is worth.
        guessed: kinds that no run has used: what is said of them is the prior's guess.
    """

    base: str
    hours: float
    unlabelled: int
    runs: tuple[str, ...]
    seconds: dict[LabelKind, float]
    options: dict[LabelKind, Option]
    rates: dict[LabelKind, Estimate]
    guessed: tuple[LabelKind, ...]


def curves(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of runs that differ in labels and seed alone. A run with masks alone is in every group of its setting."""
    keys = dict.fromkeys((row.setting(), row.method()) for row in rows)
    weak = {setting for setting, method in keys if method is not None}
    return [
        [row for row in rows if row.setting() == setting and row.method() in (method, None)]
        for setting, method in keys
        if method is not None or setting not in weak
    ]


def suggest(
    rows: Sequence[Row], seconds: Seconds, hours: float, start: int | None = None, unlabelled: int | None = None
) -> tuple[Suggestion | None, list[str]]:
    """What to label next, and sentences on what that rests on.

    Args:
        rows: all runs; of them the largest group is modelled that differs in labels and seed alone and has label budgets enough.
        seconds, hours, unlabelled: see `compare`.
        start: place of the base in `rows`, whose group is modelled then.
    """
    groups = [group for group in curves(rows) if start is None or any(row is rows[start] for row in group)]
    # The largest that can tell anything, if one can.
    varied = [len({row.budget() for row in group}) for group in groups]
    group = groups[max(range(len(groups)), key=lambda index: (varied[index] >= LEAST, len(groups[index]), varied[index]))]
    # The recipe of a run with masks alone may be one that learns from nothing else; the others say what boxes and tags are used for.
    teacher = next((row for row in group if row.method() is not None), group[0])
    notes = []
    left_out = [row.name for row in rows if all(row is not other for other in group)]
    if left_out:
        notes.append(
            f"modelled are the runs of {teacher.setting_text()}; left out, with other data, recipe, network, size, steps or setting: {', '.join(left_out)}"
        )
    budgets = len({row.budget() for row in group})
    if budgets < LEAST:
        notes.append(
            f"what to label next cannot be told from {_many(len(group), 'run')} with {_many(budgets, 'label budget')}: train the same recipe with the "
            f"same steps on at least {LEAST} budgets, as in --labels masks=50, masks=100 and masks=50,boxes=200"
        )
        return None, notes
    best = max(group, key=lambda row: row.scores["miou"]) if start is None else rows[start]
    room = int(best.run.facts.get("unused", 0)) if unlabelled is None else unlabelled
    if room == 0:
        notes.append(
            f"{best.name} has labels on all of its images, so there is none to label next; --unlabelled N says how many more you have"
        )
        return None, notes
    usable = _usable(teacher.run)
    each = {kind: seconds.image(kind, best.objects.further, len(best.run.classes.names)) for kind in KINDS if kind in usable}
    posterior = fit([row.images for row in group], [row.scores["miou"] for row in group])
    found = options(posterior, best.images, each, hours, room)
    if len(usable) < len(KINDS):
        notes.append(f"recipe {teacher.run.recipe.name} does not learn from {' and '.join(kind for kind in KINDS if kind not in usable)}")
    guessed = tuple(kind for kind in usable if not any(row.images.get(kind) for row in group))
    for kind in guessed:
        what = "how many boxes or tags one is worth" if kind == "masks" else "what they are worth, and so their gain,"
        notes.append(f"no run has used {kind}: {what} is the prior's guess and not measured")
    for kind, option in found.items():
        if option.images == room < int(min(hours * 3600 / each[kind], room + 1)):
            notes.append(f"{kind}: {hours:g} hours would label more than the {room} images that are left, which take {option.hours:.1f}")
    beyond = [kind for kind, option in found.items() if best.scores["miou"] + option.gain.high > 1]
    if beyond:
        notes.append(
            f"{' and '.join(beyond)}: more labels than these runs can speak of, the intervals reach above 100 % mean IoU; ask for fewer --hours"
        )
    notes += _harm(group)
    rates: dict[LabelKind, Estimate] = {kind: posterior.rate(kind) for kind in usable if kind != "masks"}
    return Suggestion(best.name, hours, room, tuple(row.name for row in group), each, found, rates, guessed), notes


def _harm(group: Sequence[Row]) -> list[str]:
    """Names the runs that lose against one with fewer labels: the model has no words for labels that hurt."""
    found = []
    for more in group:
        fewer = [less for less in group if all(one <= other for one, other in zip(less.budget(), more.budget(), strict=True))]
        best = max(fewer, key=lambda row: row.scores["miou"])
        lost = best.scores["miou"] - more.scores["miou"]
        if best.budget() != more.budget() and lost > HARM:
            found.append(f"{more.name} ({100 * lost:.1f} points below {best.name})")
    if not found:
        return []
    return [
        f"with more labels to lower scores: {', '.join(found)}; the model cannot explain that: distrust the table, or compare again without"
    ]


def _usable(run: Run) -> list[LabelKind]:
    """Kinds of label that the recipe learns from: every stage has a loss for them, and not all of these are `none`."""
    stages = [run.recipe.stage(index) for index in range(max(1, len(run.recipe.stages)))]
    return [
        kind
        for kind in KINDS
        if not all(stage.loss.get(kind, NONE) == NONE for stage in stages) and all(kind in stage.loss for stage in stages)
    ]


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
