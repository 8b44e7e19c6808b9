"""The picture of a comparison: mean IoU against hours of labelling."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixsup.data.sample import KINDS
from mixsup.files import drawing_format, write_bytes
from mixsup.report.compare import Comparison
from mixsup.report.labelling import Float64
from mixsup.report.suggest import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"masks": "#24507a", "boxes": "#e08a2e", "tags": "#3b9a5f"}
GREY, INK = "#5f6b76", "#1f2a33"
# Where a name may stand, in points from its spot, the best first; further off than a line it gets a thread.
_SIDES = [((8, -4), "left"), ((-8, -4), "right"), ((0, 9), "center"), ((0, -17), "center"), ((8, 7), "left"), ((-8, 7), "right"), ((8, -15), "left"),
          ((-8, -15), "right")]  # fmt: skip
_SIDES += [((sign * 24, rise), align) for rise in (18, -26, 30, -38, 42, -50) for sign, align in ((1, "left"), (-1, "right"))]
_LETTER, _LINE = 4.6, 11.0  # points: width of a letter, and height of a line of the names

Name = tuple[float, float, str, str]  # hours, mean IoU in %, text, colour


@dataclass(frozen=True)
class Point:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: of the first, with the number of the others.
        hours: mean over the runs.
        miou: mean over the runs, in %.
        deviation: standard deviation over the runs, in points; None for one run.
        shares: of the labelled images, in the order of `KINDS`.
        rows: the runs.
    """

    name: str
    hours: float
    miou: float
    deviation: float | None
    shares: tuple[float, ...]
    rows: tuple[Row, ...]


def points(rows: Sequence[Row]) -> list[Point]:
    """The points of the picture, one for each setting and label budget."""
    groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.setting(), row.method(), row.budget()].append(row)
    found = []
    for same in groups.values():
        scores = [100 * row.scores["miou"] for row in same]
        found.append(
            Point(
                same[0].name + (f" and {len(same) - 1} more seed{'s' if len(same) > 2 else ''}" if len(same) > 1 else ""),
                float(np.mean([row.hours for row in same])),
                float(np.mean(scores)),
                float(np.std(scores, ddof=1)) if len(same) > 1 else None,
                tuple(count / sum(same[0].budget()) for count in same[0].budget()),
                tuple(same),
            )
        )
    return found


def plot_comparison(found: Comparison, path: Path) -> None:
    """Draws `comparison_figure`; PNG, PDF or SVG by the ending of `path`.

    Raises:
        MixsupError: another ending, or a disk that refuses the file.
    """
    kind, stream = drawing_format(path), io.BytesIO()
    comparison_figure(found).savefig(stream, format=kind, dpi=150)
    write_bytes(path, stream.getvalue())


