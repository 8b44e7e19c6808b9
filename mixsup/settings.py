"""Settings that a user wrote, and what is said when one of them is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from mixsup.errors import MixsupError


@contextmanager
def checked(what: str, remedy: str) -> Iterator[None]:
    """Around the making of a (pydantic) dataclass: the first setting that it does not have or accept becomes one line.

    Args:
        what: whose settings they are ("refresh rule 'boxsup'").
        remedy: what to do ("correct it in `refresh.options`").

    Raises:
        MixsupError: a setting was refused.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        raise MixsupError(f"{what}, setting {setting!r}: {first['msg']}; {remedy}") from None
