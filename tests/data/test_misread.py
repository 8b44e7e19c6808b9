"""Data that would be taken for something else: what looks like labels and is none, pictures of another split, names that differ between splits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mixsup.data import Dataset, format_splits, load_dataset
from mixsup.data.derive import load_mask
from mixsup.data.summary import summarise
from mixsup.errors import DataError, MixsupError

from .make import (
    CLASSES,
    coco_json,
    make_coco,
    make_folders,
    make_tags,
    make_voc,
    make_voc_colours,
    make_yolo_boxes,
    make_yolo_polygons,
    mask_of,
    write,
    write_image,
    write_mask,
)


def refused(path: Path, split: str | None = None) -> str:
    with pytest.raises(MixsupError) as caught:
        load_dataset(path, split)
    assert "; " in str(caught.value)
    return str(caught.value)


class TestSplits:
    def test_pictures_of_another_split_are_not_taken(self, tmp_path: Path) -> None:
        for split, names in (("train", ["a", "b"]), ("val2017", ["a"])):
            write(tmp_path / "annotations" / f"instances_{split}.json", json.dumps(coco_json(names)))
            for name in names:
                write_image(tmp_path / split / f"{name}.jpg")
        assert load_dataset(tmp_path, "val").samples[0].image == tmp_path / "val2017/a.jpg"
        (tmp_path / "val2017/a.jpg").unlink()
        assert "no image 'a.jpg'" in refused(tmp_path, "val")

    @pytest.mark.parametrize("folder", ["val", "val2017", "images/val", "images/val2017", "images", "."])
    def test_folders_of_a_split_by_its_common_names(self, tmp_path: Path, folder: str) -> None:
        write(tmp_path / "annotations/instances_val2017.json", json.dumps(coco_json(["a"])))
        image = write_image(tmp_path / folder / "a.jpg")
        assert load_dataset(tmp_path, "val").samples[0].image == image

    def test_training_and_validation(self, tmp_path: Path) -> None:
        make_coco(tmp_path / "coco")
        labels = tmp_path / "coco/annotations"
        for old, new in (("train", "training"), ("val", "validation")):
            os.rename(labels / f"instances_{old}.json", labels / f"instances_{new}.json")
        make_folders(tmp_path / "folders")
        for kind in ("images", "masks"):
            os.rename(tmp_path / "folders" / kind / "val", tmp_path / "folders" / kind / "valid")
        for root in (tmp_path / "coco", tmp_path / "folders"):
            assert [sample.id for sample in load_dataset(root, "train").samples] == ["a", "b", "c", "d"]
            assert [sample.id for sample in load_dataset(root, "val").samples] == ["e", "f"]

    @pytest.mark.parametrize("names", [("training", "validation"), ("Train", "Val"), ("train", "valid")])
    def test_other_names_of_both_in_every_layout(self, tmp_path: Path, names: tuple[str, str]) -> None:
        """Names that were not known made training and evaluation take all images together."""
        lists = make_voc(tmp_path / "voc") / "ImageSets/Segmentation"
        make_folders(tmp_path / "folders")
        for old, new in zip(("train", "val"), names, strict=True):
            os.rename(lists / f"{old}.txt", lists / f"{new}.txt")
            for kind in ("images", "masks"):
                os.rename(tmp_path / "folders" / kind / old, tmp_path / "folders" / kind / new)
        table = make_tags(tmp_path / "tags") / "tags.csv"
        table.write_text(table.read_text().replace(",train\n", f",{names[0]}\n").replace(",val\n", f",{names[1]}\n"))
        source = {"path": "voc", "split": dict(zip(names, names, strict=True))}
        joined = [write(tmp_path / f"{index}.yaml", yaml.safe_dump({"classes": list(CLASSES), "sources": [source]}))
                  for index, source in enumerate(({"path": "voc"}, source))]  # fmt: skip
        for root in (tmp_path / "voc", tmp_path / "folders", tmp_path / "tags", *joined):
            assert {"train", "val"} <= set(format_splits(root))
            assert [sample.id for sample in load_dataset(root, "train").samples] == ["a", "b", "c", "d"]
            assert [sample.id for sample in load_dataset(root, "val").samples] == ["e", "f"]
            assert len(load_dataset(root, "train+val").samples) == 6

    def test_images_of_two_splits_that_get_one_name(self, tmp_path: Path) -> None:
        for split, names in (("train", ("a", "val-a")), ("val", ("a",))):
            for name in names:
                write_image(tmp_path / split / "images" / f"{name}.jpg")
                write_mask(tmp_path / split / "masks" / f"{name}.png", mask_of("a"))
        assert "goes by the name 'val-a', which" in refused(tmp_path)

    def test_names_from_the_working_folder(self, tmp_path: Path) -> None:
        write(tmp_path / "annotations/instances_train.json", json.dumps(coco_json(["a"], folder="./")))
        write_image(tmp_path / "images/a.jpg")
        assert [sample.id for sample in load_dataset(tmp_path).samples] == ["a"]


class TestMasks:
    def test_black_and_white(self, tmp_path: Path) -> None:
        make_folders(tmp_path)
        (tmp_path / "labels.txt").unlink()
        for path in tmp_path.glob("masks/*/*.png"):
            write_mask(path, (np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255)
        assert refused(tmp_path).endswith(
            "the masks hold 0 and 255 alone, and 255 is void; say what it is by ids: {255: NAME} in a YAML file (docs/data.md), or write 1"
        )

    def test_ids_numbered_anew_in_each_picture(self, tmp_path: Path) -> None:
        """A palette of each file's own; with what the colours mean they are read by these."""
        from mixsup.data.check import check

        colours = {0: (0, 0, 0), 1: (250, 10, 0), 2: (0, 250, 10), 3: (10, 0, 250)}
        root = make_folders(tmp_path)
        for path in root.glob("masks/*/*.png"):
            present = np.unique(mask_of(path.stem)).tolist()
            picture = Image.fromarray(np.searchsorted(present, mask_of(path.stem)).astype(np.uint8), "P")
            picture.putpalette([part for value in present for part in colours[value]])
            picture.save(path)
        (note,) = check(load_dataset(root, "train")).notes
        assert note.startswith("id 1 has colour 0,250,10 in ") and "a.png and 250,10,0 in " in note and "labelmap.txt" in note
        (root / "labels.txt").unlink()
        names = ("background", *CLASSES)
        write(
            root / "labelmap.txt",
            "".join(f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in zip(names, colours.values(), strict=True)),
        )
        data = check(load_dataset(root, "train"))
        assert not data.notes
        assert all((load_mask(sample, 4) == mask_of(sample.id)).all() for sample in data.samples)

    def test_ids_that_count_from_zero(self, tmp_path: Path) -> None:
        """Without a background the first of the names is 0, and all others are read as the one before."""
        root = make_folders(tmp_path)
        assert not summarise(load_dataset(root), pixels=True).notes
        for path in root.glob("masks/*/*.png"):
            write_mask(path, mask_of(path.stem).clip(max=2))
        assert not summarise(load_dataset(root)).notes
        (note,) = summarise(load_dataset(root), pixels=True).notes
        assert note.startswith("no mask shows 'dog', the last class: if the ids count from 0 and that is 'bird', say so by `ids`")

    def test_one_palette_for_all(self, tmp_path: Path) -> None:
        """Short ones and long ones, and pictures of greys, are no two meanings."""
        from mixsup.data.check import check

        root = make_folders(tmp_path)
        for index, path in enumerate(sorted(root.glob("masks/*/*.png"))):
            picture = Image.fromarray(mask_of(path.stem), "P" if index else "L")
            if index:
                picture.putpalette([0, 0, 0, 250, 10, 0, 0, 250, 10, 10, 0, 250, *([index] * 3 * index)])
            picture.save(path)
        assert not check(load_dataset(root)).notes

    def test_jpeg(self, tmp_path: Path) -> None:
        from mixsup.data.check import check

        make_folders(tmp_path)
        (tmp_path / "masks/train/a.png").unlink()
        write_mask(tmp_path / "masks/train/a.jpg", mask_of("a"))
        with pytest.raises(MixsupError, match="a JPEG does not keep class ids"):
            check(load_dataset(tmp_path, "train"))

    def test_webp(self, tmp_path: Path) -> None:
        """Lossless pixels are kept, with and without the header of the extended form."""
        make_folders(tmp_path)
        target = tmp_path / "masks/train/a.webp"
        (tmp_path / "masks/train/a.png").unlink()
        for more in ({}, {"exif": Image.Exif().tobytes()}):
            Image.fromarray(mask_of("a")).save(target, lossless=True, exact=True, **more)
            assert (load_mask(load_dataset(tmp_path, "train").samples[0], 4) == mask_of("a")).all()
            Image.fromarray(mask_of("a")).save(target, quality=90, **more)
            with pytest.raises(
                MixsupError, match="a lossy WebP does not keep class ids as they were written; save the mask as an 8-bit PNG of ids"
            ):
                load_mask(load_dataset(tmp_path, "train").samples[0], 4)


