"""Writes the files of one case, `<case>_<name>.nii.gz`, and brings its images onto one grid where that is needed.

Nothing is normalized or cropped.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray

from scripts.data import plausibility
from scripts.data.case import Facts, Job
from scripts.data.datalist import TASKS, Task, grid_problems, image_problem, prepared_name
from scripts.data.registration.align import Alignment, align, resample
from scripts.data.sources.nifti_case import NiftiCase
from scripts.data.sources.registry import Options
from scripts.data.volume import CaseError, NiftiVolume, Volume, refuse


def nifti_jobs(cases: Sequence[NiftiCase], options: Options, *, names: Sequence[str] | None = None) -> list[Job]:
    """A job per case that was published as NIfTI; `names` are what to write, by default the modalities and "label"."""
    task = TASKS[options.task]
    names = (*task.modalities, "label") if names is None else tuple(names)
    said = {"task": options.task, "register": options.register, "label_values": options.label_values}
    jobs = []
    for case in cases:
        write = partial(write_nifti_case, case, task, names, options.register)
        jobs.append(Job(case.case, case.patient, case.cohort, nifti_files(case, names), said, write))
    return jobs


def nifti_files(case: NiftiCase, names: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Name to the files that its volume is read from, of those volumes that the case has."""
    volumes = {name: case.label if name == "label" else case.images.get(name) for name in names}
    return {name: tuple(volume.files()) for name, volume in volumes.items() if volume is not None}


def write_nifti_case(case: NiftiCase, task: Task, names: Sequence[str], register: bool, folder: Path) -> Facts:
    """Write the volumes of a case that was published as NIfTI: images as they are, the label as {0, 1}.

    Args:
        task: says which structure the label becomes.
        names: what to write: modalities, the first of which decides the grid, and "label".
        register: bring an image of another grid onto that of the first by rigid registration; the label must be on the
            grid of one of the images, and moves with it.
        folder: an empty folder.

    Raises:
        CaseError: a missing, unreadable or misplaced volume, or label values that are not the data set's.
    """
    volumes = _volumes(case, names)
    refuse([] if register else grid_problems(volumes))
    facts = Facts()
    if register:
        _write_registered(case, task, volumes, folder, facts)
        return facts
    for name, volume in volumes.items():
        if name != "label":
            _copy(volume, case.case, name, folder)
    if "label" in volumes:
        target = next(name for name in reversed(volumes) if name != "label")
        _write_mask(_mask(case, task), NiftiVolume(folder / prepared_name(case.case, target)), case.case, folder)
    return facts


def write_image(voxels: NDArray, affine: NDArray[np.float64], case: str, name: str, folder: Path) -> None:
    """Write one image (modality or "label") with scanner coordinates in mm; 64-bit numbers are narrowed.

    Args:
        voxels: (X, Y, Z).
        affine: 4x4, voxel index to mm, RAS+.
    """
    narrow = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32}
    image = nib.Nifti1Image(voxels.astype(narrow.get(voxels.dtype, voxels.dtype), copy=False), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    nib.save(image, folder / prepared_name(case, name))


def _volumes(case: NiftiCase, names: Sequence[str]) -> dict[str, Volume]:
    """The named volumes, images first."""
    wanted = [name for name in names if name != "label"]
    missing = [name for name in wanted if name not in case.images]
    if missing:
        raise CaseError("missing file", f"no {', '.join(missing)}", ", ".join(wanted))
    volumes = {name: case.images[name] for name in wanted}
    if "label" in names:
        if case.label is None:
            raise CaseError("missing file", "no segmentation", "one segmentation per case")
        volumes["label"] = case.label
    return volumes


def _mask(case: NiftiCase, task: Task) -> NDArray[np.uint8]:
    assert case.label is not None and case.label_values is not None
    try:
        return case.label_values.mask(case.label.voxels(), task.structure)
    except CaseError as error:
        raise error.of("label") from error


def _write_mask(mask: NDArray[np.uint8], target: NiftiVolume, case: str, folder: Path) -> None:
    """Write the label with the header of the target as written, so that viewers place both alike."""
    image = target.open()
    header = image.header.copy()
    header.set_data_shape(mask.shape)
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0
    nib.save(nib.Nifti1Image(mask, image.affine, header), folder / prepared_name(case, "label"))


def _copy(volume: Volume, case: str, name: str, folder: Path) -> None:
    """Write a volume as a .nii.gz of its own: NIfTI as the same bytes where possible, always as the stored numbers."""
    if not isinstance(volume, NiftiVolume):
        write_image(volume.voxels(), volume.grid()[1], case, name, folder)
        return
    path, image = folder / prepared_name(case, name), volume.open()
    if volume.channel is None:
        with volume.path.open("rb") as source, path.open("wb") as target:
            if volume.path.name.lower().endswith(".gz"):
                shutil.copyfileobj(source, target)
            else:
                with gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0) as compressed:
                    shutil.copyfileobj(source, compressed)
        return
    header = image.header.copy()
    proxy = cast(ArrayProxy, image.dataobj)
    stored = volume.stored()
    header.set_data_shape(stored.shape)
    single = nib.Nifti1Image(stored, image.affine, header)
    single.header.set_slope_inter(proxy.slope, proxy.inter)  # Creating an image clears them.
    nib.save(single, path)


