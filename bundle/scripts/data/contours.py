"""Planar contours of structures (DICOM RTSTRUCT, contours.json): reading, choosing one, and turning it into a mask.

Points are LPS mm, as DICOM stores them; masks lie on the grid of an image that is given by its shape and RAS+ affine.
Which series, case or task a structure belongs to is the caller's matter, and so is resampling. No torch here, and
nothing is written.
"""

from __future__ import annotations

import json
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.draw import polygon as polygon_voxels
from skimage.measure import points_in_poly

from scripts.data.volume import VolumeError, one_line

logger = logging.getLogger(__name__)

# Whole words of a structure's name, in any case; a trailing * admits any ending. Names are cut into words at everything
# that is not a letter, and between letters and digits, so that "tv" is in "*TV_1" and "TV2" but not in "PTV".
DEFAULT_TUMOR_NAMES = tuple("tv gtv vs an tumor* tumour* lesion* target schwannoma* neuroma* neurinoma*".split())
NEVER_TUMOR_NAMES = tuple(
    "cochlea* brainstem brain skull external body patient pons medulla cerebell* labyrinth* vestibule canal* nerve* "
    "trigeminal optic* chiasm* eye* lens* pituitary hippocamp* ventricle* dose isodose ring ptv ctv bed margin "
    "minus".split()
)

_RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED_TYPES = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Contours whose planes are closer than this belong to one plane.
SAME_PLANE_MM = 0.1
# In units of the distance between slices: how far a contour may leave its plane, and how near a slice it is on it.
PLANARITY = 0.2
ON_SLICE = 0.05
# Neighboring planes farther apart than this many contour spacings are two stacks with a gap between them.
MAX_GAP = 1.5
MAX_CONTOUR_SPACING_MM = 10.0
# Voxels that a contour may reach beyond the image.
MAX_OUTSIDE = 1.0
# In voxels: moves polygons so that a voxel center exactly on an outline belongs to one of its two sides, always the
# same one. Squares drawn from center to center then have their true area, and a hole's outline is not counted twice.
_TIE_BREAK = np.array([1e-4, 0.6e-4])
# Points of a contour that are looked at to say whether another one encloses it.
_PROBES = 32


@dataclass(frozen=True)
class Structure:
    """A named set of closed planar contours, which combine by even-odd where they share a plane.

    Args:
        name: as stored, in any language.
        contours: one array (points, 3) each, LPS mm; the last point is joined to the first.
    """

    name: str
    contours: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class StructureSet:
    """What one RTSTRUCT file holds.

    Args:
        path: the file.
        series_uids: SeriesInstanceUID of the series that it refers to; empty where it names none.
        frame_of_reference: UID of the frame of reference of the points; empty where it names none.
        structures: in the order of the file's list of names; those without closed contours have none here.
    """

    path: Path
    series_uids: tuple[str, ...]
    frame_of_reference: str
    structures: tuple[Structure, ...]


def read_rtstruct(path: Path) -> StructureSet:
    """References and closed planar contours of an RTSTRUCT file; points and open contours are left out with a warning.

    Raises:
        VolumeError: "unreadable file" where it is damaged or no RTSTRUCT; "structures" where it holds none, or where a
            contour has not as many coordinates as it declares.
    """
    with _pydicom_errors(path):
        dataset = _open_rtstruct(path)
        series_uids, frame_of_reference = _references(dataset)
        names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in _items(dataset, "StructureSetROISequence")}
        contours: dict[int, list[NDArray[np.float64]]] = {number: [] for number in names}
        for roi in _items(dataset, "ROIContourSequence"):
            number = int(roi.ReferencedROINumber)
            names.setdefault(number, f"ROI {number}")
            contours.setdefault(number, []).extend(_closed_contours_of(roi, path, names[number]))
    if not names:
        raise VolumeError("structures", f"none in {path.name}", "an RTSTRUCT with at least one structure")
    structures = tuple(Structure(name, tuple(contours[number])) for number, name in names.items())
    return StructureSet(path, series_uids, frame_of_reference, structures)


