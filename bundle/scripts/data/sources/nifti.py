"""Any folder of NIfTI files, with a pattern of file names per modality."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path

from scripts.data.conversion import nifti_jobs
from scripts.data.datalist import TASKS
from scripts.data.names import MODALITIES, misnamed, stem_of
from scripts.data.reading import open_volume
from scripts.data.sources.nifti_case import LabelValues, NiftiCase, ambiguity
from scripts.data.sources.registry import Found, Options
from scripts.data.volume import CaseError
from scripts.files import files_below

_PLACEHOLDERS = ("case", "patient", "cohort")
_STRUCTURES = {task.structure for task in TASKS.values()}
_PATTERN_EXAMPLE = 'such as "{case}/T2*.nii.gz"'


def find(folders: Sequence[Path], options: Options) -> Found:
    """The cases as jobs; arguments and errors as in `find_cases` of `registry.py`."""
    cases, problems = find_nifti(folders[0], options.patterns, label_values=options.label_values)
    images = ((name, file) for case in cases for name, image in case.images.items() for file in image.files())
    return Found(nifti_jobs(cases, options), problems, notes=misnamed(images))


def tumor_labels(values: Collection[int] | None = None) -> LabelValues:
    """Label values of a map whose tumor is what the user says, whatever the task calls it.

    Args:
        values: those that are tumor; any other whole number is background. None: the map holds 0 and 1, and 1 is
            tumor.

    Raises:
        ValueError: no value, or 0 among them.
    """
    if values is None:
        return LabelValues((frozenset({0, 1}),), dict.fromkeys(_STRUCTURES, frozenset({1})))
    if not values or 0 in values:
        found = ", ".join(map(str, values)) or "none"
        raise ValueError(f"found label values {found} for tumor, expected one or more other than 0")
    return LabelValues(None, dict.fromkeys(_STRUCTURES, frozenset(values)))


def find_nifti(
    folder: Path, patterns: Mapping[str, str], *, label_values: Collection[int] | None = None
) -> tuple[list[NiftiCase], list[CaseError]]:
    """Cases of a folder whose files follow a pattern per modality, sorted by case id.

    A pattern is a path relative to the folder. `{case}`, and where wanted `{patient}` and `{cohort}`, stand for a
    piece of one part of the path, the same wherever the name is repeated; `*` for any characters of one part, `?` for
    one character. Only files with a suffix of a scan (`volume.SUFFIXES`) are looked at, and no hidden ones. A case id,
    such as a time point, that several patients have each with a file for the same modality is told apart by
    `<patient>_` before it. Without `{patient}` every case is a patient of its own, without `{cohort}` all are of one.

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
    present = [path.relative_to(folder).as_posix() for path in files_below(folder) if stem_of(path)]
    files: dict[str, dict[str, list[Path]]] = {}
    facts: dict[str, dict[str, set[str]]] = {}
    found_all: list[tuple[str, re.Match[str]]] = []
    for name, expression in compiled.items():
        matches = [match for match in map(expression.fullmatch, present) if match is not None]
        if not matches:
            shown = ", ".join(islice(present, 5)) or "no scan"
            raise ValueError(f"{folder}: no file matches {name}={patterns[name]!r}; there are {shown}")
        found_all += [(name, match) for match in matches]
    shared = _shared_ids(found_all)
    for name, match in found_all:
        said = match.groupdict()
        case = f"{said['patient']}_{said['case']}" if said["case"] in shared and "patient" in said else said["case"]
        files.setdefault(case, {}).setdefault(name, []).append(folder / match[0])
        for key, value in said.items():
            facts.setdefault(case, {}).setdefault(key, set()).add(value)
    cases, problems = [], []
    for case, found in sorted(files.items()):
        problem = _pattern_problem(found, facts[case])
        if problem is not None:
            problems.append(problem.at(case))
            continue
        volumes = {name: open_volume(paths[0]) for name, paths in found.items()}
        label = volumes.pop("label", None)
        (patient,), (cohort,) = facts[case].get("patient", {case}), facts[case].get("cohort", {"NIfTI"})
        cases.append(NiftiCase(case, patient, cohort, volumes, label, None if label is None else values))
    return cases, problems


def _shared_ids(found: Sequence[tuple[str, re.Match[str]]]) -> set[str]:
    """Case ids that several patients have, each with a file of its own for one modality."""
    patients: dict[tuple[str, str], set[str | None]] = {}
    for name, match in found:
        patients.setdefault((name, match["case"]), set()).add(match.groupdict().get("patient"))
    return {case for (_, case), owners in patients.items() if len(owners) > 1}


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


def _pattern_problem(found: dict[str, list[Path]], facts: Mapping[str, set[str]]) -> CaseError | None:
    """What leaves a case out here."""
    problem = ambiguity(found)
    if problem is None and found.keys() == {"label"}:
        problem = CaseError("missing file", "a label without an image", "an image beside the label")
    if problem is None and len({paths[0] for paths in found.values()}) < len(found):
        shown = ", ".join(f"{name} {paths[0]}" for name, paths in found.items())
        problem = CaseError("ambiguous files", shown, "one file per modality")
    for key in ("patient", "cohort"):
        values = sorted(facts.get(key, ()))
        if problem is None and len(values) > 1:
            problem = CaseError(f"ambiguous {key}", " and ".join(values), f"one {key} per case")
    return problem
