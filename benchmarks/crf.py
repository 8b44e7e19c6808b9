"""The fully connected CRF of mixsup against pydensecrf2: same photographs, energies, parameters and cores, taking turns.

    pip install pydensecrf2      # needs a C++ compiler; mixsup does not
    python benchmarks/crf.py [--photos FOLDER] [--rounds 5] [--iterations 10]

Prints, for 2, 5 and 21 labels at 500×375 and 1500×1125: share of equal labels, mean absolute difference of probabilities, the time of each and their
ratio (medians over rounds), and the peak memory that each adds to a warm process (Linux). Then the error of the lattice and of the whole inference against the
exact sums over all pairs of pixels, on crops of 40×40. Energies: `smooth` are smooth random fields in which every label matters somewhere; `sure` are
those of a network that gives the winner of the same fields 95 % and shares the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZES = ((375, 500), (1125, 1500))
LABELS = (2, 5, 21)
PARAMETERS = {"w1": 10.0, "theta_alpha": 80.0, "theta_beta": 13.0, "w2": 3.0, "theta_gamma": 3.0}


def photographs(folder: Path | None) -> list[Any]:
    """Three photographs as H×W×3 uint8: the first of a folder, or those that scikit-image brings along."""
    if folder is not None:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:3]
        return [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in files]
    from skimage import data

    return [data.astronaut(), data.chelsea(), data.coffee()]


def energies(labels: int, height: int, width: int, seed: int, kind: str) -> Any:
    """labels × height × width float32, -log of probabilities."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(labels, height // 20 + 1, width // 20 + 1)).astype(np.float32)
    scores = 2 * np.stack([cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in coarse])
    if kind == "sure":
        unary = np.full((labels, height, width), -np.log(0.05 / (labels - 1)), np.float32)
        np.put_along_axis(unary, scores.argmax(axis=0)[None], np.float32(-np.log(0.95)), axis=0)
        return unary
    return np.ascontiguousarray(np.log(np.exp(scores).sum(axis=0)) - scores, np.float32)


def mixsup_crf(unary: Any, image: Any, iterations: int) -> Any:
    from mixsup.crf import mean_field

    return mean_field(unary, image, iterations=iterations, **PARAMETERS)


def pydensecrf(unary: Any, image: Any, iterations: int) -> Any:
    from pydensecrf import densecrf

    labels, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1)))
    crf.addPairwiseGaussian(sxy=PARAMETERS["theta_gamma"], compat=PARAMETERS["w2"])
    crf.addPairwiseBilateral(sxy=PARAMETERS["theta_alpha"], srgb=PARAMETERS["theta_beta"], rgbim=image, compat=PARAMETERS["w1"])
    return np.array(crf.inference(iterations)).reshape(unary.shape)


ENGINES = {"mixsup": mixsup_crf, "pydensecrf2": pydensecrf}


def peak(engine: str, labels: int, size: tuple[int, int], iterations: int) -> float:
    """MB that one inference adds to a process that has done a small one (libraries loaded, code compiled)."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from crf import ENGINES, energies, photographs
import cv2, numpy as np
run = ENGINES[{engine!r}]
photo = photographs(None)[0]
run(energies({labels}, 40, 60, 0, "smooth"), np.ascontiguousarray(cv2.resize(photo, (60, 40))), 2)
unary = energies({labels}, {size[0]}, {size[1]}, 0, "smooth")
image = np.ascontiguousarray(cv2.resize(photo, ({size[1]}, {size[0]})))
def highest():  # of this process; getrusage would go on from its parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = highest()
run(unary, image, {iterations})
print(highest() - before)
"""
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout) / 1024


