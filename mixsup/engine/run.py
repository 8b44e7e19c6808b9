"""The run folder: everything that a run is, and all that prediction needs.

recipe.yaml  labels.txt  split.csv  run.json  metrics.csv  log.txt  checkpoint.safetensors (best)  last.safetensors  training.pt  masks/  mining/
rounds.csv  mask_quality.csv  mining.csv  report.html
"""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsup.data.budget import read_split_csv
from mixsup.data.sample import Classes, LabelKind
from mixsup.errors import MixsupError
from mixsup.files import write_text
from mixsup.recipe import Recipe
from mixsup.recipes import resolved_recipe

BEST = "checkpoint.safetensors"
LAST = "last.safetensors"
STATE = "training.pt"
LABELS = "labels.txt"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        recipe: resolved.
        classes: of the labels that it was trained on.
        facts: `run.json`: data, splits, label budget, seed, precision, device, versions.
    """

    folder: Path
    recipe: Recipe
    classes: Classes
    facts: dict[str, Any]

    @staticmethod
    def create(folder: Path, recipe: Recipe, classes: Classes, split: str, facts: dict[str, Any]) -> Run:
        """Writes the folder's fixed files; `recipe.yaml` last, because it is what says that a folder holds a run."""
        run = Run(folder, recipe, classes, facts)
        run.clear()
        write_text(folder / LABELS, classes.lines())
        write_text(folder / "split.csv", split)
        write_text(folder / "run.json", json.dumps(facts, indent=1) + "\n")
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        return run

    def clear(self) -> None:
        """Removes what a process that was killed left half written."""
        for left in self.folder.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    @staticmethod
    def load(folder: str | Path) -> Run:
        """Opens a run folder.

        Raises:
            MixsupError: it is none, or one of its files is missing or broken.
        """
        folder = Path(folder)
        try:
            recipe = resolved_recipe((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml"))
            names = (folder / LABELS).read_text(encoding="utf-8").splitlines()[1:]
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            name = getattr(error, "filename", None) or folder / "run.json"
            raise MixsupError(
                f"{folder}: not a run folder ({Path(name).name} is missing or broken); give what `mixsup train --out` wrote"
            ) from None
        if not isinstance(facts, dict):
            raise MixsupError(f"{folder}: its run.json does not say what it has learned from; give what `mixsup train --out` wrote")
        return Run(folder.absolute(), recipe, Classes(tuple(names)), facts)  # a script may go to another folder before it asks for metrics

    def kinds(self) -> dict[str, LabelKind]:
        """The drawn label kind by image id."""
        return read_split_csv((self.folder / "split.csv").read_text(encoding="utf-8"))

    def metrics(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv`."""
        try:
            return list(csv.DictReader(io.StringIO((self.folder / "metrics.csv").read_text(encoding="utf-8"))))
        except OSError:
            return []

    def validation(self, checkpoint: str = "best") -> dict[str, float] | None:
        """The validation behind a checkpoint: `step`, and `miou`, `pixel_accuracy`, `mean_accuracy`, `fw_iou` (0 to 1); None without any.

        Args:
            checkpoint: `best`, which is the best of the last stage that was validated, or `last`.
        """
        columns = ("step", "miou", "pixel_accuracy", "mean_accuracy", "fw_iou")
        rows = []
        for row in self.metrics():
            with suppress(ValueError, TypeError, KeyError):  # a row without scores, or one that a killed run has cut short
                rows.append({name: float(row[name]) for name in columns})
        if not rows or checkpoint == "last":
            return rows[-1] if rows else None
        ends = self.recipe.stage_ends(int(self.facts["steps"]))
        begin = max((end for end in ends if end < rows[-1]["step"]), default=0)
        return max((row for row in rows if row["step"] > begin), key=lambda row: row["miou"])


class MetricsFile:
    """`metrics.csv`: only values that a resumed run repeats to the last digit, so no times."""

    LOSSES = ("loss", "masks", "boxes", "tags", "head")
    COLUMNS = ("step", "epoch", "lr", *LOSSES, "miou", "pixel_accuracy", "mean_accuracy", "fw_iou")

    def __init__(self, path: Path, until: int, scored: bool = True) -> None:
        """Opens the file and drops what an interrupted run wrote after step `until`, and where this one is not `scored` yet, the scores of this step too."""
        self.path = path
        rows = []
        if until and path.is_file():
            for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))):
                if not (row.get("step") or "").isdigit() or None in row.values():
                    continue
                if int(row["step"]) < until or (int(row["step"]) == until and (scored or not row["miou"])):
                    rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, self.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row; values that are not given stay empty."""
        text = io.StringIO()
        csv.DictWriter(text, self.COLUMNS, lineterminator="\n").writerow(row)
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(text.getvalue())
        except OSError as error:
            raise MixsupError(f"{self.path}: cannot write ({error.strerror}); free space, then go on with --resume") from error


class Log:
    """`log.txt` and stderr: a line with the time."""

    def __init__(self, path: Path | None, quiet: bool = False) -> None:
        self.path, self.quiet = path, quiet

    def __call__(self, text: str) -> None:
        if self.path is None:
            return
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError:
            pass  # a full disk must be reported by what matters, not by the log
