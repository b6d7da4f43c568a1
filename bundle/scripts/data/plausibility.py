"""Whether the volumes of one case can belong together: is the mask in the head, do the heads agree.

Arrays on one grid in, `CaseError`s or numbers out: volumes (X, Y, Z) in any units, masks non-zero inside, spacing in
mm (X, Y, Z). `coverage` are the voxels that count, as a volume that was resampled is filled up outside them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from scripts.data.volume import CaseError

SKULL_STRIPPED_ZEROS = 0.1  # A volume with more than this fraction of exact zeros is taken as skull-stripped.
AIR_FRACTION = 0.1  # Otherwise air lies below this fraction of the 99th percentile.

# Voxel size, about, at which heads and looks are computed.
COARSE_MM = 2.0
BLOCK_SHARE = 0.25  # Of such a block's voxels that must not be air for it to be head.

MASK_MARGIN_MM = 3.0  # A mask may reach this far beyond the head: contours are drawn by hand.
MOST_MASK_OUTSIDE = 0.1  # Fraction of the mask.
MOST_MASK_UNCOVERED = 0.01  # Fraction of the mask that a resampled volume may leave without intensities.
# Aligned heads: 0.99 to 1 on 17 glioma patients, 0.90 to 1 on 50 phantoms, where dim scalp on T2 is lost as air.
LEAST_HEAD_DICE = 0.8
LEAST_COMMON_HEAD = 1000  # Voxels of head within the common coverage, below which there is nothing to compare.

_SAMPLED = 2_000_000  # Voxels at most for a percentile of a whole volume.


def is_skull_stripped(voxels: NDArray) -> bool:
    """Whether more than a tenth of the voxels are exactly 0."""
    return int(np.count_nonzero(voxels)) < (1 - SKULL_STRIPPED_ZEROS) * voxels.size


def foreground(
    voxels: NDArray, *, coverage: NDArray[np.bool_] | None = None, sampled: bool = False
) -> NDArray[np.bool_]:
    """What is not air: the rule of every crop, normalization and check.

    Non-zero voxels of a skull-stripped volume, otherwise those more than a tenth of the way from the minimum to the
    99th percentile.

    Args:
        voxels: of one volume.
        coverage: outside it everything is air; None for everywhere.
        sampled: take the percentile of about two million voxels, where there are more: faster, and nearly the same.
    """
    inside = voxels.ravel(order="K") if coverage is None else voxels[coverage]
    if inside.size == 0:
        return np.zeros(voxels.shape, dtype=bool)
    if is_skull_stripped(inside):
        bright = voxels != 0
    else:
        low = float(inside.min())
        high = float(np.percentile(inside[:: inside.size // _SAMPLED + 1] if sampled else inside, 99))
        bright = voxels > low + AIR_FRACTION * (high - low)
    return bright if coverage is None else bright & coverage


def head_mask(
    voxels: NDArray, *, spacing: Sequence[float], coverage: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """The head, or the brain of a skull-stripped volume: largest part of the foreground, holes filled.

    A hole is air that is closed in within its slice (X, Y), such as a sinus or bone; a slice that cuts the head at the
    border of the field of view may leave it open. On a finer grid, blocks of about 2 mm are taken as a whole: those
    with a quarter of their voxels in the foreground, as dim scalp on T2 is speckled.
    """
    factors = coarse_factors(spacing)
    head = largest_part(block_mean(foreground(voxels, coverage=coverage, sampled=True), factors) >= BLOCK_SHARE)
    for axis, factor in enumerate(factors):
        if factor > 1:
            block = np.minimum(np.arange(voxels.shape[axis]) // factor, head.shape[axis] - 1)
            head = head.take(block, axis=axis)
    return head


def coarse_factors(spacing: Sequence[float]) -> list[int]:
    """Voxels along each axis that make up about `COARSE_MM`."""
    return [max(1, round(COARSE_MM / step)) for step in spacing]


def largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part of a mask, its holes filled as in `head_mask`."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return fill_slices(parts == sizes.argmax())


def fill_slices(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with every hole closed that does not reach the border of its slice; one labeling for all slices."""
    in_plane = np.zeros((3, 3, 3), dtype=bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    gaps, count = ndimage.label(~mask, structure=in_plane)
    outside = np.zeros(count + 1, dtype=bool)
    for border in (gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]):
        outside[border] = True
    return mask | ~outside[gaps]


