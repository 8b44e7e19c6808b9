"""Loops over pixels and regions that numba compiles, kept on disk between runs.

Whole rows are not added or assigned in them: numba checks the shapes with words, which take longer to compile than the loop does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mixsup.compiling import njit

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(function: _Kernel) -> _Kernel:
    """Decorator: compiled at the first call, without the GIL, with the types of the plain function."""
    return njit(nogil=True)(function)
