"""What a user of a trained run touches: `load(run).predict(image)`, and evaluation and prediction of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from mixsup.data import format_splits, load_dataset
from mixsup.data.check import check
from mixsup.data.image import EXTENSIONS, ImageError, read_image, to_rgb
from mixsup.data.palette import overlay as draw_overlay
from mixsup.data.palette import palette_png
from mixsup.data.sample import UInt8
from mixsup.engine.checkpoint import load_model
from mixsup.engine.evaluate import evaluate as run_evaluation
from mixsup.engine.evaluate import refuse_other_classes, refuse_void, with_masks
from mixsup.engine.images import several
from mixsup.engine.model import SegmentationModel
from mixsup.engine.output_crf import build_crf
from mixsup.engine.predict import TILE, Predictor
from mixsup.engine.run import Run
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.files import too_long, write_bytes, write_text, write_with
from mixsup.masks.coco import CocoSpool, coco_classes, refuse_foreign
from mixsup.progress import track
from mixsup.show import show_problems

_JPEG = 65_500  # pixels a side that a JPEG can have


class Segmenter:
    """A trained run, ready to predict.

        segmenter = mixsup.load("runs/first")
        ids = segmenter.predict("photo.jpg")        # H×W uint8 class ids
        segmenter.classes.all()[ids[10, 20]]        # the name of the class at row 10, column 20

    Attributes:
        run: the run.
        model: the network, in evaluation mode.
        classes: the class list.
    """

    def __init__(self, run: Run, model: SegmentationModel, predictor: Predictor) -> None:
        self.run, self.model, self.classes = run, model, run.classes
        self._predictor = predictor

    def predict(self, image: str | Path | UInt8 | Image.Image) -> UInt8:
        """The class of each pixel.

        Args:
            image: a file, a PIL image, or H×W×3 uint8 RGB.

        Returns:
            H×W uint8 class ids at the size of the upright image.

        Raises:
            MixsupError: the file is no image that can be read, or the array is of another shape or type.
        """
        if isinstance(image, (str, Path)):
            try:
                pixels = read_image(Path(image))
            except ImageError as error:
                raise MixsupError(f"{image}: {error}") from error
        elif isinstance(image, Image.Image):
            pixels = np.array(to_rgb(ImageOps.exif_transpose(image)))
        else:
            pixels = image
        if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size or pixels.dtype != np.uint8:
            raise MixsupError(f"an image must be H x W x 3 uint8 RGB, this one is {pixels.shape} {pixels.dtype}; convert it")
        return self._predictor(pixels)


def choose_device(name: str) -> torch.device:
    """`auto` is the first accelerator, else the CPU.

    Raises:
        MixsupError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise MixsupError(f"--device {name}: not available ({str(error).splitlines()[0][:100]}); use cpu") from None
    return device


def load(
    run: str | Path,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    tile: int = TILE,
    crf: bool | Mapping[str, Any] = False,
) -> Segmenter:
    """Loads a run for prediction.

    Args:
        run: the run folder.
        checkpoint: `best` or `last`.
        device: `auto`, `cpu`, `cuda`, `mps`.
        scales: factors of the working size whose probabilities are averaged.
        flip: average with the mirrored image.
        tile: larger images (in working pixels a side, 128 around it not counted) are predicted in tiles of so many.
        crf: refine with a fully connected CRF; a dictionary for settings of `mixsup.engine.output_crf.OutputCRF`.

    Raises:
        MixsupError: no run, no checkpoint, no such device, scales that are no factors, or a CRF setting that cannot be.
    """
    refine = build_crf(crf)
    if not isinstance(scales, Iterable):
        raise MixsupError(f"--scales {scales}: give several factors, as [1.0]")
    opened, place = Run.load(run), choose_device(device)
    model = load_model(opened, checkpoint, place)
    if tile < 32:
        raise MixsupError(f"--tile {tile}: a tile needs at least 32 pixels a side")
    schedule = opened.recipe.train
    predictor = Predictor(model, schedule.size, schedule.resolution, place, tuple(scales), flip, tile, crf=refine)
    return Segmenter(opened, model, predictor)


def evaluate(
    run: str | Path, data: str | Path, split: str | None = None, *, scales: Sequence[float] = (1.0,), flip: bool = False, boundary: bool = False,
    checkpoint: str = "best", device: str = "auto", format: str | None = None, skip_bad: bool = False, crf: bool | Mapping[str, Any] = False,
) -> dict[str, Any]:  # fmt: skip
    """Scores of a run on the images of a split that have masks; the arguments that `load` has too mean the same here.

    Returns:
        `miou`, `pixel_accuracy`, `mean_accuracy`, `fw_iou` (0 to 1), `per_class` (name → IoU, None for a class that occurs nowhere), `images`,
        `unmeasured` (images of the split without a true mask), `pretraining`; with `boundary` also `trimap` and `boundary_iou`.

    Raises:
        MixsupError: the class lists differ, or there is nothing to measure on.
        DataError: images or masks at fault, unless `skip_bad`, which leaves them out and says so on stderr.
    """
    data = Path(data)
    names = format_splits(data, format) if split is None and data.exists() else []
    if "val" in names:
        split = "val"
    elif several(names):
        raise MixsupError(f"{data}: no split 'val', it has {', '.join(names)}; name the one to measure on with --split")
    segmenter = load(run, checkpoint=checkpoint, device=device, scales=scales, flip=flip, crf=crf)
    dataset = load_dataset(data, split, format=format, skip_bad=skip_bad)
    refuse_other_classes(segmenter.classes, dataset.classes, str(data), "the run's", "join it in a YAML file under the run's class list")
    masked = with_masks(dataset)
    unmeasured = len(dataset) - len(masked)
    dataset = check(dataset.with_samples(masked), skip_bad=skip_bad)
    refuse_void(dataset)
    found = run_evaluation(segmenter._predictor, dataset, boundary=boundary, workers=min(8, (os.cpu_count() or 1) - 1))
    show_problems(dataset.problems)
    return {**found.scores, "images": len(dataset), "unmeasured": unmeasured, "pretraining": segmenter.run.facts.get("pretraining", "")}


