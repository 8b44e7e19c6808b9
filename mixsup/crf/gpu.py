"""Mean field in torch, for a GPU: the same lattice as `mixsup.crf.lattice`, found by sorting instead of hashing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mixsup.crf.lattice import coordinate_scale, gaussian_taps, packing
from mixsup.crf.settings import Settings, negligible_gap

Filter = Callable[[Tensor], Tensor]  # L×H×W -> L×H×W


def mean_field(unary: Tensor, image: Tensor, settings: Settings) -> Tensor:
    """See `mixsup.crf.mean_field`; unary L×H×W float32, finite, and image H×W×3 uint8 on one device."""
    kernels: list[tuple[float, Filter]] = []
    if settings.w1 > 0:
        kernels.append((settings.w1, appearance(image, settings.theta_alpha, settings.theta_beta)))
    if settings.w2 > 0:
        kernels.append((settings.w2, smoothness(settings.theta_gamma, image)))
    ones = torch.ones((1, *image.shape[:2]), device=unary.device)
    # Symmetric normalisation: each kernel k(i, j) becomes k(i, j) / sqrt(sum_j k(i, j) sum_i k(i, j)).
    normed = [(weight, run, (run(ones) + 1e-20).rsqrt()) for weight, run in kernels]
    reach = sum((weight * norm * run(norm) for weight, run, norm in normed), torch.zeros_like(ones))

    gap = (unary - unary.amin(dim=0)).flatten(1).amin(dim=1)
    kept = gap < negligible_gap(float(reach.max()), settings.negligible)
    energies = unary[kept]
    current = torch.softmax(-energies, dim=0)
    for _ in range(settings.iterations):
        message = torch.zeros_like(current)
        for weight, run, norm in normed:
            message += weight * norm * run(norm * current)
        current = torch.softmax(message - energies, dim=0)
    out = torch.zeros_like(unary)
    out[kept] = current
    return out


def smoothness(deviation: float, image: Tensor) -> Filter:
    """The kernel exp(-|p_i - p_j|² / 2σ²) as two one-dimensional convolutions; outside the image is 0."""
    half = torch.from_numpy(gaussian_taps(deviation, max(image.shape[0], image.shape[1]))).to(image.device)
    taps, radius = torch.cat([half.flip(0), half[1:]]), len(half) - 1

    def run(values: Tensor) -> Tensor:
        down = functional.conv2d(values[:, None], taps[None, None, :, None], padding=(radius, 0))
        return functional.conv2d(down, taps[None, None, None, :], padding=(0, radius))[:, 0]

    return run


def appearance(image: Tensor, theta_alpha: float, theta_beta: float) -> Filter:
    """The kernel exp(-|p_i - p_j|² / 2θα² - |I_i - I_j|² / 2θβ²) on the permutohedral lattice."""
    height, width = image.shape[:2]
    rows, columns = torch.meshgrid(torch.arange(height, device=image.device), torch.arange(width, device=image.device), indexing="ij")
    places = torch.stack([columns, rows], dim=-1).float() / theta_alpha
    features = torch.cat([places, image.float() / theta_beta], dim=-1).flatten(0, 1)
    corners, weights, neighbours = lattice(features)
    total = neighbours.shape[1]

    def run(values: Tensor) -> Tensor:
        flat = values.flatten(1).T  # N×C
        cells = flat.new_zeros(total + 1, flat.shape[1])
        for r in range(corners.shape[1]):
            cells.index_add_(0, corners[:, r], weights[:, r, None] * flat)
        for axis in neighbours:
            cells[:total] += 0.5 * (cells[axis[:, 0]] + cells[axis[:, 1]])  # the right side is complete before the left is written
        out = torch.zeros_like(flat)
        for r in range(corners.shape[1]):
            out += weights[:, r, None] * cells[corners[:, r]]
        return out.T.reshape(-1, height, width)

    return run


def lattice(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lattice of N×d float32 features: corners N×(d+1) int64, weights N×(d+1), neighbours (d+1)×M×2, M where there is none."""
    device, d = features.device, features.shape[1]
    scale = coordinate_scale(d)
    ends = torch.stack([features.amin(dim=0), features.amax(dim=0)]).cpu().numpy().astype(np.float64) * scale
    low, stride = (torch.from_numpy(part).to(device) for part in packing(ends))
    scaled = features * torch.from_numpy(scale).to(device)

    # Into the hyperplane of d + 1 coordinates that sum to 0.
    after = scaled.flip(1).cumsum(dim=1).flip(1)  # sum over j >= i
    elevated = torch.cat([after, after.new_zeros(len(after), 1)], dim=1)
    elevated[:, 1:] -= scaled * torch.arange(1, d + 1, device=device)
    # The nearest point whose coordinates are multiples of d + 1, and the order of the differences to it.
    rounded = torch.floor(elevated / (d + 1) + 0.5)
    order = torch.argsort(rounded * (d + 1) - elevated, dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(d + 1, device=device).expand_as(order))
    rank += rounded.sum(dim=1, keepdim=True).long()
    wrap = (rank < 0).long() - (rank > d).long()
    rank += wrap * (d + 1)
    nearest = (rounded.long() + wrap) * (d + 1)
    share = (elevated - nearest) / (d + 1)
    bary = share.new_zeros(len(share), d + 2)
    bary.scatter_add_(1, d - rank, share)
    bary.scatter_add_(1, d + 1 - rank, -share)
    bary[:, 0] += 1 + bary[:, d + 1]
    # Corner r has r more in every coordinate, but d + 1 less in the r coordinates of the highest ranks.
    r = torch.arange(d + 1, device=device)
    key = ((nearest[:, :d] - low) * stride).sum(dim=1, keepdim=True) + r * stride.sum()
    key = key - (d + 1) * ((rank[:, None, :d] > d - r[:, None]).long() * stride).sum(dim=2)
    known, corners = torch.unique(key, return_inverse=True)

    steps = stride.sum() - (d + 1) * torch.cat([stride, stride.new_zeros(1)])
    neighbours = torch.full((d + 1, len(known), 2), len(known), device=device)
    for axis in range(d + 1):
        for side, sign in ((0, -1), (1, 1)):
            wanted = known + sign * steps[axis]
            place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
            neighbours[axis, :, side] = torch.where(known[place] == wanted, place, len(known))
    return corners, bary[:, : d + 1], neighbours
