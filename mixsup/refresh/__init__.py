"""How the masks of boxes get better while the network learns: one file a rule.

A rule of rounds (`RefreshRule`) looks at one image at a time (`Case`): the network's probabilities, the first masks and the present ones; it returns
new per-box masks. When rounds happen, and where the results are kept, is the engine's business. A rule of steps (`StepRule`) makes the target of each
training view (`View`) from the scores of that very step. A rule of the set (`SetRule`) trains a network of its own on all images in each round.
"""

from __future__ import annotations

from typing import Any

from mixsup.named import named, no_class_of
from mixsup.refresh.boxsup import BoxSup
from mixsup.refresh.direct import Direct
from mixsup.refresh.em import EM
from mixsup.refresh.mcof import MCOF
from mixsup.refresh.rule import Case, RefreshRule, SetRule, StepRule, View
from mixsup.refresh.sdi import SDI
from mixsup.settings import checked

__all__ = ["RULES", "Case", "RefreshRule", "SetRule", "StepRule", "View", "build_rule", "rule_named"]

RULES: dict[str, type[RefreshRule] | type[SetRule] | type[StepRule]] = {
    "boxsup": BoxSup,
    "direct": Direct,
    "em": EM,
    "mcof": MCOF,
    "sdi": SDI,
}


def rule_named(name: str) -> type[RefreshRule] | type[SetRule] | type[StepRule]:
    """The class of a refresh rule: a key of `RULES`, or `module:Class` of one of your own, which works in rounds on each image or in every step.

    Raises:
        MixsupError: no such rule.
    """
    found: type[RefreshRule] | type[SetRule] | type[StepRule] = named(
        name, RULES, "refresh rule", no_class_of(RefreshRule, StepRule), "none, "
    )
    return found


def build_rule(name: str, options: dict[str, Any] | None = None) -> RefreshRule | SetRule | StepRule | None:
    """A refresh rule by name; None for `none`.

    Raises:
        MixsupError: no such rule, or a setting that it does not have or accept.
    """
    if name == "none":
        return None
    rule = rule_named(name)
    with checked(f"refresh rule {name!r}", rule, "refresh.options"):
        return rule(**(options or {}))
