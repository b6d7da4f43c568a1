"""crossMoDA 2021 to 2023: names of files, label values, editions and their patients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from scripts.data.conversion import nifti_jobs
from scripts.data.names import ENDING
from scripts.data.reading import open_volume
from scripts.data.sources.nifti_case import LabelValues, NiftiCase, ambiguity, file_problem
from scripts.data.sources.registry import Found, Options
from scripts.data.volume import CaseError
from scripts.files import files_below

_STRUCTURE = "vestibular schwannoma"
# Editions of 2021 and 2022: tumor 1, cochlea 2. From 2023: tumor within and outside of the meatus 1 and 2, cochlea 3.
CROSSMODA_2022_LABELS = LabelValues((frozenset({0, 1, 2}),), {_STRUCTURE: frozenset({1}), "cochlea": frozenset({2})})
CROSSMODA_2023_LABELS = LabelValues(
    (frozenset({0, 1, 2, 3}),), {_STRUCTURE: frozenset({1, 2}), "cochlea": frozenset({3})}
)

_CROSSMODA_FILE = re.compile(
    r"(?P<case>crossmoda(?:(?:20)?(?P<year>2[1-3])_(?P<site>ldn|etz|ukm))?_(?P<number>\d+))"
    rf"_(?P<name>ceT1|hrT2|T2|Label){ENDING}"
)
_CROSSMODA_NAMES = {"ceT1": "ceT1", "hrT2": "T2", "T2": "T2", "Label": "label"}

_UNPAIRED = (
    "crossMoDA's ceT1 and T2 are of different patients: the labeled ceT1 train the perceptor S_p (task vs_cet1), "
    "the T2 serve inference, and TISS-Net itself cannot be trained on them. Its London patients are those of "
    "Vestibular-Schwannoma-SEG: a perceptor trained on them has seen patients that a split of that set tests on"
)


def find(folders: Sequence[Path], options: Options) -> Found:
    """ceT1 for the perceptor as jobs, T2 as scans; arguments and errors as in `find_cases` of `registry.py`."""
    labeled, scans, problems = find_crossmoda(folders[0])
    return Found(nifti_jobs(labeled, options), problems, nifti_jobs(scans, options, names=("T2",)), [_UNPAIRED])


def find_crossmoda(folder: Path) -> tuple[list[NiftiCase], list[NiftiCase], list[CaseError]]:
    """Cases of crossMoDA 2021 to 2023 anywhere below a folder, sorted by case id.

    Understands `crossmoda_N_{ceT1,hrT2,Label}` of 2021, `crossmoda{2021,2022}_{ldn,etz}_N_{ceT1,hrT2,Label}` and
    `crossmoda2023_{ldn,etz,ukm}_N_{ceT1,T2,Label}` (also `crossmoda23_`). The sets are not paired: a patient has ceT1
    with a label, or T2, never both. The cohort is edition and site.

    Returns:
        The cases of ceT1 with their labels; the cases of T2, whose label is None unless a file is there, as it is in
        none of the published sets; and the problems that leave a case out here: ceT1 without label, a label without
        image, two files for one modality, ceT1 and T2 under one name.

    Raises:
        ValueError: 2023 and an earlier edition in one folder; they share patients under different numbers.
    """
    files: dict[str, dict[str, list[Path]]] = {}
    names: dict[str, re.Match[str]] = {}
    for path in files_below(folder):
        match = _CROSSMODA_FILE.fullmatch(path.name)
        if match is not None:
            names[match["case"]] = match
            files.setdefault(match["case"], {}).setdefault(_CROSSMODA_NAMES[match["name"]], []).append(path)
    editions = {int(match["year"] or 21) + 2000 for match in names.values()}
    if 2023 in editions and len(editions) > 1:
        raise ValueError(
            f"{folder}: found crossMoDA {', '.join(map(str, sorted(editions)))}, expected 2023 alone or the earlier "
            "ones; 2023 has their patients under other numbers, so that they could come into two sections"
        )
    labeled: list[NiftiCase] = []
    scans: list[NiftiCase] = []
    problems: list[CaseError] = []
    for case, found in sorted(files.items()):
        problem = _crossmoda_problem(found)
        if problem is not None:
            problems.append(problem.at(case))
        else:
            (scans if "T2" in found else labeled).append(_crossmoda_case(names[case], found))
    return labeled, scans, problems


def _crossmoda_problem(found: dict[str, list[Path]]) -> CaseError | None:
    """What leaves a case of crossMoDA out."""
    if found.keys() == {"label"}:
        return CaseError("missing file", "a label without an image", "ceT1 beside the label")
    if {"ceT1", "T2"} <= found.keys():
        return CaseError("ambiguous files", "ceT1 and T2 under one name", "one image; the sets are not paired")
    return ambiguity(found) if "T2" in found else file_problem(found)


def _crossmoda_case(name: re.Match[str], found: dict[str, list[Path]]) -> NiftiCase:
    """The case that a file name of crossMoDA belongs to; `crossmoda_N` of 2021 is `crossmoda2021_ldn_N` from 2022."""
    year, site = int(name["year"] or 21) + 2000, name["site"] or "ldn"
    volumes = {modality: open_volume(paths[0]) for modality, paths in found.items()}
    label = volumes.pop("label", None)
    values = CROSSMODA_2023_LABELS if year == 2023 else CROSSMODA_2022_LABELS
    return NiftiCase(
        case=name["case"],
        patient=f"crossmoda{year}_{site}_{name['number']}",
        cohort=f"crossMoDA{year}-{site}",
        images=volumes,
        label=label,
        label_values=values if label is not None else None,
    )
