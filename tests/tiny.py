"""What the tests of the engine share: a network of 95,000 weights and a recipe that runs in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixsup.engine.run import Run
from mixsup.engine.train import Options, train
from mixsup.recipe import NetworkChoice, Recipe, load_recipe

NETWORK = NetworkChoice(arch="linknet", encoder="tu-test_efficientnet", weights="none")


def recipe(name: str = "rectangles", steps: int = 6, settings: tuple[str, ...] = (), **overrides: Any) -> Recipe:
    """A recipe on the tiny network, crops of 32 pixels, batches of 2."""
    loaded = load_recipe(name, settings=["train.validations=2", *settings], overrides={"size": 32, "batch": 2, "steps": steps, **overrides})
    return loaded.model_copy(update={"network": NETWORK})


def run(data: Path, out: Path, name: str = "rectangles", steps: int = 6, settings: tuple[str, ...] = (), **options: Any) -> Run:
    """Trains for a few steps on the CPU, in float32, in this process alone."""
    chosen: dict[str, Any] = {
        "accelerator": "cpu",
        "precision": "32-true",
        "workers": 0,
        "report": False,
        "quiet": True,
        "cache": out.parent / "cache",
    }
    return train(data, recipe(name, steps, settings), out, Options(**{**chosen, **options}))