class TestRectangles:
    """Boxes that were exported as polygons of four points; as masks they would teach, and measure, boxes."""

    def coco(self, root: Path, change: Callable[[list[dict[str, Any]]], object] = len) -> Dataset:
        data = coco_json(["a", "b", "c", "e", "f", "d"] * 2)  # 16 outlines, two images of each name
        data["images"] = [row | {"file_name": f"{row['id']}.jpg"} for row in data["images"]]
        change(data["annotations"])
        write(root / "annotations/instances_train.json", json.dumps(data))
        for row in data["images"]:
            write_image(root / "images" / row["file_name"])
        return load_dataset(root, "train")

    def test_coco(self, tmp_path: Path) -> None:
        dataset = self.coco(tmp_path)
        assert {sample.kinds()[0] for sample in dataset.samples} == {"boxes"}
        said = "each of its 16 outlines is an upright rectangle, so they are taken for boxes and not for masks"
        assert dataset.notes == (f"{tmp_path}/annotations/instances_train.json: {said}",)
        assert dataset.problems == []
        closed = self.coco(tmp_path / "closed", lambda rows: [row["segmentation"][0].extend(row["segmentation"][0][:2]) for row in rows])
        assert {sample.kinds()[0] for sample in closed.samples} == {"boxes"}

    def test_one_that_is_none_or_few_of_them(self, tmp_path: Path) -> None:
        """An image with an outline of another form has a mask, the others have boxes: files mix what was outlined and what was boxed."""
        triangle = self.coco(tmp_path / "one", lambda rows: rows[0].update(segmentation=[[4, 3, 20, 3, 20, 18]]))
        larger = self.coco(tmp_path / "box", lambda rows: rows[0].update(bbox=[0, 0, 25, 25]))
        for dataset in (triangle, larger):
            kinds = {sample.id: sample.kinds()[0] for sample in dataset.samples}
            empty = [sample.id for sample in dataset.samples if sample.boxes is not None and not len(sample.boxes)]
            assert [key for key, kind in kinds.items() if kind == "masks"] == sorted(["100", *empty])
            assert "each outline of 9 of its 12 images is an upright rectangle" in dataset.notes[0]
        few = self.coco(tmp_path / "few", lambda rows: rows.__delitem__(slice(9, None)))
        assert {sample.kinds()[0] for sample in few.samples} == {"masks"}
        assert few.notes == ()

    def test_yolo(self, tmp_path: Path) -> None:
        make_yolo_polygons(tmp_path)
        path = tmp_path / "labels/train/d.txt"
        row = (tmp_path / "labels/train/a.txt").read_text()
        path.write_text(row * 5)
        dataset = load_dataset(write(tmp_path / "all.yaml", yaml.safe_dump({"classes": list(CLASSES), "sources": [{"path": "."}]})))
        assert {sample.kinds()[0] for sample in dataset.samples} == {"boxes"}
        assert dataset.notes == summarise(dataset).notes
        assert "each of its 13 outlines is an upright rectangle" in dataset.notes[0]
        path.write_text(row * 5 + "0 0.1 0.1 0.5 0.1 0.6 0.3 0.5 0.6 0.1 0.6\n")
        dataset = load_dataset(tmp_path)
        assert {sample.id: sample.kinds()[0] for sample in dataset.samples if sample.boxes is not None and len(sample.boxes)}.items() >= {
            "a": "boxes",
            "d": "masks",
        }.items()


