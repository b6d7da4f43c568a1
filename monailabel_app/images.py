"""Images on the disk: checked by their headers, read as scans, masks and submitted labels, and written.

What is read, and where it lies, is for the bundle's reader to say (`reader.py`); the limits here are the server's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from monailabel_app.errors import InputError
from monailabel_app.reader import check_mask, check_one_grid, open_volume, told_of

NIFTI = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*NIFTI, ".nrrd")
LABEL_SUFFIXES = (".seg.nrrd", *IMAGE_SUFFIXES)
RAW_SUFFIX = ".bin"  # what OHIF submits: one byte per voxel of the scan

# What fits in the server's memory, also when it is resampled to the network's spacing.
MOST_VOXELS = 512 * 512 * 1024
MOST_PER_AXIS = 4096
MOST_MM = 600.0
MOST_MM3 = 320.0**3

HEAD_MM = 25.0  # along two axes at least; less is hardly a head


def check_scan(file: Path, name: str, *, whole: bool = False) -> None:
    """Refuses a scan by its header: what the reader refuses, in its words, and what does not fit in memory.

    Args:
        file: the scan.
        name: what messages call it.
        whole: whether its voxels are read too, which finds a file that was cut short.
    """
    if file.is_dir():
        raise InputError(f"{name} is a folder of files: expected one volume; export the series as one NIfTI file.")
    volume = open_volume(file)
    with told_of(name, volume):
        shape, affine = volume.grid()
    if max(shape) > MOST_PER_AXIS or math.prod(shape) > MOST_VOXELS:
        raise InputError(f"{name} has {_times(shape)} voxels: expected at most 512 x 512 x 1024; resample it.")
    extent = [n * s for n, s in zip(shape, spacing_of(affine), strict=True)]
    if max(extent) > MOST_MM or math.prod(extent) > MOST_MM3:
        raise InputError(
            f"{name} covers {_times(extent)} mm: expected a scan of a head, at most {MOST_MM:g} mm along an axis and "
            f"{MOST_MM3 / 1e6:.1f} liters; correct its header or crop it."
        )
    if whole:
        with told_of(name, volume):
            volume.voxels()


def read_scans(files: Mapping[str, Path]) -> dict[str, tuple[np.ndarray, list[float]]]:
    """Voxels and spacing (mm) of each modality's file, but for those that cannot be read: the bundle says why."""
    scans = {}
    for modality, file in files.items():
        try:
            voxels, affine = read_volume(file, modality)
        except InputError:
            continue
        scans[modality] = np.asarray(voxels, dtype=np.float32), spacing_of(affine)
    return scans


def extent_notes(scans: Mapping[str, tuple[np.ndarray, list[float]]]) -> list[str]:
    """Says so where a scan is no whole head."""
    notes = []
    for modality, (voxels, spacing) in scans.items():
        extent = [n * s for n, s in zip(voxels.shape, spacing, strict=True)]
        if sorted(extent)[1] < HEAD_MM:
            notes.append(f"Check the scan: {modality} covers {_times(extent)} mm, which is hardly a head.")
    return notes


@dataclass(frozen=True)
class Turned:
    """A volume whose axes are put in another order and sense: each voxel keeps its place.

    Args:
        volume: as the reader opens it.
        turn: nibabel's orientation, for each of its axes the one it becomes and 1, or -1 for the other sense.
    """

    volume: Any
    turn: np.ndarray

    def files(self) -> list[Path]:
        """The files of the volume."""
        return self.volume.files()

    def grid(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape and affine after the turn."""
        shape, affine = self.volume.grid()
        return tuple(shape[axis] for axis in np.argsort(self.turn[:, 0])), affine @ inv_ornt_aff(self.turn, shape)

    def voxels(self) -> np.ndarray:
        """The voxels after the turn."""
        return apply_orientation(self.volume.voxels(), self.turn)


def check_label(label: Path, image: Path) -> Path:
    """Refuses a submitted label that does not lie on its scan, or holds other than 0 and 1.

    Args:
        label: the file; one byte for each voxel of the scan where it ends with `RAW_SUFFIX`.
        image: the scan.

    Returns:
        The label on the voxels of its scan: the file, or, where its axes come in another order or sense, a new one
        beside it.
    """
    scan, name = open_volume(image), "the submitted label"
    with told_of("the scan", scan):
        shape, affine = scan.grid()
    if label.suffix == RAW_SUFFIX:
        count, expected = label.stat().st_size, math.prod(shape)
        if count != expected:
            raise InputError(f"The label has {count} bytes and the scan {expected} voxels: expected the same number.")
        check_mask(np.fromfile(label, dtype=np.uint8), name)
        return label
    drawn = open_volume(label)
    with told_of(name, drawn):
        turn = io_orientation(np.linalg.solve(affine, drawn.grid()[1]))
    turned = Turned(drawn, turn)
    check_one_grid({"the scan": scan, name: turned})
    with told_of(name, drawn):
        voxels = check_mask(turned.voxels(), name)
    if np.array_equal(turn, np.stack([range(3), np.ones(3)], axis=1)):
        return label
    written = label.with_name("turned.nii.gz")
    write_nifti(written, voxels, affine=affine)
    return written


def read_volume(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a 3-D volume: voxels (X, Y, Z) and the affine to RAS millimeters.

    Raises:
        InputError: the reader refuses it.
    """
    volume = open_volume(path)
    with told_of(name, volume):
        return volume.voxels(), volume.grid()[1]


def read_mask(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a mask as `read_volume` does: uint8 of 0 and 1."""
    voxels, affine = read_volume(path, name)
    return check_mask(voxels, name), affine


def spacing_of(affine: np.ndarray) -> list[float]:
    """Voxel size along each axis, mm."""
    return [float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)]


def write_nifti(path: Path, voxels: np.ndarray, *, affine: np.ndarray | None = None, like: Path | None = None) -> None:
    """Writes a NIfTI file on the grid of an affine, or with the header of another file."""
    header: Any = None if like is None else nib.load(like).header  # type: ignore[attr-defined]
    image = nib.Nifti1Image(voxels, affine, header)
    if affine is not None:
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, code="scanner")
        image.set_sform(affine, code="scanner")
    image.set_data_dtype(voxels.dtype)
    nib.save(image, path)


def _times(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
