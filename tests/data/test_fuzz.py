"""Whatever the bytes of a label file: a data set or a one-line MixsupError, never another exception, and no file outside is opened."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixsup.data import load_dataset
from mixsup.data.check import check_sample
from mixsup.data.summary import as_json, summarise
from mixsup.errors import MixsupError

from .make import CLASSES, SPLITS, WRITERS, coco_json

FEW = settings(max_examples=60, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
_watched: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched is not None and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _watched.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)  # sees every file that Python opens; it cannot be removed, so it does nothing unless watched


@contextmanager
def opened_files() -> Iterator[list[str]]:
    global _watched
    _watched = []
    try:
        yield _watched
    finally:
        _watched = None


def survives(path: Path, root: Path, split: str | None = None) -> None:
    """Reads, and decodes what was read: all within the contract."""
    dataset, said = None, ""
    with opened_files() as opened:
        try:
            dataset = load_dataset(path, split, skip_bad=True)
        except MixsupError as error:
            said = str(error)
        problems = (
            [problem for sample in dataset.samples for problem in check_sample(sample, len(dataset.classes))[0]]
            if dataset is not None
            else []
        )
        if dataset is not None:
            problems += dataset.problems
            summary = summarise(dataset, pixels=True)
    assert len(said.splitlines()) == (dataset is None)
    data = [name for name in opened if not name.endswith((".py", ".pyc", ".so"))]
    assert all(Path(name).resolve().is_relative_to(root.resolve()) for name in data), data
    assert all(len(str(problem).splitlines()) == 1 for problem in problems)
    if dataset is None:
        return
    json.dumps(as_json(summary), allow_nan=False)
    ids = [sample.id for sample in dataset.samples]
    assert ids == sorted(set(ids))
    assert not {problem.sample for problem in dataset.problems} & set(ids)
    for sample in dataset.samples:
        assert sample.image.resolve().is_relative_to(root.resolve())
        if sample.boxes is not None and len(sample.boxes):
            height, width = sample.size
            assert np.isfinite(sample.boxes.xyxy).all()
            assert (sample.boxes.xyxy >= 0).all()
            assert (sample.boxes.xyxy <= [width, height, width, height]).all()
            assert (sample.boxes.xyxy[:, 2:] > sample.boxes.xyxy[:, :2]).all()
            assert ((sample.boxes.classes >= 1) & (sample.boxes.classes < len(dataset.classes))).all()
        assert all(0 < tag < len(dataset.classes) for tag in sample.tags or ())


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """Bytes that were a good file: cut, overwritten, doubled; or any bytes at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        what = draw(st.integers(0, 3))
        if what == 0:
            data[start:end] = draw(st.binary(max_size=6))
        elif what == 1:
            data[start:end] = draw(
                st.sampled_from([b"-1", b"1e999", b"nan", b"../../x", b"/etc/passwd", b"\0", b"\n", b"<", b"&x;", b"9" * 30])
            )
        elif what == 2:
            del data[start:]
        else:
            data[start:end] = data[start:end] * 2
    return bytes(data)


FILES = [
    ("voc", "Annotations/a.xml"),
    ("voc", "ImageSets/Segmentation/train.txt"),
    ("voc", "labels.txt"),
    ("voc-colours", "labelmap.txt"),
    ("voc", "SegmentationClass/a.png"),
    ("voc", "JPEGImages/a.jpg"),
    ("coco", "annotations/instances_train.json"),
    ("coco-rle", "annotations/instances_train.json"),
    ("coco-counts", "annotations/instances_train.json"),
    ("roboflow", "train/_annotations.coco.json"),
    ("yolo-boxes", "data.yaml"),
    ("yolo-boxes", "labels/train/a.txt"),
    ("yolo-polygons", "labels/train/b.txt"),
    ("folders", "labels.txt"),
    ("folders", "masks/train/b.png"),
    ("tags", "tags.csv"),
    ("joined", "all.yaml"),
]


@pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{name}:{Path(file).name}" for name, file in FILES])
@FEW
@given(data=st.data())
def test_mutated_files(name: str, file: str, data: st.DataObject, tmp_path: Path) -> None:
    root = tmp_path / "set"
    path = WRITERS[name](root) if not root.exists() else (root / "all.yaml" if name == "joined" else root)
    good = root / f"{file}.good"
    if not good.exists():
        good.write_bytes((root / file).read_bytes())
    (root / file).write_bytes(data.draw(mutated(good.read_bytes())))
    survives(path, tmp_path if name == "joined" else root, data.draw(st.sampled_from([None, "train"])))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 11, 21, 31, 100, 101, 2**63, -1, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a.jpg", "../../x.jpg", "cat", "\ud800", "nan", "x" * 300]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=8
)


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *spots(value[key])]
    return found


@pytest.mark.parametrize("outlines", ["polygons", "rle", "counts", "none"])
@settings(FEW, max_examples=100)
@given(data=st.data())
def test_coco_files_of_the_right_shape_with_wrong_values(outlines: str, data: st.DataObject, tmp_path: Path) -> None:
    root = tmp_path / "set"
    if not root.exists():
        WRITERS["coco"](root)
    value = coco_json(SPLITS["train"], outlines)
    for _ in range(data.draw(st.integers(1, 4))):
        places = spots(value)
        if not places:
            break
        container, key = places[data.draw(st.integers(0, 10_000)) % len(places)]
        if data.draw(st.integers(0, 4)) == 0:
            del container[key]
        else:
            container[key] = data.draw(VALUES)
    (root / "annotations/instances_train.json").write_text(json.dumps(value))
    survives(root, root, data.draw(st.sampled_from([None, "train"])))


