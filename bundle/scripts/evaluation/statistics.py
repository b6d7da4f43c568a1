"""Statistics of runs over the same cases: means with intervals, paired tests with Holm's correction, failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scripts.evaluation.per_case import NUMBER_COLUMNS, read_per_case

COMPARED = ("dice", "assd_mm", "hd95_mm")
VOLUME_ERROR, RELATIVE_VOLUME_ERROR = "volume_error_mm3", "volume_error_relative"
CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
SAME_DIFFERENCE = 1e-12  # differences that vary less than this are one number; a t-test has no meaning there

SEGMENTED, MISSED, FALSE_POSITIVE = "tumor segmented", "tumor missed", "false positive"
NO_TUMOR, UNKNOWN = "no tumor, none segmented", "volumes unknown"


def load_run(run: Path, *, prediction: str, protocol: str) -> pd.DataFrame:
    """Return one run's numbers, a row per case and a column per metric, with the errors of volume added.

    Args:
        run: folder that holds per_case.csv.
        prediction: which rows, y_f, y_c, y_r or mean.
        protocol: which rows, full_scan or paper_crop.

    Raises:
        FileNotFoundError: no per_case.csv.
        ValueError: a malformed file, or no row of this prediction and protocol.
    """
    path = run / "per_case.csv"
    frame = pd.DataFrame(read_per_case(path))
    chosen = frame[(frame["prediction"] == prediction) & (frame["protocol"] == protocol)]
    if chosen.empty:
        found = "; ".join(f"{a} {b}" for a, b in sorted(set(zip(frame["protocol"], frame["prediction"], strict=True))))
        raise ValueError(
            f"{path}: found {found}; expected rows of {protocol} {prediction}. Choose others with --protocol and "
            "--prediction, or evaluate again."
        )
    return add_volume_errors(chosen.set_index("case")[list(NUMBER_COLUMNS)])


def add_volume_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Add |volume - true volume| in mm3, and that divided by the true volume, missing where there is no tumor."""
    truth = frame["volume_truth_mm3"]
    error = (frame["volume_mm3"] - truth).abs()
    return frame.assign(**{VOLUME_ERROR: error, RELATIVE_VOLUME_ERROR: error / truth.where(truth > 0)})


def keep_common(runs: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, list[str]]]:
    """Keep the cases that every run has, in the order of the first run.

    Returns:
        the runs on their common cases, and for each run the cases that were left out.

    Raises:
        ValueError: the runs have no case in common.
    """
    frames = list(runs.values())
    common = [case for case in frames[0].index if all(case in frame.index for frame in frames)]
    if not common:
        found = "; ".join(f"{name}: {', '.join(frame.index[:3])}, ..." for name, frame in runs.items())
        raise ValueError(f"no case is in every run: found {found}. Compare runs that were evaluated on the same split.")
    left_out = {name: [case for case in frame.index if case not in common] for name, frame in runs.items()}
    return {name: frame.loc[common] for name, frame in runs.items()}, left_out


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute mean, standard deviation (n - 1), interval of the mean, cases and missing values, a row per metric.

    All but the counts are over the values that are there; the deviation of one value is missing, not 0.
    """
    intervals = np.array([mean_interval(frame[metric].dropna()) for metric in frame])
    return pd.DataFrame(
        {
            "mean": frame.mean(),
            "std": frame.std(),
            "low": intervals[:, 0],
            "high": intervals[:, 1],
            "cases": len(frame),
            "missing": frame.isna().sum(),
        }
    ).rename_axis("metric")


def mean_interval(values: Sequence[float] | pd.Series | np.ndarray) -> tuple[float, float]:
    """Compute the interval of a mean by the percentile bootstrap (Efron 1979), seeded; missing below two values.

    Percentiles rather than BCa: both cover a mean equally (of 1000 samples of n normal values, some 84 % at n = 5,
    91 % at n = 10, 92 % at n = 50, for a nominal 95 %), and BCa is undefined for some samples of a few values.
    """
    from scipy import stats  # slow to import, and --help does without

    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2:
        return np.nan, np.nan
    result = stats.bootstrap(
        (numbers,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def compare(first: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Compute the difference other - first over the same cases, for Dice, ASSD and HD95.

    Cases where one of the two values is missing are left out and counted. The interval is `mean_interval` of the
    differences; t and p are of the two-sided paired t-test. With fewer than two pairs all of these are missing, and t
    and p also where all differences are equal.

    Returns:
        a row per metric: pairs, left_out, difference, low, high, t, p.
    """
    from scipy import stats  # as in mean_interval

    rows = {}
    for metric in COMPARED:
        pairs = pd.DataFrame({"first": first[metric], "other": other[metric]}).dropna()
        difference = (pairs["other"] - pairs["first"]).to_numpy()
        t = p = np.nan
        if len(difference) > 1 and np.ptp(difference) > SAME_DIFFERENCE:
            t, p = stats.ttest_rel(pairs["other"], pairs["first"])
        mean = difference.mean() if len(difference) else np.nan
        rows[metric] = [len(difference), len(first) - len(difference), mean, *mean_interval(difference), t, p]
    columns = ["pairs", "left_out", "difference", "low", "high", "t", "p"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("metric")
    return frame.astype({"pairs": int, "left_out": int})


def compare_to_first(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Compare every run with the first one; p_holm corrects p over all tests of all runs and metrics together.

    Returns:
        a row per (run, metric): the columns of `compare`, and p_holm.
    """
    baseline, *others = runs.items()
    table = pd.concat({name: compare(baseline[1], frame) for name, frame in others}, names=["run"])
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Correct p-values for the number of tests, so that one false finding among all is as rare as one alone was meant.

    Of m p-values in ascending order the i-th becomes max over j <= i of min(1, (m - j + 1) p_j). Holm, A simple
    sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979) 65-70. A missing p is
    no test: it stays missing and does not count in m.
    """
    raw = np.asarray(p, dtype=float)
    corrected = np.full(raw.shape, np.nan)
    order = np.argsort(raw)[: np.count_nonzero(~np.isnan(raw))]  # NaN are sorted to the end
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * raw[order]), 1)
    return corrected


def outcomes(frame: pd.DataFrame) -> pd.Series:
    """Say for each case which of the two masks is empty, from their volumes: one of the words above.

    Dice hides these kinds (0 for both failures), and distances leave them out, so that a run which finds nothing in
    the hard cases would look the better for it.
    """
    truth, found = frame["volume_truth_mm3"], frame["volume_mm3"]
    kinds = {
        UNKNOWN: truth.isna() | found.isna(),
        SEGMENTED: (truth > 0) & (found > 0),
        MISSED: truth > 0,
        FALSE_POSITIVE: found > 0,
    }
    return pd.Series(np.select(list(kinds.values()), list(kinds), NO_TUMOR), index=frame.index, dtype=object)
