"""Vestibular-Schwannoma-SEG: the download in DICOM with its contours, or the converter's output in NIfTI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from scripts.data.conversion import nifti_jobs
from scripts.data.datalist import TASKS
from scripts.data.dicom.folder import scan
from scripts.data.names import ENDING
from scripts.data.reading import open_volume
from scripts.data.sources.nifti_case import LabelValues, NiftiCase, file_problem
from scripts.data.sources.registry import Found, Options
from scripts.data.sources.studies import StudyCase, study_jobs
from scripts.data.volume import CaseError
from scripts.files import files_below

# How descriptions of series begin or what they contain; regular expressions, in any case.
VS_SEG_SERIES = {"T2": "t2_", "ceT1": "t1_"}
VS_CONVERTED_LABELS = LabelValues((frozenset({0, 1}),), {"vestibular schwannoma": frozenset({1})})

_VS_CONVERTED_FILE = re.compile(rf"vs_gk_(?P<name>t1|t2|seg)_ref(?P<grid>T1|T2){ENDING}")
_VS_CONVERTED_NAMES = {"t1": "ceT1", "t2": "T2", "seg": "label"}
_CONTOURS_FOLDER = re.compile(r"vs_gk_(?P<number>\d+)_t(?P<weighting>[12])", re.IGNORECASE)
_MODALITY_OF = {"1": "ceT1", "2": "T2"}


def find(folders: Sequence[Path], options: Options) -> Found:
    """The cases as jobs; arguments and errors as in `find_cases` of `registry.py`.

    Raises:
        ValueError: DICOM beside the converter's output.
    """
    converted = [find_vs_converted(folder) for folder in folders]
    if any(cases or problems for cases, problems in converted):
        if any(series.header.modality == "MR" for series in scan(*folders, workers=options.workers).series):
            raise ValueError(
                "found DICOM beside the converter's vs_gk_N/*_refT2.nii.gz, the same patients; name one folder"
            )
        cases = [case for found, _ in converted for case in found]
        return Found(nifti_jobs(cases, options), [p for _, problems in converted for p in problems])
    patterns = {**VS_SEG_SERIES, **options.series}
    return study_jobs(folders, TASKS[options.task].modalities, patterns, options, drawn=add_contours)


def find_vs_converted(folder: Path) -> tuple[list[NiftiCase], list[CaseError]]:
    """Cases of VS-SEG that its published converter has turned into NIfTI on the grid of T2, sorted by case id.

    They are `vs_gk_N/vs_gk_{t1,t2,seg}_refT2.nii.gz` anywhere below the folder. Of a conversion that kept T1 on its
    own grid, or moved T2 to that of T1, the files called `_refT1` are not used.

    Returns:
        The cases, and the problems that leave a case out here: no segmentation, two files for one modality, and
        images on the grid of T1.
    """
    files: dict[str, dict[str, list[Path]]] = {}
    other_grid: set[str] = set()
    for path in files_below(folder):
        match, case = _VS_CONVERTED_FILE.fullmatch(path.name), path.parent.name
        if match is None or re.fullmatch(r"vs_gk_\d+", case) is None:
            continue
        found = files.setdefault(case, {})
        if match["grid"] == "T2":
            found.setdefault(_VS_CONVERTED_NAMES[match["name"]], []).append(path)
        elif match["name"] != "seg":
            other_grid.add(case)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        problem = file_problem(found)
        if case in other_grid and not {"ceT1", "T2"} <= found.keys():
            expected = "the output of the converter with --register T2"
            problem = CaseError("missing file", "images on the grid of T1 (_refT1)", expected)
        if problem is not None:
            problems.append(problem.at(case))
            continue
        images = {name: open_volume(paths[0]) for name, paths in found.items() if name != "label"}
        label = open_volume(found["label"][0])
        cases.append(NiftiCase(case, case, "VS-SEG", images, label, VS_CONVERTED_LABELS))
    return cases, problems


def add_contours(cases: Sequence[StudyCase], folders: Iterable[Path]) -> list[StudyCase]:
    """The same cases with the contours.json and .tfm files of `vs_gk_N_t1/` and `vs_gk_N_t2/` below the folders.

    `vs_gk_7_t2` belongs to patient VS-SEG-007.
    """
    drawn: dict[str, dict[str, Path]] = {}
    transforms: dict[str, list[Path]] = {}
    for folder in folders:
        for path in files_below(folder):
            match = _CONTOURS_FOLDER.fullmatch(path.parent.name)
            if match is None or (path.suffix != ".tfm" and path.name != "contours.json"):
                continue
            patient = f"VS-SEG-{int(match['number']):03d}"
            if path.suffix == ".tfm":
                transforms.setdefault(patient, []).append(path)
            else:
                drawn.setdefault(patient, {})[_MODALITY_OF[match["weighting"]]] = path
    return [
        replace(case, contours=drawn.get(case.patient, {}), transforms=tuple(transforms.get(case.patient, ())))
        for case in cases
    ]