def read_rtstruct_references(path: Path) -> tuple[str, ...]:
    """SeriesInstanceUID of the series that an RTSTRUCT file refers to, without its contours (some 100 times faster).

    Raises:
        VolumeError: "unreadable file", as `read_rtstruct`.
    """
    with _pydicom_errors(path):
        return _references(_open_rtstruct(path, tags=["SOPClassUID", "ReferencedFrameOfReferenceSequence"]))[0]


def read_contours_json(path: Path) -> tuple[Structure, ...]:
    """Structures of a contours.json, in its order (the tumor first).

    The file is a list of `{"structure_name": str, "LPS_contour_points": [[[x, y, z], ...], ...]}`, LPS mm, as published
    with Vestibular-Schwannoma-SEG.

    Raises:
        VolumeError: "unreadable file" where it is no JSON; "structures" with the place where the layout differs.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise VolumeError("unreadable file", f"{path.name}: {one_line(error)}", "a JSON file") from error
    if not isinstance(entries, list) or not entries:
        raise VolumeError("structures", f"{path.name}: no list of structures", "a list with at least one structure")
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
        VolumeError: "structure": no name matches, none that matches has contours, or two that match overlap and so are
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
        raise VolumeError("structure", found, f"a name with one of {', '.join(patterns)}; give the name to use")
    drawn = [structure for structure in matching if structure.contours]
    if not drawn:
        found = "no closed contours in " + ", ".join(repr(structure.name) for structure in matching)
        raise VolumeError("structure", found, "a structure with closed planar contours")
    for one, other in combinations(drawn, 2):
        if _overlap(one, other):
            found = f"{one.name!r} and {other.name!r}, which overlap"
            raise VolumeError("structure", found, "one structure, or separate ones; give the name to use")
    if len(drawn) == 1:
        return drawn[0]
    merged = Structure(" + ".join(s.name for s in drawn), tuple(c for s in drawn for c in s.contours))
    logger.info("%d structures are taken as one: %s", len(drawn), merged.name)
    return merged


def contour_volume(structure: Structure, *, slice_spacing: float | None = None) -> float:
    """Volume in mm3 from the contours alone: polygon areas (shoelace, even-odd) times the thickness of their planes.

    A plane reaches half way to its neighbors, and half a contour spacing beyond the ends of a stack. Exact for contours
    that enclose each other or lie apart; where they cross themselves or each other, a mask has another volume.

    Args:
        structure: with parallel contours.
        slice_spacing: mm, the thickness of a structure with one plane.

    Raises:
        VolumeError: "structure" without closed contours, or with one plane and no `slice_spacing`; "contour plane"
            where planes are too far apart.
    """
    contours = _closed_contours(structure)
    normal = _normal(contours)
    planes = _planes([float(np.mean(contour @ normal)) for contour in contours])
    if len(planes) == 1 and slice_spacing is None:
        raise VolumeError("structure", f"one contour plane in {structure.name!r}", "several, or a slice spacing")
    spacing = _contour_spacing(structure.name, planes, slice_spacing or 0.0)
    volume = 0.0
    for stack in _stacks(planes, spacing):
        heights = np.array([plane.height for plane in stack])
        middles = (heights[1:] + heights[:-1]) / 2
        bounds = np.concatenate([[heights[0] - spacing / 2], middles, [heights[-1] + spacing / 2]])
        for plane, thickness in zip(stack, np.diff(bounds), strict=True):
            volume += thickness * _even_odd_area([contours[index] for index in plane.contours], normal)
    return volume


def structure_mask(structure: Structure, shape: Sequence[int], affine: NDArray) -> NDArray[np.uint8]:
    """Mask {0, 1} of a structure on an image's grid: voxels whose center lies inside, contours combined by even-odd.

    The contours must be parallel to the planes of one of the grid's axes. A slice with contours on it has exactly their
    polygons. A slice between two planes of contours has all that both enclose and nothing that neither does; of the
    rest it has the voxels deepest inside, by the weighted mean of both signed distances, as many as make its area the
    weighted mean of both areas (shape-based interpolation that keeps the volume). A plane at the end of a stack stands
    for half a contour spacing beyond it; a slice that the stack covers in part has this part of the area, the innermost
    voxels. Where contours are denser than slices, each slice takes the two planes next to it. Planes farther apart than
    `MAX_GAP` contour spacings are not joined.

    Args:
        structure: LPS mm.
        shape: voxels (X, Y, Z).
        affine: 4x4, voxel index to mm, RAS+; may be oblique or reversed.

    Returns:
        uint8, of this shape.

    Raises:
        VolumeError: "structure" without closed contours; "contour plane" where contours are not planar, not parallel to
            slices or too far apart; "contour outside image".
    """
    contours = _closed_contours(structure)
    to_voxel = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ _LPS_TO_RAS
    points = [contour @ to_voxel[:3, :3].T + to_voxel[:3, 3] for contour in contours]
    spacing = 1 / np.linalg.norm(to_voxel[:3, :3], axis=1)
    _check_inside(structure.name, points, shape, spacing)
    axis = _slice_axis(structure.name, points, spacing)

    in_plane = [np.delete(contour, axis, axis=1) for contour in points]
    lower = np.maximum(np.floor(np.min([contour.min(axis=0) for contour in in_plane], axis=0)).astype(int), 0)
    upper = np.ceil(np.max([contour.max(axis=0) for contour in in_plane], axis=0)).astype(int) + 1
    window = tuple(np.minimum(upper, np.delete(shape, axis)) - lower)
    thickness, pixel = float(spacing[axis]), np.delete(spacing, axis)
    planes = _planes([_on_slice(float(contour[:, axis].mean())) * thickness for contour in points])
    contour_spacing = _contour_spacing(structure.name, planes, thickness)

    def rasterize(plane: _Plane) -> NDArray[np.bool_]:
        return _rasterize([in_plane[index] - lower for index in plane.contours], window)

    mask = np.zeros(tuple(shape), dtype=np.uint8)
    target = np.moveaxis(mask, axis, 2)[lower[0] : lower[0] + window[0], lower[1] : lower[1] + window[1]]
    for stack in _stacks(planes, contour_spacing):
        for index, covered in _covered_slices(stack, contour_spacing, thickness, int(shape[axis])):
            inside = _section(stack, index * thickness, rasterize, pixel)
            if covered < 1:
                inside = _deepest(inside, _depth(inside, pixel), round(covered * int(inside.sum())))
            target[:, :, index] |= inside
    return mask


@contextmanager
def _pydicom_errors(path: Path) -> Iterator[None]:
    """Turns whatever pydicom raises inside the block into a VolumeError: a damaged file may break it anywhere."""
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        found = f"{path.name}: {one_line(error)}"
        raise VolumeError("unreadable file", found, "a complete RTSTRUCT file") from error


def _open_rtstruct(path: Path, tags: list[str] | None = None) -> pydicom.Dataset:
    """Dataset of an RTSTRUCT file, its kind checked.

    The bytes are read first: a damaged length then reads to the end of the file, and does not reserve gigabytes.
    """
    dataset = pydicom.dcmread(BytesIO(path.read_bytes()), specific_tags=tags)
    kind = str(dataset.get("SOPClassUID", "no SOPClassUID"))
    if kind != _RTSTRUCT_CLASS:
        raise VolumeError("unreadable file", f"{path.name}: {pydicom.uid.UID(kind).name}", "an RTSTRUCT file")
    return dataset


def _items(dataset: pydicom.Dataset, keyword: str) -> Iterable[pydicom.Dataset]:
    """Items of a sequence; none where it is missing or empty."""
    return dataset.get(keyword) or ()


def _references(dataset: pydicom.Dataset) -> tuple[tuple[str, ...], str]:
    """UIDs of the series that an RTSTRUCT refers to, without repetition, and of the first frame of reference."""
    frames = list(_items(dataset, "ReferencedFrameOfReferenceSequence"))
    series = [
        str(series.SeriesInstanceUID)
        for frame in frames
        for study in _items(frame, "RTReferencedStudySequence")
        for series in _items(study, "RTReferencedSeriesSequence")
    ]
    frame_uids = [str(frame.get("FrameOfReferenceUID", "")) for frame in frames]
    frame_uids += [str(roi.ReferencedFrameOfReferenceUID) for roi in _items(dataset, "StructureSetROISequence")]
    return tuple(dict.fromkeys(series)), next(filter(None, frame_uids), "")


def _closed_contours_of(roi: pydicom.Dataset, path: Path, name: str) -> list[NDArray[np.float64]]:
    """Closed contours of one item of ROIContourSequence."""
    closed, left_out = [], 0
    for number, contour in enumerate(_items(roi, "ContourSequence"), start=1):
        if contour.get("ContourGeometricType") in _CLOSED_TYPES:
            closed.append(_contour_points(contour, f"{path.name}, {name!r}, contour {number}"))
        else:
            left_out += 1
    if left_out:
        logger.warning("%s: %d points or open contours of %r are left out", path.name, left_out, name)
    return closed


def _contour_points(contour: pydicom.Dataset, place: str) -> NDArray[np.float64]:
    """Points (n, 3) of one contour.

    The stored text is parsed here, because pydicom makes an object of each number, which takes 15 times as long.
    """
    coordinates = np.array(contour.get_item("ContourData").value.split(b"\\"), dtype=np.float64)
    declared = int(contour.get("NumberOfContourPoints", len(coordinates) // 3))
    if len(coordinates) != 3 * declared:
        raise VolumeError("structures", f"{place}: {len(coordinates)} coordinates", f"3 for each of {declared} points")
    return _finite(coordinates.reshape(-1, 3), place)


def _finite(points: NDArray[np.float64], place: str) -> NDArray[np.float64]:
    """The same points, none of them NaN or infinite."""
    if not np.isfinite(points).all():
        raise VolumeError("structures", f"{place}: a coordinate that is no number", "finite coordinates in mm")
    return points


def _json_structure(entry: object, place: str) -> Structure:
    """Structure from one entry of contours.json, its layout checked."""
    name = entry.get("structure_name") if isinstance(entry, dict) else None
    contours = entry.get("LPS_contour_points") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not isinstance(contours, list):
        raise VolumeError("structures", f"{place}: other content", "structure_name and a list LPS_contour_points")
    return Structure(
        name, tuple(_json_points(c, f"{place} {name!r}, contour {i}") for i, c in enumerate(contours, start=1))
    )


def _json_points(contour: object, place: str) -> NDArray[np.float64]:
    """Points (n, 3) of one contour of contours.json."""
    if not isinstance(contour, list) or not all(isinstance(p, list) and len(p) == 3 for p in contour):
        raise VolumeError("structures", f"{place}: other content", "a list of points [x, y, z]")
    if not all(type(value) in (int, float) for point in contour for value in point):
        raise VolumeError("structures", f"{place}: a coordinate that is no number", "finite coordinates in mm")
    try:
        points = np.array(contour, dtype=np.float64).reshape(-1, 3)
    except OverflowError as error:
        raise VolumeError("structures", f"{place}: {one_line(error)}", "finite coordinates in mm") from error
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


def _overlap(one: Structure, other: Structure) -> bool:
    """Whether a contour of one structure encloses most of a contour of the other in the same plane; copies aside."""
    copies = {_key(contour) for contour in one.contours}
    for inner in (contour for contour in other.contours if len(contour) >= 3 and _key(contour) not in copies):
        for outer in (contour for contour in one.contours if len(contour) >= 3):
            normal = _normal([inner, outer])
            if abs(np.mean(inner @ normal) - np.mean(outer @ normal)) > SAME_PLANE_MM:
                continue
            first, second = inner @ _basis(normal), outer @ _basis(normal)
            if _encloses(first, second) or _encloses(second, first):
                return True
    return False


def _key(contour: NDArray[np.float64]) -> bytes:
    """The same for contours with the same points, wherever they start and whichever way they turn; to 0.001 mm."""
    return (np.unique(np.round(contour, 3), axis=0) + 0.0).tobytes()


def _closed_contours(structure: Structure) -> list[NDArray[np.float64]]:
    """Contours with at least three different points, without copies: a contour drawn twice would cancel itself."""
    contours = {_key(c): c for c in structure.contours if len(np.unique(c, axis=0)) >= 3}
    if not contours:
        raise VolumeError("structure", f"no closed contours in {structure.name!r}", "at least one of three points")
    return list(contours.values())


def _area_vector(contour: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal (3,) of a closed contour, as long as its area in mm2 (shoelace in three dimensions)."""
    centered = contour - contour[0]
    return np.cross(centered, np.roll(centered, -1, axis=0)).sum(axis=0) / 2


