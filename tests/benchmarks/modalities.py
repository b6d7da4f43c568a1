"""How often `scripts.data.modality` doubts a right scan and misses a wrong one, on every real scan at hand.

    python tests/benchmarks/modalities.py [--fit]

`TISSNET_DATA` names the folder of real data: glioma/ (BraTS naming), msd_brats_001/ and heads/ (whole heads). Each rule
is counted by patient: one in whom it fires on a right scan is a false alarm, one in whom it does not on a wrong one is
a miss, with the exact (Clopper-Pearson) 95 % interval. "As shipped" is the model in the code, which saw the skull-
stripped patients. "Left out" are model and threshold from all other patients. The heads are in no model.
`--fit` prints the model for the code. Some 90 seconds of one core.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.data import modality
from scripts.data.modality import LOOK_OF, LOOKS, Look, contrast, likelihood, look, swap_score
from scripts.data.volume import NiftiVolume

FILES = {"T1": "t1", "ceT1": "t1ce", "T2": "t2", "FLAIR": "flair"}
CHANNELS = {"FLAIR": 0, "T1": 1, "ceT1": 2, "T2": 3}
OTHERS = ("T1", "ceT1", "FLAIR")
SHRINKAGE, TRIMMED = 0.1, 0.05
NOTED_AT_MOST = 0.05  # of the right scans of the other patients, where the margin of a note is chosen
STEP = 0.5  # between the margins tried
DIMMED = (0.1, 0.0, -0.3, -1.0)  # what is left of the brightness of fluid and edema above that of tissue

Patient = dict[str, Look]


def volume_of(path: Path) -> tuple[np.ndarray, list[float]]:
    volume = NiftiVolume(path)
    return volume.voxels(), [float(size) for size in np.linalg.norm(volume.grid()[1][:3, :3], axis=0)]


def patients_of(folder: Path) -> tuple[dict[str, dict[str, Path]], dict[str, dict[str, Path]]]:
    """Files of each skull-stripped patient, and of each study of a whole head."""
    stripped = {
        case.name: {name: case / f"{case.name}_{file}.nii.gz" for name, file in FILES.items()}
        for case in sorted((folder / "glioma").iterdir())
        if case.is_dir()
    }
    decathlon = folder / "msd_brats_001"
    stripped["BRATS_001"] = {name: decathlon / f"BRATS_001_{n:04d}.nii.gz" for name, n in CHANNELS.items()}
    heads: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "heads").glob("*.nii.gz")):
        study, _, name = path.name.removesuffix(".nii.gz").rpartition("_")
        heads.setdefault(study, {})[name] = path
    return stripped, heads


def looks_of(files: Mapping[str, Path]) -> tuple[Patient, float | None]:
    """The looks of a patient's scans, and the contrast of ceT1 over T1."""
    scans = {name: volume_of(path) for name, path in files.items()}
    looks = {}
    for name, (voxels, spacing) in scans.items():
        seen = look(voxels, spacing=spacing)
        if seen is None:
            raise ValueError(f"{files[name]}: too little tissue to tell")
        looks[name] = seen
    if not {"T1", "ceT1"} <= scans.keys():
        return looks, None
    return looks, contrast(scans["ceT1"][0], scans["T1"][0], spacing=scans["T1"][1])


def fit(patients: Iterable[Patient]) -> tuple[np.ndarray, np.ndarray]:
    """Medians of each look, and the inverse of the mean of their covariances, each without its farthest scans."""
    rows: dict[str, list] = {name: [] for name in LOOKS}
    for patient in patients:
        for name, seen in patient.items():
            rows[LOOK_OF[name]].append(seen.features)
    centers = np.array([np.median(rows[name], axis=0) for name in LOOKS])
    covariance = np.zeros((3, 3))
    for name, center in zip(LOOKS, centers, strict=True):
        away = np.array(rows[name]) - center
        far = ((away / np.median(abs(away), axis=0)) ** 2).sum(axis=1)
        near = away[far <= np.quantile(far, 1 - TRIMMED)]
        covariance += near.T @ near / len(near) / len(LOOKS)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))
    return centers, np.linalg.inv(covariance)


def judged(patient: Patient, model: tuple[np.ndarray, np.ndarray]) -> Patient:
    """The same scans under another model."""
    centers, precision = model
    return {
        name: Look(seen.features, likelihood(seen.features, centers=centers, precision=precision), seen.stripped)
        for name, seen in patient.items()
    }


