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
from scipy import stats

from scripts.evaluation.per_case import write_per_case
from scripts.evaluation.statistics import load_run
from scripts.evaluation.tables import choose_cases
from scripts.report import main

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


# A worked example


# Five cases. c: the first run misses the tumor, so it has no distances. e: no tumor, and both runs mark something.
# Differences of Dice: 0.1, 0.2, 0.1 (the missed one: 0 to 0.1), 0.1, 0 (e). Of ASSD -1, -2, -3, of HD95 -1, -4, -4.
TRUTH = [1000.0, 2000.0, 400.0, 500.0, 0.0]
SOURCE_ONLY = {
    "assd_mm": [3.0, 4.0, math.nan, 5.0, math.nan],
    "hd95_mm": [6.0, 9.0, math.nan, 8.0, math.nan],
    "volume_mm3": [1200.0, 1500.0, 0.0, 500.0, 60.0],
    "volume_truth_mm3": TRUTH,
}
TISSNET = {
    "assd_mm": [2.0, 2.0, 7.0, 2.0, math.nan],
    "hd95_mm": [5.0, 5.0, 9.0, 4.0, math.nan],
    "volume_mm3": [1100.0, 1800.0, 20.0, 600.0, 20.0],
    "volume_truth_mm3": TRUTH,
}


@pytest.fixture
def example(tmp_path: Path) -> list[str]:
    """The two runs of the worked example."""
    dice = {"a": 0.6, "b": 0.7, "c": 0.0, "d": 0.5, "e": 0.0}, {"a": 0.7, "b": 0.9, "c": 0.1, "d": 0.6, "e": 0.0}
    runs = zip(("vs_source_only", "vs_tissnet"), dice, (SOURCE_ONLY, TISSNET), strict=True)
    return [str(make_run(tmp_path / name, values, **columns)) for name, values, columns in runs]


def test_worked_example(example: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*example, "--output", str(tmp_path / "out"), "--paper", "vs", "--figures", "none"])
    result = pd.read_csv(tmp_path / "out" / "differences.csv", index_col=["run", "metric"]).loc["vs_tissnet"]
    assert list(result["pairs"]) == [5, 3, 3] and list(result["left_out"]) == [0, 2, 2]
    # t = mean / (s / sqrt(n)). Dice: 0.1 / sqrt(0.005 / 5). ASSD: -2 / (1 / sqrt(3)). HD95: -3 / (sqrt(3) / sqrt(3)).
    t = np.array([math.sqrt(10), -2 * math.sqrt(3), -3])
    np.testing.assert_allclose(result["difference"], [0.1, -2, -3])
    np.testing.assert_allclose(result["t"], t)
    # p in closed form: 1 - u (1 + 2 / (t^2 + 4)) for df = 4, 1 - u for df = 2, where u = |t| / sqrt(t^2 + df).
    u = np.abs(t) / np.sqrt(t**2 + [4, 2, 2])
    p = 1 - u * [1 + 2 / (10 + 4), 1, 1]
    np.testing.assert_allclose(result["p"], p)
    np.testing.assert_allclose(p, 2 * stats.t.sf(np.abs(t), [4, 2, 2]))
    np.testing.assert_allclose(p, [0.03411, 0.07418, 0.09547], atol=6e-6)
    # Holm: three times the smallest, twice the next, and the largest is raised to the one before it.
    np.testing.assert_allclose(result["p_holm"], [3 * p[0], 2 * p[1], 2 * p[1]])
    # The bootstrap by counting all samples. Dice: of 5^5 = 3125 samples 16 have a sum below 0.2 and 111 one up to 0.2;
    # 2.5 % are 78. ASSD: -3 and -1 are one sample of 27 each. HD95: -4 is 8 of 27, -1 one of 27.
    np.testing.assert_allclose(result[["low", "high"]], [[0.04, 0.16], [-3, -1], [-4, -1]])

    table = capsys.readouterr().out
    assert "| vs_tissnet | dice | 5 | 0 | 0.1 | 0.04 to 0.16 | 3.162 | 0.034 | 0.1 |" in table
    assert "| vs_tissnet | assd_mm | 3 | 2 | -2 | -3 to -1 | -3.464 | 0.074 | 0.15 |" in table
    assert "| vs_tissnet | hd95_mm | 3 | 2 | -3 | -4 to -1 | -3 | 0.095 | 0.15 |" in table
    assert "tests in it: 3." in table and "Where pairs are fewer than 10" in table
    assert "| tumors missed | 1 of 4 with tumor | 0 of 4 with tumor |" in table
    assert "| false positives | 1 of 1 without tumor | 1 of 1 without tumor |" in table
    # |volume - truth|: 200, 500, 400, 0, 60 and 100, 200, 380, 100, 20.
    assert "| volume_error_mm3 | 232 +- 214.8 | 160 +- 138.6 |" in table
    # Over the truth: 0.2, 0.25, 1, 0 and 0.1, 0.1, 0.95, 0.2.
    assert "| volume_error_relative | 0.3625 +- 0.4385 (1 missing) | 0.3375 +- 0.411 (1 missing) |" in table
    # Beside the paper: ours is the mean of this table's cases, theirs is as printed, Dice / 100
    assert "| vs_source_only | dice | 0.36 +- 0.3362 | 0.86 +- 0.1479 |" in table
    assert "| vs_tissnet | hd95_mm | 5.75 +- 2.217 (1 missing) | 1.31 +- 0.59 |" in table
    text = (tmp_path / "out" / "report.md").read_text()
    assert "vs_source_only: assd_mm and hd95_mm missing in 2 of 5: c (tumor missed), e (false positive)." in text
    assert "vs_tissnet: assd_mm and hd95_mm missing in 1 of 5: e (false positive)." in text


