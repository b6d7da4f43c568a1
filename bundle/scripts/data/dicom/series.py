"""A DICOM series as one 3-D volume: its grid from the headers, its voxels from the decoded pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.util import apply_modality_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from scripts.data.dicom.headers import (
    Instance,
    directions,
    frames_of,
    functional_groups,
    integer_of,
    number_of,
    pydicom_errors,
    slice_distances,
    slice_positions,
    uid_name,
)
from scripts.data.dicom.series_checks import stack_problems
from scripts.data.volume import LPS_TO_RAS, CaseError

# A frame that decompresses to more than this, and to more than this many times its file, is a damaged header.
_DECOMPRESSED_BYTES, _COMPRESSION = 2**26, 100


@dataclass(frozen=True)
class Series:
    """The images of one SeriesInstanceUID, as a 3-D volume (`Volume` in `volume.py`).

    Args:
        instances: at least one, sorted by path.
    """

    instances: tuple[Instance, ...]

    @property
    def header(self) -> Instance:
        """What all instances say alike, such as patient, study and description; "" is a missing value."""
        return self.instances[0]

    def files(self) -> list[Path]:
        """Every file of the series, sorted."""
        return [Path(instance.path) for instance in self.instances]

    def sop_uids(self) -> frozenset[str]:
        """SOPInstanceUID of every instance."""
        return frozenset(instance.sop_uid for instance in self.instances)

    def problems(self) -> list[CaseError]:
        """Every check of the headers that fails; empty for a series that is one evenly spaced stack of slices."""
        try:
            return list(stack_problems(self._slices()))
        except CaseError as error:
            return [error]

    def grid(self) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Shape (columns, rows, slices) and 4x4 affine (voxel index to mm, RAS+), from headers alone.

        Slices rise along the cross product of the row and the column direction, whatever their instance numbers.

        Raises:
            CaseError: the first check that fails.
        """
        return _grid(self._checked_slices())

    def voxels(self) -> NDArray:
        """The array (columns, rows, slices), rescaled as the headers say; integers where nothing is to be rescaled.

        Raises:
            CaseError: as `grid`, and when pixels are damaged or cannot be decoded.
        """
        planes: list[NDArray] = []
        path, decoded = "", []
        for one in self._checked_slices():
            if one.path != path:
                path, decoded = one.path, _decode(one)
            planes.append(decoded[one.frame or 0])
        return np.stack(planes).transpose(2, 1, 0)

    def _slices(self) -> list[Instance]:
        """One instance per slice: enhanced files frame by frame."""
        slices: list[Instance] = []
        for instance in self.instances:
            if instance.frames > 1 or "Enhanced" in uid_name(instance.sop_class):
                slices += frames_of(instance)
            else:
                slices.append(instance)
        return slices

    def _checked_slices(self) -> list[Instance]:
        """The slices from bottom to top of the stack."""
        slices = self._slices()
        for error in stack_problems(slices):
            raise error
        distances = slice_distances(slices)
        return [slices[index] for index in np.argsort(distances, kind="stable")]


def _grid(stack: Sequence[Instance]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and RAS affine of checked slices in order of the stack."""
    first, positions = stack[0], slice_positions(stack)
    row, column = directions(first)
    between_rows, between_columns = first.spacing or (0.0, 0.0)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = row * between_columns, column * between_rows
    lps[:3, 2] = (positions[-1] - positions[0]) / (len(stack) - 1)
    lps[:3, 3] = positions[0]
    return (*(first.shape or ()), len(stack)), LPS_TO_RAS @ lps


def _decode(instance: Instance) -> list[NDArray]:
    """Frames of a file, each (rows, columns), rescaled; they share memory where nothing is to be rescaled."""
    with pydicom_errors(instance):
        data = pydicom.dcmread(instance.path, force=True)
        if "TransferSyntaxUID" not in data.file_meta:
            explicit = ExplicitVRLittleEndian if data.is_little_endian else ExplicitVRBigEndian
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if data.is_implicit_VR else explicit
        _check_size(data, instance)
        columns, rows = instance.shape or (0, 0)
        pixels = data.pixel_array
        if pixels.size != instance.frames * rows * columns or pixels.dtype.kind not in "iuf":
            found = f"{instance}: pixels {pixels.shape} of type {pixels.dtype}"
            raise CaseError("unreadable file", found, f"{instance.frames} frames of {rows} x {columns} numbers")
        frames = _stored_bits(pixels, data).reshape(instance.frames, rows, columns)
        values: list[Dataset] = [data] * instance.frames
        if data.get("PerFrameFunctionalGroupsSequence"):
            groups = (functional_groups(data, index) for index in range(instance.frames))
            values = [group("PixelValueTransformationSequence") for group in groups]
        planes = [_rescaled(frame, value, instance) for frame, value in zip(frames, values, strict=True)]
    if not all(np.isfinite(plane).all() for plane in planes):
        raise CaseError("unreadable file", f"{instance}: values that are not finite", "finite numbers")
    return planes


def _check_size(data: Dataset, instance: Instance) -> None:
    """Refuse sizes that the file cannot hold, before memory is taken for them."""
    length = os.path.getsize(instance.path)
    frames = integer_of(data, "NumberOfFrames") or 1
    claimed = frames * data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated // 8
    compressed = data.file_meta.TransferSyntaxUID.is_compressed
    if claimed > (max(_DECOMPRESSED_BYTES * frames, _COMPRESSION * length) if compressed else length):
        found = f"{instance}: {length} bytes, for {claimed} bytes of pixels"
        raise CaseError("unreadable file", found, "a complete DICOM file")


def _stored_bits(pixels: NDArray, data: Dataset) -> NDArray:
    """Pixels without what old scanners keep in the bits that are not stored, such as overlays."""
    unused = data.BitsAllocated - data.BitsStored
    if pixels.dtype.kind == "f" or unused <= 0 or data.file_meta.TransferSyntaxUID.is_compressed:
        return pixels
    return (pixels << unused) >> unused  # keeps the sign of signed numbers


def _rescaled(frame: NDArray, data: Dataset, instance: Instance) -> NDArray:
    """Modality LUT or rescale slope and intercept applied: float32, or the stored numbers if there is nothing to do."""
    if "ModalityLUTSequence" not in data:
        slope = number_of(data, "RescaleSlope") if "RescaleSlope" in data else 1.0
        intercept = number_of(data, "RescaleIntercept") if "RescaleIntercept" in data else 0.0
        if not slope or intercept is None:
            found = f"{instance}: slope {slope}, intercept {intercept}"
            raise CaseError("rescale", found, "a slope that is not 0, an intercept")
        if (slope, intercept) == (1.0, 0.0):
            return frame
        return (frame * slope + intercept).astype(np.float32)
    return np.asarray(apply_modality_lut(frame, data), dtype=np.float32)
