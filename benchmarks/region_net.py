"""Time of RegionNet over all superpixels of an image against one forward pass of the same network as PixelNet.

    python benchmarks/region_net.py DATA --network NAME_OR_YAML [--size 321] [--images 10] [--rounds 5] [--device auto]

Images of the validation split, their long side brought to `size`; the superpixels (felzenszwalb's, made before anything is timed) are the paper's.
PixelNet is the network with its `plain` head, scores at the image's size. Weights are not loaded, as time does not depend on them. Both take turns on
every image, and who is first turns with the images and rounds, so that a machine whose speed drifts favours neither. Printed: the median time of both
and the median over all pairs of RegionNet's time over PixelNet's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from skimage.segmentation import felzenszwalb

from mixsup.data import load_dataset
from mixsup.data.image import read_image
from mixsup.engine.api import choose_device
from mixsup.engine.model import build_model
from mixsup.networks import build_network
from mixsup.networks.region_net import RegionNet
from mixsup.recipe import NetworkChoice
from mixsup.recipes import network_choice


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--network", required=True)
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    dataset = load_dataset(arguments.data, "val")
    choice, classes = NetworkChoice.model_validate(network_choice(arguments.network)), len(dataset.classes)
    pixel_net = build_model(choice, "plain", classes, pretrained=False).eval().to(device)
    region_net = RegionNet(build_network(choice, pretrained=False), classes).eval().to(device)
    views = []
    for sample in dataset.samples[: arguments.images]:
        picture = read_image(sample.image)
        scale = arguments.size / max(picture.shape[:2])
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        regions = felzenszwalb(picture, scale=100, sigma=0.5, min_size=20).astype(np.int64)
        views.append((torch.tensor(picture).permute(2, 0, 1)[None].to(device), torch.tensor(regions)[None].to(device)))
    pairs = []
    with torch.inference_mode():
        for number in range(arguments.rounds + 1):
            for index, (image, regions) in enumerate(views):
                calls = [lambda image=image, regions=regions: region_net(image, regions), lambda image=image: pixel_net(image)]
                first = (number + index) % 2
                times = {which: seconds(calls[which], device) for which in (first, 1 - first)}
                if number:  # the first round warms up
                    pairs.append((times[0], times[1]))
    found = [int(regions.max()) + 1 for _, regions in views]
    region, pixel = (1000 * statistics.median(pair[which] for pair in pairs) for which in (0, 1))
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    print(f"{len(views)} images of {statistics.median(found):.0f} superpixels (median; {min(found)} to {max(found)}), {arguments.rounds} rounds: "
          f"RegionNet {region:.1f} ms, PixelNet {pixel:.1f} ms, ratio {ratio:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
