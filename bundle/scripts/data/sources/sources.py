"""Data sets of NIfTI files as laid out on disk: names, channel order, label values, patients (BraTS, MSD, any folder).

Published data of vestibular schwannoma are in `vestibular.py`, which returns the same `NiftiCase`. Cases are found by
names alone; nothing here knows of tasks, splits or the prepared layout (see `datalist.py`), or writes. No torch here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.data.volume import NiftiVolume, Problem, VolumeError, one_line

MODALITIES = ("T1", "ceT1", "T2", "FLAIR")


@dataclass(frozen=True)
class LabelValues:
    """What the numbers of a published label map mean.

    Args:
        legal: alternatives; the values present in a map must all belong to one of them. None: any whole number.
        structures: name of a structure to the values that make it up.
    """

    legal: tuple[frozenset[int], ...] | None
    structures: dict[str, frozenset[int]]

    def mask(self, seg: NDArray, structure: str) -> NDArray[np.uint8]:
        """Binary mask {0, 1} of one structure.

        Raises:
            VolumeError: values outside what is declared, or values of two conventions in one map.
        """
        present = _values(seg)
        found = "{" + ", ".join(f"{value:g}" for value in sorted(present)[:10]) + "}"
        if self.legal is None:
            if not all(float(value).is_integer() for value in present):
                raise VolumeError("label values", found, "whole numbers")
        elif not any(present <= allowed for allowed in self.legal):
            expected = " or ".join("{" + ", ".join(map(str, sorted(allowed))) + "}" for allowed in self.legal)
            raise VolumeError("label values", found, expected)
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
# Cohorts of BraTS 2023 and later whose label values are the ones above. The others hold other tumors: MEN, MET, PED,
# GoAT (several kinds in one set) and MEN-RT, which names its only image and its label in a way of its own.
_BRATS_COHORTS = ("GLI", "SSA")
_BRATS_COHORT = re.compile(r"BraTS-([A-Za-z-]*[A-Za-z])-\d")
_BRATS_MEN_RT_FILE = re.compile(r"(?P<case>BraTS-MEN-RT-[\d-]+)_(t1c|gtv)\.nii(\.gz)?")
# Editions share patients. Those of 2017 to 2020 name them anew (name_mapping.csv of 2020 is a table of the names), 2021
# has most of them under numbers of its own, GLI of 2023 and later goes on with the numbers of 2021, and SSA (Africa)
# has patients of its own. From the publishers' descriptions, as remembered; not verified on the data of all editions.
_BRATS_RENUMBERED = re.compile(r"brats(?:20)?(17|18|19|20)_", re.IGNORECASE)
_BRATS_CONTINUED = re.compile(r"BraTS2021_\d|BraTS-GLI-\d")

MSD_CHANNELS = ("FLAIR", "T1", "ceT1", "T2")
_MSD_DECLARED_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
_MSD_CHANNEL_FILE = re.compile(r"(?P<case>[^.].*)_(?P<suffix>000[0-3]|labels)\.nii(\.gz)?")

# A folder of one's own.
_PLACEHOLDERS = ("case", "patient", "cohort")
_TUMORS = ("vestibular schwannoma", "whole tumor", "enhancing tumor")
_PATTERN_EXAMPLE = 'such as "{case}/T2*.nii.gz"'


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
    """Cases of BraTS 2017 to 2024 anywhere below a folder, sorted by case id.

    Understands `<case>_{t1,t1ce,t2,flair,seg}` and `<case>-{t1n,t1c,t2w,t2f,seg}`, `.nii` and `.nii.gz`.
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
        problem = file_problem(case, found)
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
            for path in files_below(folder / part):
                match = re.fullmatch(r"([^.].*)\.nii(\.gz)?", path.name)
                if match is not None:
                    files.setdefault(match[1], {}).setdefault(name, []).append(path)
    else:
        for path in files_below(folder):
            match = _MSD_CHANNEL_FILE.fullmatch(path.name)
            if match is not None:
                suffix = match["suffix"]
                name = "label" if suffix == "labels" else MSD_CHANNELS[int(suffix)]
                files.setdefault(match["case"], {}).setdefault(name, []).append(path)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        problem = file_problem(case, found)
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


def tumor_labels(values: Collection[int] | None = None) -> LabelValues:
    """Label values of a map whose tumor is what the user says, whatever the task calls it.

    Args:
        values: those that are tumor; any other whole number is background. None: the map holds 0 and 1, and 1 is
            tumor.

    Raises:
        ValueError: no value, or 0 among them.
    """
    if values is None:
        return LabelValues((frozenset({0, 1}),), dict.fromkeys(_TUMORS, frozenset({1})))
    if not values or 0 in values:
        found = ", ".join(map(str, values)) or "none"
        raise ValueError(f"found label values {found} for tumor, expected one or more other than 0")
    return LabelValues(None, dict.fromkeys(_TUMORS, frozenset(values)))


