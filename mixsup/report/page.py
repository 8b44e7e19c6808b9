"""The page: what was trained on what, how it went, and pictures, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mixsup.data import format_splits, load_dataset
from mixsup.data.budget import restrict
from mixsup.data.check import check
from mixsup.data.image import ImageError, read_image
from mixsup.data.palette import COLOURS
from mixsup.data.sample import BACKGROUND, KINDS, VOID, Classes, Dataset, LabelKind, Sample
from mixsup.engine.api import Segmenter, load
from mixsup.engine.choices import first_source
from mixsup.engine.evaluate import Evaluation, evaluate, refuse_other_classes, with_masks
from mixsup.engine.run import Run
from mixsup.errors import MixsupError
from mixsup.files import write_text
from mixsup.masks import compose
from mixsup.masks.filling import FillingRates
from mixsup.metrics import confusion, iou_per_class
from mixsup.report import plots
from mixsup.report.masking import Masked, masked_images, run_rates
from mixsup.report.mining import VALIDATION, Mined, Mining, Score, by_round, read_mining, write_mining
from mixsup.report.pictures import Row, boxes_picture, map_picture, mask_picture, photo
from mixsup.report.rounds import Progress, Quality, mask_quality, progress, read_quality, shown_rounds, spread, true_mask, write_quality

WORST, SPREAD, TRAINING = 32, 8, 12  # rows: the worst validation images, evenly spread over the rest, and training images


def write_report(run: str | Path, data: str | Path | None = None, *, pictures: bool = True) -> Path:
    """Writes `report.html` into the run folder, for a run with refresh rounds or seeds `mask_quality.csv`, and for one that mined tags `mining.csv`.

    Args:
        run: the run folder; needs a checkpoint.
        data: the data set, where it is no longer where it was at training. Without it the page has no pictures.
        pictures: False leaves the images out, for a page that may be passed on where they may not.

    Returns:
        Path of the page.

    Raises:
        MixsupError: no run or no checkpoint, or the data set's classes are not those of the run.
    """
    opened = Run.load(run)
    segmenter = load(run, device="auto")
    val, train = _data(opened, data)
    found = evaluate(segmenter._predictor, val, boundary=True, title="report: validation") if val is not None else None
    rows = []
    if pictures and val is not None and found is not None:
        rows += _rows(segmenter, val, "validation", dict.fromkeys(found.per_image, _shown_kind(opened)), _choose(found.per_image))
    if pictures and train is not None:
        kinds = opened.kinds()
        used = sorted(sample.id for sample in train.samples if sample.id in kinds)
        rows += _rows(segmenter, train, "training", kinds, [used[index] for index in spread(len(used), TRAINING)])
    quality = _quality(opened, train)
    write_quality(opened.folder, quality)
    figure = progress(opened, train, quality) if pictures and train is not None and quality else []
    masked = masked_images(segmenter, train) if pictures else []
    mining = Mining(opened, train)
    mined = _mining_scores(mining)
    write_mining(opened.folder, mined)
    mined_images = mining.images() if pictures else []
    page = _render(opened, found, rows, quality, figure, masked, run_rates(segmenter), mined, mined_images)
    path = Path(run) / "report.html"
    write_text(path, page)
    return path


def _data(run: Run, data: str | Path | None) -> tuple[Dataset | None, Dataset | None]:
    """(validation samples with masks, training samples) as the run saw them, as far as they are still there."""
    place = Path(data if data is not None else run.facts["data"])
    form = run.facts.get("format")
    if not place.exists():
        if data is not None:
            raise MixsupError(f"{place}: no such data set; check --data")
        return None, None
    names = format_splits(place, form)
    split = run.facts.get("split") or ("train" if "train" in names else None)
    val_name = run.facts.get("val") or ("val" if "val" in names else None)
    train = load_dataset(place, split, format=form, skip_bad=True)
    remedy = "give --data the data set as it was when the run was trained"
    refuse_other_classes(run.classes, train.classes, str(place), "the run's", remedy)
    if val_name in (None, "none"):
        return None, train
    val = load_dataset(place, val_name, format=form, skip_bad=True)
    refuse_other_classes(run.classes, val.classes, f"{place}, split {val_name!r}", "the run's", remedy)
    try:
        return check(val.with_samples(with_masks(val)), skip_bad=True, title="report: checking validation images"), train
    except MixsupError:  # none has a mask, or none that can be read
        return None, train


def _quality(run: Run, train: Dataset | None) -> list[Quality]:
    """The scores of the rounds; without the data set, those that an earlier report has found."""
    rows = mask_quality(run, train)
    if any(row.miou is not None for row in rows):
        return rows
    stored = read_quality(run.folder)
    found, before = ([(row.kind, row.round, row.step, row.boxes, row.changed) for row in table] for table in (rows, stored))
    return stored if found == before else rows


def _mining_scores(mining: Mining) -> list[Score]:
    """The table of the mining; without true masks, what an earlier report has found."""
    rows, stored = mining.scores(), read_mining(mining.run.folder)
    if any(row.stage != VALIDATION for row in rows):
        return rows
    numbers = {one.number for one in mining.rounds}
    return stored if stored and {row.round for row in stored} <= numbers else rows


def _shown_kind(run: Run) -> LabelKind:
    """The weakest kind of label that the run learned from: what its validation images would have been given."""
    present = {kind for kind, count in run.facts["images"].items() if count}
    return next((kind for kind in reversed(KINDS) if kind in present), "masks")


def _choose(per_image: dict[str, float]) -> list[str]:
    ordered = sorted(per_image, key=lambda key: (per_image[key], key))
    rest = ordered[WORST:]
    return ordered[:WORST] + [rest[index] for index in spread(len(rest), SPREAD)]


def _rows(segmenter: Segmenter, dataset: Dataset, part: str, kinds: dict[str, LabelKind], chosen: Sequence[str]) -> list[Row]:
    by_id = {sample.id: sample for sample in dataset.samples}
    rows = []
    for key in chosen:
        if not by_id[key].kinds():
            continue  # so does an image whose labels are gone
        try:
            rows.append(_row(segmenter, dataset, by_id[key], part, kinds[key]))
        except (MixsupError, ImageError):
            continue  # a file that went bad since training costs its row, not the page
    return rows


def _row(segmenter: Segmenter, dataset: Dataset, sample: Sample, part: str, kind: LabelKind) -> Row:
    image = read_image(sample.image)
    truth = true_mask(sample, len(dataset.classes))
    predicted = segmenter.predict(image)
    seen = restrict(dataset.with_samples([replace(sample)]), {sample.id: kind if kind in sample.kinds() else sample.kinds()[0]}).samples[0]
    given, first = photo(image), ""
    if seen.label == "boxes" and seen.boxes is not None:
        given = boxes_picture(image, seen.boxes)
        try:
            first = map_picture(compose(first_source(segmenter.run.recipe)(image, seen.boxes, seen)), image)
        except Exception:  # whatever a source fails with on an image that training did not show it costs that picture
            first = ""
    elif seen.label == "masks" and truth is not None:
        given, first = mask_picture(image, truth), map_picture(truth, image)
    score = None
    if truth is not None:
        unknown = sample.unknown(len(dataset.classes))  # judged as the evaluation judges them, which chose the worst images
        iou = iou_per_class(confusion(truth, np.where(unknown[predicted], BACKGROUND, predicted).astype(np.uint8), len(dataset.classes)))
        score = float(np.nanmean(iou)) if not np.isnan(iou).all() else None
    present = set(np.unique(predicted).tolist()) | (set(np.unique(truth).tolist()) if truth is not None else set())
    tags = tuple(dataset.classes.all()[tag] for tag in sorted(seen.tags or ())) if seen.label == "tags" else ()
    return Row(
        name=sample.id, part=part, label=str(seen.label), tags=tags, score=score, classes=tuple(sorted(present - {0, VOID})), given=given, first=first,
        predicted=map_picture(predicted, image), truth=map_picture(truth, image) if truth is not None else "",
    )  # fmt: skip


def _render(
    run: Run, found: Evaluation | None, rows: list[Row], quality: list[Quality], figure: list[Progress], masked: Sequence[Masked] = (),
    rates: FillingRates | None = None, mined: Sequence[Score] = (), mined_images: Sequence[Mined] = (),
) -> str:  # fmt: skip
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mixsup.report"), autoescape=True, undefined=jinja2.StrictUndefined)
    names = run.classes.all()
    budget: list[dict[str, Any]] = [{"kind": kind, "count": count} for kind, count in run.facts["images"].items()]
    budget.append({"kind": "unused", "count": run.facts["unused"]})
    kinds = [kind for kind in ("boxes", "tags") if any(row.kind == kind for row in quality)]
    per_kind = {kind: [row for row in quality if row.kind == kind] for kind in kinds}
    return environment.get_template("report.html").render(
        title=Path(run.folder).resolve().name,
        run=run,
        facts=run.facts,
        measured=len(found.per_image) if found is not None else 0,
        network=_network_line(run),
        scores=found.scores if found is not None else None,
        classes=_class_rows(run.classes, found),
        confusion=_confusion(found) if found is not None else [],
        names=names,
        colours=["#{:02x}{:02x}{:02x}".format(*COLOURS[index]) for index in range(len(names))],
        budget=budget,
        total=max(1, sum(row["count"] for row in budget)),
        curves=plots.curves(run),
        trimap=plots.trimap(found.scores["trimap"]) if found is not None else "",
        rounds=[
            (kind, rows, plots.rounds(rows), shown_rounds(rows), [image for image in figure if image.kind == kind])
            for kind, rows in per_kind.items()
        ],
        mined=by_round(mined),
        mined_train=max((row.images for row in mined if row.stage != VALIDATION), default=0),
        mined_stages={row.stage for row in mined},
        mined_images=mined_images,
        masked=masked,
        rates=rates,
        rates_plot=plots.filling_rates(rates),
        rows=rows,
        parts=[part for part in ("validation", "training") if any(row.part == part for row in rows)],
    )


def _network_line(run: Run) -> str:
    choice = run.recipe.network
    return f"{choice.arch}{f' + {choice.encoder}' if choice.encoder else ''}, pretraining: {run.facts['pretraining']}"


def _class_rows(classes: Classes, found: Evaluation | None) -> list[dict[str, Any]]:
    if found is None:
        return []
    pixels = found.matrix.sum(1)
    ious = list(found.scores["per_class"].values())
    return [
        {"id": index, "name": name, "iou": ious[index], "share": float(pixels[index] / max(1, pixels.sum()))}
        for index, name in enumerate(classes.all())
    ]


def _confusion(found: Evaluation) -> list[list[float | None]]:
    """Rows of the confusion matrix as shares of the true class's pixels; None for a class without any."""
    totals = found.matrix.sum(1)
    return [[float(value / total) if total else None for value in row] for row, total in zip(found.matrix, totals, strict=True)]
