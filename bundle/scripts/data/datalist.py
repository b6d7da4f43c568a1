"""The task table, datalist.json and its checks: what a prepared folder must look like before anything reads it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scripts.data.names import misnamed
from scripts.data.reading import open_volume
from scripts.data.volume import CaseError, Volume, corner_distance, whole_numbers
from scripts.files import whole_file

logger = logging.getLogger(__name__)

SECTIONS = ("training", "validation", "testing")

# Largest distance, in mm, between the same corner voxel of two volumes of one case.
GRID_TOLERANCE_MM = 0.1
MOST_LABELS = 32  # an image of so few whole numbers is none


@dataclass(frozen=True)
class Task:
    """Which modalities are given, which one is synthesized, and which structure is segmented."""

    image: tuple[str, ...]
    target: str
    structure: str

    @property
    def modalities(self) -> tuple[str, ...]:
        """Source modalities, then the target, each once."""
        return tuple(dict.fromkeys((*self.image, self.target)))


TASKS: dict[str, Task] = {
    "vs": Task(("T2",), "ceT1", "vestibular schwannoma"),
    "glioma": Task(("T1", "ceT1", "T2"), "FLAIR", "whole tumor"),
    # Only ceT1: for S_p, where no T2 of the same patients is there (crossMoDA).
    "vs_cet1": Task(("ceT1",), "ceT1", "vestibular schwannoma"),
    "surrogate_t2_cet1": Task(("T2",), "ceT1", "enhancing tumor"),
}

Check = Literal["headers", "voxels"]

# What to do about a failed check; the end of each line of the message.
_ADVICE = {
    "missing file": "prepare the case again or remove its entry",
    "unreadable file": "replace the file and prepare the case again",
    "not 3-D": "give one 3-D volume per modality",
    "shape": "register and resample the volumes of the case to one grid",
    "affine": "register and resample the volumes of the case to one grid",
    "mask values": "prepare the case again, which turns published label values into 0 and 1",
    "non-finite image": "export the image again or remove the case",
    "constant image": "export the image again or remove the case",
    "duplicate case": "keep one of the entries",
    "patient in two splits": "move all cases of the patient into one section",
    "missing key": "add it or run scripts.prepare again",
    "source files": "list the task's source modalities in this order",
    "unknown section": "rename or remove it",
    "task": "set it or run scripts.prepare again",
    "entry": "correct it or run scripts.prepare again",
}


def load_datalist(
    path: str | Path,
    section: str | None = None,
    check: Check | None = "headers",
    *,
    task: str | None = None,
    require_target: bool = True,
) -> Any:
    """Entries of one section, a list, with absolute paths; without `section` the whole datalist, a dict.

    The structure of the whole file is always checked; the files only of what is returned.

    Args:
        path: datalist.json.
        section: training, validation or testing.
        check: "headers" opens every file; "voxels" reads every file too; None opens none.
        task: the task that is to be trained or evaluated; a datalist of another one is refused.
        require_target: whether an entry without "target" is refused; else it trains the segmentation alone.

    Raises:
        FileNotFoundError: no such datalist.
        ValueError: unknown or empty section; a datalist of another task than `task`; anything wrong with the content,
            every problem on a line of its own.
    """
    path = Path(path)
    if section is not None and section not in SECTIONS:
        raise ValueError(f"{path}: unknown section {section!r}, expected one of {', '.join(SECTIONS)}")
    if check not in (None, "headers", "voxels"):
        raise ValueError(f"check is {check!r}, expected 'headers', 'voxels' or None")
    content = _read(path)
    _refuse(path, _structure_problems(content, require_target=require_target))
    folder = path.resolve().parent
    datalist = {name: [_absolute(entry, folder) for entry in content[name]] for name in SECTIONS}
    if check is not None:
        named = TASKS[content["task"]]
        entries = [entry for name in (SECTIONS if section is None else (section,)) for entry in datalist[name]]
        _refuse(path, [p for entry in entries for p in _file_problems(entry, named, check)])
        images = [pair for entry in entries for pair in zip(named.image, map(Path, entry["image"]), strict=True)]
        for sentence in misnamed(images + [(named.target, Path(e["target"])) for e in entries if "target" in e]):
            logger.warning("%s: %s", path, sentence)
    if task is not None and content["task"] != task:
        raise ValueError(
            f"{path} is a datalist of task {content['task']!r}, expected {task!r}; give the data prepared for it, or "
            "the configuration of the data's task"
        )
    if section is None:
        return {"task": content["task"], **datalist}
    if not datalist[section]:
        raise ValueError(
            f"{path}: section {section!r} is empty, expected at least one case; "
            "prepare more cases or give scripts.prepare another --split"
        )
    return datalist[section]


def write_datalist(path: Path, task: str, sections: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Write datalist.json in one step: a reader sees the old file or the new one, never a part.

    Args:
        path: the file; entries' paths are relative to its folder.
        task: a key of `TASKS`.
        sections: section name to entries; a section that is absent is written as an empty list.
    """
    content = {"task": task, **{name: [dict(entry) for entry in sections.get(name, ())] for name in SECTIONS}}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def datalist_entry(case: str, patient: str, task: str) -> dict[str, Any]:
    """Entry of one case in the prepared layout, `<case>/<case>_<modality>.nii.gz` and `<case>/<case>_label.nii.gz`."""
    definition = TASKS[task]
    return {
        "case": case,
        "patient": patient,
        "image": [prepared_path(case, modality) for modality in definition.image],
        "target": prepared_path(case, definition.target),
        "label": prepared_path(case, "label"),
    }


