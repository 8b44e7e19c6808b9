"""The five choices of a stage as objects, and every combination of them that has no meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_fabric import Fabric

from mixsup.data.sample import LabelKind
from mixsup.errors import MixsupError
from mixsup.heads import head_losses
from mixsup.losses import NONE, Criterion, charges_pixels
from mixsup.masks import build_source
from mixsup.masks.box_pool import BoxPool
from mixsup.masks.cam import CAM
from mixsup.masks.proposals import ProposalSource
from mixsup.masks.rectangle import Rectangle
from mixsup.masks.source import MaskSource
from mixsup.recipe import MasksChoice, Recipe, Refresh
from mixsup.refresh import RefreshRule, SetRule, StepRule, build_rule
from mixsup.settings import checked


@dataclass(frozen=True)
class Choices:
    """What a stage's recipe asks for, but for the network and its head.

    Attributes:
        recipe: of the stage.
        source: of the first masks.
        criterion: the losses.
        cam: of the seeds of tagged images; None where tags get no labels of pixels.
        rule: works in rounds; a stage has this or `step_rule`, or neither.
        step_rule: makes targets at every step.
        proposer: of the candidates of `rule`, for one that chooses from candidates.
        measured_on: the source whose masks filling rates are measured on; None where no loss needs them.
    """

    recipe: Recipe
    source: MaskSource
    criterion: Criterion
    cam: CAM | None
    rule: RefreshRule | SetRule | None
    step_rule: StepRule | None
    proposer: BoxPool | None
    measured_on: MaskSource | None


def choose(recipe: Recipe) -> Choices:
    """Builds what a stage names.

    Raises:
        MixsupError: an unknown name or setting, or a rule that cannot work with these first masks.
    """
    weights = head_losses(recipe.head)
    for name in recipe.head_loss:
        if name not in weights:
            raise MixsupError(f"head {recipe.head!r} has no loss {name!r} that head_loss could weigh; leave it out, or choose another head")
    criterion = Criterion(recipe.loss, recipe.loss_options, {**weights, **recipe.head_loss}, recipe.loss_weights)
    named = build_source(recipe.masks.source, recipe.masks.options)
    built = build_rule(recipe.refresh.rule, recipe.refresh.options)
    rule, step_rule = (None, built) if isinstance(built, StepRule) else (built, None)
    cam = build_cam(recipe.masks)
    if cam is not None:
        cam.check()
    if isinstance(rule, SetRule):
        rule.check()
    measured_on, loss = None, criterion.filling_rate()
    if loss is not None and loss.variant != "global":
        measured_on = loss.source() or named
    proposer = rule.pool(named) if isinstance(rule, RefreshRule) else None
    return Choices(recipe, first_source(recipe), criterion, cam, rule, step_rule, proposer, measured_on)


def build_cam(choice: MasksChoice) -> CAM | None:
    """What makes seeds of tags; None for `none`.

    Raises:
        MixsupError: a setting that it does not have or accept.
    """
    if choice.tags == "none":
        if choice.tag_options:
            raise MixsupError("masks.tag_options has settings, but masks.tags is none; set masks.tags=cam, or leave the settings out")
        return None
    with checked("seeds 'cam'", CAM, "masks.tag_options"):
        return CAM(**choice.tag_options)


def first_source(recipe: Recipe) -> MaskSource:
    """What makes the first masks: the recipe's source, but rectangles where its rule chooses from a pool of that source before the first step.

    Nobody trains on them then, and choosing them from the pool would cost as much as the pool.

    Raises:
        MixsupError: see `build_source` and `build_rule`.
    """
    source, rule = build_source(recipe.masks.source, recipe.masks.options), build_rule(recipe.refresh.rule, recipe.refresh.options)
    chooses = (
        recipe.refresh.start and isinstance(source, ProposalSource) and isinstance(rule, RefreshRule) and rule.pool(source) is not None
    )
    return Rectangle() if chooses else source


def refuse_two_seeds(stages: Sequence[Choices]) -> None:
    """Refuses stages whose seeds would differ: a run has one classification network, one set of superpixels and one set of seeds.

    Raises:
        MixsupError: two stages have other settings.
    """
    made = [stage.cam for stage in stages if stage.cam is not None]
    if any(cam != made[0] for cam in made):
        raise MixsupError(
            "stages make seeds of tags with different masks.tag_options, and a run makes them once; give all of them the same"
        )


def refuse_meaningless(choices: Choices, kinds: set[LabelKind], fabric: Fabric) -> None:
    """Refuses what would train without an error and mean nothing.

    Args:
        choices: of the stage.
        kinds: the label kinds that the budget has.
        fabric: how many processes share a batch.

    Raises:
        MixsupError: with the reason.
    """
    recipe, refresh, rule = choices.recipe, choices.recipe.refresh, choices.rule or choices.step_rule
    renews: tuple[LabelKind, ...] = rule.renews if isinstance(rule, (StepRule, SetRule)) else ("boxes",)
    blind = [kind for kind in renews if recipe.loss.get(kind, NONE) != NONE and not charges_pixels(recipe.loss[kind])]
    renews = tuple(kind for kind in renews if kind not in blind)
    if rule is not None and not renews:
        raise MixsupError(
            f"refresh {refresh.rule!r} makes labels of pixels, and loss {recipe.loss[blind[0]]!r} looks at none of them; set another loss, as "
            f"loss.tags=cross-entropy, or refresh=none"
        )
    if rule is not None and kinds.isdisjoint(renews):
        raise MixsupError(
            f"refresh {refresh.rule!r} renews the masks of {' and '.join(renews)}, but the label budget has none; use refresh=none or give "
            f"{' or '.join(renews)}, as in --labels {renews[0]}"
        )
    if recipe.train.sampling and recipe.train.balance:
        raise MixsupError(
            "train.sampling gives each kind of label its share, and train.balance would; set train.sampling={} or train.balance=0"
        )
    if recipe.train.sampling and not kinds <= set(recipe.train.sampling):
        left = " and ".join(sorted(kinds - set(recipe.train.sampling)))
        raise MixsupError(
            f"train.sampling leaves out {left}, which the label budget has; give {left} a share, or set loss.{left.split()[0]}=none"
        )
    pixels = choices.cam is not None or (isinstance(rule, StepRule) and "tags" in renews)
    if "tags" in kinds and charges_pixels(recipe.loss["tags"]) and not pixels:
        raise MixsupError(
            f"loss {recipe.loss['tags']!r} needs a class for each pixel, and tags give none; set masks.tags=cam or refresh=em, or leave the tags out"
        )
    if choices.cam is not None and "tags" in kinds and not charges_pixels(recipe.loss["tags"]):
        raise MixsupError(
            f"masks.tags=cam makes labels of pixels, and loss {recipe.loss['tags']!r} looks at none; set loss.tags=cross-entropy, or masks.tags=none"
        )
    if choices.cam is not None and isinstance(rule, StepRule) and "tags" in renews:
        raise MixsupError(f"refresh {refresh.rule!r} makes the labels of tags in every step; set masks.tags=none, or refresh=none")
    if isinstance(rule, SetRule) and choices.cam is None:
        raise MixsupError(f"refresh {refresh.rule!r} begins with seeds of the tags, and masks.tags is none; set masks.tags=cam")
    if isinstance(rule, SetRule) and not refresh.start:
        raise MixsupError(f"refresh {refresh.rule!r} mines before the network learns; set refresh.start=true")
    if isinstance(rule, StepRule) and "boxes" in renews and choices.criterion.soft() is not None:
        raise MixsupError(
            f"refresh {refresh.rule!r} gives each pixel of a box one class in every step, and loss 'soft' shares pixels between the classes of masks; "
            f"set loss.boxes=cross-entropy, or another refresh"
        )
    if isinstance(rule, StepRule):
        for name in ("rounds", "every", "start", "scale"):
            if getattr(refresh, name) != Refresh.model_fields[name].default:
                raise MixsupError(f"refresh {refresh.rule!r} works in every step and knows no refresh.{name}; leave that out")
    elif rule is not None and refresh.rounds < 1 and refresh.every is None and not refresh.start:
        raise MixsupError(f"refresh {refresh.rule!r} with 0 rounds does nothing; set refresh.rounds or refresh.every, or refresh=none")
    if recipe.train.batch % fabric.world_size:
        raise MixsupError(f"a batch of {recipe.train.batch} cannot be shared by {fabric.world_size} processes; set --batch to a multiple")
    if "boxes" not in kinds:
        if "attention" in choices.criterion.head:
            raise MixsupError(
                f"head {recipe.head!r} learns its maps from boxes, and the label budget has none; give some boxes, or set head=cm or head=plain"
            )
        if "filling-rate" in recipe.loss.values():
            raise MixsupError(
                "loss 'filling-rate' drops pixels of boxes, and the label budget has none; give some boxes, or set loss=cross-entropy"
            )
    elif choices.measured_on is not None and choices.measured_on.name == "rectangle":
        raise MixsupError(
            "filled rectangles fill their boxes, so that loss 'filling-rate' would drop nothing; set loss_options.boxes.measured_on=crf, "
            "or loss_options.boxes.variant=global"
        )
