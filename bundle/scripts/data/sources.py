"""Published data sets as they are laid out on disk: file names, channel order, label values, patient ids (BraTS, MSD).

Finds cases and reads single volumes; knows nothing of tasks, splits or the prepared layout (see `datalist.py` and
`prepare.py`), and writes nothing. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.data.volume import NiftiVolume, Problem, VolumeError, one_line

MODALITIES = ("T1", "ceT1", "T2", "FLAIR")


@dataclass(frozen=True)
class LabelValues:
    """What the numbers of a published label map mean.

    Args:
        legal: alternatives; the values present in a map must all belong to one of them.
        structures: name of a structure to the values that make it up.
    """

    legal: tuple[frozenset[int], ...]
    structures: dict[str, frozenset[int]]

    def mask(self, seg: NDArray, structure: str) -> NDArray[np.uint8]:
        """Binary mask {0, 1} of one structure.

        Raises:
            VolumeError: values outside what is declared, or values of two conventions in one map.
        """
        present = {value.item() for value in np.unique(seg)}
        if not any(present <= allowed for allowed in self.legal):
            expected = " or ".join("{" + ", ".join(map(str, sorted(allowed))) + "}" for allowed in self.legal)
            raise VolumeError("label values", "{" + ", ".join(f"{v:g}" for v in sorted(present)[:10]) + "}", expected)
        return np.isin(seg, sorted(self.structures[structure])).astype(np.uint8)


# Non-enhancing and necrotic core 1, edema 2, enhancing 4 up to 2021 and 3 from 2023. Files of BraTS 2023 are also found
# renamed to the older suffixes, so these admit either set, but never 3 and 4 in one map. The newer suffixes admit 3
# alone: in BraTS 2024 a 4 is the resection cavity, which is not tumor.
_BRATS_STRUCTURES = {"whole tumor": frozenset({1, 2, 3, 4}), "enhancing tumor": frozenset({3, 4})}
BRATS_OLD_LABELS = LabelValues((frozenset({0, 1, 2, 4}), frozenset({0, 1, 2, 3})), _BRATS_STRUCTURES)
BRATS_NEW_LABELS = LabelValues((frozenset({0, 1, 2, 3}),), _BRATS_STRUCTURES)
# Edema 1, non-enhancing 2, enhancing 3.
MSD_LABELS = LabelValues(
    (frozenset({0, 1, 2, 3}),), {"whole tumor": frozenset({1, 2, 3}), "enhancing tumor": frozenset({3})}
)

_BRATS_OLD_SUFFIXES = {"_t1": "T1", "_t1ce": "ceT1", "_t2": "T2", "_flair": "FLAIR", "_seg": "label"}
_BRATS_NEW_SUFFIXES = {"-t1n": "T1", "-t1c": "ceT1", "-t2w": "T2", "-t2f": "FLAIR", "-seg": "label"}
_BRATS_FILE = re.compile(r"(?P<case>[^.].*)(?P<suffix>_t1|_t1ce|_t2|_flair|_seg|-t1n|-t1c|-t2w|-t2f|-seg)\.nii(\.gz)?")
# Cohorts of BraTS 2023 and later whose label values are the ones above.
_BRATS_COHORTS = ("GLI", "SSA")

MSD_CHANNELS = ("FLAIR", "T1", "ceT1", "T2")
_MSD_DECLARED_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
_MSD_CHANNEL_FILE = re.compile(r"(?P<case>[^.].*)_(?P<suffix>000[0-3]|labels)\.nii(\.gz)?")


@dataclass(frozen=True)
class NiftiCase:
    """One case published as NIfTI: where its volumes are and what its label values mean.

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
    images: dict[str, NiftiVolume]
    label: NiftiVolume | None
    label_values: LabelValues | None


def find_brats(folder: Path) -> tuple[list[NiftiCase], list[Problem]]:
    """Cases of BraTS 2018 to 2024 anywhere below a folder, sorted by case id.

    Understands `<case>_{t1,t1ce,t2,flair,seg}` and `<case>-{t1n,t1c,t2w,t2f,seg}`, `.nii` and `.nii.gz`.
    A missing modality is left to the caller, who knows which ones its task needs.

    Returns:
        The cases, and the problems that leave a case out here: no segmentation, two files for one modality, a case id
        in two folders, a cohort with other label values.
    """
    files: dict[str, dict[str, list[Path]]] = {}
    newer: set[str] = set()
    for path in _files_below(folder):
        match = _BRATS_FILE.fullmatch(path.name)
        if match is None:
            continue
        case, suffix = match["case"], match["suffix"]
        name = _BRATS_OLD_SUFFIXES.get(suffix) or _BRATS_NEW_SUFFIXES[suffix]
        files.setdefault(case, {}).setdefault(name, []).append(path)
        if suffix in _BRATS_NEW_SUFFIXES:
            newer.add(case)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        cohort = re.match(r"BraTS-([A-Z-]*[A-Z])-\d", case)
        problem = _file_problem(case, found)
        if cohort is not None and cohort[1] not in _BRATS_COHORTS:
            expected = " or ".join(f"BraTS-{name}" for name in _BRATS_COHORTS) + ", whose label values are known"
            problem = Problem(case, "cohort", f"BraTS-{cohort[1]}", expected)
        if problem is not None:
            problems.append(problem)
            continue
        images = {name: NiftiVolume(paths[0]) for name, paths in found.items() if name != "label"}
        values = BRATS_NEW_LABELS if case in newer else BRATS_OLD_LABELS
        cases.append(
            NiftiCase(case, brats_patient(case), brats_cohort(case), images, NiftiVolume(found["label"][0]), values)
        )
    return cases, problems


