"""Published NIfTI data of vestibular schwannoma as laid out on disk: the converter's output for VS-SEG, and crossMoDA.

VS-SEG as the archive hands it out is DICOM and not found here; what is common to all data sets is in `sources.py`.
Writes nothing. No torch here.
"""

from __future__ import annotations

import re
from pathlib import Path

from scripts.data.sources.sources import LabelValues, NiftiCase, ambiguity, file_problem, files_below
from scripts.data.volume import NiftiVolume, Problem

STRUCTURE = "vestibular schwannoma"

VS_CONVERTED_LABELS = LabelValues((frozenset({0, 1}),), {STRUCTURE: frozenset({1})})
# Editions of 2021 and 2022: tumor 1, cochlea 2. From 2023: tumor within and outside of the meatus 1 and 2, cochlea 3.
CROSSMODA_2022_LABELS = LabelValues((frozenset({0, 1, 2}),), {STRUCTURE: frozenset({1}), "cochlea": frozenset({2})})
CROSSMODA_2023_LABELS = LabelValues(
    (frozenset({0, 1, 2, 3}),), {STRUCTURE: frozenset({1, 2}), "cochlea": frozenset({3})}
)

_VS_CONVERTED_FILE = re.compile(r"vs_gk_(?P<name>t1|t2|seg)_ref(?P<grid>T1|T2)\.nii(\.gz)?")
_VS_CONVERTED_NAMES = {"t1": "ceT1", "t2": "T2", "seg": "label"}

_CROSSMODA_FILE = re.compile(
    r"(?P<case>crossmoda(?:(?:20)?(?P<year>2[1-3])_(?P<site>ldn|etz|ukm))?_(?P<number>\d+))"
    r"_(?P<name>ceT1|hrT2|T2|Label)\.nii(\.gz)?"
)
_CROSSMODA_NAMES = {"ceT1": "ceT1", "hrT2": "T2", "T2": "T2", "Label": "label"}


def find_vs_converted(folder: Path) -> tuple[list[NiftiCase], list[Problem]]:
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
        problem = file_problem(case, found)
        if case in other_grid and not {"ceT1", "T2"} <= found.keys():
            expected = "the output of the converter with --register T2"
            problem = Problem(case, "missing file", "images on the grid of T1 (_refT1)", expected)
        if problem is not None:
            problems.append(problem)
            continue
        images = {name: NiftiVolume(paths[0]) for name, paths in found.items() if name != "label"}
        label = NiftiVolume(found["label"][0])
        cases.append(NiftiCase(case, case, "VS-SEG", images, label, VS_CONVERTED_LABELS))
    return cases, problems


def find_crossmoda(folder: Path) -> tuple[list[NiftiCase], list[NiftiCase], list[Problem]]:
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
    problems: list[Problem] = []
    for case, found in sorted(files.items()):
        problem = _crossmoda_problem(case, found)
        if problem is not None:
            problems.append(problem)
        else:
            (scans if "T2" in found else labeled).append(_crossmoda_case(names[case], found))
    return labeled, scans, problems


def _crossmoda_problem(case: str, found: dict[str, list[Path]]) -> Problem | None:
    """What leaves a case of crossMoDA out."""
    if found.keys() == {"label"}:
        return Problem(case, "missing file", "a label without an image", "ceT1 beside the label")
    if {"ceT1", "T2"} <= found.keys():
        return Problem(case, "ambiguous files", "ceT1 and T2 under one name", "one image; the sets are not paired")
    return ambiguity(case, found) if "T2" in found else file_problem(case, found)


def _crossmoda_case(name: re.Match[str], found: dict[str, list[Path]]) -> NiftiCase:
    """The case that a file name of crossMoDA belongs to; `crossmoda_N` of 2021 is `crossmoda2021_ldn_N` from 2022."""
    year, site = int(name["year"] or 21) + 2000, name["site"] or "ldn"
    volumes = {modality: NiftiVolume(paths[0]) for modality, paths in found.items()}
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
