"""Many processes on one map: nothing twice, nothing lost, and a failure costs what failed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image

from mixsup import workers
from mixsup.data.sample import Boxes, Classes, Dataset, Sample, UInt8
from mixsup.errors import MixsupError
from mixsup.masks import BoxMasks, build_source
from mixsup.masks.export import export_masks
from mixsup.masks.source import MaskSource
from mixsup.masks.store import MaskStore, load
from tests.data.make import make_voc, voc_xml
from tests.masks.contract import many_boxes, picture


@dataclass(frozen=True)
class Odd(MaskSource):
    """Rectangles, but it notes each call, and fails in some way on the image of that name."""

    notes: str
    name: ClassVar[str] = "odd"

    def __call__(self, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
        (Path(self.notes) / f"{sample.id}-{os.getpid()}-{time.time_ns()}").touch()
        if sample.id == "opencv":
            cv2.cvtColor(np.zeros((0, 0, 3), np.uint8), cv2.COLOR_RGB2BGR)
        if sample.id == "value":
            raise ValueError("two\nlines; of it")
        if sample.id == "memory":
            raise MemoryError
        if sample.id == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)  # so that both workers get some
        return build_source("rectangle")(image, boxes, sample)

    def calls(self) -> Counter[str]:
        return Counter(path.name.split("-")[0] for path in Path(self.notes).iterdir())

    def processes(self) -> set[str]:
        return {path.name.split("-")[1] for path in Path(self.notes).iterdir()}


@pytest.fixture
def odd(tmp_path: Path) -> Odd:
    (tmp_path / "notes").mkdir()
    return Odd(str(tmp_path / "notes"))


def dataset(folder: Path, *names: str, count: int = 12) -> Dataset:
    samples = []
    for index, name in enumerate([*(f"i{number}" for number in range(count)), *names]):
        path = folder / f"{name}.png"
        Image.fromarray(picture(48, 64, seed=index)).save(path)
        samples.append(Sample(name, path, (48, 64), boxes=many_boxes((48, 64), 2)))
    return Dataset(Classes(("a", "b", "c")), samples)


@pytest.mark.parametrize("jobs", [1, 2])
def test_whatever_a_source_raises_costs_one_image(tmp_path: Path, odd: Odd, jobs: int) -> None:
    made = {item.sample: item for item in MaskStore(tmp_path / "store").make_all(dataset(tmp_path, "opencv", "value", "memory"), odd, jobs)}
    assert len(made) == 15
    bad = {key: str(item.problem) for key, item in made.items() if item.problem is not None}
    assert bad.keys() == {"opencv", "value", "memory"}
    assert "opencv.png: source 'odd' failed on it, cv2.error: " in bad["opencv"]
    assert re.search(
        r"ValueError: two lines; of it \(.*test_workers\.py:\d+\); correct it there, or leave the image out", bad["value"]
    )  # a source of one's own
    assert "MemoryError; free memory" in bad["memory"]
    assert all(len(text.splitlines()) == 1 for text in bad.values())
    assert all(load(item.path) is not None for item in made.values() if item.path is not None)


def test_a_killed_worker_is_one_line_and_what_was_made_stays(tmp_path: Path, odd: Odd) -> None:
    data, store = dataset(tmp_path, "killed", count=30), MaskStore(tmp_path / "store")
    with pytest.raises(MixsupError, match=r"a worker process was killed.*fewer --jobs; what was computed stays"):
        list(store.make_all(data, odd, jobs=2))
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*.npz")}
    assert before
    good = data.with_samples([sample for sample in data.samples if sample.id != "killed"])
    assert all(item.problem is None for item in store.make_all(good, odd, jobs=1))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_full_disk_stops_with_one_line(tmp_path: Path, odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real, written = MaskStore(tmp_path / "store"), os.fsync, []

    def fsync(handle: int) -> None:
        written.append(handle)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(MixsupError, match=r"cannot write \(No space left on device\).*free space or choose another folder") as caught:
        list(store.make_all(dataset(tmp_path), odd, jobs=1))
    assert len(str(caught.value).splitlines()) == 1
    assert len(list(store.folder.rglob("*.npz"))) == 5
    assert not list(store.folder.rglob("*.tmp"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_store_that_cannot_be_written(tmp_path: Path, odd: Odd, jobs: int) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "odd").write_text("a file where a folder belongs")
    with pytest.raises(MixsupError, match="cannot write") as caught:
        list(MaskStore(tmp_path / "store").make_all(dataset(tmp_path), odd, jobs))
    assert len(str(caught.value).splitlines()) == 1


def _threads(number: int) -> tuple[int, int, int]:
    import numba
    import torch

    return cv2.getNumThreads(), torch.get_num_threads(), numba.get_num_threads()


def test_a_worker_computes_on_one_thread_and_the_caller_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    _threads(0)  # numba starts its threads at the first question, which changes the answer of torch
    before = _threads(0)
    assert set(workers.spread(_threads, range(1), jobs=1)) == {(1, 1, 1)}
    assert _threads(0) == before
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert set(workers.spread(_threads, range(4), jobs=2)) == {(1, 1, 1)}


def _beside(jobs: int, items: list[int]) -> list[tuple[int, int]]:
    with workers.beside(jobs) as submit:
        return [future.result() for future in [submit(_numbered, item) for item in items]]


def _numbered(item: int) -> tuple[int, int]:
    if item < 0:
        os._exit(1)
    return item, os.getpid()


class TestBeside:
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_where(self, jobs: int) -> None:
        found = _beside(jobs, [3, 1, 2])
        assert [item for item, _ in found] == [3, 1, 2]
        assert all((process == os.getpid()) == (jobs == 1) for _, process in found)

    def test_processes_stay_and_leave_joblibs_alone(self) -> None:
        first = {process for _, process in _beside(2, list(range(50)))}
        for _ in range(2):
            assert sorted(item for item, _ in workers.spread(_numbered, range(6), jobs=2)) == list(range(6))
            assert len(first | {process for _, process in _beside(2, list(range(50)))}) <= 2

    def test_one_that_is_killed_is_one_line_and_the_next_call_has_new_ones(self) -> None:
        with pytest.raises(
            MixsupError, match="a worker process was killed, most often because memory ran out; free memory, or give fewer --workers"
        ):
            _beside(2, [1, -1, 2])
        assert [item for item, _ in _beside(2, [1, 2])] == [1, 2]

    def test_threads(self) -> None:
        pytest.importorskip("numba")
        with workers.beside(2) as submit:
            assert submit(_threads, 0).result() == (1, 1, 1)


def test_killed_halfway_and_started_again_computes_nothing_twice(tmp_path: Path) -> None:
    """The whole command with its workers dies by SIGKILL; the second one makes only what is missing."""
    data, cache, count = tmp_path / "data", tmp_path / "cache", 24
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (data / folder).mkdir(parents=True)
    for index in range(count):
        Image.fromarray(picture(160, 160, seed=index)).save(data / "JPEGImages" / f"{index:02}.jpg")
        (data / "Annotations" / f"{index:02}.xml").write_text(voc_xml(f"{index:02}", [("cat", (20, 20, 140, 140))], (160, 160)))
    (data / "ImageSets" / "Segmentation" / "train.txt").write_text("".join(f"{index:02}\n" for index in range(count)))
    (data / "labels.txt").write_text("background\ncat\n")
    command = [sys.executable, "-m", "mixsup", "masks", str(data), "--source", "grabcut", "--set", "iterations=15", "--cache", str(cache),
               "--out", str(tmp_path / "out"), "--jobs", "2"]  # fmt: skip
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}

    def made() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz") if not path.name.startswith(".")}

    process = subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )  # a session of its own: its workers die with it
    while len(made()) < 6 and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = made()
    assert 6 <= len(before) < count
    again = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    after = made()
    assert len(after) == count
    assert {path: after[path] for path in before} == before
    assert "cache: " in again.stderr
    assert "limit 20 GB" in again.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == count


# A cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two worker processes of one thread each."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None) as local:
        yield local.scheduler_address


def test_two_cluster_workers_compute_each_image_once_and_the_same(tmp_path: Path, odd: Odd, cluster: str) -> None:
    data = dataset(tmp_path, "value", count=40)
    made = {item.sample: item for item in MaskStore(tmp_path / "cluster").make_all(data, odd, cluster=cluster)}
    assert len(made) == 41
    assert odd.calls() == Counter(sample.id for sample in data.samples)
    assert len(odd.processes()) == 2
    assert str(os.getpid()) not in odd.processes()
    assert "ValueError" in str(made["value"].problem)
    here = {item.sample: item for item in MaskStore(tmp_path / "here").make_all(data, odd, jobs=1)}
    for key, item in made.items():
        if item.path is not None:
            other = here[key].path
            assert other is not None
            assert item.path.relative_to(tmp_path / "cluster") == other.relative_to(tmp_path / "here")
            assert item.path.read_bytes() == other.read_bytes()
    again = list(MaskStore(tmp_path / "cluster").make_all(data, odd, cluster=cluster))
    assert sum(item.seconds > 0 for item in again) == 0
    assert not list((tmp_path / "cluster").glob(".*token"))


def test_export_with_a_cluster_from_relative_paths(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = data.with_samples([Sample(s.id, s.image.relative_to(tmp_path), s.size, boxes=s.boxes) for s in data.samples])
    export_masks(relative, build_source("grabcut"), Path("out"), MaskStore(Path("store")), cluster=cluster)
    export_masks(relative, build_source("grabcut"), Path("out2"), MaskStore(Path("store2")), jobs=1)
    for sample in data.samples:
        assert Path(f"out/{sample.id}.png").read_bytes() == Path(f"out2/{sample.id}.png").read_bytes()


def test_a_users_own_source_travels_to_workers_without_its_file(tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(
        "from pydantic.dataclasses import dataclass\nfrom mixsup.masks.rectangle import Rectangle\nfrom mixsup.masks.source import STRICT\n"
        "@dataclass(frozen=True, config=STRICT)\nclass Mine(Rectangle):\n    name = 'mine'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = dataset(tmp_path)
    for name, where in (
        ("rectangle", {"jobs": 2}),
        ("theirs:Mine", {"jobs": 2}),
        ("theirs:Mine", {"cluster": cluster}),
    ):  # joblib's processes were there before
        made = list(MaskStore(tmp_path / f"{name}{len(where)}{[*where]}").make_all(data, build_source(name), **where))
        assert len(made) == len(data.samples)
        assert not [item.problem for item in made if item.problem]


def test_training_makes_its_first_masks_on_a_cluster(tmp_path: Path, cluster: str) -> None:
    from tests.tiny import run  # not above: the worker processes read this module, and PyTorch takes them seconds

    found = run(make_voc(tmp_path / "data"), tmp_path / "run", steps=2, labels="boxes", cluster=cluster)
    assert "first masks (rectangle) of 4 images: 4 made" in (found.folder / "log.txt").read_text()
    assert "limit 20 GB" in (found.folder / "log.txt").read_text()


def test_an_image_that_kills_cluster_workers_costs_itself(tmp_path: Path, odd: Odd) -> None:
    distributed = pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None) as local,
    ):
        made = {
            item.sample: item
            for item in MaskStore(tmp_path / "s").make_all(dataset(tmp_path, "killed"), odd, cluster=local.scheduler_address)
        }
    assert len(made) == 13
    assert "killed.png: every worker that tried it was killed" in str(made["killed"].problem)
    assert sum(item.path is not None for item in made.values()) == 12


def _double(number: int) -> int:
    return 2 * number


def _fail(number: int) -> int:
    raise MixsupError("the disk is full; free space")


def _none(number: int) -> int:
    return -1


def _kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_only_a_window_of_items_is_under_way(cluster: str) -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for number in range(300):
            read += 1
            yield number

    results = workers.spread_on_cluster(_double, items(), cluster, [], _none)
    found = [next(results) for _ in range(5)]
    assert read <= 5 + 2 * workers._AHEAD * 2  # of 300
    assert sorted([*found, *results]) == [2 * number for number in range(300)]


def test_results_lost_with_their_worker_are_computed_again(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed_first(distributed: Any, client: Any, *others: Any) -> set[Any]:
        done = real(distributed, client, *others)
        monkeypatch.setattr(workers, "_some_done", real)
        (held_by,) = client.who_has([next(iter(done))]).values()
        client.run(_kill_me, workers=list(held_by), on_error="ignore")
        until = time.monotonic() + 5  # the other worker may have computed it again between two looks
        while all(future.status == "finished" for future in done) and time.monotonic() < until:
            time.sleep(0.001)
        return done

    real = workers._some_done
    monkeypatch.setattr(workers, "_some_done", killed_first)
    assert sorted(workers.spread_on_cluster(_double, range(50), cluster, [], _none)) == [2 * number for number in range(50)]


def test_what_the_function_raises_comes_back(cluster: str) -> None:
    with pytest.raises(MixsupError, match="the disk is full; free space"):
        list(workers.spread_on_cluster(_fail, range(50), cluster, [], _none))


def test_a_folder_that_workers_do_not_see(tmp_path: Path, cluster: str) -> None:
    with pytest.raises(MixsupError, match=r"does not see .*nowhere; data and cache must lie on a disk that all workers share"):
        list(workers.spread_on_cluster(_double, range(3), cluster, [tmp_path / "nowhere"], _none))


@pytest.mark.parametrize("address", ["nonsense", "tcp://127.0.0.1:9"])
def test_no_cluster_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "_CONNECT_SECONDS", 1.0)
    with pytest.raises(MixsupError, match=f"--cluster {address}: no Dask scheduler answers .*start one with") as caught:
        list(workers.spread_on_cluster(_double, range(3), address, [], _none))
    assert len(str(caught.value).splitlines()) == 1


def test_no_dask_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MixsupError, match=r"pip install 'mixsup\[cluster\]'"):
        list(workers.spread_on_cluster(_double, range(3), "tcp://127.0.0.1:9", [], _none))


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "_WORKER_SECONDS", 1.0)
    with distributed.LocalCluster(n_workers=0, processes=True, host="127.0.0.1", dashboard_address=None) as local:
        address: Any = local.scheduler_address
        with pytest.raises(MixsupError, match="no worker within 1 s; start some with `dask worker"):
            list(workers.spread_on_cluster(_double, range(3), address, [], _none))


def test_jobs_are_lazy() -> None:
    """Samples are read as they are handed out, also on this machine."""
    results = workers.spread(partial(_double), iter(range(10_000)), jobs=1)
    assert next(results) == 0