def brats_patient(case: str) -> str:
    """Patient id of a BraTS case id: without the time point (2023 and later) or the scan number (2017 to 2019)."""
    for pattern in (r"(BraTS-[A-Z-]+-\d+)-\d+", r"([Bb]ra[Tt][Ss]1[789]_.+)_\d+"):
        match = re.fullmatch(pattern, case)
        if match is not None:
            return match[1]
    return case


def brats_cohort(case: str) -> str:
    """Cohort of a BraTS case id, such as BraTS-SSA, BraTS2021 or Brats18; "BraTS" where the id names none."""
    match = re.match(r"BraTS-[A-Z]+(?=-\d)|[Bb]ra[Tt][Ss](20)?\d\d(?=_)", case)
    return match[0] if match is not None else "BraTS"


def find_msd(folder: Path) -> tuple[list[NiftiCase], list[Problem]]:
    """Cases of the Medical Segmentation Decathlon's Task01_BrainTumour, sorted by case id.

    Two layouts: as published (`imagesTr/<case>.nii.gz`, 4-D with channels FLAIR, T1w, T1gd, T2w, and
    `labelsTr/<case>.nii.gz`), or anywhere below the folder one file per channel (`<case>_0000` to `_0003` and
    `<case>_labels`). The test images are published without labels and are not used.

    Returns:
        The cases, and the problems that leave a case out here.

    Raises:
        ValueError: dataset.json is unreadable or declares other channels, so this is another task of the decathlon.
    """
    _check_msd_declaration(folder / "dataset.json")
    files: dict[str, dict[str, list[Path]]] = {}
    four_d = (folder / "imagesTr").is_dir()
    if four_d:
        for part, name in (("imagesTr", "images"), ("labelsTr", "label")):
            for path in _files_below(folder / part):
                match = re.fullmatch(r"([^.].*)\.nii(\.gz)?", path.name)
                if match is not None:
                    files.setdefault(match[1], {}).setdefault(name, []).append(path)
    else:
        for path in _files_below(folder):
            match = _MSD_CHANNEL_FILE.fullmatch(path.name)
            if match is not None:
                suffix = match["suffix"]
                name = "label" if suffix == "labels" else MSD_CHANNELS[int(suffix)]
                files.setdefault(match["case"], {}).setdefault(name, []).append(path)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        problem = _file_problem(case, found)
        if problem is None and four_d and "images" not in found:
            problem = Problem(case, "missing file", "a label without an image in imagesTr", "one 4-D image")
        if problem is not None:
            problems.append(problem)
        else:
            if four_d:
                path = found["images"][0]
                images = {m: NiftiVolume(path, channel, len(MSD_CHANNELS)) for channel, m in enumerate(MSD_CHANNELS)}
            else:
                images = {name: NiftiVolume(paths[0]) for name, paths in found.items() if name != "label"}
            cases.append(NiftiCase(case, case, "MSD", images, NiftiVolume(found["label"][0]), MSD_LABELS))
    return cases, problems


def _files_below(folder: Path) -> Iterable[Path]:
    """All files below a folder, sorted, so that results do not depend on the file system."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _file_problem(case: str, found: dict[str, list[Path]]) -> Problem | None:
    """No label, or several files where one is meant."""
    for name, paths in found.items():
        if len(paths) > 1:
            return Problem(case, "ambiguous files", f"{name} in " + " and ".join(map(str, paths)), "one file")
    if "label" not in found:
        return Problem(case, "missing file", "no segmentation", "one segmentation per case")
    return None


def _check_msd_declaration(path: Path) -> None:
    """Compare the channels that dataset.json declares, where there is one, with the order this module relies on."""
    if not path.is_file():
        return
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))["modality"]
        channels = [str(declared[str(index)]) for index in range(len(declared))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot read the channel names ({one_line(error)}); download it again") from error
    if [name.lower() for name in channels] != [name.lower() for name in _MSD_DECLARED_CHANNELS]:
        raise ValueError(
            f"{path}: found channels {', '.join(channels)}, expected {', '.join(_MSD_DECLARED_CHANNELS)}; "
            "give the folder of Task01_BrainTumour"
        )
