"""DICOM folders: finds series from headers alone, checks their geometry, and gives each series as one 3-D volume.

Geometry follows PS3.3 C.7.6.2.1.1 (Image Plane): classic single-frame files and enhanced multi-frame ones. Which
series belongs to which case is in `studies.py`, contours of an RTSTRUCT in `contours.py`. No torch here, and nothing is
written.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.pixel_data_handlers.util import apply_modality_lut
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from tqdm import tqdm

from scripts.data.volume import VolumeError, one_line

MIN_SLICES = 3
SPACING_IN_PLANE = (0.05, 5.0)  # mm
SPACING_OF_SLICES = (0.1, 20.0)  # mm
ORIENTATION_TOLERANCE = 1e-3  # of the length of a direction cosine vector, and of the product of the two
SAME_TOLERANCE = 1e-4  # numbers that should be one and the same in all slices
SAME_POSITION = 0.01  # mm
GAP_TOLERANCE = (0.01, 0.01)  # relative to the distance of slices, and mm; the larger holds
SHEAR_TOLERANCE = 0.01  # mm per slice

_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_TAGS = {
    keyword: Tag(keyword)
    for keyword in (
        "SpecificCharacterSet SOPClassUID SOPInstanceUID StudyDate Modality SeriesDescription PatientName PatientID "
        "DiffusionBValue EchoTime StudyInstanceUID SeriesInstanceUID InstanceNumber ImagePositionPatient "
        "ImageOrientationPatient FrameOfReferenceUID TemporalPositionIdentifier SamplesPerPixel "
        "PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing"
    ).split()
}
_LAST_TAG = 0x0028FFFF  # nothing behind the image description is needed: contours, doses and frames are not even read
_CHUNK = 250  # files that a worker takes at a time
# A frame that decompresses to more than this, and to more than this many times its file, is a damaged header.
_DECOMPRESSED_BYTES, _COMPRESSION = 2**26, 100
_ADVICE = "uncompressed pixels: convert the files with `gdcmconv --raw IN OUT` or `dcmdjpeg IN OUT` first"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Instance:
    """What the header of one image says; for an enhanced file also one frame of it. None and "" are missing values.

    Args:
        shape: columns, rows.
        position, orientation: ImagePositionPatient and ImageOrientationPatient, LPS mm and direction cosines.
        spacing: PixelSpacing: distance between rows, then between columns, mm.
        number: InstanceNumber.
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
    number: int | None
    frames: int
    samples: int
    shape: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    echo_time: float | None
    time_point: float | None
    b_value: float | None
    frame: int | None = None

    def __str__(self) -> str:
        name = os.path.basename(self.path)
        return name if self.frame is None else f"{name} frame {self.frame + 1}"


class StructureSet(NamedTuple):
    """An RTSTRUCT file, of which no contour has been read."""

    path: Path
    study_uid: str
    sop_uid: str
    patient: str


class Unreadable(NamedTuple):
    """A file that should be DICOM and cannot be read."""

    path: Path
    message: str


