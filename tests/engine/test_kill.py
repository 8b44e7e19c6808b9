"""The real thing: processes that are killed, disks that fill up, two processes that train together."""

from __future__ import annotations

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests import processes
from tests.data.make import make_voc

NETWORK = "arch: linknet\nencoder: tu-test_efficientnet\nweights: none\n"


def command(data: Path, out: Path, *extra: str) -> list[str]:
    network = data.parent / "network.yaml"
    network.write_text(NETWORK)
    return [
        "train", str(data), "--recipe", "rectangles", "--labels", "boxes", "--network", str(network), "--out", str(out),
        "--size", "32", "--batch", "4", "--steps", "60", "--set", "train.validations=6", "--accelerator", "cpu", "--precision", "32-true",
        "--workers", "1", "--cache", str(data.parent / "cache"), *extra,
    ]  # fmt: skip


def train(data: Path, out: Path, *extra: str) -> None:
    """To its end, which is a good one."""
    found = processes.run(*command(data, out, *extra))
    assert found.returncode == 0, found.stderr[-2000:]


def kill(process: BaseProcess) -> None:
    process.kill()  # SIGKILL
    process.join()


def kill_after(process: BaseProcess, out: Path, step: int) -> bool:
    """Kills a run once its metrics have passed `step`; False when it ended before."""
    path = out / "metrics.csv"
    while process.is_alive():
        if path.is_file():
            done = [int(row["step"]) for row in csv.DictReader(path.read_text().splitlines()) if (row["step"] or "").isdigit()]
            if done and done[-1] >= step:
                kill(process)
                return True
        time.sleep(0.005)
    return False


def test_killed_three_times_and_resumed(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(data, whole)
    kills = 0
    for step in (3, 21, 44):
        kills += kill_after(processes.start(*command(data, cut, "--resume")), cut, step)
    assert kills == 3
    train(data, cut, "--resume")
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()
    assert (whole / "last.safetensors").read_bytes() == (cut / "last.safetensors").read_bytes()
    assert (whole / "checkpoint.safetensors").read_bytes() == (cut / "checkpoint.safetensors").read_bytes()


def small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


def test_disk_full_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """No file may grow beyond 300 kB: the first checkpoint cannot be written, one line says so, and nothing half is left."""
    data, out = make_voc(tmp_path / "data"), tmp_path / "run"
    found = processes.run(*command(data, out), before=small_files)
    assert found.returncode == 2
    errors = [line for line in found.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "cannot write" in errors[0]
    assert "--resume" in errors[0] or "free space" in errors[0]
    assert not (out / "checkpoint.safetensors").exists()
    assert not list(out.glob(".*.tmp"))
    train(data, out, "--resume")
    assert (out / "last.safetensors").is_file()


def test_two_processes_train_together(tmp_path: Path) -> None:
    """DDP on two CPU processes, from a shell, ends with the weights of one process up to rounding; validation counts every image once."""
    import torch
    from safetensors.torch import load_file

    data = make_voc(tmp_path / "data")
    # Without batch statistics a batch of 4 is the same step on one process as on two.
    fixed = ("--set", "network.freeze_batchnorm=true", "--set", "train.optimizer=sgd", "--steps", "4", "--set", "train.validations=1")
    train(data, tmp_path / "one", *fixed)
    two = [sys.executable, "-m", "mixsup", *command(data, tmp_path / "two", *fixed, "--devices", "2", "--strategy", "ddp")]
    found = subprocess.run(two, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stderr[-2000:]
    one, other = (list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines())) for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in other]
    assert float(one[-1]["miou"]) == pytest.approx(float(other[-1]["miou"]), abs=0.05)
    assert [bool(row[kind]) for row in one for kind in ("masks", "boxes", "tags")] == [
        bool(row[kind]) for row in other for kind in ("masks", "boxes", "tags")
    ]
    charged = [kind for kind in ("masks", "boxes") if other[0][kind]]
    assert charged and float(other[0]["loss"]) == pytest.approx(sum(float(other[0][kind]) for kind in charged), rel=1e-4)
    assert float(one[0]["loss"]) == pytest.approx(float(other[0]["loss"]), rel=0.05)
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    backbone = [key for key in first if key.startswith("network.model.encoder") and first[key].is_floating_point()]
    assert all(torch.allclose(first[key], second[key], atol=5e-2) for key in backbone)
