"""What the benchmarks that print a paper's tables have in common: rows are trained once a seed, scored on val, and printed beside the paper's numbers.

Runs that lie in the output folder are not repeated, so that a row or a seed can be added, and a killed one goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixsup.data import load_dataset
from mixsup.engine.api import evaluate
from mixsup.engine.train import Options, train
from mixsup.errors import MixsupError
from mixsup.recipes import load_recipe
from mixsup.report.rounds import mask_quality

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What is trained: a recipe, its label budget (None: a tenth masks, the rest boxes), settings, and the paper's mean IoU."""

    title: str
    recipe: str
    labels: str | None = "boxes"
    settings: tuple[str, ...] = ()
    paper: str = ""


def arguments_of(description: str | None, rows: Mapping[str, Row]) -> argparse.Namespace:
    """The command line that all tables share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="of every row")
    length.add_argument("--epochs", type=float, help="of every row, so that one with more images takes more steps")
    parser.add_argument("--split", default="train", help="training split")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", default=",".join(rows))
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cache", type=Path)
    return parser.parse_args()


def run_row(key: str, row: Row, seed: int, arguments: argparse.Namespace) -> Result:
    """Trains and scores one row with one seed, or reads what it scored."""
    folder = Path(arguments.out) / f"{key}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    dataset = load_dataset(arguments.data, arguments.split)
    tenth = round(len(dataset) / 10)
    settings = ["train.validations=1", *row.settings, *arguments.settings]
    settings += [f"train.epochs={arguments.epochs}"] if arguments.epochs else []
    overrides = {"size": arguments.size, "batch": arguments.batch, "steps": arguments.steps}
    recipe = load_recipe(row.recipe, network=arguments.network, settings=settings, overrides=overrides)
    options = Options(
        split=arguments.split, labels=row.labels or f"masks={tenth},boxes={len(dataset) - tenth}", seed=seed, report=False, resume=True,
        precision=arguments.precision, cache=arguments.cache, workers=arguments.workers,
    )  # fmt: skip
    run = train(arguments.data, recipe, folder, options)
    scores = evaluate(folder, arguments.data, "val", checkpoint="last", boundary=True)
    masks = [quality.miou for quality in mask_quality(run, dataset) if quality.miou is not None and quality.round > 0]
    found = {
        "miou": scores["miou"], "first": masks[0] if masks else None, "last": masks[-1] if masks else None, "scores": scores,
        "device": run.facts["device"], "pretraining": run.facts["pretraining"],
    }  # fmt: skip
    result.write_text(json.dumps(found, indent=1))
    return found


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def print_tables(arguments: argparse.Namespace, rows: Mapping[str, Row]) -> None:
    """Trains what is missing and prints one table. Masks are those of the first and the last refresh; without one the columns are left out."""
    seeds, keys = [int(seed) for seed in arguments.seeds.split(",")], arguments.rows.split(",")
    results: dict[str, list[Result]] = {key: [] for key in keys}
    for seed in seeds:
        for key in keys:
            try:
                results[key].append(run_row(key, rows[key], seed, arguments))
            except MixsupError as error:
                raise SystemExit(f"{key}, seed {seed}: {error}") from None
    means = {key: statistics.mean(one["miou"] or 0 for one in found) for key, found in results.items()}
    refreshed = any(one["first"] is not None for found in results.values() for one in found)
    titles = ["supervision", "mean IoU", "spread", "% of full", *(["masks: first round", "last round"] if refreshed else []), "the paper"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for key, found in results.items():
        values = [one["miou"] or 0 for one in found]
        cells = [rows[key].title, percent(means[key])]
        cells.append(percent(max(values) - min(values)) if len(values) > 1 else "one seed")
        cells.append(percent(means[key] / means["full"]) if "full" in means else "")
        for at in ("first", "last") if refreshed else ():
            cells.append(percent(statistics.mean(one[at] or 0 for one in found)) if found[0][at] is not None else "")
        print(f"| {' | '.join([*cells, rows[key].paper])} |")
    with (Path(arguments.out) / "table.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["row", "seed", "miou"])
        writer.writerows([key, seed, one["miou"]] for key, found in results.items() for seed, one in zip(seeds, found, strict=True))