class TestTools:
    """What annotation tools write into COCO's fields."""

    def coco(self, root: Path, change: Callable[[dict[str, Any]], object]) -> Dataset:
        data = coco_json(["a", "b", "c", "d"] * 3, outlines="rle")
        data["images"] = [row | {"file_name": f"{row['id']}.jpg"} for row in data["images"]]
        for row in data["images"]:
            write_image(root / "images" / row["file_name"])
        change(data)
        write(root / "annotations/instances_train.json", json.dumps(data))
        return load_dataset(root, "train")

    def test_brush_masks_that_are_called_crowds(self, tmp_path: Path) -> None:
        """CVAT writes 1 for whatever is no polygon; crowds as COCO has them, one in a hundred, stay."""
        every = self.coco(tmp_path / "every", lambda data: [row.update(iscrowd=1) for row in data["annotations"]])
        assert not any(boxes.crowd.any() for sample in every.samples if (boxes := sample.boxes) is not None)
        assert "`iscrowd` is 1 for 15 of 15 annotations, too many for crowds; they are taken for objects" in every.notes[0]
        one = self.coco(tmp_path / "one", lambda data: data["annotations"][0].update(iscrowd=1))
        assert sum(int(boxes.crowd.sum()) for sample in one.samples if (boxes := sample.boxes) is not None) == 1
        assert one.notes == ()

    @pytest.mark.parametrize("value", ["0", False, None, "", 0.0])
    def test_no_crowd(self, tmp_path: Path, value: object) -> None:
        dataset = self.coco(tmp_path, lambda data: data["annotations"][0].update(iscrowd=value))
        assert dataset.notes == ()
        assert not any(boxes.crowd.any() for sample in dataset.samples if (boxes := sample.boxes) is not None)

    def test_boxes_as_shares(self, tmp_path: Path) -> None:
        with pytest.raises(
            MixsupError, match="each of its 15 boxes lies between 0 and 1, as shares of the image's sides; write them in pixels"
        ):
            self.coco(tmp_path, lambda data: [row.update(bbox=[0.1, 0.25, 0.5, 0.3]) for row in data["annotations"]])

    @pytest.mark.parametrize("name", ["animals-1xYz", "cat"])
    def test_a_category_that_names_a_group(self, tmp_path: Path, name: str) -> None:
        """Roboflow's first one; that of a project with one class can be called like it."""

        def group(data: dict[str, Any]) -> None:
            data["categories"] = [{"id": 0, "name": name, "supercategory": "none"}] + [
                row | {"supercategory": name} for row in data["categories"]
            ]

        dataset = self.coco(tmp_path, group)
        assert dataset.classes.names == CLASSES
        assert f"category '{name}' has no annotation and only names a group of the others" in dataset.notes[0]

    def test_a_group_that_is_annotated_is_a_class(self, tmp_path: Path) -> None:
        def group(data: dict[str, Any]) -> None:
            data["categories"] = [{"id": 0, "name": "animal", "supercategory": "none"}] + [
                row | {"supercategory": "animal"} for row in data["categories"]
            ]
            data["annotations"][0]["category_id"] = 0

        assert self.coco(tmp_path, group).classes.names == ("animal", *CLASSES)

    @pytest.mark.parametrize(
        ("said", "there"),
        [
            ("x.jpg", "images/x.JPG"),
            ("cafe\u0301.jpg", "images/caf\u00e9.jpg"),
            ("%C3%9F%20x.jpg", "images/\u00df x.jpg"),
            ("../../data/upload/1/x.jpg", "images/x.jpg"),
            ("/home/me/x.jpg", "x.jpg"),
            ("C:\\photos\\x.jpg", "images/x.jpg"),
            ("x.jpg", "pictures/x.jpg"),
        ],
    )
    def test_images_that_are_elsewhere(self, tmp_path: Path, said: str, there: str) -> None:
        write_image(tmp_path / there)
        dataset = self.coco(tmp_path, lambda data: data["images"][0].update(file_name=said))
        assert dataset.problems == []
        assert len(dataset) == 12
        assert tmp_path / there in [sample.image for sample in dataset.samples]
        assert "1 images are not where it says but under a like name" in dataset.notes[0]

    def test_images_that_could_be_another(self, tmp_path: Path) -> None:
        """Of two nothing is guessed, and nothing is taken from another split."""
        for there in ("images/x.JPG", "images/X.jpg"):
            write_image(tmp_path / "two" / there)
        write_image(tmp_path / "other/val/x.jpg")
        for name in ("two", "other"):
            with pytest.raises(MixsupError, match=r"no image 'x\.jpg'"):
                self.coco(tmp_path / name, lambda data: data["images"][0].update(file_name="x.jpg"))

    def test_an_image_that_two_names_could_mean(self, tmp_path: Path) -> None:
        write_image(tmp_path / "images/x.jpg")

        def rename(data: dict[str, Any]) -> None:
            for row, folder in zip(data["images"], ("monday", "tuesday"), strict=False):
                row["file_name"] = f"{folder}/x.jpg"

        with pytest.raises(DataError) as caught:
            self.coco(tmp_path, rename)
        assert [problem.sample for problem in caught.value.problems] == ["monday-x", "tuesday-x"]

    def test_classes_that_differ_in_case(self, tmp_path: Path) -> None:
        dataset = self.coco(tmp_path, lambda data: data["categories"][0].update(name="CAT"))
        assert "classes 'cat', 'CAT' differ in upper and lower case alone" in dataset.notes[0]
        joined = yaml.safe_dump({"classes": list(CLASSES), "sources": [{"path": ".", "rename": {"CAT": "cat"}}]})
        assert load_dataset(write(tmp_path / "all.yaml", joined)).notes == ()


