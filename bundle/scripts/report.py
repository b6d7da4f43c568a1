"""per_case.csv of one or more runs -> report.md, summary.csv, differences.csv and pictures.

    python -m scripts.report RUN [RUN ...] --output DIR [--prediction y_f] [--protocol full_scan] [--paper glioma|vs]
        [--figures N|all|none]

Reads only `<run>/per_case.csv` and, for the pictures of cases, `<run>/predictions.json`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.evaluation.paper_results import PUBLISHED
from scripts.evaluation.per_case import PREDICTIONS, PROTOCOLS
from scripts.evaluation.tables import make_report


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a wrong file or value ends it with one line that says what to do."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description="Tables and pictures of runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="has per_case.csv; the first is the baseline")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for tables and pictures")
    parser.add_argument("--prediction", default="y_f", choices=PREDICTIONS)
    parser.add_argument("--protocol", default="full_scan", choices=PROTOCOLS)
    parser.add_argument(
        "--paper",
        choices=list(PUBLISHED),
        help="put the paper's results beside ours, for runs named after a method (tissnet or <task>_tissnet)",
    )
    parser.add_argument(
        "--figures",
        default=None,
        type=_figure_count,
        metavar="N|all|none",
        help="pictures of N cases per run, from worst to best Dice (default: all)",
    )
    args = parser.parse_args(argv)
    try:
        tables = make_report(**vars(args))
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(tables + "\n")


def _figure_count(text: str) -> int | None:
    """Read --figures: a number of cases, 0 for none, None for all."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number of cases, all or none")
    return int(text)


if __name__ == "__main__":
    main()
