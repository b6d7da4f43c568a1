"""Images on the disk: opened, checked by their headers, read as scans, masks and submitted labels, and written."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from monailabel_app.errors import InputError

logger = logging.getLogger(__name__)

NIFTI = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*NIFTI, ".nrrd")
LABEL_SUFFIXES = (".seg.nrrd", *IMAGE_SUFFIXES)
RAW_SUFFIX = ".bin"  # what OHIF submits: one byte per voxel of the scan

MOST_VOXELS = 512 * 512 * 1024
MOST_PER_AXIS = 4096
LEAST_PER_AXIS = 16  # in plane
LEAST_SLICES = 5
SPACING_MM = (0.1, 15.0)
EXTENT_MM = (25.0, 600.0)  # of a head's scan, along any axis
MOST_MM3 = 320.0**3  # resampled to the network's spacing, more would not fit in memory
MOST_COMPONENTS = 16  # of a label's voxel
MOST_SEGMENTS = 255
ROUNDING = 1e-5  # a label's number that scaling has made may be off by this much of itself
GRID_TOLERANCE_MM = 0.1  # between the same corner voxel of two volumes of one grid

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Opened:
    """An image of which the header was read.

    Args:
        size: voxels along each axis.
        components: numbers in each voxel.
        affine: 4 x 4, voxel indices to RAS millimeters.
        voxels: reads them in the order of the axes, as the data type that it is given or as stored.
    """

    size: tuple[int, ...]
    components: int
    affine: np.ndarray
    voxels: Callable[..., np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """The size, and the components where there are several."""
        return self.size + (self.components,) * (self.components > 1)

    @property
    def spacing(self) -> list[float]:
        """Voxel size along each axis, mm; not a number where the affine is none."""
        return spacing_of(self.affine) if np.isfinite(self.affine).all() else [math.nan] * 3


def open_image(path: Path) -> Opened:
    """Opens .nii, .nii.gz (by nibabel, for ITK fills a file that was cut short with zeros) or what ITK reads.

    Of a broken file, this and the reading of its voxels raise exceptions of many classes.
    """
    if path.name.endswith(NIFTI):
        image: Any = nib.load(path)
        affine = np.array(image.affine, dtype=float)
        return Opened(tuple(image.shape), 1, affine, lambda dtype=None: np.asanyarray(image.dataobj, dtype=dtype))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    count, affine = reader.GetDimension(), np.eye(4)
    axes = min(count, 3)
    affine[:axes, :axes] = (np.reshape(reader.GetDirection(), (count, count)) * reader.GetSpacing())[:axes, :axes]
    affine[:axes, 3] = reader.GetOrigin()[:axes]

    def voxels(dtype: Any = None) -> np.ndarray:
        return np.asarray(sitk.GetArrayFromImage(reader.Execute()).T, dtype=dtype)

    return Opened(tuple(reader.GetSize()), reader.GetNumberOfComponents(), _TO_RAS @ affine, voxels)


def check_header(file: Path, name: str) -> None:
    """Refuses a scan by its header: no volume, too few slices or too many voxels, no spacing of a head's scan."""
    if file.is_dir():
        raise InputError(f"{name} is a folder of files: expected one volume; export the series as one NIfTI file.")
    try:
        image = open_image(file)
    except Exception as error:
        logger.info("unreadable header: %s", error)
        raise InputError(f"{name} cannot be read as an image: the file is damaged or of another format.") from error
    shape, spacing = image.shape, image.spacing
    if len(shape) != 3:
        raise InputError(f"{name} has {len(shape)} dimensions {shape}: expected one 3-D volume, not a slice or series.")
    if max(shape) > MOST_PER_AXIS or np.prod(shape, dtype=float) > MOST_VOXELS:
        raise InputError(f"{name} has {_times(shape)} voxels: expected at most 512 x 512 x 1024; resample it.")
    if not all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in spacing):
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