def predict_files(
    run: str | Path, images: Iterable[str | Path], out: str | Path, *, overlay: bool = False, scales: Sequence[float] = (1.0,), flip: bool = False,
    tile: int = TILE, checkpoint: str = "best", device: str = "auto", skip_bad: bool = False, crf: bool | Mapping[str, Any] = False,
) -> int:  # fmt: skip
    """Predicts image files and folders of them; writes `<name>.png` (palette), `predictions.json` (COCO codes, one a class) and `labels.txt`.

    A file below a folder keeps its place below `out`; what lies below `out` itself are results of before, and are left out.

    Returns:
        How many images were predicted.

    Raises:
        DataError: images at fault, or on which the network fails, after all others were written (unless `skip_bad`, which leaves them out and
            says so on stderr).
        MixsupError: no image at all, two that would get the same name, or a picture that would be overwritten and is no result of before.
    """
    segmenter, out = load(run, checkpoint=checkpoint, device=device, scales=scales, flip=flip, tile=tile, crf=crf), Path(out)
    found, names = _image_files([Path(image) for image in images], out), segmenter.classes.lines()
    refuse_foreign(out / "predictions.json", names, (out / f"{name}{ending}" for name in found for ending in (".png", ".overlay.jpg")))
    write_text(out / "labels.txt", names)  # first: it says whose pictures these are
    problems: list[Problem] = []
    predicted = 0
    with CocoSpool(out / "predictions.json", segmenter.classes) as spool:
        for number, (name, path) in enumerate(track(found.items(), "predicting", len(found)), 1):
            made = _predict(segmenter, name, path)
            if isinstance(made, Problem):
                problems.append(made)
                continue
            pixels, ids = made
            write_bytes(out / f"{name}.png", palette_png(ids))
            if overlay:
                picture = Image.fromarray(draw_overlay(pixels, ids))
                picture.thumbnail((_JPEG, _JPEG))
                write_with(out / f"{name}.overlay.jpg", lambda target, picture=picture: picture.save(target, format="JPEG", quality=90))  # type: ignore[misc]
            entry = {"id": number, "file_name": f"{name}{path.suffix}", "height": ids.shape[0], "width": ids.shape[1]}
            spool.add(entry, coco_classes(ids))
            predicted += 1
        spool.finish()
    if problems and not skip_bad:
        raise DataError(problems)
    show_problems(problems)
    return predicted


def _predict(segmenter: Segmenter, name: str, path: Path) -> tuple[UInt8, UInt8] | Problem:
    """The pixels of an image file and its class ids, or what is wrong with it."""
    if too_long(Path(name).name):
        return Problem(str(path), "", "its name is too long to name results by", "rename the image", name)
    try:
        pixels = read_image(path)
    except ImageError as error:
        message, _, remedy = str(error).rpartition("; ")
        return Problem(str(path), "", message, remedy, name)
    try:
        return pixels, segmenter.predict(pixels)
    except (MixsupError, MemoryError, torch.cuda.OutOfMemoryError):  # no matter of this picture alone
        raise
    except Exception as error:  # of any network, in its own words
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        fault = f"the network fails on its {pixels.shape[1]} x {pixels.shape[0]} pixels ({reason})"
        return Problem(str(path), "", fault, "leave it out, or predict with another --scales", name)


def _image_files(paths: list[Path], out: Path) -> dict[str, Path]:
    """Image files by the name (without extension) that their results get below `out`."""
    found: dict[str, Path] = {}
    results = out.resolve()
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_image(file) and results not in file.resolve().parents)
            named = [(file.relative_to(path).with_suffix("").as_posix(), file) for file in files]
        else:
            named = [(path.stem, path)]
        for name, file in named:
            if name in found and found[name] != file:
                raise MixsupError(
                    f"{file}: its result would overwrite that of {found[name]}; rename one, or predict each by itself with an --out of its own"
                )
            found[name] = file
    inputs = {file.resolve() for file in found.values()}
    for name, file in found.items():
        if not inputs.isdisjoint(results / f"{name}{ending}" for ending in (".png", ".overlay.jpg")):
            raise MixsupError(f"{file}: its result would overwrite a picture in {out}; give another folder to --out")
    if not found:
        raise MixsupError(
            f"{', '.join(map(str, paths))}: no image file in it (what lies below --out does not count); give JPEG, PNG, TIFF, BMP, WebP or GIF files"
        )
    return found


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and file.is_file()
