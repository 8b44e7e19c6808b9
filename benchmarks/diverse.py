"""The tables of diverse supervision: what boxes and tags add to few true masks, at three budgets, and how boxes are best used.

    python benchmarks/diverse.py DATA --network NAME_OR_YAML --size 192 (--steps N | --epochs E) --out FOLDER [--split train+tagged] [--seeds 0,1,2]
        [--rows p@1:5:10,p+b+i@1:5:10,...] [--set KEY=VALUE ...]

A row is VARIANT@BUDGET: p, p+i, p+b, p+b+i (Tables 2 and 3), ub (all images that p+b+i sees and that have masks, with them), hard, grabcut, mcg, raw-box
(Table 6), or one threshold of the contour map, t1/4, t2/4, t3/4 (Fig. 8), at masks:boxes:tags. All rows of a budget and seed share one draw of images.
Runs that lie in FOLDER are not repeated. Printed: pixel accuracy, mean accuracy, mean IoU and frequency-weighted IoU in %, the spread of the mean IoU
over seeds (highest less lowest), and the paper's mean IoU (FCN, VOC 2012 val).

With --steps all rows take the same number of steps. The paper's iterations are "adjusted proportionally with the amount of available images" (section
3.4), which is --epochs: there a row with more images, whatever their labels, is also trained longer.
"""

from __future__ import annotations

import argparse
import statistics

from tables import Row, arguments_of, run_row

from mixsup.data import load_dataset
from mixsup.data.budget import draw
from mixsup.data.sample import KINDS
from mixsup.errors import MixsupError

VARIANTS = {
    "p": ("diverse-p", (), {"1:5:10": "51.08", "1:2:3": "55.58", "1:1:1": "58.13"}),
    "p+i": ("diverse-p-i", (), {"1:5:10": "53.91", "1:2:3": "57.04", "1:1:1": "59.73"}),
    "p+b": ("diverse-p-b", (), {"1:5:10": "57.07", "1:2:3": "58.94", "1:1:1": "60.20"}),
    "p+b+i": ("diverse", (), {"1:5:10": "57.51", "1:2:3": "58.97", "1:1:1": "60.88"}),
    "ub": ("full", (), {}),
    "hard": ("diverse-hard", (), {"1:5:10": "57.35"}),
    "grabcut": ("diverse-grabcut", (), {"1:5:10": "55.60"}),
    "mcg": ("diverse-mcg", (), {"1:5:10": "56.19"}),
    "raw-box": ("diverse-raw-box", (), {"1:5:10": "56.91"}),
    **{f"t{number}/4": ("diverse", (f"masks.options.thresholds=[{number / 4}]",), {}) for number in (1, 2, 3)},
}
BUDGETS = ("1:1:1", "1:2:3", "1:5:10")
METRICS = ("pixel_accuracy", "mean_accuracy", "miou", "fw_iou")


def row_of(key: str, arguments: argparse.Namespace) -> Row:
    """The row that a key names.

    Raises:
        SystemExit: no such variant, or a budget that is not three numbers.
    """
    variant, _, budget = key.partition("@")
    numbers = budget.split(":")
    if variant not in VARIANTS or len(numbers) != 3:
        raise SystemExit(f"no row {key!r}; write VARIANT@MASKS:BOXES:TAGS with one of {', '.join(VARIANTS)}")
    recipe, settings, paper = VARIANTS[variant]
    labels = ":".join(f"{kind}={number}" for kind, number in zip(KINDS, numbers, strict=True))
    if variant == "ub":
        samples = load_dataset(arguments.data, arguments.split).samples
        seen = draw(samples, labels, 0)
        labels = f"masks={sum(sample.id in seen and sample.mask is not None for sample in samples)}"
    return Row(key, recipe, labels, settings, paper.get(budget, ""))


def main() -> None:
    default = {f"{variant}@{budget}": Row("", "") for budget in BUDGETS for variant in ("p", "p+i", "p+b", "p+b+i", "ub")}
    arguments = arguments_of(__doc__, default)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    print("| labels | pixel accuracy | mean accuracy | mean IoU | spread | fw IoU | the paper's mean IoU |\n|---|---|---|---|---|---|---|")
    for key in arguments.rows.split(","):
        row = row_of(key, arguments)
        try:
            found = [run_row(key.replace("/", "_"), row, seed, arguments)["scores"] for seed in seeds]
        except MixsupError as error:
            raise SystemExit(f"{key}: {error}") from None
        means = {metric: f"{100 * statistics.mean(one[metric] for one in found):.2f}" for metric in METRICS}
        values = [100 * one["miou"] for one in found]
        spread = f"{max(values) - min(values):.2f}" if len(values) > 1 else "one seed"
        cells = [key, means["pixel_accuracy"], means["mean_accuracy"], means["miou"], spread, means["fw_iou"], row.paper]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
