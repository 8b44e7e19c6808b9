"""Seeds of tagged images before the first step (MCOF, section 4.1): a classification network learns the tags, and its activation maps say where they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixsup.data.derive import tags_of
from mixsup.data.palette import palette_png
from mixsup.data.sample import Float32, Sample, UInt8
from mixsup.engine.batches import Draws, Targets, TrainingViews, as_tensors, training_loader
from mixsup.engine.checkpoint import load_weights
from mixsup.engine.helping import FOLDER, Whole, fit, keep, loaded, own_share, round_folder, tagged_samples, trained_before
from mixsup.engine.initialise import begin_with
from mixsup.engine.prepare import Job
from mixsup.files import write_bytes
from mixsup.losses.tags import gap_bce
from mixsup.masks.cam import CAM
from mixsup.masks.superpixels import enlarge
from mixsup.networks import build_network
from mixsup.networks.base import resize_scores
from mixsup.networks.classifier import Classifier
from mixsup.progress import track


def plant(job: Job) -> None:
    """Makes the seeds of all tagged images (MCOF, section 4.1), those that are not there yet; does nothing where the recipe asks for none.

    Raises:
        MixsupError: an image cannot be read any more, or the disk is full.
    """
    cam = job.cam
    tagged = tagged_samples(job)
    if cam is None or not tagged:
        return
    folder = round_folder(job.run.folder, 0)
    job.targets.labels = {sample.id: folder / f"{sample.id}.png" for sample in tagged}
    missing = [sample for sample in tagged if not job.targets.labels[sample.id].is_file()]
    job.fabric.barrier()  # nobody writes before everybody has looked
    if missing:
        _make_seeds(job, cam, missing, folder)


def warm(job: Job) -> None:
    """Gives a network without pretraining the backbone of the classification network, before the first step.

    PixelNet of the paper begins with what ImageNet's classes have taught; where nothing has, the tags of these images have taught something.
    """
    path = job.run.folder / FOLDER / "classifier.safetensors"
    if job.cam is None or job.bare.network.pretraining != "none" or not path.is_file():
        return
    classifier = Classifier(build_network(job.recipe.network, pretrained=False), len(job.run.classes), job.cam.maps)
    load_weights(path, classifier)
    job.bare.network.backbone.load_state_dict(classifier.network.backbone.state_dict())


def _make_seeds(job: Job, cam: CAM, missing: list[Sample], folder: Path) -> None:
    start = time.monotonic()
    classifier = classification_network(job, cam)
    trained = time.monotonic() - start
    images = Whole(own_share(job, missing), job, cam.superpixels, cam.scales, fitted=True, saliency=cam.source())
    for sample, views, regions, salient in loaded(images, job, "seeds of tagged images"):
        tags = sorted(sample.tags or ())
        maps = activation_maps(classifier, views, tags, regions.shape, cam.flip, job.fabric.device, job.fabric.autocast)
        labels = cam.seeds(maps, tags, regions, salient)[regions]
        write_bytes(folder / f"{sample.id}.png", palette_png(enlarge(labels, sample.size)))
    job.fabric.barrier()
    job.log(
        f"seeds of {len(missing)} tagged images: {trained:.1f} s for the classification network, {time.monotonic() - start - trained:.1f} s for the maps"
    )


def classification_network(job: Job, cam: CAM) -> Classifier:
    """Trains the classification network on the tags of all training images (boxes and masks imply tags), or finds it trained.

    Its backbone begins with what the network begins with: pretrained weights, or those of the run that `--init` names.
    """
    classes, path = len(job.run.classes), job.run.folder / FOLDER / "classifier.safetensors"
    trained = trained_before(job, path)
    torch.manual_seed(job.options.seed * 1_000_003 + 7)
    start = job.run.facts["init"]
    classifier = Classifier(build_network(job.recipe.network, pretrained=not trained and start is None), classes, cam.maps)
    if not trained and start is not None:
        begin_with(Path(str(start)), classifier, job.bare.network)
    classifier.to(job.fabric.device)
    if not trained:
        given = track(job.train.samples, "tags of training images", len(job.train.samples))  # of a mask they are read from its file
        samples = [replace(sample, label="tags", tags=tags_of(sample, classes)) for sample in given]
        targets = Targets(classes, job.targets.source, job.targets.store)
        steps = max(1, round(cam.training * job.steps))
        draws = Draws(
            ["tags"] * len(samples), job.schedule.batch, 0, steps, job.options.seed, job.fabric.global_rank, job.fabric.world_size
        )
        loader = training_loader(
            TrainingViews(samples, targets, job.schedule, job.options.seed), draws, job.workers, pin=job.fabric.device.type == "cuda"
        )

        def charge(batch: dict[str, Any]) -> Tensor:
            as_tensors(batch, job.fabric.device)
            scores = resize_scores(classifier(batch["image"])["scores"].float(), batch["image"].shape[-2:])
            total, pixels = gap_bce({"scores": scores}, batch)
            return total / pixels.clamp(min=1)

        fit(job, classifier, classifier.network, loader, steps, charge, "classification network")
        keep(job, path, classifier, steps)
    load_weights(path, classifier)  # of the first process
    return classifier.eval()


@torch.inference_mode()
def activation_maps(
    classifier: Callable[[Tensor], dict[str, Tensor]],
    views: Sequence[UInt8],
    tags: Sequence[int],
    size: tuple[int, int],
    flip: bool,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Float32:
    """K×h×w: the mean activation map of each tag over views of one image at several scales, and their mirror images."""
    total = np.zeros((len(tags), *size), np.float32)
    for seen in views if tags else ():
        pixels = torch.from_numpy(seen).to(device).permute(2, 0, 1)[None]
        both = torch.cat([pixels, pixels.flip(-1)]) if flip else pixels
        with autocast():
            maps = classifier(both)["scores"].float()
        maps = torch.stack([maps[0], maps[1].flip(-1)]).mean(0) if flip else maps[0]
        total += resize_scores(maps[None, list(tags)], size)[0].cpu().numpy()
    return np.asarray(total / len(views), np.float32)
