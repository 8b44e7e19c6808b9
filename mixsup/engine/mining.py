"""MCOF's rounds (algorithm 1; `mixsup/refresh/mcof.py`): RegionNet learns what the seeds of a class have in common and finds the rest of its objects.

Which files a round leaves, and why it may be interrupted anywhere, stands in `mixsup/engine/helping.py`.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from mixsup.data.augment import training_view
from mixsup.data.image import read_image, read_mask
from mixsup.data.palette import palette_png
from mixsup.data.sample import BACKGROUND, Float32, Int64, Sample, UInt8
from mixsup.engine.batches import Draws, fault_text, identity, leave_interrupts
from mixsup.engine.checkpoint import load_weights
from mixsup.engine.helping import FOLDER, Whole, fit, keep, load_regions, loaded, own_share, round_folder, tagged_samples, trained_before
from mixsup.engine.predict import TILE, Predictor, tiles
from mixsup.engine.prepare import Job
from mixsup.errors import MixsupError
from mixsup.files import write_bytes, write_text
from mixsup.losses.partial import fold_unknown
from mixsup.masks.superpixels import Regions, Superpixels, enlarge
from mixsup.networks import build_network
from mixsup.networks.base import resize_scores
from mixsup.networks.classifier import Classifier
from mixsup.networks.region_net import RegionNet, region_loss
from mixsup.progress import track
from mixsup.refresh.mcof import MCOF, Shares, keep_tagged, object_regions, predicted_seeds, region_labels
from mixsup.saliency.source import SaliencySource
from mixsup.workers import spread

NO_REGION = 65535
_NEVER = -1e4  # a score that nothing makes the highest
_MANY = 16  # images below which starting processes takes longer than they save
LOOKED_AT = f"{FOLDER}/looked-at.json"
_LOOKED_AT = 96  # images whose shares of the classes stand for all, where each class is on
_OF_EACH = 8  # of them
_PIXELS = 2000  # of each of them, evenly spread


def mine(job: Job, number: int) -> tuple[int, int, int]:
    """A round of algorithm 1, on the network as it is: new labels for every tagged image.

    Args:
        job: the stage.
        number: of the round among all rounds of the run, whatever their rule; it names the round's files. Only those of this rule are iterations.

    Returns:
        How many images there are, how many labels were renewed (as many), and how many of them differ from those before; of this process.

    Raises:
        MixsupError: an image cannot be read any more, or the disk is full. Nothing is lost: --resume does the round again.
    """
    rule, cam = job.rule, job.cam
    assert isinstance(rule, MCOF)
    assert cam is not None
    tagged, folder = tagged_samples(job), round_folder(job.run.folder, number)
    if not tagged:  # --skip-bad has left them all out
        return 0, 0, 0
    before, iteration = dict(job.targets.labels), number - job.rounds + job.mined
    if iteration == 1:
        seeds = before
    else:
        seeds = {sample.id: folder / "seeds" / f"{sample.id}.png" for sample in tagged}
        _predict_seeds(job, rule, cam.superpixels, tagged, seeds, before)
    if not rule.mines(iteration):
        for sample in own_share(job, tagged):
            write_bytes(folder / f"{sample.id}.png", seeds[sample.id].read_bytes())
    else:
        _mine_regions(job, rule, cam.superpixels, tagged, seeds, number, first=iteration == 1)
    job.fabric.barrier()
    own = own_share(job, tagged)
    return len(tagged), len(own), sum((folder / f"{sample.id}.png").read_bytes() != before[sample.id].read_bytes() for sample in own)


def forget(job: Job, number: int, kept: set[str]) -> None:
    """Removes what rounds up to `number` left of images that are not followed, and the networks that nobody will ask for again."""
    for earlier in range(1, number + 1):
        for key in job.targets.labels:
            if key not in kept:
                folder = round_folder(job.run.folder, earlier)
                for path in (
                    folder / "seeds" / f"{key}.png",
                    folder / "regions" / f"{key}.png",
                    *([folder / f"{key}.png"] if earlier < number else []),
                ):
                    path.unlink(missing_ok=True)
        if earlier < number:
            (job.run.folder / FOLDER / f"region-net-{earlier}.safetensors").unlink(missing_ok=True)


def _predict_seeds(
    job: Job, rule: MCOF, superpixels: Superpixels, tagged: list[Sample], paths: dict[str, Path], before: dict[str, Path]
) -> None:
    """S of a later round: what PixelNet says now."""
    job.bare.eval()

    def asked(sample: Sample, seen: UInt8, regions: Regions) -> Float32:
        return log_scores(job.bare, seen, sample, regions, job.fabric.device, job.fabric.autocast)

    def rows(sample: Sample, seen: UInt8, regions: Regions) -> tuple[Float32, Float32]:
        return some_pixels(asked(sample, seen, regions))

    more = _held(job, rule, superpixels, tagged, job.recipe.refresh.scale, rows)
    images = Whole(own_share(job, tagged), job, superpixels, (job.recipe.refresh.scale,))
    for sample, (seen,), regions, _ in loaded(images, job, "predicting tagged images"):
        found = predicted_seeds(asked(sample, seen, regions) + more[:, None, None], sample.tags or ())
        labels = keep_tagged(enlarge(found, sample.size), read_mask(before[sample.id]), sample.tags or (), rule.kept)
        write_bytes(paths[sample.id], palette_png(labels))
    job.fabric.barrier()


def _held(
    job: Job, rule: MCOF, superpixels: Superpixels, tagged: list[Sample], scale: float,
    rows: Callable[[Sample, UInt8, Regions], tuple[Float32, Float32]],
) -> Float32:  # fmt: skip
    """What is added to the scores of every image so that classes keep the shares of the first seeds, see `offsets`; zeros where nobody asks for that.

    All processes look at the same evenly spread images, so that they find the same.

    Args:
        scale: of the working size, at which the images are looked at.
        rows: N×C scores of an image and the part of its pixels that each row stands for.
    """
    start, shares, first = time.monotonic(), Shares(len(job.run.classes)), round_folder(job.run.folder, 0)
    if rule.held == "none":
        return shares.offsets(objects=False)
    some = [tagged[index] for index in looked_at([sample.tags or () for sample in tagged])]
    if job.fabric.is_global_zero:
        write_text(job.run.folder / LOOKED_AT, json.dumps([sample.id for sample in some]))
    for sample, (seen,), regions, _ in loaded(Whole(some, job, superpixels, (scale,)), job, "shares of the classes"):
        shares.add(read_mask(first / f"{sample.id}.png"), *rows(sample, seen, regions), sample.tags or ())
    found = shares.offsets(rule.held == "objects")
    job.log(f"shares of the classes, from {len(some)} images: {time.monotonic() - start:.1f} s")
    return found


def looked_at(tags: Sequence[Collection[int]]) -> list[int]:
    """The images whose shares of the classes stand for all: evenly spread ones, and of each class that few of these have some more, evenly spread as well.

    Args:
        tags: of each image.

    Returns:
        Their indices, ascending; with each class at least `_OF_EACH` of its images, or all that it has.
    """
    some = set(range(0, len(tags), max(1, len(tags) // _LOOKED_AT)))
    images: dict[int, list[int]] = {}
    for index, classes in enumerate(tags):
        for class_id in classes:
            images.setdefault(class_id, []).append(index)
    for class_id in sorted(images, key=lambda class_id: len(images[class_id])):  # rare ones first, whose images show the others, too
        others = [index for index in images[class_id] if index not in some]
        missing = min(len(others), _OF_EACH - (len(images[class_id]) - len(others)))
        some |= {others[number * len(others) // missing] for number in range(missing)}
    return sorted(some)


def some_pixels(scores: Float32) -> tuple[Float32, Float32]:
    """N×C scores of evenly spread pixels of C×h×w, and the part of the image that each stands for."""
    every = max(1, round((scores[0].size / _PIXELS) ** 0.5))
    some = scores[:, ::every, ::every].reshape(len(scores), -1).T
    return some, np.full(len(some), 1 / len(some), np.float32)


def log_scores(
    model: Callable[[Tensor], dict[str, Tensor]],
    seen: UInt8,
    sample: Sample,
    regions: Regions,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Float32:
    """C×h×w logarithms of what PixelNet gives the classes, at the size of an image's superpixels."""
    scores = with_unknown(pixel_scores(model, seen, device, autocast), sample)
    return resize_scores(scores, (regions.shape[0], regions.shape[1]))[0].clamp(min=1e-12).log().cpu().numpy()


