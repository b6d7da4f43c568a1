"""One 3-D volume on disk, whatever its format: the protocol, the error, NIfTI, and what ITK reads (NRRD, MetaImage).

A volume gives its grid from headers alone and its voxels on request; it knows nothing of cases, tasks or data sets.
`reading.open_volume` opens one by its path; docs/data.md says what is read, what is refused and why ("Where a scan
lies").
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol, cast

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import native_code
from numpy.typing import NDArray

from scripts.data.text_headers import data_files, read_text_header

# What nibabel raises, depending on where a damaged file breaks.
_READ_ERRORS = (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, OverflowError, zlib.error)


# LPS, as DICOM and ITK have it, to RAS+, as NIfTI has it; and back.
LPS_TO_RAS: NDArray[np.float64] = np.diag((-1.0, -1.0, 1.0, 1.0))

# Sizes of voxels that occur, mm; what lies beyond is a damaged or wrongly scaled header.
SPACING_MM = (0.05, 20.0)
# Farthest place of a voxel from the origin, mm: beyond, single precision gives no thousandth of a mm.
FARTHEST_MM = 1e4
# Largest cosine between two axes.
AXIS_TOLERANCE = 1e-3
# pixdim and affine are rounded on their own.
_SPACING_RTOL = 0.01
# Distance, at a corner of the volume, between what sform and qform make of it. A correct qform may be off by 0.16 mm
# over a head: its quaternion is rounded to 32 bits, which matters near half a turn, as of axes that run to L, P and S.
FORMS_AGREE_MM = 0.3
# With fewer, nothing says what the distance of slices is worth; as of a DICOM series.
LEAST_SLICES = 3
# A number that scaling or an oblique affine has made may be off by this much of itself.
_ROUNDING = 1e-5
# gzip cannot shrink anything further.
_GZIP_MOST = 1032

NIFTI_SUFFIXES = (".nii.gz", ".nii")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES  # of every file that is a scan, in any case of letters
# NIfTI's codes of units that ITK converts to mm and nibabel does not.
_OTHER_UNITS = {1: "meter", 3: "micron"}
# Fields that say where a volume lies, by which every program places it.
PLACE_FIELDS = (
    *("qform_code", "sform_code", "xyzt_units", "pixdim"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


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

    def warnings(self) -> list[str]:
        """What a reader should know of the voxels, a sentence each."""


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

    def warnings(self) -> list[str]:
        """Nothing: what is doubtful is refused."""
        return []

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
        self._check_place(image)
        return image

    def _check_size(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """A damaged header may announce more voxels than the file can hold: refused before memory is asked for them."""
        announced, size = math.prod(shape) * dtype.itemsize, self.path.stat().st_size
        most = size * _GZIP_MOST if self.path.name.lower().endswith(".gz") else size
        if min(shape) < 1 or announced > most:
            found = f"{self.path.name}: {size} bytes for shape {shape}"
            raise CaseError("unreadable file", found, "a complete NIfTI file")

    def _check_place(self, image: nib.Nifti1Image) -> None:
        """Whether all programs place the volume alike: the rows of docs/data.md, in their order."""
        header, name, shape = image.header, self.path.name, image.shape[:3]
        unit = _OTHER_UNITS.get(int(header["xyzt_units"]) & 7)
        if unit is not None:
            raise CaseError("spacing", f"{name}: sizes in {unit}", "mm; convert sizes and positions, then xyzt_units")
        self._check_repairs(header)
        if header["sform_code"] <= 0 and header["qform_code"] <= 0:
            expected = "a header that says how the scan lies; convert it from DICOM again, or set a code if you know"
            raise CaseError("orientation", f"{name}: no position, sform and qform have code 0", expected)
        affine = self._affine(image)
        check_grid(name, shape, affine)
        if header["sform_code"] <= 0:
            return
        columns, sizes = affine[:3, :3], np.asarray(header["pixdim"][1:4], dtype=np.float64)
        spacing = np.linalg.norm(columns, axis=0)
        by_sizes = affine.copy()
        by_sizes[:3, :3] = columns / spacing * sizes
        if not (
            np.allclose(sizes, spacing, rtol=_SPACING_RTOL)
            and corner_distance(shape, affine, by_sizes) <= FORMS_AGREE_MM
        ):
            found = f"{name}: pixdim {_times(sizes)}, affine {_times(spacing)} mm"
            raise CaseError("spacing", found, "a header that gives one size of the voxels")
        if header["qform_code"] <= 0:
            return
        distance = corner_distance(shape, affine, _qform(header))
        if not distance <= FORMS_AGREE_MM:  # also where it is no number
            found = f"{name}: sform and qform differ by {distance:.3g} mm"
            expected = f"both to give a voxel one place, within {FORMS_AGREE_MM} mm; correct or remove the wrong one"
            raise CaseError("affine", found, expected)

    def _check_repairs(self, header: nib.Nifti1Header) -> None:
        """Values that nibabel has corrected in silence, and other programs correct otherwise or not at all."""
        with nib.openers.ImageOpener(str(self.path)) as stream:
            stored = type(header).from_fileobj(stream, check=False)
        if stored["sizeof_hdr"] != header["sizeof_hdr"]:
            found = f"{self.path.name}: a header of {stored['sizeof_hdr']} bytes by its own account"
            raise CaseError("unreadable file", found, f"sizeof_hdr {header['sizeof_hdr']}")
        for field in ("sform_code", "qform_code"):
            if stored[field] != header[field]:
                raise CaseError("orientation", f"{self.path.name}: {field} {stored[field]}", "a code from 0 to 5")
        sizes = np.asarray(stored["pixdim"][:4], dtype=np.float64)
        if not np.array_equal(sizes[1:], header["pixdim"][1:4], equal_nan=True):
            raise CaseError("spacing", f"{self.path.name}: pixdim {_times(sizes[1:])}", "sizes above 0")
        if sizes[0] != header["pixdim"][0] and sizes[0] != 0:
            raise CaseError("orientation", f"{self.path.name}: pixdim[0] {sizes[0]:g}", "-1 or 1, the side of the axes")

    @staticmethod
    def _affine(image: nib.Nifti1Image) -> NDArray[np.float64]:
        """4x4 affine, voxel index to mm, RAS+: the sform, without one the qform."""
        if image.header["sform_code"] > 0:
            return np.asarray(image.affine, dtype=np.float64)
        return _qform(image.header)

    def grid(self) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Shape (three sizes) and 4x4 affine (voxel index to mm, RAS+), from the header alone."""
        image = self.open()
        return tuple(int(size) for size in image.shape[:3]), self._affine(image)

    def header(self) -> dict[str, NDArray]:
        """The header's numbers by the names of nifti1.h, whatever the order of their bytes in the file; no text."""
        fields = self.open().header.as_byteswapped(native_code).items()
        return {name: np.array(value) for name, value in fields if value.dtype.kind not in "SUO"}

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
            if self.path.name.lower().endswith(".gz"):
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


