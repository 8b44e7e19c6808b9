"""The CRF's parameters, checked once for all backends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixsup.errors import MixsupError

FORBIDDEN = 1e5  # the energy that stands for infinity in sums; exp(-1e5) is 0


@dataclass(frozen=True)
class Settings:
    """Parameters of the fully connected CRF, see `mixsup.crf.mean_field`."""

    iterations: int
    w1: float
    theta_alpha: float
    theta_beta: float
    w2: float
    theta_gamma: float
    negligible: float

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, (int, np.integer)) or self.iterations < 0:
            raise MixsupError(f"CRF: iterations {self.iterations}; give a whole number, 0 or more")
        for name in ("theta_alpha", "theta_beta", "theta_gamma", "w1", "w2", "negligible"):
            if not isinstance(getattr(self, name), (int, float, np.integer, np.floating)):
                raise MixsupError(f"CRF: {name} {getattr(self, name)!r}; give a number")
        for name in ("theta_alpha", "theta_beta", "theta_gamma"):
            if not 0 < getattr(self, name) < np.inf:
                raise MixsupError(f"CRF: {name} {getattr(self, name)}; a standard deviation is above 0")
        for name in ("w1", "w2", "negligible"):
            if not 0 <= getattr(self, name) < np.inf:
                raise MixsupError(f"CRF: {name} {getattr(self, name)}; give 0 or more")


def negligible_gap(reach: float, limit: float) -> float:
    """How far a label's energy must lie above the lowest one, at every pixel, to keep it below the probability `limit` for ever.

    A label's message is at most reach · (its highest probability), and the other labels' messages are not negative. So if its energy lies g above
    the lowest one everywhere and reach · exp(1 - g) <= 1, its probability stays below exp(1 - g), by induction over the iterations.

    Args:
        reach: the largest sum of a pixel's normalised kernel weights.
        limit: a probability; 0 keeps every label that is not forbidden.
    """
    return max(1 - float(np.log(max(limit, np.finfo(np.float32).tiny))), 1 + float(np.log(max(reach, 1.0))))
