"""What a long command says while it runs, on a terminal and in a log file."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator

import pytest

from mixsup import progress
from mixsup.progress import Steps, track


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class TestLog:
    def test_what_came_before_the_first_step_is_no_measure_of_steps(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        """MCOF mines for minutes before the first step; ten steps later a run of an hour was announced as one of a day and a half."""
        with Steps("training run", 348) as bar:
            clock.now += 373
            bar.begin(0)
            clock.now += 20
            bar.show(10, "loss 2.0")
        assert capsys.readouterr().err == "training run: step 10 of 348, loss 2.0, 676 s left\n"

    def test_a_resumed_run_counts_its_own_steps(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        with Steps("training run", 100) as bar:
            bar.begin(60)
            clock.now += 40
            bar.show(80, "loss 1.0")
        assert "step 80 of 100, loss 1.0, 40 s left" in capsys.readouterr().err

    def test_a_refresh_between_steps_counts_as_it_comes_again(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        with Steps("training run", 100) as bar:
            bar.begin(0)
            clock.now += 10
            bar.show(10, "")
            clock.now += 90
            bar.begin(10)
            clock.now += 10
            bar.show(20, "loss 1.0")
        assert "440 s left" in capsys.readouterr().err

    def test_a_line_every_half_minute(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        for _ in track(range(100), "masks", 100):
            clock.now += 1
        lines = capsys.readouterr().err.splitlines()
        assert lines == ["masks: 31 of 100, 69 s left", "masks: 62 of 100, 38 s left", "masks: 93 of 100, 7 s left"]

    def test_a_first_item_that_took_long_is_no_measure(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        """Kernels are compiled before it: of 300 images it said that 9,995 s were left."""

        def made() -> Iterator[int]:
            for item in range(300):
                clock.now += 40 if item == 0 else 0.5
                yield item

        for _ in track(made(), "proposals", 300):
            pass
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "proposals: 0 of 300"
        assert lines[1] == "proposals: 61 of 300, 120 s left"

    def test_quiet(self, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
        with Steps("training run", 100, quiet=True) as bar:
            bar.begin(0)
            clock.now += 100
            bar.show(10, "")
        assert not capsys.readouterr().err


class TestTerminal:
    def test_bars_inside_one_another_share_a_display(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A refresh within a run: two displays at once wrote over each other's lines."""
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
        with Steps("training run", 10) as bar:
            display = progress._Bar._display
            assert display is not None
            bar.begin(0)
            for _ in track([1, 2], "refreshing masks", 2):
                assert progress._Bar._display is display
                assert [task.description for task in display.tasks] == ["training run", "refreshing masks"]
            assert [task.description for task in display.tasks] == ["training run"]
            bar.show(5, "loss 1.0")
            assert [(task.description, task.completed) for task in display.tasks] == [("training run, loss 1.0", 5)]
        assert progress._Bar._display is None

    def test_a_narrow_terminal_cuts_the_name_and_no_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("COLUMNS", "80")
        with Steps("training coco-boxsup-deeplabv3plus-r50-[seed0]", 90000) as bar:
            bar.begin(0)
            bar.show(45000, "loss 0.391")
            display = progress._Bar._display
            assert display is not None
            lines = display.console.render_lines(display.get_renderable(), pad=False)
            assert len(lines) == 1
            text = "".join(part.text for part in lines[0]).rstrip()
        assert text.startswith("training coco")
        assert "…, loss 0.391" in text
        assert "45000/90000" in text
        assert len(text) <= 76  # and ^C beside it

    def test_a_first_item_that_takes_long_has_a_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is compiled or loaded before it may take a minute."""
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.01)
        seen = []

        def slow() -> Iterator[int]:
            for _ in range(500):
                if progress._Bar._display is not None:
                    break
                time.sleep(0.01)
            seen.append(progress._Bar._display)
            yield 1

        assert list(track(slow(), "proposals", 1)) == [1]
        assert seen[0] is not None
        assert progress._Bar._display is None

    def test_an_error_leaves_no_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
        with pytest.raises(RuntimeError), Steps("training run", 10):
            for _ in track([1, 2], "refreshing masks", 2):
                raise RuntimeError
        assert progress._Bar._display is None
