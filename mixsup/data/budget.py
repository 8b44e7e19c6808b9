"""The label budget: what training may look at, whatever the files contain.

`masks`, `boxes` or `tags` gives every image that one kind; `masks=70,boxes=350,tags=280` are counts; `masks=1:boxes=5:tags=10` is a ratio
(the diverse-supervision paper's p:b:i). The draw depends on the image ids and the seed alone.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mixsup.data.derive import boxes_of, tags_of
from mixsup.data.sample import KINDS, Dataset, LabelKind, Sample
from mixsup.errors import DataError, MixsupError, Problem
from mixsup.progress import track

_FORM = "write masks, boxes or tags, counts as masks=70,boxes=350, or a ratio as masks=1:boxes=5:tags=10"


def parse_budget(text: str) -> tuple[dict[LabelKind, float], bool]:
    """Parses `--labels`.

    Returns:
        The numbers by kind and whether they are a ratio. A single kind without a number is a ratio of 1.

    Raises:
        MixsupError: a form that is none of the three, an unknown kind, a negative number, or only zeros.
    """
    if "," in text and ":" in text:
        raise MixsupError(f"--labels {text!r}: counts are joined by ',' and ratios by ':', not both; {_FORM}")
    amounts: dict[LabelKind, float] = {}
    for part in re.split(r"[,:]", text):
        name, _, value = part.strip().partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        if kind is None:
            raise MixsupError(f"--labels {text!r}: no label kind {name!r}; {_FORM}")
        if kind in amounts:
            raise MixsupError(f"--labels {text!r}: {kind} stands twice; {_FORM}")
        if not value and len(re.split(r"[,:]", text)) == 1 and "=" not in part:
            return {kind: 1.0}, True
        try:
            amounts[kind] = float(value) if ":" in text else int(value)
        except ValueError:
            raise MixsupError(f"--labels {text!r}: {value!r} is not a number; {_FORM}") from None
        if not 0 <= amounts[kind] < float("inf"):
            raise MixsupError(f"--labels {text!r}: {kind} cannot be {value}; {_FORM}")
    if not any(amounts.values()):
        raise MixsupError(f"--labels {text!r}: all zero, nothing would be left to learn from; {_FORM}")
    return amounts, ":" in text


def draw(samples: Sequence[Sample], budget: str | None, seed: int, usable: Sequence[LabelKind] = KINDS) -> dict[str, LabelKind]:
    """Draws which image may show which kind of label.

    Args:
        samples: all training images.
        budget: what `--labels` says; None gives each image the strongest kind that it has.
        seed: of the draw.
        usable: kinds that the recipe has a loss for; the default budget keeps to them.

    Returns:
        Kind by sample id; an image that is not in it is left out.

    Raises:
        MixsupError: a budget that the images cannot fill.
    """
    by_id = {sample.id: sample for sample in samples}
    ids = sorted(by_id)
    order = [ids[index] for index in np.random.default_rng([seed, 0x5EED]).permutation(len(ids))]
    if budget is None:
        strongest = {key: next((kind for kind in by_id[key].kinds() if kind in usable), None) for key in by_id}
        return {key: kind for key, kind in strongest.items() if kind is not None}
    amounts, ratio = parse_budget(budget)
    capable = {kind: sum(kind in sample.kinds() for sample in samples) for kind in KINDS}
    for kind in amounts:
        if amounts[kind] > 0 and not capable[kind]:
            raise MixsupError(f"--labels {budget!r}: no image can give {kind}; ask for a kind that the data set has")
    counts = _counts_of_ratio(amounts, capable) if ratio else {kind: int(amount) for kind, amount in amounts.items()}

    # Whoever can give a strong kind can give the weaker ones too, so serving the strongest first wastes nobody.
    chosen: dict[str, LabelKind] = {}
    for kind in KINDS:
        takers = [key for key in order if key not in chosen and kind in by_id[key].kinds()]
        want = counts.get(kind, 0)
        if want > len(takers):
            raise MixsupError(f"--labels {budget!r}: {want} images with {kind} asked for, {len(takers)} can give them; ask for fewer")
        chosen |= dict.fromkeys(takers[:want], kind)
    return chosen


def _counts_of_ratio(amounts: Mapping[LabelKind, float], capable: Mapping[LabelKind, int]) -> dict[LabelKind, int]:
    """The largest counts in the given ratio that the images can fill."""
    scale, total = float("inf"), 0.0
    for kind in KINDS:  # strongest first: masks can come from `capable` images only, masks + boxes from more, ...
        total += amounts.get(kind, 0.0)
        if total > 0:
            scale = min(scale, capable[kind] / total)
    exact = {kind: amount * scale for kind, amount in amounts.items()}
    counts = {kind: int(value + 1e-9) for kind, value in exact.items()}
    # Largest remainders take what rounding down left over, as far as the images reach.
    for kind in sorted(amounts, key=lambda kind: counts[kind] - exact[kind]):
        if exact[kind] - counts[kind] > 1e-6:
            trial = {**counts, kind: counts[kind] + 1}
            sums = np.cumsum([trial.get(name, 0) for name in KINDS])
            if all(taken <= capable[name] for taken, name in zip(sums, KINDS, strict=True)):
                counts = trial
    return counts


def restrict(dataset: Dataset, kinds: Mapping[str, LabelKind], *, skip_bad: bool = False) -> Dataset:
    """The data set as training may see it: each image with its drawn kind of label and nothing stronger.

    Weaker labels are derived here where a file lacks them, so that nothing later needs the stronger ones.

    Raises:
        DataError: masks from which boxes or tags have to be derived are at fault, all of them (unless `skip_bad`).
    """
    size = len(dataset.classes)
    problems: list[Problem] = []
    restricted = []
    for sample in track(dataset.samples, "label budget", len(dataset.samples)):
        kind = kinds.get(sample.id)
        try:
            if kind == "masks":
                restricted.append(replace(sample, label=kind))
            elif kind == "boxes":
                restricted.append(replace(sample, label=kind, mask=None, boxes=boxes_of(sample, size)))
            elif kind == "tags":
                restricted.append(replace(sample, label=kind, mask=None, boxes=None, tags=tags_of(sample, size)))
        except DataError as error:
            problems += error.problems
    if problems and not skip_bad:
        raise DataError(problems)
    return replace(dataset, samples=restricted, problems=[*dataset.problems, *problems])


def split_csv(dataset: Dataset, kinds: Mapping[str, LabelKind]) -> str:
    """The draw as CSV: image, label kind ("unused" for an image outside the budget)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "labels"])
    writer.writerows([sample.id, kinds.get(sample.id, "unused")] for sample in dataset.samples)
    return text.getvalue()


def read_split_csv(text: str) -> dict[str, LabelKind]:
    """The draw that `split_csv` wrote."""
    rows = list(csv.reader(io.StringIO(text)))[1:]
    return {row[0]: kind for row in rows for kind in KINDS if row[1] == kind}
