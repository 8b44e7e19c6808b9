"""Progress on stderr: a bar with the time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
_QUIET_SECONDS = 2.0  # anything shorter needs no bar
_LOG_SECONDS = 30.0  # between two lines when stderr is not a terminal


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yields `items` and shows how far it is and how long it will take, once two seconds have passed."""
    start = time.monotonic()
    said = start
    bar = None
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - start > _QUIET_SECONDS:
                if sys.stderr.isatty():
                    bar = bar or _Bar(title, total)
                    bar.show(done)
                elif now - said > _LOG_SECONDS:
                    said = now
                    left = (now - start) / max(done, 1) * (total - done)
                    print(f"{title}: {done} of {total}, {left:.0f} s left", file=sys.stderr, flush=True)
            yield item
    finally:
        if bar is not None:
            bar.close()


class _Bar:
    """A rich progress bar; rich is imported only when there is something to show.

    All bars of a process are lines of one display: a refresh or a validation has its bar under that of the training, where two
    displays would write over each other.
    """

    _display: ClassVar[Progress | None] = None

    def __init__(self, title: str, total: int) -> None:
        if _Bar._display is None:
            _Bar._display = _new_display()
            _Bar._display.start()
        self._progress = _Bar._display
        self._task = self._progress.add_task(title, total=total)

    def show(self, done: int, title: str | None = None) -> None:
        if title is None:
            self._progress.update(self._task, completed=done)
        else:
            self._progress.update(self._task, completed=done, description=title)

    def close(self) -> None:
        self._progress.remove_task(self._task)
        if not self._progress.tasks:
            self._progress.stop()
            _Bar._display = None


def _new_display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Steps come in stretches with a refresh between them, which may take minutes: the pace is that of the last hour, not rich's half a minute.
    return Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=3600)


class Steps:
    """The bar of a training run, or a line every 30 seconds when stderr is no terminal."""

    def __init__(self, title: str, total: int, quiet: bool = False) -> None:
        self._title, self._total, self._quiet = title, total, quiet
        self._bar: _Bar | None = None
        self._said = time.monotonic()
        self._begun: tuple[int, float] | None = None

    def __enter__(self) -> Steps:
        if not self._quiet and sys.stderr.isatty():
            self._bar = _Bar(self._title, self._total)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, step: int) -> None:
        """Steps begin, or go on, after `step` of them; what came before the first `begin` is no measure of how long they take."""
        if self._begun is None:
            self._begun = step, time.monotonic()
            if self._bar is not None:
                self._bar.show(step)

    def show(self, step: int, note: str) -> None:
        """Says that `step` steps are done; what lies between two stretches of them counts as theirs, as it comes again."""
        if self._bar is not None:
            self._bar.show(step, f"{self._title}, {note}")
            return
        now = time.monotonic()
        if not self._quiet and now - self._said > _LOG_SECONDS:
            self._said = now
            first, start = self._begun or (step, now)
            left = f", {(now - start) / (step - first) * (self._total - step):.0f} s left" if step > first else ""
            print(f"{self._title}: step {step} of {self._total}, {note}{left}", file=sys.stderr, flush=True)
