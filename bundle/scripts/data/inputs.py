"""Finds the scans to run inference on: a file or a folder, with a case's modalities as siblings by name."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.data.datalist import TASKS
from scripts.data.names import is_called_otherwise, read_file_name
from scripts.data.volume import SUFFIXES
from scripts.files import files_below

logger = logging.getLogger(__name__)

_SHOWN = 3  # files that a message names, of each kind
_NO_IMAGE = "no image"
_PLAIN = "names that do not say which modality they are"


def find_inputs(
    path: str | Path, task: str, *, names: Mapping[str, str] | None = None, keep_incomplete: bool = False
) -> list[dict[str, object]]:
    """Lists the cases below a folder, or the one case that a file belongs to.

    `<case>_<modality>.nii.gz` names a modality of a case, however it is spelled (`names.read_name`); all source
    modalities of the task must lie side by side. A name without a case goes by its folder: `p1/T2.nii.gz` is p1. For a
    task with one source modality, a file that is given alone and does not say what it is is that modality; in a folder
    such files are passed over. So are masks, other modalities and hidden files, and one line of the log names them.
    A folder without such names and with one DICOM series is a case too, of a task with one source modality.

    Args:
        path: a file (`volume.SUFFIXES`) or a folder, searched with all its subfolders, links too.
        task: a name in `datalist.TASKS`.
        names: modality to how its names end, as the user says; see `names.read_file_name`.
        keep_incomplete: list cases that cannot be used too, their "problem" said in their entry, unless none can.

    Returns:
        entries {"case": id, "image": [absolute paths in the task's order]}, sorted by case. Links keep their own name.

    Raises:
        FileNotFoundError: nothing there, or a case lacks a modality (with `keep_incomplete` every case).
        ValueError: unknown task or modality; a file or series whose name says that it is something else; several DICOM
            series; and, as for a missing modality, two files for one modality of a case, or a case in two folders.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {sorted(TASKS)}.")
    sources = TASKS[task].image
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a scan or a folder with {_pattern(sources)}.")
    refuse_name(path, task, names)
    groups: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    passed: dict[str, list[Path]] = {}
    for file in _files(path, names):
        named = read_file_name(file, names)
        if named is None:
            passed.setdefault(_NO_IMAGE, []).append(file)
            continue
        modality = named.modality or (sources[0] if file == path and len(sources) == 1 else None)
        if modality in sources:
            found = groups.setdefault((file.parent, named.case), {})
            found.setdefault(modality, []).append(file)
        else:
            passed.setdefault(modality or named.other or _PLAIN, []).append(file)
    if passed and path.is_dir():
        logger.info("%s", said := _passed_over(path, passed))
    if not groups and any(map(_is_dicom, passed.get(_NO_IMAGE, ()))):
        return [_dicom_case(path, sources, task)]
    if not groups:
        said = f" {said}." if passed and path.is_dir() else ""
        raise FileNotFoundError(
            f"no case for task {task} in {path}: expected {_pattern(sources)}.{said} "
            f"Rename the files, or say how their names end, as in --names \"{{'{sources[0]}': '_0000'}}\""
        )
    entries: list[dict[str, object]] = []
    errors: list[ValueError | FileNotFoundError] = []
    for case, found in sorted(_by_case(groups, path).items()):
        image = [str(file) for modality in sources for file in found.get(modality, ())]
        entries.append({"case": case, "image": image})
        if (error := _problem(case, found, sources, task)) is not None:
            errors.append(error)
            entries[-1]["problem"] = str(error)
    if errors and (not keep_incomplete or len(errors) == len(entries)):
        raise errors[0]
    return entries


def _is_dicom(file: Path) -> bool:
    """By the mark that such files have."""
    try:
        with file.open("rb") as content:
            return content.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _dicom_case(path: Path, sources: Sequence[str], task: str) -> dict[str, object]:
    """The case of a folder that holds one DICOM series."""
    from scripts.data.dicom.folder import open_series  # pydicom is slow to import, and files do without

    folder = path if path.is_dir() else path.parent
    advice = f"python -m scripts.prepare dicom --input {folder} chooses series and makes scans of them"
    if len(sources) > 1 or folder != path:
        raise ValueError(f"{path} is DICOM: expected {_pattern(sources)} for task {task}; {advice}.")
    label = open_series(path).label
    if is_called_otherwise(label, sources[0]):
        raise ValueError(
            f"{path} has a series called {label!r}, but task {task} starts from {sources[0]}. If it is {sources[0]} "
            f"all the same: {advice}."
        )
    return {"case": path.name, "image": [str(path)]}


def refuse_name(path: str | Path, task: str, names: Mapping[str, str] | None = None) -> None:
    """Refuses a file whose name says that it is no source of the task; a name that says nothing is none of that.

    Args:
        path: of a file; of a folder the name does not count.
        task, names: as in `find_inputs`.

    Raises:
        ValueError: what the name says; an unknown modality in `names`.
    """
    path, sources = Path(path), TASKS[task].image
    if wrong := sorted((names or {}).keys() - set(sources)):
        raise ValueError(f"names has {', '.join(wrong)}: expected {', '.join(sources)}, what task {task} starts from.")
    named = None if path.is_dir() else read_file_name(path, names)
    says = named and (named.modality or named.other)
    if says and says not in sources:
        raise ValueError(
            f"{path} is named as {says}, but task {task} starts from {', '.join(sources)}. If it is "
            f"{' or '.join(sources)} all the same, rename it, or say how the names end, as in --names "
            f"\"{{'{sources[0]}': '_0000'}}\""
        )


def _files(path: Path, names: Mapping[str, str] | None) -> list[Path]:
    """The files below a folder; a given file and, if it says its modality, the others of its case beside it."""
    if path.is_dir():
        return files_below(path)
    named = read_file_name(path, names)
    if named is None or named.modality is None:
        return [path]
    beside = {file: read_file_name(file, names) for file in sorted(path.parent.iterdir())}
    return [file for file, other in beside.items() if other is not None and other.case == named.case]


def _by_case(
    groups: Mapping[tuple[Path, str], Mapping[str, list[Path]]], path: Path
) -> dict[str, dict[str, list[Path]]]:
    """Files of each case by modality.

    Cases go by their folders where their names hold nothing else, or where two folders have the same modality of a
    case of that name: they are of two patients, or copies.

    Args:
        groups: (folder, case) to the files of each modality.
        path: the folders are named below it.
    """
    root = path if path.is_dir() else path.parent
    count = Counter((case, modality) for (_, case), found in groups.items() for modality in found)
    doubled = {case for (case, _), times in count.items() if times > 1}
    cases: dict[str, dict[str, list[Path]]] = {}
    for (folder, case), found in groups.items():
        name = case
        if not case or case in doubled:
            parts = folder.relative_to(root).parts
            name = "_".join([*parts, case]).rstrip("_") or root.name
            if case:
                logger.info("case %s lies in several folders: that in %s is called %s", case, folder, name)
        for modality, files in found.items():
            cases.setdefault(name, {}).setdefault(modality, []).extend(files)
    return cases


def _problem(
    case: str, found: Mapping[str, list[Path]], sources: Sequence[str], task: str
) -> ValueError | FileNotFoundError | None:
    """Why a case cannot be used."""
    for modality, files in found.items():
        if len(files) > 1:
            return ValueError(f"case {case} has two {modality} files, {files[0]} and {files[1]}: keep one.")
    files = [files[0] for files in found.values()]
    other = next((file for file in files if file.parent != files[0].parent), None)
    if other is not None:
        return ValueError(
            f"case {case} lies in two folders, {files[0].parent} and {other.parent}: keep its files together."
        )
    if missing := [modality for modality in sources if modality not in found]:
        return FileNotFoundError(
            f"case {case} lacks {', '.join(missing)} beside {files[0]}: task {task} needs {_pattern(sources)}."
        )
    return None


def _passed_over(path: Path, passed: Mapping[str, list[Path]]) -> str:
    """One line that counts and names files, by why they are passed over."""
    kinds = []
    for kind, files in sorted(passed.items()):
        shown = [str(file.relative_to(path)) for file in files[:_SHOWN]] + ["..."] * (len(files) > _SHOWN)
        kinds.append(f"{len(files)} {kind} ({', '.join(shown)})")
    count = sum(map(len, passed.values()))
    return f"{count} file{'s' * (count > 1)} passed over in {path}: {'; '.join(kinds)}"


def _pattern(sources: Sequence[str]) -> str:
    return " and ".join(f"<case>_{modality}{SUFFIXES[0]}" for modality in sources)
