"""Tests of scripts.report on small made runs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.per_case import NUMBER_COLUMNS, write_per_case
from scripts.report import choose_cases, compare, keep_common, load_run, main, summarize

BUNDLE = Path(__file__).parents[1] / "bundle"


def make_run(folder: Path, dice: dict[str, float], **columns: list[float]) -> Path:
    """Write a per_case.csv with y_f rows, and y_r rows that are up to 0.1 lower."""
    rows: list[dict[str, Any]] = []
    for number, (case, value) in enumerate(dice.items()):
        row = {"case": case, "protocol": "full_scan", "prediction": "y_f", "dice": value}
        row |= {column: values[number] for column, values in columns.items()}
        rows += [row, row | {"prediction": "y_r", "dice": max(value - 0.1, 0)}]
    write_per_case(folder / "per_case.csv", rows)
    return folder


def frame(**columns: list[float]) -> pd.DataFrame:
    """Make a run's numbers, a row per value."""
    length = len(next(iter(columns.values())))
    return pd.DataFrame(columns, index=[f"c{i}" for i in range(length)], dtype=float).reindex(columns=[*NUMBER_COLUMNS])


def add_predictions(run: Path, cases: list[str], **extra: Any) -> None:
    """Write small NIfTI files and a predictions.json with paths relative to it."""
    entries = []
    for case in cases:
        mask = np.zeros((16, 16, 8), np.uint8)
        mask[5:9, 5:9, 3:5] = 1
        for name, array in (("t2", np.random.default_rng(0).random(mask.shape)), ("label", mask), ("pred", mask)):
            (run / case).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([1, 1, 2, 1])), run / case / f"{name}.nii.gz")
        files = {name: f"{case}/{name}.nii.gz" for name in ("label", "pred")}
        entry = {"case": case, "image": [f"{case}/t2.nii.gz"], "target": None, "synthetic": None, "error": None}
        entries.append(entry | files | extra)
    (run / "predictions.json").write_text(json.dumps(entries))


# Hand-computed values


def test_mean_std_and_missing() -> None:
    summary = summarize(frame(dice=[0.7, 0.8, 0.9], hd95_mm=[2.0, math.nan, 4.0]))
    assert summary.loc["dice", "mean"] == pytest.approx(0.8)
    assert summary.loc["dice", "std"] == pytest.approx(0.1)
    assert summary.loc["hd95_mm", "mean"] == pytest.approx(3)
    assert summary.loc["hd95_mm", "std"] == pytest.approx(math.sqrt(2))
    assert list(summary.loc["hd95_mm", ["cases", "missing"]]) == [3, 1]
    assert summary.loc["seconds", "missing"] == 3


def test_paired_difference_and_t_test() -> None:
    # Differences 1, 2, 3: mean 2, s = 1, t = 2 sqrt(3); for two degrees of freedom p = 1 - t / sqrt(t^2 + 2).
    result = compare(frame(hd95_mm=[5, 5, 5]), frame(hd95_mm=[6, 7, 8])).loc["hd95_mm"]
    t = 2 * math.sqrt(3)
    assert result["difference"] == pytest.approx(2)
    assert result["p"] == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert 1 <= result["low"] < 2 < result["high"] <= 3
    assert (result["pairs"], result["left_out"]) == (3, 0)


def test_bootstrap_interval_of_many_cases_is_near_the_normal_one() -> None:
    noise = np.random.default_rng(1).normal(0.02, 0.05, 400)
    result = compare(frame(dice=[0.5] * 400), frame(dice=list(0.5 + noise))).loc["dice"]
    half = 1.96 * noise.std(ddof=1) / 20
    assert result["low"] == pytest.approx(noise.mean() - half, abs=0.1 * half)
    assert result["high"] == pytest.approx(noise.mean() + half, abs=0.1 * half)


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
    assert one[["low", "high", "p"]].isna().all()
    assert math.isnan(summarize(frame(dice=[0.5]))["std"]["dice"])
    equal = compare(frame(dice=[0.5, 0.6, 0.7]), frame(dice=[0.6, 0.7, 0.8]))
    assert math.isnan(equal["p"]["dice"])
    assert equal["low"]["dice"] == pytest.approx(0.1)


def test_cases_are_chosen_from_worst_to_best() -> None:
    table = frame(dice=[0.9, 0.1, 0.5, 0.7, 0.3])
    assert choose_cases(table, 3) == ["c1", "c2", "c0"]
    assert choose_cases(table, 1) == ["c1"]
    assert choose_cases(table, 99) == ["c1", "c4", "c2", "c3", "c0"]


def test_runs_are_cut_to_common_cases() -> None:
    runs, left_out = keep_common({"one": frame(dice=[0.1, 0.2, 0.3]), "two": frame(dice=[0.1, 0.2])})
    assert [list(run.index) for run in runs.values()] == [["c0", "c1"]] * 2
    assert left_out == {"one": ["c2"], "two": []}


# The command