class TestYOLO:
    def test_labels_that_are_not_found(self, tmp_path: Path) -> None:
        make_yolo_boxes(tmp_path)
        os.rename(tmp_path / "images", tmp_path / "imgs")
        write(tmp_path / "data.yaml", yaml.safe_dump({"train": "imgs/train", "names": list(CLASSES)}))
        assert "none of 4 images has a label file; that of 'imgs/train/a.jpg' would be 'imgs/train/a.txt'" in refused(tmp_path, "train")

    def test_no_settings_file(self, tmp_path: Path) -> None:
        make_yolo_boxes(tmp_path)
        (tmp_path / "data.yaml").unlink()
        assert "data.yaml" in refused(tmp_path)

    def test_images_beside_folders_of_images(self, tmp_path: Path) -> None:
        make_yolo_boxes(tmp_path)
        write_image(tmp_path / "images/g.jpg")
        settings = yaml.safe_load((tmp_path / "data.yaml").read_text())
        write(tmp_path / "data.yaml", yaml.safe_dump({**settings, "train": "images"}))
        assert [sample.id for sample in load_dataset(tmp_path, "train").samples] == ["a", "b", "c", "d", "e", "f", "g"]

    @pytest.mark.parametrize("key", ["valid", "validation", "Val"])
    def test_other_names_of_val(self, tmp_path: Path, key: str) -> None:
        path = make_yolo_boxes(tmp_path) / "data.yaml"
        path.write_text(path.read_text().replace("val:", f"{key}:"))
        assert format_splits(tmp_path) == ["train", key, "val"]
        assert [sample.id for sample in load_dataset(tmp_path, "val").samples] == ["e", "f"]
        assert len(load_dataset(tmp_path)) == 6

    def test_numbers_in_quotes(self, tmp_path: Path) -> None:
        path = make_yolo_boxes(tmp_path) / "data.yaml"
        settings = yaml.safe_load(path.read_text())
        for names in ({"0": "bird", "1": "cat", 2: "dog"}, {0: "bird", "0": "cat", 1: "dog"}, {"0": "bird", "2": "cat"}):
            write(path, yaml.safe_dump({**settings, "names": names}))
            if len({str(key) for key in names} & {"0", "1", "2"}) == 3:
                assert load_dataset(tmp_path).classes.names == CLASSES
            else:
                assert "names must be numbered 0 to" in refused(tmp_path)

    def test_one_box_takes_the_mask_of_its_image_away(self, tmp_path: Path) -> None:
        root = make_yolo_polygons(tmp_path)
        with (root / "labels/train/a.txt").open("a") as file:
            file.write("1 0.5 0.5 0.1 0.1\n")
        dataset = load_dataset(root)
        assert [sample.id for sample in dataset.samples if sample.kinds()[0] == "boxes"] == ["a"]
        assert "1 images have rows of 4 numbers, which are boxes: they have no mask, as the 4 of outlines alone have" in dataset.notes[0]

    def test_images_without_objects_are_as_most(self, tmp_path: Path) -> None:
        root = make_yolo_polygons(tmp_path)
        for name in ("a", "b", "e"):
            write(root / f"labels/{'val' if name == 'e' else 'train'}/{name}.txt", "1 0.5 0.5 0.1 0.1\n")
        kinds = {sample.id: sample.kinds()[0] for sample in load_dataset(root).samples}
        assert kinds == {"a": "boxes", "b": "boxes", "c": "masks", "d": "boxes", "e": "boxes", "f": "masks"}

    def test_a_split_without_its_folder(self, tmp_path: Path) -> None:
        """As Roboflow writes them; that it is not there is what there is to say."""
        path = make_yolo_boxes(tmp_path) / "data.yaml"
        settings = yaml.safe_load(path.read_text())
        write(path, yaml.safe_dump({**settings, "train": "../images/train", "test": "../test/images"}))
        assert "test: no folder '../test/images', beside data.yaml or above it; bring it, or remove the line" in refused(tmp_path)
        assert len(load_dataset(tmp_path, "train")) == 4

    def test_key_points(self, tmp_path: Path) -> None:
        make_yolo_boxes(tmp_path)
        settings = yaml.safe_load((tmp_path / "data.yaml").read_text())
        write(tmp_path / "data.yaml", yaml.safe_dump({**settings, "kpt_shape": [5, 2]}))
        assert "kpt_shape" in refused(tmp_path)

    @pytest.mark.parametrize("fifth", [False, True])
    def test_oriented_boxes(self, tmp_path: Path, fifth: bool) -> None:
        make_yolo_boxes(tmp_path)
        for path in tmp_path.glob("labels/*/*.txt"):
            write(path, "0 0.5 0.2 0.725 0.5 0.5 0.8 0.275 0.5\n")  # a square of 18 pixels a diagonal, turned by 45 degrees
        if fifth:  # one outline that is no rectangle, and all are outlines
            write(tmp_path / "labels/train/a.txt", "0 0.1 0.1 0.5 0.1 0.6 0.3 0.5 0.6 0.1 0.6\n")
            assert load_dataset(tmp_path).samples[0].mask is not None
        else:
            assert "rotated rectangle" in refused(tmp_path)


