"""The recipes that come with mixsup, one YAML file each, and how a recipe is read: a name or a file, a schedule, and what the command sets.

    recipe = load_recipe("rectangles", network="deeplab-largefov", settings=["train.lr=0.002"])

A recipe file names several schedules, each with its values of `train` and, where they differ, its first masks; `schedule` picks one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mixsup.errors import MixsupError
from mixsup.recipe import NetworkChoice, Recipe, known_keys, merge

_CHOICES = ("masks", "masks.source", "refresh", "refresh.rule", "loss")


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
    if path.suffix in (".yaml", ".yml"):
        raise MixsupError(f"{path}: no such recipe file; check the path")
    raise MixsupError(f"no recipe {name!r}; there are {', '.join(recipe_names())}, or give a YAML file")


def load_recipe(
    name: str, *, network: str | Path | None = None, settings: Sequence[str] = (), overrides: dict[str, Any] | None = None
) -> Recipe:
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
        data["network"] = network_choice(str(network))
    train: dict[str, Any] = {}
    stored, given = data.get("schedule", "short"), parse_settings(settings)
    _bring_masks(data, given.get("schedule", stored))
    # Settings of a choice come after the choice, which brings none of the one that it replaces.
    for key, value in sorted(given.items(), key=lambda item: item[0] not in _CHOICES and not item[0].startswith("loss.")):
        _assign(data, train, key, value)
    train |= {key: value for key, value in (overrides or {}).items() if value is not None}

    schedules, own = data.get("schedules"), data.get("train") or {}
    chosen = data.get("schedule", "short")
    if schedules is None:
        schedules = {stored: {}}  # a resolved recipe has nothing but `train`
    if not isinstance(schedules, dict) or not isinstance(chosen, str) or chosen not in schedules:
        raise MixsupError(
            f"recipe {name}: no schedule {chosen!r}; it has {', '.join(map(str, schedules)) if isinstance(schedules, dict) else 'none'}"
        )
    for place, values in (("train", own), (f"schedules.{chosen}", schedules[chosen] or {})):
        if not isinstance(values, dict):
            raise MixsupError(f"recipe {name}, {place}: {values!r} is no mapping of values; write one below it, as train.lr=0.001")
    data["train"] = merge(merge(dict(schedules[chosen] or {}), dict(own)), train)
    if isinstance(data.get("stages"), list):
        data["stages"] = [_resolved_stage(stage, chosen, train) for stage in data["stages"]]
    return _validate(data, f"recipe {name}")


def _bring_masks(data: dict[str, Any], chosen: Any) -> None:
    """A schedule may have first masks of its own. What is no mapping is left to `load_recipe`, which says so."""
    for name, values in _inner(data, "schedules").items():
        masks = values.pop("masks", None) if isinstance(values, dict) else None
        if name == chosen and masks is not None:
            data["masks"] = {**_inner(data, "masks"), "options": {}, **masks} if isinstance(masks, dict) else masks


def _resolved_stage(stage: Any, chosen: str, train: dict[str, Any]) -> Any:
    """A stage with the values of the chosen schedule, its share of the steps among them; what the command sets (`train`) holds for all stages. What is no
    stage is left to `_validate`."""
    special = stage.get("schedules") if isinstance(stage, dict) else None
    if not isinstance(stage, dict) or not isinstance(special or {}, dict) or not isinstance(stage.get("train") or {}, dict):
        return stage
    held = {**((special or {}).get(chosen) or {}), **(stage.get("train") or {})}
    share = {"share": held.pop("share")} if "share" in held else {}
    own = _without(held, train)
    return {**{key: value for key, value in stage.items() if key != "schedules"}, **share, "train": own}


def _without(held: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`held` without the values that `given` has, mapping by mapping."""
    left = {}
    for key, value in held.items():
        if key not in given:
            left[key] = value
        elif isinstance(value, dict) and isinstance(given[key], dict) and given[key]:
            left[key] = _without(value, given[key])
    return left


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`key=value` strings to a dictionary, values read as YAML.

    Raises:
        MixsupError: a string without `=`, or a value that cannot be read.
    """
    parsed = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            raise MixsupError(f"--set {setting!r}: write key=value, as in --set name=0.5")
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
            data["weights"] = str((path.parent / Path(weights).expanduser()).resolve())
        try:
            NetworkChoice.model_validate(data)
        except ValidationError as error:
            raise _invalid(error, str(path), NetworkChoice) from None
        return data
    arch, _, encoder = text.partition("+")
    return {"arch": arch, "encoder": encoder or None}


def _assign(data: dict[str, Any], train: dict[str, Any], key: str, value: Any) -> None:
    if key == "network" and isinstance(value, str):
        data["network"] = network_choice(value)
        return
    if key in ("masks", "refresh") and isinstance(value, str):
        key = {"masks": "masks.source", "refresh": "refresh.rule"}[key]
    loss = data.get("loss", {"masks": ""})
    if key == "loss" and isinstance(value, str) and isinstance(loss, dict):
        for kind in loss:
            if kind != "tags" or value == "none":  # tags have no pixels to charge: a loss of theirs is meant for them alone, as `loss.tags`
                _assign(data, train, f"loss.{kind}", value)
        return
    _forget_settings(data, key, value)
    parts = key.split(".")
    place = train if parts[0] == "train" and len(parts) > 1 else data
    parts = parts[1:] if place is train else parts
    for part in parts[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise MixsupError(f"--set {key}: {part!r} has no settings below it; see `mixsup recipes NAME`")
        place = inner
    place[parts[-1]] = value
    if place is train and key in ("train.sampling", "train.balance") and value:  # two ways to say one thing: the last counts
        train.update(balance=0.0) if key == "train.sampling" else train.update(sampling={})


def _forget_settings(data: dict[str, Any], key: str, value: Any) -> None:
    """Takes the settings of what a command replaces out of the recipe; they belong to that, and its like would refuse or misread them."""
    from mixsup.refresh import StepRule, rule_named  # brings torch, which a list of recipes does not need

    choice, _, name = key.partition(".")
    if choice == "loss" and name and _inner(data, "loss").get(name) != value:
        for place in ("loss_options", "loss_weights"):
            _inner(data, place).pop(name, None)
    if key in ("masks.source", "refresh.rule"):
        own = _inner(data, choice)
        if own.get(name) != value:
            own.pop("options", None)
        if (
            key == "refresh.rule" and isinstance(value, str) and value != "none" and issubclass(rule_named(value), StepRule)
        ):  # which knows no rounds
            for setting in ("rounds", "every", "start", "scale"):
                own.pop(setting, None)


def _inner(data: dict[str, Any], key: str) -> dict[str, Any]:
    """What a recipe has below `key`; nothing where that is no mapping, of which `_validate` says so."""
    found = data.get(key)
    return found if isinstance(found, dict) else {}


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
        raise _invalid(error, where, Recipe) from None


def _invalid(error: ValidationError, where: str, model: type[BaseModel]) -> MixsupError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return MixsupError(f"{where}: no key {key!r}; there are {', '.join(known_keys(model, first['loc']))}")
    return MixsupError(
        f"{where}{f', {key}' if key else ''}: {first['msg'].removeprefix('Value error, ')}; see docs/recipes.md for the keys"
    )
