"""Structures as files hold them (RTSTRUCT, contours.json), and the choice of the one that is meant by its name."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import RTStructureSetStorage

from scripts.data.dicom.contours import Structure, overlap
from scripts.data.dicom.headers import pydicom_errors
from scripts.data.volume import CaseError, one_line

logger = logging.getLogger(__name__)

# Whole words of a structure's name, in any case; a trailing * admits any ending. Names are cut into words at everything
# that is not a letter, and between letters and digits, so that "tv" is in "*TV_1" and "TV2" but not in "PTV".
DEFAULT_TUMOR_NAMES = tuple("tv gtv vs an tumor* tumour* lesion* target schwannoma* neuroma* neurinoma*".split())
NEVER_TUMOR_NAMES = tuple(
    "cochlea* brainstem brain skull external body patient pons medulla cerebell* labyrinth* vestibule canal* nerve* "
    "trigeminal optic* chiasm* eye* lens* pituitary hippocamp* ventricle* dose isodose ring ptv ctv bed margin "
    "minus".split()
)

_CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OPEN_TYPES = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")


@dataclass(frozen=True)
class StructureSet:
    """What one RTSTRUCT file holds.

    Args:
        path: the file.
        images: SeriesInstanceUID of each series that it refers to, and the SOPInstanceUIDs of the images that it lists.
        frames: SeriesInstanceUID of each of these to the UID of its frame of reference; empty where none is named.
        date: digits of StructureSetDate and StructureSetTime, so that the newest of several is the last when sorted;
            empty where it has no date.
        notes: what was left out of the structures, a sentence each.
        structures: in the order of the file's list of names; those without closed contours have none here.
    """

    path: Path
    images: dict[str, frozenset[str]]
    frames: dict[str, str]
    date: str
    notes: tuple[str, ...]
    structures: tuple[Structure, ...]


def read_rtstruct(path: Path) -> StructureSet:
    """References and closed planar contours of an RTSTRUCT file; points and open contours are left out with a note.

    Raises:
        CaseError: "unreadable file" where it is damaged or no RTSTRUCT; "structures" where it holds none, or where a
            contour has not as many coordinates as it declares.
    """
    with pydicom_errors(path.name, "a complete RTSTRUCT file"):
        dataset = _open_rtstruct(path)
        images, frames = _references(dataset)
        date = _date(dataset)
        names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in _items(dataset, "StructureSetROISequence")}
        contours: dict[int, list[NDArray[np.float64]]] = {number: [] for number in names}
        notes: list[str] = []
        for roi in _items(dataset, "ROIContourSequence"):
            number = int(roi.ReferencedROINumber)
            names.setdefault(number, f"ROI {number}")
            closed, left_out = _closed_contours_of(roi, path, names[number])
            contours.setdefault(number, []).extend(closed)
            notes.extend(left_out)
    if not names:
        raise CaseError("structures", f"none in {path.name}", "an RTSTRUCT with at least one structure")
    structures = tuple(Structure(name, tuple(contours[number])) for number, name in names.items())
    return StructureSet(path, images, frames, date, tuple(notes), structures)


def read_contours_json(path: Path) -> tuple[Structure, ...]:
    """Structures of a contours.json, in its order (the tumor first).

    The file is a list of `{"structure_name": str, "LPS_contour_points": [[[x, y, z], ...], ...]}`, LPS mm, as published
    with Vestibular-Schwannoma-SEG.

    Raises:
        CaseError: "unreadable file" where it is no JSON; "structures" with the place where the layout differs.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CaseError("unreadable file", f"{path.name}: {one_line(error)}", "a JSON file") from error
    if not isinstance(entries, list) or not entries:
        raise CaseError("structures", f"{path.name}: no list of structures", "a list with at least one structure")
    return tuple(_json_structure(entry, f"{path.name}, structure {i}") for i, entry in enumerate(entries, start=1))


