"""What the rounds on tagged images share: whole images with their superpixels, and the training of a network that only helps.

Everything lies in the run's folder:

    mining/classifier.safetensors, region-net-N.safetensors     the two networks that only help
    mining/superpixels/ID.npz
    mining/looked-at.json                                       ids of the images whose shares of the classes stand for all
    masks/round-0/ID.png                                        the seeds (`mixsup/engine/seeds.py`)
    masks/round-N/ID.png                                        what PixelNet is trained on after round N (`mixsup/engine/mining.py`)
    masks/round-N/seeds/ID.png, masks/round-N/regions/ID.png    S and O of that round, of the images that a report shows

A network, superpixels or seeds of round 0 that are there are not made again; the labels of a round that did not come to its end are. All of it depends on
(seed, round) and on the weights that the run has then alone, so that a run that is killed inside a round ends with the same bits. With several processes each
trains the same helping network (they are small), on whole batches, and looks at its own share of the images; the first one's weights count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mixsup.data.image import read_image
from mixsup.data.sample import Float32, Sample, UInt8
from mixsup.engine.batches import fault_text, whole_loader
from mixsup.engine.checkpoint import save_weights
from mixsup.engine.optimiser import build_optimizer, learning_rate
from mixsup.engine.predict import view
from mixsup.engine.prepare import Job
from mixsup.errors import MixsupError
from mixsup.files import write_with
from mixsup.masks.superpixels import Regions, Superpixels
from mixsup.networks.base import Network
from mixsup.progress import Steps, track
from mixsup.saliency.source import SaliencySource, resized

FOLDER = "mining"


def round_folder(run: Path, number: int) -> Path:
    """Where the labels of a round lie; round 0 are the first ones."""
    return run / "masks" / f"round-{number}"


class Whole(Dataset[Any]):
    """Whole images as the networks see them at some scales of the working size, their superpixels and, where a source is given, what is salient in them; a
    text where one cannot be read.

    A network that learned from whole images (`fitted`) is asked for them at that size; one that learned from crops at theirs.
    """

    def __init__(
        self, samples: list[Sample], job: Job, superpixels: Superpixels, scales: Sequence[float], fitted: bool = False,
        saliency: SaliencySource | None = None,
    ) -> None:  # fmt: skip
        self.samples, self.folder, self.superpixels, self.saliency = samples, job.run.folder, superpixels, saliency
        schedule = job.schedule
        self.views = [partial(view, side=schedule.size, resolution=schedule.resolution, factor=scale, whole=fitted) for scale in scales]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, list[UInt8], Regions, Float32 | None] | str:
        sample = self.samples[index]
        try:
            image = read_image(sample.image)
            regions = load_regions(self.folder, sample, image, self.superpixels)
            salient = self.salient(image, sample, regions) if self.saliency is not None and self.saliency.in_workers else None
            return index, [seen(image) for seen in self.views], regions, salient
        except MixsupError as error:
            return fault_text(sample, error)

    def salient(self, image: UInt8, sample: Sample, regions: Regions) -> Float32 | None:
        """The map of the source, of the size of `regions`; None without one."""
        return None if self.saliency is None else resized(self.saliency(image, sample), (regions.shape[0], regions.shape[1]))


def loaded(images: Whole, job: Job, title: str) -> Iterator[tuple[Sample, list[UInt8], Regions, Float32 | None]]:
    """Each image's sample, views, superpixels and saliency (h×w, None without a source)."""
    loader = whole_loader(images, job.workers)
    for item in track(loader, title, len(images)):
        if isinstance(item, str):
            raise MixsupError(item)
        index, views, regions, salient = item
        sample = images.samples[index]
        if images.saliency is not None and salient is None:
            salient = images.salient(read_image(sample.image), sample, regions)
        yield sample, views, regions, salient


def load_regions(run: Path, sample: Sample, image: UInt8, superpixels: Superpixels) -> Regions:
    """The superpixels of an image, from the run's folder, or made and kept there."""
    path = run / FOLDER / "superpixels" / f"{sample.id}.npz"
    try:
        with np.load(path, allow_pickle=False) as data:
            regions: Regions = data["regions"]
        if regions.dtype == np.uint16 and regions.ndim == 2:
            return regions
    except Exception:
        pass  # missing or damaged, and a damaged file may raise anything (of zip, of zlib, of the parser of numpy's header): made anew
    regions = superpixels(image)
    write_with(path, lambda temporary: _save_regions(temporary, regions))
    return regions


def _save_regions(path: Path, regions: Regions) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, regions=regions)


def tagged_samples(job: Job) -> list[Sample]:
    return [sample for sample in job.train.samples if sample.label == "tags"]


def own_share(job: Job, samples: list[Sample]) -> list[Sample]:
    """This process's share."""
    return samples[job.fabric.global_rank :: job.fabric.world_size]


def fit(
    job: Job, module: nn.Module, network: Network, loader: DataLoader[Any], steps: int, charge: Callable[[Any], Tensor], title: str
) -> None:
    """Trains a helping network by the run's schedule, stretched or squeezed to its own steps; of several processes each has its share of a batch."""
    optimizer = build_optimizer(module, network, job.schedule)
    rates = [group["lr"] for group in optimizer.param_groups]
    # Gradients in half precision would have to be scaled; a helping network is small enough to learn in full.
    precision = nullcontext if job.options.precision == "16-mixed" else job.fabric.autocast
    module.train()
    with Steps(f"training the {title}", steps, quiet=job.options.quiet or not job.fabric.is_global_zero) as bar:
        bar.begin(0)
        for step, batch in enumerate(loader):
            faults = [item["fault"] for item in (batch if isinstance(batch, list) else [batch]) if "fault" in item]
            if faults:
                raise MixsupError(f"{faults[0]} (it was whole when training began; --resume goes on)")
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * learning_rate(step, steps, job.schedule)
            torch.manual_seed((job.options.seed * 1_000_003 + step) * 4099 + job.fabric.global_rank)
            with precision():
                loss = charge(batch)
            if not bool(loss.isfinite()):
                raise MixsupError(
                    f"the loss of the {title} became {float(loss.detach())} at step {step + 1}; start again with a lower train.lr"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            _share_gradients(job, module)
            if job.schedule.clip:
                nn.utils.clip_grad_norm_(module.parameters(), job.schedule.clip)
            optimizer.step()
            bar.show(step + 1, f"loss {float(loss.detach()):.3f}")


def _share_gradients(job: Job, module: nn.Module) -> None:
    """The mean over the processes, which all began with the same weights."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if job.fabric.world_size == 1 or not gradients:
        return
    mean: Any = job.fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="mean")
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def trained_before(job: Job, path: Path) -> bool:
    """Whether a helping network is there, as the first process sees it: one that looks late would find what the first has just written, and not wait for it."""
    return bool(job.fabric.broadcast(path.is_file(), src=0))


def keep(job: Job, path: Path, module: nn.Module, steps: int) -> None:
    if job.fabric.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, module, steps)
    job.fabric.barrier()
