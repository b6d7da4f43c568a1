"""Brings one volume onto the grid of another: published rigid transforms in either direction, or registration.

Arrays with affines in, a transform, a resampled array or mapped points out. Whether the result is plausible is judged
by `checks.py`; which volume moves, and where its contours come from, is for the caller. No torch here.

Arrays are (X, Y, Z) with a 4x4 affine (voxel index to mm, RAS+); points and transforms are in LPS mm, as in DICOM, ITK
and .tfm files. A transform takes a point of the fixed volume to the same tissue in the moving one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from scripts.data.checks import foreground
from scripts.data.volume import VolumeError, one_line

RIGID_TOLERANCE = 5e-3  # Of a matrix times its transpose from the identity; 0.25 mm at 100 mm.
# A given transform is the archive's statement about the case: to overrule it, the volumes as they are must share this
# many times as much information.
AS_STORED_MARGIN = 1.05
MOST_RESIDUAL_MM = 2.0

HISTOGRAM_BINS = 64
SAMPLES = 100_000
SEED = 20240401

LEAST_VOXELS = 4  # Along each axis, which smoothing needs.
# Registration, coarse to fine: voxel size in mm, at most so many voxels of which are drawn and steps taken.
LEVELS_MM = (4.0, 2.0, 1.0)
REGISTRATION_SAMPLES = 15_000
REGISTRATION_BINS = 32
ITERATIONS = 20
# Starts nearer to each other than this lead to the same place.
SAME_START_MM = 10.0

Method = Literal["tfm", "tfm inverse", "registered", "as stored"]

# Classes of ITK that a .tfm file of a rigid transform may name, without the type of their numbers.
_LINEAR: dict[str, Callable[[], sitk.Transform]] = {
    "AffineTransform_3_3": lambda: sitk.AffineTransform(3),
    "MatrixOffsetTransformBase_3_3": lambda: sitk.AffineTransform(3),
    "Euler3DTransform_3_3": sitk.Euler3DTransform,
    "VersorRigid3DTransform_3_3": sitk.VersorRigid3DTransform,
    "TranslationTransform_3_3": lambda: sitk.TranslationTransform(3),
}
_LPS: NDArray[np.float64] = np.diag((-1.0, -1.0, 1.0, 1.0))
_EXACT_TYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64)


@dataclass(frozen=True)
class Alignment:
    """Where the points of the fixed volume lie in the moving one, and how that was found.

    Args:
        transform: point of the fixed volume (LPS mm) to point of the moving one; rigid.
        method: "tfm" (a given file as it is), "tfm inverse", "registered", or "as stored" (nothing moves).
        mutual_information: of every candidate that was tried, in nats; named "as stored", "<folder>/<file>",
            "<folder>/<file> inverse" and "registered".
        residual_mm: inverse consistency of a registration, see `_register`; None for the other methods.
        shift_mm: how far the transform moves the center of the fixed volume.
        turn_degrees: its angle of rotation.
    """

    transform: sitk.Transform
    method: Method
    mutual_information: dict[str, float]
    residual_mm: float | None
    shift_mm: float
    turn_degrees: float


@dataclass(frozen=True)
class _Scan:
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
        return _moved((np.array([self.voxels.shape]) - 1) / 2, self.lps)[0]


def to_sitk(voxels: NDArray, affine: NDArray) -> sitk.Image:
    """The same volume as a SimpleITK image, in its LPS coordinates.

    Args:
        voxels: (X, Y, Z); types that SimpleITK lacks become uint8 (boolean) or float32.
        affine: 4x4, voxel index to mm, RAS+.

    Raises:
        VolumeError: an affine that is not finite or has no volume.
    """
    affine = np.asarray(affine, dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError("affine", f"voxel axes {affine[:3, :3].tolist()}", "three independent axes in mm")
    if voxels.dtype not in _EXACT_TYPES:
        voxels = voxels.astype(np.uint8 if voxels.dtype == bool else np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = _LPS @ affine
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def read_transform(path: Path) -> sitk.Transform:
    """The rigid transform of a .tfm file (ITK's text format), as it stands in the file.

    3D Slicer inverts such a file when it loads it, so whoever applied it there applied the inverse: see `align`. The
    text is read here, since ITK's own reader ends the whole process over some damaged files.

    Raises:
        VolumeError: "unreadable file" for a missing or damaged file; "transform" for one that is not a rigid transform
            in three dimensions.
    """
    kind, parameters, fixed_parameters = _transform_lines(path)
    if kind not in _LINEAR:
        raise VolumeError("transform", f"{path.name}: {kind}", "one rigid transform in three dimensions")
    transform = _LINEAR[kind]()
    if len(parameters) != len(transform.GetParameters()) or len(fixed_parameters) not in (0, 3, 4):
        found = f"{path.name}: {len(parameters)} and {len(fixed_parameters)} fixed parameters of {kind}"
        raise VolumeError("unreadable file", found, f"{len(transform.GetParameters())} parameters")
    if fixed_parameters and transform.GetFixedParameters():
        transform.SetFixedParameters(fixed_parameters[: len(transform.GetFixedParameters())])
    transform.SetParameters(parameters)
    matrix = _matrix(transform)
    rotation = matrix[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max()) if np.isfinite(matrix).all() else math.inf
    if error > RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
        found = f"{path.name}: matrix {np.round(rotation, 4).tolist()}"
        raise VolumeError("transform", found, "a finite rotation and shift, no scaling, shear or mirroring")
    return _affine_transform(matrix)


def _transform_lines(path: Path) -> tuple[str, list[float], list[float]]:
    """Class, parameters and fixed parameters of the transform in a .tfm file; several classes are joined by "and"."""
    if not path.is_file():
        raise VolumeError("unreadable file", f"no file {path}", "a transform (.tfm)")
    lines = [
        line.partition(":") for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith("#")
    ]
    kinds = [value.strip() for key, _, value in lines if key == "Transform"]
    numbers = {key: value.split() for key, _, value in lines if key in ("Parameters", "FixedParameters")}
    try:
        parameters, fixed = ([float(n) for n in numbers[key]] for key in ("Parameters", "FixedParameters"))
    except (KeyError, ValueError) as error:
        found = f"{path.name}: {one_line(error)}"
        raise VolumeError("unreadable file", found, "a .tfm with Transform, Parameters and FixedParameters") from error
    return re.sub("_(double|float)_", "_", " and ".join(kinds)) or "no transform", parameters, fixed


def align(
    fixed: NDArray,
    fixed_affine: NDArray,
    moving: NDArray,
    moving_affine: NDArray,
    *,
    transforms: Sequence[Path] = (),
) -> Alignment:
    """The rigid transform from a fixed to a moving volume of one patient.

    With files, each is tried as it is and inverted, since its direction cannot be known, against leaving the volumes as
    they are stored, by mutual information:

    - the best direction of the best file wins;
    - unless "as stored" shares clearly more (`AS_STORED_MARGIN`): then the volumes had been moved before, or the files
      belong to something else;
    - directions that share the same are those of a transform that hardly moves anything; either is right within twice
      its `shift_mm`, and the better one is kept without further ado.

    Without files, the volumes are registered, see `_register`; the second rule holds for the result too.

    Args:
        fixed: (X, Y, Z), any units.
        fixed_affine: 4x4, voxel index to mm, RAS+.
        moving: as `fixed`, on its own grid.
        moving_affine: as `fixed_affine`.
        transforms: .tfm files between the two, in any direction.

    Raises:
        VolumeError: as `read_transform`, `to_sitk` and `_register`.
    """
    scans = _scan(fixed, fixed_affine), _scan(moving, moving_affine)
    candidates: dict[str, tuple[sitk.Transform, Method]] = {}
    residual = None
    for path in transforms:
        name = f"{path.parent.name}/{path.name}"
        given = read_transform(path)
        candidates[name] = given, "tfm"
        candidates[f"{name} inverse"] = given.GetInverse(), "tfm inverse"
    if not candidates:
        transform, residual = _register(*scans)
        candidates["registered"] = transform, "registered"
    information = {name: _shared(*scans, transform) for name, (transform, _) in candidates.items()}
    best = max(information, key=information.__getitem__)
    identity = _affine_transform(np.eye(4))
    information["as stored"] = _shared(*scans, identity)
    if information["as stored"] > AS_STORED_MARGIN * information[best]:
        return _alignment(scans[0], identity, "as stored", information, None)
    return _alignment(scans[0], *candidates[best], information, residual)


def mutual_information(first: NDArray, second: NDArray, *, bins: int = HISTOGRAM_BINS) -> float:
    """Mutual information of paired intensities, in nats, from their joint histogram.

    The range of each is cut at its 0.5 and 99.5 percentiles. Independent values give about bins^2 / 2n, not 0.

    Args:
        first: (n,), any units.
        second: (n,), any units.
        bins: per axis.

    Returns:
        From 0 (independent) to the logarithm of `bins` (one decides the other); 0 for no values.
    """
    if len(first) == 0:
        return 0.0
    joint = np.bincount(_binned(first, bins) * bins + _binned(second, bins), minlength=bins * bins)
    p = joint.reshape(bins, bins) / len(first)
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    there = p > 0
    return float((p[there] * np.log(p[there] / independent[there])).sum())


def resample(
    moving: NDArray,
    moving_affine: NDArray,
    shape: Sequence[int],
    affine: NDArray,
    alignment: Alignment,
    *,
    nearest: bool = False,
    fill: float = 0.0,
) -> tuple[NDArray, NDArray[np.bool_]]:
    """A moving volume on the fixed grid.

    Linear interpolation, without smoothing before: for grids of about the same spacing.

    Args:
        moving: (X, Y, Z), any units.
        moving_affine: 4x4, voxel index to mm, RAS+.
        shape: of the fixed grid (X, Y, Z).
        affine: of the fixed grid, 4x4, voxel index to mm, RAS+.
        alignment: from `align`.
        nearest: take the nearest voxel, for masks and label maps: no new values.
        fill: value where the moving volume ends.

    Returns:
        The volume on the fixed grid (float32, with `nearest` the type of `moving`), and which of its voxels the moving
        volume covers.
    """
    filter_ = sitk.ResampleImageFilter()
    filter_.SetNumberOfThreads(1)
    filter_.SetTransform(alignment.transform)
    grid = to_sitk(np.broadcast_to(np.uint8(0), tuple(shape)), affine)
    filter_.SetReferenceImage(grid)
    filter_.SetInterpolator(sitk.sitkNearestNeighbor)
    covered = filter_.Execute(to_sitk(np.ones(moving.shape, dtype=np.uint8), moving_affine))
    filter_.SetDefaultPixelValue(fill)
    filter_.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    filter_.SetOutputPixelType(sitk.sitkUnknown if nearest else sitk.sitkFloat32)
    moved = _array(filter_.Execute(to_sitk(moving, moving_affine)))
    return moved.astype(moving.dtype if nearest else np.float32, copy=False), _array(covered).astype(bool)


def map_points(
    points: NDArray, alignment: Alignment, *, to: Literal["fixed", "moving"] = "fixed"
) -> NDArray[np.float64]:
    """Points of one volume in the other: contours drawn on the moving volume go to the fixed one.

    Args:
        points: (n, 3), LPS mm.
        alignment: from `align`.
        to: the volume that the points are wanted in.
    """
    matrix = _matrix(alignment.transform)
    return _moved(np.asarray(points, dtype=np.float64), matrix if to == "moving" else np.linalg.inv(matrix))


def _register(fixed: _Scan, moving: _Scan) -> tuple[sitk.Transform, float]:
    """Rigid registration by Mattes mutual information, and how well it agrees with its reverse.

    Both directions are registered on their own. The residual is the mean distance in mm, over points of the fixed
    head, between a point and itself after going there by one and back by the other. It says whether the registration
    is stable, not that it is right. Reproducible: one thread, seeded samples.

    Raises:
        VolumeError: "registration" for a residual above `MOST_RESIDUAL_MM`, volumes that share no information, or one
            with too few slices to be smoothed.
    """
    for scan in (fixed, moving):
        if min(scan.voxels.shape) < LEAST_VOXELS:
            found = f"a volume of shape {scan.voxels.shape}"
            raise VolumeError("registration", found, f"at least {LEAST_VOXELS} voxels along each axis")
    levels = [[_reduced(scan, voxel_mm) for voxel_mm in LEVELS_MM] for scan in (fixed, moving)]
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # That of a registration alone leaves sums in random order.
    try:
        there, back = _one_way(fixed, moving, *levels), _one_way(moving, fixed, *levels[::-1])
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    returned = _moved(fixed.points, _matrix(back) @ _matrix(there))
    residual = float(np.linalg.norm(returned - fixed.points, axis=1).mean())
    if not residual <= MOST_RESIDUAL_MM:
        found = f"{residual:.1f} mm between the two directions"
        raise VolumeError("registration", found, f"at most {MOST_RESIDUAL_MM:g} mm")
    return there, residual


def _one_way(
    fixed: _Scan, moving: _Scan, fixed_levels: Sequence[sitk.Image], moving_levels: Sequence[sitk.Image]
) -> sitk.Euler3DTransform:
    """One direction: every start through the coarsest level, the best of them through the finer ones.

    A finer level is kept only where the volumes then share more: with little overlap the optimizer can run away.
    """

    def shared(transform: sitk.Euler3DTransform) -> float:
        return _shared(fixed, moving, transform)

    levels = list(zip(fixed_levels, moving_levels, LEVELS_MM, strict=True))
    transform = max((_refine(start, *levels[0]) for start in _starts(fixed, moving)), key=shared)
    for level in levels[1:]:
        transform = max(transform, _refine(transform, *level), key=shared)
    if shared(transform) == 0:
        raise VolumeError("registration", "no mutual information between the two volumes", "two volumes of one head")
    return transform


def _starts(fixed: _Scan, moving: _Scan) -> Iterator[sitk.Euler3DTransform]:
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


def _reduced(scan: _Scan, voxel_mm: float) -> sitk.Image:
    """The volume as float32, with blocks of voxels averaged up to about a voxel size, and smoothed by half of it."""
    image = sitk.Cast(to_sitk(scan.voxels, _LPS @ scan.lps), sitk.sitkFloat32)
    factors = [
        max(1, min(round(voxel_mm / step), size // LEAST_VOXELS))
        for step, size in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    return sitk.SmoothingRecursiveGaussian(sitk.BinShrink(image, factors), voxel_mm / 2)


def _scan(voxels: NDArray, affine: NDArray) -> _Scan:
    """A volume with points drawn anywhere within voxels of its foreground.

    Points between the voxel centers make every candidate interpolate: on the centers, "as stored" on two equal grids
    would be the only one to see the full noise.
    """
    lps: NDArray[np.float64] = _LPS @ np.asarray(affine, dtype=np.float64)
    rng = np.random.default_rng(SEED)
    inside = np.flatnonzero(foreground(voxels))
    drawn = rng.choice(inside, min(SAMPLES, len(inside)), replace=False) if len(inside) else inside
    indices = np.column_stack(np.unravel_index(drawn, voxels.shape)) + rng.uniform(-0.5, 0.5, (len(drawn), 3))
    return _Scan(voxels, lps, _moved(indices, lps), _interpolated(voxels, indices))


def _shared(fixed: _Scan, moving: _Scan, transform: sitk.Transform) -> float:
    """Mutual information of the two at the points of the fixed one, times the share of them that the moving covers."""
    indices = _moved(fixed.points, np.linalg.inv(moving.lps) @ _matrix(transform))
    covered = ((indices >= -0.5) & (indices <= np.array(moving.voxels.shape) - 0.5)).all(axis=1)
    if not covered.any():
        return 0.0
    information = mutual_information(fixed.values[covered], _interpolated(moving.voxels, indices[covered]))
    return information * float(covered.mean())


def _interpolated(voxels: NDArray, indices: NDArray[np.float64]) -> NDArray[np.float32]:
    return ndimage.map_coordinates(voxels, indices.T, order=1, mode="nearest", output=np.float32)


def _binned(values: NDArray, bins: int) -> NDArray[np.int64]:
    """Index of each value's bin between the 0.5 and 99.5 percentiles; all in the first where these are equal."""
    low, high = np.percentile(values, (0.5, 99.5))
    if not high > low:
        return np.zeros(len(values), dtype=np.int64)
    return np.clip((values - low) / (high - low) * bins, 0, bins - 1).astype(np.int64)


def _alignment(
    fixed: _Scan, transform: sitk.Transform, method: Method, information: dict[str, float], residual: float | None
) -> Alignment:
    matrix = _matrix(transform)
    shift = float(np.linalg.norm(_moved(fixed.center[None], matrix)[0] - fixed.center))
    turn = math.degrees(math.acos(float(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))
    return Alignment(transform, method, information, residual, shift, turn)


def _matrix(transform: sitk.Transform) -> NDArray[np.float64]:
    """4x4 matrix of a linear transform, whatever its class."""
    origin, *ends = (
        np.array(transform.TransformPoint(point)) for point in np.vstack((np.zeros(3), np.eye(3))).tolist()
    )
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([end - origin for end in ends])
    matrix[:3, 3] = origin
    return matrix


def _affine_transform(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def _moved(points: NDArray, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (n, 3) under a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _array(image: sitk.Image) -> NDArray:
    """(X, Y, Z) voxels of a SimpleITK image."""
    return sitk.GetArrayFromImage(image).T