def test_worked_example_against_other_bootstraps(example: list[str], tmp_path: Path) -> None:
    main([*example, "--output", str(tmp_path / "out"), "--figures", "none"])
    result = pd.read_csv(tmp_path / "out" / "differences.csv", index_col="metric")
    summary = pd.read_csv(tmp_path / "out" / "summary.csv", index_col=["run", "metric"])
    assd = np.array(TISSNET["assd_mm"][:4])
    for values, row in (
        (np.array([0.1, 0.2, 0.1, 0.1, 0]), result.loc["dice"]),
        (assd, summary.loc[("vs_tissnet", "assd_mm")]),
    ):
        means = values[np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))].mean(axis=1)
        np.testing.assert_allclose([row["low"], row["high"]], np.percentile(means, [2.5, 97.5]))
        direct = stats.bootstrap(
            (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
        )
        np.testing.assert_allclose([row["low"], row["high"]], direct.confidence_interval)


def test_cases_are_chosen_from_worst_to_best() -> None:
    table = pd.DataFrame({"dice": [0.9, 0.1, 0.5, 0.7, 0.3]}, index=[f"c{i}" for i in range(5)])
    assert choose_cases(table, 3) == ["c1", "c2", "c0"]
    assert choose_cases(table, 1) == ["c1"]
    assert choose_cases(table, 99) == ["c1", "c4", "c2", "c3", "c0"]


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
    assert re.search(r"\| new \| dice \| 3 \| 0 \| 0.2 \| 0.1\d* to 0.\d+ \| 3.464 \| 0.074 \| 0.074 \|", table)
    assert "| new | hd95_mm | 2 | 1 | -1 |" in table

    text = (output / "report.md").read_text()
    assert table.strip() in text
    assert "Left out of base, not in every run: only|here." in text
    assert "Dice of base: worst c (0), median 007 (0.6), best b (0.7)." in text
    summary = pd.read_csv(output / "summary.csv", index_col=["run", "metric"])
    assert summary.loc[("base", "hd95_mm"), "missing"] == 1
    pictures = re.findall(r"\]\((.*?)\)", text)
    assert pictures == ["summary.png", "per_case.png", *(f"figures/base/{case}.png" for case in ("c", "007", "b"))]
    assert all((output / picture).stat().st_size > 1000 for picture in pictures)


def test_one_run_one_case_and_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"a": 0.6})
    main([str(run), "--output", str(tmp_path / "out"), "--figures", "none", "--prediction", "y_r"])
    table = capsys.readouterr().out
    assert "| dice | 0.5 +- missing |" in table
    assert "paired" not in table
    assert "| tumors missed | all missing |" in table
    assert not (tmp_path / "out" / "differences.csv").exists()
    assert not list((tmp_path / "out").glob("**/*.png"))


def test_paper_has_nothing_beside_other_experiments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "strong_source_only", {"a": 0.6, "b": 0.8})
    main([str(run), "--output", str(tmp_path / "out"), "--figures", "none", "--paper", "glioma"])
    table = capsys.readouterr().out
    assert "| run | metric | ours | paper (Table 4, other data) |" in table
    assert "| strong_source_only | dice | 0.7 +- 0.1414 | - |" in table
    assert "found runs strong_source_only; expected pix2pix, pgan" in caplog.text
    main([str(run), "--output", str(tmp_path / "out"), "--figures", "none"])
    assert "paper" not in capsys.readouterr().out


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
    assert "invalid choice: 'brats'" in fail([str(run), *out, "--paper", "brats"], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "found no valid JSON"),
        ('{"case": "a"}', "found an entry without image, pred"),
        ('[{"case": "a", "image": ["x.nii"]}]', "found an entry without pred; expected a list of objects"),
        (
            '[{"case": "a", "image": ["x.nii"], "pred": "y.nii"}]',
            "predictions.json: case a: missing file: found no file .*x.nii, expected",
        ),
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


def test_report_draws_without_torch_and_pyplot(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a": 0.6, "b": 0.7})
    add_predictions(run, ["a", "b"])
    arguments = [str(run), "--output", str(tmp_path / "out"), "--figures", "1"]
    unwanted = {"torch", "monai", "matplotlib.pyplot"}
    code = f"import sys; from scripts.report import main; main({arguments}); "
    code += f"sys.exit(', '.join({unwanted} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_starts_without_slow_imports() -> None:
    slow = {"torch", "monai", "scipy.stats", "matplotlib"}
    code = f"import sys, scripts.report; sys.exit(', '.join({slow} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
