"""Makes DICOM MR series for the tests: classic slices, an enhanced multi-frame file, compressed and color variants.

Written from the standard (PS3.3 C.7.6.2.1.1), not from the bundle's reader, which it is there to test. UIDs derive from
strings, so that two runs write the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, generate_uid

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4.1"
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SMALL = (12, 10, 5)


class MadeSeries(NamedTuple):
    """What a made series is called; `sop_uids` and `paths` by slice, k = 0 first, whatever the instance numbers."""

    series_uid: str
    study_uid: str
    frame_uid: str
    sop_uids: list[str]
    paths: list[Path]


def make_uid(text: str) -> str:
    """The same UID for the same text."""
    return generate_uid(entropy_srcs=[text])


def make_affine(
    spacing: Sequence[float] = (0.5, 0.5, 1.5), *, origin: Sequence[float] = (0.0, 0.0, 0.0), plane: str = "axial"
) -> NDArray[np.float64]:
    """RAS affine of a right-handed slice stack as a scanner writes it: "axial", "sagittal", "coronal" or "oblique".

    Columns are the directions of increasing column, row and slice. Oblique is axial turned by 20 degrees about the
    x axis and then by 15 about the y axis.
    """
    lps = {
        "axial": np.eye(3),
        "oblique": np.eye(3),
        "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=np.float64),
        "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float64),
    }[plane]
    if plane == "oblique":
        a, b = np.deg2rad([20.0, 15.0])
        about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
        lps = about_y @ about_x @ lps
    affine = np.eye(4)
    affine[:3, :3] = (LPS_FROM_RAS[:3, :3] @ lps) * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def make_voxels(shape: tuple[int, ...] = SMALL, dtype: type = np.int16) -> NDArray:
    """Voxels each of which has a value of its own."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def write_small(folder: Path, shape: tuple[int, ...] = SMALL, plane: str = "axial", **options: Any) -> MadeSeries:
    """Writes a series of `make_voxels`, 0.5 x 0.5 x 1.5 mm; options are those of `write_series`."""
    return write_series(folder, make_voxels(shape), make_affine(plane=plane), **options)


def write_series(
    folder: Path,
    voxels: NDArray,
    affine: NDArray[np.float64],
    *,
    patient: str = "VS-SEG-001",
    description: str = "t2_ci3d_tra",
    study_uid: str | None = None,
    series_uid: str | None = None,
    frame_uid: str | None = None,
    modality: str = "MR",
    slope: float = 1.0,
    intercept: float = 0.0,
    order: str = "forward",
    names: str = "{:06d}.dcm",
    transfer_syntax: str = ExplicitVRLittleEndian,
    **attributes: Any,
) -> MadeSeries:
    """Writes one file per slice, and says what the UIDs are.

    Args:
        voxels: stored values, (X, Y, Z) or (X, Y, Z, 3) for RGB; X columns, Y rows, Z slices; uint8, int16 or uint16.
        affine: voxel index to mm, RAS+.
        patient: PatientID and PatientName.
        study_uid, series_uid, frame_uid: derived from patient, study and description where None.
        slope, intercept: not written where they are 1 and 0, as MR scanners do.
        order: "forward", or "reversed" for instance numbers and file names that fall with the slice index.
        names: file name by instance number, from 1.
        transfer_syntax: JPEG2000Lossless encodes the pixels; every other is only the encoding of the header.
        **attributes: further attributes by keyword, over the ones here; None removes one, a function gets the slice
            index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study_uid = study_uid or make_uid(f"{patient} study")
    series_uid = series_uid or make_uid(f"{patient} {study_uid} {description} series")
    frame_uid = frame_uid or make_uid(f"{study_uid} frame of reference")
    data = _common(voxels, affine)
    data.SOPClassUID = MR_IMAGE
    data.PatientID = data.PatientName = patient
    data.SeriesDescription, data.Modality = description, modality
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study_uid, series_uid, frame_uid
    data.PixelSpacing, data.SliceThickness, data.ImageOrientationPatient = _plane(affine)
    data.EchoTime, data.RepetitionTime = 177.0, 1000.0
    if (slope, intercept) != (1.0, 0.0):
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
    count, uids, paths = voxels.shape[2], [], []
    for k in range(count):
        number = k + 1 if order == "forward" else count - k
        data.SOPInstanceUID = make_uid(f"{series_uid} {k}")
        data.InstanceNumber = number
        data.ImagePositionPatient = _position(affine, k)
        _set_pixels(data, voxels[:, :, k : k + 1], transfer_syntax)
        _set_attributes(data, attributes, k)
        paths.append(folder / names.format(number))
        save(paths[-1], data, transfer_syntax)
        uids.append(str(data.SOPInstanceUID))
    return MadeSeries(series_uid, study_uid, frame_uid, uids, paths)


def write_enhanced(
    path: Path,
    voxels: NDArray,
    affine: NDArray[np.float64],
    *,
    patient: str = "VS-SEG-001",
    description: str = "t2_enhanced",
    slope: float = 1.0,
    intercept: float = 0.0,
    order: str = "forward",
    shared: bool = True,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **attributes: Any,
) -> MadeSeries:
    """Writes one Enhanced MR file, and says what the UIDs are; the arguments are as for `write_series`, except:

    Args:
        voxels: stored values (X, Y, Z), or (X, Y, Z, T) for T temporal positions of every slice.
        order: of the frames.
        shared: orientation, spacing and rescale once for all frames, or else in every frame.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = voxels if voxels.ndim == 4 else voxels[..., None]
    study_uid = make_uid(f"{patient} study")
    series_uid = make_uid(f"{patient} {study_uid} {description} series")
    frame_uid = make_uid(f"{study_uid} frame of reference")
    data = _common(voxels[..., 0], affine)
    data.SOPClassUID = ENHANCED_MR_IMAGE
    data.PatientID = data.PatientName = patient
    data.SeriesDescription, data.Modality, data.InstanceNumber = description, "MR", 1
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study_uid, series_uid, frame_uid
    data.SOPInstanceUID = make_uid(f"{series_uid} 0")
    slices = list(range(voxels.shape[2]))
    frames = [(k, t) for t in range(voxels.shape[3]) for k in (slices if order == "forward" else slices[::-1])]
    data.NumberOfFrames = len(frames)
    common = _frame_groups(affine, slope, intercept)
    data.SharedFunctionalGroupsSequence = [common if shared else Dataset()]
    groups = []
    for k, t in frames:
        group = Dataset() if shared else _frame_groups(affine, slope, intercept)
        position, content = Dataset(), Dataset()
        position.ImagePositionPatient = _position(affine, k)
        content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = "1", k + 1, t + 1
        content.FrameAcquisitionNumber, content.DimensionIndexValues = t + 1, [1, k + 1, t + 1]
        group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    _set_pixels(data, np.stack([voxels[:, :, k, t] for k, t in frames], axis=2), transfer_syntax)
    _set_attributes(data, attributes, 0)
    save(path, data, transfer_syntax)
    return MadeSeries(series_uid, study_uid, frame_uid, [str(data.SOPInstanceUID)], [path])


