"""First masks of every source side by side: a table, and a picture of a few images.

    python benchmarks/first_masks.py DATA [--split val] [--sources crf,ucm,...] [--picture FILE.png] [--images 5]

Prints a Markdown table of what `mixsup masks --score` says of each source (nothing is taken from a cache, so the times are real; compiled code is warmed
up on one image first). Besides the mean IoU over pixels that are not ignored stands the one that counts ignored pixels as background, which puts
sources that ignore and sources that do not on one scale.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mixsup import metrics
from mixsup.data import load_dataset
from mixsup.data.derive import boxes_of, load_mask
from mixsup.data.image import read_image
from mixsup.data.palette import COLOURS
from mixsup.data.sample import BACKGROUND, VOID, Dataset
from mixsup.errors import Problem
from mixsup.masks import build_source, compose
from mixsup.masks.export import make_masks
from mixsup.masks.store import MaskStore
from mixsup.workers import one_thread

SOURCES = ("rectangle", "grabcut", "crf", "tight", "ucm", "mcg", "selective-search", "geodesic", "grabcut-plus", "mcg-grabcut")
SIDE, GAP, HEAD = 170, 5, 24  # pixels of the picture


def measure(dataset: Dataset, name: str, jobs: int) -> dict[str, Any]:
    """One source over all images with boxes and a true mask."""
    source, classes = build_source(name), len(dataset.classes)
    samples = [sample for sample in dataset.samples if sample.mask is not None]
    first = samples[0]
    with one_thread():
        source(read_image(first.image), boxes_of(first, classes), first)  # compiles, once for all processes
    kept, all_ = (np.zeros((classes, classes), np.int64) for _ in range(2))
    seconds: list[float] = []
    ignored = pixels = 0
    with tempfile.TemporaryDirectory() as folder:
        for sample, masks, took in make_masks(dataset.with_samples(samples), source, MaskStore(Path(folder)), jobs):
            if isinstance(masks, Problem):
                continue
            truth, target = load_mask(sample, classes), compose(masks)
            kept += metrics.confusion(truth, target, classes)
            all_ += metrics.confusion(truth, np.where(target == VOID, BACKGROUND, target).astype(np.uint8), classes)
            ignored += int(((target == VOID) & (truth != VOID)).sum())
            pixels += int((truth != VOID).sum())
            seconds.append(took)
    means = [metrics.scores(matrix, dataset.classes.all())["miou"] for matrix in (kept, all_)]
    return {"miou": means[0], "as_background": means[1], "ignored": ignored / pixels, "median_seconds": float(np.median(seconds))}


def draw(dataset: Dataset, names: list[str], images: int, path: Path) -> None:
    """Rows of images; columns are the image, each source's masks, and the truth. Ignored pixels are white."""
    colours = COLOURS.copy()
    colours[VOID] = 255
    samples = [sample for sample in dataset.samples if sample.mask is not None][:images]
    titles = ["image", *names, "truth"]
    sheet = Image.new("RGB", (len(titles) * (SIDE + GAP) - GAP, HEAD + images * (SIDE + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        pen.text((column * (SIDE + GAP) + 3, 3), title, fill=(30, 40, 50), font=font)
    for row, sample in enumerate(samples):
        image = read_image(sample.image)
        boxes = boxes_of(sample, len(dataset.classes))
        pictures = [image, *(colours[compose(build_source(name)(image, boxes, sample))] for name in names)]
        pictures.append(colours[load_mask(sample, len(dataset.classes))])
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(np.asarray(picture, np.uint8))
            tile.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS if column == 0 else Image.Resampling.NEAREST)
            if max(tile.size) < SIDE:
                scale = SIDE / max(tile.size)
                tile = tile.resize((round(tile.width * scale), round(tile.height * scale)), Image.Resampling.NEAREST)
            sheet.paste(tile, (column * (SIDE + GAP), HEAD + row * (SIDE + GAP)))
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--sources", default=",".join(SOURCES))
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--odd", action="store_true", help="only every second image, the odd ones of those sorted by id")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--no-table", action="store_true")
    arguments = parser.parse_args()
    data = load_dataset(arguments.data, arguments.split)
    if arguments.odd:
        data = data.with_samples([sample for sample in data.samples if sample.kinds()][1::2])
    chosen = arguments.sources.split(",")
    if not arguments.no_table:
        print("| source | mean IoU | ignored pixels as background | ignored | median s / image |\n|---|---|---|---|---|")
        for each in chosen:
            row = measure(data, each, arguments.jobs)
            print(
                f"| `{each}` | {100 * row['miou']:.1f} | {100 * row['as_background']:.1f} | {100 * row['ignored']:.1f} % | {row['median_seconds']:.3f} |",
                flush=True,
            )
    if arguments.picture is not None:
        draw(data, chosen, arguments.images, arguments.picture)