def _normal(contours: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Unit normal (3,) of the largest contour; along z where none has an area."""
    largest = max(map(_area_vector, contours), key=np.linalg.norm)
    length = np.linalg.norm(largest)
    return largest / length if length > 0 else np.array([0.0, 0.0, 1.0])


def _basis(normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two unit vectors (3, 2) that span the plane of a unit normal."""
    u = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    u /= np.linalg.norm(u)
    return np.stack([u, np.cross(normal, u)], axis=1)


def _encloses(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> bool:
    """Whether most points of a contour lie inside another one; both (points, 2)."""
    probes = inner[:: max(1, math.ceil(len(inner) / _PROBES))]
    return bool(points_in_poly(probes, outer).mean() > 0.5)


def _even_odd_area(contours: Sequence[NDArray[np.float64]], normal: NDArray[np.float64]) -> float:
    """Area in mm2 of contours of one plane: those inside an odd number of larger ones are holes."""
    flat = [contour @ _basis(normal) for contour in contours]
    areas = [float(np.linalg.norm(_area_vector(contour))) for contour in contours]
    total = 0.0
    for area, inner in zip(areas, flat, strict=True):
        around = sum(_encloses(outer, inner) for size, outer in zip(areas, flat, strict=True) if size > area)
        total += -area if around % 2 else area
    return total


class _Plane(NamedTuple):
    """Contours at one height (mm along the normal), by their indices."""

    height: float
    contours: tuple[int, ...]


def _planes(heights: Sequence[float]) -> list[_Plane]:
    """Contours grouped by height, from low to high; heights in mm."""
    order = np.argsort(heights, kind="stable")
    steps = np.flatnonzero(np.diff(np.asarray(heights)[order]) > SAME_PLANE_MM) + 1
    groups = np.split(order, steps)
    return [_Plane(float(np.mean([heights[i] for i in group])), tuple(map(int, group))) for group in groups]


def _contour_spacing(name: str, planes: Sequence[_Plane], slice_spacing: float) -> float:
    """Median distance in mm between neighboring planes; that of the slices where there is one plane."""
    if len(planes) == 1:
        return slice_spacing
    spacing = float(np.median(np.diff([plane.height for plane in planes])))
    if spacing > MAX_CONTOUR_SPACING_MM:
        expected = f"at most {MAX_CONTOUR_SPACING_MM:g} mm"
        raise VolumeError("contour plane", f"contours of {name!r} on planes {spacing:.1f} mm apart", expected)
    return spacing


def _stacks(planes: Sequence[_Plane], spacing: float) -> Iterator[Sequence[_Plane]]:
    """Runs of neighboring planes without a gap."""
    start = 0
    for stop in range(1, len(planes) + 1):
        if stop == len(planes) or planes[stop].height - planes[stop - 1].height > MAX_GAP * spacing:
            yield planes[start:stop]
            start = stop


def _slice_axis(name: str, points: Sequence[NDArray[np.float64]], spacing: NDArray[np.float64]) -> int:
    """Axis of the grid along which every contour (points in voxels) stays within its plane."""
    spread = np.max([np.ptp(contour, axis=0) for contour in points], axis=0)
    axis = int(np.argmin(spread * spacing))
    if spread[axis] > PLANARITY:
        found = f"a contour of {name!r} that spans {spread[axis] * spacing[axis]:.2f} mm across the slices"
        expected = f"contours parallel to the image's slices, to {PLANARITY * spacing[axis]:.2f} mm"
        raise VolumeError("contour plane", found, expected)
    return axis


def _check_inside(
    name: str, points: Sequence[NDArray[np.float64]], shape: Sequence[int], spacing: NDArray[np.float64]
) -> None:
    """Refuse contours (points in voxels) that reach beyond the image's outer faces by more than `MAX_OUTSIDE`."""
    lowest = np.min([contour.min(axis=0) for contour in points], axis=0)
    highest = np.max([contour.max(axis=0) for contour in points], axis=0)
    outside = np.maximum(-0.5 - lowest, highest - (np.asarray(shape) - 0.5))
    if (outside > MAX_OUTSIDE).any():
        found = f"{name!r} reaches {np.max(outside * spacing):.1f} mm beyond the image"
        raise VolumeError("contour outside image", found, f"at most {MAX_OUTSIDE:g} voxel")


def _on_slice(position: float) -> float:
    """Position in slices, moved onto a slice that is nearer than `ON_SLICE`."""
    return float(round(position)) if abs(position - round(position)) <= ON_SLICE else position


def _covered_slices(
    stack: Sequence[_Plane], contour_spacing: float, thickness: float, count: int
) -> Iterator[tuple[int, float]]:
    """Index of each slice of the image that a stack reaches, and the part (0 to 1] of its thickness that is covered."""
    low, high = stack[0].height - contour_spacing / 2, stack[-1].height + contour_spacing / 2
    for index in range(max(0, math.floor(low / thickness)), min(count, math.ceil(high / thickness) + 1)):
        center = index * thickness
        covered = (min(center + thickness / 2, high) - max(center - thickness / 2, low)) / thickness
        if covered > 0:
            yield index, min(covered, 1.0)


def _section(
    stack: Sequence[_Plane],
    height: float,
    rasterize: Callable[[_Plane], NDArray[np.bool_]],
    pixel: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Section of a stack of contours at a height in mm: a plane's own, or between its two neighbors."""
    heights = [plane.height for plane in stack]
    above = int(np.searchsorted(heights, height))
    if above == len(stack):
        return rasterize(stack[-1])
    if above == 0 or heights[above] == height:
        return rasterize(stack[above])
    weight = (height - heights[above - 1]) / (heights[above] - heights[above - 1])
    return _between(rasterize(stack[above - 1]), rasterize(stack[above]), weight, pixel)


def _between(
    one: NDArray[np.bool_], other: NDArray[np.bool_], weight: float, pixel: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Section between two sections, by shape and keeping area; see `structure_mask`. Weight 0 is one, 1 the other."""
    both = one & other
    area = (1 - weight) * int(one.sum()) + weight * int(other.sum())
    depth = (1 - weight) * _depth(one, pixel) + weight * _depth(other, pixel)
    return both | _deepest(one ^ other, depth, round(area - int(both.sum())))


def _depth(inside: NDArray[np.bool_], pixel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distance to the border in mm, positive inside; 0 everywhere where there is no inside.

    Outside, it goes no lower than it rises inside, so that a tumor far from all others thins evenly where it ends.
    """
    if not inside.any():
        return np.zeros(inside.shape)
    padded = np.pad(inside, 1)
    signed = distance_transform_edt(padded, sampling=pixel) - distance_transform_edt(~padded, sampling=pixel)
    return np.maximum(signed, -signed.max())[1:-1, 1:-1]


def _deepest(candidates: NDArray[np.bool_], depth: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """The given number of candidates of greatest depth."""
    indices = np.flatnonzero(candidates)
    ranked = indices[np.argsort(-depth.ravel()[indices], kind="stable")]
    chosen = np.zeros(candidates.shape, dtype=bool)
    chosen.ravel()[ranked[:count]] = True
    return chosen


def _rasterize(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels whose center lies in an odd number of polygons; points (n, 2) in pixels."""
    inside = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        rows, columns = (polygon + _TIE_BREAK).T
        inside[polygon_voxels(rows, columns, shape)] ^= True
    return inside
