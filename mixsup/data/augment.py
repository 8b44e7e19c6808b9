"""Training views of an image, its target and its boxes: scale, crop, flip, colour, by torchvision's transforms v2 on tv_tensors.

All draws come from one generator a view, so that a view depends on (seed, number of the draw) alone: not on worker processes, and not on whether
the run was interrupted.
"""

from __future__ import annotations

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, functional

from mixsup.data.sample import VOID, Boxes, UInt8
from mixsup.recipe import Augmentation

FILL = [124.0, 116.0, 104.0]  # ImageNet's mean colour, around pictures smaller than the crop


def fit_scale(size: tuple[int, int], side: int, resolution: str) -> float:
    """The factor from an image's own size (H, W) to its working size.

    `fit` brings the shorter side down to `side`, and never enlarges; `native` keeps every image as it is.
    """
    return min(1.0, side / min(size)) if resolution == "fit" else 1.0


def training_view(
    image: UInt8,
    target: UInt8,
    side: int,
    resolution: str,
    settings: Augmentation,
    generator: np.random.Generator,
    boxes: Boxes | None = None,
    whole: bool = False,
) -> tuple[tv_tensors.Image, tv_tensors.Mask, Boxes]:
    """One random view.

    The window that will be the crop is cut first and resized after: the same view as resizing the whole image, at the cost of the crop.

    Args:
        image: H×W×3 uint8.
        target: H×W uint8 class ids, 255 void; or K×H×W, several planes that are treated alike.
        side: S, of the crop in pixels.
        resolution: `fit` or `native`.
        settings: what to draw.
        generator: all randomness.
        boxes: of the image, None for none.
        whole: show all of the image, smaller if need be: a tag says nothing about a part of it.

    Returns:
        3×S×S uint8 image and S×S (K×S×S) uint8 target; outside the picture the target is void. Then the whole-pixel windows of the boxes, which are what
        their masks fill, in pixels of the crop, cut at the picture's edges; a box outside the crop is left out.
    """
    height, width = target.shape[-2:]
    low, high = settings.scale
    scale = fit_scale((height, width), side, resolution) * float(np.exp(generator.uniform(np.log(low), np.log(high))))
    if whole:
        scale = min(scale, side / max(height, width))
    place_y, place_x, flip, *colour = generator.random(8)
    top, rows, above, tall = _span(height, side, scale, place_y)
    left, columns, before, wide = _span(width, side, scale, place_x)

    view = tv_tensors.Image(torch.from_numpy(image[top : top + rows, left : left + columns]).permute(2, 0, 1))
    planes = target.reshape(-1, height, width)[:, top : top + rows, left : left + columns]
    mask = tv_tensors.Mask(torch.from_numpy(planes))
    if (rows, columns) != (tall, wide):
        view = functional.resize(view, [tall, wide], antialias=True)
        # By the pixel under each centre, as pictures are resized. A `Mask` would go by torch's "nearest", which lies half a pixel of the view beside it, in
        # older versions of torchvision whatever is asked for; so it is resized as a plain tensor.
        mask = tv_tensors.Mask(functional.resize_image(mask.as_subclass(torch.Tensor), [tall, wide], InterpolationMode.NEAREST_EXACT))
    if (tall, wide) != (side, side):
        padding = [before, above, side - wide - before, side - tall - above]
        view = functional.pad(view, padding, fill=FILL)
        mask = functional.pad(mask, padding, fill=VOID)
    seen = _boxes(boxes or Boxes.of([]), (height, width), (left, columns, before, wide), (top, rows, above, tall))
    if flip < settings.flip:
        view, mask = functional.horizontal_flip(view), functional.horizontal_flip(mask)
        seen.xyxy[:, [0, 2]] = side - seen.xyxy[:, [2, 0]]
    return _colour(view, settings.colour, colour), mask if target.ndim == 3 else tv_tensors.Mask(mask[0]), seen


def _boxes(boxes: Boxes, size: tuple[int, int], *spans: tuple[int, int, int, int]) -> Boxes:
    """Boxes as a view shows them, before the flip; a span for x and one for y, see `_span`."""
    (left, columns, before, wide), (top, rows, above, tall) = spans
    corners = boxes.windows(size).reshape(-1, 2, 2) - np.array([left, top])  # N × (first, last) × (x, y)
    corners = corners * np.array([wide / columns, tall / rows]) + np.array([before, above])
    corners = np.clip(corners, [before, above], [before + wide, above + tall])
    kept = (corners[:, 1] > corners[:, 0]).all(axis=1)
    return Boxes(corners.reshape(-1, 4)[kept].astype(np.float32), boxes.classes[kept], boxes.crowd[kept])


def _span(length: int, side: int, scale: float, place: float) -> tuple[int, int, int, int]:
    """Along one axis: (first pixel, pixels) of the window in the image, and (offset, pixels) of it in the crop."""
    scaled = max(1, round(length * scale))
    if scaled <= side:
        return 0, length, int(place * (side - scaled + 1)), scaled
    window = min(length, max(1, round(side / scale)))
    return int(place * (length - window + 1)), window, 0, side


def _colour(view: tv_tensors.Image, strength: float, draws: list[float]) -> tv_tensors.Image:
    if strength == 0:
        return view
    factors = [1 + strength * (2 * draw - 1) for draw in draws[:3]]
    view = functional.adjust_brightness(view, factors[0])
    view = functional.adjust_contrast(view, factors[1])
    view = functional.adjust_saturation(view, factors[2])
    return tv_tensors.Image(functional.adjust_hue(view, 0.1 * strength * (2 * draws[3] - 1)))
