"""`comparison.png`: what the three networks of the demo see, side by side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mixsup.data import load_dataset
from mixsup.data.derive import boxes_of, load_mask
from mixsup.data.image import read_image
from mixsup.data.palette import COLOURS
from mixsup.data.sample import Boxes, UInt8
from mixsup.engine.api import load
from mixsup.files import write_with

SIDE, GAP, HEAD = 190, 6, 26  # pixels: a picture, the space between two, the line of titles
ROWS = 4


def draw_comparison(data: Path, runs: dict[str, Path], path: Path) -> None:
    """Draws the first validation scenes with their boxes, each run's prediction, and the truth.

    Args:
        data: the demo's data set.
        runs: run folders by the title of their column.
        path: PNG to write.
    """
    dataset = load_dataset(data, "val")
    segmenters = {title: load(folder, checkpoint="last", device="cpu") for title, folder in runs.items()}
    titles = ["boxes", *segmenters, "truth"]
    sheet = Image.new("RGB", (len(titles) * (SIDE + GAP) - GAP, HEAD + ROWS * (SIDE + GAP) - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column, title in enumerate(titles):
        pen.text((column * (SIDE + GAP) + 3, 3), title, fill=(30, 40, 50), font=font)
    for row, sample in enumerate(dataset.samples[:ROWS]):
        image = read_image(sample.image)
        pictures = [_boxes(image, boxes_of(sample, len(dataset.classes)))]
        pictures += [COLOURS[segmenter.predict(image)] for segmenter in segmenters.values()]
        pictures.append(COLOURS[load_mask(sample, len(dataset.classes))])
        for column, picture in enumerate(pictures):
            how = Image.Resampling.LANCZOS if column == 0 else Image.Resampling.NEAREST
            place = (column * (SIDE + GAP), HEAD + row * (SIDE + GAP))
            sheet.paste(Image.fromarray(np.asarray(picture, np.uint8)).resize((SIDE, SIDE), how), place)
    write_with(path, lambda target: sheet.save(target, format="PNG", optimize=True))


def _boxes(image: UInt8, boxes: Boxes) -> UInt8:
    large = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    scale = SIDE / image.shape[0]
    for (x0, y0, x1, y1), class_id in zip(boxes.xyxy * scale, boxes.classes, strict=True):
        corners = (round(float(x0)), round(float(y0))), (round(float(x1)) - 1, round(float(y1)) - 1)
        cv2.rectangle(large, *corners, (255, 255, 255), 3)
        cv2.rectangle(large, *corners, tuple(int(value) for value in COLOURS[class_id]), 2)
    return np.asarray(large, np.uint8)
