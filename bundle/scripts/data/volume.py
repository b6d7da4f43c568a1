"""One 3-D volume on disk, whatever its format: the protocol, the error, and NIfTI.

A volume gives its grid from headers alone and its voxels on request; it knows nothing of cases, tasks or data sets.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

# What nibabel raises, depending on where a damaged file breaks.
_READ_ERRORS = (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, OverflowError, zlib.error)


# LPS, as DICOM and ITK have it, to RAS+, as NIfTI has it; and back.
LPS_TO_RAS: NDArray[np.float64] = np.diag((-1.0, -1.0, 1.0, 1.0))

# Sizes of voxels that occur, mm; what lies beyond is a damaged or wrongly scaled header.
SPACING_MM = (0.05, 20.0)
# Largest cosine between two axes.
AXIS_TOLERANCE = 1e-3
# pixdim and affine are rounded on their own.
_SPACING_RTOL = 0.01
# Distance, at a corner of the volume, between what sform and qform make of it. A correct qform may be off by 0.16 mm
# over a head: its quaternion is rounded to 32 bits, which matters near half a turn, as of axes that run to L, P and S.
FORMS_AGREE_MM = 0.3
# gzip cannot shrink anything further.
_GZIP_MOST = 1032


class CaseError(ValueError):
    """Why a case cannot be used: one failed check, and a row of excluded.csv.

    Args:
        check: its name.
        found: what is there.
        expected: what should be; after a semicolon, what to do.
        case: the case's name, filled in where it becomes known; no part of the message.
    """

    COLUMNS = ("case", "check", "found", "expected")

    def __init__(self, check: str, found: str, expected: str, *, case: str = "") -> None:
        super().__init__(check, found, expected)
        self.check, self.found, self.expected, self.case = check, found, expected, case
        self.others: tuple[CaseError, ...] = ()

    def __str__(self) -> str:
        return "; ".join(f"{error.check}: found {error.found}, expected {error.expected}" for error in self.errors)

    @property
    def errors(self) -> tuple[CaseError, ...]:
        """This error and those that `refuse` raised with it."""
        return (self, *self.others)

    @property
    def row(self) -> tuple[str, ...]:
        """Values of `COLUMNS`."""
        return self.case, self.check, self.found, self.expected

    def of(self, name: str) -> CaseError:
        """The same error, told of one volume or file among several."""
        return CaseError(self.check, f"{name}: {self.found}", self.expected)

    def at(self, case: str) -> CaseError:
        """The same error, told of a case; without traceback, which would keep voxels in memory."""
        return CaseError(self.check, self.found, self.expected, case=case)


def refuse(errors: Sequence[CaseError]) -> None:
    """Raise everything that is wrong with a case as one error; nothing happens where there is nothing."""
    if errors:
        errors[0].others = tuple(errors[1:])
        raise errors[0]


class Volume(Protocol):
    """A 3-D volume that can be asked for its grid, its voxels and its files; everything else may raise CaseError."""

    def grid(self) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Shape (X, Y, Z) and 4x4 affine (voxel index to mm, RAS+), from headers alone."""

    def voxels(self) -> NDArray:
        """The 3-D array in the order of the grid, in the units of the file (scaling applied)."""

    def files(self) -> list[Path]:
        """Every file that the volume is read from, sorted."""