def prepared_path(case: str, name: str) -> str:
    """Path of one prepared file, relative to the datalist; `name` is a modality or "label"."""
    return f"{case}/{prepared_name(case, name)}"


def prepared_name(case: str, name: str) -> str:
    """Name of one prepared file in the folder of its case."""
    return f"{case}_{name}.nii.gz"


def grid_problems(volumes: Mapping[str, Volume]) -> list[CaseError]:
    """Open every volume of a case and compare its grid with that of the first; nothing but headers is read."""
    problems: list[CaseError] = []
    reference: tuple[str, tuple[int, ...], NDArray[np.float64]] | None = None
    for name, volume in volumes.items():
        try:
            shape, affine = volume.grid()
        except CaseError as error:
            problems.append(error.of(name))
            continue
        if reference is None:
            reference = (name, shape, affine)
            continue
        first, first_shape, first_affine = reference
        if shape != first_shape:
            problems.append(CaseError("shape", f"{name} {shape}", f"{first_shape} as {first}"))
            continue
        distance = corner_distance(shape, affine, first_affine)
        if not distance <= GRID_TOLERANCE_MM:
            expected = f"at most {GRID_TOLERANCE_MM} mm"
            problems.append(CaseError("affine", f"{name} {distance:.3g} mm away from {first}", expected))
    return problems


def image_problem(name: str, voxels: NDArray) -> CaseError | None:
    """Whether an image holds NaN or infinity, or one value only, or is a label map."""
    if not np.isfinite(voxels).all():
        bad = int(voxels.size - np.isfinite(voxels).sum())
        return CaseError("non-finite image", f"{name}: {bad} voxels of NaN or infinity", "finite intensities")
    lowest, highest = voxels.min(), voxels.max()
    if lowest == highest:
        return CaseError("constant image", f"{name}: every voxel is {lowest:g}", "an image with contrast")
    return label_map_problem(name, voxels)


def label_map_problem(name: str, voxels: NDArray) -> CaseError | None:
    """Whether an image is a mask or a label map, whatever it is called: whole numbers from 0 to `MOST_LABELS` alone."""
    lowest, highest = voxels.min(), voxels.max()
    if not 0 <= lowest < highest <= MOST_LABELS or not np.array_equal(voxels, np.rint(voxels)):
        return None
    found = f"{name}: a mask or a label map, whole numbers from {lowest:g} to {highest:g} alone"
    return CaseError("label map", found, "an image; a file was named wrongly")


def mask_problem(voxels: NDArray) -> CaseError | None:
    """Whether a mask holds anything but 0 and 1, but for rounding; all zero is legal: no tumor."""
    voxels = whole_numbers(voxels)
    other = (voxels != 0) & (voxels != 1)
    if not other.any():
        return None
    values = np.unique(voxels[other])
    return CaseError("mask values", "label: {" + ", ".join(f"{v:g}" for v in values[:10]) + "}", "{0, 1}")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such datalist, expected the datalist.json that scripts.prepare writes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wrong = None if isinstance(content, dict) else (f"a {type(content).__name__}", "an object with sections")
    except ValueError as error:
        wrong = str(error), "the JSON that scripts.prepare writes"
    _refuse(path, [] if wrong is None else [CaseError("malformed JSON", *wrong, case="datalist")])
    return content