class TestVOC:
    def test_masks_of_colours(self, tmp_path: Path) -> None:
        """As CVAT writes them, with a `labelmap.txt`; as a palette of these colours, too, whose indices say nothing."""
        palette = make_voc_colours(tmp_path) / "SegmentationClass/b.png"
        Image.open(palette).convert("P", palette=Image.Palette.ADAPTIVE).save(palette)
        dataset = load_dataset(tmp_path, "train")
        assert dataset.classes.names == CLASSES
        assert Image.open(palette).mode == "P"
        for sample in dataset.samples:
            assert (load_mask(sample, 4) == mask_of(sample.id)).all()
        joined = yaml.safe_dump({"classes": ["thing"], "sources": [{"path": ".", "rename": dict.fromkeys(CLASSES, "thing")}]})
        merged = load_dataset(write(tmp_path / "all.yaml", joined), "train").samples[0]
        assert (load_mask(merged, 2) == (mask_of("a") > 0)).all()
        Image.fromarray(np.full((30, 40, 3), [1, 2, 3], np.uint8)).save(tmp_path / "SegmentationClass/a.png")
        with pytest.raises(MixsupError, match=r"colour 1,2,3 is not in the list of colours; add it to labelmap\.txt, or correct the mask"):
            load_mask(load_dataset(tmp_path, "train").samples[0], 4)

    @pytest.mark.parametrize("line", ["cat", "cat:", "cat:1,2::", "cat:1,2,256::", "cat:a,b,c::", ":1,2,3::", "cat:1,2,3::\ndog:1,2,3::"])
    def test_lists_of_colours_at_fault(self, tmp_path: Path, line: str) -> None:
        make_voc_colours(tmp_path)
        write(tmp_path / "labelmap.txt", f"background:0,0,0::\n{line}\n")
        assert "labelmap.txt" in refused(tmp_path)

    def test_previews_beside_masks(self, tmp_path: Path) -> None:
        make_voc(tmp_path)
        write_image(tmp_path / "SegmentationClass/a.jpg")
        assert load_dataset(tmp_path, "train").samples[0].kinds()[0] == "masks"

    def test_names_with_spaces(self, tmp_path: Path) -> None:
        make_voc(tmp_path)
        for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
            for old, new in (("a", "my a 1"), ("b", "my b")):
                os.rename(tmp_path / folder / f"{old}.{suffix}", tmp_path / folder / f"{new}.{suffix}")
        write(tmp_path / "ImageSets/Segmentation/train.txt", "my a 1\nmy b -1\n c  1 \n")
        samples = load_dataset(tmp_path, "train").samples
        assert [sample.id for sample in samples] == ["c", "my a 1", "my b"]
        assert all(sample.boxes is not None and sample.mask is not None for sample in samples)

    def test_lists_of_file_names(self, tmp_path: Path) -> None:
        make_voc(tmp_path)
        path = write(tmp_path / "ImageSets/Segmentation/train.txt", "a.jpg\nb.JPG 1\nc\n")
        assert [sample.id for sample in load_dataset(tmp_path, "train").samples] == ["a", "b", "c"]
        write(path, "x.jpg\n")
        assert "JPEGImages/x.jpg: no such image" in refused(tmp_path, "train")

    def test_classes_do_not_depend_on_the_split(self, tmp_path: Path) -> None:
        """`val` shows VOC's own classes alone, `train` one more."""
        for name, label in (("a", "zebra"), ("b", "cat")):
            write_image(tmp_path / f"JPEGImages/{name}.jpg")
            box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            write(tmp_path / f"Annotations/{name}.xml", f"<annotation><object><name>{label}</name>{box}</object></annotation>")
        write(tmp_path / "ImageSets/Main/train.txt", "a\n")
        write(tmp_path / "ImageSets/Main/val.txt", "b\n")
        assert [load_dataset(tmp_path, split).classes.names for split in ("train", "val", None)] == [("cat", "zebra")] * 3

    def test_background_and_capital_letters(self, tmp_path: Path) -> None:
        make_voc(tmp_path)
        path = tmp_path / "Annotations/a.xml"
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
        write(path, path.read_text().replace("</annotation>", f"<object><name>Background</name>{box}</object></annotation>"))
        os.rename(tmp_path / "SegmentationClass/a.png", tmp_path / "SegmentationClass/a.PNG")
        sample = load_dataset(tmp_path, "train").samples[0]
        assert sample.boxes is not None
        assert len(sample.boxes) == 1
        assert sample.mask is not None