@dataclass(frozen=True)
class Series:
    """The images of one SeriesInstanceUID, as a 3-D volume (`Volume` in `volume.py`).

    Args:
        instances: at least one, sorted by path; the identity of the series is the first one's.
    """

    instances: tuple[Instance, ...]

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self.instances[0].series_uid

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID."""
        return self.instances[0].study_uid

    @property
    def patient(self) -> str:
        """PatientID, else PatientName, else "unknown"."""
        return self.instances[0].patient

    @property
    def modality(self) -> str:
        """Modality, such as MR."""
        return self.instances[0].modality

    @property
    def description(self) -> str:
        """SeriesDescription; "" where there is none."""
        return self.instances[0].description

    @property
    def frame_of_reference(self) -> str:
        """FrameOfReferenceUID; "" where there is none."""
        return self.instances[0].frame_of_reference

    @property
    def study_date(self) -> str:
        """StudyDate as YYYYMMDD, by which studies can be ordered; "" where there is none."""
        return self.instances[0].study_date

    def files(self) -> list[Path]:
        """Every file of the series, sorted."""
        return [Path(instance.path) for instance in self.instances]

    def problems(self) -> list[VolumeError]:
        """Every check of the headers that fails; empty for a series that is one evenly spaced stack of slices."""
        try:
            return list(_problems(self._slices()))
        except VolumeError as error:
            return [error]

    def grid(self) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Shape (columns, rows, slices) and 4x4 affine (voxel index to mm, RAS+), from headers alone.

        Slices rise along the cross product of the row and the column direction, whatever their instance numbers.

        Raises:
            VolumeError: the first check that fails.
        """
        return _grid(self._checked_slices())

    def voxels(self) -> NDArray:
        """The array (columns, rows, slices), rescaled as the headers say; integers where nothing is to be rescaled.

        Raises:
            VolumeError: as `grid`, and when pixels are damaged or cannot be decoded.
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
            if instance.frames > 1 or "Enhanced" in _uid_name(instance.sop_class):
                slices += _frames(instance)
            else:
                slices.append(instance)
        return slices

    def _checked_slices(self) -> list[Instance]:
        """The slices from bottom to top of the stack."""
        slices = self._slices()
        for error in _problems(slices):
            raise error
        distances = _distances(slices)
        return [slices[index] for index in np.argsort(distances, kind="stable")]


@dataclass
class Scan:
    """What is below a folder.

    Args:
        series: of images, sorted by their first file.
        structure_sets: RTSTRUCT files, sorted by path.
        others: Modality of everything else that is DICOM (RTPLAN, RTDOSE, SR, ...), and how many files.
        unreadable: files that should be DICOM and are damaged, sorted by path.
        files: how many files were looked at, DICOM or not.
    """

    series: list[Series] = field(default_factory=list)
    structure_sets: list[StructureSet] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[Unreadable] = field(default_factory=list)
    files: int = 0


_Read = Instance | StructureSet | Unreadable | str


def scan(*folders: Path, workers: int = 1) -> Scan:
    """Everything DICOM below one or several folders, from headers alone; the same whatever the number of workers.

    A file is DICOM if it has the "DICM" mark at byte 128; a file without it is tried if it is called `*.dcm`, and
    passed over otherwise. Hidden files and folders and DICOMDIR are passed over, links to folders are not followed.

    Raises:
        FileNotFoundError: no such folder.
    """
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
    result = Scan()
    paths = sorted({path for folder in folders for path in _paths_below(folder, result.unreadable)})
    result.files = len(paths)
    instances: dict[str, list[Instance]] = {}
    with tqdm(total=len(paths), desc="reading headers", unit="file", disable=None) as bar:
        for count, found in _read_all(paths, workers):
            bar.update(count)
            for one in found:
                if isinstance(one, Instance):
                    instances.setdefault(one.series_uid, []).append(one)
                elif isinstance(one, StructureSet):
                    result.structure_sets.append(one)
                elif isinstance(one, Unreadable):
                    result.unreadable.append(one)
                else:
                    result.others[one] += 1
    result.series = [Series(tuple(group)) for group in instances.values()]
    result.unreadable.sort()
    return result


def _paths_below(folder: Path, unreadable: list[Unreadable]) -> list[str]:
    """Files to look at; folders that may not be listed are added to the unreadable ones."""

    def refuse(error: OSError) -> None:
        unreadable.append(Unreadable(Path(error.filename), one_line(error)))

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in names if name[0] != "." and name.upper() != "DICOMDIR"]
    return paths


def _read_all(paths: Sequence[str], workers: int) -> Iterator[tuple[int, list[_Read]]]:
    """How many files a chunk has, and what they are, in order of the paths."""
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    if workers == 1 or len(chunks) == 1:
        yield from zip(map(len, chunks), map(_read_chunk, chunks), strict=True)
        return
    with ProcessPoolExecutor(min(workers, len(chunks))) as pool:
        yield from zip(map(len, chunks), pool.map(_read_chunk, chunks), strict=True)


def _read_chunk(paths: Iterable[str]) -> list[_Read]:
    """What each DICOM file of some files is; equal values are kept once, for a study says the same in every file."""
    known: dict[Any, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, about values that break a rule: checks here decide
        found = [read for path in paths if (read := _read(path)) is not None]
    for one in found:
        if isinstance(one, Instance):
            for slot in fields(Instance):
                value = getattr(one, slot.name)
                object.__setattr__(one, slot.name, known.setdefault((type(value), value), value))
    return found


def _read(path: str) -> _Read | None:
    """What one file is: an image, a structure set, damaged, another object (its modality), or None: not DICOM."""
    named_dicom = path.lower().endswith(".dcm")
    if not os.path.isfile(path):
        return Unreadable(Path(path), "a broken link, or no plain file") if named_dicom else None
    try:
        with open(path, "rb") as file:
            marked = file.read(132)[128:] == b"DICM"
            if not marked and not named_dicom:
                return None
            file.seek(0)
            data = read_partial(file, lambda tag, *_: tag > _LAST_TAG, force=True, specific_tags=list(_TAGS.values()))
        sop_class = _text(data, "SOPClassUID")
        patient = _text(data, "PatientID") or _text(data, "PatientName") or "unknown"
        if sop_class == _RTSTRUCT:
            return StructureSet(Path(path), _text(data, "StudyInstanceUID"), _text(data, "SOPInstanceUID"), patient)
        if not sop_class or not _text(data, "SOPInstanceUID"):
            return Unreadable(Path(path), "no DICOM object: SOPClassUID or SOPInstanceUID is missing")
        if not _is_image(sop_class, data):
            return _text(data, "Modality") or "unknown"
        if not _text(data, "SeriesInstanceUID"):
            return Unreadable(Path(path), "an image without SeriesInstanceUID")
        return _instance(path, data, sop_class, patient)
    except Exception as error:  # pydicom does not say what it raises on damaged files
        return Unreadable(Path(path), one_line(error))


def _is_image(sop_class: str, data: Dataset) -> bool:
    """By the registered name of the class; an object of an unknown class is an image if it has rows."""
    name = _uid_name(sop_class)
    return "Image Storage" in name or (name == sop_class and _integer(data, "Rows") is not None)


@functools.lru_cache(maxsize=64)
def _uid_name(uid: str) -> str:
    """Name of a registered UID; the UID itself where it is none."""
    return UID(uid, pydicom.config.IGNORE).name


def _instance(path: str, data: Dataset, sop_class: str, patient: str) -> Instance:
    columns, rows = _integer(data, "Columns"), _integer(data, "Rows")
    frames, samples = _integer(data, "NumberOfFrames"), _integer(data, "SamplesPerPixel")
    return Instance(
        path=path,
        sop_class=sop_class,
        sop_uid=_text(data, "SOPInstanceUID"),
        series_uid=_text(data, "SeriesInstanceUID"),
        study_uid=_text(data, "StudyInstanceUID"),
        frame_of_reference=_text(data, "FrameOfReferenceUID"),
        patient=patient,
        modality=_text(data, "Modality"),
        description=_text(data, "SeriesDescription"),
        study_date=_text(data, "StudyDate"),
        transfer_syntax=_text(data.file_meta, "TransferSyntaxUID"),
        photometric=_text(data, "PhotometricInterpretation"),
        number=_integer(data, "InstanceNumber"),
        frames=1 if frames is None else frames,
        samples=1 if samples is None else samples,
        shape=(columns, rows) if columns and rows else None,
        **_plane(data, data, data),
        echo_time=_number(data, "EchoTime"),
        time_point=_number(data, "TemporalPositionIdentifier"),
        b_value=_number(data, "DiffusionBValue"),
    )


def _plane(measures: Dataset, orientation: Dataset, position: Dataset) -> dict[str, Any]:
    """The attributes of an image plane, from one data set or from three functional groups."""
    return {
        "spacing": _numbers(measures, "PixelSpacing", 2),
        "orientation": _numbers(orientation, "ImageOrientationPatient", 6),
        "position": _numbers(position, "ImagePositionPatient", 3),
    }


def _text(data: Dataset, keyword: str) -> str:
    """A value as text, decoded by the file's character set; "" where it is missing."""
    value = data.get(_TAGS.get(keyword, keyword))
    value = getattr(value, "value", value)
    if isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    return "" if value is None else str(value).strip(" \0")


