"""Whether the images of a DICOM series are one evenly spaced stack of gray slices, from their headers.

A slice lost at either end of a stack cannot be seen: nothing in a header says reliably how many there were
(ImagesInAcquisition counts other things on some scanners).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.data.dicom.headers import Instance, directions, slice_distances, slice_positions, uid_name
from scripts.data.dicom.pixels import READABLE
from scripts.data.volume import FARTHEST_MM, LEAST_SLICES, CaseError

SPACING_IN_PLANE = (0.05, 5.0)  # mm
SPACING_OF_SLICES = (0.1, 20.0)  # mm
ORIENTATION_TOLERANCE = 1e-3  # of the length of a direction cosine vector, and of the product of the two
SAME_TOLERANCE = 1e-4  # numbers that should be one and the same in all slices
SAME_POSITION = 0.01  # mm
GAP_TOLERANCE = (0.01, 0.01)  # relative to the distance of slices, and mm; the larger holds
SHEAR_TOLERANCE = 0.01  # mm per slice
_ADVICE = "no compression, JPEG, JPEG-LS, JPEG 2000 or RLE; ask the archive for Explicit VR Little Endian"


def stack_problems(slices: Sequence[Instance]) -> Iterator[CaseError]:
    """All checks; those of positions only where orientation and spacing are such that positions mean something."""
    if len(slices) < LEAST_SLICES:
        yield CaseError("number of slices", f"{len(slices)}, in {slices[0]}", f"at least {LEAST_SLICES}")
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


def _pixel_problems(slices: Sequence[Instance]) -> Iterator[CaseError]:
    """Color, and compression without decoder: the first slice of each kind."""
    for one in slices:
        if one.samples != 1 or one.photometric.startswith(("RGB", "YBR", "PALETTE")):
            found = f"{one}: {one.samples} samples per pixel, {one.photometric}"
            yield CaseError("color image", found, "one gray value per pixel")
            break
    for one in slices:
        if one.transfer_syntax and one.transfer_syntax not in READABLE:
            found = f"{one}: {uid_name(one.transfer_syntax)}, for which there is no decoder here"
            yield CaseError("compressed", found, _ADVICE)
            break


def _missing(slices: Sequence[Instance]) -> Iterator[CaseError]:
    for one in slices:
        absent = [
            name
            for name, value in (("Rows or Columns", one.shape), ("ImagePositionPatient", one.position))
            if not value
        ]
        if absent:
            yield CaseError("missing attribute", f"{one}: no usable {' and no '.join(absent)}", "in every slice")
            return
    for one in slices:
        if max(map(abs, one.position or ())) > FARTHEST_MM:
            found = f"the first pixel of {one} lies at {_shown(one.position)} mm (LPS)"
            yield CaseError("orientation", found, f"a place within {FARTHEST_MM:g} mm of the origin")
            return


def _orientation_problems(slices: Sequence[Instance]) -> Iterator[CaseError]:
    expected = f"two perpendicular unit vectors (tolerance {ORIENTATION_TOLERANCE:g})"
    for one in slices:
        if one.orientation is None:
            yield CaseError("orientation", f"{one}: no usable ImageOrientationPatient", expected)
            return
        row, column = directions(one)
        lengths, product = np.linalg.norm([row, column], axis=1), float(row @ column)
        if max(*np.abs(lengths - 1), abs(product)) > ORIENTATION_TOLERANCE:
            found = f"{one}: lengths {lengths[0]:.4g} and {lengths[1]:.4g}, scalar product {product:.4g}"
            yield CaseError("orientation", found, expected)
            return


def _spacing_problems(slices: Sequence[Instance]) -> Iterator[CaseError]:
    low, high = SPACING_IN_PLANE
    for one in slices:
        if one.spacing is None or not all(low <= value <= high for value in one.spacing):
            found = "no usable PixelSpacing" if one.spacing is None else "pixels of {:g} x {:g} mm".format(*one.spacing)
            yield CaseError("spacing", f"{one}: {found}", f"{low:g} to {high:g} mm between pixels")
            return


def _mixed(slices: Sequence[Instance], *, repeated: bool) -> Iterator[CaseError]:
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
    if slices[0].photometric == "MONOCHROME1":
        names["rescale"] = "rescale of MONOCHROME1"  # values could not be inverted alike in all slices
    for attribute, name in (names if repeated else names | {"echo_time": "echo time"}).items():
        first = getattr(slices[0], attribute)
        other = next((one for one in slices if not _same(getattr(one, attribute), first)), None)
        if other is not None:
            places = [f"{Path(one.path).parent.name}/{one}" for one in (slices[0], other)]
            found = f"{name} {_shown(first)} in {places[0]}, {_shown(getattr(other, attribute))} in {places[1]}"
            yield CaseError("mixed series", found, f"one {name} in a series")


def _same(one: Any, other: Any) -> bool:
    if one == other or one is None or other is None or isinstance(one, str):
        return one == other
    return bool(np.allclose(one, other, rtol=0, atol=SAME_TOLERANCE))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{number:g}" for number in value) + ")"
    return f"{value:g} ms" if isinstance(value, float) else repr(value)


def _repeated(slices: Sequence[Instance]) -> Iterator[CaseError]:
    """The same instance in two files, or positions most of which occur several times; copies are gone by now."""
    files: dict[tuple[str, int | None], Instance] = {}
    for one in slices:
        twin = files.setdefault((one.sop_uid, one.frame), one)
        if twin is not one:
            found = f"the same instance in {twin.path} and {one.path}, with different contents"
            yield CaseError("duplicate position", found, "one copy of every instance")
            return
    counts = Counter(map(tuple, np.round(slice_positions(slices), 2)))
    several = int(np.median(list(counts.values())))
    if several > 1:
        varying = {"time point": "time_point", "b-value": "b_value", "echo time": "echo_time"}
        varying["compression with loss"] = "lossy"
        told = [name for name, attribute in varying.items() if len({getattr(one, attribute) for one in slices}) > 1]
        found = f"{len(slices)} slices at {len(counts)} positions, {several} at each"
        yield CaseError(
            "4-D", f"{found}, differing in {' and '.join(told) or 'no attribute known here'}", "a 3-D series"
        )


def _position_problems(slices: Sequence[Instance]) -> Iterator[CaseError]:
    """Duplicates, slice spacing, gaps, tilt and order of slices that share one orientation."""
    yield from _order_problems(slices)
    distances = slice_distances(slices)
    order = np.argsort(distances, kind="stable")
    stack, steps = [slices[index] for index in order], np.diff(distances[order])
    duplicates = np.flatnonzero(steps < SAME_POSITION)
    if duplicates.size:
        one, other = stack[duplicates[0]], stack[duplicates[0] + 1]
        found = f"{one} and {other} both at {_shown(one.position)} mm (LPS), {duplicates.size} in all"
        yield CaseError("duplicate position", found, "one slice at each position")
        return
    step = float(np.median(steps))
    low, high = SPACING_OF_SLICES
    if not low <= step <= high:
        yield CaseError("spacing", f"slices {step:g} mm apart", f"{low:g} to {high:g} mm between slices")
    gaps = np.flatnonzero(np.abs(steps - step) > max(GAP_TOLERANCE[0] * step, GAP_TOLERANCE[1]))
    if gaps.size:
        one, other = stack[gaps[0]], stack[gaps[0] + 1]
        found = (
            f"{steps[gaps[0]]:.4g} mm between {one} at {_shown(one.position)} and {other} at {_shown(other.position)}"
        )
        yield CaseError("gap", f"{found} mm (LPS), {gaps.size} in all", f"{step:.4g} mm as between most slices")
    yield from _tilt_problems(stack, steps, step)


def _tilt_problems(stack: Sequence[Instance], steps: NDArray[np.float64], step: float) -> Iterator[CaseError]:
    """Neighbors whose offset is not along the normal; over a gap the shear of each missing slice counts."""
    row, column = directions(stack[0])
    offsets = np.diff(slice_positions(stack), axis=0)
    shear = np.hypot(offsets @ row, offsets @ column) / np.maximum(steps / step, 1)
    worst = int(np.argmax(np.round(shear, 6)))
    if shear[worst] > SHEAR_TOLERANCE:
        angle = np.degrees(np.arctan2(shear[worst], step))
        found = f"{shear[worst]:.3g} mm sideways between {stack[worst]} and {stack[worst + 1]} ({angle:.2g} degrees)"
        yield CaseError("gantry tilt", found, f"slices stacked along their normal (within {SHEAR_TOLERANCE:g} mm)")


def _order_problems(slices: Sequence[Instance]) -> Iterator[CaseError]:
    """Positions that neither rise nor fall with the instance numbers, where all slices have one."""
    numbers = [one.number for one in slices if one.number is not None]
    if len(numbers) < len(slices):
        return
    order = np.argsort(numbers, kind="stable")
    steps = np.diff(slice_distances(slices)[order])
    direction = 1 if (steps > 0).sum() >= (steps < 0).sum() else -1
    back = np.flatnonzero(direction * steps < -SAME_POSITION)
    if back.size:
        one, other = slices[order[back[0]]], slices[order[back[0] + 1]]
        found = f"the position turns back from instance number {one.number} ({one}) to {other.number} ({other})"
        yield CaseError("slice order", f"{found}, {back.size} times in all", "positions in order of instance numbers")
