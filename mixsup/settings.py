"""Names and settings that a user wrote, and what is said when one of them is wrong."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from mixsup.errors import MixsupError


def named(name: str, table: Mapping[str, Any], what: str, fits: Callable[[Any], bool], more: str = "") -> Any:
    """What a recipe calls by a name: an entry of `table`, or `module:name`, a method of the user's own (docs/extending.md).

    Modules are looked for where Python does, and in the working directory.

    Args:
        name: that the user wrote.
        table: the methods that mixsup has.
        what: they are ("refresh rule").
        fits: whether something of the user's own is one.
        more: names beside those of the table, for the message.

    Raises:
        MixsupError: there is nothing of that name, or it is something else.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise MixsupError(f"no {what} {name!r}; there are {more}{', '.join(table)}, and your own as module:name")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a file that somebody is writing may fail in any way
        raise MixsupError(
            f"{what} {name!r} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]}); correct it"
        ) from error
    if not fits(found):
        raise MixsupError(f"{what} {name!r} is none; see docs/extending.md for what it has to be")
    return found


def subclass_of(*bases: type) -> Callable[[Any], bool]:
    """Whether something is a class below one of these, for `named`."""
    return lambda found: isinstance(found, type) and issubclass(found, bases) and found not in bases


@contextmanager
def checked(what: str, made: Any, place: str) -> Iterator[None]:
    """Around the making of a (pydantic) dataclass: the first setting that it does not have or accept becomes one line.

    Args:
        what: whose settings they are ("refresh rule 'boxsup'").
        made: the dataclass.
        place: where a user writes them ("refresh.options").

    Raises:
        MixsupError: a setting was refused.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            known = ", ".join(field.name for field in fields(made))
            raise MixsupError(
                f"{what} has no setting {setting!r}, see `{place}`; {f'there are {known}' if known else 'it has none'}"
            ) from None
        which = f", setting {setting!r}" if setting else ""  # settings that do not go together have no one name
        raise MixsupError(f"{what}{which}: {first['msg'].removeprefix('Value error, ')}; correct it in `{place}`") from None
