"""Turns what archives hand out, or phantoms, into `<output>/<case>/*.nii.gz`, datalist.json and a page to look at.

Run from the bundle's root:

    python -m scripts.prepare vs_seg --input DOWNLOADED --output data/vs
    python -m scripts.prepare brats --input DOWNLOADED --output data/glioma --task glioma
    python -m scripts.prepare nifti --input DIR --output data/own --pattern "T2={case}/T2.nii.gz" ...
    python -m scripts.prepare dicom --input DIR --output data/scans
    python -m scripts.prepare phantom --output data/phantom --task vs --training 20 --validation 4 --testing 8

Prepared scans are whole: crops are transforms.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.data.datalist import SECTIONS, TASKS
from scripts.data.dataset import find_source, prepare_phantoms, prepare_source
from scripts.data.sources.registry import SOURCES, Options
from scripts.data.split import FRACTIONS

logger = logging.getLogger(__name__)


def _pairs(texts: Sequence[str], option: str, names: Sequence[str]) -> dict[str, str]:
    """NAME=TEXT of an option with several values."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not value or name not in names:
            raise ValueError(f"{option} {text!r}: expected NAME=TEXT, where NAME is one of {', '.join(names)}")
        if name in pairs:
            raise ValueError(f"{option} gives {name} twice")
        pairs[name] = value
    return pairs


def _series(texts: Sequence[str], task: str) -> dict[str, str]:
    """Regular expression of each modality."""
    series = _pairs(texts, "--series", TASKS[task].modalities)
    for name, pattern in series.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"--series {name}={pattern}: no regular expression ({error}); t2 finds what contains t2"
            ) from error
    return series


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.prepare",
        description=(__doc__ or "").splitlines()[0],
        epilog="docs/data.md says what each source must look like and what is checked.",
    )
    commands = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, metavar="DIR", help="folder to write")
    common.add_argument("--overwrite", action="store_true", help="replace the datalist of an earlier run there")
    common.add_argument("--strict", action="store_true", help="end with an error when any case is left out")
    workers = min(4, os.cpu_count() or 1)
    common.add_argument("--workers", type=int, default=workers, metavar="N", help="processes, default %(default)s")
    for name, (_, tasks, summary, _) in SOURCES.items():
        command = commands.add_parser(name, parents=[common], help=summary)
        command.add_argument("--input", type=Path, nargs="+", required=True, metavar="DIR", help="as downloaded")
        command.add_argument("--task", choices=tasks, default=tasks[0], help="default %(default)s")
        command.add_argument("--list", action="store_true", help="only say what is there, from names and headers")
        command.add_argument(
            "--accept", action="append", default=[], metavar="CASE[:CHECK]", help="a failed check that you looked at"
        )
        if name in ("vs_seg", "dicom"):
            command.add_argument(
                "--series", nargs="+", default=[], metavar="MODALITY=REGEX", help="searched in SeriesDescription"
            )
        if name == "dicom":
            continue
        command.add_argument("--split", type=Path, metavar="CSV", help="columns case,split and, if you like, accept")
        command.add_argument(
            "--fractions", type=float, nargs=3, default=FRACTIONS, metavar="F", help="training, validation, testing"
        )
        command.add_argument("--folds", type=int, default=0, metavar="N", help="also write datalists of N folds")
        command.add_argument("--seed", type=int, default=0, help="of the split, default %(default)s")
        command.add_argument("--keep-empty", action="store_true", help="a mask without tumor is legal")
        if name == "vs_seg":
            command.add_argument("--structure", nargs="+", metavar="NAME", help="names of the tumor in contours")
        if name == "nifti":
            command.add_argument(
                "--pattern", nargs="+", required=True, metavar="NAME=PATTERN", help="of each modality and of label"
            )
            command.add_argument("--label-values", type=int, nargs="+", metavar="N", help="that are tumor, default 1")
            command.add_argument("--register", action="store_true", help="bring other grids onto the first modality's")
    command = commands.add_parser("phantom", parents=[common], help="Synthetic cases, for tests and demos.")
    command.add_argument("--task", choices=tuple(TASKS), default="vs", help="default %(default)s")
    for name, count in zip(SECTIONS, (20, 4, 8), strict=True):
        command.add_argument(f"--{name}", type=int, default=count, metavar="N", help="cases, default %(default)s")
    command.add_argument("--seed", type=int, default=0, help="default %(default)s")
    command.add_argument("--size", choices=("small", "real", "thin"), default="small", help="default %(default)s")
    command.add_argument(
        "--without-tumor", type=float, default=0.15, metavar="F", help="fraction of cases, default %(default)s"
    )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    """What the command line says about the source; options that a source lacks have their defaults."""
    given = vars(arguments)
    return Options(
        task=arguments.task,
        workers=arguments.workers,
        keep_empty=given.get("keep_empty", False),
        register=given.get("register", False),
        patterns=_pairs(given.get("pattern", ()), "--pattern", (*TASKS[arguments.task].modalities, "label")),
        label_values=None if given.get("label_values") is None else tuple(given["label_values"]),
        series=_series(given.get("series", ()), arguments.task),
        structure=None if given.get("structure") is None else tuple(given["structure"]),
        accept=tuple(given.get("accept", ())),
    )


def _run(arguments: argparse.Namespace) -> dict[str, int]:
    from scripts.pictures import draw_case  # matplotlib is slow to import, and --help and --list do without

    if arguments.workers < 1:
        raise ValueError(f"--workers is {arguments.workers}, expected 1 or more")
    if arguments.source == "phantom":
        return prepare_phantoms(
            arguments.output,
            arguments.task,
            {name: getattr(arguments, name) for name in SECTIONS},
            seed=arguments.seed,
            size=arguments.size,
            without_tumor=arguments.without_tumor,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            draw=draw_case,
        )
    given = vars(arguments)
    return prepare_source(
        arguments.source,
        arguments.input,
        arguments.output,
        _options(arguments),
        split=given.get("split"),
        fractions=given.get("fractions", FRACTIONS),
        folds=given.get("folds", 0),
        seed=given.get("seed", 0),
        overwrite=arguments.overwrite,
        draw=draw_case,
    )


def _list(arguments: argparse.Namespace) -> None:
    """Write what was found to standard output, a line per case."""
    found = find_source(arguments.source, arguments.input, _options(arguments))
    for job in [*found.jobs, *found.scans]:
        files = {file for paths in job.files.values() for file in paths}
        sys.stdout.write(f"{job.case}: patient {job.patient}, cohort {job.cohort}, {len(files)} files\n")
    for problem in found.problems:
        sys.stdout.write("{}: {}: found {}; expected {}\n".format(*problem.row))
    cases = len({problem.case for problem in found.problems})
    sys.stdout.write(f"{len(found.jobs) + len(found.scans)} cases, {cases} left out\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 1 after a one-line error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if getattr(arguments, "list", False):
            _list(arguments)
            return 0
        if arguments.output is None:
            parser.error("--output DIR is needed")
        counts = _run(arguments)
        if arguments.strict and counts["excluded"]:
            raise ValueError(f"--strict: {counts['excluded']} cases are left out; excluded.csv says why")
    except (ValueError, OSError, RuntimeError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on where it was, finished cases are kept")
        return 130
    written = arguments.output / "datalist.json" if "training" in counts else arguments.output
    sys.stdout.write(f"{written}: {', '.join(f'{k} {v}' for k, v in counts.items())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