def save(path: Path, data: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    """Writes a data set of any SOP class as a DICOM file with preamble and file meta information."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = transfer_syntax
    file = FileDataset(str(path), data, file_meta=meta, preamble=b"\0" * 128)
    file.is_little_endian, file.is_implicit_VR = True, transfer_syntax == ImplicitVRLittleEndian
    file.save_as(path, write_like_original=False)


def _common(voxels: NDArray, affine: NDArray[np.float64]) -> Dataset:
    """The attributes that slices and frames share, patient and identity apart."""
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data.StudyDate, data.StudyTime, data.StudyID = "20120102", "101112", "1"
    data.Manufacturer, data.ManufacturerModelName = "SIEMENS", "Avanto"
    data.StudyDescription, data.SeriesNumber, data.PatientPosition = "MR head", 3, "HFS"
    data.Columns, data.Rows = voxels.shape[:2]
    data.SamplesPerPixel = 3 if voxels.ndim == 4 else 1
    data.PhotometricInterpretation = "RGB" if voxels.ndim == 4 else "MONOCHROME2"
    if voxels.ndim == 4:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * voxels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(voxels.dtype.kind == "i")
    data.SpacingBetweenSlices = _number(np.linalg.norm(affine[:3, 2]))
    return data


def _plane(affine: NDArray[np.float64]) -> tuple[list[float], float, list[float]]:
    """PixelSpacing (between rows, then between columns), the distance of slices, and ImageOrientationPatient (LPS)."""
    axes = (LPS_FROM_RAS @ affine)[:3, :3]
    column, row, slices = np.linalg.norm(axes, axis=0)
    cosines = [*axes[:, 0] / column, *axes[:, 1] / row]
    return [_number(row), _number(column)], _number(slices), [_number(value) for value in cosines]


def _position(affine: NDArray[np.float64], k: int) -> list[float]:
    """ImagePositionPatient of slice k: center of its first pixel, LPS mm."""
    return [_number(value) for value in (LPS_FROM_RAS @ affine @ [0, 0, k, 1])[:3]]


def _number(value: Any) -> float:
    """A number that fits into the 16 characters of a decimal string."""
    return float(f"{value:.10f}"[:16])


def _frame_groups(affine: NDArray[np.float64], slope: float, intercept: float) -> Dataset:
    """Functional groups: pixel measures, plane orientation, pixel value transformation."""
    group, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, orientation.ImageOrientationPatient = _plane(affine)
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, intercept, "US"
    group.PixelMeasuresSequence, group.PlaneOrientationSequence = [measures], [orientation]
    group.PixelValueTransformationSequence = [rescale]
    return group


def _set_pixels(data: Dataset, voxels: NDArray, transfer_syntax: str) -> None:
    """PixelData of the frames along the third axis, compressed where the transfer syntax says so."""
    frames = [np.ascontiguousarray(voxels[:, :, k].swapaxes(0, 1)) for k in range(voxels.shape[2])]
    if transfer_syntax == JPEG2000Lossless:
        if voxels.dtype.kind != "u":
            raise ValueError(f"Pillow encodes unsigned numbers to JPEG 2000, found {voxels.dtype}")
        coded = []
        for frame in frames:
            stream = io.BytesIO()
            Image.fromarray(frame).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
            coded.append(stream.getvalue())
        data.PixelData = encapsulate(coded)
        data["PixelData"].is_undefined_length = True
    else:
        data.PixelData = b"".join(frame.tobytes() for frame in frames)
        if len(data.PixelData) % 2:
            data.PixelData += b"\0"
    data["PixelData"].VR = "OB" if transfer_syntax == JPEG2000Lossless or voxels.dtype.itemsize == 1 else "OW"


def _set_attributes(data: Dataset, attributes: dict[str, Any], k: int) -> None:
    """Overrides by keyword; None removes, a function is called with the slice index."""
    for keyword, value in attributes.items():
        value = value(k) if callable(value) else value
        if value is not None:
            setattr(data, keyword, value)
        elif keyword in data:
            delattr(data, keyword)
