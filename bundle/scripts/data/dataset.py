"""Puts the cases of a source, or phantoms, together into a data folder: sections, lists, and a page to look at."""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from scripts.data.accept import accepted_checks
from scripts.data.case import Draw, Facts, Job, Outcome, run_jobs
from scripts.data.conversion import write_image
from scripts.data.datalist import SECTIONS, TASKS, datalist_entry, write_datalist
from scripts.data.names import MODALITIES
from scripts.data.page import write_overview
from scripts.data.phantom.make import SIZES, make_phantom, phantom_kind
from scripts.data.record import read_record
from scripts.data.sources.registry import Found, Options, case_names, find_cases
from scripts.data.split import (
    FRACTIONS,
    read_accepted,
    read_split,
    stratified_folds,
    stratified_split,
    write_split,
)
from scripts.data.volume import CaseError
from scripts.files import whole_file

logger = logging.getLogger(__name__)

SCANS_FOLDER = "scans_only"


def prepare_source(
    source: str,
    folder: Path | Sequence[Path],
    output: Path,
    options: Options | str,
    *,
    split: Path | None = None,
    fractions: Sequence[float] = FRACTIONS,
    folds: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    draw: Draw | None = None,
) -> dict[str, int]:
    """Prepare every usable case of a data set.

    Args:
        source: a key of `SOURCES`.
        folder: the data set as downloaded; several folders where its parts lie apart.
        output: folder to write; must not hold a datalist yet.
        options: what the source needs to know; or a task, a key of `TASKS` that the source serves.
        split: CSV with columns case, split and, where wanted, accept (checks that a person accepts, by semicolons);
            default the sections in split.csv of earlier runs into the folder, and `stratified_split` for all other
            patients.
        fractions: of the patients, in training, validation and testing.
        folds: of a cross-validation over all patients; see `_write_folds`. 0: none.
        seed: of the split and of the folds.
        overwrite: replace the datalist of an earlier run into `output`; its finished cases are used again where
            neither input nor options changed.
        draw: makes the picture of a case; None for none.

    Returns:
        Number of cases per section (under "scans" where there are no sections), and under "excluded" of those left out.

    Raises:
        FileNotFoundError: no such folder or split file.
        ValueError: no case found, no case usable, a wrong split file, or an output that may not be written.
        RuntimeError: a worker process was killed.
    """
    options = Options(options) if isinstance(options, str) else options
    stratified_split({}, fractions=fractions, seed=seed)  # Wrong arguments are told now, not after hours.
    if folds < 0 or folds == 1:
        raise ValueError(f"--folds is {folds}, expected 2 or more, or 0 for none")
    folders = [folder] if isinstance(folder, Path) else list(folder)
    for each in folders:
        if not each.is_dir():
            raise FileNotFoundError(f"{each}: no such folder, expected the {source} data set as downloaded")
        _refuse_overlap(each, output)
    found = find_source(source, folders, options)
    jobs = found.jobs
    cases = {job.case for job in [*jobs, *found.scans]} | {problem.case for problem in found.problems}
    rows = None if split is None else read_accepted(split, cases)
    accept = accepted_checks(options.accept, cases, rows=rows)
    if split is not None:
        sections = read_split(split, {job.case: job.patient for job in jobs}, [p.case for p in found.problems])
        absent = [job for job in jobs if job.case not in sections]
        found.problems += [
            CaseError("not in split", f"no row in {split}", "one row per case", case=job.case) for job in absent
        ]
        jobs = [job for job in jobs if job.case in sections]
    _start_output(output, overwrite)
    before = _recorded_inputs(output, jobs)
    names = case_names(source, options.task)
    keep_empty = options.keep_empty or TASKS[options.task].structure == "enhancing tumor"
    outcomes = run_jobs(
        jobs,
        output,
        names,
        title=source,
        workers=options.workers,
        keep_empty=keep_empty,
        accept=accept,
        draw=draw,
    )
    _refuse_copies(outcomes, output)
    problems = found.problems + [problem for outcome in outcomes for problem in outcome.problems]
    usable = [outcome for outcome in outcomes if not outcome.problems]
    _tell_leftovers(output, usable)
    _tell_replaced(output, before, usable)
    if found.scans:
        scans, left_out = _prepare_scans(found, output / SCANS_FOLDER, options, accept, draw)
        problems += left_out
        if not jobs:
            _tell_excluded(output, problems)
            return {"scans": scans, "excluded": len({problem.case for problem in problems})}
    if "label" not in names:
        return _finish(output, source, options.task, {"scans": usable}, problems)
    earlier = _stored_sections(output)
    if split is None:
        if earlier:
            logger.info("split.csv decides the sections of earlier patients; delete it for a new split")
        decided = stratified_split(_strata(usable), fractions=fractions, seed=seed, kept=earlier)
        sections = {outcome.case: decided[outcome.patient] for outcome in usable}
    _store_sections(output, earlier | {outcome.patient: sections[outcome.case] for outcome in usable})
    _write_folds(output, usable, options.task, folds, seed)
    return _finish(output, source, options.task, _by_section(usable, sections), problems)


