"""Rigid registration of two volumes by mutual information, and how much information two volumes share.

Arrays are (X, Y, Z) with a 4x4 affine (voxel index to mm, RAS+); points and transforms are in LPS mm, as in DICOM and
ITK. A transform takes a point of the fixed volume to the same tissue in the moving one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from scripts.data.plausibility import foreground
from scripts.data.volume import LPS_TO_RAS, CaseError

MOST_RESIDUAL_MM = 2.0

HISTOGRAM_BINS = 64
# Voxels drawn from a volume, of which those of the foreground count, up to so many.
DRAWN = 400_000
SAMPLES = 100_000
SEED = 20240401

LEAST_VOXELS = 4  # Along each axis, which smoothing needs.
# Coarse to fine: voxel size in mm, at most so many voxels of which are drawn and steps taken.
LEVELS_MM = (4.0, 2.0, 1.0)
REGISTRATION_SAMPLES = 15_000
REGISTRATION_BINS = 32
ITERATIONS = 20
# Starts nearer to each other than this lead to the same place.
SAME_START_MM = 10.0

_EXACT_TYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64)


@dataclass(frozen=True)
class Scan:
    """A volume, its grid, and points of its foreground.

    Args:
        voxels: (X, Y, Z).
        lps: 4x4, voxel index to LPS mm.
        points: (n, 3), LPS mm, drawn from the foreground.
        values: (n,), intensities at the points.
    """

    voxels: NDArray
    lps: NDArray[np.float64]
    points: NDArray[np.float64]
    values: NDArray[np.float32]

    @property
    def center(self) -> NDArray[np.float64]:
        """Of the grid, LPS mm."""
        return moved((np.array([self.voxels.shape]) - 1) / 2, self.lps)[0]


def sample_foreground(voxels: NDArray, affine: NDArray) -> Scan:
    """A volume with points drawn anywhere within voxels of its foreground.

    Points between the voxel centers make every candidate interpolate: on the centers, "as stored" on two equal grids
    would be the only one to see the full noise. Of a small volume, one voxel gives many points.
    """
    lps = LPS_TO_RAS @ np.asarray(affine, dtype=np.float64)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(voxels.shape, size=(DRAWN, 3))
    inside = drawn[foreground(voxels[tuple(drawn.T)])][:SAMPLES]
    indices = inside + rng.uniform(-0.5, 0.5, inside.shape)
    return Scan(voxels, lps, moved(indices, lps), _interpolated(voxels, indices))


def register(fixed: Scan, moving: Scan) -> tuple[sitk.Transform, float]:
    """Rigid registration by Mattes mutual information, and how well it agrees with its reverse.

    Both directions are registered on their own. The residual is the mean distance in mm, over points of the fixed
    head, between a point and itself after going there by one and back by the other. It says whether the registration
    is stable, not that it is right: where neither direction finds anything, both stay at one start and it is 0.
    Reproducible: one thread, seeded samples.

    Raises:
        CaseError: "registration" for a residual above `MOST_RESIDUAL_MM`, volumes that share no information, or one
            with too few slices to be smoothed.
    """
    for scan in (fixed, moving):
        if min(scan.voxels.shape) < LEAST_VOXELS:
            found = f"a volume of shape {scan.voxels.shape}"
            raise CaseError("registration", found, f"at least {LEAST_VOXELS} voxels along each axis")
    levels = [[_reduced(scan, voxel_mm) for voxel_mm in LEVELS_MM] for scan in (fixed, moving)]
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # That of a registration alone leaves sums in random order.
    try:
        there, back = _one_way(fixed, moving, *levels), _one_way(moving, fixed, *levels[::-1])
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    returned = moved(fixed.points, matrix_of(back) @ matrix_of(there))
    residual = float(np.linalg.norm(returned - fixed.points, axis=1).mean())
    if not residual <= MOST_RESIDUAL_MM:
        found = f"{residual:.1f} mm between the two directions"
        raise CaseError("registration", found, f"at most {MOST_RESIDUAL_MM:g} mm")
    return there, residual


def shared_information(fixed: Scan, moving: Scan, transform: sitk.Transform) -> float:
    """Mutual information of the two at the points of the fixed one, times the share of them that the moving covers."""
    indices = moved(fixed.points, np.linalg.inv(moving.lps) @ matrix_of(transform))
    covered = ((indices >= -0.5) & (indices <= np.array(moving.voxels.shape) - 0.5)).all(axis=1)
    if not covered.any():
        return 0.0
    information = mutual_information(fixed.values[covered], _interpolated(moving.voxels, indices[covered]))
    return information * float(covered.mean())


def mutual_information(first: NDArray, second: NDArray, *, bins: int = HISTOGRAM_BINS) -> float:
    """Mutual information of paired intensities, in nats, from their joint histogram.

    The range of each is cut at its 0.5 and 99.5 percentiles. Independent values give about bins^2 / 2n, not 0. Where
    one decides the other, it is the logarithm of `bins`. No values give 0.
    """
    if len(first) == 0:
        return 0.0
    joint = np.bincount(_binned(first, bins) * bins + _binned(second, bins), minlength=bins * bins)
    p = joint.reshape(bins, bins) / len(first)
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    there = p > 0
    return float((p[there] * np.log(p[there] / independent[there])).sum())


def to_sitk(voxels: NDArray, affine: NDArray) -> sitk.Image:
    """The same volume as a SimpleITK image, in its LPS coordinates; types that ITK lacks become uint8 or float32.

    Raises:
        CaseError: an affine that is not finite or has no volume.
    """
    affine = np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise CaseError("affine", f"voxel axes {affine[:3, :3].tolist()}", "three independent axes in mm")
    if voxels.dtype not in _EXACT_TYPES:
        voxels = voxels.astype(np.uint8 if voxels.dtype == bool else np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = LPS_TO_RAS @ affine
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def matrix_of(transform: sitk.Transform) -> NDArray[np.float64]:
    """4x4 matrix of a linear transform, whatever its class."""
    origin, *ends = (
        np.array(transform.TransformPoint(point)) for point in np.vstack((np.zeros(3), np.eye(3))).tolist()
    )
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([end - origin for end in ends])
    matrix[:3, 3] = origin
    return matrix


def moved(points: NDArray, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 3) under a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _one_way(
    fixed: Scan, moving: Scan, fixed_levels: Sequence[sitk.Image], moving_levels: Sequence[sitk.Image]
) -> sitk.Euler3DTransform:
    """One direction: every start through the coarsest level, the best of them through the finer ones.

    A finer level is kept only where the volumes then share more: with little overlap the optimizer can run away.
    """

    def shared(transform: sitk.Euler3DTransform) -> float:
        return shared_information(fixed, moving, transform)

    levels = list(zip(fixed_levels, moving_levels, LEVELS_MM, strict=True))
    transform = max((_refine(start, *levels[0]) for start in _starts(fixed, moving)), key=shared)
    for level in levels[1:]:
        transform = max(transform, _refine(transform, *level), key=shared)
    if shared(transform) == 0:
        raise CaseError("registration", "no mutual information between the two volumes", "two volumes of one head")
    return transform


def _starts(fixed: Scan, moving: Scan) -> Iterator[sitk.Euler3DTransform]:
    """As stored; centers of the grids on each other; centers of the foregrounds on each other; near ones once."""
    heads = [scan.points.mean(axis=0) if len(scan.points) else scan.center for scan in (fixed, moving)]
    shifts = (np.zeros(3), moving.center - fixed.center, heads[1] - heads[0])
    for index, shift in enumerate(shifts):
        if all(np.linalg.norm(shift - other) > SAME_START_MM for other in shifts[:index]):
            start = sitk.Euler3DTransform()
            start.SetCenter(fixed.center.tolist())
            start.SetTranslation(shift.tolist())
            yield start


def _refine(
    start: sitk.Euler3DTransform, fixed: sitk.Image, moving: sitk.Image, voxel_mm: float
) -> sitk.Euler3DTransform:
    """The start, improved on volumes of one level of `LEVELS_MM`; itself where they hardly overlap."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(REGISTRATION_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, REGISTRATION_SAMPLES / fixed.GetNumberOfPixels()), SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(
        learningRate=1.0,
        numberOfIterations=ITERATIONS,
        convergenceMinimumValue=1e-5,
        convergenceWindowSize=6,
        estimateLearningRate=method.EachIteration,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    transform = sitk.Euler3DTransform(start)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # Too few samples within both volumes.
        return start
    return transform


def _reduced(scan: Scan, voxel_mm: float) -> sitk.Image:
    """The volume as float32, with blocks of voxels averaged up to about a voxel size, and smoothed by half of it."""
    image = sitk.Cast(to_sitk(scan.voxels, LPS_TO_RAS @ scan.lps), sitk.sitkFloat32)
    factors = [
        max(1, min(round(voxel_mm / step), size // LEAST_VOXELS))
        for step, size in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    return sitk.SmoothingRecursiveGaussian(sitk.BinShrink(image, factors), voxel_mm / 2)


def _interpolated(voxels: NDArray, indices: NDArray[np.float64]) -> NDArray[np.float32]:
    return ndimage.map_coordinates(voxels, indices.T, order=1, mode="nearest", output=np.float32)


def _binned(values: NDArray, bins: int) -> NDArray[np.int64]:
    """Index of each value's bin between the 0.5 and 99.5 percentiles; all in the first where these are equal."""
    low, high = np.percentile(values, (0.5, 99.5))
    if not high > low:
        return np.zeros(len(values), dtype=np.int64)
    return np.clip((values - low) / (high - low) * bins, 0, bins - 1).astype(np.int64)