def read_scans(files: Mapping[str, Path]) -> dict[str, tuple[np.ndarray, list[float]]]:
    """Voxels and spacing (mm) of each modality's file, but for those that cannot be read: the bundle says why."""
    scans = {}
    for modality, file in files.items():
        try:
            image = open_image(file)
            scans[modality] = image.voxels(np.float32), image.spacing
        except Exception as error:
            logger.info("unreadable scan: %s", error)
    return scans


def check_label_file(label: Path, image: Path) -> None:
    """Refuses a submitted label that is not of its scan's size, is cut short or holds other than whole numbers."""
    size = open_image(image).size
    if label.suffix == RAW_SUFFIX:
        count, expected = label.stat().st_size, math.prod(size)
        if count != expected:
            raise InputError(f"The label has {count} bytes and the scan {expected} voxels: expected the same number.")
        return
    try:
        found = open_image(label)
    except Exception as error:
        raise InputError("The label cannot be read: the file is damaged or of another format.") from error
    if found.size != size or found.components > MOST_COMPONENTS:
        raise InputError(
            f"The label has {_times(found.size)} voxels and the scan {_times(size)}: draw it on that scan."
        )
    try:
        voxels = found.voxels()
    except Exception as error:
        raise InputError("The label cannot be read to its end: the file is damaged; send it again.") from error
    if voxels.dtype.kind not in "buif":
        raise InputError("The label holds colors or complex numbers: expected one whole number for each voxel.")
    voxels = whole_numbers(voxels)
    low, high = voxels.min(), voxels.max()  # NaN if any is
    if not 0 <= low <= high <= MOST_SEGMENTS or (voxels.dtype.kind == "f" and (voxels % 1).any()):
        raise InputError(
            f"The label holds numbers from {low:g} to {high:g}: expected 0 and the numbers of segments up to "
            f"{MOST_SEGMENTS}; a scan is no label."
        )


def read_volume(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a 3-D volume: voxels (X, Y, Z) and the affine to RAS millimeters.

    Raises:
        InputError: it cannot be read, is not 3-D, or holds NaN or infinity.
    """
    try:
        image = open_image(path)
        voxels = image.voxels()
    except Exception as error:
        raise InputError(f"{name} cannot be read ({type(error).__name__}): save it again.") from error
    if image.size[3:] == (1,):
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or voxels.dtype.kind not in "buif":
        raise InputError(f"{name} is {_times(image.shape)}, one volume is expected.")
    if not np.isfinite(voxels).all():
        raise InputError(f"{name} has voxels without a number (NaN or infinite): export it again.")
    return voxels, image.affine


def read_mask(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a mask as `read_volume` does: uint8 of 0 and 1."""
    voxels, affine = read_volume(path, name)
    voxels = whole_numbers(voxels)
    other = np.unique(voxels[(voxels != 0) & (voxels != 1)])
    if other.size:
        found = ", ".join(f"{value:g}" for value in other[:5])
        raise InputError(f"{name} has the values {found}: expected 0 and 1 alone, one segment for the tumor.")
    return voxels.astype(np.uint8), affine


def whole_numbers(labels: np.ndarray) -> np.ndarray:
    """Labels with what is whole but for the rounding of a scaling made whole; other numbers as they are."""
    if labels.dtype.kind != "f":
        return labels
    whole = np.rint(labels)
    return np.where(np.isclose(labels, whole, rtol=ROUNDING, atol=ROUNDING), whole, labels)


def check_same_grid(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], names: tuple[str, str]
) -> None:
    """Checks that two volumes, (voxels, affine) each, have the same voxels."""
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


def write_nifti(path: Path, voxels: np.ndarray, *, affine: np.ndarray | None = None, like: Path | None = None) -> None:
    """Writes a NIfTI file on the grid of an affine, or with the header of another file."""
    header: Any = None if like is None else nib.load(like).header  # type: ignore[attr-defined]
    image = nib.Nifti1Image(voxels, affine, header)
    image.set_data_dtype(voxels.dtype)
    nib.save(image, path)


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
