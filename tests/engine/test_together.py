"""Processes that train together: what one makes, what goes wrong in one, and networks of which a part has no gradient."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mixsup.data import load_dataset
from mixsup.engine import made as masks
from mixsup.engine.checkpoint import save_state
from mixsup.engine.model import build_model, idle_parameters
from mixsup.engine.train import _means
from mixsup.errors import MixsupError
from mixsup.masks import build_source
from mixsup.masks.store import Made, MaskStore
from mixsup.recipe import NetworkChoice
from tests import processes, tiny
from tests.data.make import make_voc
from tests.engine.test_kill import command

GONE = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"


class Line:
    """Of two processes, one: a Fabric whose second process reads what the first has sent."""

    world_size = 2

    def __init__(self, rank: int, sent: Queue[Any]) -> None:
        self.is_global_zero, self.sent = rank == 0, sent
        self.seen: list[Any] = []

    def broadcast(self, value: Any, src: int = 0) -> Any:
        if self.is_global_zero:
            self.sent.put(value)
            return value
        self.seen.append(self.sent.get(timeout=60))
        return self.seen[-1]


def both(store: Any, data: Path) -> tuple[list[Any], Line]:
    """What the two processes get, or the message of what is raised; and the second one's line."""
    dataset = load_dataset(data, "train")
    sent: Queue[Any] = Queue()
    lines, found = [Line(rank, sent) for rank in (0, 1)], [None, None]

    def one(rank: int) -> None:
        try:
            found[rank] = masks._of_the_first(lambda: store.make_all(dataset, build_source("rectangle"), jobs=1), lines[rank])  # type: ignore[arg-type,call-overload]
        except MixsupError as error:
            found[rank] = str(error)  # type: ignore[call-overload]

    second = threading.Thread(target=one, args=(1,))
    second.start()
    one(0)
    second.join(60)
    return found, lines[1]


def test_masks_are_made_once_and_nobody_waits_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's processes give up half an hour after they have heard nothing; masks may take longer."""
    monkeypatch.setattr(masks, "SILENCE", 0.0)
    found, line = both(MaskStore(tmp_path / "store"), make_voc(tmp_path / "data"))
    assert found[0] == found[1]
    assert [item.sample for item in found[1]] == ["a", "b", "c", "d"]
    assert line.seen[:-2] == ["at work"] * 4


def test_the_first_process_fails_for_all(tmp_path: Path) -> None:
    class Full:
        def make_all(self, *_: Any, **__: Any) -> Iterator[Made]:
            yield Made("a", None, 0.0)
            raise MixsupError("disk full")

    assert both(Full(), make_voc(tmp_path / "data"))[0] == ["disk full", "disk full"]


@pytest.mark.parametrize(
    ("mine", "message"), [(True, "step 3: loss became nan on images a, b"), (False, "another process is not finite up to step 3")]
)
def test_the_process_with_the_loss_that_is_not_finite_says_where(mine: bool, message: str) -> None:
    def in_place(value: Tensor, reduce_op: str) -> Tensor:
        return value.add_(1 if mine else 0)  # the other process's

    job: Any = SimpleNamespace(fabric=SimpleNamespace(world_size=2, all_reduce=in_place))
    with pytest.raises(MixsupError, match=message):
        _means(job, [(3, ["a", "b"], {"loss": torch.tensor(float("nan") if mine else 1.0)})])


def test_a_process_that_is_gone_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)

    def save(path: Path, state: Any) -> None:
        raise RuntimeError(GONE)

    fabric: Any = SimpleNamespace(world_size=2, save=save, _precision=SimpleNamespace(state_dict=dict))
    with pytest.raises(RuntimeError, match="closed by peer"):
        save_state(fabric, tmp_path / "state.pt", {})


def test_parameters_that_no_output_depends_on() -> None:
    """PSPNet leaves the deeper half of its encoder aside."""
    model = build_model(NetworkChoice(arch="pspnet", encoder="resnet18", weights="none"), "bcm", 3).train()
    found = {id(parameter) for parameter in idle_parameters(model, 64)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in found}
    assert names
    assert all(".layer3." in name or ".layer4." in name for name in names)
    assert model.training
    assert not idle_parameters(build_model(tiny.NETWORK, "plain", 3), 64)


def test_two_processes_train_a_network_with_such_parameters(tmp_path: Path) -> None:
    network = tmp_path / "pspnet.yaml"
    network.write_text("{arch: pspnet, encoder: resnet18, weights: none}")
    more = ("--recipe", "rectangles", "--steps", "3", "--network", str(network))
    processes.run_together(*command(make_voc(tmp_path / "data"), tmp_path / "run", *more))
    assert (tmp_path / "run" / "last.safetensors").is_file()
