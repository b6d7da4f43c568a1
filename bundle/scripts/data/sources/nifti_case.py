"""A case published as files, NIfTI or another format, whatever their layout: its volumes, what label values mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.data.volume import CaseError, Volume, whole_numbers


@dataclass(frozen=True)
class LabelValues:
    """What the numbers of a published label map mean.

    Args:
        legal: alternatives; the values present in a map must all belong to one of them. None: any whole number.
        structures: name of a structure to the values that make it up.
    """

    legal: tuple[frozenset[int], ...] | None
    structures: dict[str, frozenset[int]]

    def mask(self, seg: NDArray, structure: str) -> NDArray[np.uint8]:
        """Binary mask {0, 1} of one structure; values may be off whole numbers by the rounding of a scaling.

        Raises:
            CaseError: values outside what is declared, or values of two conventions in one map.
        """
        seg = whole_numbers(seg)
        present = _values(seg)
        found = "{" + ", ".join(f"{value:g}" for value in sorted(present)[:10]) + "}"
        if self.legal is None:
            if not all(float(value).is_integer() for value in present):
                raise CaseError("label values", found, "whole numbers")
        elif not any(present <= allowed for allowed in self.legal):
            expected = " or ".join("{" + ", ".join(map(str, sorted(allowed))) + "}" for allowed in self.legal)
            raise CaseError("label values", found, expected)
        return np.isin(seg, sorted(self.structures[structure])).astype(np.uint8)


@dataclass(frozen=True)
class NiftiCase:
    """One case published as files: where its volumes are and what its label values mean.

    Args:
        case: unique in the data set, and fit for a file name.
        patient: cases of one patient never part; see `split.py`.
        cohort: the part of the data set that it comes from, such as a site or a year; a split is stratified by it.
        images: modality to volume; those that were found.
        label: label map; None where none is published, as of test cases.
        label_values: what its values mean; None without label.
    """

    case: str
    patient: str
    cohort: str
    images: dict[str, Volume]
    label: Volume | None
    label_values: LabelValues | None


def file_problem(found: dict[str, list[Path]]) -> CaseError | None:
    """What leaves a case out whose files are known: several where one is meant, or no label.

    Args:
        found: modality, or "label", to the files that are it by their names.
    """
    problem = ambiguity(found)
    if problem is None and "label" not in found:
        return CaseError("missing file", "no segmentation", "one segmentation per case")
    return problem


def ambiguity(found: dict[str, list[Path]]) -> CaseError | None:
    """Several files where one is meant; arguments as for `file_problem`."""
    for name, paths in found.items():
        if len(paths) > 1:
            return CaseError("ambiguous files", f"{name} in " + " and ".join(map(str, paths)), "one file")
    return None


def _values(seg: NDArray) -> set[float]:
    """Values present in a label map, from the first voxel of each run of equal ones; sorting all can take 10 s."""
    flat = np.ravel(seg, order="K")
    return {value.item() for value in np.unique(np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]]))}
