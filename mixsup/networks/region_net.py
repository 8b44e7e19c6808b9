"""RegionNet: a class for every superpixel of an image (MCOF paper, section 4.2).

A network that sees regions one by one, and not the image whole, learns what the seed regions of a class have in common, and finds it again in regions
that no seed covers. It is the mask-based Fast R-CNN: the external rectangle of a region is its RoI, and the RoI pooling takes features inside the region
as they are and features inside the rectangle but outside the region as zero.

    eq. 1   L_r = -Σ_i,j,c S_i,j(c) log f_c(R_i,j)      over images i, their regions j and classes c; S_i,j is one-hot

Superpixels do not overlap, so a position of the feature map lies in one cell of one region's rectangle as that region's feature, and one scattered
maximum pools all regions of a batch.

What the paper leaves open, and what is here:

- Which layers: all of the backbone's maps (`Network.pyramid`), each cut to `width` channels and enlarged to the finest one's size. A superpixel is a few
  cells of the finest map, and less than one of the deepest.
- The grid of the pooling: 3×3, where Fast R-CNN has 7×7 for objects.
- How cells are cut: row y of a rectangle of n rows is in cell ⌊y·grid/n⌋, so cells do not overlap (Fast R-CNN rounds their ends outwards, so that
  neighbours may share a row). A rectangle smaller than the grid leaves cells empty; they are zero.
- Regions too small for the feature map: see `RegionNet`.
- The sum of eq. 1 grows with the number of superpixels; here it is a mean over the charged ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixsup.data.sample import VOID
from mixsup.networks.base import Network, OnNetwork, resize_scores


class RegionNet(OnNetwork):
    """Scores each region of a picture by the backbone's features inside it.

    A cell of the finest feature map belongs to the superpixel under its centre. A superpixel under no centre is pooled from the cell that holds its
    pixel nearest to its centroid, which that cell's own superpixel keeps as well. So every superpixel has a feature, however small.

    Args:
        network: only its backbone is used; what stands behind it stays untouched.
        num_classes: C, background (class 0) included.
        grid: cells down and across a rectangle.
        width: channels that each map of the backbone is cut to.
        hidden: of both fully connected layers.
        dropout: after each of them; Fast R-CNN's is 0.5.
    """

    def __init__(self, network: Network, num_classes: int, grid: int = 3, width: int = 64, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__(network)
        self.num_classes, self.grid = num_classes, grid
        # Maps of several depths differ in scale. One group, as it also works on a map of a single cell.
        self.reduce = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(1, width), nn.ReLU()) for channels in network.pyramid_channels]
        )
        self.classifier = nn.Sequential(
            nn.Linear(len(self.reduce) * width * grid**2, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip

    def forward(self, images: Tensor, regions: Tensor) -> Tensor:
        """
        Args:
            images: B×3×H×W, RGB, uint8 0..255 or float 0..1; any H and W.
            regions: B×H×W int64, the number of each pixel's superpixel, from 0 in every image; -1 outside the picture. An image has as many
                regions as its highest number tells. A number that no pixel has is a region of zeros, so that rows stay where numbers say.

        Returns:
            ΣR×C float32 scores before the softmax, in order of image, then of region number.

        Raises:
            ValueError: the region map's size is not the images'.
        """
        if regions.shape != (len(images), *images.shape[-2:]):
            raise ValueError(f"regions of shape {tuple(regions.shape)} for images of shape {tuple(images.shape)}; give one number a pixel")
        padded = self.prepare(images)
        maps = [reduce(features) for reduce, features in zip(self.reduce, self.network.pyramid(padded), strict=True)]
        size = (maps[0].shape[-2], maps[0].shape[-1])
        features = torch.cat([resize_scores(features, size) for features in maps], dim=1)  # B×F×h×w, none negative
        owner, total = _numbered(regions, (regions.flatten(1).amax(dim=1) + 1).tolist())
        cells = _cells_of_regions(owner, total, size, (padded.shape[-2], padded.shape[-1]))
        pooled = _pool(features, cells, total, self.grid)  # ΣR×F×grid×grid
        scores: Tensor = self.classifier(pooled.flatten(1))
        return scores.float()


def region_loss(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 1, as a mean over the charged regions.

    Args:
        scores: ΣR×C before the softmax.
        labels: ΣR, uint8 or int64 class ids; 255 for regions that are not charged.
        weights: ΣR, not negative: what each region counts in the mean, 1 where not given.

    Returns:
        Scalar; 0, with a gradient of zeros, where no region is charged.
    """
    labels = labels.long()
    weights = (labels != VOID).to(scores.dtype) * (1 if weights is None else weights)
    costs = functional.cross_entropy(scores, labels, ignore_index=VOID, reduction="none")
    total = weights.sum()
    return (weights * costs).sum() / torch.where(total > 0, total, 1)


