"""Where the errors of several runs lie, BoxSup's figure 4: mean IoU near the true boundaries and away from them.

    python benchmarks/error_analysis.py RUN RUN ... DATA [--split val] [--picture FILE.png] [--scales 1] [--crf]

Prints a Markdown table, a row a run and trimap width, and draws interior (solid) and boundary (dashed) mean IoU over the width. A class that has no true
pixels in a region but is predicted there counts as 0 in it: where objects are thinner than the width, the interior curve falls.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from tables import percent

import mixsup


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table: interior and boundary mean IoU in per cent by width, and the scores that are not split."""
    widths = [row["width"] for row in next(iter(results.values()))["trimap"]]
    lines = [
        "| run | region | " + " | ".join(f"{width} px" for width in widths) + " | mean IoU % | boundary IoU % |",
        "|---|---|" + "---:|" * (len(widths) + 2),
    ]
    for name, result in results.items():
        for region in ("interior", "boundary"):
            values = " | ".join(percent(row[region]) for row in result["trimap"])
            whole = f"{100 * result['miou']:.1f} | {100 * result['boundary_iou']:.1f}" if region == "interior" else " | "
            lines.append(f"| {name if region == 'interior' else ''} | {region} | {values} | {whole} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """The curves of all runs in one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, result) in enumerate(results.items()):
        widths = [row["width"] for row in result["trimap"]]
        for region, style in (("interior", "-"), ("boundary", "--")):
            values = [math.nan if row[region] is None else 100 * row[region] for row in result["trimap"]]
            axes.plot(widths, values, style, color=f"C{index % 10}", marker="o", markersize=3.5, label=f"{name}, {region}")
    axes.set(xlabel="trimap width, pixels", ylabel="mean IoU, %")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--scales", default="1", help="as of mixsup evaluate")
    parser.add_argument("--crf", action="store_true", help="refine the predictions")
    parser.add_argument("--checkpoint", default="best", choices=("best", "last"))
    args = parser.parse_args()
    scales, results = [float(scale) for scale in args.scales.split(",")], {}
    for run in args.runs:
        name = run.resolve().name if len({other.resolve().name for other in args.runs}) == len(args.runs) else str(run)
        results[name] = mixsup.evaluate(
            run, args.data, args.split, boundary=True, scales=scales, crf=args.crf, checkpoint=args.checkpoint, skip_bad=True
        )
    print(table(results))
    if args.picture is not None:
        draw(results, args.picture)


if __name__ == "__main__":
    main()
