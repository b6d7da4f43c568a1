"""Tests of every entry point on inputs that it refuses: the sentence, and that bundle/docs/refused.md has it.

The rows are in `made/refused_inputs.py`; what `scripts.prepare` leaves out is in `test_refused.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from made.refusals import CASES
from made.refused_inputs import ROWS, answer_to
from refused import line_of

DOCUMENT = Path(__file__).parents[2] / "bundle/docs/refused.md"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.entry[:9]}-{row.made}".replace(" ", "_"))
def test_refused_in_these_words(tmp_path, row):
    answer = answer_to(row, tmp_path)
    assert row.answer in answer
    assert line_of(row.made, answer) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_document_has_every_row_and_no_other():
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    made = [line.split(" | ")[0].removeprefix("| ") for line in lines if line != "| input | answer |"]
    assert sorted(made) == sorted([row.made for row in ROWS] + [refused.made for refused in CASES])
    assert len(made) >= 100
