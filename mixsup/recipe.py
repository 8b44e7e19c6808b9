"""The recipe: one point in the space of five choices (masks, network, head, loss, refresh) and a schedule, typed and validated.

    recipe = load_recipe("rectangles", network="deeplab-largefov", settings=["train.lr=0.002"])

A recipe file names several schedules; `schedule` picks one. The recipe that a run stores is resolved: it has the one schedule that was used, as `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixsup.errors import MixsupError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Three = tuple[float, float, float]
Kind = Literal["masks", "boxes", "tags"]
_CHOICES = (
    "masks",
    "head",
    "head_loss",
    "loss",
    "loss_options",
    "loss_weights",
    "refresh",
)  # what a stage may have of its own, besides values of the schedule


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MasksChoice(_Strict):
    """What a box and a tag become before the network has learned.

    Attributes:
        source: of the masks of boxes, a key of `mixsup.masks.SOURCES`.
        options: the source's settings.
        tags: `none`: a tagged image has no labels of pixels, and its loss needs none; `cam`: seeds from a classification network, see `mixsup.masks.cam.CAM`.
        tag_options: the settings of `cam`.
    """

    source: str = "rectangle"
    options: dict[str, Any] = {}
    tags: Literal["none", "cam"] = "none"
    tag_options: dict[str, Any] = {}


class NetworkChoice(_Strict):
    """Which network.

    Attributes:
        arch: `fcn`, `deeplab-largefov`, `deeplab-v2`, or an architecture of segmentation_models_pytorch.
        encoder: of that library or, with `tu-` in front, of timm; None for the first three, but FCN takes one in VGG16's place.
        encoder_options: of the encoder's constructor.
        output_stride: of the encoder, where the architecture has a choice.
        options: of the architecture's constructor.
        weights: `imagenet` (by name, from the usual hub), `none`, or the path of a file.
        mean, std: of the RGB input in 0..1; None for the backbone's own.
        freeze_batchnorm: keep the running statistics of the backbone's batch norms; None for the architecture's habit.
    """

    arch: str = "deeplabv3plus"
    encoder: str | None = None
    encoder_options: dict[str, Any] = {}
    output_stride: int | None = None
    options: dict[str, Any] = {}
    weights: str = "imagenet"
    mean: Three | None = None
    std: Three | None = None
    freeze_batchnorm: bool | None = None


class Augmentation(_Strict):
    """How a training image is changed, drawn anew at each visit.

    Attributes:
        scale: smallest and largest factor of the working size.
        flip: probability of mirroring left to right.
        colour: strength of the change in brightness, contrast and saturation; hue changes by a tenth of it.
    """

    scale: tuple[Positive, Positive] = (0.75, 1.5)
    flip: Share = 0.5
    colour: Share = 0.25


class Schedule(_Strict):
    """One way to run the optimisation.

    Attributes:
        size: side of the training crops in pixels.
        resolution: `fit` reduces images whose shorter side is above `size` to it, for training and prediction alike; `native` leaves all as they are.
        batch: images a step, over all processes.
        sampling: share of each label kind in what is drawn, as {masks: 1, boxes: 1, tags: 2}, among those that the run has; empty draws all images
            equally often.
        one_kind: all images of a step have the same label kind.
        epochs: visits of each image; `steps` overrides it.
        steps: optimiser steps.
        optimizer: `sgd` or `adamw`.
        lr: of pretrained layers.
        new_layers: factor for layers without pretraining.
        momentum: of SGD.
        weight_decay: of all weights but norms and biases.
        decay: `poly` (1 - step/steps)^power, `step` (÷ 10 after every `step_epochs`), or `constant`.
        power: of `poly`.
        step_epochs: of `step`, in epochs.
        warmup: steps over which the rate rises linearly from a tenth.
        clip: largest gradient norm; 0 for none.
        validations: how often the run validates and writes its checkpoints, the end included.
        val_every: validate every so many steps instead (and at the end).
        augment: see `Augmentation`.
    """

    size: Annotated[int, Field(ge=16)] = 321
    resolution: Literal["fit", "native"] = "fit"
    batch: Annotated[int, Field(ge=1)] = 8
    sampling: dict[Kind, Positive] = {}
    one_kind: bool = False
    epochs: Positive = 24
    steps: Annotated[int, Field(ge=1)] | None = None
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Positive = 2.5e-4
    new_layers: Positive = 4.0
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    decay: Literal["poly", "step", "constant"] = "poly"
    power: Positive = 0.9
    step_epochs: Positive = 15
    warmup: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(ge=0)] = 0.0
    validations: Annotated[int, Field(ge=1)] = 8
    val_every: Annotated[int, Field(ge=1)] | None = None
    augment: Augmentation = Augmentation()


class Refresh(_Strict):
    """How the masks of boxes get better while the network learns.

    Attributes:
        rule: a key of `mixsup.refresh.RULES`. One that works in every step (`em`) takes none of the next four.
        rounds: how many times, evenly spread over the run; the first part of the run uses the first masks.
        every: refresh after every so many epochs instead (BoxSup: 1).
        start: refresh also before the first step, so that the first masks are never trained on (BoxSup, section 4.3).
        scale: the network is asked at this factor of its working size.
        options: the rule's settings.
    """

    rule: str = "none"
    rounds: Annotated[int, Field(ge=0)] = 0
    every: Positive | None = None
    start: bool = False
    scale: Annotated[float, Field(ge=0.1, le=2)] = 1.0
    options: dict[str, Any] = {}

    def boundaries(self, steps: int, epoch: float) -> list[int]:
        """The steps after which masks are refreshed, ascending and below `steps`; 0 is before the first.

        Args:
            steps: of the run.
            epoch: steps of an epoch.
        """
        if self.rule == "none":
            return []
        if self.every is not None:
            stride = max(1.0, self.every * epoch)
            later = [round(stride * number) for number in range(1, int(steps / stride) + 1)]
        else:
            later = [round(steps * number / (self.rounds + 1)) for number in range(1, self.rounds + 1)]
        return sorted({step for step in later if 0 < step < steps} | ({0} if self.start else set()))


class Stage(_Strict):
    """A part of a run with choices of its own; what it does not name is as in the recipe.

    Attributes:
        name: for people.
        share: of the steps, against the shares of the other stages.
        masks, head, head_loss, loss, loss_options, loss_weights, refresh: in place of the recipe's.
        train: single values of the schedule, in place of the recipe's.
    """

    name: str
    share: Positive = 1.0
    masks: MasksChoice | None = None
    head: str | None = None
    head_loss: dict[str, NotNegative] | None = None
    loss: dict[Kind, str] | None = None
    loss_options: dict[Kind, dict[str, Any]] | None = None
    loss_weights: dict[Kind, Positive] | None = None
    refresh: Refresh | None = None
    train: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        for key in ("size", "resolution", "epochs", "steps"):
            if key in self.train:
                raise ValueError(
                    f"stage {self.name!r} cannot have its own {key}: all stages share the recipe's, and a stage's length is its share"
                )
        return self


class Recipe(_Strict):
    """A whole recipe. `train` is the schedule in force; `schedules` are the ones on offer.

    Attributes:
        name: of the recipe.
        about: a sentence for people.
        paper: what it follows, with section or table.
        masks, network, head, loss, refresh: the five choices. `loss` maps a label kind to a key of `mixsup.losses.LOSSES`; a kind that is not in
            it cannot be learned from, and images of one with `none` are left out.
        loss_options: settings of the losses, by label kind.
        loss_weights: factors of the losses, by label kind; 1 where none is given.
        head_loss: weights of the head's own losses, by name, in place of those that the head brings (`attention`, λ = 0.01, for bcm and bgm).
        stages: parts of the run, in order; empty for a run of one piece. The last one is the recipe itself: it names no choice of its own.
        schedule: which of `schedules` to use.
        schedules: by name; `train` overrides single values. In a file a stage may have such `schedules` too; they become its `train`.
    """

    name: str
    about: str = ""
    paper: str = ""
    masks: MasksChoice = MasksChoice()
    network: NetworkChoice = NetworkChoice()
    head: str = "plain"
    head_loss: dict[str, NotNegative] = {}
    loss: dict[Kind, str] = {"masks": "cross-entropy"}
    loss_options: dict[Kind, dict[str, Any]] = {}
    loss_weights: dict[Kind, Positive] = {}
    refresh: Refresh = Refresh()
    stages: list[Stage] = []
    schedule: str = "short"
    schedules: dict[str, Schedule] = {"short": Schedule()}
    train: Schedule = Schedule()

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError("two stages have the same name")
        if self.stages and any(getattr(self.stages[-1], key) is not None for key in _CHOICES):
            raise ValueError(f"the last stage is the recipe itself; write its {', '.join(_CHOICES)} at the top, not in stage {names[-1]!r}")
        for index, stage in enumerate(self.stages):
            try:
                self.stage(index)
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"stage {stage.name!r}, train.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return self

    def stage(self, index: int) -> Recipe:
        """What stage `index` trains: the recipe with that stage's choices, and without stages."""
        if not self.stages:
            return self
        stage = self.stages[index]
        own = {key: getattr(stage, key) for key in _CHOICES if getattr(stage, key) is not None}
        # Settings belong to what they stand beside: a stage with another loss or head does not take over the recipe's.
        for name, its in (("loss", "loss_options"), ("head", "head_loss")):
            if name in own:
                own.setdefault(its, {})
        train = _merge(self.train.model_dump(), stage.train)
        return self.model_copy(update={**own, "stages": [], "train": Schedule.model_validate(train)})

    def stage_ends(self, steps: int) -> list[int]:
        """The step after which each stage ends, of a run of `steps`; one stage where there are none.

        Raises:
            MixsupError: too few steps for a stage to have any.
        """
        shares = [stage.share for stage in self.stages] or [1.0]
        ends = [round(steps * sum(shares[: index + 1]) / sum(shares)) for index in range(len(shares))]
        for index, end in enumerate(ends):
            if end <= (ends[index - 1] if index else 0):
                raise MixsupError(f"stage {self.stages[index].name!r} would get none of {steps} steps; give more --steps")
        return ends

    def to_yaml(self) -> str:
        """The resolved recipe as YAML."""
        data = self.model_dump(mode="json", exclude={"schedules"})
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def recipe_names() -> list[str]:
    """Names of the recipes that come with mixsup."""
    return sorted(item.name[:-5] for item in resources.files("mixsup.recipes").iterdir() if item.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """The YAML of a recipe that comes with mixsup, or of a file.

    Raises:
        MixsupError: neither a known name nor a file.
    """
    if name in recipe_names():
        return resources.files("mixsup.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path.read_text(encoding="utf-8")
    raise MixsupError(f"no recipe {name!r}; there are {', '.join(recipe_names())}, or give a YAML file")


def load_recipe(name: str, *, network: str | None = None, settings: Sequence[str] = (), overrides: dict[str, Any] | None = None) -> Recipe:
    """Loads a recipe and resolves it.

    Args:
        name: a recipe's name or a YAML file.
        network: replaces the recipe's network: a name (`fcn`, `deeplabv3plus+tu-mobilenetv2_100`) or a YAML file.
        settings: `key=value` strings, keys dotted ("train.lr=0.01", "masks=grabcut", "schedule=paper"); values are YAML.
        overrides: values of the schedule that have flags of their own (size, batch, steps); None values are ignored.

    Raises:
        MixsupError: an unknown name or key, or a value that does not fit, with its place.
    """
    data = _mapping(recipe_text(name), f"recipe {name}")
    if network is not None:
        data["network"] = network_choice(network)
    train: dict[str, Any] = {}
    # Settings of a loss come after the loss, which brings none of the one that it replaces.
    for key, value in sorted(parse_settings(settings).items(), key=lambda item: item[0].startswith("loss_options")):
        _assign(data, train, key, value)
    train |= {key: value for key, value in (overrides or {}).items() if value is not None}

    schedules, own = data.get("schedules"), data.get("train") or {}
    if schedules is None:
        schedules = {data.get("schedule", "short"): {}}  # a resolved recipe has nothing but `train`
    chosen = data.get("schedule", "short")
    if not isinstance(schedules, dict) or chosen not in schedules:
        raise MixsupError(f"recipe {name}: no schedule {chosen!r}; it has {', '.join(map(str, schedules))}")
    data["train"] = _merge(_merge(dict(schedules[chosen] or {}), dict(own)), train)
    if isinstance(data.get("stages"), list):
        data["stages"] = [_resolved_stage(stage, chosen, train) for stage in data["stages"]]
    return _validate(data, f"recipe {name}")


def _resolved_stage(stage: Any, chosen: str, train: dict[str, Any]) -> Any:
    """A stage with the values of the chosen schedule; what the command sets (`train`) holds for all stages. What is no stage is left to `_validate`."""
    special = stage.get("schedules") if isinstance(stage, dict) else None
    if not isinstance(stage, dict) or not isinstance(special or {}, dict) or not isinstance(stage.get("train") or {}, dict):
        return stage
    held = {**((special or {}).get(chosen) or {}), **(stage.get("train") or {})}
    own = {key: value for key, value in held.items() if key not in train}
    return {**{key: value for key, value in stage.items() if key != "schedules"}, "train": own}


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` strings to a dictionary, values read as YAML.

    Raises:
        MixsupError: a string without `=`, or a value that cannot be read.
    """
    parsed = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            raise MixsupError(f"--set {setting!r}: write key=value, as in --set train.lr=0.001")
        parsed[key.strip()] = _yaml_value(setting, value)
    return parsed


def resolved_recipe(text: str, where: str) -> Recipe:
    """The recipe that a run stored."""
    return _validate(_mapping(text, where), where)


def network_choice(text: str) -> dict[str, Any]:
    """What `--network` says: `arch`, `arch+encoder`, or a YAML file (whose `weights` path starts from the file's folder)."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise MixsupError(f"{path}: no such network file; check the path")
        data = _mapping(path.read_text(encoding="utf-8"), str(path))
        weights = data.get("weights")
        if isinstance(weights, str) and weights not in ("imagenet", "none"):
            data["weights"] = str((path.parent / weights).resolve())
        try:
            NetworkChoice.model_validate(data)
        except ValidationError as error:
            raise _invalid(error, str(path)) from None
        return data
    arch, _, encoder = text.partition("+")
    return {"arch": arch, "encoder": encoder or None}


def _assign(data: dict[str, Any], train: dict[str, Any], key: str, value: Any) -> None:
    shorthand = {"masks": "masks.source", "refresh": "refresh.rule", "network": "network"}
    if key in shorthand and isinstance(value, str):
        if key == "network":
            data["network"] = network_choice(value)
            return
        key = shorthand[key]
    if key == "loss" and isinstance(value, str):
        for kind in data.get("loss", {"masks": ""}):
            if kind != "tags" or value == "none":  # tags have no pixels to charge: a loss of theirs is meant for them alone, as `loss.tags`
                _assign(data, train, f"loss.{kind}", value)
        return
    if key.startswith("loss.") and data.get("loss", {}).get(key[5:]) != value:
        data.get("loss_options", {}).pop(key[5:], None)
    parts = key.split(".")
    place = train if parts[0] == "train" and len(parts) > 1 else data
    parts = parts[1:] if place is train else parts
    for part in parts[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise MixsupError(f"--set {key}: {part!r} has no settings below it; see `mixsup recipes NAME`")
        place = inner
    place[parts[-1]] = value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping; an empty mapping empties (`--set train.sampling={}`)."""
    for key, value in over.items():
        base[key] = _merge(dict(base.get(key) or {}), value) if isinstance(value, dict) and value else value
    return base


def _yaml_value(setting: str, value: str) -> Any:
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise MixsupError(f"--set {setting!r}: the value cannot be read; quote it as YAML") from None
    # YAML reads 1e-3 as a string; people who type it mean the number.
    if isinstance(parsed, str):
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise MixsupError(f"{where}{f', line {mark.line + 1}' if mark else ''}: YAML that cannot be read; correct it") from None
    if not isinstance(data, dict):
        raise MixsupError(f"{where}: not a YAML mapping; write `key: value` lines")
    return data


def _validate(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _invalid(error, where) from None


def _invalid(error: ValidationError, where: str) -> MixsupError:
    first = error.errors()[0]
    place = f", {'.'.join(str(part) for part in first['loc'])}" if first["loc"] else ""
    return MixsupError(f"{where}{place}: {first['msg'].removeprefix('Value error, ')}; see docs/recipes.md for the keys")