def _write_folds(output: Path, usable: Sequence[Outcome], task: str, count: int, seed: int) -> None:
    """Write datalist_fold0.json and so on: one fold is testing, all others training, nothing is validation."""
    if count == 0:
        return
    fold_of = stratified_folds(_strata(usable), count, seed=seed)
    for fold in range(count):
        sections: dict[str, list[dict[str, object]]] = {"training": [], "testing": []}
        for outcome in usable:
            section = "testing" if fold_of[outcome.patient] == fold else "training"
            sections[section].append(datalist_entry(outcome.case, outcome.patient, task))
        write_datalist(output / f"datalist_fold{fold}.json", task, sections)


def find_source(source: str, folders: Sequence[Path], options: Options) -> Found:
    """Cases of a source, from names and headers alone; logs the notes.

    Raises:
        ValueError: nothing that looks like the source.
    """
    found = find_cases(source, folders, options)
    if not found.jobs and not found.problems and not found.scans:
        shown = ", ".join(map(str, folders))
        raise ValueError(f"{shown}: no {source} case found; docs/data.md lists the file names that are understood")
    for note in found.notes:
        logger.warning("%s", note)
    return found


def prepare_phantoms(
    output: Path,
    task: str,
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    size: str = "small",
    without_tumor: float = 0.15,
    workers: int = 1,
    overwrite: bool = False,
    draw: Draw | None = None,
) -> dict[str, int]:
    """Write phantoms, numbered through all sections; the same arguments give the same files.

    Args:
        counts: section to number of cases.
        size: small, real or, for vs, thin; see `SIZES`.
        without_tumor: fraction of cases without tumor, spread evenly over the numbers.
        workers: processes; a phantom of real size takes about 1 GB in each.
        output, overwrite, draw: as in `prepare_source`.

    Returns:
        Number of cases per section, and under "excluded" of those left out.

    Raises:
        ValueError: no case asked for, a negative number, or an output that may not be written.
        RuntimeError: a worker process was killed.
    """
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise ValueError(f"found counts {dict(counts)}, expected no negative number and at least one case")
    if not 0 <= without_tumor <= 1:
        raise ValueError(f"--without-tumor is {without_tumor}, expected a fraction from 0 to 1")
    if seed < 0:
        raise ValueError(f"--seed is {seed}, expected 0 or more")
    kind = phantom_kind(task)
    if (kind, size) not in SIZES:
        sizes = ", ".join(name for of, name in SIZES if of == kind)
        raise ValueError(f"--size is {size!r}, expected one of {sizes} for {task}")
    _start_output(output, overwrite)
    order = [section for section in SECTIONS for _ in range(counts[section])]
    # Without a tumor are the numbers at which the expected count passes a whole number.
    tumors = [int((i + 1) * without_tumor) == int(i * without_tumor) for i in range(len(order))]
    shape, spacing = SIZES[(kind, size)]
    jobs = []
    for index, tumor in enumerate(tumors):
        case, own = f"phantom_{task}_{index:04d}", seed * 100_000 + index
        said = {"seed": own, "tumor": tumor, "shape": list(shape), "spacing": list(spacing)}
        write = partial(_write_phantom, case, task, own, tumor, shape, spacing)
        jobs.append(Job(case, case, "phantom", {}, said, write))
    names = case_names("phantom", task)
    outcomes = run_jobs(jobs, output, names, title="phantom", workers=workers, keep_empty=True, draw=draw)
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    sections = {job.case: section for job, section in zip(jobs, order, strict=True)}
    usable = [outcome for outcome in outcomes if not outcome.problems]
    return _finish(output, "phantom", task, _by_section(usable, sections), problems)


