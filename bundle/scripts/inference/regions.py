"""Where in a whole scan the cascade looks: boxes of voxels around candidates, and how they grow.

Boxes are in voxels x, y, z of the scan; masks and maps are arrays (X, Y, Z).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from scripts.networks.unet2d5 import BACKGROUND

FOREGROUND_SHARE = 0.001  # a plane with less of it is air with noise

Box = tuple[slice, slice, slice]


def foreground_box(x_s: Tensor) -> Box:
    """Computes the box of a scan (1, C, X, Y, Z) that holds its foreground; all of it where there is none."""
    inside = (x_s[0] > BACKGROUND).any(0)
    sides = []
    for axis in range(3):
        planes = inside.float().mean([i for i in range(3) if i != axis]) > FOREGROUND_SHARE
        where = torch.nonzero(planes)
        sides.append(slice(int(where.min()), int(where.max()) + 1) if len(where) else slice(0, len(planes)))
    return sides[0], sides[1], sides[2]


def count_windows(region: Box, *, window: Sequence[int], overlap: float) -> int:
    """Computes how many windows cover a region, each sharing the fraction `overlap` with the next."""
    counts = []
    for side, size in zip(region, window, strict=True):
        step = max(int(size * (1 - overlap)), 1)
        counts.append(1 + max(math.ceil((side.stop - side.start - size) / step), 0))
    return math.prod(counts)


def find_regions(
    found: np.ndarray,
    *,
    box: Box,
    shape: Sequence[int],
    threshold: float,
    most: int,
    margin: Sequence[int],
    window: Sequence[int],
) -> tuple[list[Box], np.ndarray, int]:
    """Finds the regions to look at in a map of probabilities.

    A region for every candidate above the threshold, the most suspicious first, with a margin and at least a window
    large. A candidate that lies, margin included, in another's region needs none. Without candidates, one for the peak.

    Args:
        found: the localizer's map of the box.
        box: where in the scan the map lies.
        shape: of the scan.
        threshold: the probability from which a voxel is a candidate.
        most: how many candidates are looked at.
        margin: voxels around a candidate.
        window: size of a region, at least.

    Returns:
        the regions; the voxels that are suspected, of the scan's shape; how many candidates are above the threshold.
    """
    suspected = np.zeros(tuple(shape), bool)
    suspected[box] = found > threshold
    candidates = ndimage.find_objects(ndimage.label(found > threshold)[0])
    count = len(candidates)
    if not candidates:
        peak = np.unravel_index(int(found.argmax()), found.shape)
        candidates = [tuple(slice(int(i), int(i) + 1) for i in peak)]
        suspected[_around(_moved(candidates[0], box), shape, margin=margin)] = True
    regions: list[Box] = []
    for candidate in sorted(candidates, key=lambda candidate: -found[candidate].max())[:most]:
        wanted = _around(_moved(candidate, box), shape, margin=margin)
        if not any(_holds(region, wanted) for region in regions):
            regions.append(_around(_moved(candidate, box), shape, margin=margin, least=window))
    return regions, suspected, count


def grown(region: Box, mask: np.ndarray, suspected: np.ndarray, *, window: Sequence[int]) -> Box | None:
    """Grows a region by half a window on the sides where a suspected part of its mask leaves it inside the scan.

    Args:
        region: where the mask lies.
        mask: of the region, booleans.
        suspected: of the whole scan, booleans; a part of the mask without such a voxel is not followed.
        window: voxels x, y, z.

    Returns:
        the larger region; None if it need not grow, or cannot.
    """
    parts = ndimage.label(mask)[0]
    followed = np.isin(parts, np.setdiff1d(parts[suspected[region]], 0))
    sides = []
    for axis, (side, size, n) in enumerate(zip(region, window, suspected.shape, strict=True)):
        first = bool(followed.take(0, axis).any()) * (size // 2)
        last = bool(followed.take(-1, axis).any()) * (size // 2)
        sides.append(slice(max(side.start - first, 0), min(side.stop + last, n)))
    return None if tuple(sides) == region else (sides[0], sides[1], sides[2])


def count_cut(mask: np.ndarray, *, box: Box, regions: Sequence[Box]) -> int:
    """Counts the parts of the mask that have a voxel beside one of the box that lies in no region."""
    unseen = np.zeros(mask.shape, bool)
    unseen[box] = True
    for region in regions:
        unseen[region] = False
    parts, count = ndimage.label(mask)
    return len(np.setdiff1d(parts[ndimage.binary_dilation(unseen) & mask], 0)) if count else 0


def _around(candidate: Box, shape: Sequence[int], *, margin: Sequence[int], least: Sequence[int] = (1, 1, 1)) -> Box:
    """A place with its margin, at least so large, inside the scan."""
    sides = []
    for side, border, size, n in zip(candidate, margin, least, shape, strict=True):
        length = max(side.stop - side.start + 2 * border, size)
        start = min(max((side.start + side.stop - length) // 2, 0), max(n - length, 0))
        sides.append(slice(start, min(start + length, n)))
    return sides[0], sides[1], sides[2]


def _holds(region: Box, candidate: Box) -> bool:
    return all(r.start <= p.start and p.stop <= r.stop for r, p in zip(region, candidate, strict=True))


def _moved(candidate: Sequence[slice], box: Box) -> Box:
    """A candidate inside a box, in the coordinates of the box's own volume."""
    sides = [slice(p.start + b.start, p.stop + b.start) for p, b in zip(candidate, box, strict=True)]
    return sides[0], sides[1], sides[2]
