"""Pixels of a DICOM file: decoded, whatever compression an archive has chosen, in the units that its header says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.pixel_data_handlers.util import apply_modality_lut
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessP14,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from scripts.data.dicom.headers import Instance, functional_groups, integer_of, number_of, pydicom_errors
from scripts.data.volume import CaseError

# Decoded by the GDCM inside SimpleITK, which reads them all alike.
_BY_GDCM = frozenset(
    (
        *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessP14, JPEGLosslessSV1),
        *(JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000),
    )
)
# Decoded by pydicom itself, which checks how many bytes there are.
_BY_PYDICOM = frozenset(
    (
        *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian),
        *(DeflatedExplicitVRLittleEndian, RLELossless),
    )
)
READABLE = _BY_GDCM | _BY_PYDICOM
LOSSY = frozenset((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000))

# A frame that decompresses to more than this, and to more than this many times its file, is a damaged header.
_DECOMPRESSED_BYTES, _COMPRESSION = 2**26, 100
# What pixels cannot be read without.
_OF_PIXELS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation", "PixelData")
# Marker with which JPEG, JPEG-LS and JPEG 2000 end: decoders fill what is cut off with what they like.
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_JPEG = b"\xff\xd8"
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def is_lossy(instance: Instance) -> bool:
    """Whether an image was compressed with loss, now or ever; JPEG 2000 may be either: it counts unless denied."""
    if instance.transfer_syntax == JPEG2000:
        return instance.lossy != "00"
    return instance.transfer_syntax in LOSSY or instance.lossy == "01"


def decode(instance: Instance) -> list[NDArray]:
    """Frames of a file, each (rows, columns), rescaled, high values bright.

    They are the stored numbers, and share memory, where nothing is to be rescaled.

    Raises:
        CaseError: "unreadable file" where pixels are damaged; "rescale", "photometric interpretation" where the header
            does not say what the numbers mean.
    """
    with pydicom_errors(instance):
        data = pydicom.dcmread(instance.path, force=True)
        if "TransferSyntaxUID" not in data.file_meta:
            explicit = ExplicitVRLittleEndian if data.is_little_endian else ExplicitVRBigEndian
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if data.is_implicit_VR else explicit
        _check_size(data, instance)
        columns, rows = instance.shape or (0, 0)
        by_gdcm = data.file_meta.TransferSyntaxUID in _BY_GDCM
        pixels = np.stack(list(_gdcm_frames(data, instance))) if by_gdcm else data.pixel_array
        if pixels.size != instance.frames * rows * columns or pixels.dtype.kind not in "iuf":
            found = f"{instance}: pixels {pixels.shape} of type {pixels.dtype}"
            raise CaseError("unreadable file", found, f"{instance.frames} frames of {rows} x {columns} numbers")
        frames = _stored_bits(pixels, data).reshape(instance.frames, rows, columns)
        if instance.photometric == "MONOCHROME1":
            frames = _inverted(frames, data, instance)
        values: list[Dataset] = [data] * instance.frames
        if data.get("PerFrameFunctionalGroupsSequence"):
            groups = (functional_groups(data, index) for index in range(instance.frames))
            values = [group("PixelValueTransformationSequence") for group in groups]
        planes = [_rescaled(frame, value, instance) for frame, value in zip(frames, values, strict=True)]
    if not all(np.isfinite(plane).all() for plane in planes):
        raise CaseError("unreadable file", f"{instance}: values that are not finite", "finite numbers")
    return planes


def _check_size(data: Dataset, instance: Instance) -> None:
    """Refuse sizes that the file cannot hold, before memory is taken for them, and pixels that nothing describes."""
    if absent := [keyword for keyword in _OF_PIXELS if data.get(keyword) in (None, "")]:
        found = f"{instance}: no {' and no '.join(absent)}"
        check = "missing attribute" if "SOPClassUID" in data else "unreadable file"
        raise CaseError(check, found, "pixels, and what they are, in every image")
    if data.BitsAllocated not in (1, 8, 16, 32, 64):
        found = f"{instance}: BitsAllocated {data.BitsAllocated}"
        raise CaseError("unreadable file", found, "a number of bits that pixels have, such as 16")
    length = os.path.getsize(instance.path)
    frames = integer_of(data, "NumberOfFrames") or 1
    claimed = frames * data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated // 8
    compressed = UID(data.file_meta.TransferSyntaxUID).is_compressed
    if claimed > (max(_DECOMPRESSED_BYTES * frames, _COMPRESSION * length) if compressed else length):
        found = f"{instance}: {length} bytes, for {claimed} bytes of pixels"
        raise CaseError("unreadable file", found, "a complete DICOM file")


def _gdcm_frames(data: Dataset, instance: Instance) -> Iterator[NDArray]:
    """Stored numbers of each frame, read as a file of its own that says nothing but how large its pixels are.

    GDCM applies sign, stored bits, rescale and photometric interpretation as it sees fit; here it is told of none.
    """
    bits = data.BitsAllocated
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "frame.dcm")
        for stream in generate_pixel_data_frame(data.PixelData, instance.frames):
            if not stream.rstrip(b"\0").endswith(_END_OF_IMAGE):
                raise CaseError("unreadable file", f"{instance}: compressed pixels without an end", "a complete file")
            _write_frame(path, stream, data)
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO="GDCMImageIO"))
            most = max(8 * pixels.itemsize, _precision(stream))
            if pixels.dtype.kind != "u" or most > bits:
                found = f"{instance}: compressed pixels of {most} bits, BitsAllocated {bits}"
                raise CaseError("unreadable file", found, "a header that agrees with the pixels")
            unsigned = pixels.reshape(pixels.shape[-2:]).astype(f"u{bits // 8}")
            yield unsigned.view(f"i{bits // 8}") if data.PixelRepresentation else unsigned


def _write_frame(path: str, stream: bytes, data: Dataset) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, UID("1.2.3")
    meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    frame = FileDataset(path, {}, file_meta=meta, preamble=bytes(128))
    frame.is_little_endian, frame.is_implicit_VR = True, False
    frame.SOPClassUID, frame.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    frame.PhotometricInterpretation, frame.PixelRepresentation = "MONOCHROME2", 0
    frame.Rows, frame.Columns, frame.SamplesPerPixel = data.Rows, data.Columns, data.SamplesPerPixel
    frame.BitsAllocated = frame.BitsStored = data.BitsAllocated
    frame.HighBit = data.BitsAllocated - 1
    frame.PixelData = encapsulate([stream])
    frame["PixelData"].VR, frame["PixelData"].is_undefined_length = "OB", True
    frame.save_as(path, write_like_original=False)


def _precision(stream: bytes) -> int:
    """Bits of a number, as a JPEG or JPEG-LS stream says; 0 for JPEG 2000, of which GDCM believes the stream."""
    place = 2
    while stream[:2] == _START_OF_JPEG and place + 4 < len(stream):
        if stream[place + 1] in _START_OF_FRAME:
            return stream[place + 4]
        place += 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    return 0


def _stored_bits(pixels: NDArray, data: Dataset) -> NDArray:
    """Pixels without what old scanners keep in the bits that are not stored, such as overlays."""
    unused = data.BitsAllocated - data.BitsStored
    if pixels.dtype.kind == "f" or unused <= 0 or data.file_meta.TransferSyntaxUID == JPEG2000:  # may overshoot a bit
        return pixels
    return (pixels << unused) >> unused  # keeps the sign of signed numbers


def _inverted(frames: NDArray, data: Dataset, instance: Instance) -> NDArray:
    """MONOCHROME1, where low values are bright, as MONOCHROME2: mirrored in the range that the stored bits have."""
    lowest = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
    highest = lowest + 2**data.BitsStored - 1
    if "ModalityLUTSequence" in data or not lowest <= frames.min() <= frames.max() <= highest:
        found = f"{instance}: MONOCHROME1 (low values are bright) with a modality LUT or values beyond BitsStored"
        raise CaseError("photometric interpretation", found, "MONOCHROME2, as MR images have")
    return (lowest + highest - frames.astype(np.int64)).astype(frames.dtype)


def _rescaled(frame: NDArray, data: Dataset, instance: Instance) -> NDArray:
    """Modality LUT or rescale slope and intercept applied: float32, or the stored numbers if there is nothing to do.

    Scaling of a manufacturer's own, such as Philips' (2005,100E) and (2005,100D), is not applied.
    """
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
