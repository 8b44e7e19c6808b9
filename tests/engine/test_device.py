"""Where tensors are, when the network is on a GPU; on one that is pretended (`tests/device.py`), because where tests run there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from mixsup.crf import mean_field
from mixsup.engine.api import evaluate, load
from mixsup.engine.model import build_model
from mixsup.recipe import NetworkChoice
from tests import tiny
from tests.data.make import make_voc, write
from tests.device import GPU, PretendGPU, gpu
from tests.engine.test_diverse import BUDGET
from tests.engine.test_mining import QUICK
from tests.engine.test_train import same
from tests.networks.test_networks import SMALL


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("voc") / "data")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda there: there + torch.ones(4),
        lambda there: there.numpy(),
        lambda there: np.asarray(there),
        lambda there: torch.zeros(3)[there[:1].long()],
        lambda there: torch.nn.Linear(4, 2)(there),
        lambda there: torch.nn.Linear(4, 2).to(GPU)(there.cpu()),
        lambda there: torch.cat([there, torch.zeros_like(there, device="cpu")]),
        lambda there: torch.stack([there[0], torch.tensor(3.0)]),
        lambda there: there.index_put_((torch.tensor([0, 1]),), torch.ones(2)),
        lambda there: there.to(torch.float64).scatter_(0, torch.tensor([1]), torch.tensor([2.0], dtype=torch.float64)),
    ],
)
def test_the_pretended_gpu_refuses_what_a_real_one_refuses(wrong: Any) -> None:
    with PretendGPU(), pytest.raises((RuntimeError, TypeError), match="device"):
        wrong(torch.zeros(4, device="cuda"))


def test_the_pretended_gpu_allows_what_a_real_one_allows() -> None:
    with PretendGPU():
        there = torch.arange(4.0, device="cuda", requires_grad=True)
        found = [
            there * torch.tensor(2.0),
            there[torch.tensor([0, 1])],
            there.new_zeros(2),
            there.new_tensor([1.0]),
            torch.ones_like(there),
            there.double(),
            there.view(2, 2),
        ]
        assert {value.device for value in found} == {GPU}
        found[0].sum().backward()
        assert there.grad is not None
        assert there.grad.device == GPU
        assert there.detach().cpu().numpy().tolist() == [0, 1, 2, 3]
        assert torch.zeros(2).copy_(there.detach()[:2]).device.type == "cpu"


@pytest.mark.parametrize(
    ("name", "labels", "settings"),
    [
        ("full", "masks", ()),
        ("boxsup", BUDGET, ("head=bcm", "loss.boxes=filling-rate")),
        ("bcm", BUDGET, ()),
        ("cm", "boxes", ()),
        ("bgm", "boxes", ()),
        ("sdi-box", "boxes", ()),
        ("diverse", BUDGET, ()),
        ("diverse-hard", BUDGET, ()),
        ("wssl-em", BUDGET, ("loss.tags=cross-entropy",)),
        ("mcof", BUDGET, QUICK),
    ],
)
def test_a_run_on_a_gpu(data: Path, tmp_path: Path, name: str, labels: str, settings: tuple[str, ...]) -> None:
    with gpu() as pretended:
        run = tiny.run(data, tmp_path / "run", name, steps=8, settings=settings, labels=labels)
        assert "pretended" in run.facts["device"]
        segmenter = load(run.folder, device="cuda")
        assert all(map(pretended.places.on_gpu, segmenter.model.state_dict().values()))
        assert segmenter.predict(np.zeros((40, 50, 3), np.uint8)).shape == (40, 50)


def test_what_a_gpu_computes_is_what_the_cpu_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and resumed: nothing depends on where tensors are."""
    kept: dict[str, Any] = {"steps": 8, "labels": BUDGET, "settings": ("head=bcm",)}
    tiny.run(data, tmp_path / "cpu", "boxsup", **kept)
    with gpu():
        tiny.run(data, tmp_path / "gpu", "boxsup", **kept)
        tiny.interrupt_at_call(monkeypatch, 6)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(data, tmp_path / "cut", "boxsup", **kept)
        monkeypatch.undo()
    with gpu():
        tiny.run(data, tmp_path / "cut", "boxsup", resume=True, **kept)
        tiny.run(data, tmp_path / "next", "full", labels="masks", init=tmp_path / "cut")
    assert same(tmp_path / "gpu", tmp_path / "cut")
    assert same(tmp_path / "cpu", tmp_path / "gpu")


@pytest.mark.parametrize("labels", ["masks", "boxes", "tags"])
def test_classes_that_nobody_looked_for(tmp_path: Path, labels: str) -> None:
    make_voc(tmp_path / "one")
    make_voc(tmp_path / "two")
    sources = [{"path": "one", "label": labels}, {"path": "two", "label": labels, "rename": {"cat": "yak"}}]
    joined = write(tmp_path / "all.yaml", yaml.safe_dump({"classes": ["bird", "cat", "dog", "yak"], "sources": sources}))
    with gpu():
        run = tiny.run(joined, tmp_path / "run", "diverse", labels=labels, settings=("head=bcm",) if labels == "boxes" else ())
        if labels == "masks":
            assert 0 <= evaluate(run.folder, joined, "val", device="cuda", boundary=True)["miou"] <= 1


@pytest.mark.parametrize("settings", [{"scales": (0.8, 1.0, 1.2), "flip": True}, {"crf": True}, {"tile": 64}])
def test_prediction_on_a_gpu(data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    run = tiny.run(data, tmp_path / "run", "full", steps=2, labels="masks").folder
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    on_cpu = load(run, device="cpu", **settings).predict(image)
    with gpu():
        assert (load(run, device="cuda", **settings).predict(image) == on_cpu).mean() > 0.999  # the CRF has a kernel for each


def test_the_crf_on_a_gpu() -> None:
    generator = np.random.default_rng(1)
    unary = torch.from_numpy(generator.random((3, 30, 40), np.float32))
    image = torch.from_numpy(generator.integers(0, 256, (30, 40, 3), np.uint8))
    with gpu():
        found = mean_field(unary.to(GPU), image.to(GPU))
        assert found.device == GPU
        assert torch.allclose(found.cpu(), mean_field(unary, image), atol=1e-3)


@pytest.mark.parametrize("choice", SMALL, ids=lambda choice: "-".join(map(str, choice.values())))
def test_networks_on_a_gpu(choice: dict[str, Any]) -> None:
    with gpu():
        model = build_model(NetworkChoice(weights="none", **choice), "plain", 3).to(GPU)
        model(torch.rand(2, 3, 64, 64).to(GPU))["scores"].square().mean().backward()
        assert {parameter.grad.device for parameter in model.parameters() if parameter.grad is not None} == {GPU}