def _numbers(data: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers; None where they are missing or something else."""
    try:
        element: Any = data.get(_TAGS.get(keyword, keyword))
        value = getattr(element, "value", element)
        numbers = tuple(float(number) for number in (value if count > 1 else [value]))
    except Exception:  # pydicom does not say what it raises on damaged values
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _number(data: Dataset, keyword: str) -> float | None:
    numbers = _numbers(data, keyword, 1)
    return None if numbers is None else numbers[0]


def _integer(data: Dataset, keyword: str) -> int | None:
    number = _number(data, keyword)
    return None if number is None else int(number)


def _guarded(read: Callable[[], Any], source: Instance) -> Any:
    """What a function gives; whatever it raises on a damaged file becomes a VolumeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except VolumeError:
        raise
    except Exception as error:  # pydicom and its decoders do not say what they raise on damaged files
        raise VolumeError("unreadable file", f"{source}: {one_line(error)}", "a complete DICOM file") from error


def _frames(instance: Instance) -> list[Instance]:
    """One instance per frame of an enhanced file, whose header is read again for the functional groups."""
    tags = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]

    def read() -> list[Instance]:
        data = pydicom.dcmread(instance.path, stop_before_pixels=True, specific_tags=tags, force=True)
        per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
        if len(per_frame) != instance.frames:
            found = f"{instance}: {instance.frames} frames, {len(per_frame)} functional groups"
            raise VolumeError("missing attribute", found, "an enhanced file with one functional group per frame")
        return [_frame(instance, _functional_groups(data, index), index) for index in range(instance.frames)]

    return _guarded(read, instance)


