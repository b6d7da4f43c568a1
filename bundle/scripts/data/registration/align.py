"""Brings one volume onto the grid of another: published rigid transforms in either direction, or registration.

Arrays are (X, Y, Z) with a 4x4 affine (voxel index to mm, RAS+); points and transforms are in LPS mm, as in DICOM, ITK
and .tfm files. A transform takes a point of the fixed volume to the same tissue in the moving one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from scripts.data.registration.register import (
    matrix_of,
    moved,
    register,
    sample_foreground,
    shared_information,
    to_sitk,
)
from scripts.data.volume import CaseError, one_line

RIGID_TOLERANCE = 5e-3  # Of a matrix times its transpose from the identity; 0.25 mm at 100 mm.
# A given transform is the archive's statement about the case: to overrule it, the volumes as they are must share this
# many times as much information.
AS_STORED_MARGIN = 1.05
# Nats, below which two images have nothing in common. Measured: noise 0.02, within the outline of the same brain up to
# 0.06; T2 and ceT1 of 34 glioma patients at least 0.13, of phantoms 0.6. Wrong patients, 0.05 to 0.36, often pass.
LEAST_INFORMATION = 0.08

Method = Literal["tfm", "tfm inverse", "registered", "as stored"]

# Classes of ITK that a .tfm file of a rigid transform may name, without the type of their numbers.
_LINEAR: dict[str, Callable[[], sitk.Transform]] = {
    "AffineTransform_3_3": lambda: sitk.AffineTransform(3),
    "MatrixOffsetTransformBase_3_3": lambda: sitk.AffineTransform(3),
    "Euler3DTransform_3_3": sitk.Euler3DTransform,
    "VersorRigid3DTransform_3_3": sitk.VersorRigid3DTransform,
    "TranslationTransform_3_3": lambda: sitk.TranslationTransform(3),
}


@dataclass(frozen=True)
class Alignment:
    """Where the points of the fixed volume lie in the moving one, and how that was found.

    Args:
        transform: point of the fixed volume (LPS mm) to point of the moving one; rigid.
        method: "tfm" (a given file as it is), "tfm inverse", "registered", or "as stored" (nothing moves).
        mutual_information: of every candidate that was tried, in nats; named "as stored", "<folder>/<file>",
            "<folder>/<file> inverse" and "registered".
        residual_mm: inverse consistency of a registration, see `register`; None for the other methods.
        shift_mm: how far the transform moves the center of the fixed volume.
        turn_degrees: its angle of rotation.
    """

    transform: sitk.Transform
    method: Method
    mutual_information: dict[str, float]
    residual_mm: float | None
    shift_mm: float
    turn_degrees: float


def read_transform(path: Path) -> sitk.Transform:
    """The rigid transform of a .tfm file (ITK's text format), as it stands in the file.

    3D Slicer inverts such a file when it loads it, so whoever applied it there applied the inverse: see `align`. The
    text is read here, since ITK's own reader ends the whole process over some damaged files.

    Raises:
        CaseError: "unreadable file" for a missing or damaged file; "transform" for one that is not a rigid transform
            in three dimensions.
    """
    kind, parameters, fixed_parameters = _transform_lines(path)
    if kind not in _LINEAR:
        raise CaseError("transform", f"{path.name}: {kind}", "one rigid transform in three dimensions")
    transform = _LINEAR[kind]()
    if len(parameters) != len(transform.GetParameters()) or len(fixed_parameters) not in (0, 3, 4):
        found = f"{path.name}: {len(parameters)} and {len(fixed_parameters)} fixed parameters of {kind}"
        raise CaseError("unreadable file", found, f"{len(transform.GetParameters())} parameters")
    if fixed_parameters and transform.GetFixedParameters():
        transform.SetFixedParameters(fixed_parameters[: len(transform.GetFixedParameters())])
    transform.SetParameters(parameters)
    matrix = matrix_of(transform)
    rotation = matrix[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max()) if np.isfinite(matrix).all() else math.inf
    if error > RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
        found = f"{path.name}: matrix {np.round(rotation, 4).tolist()}"
        raise CaseError("transform", found, "a finite rotation and shift, no scaling, shear or mirroring")
    return _affine_transform(matrix)


def _transform_lines(path: Path) -> tuple[str, list[float], list[float]]:
    """Class, parameters and fixed parameters of the transform in a .tfm file; several classes are joined by "and"."""
    if not path.is_file():
        raise CaseError("unreadable file", f"no file {path}", "a transform (.tfm)")
    lines = [
        line.partition(":") for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith("#")
    ]
    kinds = [value.strip() for key, _, value in lines if key == "Transform"]
    numbers = {key: value.split() for key, _, value in lines if key in ("Parameters", "FixedParameters")}
    try:
        parameters, fixed = ([float(n) for n in numbers[key]] for key in ("Parameters", "FixedParameters"))
    except (KeyError, ValueError) as error:
        found = f"{path.name}: {one_line(error)}"
        raise CaseError("unreadable file", found, "a .tfm with Transform, Parameters and FixedParameters") from error
    return re.sub("_(double|float)_", "_", " and ".join(kinds)) or "no transform", parameters, fixed


def align(
    fixed: NDArray, fixed_affine: NDArray, moving: NDArray, moving_affine: NDArray, *, transforms: Sequence[Path] = ()
) -> Alignment:
    """The rigid transform from a fixed to a moving volume of one patient, each on its own grid.

    With .tfm files, each is tried as it is and inverted, since its direction cannot be known, against leaving the
    volumes as they are stored, by mutual information:

    - the best direction of the best file wins;
    - unless "as stored" shares clearly more (`AS_STORED_MARGIN`): then the volumes had been moved before, or the files
      belong to something else;
    - directions that share the same are those of a transform that hardly moves anything; either is right within twice
      its `shift_mm`, and the better one is kept without further ado.

    Without files, the volumes are registered, see `register`; the second rule holds for the result too. Whatever was
    chosen, images that then share next to nothing (`LEAST_INFORMATION`) are refused: a registration that finds nothing
    stays where it started in both directions, which its residual cannot tell from a perfect one.

    Raises:
        CaseError: "registration" for images that share too little; as `read_transform` and `register`.
    """
    scans = sample_foreground(fixed, fixed_affine), sample_foreground(moving, moving_affine)
    candidates: dict[str, tuple[sitk.Transform, Method]] = {}
    residual = None
    for path in transforms:
        name = f"{path.parent.name}/{path.name}"
        given = read_transform(path)
        candidates[name] = given, "tfm"
        candidates[f"{name} inverse"] = given.GetInverse(), "tfm inverse"
    if not candidates:
        transform, residual = register(*scans)
        candidates["registered"] = transform, "registered"
    candidates["as stored"] = _affine_transform(np.eye(4)), "as stored"
    information = {name: shared_information(*scans, transform) for name, (transform, _) in candidates.items()}
    best = max((name for name in candidates if name != "as stored"), key=information.__getitem__)
    if information["as stored"] > AS_STORED_MARGIN * information[best]:
        best, residual = "as stored", None
    if information[best] < LEAST_INFORMATION:
        found = f"the two images share {information[best]:.3f} nats of information ({best})"
        raise CaseError("registration", found, f"at least {LEAST_INFORMATION} nats")
    transform, method = candidates[best]
    matrix, center = matrix_of(transform), scans[0].center
    shift = float(np.linalg.norm(moved(center[None], matrix)[0] - center))
    turn = math.degrees(math.acos(float(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))
    return Alignment(transform, method, information, residual, shift, turn)


def resample(
    moving: NDArray,
    moving_affine: NDArray,
    shape: Sequence[int],
    affine: NDArray,
    alignment: Alignment,
    *,
    fill: float = 0.0,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A moving volume on the fixed grid of this shape and affine, and which of its voxels the moving volume covers.

    Linear interpolation, without smoothing before: for grids of about the same spacing. `fill` is the value where the
    moving volume ends.
    """
    filter_ = sitk.ResampleImageFilter()
    filter_.SetNumberOfThreads(1)
    filter_.SetTransform(alignment.transform)
    grid = to_sitk(np.broadcast_to(np.uint8(0), tuple(shape)), affine)
    filter_.SetReferenceImage(grid)
    filter_.SetInterpolator(sitk.sitkNearestNeighbor)
    covered = filter_.Execute(to_sitk(np.ones(moving.shape, dtype=np.uint8), moving_affine))
    filter_.SetDefaultPixelValue(fill)
    filter_.SetInterpolator(sitk.sitkLinear)
    filter_.SetOutputPixelType(sitk.sitkFloat32)
    return _array(filter_.Execute(to_sitk(moving, moving_affine))), _array(covered).astype(bool)


def _affine_transform(matrix: NDArray[np.float64]) -> sitk.AffineTransform:
    return sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())


def _array(image: sitk.Image) -> NDArray:
    """(X, Y, Z) voxels of a SimpleITK image."""
    return sitk.GetArrayFromImage(image).T
