"""MCOF's tables: what tags alone reach, round by round, with and without saliency, and against plain re-prediction.

    python benchmarks/mcof.py DATA --network NAME_OR_YAML --size 192 --steps 450 --out FOLDER [--split train+tagged] [--seeds 0,1,2]
        [--rows full,cam,mcof,mcof-no-saliency,direct] [--set KEY=VALUE ...]

Each row is trained once a seed from tags (`full` from masks), validated after each of its five rounds, and scored by its last weights. Printed: mean IoU
of val after each round (Table 4 and Fig. 8), the spread of the last over seeds (highest less lowest), the share of `full`, and the paper's numbers (VOC 2012
val, VGG16); then, for rows with rounds, the quality of seeds, regions, refined regions and predictions on the training images (Table 3; the mean over seeds).
Runs that lie in FOLDER are not repeated.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

from tables import Row, arguments_of, percent, run_row

from mixsup.data import load_dataset
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.report.mining import Mining

PAPER = {"mcof": "44.4, 51.6, 53.3, 55.5, 56.2", "mcof-no-saliency": "41.8, 46.2, 47.7, 51.5, 52.1", "full": "69.8"}
ROUNDS = 5
ROWS = {
    name: Row(name, name, "masks" if name == "full" else "tags", ("train.validations=5",), PAPER.get(name, ""))
    for name in ("full", "cam", "mcof", "mcof-no-saliency", "direct")
}


def validations(run: Path) -> list[float]:
    """Mean IoU of val at each validation."""
    with (run / "metrics.csv").open(newline="") as handle:
        return [float(row["miou"]) for row in csv.DictReader(handle) if row["miou"]]


def main() -> None:
    arguments = arguments_of(__doc__, ROWS)
    seeds, keys = [int(seed) for seed in arguments.seeds.split(",")], arguments.rows.split(",")
    dataset, last = load_dataset(arguments.data, arguments.split), dict[str, float]()
    stages: dict[str, dict[tuple[int, str], list[float]]] = {}
    print(
        f"| labels and recipe | {' | '.join(f'round {number + 1}' for number in range(ROUNDS))} | spread | % of full | the paper |\n|{'---|' * (ROUNDS + 4)}"
    )
    for key in keys:
        curves = []
        for seed in seeds:
            try:
                result: Any = run_row(key, ROWS[key], seed, arguments)
            except MixsupError as error:
                raise SystemExit(f"{key}, seed {seed}: {error}") from None
            folder = Path(arguments.out) / f"{key}-{seed}"
            curves.append([*validations(folder)[:-1], result["miou"]])
            for row in Mining(Run.load(folder), dataset).scores():
                stages.setdefault(key, {}).setdefault((row.round, row.stage), []).append(row.miou)
        means = [statistics.mean(values) for values in zip(*curves, strict=True)]
        last[key] = means[-1]
        values = [curve[-1] for curve in curves]
        spread = percent(max(values) - min(values)) if len(values) > 1 else "one seed"
        share = percent(last[key] / last["full"]) if "full" in last else ""
        print(f"| {key} | {' | '.join(map(percent, means))} | {spread} | {share} | {ROWS[key].paper} |", flush=True)
    for key, table in stages.items():
        print(f"\n{key}, training images:\n\n| round | stage | mean IoU |\n|---|---|---|")
        for (number, stage), found in table.items():
            print(f"| {number} | {stage} | {percent(statistics.mean(found))} |")


if __name__ == "__main__":
    main()