@FEW
@given(value=st.one_of(VALUES, st.fixed_dictionaries({"images": VALUES, "annotations": VALUES, "categories": VALUES})))
def test_any_json(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(value))
    survives(path, tmp_path)


@settings(FEW, max_examples=120)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["0", "1", "2", "3", "-1", "x", "1e9", "inf", "nan"]),
            st.lists(st.one_of(st.floats(), st.floats(0, 1)), max_size=9),
        )
    )
)
def test_any_yolo_rows(rows: list[tuple[str, list[float]]], tmp_path: Path) -> None:
    root = tmp_path / "set"
    if not root.exists():
        WRITERS["yolo-boxes"](root)
    (root / "labels/train/a.txt").write_text("\n".join(" ".join([name, *map(str, values)]) for name, values in rows))
    survives(root, root)


TAGS = [
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!timestamp x",
    "!!binary x",
    "!!set x",
    "!!python/object:os.system x",
    "2001-99-99",
    "? [a]",
    "{<<: 1}",
    "0x",
]
YAML_VALUES = st.one_of(SCALARS.map(str), st.sampled_from(TAGS), VALUES.map(lambda value: json.dumps(value, allow_nan=True)))


@FEW
@given(
    names=YAML_VALUES,
    train=YAML_VALUES,
    path=YAML_VALUES,
    val=st.sampled_from(["images/val", "../images/val", "..", "/", ".", "a\\..\\..", "~"]),
)
def test_any_data_yaml(names: str, train: str, path: str, val: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    if not root.exists():
        WRITERS["yolo-boxes"](root)
    for listed in (names, "[bird, cat, dog]"):
        text = f"names: {listed}\ntrain: {train}\npath: {path}\nval: {val}\n"
        (root / "data.yaml").write_text(text.encode("utf-8", "replace").decode())
        survives(root, root)


@FEW
@given(
    value=st.fixed_dictionaries({"sources": VALUES}, optional={"classes": VALUES}),
    key=st.sampled_from(["rename", "drop", "ignore", "split", "label", "name"]),
    inner=VALUES,
)
def test_any_joined_yaml(value: Any, key: str, inner: Any, tmp_path: Path) -> None:
    # JSON is YAML. This file's own paths may lead anywhere, so only its messages are looked at here.
    if not (tmp_path / "set").exists():
        WRITERS["voc"](tmp_path / "set")
    path = tmp_path / "joined.yaml"
    for content in (value, {"classes": list(CLASSES), "sources": [{"path": "set", key: inner}]}):
        path.write_text(json.dumps(content))
        for split in (None, "train"):
            survives(path, tmp_path, split)


@FEW
@given(
    parts=st.lists(
        st.sampled_from([*"abcx.,;|\"'\n\r01/\\ ", "image", "tags", "split", "cat", "a.jpg", "../", "\0", "\u2028"]), max_size=40
    )
)
def test_any_tag_list(parts: list[str], tmp_path: Path) -> None:
    text = "".join(parts)
    root = tmp_path / "set"
    if not root.exists():
        WRITERS["tags"](root)
    for start in ("", "image,tags,split\n", "image,cat,dog\n"):
        (root / "tags.csv").write_text(start + text, newline="")
        survives(root, root)


@FEW
@given(
    lines=st.lists(
        st.one_of(st.sampled_from(["a", "b 1", "../../x", "/etc/passwd", "a.jpg", "..", ".", "\\", "x" * 300]), st.text(max_size=8)),
        max_size=5,
    )
)
def test_any_split_list(lines: list[str], tmp_path: Path) -> None:
    root, flat = tmp_path / "set", tmp_path / "flat"
    if not root.exists():
        WRITERS["voc"](root)
        (flat / "masks").mkdir(parents=True)
        (root / "JPEGImages").rename(flat / "images")
        (root / "JPEGImages").symlink_to(root.parent / "flat" / "images")
        (flat / "labels.txt").write_text("cat\n")
    text = "\n".join(lines).encode("utf-8", "replace").decode()
    (root / "ImageSets/Segmentation/train.txt").write_text(text)
    (flat / "train.txt").write_text(text)
    survives(root, tmp_path, "train")
    survives(flat, flat, "train")


NUMBERS = st.one_of(st.integers(-3, 50).map(str), st.floats().map(str), st.sampled_from(["", "x", "1e400", "9" * 400]))


@FEW
@given(
    sides=st.tuples(NUMBERS, NUMBERS),
    boxes=st.lists(st.tuples(st.sampled_from([*CLASSES, "", "yak", "background", "&amp;"]), *[NUMBERS] * 4), max_size=4),
    depth=st.sampled_from([0, 3, 3000]),
)
def test_any_voc_boxes(sides: tuple[str, str], boxes: list[tuple[str, ...]], depth: int, tmp_path: Path) -> None:
    root = tmp_path / "set"
    if not root.exists():
        WRITERS["voc"](root)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, a, b, c, d in boxes
    )
    size = f"<size><width>{sides[0]}</width><height>{sides[1]}</height></size>"
    (root / "Annotations/a.xml").write_text(f"<annotation>{'<part>' * depth}{'</part>' * depth}{size}{objects}</annotation>")
    survives(root, root)


def test_the_watch_sees_a_file_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    with opened_files() as opened:
        secret.read_text()
    assert opened == [str(secret)]
