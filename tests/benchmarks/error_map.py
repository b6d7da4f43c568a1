"""Does the error map tell where to look twice? Asks the files of an evaluated run, case by case.

    python tests/benchmarks/error_map.py bundle/runs/released [--protocol paper_crop]

For every case: Dice of the fine and of the coarse mask (from per_case.csv); the error map's mean where the fine mask is
right and where it is wrong, within 5 mm of its border on either side, where most errors lie; and the share of pairs of
a wrong and a right voxel in which the wrong one has the higher value (0.5 is chance, 1 is perfect; the area under the
ROC curve), over that border and over the inside of the fine mask. A map that marks the whole mask alike gives 0.5
inside. A case without a mask or without a mistake has no value, and is told. Draws no picture (scripts.report does).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt
from scipy.stats import mannwhitneyu

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.evaluation.per_case import PROTOCOLS, read_per_case  # noqa: E402

BORDER_MM = 5.0
COLUMNS = ("Dice of y_f", "Dice of y_c", "y_e where right", "y_e where wrong", "found at the border", "found inside")


def found(error: np.ndarray, wrong: np.ndarray, where: np.ndarray) -> float:
    """Share of pairs of a wrong and a right voxel of `where` in which the wrong one has the higher value."""
    marked, unmarked = error[where & wrong], error[where & ~wrong]
    if not len(marked) or not len(unmarked):
        return math.nan
    return float(mannwhitneyu(marked, unmarked).statistic / (len(marked) * len(unmarked)))


def measure(truth: np.ndarray, mask: np.ndarray, error: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    """The last four columns for one case: boolean masks and the map (X, Y, Z) on one grid, spacing in mm."""
    if not mask.any():
        return [math.nan] * 4
    inside = distance_transform_edt(mask, sampling=spacing)
    outside = distance_transform_edt(~mask, sampling=spacing)
    border = np.maximum(inside, outside) <= BORDER_MM
    wrong = mask != truth
    means = [float(error[border & part].mean()) if (border & part).any() else math.nan for part in (~wrong, wrong)]
    return [*means, found(error, wrong, border), found(error, wrong, mask)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder with per_case.csv and predictions.json")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0])
    arguments = parser.parse_args()
    rows = read_per_case(arguments.run / "per_case.csv")
    dice = {(row["case"], row["prediction"]): row["dice"] for row in rows if row["protocol"] == arguments.protocol}
    entries = json.loads((arguments.run / "predictions.json").read_text(encoding="utf-8"))
    entries = [entry for entry in entries if entry["protocol"] == arguments.protocol]
    if not entries or any(not entry["error"] for entry in entries):
        sys.exit(f"{arguments.run}: found no error maps of {arguments.protocol}; expected the run of a cascade.")

    print("| case | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    table = []
    for entry in entries:
        truth, mask, error = (nib.load(entry[key]) for key in ("label", "pred", "error"))
        values = measure(
            np.asarray(truth.dataobj) > 0,
            np.asarray(mask.dataobj) > 0,
            np.asarray(error.dataobj),
            tuple(float(size) for size in mask.header.get_zooms()[:3]),
        )
        table.append([dice[entry["case"], "y_f"], dice[entry["case"], "y_c"], *values])
        print(f"| {entry['case']} | " + " | ".join(f"{value:.2f}" for value in table[-1]) + " |", flush=True)
    cells = []
    for known in (column.dropna() for _, column in pd.DataFrame(table).items()):
        missing = f" ({len(table) - len(known)} missing)" if len(known) < len(table) else ""
        spread = known.std() if len(known) > 1 else 0.0
        cells.append(f"{known.mean():.2f} +- {spread:.2f}{missing}" if len(known) else "all missing")
    print("| mean +- std | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
