"""Tests of charts: every run and its mean is drawn, missing values are told, bad numbers are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from scripts.evaluation.charts import chart_figure, summary_figure

BLUE, ORANGE, GREEN = ((0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73))
NAN = float("nan")


def count(path: Path, color: tuple[int, int, int], tolerance: float = 0.25) -> int:
    return int((np.abs(imread(path)[..., :3] - np.array(color) / 255).max(axis=-1) < tolerance).sum())


def test_chart_shows_every_run(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    chart_figure(
        path,
        cases=[f"case {i}" for i in range(60)],
        dice={"one": [0.8] * 60, "two": [0.5] * 60},
        hd95_mm={"one": [3.0] * 59 + [float("nan")], "two": [float("nan")] * 60},
    )
    assert count(path, BLUE) > 100
    assert count(path, ORANGE) > 100


def draw(path: Path, **runs: list[float]) -> None:
    """Draw a summary of Dice with the runs' mean and range as interval."""
    means = {name: (np.nanmean(v), np.nanmin(v), np.nanmax(v)) for name, v in runs.items()}
    summary_figure(path, values={"Dice": runs}, means={"Dice": means}, interval="range", title="x")


def test_summary_shows_cases_and_means_of_every_run(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.png"
    draw(path, one=[0.8, 0.9, 0.7], two=[0.5, NAN, 0.4], three=[0.1, 0.2, 0.3])
    for color in (BLUE, ORANGE, GREEN):
        assert count(path, color) > 100


def test_summary_joins_the_cases_of_two_runs_only(tmp_path: Path) -> None:
    gray = (0xC8, 0xC8, 0xC8)  # the lines' color on white
    draw(tmp_path / "two.png", one=[0.1, 0.2, 0.9], two=[0.9, 0.8, 0.1])
    draw(tmp_path / "one.png", one=[0.1, 0.2, 0.9])
    joined, alone = (count(tmp_path / name, gray, 0.08) for name in ("two.png", "one.png"))
    assert joined > alone + 100


def test_summary_says_that_values_are_missing(tmp_path: Path) -> None:
    draw(tmp_path / "all.png", one=[0.8, 0.9])
    draw(tmp_path / "some.png", one=[0.8, 0.9, NAN])
    text = [imread(tmp_path / name)[..., :3].mean(axis=-1) < 0.5 for name in ("all.png", "some.png")]
    assert text[1].sum() > text[0].sum() + 50


def test_summary_of_one_case_and_of_nothing(tmp_path: Path) -> None:
    runs = {"one": [0.5], "a_run_with_a_long_name": [NAN]}
    means = {"one": (0.5, NAN, NAN), "a_run_with_a_long_name": (NAN, NAN, NAN)}
    path = tmp_path / "summary.png"
    summary_figure(
        path, values={"Dice": runs, "HD95 (mm)": runs}, means={"Dice": means, "HD95 (mm)": means}, interval=""
    )
    assert count(path, BLUE) > 20


def test_same_input_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / name, one=[0.8, 0.9], two=[0.1, 0.2])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    with pytest.raises(ValueError, match="found 1 values of Dice for run; expected 2"):
        chart_figure(path, cases=["a", "b"], dice={"run": [1.0]}, hd95_mm={"run": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"found \{'a': 1, 'b': 2\} values of Dice; expected one per case"):
        draw(path, a=[1.0], b=[1.0, 2.0])
    with pytest.raises(ValueError, match="found means of Dice for none; expected a"):
        summary_figure(path, values={"Dice": {"a": [1.0]}}, means={}, interval="")
    assert not path.exists()
