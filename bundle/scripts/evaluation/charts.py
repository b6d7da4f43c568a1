"""Charts of runs: every case of every run, and each run's means with their intervals.

Drawn with matplotlib's object interface: no pyplot, no global state, no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scripts.pictures import save_figure

_LABELS = {"dice": "Dice", "assd_mm": "ASSD (mm)", "hd95_mm": "HD95 (mm)"}
_RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # told apart by color-blind readers
_RUN_MARKERS = "osD^vP"
_LEGEND_COLUMNS = 4
_SPREAD = 0.24  # width over which the cases of three or more runs are spread, so that equal ones show
_MEAN_SHIFT = 0.26  # how far right of a run's cases its mean is drawn
_LONGEST_LABEL = 12  # characters; longer names of runs are slanted


def draw_charts(
    output: Path, runs: Mapping[str, pd.DataFrame], summaries: Mapping[str, pd.DataFrame], *, what: str, interval: str
) -> dict[str, Path]:
    """Draw the runs' means as summary.png, and Dice and HD95 of every case as per_case.png.

    Args:
        output: folder of the report.
        runs: for each run a row per case, of the same cases.
        summaries: for each run a row per metric, with mean, low and high.
        what: which cases these are, for the titles.
        interval: what low and high are, for the legend.

    Returns:
        the PNG files, relative to the output folder, by their captions.
    """
    first, frame = next(iter(runs.items()))
    values = {label: {name: run[metric].tolist() for name, run in runs.items()} for metric, label in _LABELS.items()}
    means = {
        label: {name: tuple(table.loc[metric, ["mean", "low", "high"]]) for name, table in summaries.items()}
        for metric, label in _LABELS.items()
    }
    title = f"{len(frame)} cases, {what}"
    summary_figure(output / "summary.png", values=values, means=means, interval=interval, title=title)

    cases = list(frame["dice"].sort_values(kind="stable").index)
    dice = {name: run.loc[cases, "dice"].tolist() for name, run in runs.items()}
    hd95 = {name: run.loc[cases, "hd95_mm"].tolist() for name, run in runs.items()}
    title = f"Each case, {what}; in the order of {first}'s Dice"
    chart_figure(output / "per_case.png", cases=cases, dice=dice, hd95_mm=hd95, title=title)
    return {"Means of the runs": Path("summary.png"), "Dice and HD95 of each case": Path("per_case.png")}


def chart_figure(
    path: str | Path,
    *,
    cases: Sequence[str],
    dice: Mapping[str, Sequence[float]],
    hd95_mm: Mapping[str, Sequence[float]],
    title: str = "",
) -> None:
    """Draw Dice and HD95 of every case, one marker per run; a missing value is a cross at the top of its panel.

    Args:
        path: PNG to write; missing folders are made.
        cases: names in the order in which they are drawn.
        dice: for each run, one value per case.
        hd95_mm: for each run, one value per case, NaN where missing.
        title: a line above the picture.

    Raises:
        ValueError: a run without exactly one value per case.
    """
    figure = Figure(figsize=(max(6.0, 0.22 * len(cases) + 2), 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True)
    positions = np.arange(len(cases))
    for axes, name, runs in zip(panels, ("Dice", "HD95 (mm)"), (dice, hd95_mm), strict=True):
        for number, (run, values) in enumerate(runs.items()):
            if len(values) != len(cases):
                raise ValueError(f"{path}: found {len(values)} values of {name} for {run}; expected {len(cases)}.")
            color = _RUN_COLORS[number % len(_RUN_COLORS)]
            numbers = np.asarray(values, dtype=float)
            marker = _RUN_MARKERS[number % len(_RUN_MARKERS)]
            axes.plot(positions, numbers, marker, color=color, markersize=5, alpha=0.85, label=run)
            gone = positions[np.isnan(numbers)]
            (crosses,) = axes.plot(gone, np.full(len(gone), 0.95 - 0.06 * number), "x", color=color, markersize=5)
            crosses.set(transform=axes.get_xaxis_transform(), in_layout=False)
        axes.set_ylabel(name)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylim(-0.02, 1.02)
    panels[1].set_ylim(0, 1.25 * panels[1].get_ylim()[1])  # room for the crosses
    handles, labels = panels[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="black", marker="x", linestyle="none"))
    columns = min(len(handles), _LEGEND_COLUMNS)
    figure.legend(handles, [*labels, "missing"], loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    panels[1].set_xticks(positions, cases, rotation=90, fontsize=7)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def summary_figure(
    path: str | Path,
    *,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    means: Mapping[str, Mapping[str, tuple[float, float, float]]],
    interval: str,
    title: str = "",
) -> None:
    """Draw a panel per metric: every case a dot, and beside them each run's mean with its interval.

    With two runs, the two dots of a case are joined by a line. Missing values are counted under the run's name. The
    panel "Dice" goes from 0 to 1, the others from 0 up.

    Args:
        path: PNG to write; missing folders are made.
        values: for each metric and run, one value per case, NaN where missing; all runs in the same order of cases.
        means: for each metric and run, mean, lower and upper end of its interval, NaN where missing.
        interval: what the intervals are, for the legend.
        title: a line above the picture.

    Raises:
        ValueError: runs of a metric with different numbers of cases, or without a mean.
    """
    for metric, runs in values.items():
        lengths = {run: len(numbers) for run, numbers in runs.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{path}: found {lengths} values of {metric}; expected one per case in every run.")
        if set(runs) != set(means.get(metric, {})):
            found = ", ".join(means.get(metric, {})) or "none"
            raise ValueError(f"{path}: found means of {metric} for {found}; expected {', '.join(runs)}.")
    count = max(len(runs) for runs in values.values())
    figure = Figure(figsize=(len(values) * max(2.6, 0.75 * count + 1.1), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for axes, (metric, runs) in zip(panels, values.items(), strict=True):
        _draw_metric(axes, runs, means[metric])
        axes.set_title(metric, fontsize=11)
        if metric == "Dice":
            axes.set_ylim(-0.02, 1.02)
    style: dict[str, Any] = {"color": "#404040", "linestyle": "none"}
    handles = [
        Line2D([], [], marker="o", markersize=4, alpha=0.6, label="one case", **style),
        Line2D([], [], marker="D", markersize=7, label=f"mean, {interval}", **style),
    ]
    if count == 2:
        handles.append(Line2D([], [], color="#b0b0b0", linewidth=0.8, label="the same case"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def _draw_metric(
    axes: Axes, runs: Mapping[str, Sequence[float]], means: Mapping[str, tuple[float, float, float]]
) -> None:
    """Draw one panel: cases, lines between two runs, means, and the names of the runs below."""
    table = np.array([np.asarray(numbers, dtype=float) for numbers in runs.values()])  # (runs, cases)
    offsets = np.zeros(table.shape)
    if len(table) == 2:
        axes.plot([0, 1], table, color="#b0b0b0", linewidth=0.8, alpha=0.7, zorder=1)
    elif table.shape[1] > 1:
        offsets += np.linspace(-_SPREAD / 2, _SPREAD / 2, table.shape[1])
    labels = []
    for number, (run, numbers) in enumerate(zip(runs, table, strict=True)):
        color = _RUN_COLORS[number % len(_RUN_COLORS)]
        axes.plot(number + offsets[number], numbers, "o", color=color, markersize=4, alpha=0.6, markeredgewidth=0)
        mean, low, high = means[run]
        place = number + (_MEAN_SHIFT if number or len(table) != 2 else -_MEAN_SHIFT)  # outside the lines of a pair
        axes.plot([place, place], [low, high], color=color, linewidth=2.2, zorder=3)
        axes.plot(place, mean, "D", color=color, markersize=7, markeredgecolor="white", zorder=4)
        missing = np.count_nonzero(np.isnan(numbers))
        labels.append(f"{run}\n{missing} missing" if missing else run)
    slanted = max(map(len, runs)) > _LONGEST_LABEL or len(runs) > 4
    turn: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(len(runs)), labels, fontsize=9, **turn)
    axes.set_xlim(-0.6, len(runs) - 0.4)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