def choose_structure(
    structures: Sequence[Structure], patterns: Sequence[str] = DEFAULT_TUMOR_NAMES, *, first: bool = False
) -> Structure:
    """The structure that is meant by its name; several that match are merged into one, its name joined by " + ".

    Args:
        structures: of one file.
        patterns: as `DEFAULT_TUMOR_NAMES`; several words ("cochlea l") must follow each other in a name. A name of
            `NEVER_TUMOR_NAMES` is taken only by a pattern that is not among the defaults.
        first: take the first structure where no name matches, unless its name is one of `NEVER_TUMOR_NAMES`; for
            contours.json, which puts the tumor first.

    Raises:
        CaseError: "structure": no name matches, none that matches has contours, or two that match overlap and so are
            two versions of one thing.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    own = [pattern for pattern in patterns if pattern not in DEFAULT_TUMOR_NAMES]
    matching = [
        structure
        for structure in structures
        if _matches(structure.name, own) or (_matches(structure.name, patterns) and not _is_never(structure.name))
    ]
    if not matching and first and structures and not _is_never(structures[0].name):
        matching = [structures[0]]
    if not matching:
        found = ", ".join(repr(structure.name) for structure in structures) or "no structures"
        raise CaseError("structure", found, f"a name with one of {', '.join(patterns)}; give the name to use")
    drawn = [structure for structure in matching if structure.contours]
    if not drawn:
        found = "no closed contours in " + ", ".join(repr(structure.name) for structure in matching)
        raise CaseError("structure", found, "a structure with closed planar contours")
    for one, other in combinations(drawn, 2):
        if overlap(one, other):
            found = f"{one.name!r} and {other.name!r}, which overlap"
            raise CaseError("structure", found, "one structure, or separate ones; give the name to use")
    if len(drawn) == 1:
        return drawn[0]
    merged = Structure(" + ".join(s.name for s in drawn), tuple(c for s in drawn for c in s.contours))
    logger.info("%d structures are taken as one: %s", len(drawn), merged.name)
    return merged


def _open_rtstruct(path: Path) -> pydicom.Dataset:
    """Dataset of an RTSTRUCT file, its kind checked.

    The bytes are read first: a damaged length then reads to the end of the file, and does not reserve gigabytes.
    """
    dataset = pydicom.dcmread(BytesIO(path.read_bytes()))
    kind = str(dataset.get("SOPClassUID", "no SOPClassUID"))
    if kind != RTStructureSetStorage:
        raise CaseError("unreadable file", f"{path.name}: {pydicom.uid.UID(kind).name}", "an RTSTRUCT file")
    return dataset


def _items(dataset: pydicom.Dataset, keyword: str) -> Iterable[pydicom.Dataset]:
    """Items of a sequence; none where it is missing or empty."""
    return dataset.get(keyword) or ()


def _references(dataset: pydicom.Dataset) -> tuple[dict[str, frozenset[str]], dict[str, str]]:
    """Series that an RTSTRUCT refers to: to the images that it lists of each, and to the frame of reference of each.

    The frame is that of the item which the series stands in. Where that names none, it is the frame of the structures,
    if they have one in common.
    """
    drawn_in = {_uid(roi, "ReferencedFrameOfReferenceUID") for roi in _items(dataset, "StructureSetROISequence")} - {""}
    common = drawn_in.pop() if len(drawn_in) == 1 else ""
    images: dict[str, frozenset[str]] = {}
    frames: dict[str, str] = {}
    for frame in _items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in _items(frame, "RTReferencedStudySequence"):
            for series in _items(study, "RTReferencedSeriesSequence"):
                uid = str(series.SeriesInstanceUID)
                listed = (str(image.ReferencedSOPInstanceUID) for image in _items(series, "ContourImageSequence"))
                images[uid] = images.get(uid, frozenset()).union(listed)
                frames[uid] = frames.get(uid) or _uid(frame, "FrameOfReferenceUID")
    return images, {uid: frame or common for uid, frame in frames.items()}


def _uid(dataset: pydicom.Dataset, keyword: str) -> str:
    """UID of an attribute; empty where it is missing or empty."""
    return str(dataset.get(keyword) or "")


def _date(dataset: pydicom.Dataset) -> str:
    """Digits of the date and time of a structure set; old files part them by dots and colons."""
    day, time = (re.sub(r"\D", "", str(dataset.get(f"StructureSet{part}") or "")) for part in ("Date", "Time"))
    return day and day + time


def _closed_contours_of(roi: pydicom.Dataset, path: Path, name: str) -> tuple[list[NDArray[np.float64]], list[str]]:
    """Closed contours of one item of ROIContourSequence, and a note on the others where there are any."""
    closed: list[NDArray[np.float64]] = []
    others: list[str] = []
    for number, contour in enumerate(_items(roi, "ContourSequence"), start=1):
        kind = contour.get("ContourGeometricType")
        if kind in _CLOSED_TYPES:
            closed.append(_contour_points(contour, f"{path.name}, {name!r}, contour {number}"))
        else:
            others.append(kind if kind in _OPEN_TYPES else "of no known type")
    shown = "/".join(sorted(set(others)))
    if len(others) == 1:
        return closed, [f"1 contour of {name!r} is {shown} and was left out"]
    return closed, [f"{len(others)} contours of {name!r} are {shown} and were left out"] if others else []


def _contour_points(contour: pydicom.Dataset, place: str) -> NDArray[np.float64]:
    """Points (n, 3) of one contour.

    The stored text is parsed here, because pydicom makes an object of each number, which takes 15 times as long.
    """
    coordinates = np.array(contour.get_item("ContourData").value.split(b"\\"), dtype=np.float64)
    declared = int(contour.get("NumberOfContourPoints", len(coordinates) // 3))
    if len(coordinates) != 3 * declared:
        raise CaseError("structures", f"{place}: {len(coordinates)} coordinates", f"3 for each of {declared} points")
    return _finite(coordinates.reshape(-1, 3), place)


def _finite(points: NDArray[np.float64], place: str) -> NDArray[np.float64]:
    """The same points, none of them NaN or infinite."""
    if not np.isfinite(points).all():
        raise CaseError("structures", f"{place}: a coordinate that is no number", "finite coordinates in mm")
    return points


def _json_structure(entry: object, place: str) -> Structure:
    """Structure from one entry of contours.json, its layout checked."""
    name = entry.get("structure_name") if isinstance(entry, dict) else None
    contours = entry.get("LPS_contour_points") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not isinstance(contours, list):
        raise CaseError("structures", f"{place}: other content", "structure_name and a list LPS_contour_points")
    return Structure(
        name, tuple(_json_points(c, f"{place} {name!r}, contour {i}") for i, c in enumerate(contours, start=1))
    )


def _json_points(contour: object, place: str) -> NDArray[np.float64]:
    """Points (n, 3) of one contour of contours.json."""
    if not isinstance(contour, list) or not all(isinstance(p, list) and len(p) == 3 for p in contour):
        raise CaseError("structures", f"{place}: other content", "a list of points [x, y, z]")
    if not all(type(value) in (int, float) for point in contour for value in point):
        raise CaseError("structures", f"{place}: a coordinate that is no number", "finite coordinates in mm")
    try:
        points = np.array(contour, dtype=np.float64).reshape(-1, 3)
    except OverflowError as error:
        raise CaseError("structures", f"{place}: {one_line(error)}", "finite coordinates in mm") from error
    return _finite(points, place)


def _words(text: str) -> str:
    """Words of a name or pattern in lower case, parted by single spaces; a * stays where it ends a word."""
    return " ".join(re.findall(r"[^\W\d_]+\*?|\d+\*?", unicodedata.normalize("NFKC", text).casefold()))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name has the words of one of the patterns next to each other."""
    words = _words(name).replace("*", "")
    expressions = (re.escape(_words(pattern)).replace(r"\*", r"\S*") for pattern in patterns)
    return any(expression and re.search(rf"(?<!\S){expression}(?!\S)", words) for expression in expressions)


def _is_never(name: str) -> bool:
    """Whether a name is one that no tumor has."""
    return _matches(name, NEVER_TUMOR_NAMES)
