"""What the tests of the engine share: a network of 95,000 weights and a recipe that runs in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixsup.engine.run import Run
from mixsup.engine.train import Options, train
from mixsup.losses import Criterion
from mixsup.recipe import NetworkChoice, Recipe
from mixsup.recipes import load_recipe

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


def interrupt_at_call(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From now on the criterion's call of that number, counted from 1, is where the user stops the run; `monkeypatch.undo` ends it."""
    calls, original = 0, Criterion.__call__

    def dies(self: Any, outputs: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return original(self, outputs, batch)

    monkeypatch.setattr(Criterion, "__call__", dies)