def masked_roi_pool(features: Tensor, regions: Tensor, counts: Sequence[int], grid: int) -> Tensor:
    """The RoI pooling of section 4.2: the maximum of each cell of each region's external rectangle, other regions' features taken as zero.

    Args:
        features: B×F×h×w, of either sign.
        regions: B×h×w int64, the region of each position: 0 up to its image's count, or -1 for none.
        counts: B, the regions of each image.
        grid: cells down and across a rectangle; the module says how they are cut.

    Returns:
        ΣR×F×grid×grid, in order of image, then of region number. A cell all of the region's own has its maximum, whatever the sign; one that is
        shared has at least 0; one with no position is 0, and so is a region without positions. Where a maximum is reached more than once, its
        gradient is shared evenly.
    """
    owner, total = _numbered(regions, counts)
    image, y, x = (owner >= 0).nonzero(as_tuple=True)
    return _pool(features, torch.stack([owner[image, y, x], image, y, x]), total, grid)


def _numbered(regions: Tensor, counts: Sequence[int]) -> tuple[Tensor, int]:
    """Numbers that run through the batch in place of the images' own, -1 kept; and how many there are."""
    first = torch.tensor([0, *counts[:-1]], device=regions.device).cumsum(dim=0)
    return torch.where(regions >= 0, regions + first[:, None, None], -1), sum(counts)


def _cells_of_regions(owner: Tensor, total: int, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """Which cells of a feature map are pooled for which region.

    Args:
        owner: B×H×W int64, see `_numbered`.
        total: regions in the batch.
        size: h, w of the feature map.
        padded: sides that it covers, from the upper left; at least H and W.

    Returns:
        4×N int64: the regions, and the images, rows and columns of their cells.
    """
    device, sides = owner.device, owner.shape[1:]
    # The pixel under the centre of each cell; cells with their centre in the padding are nobody's.
    centres = [((torch.arange(n, device=device) + 0.5) * full / n).long() for n, full in zip(size, padded, strict=True)]
    rows, columns = (centre[centre < side] for centre, side in zip(centres, sides, strict=True))
    coarse = owner[:, rows][:, :, columns]
    image, y, x = (coarse >= 0).nonzero(as_tuple=True)
    cells = torch.stack([coarse[image, y, x], image, y, x])

    missed = torch.ones(total, dtype=torch.bool, device=device)
    missed[cells[0]] = False
    missed = torch.cat([missed, missed.new_zeros(1)])  # the last is for -1
    image, y, x = missed[owner].nonzero(as_tuple=True)
    region = owner[image, y, x]
    place = torch.stack([y, x], dim=1).double()
    pixels = torch.bincount(region, minlength=total).clamp(min=1)[:, None]
    centroids = place.new_zeros(total, 2).index_add_(0, region, place) / pixels
    # By region and then by distance, so that the first pixel of each run is the nearest; the first in reading order of several.
    order = (place - centroids[region]).square().sum(dim=1).argsort(stable=True)
    order = order[region[order].argsort(stable=True)]
    runs = region[order]
    nearest = order[torch.cat([runs.new_ones(min(1, len(runs)), dtype=torch.bool), runs[1:] != runs[:-1]])]
    extra = torch.stack([region[nearest], image[nearest], y[nearest] * size[0] // padded[0], x[nearest] * size[1] // padded[1]])
    return torch.cat([cells, extra], dim=1)


def _pool(features: Tensor, cells: Tensor, total: int, grid: int) -> Tensor:
    """See `masked_roi_pool`; 4×N, the region of each position (0 up to `total`), its image, row and column; it may be of several regions."""
    region, image, y, x = cells
    ends = torch.stack([y, x, -y, -x], dim=1)  # one minimum for both ends of both axes
    extent = ends.new_zeros(total, 4).scatter_reduce(0, region[:, None].expand(-1, 4), ends, "amin", include_self=False)
    start, length = extent[:, :2], 1 - extent[:, 2:] - extent[:, :2]  # ΣR×2 each
    down, across = ((torch.stack([y, x], dim=1) - start[region]) * grid // length[region]).unbind(dim=1)
    cell = (region * grid + down) * grid + across

    rows, columns = features.shape[2:]
    # As one index and not three: the gradient of the latter is added up by several threads in any order.
    values = features.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, (image * rows + y) * columns + x)  # N×F
    bins = total * grid**2
    # -inf and not 0 to start with: a 0 would tie with features that are 0, and take half of their gradient.
    pooled = values.new_full((bins, values.shape[1]), -torch.inf)
    pooled = pooled.scatter_reduce(0, cell[:, None].expand_as(values), values, "amax")

    # What of a cell is the region's own, and what there is of it: ⌈(k+1)n/grid⌉ - ⌈kn/grid⌉ of n rows are in cell k.
    own = torch.bincount(cell, minlength=bins)[:, None]
    cuts = -(-torch.arange(grid + 1, device=cell.device) * length[:, :, None] // grid)  # ΣR×2×(grid+1)
    spans = cuts.diff(dim=2)
    area = (spans[:, 0, :, None] * spans[:, 1, None, :]).reshape(bins, 1)
    pooled = torch.where(own == 0, 0, torch.where(own < area, pooled.clamp(min=0), pooled))
    return pooled.view(total, grid, grid, features.shape[1]).permute(0, 3, 1, 2)
