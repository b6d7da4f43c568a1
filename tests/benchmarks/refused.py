"""What is told about every made case that is left out: a table of check, case and message, in Markdown.

    python tests/benchmarks/refused.py > refused.md

The cases are those of `tests/made/refusals.py`, prepared by the command itself; the message is the row of
excluded.csv.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("bundle", "tests")]

from made.refusals import CASES, refuse  # noqa: E402


def main() -> None:
    logging.disable()
    print("| check | made case | source | message |\n|---|---|---|---|")
    for refused in CASES:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            _, rows = refuse(refused, Path(folder))
        (row, *_) = (row for row in rows if (row["case"], row["check"]) == (refused.case, refused.check))
        message = f"found {row['found']}; expected {row['expected']}".replace(f"{folder}/", "").replace("|", "\\|")
        print(f"| {refused.check} | {refused.made} | {refused.source} | {message} |")


if __name__ == "__main__":
    main()
