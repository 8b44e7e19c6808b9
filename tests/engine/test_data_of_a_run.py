"""What a run is trained, measured and resumed on is what the command says, and what it writes replaces nobody's pictures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixsup.data import load_dataset
from mixsup.engine.api import evaluate, load, predict_files
from mixsup.errors import MixsupError
from tests import tiny
from tests.data.make import make_coco, make_coco_boxes, make_folders, make_voc, make_yolo_boxes, write, write_mask


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return tiny.run(make_voc(folder / "data"), folder / "run", labels="boxes", steps=2).folder


def swap_categories(path: Path) -> None:
    """The same two names under each other's id, and with it in another order; annotations keep their ids."""
    data = json.loads(path.read_text())
    one, two = data["categories"][:2]
    one["name"], two["name"] = two["name"], one["name"]
    path.write_text(json.dumps(data))


def test_validation_of_other_classes(tmp_path: Path) -> None:
    data = make_coco(tmp_path / "data")
    swap_categories(data / "annotations/instances_val.json")
    with pytest.raises(MixsupError, match="split 'val': its classes differ from those of the training images"):
        tiny.run(data, tmp_path / "run", labels="boxes")
    tiny.run(data, tmp_path / "without", labels="boxes", steps=2, val="none")


def test_validation_that_cannot_be_measured_may_differ(tmp_path: Path) -> None:
    data = make_coco_boxes(tmp_path / "data")
    swap_categories(data / "annotations/instances_val.json")
    assert tiny.run(data, tmp_path / "run", steps=2).facts["validation_images"] == 0


def test_boxes_drawn_as_polygons_train_as_boxes(tmp_path: Path) -> None:
    data = make_coco(tmp_path / "data")
    path = data / "annotations/instances_train.json"
    table = json.loads(path.read_text())
    table["annotations"] += [{**row, "id": row["id"] + 100} for row in table["annotations"]]
    path.write_text(json.dumps(table))
    run = tiny.run(data, tmp_path / "run", steps=2)
    assert run.facts["images"] == {"boxes": 4}
    assert "note: " in (run.folder / "log.txt").read_text()
    assert "1 training images with boxes or tags show no object" in (run.folder / "log.txt").read_text()


def test_no_split_to_train_on(tmp_path: Path) -> None:
    data = make_coco(tmp_path / "data")
    os.rename(data / "annotations/instances_train.json", data / "annotations/instances_first.json")
    os.rename(data / "images/train", data / "images/first")
    with pytest.raises(MixsupError, match="no split 'train', it has first, val; name the one to train on with --split"):
        tiny.run(data, tmp_path / "run", labels="boxes")
    tiny.run(data, tmp_path / "run", labels="boxes", steps=2, split="first")


def test_splits_that_are_neither(tmp_path: Path, run: Path) -> None:
    """All of them together would be test images among those to train on, or training images among those to measure on."""
    lists = make_voc(tmp_path / "data") / "ImageSets/Segmentation"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    with pytest.raises(MixsupError, match="no split 'train', it has test, trainval; name the one to train on with --split"):
        tiny.run(tmp_path / "data", tmp_path / "run", steps=2)
    with pytest.raises(MixsupError, match="no split 'val', it has test, trainval; name the one to measure on with --split"):
        evaluate(run, tmp_path / "data", device="cpu")


def test_one_split_by_two_names(tmp_path: Path, run: Path) -> None:
    data = make_coco(tmp_path / "data")
    os.rename(data / "annotations/instances_val.json", data / "annotations/instances_test2017.json")
    os.rename(data / "images/val", data / "images/test2017")
    (data / "annotations/instances_train.json").unlink()
    assert evaluate(run, data, device="cpu")["images"] == 2


def test_validation_images_that_are_trained_on(tmp_path: Path) -> None:
    found = tiny.run(make_voc(tmp_path / "data"), tmp_path / "run", steps=2, split="train+val")
    assert "2 of the 2 validation images are training images, too" in (found.folder / "log.txt").read_text()


