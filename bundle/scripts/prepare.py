"""Turns a published data set, or phantoms, into `<output>/<case>/*.nii.gz`, datalist.json and excluded.csv.

Run from the bundle's root:

    python -m scripts.prepare brats --input DOWNLOADED --output data/glioma --task glioma
    python -m scripts.prepare msd --input Task01_BrainTumour --output data/msd --task glioma
    python -m scripts.prepare phantom --output data/phantom --task vs --training 20 --validation 4 --testing 8

What a data set looks like on disk belongs in `data/sources.py`, what a prepared folder looks like in
`data/datalist.py`. Nothing is resampled or normalized here: intensities, grid and affine stay the data set's. No torch.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray
from tqdm import tqdm

from scripts.data.datalist import (
    SECTIONS,
    TASKS,
    datalist_entry,
    default_splits,
    grid_problems,
    image_problem,
    prepared_path,
    write_datalist,
)
from scripts.data.phantom import SIZES, make_phantom
from scripts.data.sources import NiftiCase, find_brats, find_msd
from scripts.data.volume import NiftiVolume, Problem, VolumeError

logger = logging.getLogger(__name__)

# Published data sets: how to find their cases below a folder, and the tasks they can serve.
SOURCES: dict[str, tuple[Callable[[Path], tuple[list[NiftiCase], list[Problem]]], tuple[str, ...]]] = {
    "brats": (find_brats, ("glioma", "surrogate_t2_cet1")),
    "msd": (find_msd, ("glioma", "surrogate_t2_cet1")),
}


def prepare_source(
    source: str, folder: Path, output: Path, task: str, *, split: Path | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Prepare every usable case of a published data set.

    Args:
        source: a key of `SOURCES`.
        folder: the data set as downloaded.
        output: folder to write; must not hold a datalist yet.
        task: a key of `TASKS` that the source serves.
        split: CSV with columns case, split; default `default_splits`, by patient, over all cases found.
        overwrite: replace what an earlier run wrote into `output`.

    Returns:
        Number of cases per section, and under "excluded" of those left out.

    Raises:
        FileNotFoundError: no such folder or split file.
        ValueError: no case found, no case usable, a wrong split file, or an output that may not be written.
    """
    find, tasks = SOURCES[source]
    if task not in tasks:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(tasks)} for {source}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected the {source} data set as downloaded")
    _refuse_overlap(folder, output)
    found, problems = find(folder)
    if not found and not problems:
        raise ValueError(f"{folder}: no {source} case found; docs/data.md lists the file names that are understood")
    splits = default_splits(case.patient for case in found)
    section_of = {case.case: splits[case.patient] for case in found}
    if split is not None:
        section_of = read_split(split, {case.case: case.patient for case in found}, [p.case for p in problems])
    _start_output(output, overwrite)
    sections: dict[str, list[dict]] = {name: [] for name in SECTIONS}
    for case in tqdm(found, desc=f"prepare {source}", unit="case", disable=None):
        if case.case not in section_of:
            wrong = [Problem(case.case, "not in split", f"no row in {split}", "one row per case")]
        else:
            wrong = _prepare_case(case, output, task)
        problems += wrong
        if not wrong:
            sections[section_of[case.case]].append(datalist_entry(case.case, case.patient, task))
    return _finish(output, task, sections, problems)


