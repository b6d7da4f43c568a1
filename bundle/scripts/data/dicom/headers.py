"""One DICOM image: what its header says, and where it lies; an enhanced multi-frame file also frame by frame.

The attributes are those of PS3.3 C.7.6.2.1.1 (Image Plane) and of the functional groups of C.7.6.16.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement_from_raw, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import UID

from scripts.data.volume import CaseError, one_line

TAGS = {
    keyword: Tag(keyword)
    for keyword in (
        "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyDate Modality SeriesDescription PatientName PatientID "
        "DiffusionBValue EchoTime StudyInstanceUID SeriesInstanceUID InstanceNumber ImagePositionPatient "
        "ImageOrientationPatient FrameOfReferenceUID TemporalPositionIdentifier SamplesPerPixel "
        "PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing RescaleIntercept RescaleSlope "
        "LossyImageCompression LossyImageCompressionRatio"
    ).split()
}
# Philips' own scale slope, and the sequence that it stands in where each frame has one.
_PHILIPS_SLOPE, _PHILIPS_FRAME = Tag(0x2005, 0x100E), Tag(0x2005, 0x140F)


@dataclass(frozen=True, slots=True)
class Instance:
    """What the header of one image says; for an enhanced file also one frame of it. None and "" are missing values.

    Args:
        shape: columns, rows.
        position, orientation: ImagePositionPatient and ImageOrientationPatient, LPS mm and direction cosines.
        spacing: PixelSpacing: distance between rows, then between columns, mm.
        number: InstanceNumber.
        rescale: RescaleSlope and RescaleIntercept.
        lossy, lossy_ratio: LossyImageCompression ("01" was once compressed with loss, "00" never was), and its ratio.
        frames: NumberOfFrames.
        frame: index of the frame in the file; None for the file as a whole.
    """

    path: str
    sop_class: str
    sop_uid: str
    series_uid: str
    study_uid: str
    frame_of_reference: str
    patient: str
    modality: str
    description: str
    study_date: str
    transfer_syntax: str
    photometric: str
    lossy: str
    lossy_ratio: str
    number: int | None
    frames: int
    samples: int
    shape: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    rescale: tuple[float, float] | None
    echo_time: float | None
    time_point: float | None
    b_value: float | None
    frame: int | None = None

    def __str__(self) -> str:
        name = os.path.basename(self.path)
        return name if self.frame is None else f"{name} frame {self.frame + 1}"


def directions(one: Instance) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors of increasing column and of increasing row index, LPS; the instance must have them."""
    row, column = np.asarray(one.orientation, dtype=np.float64).reshape(2, 3)
    return row, column


def slice_positions(slices: Sequence[Instance]) -> NDArray[np.float64]:
    """Positions of slices (N, 3), LPS mm; all must have one."""
    return np.array([one.position for one in slices], dtype=np.float64)


def slice_distances(slices: Sequence[Instance]) -> NDArray[np.float64]:
    """Distance of each slice along the normal of the first one, mm."""
    normal = np.cross(*directions(slices[0]))
    return slice_positions(slices) @ (normal / np.linalg.norm(normal))


@functools.lru_cache(maxsize=64)
def uid_name(uid: str) -> str:
    """Name of a registered UID; the UID itself where it is none."""
    return UID(uid, pydicom.config.IGNORE).name


def read_instance(path: str, data: Dataset, sop_class: str, patient: str) -> Instance:
    """What the header of an image says; a classic file, or an enhanced one as a whole."""
    columns, rows = integer_of(data, "Columns"), integer_of(data, "Rows")
    frames, samples = integer_of(data, "NumberOfFrames"), integer_of(data, "SamplesPerPixel")
    return Instance(
        path=path,
        sop_class=sop_class,
        sop_uid=text_of(data, "SOPInstanceUID"),
        series_uid=text_of(data, "SeriesInstanceUID"),
        study_uid=text_of(data, "StudyInstanceUID"),
        frame_of_reference=text_of(data, "FrameOfReferenceUID"),
        patient=patient,
        modality=text_of(data, "Modality"),
        description=text_of(data, "SeriesDescription"),
        study_date=text_of(data, "StudyDate"),
        transfer_syntax=text_of(data.file_meta, "TransferSyntaxUID"),
        photometric=text_of(data, "PhotometricInterpretation"),
        lossy=text_of(data, "LossyImageCompression"),
        lossy_ratio=text_of(data, "LossyImageCompressionRatio"),
        number=integer_of(data, "InstanceNumber"),
        frames=1 if frames is None else frames,
        samples=1 if samples is None else samples,
        shape=(columns, rows) if columns and rows else None,
        **_plane(data, data, data),
        rescale=_rescale(data),
        echo_time=number_of(data, "EchoTime"),
        time_point=number_of(data, "TemporalPositionIdentifier"),
        b_value=number_of(data, "DiffusionBValue"),
    )


