"""What mining made of tags, round by round: the scores of each step against the truth (MCOF, Table 3), and pictures (Figs. 4 and 6).

Training never looks at the truth of a tagged image; this does, after training, where the data set happens to have it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from mixsup.data.image import ImageError, read_image
from mixsup.data.sample import Dataset, Float32, Sample, UInt8
from mixsup.engine.api import choose_device
from mixsup.engine.checkpoint import load_model, load_weights
from mixsup.engine.choices import build_cam
from mixsup.engine.helping import load_regions, round_folder
from mixsup.engine.mining import LOOKED_AT, log_scores, some_pixels
from mixsup.engine.model import SegmentationModel
from mixsup.engine.predict import view
from mixsup.engine.refresh import read_rounds
from mixsup.engine.run import LAST, Run
from mixsup.engine.seeds import activation_maps
from mixsup.errors import MixsupError
from mixsup.files import write_text
from mixsup.masks.cam import CAM
from mixsup.masks.superpixels import enlarge
from mixsup.metrics import confusion, iou_per_class
from mixsup.networks import build_network
from mixsup.networks.classifier import Classifier
from mixsup.progress import track
from mixsup.recipe import Recipe
from mixsup.refresh import build_rule
from mixsup.refresh.mcof import MCOF, Shares, keep_tagged, predicted_seeds
from mixsup.report.pictures import heat_picture, map_picture, photo
from mixsup.report.rounds import comparison_grid, followed_samples, known_tags, read_labels, seeded, spread, tagged_samples, true_mask

FILE = "mining.csv"
COLUMNS = ("round", "stage", "images", "miou")
# S, O, O^R, what PixelNet says of the training images (S of the next round), and its validation.
SEEDS, REGIONS, REFINED, PIXELS, VALIDATION = STAGES = ("seeds", "region-net", "refined", "pixel-net", "pixel-net-val")
IMAGES, SHOWN, TAGS = 6, 5, 3  # rows of pictures, and in each PixelNet's rounds and heat maps
PREDICTED = 64  # images that PixelNet of the last round is asked for, whose answers nobody has kept


@dataclass(frozen=True)
class Score:
    """A cell of the table.

    Attributes:
        round: from 1.
        stage: one of `STAGES`.
        images: that were compared.
        miou: mean IoU with the truth over all of them, 0 to 1.
    """

    round: int
    stage: str
    images: int
    miou: float


@dataclass(frozen=True)
class Mined:
    """One tagged image of the figure.

    Attributes:
        name: id of the sample.
        pictures: captions and data addresses, in the order of the stages; "" for an address where a file is gone.
    """

    name: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Round:
    """A round of mining: its number among all rounds of the run and its place among those that mine, from 1; `end` is the step where its training of
    PixelNet ends, `last` whether that is the end of the run."""

    number: int
    place: int
    step: int
    end: int
    last: bool


class Mining:
    """What a run left of its mining; every part of it may be gone.

    Args:
        run: a run.
        train: its training images, true masks where known; None where they are gone.
    """

    def __init__(self, run: Run, train: Dataset | None) -> None:
        self.run, self.train, self.classes = run, train, len(run.classes)
        self.device = choose_device("auto")
        self.rule, self.cam, self.recipe = _choices(run)
        self.rounds = _rounds(run) if self.rule is not None else []

    def scores(self) -> list[Score]:
        """The table, a row a round and stage that has something to compare; rounds and stages ascend."""
        stages = [(one, stage) for one in self.rounds for stage in STAGES[:4]]
        matrices = {key: np.zeros((self.classes, self.classes), np.int64) for key in stages}
        images = dict.fromkeys(stages, 0)
        known = [sample for sample in followed_samples(self.run, self.train, "tags") if sample.mask is not None]
        predicted = {known[place].id for place in spread(len(known), PREDICTED)}
        for sample in track(known if self.rounds else [], "report: mining", len(known) if self.rounds else 0):
            truth = true_mask(sample, self.classes)
            if truth is None:
                continue
            grid = comparison_grid(truth)
            for key in stages:
                one, stage = key
                if stage == PIXELS and one.last and sample.id not in predicted:
                    continue
                labels = self.labels(sample, one, stage)
                if labels is not None:
                    matrices[key] += confusion(truth[grid], labels[grid], self.classes)
                    images[key] += 1
        rows = [
            Score(key[0].number, key[1], images[key], float(np.nanmean(iou_per_class(matrices[key]))))
            for key in stages
            if matrices[key].any()
        ]
        rows += [Score(one.number, VALIDATION, int(self.run.facts["validation_images"]), miou) for one, miou in self._validations()]
        return sorted(rows, key=lambda row: (row.round, STAGES.index(row.stage)))

    def images(self) -> list[Mined]:
        """Up to six followed images that have a tag, evenly spread; none of a run without seeds."""
        candidates = tagged_samples(self.run, self.train) if self.cam is not None and seeded(self.run) else []
        found = []
        for sample, tags in (candidates[place] for place in spread(len(candidates), IMAGES)):
            with suppress(ImageError):  # a file that went bad since training costs its row, not the page
                image = read_image(sample.image)
                if image.shape[:2] == sample.size:
                    found.append(Mined(sample.id, tuple(self._pictures(sample, image, tags))))
        return found

    def labels(self, sample: Sample, one: _Round, stage: str) -> UInt8 | None:
        """H×W class ids of an image after a stage; None where the round has no such stage, or its file is gone."""
        assert self.rule is not None
        number, mines = one.number, self.rule.mines(one.place)
        folder = round_folder(self.run.folder, number)
        if stage == SEEDS:
            return self._read(round_folder(self.run.folder, 0) if one.place == 1 else folder / "seeds", sample)
        if stage == REGIONS:
            return self._read(folder / "regions", sample) if mines else None
        if stage == REFINED:
            return self._read(folder, sample) if mines and one.place == 1 and self.rule.saliency != "none" else None
        following = next((later for later in self.rounds if later.number > number), None)
        if following is not None:
            return self._read(round_folder(self.run.folder, following.number) / "seeds", sample) if following.step == one.end else None
        return self._predicted(sample, one) if one.last else None

    def _read(self, folder: Path, sample: Sample) -> UInt8 | None:
        return read_labels(folder / f"{sample.id}.png", sample, self.classes)

    def _predicted(self, sample: Sample, one: _Round) -> UInt8 | None:
        """What the next S would be, had the run another round."""
        before = self._read(round_folder(self.run.folder, one.number), sample)
        if self._pixel_net is None or before is None or self.rule is None or self._pixel_net[1] <= one.step:
            return None
        try:
            image = read_image(sample.image)
        except ImageError:
            return None
        tags = known_tags(sample, self.classes)
        labels = predicted_seeds(self._log_scores(sample, image) + self._offsets[:, None, None], tags)
        return keep_tagged(enlarge(labels, sample.size), before, tags, self.rule.kept)

    def _log_scores(self, sample: Sample, image: UInt8) -> Float32:
        """What PixelNet says at the end, asked as a round asks it (`_predict_seeds`), or its cell would not compare with those before it."""
        assert self._pixel_net is not None
        seen = self._views(image, (self.recipe.refresh.scale,))[0]
        # Only the size of superpixels counts; without seeds by `cam` there are none.
        regions = load_regions(self.run.folder, sample, image, self.cam.superpixels) if self.cam else np.zeros(image.shape[:2], np.uint16)
        return log_scores(self._pixel_net[0], seen, sample, regions, self.device)

    @cached_property
    def _offsets(self) -> Float32:
        """What would hold the classes' shares in another round; from the images that the rounds before looked at, as far as they are still there."""
        shares, folder = Shares(self.classes), round_folder(self.run.folder, 0)
        by_id = {sample.id: sample for sample in self.train.samples} if self.train is not None else {}
        held = self.rule.held if self.rule is not None else "none"
        keys = self._looked_at() if held != "none" else []
        for key in track(keys, "report: shares of the classes", len(keys)):
            sample, seeds = by_id.get(key), None
            with suppress(MixsupError):
                seeds = self._read(folder, sample) if sample is not None else None
                if sample is not None and seeds is not None:
                    shares.add(seeds, *some_pixels(self._log_scores(sample, read_image(sample.image))), known_tags(sample, self.classes))
        return shares.offsets(held == "objects")

    def _looked_at(self) -> list[str]:
        """The ids of those images."""
        try:
            return [str(key) for key in json.loads((self.run.folder / LOOKED_AT).read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return []

    def _pictures(self, sample: Sample, image: UInt8, tags: Sequence[int]) -> list[tuple[str, str]]:
        def shown(caption: str, labels: UInt8 | None) -> tuple[str, str]:
            return caption, map_picture(labels, image) if labels is not None else ""

        found = [("image", photo(image)), *self._heat(image, tags[:TAGS])]
        found.append(shown("seeds", self._read(round_folder(self.run.folder, 0), sample)))
        for one in self.rounds[:1]:
            assert self.rule is not None
            if self.rule.mines(one.place):
                found.append(shown(f"RegionNet, round {one.number}", self.labels(sample, one, REGIONS)))
                if one.place == 1 and self.rule.saliency != "none":
                    found.append(shown("with saliency", self.labels(sample, one, REFINED)))
        for one in (self.rounds[place] for place in spread(len(self.rounds), SHOWN)):
            found.append(shown(f"PixelNet, round {one.number}", self.labels(sample, one, PIXELS)))
        return [*found, shown("truth", true_mask(sample, self.classes))]

    def _heat(self, image: UInt8, tags: Sequence[int]) -> list[tuple[str, str]]:
        captions = [f"map: {self.run.classes.all()[tag]}" for tag in tags]
        if self._classifier is None or self.cam is None:
            return [(caption, "") for caption in captions]
        views = self._views(image, self.cam.scales, whole=True)
        maps = self.cam.heat(
            activation_maps(self._classifier, views, tags, (views[0].shape[0], views[0].shape[1]), self.cam.flip, self.device)
        )
        return [(caption, heat_picture(one, image)) for caption, one in zip(captions, maps, strict=True)]

    def _views(self, image: UInt8, scales: Sequence[float], whole: bool = False) -> list[UInt8]:
        schedule = self.recipe.train
        return [view(image, schedule.size, schedule.resolution, factor, whole=whole) for factor in scales]

    def _validations(self) -> list[tuple[_Round, float]]:
        by_step = {row.get("step"): row["miou"] for row in self.run.metrics() if row.get("miou")}
        found = []
        for one in self.rounds:
            with suppress(ValueError, KeyError):
                found.append((one, float(by_step[str(one.end)])))
        return found

    @cached_property
    def _classifier(self) -> Classifier | None:
        if self.cam is None:
            return None
        classifier = Classifier(build_network(self.recipe.network, pretrained=False), self.classes, self.cam.maps)
        try:
            load_weights(self.run.folder / "mining" / "classifier.safetensors", classifier)
        except MixsupError:
            return None
        return classifier.to(self.device).eval()

    @cached_property
    def _pixel_net(self) -> tuple[SegmentationModel, int] | None:
        """The run's network as it was at the end, and the step: the best checkpoint may be of an earlier round."""
        try:
            with safe_open(self.run.folder / LAST, "pt") as file:
                step = int((file.metadata() or {}).get("step", "0"))
            return load_model(self.run, "last", self.device), step
        except (MixsupError, SafetensorError, OSError, ValueError):
            return None


def write_mining(run: Path, rows: Sequence[Score]) -> None:
    """Writes `mining.csv` into the run folder; without rows it removes an old one."""
    if not rows:
        (run / FILE).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row.round, row.stage, row.images, f"{row.miou:.6f}"] for row in rows)
    write_text(run / FILE, text.getvalue())