def _write_phantom(
    case: str, task: str, seed: int, tumor: bool, shape: tuple[int, ...], spacing: tuple[float, ...], folder: Path
) -> Facts:
    phantom = make_phantom(seed, task=task, shape=shape, spacing=spacing, tumor=tumor)
    for modality in TASKS[task].modalities:
        # Rounded to int16, as scanners store them; it also compresses.
        voxels = np.rint(phantom.images[modality]).astype(np.int16)
        write_image(voxels, phantom.affine, case, modality, folder)
    write_image(phantom.label, phantom.affine, case, "label", folder)
    return Facts()


def _refuse_copies(outcomes: Sequence[Outcome], output: Path) -> None:
    """Leave out a case whose image is that of another patient: one of them would test what the other has trained."""
    owners: dict[tuple[str, str], Outcome] = {}
    for outcome in (outcome for outcome in outcomes if not outcome.problems):
        for role, digest in outcome.input.items():
            owner = owners.setdefault((role, digest), outcome)
            if role in MODALITIES and owner.patient != outcome.patient and not outcome.problems:
                found = f"the {role} of {owner.case}, patient {owner.patient}"
                outcome.problems.append(CaseError("same image", found, "one patient per image", case=outcome.case))
                shutil.rmtree(output / outcome.case)


def _recorded_inputs(output: Path, jobs: Sequence[Job]) -> dict[str, dict[str, str]]:
    """What cases of earlier runs were made of: case to checksums by role."""
    records = {job.case: read_record(output / job.case) for job in jobs}
    return {case: record["identity"]["input"] for case, record in records.items() if record is not None}


def _tell_replaced(output: Path, before: Mapping[str, Mapping[str, str]], usable: Sequence[Outcome]) -> None:
    """Warn about cases of earlier runs in whose place others of the same name are now: perhaps of another patient."""
    replaced = [one.case for one in usable if one.case in before and before[one.case] != one.input]
    if replaced:
        shown = ", ".join(replaced[:5]) + (", ..." if len(replaced) > 5 else "")
        logger.warning(
            "%s: %d cases of earlier runs were made of other files and are replaced: %s", output, len(replaced), shown
        )


def _tell_leftovers(output: Path, usable: Sequence[Outcome]) -> None:
    """Warn about prepared cases that this run does not have: inference on the folder would find them."""
    prepared = {path.parent.name for path in output.glob("*/*.json") if path.stem == path.parent.name}
    others = sorted(prepared - {outcome.case for outcome in usable})
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        logger.warning(
            "%s: %d cases of earlier runs are still there: %s; remove what is not wanted", output, len(others), shown
        )


def _prepare_scans(
    found: Found, output: Path, options: Options, accept: Mapping[str, Collection[str]], draw: Draw | None
) -> tuple[int, list[CaseError]]:
    """Scans for inference alone, in a folder of their own; how many there are, and what leaves others out."""
    output.mkdir(exist_ok=True)
    outcomes = run_jobs(found.scans, output, ("T2",), title="scans", workers=options.workers, accept=accept, draw=draw)
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    usable = [outcome for outcome in outcomes if not outcome.problems]
    write_overview(output / "overview.html", "scans without truth", {"scans": usable}, problems)
    return len(usable), problems


def _strata(outcomes: Sequence[Outcome]) -> dict[str, tuple[str, float]]:
    """Cohort and tumor volume of each patient, the largest of several cases."""
    strata: dict[str, tuple[str, float]] = {}
    for outcome in outcomes:
        volume = max(outcome.tumor_mm3 or 0.0, strata.get(outcome.patient, ("", 0.0))[1])
        strata[outcome.patient] = (outcome.cohort, volume)
    return strata


