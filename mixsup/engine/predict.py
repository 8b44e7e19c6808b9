"""Prediction: an image of any size in, class ids of the same size out, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from numbers import Real

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mixsup.data.augment import fit_scale
from mixsup.data.sample import Float32, UInt8
from mixsup.engine.output_crf import OutputCRF
from mixsup.errors import MixsupError

TILE = 1024  # working pixels a side of a tile's own
MARGIN = 128  # working pixels around a tile that are seen and thrown away
_AT_ONCE = 64_000_000  # scores that are enlarged in one go; more are enlarged in strips


def upsampled_argmax(scores: Tensor, size: tuple[int, int], at_once: int = _AT_ONCE) -> Tensor:
    """The class of each pixel after bilinear enlargement, without ever holding all enlarged scores.

    Args:
        scores: C×h×w.
        size: (H, W).
        at_once: scores in memory at a time.

    Returns:
        H×W uint8 class ids; the same as `interpolate(...).argmax(0)` up to rounding where two classes tie.
    """
    height, width = size
    channels, rows, _ = scores.shape
    if channels * height * width <= at_once:
        whole = functional.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        return whole.argmax(0).to(torch.uint8)
    wide = functional.interpolate(scores[None], size=(rows, width), mode="bilinear", align_corners=False)[0]  # C×h×W
    result = torch.empty(size, dtype=torch.uint8, device=scores.device)
    strip = max(1, at_once // (channels * width))
    for top in range(0, height, strip):
        y = torch.arange(top, min(top + strip, height), device=scores.device)
        place = ((y + 0.5) * (rows / height) - 0.5).clamp(min=0)
        low = place.long().clamp(max=rows - 1)
        high = (low + 1).clamp(max=rows - 1)
        weight = (place - low)[None, :, None]
        result[top : top + strip] = torch.lerp(wide[:, low], wide[:, high], weight).argmax(0).to(torch.uint8)
    return result


def view(image: UInt8, side: int, resolution: str, factor: float = 1.0, whole: bool = False) -> UInt8:
    """An H×W×3 image at `factor` of the working size.

    With `whole` that is the size of images which are trained on as a whole (`training_view`): the longer side at `side`, where others have the shorter; what
    is asked about such a view cannot be asked of its tiles, so that no side is above `TILE`.
    """
    height, width = image.shape[:2]
    scale = factor * (min(1.0, side / max(height, width)) if whole else fit_scale((height, width), side, resolution))
    if whole:
        scale = min(scale, TILE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR  # which repeats pixels where it enlarges
    return image if size == (height, width) else np.asarray(cv2.resize(image, size[::-1], interpolation=how), np.uint8)


def tiles(
    size: tuple[int, int], scale: float = 1.0, tile: int = TILE, margin: int = MARGIN
) -> Iterator[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]:
    """(y0, y1, x0, x1) of each tile's own pixels and of the pixels that it sees, in the pixels of an image of that size (H, W), which is looked at by
    `scale`; one tile where no side is then above `tile` and twice `margin`."""
    limit, own, more = (tile + 2 * margin) / scale, max(1, int(tile / scale)), int(margin / scale)
    spans = []
    for length in size:
        starts = [0] if length <= limit else list(range(0, length, own))
        ends = [*starts[1:], length]
        spans.append([(start, end, max(0, start - more), min(length, end + more)) for start, end in zip(starts, ends, strict=True)])
    for y0, y1, top, bottom in spans[0]:
        for x0, x1, left, right in spans[1]:
            yield (y0, y1, x0, x1), (top, bottom, left, right)


def reduced(size: tuple[int, int], longest: int = TILE) -> tuple[int, int]:
    """(H, W) with the longer side at `longest` at most."""
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


@dataclass
class Predictor:
    """Predicts whole images with a model.

    Scores of several scales and of the mirrored image are averaged after the softmax (BoxSup+, section 5.1: ±20 %). Images whose working size is
    above `tile` and twice `margin` are predicted in tiles of `tile` that see `margin` pixels of their surroundings.

    Attributes:
        model: B×3×H×W uint8 to a dictionary with `scores`.
        side, resolution: the working size, as in training (`Schedule.size`, `Schedule.resolution`).
        device: where the model is.
        scales: factors of the working size.
        flip: also predict the mirrored image.
        tile, margin: in working pixels.
        autocast: the precision to run under.
        crf: refines the averaged probabilities of the whole image, tiles put together; None for none.
    """

    model: Callable[[Tensor], dict[str, Tensor]]
    side: int
    resolution: str
    device: torch.device
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    tile: int = TILE
    margin: int = MARGIN
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    crf: OutputCRF | None = None

    def __post_init__(self) -> None:
        if not self.scales or any(not isinstance(scale, Real) or not 0.05 <= scale <= 20 for scale in self.scales):
            raise MixsupError(f"--scales {','.join(map(str, self.scales))}: give factors between 0.05 and 20")

    def __call__(self, image: UInt8) -> UInt8:
        """H×W×3 uint8 RGB in, H×W uint8 class ids out."""
        return self.classes(image).cpu().numpy()

    def classes(self, image: UInt8) -> Tensor:
        """As the call, the result left on the device."""
        if self.crf is not None:
            size = image.shape[0], image.shape[1]
            return upsampled_argmax(self.crf(self._whole(image, self.crf.size(size)), image), size)
        result = torch.empty(image.shape[:2], dtype=torch.uint8, device=self.device)
        for (y0, y1, x0, x1), (top, bottom, left, right) in self._tiles((image.shape[0], image.shape[1])):
            seen = np.ascontiguousarray(image[top:bottom, left:right])
            found = upsampled_argmax(self._probabilities(seen, image.shape[:2]), (bottom - top, right - left))
            result[y0:y1, x0:x1] = found[y0 - top : y1 - top, x0 - left : x1 - left]
        return result

    @torch.inference_mode()
    def scores(self, views: Tensor) -> Float32:
        """B×C×h×w float32 class probabilities for refresh rules, of B×h×w×3 uint8 views at the size to be asked at, see `view`.

        Larger views are seen tile by tile, as in prediction: the network is asked at the scale that it was trained at. What it says is kept at `reduced` size.
        """
        if max(views.shape[1:3]) > self.tile:
            return np.stack([self.asked(one.numpy()).cpu().numpy() for one in views])
        pixels = views.to(self.device).permute(0, 3, 1, 2)
        with self.autocast():
            found = self.model(pixels)["scores"]
        return np.asarray(found.float().softmax(1).cpu().numpy(), np.float32)

    def asked(self, seen: UInt8) -> Tensor:
        """C×h×w mean probabilities of a view (`view`, H×W×3) as it is, at `reduced` size."""
        as_it_is = replace(self, resolution="native", crf=None)
        return as_it_is._whole(seen, reduced((seen.shape[0], seen.shape[1]), self.tile))

    def _tiles(self, size: tuple[int, int]) -> Iterator[tuple[tuple[int, int, int, int], tuple[int, int, int, int]]]:
        return tiles(size, fit_scale(size, self.side, self.resolution), self.tile, self.margin)

    def _whole(self, image: UInt8, size: tuple[int, int]) -> Tensor:
        """C×h×w mean probabilities of a whole image at (h, w), put together from its tiles; no more is held at once than that and one tile's."""
        factors = size[0] / image.shape[0], size[1] / image.shape[1]
        result: Tensor | None = None
        for (y0, y1, x0, x1), (top, bottom, left, right) in self._tiles((image.shape[0], image.shape[1])):
            found = self._probabilities(np.ascontiguousarray(image[top:bottom, left:right]), image.shape[:2])
            y0, y1, top, bottom = (round(y * factors[0]) for y in (y0, y1, top, bottom))
            x0, x1, left, right = (round(x * factors[1]) for x in (x0, x1, left, right))
            if result is None:
                result = torch.empty(found.shape[0], *size, device=found.device)
            if y1 > y0 and x1 > x0:
                # Plain bilinear where it enlarges, an average where it reduces.
                part = functional.interpolate(
                    found[None], size=(bottom - top, right - left), mode="bilinear", align_corners=False, antialias=True
                )[0]
                result[:, y0:y1, x0:x1] = part[:, y0 - top : y1 - top, x0 - left : x1 - left]
        assert result is not None
        return result

    @torch.inference_mode()
    def _probabilities(self, image: UInt8, whole: tuple[int, ...]) -> Tensor:
        """C×h×w mean probabilities at the working size of (a part of) an image whose whole size decides the scale."""
        scale = fit_scale((whole[0], whole[1]), self.side, self.resolution)
        size = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float()
        total: Tensor | None = None
        for factor in self.scales:
            target = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
            view = pixels
            if target != tuple(pixels.shape[-2:]):
                view = functional.interpolate(pixels, size=target, mode="bilinear", align_corners=False, antialias=True)
            for mirrored in (False, True) if self.flip else (False,):
                with self.autocast():
                    scores = self.model((view.flip(-1) if mirrored else view) / 255)["scores"]
                found = scores.float().softmax(1)
                found = found.flip(-1) if mirrored else found
                if target != size:
                    found = functional.interpolate(found, size=size, mode="bilinear", align_corners=False)
                total = found[0] if total is None else total + found[0]
        assert total is not None
        return total / (len(self.scales) * (2 if self.flip else 1))
