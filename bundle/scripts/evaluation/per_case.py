"""per_case.csv: its columns, and how the file is checked, written and read.

One row per (case, protocol, prediction); a missing value is an empty cell.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.files import whole_file

KEY_COLUMNS = ("case", "protocol", "prediction")
NUMBER_COLUMNS = (
    *("dice", "assd_mm", "hd95_mm", "psnr_global", "psnr_local", "ssim_global", "ssim_local"),
    *("perceptibility_dice", "perceptibility_assd_mm", "perceptibility_hd95_mm"),
    *("error_auroc", "entropy_auroc", "error_auroc_border", "entropy_auroc_border"),
    *("volume_mm3", "volume_truth_mm3", "seconds"),
)
CSV_COLUMNS = KEY_COLUMNS + NUMBER_COLUMNS
PROTOCOLS = ("full_scan", "paper_crop")
PREDICTIONS = ("y_f", "y_c", "y_r", "mean")  # mean: of y_f and y_r

_AT_MOST_1 = tuple(name for name in NUMBER_COLUMNS if name.endswith("dice") or "auroc" in name)
_SIGNED_COLUMNS = ("psnr_global", "psnr_local", "ssim_global", "ssim_local")  # every other number is 0 or more


def write_per_case(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write per_case.csv after checking every row; an interrupted write leaves no half file behind.

    Args:
        path: the file to write; missing folders are made.
        rows: one mapping per row. case, protocol and prediction are required; a number that is absent, None or NaN
            becomes an empty cell.

    Raises:
        ValueError: an unknown column, protocol or prediction, a number out of its range, or the same
            (case, protocol, prediction) twice.
    """
    path = Path(path)
    table = _checked(pd.DataFrame(list(rows), dtype=object), path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def read_per_case(path: str | Path) -> list[dict[str, Any]]:
    """Read and check per_case.csv: text for the key columns, floats for the others, NaN for an empty cell.

    Args:
        path: a file that `write_per_case` wrote, or one with the same columns in any order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the columns or a value are not those of per_case.csv, or there is no row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the per_case.csv of a run. Run the evaluation first.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restkey="(more cells than columns)", restval="(no cell)")
        if sorted(reader.fieldnames or ()) != sorted(CSV_COLUMNS):
            raise ValueError(
                f"{path}: found the columns {', '.join(reader.fieldnames or ('none',))}; "
                f"expected {', '.join(CSV_COLUMNS)}. Evaluate the run again with this version."
            )
        table = pd.DataFrame(reader, dtype=object)
    if table.empty:
        raise ValueError(f"{path}: found a header and no row; expected one row per case. Evaluate the run again.")
    rows: list[Any] = _checked(table, path).to_dict("records")
    return rows


def _checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return complete, typed rows in column order, or say what is wrong with which row."""

    def refuse(rows: pd.Series, message: str) -> None:
        """Raise the message, filled in with the first of these rows, if there is one."""
        for number, row in table[rows].iterrows():
            raise ValueError(f"{path}: case {row.get('case')!r}: {message.format(row=int(str(number)) + 1, **row)}")

    unknown = list(table.columns.difference(list(CSV_COLUMNS)))
    refuse(table[unknown].notna().any(axis=1), f"found {', '.join(unknown)}; expected only {', '.join(CSV_COLUMNS)}.")
    table = table.reindex(columns=list(CSV_COLUMNS)).fillna("")
    refuse(table["case"] == "", "found no case name in row {row}; every row needs one.")
    for column, allowed in (("protocol", PROTOCOLS), ("prediction", PREDICTIONS)):
        refuse(~table[column].isin(allowed), f"found {column} {{{column}!r}}; expected one of {', '.join(allowed)}.")
    refuse(
        table.duplicated(list(KEY_COLUMNS)),
        "found {protocol}, {prediction} twice; expected one row each. Remove one of the two.",
    )
    for column in NUMBER_COLUMNS:
        given = table[column].replace(["", "nan"], math.nan)
        number = pd.to_numeric(given, errors="coerce")
        refuse(number.isna() & given.notna(), f"found {column} = {{{column}!r}}; expected a number or an empty cell.")
        low = -math.inf if column in _SIGNED_COLUMNS else 0.0
        high = 1.0 if column in _AT_MOST_1 else math.inf
        refuse(
            number.notna() & ~(number.between(low, high) & (number.abs() < math.inf)),
            f"found {column} = {{{column}}}; expected a finite number from {low:g} to {high:g}, "
            "or an empty cell where it is not defined.",
        )
        table[column] = given.astype(float)  # rounds text as Python does, to_numeric does not
    return table