def _stored_sections(output: Path) -> dict[str, str]:
    """Section of every patient that was ever prepared into the folder, also of those that are not there today."""
    path = output / "split.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        stored = {row.get("patient", ""): row.get("split", "") for row in csv.DictReader(file)}
    wrong = [patient for patient, section in stored.items() if section not in SECTIONS]
    if wrong:
        raise ValueError(f"{path}: patient {wrong[0]!r} has split {stored[wrong[0]]!r}, expected {', '.join(SECTIONS)}")
    return stored


def _store_sections(output: Path, sections: Mapping[str, str]) -> None:
    with whole_file(output / "split.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("patient", "split"))
        writer.writerows(sorted(sections.items()))


def _by_section(outcomes: Sequence[Outcome], sections: Mapping[str, str]) -> dict[str, list[Outcome]]:
    return {name: [o for o in outcomes if sections[o.case] == name] for name in SECTIONS}


def _refuse_overlap(folder: Path, output: Path) -> None:
    source, target = folder.resolve(), output.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(f"--output {output} overlaps --input {folder}; name a folder outside it")


def _start_output(output: Path, overwrite: bool) -> None:
    """Create the folder; datalists of an earlier run go first, so that they never name files of two runs."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file, expected a folder")
    datalist = output / "datalist.json"
    if datalist.exists():
        if not overwrite:
            raise ValueError(f"{datalist} exists already; name another --output or add --overwrite")
        datalist.unlink()
    for path in output.glob("datalist_fold*.json"):
        path.unlink()
    output.mkdir(parents=True, exist_ok=True)


def _finish(
    output: Path, source: str, task: str, sections: Mapping[str, list[Outcome]], problems: Sequence[CaseError]
) -> dict[str, int]:
    """Write excluded.csv, cases.csv, the page and, last, datalist.json.

    Raises:
        ValueError: no case is left.
    """
    _tell_excluded(output, problems)
    counts = {name: len(outcomes) for name, outcomes in sections.items()}
    write_overview(output / "overview.html", f"{source}, task {task}", sections, problems)
    if not any(counts.values()):
        raise ValueError(f"none of the cases can be used; {output / 'excluded.csv'} says why for each")
    warned = [o.case for outcomes in sections.values() for o in outcomes if o.facts.warnings]
    if warned:
        logger.warning("%d cases have warnings, first on the page: %s", len(warned), ", ".join(warned[:5]))
    for outcome in sections.get("scans", ()):  # Nothing but the page lists those.
        for warning in outcome.facts.warnings:
            logger.warning("%s: %s", outcome.case, warning)
    if set(sections) == set(SECTIONS):
        rows = [_row(outcome, name) for name, outcomes in sections.items() for outcome in outcomes]
        write_split(output / "cases.csv", rows)
        entries = {
            name: [datalist_entry(o.case, o.patient, task) for o in outcomes] for name, outcomes in sections.items()
        }
        write_datalist(output / "datalist.json", task, entries)
    for name, count in counts.items():
        if count == 0:
            logger.warning("section %s is empty; --split or --fractions decide otherwise", name)
    return {**counts, "excluded": len({problem.case for problem in problems})}


def _row(outcome: Outcome, section: str) -> dict[str, object]:
    """Row of cases.csv."""
    return {
        "case": outcome.case,
        "patient": outcome.patient,
        "cohort": outcome.cohort,
        "split": section,
        "tumor_mm3": outcome.tumor_mm3,
        "shape": " x ".join(map(str, outcome.shape)),
        "spacing_mm": " x ".join(f"{size:g}" for size in outcome.spacing),
        "facts": "; ".join(f"{name}: {text}" for name, text in outcome.facts.shown.items()),
        "warnings": "; ".join(outcome.facts.warnings),
        "accept": "; ".join(outcome.accepted),
    }


def _tell_excluded(output: Path, problems: Sequence[CaseError]) -> None:
    """Write excluded.csv, and the same to the log."""
    for problem in problems:
        logger.warning("%s left out: %s: found %s; expected %s", *problem.row)
    with whole_file(output / "excluded.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CaseError.COLUMNS)
        writer.writerows(problem.row for problem in problems)