class TestLayouts:
    def test_coco_files_beside_a_folder_that_is_called_as_vocs(self, tmp_path: Path) -> None:
        write(tmp_path / "annotations/instances_train.json", json.dumps(coco_json(["a"])))
        write_image(tmp_path / "JPEGImages/a.jpg")
        (sample,) = load_dataset(tmp_path, "train").samples
        assert sample.boxes is not None

    def test_label_studios_yolo_is_no_coco(self, tmp_path: Path) -> None:
        write(tmp_path / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2026}}))
        write(tmp_path / "classes.txt", "cat\n")
        write_image(tmp_path / "images/a.jpg")
        write(tmp_path / "labels/a.txt", "0 0.5 0.5 0.2 0.2\n")
        assert refused(tmp_path).startswith(f"{tmp_path}: labels/ holds text files and no mask; if they are YOLO's, write a data.yaml")

    def test_xml_files_beside_images(self, tmp_path: Path) -> None:
        make_voc(tmp_path)
        os.rename(tmp_path / "JPEGImages", tmp_path / "images")
        os.rename(tmp_path / "Annotations", tmp_path / "annotations")
        said = "annotations/ holds XML files and no mask; if they are Pascal VOC's, call the folders JPEGImages and Annotations"
        assert refused(tmp_path) == f"{tmp_path}: {said}"

    def test_images_in_data(self, tmp_path: Path) -> None:
        write(tmp_path / "labels.json", json.dumps(coco_json(["a"])))
        image = write_image(tmp_path / "data/a.jpg")
        assert load_dataset(tmp_path).samples[0].image == image

    @pytest.mark.parametrize("keys", [("images", "annotations", "categories"), ("annotations", "categories", "images"),
                                      ("info", "images", "categories", "annotations")])  # fmt: skip
    def test_large_coco_files_in_any_order(self, tmp_path: Path, keys: tuple[str, ...]) -> None:
        data = {"info": "x" * 100_000, **coco_json(["a"])}
        data["images"] += [{"id": f"{index}", "file_name": "b.jpg", "note": "y" * 1000} for index in range(200)]
        write(tmp_path / "train.json", json.dumps({key: data[key] for key in keys}))
        assert format_splits(tmp_path) == ["train"]

    def test_panoptic(self, tmp_path: Path) -> None:
        data = coco_json(["a"])
        data["annotations"] = [{"image_id": 100, "file_name": "a.png", "segments_info": []}]
        write(tmp_path / "panoptic.json", json.dumps(data))
        assert "panoptic" in refused(tmp_path / "panoptic.json")