class Rule:
    """One rule: its score of right and of wrong scans, which fires below a threshold.

    Args:
        name: what is done where it fires.
        right, wrong: scores of a patient's scans, by what was done to them.
        shipped: the threshold.
        choose: threshold from the right scores of other patients.
    """

    def __init__(
        self,
        name: str,
        right: Callable[[Patient], list[float]],
        wrong: Mapping[str, Callable[[Patient], list[float]]],
        shipped: float,
        choose: Callable[[Sequence[float]], float],
    ) -> None:
        self.name, self.right, self.wrong, self.shipped, self.choose = name, right, wrong, shipped, choose


def choose_swapped(right: Sequence[float]) -> float:
    """The highest threshold, at most 0, that doubts none."""
    return min(0.0, *right)


def choose_noted(right: Sequence[float]) -> float:
    """The highest of 0, -0.5, -1, ... that doubts few."""
    threshold = 0.0
    while np.mean(np.array(right) < threshold) > NOTED_AT_MOST:
        threshold -= STEP
    return threshold


def _given(name: str, place: str) -> Callable[[Patient], list[float]]:
    """Score of one scan in a place: how much it looks like T2 in T2's place, or like none in another one."""

    def score(patient: Patient) -> list[float]:
        if name not in patient:
            return []
        return [patient[name].margin("T2") * (1 if place == "T2" else -1)]

    return score


def _pair(name: str, swapped: bool) -> Callable[[Patient], list[float]]:
    def score(patient: Patient) -> list[float]:
        if not {"T2", name} <= patient.keys():
            return []
        t2, other = (patient[name], patient["T2"]) if swapped else (patient["T2"], patient[name])
        return [swap_score(t2, other, name)]

    return score


def _all(scores: Iterable[Callable[[Patient], list[float]]]) -> Callable[[Patient], list[float]]:
    scores = list(scores)
    return lambda patient: [each for score in scores for each in score(patient)]


RULES = [
    Rule(
        "T2 and another look swapped: refused by prepare where skull-stripped, else noted",
        _all(_pair(name, False) for name in OTHERS),
        {f"T2 and {name} swapped": _pair(name, True) for name in OTHERS},
        -modality.LEAST_SWAPPED,
        choose_swapped,
    ),
    Rule(
        "T2 does not look like T2: noted",
        _given("T2", "T2"),
        {f"{name} as T2": _given(name, "T2") for name in OTHERS},
        -modality.LEAST_NOTED,
        choose_noted,
    ),
    Rule(
        "another looks like T2: noted",
        _all(_given(name, name) for name in OTHERS),
        {f"T2 as {name}": _given("T2", name) for name in OTHERS},
        -modality.LEAST_NOTED,
        choose_noted,
    ),
]


def interval(count: int, total: int) -> str:
    """Count, total and exact 95 % interval of the share."""
    if not total:
        return "-"
    exact = binomtest(count, total).proportion_ci(0.95, method="exact")
    return f"{count} of {total} ({100 * exact.low:.1f} to {100 * exact.high:.1f} %)"


def counted(fires: Sequence[bool]) -> str:
    return interval(sum(fires), len(fires))


def table(rows: Sequence[Sequence[str]]) -> None:
    for index, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if index == 0:
            print("|" + "---|" * len(row))
    print()


def measure(patients: Mapping[str, Patient], heads: Mapping[str, Patient]) -> None:
    """The table of `RULES`."""
    models = {left: fit(p for name, p in patients.items() if name != left) for left in patients}
    shipped = (modality.CENTERS, modality.PRECISION)
    rows = [["rule", "scans", "as shipped", "left out", "threshold left out", "heads, as shipped"]]
    for rule in RULES:
        thresholds = {
            left: rule.choose([s for n, p in patients.items() if n != left for s in rule.right(judged(p, model))])
            for left, model in models.items()
        }
        chosen = f"{min(thresholds.values()):.2f} to {max(thresholds.values()):.2f}"

        def fired(score: Callable, rule: Rule = rule, thresholds: Mapping[str, float] = thresholds) -> list[list[bool]]:
            def any_of(seen: Patient, threshold: float) -> list[bool]:
                return [any(s < threshold for s in score(seen))] if score(seen) else []

            return [
                [f for p in patients.values() for f in any_of(judged(p, shipped), rule.shipped)],
                [f for n, p in patients.items() for f in any_of(judged(p, models[n]), thresholds[n])],
                [f for p in heads.values() for f in any_of(judged(p, shipped), rule.shipped)],
            ]

        own, left, whole = fired(rule.right)
        rows.append([rule.name, "right: false alarms", counted(own), counted(left), chosen, counted(whole)])
        for what, score in rule.wrong.items():
            own, left, whole = ([not f for f in each] for each in fired(score))
            rows.append(["", f"{what}: missed", counted(own), counted(left), "", counted(whole)])
    table(rows)


