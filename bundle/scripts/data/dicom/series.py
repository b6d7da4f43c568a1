"""A DICOM series as one 3-D volume: its grid from the headers, its voxels from the decoded pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.data.dicom.headers import (
    Instance,
    directions,
    frames_of,
    has_philips_scaling,
    slice_distances,
    slice_positions,
    uid_name,
)
from scripts.data.dicom.pixels import LOSSY, decode, is_lossy
from scripts.data.dicom.series_checks import stack_problems
from scripts.data.volume import LPS_TO_RAS, CaseError, check_grid


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

    @property
    def label(self) -> str:
        """What the series is called: its description, the name of its folder where it has none."""
        return self.header.description or self.files()[0].parent.name

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
        shape, affine = _grid(self._checked_slices())
        check_grid(self.label, shape, affine)
        return shape, affine

    def voxels(self) -> NDArray:
        """The array (columns, rows, slices), rescaled as the headers say; integers where nothing is to be rescaled.

        Raises:
            CaseError: as `grid`, and when pixels are damaged or cannot be decoded.
        """
        planes: list[NDArray] = []
        path, decoded = "", []
        for one in self._checked_slices():
            if one.path != path:
                path, decoded = one.path, decode(one)
            planes.append(decoded[one.frame or 0])
        return np.stack(planes).transpose(2, 1, 0)

    def warnings(self) -> list[str]:
        """What a reader should know of the images, a sentence each; for a series without problems.

        Raises:
            CaseError: a file that cannot be read.
        """
        return [*self._copies_told(), *self._loss_told(), *self._inversion_told()]

    def facts(self) -> dict[str, str]:
        """How stored numbers became voxels, where there was a choice; for a series without problems.

        Raises:
            CaseError: a file that cannot be read.
        """
        slices = self._slices()
        if not has_philips_scaling(slices[0]):
            return {}
        slopes = sorted({one.rescale or (1.0, 0.0) for one in slices})
        shown = "slope {:g}, intercept {:g}".format(*slopes[0]) + (", and others" if len(slopes) > 1 else "")
        used = f"the standard's own (0028,1053) and (0028,1052), {shown}" if slices[0].rescale else "stored numbers"
        return {"rescale": f"{used}; Philips' (2005,100E) and (2005,100D) are there and not used"}

    def _copies_told(self) -> list[str]:
        kept = set(self._distinct)
        copies = [one for one in self.instances if one not in kept]
        if not copies:
            return []
        where = f"{Path(copies[0].path).parent.name}/{copies[0]}"
        return [
            f"{len(copies)} of {len(self.instances)} images are identical copies and were left out, such as {where}"
        ]

    def _loss_told(self) -> list[str]:
        lossy = [one for one in self._distinct if is_lossy(one)]
        if not lossy:
            return []
        syntax, ratio = lossy[0].transfer_syntax, lossy[0].lossy_ratio
        how = uid_name(syntax) if syntax in LOSSY else "earlier, as the header says"
        told = f"{how}, ratio {ratio}" if ratio else how
        return [f"{len(lossy)} images were compressed with loss ({told}), and differ from what the scanner measured"]

    def _inversion_told(self) -> list[str]:
        if self.header.photometric != "MONOCHROME1":
            return []
        return ["MONOCHROME1, where low values are bright: the values were inverted"]

    @cached_property
    def _distinct(self) -> list[Instance]:
        """The images without identical copies: another file of the same header and the same pixels."""
        seen: dict[Instance, Instance] = {}
        distinct = []
        for one in self.instances:
            twin = seen.setdefault(_apart(one), one)
            if twin is one or not _same_image(one, twin):
                distinct.append(one)
        return distinct

    def _slices(self) -> list[Instance]:
        """One instance per slice: enhanced files frame by frame."""
        slices: list[Instance] = []
        for instance in self._distinct:
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


def _same_image(one: Instance, other: Instance) -> bool:
    """Whether two files with equal headers are one image, in whatever compression."""
    if Path(one.path).read_bytes() == Path(other.path).read_bytes():
        return True
    if one.position is None and one.sop_uid != other.sop_uid:
        return False
    if one.frames > 1 and list(map(_apart, frames_of(one))) != list(map(_apart, frames_of(other))):
        return False
    return all(map(np.array_equal, decode(one), decode(other)))


def _apart(one: Instance) -> Instance:
    """An image or frame apart from how its file is called and encoded."""
    return replace(one, path="", sop_uid="", transfer_syntax="")


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
