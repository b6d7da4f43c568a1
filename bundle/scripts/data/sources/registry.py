"""The table of sources, what can be asked of each, and what each finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from scripts.data.case import Job
from scripts.data.datalist import TASKS
from scripts.data.volume import CaseError


class Source(NamedTuple):
    """One layout that is read.

    Args:
        module: beside this one; its `find(folders, options)` returns `Found`. Imported when it is used.
        tasks: that it can serve, the first by default.
        summary: one line for the command's help.
        several: whether its parts may lie in several folders.
    """

    module: str
    tasks: tuple[str, ...]
    summary: str
    several: bool = False


_GLIOMA = ("glioma", "surrogate_t2_cet1")
_VS_SEG = "Vestibular-Schwannoma-SEG as downloaded, or what its publishers' converter made of it."
_CROSSMODA = "crossMoDA 2021 to 2023: ceT1 for the perceptor, T2 for inference; the two are not paired."
SOURCES: dict[str, Source] = {
    "vs_seg": Source("vestibular", ("vs", "vs_cet1"), _VS_SEG, several=True),
    "crossmoda": Source("crossmoda", ("vs_cet1",), _CROSSMODA),
    "brats": Source("brats", _GLIOMA, "BraTS 2018 to 2024, anywhere below a folder."),
    "msd": Source("msd", _GLIOMA, "Task01_BrainTumour of the Medical Segmentation Decathlon."),
    "nifti": Source("nifti", tuple(TASKS), "Any folder of NIfTI files, with a pattern per modality."),
    "dicom": Source(
        "studies", tuple(TASKS), "Any folder of DICOM series, for inference: no mask, no datalist.", several=True
    ),
}


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
        accept: "CASE:CHECK" or "CASE" each: failed checks of plausibility that a person accepts.
    """

    task: str
    workers: int = 1
    keep_empty: bool = False
    register: bool = False
    patterns: Mapping[str, str] = field(default_factory=dict)
    label_values: tuple[int, ...] | None = None
    series: Mapping[str, str] = field(default_factory=dict)
    structure: tuple[str, ...] | None = None
    accept: tuple[str, ...] = ()


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
    problems: list[CaseError] = field(default_factory=list)
    scans: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_cases(source: str, folders: Sequence[Path], options: Options) -> Found:
    """Cases of a source below the folders, from names and headers alone.

    Args:
        source: a key of `SOURCES`.
        folders: existing folders; the NIfTI sources take one.
        options: the task must be one that the source serves.

    Raises:
        ValueError: a task that the source does not serve, several folders where one is meant, patterns that fit
            nothing.
    """
    module, tasks, _, several = SOURCES[source]
    if options.task not in tasks:
        raise ValueError(f"task is {options.task!r}, expected one of {', '.join(tasks)} for {source}")
    if not several and len(folders) > 1:
        raise ValueError(f"--input names {len(folders)} folders, expected one for {source}")
    return import_module(f"scripts.data.sources.{module}").find(folders, options)


def case_names(source: str, task: str) -> tuple[str, ...]:
    """What each case of a source has: the task's modalities, of which inference needs the first ones, and "label"."""
    return TASKS[task].image if source == "dicom" else (*TASKS[task].modalities, "label")
