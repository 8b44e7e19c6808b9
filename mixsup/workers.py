"""One map over images: on the cores of this machine (joblib) or on a Dask cluster. Neither is home-made; this file says how mixsup uses them.

Images are the parallel dimension. So a worker computes one image at a time on one thread, and only a bounded number of images is under way: memory
does not grow with the number of images. Results come as they get done, in any order.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor

from mixsup.errors import MixsupError
from mixsup.version import __version__

Item = TypeVar("Item")
Result = TypeVar("Result")

_CONNECT_SECONDS = 8.0  # to reach a scheduler
_WORKER_SECONDS = 60.0  # until a cluster that starts workers on demand has one
_LOOK_SECONDS = 15.0  # between two looks whether workers are left, while no result comes
_IDLE_SECONDS = 300  # after which processes that compute beside this one end; joblib's own have as long
_AHEAD = 3  # images under way for each worker thread of a cluster: one computed, the others on their way
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")  # read when the libraries are loaded
_LATE = (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError)  # three classes before Python 3.11
# What joblib says of its generator when the user stops; one line says it already.
warnings.filterwarnings("ignore", message=r"\d+ tasks which were still being processed", category=UserWarning)
_ONE_AT_A_TIME = threading.Lock()  # numba's thread pool and some libraries must not be entered by two threads of one process


def spread(function: Callable[[Item], Result], items: Iterable[Item], jobs: int = -1) -> Iterator[Result]:
    """`function` of each item, on `jobs` processes of this machine (-1: one a core; 1: in this process).

    Raises:
        MixsupError: what `function` raised, or a worker process was killed.
    """
    call = partial(_in_worker if jobs != 1 else _here, function)
    # `items` is read as work is handed out, a few ahead of the workers.
    workers = Parallel(n_jobs=jobs, return_as="generator_unordered")
    try:
        yield from workers(delayed(call)(item) for item in items)
    except BrokenProcessPool:
        raise MixsupError(
            "a worker process was killed, most often because memory ran out; free memory, or make the masks first by `mixsup masks` with fewer "
            "--jobs; what was computed stays"
        ) from None


@lru_cache(maxsize=1)
def _standing(jobs: int) -> ProcessPoolExecutor:
    """Processes that stay for the next call. joblib's own are for `spread`: it expects to find them as it left them."""
    return ProcessPoolExecutor(max_workers=jobs, timeout=_IDLE_SECONDS, env=dict.fromkeys(_THREADS, "1"))


Submit = Callable[[Callable[[Any], Any], Any], "Future[Any]"]


@contextmanager
def beside(jobs: int) -> Iterator[Submit]:
    """A place where work is done while this thread goes on: another thread (`jobs` 1), which leaves all cores to the function, or so many processes of one
    thread each, which take seconds to start and stay for the next call.

    Yields:
        What takes a function and its item, and gives a future.

    Raises:
        MixsupError: a worker process was killed.
    """
    if jobs == 1:
        with ThreadPoolExecutor(1) as thread:
            yield thread.submit
        return
    try:
        yield lambda function, item: _standing(jobs).submit(_in_worker, function, item)
    except BrokenProcessPool:
        _standing.cache_clear()
        raise MixsupError("a worker process was killed, most often because memory ran out; free memory, or give fewer --workers") from None


def spread_on_cluster(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    address: str,
    shared: Iterable[Path],
    killed: Callable[[Item], Result],
) -> Iterator[Result]:
    """`function` of each item, on the workers of a Dask cluster.

    Args:
        function: can be pickled; the workers have the same mixsup.
        items: can be pickled; they are sent a few at a time.
        address: of the scheduler (`tcp://host:8786`), or its scheduler file.
        shared: files and folders that every worker must see under the same path.
        killed: gives the result of an item whose computation killed its worker, on each try that Dask makes.

    Raises:
        MixsupError: no Dask here, no cluster there, no worker in it, another mixsup on it, a folder that it does not see; or what `function` raised.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise MixsupError("--cluster needs Dask; pip install 'mixsup[cluster]'") from None
    with _hushed():
        yield from _on_cluster(distributed, function, items, address, shared, killed)


def _on_cluster(
    distributed: Any,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    address: str,
    shared: Iterable[Path],
    killed: Callable[[Item], Result],
) -> Iterator[Result]:
    client = _connect(distributed, address)
    pending: dict[Any, Item] = {}
    suspects: list[Item] = []
    waiting, alone = iter(items), False
    # Dask would send a method of the user's own by its name, and the scheduler as well as the workers would have to find its file.
    call = partial(_unpacked, import_module("cloudpickle").dumps(function))
    try:
        _probe_workers(client, address, [str(path) for path in shared])
        while True:
            room = 1 if alone else _room(client)  # workers come and go
            for item in islice(waiting, max(0, room - len(pending))):
                # Not pure: two samples with the same labels are two tasks.
                pending[client.submit(call, item, pure=False)] = item
            if not pending and (alone or not suspects):
                return
            if not pending:
                # Dask blames all tasks that a killed worker had; one at a time, only the guilty kill again.
                waiting, alone = iter(suspects), True
                continue
            for future in _some_done(distributed, client, address, list(pending)):
                if future.status in ("lost", "pending"):  # its worker was killed with the result, which Dask computes again
                    continue
                item = pending.pop(future)
                error = future.exception() if future.status == "error" else None
                if isinstance(error, distributed.KilledWorker) and not alone:
                    suspects.append(item)
                elif isinstance(error, distributed.KilledWorker):
                    yield killed(item)
                elif error is not None:
                    raise error
                elif future.status != "finished":
                    raise _gone(address)
                else:
                    yield future.result()
                future.release()
    except (OSError, *_LATE, distributed.comm.CommClosedError) as error:
        raise _gone(address) from error
    finally:
        _leave(client, list(pending))


def _here(function: Callable[[Item], Result], item: Item) -> Result:
    with one_thread():
        return function(item)


def _in_worker(function: Callable[[Item], Result], item: Item) -> Result:
    # Libraries that are not loaded yet read these when they are.
    for name, module in (("OMP_NUM_THREADS", "torch"), ("NUMBA_NUM_THREADS", "numba")):
        if module not in sys.modules:  # numba refuses to go on when its variable changes under it
            os.environ[name] = "1"
    with _ONE_AT_A_TIME, one_thread():
        return function(item)


def _unpacked(function: bytes, item: Any) -> Any:
    return _in_worker(_loaded(function), item)


@lru_cache(maxsize=8)
def _loaded(function: bytes) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = import_module("cloudpickle").loads(function)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV, and PyTorch and numba where they are loaded, compute on one thread inside the block and as before behind it."""
    import cv2

    torch, numba = sys.modules.get("torch"), sys.modules.get("numba")
    before = cv2.getNumThreads(), torch.get_num_threads() if torch else 1, numba.get_num_threads() if numba else 1
    cv2.setNumThreads(1)
    if torch:
        torch.set_num_threads(1)
    if numba:
        numba.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        if torch:
            torch.set_num_threads(before[1])
        if numba:
            numba.set_num_threads(before[2])


