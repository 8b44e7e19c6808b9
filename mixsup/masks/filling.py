"""Filling rates (BCM paper, section 3.3): how much of a box of a class is the object.

    eq. 3   FR_c = 1/N_c Σ_i P_proposal(i) / P_box(i)        i runs over the N_c boxes of class c

P_proposal counts the foreground pixels of a box's mask, P_box the pixels of the box. A pixel that the mask ignores counts in neither; a box that is
ignored as a whole, and a crowd, have no rate.

Eq. 5 uses one rate for each of three sub-classes of a class, found by k-means. The paper does not say on what features. Here they are the shape of the
box (logarithm of its sides' ratio), its size (logarithm of its side against the image's) and the layout of its mask (8×8 shares of foreground); each of
the three is scaled to a total variance of 1 within its class, so that none decides alone.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from mixsup.data.sample import BACKGROUND, Dataset, Int64
from mixsup.errors import MixsupError, Problem
from mixsup.files import drawing_format, write_bytes
from mixsup.masks.box_masks import FOREGROUND, IGNORE, BoxMasks
from mixsup.masks.export import make_masks
from mixsup.masks.source import MaskSource
from mixsup.masks.store import MaskStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUB_CLASSES = 3  # of each class; BCM, eq. 5
LAYOUT = 8  # cells a side
_MOST = 20_000  # boxes of a class that k-means looks at; the rest go to the nearest centre

Float16 = npt.NDArray[np.float16]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """Filling rates of some boxes: their number, mean and standard deviation (0 to 1; None without boxes)."""

    boxes: int
    mean: float | None
    std: float | None

    @staticmethod
    def of(rates: Float64) -> Rate:
        """From the rates of single boxes, N values without NaN."""
        return Rate(len(rates), float(rates.mean()), float(rates.std())) if len(rates) else Rate(0, None, None)


@dataclass(frozen=True)
class FillingRates:
    """Filling rates of a data set.

    Attributes:
        source: name of the masks' source.
        boxes: boxes that have a rate.
        global_rate: mean over them (0 to 1); None without any. BCM's global loss sets 0.6 instead.
        per_class: by class name.
        per_subclass: by class name, at most three, the least filled first.
        centres: by class name, k×66 centres of the sub-classes, in scaled features.
        scales: by class name, 66 divisors of the features.
        assignment: by image id, the sub-class of each box, counted from 0; -1 for a box without a rate.
    """

    source: str
    boxes: int
    global_rate: float | None
    per_class: dict[str, Rate]
    per_subclass: dict[str, list[Rate]]
    centres: dict[str, list[list[float]]] = field(repr=False)
    scales: dict[str, list[float]] = field(repr=False)
    assignment: dict[str, list[int]] = field(repr=False)

    def assign(self, masks: BoxMasks, names: tuple[str, ...]) -> Int64:
        """The sub-class of each box of an image that was not measured.

        Args:
            masks: N boxes.
            names: class names by id, background first.

        Returns:
            N int64, -1 for a box without a rate or of a class without sub-classes.
        """
        values, found = box_features(masks), np.full(len(masks), -1, np.int64)
        for index, rate in enumerate(box_rates(masks)):
            name = names[masks.classes[index]]
            if not np.isnan(rate) and self.centres.get(name):
                found[index] = _nearest(values[index : index + 1] / np.array(self.scales[name]), np.array(self.centres[name]))[0]
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> FillingRates:
        """What `to_json` gave.

        Raises:
            MixsupError: something else.
        """
        try:
            per_class = {name: Rate(**row) for name, row in data["per_class"].items()}
            per_subclass = {name: [Rate(**row) for row in rows] for name, rows in data["per_subclass"].items()}
            return FillingRates(**{**data, "per_class": per_class, "per_subclass": per_subclass})
        except (KeyError, TypeError, AttributeError) as error:
            raise MixsupError(
                f"no filling rates ({type(error).__name__}: {error}); write them with `mixsup inspect DATA --filling-rates SOURCE --json FILE`"
            ) from None


def box_rates(masks: BoxMasks) -> Float64:
    """N float64 from 0 to 1, foreground over known pixels of each box; NaN for a crowd and where all is ignored."""
    rates = np.full(len(masks), np.nan)
    for index, mask in enumerate(masks.masks):
        known = mask.size - np.count_nonzero(mask == IGNORE)
        if known and not masks.crowd[index]:
            rates[index] = np.count_nonzero(mask == FOREGROUND) / known
    return rates


def box_features(masks: BoxMasks) -> Float16:
    """N×66 float16 before scaling: log2 width/height, log2 of the box's mean side over the image's, 64 shares of foreground row by row."""
    rows = np.zeros((len(masks), 2 + LAYOUT * LAYOUT), np.float32)
    for row, window, mask in zip(rows, masks.windows, masks.masks, strict=True):
        width, height = int(window[2] - window[0]), int(window[3] - window[1])
        row[0] = np.log2(width / height)
        row[1] = 0.5 * np.log2(width * height / (masks.size[0] * masks.size[1]))
        # A box smaller than the cells is enlarged first, by whole factors: its pixels keep their weight.
        foreground = (mask == FOREGROUND).astype(np.float32)
        foreground = foreground.repeat(-(-LAYOUT // height), axis=0).repeat(-(-LAYOUT // width), axis=1)
        row[2:] = cv2.resize(foreground, (LAYOUT, LAYOUT), interpolation=cv2.INTER_AREA).ravel()
    return rows.astype(np.float16)


def measure(
    dataset: Dataset, source: MaskSource, store: MaskStore, jobs: int = -1, cluster: str | None = None, seed: int = 0
) -> tuple[FillingRates, list[Problem]]:
    """Filling rates of all boxes of a data set. An image at fault is left out.

    Args:
        dataset: samples with boxes, or masks to derive them from.
        source: of the masks.
        store: of computed masks.
        jobs, cluster: see `MaskStore.make_all`.
        seed: of k-means.

    Returns:
        The rates and the faults met. Memory: 150 bytes a box.

    Raises:
        MixsupError: no image has boxes.
    """
    boxed = [sample for sample in dataset.samples if "boxes" in sample.kinds()]
    if not boxed:
        raise MixsupError(f"{dataset.source}: no image has boxes or a mask to derive them from; filling rates need them")
    found: dict[str, tuple[Int64, Float64, Float16]] = {}
    problems: list[Problem] = []
    for sample, made, _ in make_masks(dataset.with_samples(boxed), source, store, jobs, cluster):
        if isinstance(made, Problem):
            problems.append(made)
            continue
        found[sample.id] = made.classes, box_rates(made), box_features(made)
    ids = sorted(found)  # images come as they get done; k-means depends on the order
    return summarise_rates(source.name, dataset.classes.all(), ids, [found[key] for key in ids], seed), problems


def summarise_rates(
    source: str, names: tuple[str, ...], ids: list[str], images: list[tuple[Int64, Float64, Float16]], seed: int = 0
) -> FillingRates:
    """Rates per class and sub-class from the boxes of all images.

    Args:
        source: name of the masks' source.
        names: class names by id, background first.
        ids: of the images.
        images: of each image the classes (N), rates (N, NaN for none) and features (N×66) of its boxes.
        seed: of k-means.
    """
    owner = np.repeat(np.arange(len(ids)), [len(image[0]) for image in images]) if images else np.zeros(0, np.int64)
    classes = np.concatenate([image[0] for image in images]) if images else np.zeros(0, np.int64)
    rates = np.concatenate([image[1] for image in images]) if images else np.zeros(0)
    values = np.concatenate([image[2] for image in images]) if images else np.zeros((0, 2 + LAYOUT * LAYOUT), np.float16)
    sub_class = np.full(len(classes), -1, np.int64)
    per_class, per_subclass, centres, scales = {}, {}, {}, {}
    for class_id, name in enumerate(names):
        if class_id == BACKGROUND:
            continue
        mine = np.flatnonzero((classes == class_id) & ~np.isnan(rates))
        per_class[name] = Rate.of(rates[mine])
        sub_class[mine], centre, scale = _cluster(values[mine].astype(np.float64), rates[mine], seed)
        per_subclass[name] = [Rate.of(rates[mine][sub_class[mine] == index]) for index in range(len(centre))]
        centres[name], scales[name] = centre.tolist(), scale.tolist()
    assignment: dict[str, list[int]] = defaultdict(list)
    for image, value in zip(owner, sub_class, strict=True):
        assignment[ids[image]].append(int(value))
    known = rates[~np.isnan(rates)]
    return FillingRates(
        source, len(known), Rate.of(known).mean, per_class, per_subclass, centres, scales, {key: assignment.get(key, []) for key in ids}
    )


def _cluster(values: Float64, rates: Float64, seed: int) -> tuple[Int64, Float64, Float64]:
    """Sub-class of each of N boxes, k×66 centres by rising filling rate, 66 divisors. Fewer boxes than clusters give fewer clusters."""
    scale = np.ones(2 + LAYOUT * LAYOUT)
    if not len(values):
        return np.zeros(0, np.int64), np.zeros((0, len(scale))), scale
    for part in (slice(0, 1), slice(1, 2), slice(2, None)):
        spread = float(np.sqrt(values[:, part].var(axis=0).sum()))
        scale[part] = spread if spread > 1e-3 else 1.0  # all alike: nothing to tell apart, and rounding must not be blown up
    scaled = values / scale
    seen = scaled
    if len(scaled) > _MOST:
        seen = scaled[np.random.default_rng(seed).choice(len(scaled), _MOST, replace=False)]
    count = min(SUB_CLASSES, len(np.unique(seen.round(6), axis=0)))
    if count == 1:
        centre = seen.mean(axis=0, keepdims=True)
    else:
        from sklearn.cluster import KMeans

        centre = KMeans(count, n_init=10, random_state=seed).fit(seen).cluster_centers_
    found = _nearest(scaled, centre)
    order = np.argsort([rates[found == index].mean() if (found == index).any() else np.inf for index in range(len(centre))], kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[found], np.asarray(centre[order], np.float64), scale


def _nearest(scaled: Float64, centres: Float64) -> Int64:
    distance = np.stack([((scaled - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
    return np.asarray(distance.argmin(axis=1), np.int64)


def rates_figure(rates: FillingRates) -> Figure:
    """A bar a class with marks for its sub-classes, in the manner of BCM's figure 6.

    Raises:
        MixsupError: no class has boxes.
    """
    from matplotlib.figure import Figure

    shown = [(name, row) for name, row in rates.per_class.items() if row.mean is not None]
    if not shown:
        raise MixsupError("no box has a filling rate, so there is nothing to draw; check the data with `mixsup inspect`")
    figure = Figure(figsize=(max(4.0, 1.5 + 0.42 * len(shown)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    axes.bar(places, [100 * (row.mean or 0) for _, row in shown], color="#9db8d2", width=0.7, label="class")
    marks = [
        (place, part) for place, (name, _) in zip(places, shown, strict=True) for part in rates.per_subclass[name] if part.mean is not None
    ]
    axes.scatter(
        [place for place, _ in marks], [100 * (part.mean or 0) for _, part in marks], color="#23415f", marker="_", s=90, label="sub-class"
    )
    if rates.global_rate is not None:
        axes.axhline(100 * rates.global_rate, color="#b5652b", linewidth=1, label="all boxes")
    # Class names are the data set's: no formulas in them.
    axes.set_xticks(places, [name for name, _ in shown], rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_ylim(0, 100)
    axes.set_ylabel("filling rate %")
    axes.set_title(f"masks: {rates.source}, {rates.boxes} boxes", fontsize=10, parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    return figure


def plot_rates(rates: FillingRates, path: Path) -> None:
    """Draws `rates_figure`; PNG, PDF or SVG by the ending of `path`.

    Raises:
        MixsupError: another ending, no class with boxes, or a disk that refuses the file.
    """
    kind = drawing_format(path)
    figure, stream = rates_figure(rates), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class's name that the font has no glyphs for, or that is too long to lay out
        figure.savefig(stream, format=kind, dpi=150)
    write_bytes(path, stream.getvalue())


def load_rates(path: str | Path) -> FillingRates:
    """Reads rates from a file of `mixsup inspect --filling-rates SOURCE --json FILE`.

    Raises:
        MixsupError: the file cannot be read or holds something else.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MixsupError(
            f"{path}: cannot be read ({error}); write it with `mixsup inspect DATA --filling-rates SOURCE --json FILE`"
        ) from None
    return FillingRates.from_json(data["filling_rates"] if isinstance(data, dict) and "filling_rates" in data else data)
