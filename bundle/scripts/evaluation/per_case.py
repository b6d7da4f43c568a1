"""per_case.csv: its columns, and how the file is checked, written and read.

One row per (case, protocol, prediction); a missing value is an empty cell. Evaluation writes this file, the report
reads it. No torch and no pandas here (the report must start fast), no computing of metrics (metrics.py) and no
statistics (comparison.py).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.files import whole_file

CSV_COLUMNS = (
    "case",
    "protocol",
    "prediction",
    "dice",
    "assd_mm",
    "hd95_mm",
    "psnr_global",
    "psnr_local",
    "ssim_global",
    "ssim_local",
    "perceptibility_dice",
    "perceptibility_assd_mm",
    "perceptibility_hd95_mm",
    "volume_mm3",
    "volume_truth_mm3",
    "seconds",
)
KEY_COLUMNS = CSV_COLUMNS[:3]
NUMBER_COLUMNS = CSV_COLUMNS[3:]
PROTOCOLS = ("full_scan", "paper_crop")
PREDICTIONS = ("y_f", "y_c", "y_r", "mean")  # mean: of y_f and y_r

_DICE_COLUMNS = ("dice", "perceptibility_dice")
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
    checked = _check(rows, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in checked:
            writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})


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
        rows = _check(reader, path)
    if not rows:
        raise ValueError(f"{path}: found a header and no row; expected one row per case. Evaluate the run again.")
    return rows


def _check(rows: Iterable[Mapping[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Return complete, typed rows in column order, or say what is wrong with which row."""
    checked: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        where = f"{path}: case {row.get('case')!r}"
        unknown = [str(column) for column in row if column not in CSV_COLUMNS]
        if unknown:
            raise ValueError(f"{where}: found {', '.join(unknown)}; expected only {', '.join(CSV_COLUMNS)}.")
        key = tuple(str(row.get(column) or "") for column in KEY_COLUMNS)
        if not key[0]:
            raise ValueError(f"{where}: found no case name in row {len(checked) + 1}; every row needs one.")
        for column, value, allowed in (("protocol", key[1], PROTOCOLS), ("prediction", key[2], PREDICTIONS)):
            if value not in allowed:
                raise ValueError(f"{where}: found {column} {value!r}; expected one of {', '.join(allowed)}.")
        if key in seen:
            raise ValueError(f"{where}: found {key[1]}, {key[2]} twice; expected one row each. Remove one of the two.")
        seen.add(key)
        numbers = {column: _number(row.get(column), column, where) for column in NUMBER_COLUMNS}
        checked.append(dict(zip(KEY_COLUMNS, key, strict=True)) | numbers)
    return checked


def _number(value: Any, column: str, where: str) -> float:
    """Convert a cell to a float, NaN if it is empty, and check its range."""
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: found {column} = {value!r}; expected a number or an empty cell.") from error
    if math.isnan(number):
        return math.nan
    low = -math.inf if column in _SIGNED_COLUMNS else 0.0
    high = 1.0 if column in _DICE_COLUMNS else math.inf
    if math.isinf(number) or not low <= number <= high:
        raise ValueError(
            f"{where}: found {column} = {number:g}; expected a finite number from {low:g} to {high:g}, "
            "or an empty cell where it is not defined."
        )
    return number
