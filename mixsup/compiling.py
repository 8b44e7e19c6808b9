"""numba's compiler, for machines where nothing can be written beside the package or in the home folder, too."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def njit(**options: Any) -> Callable[[_Kernel], _Kernel]:
    """`numba.njit`, kept on disk between runs: where numba keeps what it compiles, or else where `_keep_elsewhere` says."""

    def decorate(function: _Kernel) -> _Kernel:
        try:
            return cast(_Kernel, numba.njit(cache=True, **options)(function))
        except RuntimeError:  # numba found no folder that can be written to
            _keep_elsewhere()
            return cast(_Kernel, numba.njit(cache=True, **options)(function))

    return decorate


def _keep_elsewhere() -> None:
    """Has this process, and those that it starts, keep kernels among mixsup's own caches, or in a folder that is removed at the end."""
    from mixsup.masks.store import default_cache  # here, because masks are made by kernels

    folder = default_cache() / "numba"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="mixsup-numba-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    settings: Any = numba.config
    settings.reload_config()  # now: at the first compilation it would take back what was set by then
