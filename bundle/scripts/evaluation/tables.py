"""The report of one or more runs: Markdown tables and texts, summary.csv, differences.csv, and where pictures go."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.evaluation.paper_results import CITATION, PUBLISHED, published_results
from scripts.evaluation.statistics import (
    COMPARED,
    CONFIDENCE,
    FALSE_POSITIVE,
    MISSED,
    NO_TUMOR,
    SEGMENTED,
    UNKNOWN,
    compare_to_first,
    keep_common,
    load_run,
    outcomes,
    summarize,
)

logger = logging.getLogger(__name__)

FEW_PAIRS = 10  # below this the text warns of the intervals
INTERVAL = f"{100 * CONFIDENCE:g} % interval"
MISSING = "missing"


def make_report(
    runs: Sequence[Path], *, output: Path, prediction: str, protocol: str, paper: str | None, figures: int | None
) -> str:
    """Write report.md, summary.csv, differences.csv and the pictures; return the text of the tables.

    Args:
        runs: folders that hold per_case.csv, and predictions.json for pictures; the first is the baseline.
        output: folder to write to.
        prediction: which rows, y_f, y_c, y_r or mean.
        protocol: which rows, full_scan or paper_crop.
        paper: task of the paper whose results stand beside ours.
        figures: pictures of so many cases of a run, None for all; with 0 no charts either.
    """
    folders = _name_runs(runs)
    loaded = {name: load_run(run, prediction=prediction, protocol=protocol) for name, run in folders.items()}
    frames, left_out = keep_common(loaded)
    summaries = {name: summarize(frame) for name, frame in frames.items()}

    output.mkdir(parents=True, exist_ok=True)
    pd.concat(summaries, names=["run"]).to_csv(output / "summary.csv")
    tables = [metric_table(frames, summaries)]
    if len(frames) > 1:
        first, comparison = next(iter(frames)), compare_to_first(frames)
        comparison.to_csv(output / "differences.csv")
        tables.append(f"## Differences to {first}, case by case")
        tables += [difference_text(first, comparison), difference_table(comparison)]
    if paper:
        tables.append(f"## Beside the paper ({paper})")
        tables += [paper_text(paper, protocol), paper_table(paper, folders, summaries)]

    text = [f"# Results: {', '.join(frames)}"]
    text.append(
        f"Protocol {protocol}, prediction {prediction}. Mean +- standard deviation over cases, with the "
        "percentile bootstrap's interval of the mean; missing values are counted and left out of both. volume_error is "
        "|volume - true volume| of a case, relative: divided by the true volume."
    )
    text += [f"Left out of {name}, not in every run: {', '.join(cases)}." for name, cases in left_out.items() if cases]
    text += tables
    pictures = []
    if figures != 0:
        from scripts.evaluation.charts import draw_charts  # matplotlib is slow to import
        from scripts.evaluation.predictions import draw_cases

        charts = draw_charts(output, frames, summaries, what=f"{protocol}, {prediction}", interval=INTERVAL)
        text += ["## Charts", *(f"![{caption}]({chart})" for caption, chart in charts.items())]
        for name, frame in frames.items():
            titles = {
                case: f"{name}   {case}   Dice {_text(frame.loc[case, 'dice'])}   "
                f"HD95 {_text(frame.loc[case, 'hd95_mm'])} mm   ({protocol}, {prediction})"
                for case in choose_cases(frame, len(frame) if figures is None else figures)
            }
            drawn = draw_cases(folders[name], titles, output, name=name, prediction=prediction, protocol=protocol)
            pictures += [f"![{name}, {picture.stem}]({picture.as_posix()})" for picture in drawn]
    text += ["## Cases", *_case_texts(frames), *pictures]
    (output / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return "\n\n".join(tables)


def choose_cases(frame: pd.DataFrame, count: int) -> list[str]:
    """Return `count` cases spread evenly from the worst to the best Dice; cases without Dice come first."""
    ranked = list(frame["dice"].sort_values(kind="stable", na_position="first").index)
    if count == 1:
        return ranked[:1]
    return [ranked[i] for i in np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)]


def metric_table(runs: Mapping[str, pd.DataFrame], summaries: Mapping[str, pd.DataFrame]) -> str:
    """Return the Markdown table of mean +- std and of failures, a row per metric and a column per run."""
    rows: list[list[Any]] = [["cases", *(len(frame) for frame in runs.values())]]
    for metric in next(iter(summaries.values())).index:
        found = [summary.loc[metric] for summary in summaries.values()]
        rows.append([metric, *map(_mean_cell, found)])
        if metric in COMPARED:
            rows.append([f"{metric}, {INTERVAL} of the mean", *map(_interval_cell, found)])
    kinds = [outcomes(frame) for frame in runs.values()]
    rows.append(["tumors missed", *(_count_cell(kind, MISSED, SEGMENTED, "with tumor") for kind in kinds)])
    rows.append(["false positives", *(_count_cell(kind, FALSE_POSITIVE, NO_TUMOR, "without tumor") for kind in kinds)])
    return _markdown(["metric", *summaries], rows)


def difference_table(comparison: pd.DataFrame) -> str:
    """Return the Markdown table of the differences to the first run."""
    header = ["run", "metric", "pairs", "left out", "mean difference", INTERVAL, "paired t", "p", "p (Holm)"]
    rows = []
    for _, row in comparison.reset_index().iterrows():
        numbers = [row["pairs"], row["left_out"], _text(row["difference"]), _interval_cell(row), _text(row["t"])]
        rows.append([row["run"], row["metric"], *numbers, _text(row["p"], 2), _text(row["p_holm"], 2)])
    return _markdown(header, rows)


def difference_text(first: str, comparison: pd.DataFrame) -> str:
    """Say how the differences were tested, which tests Holm's correction is over, and where pairs are few."""
    tests = int(comparison["p"].notna().sum())
    text = (
        f"Each run minus {first} over the cases that have both values; better is a higher Dice and a shorter distance. "
        "Interval: percentile bootstrap of the mean difference. p: two-sided paired t-test. p (Holm): corrected for "
        f"the family of all runs and metrics of this table (Holm 1979), tests in it: {tests}."
    )
    if untested := len(comparison) - tests:
        text += f" Without p (fewer than two pairs, or equal differences) and not in the family: {untested}."
    if (comparison["pairs"] < FEW_PAIRS).any():
        text += (
            f" Where pairs are fewer than {FEW_PAIRS}, the interval is too narrow, and neither it nor p settles much."
        )
    return text


