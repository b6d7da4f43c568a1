"""The paper's own results, to stand beside ours in a report and never among them.

Wu et al., Neurocomputing 544 (2023) 126295, doi 10.1016/j.neucom.2023.126295, Tables 4 and 7. Other patients, other
training, nothing measured here. The numbers stand as printed, so that they can be read against the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CITATION = "Wu et al., Neurocomputing 544 (2023) 126295"

Scores = tuple[float, float, float, float, float, float]  # mean and standard deviation: Dice (%), ASSD, HD95 (mm)


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper: its number, what it was measured on, and a row of scores per method."""

    number: int
    data: str
    scores: Mapping[str, Scores]


PUBLISHED = {
    "glioma": PublishedTable(
        4,
        "74 test patients of BraTS 2020, cropped around the true tumor",
        {
            "pix2pix": (84.67, 7.93, 2.26, 2.09, 9.12, 11.97),
            "pgan": (85.79, 7.73, 1.90, 1.29, 7.21, 7.53),
            "pscgan": (86.45, 8.04, 1.99, 1.59, 8.62, 9.62),
            "wang2020": (83.77, 8.48, 2.41, 1.70, 9.97, 11.26),
            "uagan": (86.27, 8.10, 1.96, 1.37, 8.04, 8.47),
            "source_only": (84.54, 9.62, 2.32, 2.12, 10.75, 15.86),
            "real_target": (87.49, 8.51, 1.57, 1.71, 5.69, 4.62),
            "tissnet": (87.55, 7.62, 1.53, 0.85, 5.67, 4.92),
            "upper_bound": (88.65, 10.01, 1.50, 1.89, 5.54, 4.69),
        },
    ),
    "vs": PublishedTable(
        7,
        "49 test patients of VS-SEG, cropped around the true tumor",
        {
            "pix2pix": (83.75, 15.00, 0.78, 0.43, 2.60, 2.37),
            "pgan": (82.90, 12.31, 1.19, 1.09, 2.99, 5.52),
            "pscgan": (84.65, 10.07, 0.65, 0.39, 1.79, 0.87),
            "wang2020": (85.89, 6.50, 0.53, 0.14, 1.54, 0.59),
            "uagan": (87.30, 8.65, 0.50, 0.43, 1.65, 0.62),
            "source_only": (86.00, 14.79, 0.71, 0.53, 1.96, 1.42),
            "real_target": (92.80, 3.83, 0.31, 0.13, 1.09, 0.24),
            "tissnet": (89.46, 5.49, 0.42, 0.15, 1.31, 0.59),
        },
    ),
}


def published_results(task: str, folder: str) -> dict[str, tuple[float, float]]:
    """Return the paper's results for the method that a run's folder is named after: `tissnet` or `<task>_tissnet`.

    Any other name, also one that only begins or ends like a method (`strong_source_only`, `tissnet_short`), is another
    experiment and has no published result.

    Returns:
        mean and standard deviation for each metric of per_case.csv, Dice as a fraction; {} if there are none.
    """
    scores = PUBLISHED[task].scores.get(folder.removeprefix(f"{task}_"))
    if scores is None:
        return {}
    dice, dice_std, assd, assd_std, hd95, hd95_std = scores
    return {"dice": (dice / 100, dice_std / 100), "assd_mm": (assd, assd_std), "hd95_mm": (hd95, hd95_std)}
