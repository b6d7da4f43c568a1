"""DICOM folders: finds the series and structure sets below them, from headers alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import RTStructureSetStorage
from tqdm import tqdm

from scripts.data.dicom.headers import TAGS, Instance, integer_of, read_instance, text_of, uid_name
from scripts.data.dicom.series import Series
from scripts.data.volume import CaseError, one_line, refuse
from scripts.files import files_below

UNKNOWN = "unknown"  # patient of files without PatientID and PatientName
_LAST_TAG = 0x0028FFFF  # nothing behind the image description is needed: contours, doses and frames are not even read
_CHUNK = 250  # files that a worker takes at a time


class StructureSetFile(NamedTuple):
    """An RTSTRUCT file, of which no contour has been read."""

    path: Path
    study_uid: str
    patient: str


class Unreadable(NamedTuple):
    """A file that should be DICOM and cannot be read."""

    path: Path
    message: str


@dataclass
class Scan:
    """What is below a folder.

    Args:
        series: of images, sorted by their first file.
        structure_sets: RTSTRUCT files, sorted by path.
        unreadable: files that should be DICOM and are damaged, sorted by path.
        files: how many files were looked at, DICOM or not.
    """

    series: list[Series] = field(default_factory=list)
    structure_sets: list[StructureSetFile] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    files: int = 0

    def damaged(self, series: Series) -> dict[Path, CaseError]:
        """Files that could not be read in the folders of a series: they may have been slices of it."""
        folders = {file.parent for file in series.files()}
        return {
            path: CaseError("unreadable file", f"{path.name}: {message}", "a complete download")
            for path, message in self.unreadable
            if path.parent in folders
        }


_Read = Instance | StructureSetFile | Unreadable


def scan(*folders: Path, workers: int = 1) -> Scan:
    """Everything DICOM below one or several folders, from headers alone; the same whatever the number of workers.

    A file is DICOM if it has the "DICM" mark at byte 128; a file without it is tried if it is called `*.dcm`, and
    passed over otherwise. Hidden files and folders and DICOMDIR are passed over, links to folders are followed once.

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
                elif isinstance(one, StructureSetFile):
                    result.structure_sets.append(one)
                else:
                    result.unreadable.append(one)
    result.series = [Series(tuple(group)) for group in instances.values()]
    result.unreadable.sort()
    return result


def open_series(folder: Path) -> Series:
    """The only MR series in a folder and those below it, whatever else is there; its headers are read, no pixels.

    Raises:
        CaseError: "missing series" or "ambiguous series"; "unreadable file" where a file beside its images is damaged.
    """
    headers = scan(folder)
    series = [one for one in headers.series if one.header.modality == "MR"]
    if len(series) != 1:
        shown = ", ".join(repr(one.header.description) for one in series) or f"none in {headers.files} files"
        expected = "a folder with one MR series; scripts.prepare dicom chooses among several"
        raise CaseError("ambiguous series" if series else "missing series", f"{folder.name}: {shown}", expected)
    refuse([error.of(folder.name) for error in headers.damaged(series[0]).values()])
    return series[0]


def _paths_below(folder: Path, unreadable: list[Unreadable]) -> list[str]:
    """Files to look at; folders that may not be listed are added to the unreadable ones."""

    def refuse(error: OSError) -> None:
        unreadable.append(Unreadable(Path(error.filename), one_line(error)))

    return [str(path) for path in files_below(folder, failed=refuse) if path.name.upper() != "DICOMDIR"]


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
    """What one file is: an image, a structure set or damaged; None for anything else (no DICOM, RTPLAN, RTDOSE, SR)."""
    named_dicom = path.lower().endswith(".dcm")
    if not os.path.isfile(path):
        return Unreadable(Path(path), "a broken link, or no plain file") if named_dicom else None
    try:
        with open(path, "rb") as file:
            marked = file.read(132)[128:] == b"DICM"
            if not marked and not named_dicom:
                return None
            file.seek(0)
            data = read_partial(file, lambda tag, *_: tag > _LAST_TAG, force=True, specific_tags=list(TAGS.values()))
        sop_class = text_of(data, "SOPClassUID")
        patient = text_of(data, "PatientID") or text_of(data, "PatientName") or UNKNOWN
        if sop_class == RTStructureSetStorage:
            return StructureSetFile(Path(path), text_of(data, "StudyInstanceUID"), patient)
        if not sop_class or not text_of(data, "SOPInstanceUID"):
            return Unreadable(Path(path), "no DICOM object: SOPClassUID or SOPInstanceUID is missing")
        if not _is_image(sop_class, data):
            if text_of(data, "Modality") == "MR" and integer_of(data, "Rows") is not None:
                return Unreadable(Path(path), f"an image by its Rows, none by its SOPClassUID {sop_class}")
            return None
        if not text_of(data, "SeriesInstanceUID"):
            return Unreadable(Path(path), "an image without SeriesInstanceUID")
        return read_instance(path, data, sop_class, patient)
    except Exception as error:  # pydicom does not say what it raises on damaged files
        return Unreadable(Path(path), one_line(error))


def _is_image(sop_class: str, data: Dataset) -> bool:
    """By the registered name of the class; an object of an unknown class is an image if it has rows."""
    name = uid_name(sop_class)
    return "Image Storage" in name or (name == sop_class and integer_of(data, "Rows") is not None)
