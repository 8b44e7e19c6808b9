"""`mixsup demo`: one small network, trained on full masks, on filled boxes and by BoxSup on the same boxes of drawn scenes; then compared."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mixsup.demo.picture import draw_comparison
from mixsup.demo.scenes import write_dataset
from mixsup.engine.api import evaluate
from mixsup.engine.train import Options, train
from mixsup.errors import MixsupError
from mixsup.recipes import load_recipe
from mixsup.report import write_report

RUNS = (("full", "masks"), ("rectangles", "boxes"), ("boxsup", "boxes"))  # recipe and label budget
TITLES = {"rectangles": "rectangles", "boxsup": "BoxSup masks", "full": "full masks"}  # columns of the picture, weakest first
STEPS = 450  # of each run; what fits four minutes on two cores, drawing and reports included
TRAIN, VAL, SIZE, BATCH = 300, 60, 128, 8


@dataclass(frozen=True)
class Result:
    """One row of the comparison: the recipe, its label kind, mean IoU (0 to 1) on the validation scenes, and seconds."""

    recipe: str
    labels: str
    miou: float
    per_class: dict[str, float | None]
    seconds: float


def run_demo(out: Path, steps: int | None = None, seed: int = 0, train_scenes: int = TRAIN, val_scenes: int = VAL) -> list[Result]:
    """Draws the data, trains the three runs, prints them side by side, and writes their reports.

    Args:
        out: folder of the demo; what an earlier demo left there is replaced.
        steps: of each run.
        seed: of the scenes and of training.
        train_scenes, val_scenes: how many to draw.

    Returns:
        The rows of the table.

    Raises:
        MixsupError: `out` holds something else, or cannot be written, or `steps` is below 1; nothing is touched then.
    """
    start = time.monotonic()
    data = out / "data"
    if out.exists() and any(out.iterdir()) and not (data / "demo.json").is_file():
        raise MixsupError(f"{out}: holds something that is no demo; choose another folder with --out")
    network = str(resources.files("mixsup.demo").joinpath("network.yaml"))
    schedule = {"size": SIZE, "batch": BATCH, "steps": STEPS if steps is None else steps}
    settings = ["train.validations=3", "train.augment.scale=[0.8, 1.25]", "train.lr=5e-4"]
    recipes = {name: load_recipe(name, network=network, settings=settings, overrides=schedule) for name, _ in RUNS}
    write_dataset(data, train=train_scenes, val=val_scenes, seed=seed, size=SIZE)
    _say(f"{train_scenes} training and {val_scenes} validation scenes in {data} ({time.monotonic() - start:.0f} s)")

    results = []
    for name, labels in RUNS:
        began = time.monotonic()
        folder = out / name
        if folder.exists():
            shutil.rmtree(folder)
        # float32 and a fixed number of loader processes: the same numbers on any machine with the same libraries.
        options = Options(
            labels=labels, seed=seed, accelerator="cpu", precision="32-true", workers=1, report=False, cache=out / "cache", quiet=True
        )
        run = train(data, recipes[name], folder, options)
        scores = evaluate(folder, data, "val", checkpoint="last", device="cpu")
        write_report(folder)
        results.append(Result(name, labels, scores["miou"], scores["per_class"], time.monotonic() - began))
        _say(f"{name}: {run.facts['steps']} steps on {labels}, mean IoU {100 * scores['miou']:.1f} % ({results[-1].seconds:.0f} s)")
    draw_comparison(data, {f"trained on {title}": out / name for name, title in TITLES.items()}, out / "comparison.png")
    _table(results, out)
    _say(f"done in {time.monotonic() - start:.0f} s")
    return results


def _table(results: list[Result], out: Path) -> None:
    full = results[0].miou
    print(f"{'trained on':14}" + "".join(f"{result.recipe:>12}" for result in results))
    for name in results[0].per_class:
        cells = (result.per_class[name] for result in results)
        print(f"{name:14}" + "".join(f"{'-' if cell is None else f'{100 * cell:.1f}':>12}" for cell in cells))
    print(f"{'mean IoU %':14}" + "".join(f"{100 * result.miou:>12.1f}" for result in results))
    print(f"{'% of full':14}" + "".join(f"{100 * result.miou / max(full, 1e-9):>12.1f}" for result in results))
    print("pretraining: none. Reports: " + ", ".join(str(out / result.recipe / "report.html") for result in results))
    print(f"side by side: {out / 'comparison.png'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