def mask_problems(mask: NDArray, *, head: NDArray[np.bool_], spacing: Sequence[float]) -> list[CaseError]:
    """Whether a mask that is not empty lies outside the head."""
    inside = mask != 0
    count = int(np.count_nonzero(inside))
    reach = [int(MASK_MARGIN_MM / step) for step in spacing]
    near = _around(inside, reach)
    wide = ndimage.maximum_filter(head[near], size=[2 * step + 1 for step in reach])
    outside = int(np.count_nonzero(inside[near] & ~wide))
    if outside <= MOST_MASK_OUTSIDE * count:
        return []
    found = f"{outside} of {count} mask voxels ({outside / count:.0%}) more than {MASK_MARGIN_MM:g} mm outside the head"
    return [CaseError("mask outside head", found, f"at most {MOST_MASK_OUTSIDE:.0%}")]


def _around(mask: NDArray[np.bool_], reach: Sequence[int]) -> tuple[slice, ...]:
    """The box around a mask that is not empty, so many voxels wider on each side, within the grid."""
    box = []
    for axis, step in enumerate(reach):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(max(0, int(there[0]) - step), int(there[-1]) + step + 1))
    return tuple(box)


def head_dice(first: NDArray[np.bool_], second: NDArray[np.bool_], *, coverage: NDArray[np.bool_]) -> float | None:
    """Dice of two heads within the part of the grid that both volumes cover; None where there is hardly any head."""
    first, second = first & coverage, second & coverage
    sizes = int(np.count_nonzero(first)), int(np.count_nonzero(second))
    if max(sizes) < LEAST_COMMON_HEAD:
        return None
    return 2 * int(np.count_nonzero(first & second)) / sum(sizes)


def overlap_problems(
    first: NDArray[np.bool_], second: NDArray[np.bool_], *, coverage: NDArray[np.bool_], mask: NDArray
) -> list[CaseError]:
    """Whether two volumes show the same head in the same place, and whether the second covers the mask.

    Heads are large: after 20 mm the Dice may still be 0.8, and those of two patients may agree as well as those of one.
    This finds gross displacement and little else.

    Args:
        first: head in the volume that gave the grid.
        second: head in the volume that was resampled onto it.
        coverage: what the resampled volume covers.
        mask: may be empty.
    """
    problems = []
    dice = head_dice(first, second, coverage=coverage)
    if dice is None:
        problems.append(CaseError("head overlap", "no head where both volumes have intensities", "the same head"))
    elif dice < LEAST_HEAD_DICE:
        found = f"Dice {dice:.2f} of the two heads after resampling"
        problems.append(CaseError("head overlap", found, f"at least {LEAST_HEAD_DICE}"))
    count = int(np.count_nonzero(mask))
    missed = int(np.count_nonzero((mask != 0) & ~coverage))
    if missed > MOST_MASK_UNCOVERED * count:
        found = f"{missed} of {count} mask voxels ({missed / count:.0%}) outside the resampled volume"
        problems.append(CaseError("head overlap", found, f"at most {MOST_MASK_UNCOVERED:.0%}"))
    return problems


def block_mean(voxels: NDArray, factors: Sequence[int]) -> NDArray[np.float32]:
    """Means of blocks of voxels; an incomplete block at the end of an axis is left out, an axis keeps at least one."""
    if voxels.flags.f_contiguous and not voxels.flags.c_contiguous:  # As nibabel reads; means along memory are fast.
        return block_mean(voxels.T, factors[::-1]).T
    factors = [min(factor, size) for factor, size in zip(factors, voxels.shape, strict=True)]
    sizes = [size // factor for size, factor in zip(voxels.shape, factors, strict=True)]
    cut = voxels[tuple(slice(size * factor) for size, factor in zip(sizes, factors, strict=True))]
    blocks = cut.reshape([number for pair in zip(sizes, factors, strict=True) for number in pair])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)
