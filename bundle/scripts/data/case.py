"""Runs preparation case by case: in parallel, restartable, and with no half-written case left behind.

A `Job` knows how to write one case. It is run where it must be, what it wrote is checked and drawn, and put in place
with one rename.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.data import plausibility
from scripts.data.datalist import grid_problems, image_problem, mask_problem, prepared_name
from scripts.data.modality import examine
from scripts.data.names import MODALITIES
from scripts.data.record import VERSION, digest_inputs, is_complete, read_record, write_record
from scripts.data.volume import CaseError, NiftiVolume, one_line, refuse

logger = logging.getLogger(__name__)

# Checks of plausibility: a person who has looked at the case may accept it. Geometry, grid and values are no opinion.
ACCEPTABLE = ("modality", "mask outside head")

NOTHING_ACCEPTED: Mapping[str, Collection[str]] = MappingProxyType({})

_PARTIAL = ".partial_"
_WATCH_SECONDS = 0.5

# Draws `<folder>/<case>_overview.png` of a case from its folder, its name and its modalities.
Draw = Callable[[Path, str, tuple[str, ...]], None]


@dataclass(frozen=True)
class Job:
    """One case to prepare; it travels to a worker process.

    Args:
        case: name of the case's folder and files.
        patient: cases of one patient never part.
        cohort: a split is stratified by it.
        files: role, such as a modality, to what `write` reads for it; with `options` they decide the result.
        options: what else decides the result; goes into the record as JSON.
        write: writes `<case>_<name>.nii.gz` of every name into the folder it is given and returns facts to be shown;
            raises CaseError.
    """

    case: str
    patient: str
    cohort: str
    files: Mapping[str, tuple[Path, ...]]
    options: Mapping[str, Any]
    write: Callable[[Path], Facts]


@dataclass
class Facts:
    """What was found out about a case while it was written.

    Args:
        shown: short name to short text, for the page and cases.csv.
        warnings: sentences about what a reader should look at; the case is used all the same.
    """

    shown: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What became of a case: its measurements, or the problems that leave it out.

    Args:
        problems: empty for a case that can be used.
        tumor_mm3: volume of the mask; None without one.
        shape: voxels (X, Y, Z) of the case's grid.
        spacing: mm.
        input: role to a checksum of the files it was read from; empty where they could not be read.
        accepted: checks that failed and that a person has accepted.
        reused: an earlier run had finished it already.
    """

    case: str
    patient: str
    cohort: str
    problems: list[CaseError] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    tumor_mm3: float | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    input: dict[str, str] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    reused: bool = False


def run_jobs(
    jobs: Sequence[Job],
    output: Path,
    names: Sequence[str],
    *,
    title: str,
    workers: int = 1,
    keep_empty: bool = False,
    accept: Mapping[str, Collection[str]] = NOTHING_ACCEPTED,
    draw: Draw | None = None,
) -> list[Outcome]:
    """Prepare every case, in order of the jobs, whatever the number of workers.

    A case is finished when `<output>/<case>/` is there; it is used again if its record says that input, options and
    version were the same, and its files are all there. Everything else is made (again), but a case whose files were
    changed after they were written: that is a problem of the case, and its folder stays.

    Args:
        jobs: cases, with names that differ.
        output: an existing folder.
        names: what each case must have: modalities, and "label" where there is one.
        title: for the progress bar.
        keep_empty: a mask without tumor is legal, and only told.
        accept: case to those of `ACCEPTABLE` that a person has accepted. Its record keeps them: they need not be named
            again while its input and options stay the same.

    Raises:
        ValueError: two jobs of one name, or a folder of a case's name that this module did not write.
        OSError: the output cannot be written.
        RuntimeError: a worker process was killed; finished cases stay.
    """
    repeated = [case for case, count in Counter(job.case.casefold() for job in jobs).items() if count > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} names belong to several cases: {', '.join(repeated[:5])}; they must differ")
    _remove_leftovers(output)
    outcomes: dict[int, Outcome] = {}
    with tqdm(total=len(jobs), desc=title, unit="case", disable=None) as bar:
        for index, outcome in _outcomes(jobs, (output, tuple(names), keep_empty, dict(accept), draw), workers):
            outcomes[index] = outcome
            bar.set_postfix_str(outcome.case + (" (was finished)" if outcome.reused else ""))
            bar.update()
    _remove_leftovers(output)  # Workers of a killed run may have lived on until now.
    return [outcomes[index] for index in range(len(jobs))]


def _remove_leftovers(output: Path) -> None:
    """Remove what killed runs have left half-written; not what another run is writing."""
    for leftover in output.glob(f"{_PARTIAL}*"):
        process = leftover.name.removeprefix(_PARTIAL).partition("_")[0]
        if not (process.isdigit() and is_alive(int(process))):
            shutil.rmtree(leftover)