def _functional_groups(data: Dataset, index: int) -> Callable[[str], Dataset]:
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
        echo_time=_number(group("MREchoSequence"), "EffectiveEchoTime"),
        time_point=_number(group("FrameContentSequence"), "TemporalPositionIndex"),
        b_value=_number(group("MRDiffusionSequence"), "DiffusionBValue"),
    )


def _problems(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    """All checks; those of positions only where orientation and spacing are such that positions mean something."""
    if len(slices) < MIN_SLICES:
        yield VolumeError("number of slices", f"{len(slices)}, in {slices[0]}", f"at least {MIN_SLICES}")
    yield from _pixel_problems(slices)
    plane = [*_missing(slices), *_orientation_problems(slices), *_spacing_problems(slices)]
    yield from plane
    if plane:
        return
    repeated = list(_repeated(slices))
    mixed = list(_mixed(slices, repeated=bool(repeated)))
    yield from repeated + mixed
    if repeated or any(one.found.startswith("orientation") for one in mixed) or len(slices) < 2:
        return
    yield from _position_problems(slices)


def _pixel_problems(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    """Color, and compression without decoder: the first slice of each kind."""
    for one in slices:
        if one.samples != 1 or one.photometric.startswith(("RGB", "YBR", "PALETTE")):
            found = f"{one}: {one.samples} samples per pixel, {one.photometric}"
            yield VolumeError("color image", found, "one gray value per pixel")
            break
        if one.photometric == "MONOCHROME1":
            found = f"{one}: MONOCHROME1 (low values are bright)"
            yield VolumeError("photometric interpretation", found, "MONOCHROME2, as MR images have")
            break
    for one in slices:
        if one.transfer_syntax and not _can_decode(one.transfer_syntax):
            found = f"{one}: {_uid_name(one.transfer_syntax)}, for which no decoder is installed"
            yield VolumeError("compressed", found, _ADVICE)
            break


def _can_decode(transfer_syntax: str) -> bool:
    handlers = [handler for handler in pydicom.config.pixel_data_handlers if handler.is_available()]
    return any(handler.supports_transfer_syntax(UID(transfer_syntax, pydicom.config.IGNORE)) for handler in handlers)


def _missing(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    for one in slices:
        absent = [
            name
            for name, value in (("Rows or Columns", one.shape), ("ImagePositionPatient", one.position))
            if not value
        ]
        if absent:
            yield VolumeError("missing attribute", f"{one}: no usable {' and no '.join(absent)}", "in every slice")
            return


def _orientation_problems(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    expected = f"two perpendicular unit vectors (tolerance {ORIENTATION_TOLERANCE:g})"
    for one in slices:
        if one.orientation is None:
            yield VolumeError("orientation", f"{one}: no usable ImageOrientationPatient", expected)
            return
        row, column = _directions(one)
        lengths, product = np.linalg.norm([row, column], axis=1), float(row @ column)
        if max(*np.abs(lengths - 1), abs(product)) > ORIENTATION_TOLERANCE:
            found = f"{one}: lengths {lengths[0]:.4g} and {lengths[1]:.4g}, scalar product {product:.4g}"
            yield VolumeError("orientation", found, expected)
            return


def _spacing_problems(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    low, high = SPACING_IN_PLANE
    for one in slices:
        if one.spacing is None or not all(low <= value <= high for value in one.spacing):
            found = "no usable PixelSpacing" if one.spacing is None else "pixels of {:g} x {:g} mm".format(*one.spacing)
            yield VolumeError("spacing", f"{one}: {found}", f"{low:g} to {high:g} mm between pixels")
            return


def _mixed(slices: Sequence[Instance], *, repeated: bool) -> Iterator[VolumeError]:
    """Attributes that are not the same in all slices; those that tell the volumes of a 4-D series may then differ."""
    names = {
        "orientation": "orientation",
        "shape": "columns and rows",
        "spacing": "pixel spacing",
        "photometric": "photometric interpretation",
        "patient": "patient",
        "study_uid": "study",
        "frame_of_reference": "frame of reference",
    }
    for attribute, name in (names if repeated else names | {"echo_time": "echo time"}).items():
        first = getattr(slices[0], attribute)
        other = next((one for one in slices if not _same(getattr(one, attribute), first)), None)
        if other is not None:
            found = f"{name} {_shown(first)} in {slices[0]}, {_shown(getattr(other, attribute))} in {other}"
            yield VolumeError("mixed series", found, f"one {name} in a series")


def _same(one: Any, other: Any) -> bool:
    if one == other or one is None or other is None or isinstance(one, str):
        return one == other
    return bool(np.allclose(one, other, rtol=0, atol=SAME_TOLERANCE))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{number:g}" for number in value) + ")"
    return f"{value:g} ms" if isinstance(value, float) else repr(value)


def _repeated(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    """The same instance in two files, or positions most of which occur several times."""
    files: dict[tuple[str, int | None], Instance] = {}
    for one in slices:
        twin = files.setdefault((one.sop_uid, one.frame), one)
        if twin is not one:
            found = f"the same instance in {twin.path} and {one.path}"
            yield VolumeError("duplicate position", found, "one copy of every instance")
            return
    counts = Counter(map(tuple, np.round(_positions(slices), 2)))
    several = int(np.median(list(counts.values())))
    if several > 1:
        varying = {"time point": "time_point", "b-value": "b_value", "echo time": "echo_time"}
        told = [name for name, attribute in varying.items() if len({getattr(one, attribute) for one in slices}) > 1]
        found = f"{len(slices)} slices at {len(counts)} positions, {several} at each"
        yield VolumeError(
            "4-D", f"{found}, differing in {' and '.join(told) or 'no attribute known here'}", "a 3-D series"
        )


def _directions(one: Instance) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors of increasing column and of increasing row index, LPS; the instance must have them."""
    row, column = np.asarray(one.orientation, dtype=np.float64).reshape(2, 3)
    return row, column


def _positions(slices: Sequence[Instance]) -> NDArray[np.float64]:
    """Positions of slices (N, 3), LPS mm; all must have one."""
    return np.array([one.position for one in slices], dtype=np.float64)


def _distances(slices: Sequence[Instance]) -> NDArray[np.float64]:
    """Distance of each slice along the normal of the first one, mm."""
    normal = np.cross(*_directions(slices[0]))
    return _positions(slices) @ (normal / np.linalg.norm(normal))


def _position_problems(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    """Duplicates, slice spacing, gaps, tilt and order of slices that share one orientation."""
    yield from _order_problems(slices)
    distances = _distances(slices)
    order = np.argsort(distances, kind="stable")
    stack, steps = [slices[index] for index in order], np.diff(distances[order])
    duplicates = np.flatnonzero(steps < SAME_POSITION)
    if duplicates.size:
        one, other = stack[duplicates[0]], stack[duplicates[0] + 1]
        found = f"{one} and {other} both at {_shown(one.position)} mm (LPS), {duplicates.size} in all"
        yield VolumeError("duplicate position", found, "one slice at each position")
        return
    step = float(np.median(steps))
    low, high = SPACING_OF_SLICES
    if not low <= step <= high:
        yield VolumeError("spacing", f"slices {step:g} mm apart", f"{low:g} to {high:g} mm between slices")
    gaps = np.flatnonzero(np.abs(steps - step) > max(GAP_TOLERANCE[0] * step, GAP_TOLERANCE[1]))
    if gaps.size:
        one, other = stack[gaps[0]], stack[gaps[0] + 1]
        found = (
            f"{steps[gaps[0]]:.4g} mm between {one} at {_shown(one.position)} and {other} at {_shown(other.position)}"
        )
        yield VolumeError("gap", f"{found} mm (LPS), {gaps.size} in all", f"{step:.4g} mm as between most slices")
    yield from _tilt_problems(stack, steps, step)


def _tilt_problems(stack: Sequence[Instance], steps: NDArray[np.float64], step: float) -> Iterator[VolumeError]:
    """Neighbors whose offset is not along the normal; over a gap the shear of each missing slice counts."""
    row, column = _directions(stack[0])
    offsets = np.diff(_positions(stack), axis=0)
    shear = np.hypot(offsets @ row, offsets @ column) / np.maximum(steps / step, 1)
    worst = int(np.argmax(np.round(shear, 6)))
    if shear[worst] > SHEAR_TOLERANCE:
        angle = np.degrees(np.arctan2(shear[worst], step))
        found = f"{shear[worst]:.3g} mm sideways between {stack[worst]} and {stack[worst + 1]} ({angle:.2g} degrees)"
        yield VolumeError("gantry tilt", found, f"slices stacked along their normal (within {SHEAR_TOLERANCE:g} mm)")


def _order_problems(slices: Sequence[Instance]) -> Iterator[VolumeError]:
    """Positions that neither rise nor fall with the instance numbers, where all slices have one."""
    numbers = [one.number for one in slices if one.number is not None]
    if len(numbers) < len(slices):
        return
    order = np.argsort(numbers, kind="stable")
    steps = np.diff(_distances(slices)[order])
    direction = 1 if (steps > 0).sum() >= (steps < 0).sum() else -1
    back = np.flatnonzero(direction * steps < -SAME_POSITION)
    if back.size:
        one, other = slices[order[back[0]]], slices[order[back[0] + 1]]
        found = f"the position turns back from instance number {one.number} ({one}) to {other.number} ({other})"
        yield VolumeError("slice order", f"{found}, {back.size} times in all", "positions in order of instance numbers")


def _grid(stack: Sequence[Instance]) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and RAS affine of checked slices in order of the stack."""
    first, positions = stack[0], _positions(stack)
    row, column = _directions(first)
    between_rows, between_columns = first.spacing or (0.0, 0.0)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = row * between_columns, column * between_rows
    lps[:3, 2] = (positions[-1] - positions[0]) / (len(stack) - 1)
    lps[:3, 3] = positions[0]
    return (*(first.shape or ()), len(stack)), _LPS_TO_RAS @ lps


def _decode(instance: Instance) -> list[NDArray]:
    """Frames of a file, each (rows, columns), rescaled; they share memory where nothing is to be rescaled."""

    def read() -> list[NDArray]:
        data = pydicom.dcmread(instance.path, force=True)
        if "TransferSyntaxUID" not in data.file_meta:
            explicit = ExplicitVRLittleEndian if data.is_little_endian else ExplicitVRBigEndian
            data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if data.is_implicit_VR else explicit
        _check_size(data, instance)
        columns, rows = instance.shape or (0, 0)
        pixels = data.pixel_array
        if pixels.size != instance.frames * rows * columns or pixels.dtype.kind not in "iuf":
            found = f"{instance}: pixels {pixels.shape} of type {pixels.dtype}"
            raise VolumeError("unreadable file", found, f"{instance.frames} frames of {rows} x {columns} numbers")
        frames = _stored_bits(pixels, data).reshape(instance.frames, rows, columns)
        if not data.get("PerFrameFunctionalGroupsSequence"):
            return [_rescaled(frame, data) for frame in frames]
        groups = (_functional_groups(data, index) for index in range(instance.frames))
        return [_rescaled(f, g("PixelValueTransformationSequence")) for f, g in zip(frames, groups, strict=True)]

    planes: list[NDArray] = _guarded(read, instance)
    if not all(np.isfinite(plane).all() for plane in planes):
        raise VolumeError("unreadable file", f"{instance}: values that are not finite", "finite numbers")
    return planes


def _check_size(data: Dataset, instance: Instance) -> None:
    """Refuse sizes that the file cannot hold, before memory is taken for them."""
    length = os.path.getsize(instance.path)
    frames = _integer(data, "NumberOfFrames") or 1
    claimed = frames * data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated // 8
    compressed = data.file_meta.TransferSyntaxUID.is_compressed
    if claimed > (max(_DECOMPRESSED_BYTES * frames, _COMPRESSION * length) if compressed else length):
        found = f"{instance}: {length} bytes, for {claimed} bytes of pixels"
        raise VolumeError("unreadable file", found, "a complete DICOM file")


def _stored_bits(pixels: NDArray, data: Dataset) -> NDArray:
    """Pixels without what old scanners keep in the bits that are not stored, such as overlays."""
    unused = data.BitsAllocated - data.BitsStored
    if pixels.dtype.kind == "f" or unused <= 0 or data.file_meta.TransferSyntaxUID.is_compressed:
        return pixels
    return (pixels << unused) >> unused  # keeps the sign of signed numbers


def _rescaled(frame: NDArray, data: Dataset) -> NDArray:
    """Modality LUT or rescale slope and intercept applied: float32, or the stored numbers if there is nothing to do."""
    if "ModalityLUTSequence" not in data:
        slope = _number(data, "RescaleSlope") if "RescaleSlope" in data else 1.0
        intercept = _number(data, "RescaleIntercept") if "RescaleIntercept" in data else 0.0
        if not slope or intercept is None:
            raise VolumeError("rescale", f"slope {slope}, intercept {intercept}", "a slope that is not 0, an intercept")
        if (slope, intercept) == (1.0, 0.0):
            return frame
        return (frame * slope + intercept).astype(np.float32)
    return np.asarray(apply_modality_lut(frame, data), dtype=np.float32)
