"""Checks of a scan's file before the network sees it: its header first, so that no absurd file is ever unpacked.

NaN, constant and unreadable volumes are refused by the bundle's own transforms; which files make a case is `store.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import itk
import nibabel as nib
import numpy as np

from monailabel_app.errors import InputError

logger = logging.getLogger(__name__)

MOST_VOXELS = 512 * 512 * 1024
MOST_PER_AXIS = 4096
LEAST_PER_AXIS = 16  # in plane
LEAST_SLICES = 5
SPACING_MM = (0.1, 15.0)
EXTENT_MM = (25.0, 600.0)  # of a head's scan, along any axis
MOST_MM3 = 320.0**3  # resampled to the network's spacing, more would not fit in memory

# `t2_likeness` of 34 glioma patients: T2 -0.22 to 0.92, T1 at most -0.15, ceT1 0.17, FLAIR 0.31. Nothing right is
# doubted there.
LEAST_T2 = -0.25
MOST_OTHER = 0.35

Spacing = tuple[float, ...]


def check_header(file: Path, name: str) -> None:
    """Refuses a scan by its header: no volume, too few slices or too many voxels, no spacing of a head's scan.

    Args:
        file: .nii, .nii.gz or .nrrd.
        name: how to call it in a message.

    Raises:
        InputError: says what was found and what is expected.
    """
    if file.is_dir():
        raise InputError(f"{name} is a folder of files: expected one volume; export the series as one NIfTI file.")
    try:
        shape, spacing = _header(file)
    except Exception as error:  # readers raise many classes for broken files
        logger.info("unreadable header: %s", error)
        raise InputError(f"{name} cannot be read as an image: the file is damaged or of another format.") from error
    if len(shape) != 3:
        raise InputError(f"{name} has {len(shape)} dimensions {shape}: expected one 3-D volume, not a slice or series.")
    if max(shape) > MOST_PER_AXIS or np.prod(shape, dtype=float) > MOST_VOXELS:
        raise InputError(f"{name} has {_times(shape)} voxels: expected at most 512 x 512 x 1024; resample it.")
    if not all(np.isfinite(spacing)) or not all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing):
        raise InputError(
            f"{name} has voxels of {_times(spacing)} mm: expected {SPACING_MM[0]:g} to {SPACING_MM[1]:g} mm; "
            "the file's header is wrong."
        )
    slices = min(shape)
    if slices < LEAST_SLICES or sorted(shape)[1] < LEAST_PER_AXIS:
        raise InputError(f"{name} has {_times(shape)} voxels: expected at least {LEAST_SLICES} slices of a head.")
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    if max(extent) > EXTENT_MM[1] or sorted(extent)[1] < EXTENT_MM[0] or np.prod(extent) > MOST_MM3:
        raise InputError(f"{name} covers {_times(extent)} mm: expected a scan of a head; the file's header is wrong.")


def modality_notes(file: Path, modality: str, t2_likeness: Callable[..., float | None]) -> list[str]:
    """Says so where a scan that is taken as T2 does not look like one, or another like T2."""
    try:
        voxels, spacing = _voxels(file)
    except Exception:  # the bundle's own reading says what is wrong
        return []
    score = t2_likeness(voxels, spacing=spacing)
    if score is None or (score >= LEAST_T2 if modality == "T2" else score <= MOST_OTHER):
        return []
    found = "does not look like a T2 scan (fluid is not the brightest)" if modality == "T2" else "looks like a T2 scan"
    return [f"Check the scan: what was given as {modality} {found}. On another kind of scan the result means nothing."]


def _header(file: Path) -> tuple[tuple[int, ...], Spacing]:
    if file.name.endswith((".nii", ".nii.gz")):
        image = nib.load(file)
        affine = np.array(image.affine)  # type: ignore[attr-defined]
        if not np.isfinite(affine).all():
            return tuple(image.shape), (float("nan"),) * 3  # type: ignore[attr-defined]
        return tuple(image.shape), tuple(np.linalg.norm(affine[:3, :3], axis=0))  # type: ignore[attr-defined]
    reader = itk.ImageIOFactory.CreateImageIO(str(file), itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None:
        raise ValueError("no reader of ITK takes this file")
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    axes = range(reader.GetNumberOfDimensions())
    shape = tuple(int(reader.GetDimensions(axis)) for axis in axes)
    return shape + (reader.GetNumberOfComponents(),) * (reader.GetNumberOfComponents() > 1), tuple(
        float(reader.GetSpacing(axis)) for axis in axes
    )


def _voxels(file: Path) -> tuple[np.ndarray, Spacing]:
    if file.name.endswith((".nii", ".nii.gz")):
        image = nib.load(file)
        return image.get_fdata(dtype=np.float32), _header(file)[1]  # type: ignore[attr-defined]
    image = itk.imread(str(file), itk.F)
    return itk.array_from_image(image).T, tuple(float(s) for s in itk.spacing(image))


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
