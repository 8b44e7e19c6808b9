"""The recipe: one point in the space of five choices (masks, network, head, loss, refresh) and a schedule, typed and validated.

`mixsup.recipes` reads one from its file. The recipe that a run stores is resolved: it has the one schedule that was used, as `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

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
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class MasksChoice(_Strict):
    """What a box and a tag become before the network has learned.

    Attributes:
        source: of the masks of boxes, a key of `mixsup.masks.SOURCES`. As for all methods, `module:name` is one of your own (docs/extending.md).
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

    @field_validator("mean", "std")
    @classmethod
    def _of_rgb_in_0_to_1(cls, value: Three | None, info: ValidationInfo) -> Three | None:
        lowest = 0 if info.field_name == "mean" else 1e-6
        if value is not None and (min(value) < lowest or max(value) > 1):
            raise ValueError("is for RGB in 0 to 1: divide numbers for 0 to 255 by 255")
        return value


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

    @field_validator("scale")
    @classmethod
    def _smallest_first(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("is the smallest and then the largest factor")
        return value


class Schedule(_Strict):
    """One way to run the optimisation.

    Attributes:
        size: side of the training crops in pixels.
        resolution: `fit` reduces images whose shorter side is above `size` to it, for training and prediction alike; `native` leaves all as they are.
        batch: images a step, over all processes.
        sampling: share of each label kind in what is drawn, as {masks: 1, boxes: 1, tags: 2}, among those that the run has; empty leaves it to
            `balance`.
        balance: n images of a kind are drawn as n^(1 - balance): at 0 all images equally often, at 1 all kinds, at 0.7 ten times as many boxes
            twice as often as masks.
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
        restart: when the rate begins anew: `never`, so that it falls once over the run; with each of the `stages`, which are trainings of their own then; or
            with the `rounds`, each stage and each refresh in it (MCOF, algorithm 1).
        clip: largest gradient norm; 0 for none.
        validations: how often the run validates and writes its checkpoints, the end included.
        val_every: validate every so many steps instead (and at the end).
        augment: see `Augmentation`.
    """

    size: Annotated[int, Field(ge=16)] = 321
    resolution: Literal["fit", "native"] = "fit"
    batch: Annotated[int, Field(ge=1)] = 8
    sampling: dict[Kind, Positive] = {}
    balance: Share = 0.0
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
    restart: Literal["never", "stages", "rounds"] = "never"
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
        for key in ("size", "resolution", "epochs", "steps", "validations", "val_every"):
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
                said = (
                    f"no such key; there are {', '.join(known_keys(Schedule, first['loc']))}"
                    if first["type"] == "extra_forbidden"
                    else first["msg"]
                )
                raise ValueError(f"stage {stage.name!r}, train.{'.'.join(map(str, first['loc']))}: {said}") from None
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
        train = merge(self.train.model_dump(), stage.train)
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


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping; an empty mapping empties (`--set train.sampling={}`)."""
    for key, value in over.items():
        base[key] = merge(dict(base[key]) if isinstance(base.get(key), dict) else {}, value) if isinstance(value, dict) and value else value
    return base


def known_keys(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that there are beside the one at `place`, as pydantic names the place of a fault: names, and numbers of those in lists."""
    for part in place[:-1]:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = next(one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel))
    return list(model.model_fields)