def comparison_figure(found: Comparison) -> Figure:
    """A pie a point, its slices the kinds of its labelled images; bars over seeds; what the suggested labels would bring as arrows with 80 % bars."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(8.6, 5.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    shown = points(found.rows)
    for point in shown:
        if point.deviation is not None:
            axes.errorbar(point.hours, point.miou, yerr=point.deviation, color=GREY, linewidth=1.2, capsize=3, zorder=2)
            axes.scatter(
                [row.hours for row in point.rows], [100 * row.scores["miou"] for row in point.rows], s=7, color=GREY, alpha=0.6, zorder=2
            )
        _pie(axes, point)
    ends = _arrows(axes, found, shown)
    names = [(point.hours, point.miou, point.name, INK) for point in shown]
    axes.margins(x=0.12, y=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    low, high = axes.get_xlim()
    if high / low < 60:  # fewer than two powers of ten between the sides are too few numbers for an axis
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    numbers = [*axes.get_xticks(), *(tick for tick in axes.get_xticks(minor=True) if f"{tick:e}"[0] in "25")]
    if sum(low <= number <= high for number in numbers) < 2:  # from 6.3 to 7.4 there is no 1, 2 or 5
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.tick_params(axis="x", which="minor", pad=5)  # the shorter ticks' numbers on one line with the others
    axes.set(xlabel="hours of labelling", ylabel="mean IoU, %")
    axes.grid(alpha=0.25, which="both", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], marker="o", linestyle="", markersize=8, color=COLOURS[kind], label=kind) for kind in KINDS]
    if any(point.deviation is not None for point in shown):
        handles.append(Line2D([], [], color=GREY, marker="|", linestyle="", markersize=9, label="± deviation over seeds"))
    if found.suggestion is not None:
        text = f"{found.suggestion.hours:g} hours more, 80 % interval"
        handles.append(Line2D([], [], color=GREY, linestyle=":", marker="D", markerfacecolor="white", markersize=5, label=text))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
    figure.draw_without_rendering()  # the layout decides where points lie, and so where names find room
    _write(axes, ends + names)
    return figure


def _pie(axes: Any, point: Point) -> None:
    begin = 0.0
    for share, kind in zip(point.shares, KINDS, strict=True):
        if share:
            turn = 2 * math.pi * np.linspace(begin, begin + share, max(4, round(80 * share)))
            rim = np.stack([np.sin(turn), np.cos(turn)], axis=1)
            outline = rim if share == 1 else np.concatenate([[[0.0, 0.0]], rim, [[0.0, 0.0]]])
            # A marker is as large as its own furthest point; the size undoes that, so that all slices have one radius.
            axes.scatter(
                [point.hours], [point.miou], marker=outline, s=110 * np.abs(outline).max() ** 2, color=COLOURS[kind], linewidths=0, zorder=4
            )
            begin += share


def _arrows(axes: Any, found: Comparison, shown: Sequence[Point]) -> list[Name]:
    """Draws the suggestion and returns what to write beside its points."""
    said = found.suggestion
    if said is None:
        return []
    base = next(point for point in shown if any(row.name == said.base for row in point.rows))
    ends: list[Name] = []
    offered = sorted(said.options.items(), key=lambda item: item[1].hours)
    for place, (kind, option) in enumerate(offered):
        # Kinds that use up the hours would stand on one spot: they stand side by side, a little apart.
        hours = (base.hours + option.hours) * 1.035 ** (place - (len(offered) - 1) / 2)
        low, mean, high = (base.miou + 100 * value for value in (option.gain.low, option.gain.mean, option.gain.high))
        colour = COLOURS[kind]
        axes.plot([base.hours, hours], [base.miou, mean], color=colour, linestyle=":", linewidth=1.4, zorder=3)
        axes.plot([hours, hours], [low, high], color=colour, linewidth=1.6, zorder=3)
        axes.plot([hours], [mean], color=colour, marker="D", markerfacecolor="white", markersize=6, zorder=5)
        guess = ", a guess" if kind in said.guessed else ""
        ends.append((hours, mean, f"{kind} {100 * option.gain.mean:+.1f}{guess}", colour))
    return ends


def _write(axes: Any, names: Sequence[Name]) -> None:
    """Writes each name beside its spot, on the first side where it covers neither a spot nor another name."""
    scale = 72 / axes.figure.dpi  # points a pixel
    spots = [axes.transData.transform(name[:2]) * scale for name in names]
    taken = [np.concatenate([spot - 6, spot + 6]) for spot in spots]
    left, right = axes.bbox.x0 * scale, axes.bbox.x1 * scale
    for (hours, miou, text, colour), spot in zip(names, spots, strict=True):
        offers = [(offset, align, _frame(spot, offset, align, _LETTER * len(text))) for offset, align in _SIDES]
        inside = [offer for offer in offers if left <= offer[2][0] and offer[2][2] <= right]
        free = [offer for offer in inside if not any(_overlap(offer[2], other) for other in taken)]
        offset, align, frame = (free or offers)[0]
        taken.append(frame)
        # Names are folders: no formulas in them.
        thread = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 4} if abs(offset[0]) > 8 else None
        axes.annotate(
            text, (hours, miou), offset, textcoords="offset points", ha=align, fontsize=8, color=colour, arrowprops=thread, parse_math=False
        )


def _frame(spot: Float64, offset: tuple[int, int], align: str, width: float) -> Float64:
    """x0, y0, x1, y1 in points of a name written at an offset from a spot."""
    left = spot[0] + offset[0] - {"left": 0.0, "right": width, "center": width / 2}[align]
    return np.array([left, spot[1] + offset[1], left + width, spot[1] + offset[1] + _LINE])


def _overlap(one: Float64, other: Float64) -> bool:
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())