def find_nifti(
    folder: Path, patterns: Mapping[str, str], *, label_values: Collection[int] | None = None
) -> tuple[list[NiftiCase], list[Problem]]:
    """Cases of a folder whose files follow a pattern per modality, sorted by case id.

    A pattern is a path relative to the folder. `{case}`, and where wanted `{patient}` and `{cohort}`, stand for a
    piece of one part of the path, the same wherever the name is repeated; `*` for any characters of one part, `?` for
    one character. Only `.nii` and `.nii.gz` files are looked at, and none whose name, or folder's name, begins with a
    dot. A case id must belong to one case in the whole folder. Without `{patient}` every case is a patient of its
    own, without `{cohort}` all are of one.

    Args:
        folder: where the files are.
        patterns: modality, one of `MODALITIES`, or "label", to its pattern.
        label_values: as `values` for `tumor_labels`.

    Returns:
        The cases, those without label included, and the problems that leave a case out here: two files for one
        modality or two modalities in one file, a label without image, two patients or cohorts for one case.

    Raises:
        ValueError: an unknown modality, a pattern without `{case}`, with an unknown placeholder or without any file,
            or wrong label values.
    """
    compiled = {name: _pattern(name, pattern) for name, pattern in patterns.items()}
    if not compiled.keys() & set(MODALITIES):
        raise ValueError(f"found no pattern for an image, expected one for {', '.join(MODALITIES)}, {_PATTERN_EXAMPLE}")
    values = tumor_labels(label_values)
    present = [path.relative_to(folder).as_posix() for path in files_below(folder) if _is_nifti(path, folder)]
    files: dict[str, dict[str, list[Path]]] = {}
    facts: dict[str, dict[str, set[str]]] = {}
    for name, expression in compiled.items():
        matches = [match for match in map(expression.fullmatch, present) if match is not None]
        if not matches:
            shown = ", ".join(islice(present, 5)) or "no NIfTI file"
            raise ValueError(f"{folder}: no file matches {name}={patterns[name]!r}; there are {shown}")
        for match in matches:
            case = match["case"]
            files.setdefault(case, {}).setdefault(name, []).append(folder / match[0])
            for key, value in match.groupdict().items():
                facts.setdefault(case, {}).setdefault(key, set()).add(value)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        problem = _pattern_problem(case, found, facts[case])
        if problem is not None:
            problems.append(problem)
            continue
        volumes = {name: NiftiVolume(paths[0]) for name, paths in found.items()}
        label = volumes.pop("label", None)
        (patient,), (cohort,) = facts[case].get("patient", {case}), facts[case].get("cohort", {"NIfTI"})
        cases.append(NiftiCase(case, patient, cohort, volumes, label, None if label is None else values))
    return cases, problems


def files_below(folder: Path) -> Iterable[Path]:
    """All files at any depth below a folder, sorted, so that results do not depend on the file system."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def file_problem(case: str, found: dict[str, list[Path]]) -> Problem | None:
    """What leaves a case out whose files are known: several where one is meant, or no label.

    Args:
        case: case id, for the message.
        found: modality, or "label", to the files that are it by their names.
    """
    problem = ambiguity(case, found)
    if problem is None and "label" not in found:
        return Problem(case, "missing file", "no segmentation", "one segmentation per case")
    return problem


def ambiguity(case: str, found: dict[str, list[Path]]) -> Problem | None:
    """Several files where one is meant; arguments as for `file_problem`."""
    for name, paths in found.items():
        if len(paths) > 1:
            return Problem(case, "ambiguous files", f"{name} in " + " and ".join(map(str, paths)), "one file")
    return None


def _values(seg: NDArray) -> set[float]:
    """Values present in a label map, from the first voxel of each run of equal ones; sorting all can take 10 s."""
    flat = np.ravel(seg, order="K")
    return {value.item() for value in np.unique(np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]]))}


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


def _pattern(name: str, pattern: str) -> re.Pattern[str]:
    """Regular expression of a pattern, matched against a whole path with "/" between its parts."""
    if name not in (*MODALITIES, "label"):
        raise ValueError(f"found a pattern for {name!r}, expected {', '.join(MODALITIES)} or label")
    pieces, seen = [], set()
    for token in re.findall(r"\{[^{}]*\}|.", pattern.removeprefix("./"), re.DOTALL):
        placeholder = token[1:-1]
        if token == "*":
            pieces.append("[^/]*")
        elif token == "?":
            pieces.append("[^/]")
        elif len(token) == 1:
            pieces.append(re.escape(token))
        elif placeholder not in _PLACEHOLDERS:
            expected = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
            raise ValueError(f"{name}={pattern!r}: found {token}, expected {expected}")
        elif placeholder in seen:
            pieces.append(f"(?P={placeholder})")
        else:
            pieces.append(f"(?P<{placeholder}>[^/]+)")
            seen.add(placeholder)
    if "case" not in seen:
        raise ValueError(f"{name}={pattern!r}: found no {{case}}, expected it once or more, {_PATTERN_EXAMPLE}")
    return re.compile("".join(pieces), re.DOTALL)


def _is_nifti(path: Path, folder: Path) -> bool:
    """Whether a file is NIfTI by its name, and neither it nor a folder on the way is hidden."""
    visible = not any(part.startswith(".") for part in path.relative_to(folder).parts)
    return visible and path.name.endswith((".nii", ".nii.gz"))


def _pattern_problem(case: str, found: dict[str, list[Path]], facts: Mapping[str, set[str]]) -> Problem | None:
    """What leaves a case out here."""
    problem = ambiguity(case, found)
    if problem is None and found.keys() == {"label"}:
        problem = Problem(case, "missing file", "a label without an image", "an image beside the label")
    if problem is None and len({paths[0] for paths in found.values()}) < len(found):
        shown = ", ".join(f"{name} {paths[0]}" for name, paths in found.items())
        problem = Problem(case, "ambiguous files", shown, "one file per modality")
    for key in ("patient", "cohort"):
        values = sorted(facts.get(key, ()))
        if problem is None and len(values) > 1:
            problem = Problem(case, f"ambiguous {key}", " and ".join(values), f"one {key} per case")
    return problem