def test_results_that_cannot_be_written_cost_no_masks(tmp_path: Path) -> None:
    file = write(tmp_path / "file", "")
    with pytest.raises(MixsupError, match="is no folder that can be written to; choose another --out"):
        tiny.run(make_voc(tmp_path / "data"), file / "run", steps=2, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_run_is_found_from_another_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    found = load(run.name).run
    monkeypatch.chdir(tmp_path)
    assert found.metrics()


def test_an_empty_validation_split(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    write(data / "ImageSets/Segmentation/val.txt", "")
    with pytest.raises(MixsupError, match=r"split 'val' is empty.*--val none"):
        tiny.run(data, tmp_path / "run", labels="boxes")
    tiny.run(data, tmp_path / "run", labels="boxes", steps=2, val="none")


def test_nothing_but_background(tmp_path: Path) -> None:
    masks = make_folders(tmp_path / "masks")
    for path in masks.glob("masks/*/*.png"):
        write_mask(path, (np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255)
    with pytest.raises(MixsupError, match="no training image shows an object"):
        tiny.run(masks, tmp_path / "run", "full", labels="masks")
    boxes = make_yolo_boxes(tmp_path / "boxes")
    for path in boxes.glob("labels/*/*.txt"):
        write(path, "")
    with pytest.raises(MixsupError, match="no training image shows an object"):
        tiny.run(boxes, tmp_path / "run", labels="boxes")


@pytest.mark.parametrize("change", ["classes", "images"])
def test_resume_with_other_data(tmp_path: Path, change: str) -> None:
    data = make_coco(tmp_path / "data")
    tiny.run(data, tmp_path / "run", labels="boxes", steps=2)
    path = data / "annotations/instances_train.json"
    if change == "classes":
        for each in (path, data / "annotations/instances_val.json"):
            swap_categories(each)
    else:
        text = path.read_text().replace('"a.jpg"', '"z.jpg"')
        path.write_text(text)
        os.rename(data / "images/train/a.jpg", data / "images/train/z.jpg")
    with pytest.raises(MixsupError, match="its classes differ from the run's" if change == "classes" else "has other images or labels"):
        tiny.run(data, tmp_path / "run", labels="boxes", steps=2, resume=True)


def test_a_report_finds_the_data_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixsup.report import write_report

    make_voc(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    tiny.run(Path("data"), folder, labels="boxes", steps=2, report=True)
    with_pictures = (folder / "report.html").read_text().count("<img")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_report(folder)
    assert (folder / "report.html").read_text().count("<img") == with_pictures > 0


def test_prediction_overwrites_no_picture(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(run.parent / "data/JPEGImages", photos)
    Image.open(photos / "a.jpg").save(photos / "a2.png")
    before = (photos / "a2.png").read_bytes()
    with pytest.raises(MixsupError, match=r"a2.png: its result would overwrite a picture in .*; give another folder to --out"):
        predict_files(run, [photos / "a2.png"], photos)
    assert (photos / "a2.png").read_bytes() == before
    assert predict_files(run, [photos / "a.jpg"], photos) == 1  # a.png lies beside a.jpg

    (photos / "a.png").unlink()
    (photos / "._a2.png").write_bytes(b"what macOS leaves beside its files")
    for _ in range(2):  # the second time without the results of the first
        assert predict_files(run, [photos], photos / "predicted") == 7


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "L"])
def test_a_picture_in_memory_is_what_it_is_in_a_file(run: Path, tmp_path: Path, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    picture = (
        Image.fromarray(values)
        if mode == "RGBA"
        else Image.fromarray(values[..., 0].astype(np.uint16) * 257 if mode == "I;16" else values[..., 0])
    )
    assert picture.mode == mode
    picture.save(tmp_path / "picture.png")
    segmenter = load(run)
    np.testing.assert_array_equal(segmenter.predict(picture), segmenter.predict(tmp_path / "picture.png"))


def test_prediction_overwrites_nothing_that_it_did_not_write(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(run.parent / "data", data)
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(MixsupError, match="would be overwritten, and mixsup has not written it; give another folder to --out"):
        predict_files(run, [data / "JPEGImages"], data / "SegmentationClass")
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_another_class_list_is_not_overwritten(tmp_path: Path) -> None:
    """That of another data set, given as --out; what a run left that was killed before its recipe was written does not stand in the way."""
    data, other, killed = make_voc(tmp_path / "data"), tmp_path / "other/labels.txt", tmp_path / "killed/labels.txt"
    write(other, "bird\ncat\ndog\n")
    with pytest.raises(MixsupError, match=r"labels\.txt: would be overwritten, and is not of this run; give another folder to --out"):
        tiny.run(data, other.parent, "rectangles", labels="boxes", steps=1)
    assert other.read_text() == "bird\ncat\ndog\n"
    write(killed, "background\nbird\ncat\ndog\n")
    assert tiny.run(data, killed.parent, "rectangles", labels="boxes", steps=1).classes.names == ("bird", "cat", "dog")


def test_a_share_of_the_images_is_held_out(tmp_path: Path) -> None:
    """Of one COCO file, which has no split to measure on; evaluation and report find the same images again."""
    data = make_coco(tmp_path / "data") / "annotations/instances_train.json"
    every = {sample.id for sample in load_dataset(data).samples}
    share = "train[:60%]"
    held = {sample.id for sample in load_dataset(data, share).samples}
    assert held and held < every
    run = tiny.run(data, tmp_path / "run", labels="boxes", steps=2, split="train[60%:]", val=share, report=True)
    assert set(run.kinds()) == every - held
    log = (run.folder / "log.txt").read_text()
    assert f"{len(held)} for validation" in log
    assert "are training images, too" not in log
    assert f"On {len(held)} validation images" in (run.folder / "report.html").read_text()
    assert evaluate(run.folder, data, share)["images"] == len(held)


def test_a_run_is_no_part_of_its_data(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    with pytest.raises(MixsupError, match=r"holds files of the data set .*give another --out"):
        tiny.run(data, data, labels="boxes")
    tiny.run(data, data / "runs/first", labels="boxes", steps=1)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_what_is_left_out_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = make_coco(tmp_path / "data")
    damage(data / "images/train/b.jpg")
    damage(data / "images/val/e.jpg")
    run = tiny.run(data, tmp_path / "run", labels="boxes", steps=2, skip_bad=True, report=True)
    log = (run.folder / "log.txt").read_text()
    assert "left out: " in log
    assert "b.jpg" in log and "e.jpg" in log
    assert "On 1 validation images" in (run.folder / "report.html").read_text()  # which are as many as there are
    capfd.readouterr()
    assert evaluate(run.folder, data, skip_bad=True)["images"] == 1
    assert "e.jpg" in capfd.readouterr().err
    assert predict_files(run.folder, [data / "images/val"], tmp_path / "out", skip_bad=True) == 1
    said = capfd.readouterr().err
    assert "e.jpg" in said
    assert "1 problems, 1 images left out" in said


def test_a_report_of_other_data(run: Path, tmp_path: Path) -> None:
    from mixsup.report import write_report

    data, copy = make_voc(tmp_path / "data"), tmp_path / "copy"
    shutil.copytree(run, copy)
    names = (data / "labels.txt").read_text().split()
    write(data / "labels.txt", "\n".join([names[0], *reversed(names[1:])]) + "\n")
    with pytest.raises(MixsupError, match="its classes differ from the run's"):
        write_report(copy, data)


def test_validation_that_is_void(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    for name in (data / "ImageSets/Segmentation/val.txt").read_text().split():
        path = data / f"SegmentationClass/{name}.png"
        write_mask(path, np.full_like(np.asarray(Image.open(path)), 255))
    with pytest.raises(MixsupError, match="every mask of this split is void from edge to edge"):
        tiny.run(data, tmp_path / "run", labels="boxes")


def test_resume_in_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_voc(tmp_path / "data")
    tiny.interrupt_at_call(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(data, tmp_path / "run", labels="boxes")
    monkeypatch.undo()
    (tmp_path / "run/.training.pt.1.tmp").write_bytes(b"of a process that was killed")
    with pytest.raises(MixsupError, match="it began with --precision 32-true and would go on with bf16-mixed"):
        tiny.run(data, tmp_path / "run", labels="boxes", resume=True, precision="bf16-mixed")
    tiny.run(data, tmp_path / "run", labels="boxes", resume=True)
    assert not list((tmp_path / "run").glob(".*.tmp"))