@contextmanager
def _hushed() -> Iterator[None]:
    """Dask logs tracebacks for what is said here in one line."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("distributed", "tornado")]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _connect(distributed: Any, address: str) -> Any:
    try:
        where = json.loads(Path(address).read_text())["address"] if Path(address).is_file() else address
        # Knock first: a client that never got through holds its process back at the end and complains.
        asyncio.run(_knock(distributed, where))
        return distributed.Client(where, timeout=_CONNECT_SECONDS, set_as_default=False)
    except Exception as error:  # a name that is no address, no route, no answer, another protocol: each has a class of its own
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise MixsupError(
            f"--cluster {address}: no Dask scheduler answers ({reason}); start one with `dask scheduler` and give its address, as in tcp://host:8786"
        ) from None


async def _knock(distributed: Any, address: str) -> None:
    keys = distributed.Security().get_connection_args("client")  # TLS, where the user's Dask configuration says so
    comm = await distributed.comm.connect(address, timeout=_CONNECT_SECONDS, **keys)
    comm.abort()


def _probe(paths: list[str]) -> tuple[str, list[str]]:
    """On a worker: its mixsup, and the paths that it does not see."""
    return __version__, [path for path in paths if not os.path.exists(path)]


def _probe_workers(client: Any, address: str, paths: list[str]) -> None:
    try:
        # A task first: a cluster that grows on demand has no worker before there is work.
        client.submit(_probe, paths, pure=False).result(timeout=_WORKER_SECONDS)
        answers = client.run(_probe, paths)
    except _LATE:
        raise MixsupError(
            f"--cluster {address}: no worker within {_WORKER_SECONDS:.0f} s; start some with `dask worker {address} --nthreads 1 --nworkers 8`"
        ) from None
    except (ImportError, AttributeError, RuntimeError) as error:  # the last is Dask's for a scheduler that cannot read the task
        said = " ".join(str(error).split())[:80]
        raise MixsupError(
            f"--cluster {address}: no mixsup {__version__} on its scheduler or workers ({said}); pip install 'mixsup[cluster]' there, the same version"
        ) from None
    for worker, (version, missing) in answers.items():
        if version != __version__:
            raise MixsupError(f"--cluster {address}: worker {worker} has mixsup {version}, here is {__version__}; install the same on both")
        if missing:
            raise MixsupError(
                f"--cluster {address}: worker {worker} does not see {missing[0]}; data and cache must lie on a disk that all workers share"
            )
    wide = max(client.nthreads().values(), default=1)
    if wide > 1:
        print(
            f"note: the cluster's workers have up to {wide} threads each, mixsup uses one; start more workers with --nthreads 1 each",
            file=sys.stderr,
        )


def _room(client: Any) -> int:
    return max(2, _AHEAD * len(client.nthreads()))


def _some_done(distributed: Any, client: Any, address: str, futures: list[Any]) -> set[Any]:
    """Waits until some futures are done.

    Raises:
        MixsupError: no worker is left that could do them.
    """
    idle = 0.0
    while True:
        try:
            with client.as_current():
                done: set[Any] = distributed.wait(futures, timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED").done
            return done
        except _LATE:
            idle = 0.0 if client.nthreads() else idle + _LOOK_SECONDS
            if idle >= _WORKER_SECONDS:
                raise MixsupError(
                    f"--cluster {address}: no worker is left; start some and this command again, what was computed stays"
                ) from None
        except concurrent.futures.CancelledError:
            raise _gone(address) from None


def _gone(address: str) -> MixsupError:
    return MixsupError(f"--cluster {address}: the connection is lost; start this command again when it is back, what was computed stays")


def _leave(client: Any, futures: list[Any]) -> None:
    with suppress(Exception):  # the cluster may be gone already; its own words about that would hide ours
        if futures:
            client.cancel(futures, force=True)
        client.close(timeout=5)
