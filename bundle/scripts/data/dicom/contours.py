"""What planar contours enclose: whether they overlap or skip slices, their volume, and their mask on an image's grid.

Points are LPS mm, as DICOM stores them; masks lie on the grid of an image that is given by its shape and RAS+ affine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.draw import polygon as polygon_voxels
from skimage.measure import points_in_poly

from scripts.data.volume import LPS_TO_RAS, CaseError

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
# Two contours overlap if they share more than this part of the smaller one; drawings that only touch share less.
OVERLAP = 0.1
# Points of a contour that are looked at to say whether another one encloses it, and of each side of its bounding box to
# say how much of it another one shares.
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


def contour_volume(structure: Structure, *, slice_spacing: float | None = None) -> float:
    """Volume in mm3 from the contours alone: polygon areas (shoelace, even-odd) times the thickness of their planes.

    A plane reaches half way to its neighbors, and half a contour spacing beyond the ends of a stack. Exact for contours
    that enclose each other or lie apart; where they cross themselves or each other, a mask has another volume.

    Args:
        structure: with parallel contours.
        slice_spacing: mm, the thickness of a structure with one plane.

    Raises:
        CaseError: "structure" without closed contours, or with one plane and no `slice_spacing`; "contour plane"
            where planes are too far apart.
    """
    contours = _closed_contours(structure)
    normal = _normal(contours)
    planes = _planes([float(np.mean(contour @ normal)) for contour in contours])
    if len(planes) == 1 and slice_spacing is None:
        raise CaseError("structure", f"one contour plane in {structure.name!r}", "several, or a slice spacing")
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

    The grid may be oblique or reversed. The contours must be parallel to the planes of one of the grid's axes. A
    slice with contours on it has exactly their polygons. A slice between two planes of contours has all that both
    enclose and nothing that neither does; of the rest it has the voxels deepest inside, by the weighted mean of
    both signed distances, as many as make its area the weighted mean of both areas (shape-based interpolation that
    keeps the volume). A plane at the end of a stack stands for half a contour spacing beyond it; a slice that the
    stack covers in part has this part of the area, the innermost voxels. Where contours are denser than slices,
    each slice takes the two planes next to it. Planes farther apart than `MAX_GAP` contour spacings are not joined.

    Raises:
        CaseError: "structure" without closed contours; "contour plane" where contours are not planar, not parallel to
            slices or too far apart; "contour outside image".
    """
    contours = _closed_contours(structure)
    to_voxel = np.linalg.inv(np.asarray(affine, dtype=np.float64)) @ LPS_TO_RAS
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


def overlap(one: Structure, other: Structure) -> bool:
    """Whether contours of two structures overlap in one plane by more than `OVERLAP`; copies of a contour aside."""
    copies = {_key(contour) for contour in one.contours}
    for inner in (contour for contour in other.contours if len(contour) >= 3 and _key(contour) not in copies):
        for outer in (contour for contour in one.contours if len(contour) >= 3):
            normal = _normal([inner, outer])
            if abs(np.mean(inner @ normal) - np.mean(outer @ normal)) > SAME_PLANE_MM:
                continue
            if _shared(inner @ _basis(normal), outer @ _basis(normal)) > OVERLAP:
                return True
    return False


def contour_gaps(structure: Structure) -> tuple[float, ...]:
    """Distances in mm between planes where contours skip the planes in between, smallest first; () where none do.

    A contour is followed to the next plane with a contour above it, one that overlaps it along the normal; a gap is
    farther than `MAX_GAP` contour spacings. Tumors that lie beside one another have none. Those that lie above one
    another do, and so does one that bends back above its own end: contours alone cannot tell them from skipped planes.

    Args:
        structure: with parallel contours.

    Raises:
        CaseError: "structure" without closed contours; "contour plane" where planes are too far apart.
    """
    contours = _closed_contours(structure)
    normal = _normal(contours)
    flat = [contour @ _basis(normal) for contour in contours]
    planes = _planes([float(np.mean(contour @ normal)) for contour in contours])
    farthest = MAX_GAP * _contour_spacing(structure.name, planes, 0.0)
    gaps = set()
    for number, plane in enumerate(planes):
        for contour in plane.contours:
            above = next(
                (p for p in planes[number + 1 :] if any(_shared(flat[contour], flat[c]) > OVERLAP for c in p.contours)),
                plane,
            )
            if above.height - plane.height > farthest:
                gaps.add((plane.height, above.height))
    return tuple(sorted(high - low for low, high in gaps))


def _key(contour: NDArray[np.float64]) -> bytes:
    """The same for contours with the same points, wherever they start and whichever way they turn; to 0.001 mm."""
    return (np.unique(np.round(contour, 3), axis=0) + 0.0).tobytes()


def _closed_contours(structure: Structure) -> list[NDArray[np.float64]]:
    """Contours with at least three different points, without copies: a contour drawn twice would cancel itself."""
    contours = {_key(c): c for c in structure.contours if len(np.unique(c, axis=0)) >= 3}
    if not contours:
        raise CaseError("structure", f"no closed contours in {structure.name!r}", "at least one of three points")
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


def _shared(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Part (0 to 1) of the contour with the smaller bounding box that lies within the other; both (points, 2)."""
    small, large = sorted((one, other), key=lambda contour: float(np.prod(np.ptp(contour, axis=0))))
    corner, size = small.min(axis=0), np.ptp(small, axis=0)
    if not size.all():
        return 0.0
    first, second = (_rasterize([(c - corner) / size * _PROBES - 0.5], (_PROBES, _PROBES)) for c in (small, large))
    return np.count_nonzero(first & second) / max(1, np.count_nonzero(first))


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
        raise CaseError("contour plane", f"contours of {name!r} on planes {spacing:.1f} mm apart", expected)
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
        raise CaseError("contour plane", found, expected)
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
        raise CaseError("contour outside image", found, f"at most {MAX_OUTSIDE:g} voxel")


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
    stack: Sequence[_Plane], height: float, rasterize: Callable[[_Plane], NDArray[np.bool_]], pixel: NDArray[np.float64]
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
    """The given number of candidates of greatest depth; equals by lot, lest they all come from one side."""
    indices = np.flatnonzero(candidates)
    lot = np.random.default_rng(0).permutation(len(indices))
    ranked = indices[np.lexsort((lot, -depth.ravel()[indices]))]
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