def read_mining(run: Path) -> list[Score]:
    """The rows of `mining.csv`; none where the file is missing or broken."""
    try:
        table = csv.DictReader(io.StringIO((run / FILE).read_text(encoding="utf-8")))
        rows = [Score(int(row["round"]), row["stage"], int(row["images"]), float(row["miou"])) for row in table]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return rows if all(row.stage in STAGES for row in rows) else []


def by_round(rows: Sequence[Score]) -> list[tuple[int, dict[str, Score]]]:
    """The rounds in their order, and of each its scores by stage."""
    return [(number, {row.stage: row for row in rows if row.round == number}) for number in sorted({row.round for row in rows})]


def _choices(run: Run) -> tuple[MCOF | None, CAM | None, Recipe]:
    """The rule that mined, what made the seeds, and the recipe of their stage."""
    stages = [run.recipe.stage(index) for index in range(len(run.recipe.stages) or 1)]
    ordered = sorted(stages, key=lambda stage: (stage.refresh.rule != MCOF.name, stage.masks.tags != "cam"))
    try:
        rule, cam = build_rule(ordered[0].refresh.rule, ordered[0].refresh.options), build_cam(ordered[0].masks)
    except MixsupError:
        return None, None, ordered[0]
    return rule if isinstance(rule, MCOF) else None, cam, ordered[0]


def _rounds(run: Run) -> list[_Round]:
    rows = [row for row in read_rounds(run.folder) if row["kind"] == "tags"]
    steps = int(run.facts["steps"])
    found = []
    for index, row in enumerate(rows):
        ends = [end for end in run.recipe.stage_ends(steps) if end > row["step"]] + [later["step"] for later in rows[index + 1 : index + 2]]
        end = min(ends, default=steps)
        found.append(_Round(row["round"], index + 1, row["step"], end, end == steps))
    return found