def prepare_phantoms(
    output: Path,
    task: str,
    counts: dict[str, int],
    *,
    seed: int = 0,
    size: str = "small",
    without_tumor: float = 0.15,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write phantoms, numbered through all sections; the same arguments give the same files.

    Args:
        output: folder to write; must not hold a datalist yet.
        task: a key of `TASKS`.
        counts: section to number of cases.
        seed: decides all phantoms.
        size: small, real or, for vs, thin; see `SIZES`.
        without_tumor: fraction of cases without tumor, spread evenly over the numbers.
        workers: processes; a phantom of real size takes about 1 GB in each.
        overwrite: replace what an earlier run wrote into `output`.

    Returns:
        Number of cases per section, and 0 under "excluded".

    Raises:
        ValueError: no case asked for, a negative number, or an output that may not be written.
    """
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise ValueError(f"found counts {counts}, expected no negative number and at least one case")
    if not 0 <= without_tumor <= 1:
        raise ValueError(f"--without-tumor is {without_tumor}, expected a fraction from 0 to 1")
    if seed < 0:
        raise ValueError(f"--seed is {seed}, expected 0 or more")
    kind = "vs" if task == "vs" else "glioma"
    if (kind, size) not in SIZES:
        sizes = ", ".join(name for of, name in SIZES if of == kind)
        raise ValueError(f"--size is {size!r}, expected one of {sizes} for {task}")
    if workers < 1:
        raise ValueError(f"--workers is {workers}, expected 1 or more")
    _start_output(output, overwrite)
    order = [section for section in SECTIONS for _ in range(counts[section])]
    # Without a tumor are the numbers at which the expected count passes a whole number.
    tumors = [int((i + 1) * without_tumor) == int(i * without_tumor) for i in range(len(order))]
    write = partial(_write_phantom, output, task, *SIZES[(kind, size)])
    seeds = [seed * 100_000 + index for index in range(len(order))]
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        written = (pool.map if pool else map)(write, range(len(order)), seeds, tumors)
        cases = list(tqdm(written, total=len(order), desc="prepare phantom", unit="case", disable=None))
    sections: dict[str, list[dict]] = {name: [] for name in SECTIONS}
    for section, case in zip(order, cases, strict=True):
        sections[section].append(datalist_entry(case, case, task))
    return _finish(output, task, sections, [])


def read_split(path: Path, patients: dict[str, str], left_out: Sequence[str] = ()) -> dict[str, str]:
    """Section of each case from a CSV with columns case, split.

    Args:
        path: the CSV file; `split` is training, validation or testing.
        patients: case id to patient id of all cases found.
        left_out: cases that were found and are excluded already; rows for them are no error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: missing columns, unknown section or case, two rows for a case, a patient in two sections.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such split file, expected a CSV with columns case,split")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        if not {"case", "split"} <= set(columns):
            found = ", ".join(columns) or "none"
            raise ValueError(f"{path}: found columns {found}, expected case,split in the first line")
        rows = [((row["case"] or "").strip(), (row["split"] or "").strip()) for row in reader]
    sections: dict[str, str] = {}
    for line, (case, section) in enumerate(rows, start=2):
        if section not in SECTIONS:
            raise ValueError(f"{path}, line {line}: found split {section!r}, expected one of {', '.join(SECTIONS)}")
        if case in sections:
            raise ValueError(f"{path}, line {line}: second row for case {case!r}, expected one; remove it")
        sections[case] = section
    unknown = [case for case in sections if case not in patients and case not in left_out]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"{path}: {len(unknown)} cases are not in the input folder: {shown}; remove their rows")
    of_patient: dict[str, str] = {}
    for case, section in sections.items():
        if case in patients and of_patient.setdefault(patients[case], section) != section:
            raise ValueError(
                f"{path}: patient {patients[case]} is in {of_patient[patients[case]]} and {section}; "
                "move all cases of the patient into one section"
            )
    return sections


def _prepare_case(case: NiftiCase, output: Path, task: str) -> list[Problem]:
    """Check one case and, if nothing is wrong, write it."""
    definition = TASKS[task]
    missing = [name for name in definition.modalities if name not in case.images]
    if missing:
        expected = ", ".join(definition.modalities)
        return [Problem(case.case, "missing file", f"no {', '.join(missing)}", expected)]
    volumes = {name: case.images[name] for name in definition.modalities}
    problems = grid_problems(case.case, {**volumes, "label": case.label})
    if problems:
        return problems
    mask: NDArray[np.uint8] | None = None
    for name, volume in {**volumes, "label": case.label}.items():
        try:
            voxels = volume.voxels()
            if name == "label":
                mask = case.label_values.mask(voxels, definition.structure)
                continue
        except VolumeError as error:
            problems.append(Problem(case.case, error.check, f"{name}: {error.found}", error.expected))
            continue
        problem = image_problem(case.case, name, voxels)
        if problem is not None:
            problems.append(problem)
    if problems or mask is None:
        return problems
    (output / case.case).mkdir(parents=True, exist_ok=True)
    for name, volume in volumes.items():
        _copy(volume, output / prepared_path(case.case, name))
    target = volumes[definition.target].open()
    header = target.header.copy()
    header.set_data_shape(mask.shape)
    header.set_data_dtype(np.uint8)
    header["cal_min"] = header["cal_max"] = 0
    _write(nib.Nifti1Image(mask, target.affine, header), output / prepared_path(case.case, "label"))
    return []


def _copy(volume: NiftiVolume, path: Path) -> None:
    """Write a volume as a .nii.gz of its own: the same bytes where possible, always the stored numbers and scaling."""
    if volume.channel is None:
        partial = _partial(path)
        try:
            with volume.path.open("rb") as source, partial.open("wb") as target:
                if volume.path.name.endswith(".gz"):
                    shutil.copyfileobj(source, target)
                else:
                    with gzip.GzipFile(filename="", mode="wb", fileobj=target, mtime=0) as compressed:
                        shutil.copyfileobj(source, compressed)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return
    image = volume.open()
    header = image.header.copy()
    proxy = cast(ArrayProxy, image.dataobj)
    stored = np.asarray(proxy.get_unscaled()[..., volume.channel])
    header.set_data_shape(stored.shape)
    single = nib.Nifti1Image(stored, image.affine, header)
    single.header.set_slope_inter(proxy.slope, proxy.inter)  # Creating an image clears them.
    _write(single, path)


