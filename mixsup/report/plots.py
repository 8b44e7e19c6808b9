"""Plots of the report, as SVG inside the page. The same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mixsup.engine.run import Run
from mixsup.masks.filling import FillingRates, rates_figure
from mixsup.report.rounds import Quality

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREEN, RED = "#24507a", "#2a7f4f", "#b2403a"


def curves(run: Run) -> str:
    """Loss and validation mean IoU over the steps; "" without any."""
    table = run.metrics()
    loss = [(int(row["step"]), float(row["loss"])) for row in table if row["loss"]]
    miou = [(int(row["step"]), 100 * float(row["miou"])) for row in table if row["miou"]]
    if not loss:
        return ""
    figure, (left, right) = _two()
    left.plot(*zip(*loss, strict=True), color="#4878a8", linewidth=0.7, alpha=0.5)
    width = max(1, len(loss) // 25)
    smooth = np.convolve([value for _, value in loss], np.ones(width) / width, mode="valid")
    left.plot([step for step, _ in loss][width - 1 :], smooth, color=BLUE, linewidth=1.8)
    left.set(title="training loss", xlabel="step", ylim=(0, None))
    if miou:
        right.plot(*zip(*miou, strict=True), color=GREEN, marker="o", markersize=3.5)
        right.set(title="validation mean IoU, %", xlabel="step", ylim=(0, None))
    else:
        right.text(0.5, 0.5, "no validation images with masks", ha="center", transform=right.transAxes)
        right.set_axis_off()
    return _svg(figure)


def rounds(rows: Sequence[Quality]) -> str:
    """Share of boxes (or tagged images) that got another mask, and the masks' mean IoU with the truth, over the rounds of one kind; "" without any."""
    if len(rows) < 2:
        return ""
    tagged = rows[0].kind == "tags"
    figure, (left, right) = _two()
    left.plot(
        [row.round for row in rows[1:]], [100 * row.changed / max(1, row.boxes) for row in rows[1:]], color=BLUE, marker="o", markersize=3.5
    )
    things = "tagged images with other labels" if tagged else "boxes with another mask"
    left.set(title=f"{things} than a round before, %", xlabel="round", ylim=(0, 104))
    known = [(row.round, 100 * row.miou) for row in rows if row.miou is not None]
    if known:
        right.plot(*zip(*known, strict=True), color=GREEN, marker="o", markersize=3.5)
        right.set(title=f"mean IoU of the {'labels' if tagged else 'masks'} with the truth, %", xlabel="round")
    else:
        right.text(0.5, 0.5, "no true masks", ha="center", transform=right.transAxes)
        right.set_axis_off()
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure)


def trimap(rows: Sequence[dict[str, Any]]) -> str:
    """Interior (solid) and boundary (dashed) mean IoU over trimap widths, BoxSup's figure 4; "" without any."""
    from matplotlib.figure import Figure

    if not rows:
        return ""
    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axes = figure.subplots()
    widths = [row["width"] for row in rows]
    for region, style in (("interior", "-"), ("boundary", "--")):
        values = [np.nan if row[region] is None else 100 * row[region] for row in rows]
        axes.plot(widths, values, color=BLUE, marker="o", markersize=3.5, linestyle=style, label=region)
    axes.set(title="mean IoU, %", xlabel="trimap width, pixels", ylim=(0, 104))
    axes.legend(frameon=False)
    return _svg(figure)


def filling_rates(rates: FillingRates | None) -> str:
    """A bar a class with its sub-classes (BCM, figure 6); "" without any."""
    if rates is None or not rates.boxes:
        return ""
    return _svg(rates_figure(rates))


def _two() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    return figure, figure.subplots(1, 2)


def _svg(figure: Figure) -> str:
    import matplotlib

    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.StringIO()
    # Fixed metadata and ids: the same run gives the same page, byte for byte.
    with matplotlib.rc_context({"svg.hashsalt": "mixsup"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    # The metadata block holds nothing but addresses.
    text = re.sub(r"<metadata>.*?</metadata>", "", stream.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]