def _write_registered(case: NiftiCase, task: Task, volumes: Mapping[str, Volume], folder: Path, facts: Facts) -> None:
    """Write every image, and the label, on the grid of the first image."""
    images = {name: volume for name, volume in volumes.items() if name != "label"}
    first = next(iter(images))
    registered = register_images(images, facts, trust_grids=True)
    _copy(images[first], case.case, first, folder)
    for name in list(images)[1:]:
        write_image(registered.images[name], registered.affine, case.case, name, folder)
    if "label" in volumes:
        owners = [n for n in images if not grid_problems({n: images[n], "label": volumes["label"]})]
        if not owners:
            found = f"label of shape {volumes['label'].grid()[0]} on a grid of its own"
            raise CaseError("shape", found, f"the grid of {' or '.join(images)}")
        mask = registered.mask(_mask(case, task), owners[0])
        registered.check(mask)
        write_image(mask, registered.affine, case.case, "label", folder)


@dataclass(frozen=True)
class Registered:
    """The images of a case on one grid.

    Args:
        images: name to voxels (X, Y, Z) on the common grid, the first as it was.
        affine: 4x4, voxel index to mm, RAS+, of that grid.
        affines: name to the affine that each image had before.
        alignments: name to where an image was brought from; those that were moved or resampled.
        covered: name to the voxels (X, Y, Z) that such an image has intensities for.
    """

    images: dict[str, NDArray]
    affine: NDArray[np.float64]
    affines: dict[str, NDArray[np.float64]]
    alignments: dict[str, Alignment]
    covered: dict[str, NDArray[np.bool_]]

    def check(self, mask: NDArray[np.uint8] | None) -> None:
        """Whether every moved image shows the head of the first, and all of the mask.

        Raises:
            CaseError: a registration that cannot be right.
        """
        if not self.alignments:
            return
        first, reference = next(iter(self.images.items()))
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        head = plausibility.head_mask(reference, spacing=spacing)
        tumor = np.zeros(reference.shape, dtype=np.uint8) if mask is None else mask
        errors = []
        for name, covered in self.covered.items():
            other = plausibility.head_mask(self.images[name], spacing=spacing, coverage=covered)
            found = plausibility.overlap_problems(head, other, coverage=covered, mask=tumor)
            errors += [error.of(f"{first} and {name}") for error in found]
        refuse(errors)

    def mask(self, mask: NDArray[np.uint8], owner: str) -> NDArray[np.uint8]:
        """A mask drawn on one of the images as it was, on the common grid: where at least half of a voxel is inside."""
        if owner not in self.alignments:
            return mask
        shape = next(iter(self.images.values())).shape
        inside, _ = resample(mask.astype(np.float32), self.affines[owner], shape, self.affine, self.alignments[owner])
        return (inside >= 0.5).astype(np.uint8)


def register_images(
    volumes: Mapping[str, Volume], facts: Facts, *, transforms: Sequence[Path] = (), trust_grids: bool = False
) -> Registered:
    """Bring the images of a case onto the grid of the first, by the transforms given or by rigid registration.

    Args:
        volumes: modality to volume, the reference first.
        facts: is told how each image was brought.
        transforms: .tfm files between the two images, in whatever direction.
        trust_grids: an image on the grid of the first already is taken as registered.

    Raises:
        CaseError: an image that cannot be read, or a registration that does not hold.
    """
    (first, reference), *others = volumes.items()
    shape, affine = reference.grid()
    fixed = _readable(first, reference)
    registered = Registered({first: fixed}, affine, {first: affine}, {}, {})
    for name, volume in others:
        moving, moving_affine = _readable(name, volume), volume.grid()[1]
        registered.affines[name] = moving_affine
        if trust_grids and not grid_problems({first: reference, name: volume}):
            registered.images[name] = moving
            continue
        alignment = align(fixed, affine, moving, moving_affine, transforms=transforms)
        image, covered = resample(moving, moving_affine, shape, affine, alignment, fill=_air(moving))
        # In the type that the image had, which holds the result: interpolation does not overshoot.
        registered.images[name] = np.rint(image).astype(moving.dtype) if moving.dtype.kind in "iu" else image
        registered.alignments[name] = alignment
        registered.covered[name] = covered
        facts.shown.update(_alignment_facts(name, alignment, covered))
    return registered


def _readable(name: str, volume: Volume) -> NDArray:
    """Voxels of a volume, refused before anything is computed with them."""
    try:
        voxels = volume.voxels()
    except CaseError as error:
        raise error.of(name) from error
    problem = image_problem(name, voxels)
    if problem is not None:
        raise problem
    return voxels


def _air(voxels: NDArray) -> float:
    """Intensity for where a moved image ends: exact zeros would look like a skull-stripped scan wherever it is read."""
    if plausibility.is_skull_stripped(voxels):
        return 0.0
    air = voxels[~plausibility.foreground(voxels, sampled=True) & (voxels != 0)]
    return float(np.median(air)) if air.size else float(voxels[voxels != 0].min())


def _alignment_facts(name: str, alignment: Alignment, covered: NDArray[np.bool_]) -> dict[str, str]:
    information = ", ".join(f"{how} {value:.3f}" for how, value in alignment.mutual_information.items())
    facts = {
        f"{name} brought by": f"{alignment.method}, {alignment.shift_mm:.2f} mm, {alignment.turn_degrees:.2f} degrees",
        f"{name} mutual information": information,
        f"{name} covers": f"{covered.mean():.0%} of the grid",
    }
    if alignment.residual_mm is not None:
        facts[f"{name} registration residual"] = f"{alignment.residual_mm:.2f} mm there and back"
    return facts