def _write(image: nib.Nifti1Image, path: Path) -> None:
    """Save under a temporary name, then rename: no reader ever meets half a file."""
    partial = _partial(path)
    try:
        nib.save(image, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".partial{os.getpid()}_{path.name}")


def _refuse_overlap(folder: Path, output: Path) -> None:
    source, target = folder.resolve(), output.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(f"--output {output} overlaps --input {folder}; name a folder outside it")


def _write_phantom(
    output: Path, task: str, shape: Sequence[int], spacing: Sequence[float], index: int, seed: int, tumor: bool
) -> str:
    """Make one phantom and write its files; returns the case's name."""
    case = f"phantom_{task}_{index:04d}"
    phantom = make_phantom(seed, task=task, shape=shape, spacing=spacing, tumor=tumor)
    (output / case).mkdir(parents=True, exist_ok=True)
    for modality in TASKS[task].modalities:
        # Rounded to int16, as scanners store them; it also compresses.
        voxels = np.rint(phantom.images[modality]).astype(np.int16)
        _write(nib.Nifti1Image(voxels, phantom.affine), output / prepared_path(case, modality))
    _write(nib.Nifti1Image(phantom.label, phantom.affine), output / prepared_path(case, "label"))
    return case


def _start_output(output: Path, overwrite: bool) -> None:
    """Create the folder; a datalist of an earlier run goes first, so that it never names files of two runs."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file, expected a folder")
    datalist = output / "datalist.json"
    if datalist.exists():
        if not overwrite:
            raise ValueError(f"{datalist} exists already; name another --output or add --overwrite")
        datalist.unlink()
    output.mkdir(parents=True, exist_ok=True)


def _finish(output: Path, task: str, sections: dict[str, list[dict]], problems: Sequence[Problem]) -> dict[str, int]:
    """Write excluded.csv, then, if any case is left, datalist.json."""
    excluded = output / "excluded.csv"
    partial = _partial(excluded)
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Problem._fields)
        writer.writerows(problems)
    partial.replace(excluded)
    for problem in problems:
        logger.warning("%s left out: %s: found %s; expected %s", *problem)
    counts = {name: len(entries) for name, entries in sections.items()}
    if not any(counts.values()):
        raise ValueError(f"none of the cases can be used; {excluded} says why for each")
    write_datalist(output / "datalist.json", task, sections)
    for name, count in counts.items():
        if count == 0:
            logger.warning("section %s is empty; --split decides otherwise", name)
    return {**counts, "excluded": len({problem.case for problem in problems})}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="source", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    common.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
    for name, (find, tasks) in SOURCES.items():
        command = commands.add_parser(name, parents=[common], help=(find.__doc__ or "").splitlines()[0])
        command.add_argument("--input", type=Path, required=True, metavar="DIR", help="the data set as downloaded")
        command.add_argument("--task", choices=tasks, default=tasks[0], help="default %(default)s")
        command.add_argument("--split", type=Path, metavar="CSV", help="columns case,split; default: see docs/data.md")
    command = commands.add_parser("phantom", parents=[common], help="Synthetic cases, for tests and demos.")
    command.add_argument("--task", choices=tuple(TASKS), default="vs", help="default %(default)s")
    for name, count in zip(SECTIONS, (20, 4, 8), strict=True):
        command.add_argument(f"--{name}", type=int, default=count, metavar="N", help="cases, default %(default)s")
    command.add_argument("--seed", type=int, default=0, help="default %(default)s")
    command.add_argument("--size", choices=("small", "real", "thin"), default="small", help="default %(default)s")
    command.add_argument(
        "--without-tumor", type=float, default=0.15, metavar="F", help="fraction of cases, default %(default)s"
    )
    workers = min(4, os.cpu_count() or 1)
    command.add_argument("--workers", type=int, default=workers, metavar="N", help="processes, default %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 after a one-line error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    arguments = _parser().parse_args(argv)
    try:
        if arguments.source == "phantom":
            counts = prepare_phantoms(
                arguments.output,
                arguments.task,
                {name: getattr(arguments, name) for name in SECTIONS},
                seed=arguments.seed,
                size=arguments.size,
                without_tumor=arguments.without_tumor,
                workers=arguments.workers,
                overwrite=arguments.overwrite,
            )
        else:
            counts = prepare_source(
                arguments.source,
                arguments.input,
                arguments.output,
                arguments.task,
                split=arguments.split,
                overwrite=arguments.overwrite,
            )
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    sys.stdout.write(f"{arguments.output / 'datalist.json'}: {', '.join(f'{k} {v}' for k, v in counts.items())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
