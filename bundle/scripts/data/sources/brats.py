"""BraTS 2017 to 2024: names of files, label values, patients and cohorts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.data.conversion import nifti_jobs
from scripts.data.names import ENDING
from scripts.data.reading import open_volume
from scripts.data.sources.nifti_case import LabelValues, NiftiCase, file_problem
from scripts.data.sources.registry import Found, Options
from scripts.data.volume import CaseError
from scripts.files import files_below

# Non-enhancing and necrotic core 1, edema 2, enhancing 4 up to 2021 and 3 from 2023. Files of BraTS 2023 are also found
# renamed to the older suffixes, so these admit either set, but never 3 and 4 in one map. The newer suffixes admit 3
# alone: in BraTS 2024 a 4 is the resection cavity, which is not tumor.
_BRATS_STRUCTURES = {"whole tumor": frozenset({1, 2, 3, 4}), "enhancing tumor": frozenset({3, 4})}
BRATS_OLD_LABELS = LabelValues((frozenset({0, 1, 2, 4}), frozenset({0, 1, 2, 3})), _BRATS_STRUCTURES)
BRATS_NEW_LABELS = LabelValues((frozenset({0, 1, 2, 3}),), _BRATS_STRUCTURES)

_BRATS_OLD_SUFFIXES = {"_t1": "T1", "_t1ce": "ceT1", "_t2": "T2", "_flair": "FLAIR", "_seg": "label"}
_BRATS_NEW_SUFFIXES = {"-t1n": "T1", "-t1c": "ceT1", "-t2w": "T2", "-t2f": "FLAIR", "-seg": "label"}
_BRATS_FILE = re.compile(rf"(?P<case>[^.].*)(?P<suffix>_t1|_t1ce|_t2|_flair|_seg|-t1n|-t1c|-t2w|-t2f|-seg){ENDING}")
# Cohorts of BraTS 2023 and later whose label values are the ones above. The others hold other tumors: MEN, MET, PED,
# GoAT (several kinds in one set) and MEN-RT, which names its only image and its label in a way of its own.
_BRATS_COHORTS = ("GLI", "SSA")
_BRATS_COHORT = re.compile(r"BraTS-([A-Za-z-]*[A-Za-z])-\d")
_BRATS_MEN_RT_FILE = re.compile(rf"(?P<case>BraTS-MEN-RT-[\d-]+)_(t1c|gtv){ENDING}")
# Editions share patients. Those of 2017 to 2020 name them anew (name_mapping.csv of 2020 is a table of the names), 2021
# has most of them under numbers of its own, GLI of 2023 and later goes on with the numbers of 2021, and SSA (Africa)
# has patients of its own. From the publishers' descriptions, as remembered; not verified on the data of all editions.
_BRATS_RENUMBERED = re.compile(r"brats(?:20)?(17|18|19|20)_", re.IGNORECASE)
_BRATS_CONTINUED = re.compile(r"BraTS2021_\d|BraTS-GLI-\d")


def find(folders: Sequence[Path], options: Options) -> Found:
    """The cases as jobs; arguments and errors as in `find_cases` of `registry.py`."""
    cases, problems = find_brats(folders[0])
    return Found(nifti_jobs(cases, options), problems)


def find_brats(folder: Path) -> tuple[list[NiftiCase], list[CaseError]]:
    """Cases of BraTS 2017 to 2024 anywhere below a folder, sorted by case id.

    Understands `<case>_{t1,t1ce,t2,flair,seg}` and `<case>-{t1n,t1c,t2w,t2f,seg}`, in any format.
    A missing modality is left to the caller, who knows which ones its task needs.

    Returns:
        The cases, and the problems that leave a case out here: no segmentation (as in validation and test sets), two
        files for one modality, a case id in two folders, a cohort other than GLI and SSA.

    Raises:
        ValueError: an edition of 2017 to 2020 beside another one; they share patients under different names.
    """
    files: dict[str, dict[str, list[Path]]] = {}
    newer: set[str] = set()
    for path in files_below(folder):
        radiotherapy = _BRATS_MEN_RT_FILE.fullmatch(path.name)
        if radiotherapy is not None:
            files.setdefault(radiotherapy["case"], {})
        match = _BRATS_FILE.fullmatch(path.name)
        if match is None:
            continue
        case, suffix = match["case"], match["suffix"]
        name = _BRATS_OLD_SUFFIXES.get(suffix) or _BRATS_NEW_SUFFIXES[suffix]
        files.setdefault(case, {}).setdefault(name, []).append(path)
        if suffix in _BRATS_NEW_SUFFIXES:
            newer.add(case)
    _check_brats_editions(folder, files)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        cohort = _BRATS_COHORT.match(case)
        problem = file_problem(found)
        if cohort is not None and cohort[1] not in _BRATS_COHORTS:
            expected = " or ".join(f"BraTS-{name}" for name in _BRATS_COHORTS) + ", whose label values are known"
            problem = CaseError("cohort", f"BraTS-{cohort[1]}", expected)
        if problem is not None:
            problems.append(problem.at(case))
            continue
        images = {name: open_volume(paths[0]) for name, paths in found.items() if name != "label"}
        values = BRATS_NEW_LABELS if case in newer else BRATS_OLD_LABELS
        cases.append(
            NiftiCase(case, brats_patient(case), brats_cohort(case), images, open_volume(found["label"][0]), values)
        )
    return cases, problems


def _check_brats_editions(folder: Path, cases: Iterable[str]) -> None:
    """Raise ValueError where these case ids are of editions that share patients under different names."""
    editions: set[str] = set()
    for case in cases:
        renumbered = _BRATS_RENUMBERED.match(case)
        if renumbered is not None:
            editions.add(f"20{renumbered[1]}")
        elif _BRATS_CONTINUED.match(case):
            editions.add("2021 or later")
    if len(editions) > 1:
        raise ValueError(
            f"{folder}: found BraTS {', '.join(sorted(editions))}, expected one edition, or only 2021 and later; the "
            "earlier ones have the same patients under other names, so that they could come into two sections; keep "
            "the newest edition"
        )


def brats_patient(case: str) -> str:
    """Patient id of a BraTS case id: without the time point (2023 and later) or the scan number (2017 to 2019).

    A patient of 2021 has the id that the same patient has from 2023: `BraTS2021_00002` is `BraTS-GLI-00002`.
    """
    if re.fullmatch(r"BraTS2021_\d{5}", case):
        return case.replace("BraTS2021_", "BraTS-GLI-")
    for pattern in (r"(BraTS-[A-Za-z-]+-\d+)-\d+", r"([Bb]ra[Tt][Ss]1[789]_.+)_\d+"):
        match = re.fullmatch(pattern, case)
        if match is not None:
            return match[1]
    return case


def brats_cohort(case: str) -> str:
    """Cohort of a BraTS case id, such as BraTS-SSA, BraTS2021 or Brats18; "BraTS" where the id names none."""
    match = re.match(r"BraTS-[A-Z]+(?=-\d)|[Bb]ra[Tt][Ss](20)?\d\d(?=_)", case)
    return match[0] if match is not None else "BraTS"
