"""Tables on stdout, problems on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixsup.errors import Problem

if TYPE_CHECKING:
    from mixsup.data.summary import Summary
    from mixsup.engine.run import Run
    from mixsup.masks.filling import FillingRates
    from mixsup.report.compare import Comparison


def _console() -> Console:
    # A pipe has no width; tables that wrap there are useless to scripts and people alike.
    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False, emoji=False)


def _whole(table: Table, *names: int) -> Table:
    """For narrow terminals: columns of `names` are folded, since two that are cut might look the same, and numbers stay whole; their titles may wrap."""
    for column in table.columns:
        if column.justify == "right":
            column.min_width = max((cell_len(str(cell)) for cell in column.cells), default=0)
    for index in names:
        table.columns[index].overflow = "fold"
    return table


def percent(value: float | None) -> str:
    """A share as per cent with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def show_scores(result: dict[str, Any]) -> None:
    """The scores of `metrics.scores` and whatever stands beside them."""
    extra = {
        "per_class_ignored": "ignored %",
        "per_class_boundary_recall": "boundary recall %",
        "per_class_best_candidate_iou": "best candidate %",
    }
    shown = [key for key in extra if key in result]
    table = Table("class", "IoU %", *(extra[key] for key in shown), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value in result["per_class"].items():
        table.add_row(escape(name), percent(value), *(percent(result[key][name]) for key in shown))
    console = _console()
    console.print(_whole(table, 0))
    labels = {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean accuracy", "fw_iou": "fw IoU", "ignored": "ignored",
              "boundary_recall": "boundary recall", "boundary_iou": "boundary IoU"}  # fmt: skip
    line = [f"{label} {percent(result[key])} %" for key, label in labels.items() if key in result]
    if result.get("seconds_per_image") is not None:
        line.append(f"{result['seconds_per_image']:.3f} s an image")
    if result.get("pretraining"):
        line.append(f"pretraining: {result['pretraining']}")
    if "images" in result:
        left = f", {result['unmeasured']} have no true mask" if result.get("unmeasured") else ""
        line.append(f"{result['images']} images{left}")
    console.print(escape("  ".join(line)))
    if "proposals" in result:
        best, half, most = (percent(result[key]) for key in ("best_candidate_iou", "recall_50", "recall_70"))
        pool = "-" if result["proposals"] is None else f"{result['proposals']:.0f}"
        console.print(f"{pool} proposals an image  best candidate IoU {best} %  recall at IoU 0.5 {half} %, at 0.7 {most} %")
    if "trimap" in result:
        bands = Table("width px", "boundary IoU %", "interior IoU %", box=None, pad_edge=False)
        for row in result["trimap"]:
            bands.add_row(str(row["width"]), percent(row["boundary"]), percent(row["interior"]))
        console.print(bands)


def show_filling_rates(rates: FillingRates) -> None:
    """Filling rates per class, and of its sub-classes from the least filled on."""
    table = Table("class", "boxes", "filling rate %", "std", "sub-classes % (boxes)", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    for name, row in rates.per_class.items():
        parts = "  ".join(f"{percent(part.mean)} ({part.boxes})" for part in rates.per_subclass[name])
        table.add_row(escape(name), str(row.boxes), percent(row.mean), percent(row.std), parts or "-")
    console = _console()
    console.print(escape(f"filling rates of {rates.source} masks over {rates.boxes} boxes: {percent(rates.global_rate)} % for all"))
    console.print(_whole(table, 0))


def show_run(run: Run) -> None:
    """Where the run lies and how it ended."""
    last, best = run.validation("last"), run.validation()
    if last is not None and best is not None:
        print(f"mean IoU {100 * last['miou']:.2f} % at the end, best {100 * best['miou']:.2f} % after step {best['step']:.0f}")
    show_rounds(run.folder)
    print(f"pretraining: {run.facts.get('pretraining', '')}")
    print(f"run: {run.folder}")


def show_rounds(run: Path) -> None:
    """How good the masks of each refresh round are, where a report has measured it; one line each."""
    from mixsup.report.rounds import read_quality

    for row in read_quality(run):
        print(row)


def show_comparison(found: Comparison, table: bool = True) -> None:
    """Warnings on stderr and, with `table`, runs side by side and what to label next on stdout."""
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if table:
        _show_runs(found)


def _show_runs(found: Comparison) -> None:
    table = Table("run", "recipe", "masks", "boxes", "tags", "hours", "steps", "seed", "mean IoU %", "pixel acc. %", "pretraining", "device",
                  box=None, pad_edge=False)  # fmt: skip
    for column in table.columns[2:10]:
        column.justify = "right"
    for row in found.rows:
        facts, hours = row.run.facts, f"{row.hours:.1f}" if row.hours >= 0.05 else f"{row.hours:.2g}"
        cells = [row.name, row.run.recipe.name, *map(str, row.budget()), hours, *(str(facts.get(key, "")) for key in ("steps", "seed"))]
        cells += [percent(row.scores["miou"]), percent(row.scores["pixel_accuracy"])]
        table.add_row(*map(escape, [*cells, *(str(facts.get(key, "")) for key in ("pretraining", "device"))]))
    console = _console()
    console.print(_whole(table, 0, 1, 10, 11))  # what a network started from is part of its score
    cost = found.seconds
    console.print(f"hours of labelling: {cost.tag:g} s a class and image, and {cost.box:g} s a box or {cost.mask:g} s a mask of an object")
    if found.suggestion is not None:
        console.print()
        _show_suggestion(found, console)
    for note in found.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)


def _show_suggestion(found: Comparison, console: Console) -> None:
    said = found.suggestion
    assert said is not None
    title = f"{said.hours:g} hours more of one kind, on top of {said.base}, by a model of {len(said.runs)} runs (intervals hold 80 %)"
    console.print(escape(title), soft_wrap=True)
    table = Table(
        "kind", "images", "s an image", "mean IoU, points", "interval", "best choice %", "an image is worth", box=None, pad_edge=False
    )
    for column in table.columns[1:6]:
        column.justify = "right"
    for kind, option in said.options.items():
        gain, rate = option.gain, said.rates.get(kind)
        worth = "1 mask" if rate is None else f"{rate.mean:.2f} masks ({rate.low:.2f} to {rate.high:.2f})"
        worth += ", a guess" if kind in said.guessed else ""
        interval = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
        table.add_row(
            kind, str(option.images), f"{said.seconds[kind]:.0f}", f"{100 * gain.mean:+.1f}", interval, f"{100 * option.best:.0f}", worth
        )
    console.print(table)


def show_problems(problems: Sequence[Problem]) -> None:
    """One line each."""
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        bad = len({problem.sample for problem in problems if problem.sample})
        print(f"{len(problems)} problems, {bad} images left out", file=sys.stderr)


def show_summary(summary: Summary) -> None:
    """What `mixsup inspect` prints."""
    console = _console()
    console.print(escape(f"{summary.source}: {summary.images} images"))
    if summary.smallest and summary.median and summary.largest:
        sizes = [f"{width:g} x {height:g}" for height, width in (summary.smallest, summary.median, summary.largest)]
        console.print(f"sizes: smallest {sizes[0]}, median {sizes[1]}, largest {sizes[2]} pixels")
    gives = ", ".join(f"{count} {kind}" for kind, count in summary.can_give.items())
    console.print(f"can give: {gives}; {len(summary.unlabelled)} images have no label")
    if summary.empty:
        console.print(f"{summary.empty} images show no object (taught as background)")
    covered = "" if summary.covered is None else f", {percent(summary.covered)} % of box area is covered by a box of another class"
    console.print(f"boxes: {summary.crowds} crowds, {summary.overlapping_pairs} overlapping pairs of different classes{covered}")

    pixels = any(row.pixels is not None for row in summary.classes)
    table = Table(
        "id", "class", "images", "tags", "boxes", "median side px", "small %", *(["pixels"] if pixels else []), box=None, pad_edge=False
    )
    for column in [table.columns[0], *table.columns[2:]]:
        column.justify = "right"
    for index, row in enumerate(summary.classes, 1):
        side = "-" if row.median_side is None else f"{row.median_side:.0f}"
        cells = [str(index), escape(row.name), str(row.images), str(row.tags), str(row.boxes), side, percent(row.small)]
        table.add_row(*cells, *([str(row.pixels)] if pixels else []))
    console.print(_whole(table, 1))
    if pixels:
        console.print(f"background {summary.background_pixels} pixels, void {summary.void_pixels}")
    elif summary.can_give["masks"] and not any(row.images for row in summary.classes):
        console.print("what mask files show is counted with --pixels")
    for note in summary.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)
