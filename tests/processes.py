"""Commands in processes of their own that begin at once: a server imports PyTorch a single time, and forks them.

They can be killed, and what they do to their memory goes with them, as with any process. Several that train together begin as torchrun begins them;
`--devices 2` alone repeats its own command line, and needs one.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mixsup.engine.train", "mixsup.engine.api", "mixsup.report.page", "mixsup.masks"])
_LIMIT = 300.0  # seconds


def start(
    *words: str | Path, out: Path | None = None, env: dict[str, str] | None = None, before: Callable[[], None] | None = None
) -> BaseProcess:
    """`mixsup WORDS` under way.

    Args:
        words: behind `mixsup`.
        out: folder of the files `stdout` and `stderr`; without one nothing is kept.
        env: variables of the environment beside those of this process.
        before: called in the new process, a function of some module.
    """
    process = _SERVER.Process(target=_command, args=([str(word) for word in words], out, {**os.environ, **(env or {})}, before))
    process.start()
    return process


def run(*words: str | Path, env: dict[str, str] | None = None, before: Callable[[], None] | None = None) -> CompletedProcess[str]:
    """`mixsup WORDS` to its end, with what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        process = start(*words, out=Path(folder), env=env, before=before)
        process.join(_LIMIT)
        assert process.exitcode is not None, f"{words} takes more than {_LIMIT} s"
        stdout, stderr = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return CompletedProcess(list(words), process.exitcode, stdout, stderr)


def run_together(*words: str | Path, count: int = 2) -> None:
    """`mixsup WORDS` in so many processes that know of each other.

    Raises:
        AssertionError: one failed; with what it printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "GROUP_RANK": "0"}
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(count):
            (Path(folder) / str(rank)).mkdir()
            env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "tests"}
            started.append(start(*words, "--devices", str(count), "--strategy", "ddp", out=Path(folder) / str(rank), env=env))
        for rank, process in enumerate(started):
            process.join(_LIMIT)
            assert process.exitcode == 0, (Path(folder) / str(rank) / "stderr").read_text()[-2000:]


def _command(words: list[str], out: Path | None, env: dict[str, str], before: Callable[[], None] | None) -> None:
    import torch

    from mixsup.cli import main

    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # its own processes begin as they do for everyone
    for name, handle in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(out / name if out else os.devnull, os.O_WRONLY | os.O_CREAT), handle)
    sys.argv = ["mixsup", *words]
    if before:
        before()
    main()
