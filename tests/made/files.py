"""Empty files, where names alone decide, and NIfTI files."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


def save(path: Path, voxels: NDArray, affine: NDArray | None = None) -> None:
    """Writes a NIfTI file and the folders that it lies in; voxels of 1 mm where no affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def touch(folder: Path, *names: str, ending: str = ".nii.gz") -> None:
    """Makes an empty file of each name in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}{ending}").touch()


def touch_case(folder: Path, case: str, suffixes: Sequence[str], ending: str = ".nii.gz") -> None:
    """Makes an empty file of a case for each suffix."""
    touch(folder, *(f"{case}{suffix}" for suffix in suffixes), ending=ending)
