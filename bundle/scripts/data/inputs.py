"""Finds the scans to run inference on: a file or a folder, with a case's modalities as siblings by name."""

from __future__ import annotations

from pathlib import Path

from scripts.data.datalist import MODALITIES, TASKS

SUFFIXES = (".nii.gz", ".nii")
NOT_INPUTS = ("label", "seg", "pred", "synthetic", "error", "coarse")


def find_inputs(path: str | Path, task: str, *, keep_incomplete: bool = False) -> list[dict[str, object]]:
    """Lists the cases below a folder, or the one case that a file belongs to.

    `<case>_<modality>.nii.gz` (modality T1, ceT1, T2, FLAIR) names a modality of a case; all source modalities of the
    task must lie side by side. For a task with one source modality a file without such a suffix is a case by itself.
    Hidden folders, of runs that are not finished, are passed over, and so are masks and outputs (`_label`, `_seg`,
    `_pred`, `_synthetic`, `_error`, `_coarse`).

    Args:
        path: a NIfTI file or a folder, searched with all its subfolders.
        task: a name in `datalist.TASKS`.
        keep_incomplete: list a case that lacks a modality too, its "problem" said in its entry, unless all do.

    Returns:
        entries {"case": id, "image": [absolute paths in the task's order]}, sorted by case.

    Raises:
        FileNotFoundError: nothing there, or a case lacks a modality (with `keep_incomplete` every case).
        ValueError: unknown task; two files for one modality of a case; a case in two folders; a file of a modality that
            is no source.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {sorted(TASKS)}.")
    sources = TASKS[task].image
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a NIfTI file or a folder with {_pattern(sources)}.")
    if path.is_file():
        case, modality = split_name(path)
        if modality is not None and modality not in sources:
            raise ValueError(f"{path} is named as {modality}, but task {task} starts from {', '.join(sources)}.")
        files = [path] if modality is None else [p for p in sorted(path.parent.iterdir()) if split_name(p)[0] == case]
    else:
        below = (p for p in sorted(path.rglob("*")) if not p.is_dir())  # links to nothing stay: loading tells
        files = [p for p in below if not any(part.startswith(".") for part in p.relative_to(path).parts)]

    cases: dict[str, dict[str, Path]] = {}
    for file in files:
        case, modality = split_name(file)
        if not case or case.rpartition("_")[2] in NOT_INPUTS:
            continue
        if modality is None:
            if len(sources) > 1:
                continue
            modality = sources[0]
        if modality in sources:
            known = cases.setdefault(case, {})
            if modality in known:
                raise ValueError(f"case {case} has two {modality} files, {known[modality]} and {file}: keep one.")
            folder = next(iter(known.values()), file).parent
            if folder != file.parent:
                raise ValueError(
                    f"case {case} lies in two folders, {folder} and {file.parent}: keep its files together."
                )
            known[modality] = file
    if not cases:
        raise FileNotFoundError(f"no case for task {task} in {path}: expected {_pattern(sources)}.")
    entries: list[dict[str, object]] = []
    problems = []
    for case, found in sorted(cases.items()):
        image = [str(found[modality].resolve()) for modality in sources if modality in found]
        entries.append({"case": case, "image": image})
        if missing := [modality for modality in sources if modality not in found]:
            problems.append(
                f"case {case} lacks {', '.join(missing)} beside {next(iter(found.values()))}: task {task} needs "
                f"{_pattern(sources)}."
            )
            entries[-1]["problem"] = problems[-1]
    if problems and (not keep_incomplete or len(problems) == len(entries)):
        raise FileNotFoundError(problems[0])
    return entries


def split_name(path: Path) -> tuple[str, str | None]:
    """Splits a file name into case and modality, None where the name has no modality; ("", None) for no NIfTI.

    Hidden files (a leading dot, as macOS leaves beside others) are no NIfTI.
    """
    for suffix in SUFFIXES:
        if path.name.endswith(suffix) and not path.name.startswith("."):
            stem = path.name[: -len(suffix)]
            case, _, modality = stem.rpartition("_")
            return (case, modality) if case and modality in MODALITIES else (stem, None)
    return "", None


def _pattern(sources: tuple[str, ...]) -> str:
    return " and ".join(f"<case>_{modality}.nii.gz" for modality in sources)
