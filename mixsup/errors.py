"""What can go wrong because of the outside world, said in one line each.

Everything that a user can mend is a `MixsupError`; the command line prints its text without a traceback and exits
with code 2. Any other exception is a defect of mixsup itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class MixsupError(Exception):
    """Something that the user can mend. The text is one line: what, where, and what to do."""


@dataclass(frozen=True)
class Problem:
    """One fault in a data set.

    Attributes:
        file: path of the file at fault, as the user would type it.
        place: where in the file ("line 12", "annotation 7"), or "" for the whole file.
        message: what is wrong there.
        remedy: what to do about it.
        sample: id of the sample that cannot be used because of it, or "" when no sample is at fault.
    """

    file: str
    place: str
    message: str
    remedy: str
    sample: str = ""

    def __str__(self) -> str:
        where = f"{self.file}, {self.place}" if self.place else self.file
        # A file name or a message may hold a newline of the data set's making; one problem stays one line.
        return " ".join(f"{where}: {self.message}; {self.remedy}".split())


class DataError(MixsupError):
    """A data set with faults. `problems` lists all of them, each one line."""

    def __init__(self, problems: Sequence[Problem], shown: int = 20) -> None:
        self.problems = list(problems)
        lines = [str(problem) for problem in self.problems[:shown]]
        if len(self.problems) > shown:
            lines.append(f"... and {len(self.problems) - shown} more problems; `mixsup inspect DATA --full` lists all of them")
        super().__init__("\n".join(lines))
