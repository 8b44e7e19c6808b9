"""BoxSup's tables: the same network and number of steps on every kind of supervision, every way to estimate masks, and every pool.

    python benchmarks/boxsup.py DATA --network NAME_OR_YAML --size 192 --steps 348 --out FOLDER [--seeds 0,1,2] [--rows full,boxsup,...] [--set KEY=VALUE ...]

A row is a recipe and a label budget; each is trained once a seed, without a report, and scored on val by its last weights. Runs that lie in FOLDER are not
repeated, so a row or a seed can be added. Printed: mean IoU in %, the spread over seeds (highest less lowest), the share of the full-mask score, the
masks' mean IoU with the truth in the first and the last round, and what the paper has (VOC 2012 val, VGG16, another network and another data set).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from mixsup.data import load_dataset
from mixsup.engine.api import evaluate
from mixsup.engine.train import Options, train
from mixsup.errors import MixsupError
from mixsup.recipe import load_recipe
from mixsup.report.rounds import mask_quality


@dataclass(frozen=True)
class Row:
    """What is trained: a recipe, its label budget (None: a tenth masks, the rest boxes), settings, and the paper's mean IoU."""

    title: str
    recipe: str
    labels: str | None = "boxes"
    settings: tuple[str, ...] = ()
    paper: str = ""


ROWS = {
    "full": Row("masks (Table 1)", "full", "masks", paper="63.8"),
    "semi": Row("BoxSup, 1 in 10 masks (Table 1)", "boxsup", None, paper="63.5"),
    "boxsup": Row("BoxSup, boxes (Tables 1 to 3: mcg)", "boxsup", paper="62.0"),
    "unsampled": Row("BoxSup without sampling (Table 2)", "boxsup-unsampled", paper="59.7"),
    "rectangles": Row("rectangles (Table 2)", "rectangles", paper="52.3"),
    "grabcut": Row("GrabCut, fixed (Table 2)", "grabcut", paper="55.2"),
    "wssl-seg": Row("CRF masks, fixed (WSSL Bbox-Seg)", "wssl-seg", paper="58.5"),
    "wssl-em": Row("WSSL Bbox-EM-Fixed", "wssl-em"),
    "sdi-box": Row("SDI Box", "sdi-box"),
    "direct": Row("rectangles, two rounds of plain re-prediction", "rectangles", settings=("refresh=direct", "refresh.rounds=2")),
    "selective-search": Row("BoxSup, selective search (Table 3)", "boxsup", settings=("masks=selective-search",), paper="59.5"),
    "geodesic": Row("BoxSup, geodesic (Table 3)", "boxsup", settings=("masks=geodesic",), paper="60.4"),
}


def run_row(key: str, seed: int, arguments: argparse.Namespace) -> dict[str, float | None]:
    """Trains and scores one row with one seed, or reads what it scored."""
    row, folder = ROWS[key], Path(arguments.out) / f"{key}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        found: dict[str, float | None] = json.loads(result.read_text())
        return found
    dataset = load_dataset(arguments.data, "train")
    tenth = round(len(dataset) / 10)
    settings = ["train.validations=1", *row.settings, *arguments.settings]
    overrides = {"size": arguments.size, "batch": arguments.batch, "steps": arguments.steps}
    recipe = load_recipe(row.recipe, network=arguments.network, settings=settings, overrides=overrides)
    options = Options(
        labels=row.labels or f"masks={tenth},boxes={len(dataset) - tenth}", seed=seed, report=False, resume=True, precision=arguments.precision,
        cache=arguments.cache, workers=arguments.workers,
    )  # fmt: skip
    run = train(arguments.data, recipe, folder, options)
    scores = evaluate(folder, arguments.data, "val", checkpoint="last", boundary=True)
    masks = [quality.miou for quality in mask_quality(run, dataset) if quality.miou is not None and quality.round > 0]
    found = {"miou": scores["miou"], "first": masks[0] if masks else None, "last": masks[-1] if masks else None}
    result.write_text(
        json.dumps({**found, "scores": scores, "device": run.facts["device"], "pretraining": run.facts["pretraining"]}, indent=1)
    )
    return found


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    seeds, keys = [int(seed) for seed in arguments.seeds.split(",")], arguments.rows.split(",")
    results: dict[str, list[dict[str, float | None]]] = {key: [] for key in keys}
    for seed in seeds:
        for key in keys:
            try:
                results[key].append(run_row(key, seed, arguments))
            except MixsupError as error:
                raise SystemExit(f"{key}, seed {seed}: {error}") from None
    means = {key: statistics.mean(one["miou"] or 0 for one in found) for key, found in results.items()}
    print("| supervision | mean IoU | spread | % of full | masks: first round | last round | the paper |\n|---|---|---|---|---|---|---|")
    for key, found in results.items():
        values = [one["miou"] or 0 for one in found]
        spread = percent(max(values) - min(values)) if len(values) > 1 else "one seed"
        share = percent(means[key] / means["full"]) if "full" in means else ""
        first, last = (
            percent(statistics.mean(one[at] or 0 for one in found)) if found[0][at] is not None else "" for at in ("first", "last")
        )
        print(f"| {ROWS[key].title} | {percent(means[key])} | {spread} | {share} | {first} | {last} | {ROWS[key].paper} |")
    with (Path(arguments.out) / "table.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["row", "seed", "miou"])
        writer.writerows([key, seed, one["miou"]] for key, found in results.items() for seed, one in zip(seeds, found, strict=True))


if __name__ == "__main__":
    main()