def failure_text(name: str, frame: pd.DataFrame) -> str:
    """Name the cases of a run that lack Dice, ASSD or HD95, and say why; "" if there are none."""
    kinds = outcomes(frame)
    sentences = []
    absent = {metric: tuple(frame.index[frame[metric].isna()]) for metric in COMPARED}
    for cases in dict.fromkeys(cases for cases in absent.values() if cases):
        metrics = " and ".join(metric for metric in COMPARED if absent[metric] == cases)
        listed = ", ".join(case if kinds[case] == SEGMENTED else f"{case} ({kinds[case]})" for case in cases)
        sentences.append(f"{metrics} {MISSING} in {len(cases)} of {len(frame)}: {listed}.")
    return f"{name}: {' '.join(sentences)}" if sentences else ""


def paper_text(task: str, protocol: str) -> str:
    """Say whose numbers the paper's column holds, and on what they were measured."""
    table = PUBLISHED[task]
    text = (
        f"The last column is printed in Table {table.number} of {CITATION}: {table.data}. Nothing in it was measured "
        "here, and no test compares it with ours. Dice as a fraction."
    )
    if protocol != "paper_crop":
        text += " Nearer to the paper's crop than this report is --protocol paper_crop."
    return text


def paper_table(task: str, folders: Mapping[str, Path], summaries: Mapping[str, pd.DataFrame]) -> str:
    """Return the Markdown table with a published column beside ours; a dash where the paper has no such method."""
    results = {name: published_results(task, folder.name) for name, folder in folders.items()}
    if not any(results.values()):
        methods = ", ".join(PUBLISHED[task].scores)
        found = ", ".join(folder.name for folder in folders.values())
        logger.warning("--paper %s: found runs %s; expected %s, or %s_ before it.", task, found, methods, task)
    rows = []
    for name, published in results.items():
        for metric in COMPARED:
            theirs = " +- ".join(map(_text, published[metric])) if published else "-"
            rows.append([name, metric, _mean_cell(summaries[name].T[metric]), theirs])
    return _markdown(["run", "metric", "ours", f"paper (Table {PUBLISHED[task].number}, other data)"], rows)


def _name_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """Name each run after its folder, or after its whole path where two folders are called the same."""
    folders = [run.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError(f"found a run twice in {', '.join(map(str, runs))}; expected each run once.")
    names = [folder.name for folder in folders]
    return {folder.name if names.count(folder.name) == 1 else str(folder): folder for folder in folders}


def _case_texts(runs: Mapping[str, pd.DataFrame]) -> list[str]:
    """Say per run which cases are worst, median and best, and which have no Dice or distance."""
    texts = []
    for name, frame in runs.items():
        cases = choose_cases(frame.dropna(subset="dice"), 3) if frame["dice"].notna().any() else []
        if len(cases) in (1, 2):
            cases = [cases[0], cases[0], cases[-1]]
        landmarks = zip(("worst", "median", "best"), cases, strict=False)
        named = (f"{label} {case} ({_text(frame.loc[case, 'dice'])})" for label, case in landmarks)
        texts.append(f"Dice of {name}: {', '.join(named)}.")
    failures = [text for name, frame in runs.items() if (text := failure_text(name, frame))]
    if failures:
        texts.append(
            "Distances are missing where a mask is empty, so a run that finds nothing in a hard case loses that case "
            "from its mean distance; read them with the tumors missed and the false positives."
        )
    return texts + failures


def _markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _mean_cell(row: pd.Series) -> str:
    """Write mean +- std and the number of missing values of a summary's row."""
    if row["missing"] == row["cases"]:
        return f"all {MISSING}"
    missing = f" ({row['missing']:g} {MISSING})" if row["missing"] else ""
    return f"{_text(row['mean'])} +- {_text(row['std'])}{missing}"


def _interval_cell(row: pd.Series) -> str:
    return MISSING if np.isnan(row["low"]) else f"{_text(row['low'])} to {_text(row['high'])}"


def _count_cell(kinds: pd.Series, failure: str, success: str, what: str) -> str:
    """Write how many cases of a kind failed, and of how many the volumes are unknown."""
    failed, unknown = (kinds == failure).sum(), (kinds == UNKNOWN).sum()
    if unknown == len(kinds):
        return f"all {MISSING}"
    return f"{failed} of {failed + (kinds == success).sum()} {what}" + (f" ({unknown} {MISSING})" if unknown else "")


def _text(value: Any, digits: int = 4) -> str:
    """Write a number of a table with four significant digits, or say that it is missing."""
    return MISSING if np.isnan(float(value)) else f"{float(value):.{digits}g}"
