"""Tests of statistics on small made runs: hand-computed values first, then relations, then small samples."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from scripts.evaluation.per_case import NUMBER_COLUMNS
from scripts.evaluation.statistics import (
    FALSE_POSITIVE,
    MISSED,
    NO_TUMOR,
    SEGMENTED,
    UNKNOWN,
    add_volume_errors,
    compare,
    compare_to_first,
    holm,
    mean_interval,
    outcomes,
    summarize,
)


def frame(**columns: list[float]) -> pd.DataFrame:
    """Make a run's numbers, a row per value."""
    length = len(next(iter(columns.values())))
    return pd.DataFrame(columns, index=[f"c{i}" for i in range(length)], dtype=float).reindex(columns=[*NUMBER_COLUMNS])


# Hand-computed values


def test_holm_by_hand() -> None:
    # Ascending 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 is 0.04, 0.06, 0.06, 0.04; the last is raised to the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert holm([0.03]) == pytest.approx([0.03])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    # A missing p is no member of the family: two tests, not three.
    assert holm([math.nan, 0.01, 0.04]) == pytest.approx([math.nan, 0.02, 0.04], nan_ok=True)
    assert np.isnan(holm([math.nan, math.nan])).all()
    assert len(holm([])) == 0


def test_bootstrap_interval_of_three_values_by_counting() -> None:
    # Of the 27 samples of 1, 2, 3 one has mean 1 and one mean 3, each 3.7 % > 2.5 %. Of 1, 1, 1, 1, 1 there is one.
    assert mean_interval([1, 2, 3]) == pytest.approx((1, 3))
    assert mean_interval([1, 1, 1, 1, 1]) == pytest.approx((1, 1))
    # Of 0, 0, 0, 10 the sum is 0 in 81 of 256 samples, 10 in 108, 20 in 54, 30 in 12 (4.7 %), 40 in 1 (0.4 %).
    assert mean_interval([0, 0, 0, 10]) == pytest.approx((0, 7.5))
    assert np.isnan(mean_interval([1.0])).all() and np.isnan(mean_interval([])).all()


def test_volume_errors_and_outcomes() -> None:
    truth, found = [100.0, 200.0, 0.0, 0.0, math.nan], [150.0, 0.0, 30.0, 0.0, 5.0]
    table = add_volume_errors(frame(volume_truth_mm3=truth, volume_mm3=found))
    np.testing.assert_allclose(table["volume_error_mm3"], [50, 200, 30, 0, math.nan])
    np.testing.assert_allclose(table["volume_error_relative"], [0.5, 1, math.nan, math.nan, math.nan])
    assert list(outcomes(table)) == [SEGMENTED, MISSED, FALSE_POSITIVE, NO_TUMOR, UNKNOWN]


# Relations and small samples


def test_compare_is_repeatable_and_antisymmetric() -> None:
    a, b = frame(dice=[0.7, 0.8, 0.9, 0.6]), frame(dice=[0.75, 0.7, 0.95, 0.8])
    there, again, back = compare(a, b), compare(a, b), compare(b, a)
    pd.testing.assert_frame_equal(there, again)
    assert there["difference"]["dice"] == -back["difference"]["dice"]
    assert there["p"]["dice"] == pytest.approx(back["p"]["dice"])
    assert there["low"]["dice"] == pytest.approx(-back["high"]["dice"])


def test_missing_values_leave_the_pair_out() -> None:
    result = compare(frame(hd95_mm=[1, math.nan, 3, 4]), frame(hd95_mm=[2, 2, math.nan, 4])).loc["hd95_mm"]
    assert (result["pairs"], result["left_out"], result["difference"]) == (2, 2, 0.5)
    nothing = compare(frame(hd95_mm=[math.nan]), frame(hd95_mm=[1])).loc["hd95_mm"]
    assert nothing["pairs"] == 0
    assert nothing[["difference", "low", "high", "p"]].isna().all()


def test_one_case_and_equal_differences_have_no_p() -> None:
    one = compare(frame(dice=[0.5]), frame(dice=[0.75])).loc["dice"]
    assert one["difference"] == 0.25
    assert one[["low", "high", "t", "p"]].isna().all()
    assert math.isnan(summarize(frame(dice=[0.5]))["std"]["dice"])
    equal = compare(frame(dice=[0.5, 0.6, 0.7]), frame(dice=[0.6, 0.7, 0.8]))
    assert math.isnan(equal["p"]["dice"])
    assert equal["low"]["dice"] == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(5))
def test_holm_lies_between_the_raw_p_and_bonferroni(seed: int) -> None:
    raw = np.random.default_rng(seed).random(12) ** 3
    corrected = holm(raw)
    order = np.argsort(raw)
    assert (np.diff(corrected[order]) >= 0).all()
    assert (corrected >= raw).all() and (corrected <= np.minimum(12 * raw, 1)).all()
    assert corrected.min() == pytest.approx(min(12 * raw.min(), 1))
    shuffled = np.random.default_rng(seed + 100).permutation(12)
    np.testing.assert_array_equal(holm(raw[shuffled]), corrected[shuffled])


def test_the_family_is_every_run_and_metric() -> None:
    base = frame(dice=[0.5, 0.6, 0.7], hd95_mm=[5, 6, 7])
    near, far = frame(dice=[0.5, 0.7, 0.9], hd95_mm=[4, 4, 6]), frame(dice=[0.6, 0.7, 0.8], hd95_mm=[1, 3, 2])
    table = compare_to_first({"base": base, "near": near, "far": far})
    assert list(table.index.get_level_values("run")) == ["near"] * 3 + ["far"] * 3
    # ASSD is missing everywhere and the Dice of far differs by 0.1 everywhere: three tests are left.
    assert table["p"].notna().sum() == table["p_holm"].notna().sum() == 3
    assert table["p_holm"].min() == pytest.approx(min(3 * table["p"].min(), 1))
    alone = compare_to_first({"base": base, "near": near})
    assert (alone["p_holm"].dropna() <= table.loc[["near"], "p_holm"].dropna()).all()