def measure_contrast(scores: Mapping[str, float]) -> None:
    """T1 against ceT1, which has no model but a threshold."""
    values = np.array(list(scores.values()))
    left = np.array([min(modality.MOST_CONTRAST, np.delete(values, i).min()) for i in range(len(values))])
    rows = [["rule", "scans", "as shipped", "left out"]]
    rows.append(
        [
            "T1 and ceT1 look swapped: noted",
            "right: false alarms",
            counted(list(values < modality.MOST_CONTRAST)),
            counted(list(values < left)),
        ]
    )
    rows.append(
        [
            "",
            "T1 and ceT1 swapped: missed",
            counted(list(-values >= modality.MOST_CONTRAST)),
            counted(list(-values >= left)),
        ]
    )
    table(rows)


def measure_names(patients: Mapping[str, Patient], heads: Mapping[str, Patient]) -> None:
    """What is said that a scan in T2's place looks like, where it is noted: with models that left its patient out."""
    rows = [["given as T2", "said to be", "skull-stripped, left out", "heads"]]
    shipped = (modality.CENTERS, modality.PRECISION)
    models = {left: fit(p for name, p in patients.items() if name != left) for left in patients}
    for name in OTHERS:
        groups = [
            [judged(p, models[n])[name] for n, p in patients.items()],
            [judged(p, shipped)[name] for p in heads.values() if name in p],
        ]
        said: dict[str, list[int]] = {"itself": [0, 0], "another": [0, 0], "T1 or FLAIR": [0, 0], "nothing": [0, 0]}
        for column, group in enumerate(groups):
            for seen in group:
                margin = seen.margin("T1", "FLAIR") * (1 if LOOK_OF[name] == "T1" else -1)
                if seen.margin("T2") >= -modality.LEAST_NOTED:
                    key = "nothing"
                elif abs(margin) < modality.LEAST_NAMED:
                    key = "T1 or FLAIR"
                else:
                    key = "itself" if margin > 0 else "another"
                said[key][column] += 1
        rows += [[name, key, *map(str, counts)] for key, counts in said.items()]
    table(rows)


def dimmed(voxels: np.ndarray, left: float) -> np.ndarray:
    """A skull-stripped T2 in which fluid and edema keep that part of their brightness above tissue."""
    brain = voxels > 0
    tissue = 1.25 * float(np.median(voxels[brain]))
    dim = np.where(voxels > tissue, np.maximum(tissue + left * (voxels - tissue), 1), voxels)
    return np.where(brain, dim, 0).astype(np.float32)


def measure_dimmed(patients: Mapping[str, Patient], files: Mapping[str, Mapping[str, Path]]) -> None:
    """Right patients whose T2 has little bright fluid, or none."""
    rows = [["brightness of fluid and edema that is left", "refused as swapped", "T2 noted"]]
    for left in DIMMED:
        refused, noted = [], []
        for name, patient in patients.items():
            voxels, spacing = volume_of(files[name]["T2"])
            seen: Any = look(dimmed(voxels, left), spacing=spacing)
            looks = {**judged(patient, (modality.CENTERS, modality.PRECISION)), "T2": seen}
            refused.append(bool(modality.swapped_with(looks)))
            noted.append(seen.margin("T2") < -modality.LEAST_NOTED)
        rows.append([f"{left:g}", counted(refused), counted(noted)])
    table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="print the model for scripts/data/modality.py alone")
    arguments = parser.parse_args()
    if "TISSNET_DATA" not in os.environ:
        sys.exit("TISSNET_DATA names the folder of real data; it is not set")
    files, head_files = patients_of(Path(os.environ["TISSNET_DATA"]))
    found = {name: looks_of(own) for name, own in files.items()}
    patients = {name: looks for name, (looks, _) in found.items()}
    if arguments.fit:
        centers, precision = fit(patients.values())
        print(f"CENTERS = np.array({np.round(centers, 3).tolist()})")
        print(f"PRECISION = np.array({np.round(precision, 1).tolist()})")
        return
    heads = {name: looks_of(own)[0] for name, own in head_files.items()}
    stripped = sum(seen.stripped for patient in patients.values() for seen in patient.values())
    whole = sum(not seen.stripped for patient in heads.values() for seen in patient.values())
    print(f"{len(patients)} skull-stripped patients ({stripped} of {4 * len(patients)} scans known as such), ", end="")
    print(f"{len(heads)} studies of whole heads ({whole} of {sum(map(len, heads.values()))} scans)\n")
    measure(patients, heads)
    measure_contrast({name: score for name, (_, score) in found.items() if score is not None})
    measure_names(patients, heads)
    measure_dimmed(patients, files)


if __name__ == "__main__":
    main()
