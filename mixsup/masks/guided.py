"""Candidates that a box asks for: what of a hierarchy's cut lies mostly inside it.

A merge tree cut at some altitude parts the image into regions. Those that lie mostly inside the box are taken for the object, all together, and those
that reach out of it for ground: at low altitudes that is the whole box, higher up what is left once the ground has swallowed its like. Objects of many
parts, which no single region and no combination of four is, come out whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixsup.data.sample import Bool, Float32, Int64
from mixsup.masks.hierarchy import Tree

_QUANTILES = np.linspace(0.3, 0.95, 14)  # of a tree's altitudes: where it is cut
_SHARES = (0.5, 0.7, 0.9)  # of a region that must lie in the box


def guided(trees: Sequence[Tree], areas: Float32, inside: Float32) -> Bool:
    """The candidates of all boxes, without repetition, P×S bool.

    Args:
        trees: over S superpixels.
        areas: S, pixels of the superpixels.
        inside: N×S, pixels of them in each box.
    """
    rows = []
    for tree in trees:
        if len(tree.parents) < 2:
            continue
        node = cuts(tree, np.quantile(tree.altitudes[tree.leaves :], _QUANTILES).astype(np.float32))  # T×S
        sums = tree.sums(np.column_stack([areas, inside.T]))  # (2S-1)×(1+N)
        share = sums[:, 1:] / np.maximum(sums[:, :1], 1)
        for box, touched in enumerate(inside > 0):
            rows += [(share[node, box] >= least) & touched for least in _SHARES]  # T×S each
    if not rows:
        return np.zeros((0, len(areas)), bool)
    found = np.concatenate(rows)
    packed, first = np.unique(np.packbits(found, axis=1), axis=0, return_index=True)
    return found[np.sort(first[packed.any(axis=1)])]


def cuts(tree: Tree, thresholds: Float32) -> Int64:
    """T×S int64: `tree.cut` at T thresholds at once."""
    node = np.repeat(np.arange(len(tree.parents))[:, None], len(thresholds), axis=1)  # (2S-1)×T
    for child in range(len(tree.parents) - 2, -1, -1):
        parent = tree.parents[child]
        merged = tree.altitudes[parent] <= thresholds
        node[child, merged] = node[parent, merged]
    return np.asarray(node[: tree.leaves].T, np.int64)
