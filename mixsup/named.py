"""Methods by name: those that mixsup has, and those of a user's own file (docs/extending.md)."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from pydantic.dataclasses import is_pydantic_dataclass

from mixsup.errors import MixsupError

_files: set[str] = set()  # of the modules that users have named


def named(name: str, table: Mapping[str, Any], what: str, fault: Callable[[Any], str | None], more: str = "") -> Any:
    """What a recipe calls by a name: an entry of `table`, or `module:name`, a method of the user's own.

    Modules are looked for where Python does, and in the working directory. Processes that compute masks need no file of theirs: what is in them travels.

    Args:
        name: that the user wrote.
        table: the methods that mixsup has.
        what: they are ("refresh rule").
        fault: why something of the user's own cannot be one ("is no RefreshRule"), or None; see `no_class_of`.
        more: names beside those of the table, for the message.

    Raises:
        MixsupError: there is nothing of that name, it cannot be imported, or it is something else.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise MixsupError(f"no {what} {name!r}; there are {more}{', '.join(table)}, and your own as module:name")
    loaded = _imported(module, f"{what} {name!r}")
    if not hasattr(loaded, attribute):
        raise MixsupError(
            f"{what} {name!r}: {getattr(loaded, '__file__', None) or module} has no {attribute!r}; correct the name, or that of the file if this is another one"
        )
    found = getattr(loaded, attribute)
    reason = fault(found)
    if reason is not None:
        raise MixsupError(f"{what} {name!r} {reason}; see docs/extending.md")
    return found


def no_class_of(*bases: type, settings: bool = True) -> Callable[[Any], str | None]:
    """Why something is not a class below one of these that can be made, for `named`; with `settings` its fields have to be checked by pydantic."""

    def fault(found: Any) -> str | None:
        if not isinstance(found, type) or not issubclass(found, bases) or found in bases:
            return f"is no {' or '.join(base.__name__ for base in bases)}"
        if inspect.isabstract(found):
            return f"does not define {', '.join(sorted(getattr(found, '__abstractmethods__', ())))}"
        promised = [key for base in found.__mro__ for key, kind in vars(base).get("__annotations__", {}).items() if "ClassVar" in str(kind)]
        missing = [key for key in promised if not hasattr(found, key)]
        if missing:
            return f"does not say its {', '.join(missing)}"
        if settings and not is_pydantic_dataclass(found):
            return "is no dataclass of pydantic's; put @dataclass(frozen=True, config=STRICT) above it"
        return None

    return fault


def no_loss(found: Any) -> str | None:
    """Why something cannot charge outputs and a batch, for `named`."""
    if isinstance(found, type):
        if not is_pydantic_dataclass(found):
            return "is neither a function nor a dataclass of pydantic's"
        found, first = found.__call__, 1
    else:
        first = 0
    if not callable(found):
        return "is no function"
    taken = [
        one for one in inspect.signature(found).parameters.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    return None if len(taken) - first == 2 else "does not take outputs and a batch"


def own_place(error: BaseException, files: Collection[str] | None = None) -> str | None:
    """Where in a user's own file something failed, as FILE:LINE; None for a failure elsewhere.

    Args:
        error: with its traceback.
        files: of the user; None for those that were named in this process.
    """
    known = _files if files is None else files
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename in known]
    return places[-1] if places else None


def _imported(module: str, whose: str) -> ModuleType:
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # removed under the process
        folder = ""
    if folder and folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()  # the file may be a second old, in a notebook
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a file that somebody is writing may fail in any way
        remedy = "correct it"
        if isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0]):
            remedy = "run this in the folder of that file, or put it on PYTHONPATH"
        raise MixsupError(
            f"{whose} cannot be imported ({type(error).__name__}: {' '.join(str(error).split())[:200]}{_line(error)}); {remedy}"
        ) from error
    file = getattr(loaded, "__file__", None)  # none for what is built into Python
    if loaded.__name__.partition(".")[0] != "mixsup" and file is not None:
        _files.add(file)
        for pickler in ("cloudpickle", "joblib.externals.cloudpickle"):  # Dask's and joblib's
            with suppress(ImportError):
                importlib.import_module(pickler).register_pickle_by_value(loaded)
    return loaded


def _line(error: BaseException) -> str:
    """The innermost line outside of the import system, for the end of a message."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<") and frame.filename != __file__
    ]
    frames = [frame for frame in frames if frame.filename != importlib.__file__]
    return f", {frames[-1].filename} line {frames[-1].lineno}" if frames else ""