@dataclass(frozen=True)
class ItkVolume:
    """A 3-D volume in a file of another format that ITK reads: NRRD or MetaImage, see `ITK_SUFFIXES`."""

    path: Path

    def files(self) -> list[Path]:
        """The file, and those that hold its numbers where it is a header alone."""
        return sorted({self.path, *(data_files(self.path) if self.path.is_file() else ())})

    def warnings(self) -> list[str]:
        """Nothing: what is doubtful is refused."""
        return []

    def open(self) -> sitk.ImageFileReader:
        """The header, dimensions, kind of numbers and place checked.

        Raises:
            CaseError: missing or unreadable file, or not one number at each voxel of a 3-D volume that has a place.
        """
        if not self.path.is_file():
            raise CaseError("missing file", f"no file {self.path}", "an image")
        reader, name = sitk.ImageFileReader(), self.path.name
        if gone := [file.name for file in self.files() if not file.is_file()]:
            found = f"{name}: no file {gone[0]}, which holds its voxels"
            raise CaseError("missing file", found, "header and voxels side by side")
        reader.SetFileName(str(self.path))
        try:
            header = read_text_header(self.path)
            if not header.unplaced or len(header.sizes) != 3:
                reader.ReadImageInformation()
        except (ValueError, OSError, RuntimeError) as error:
            raise CaseError("unreadable file", f"{name}: {one_line(error)}", "a NRRD or MetaImage file") from error
        if header.unplaced and len(header.sizes) == 3:
            expected = "a header that says how the scan lies; save it from 3D Slicer, or convert it from DICOM again"
            raise CaseError("orientation", f"{name}: {header.unplaced}", expected)
        shape = reader.GetSize()
        if len(shape) != 3:
            raise CaseError("not 3-D", f"{name}: {len(shape)}-D, shape {shape}", "a 3-D volume")
        if reader.GetNumberOfComponents() != 1:
            raise CaseError("color image", f"{name}: {reader.GetNumberOfComponents()} numbers", "one number per voxel")
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        if "complex" in kind:
            raise CaseError("unreadable file", f"{name}: data type {kind}", "plain numbers")
        if header.units not in ("", "mm"):
            raise CaseError("spacing", f"{name}: sizes in {header.units}", "mm; convert sizes and positions")
        if header.announced > header.most:
            found = f"{name}: {sum(file.stat().st_size for file in self.files())} bytes for shape {shape}"
            raise CaseError("unreadable file", found, "a complete file")
        check_grid(name, shape, _itk_affine(reader))
        return reader

    def grid(self) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Shape (three sizes) and 4x4 affine (voxel index to mm, RAS+), from the header alone."""
        reader = self.open()
        return tuple(reader.GetSize()), _itk_affine(reader)

    def voxels(self) -> NDArray:
        """The 3-D array in the order of the grid.

        Raises:
            CaseError: as `open`, and when the file ends too early.
        """
        reader = self.open()
        try:
            return sitk.GetArrayFromImage(reader.Execute()).T
        except (RuntimeError, MemoryError) as error:
            found = f"{self.path.name}: {one_line(error)}"
            raise CaseError("unreadable file", found, "a complete file") from error


def check_grid(name: str, shape: Sequence[int], affine: NDArray[np.float64]) -> None:
    """Refuses a grid that is none: spacings beyond `SPACING_MM`, axes that are skewed, no numbers, a place far
    beyond any scanner, too few slices.

    Args:
        name: of the file.
        shape: voxels along each axis.
        affine: 4x4, voxel index to mm.
    """
    columns = affine[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all():
        rows = ", ".join(f"[{' '.join(f'{value:.4g}' for value in row)}]" for row in affine[:3])
        raise CaseError("orientation", f"{name}: affine {rows}", "finite numbers")
    low, high = SPACING_MM[0] * (1 - _ROUNDING), SPACING_MM[1] * (1 + _ROUNDING)
    if spacing.min() < low or spacing.max() > high:
        expected = f"{SPACING_MM[0]} to {SPACING_MM[1]} mm"
        raise CaseError("spacing", f"{name}: voxels of {_times(spacing)} mm", expected)
    skew = np.abs((columns / spacing).T @ (columns / spacing) - np.eye(3)).max()
    if skew > AXIS_TOLERANCE:
        found = f"{name}: axes whose cosine is {skew:.3g}"
        raise CaseError("orientation", found, f"perpendicular axes, cosine at most {AXIS_TOLERANCE}")
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        found = f"{name}: the first voxel lies at {_times(affine[:3, 3])} mm"
        raise CaseError("orientation", found, f"a place within {FARTHEST_MM:g} mm of the origin")
    if min(shape) < LEAST_SLICES:
        found = f"{name}: {min(shape)}, shape {tuple(int(size) for size in shape)}"
        raise CaseError("number of slices", found, f"at least {LEAST_SLICES}")


def whole_numbers(labels: NDArray) -> NDArray:
    """Labels with what is whole but for the rounding of a scaling made whole; other numbers as they are."""
    if labels.dtype.kind != "f":
        return labels
    whole = np.rint(labels)
    return np.where(np.isclose(labels, whole, rtol=_ROUNDING, atol=_ROUNDING), whole, labels)


def _itk_affine(reader: sitk.ImageFileReader) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    affine[:3, 3] = reader.GetOrigin()
    return LPS_TO_RAS @ affine


def _times(sizes: NDArray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


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
    """Message of an error without line breaks, its type where it has none.

    Of what ITK says its classes, addresses and the full path are left out, which may tell a patient.
    """
    said = " ".join(str(error).partition("Traceback (most")[0].split()) or type(error).__name__
    if "SimpleITK" in said:
        said = re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", said.rpartition("ERROR: ")[2])
        said = re.sub(r"^(\w+: )+", "", said.rpartition("[nrrd] ")[2])
        said = "damaged, or cut off" if re.search("annot (be )?read", said) else said
    return said