def test_two_runs_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hd95 = {"hd95_mm": [3.0, 2.0, math.nan, 1.0]}
    first = make_run(tmp_path / "base", {"007": 0.6, "b": 0.7, "c": 0.0, "only|here": 0.9}, **hd95)
    other = make_run(tmp_path / "new", {"b": 0.8, "c": 0.3, "007": 0.8}, hd95_mm=[1.0, 9.0, 2.0])
    add_predictions(first, ["007", "b", "c"])
    output = tmp_path / "report"
    main([str(first), str(other), "--output", str(output)])

    table = capsys.readouterr().out
    assert "| dice | 0.4333 +- 0.3786 | 0.6333 +- 0.2887 |" in table
    assert "| hd95_mm | 2.5 +- 0.7071 (1 missing) | 4 +- 4.359 |" in table
    assert "| psnr_local | all missing | all missing |" in table
    # differences 0.2, 0.1, 0.3: mean 0.2, s 0.1, t = 2 sqrt(3), p = 0.0742
    assert re.search(r"\| new \| dice \| 3 \| 0 \| 0.2 \| 0.1\d* to 0.\d+ \| 0.074 \|", table)
    assert "| new | hd95_mm | 2 | 1 | -1 |" in table

    text = (output / "report.md").read_text()
    assert table.strip() in text
    assert "Left out of base, not in every run: only|here." in text
    assert "Dice of base: worst c (0), median 007 (0.6), best b (0.7)." in text
    summary = pd.read_csv(output / "summary.csv", index_col=["run", "metric"])
    assert summary.loc[("base", "hd95_mm"), "missing"] == 1
    pictures = re.findall(r"\]\((.*?)\)", text)
    assert pictures == ["per_case.png", *(f"figures/base/{case}.png" for case in ("c", "007", "b"))]
    assert all((output / picture).stat().st_size > 1000 for picture in pictures)


def test_one_run_one_case_and_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 0.6})
    main([str(run), "--output", str(tmp_path / "out"), "--figures", "none", "--prediction", "y_r"])
    table = capsys.readouterr().out
    assert "| dice | 0.5 +- missing |" in table
    assert "paired" not in table
    assert not list((tmp_path / "out").glob("**/*.png"))


def test_figures_are_of_the_chosen_prediction(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a": 0.6, "b": 0.7})
    add_predictions(run, ["a", "b"], prediction="y_r")
    main([str(run), "--output", str(tmp_path / "out"), "--figures", "1"])
    assert not (tmp_path / "out" / "figures").exists()
    main([str(run), "--output", str(tmp_path / "out"), "--figures", "1", "--prediction", "y_r"])
    assert [path.name for path in (tmp_path / "out" / "figures" / "run").iterdir()] == ["a.png"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / parent / "run", {"a": 0.6, "b": 0.7}) for parent in ("x", "y")]
    main([*map(str, runs), "--output", str(tmp_path / "out"), "--figures", "none"])
    assert f"| metric | {runs[0]} | {runs[1]} |" in capsys.readouterr().out


# Bad input


def fail(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command, expect it to end with an error, and return what it wrote."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_bad_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = make_run(tmp_path / "run", {"a": 0.6}), make_run(tmp_path / "other", {"z": 0.6})
    out = ["--output", str(tmp_path / "out")]
    assert "per_case.csv: no such file" in fail([str(tmp_path), *out], capsys)
    assert "no case is in every run: found run: a, ...; other: z" in fail([str(run), str(other), *out], capsys)
    assert "found a run twice" in fail([str(run), str(run), *out], capsys)
    message = fail([str(run), *out, "--prediction", "mean"], capsys)
    assert "found full_scan y_f; full_scan y_r; expected rows of full_scan mean" in message
    assert "found 'few'; expected a number of cases" in fail([str(run), *out, "--figures", "few"], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found no valid JSON"),
        ('{"case": "a"}', "found an entry without image, pred"),
        ('[{"case": "a", "image": ["x.nii"]}]', "found an entry without pred; expected a list of objects"),
        ('[{"case": "a", "image": ["x.nii"], "pred": "y.nii"}]', "predictions.json: case a: .*x.nii: no such file"),
    ],
)
def test_bad_predictions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    run = make_run(tmp_path / "run", {"a": 0.6})
    (run / "predictions.json").write_text(content)
    assert re.search(message, fail([str(run), "--output", str(tmp_path / "out")], capsys))


def test_pictures_on_different_grids_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 0.6})
    add_predictions(run, ["a"])
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), run / "a" / "pred.nii.gz")
    message = fail([str(run), "--output", str(tmp_path / "out")], capsys)
    assert "a.png: found shapes source (16, 16, 8)" in message
    assert "prediction (4, 4, 4)" in message


def test_load_run_names_the_case_column_as_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"007": 0.6})
    assert list(load_run(run, prediction="y_f", protocol="full_scan").index) == ["007"]


# Start-up


def test_report_runs_without_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a": 0.6, "b": 0.7})
    add_predictions(run, ["a", "b"])
    arguments = [str(run), "--output", str(tmp_path / "out"), "--figures", "1"]
    code = f"import sys; from scripts.report import main; main({arguments}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_starts_without_slow_imports() -> None:
    slow = {"torch", "monai", "scipy.stats", "matplotlib"}
    code = f"import sys, scripts.report; sys.exit(', '.join({slow} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
