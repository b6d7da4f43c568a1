"""Each source's cases as jobs: what the command line says, and how a case of that source is written.

The bridge between the data sets (`sources.py`, `vestibular.py`, `studies.py`, `phantom.py`) and `preparation.py`, which
runs jobs. Splits, datalists and the command line itself are in `prepare.py`. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from scripts.data.case import Facts, Job
from scripts.data.conversion import nifti_files, write_image, write_nifti_case
from scripts.data.datalist import TASKS
from scripts.data.dicom.folder import UNKNOWN, scan
from scripts.data.phantom.make import make_phantom
from scripts.data.sources.sources import NiftiCase, find_brats, find_msd, find_nifti
from scripts.data.sources.studies import VS_SEG_SERIES, add_contours, find_studies, write_study
from scripts.data.sources.vestibular import find_crossmoda, find_vs_converted
from scripts.data.volume import Problem


@dataclass(frozen=True)
class Options:
    """What can be said about every source.

    Args:
        task: a key of `TASKS`.
        workers: processes.
        keep_empty: a mask without tumor is legal. It always is where the structure is the enhancing part of a tumor.
        register: of nifti: bring images of another grid onto that of the first modality.
        patterns: of nifti: modality or "label" to a pattern of file names.
        label_values: of nifti: values that are tumor; None for masks of 0 and 1.
        series: of vs_seg and dicom: modality to a regular expression searched in SeriesDescription.
        structure: of vs_seg: names of the tumor's structure in contours; None for the usual ones.
    """

    task: str
    workers: int = 1
    keep_empty: bool = False
    register: bool = False
    patterns: Mapping[str, str] = field(default_factory=dict)
    label_values: tuple[int, ...] | None = None
    series: Mapping[str, str] = field(default_factory=dict)
    structure: tuple[str, ...] | None = None


@dataclass
class Found:
    """What a source found below its folders.

    Args:
        jobs: the cases that can be tried.
        problems: what leaves cases out before their voxels are read.
        scans: scans that belong to no training case and serve inference alone (crossMoDA's T2).
        notes: sentences for the user about the data set.
    """

    jobs: list[Job] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    scans: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_jobs(source: str, folders: Sequence[Path], options: Options) -> Found:
    """Cases of a source below the folders, from names and headers alone.

    Args:
        source: a key of `SOURCES`.
        folders: existing folders; the NIfTI sources take one.
        options: the task must be one that the source serves.

    Raises:
        ValueError: a task that the source does not serve, several folders where one is meant, patterns that fit
            nothing.
    """
    tasks, find = SOURCES[source]
    if options.task not in tasks:
        raise ValueError(f"task is {options.task!r}, expected one of {', '.join(tasks)} for {source}")
    if find is not _vs_seg and find is not _dicom and len(folders) > 1:
        raise ValueError(f"--input names {len(folders)} folders, expected one for {source}")
    return find(folders, options)


def case_names(source: str, task: str) -> tuple[str, ...]:
    """What each case of a source has: the task's modalities, of which inference needs the first ones, and "label"."""
    return TASKS[task].image if source == "dicom" else (*TASKS[task].modalities, "label")


def phantom_jobs(
    task: str, seeds: Sequence[int], tumors: Sequence[bool], shape: Sequence[int], spacing: Sequence[float]
) -> list[Job]:
    """One job per phantom, numbered.

    Args:
        task: a key of `TASKS`.
        seeds: one per phantom.
        tumors: whether each has a tumor.
        shape: voxels (X, Y, Z).
        spacing: mm.
    """
    jobs = []
    for index, (seed, tumor) in enumerate(zip(seeds, tumors, strict=True)):
        case = f"phantom_{task}_{index:04d}"
        options = {"seed": seed, "tumor": tumor, "shape": list(shape), "spacing": list(spacing)}
        write = partial(_write_phantom, case, task, seed, tumor, tuple(shape), tuple(spacing))
        jobs.append(Job(case, case, "phantom", {}, options, write))
    return jobs


def _write_phantom(
    case: str, task: str, seed: int, tumor: bool, shape: tuple[int, ...], spacing: tuple[float, ...], folder: Path
) -> Facts:
    phantom = make_phantom(seed, task=task, shape=shape, spacing=spacing, tumor=tumor)
    for modality in TASKS[task].modalities:
        # Rounded to int16, as scanners store them; it also compresses.
        voxels = np.rint(phantom.images[modality]).astype(np.int16)
        write_image(voxels, phantom.affine, case, modality, folder)
    write_image(phantom.label, phantom.affine, case, "label", folder)
    return Facts()


def _nifti_jobs(cases: Sequence[NiftiCase], names: Sequence[str], options: Options) -> list[Job]:
    said = {"task": options.task, "register": options.register, "label_values": options.label_values}
    return [
        Job(
            case.case,
            case.patient,
            case.cohort,
            nifti_files(case, names),
            said,
            partial(write_nifti_case, case, TASKS[options.task], tuple(names), options.register),
        )
        for case in cases
    ]


def _brats(folders: Sequence[Path], options: Options) -> Found:
    """BraTS 2018 to 2024, anywhere below a folder."""
    cases, problems = find_brats(folders[0])
    return Found(_nifti_jobs(cases, case_names("brats", options.task), options), problems)


def _msd(folders: Sequence[Path], options: Options) -> Found:
    """Task01_BrainTumour of the Medical Segmentation Decathlon."""
    cases, problems = find_msd(folders[0])
    return Found(_nifti_jobs(cases, case_names("msd", options.task), options), problems)


def _nifti(folders: Sequence[Path], options: Options) -> Found:
    """Any folder of NIfTI files, with a pattern per modality."""
    cases, problems = find_nifti(folders[0], options.patterns, label_values=options.label_values)
    return Found(_nifti_jobs(cases, case_names("nifti", options.task), options), problems)


def _crossmoda(folders: Sequence[Path], options: Options) -> Found:
    """crossMoDA 2021 to 2023: ceT1 for the perceptor, T2 for inference; the two are not paired."""
    labeled, scans, problems = find_crossmoda(folders[0])
    note = (
        "crossMoDA's ceT1 and T2 are of different patients: the labeled ceT1 train the perceptor S_p (task vs_cet1), "
        "the T2 serve inference, and TISS-Net itself cannot be trained on them. Its London patients are those of "
        "Vestibular-Schwannoma-SEG: a perceptor trained on them has seen patients that a split of that set tests on"
    )
    return Found(
        _nifti_jobs(labeled, case_names("crossmoda", options.task), options),
        problems,
        _nifti_jobs(scans, ("T2",), options),
        [note],
    )


def _vs_seg(folders: Sequence[Path], options: Options) -> Found:
    """Vestibular-Schwannoma-SEG as downloaded, or what its publishers' converter made of it."""
    names = case_names("vs_seg", options.task)
    converted = [find_vs_converted(folder) for folder in folders]
    if any(cases or problems for cases, problems in converted):
        if any(series.modality == "MR" for series in scan(*folders, workers=options.workers).series):
            raise ValueError(
                "found DICOM beside the converter's vs_gk_N/*_refT2.nii.gz, the same patients; name one folder"
            )
        cases = [case for found, _ in converted for case in found]
        return Found(_nifti_jobs(cases, names, options), [p for _, problems in converted for p in problems])
    return _studies(folders, TASKS[options.task].modalities, VS_SEG_SERIES, names, options)


def _dicom(folders: Sequence[Path], options: Options) -> Found:
    """Any folder of DICOM series, for inference: no mask, no datalist."""
    return _studies(folders, TASKS[options.task].image, {}, TASKS[options.task].image, options)


def _studies(
    folders: Sequence[Path],
    modalities: Sequence[str],
    usual: Mapping[str, str],
    names: Sequence[str],
    options: Options,
) -> Found:
    headers = scan(*folders, workers=options.workers)
    patterns = {**usual, **options.series}
    cases, problems = find_studies(headers, modalities, patterns)
    labeled = "label" in names
    if labeled:
        cases = add_contours(cases, folders)
    said = {"task": options.task, "structure": options.structure, "modalities": list(modalities)}
    jobs = [
        Job(
            case.case,
            case.patient,
            case.cohort,
            case.files(),
            said,
            partial(write_study, case, options.structure, labeled),
        )
        for case in cases
    ]
    nameless = sum(series.patient == UNKNOWN for series in headers.series)
    note = f"{nameless} series have neither PatientID nor PatientName and count as one patient"
    return Found(jobs, problems, notes=[note] if nameless else [])


GLIOMA_TASKS = ("glioma", "surrogate_t2_cet1")
Find = Callable[[Sequence[Path], Options], Found]
# The tasks that each source can serve, the first by default, and how its cases are found.
SOURCES: dict[str, tuple[tuple[str, ...], Find]] = {
    "vs_seg": (("vs", "vs_cet1"), _vs_seg),
    "crossmoda": (("vs_cet1",), _crossmoda),
    "brats": (GLIOMA_TASKS, _brats),
    "msd": (GLIOMA_TASKS, _msd),
    "nifti": (tuple(TASKS), _nifti),
    "dicom": (tuple(TASKS), _dicom),
}