def is_alive(process: int) -> bool:
    """Whether a process id belongs to a process that still runs; one that nobody has waited for does not."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _outcomes(jobs: Sequence[Job], arguments: tuple, workers: int) -> Iterator[tuple[int, Outcome]]:
    """Index and outcome of each job as it ends; at most two jobs per worker wait, so that an error ends all soon."""
    if workers == 1:
        for index, job in enumerate(jobs):
            yield index, _run(job, *arguments)
        return
    todo = iter(enumerate(jobs))
    running: dict[Future[Outcome], int] = {}
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        try:
            while True:
                for index, job in todo:
                    running[pool.submit(_run, job, *arguments)] = index
                    if len(running) >= 2 * workers:
                        break
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(done), done.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, perhaps for memory: run the same command again with fewer --workers; "
                "finished cases are kept"
            ) from error


def _start_worker(parent: int) -> None:
    """A worker leaves the interrupt to its parent, the other cores to the other workers, and ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def watch() -> None:
        while os.getppid() == parent and is_alive(parent):  # The second is for Windows.
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(
    job: Job,
    output: Path,
    names: tuple[str, ...],
    keep_empty: bool,
    accept: Mapping[str, Collection[str]],
    draw: Draw | None,
) -> Outcome:
    """Prepare one case, or find it finished; whatever is wrong with its input costs this case alone."""
    outcome = Outcome(job.case, job.patient, job.cohort)
    folder, partial = output / job.case, output / f"{_PARTIAL}{os.getpid()}_{job.case}"
    record = read_record(folder)
    replaceable = False
    try:
        identity = _identity(job, names, keep_empty)
        outcome.input = identity["input"]
        accepted = set(accept.get(job.case, ()))
        if record is not None and record["identity"] == identity:
            accepted |= set(record.get("accepted", ()))
        if record is not None and is_complete(folder, record) and record["identity"] == identity:
            outcome.facts = Facts(record["facts"], record["warnings"])
            outcome.tumor_mm3 = record["tumor_mm3"]
            outcome.shape, outcome.spacing = tuple(record["shape"]), tuple(record["spacing"])
            outcome.accepted = list(record.get("accepted", ()))
            outcome.reused = True
            return outcome
        replaceable = True
        partial.mkdir()
        outcome.facts = job.write(partial)
        _check(outcome, partial, names, keep_empty, accepted)
        if draw is not None:
            draw(partial, job.case, tuple(name for name in names if name != "label"))
        measured = {"tumor_mm3": outcome.tumor_mm3, "shape": outcome.shape, "spacing": outcome.spacing}
        told = {"facts": outcome.facts.shown, "warnings": outcome.facts.warnings, "accepted": outcome.accepted}
        write_record(partial, job.case, {"identity": identity, **measured, **told})
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except CaseError as error:
        outcome.problems = [each.at(job.case) for each in error.errors]
    except OSError:
        raise  # Inputs were read before: the disk of the output is full or lost, which is no fault of the case.
    except Exception as error:
        logger.debug("%s", job.case, exc_info=True)
        found = f"{type(error).__name__}: {one_line(error)}"
        expected = "a case that can be read; please report this"
        outcome.problems = [CaseError("unexpected error", found, expected, case=job.case)]
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if outcome.problems and replaceable:
        shutil.rmtree(folder, ignore_errors=True)  # What an earlier run made of other input or options.
    return outcome


def _identity(job: Job, names: Sequence[str], keep_empty: bool) -> dict[str, Any]:
    """Everything that decides the files of a case."""
    return {
        "version": VERSION,
        "patient": job.patient,
        "cohort": job.cohort,
        "names": list(names),
        "options": json.loads(json.dumps({**job.options, "keep_empty": keep_empty})),
        "input": digest_inputs(job.files),
    }


def _check(outcome: Outcome, folder: Path, names: Sequence[str], keep_empty: bool, accepted: Collection[str]) -> None:
    """Check the files as written, and measure them.

    Raises:
        CaseError: every problem found.
    """
    volumes = {name: NiftiVolume(folder / prepared_name(outcome.case, name)) for name in names}
    refuse(grid_problems(volumes))
    shape, affine = volumes[names[0]].grid()
    outcome.shape = shape
    outcome.spacing = tuple(float(f"{size:.6g}") for size in np.linalg.norm(affine[:3, :3], axis=0))
    voxels = {name: volume.voxels() for name, volume in volumes.items()}
    mask = voxels.pop("label", None)
    found = [image_problem(name, image) for name, image in voxels.items()]
    found += [] if mask is None else [mask_problem(mask)]
    refuse([problem for problem in found if problem is not None])
    refuse(_same_images(voxels))
    found_out = examine({name: (voxels[name], outcome.spacing) for name in MODALITIES if name in voxels})
    outcome.facts.shown.update(found_out.shown)
    outcome.facts.warnings += found_out.notes
    errors = list(found_out.errors)
    if mask is not None:
        outcome.tumor_mm3 = float(f"{np.count_nonzero(mask) * abs(np.linalg.det(affine[:3, :3])):.6g}")
        if mask.any():
            head = plausibility.head_mask(voxels[names[0]], spacing=outcome.spacing)
            errors += plausibility.mask_problems(mask, head=head, spacing=outcome.spacing)
        elif keep_empty:
            outcome.facts.warnings.append("no tumor: the mask is empty")
        else:
            expected = "a mask of the tumor; --keep-empty accepts cases without one"
            errors.append(CaseError("empty mask", "a mask without a voxel", expected))
    refuse(_not_accepted(errors, outcome, accepted))


def _not_accepted(errors: Sequence[CaseError], outcome: Outcome, accepted: Collection[str]) -> list[CaseError]:
    """Errors that nobody has accepted, with the option that would; the others become warnings."""
    left = []
    for error in errors:
        if error.check not in ACCEPTABLE:
            left.append(error)
        elif error.check in accepted:
            outcome.accepted = sorted({*outcome.accepted, error.check})
            outcome.facts.warnings.append(f"accepted by --accept: {error}")
        else:
            option = f"--accept {shlex.quote(f'{outcome.case}:{error.check}')}"
            expected = f"{error.expected}; if you have looked and it is right, {option}"
            left.append(CaseError(error.check, error.found, expected))
    return left


def _same_images(voxels: Mapping[str, NDArray]) -> list[CaseError]:
    """Modalities of a case that are the same voxels: a file was copied or named wrongly."""
    return [
        CaseError("same image", f"{first} and {second} have the same voxels", "one image per modality")
        for first, second in combinations(voxels, 2)
        if np.array_equal(voxels[first], voxels[second])
    ]