def _structure_problems(content: dict[str, Any], *, require_target: bool) -> list[CaseError]:
    """Everything that can be told from the JSON alone."""
    problems = []
    task = content.get("task")
    if not isinstance(task, str) or task not in TASKS:
        problems.append(CaseError("task", repr(task), " or ".join(TASKS), case="datalist"))
    for name in content:
        if name not in ("task", *SECTIONS):
            problems.append(CaseError("unknown section", repr(name), ", ".join(SECTIONS), case="datalist"))
    cases: dict[str, str] = {}
    patients: dict[str, str] = {}
    for section in SECTIONS:
        entries = content.get(section)
        if entries is None:
            problems.append(CaseError("missing key", f"no {section!r}", "a list, which may be empty", case="datalist"))
            continue
        if not isinstance(entries, list):
            problems.append(CaseError("entry", f"{section!r} is a {type(entries).__name__}", "a list", case="datalist"))
            continue
        for index, entry in enumerate(entries):
            place = f"{section}[{index}]"
            if not isinstance(entry, dict):
                problems.append(CaseError("entry", f"a {type(entry).__name__}", "an object", case=place))
                continue
            known = TASKS.get(task) if isinstance(task, str) else None
            problems += _entry_problems(place, entry, known, require_target=require_target)
            case, patient = entry.get("case"), entry.get("patient")
            if isinstance(case, str):
                if case in cases:
                    problems.append(CaseError("duplicate case", f"{cases[case]} and {place}", "one entry", case=case))
                cases.setdefault(case, place)
            if isinstance(patient, str) and patients.setdefault(patient, section) != section:
                found = f"patient {patient} in {patients[patient]} and {section}"
                problems.append(CaseError("patient in two splits", found, "one section per patient", case=str(case)))
    return problems


def _entry_problems(place: str, entry: dict[str, Any], task: Task | None, *, require_target: bool) -> list[CaseError]:
    """Keys and types of one entry; `task` is None when the datalist names no known one."""
    name = entry["case"] if isinstance(entry.get("case"), str) else place
    problems = []
    for key in ("case", "patient", "image", "target", "label"):
        if key not in entry:
            if key == "target" and not require_target:
                continue
            problems.append(CaseError("missing key", f"no {key!r}", "case, patient, image, target, label", case=name))
        elif key != "image" and (not isinstance(entry[key], str) or not entry[key]):
            problems.append(CaseError("entry", f"{key} is {entry[key]!r}", "a non-empty string", case=name))
    if "image" in entry:
        image = entry["image"]
        if not isinstance(image, list) or not all(isinstance(item, str) and item for item in image):
            problems.append(CaseError("entry", f"image is {image!r}", "a list of file names", case=name))
        elif task is not None and len(image) != len(task.image):
            expected = f"{len(task.image)} ({', '.join(task.image)})"
            problems.append(CaseError("source files", f"{len(image)} source files", expected, case=name))
    return problems


def _file_problems(entry: dict[str, Any], task: Task, check: Check) -> list[CaseError]:
    """Checks of one entry's files; an image that has no header to speak of is not read again."""
    files = dict(zip(task.image, entry["image"], strict=True))
    if "target" in entry:
        files[task.target] = entry["target"]
    volumes, problems = {}, []
    for name, file in (*files.items(), ("label", entry["label"])):
        try:
            volumes[name] = open_volume(Path(file))
        except CaseError as error:
            problems.append(error.of(name))
    problems += grid_problems(volumes)
    if check == "headers" or problems:
        return [problem.at(entry["case"]) for problem in problems]
    for name, volume in volumes.items():
        try:
            voxels = volume.voxels()
        except CaseError as error:
            problems.append(error.of(name))
            continue
        problem = mask_problem(voxels) if name == "label" else image_problem(name, voxels)
        if problem is not None:
            problems.append(problem)
    return [problem.at(entry["case"]) for problem in problems]


def _absolute(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {
        **entry,
        "image": [str(folder / file) for file in entry["image"]],
        **{key: str(folder / entry[key]) for key in ("target", "label") if key in entry},
    }


def _refuse(path: Path, problems: Sequence[CaseError]) -> None:
    """Raise everything that is wrong with a datalist, one problem per line; nothing happens where there is nothing."""
    if not problems:
        return
    lines = [f"{path}: {len(problems)} problem" + ("s" if len(problems) > 1 else "")]
    for problem in problems:
        advice = (
            "" if ";" in problem.expected else f"; {_ADVICE.get(problem.check, 'correct it')}"
        )  # it says what to do
        lines.append(f"  {problem.case}: {problem.check}: found {problem.found}; expected {problem.expected}{advice}")
    raise ValueError("\n".join(lines))
