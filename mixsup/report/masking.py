"""What a masking head has learned to let through (BCM paper, figure 4), and which pixels the filling-rate loss keeps (figure 1c)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from mixsup.data.augment import fit_scale
from mixsup.data.budget import restrict
from mixsup.data.image import read_image
from mixsup.data.sample import BACKGROUND, VOID, Boxes, Dataset, Float32, Sample, UInt8
from mixsup.engine.api import Segmenter
from mixsup.engine.rates import FILE
from mixsup.errors import MixsupError
from mixsup.heads import head_losses
from mixsup.losses import Criterion, FillingRate
from mixsup.losses.filling_rate import kept_pixels
from mixsup.masks import build_source, compose
from mixsup.masks.box_masks import BoxMasks
from mixsup.masks.filling import FillingRates, load_rates
from mixsup.report.pictures import boxes_picture, heat_picture, map_picture
from mixsup.report.rounds import latest_masks, spread

IMAGES = 8


@dataclass(frozen=True)
class Masked:
    """One boxed training image; pictures are data addresses.

    Attributes:
        name: id of the sample.
        given: the image with its boxes.
        maps: name of a class, or "all classes", and the attention map over the image; empty for a head without maps.
        target: what the network was taught last; "" with a loss that drops nothing.
        kept: the same without the pixels that the loss drops now.
    """

    name: str
    given: str
    maps: tuple[tuple[str, str], ...]
    target: str
    kept: str


def run_rates(segmenter: Segmenter) -> FillingRates | None:
    """The filling rates that the run measured, if the loss that it ended with goes by them."""
    path, loss = segmenter.run.folder / FILE, _loss(segmenter)
    if loss is None or loss.variant == "global":
        return None
    try:
        return load_rates(path) if path.is_file() else None
    except MixsupError:
        return None


def masked_images(segmenter: Segmenter, train: Dataset | None) -> list[Masked]:
    """Evenly spread boxed training images of a run that has attention maps or a loss that drops pixels; [] for all other runs."""
    recipe, loss = segmenter.run.recipe, _loss(segmenter)
    if train is None or (loss is None and recipe.head == "plain"):
        return []
    kinds = segmenter.run.kinds()
    boxed = sorted(sample.id for sample in train.samples if kinds.get(sample.id) == "boxes" and "boxes" in sample.kinds())
    chosen = {boxed[index]: "boxes" for index in spread(len(boxed), IMAGES)}
    rates, rows = run_rates(segmenter), []
    for sample in restrict(train, chosen, skip_bad=True).samples:  # type: ignore[arg-type]
        try:
            rows.append(_row(segmenter, sample, loss, rates))
        except Exception:
            continue  # a file that went bad since training, or on which the source of masks failed, costs its row, not the page
    return rows if any(row.maps or row.target for row in rows) else []  # a head of the user's own has no maps to show


def _loss(segmenter: Segmenter) -> FillingRate | None:
    recipe = segmenter.run.recipe
    try:
        return Criterion(recipe.loss, recipe.loss_options, head_losses(recipe.head)).filling_rate()
    except MixsupError:  # a loss of the user's own, whose file is not here
        return None


def _row(segmenter: Segmenter, sample: Sample, loss: FillingRate | None, rates: FillingRates | None) -> Masked:
    image, boxes = read_image(sample.image), sample.boxes or Boxes.of([])
    outputs, size = working_outputs(segmenter, image)
    names, maps = segmenter.classes.all(), []
    if "attention" in outputs:
        found = whole_maps(outputs, size)
        present = [0] if len(found) == 1 else [BACKGROUND, *sorted(set(boxes.classes.tolist()))]
        maps = [("all classes" if len(found) == 1 else names[index], heat_picture(found[index], image)) for index in present]
    target = kept = ""
    if loss is not None:
        choice = segmenter.run.recipe.masks
        first = build_source(choice.source, choice.options)(image, boxes, sample)
        masks = latest_masks(segmenter.run, sample) or first
        ids = cv2.resize(compose(masks), size[::-1], interpolation=cv2.INTER_NEAREST)
        parts = rates.assign(_measured(loss, first, image, boxes, sample), names).tolist() if rates is not None else [-1] * len(boxes)
        shares = loss.box_rates(rates, names, boxes.classes, parts)
        left = kept_of_image(outputs["scores"].cpu(), np.asarray(ids, np.uint8), masks, shares)
        target, kept = map_picture(compose(masks), image), map_picture(left, np.asarray(cv2.resize(image, size[::-1]), np.uint8))
    return Masked(sample.id, boxes_picture(image, boxes), tuple(maps), target, kept)


def _measured(loss: FillingRate, first: BoxMasks, image: UInt8, boxes: Boxes, sample: Sample) -> BoxMasks:
    source = loss.source()
    return first if source is None else source(image, boxes, sample)


@torch.inference_mode()
def working_outputs(segmenter: Segmenter, image: UInt8) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """What the model says of a whole image at its working size, and that size (h, w); no side above a tile of prediction."""
    predictor = segmenter._predictor
    scale = min(fit_scale(image.shape[:2], predictor.side, predictor.resolution), predictor.tile / max(image.shape[:2]))
    size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    view = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) if size != image.shape[:2] else image
    return segmenter.model(torch.from_numpy(view).to(predictor.device).permute(2, 0, 1)[None]), size


def whole_maps(outputs: dict[str, Tensor], size: tuple[int, int]) -> Float32:
    """K×h×w attention at the working size, without what the network pads."""
    alpha = outputs["attention"].float()
    padded = [round(float(outputs["cell"][0, axis]) * alpha.shape[axis + 2]) for axis in (0, 1)]
    grown = torch.nn.functional.interpolate(alpha, size=padded, mode="bilinear", align_corners=False)
    return np.asarray(grown[0, :, : size[0], : size[1]].cpu().numpy(), np.float32)


def kept_of_image(scores: Tensor, target: UInt8, masks: BoxMasks, rates: Float32) -> UInt8:
    """The target of a whole image without what the loss drops.

    Args:
        scores: 1×C×h×w.
        target: h×w class ids at the same size.
        masks: of the boxes, at the image's own size.
        rates: of the boxes.
    """
    order = np.argsort(-(masks.windows[:, 2:] - masks.windows[:, :2]).prod(axis=1), kind="stable")  # as views bring them: the largest first
    factor = np.array([target.shape[1] / masks.size[1], target.shape[0] / masks.size[0]] * 2)
    batch = {
        "target": torch.from_numpy(target)[None], "kind": ["boxes"], "boxes": [torch.from_numpy((masks.windows * factor).astype(np.float32)[order])],
        "box_classes": [torch.from_numpy(masks.classes[order])], "box_crowd": [torch.from_numpy(masks.crowd[order])],
        "box_rates": [torch.from_numpy(rates[order])],
    }  # fmt: skip
    return np.where(kept_pixels(scores, batch)[0].numpy(), target, VOID).astype(np.uint8)
