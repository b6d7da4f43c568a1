"""Writes bundle/docs/refused.md: every made input that is refused, by the entry point that refuses it, and the answer.

    python tests/benchmarks/refused.py > bundle/docs/refused.md

The inputs are those of `made/refused_inputs.py` and `made/refusals.py`. Each goes through its entry point;
the answer is the sentence that a user gets. `test_refused.py` and `test_refused_inputs.py` compare each line.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / folder) for folder in ("bundle", "tests")]

from made.refusals import CASES, Refused, refuse  # noqa: E402
from made.refused_inputs import ROWS, Row, answer_to  # noqa: E402

PREPARE = {"dicom": "scripts.prepare dicom", "vs_seg": "scripts.prepare vs_seg, DICOM as downloaded"} | {
    source: f"scripts.prepare {source}" for source in ("nifti", "brats", "msd")
}
HEAD = """<!-- Generated: python tests/benchmarks/refused.py > bundle/docs/refused.md. Rows: tests/made. -->
# What is refused, and in which words

Each input below was made and given to the entry point it stands under. The answer is what was printed;
folders are left out. Inputs of a cohort cost their own case alone. What is accepted, and why each check is
there: [data.md](data.md#where-a-scan-lies).
"""


def line_of(made: str, answer: str) -> str:
    """A row of the table, in Markdown."""
    answer = re.sub(r"(.)\1{20,}", r"\1\1\1...", " ".join(answer.split())).replace("|", "\\|").replace("<", "&lt;")
    return f"| {made} | {answer} |"


def line_of_case(refused: Refused, rows: list[dict[str, str]], folder: Path) -> str:
    """The same of a case that is left out, from its rows of excluded.csv."""
    (row, *_) = (row for row in rows if (row["case"], row["check"]) == (refused.case, refused.check))
    answer = f"{refused.check}: found {row['found']}; expected {row['expected']}"
    return line_of(refused.made, answer.replace(f"{folder}/in/", "").replace(f"{folder}/", ""))


def _row(row: Row) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return line_of(row.made, answer_to(row, Path(folder)))


def _case(refused: Refused) -> str:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return line_of_case(refused, refuse(refused, Path(folder))[1], Path(folder))


def main() -> None:
    logging.disable(logging.INFO)
    logging.getLogger("scripts").addHandler(logging.NullHandler())
    logging.getLogger("scripts").propagate = False
    warnings.simplefilter("ignore")
    sections: dict[str, list[str]] = {}
    for row in ROWS:
        sections.setdefault(row.entry, []).append(_row(row))
    for refused in CASES:
        sections.setdefault(PREPARE[refused.source], []).append(_case(refused))
    print(HEAD)
    print(f"{sum(map(len, sections.values()))} inputs.")
    for title, lines in sections.items():
        print(f"\n## {title}\n\n| input | answer |\n|---|---|")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
