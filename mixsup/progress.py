"""Progress on stderr: a bar with the time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
_QUIET_SECONDS = 2.0  # anything shorter needs no bar
_BESIDE = 13 + 12 + 8 + 5 + 8 + 4  # columns of the narrow bar, of the numbers behind it, and of the terminal's own ^C
_WIDE, _MORE = 140, 28  # a terminal of so many columns has a longer bar
_LOG_SECONDS = 30.0  # between two lines when stderr is not a terminal


def track(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yields `items` and shows how far it is and how long it will take, once two seconds have passed."""
    start = said = time.monotonic()
    bar = _LateBar(title, total) if total and sys.stderr.isatty() else None
    try:
        for done, item in enumerate(items):
            now = time.monotonic()
            if done == 0:
                start = now  # the first may have waited for kernels to be compiled, which says nothing of the others
            if bar is not None:
                bar.show(done)
            elif now - said > _LOG_SECONDS:
                said = now
                left = f", {(now - start) / done * (total - done):.0f} s left" if done else ""
                print(f"{title}: {done} of {total}{left}", file=sys.stderr, flush=True)
            yield item
    finally:
        if bar is not None:
            bar.close()


class _LateBar:
    """A bar that is there after two seconds, whether anything is done by then or not: what is compiled or loaded before the first item may take a minute."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._lock = threading.Lock()
        self._bar: _Bar | None = None
        self._over = False
        self._timer = threading.Timer(max(0.0, _QUIET_SECONDS), self._appear)
        self._timer.daemon = True
        if _QUIET_SECONDS > 0:
            self._timer.start()
        else:
            self._appear()

    def _appear(self) -> None:
        with self._lock:
            if not self._over:
                self._bar = _Bar(self._title, self._total)
                self._bar.show(self._done)

    def show(self, done: int) -> None:
        with self._lock:
            self._done = done
            if self._bar is not None:
                self._bar.show(done)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._bar is not None:
                self._bar.close()


class _Bar:
    """A rich progress bar; rich is imported only when there is something to show.

    All bars of a process are lines of one display: a refresh or a validation has its bar under that of the training, where two
    displays would write over each other.
    """

    _display: ClassVar[Progress | None] = None
    _changes: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, title: str, total: int) -> None:
        with _Bar._changes:
            if _Bar._display is None:
                _Bar._display = _new_display()
                _Bar._display.start()
            self._progress, self._title = _Bar._display, title
            self._task = self._progress.add_task(self._line(""), total=total)

    def show(self, done: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, description=self._line(note and f", {note}"))

    def close(self) -> None:
        with _Bar._changes:
            self._progress.remove_task(self._task)
            if not self._progress.tasks:
                self._progress.stop()
                _Bar._display = None

    def _line(self, note: str) -> str:
        """What stands before the bar: where the terminal is narrow the title is cut, and neither the note nor the numbers behind it."""
        from rich.cells import cell_len, set_cell_size
        from rich.markup import escape

        room = max(8, self._progress.console.width - _BESIDE - (_MORE if self._progress.console.width >= _WIDE else 0) - len(note))
        title = self._title if cell_len(self._title) <= room else f"{set_cell_size(self._title, room - 1)}…"
        return escape(title + note)


def _new_display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    title, left = TextColumn("{task.description}"), TextColumn("left")
    bar = BarColumn(12 + _MORE if console.width >= _WIDE else 12)
    columns = (title, bar, MofNCompleteColumn(), TimeElapsedColumn(), left, TimeRemainingColumn())
    # Steps come in stretches with a refresh between them, which may take minutes: the pace is that of the last hour, not rich's half a minute.
    return Progress(*columns, console=console, transient=True, speed_estimate_period=3600)


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
            self._bar.show(step, note)
            return
        now = time.monotonic()
        if not self._quiet and now - self._said > _LOG_SECONDS:
            self._said = now
            first, start = self._begun or (step, now)
            left = f", {(now - start) / (step - first) * (self._total - step):.0f} s left" if step > first else ""
            print(f"{self._title}: step {step} of {self._total}, {note}{left}", file=sys.stderr, flush=True)