@torch.inference_mode()
def pixel_scores(
    model: Callable[[Tensor], dict[str, Tensor]],
    seen: UInt8,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """1×C×h×w probabilities of PixelNet, the mean over the view and its mirror image; of a view larger than a tile, tile by tile (`Predictor.scores`)."""
    if max(seen.shape) > TILE:
        return Predictor(model, TILE, "native", device, flip=True, tile=TILE, autocast=autocast).asked(seen)[None]
    pixels = torch.from_numpy(seen).to(device).permute(2, 0, 1)[None]
    with autocast():
        scores = model(torch.cat([pixels, pixels.flip(-1)]))["scores"]
    found = scores.float().softmax(1)
    mean: Tensor = (found[:1] + found[1:].flip(-1)) / 2
    return mean


def with_unknown(scores: Tensor, sample: Sample) -> Tensor:
    """1×C×h×w probabilities whose background has those of classes that nobody looked for in the image, as the loss counts them."""
    if sample.known is None:
        return scores
    found = scores.clone()
    found[:, BACKGROUND] += scores[:, torch.from_numpy(sample.unknown(scores.shape[1]))].sum(dim=1)
    return found


def _mine_regions(
    job: Job, rule: MCOF, superpixels: Superpixels, tagged: list[Sample], seeds: dict[str, Path], number: int, first: bool
) -> None:
    """RegionNet learns S and says O; in the first round saliency makes O^R of it."""
    start = time.monotonic()
    net, trained = _region_net(job, rule, superpixels, seeds, number), time.monotonic() - start
    saliency, folder = rule.source() if first else None, round_folder(job.run.folder, number)

    def asked(sample: Sample, seen: UInt8, regions: Regions) -> Float32:
        scores = region_scores(net, seen, regions, job)
        if sample.known is not None:  # as RegionNet was charged: a class that nobody looked for counts as background
            unknown = torch.from_numpy(sample.unknown(scores.shape[1]))
            scores = fold_unknown(torch.from_numpy(scores)[:, :, None, None], unknown.expand(len(scores), -1))[:, :, 0, 0].numpy()
        return scores

    def rows(sample: Sample, seen: UInt8, regions: Regions) -> tuple[Float32, Float32]:
        scores = asked(sample, seen, regions)
        return scores, (np.bincount(regions.ravel(), minlength=len(scores)) / regions.size).astype(np.float32)

    more = _held(job, rule, superpixels, tagged, 1.0, rows)
    images = Whole(own_share(job, tagged), job, superpixels, (1.0,))
    for sample, (seen,), regions, _ in loaded(images, job, f"mining objects, round {number}"):
        scores, tags = asked(sample, seen, regions), sample.tags or ()
        found = object_regions(scores, tags) if rule.held == "none" else predicted_seeds((scores + more).T, tags)
        labels = enlarge(found[regions], sample.size)
        labels = keep_tagged(labels, read_mask(seeds[sample.id]), sample.tags or (), rule.kept)
        for path in (folder / "regions" / f"{sample.id}.png", folder / f"{sample.id}.png"):
            write_bytes(path, palette_png(labels))
    if saliency is not None:
        _refine_regions(rule, saliency, [sample for sample in images.samples if rule.refines(sample)], folder)
    made = "the regions" if saliency is None else "the regions and saliency"
    job.log(f"round {number}: {trained:.1f} s for RegionNet, {time.monotonic() - start - trained:.1f} s for {made}")


def _refine_regions(rule: MCOF, saliency: SaliencySource, samples: list[Sample], folder: Path) -> None:
    """O^R in place of O. A saliency map and a CRF an image: on all cores, where there is enough to do for it."""
    one = partial(_refine_one, rule, saliency, folder)
    refined = spread(one, samples) if saliency.in_workers and len(samples) >= _MANY else map(one, samples)
    for _ in track(refined, "refining regions by saliency", len(samples)):
        pass


def _refine_one(rule: MCOF, saliency: SaliencySource, folder: Path, sample: Sample) -> None:
    labels = rule.refine(read_image(sample.image), read_mask(folder / "regions" / f"{sample.id}.png"), sample, saliency)
    write_bytes(folder / f"{sample.id}.png", palette_png(labels))


def _region_net(job: Job, rule: MCOF, superpixels: Superpixels, seeds: dict[str, Path], number: int) -> RegionNet:
    """RegionNet after its training in round `number` (section 4.2), which starts from its weights of the round before, or from the classifier's backbone."""
    folder = job.run.folder / FOLDER
    path, earlier = folder / f"region-net-{number}.safetensors", folder / f"region-net-{number - 1}.safetensors"
    trained = trained_before(job, path)
    torch.manual_seed(job.options.seed * 1_000_003 + 11 * number)
    network = build_network(job.recipe.network, pretrained=False)
    net = RegionNet(network, len(job.run.classes), grid=rule.grid, width=rule.width, hidden=rule.hidden).to(job.fabric.device)
    if not trained:
        if earlier.is_file():
            load_weights(earlier, net)
        else:
            classifier = Classifier(
                build_network(job.recipe.network, pretrained=False), len(job.run.classes), job.cam.maps if job.cam else 1
            )
            load_weights(folder / "classifier.safetensors", classifier)
            network.backbone.load_state_dict(classifier.network.backbone.state_dict())
        network.pretraining, network.freeze_batchnorm = job.bare.network.pretraining, job.bare.network.freeze_batchnorm
        steps = max(1, round(rule.training * job.steps))
        views = RegionViews(job, superpixels, seeds)
        seed, fabric = job.options.seed * 1000 + number, job.fabric
        draws = Draws(["tags"] * len(views), job.schedule.batch, 0, steps, seed, fabric.global_rank, fabric.world_size)
        loader = DataLoader(
            views, batch_sampler=draws, collate_fn=identity, num_workers=job.workers, prefetch_factor=4 if job.workers else None,
            worker_init_fn=leave_interrupts,
        )  # fmt: skip

        def charge(items: list[dict[str, Any]]) -> Tensor:
            images, regions = (
                torch.from_numpy(np.stack([item[name] for item in items])).to(job.fabric.device) for name in ("image", "regions")
            )
            labels = torch.from_numpy(np.concatenate([item["labels"] for item in items])).to(job.fabric.device)
            scores = net(images.permute(0, 3, 1, 2), regions).float()
            if any(item["unknown"] is not None for item in items):
                scores = fold_unknown(scores[:, :, None, None], _unknown(items, scores.shape[1]).to(scores.device))[:, :, 0, 0]
            return region_loss(scores, labels)

        fit(job, net, network, loader, steps, charge, f"RegionNet, round {number}")
        keep(job, path, net, steps)
    load_weights(path, net)
    return net.eval()


@torch.inference_mode()
def region_scores(net: RegionNet, seen: UInt8, regions: Regions, job: Job) -> Float32:
    """R×C scores of all superpixels of an image in one pass, or in one a tile, as the network is asked; one that is too small to be seen at the working size
    is background. Of a superpixel in several tiles each counts by the pixels that it shows."""
    size, count = (seen.shape[0], seen.shape[1]), int(regions.max()) + 1
    whole = enlarge_regions(regions, size)
    total, pixels = np.zeros((count, 0), np.float32), np.zeros(count, np.int64)
    for _, (top, bottom, left, right) in tiles(size):
        shown, numbers = _compact(whole[top:bottom, left:right])
        part = torch.from_numpy(np.ascontiguousarray(seen[top:bottom, left:right])).to(job.fabric.device).permute(2, 0, 1)[None]
        with job.fabric.autocast():
            scores = net(part, torch.from_numpy(shown)[None].to(job.fabric.device)).float().cpu().numpy()
        total = total if total.shape[1] else np.zeros((count, scores.shape[1]), np.float32)
        area = np.bincount(shown.ravel(), minlength=len(numbers))
        total[numbers] += area[:, None] * scores
        pixels[numbers] += area
    found = np.asarray(total / np.maximum(pixels, 1)[:, None], np.float32)
    found[pixels == 0] = _NEVER
    found[pixels == 0, BACKGROUND] = 0
    return found


class RegionViews(Dataset[Any]):
    """Random views of images, as PixelNet is shown them, with their superpixels and the label S of each; images with boxes or masks teach what they are taught
    as pixels.

    An item is `image` S×S×3 uint8, `regions` S×S int64 (-1 outside the picture, numbers without gaps inside), `labels`, a class id a region, and `unknown`,
    C bool where the image's source annotates some classes only, else None; or `fault`.
    """

    def __init__(self, job: Job, superpixels: Superpixels, seeds: dict[str, Path]) -> None:
        self.samples, self.seed, self.schedule, self.superpixels = job.train.samples, job.options.seed, job.schedule, superpixels
        self.folder, self.targets = job.run.folder, replace(job.targets, labels=seeds, soft=None)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, draw = key
        sample = self.samples[index]
        try:
            image, labels = read_image(sample.image), self.targets(sample).labels
            regions = load_regions(self.folder, sample, image, self.superpixels)
        except MixsupError as error:
            return {"fault": fault_text(sample, error)}
        low, high = (enlarge((regions >> shift & 255).astype(np.uint8), sample.size) for shift in (0, 8))
        generator = np.random.default_rng([self.seed, 3, draw, zlib.crc32(sample.id.encode())])
        schedule = self.schedule
        seen, planes, _ = training_view(
            image, np.stack([low, high, labels]), schedule.size, schedule.resolution, schedule.augment, generator
        )
        plane = planes.numpy().astype(np.int64)
        shown, _ = _compact(np.where(plane[0] + 256 * plane[1] == NO_REGION, -1, plane[0] + 256 * plane[1]))
        inside = shown >= 0
        found = region_labels(plane[2][inside][None].astype(np.uint8), shown[inside][None].astype(np.uint16), self.targets.num_classes)
        unknown = None if sample.known is None else sample.unknown(self.targets.num_classes)
        return {"image": seen.permute(1, 2, 0).contiguous().numpy(), "regions": shown, "labels": found, "unknown": unknown}


def _unknown(items: list[dict[str, Any]], classes: int) -> Tensor:
    """ΣR×C bool: the classes that nobody looked for in the image of each region."""
    rows = [np.zeros(classes, bool) if item["unknown"] is None else item["unknown"] for item in items]
    return torch.from_numpy(np.repeat(rows, [len(item["labels"]) for item in items], axis=0))


def enlarge_regions(regions: Regions, size: tuple[int, int]) -> Int64:
    """Region numbers at another size, nearest neighbour; H×W int64."""
    if regions.shape == size:
        return regions.astype(np.int64)
    found = functional.interpolate(torch.from_numpy(regions.astype(np.float32))[None, None], size=size, mode="nearest-exact")
    return found[0, 0].numpy().astype(np.int64)


def _compact(regions: Int64) -> tuple[Int64, Int64]:
    """Numbers without gaps in place of those that are left of a map after a view, and the old number of each; -1 stays."""
    numbers, found = np.unique(regions, return_inverse=True)
    found = found.reshape(regions.shape).astype(np.int64)
    return (found - 1, numbers[1:]) if numbers[0] == -1 else (found, numbers)