@dataclass(frozen=True)
class NiftiVolume:
    """A 3-D volume on disk: a NIfTI file, or one channel of a 4-D one.

    Args:
        path: the file.
        channel: index along the fourth axis; None for a 3-D file.
        channels: how many channels the 4-D file must have; ignored without `channel`.
    """

    path: Path
    channel: int | None = None
    channels: int = 4

    def files(self) -> list[Path]:
        """The one file."""
        return [self.path]

    def open(self) -> nib.Nifti1Image:
        """Header and lazy voxels of the file, dimensions and data type checked.

        Raises:
            CaseError: missing or unreadable file, or not the dimensions that are meant.
        """
        if not self.path.is_file():
            raise CaseError("missing file", f"no file {self.path}", "a NIfTI file")
        try:
            image = nib.load(self.path)
        except _READ_ERRORS as error:
            raise CaseError("unreadable file", f"{self.path.name}: {one_line(error)}", "a NIfTI file") from error
        if not isinstance(image, nib.Nifti1Image):
            raise CaseError("unreadable file", f"{self.path.name}: {type(image).__name__}", "a NIfTI file")
        shape = tuple(image.shape)
        if self.channel is None and len(shape) != 3:
            raise CaseError("not 3-D", f"{self.path.name}: {len(shape)}-D, shape {shape}", "a 3-D volume")
        if self.channel is not None and (len(shape) != 4 or shape[3] != self.channels):
            raise CaseError(
                "wrong channels", f"{self.path.name}: shape {shape}", f"a 4-D volume with {self.channels} channels"
            )
        dtype = np.dtype(image.get_data_dtype())
        if dtype.names is not None:
            raise CaseError("color image", f"{self.path.name}: data type {dtype}", "one number per voxel")
        if dtype.kind not in "biuf":
            raise CaseError("unreadable file", f"{self.path.name}: data type {dtype}", "plain numbers")
        self._check_size(shape, dtype)
        self._check_affine(image)
        self._check_forms(image)
        return image

    def _check_size(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """A damaged header may announce more voxels than the file can hold: refused before memory is asked for them."""
        announced, size = math.prod(shape) * dtype.itemsize, self.path.stat().st_size
        most = size * _GZIP_MOST if self.path.name.endswith(".gz") else size
        if min(shape) < 1 or announced > most:
            found = f"{self.path.name}: {size} bytes for shape {shape}"
            raise CaseError("unreadable file", found, "a complete NIfTI file")

    def _check_affine(self, image: nib.Nifti1Image) -> None:
        """Positive spacings within `SPACING_MM`, axes that are not skewed, and an affine that agrees with the sizes."""
        columns = np.asarray(image.affine, dtype=np.float64)[:3, :3]
        spacing = np.linalg.norm(columns, axis=0)
        if not np.isfinite(image.affine).all() or not (spacing > 0).all():
            raise CaseError("orientation", f"{self.path.name}: affine {np.asarray(image.affine).tolist()}", "numbers")
        shown = " x ".join(f"{size:.4g}" for size in spacing)
        if spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
            expected = f"{SPACING_MM[0]} to {SPACING_MM[1]} mm"
            raise CaseError("spacing", f"{self.path.name}: voxels of {shown} mm", expected)
        skew = np.abs((columns / spacing).T @ (columns / spacing) - np.eye(3)).max()
        if skew > AXIS_TOLERANCE:
            found = f"{self.path.name}: axes whose cosine is {skew:.3g}"
            raise CaseError("orientation", found, f"perpendicular axes, cosine at most {AXIS_TOLERANCE}")
        zooms = np.asarray(image.header.get_zooms()[:3], dtype=np.float64)
        if not np.allclose(zooms, spacing, rtol=_SPACING_RTOL):
            found = f"{self.path.name}: pixdim {' x '.join(f'{size:.4g}' for size in zooms)}, affine {shown} mm"
            raise CaseError("spacing", found, "a header that gives one size of the voxels")

    def _check_forms(self, image: nib.Nifti1Image) -> None:
        """sform and qform that agree where a file has both: programs differ in which one they take."""
        header = image.header
        if header["sform_code"] <= 0 or header["qform_code"] <= 0:
            return
        distance = corner_distance(image.shape[:3], header.get_sform(), _qform(header))
        if not distance <= FORMS_AGREE_MM:  # also where it is no number
            found = f"{self.path.name}: sform and qform differ by {distance:.3g} mm"
            expected = f"both to give a voxel one place, within {FORMS_AGREE_MM} mm; correct or remove the wrong one"
            raise CaseError("affine", found, expected)

    def oriented(self) -> bool:
        """Whether the file says how its axes lie in the patient: sform or qform has a code other than 0.

        Without, the affine is a guess from the sizes of the voxels, and left and right are unknown.

        Raises:
            CaseError: as `open`.
        """
        header = self.open().header
        return bool(header["sform_code"] > 0 or header["qform_code"] > 0)

    def grid(self) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Shape (three sizes) and 4x4 affine (voxel index to mm, RAS+), from the header alone."""
        image = self.open()
        return tuple(int(size) for size in image.shape[:3]), np.asarray(image.affine, dtype=np.float64)

    def stored(self) -> NDArray:
        """The 3-D array as stored, before the header's scaling; raises as `voxels`."""
        return self._read(scaled=False)

    def voxels(self) -> NDArray:
        """The 3-D array, scaled as the header says.

        Raises:
            CaseError: as `open`, and when the file ends too early.
        """
        return self._read(scaled=True)

    def _read(self, *, scaled: bool) -> NDArray:
        image = self.open()
        try:
            if self.path.name.endswith(".gz"):
                # nibabel reads no further than the last voxel; the checksum stands behind it.
                image = type(image).from_bytes(gzip.decompress(self.path.read_bytes()))
            proxy = cast(ArrayProxy, image.dataobj)
            if not scaled:
                stored = proxy.get_unscaled()
                return np.asarray(stored if self.channel is None else stored[..., self.channel])
            return np.asanyarray(proxy if self.channel is None else proxy[..., self.channel])
        except (*_READ_ERRORS, MemoryError) as error:
            found = f"{self.path.name}: {one_line(error)}"
            raise CaseError("unreadable file", found, "a complete NIfTI file") from error


def _qform(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """4x4 affine of the qform, as nifti1.h defines it.

    Not nibabel's, which refuses quaternions that rounding has made longer than 1, and rounds those of nearly half a
    turn once more, by up to 0.4 mm over a head.
    """
    imaginary = np.array([header[f"quatern_{part}"] for part in "bcd"], dtype=np.float64)
    real = math.sqrt(max(0.0, 1 - float(imaginary @ imaginary)))
    sizes = header["pixdim"][1:4] * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    affine = np.eye(4)
    affine[:3, :3] = quat2mat([real, *imaginary]) * sizes
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def corner_distance(shape: Sequence[int], first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Largest distance in mm between the same corner voxel under two affines."""
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))], dtype=np.float64)
    return float(np.linalg.norm((corners @ (first - second).T)[:, :3], axis=1).max())


def one_line(error: BaseException) -> str:
    """Message of an error without line breaks, its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