class TestUnknown:
    """What a folder that no reader knows may be."""

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            (
                "a.json",
                '{"version": "5.4", "shapes": [], "imagePath": "a.jpg"}',
                "a.json looks like LabelMe's, which is not read: convert the files to COCO",
            ),
            ("a.xml", "<annotation/>", "move them into Annotations/ and the images into JPEGImages/"),
            ("a.txt", "0 .5 .5 .1 .1", "write a data.yaml with `names: [...]` and `train: .`"),
            ("b.txt", "something else", "no known layout; mixsup reads"),
        ],
    )
    def test_labels_beside_images(self, tmp_path: Path, name: str, text: str, said: str) -> None:
        write_image(tmp_path / "a.jpg")
        write(tmp_path / name, text)
        assert said in refused(tmp_path)
        if name == "a.txt":
            write(tmp_path / "data.yaml", "names: [cat]\ntrain: .\n")
            boxes = load_dataset(tmp_path).samples[0].boxes
            assert boxes is not None and len(boxes) == 1


class TestFolders:
    def test_folders_in_capitals(self, tmp_path: Path) -> None:
        make_folders(tmp_path)
        for name in ("images", "masks"):
            (tmp_path / name).rename(tmp_path / name.capitalize())
        assert len(load_dataset(tmp_path, "train")) == 4

    def test_masks_that_go_with_no_image(self, tmp_path: Path) -> None:
        make_folders(tmp_path)
        for folder in (tmp_path / "masks").iterdir():
            for path in folder.iterdir():
                path.rename(path.with_name(f"gt_{path.name}"))
        assert (
            "none of its 4 masks is called like an image; 'gt_a.png' would be that of 'gt_a', and there is 'a.jpg'; rename them"
            in refused(tmp_path, "train")
        )
        for path in (tmp_path / "masks/train").iterdir():
            path.rename(path.with_name(path.name.replace("gt_", "" if "a" in path.name else "mask_")))
        assert "3 of 4 masks go with no image, as 'mask_b.png'; they are not read" in load_dataset(tmp_path, "train").notes[0]

    def test_previews_beside_masks_and_images_of_one_name(self, tmp_path: Path) -> None:
        make_folders(tmp_path)
        write_image(tmp_path / "masks/train/a.jpg")
        write_image(tmp_path / "images/train/a.png")
        dataset = load_dataset(tmp_path, "train")
        assert [sample.kinds()[0] for sample in dataset.samples] == ["masks"] * 4
        assert "1 of 5 images are called like another but for the ending, as 'a.png'; they are not read" in dataset.notes[0]

    def test_colours_without_a_class_list(self, tmp_path: Path) -> None:
        make_folders(tmp_path)
        (tmp_path / "labels.txt").unlink()
        for path in tmp_path.glob("masks/*/*.png"):
            ids = np.asarray(Image.open(path))
            Image.fromarray(np.stack([ids * 60, 255 - ids, ids * 9], 2)).save(path)
        assert "pixels are colours" in refused(tmp_path)

    def test_images_beside_folders_of_images(self, tmp_path: Path) -> None:
        """They are of no split, and were not read at all."""
        make_folders(tmp_path)
        write_image(tmp_path / "images/g.jpg")
        write_mask(tmp_path / "masks/g.png", mask_of("a"))
        assert [sample.id for sample in load_dataset(tmp_path).samples] == ["a", "b", "c", "d", "e", "f", "g"]
        assert format_splits(tmp_path) == ["train", "val"]
        assert [sample.id for sample in load_dataset(tmp_path, "val").samples] == ["e", "f"]


