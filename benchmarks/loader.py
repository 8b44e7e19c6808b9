"""Images per second of loading + targets + augmentation against decoding alone, in one process.

    python benchmarks/loader.py DATA [--labels boxes] [--source rectangle] [--size 256] [--images 300] [--rounds 5]

The two take turns over the same images; printed are the medians and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from mixsup.data import load_dataset
from mixsup.data.budget import draw, restrict
from mixsup.data.image import read_image
from mixsup.engine.batches import Targets, TrainingViews
from mixsup.masks import build_source
from mixsup.masks.store import MaskStore
from mixsup.recipe import Schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--labels", default="boxes")
    parser.add_argument("--source", default="rectangle")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.data, "train")
    dataset = restrict(dataset, draw(dataset.samples, arguments.labels, 0))
    samples = dataset.samples[: arguments.images]
    with tempfile.TemporaryDirectory() as folder:
        store, source = MaskStore(Path(folder)), build_source(arguments.source)
        targets = Targets(len(dataset.classes), source, store)
        if arguments.labels == "boxes":
            targets.paths = {
                made.sample: made.path for made in store.make_all(dataset.with_samples(samples), source) if made.path is not None
            }
        views = TrainingViews(samples, targets, Schedule(size=arguments.size), seed=0)
        decode, whole = [], []
        for number in range(arguments.rounds + 1):
            start = time.perf_counter()
            for sample in samples:
                read_image(sample.image)
            middle = time.perf_counter()
            for index in range(len(samples)):
                views[index, number * len(samples) + index]
            if number:  # the first round warms up
                decode.append(middle - start)
                whole.append(time.perf_counter() - middle)
    decoding, loading = (len(samples) / statistics.median(times) for times in (decode, whole))
    print(f"decoding alone: {decoding:.0f} images/s; loading + target + augmentation to {arguments.size} px: {loading:.0f} images/s")
    print(f"ratio of time: {decoding / loading:.2f} (median of {arguments.rounds} rounds of {len(samples)} images, one process)")


if __name__ == "__main__":
    main()
