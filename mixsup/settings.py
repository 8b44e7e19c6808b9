"""Settings that a user wrote, and what is said when one of them is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from pydantic import ValidationError

from mixsup.errors import MixsupError


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