class TestTags:
    @pytest.mark.parametrize("cell", ['"cat,dog"', '"cat, dog"', "\"['cat', 'dog']\""])
    def test_tags_with_a_comma_between_are_not_one_class(self, tmp_path: Path, cell: str) -> None:
        path = write(make_tags(tmp_path) / "tags.csv", f"image,tags\na.jpg,{cell}\n")
        assert refused(tmp_path).startswith(f"{path}, line 2: ")
        assert refused(tmp_path).endswith("would be one class; separate tags by ;")

    @pytest.mark.parametrize("column", ["tag", "Label", "class"])
    def test_one_tag_a_row(self, tmp_path: Path, column: str) -> None:
        write(make_tags(tmp_path) / "tags.csv", f"image,{column}\na.jpg,cat\n")
        assert load_dataset(tmp_path).classes.names == ("cat",)

    @pytest.mark.parametrize("header", ["image;tags", "image\ttags", "file_name; tags;split"])
    def test_other_separators(self, tmp_path: Path, header: str) -> None:
        path = write(make_tags(tmp_path) / "tags.csv", f"{header}\n")
        assert refused(tmp_path) == f"{path}, line 1: {header!r} is one column; separate columns by commas, and tags by ;"

    def test_names_from_the_folder_of_the_list(self, tmp_path: Path) -> None:
        write(make_tags(tmp_path) / "tags.csv", "image,tags\nimages/a.jpg,cat\nb.jpg,dog\nmore/g.jpg,dog\n")
        image = write_image(tmp_path / "more/g.jpg")
        assert {sample.id: sample.image for sample in load_dataset(tmp_path).samples} == {
            "a": tmp_path / "images/a.jpg", "b": tmp_path / "images/b.jpg", "more-g": image,
        }  # fmt: skip

    def test_a_class_with_a_comma_in_labels_txt(self, tmp_path: Path) -> None:
        write(make_tags(tmp_path) / "tags.csv", 'image,tags\na.jpg,"saw, chain;dog"\n')
        write(tmp_path / "labels.txt", "saw, chain\ndog\n")
        assert load_dataset(tmp_path).samples[0].tags == {1, 2}

    def test_beside_paired_folders(self, tmp_path: Path) -> None:
        make_folders(tmp_path)
        for split in ("train", "val"):
            for mask in (tmp_path / "masks" / split).glob("[bcf].png"):
                mask.unlink()
        write(tmp_path / "tags.csv", "image,tags\nb.jpg,cat;dog\nc,bird\n")
        found = {sample.id: sample.kinds() for sample in load_dataset(tmp_path).samples}
        assert (found["b"], found["c"], found["f"]) == (("tags",), ("tags",), ())
        assert found["a"][0] == "masks"
        write(tmp_path / "tags.csv", "image,tags\nb.jpg,cow\n")
        assert "unknown class 'cow'" in refused(tmp_path)

    def test_a_name_without_extension_that_has_a_dot(self, tmp_path: Path) -> None:
        make_voc(tmp_path)
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png"), ("Annotations", "xml")):
            for file in (tmp_path / folder).glob(f"a.{suffix}"):
                file.rename(file.with_name(f"2008.1.{suffix}"))
        for file in (tmp_path / "ImageSets").rglob("*.txt"):
            file.write_text("".join("2008.1\n" if line == "a" else f"{line}\n" for line in file.read_text().splitlines()))
        write(tmp_path / "tags.csv", "image,tags\n2008.1,cat\n")
        found = {sample.id: sample.tags for sample in load_dataset(tmp_path).samples}
        assert found["2008.1"] == {CLASSES.index("cat") + 1}
        write(tmp_path / "tags.csv", 'image,tags\n2008.1,"cat,dog"\n')
        assert "'cat,dog' would be one class" in refused(tmp_path)

    def test_a_list_that_names_no_image(self, tmp_path: Path) -> None:
        write(make_voc(tmp_path) / "tags.csv", "image,tags\nIMG_1.jpg,cat\n")
        assert "names 'IMG_1' and others, and none of the images" in refused(tmp_path)