def _plane(measures: Dataset, orientation: Dataset, position: Dataset) -> dict[str, Any]:
    """The attributes of an image plane, from one data set or from three functional groups."""
    return {
        "spacing": _numbers(measures, "PixelSpacing", 2),
        "orientation": _numbers(orientation, "ImageOrientationPatient", 6),
        "position": _numbers(position, "ImagePositionPatient", 3),
    }


def _rescale(data: Dataset) -> tuple[float, float] | None:
    """RescaleSlope and RescaleIntercept; None where one is missing."""
    slope, intercept = number_of(data, "RescaleSlope"), number_of(data, "RescaleIntercept")
    return None if slope is None or intercept is None else (slope, intercept)


def text_of(data: Dataset, keyword: str) -> str:
    """A value as text, decoded by the file's character set, control signs made spaces; "" where it is missing."""
    value = _value(data, keyword)
    if isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    text = "" if value is None else str(value).strip(" \0")
    return text if text.isprintable() else "".join(sign if sign.isprintable() else " " for sign in text)


def _numbers(data: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers; None where they are missing or something else."""
    try:
        value = _value(data, keyword)
        numbers = tuple(float(number) for number in (value if count > 1 else [value]))
    except Exception:  # pydicom does not say what it raises on damaged values
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _value(data: Dataset, keyword: str) -> Any:
    """A value as pydicom gives it, to be read and not changed; None where it is missing."""
    element = data.get_item(TAGS.get(keyword, keyword))
    if isinstance(element, RawDataElement):
        encodings = data.read_encoding
        names = (encodings,) if isinstance(encodings, str) else tuple(encodings or ())
        return _converted(element._replace(value_tell=0), names)
    return None if element is None else element.value


@functools.lru_cache(maxsize=1024)
def _converted(element: RawDataElement, encodings: tuple[str, ...]) -> Any:
    """Value of stored bytes. Most are the same in all slices, and pydicom needs long for each: they are kept."""
    return DataElement_from_raw(element, list(encodings)).value


def number_of(data: Dataset, keyword: str) -> float | None:
    """A finite number; None where it is missing or something else."""
    numbers = _numbers(data, keyword, 1)
    return None if numbers is None else numbers[0]


def integer_of(data: Dataset, keyword: str) -> int | None:
    """A number without its decimals; None where it is missing or something else."""
    number = number_of(data, keyword)
    return None if number is None else int(number)


@contextmanager
def pydicom_errors(source: object, expected: str = "a complete DICOM file") -> Iterator[None]:
    """Turns whatever pydicom and its decoders raise inside the block into a CaseError; they do not say what they raise.

    Args:
        source: the file, as it is to be called in the message.
        expected: what it should be.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that break a rule: checks here decide
            yield
    except CaseError:
        raise
    except Exception as error:
        raise CaseError("unreadable file", f"{source}: {one_line(error)}", expected) from error


def frames_of(instance: Instance) -> list[Instance]:
    """One instance per frame of an enhanced file, whose header is read again for the functional groups."""
    tags = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
    with pydicom_errors(instance):
        data = pydicom.dcmread(instance.path, stop_before_pixels=True, specific_tags=tags, force=True)
        per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
        if len(per_frame) != instance.frames or not per_frame:
            found = f"{instance}: {instance.frames} frames, {len(per_frame)} functional groups"
            raise CaseError("missing attribute", found, "an enhanced file with one functional group per frame")
        return [_frame(instance, functional_groups(data, index), index) for index in range(instance.frames)]


def has_philips_scaling(instance: Instance) -> bool:
    """Whether a file has Philips' own scale slope (2005,100E), of its data set or of its first frame."""
    with pydicom_errors(instance):
        data = pydicom.dcmread(instance.path, stop_before_pixels=True, force=True)
        frame = (data.get("PerFrameFunctionalGroupsSequence") or [Dataset()])[0]
        own = frame[_PHILIPS_FRAME].value if _PHILIPS_FRAME in frame else ()
        return any(_PHILIPS_SLOPE in one for one in (data, *own))


def functional_groups(data: Dataset, index: int) -> Callable[[str], Dataset]:
    """A function that gives a functional group of a frame by its keyword: its own, else the shared, else empty."""
    shared = data.get("SharedFunctionalGroupsSequence") or [Dataset()]
    levels = (data.PerFrameFunctionalGroupsSequence[index], shared[0])

    def group(keyword: str) -> Dataset:
        return next((level.get(keyword)[0] for level in levels if level.get(keyword)), Dataset())

    return group


def _frame(instance: Instance, group: Callable[[str], Dataset], index: int) -> Instance:
    return replace(
        instance,
        frame=index,
        number=None,  # of the file, not of the frame
        **_plane(group("PixelMeasuresSequence"), group("PlaneOrientationSequence"), group("PlanePositionSequence")),
        rescale=_rescale(group("PixelValueTransformationSequence")),
        echo_time=number_of(group("MREchoSequence"), "EffectiveEchoTime"),
        time_point=number_of(group("FrameContentSequence"), "TemporalPositionIndex"),
        b_value=number_of(group("MRDiffusionSequence"), "DiffusionBValue"),
    )
