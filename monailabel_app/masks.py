"""Masks as clinicians submit them: read from any format, checked, compared.

Which masks are read, and what is done with the numbers, goes to `scoring.py` and `train.py`.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import ITKReader
from monai.metrics import compute_average_surface_distance, compute_dice

from monailabel_app.errors import InputError

GRID_TOLERANCE_MM = 0.1  # between the same corner voxel of two volumes of one grid


def read_volume(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a 3-D volume: voxels (X, Y, Z) and the affine to RAS millimeters.

    Raises:
        InputError: it cannot be read, is not 3-D, or holds NaN or infinity.
    """
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            image: Any = nib.load(path)
            voxels, affine = np.asanyarray(image.dataobj), np.asarray(image.affine, dtype=float)
        else:
            reader = ITKReader()
            voxels, header = reader.get_data(reader.read(path))
            affine = np.asarray(header["affine"], dtype=float)
    except Exception as error:  # every reader has its own
        raise InputError(f"{name} cannot be read ({type(error).__name__}): save it again.") from error
    if voxels.ndim != 3:
        raise InputError(f"{name} has {voxels.ndim} dimensions: expected one volume of 3.")
    if not np.isfinite(voxels).all():
        raise InputError(f"{name} has voxels without a number (NaN or infinite): export it again.")
    return voxels, affine


def read_mask(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a mask as `read_volume` does: uint8 of 0 and 1.

    Raises:
        InputError: as `read_volume`, or it has other values.
    """
    voxels, affine = read_volume(path, name)
    other = np.unique(voxels[(voxels != 0) & (voxels != 1)])
    if other.size:
        found = ", ".join(f"{value:g}" for value in other[:5])
        raise InputError(f"{name} has the values {found}: expected 0 and 1 alone, one segment for the tumor.")
    return voxels.astype(np.uint8), affine


def check_same_grid(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], names: tuple[str, str]
) -> None:
    """Checks that two volumes, (voxels, affine) each, have the same voxels.

    Raises:
        InputError: they do not.
    """
    (a, affine_a), (b, affine_b) = first, second
    if a.shape != b.shape:
        raise InputError(f"{names[0]} has {a.shape} voxels and {names[1]} {b.shape}: expected the same grid.")
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in a.shape))], dtype=float)
    distance = float(np.linalg.norm((corners @ (affine_a - affine_b).T)[:, :3], axis=1).max())
    if not distance <= GRID_TOLERANCE_MM:
        raise InputError(f"{names[0]} lies {distance:.3g} mm away from {names[1]}: expected the same grid.")


def spacing_of(affine: np.ndarray) -> list[float]:
    """Voxel size along each axis, mm."""
    return [float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Computes Dice of two masks; both empty: 1, one of them: 0."""
    return float(compute_dice(_batch(prediction), _batch(truth), include_background=True, ignore_empty=False).item())


def scores(prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, float | None]:
    """Compares a mask with the one that is right.

    Returns:
        dice; assd_mm, the average symmetric surface distance, None where a mask is empty; volume_mm3 of the prediction,
        volume_truth_mm3, and volume_difference_mm3, positive where the prediction is larger.
    """
    spacing = spacing_of(affine)
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    volume, volume_truth = (float(mask.sum()) * voxel_mm3 for mask in (prediction, truth))
    assd = None
    if volume and volume_truth:
        box = _box(prediction | truth)
        assd = compute_average_surface_distance(
            _batch(prediction[box]), _batch(truth[box]), include_background=True, symmetric=True, spacing=spacing
        ).item()
    return {
        "dice": dice(prediction, truth),
        "assd_mm": assd,
        "volume_mm3": volume,
        "volume_truth_mm3": volume_truth,
        "volume_difference_mm3": volume - volume_truth,
    }


def _batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.uint8))[None, None]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The mask's bounding box with a voxel of background around it, so that cropping changes no surface."""
    where = np.argwhere(mask)
    return tuple(
        slice(max(int(low) - 1, 0), int(high) + 2) for low, high in zip(where.min(0), where.max(0), strict=True)
    )