def compare(photos: list[Any], rounds: int, iterations: int, kind: str) -> list[dict[str, Any]]:
    """One row per size and number of labels."""
    rows = []
    for height, width in SIZES:
        for labels in LABELS:
            images = [np.ascontiguousarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)) for photo in photos]
            unaries = [energies(labels, height, width, seed, kind) for seed in range(len(images))]
            equal, difference = [], []
            times: dict[str, list[float]] = {name: [] for name in ENGINES}
            for turn in range(rounds + 1):  # the first compiles and warms up
                for unary, image in zip(unaries, images, strict=True):
                    found = {}
                    for name, run in ENGINES.items():
                        start = time.perf_counter()
                        found[name] = run(unary, image, iterations)
                        if turn:
                            times[name].append(time.perf_counter() - start)
                    if turn == 0:
                        one, two = found.values()
                        equal.append(float((one.argmax(axis=0) == two.argmax(axis=0)).mean()))
                        difference.append(float(np.abs(one - two).mean()))
            ratios = np.array(times["pydensecrf2"]) / np.array(times["mixsup"])
            rows.append(
                {
                    "energies": kind, "size": f"{width}x{height}", "labels": labels, "equal_labels": min(equal), "mean_difference": max(difference),
                    "mixsup_s": float(np.median(times["mixsup"])), "pydensecrf2_s": float(np.median(times["pydensecrf2"])),
                    "ratio": float(np.median(ratios)), "ratio_lowest": float(ratios.min()), "ratio_highest": float(ratios.max()),
                    "mixsup_mb": peak("mixsup", labels, (height, width), iterations),
                    "pydensecrf2_mb": peak("pydensecrf2", labels, (height, width), iterations),
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def against_exact(photos: list[Any], iterations: int) -> dict[str, float]:
    """Mean errors on 40×40 crops against sums over all pairs: of filtered values (0 to 1), and of probabilities, for both lattices."""
    from mixsup.crf.cpu import features
    from mixsup.crf.lattice import Lattice

    errors: dict[str, list[float]] = {"filter": [], "mixsup": [], "pydensecrf2": [], "pydensecrf2_against_mixsup": []}
    for seed, photo in enumerate(photos):
        for corner in (0, 100, 200):
            image = np.ascontiguousarray(photo[corner : corner + 40, corner : corner + 40])
            space = features(image, PARAMETERS["theta_alpha"], PARAMETERS["theta_beta"])
            kernel = np.exp(-0.5 * ((space[:, None] - space[None]) ** 2).sum(-1))
            values = np.random.default_rng(seed).random((1600, 1), np.float32)
            ones = np.ones_like(values)
            lattice = Lattice.of(space)
            errors["filter"].append(float(np.abs(lattice.filter(values) / lattice.filter(ones) - kernel @ values / (kernel @ ones)).mean()))
            place = features(image, PARAMETERS["theta_gamma"], 1e9)
            near = np.exp(-0.5 * ((place[:, None] - place[None]) ** 2).sum(-1))
            both = [k / np.sqrt(np.outer(k.sum(0), k.sum(1))) for k in (kernel, near)]
            unary = energies(5, 40, 40, seed, "smooth")
            flat = unary.reshape(5, -1)
            exact = np.exp(-flat) / np.exp(-flat).sum(axis=0)
            for _ in range(iterations):
                exact = exact @ (PARAMETERS["w1"] * both[0] + PARAMETERS["w2"] * both[1]) - flat
                exact = np.exp(exact - exact.max(axis=0))
                exact /= exact.sum(axis=0)
            found = {name: run(unary, image, iterations) for name, run in ENGINES.items()}
            for name, probabilities in found.items():
                errors[name].append(float(np.abs(probabilities - exact.reshape(unary.shape)).mean()))
            errors["pydensecrf2_against_mixsup"].append(float(np.abs(found["mixsup"] - found["pydensecrf2"]).mean()))
    return {
        f"{name}_{what}": float(value) for name, all_ in errors.items() for what, value in (("mean", np.mean(all_)), ("max", np.max(all_)))
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=10)
    arguments = parser.parse_args()
    pictures = photographs(arguments.photos)
    print(json.dumps(against_exact(pictures, arguments.iterations)))
    for unary_kind in ("smooth", "sure"):
        compare(pictures, arguments.rounds, arguments.iterations, unary_kind)
