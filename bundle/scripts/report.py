"""per_case.csv of one or more runs -> report.md, summary.csv, differences.csv and pictures.

    python -m scripts.report RUN [RUN ...] --output DIR [--prediction y_f] [--protocol full_scan] [--paper glioma|vs]
        [--figures N|all|none]

Reads only `<run>/per_case.csv` and, for the pictures of cases, `<run>/predictions.json`. Nothing here runs a model or
computes a metric of a case, and nothing imports torch. Statistics are in comparison.py, the paper's numbers in
published.py, drawing in charts.py and figures.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scripts.evaluation.paper_results import CITATION, PUBLISHED, published_results
from scripts.evaluation.per_case import PREDICTIONS, PROTOCOLS
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
LABELS = {"dice": "Dice", "assd_mm": "ASSD (mm)", "hd95_mm": "HD95 (mm)"}


def choose_cases(frame: pd.DataFrame, count: int) -> list[str]:
    """Return `count` cases spread evenly from the worst to the best Dice; cases without Dice come first."""
    ranked = list(frame["dice"].sort_values(kind="stable", na_position="first").index)
    if count == 1:
        return ranked[:1]
    return [ranked[i] for i in np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)]


def metric_table(runs: Mapping[str, pd.DataFrame], summaries: Mapping[str, pd.DataFrame]) -> str:
    """Return the Markdown table of mean +- std and of failures, a row per metric and a column per run."""
    lines = _header(["metric", *summaries])
    lines.append(_row(["cases", *(str(summary["cases"].iloc[0]) for summary in summaries.values())]))
    for metric in next(iter(summaries.values())).index:
        rows = [summary.loc[metric] for summary in summaries.values()]
        lines.append(_row([metric, *map(_mean_cell, rows)]))
        if metric in COMPARED:
            lines.append(_row([f"{metric}, {INTERVAL} of the mean", *map(_interval_cell, rows)]))
    kinds = [outcomes(frame) for frame in runs.values()]
    lines.append(_row(["tumors missed", *(_count_cell(kind, MISSED, SEGMENTED, "with tumor") for kind in kinds)]))
    cells = [_count_cell(kind, FALSE_POSITIVE, NO_TUMOR, "without tumor") for kind in kinds]
    lines.append(_row(["false positives", *cells]))
    return "\n".join(lines)


def difference_table(comparison: pd.DataFrame) -> str:
    """Return the Markdown table of the differences to the first run."""
    header = ["run", "metric", "pairs", "left out", "mean difference", INTERVAL, "paired t", "p", "p (Holm)"]
    lines = _header(header)
    for _, row in comparison.reset_index().iterrows():
        numbers = [f"{row['pairs']:g}", f"{row['left_out']:g}", _text(row["difference"]), _interval_cell(row)]
        tests = [_text(row["t"]), *(MISSING if np.isnan(row[p]) else f"{row[p]:.2g}" for p in ("p", "p_holm"))]
        lines.append(_row([row["run"], row["metric"], *numbers, *tests]))
    return "\n".join(lines)


def difference_text(first: str, comparison: pd.DataFrame) -> str:
    """Say how the differences were tested, which tests Holm's correction is over, and where pairs are few."""
    tests = int(comparison["p"].notna().sum())
    text = (
        f"Each run minus {first} over the cases that have both values; better is a higher Dice and a shorter distance. "
        "Interval: percentile bootstrap of the mean difference. p: two-sided paired t-test. p (Holm): corrected for "
        f"the family of all runs and metrics of this table (Holm 1979), tests in it: {tests}."
    )
    untested = len(comparison) - tests
    if untested:
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
    lines = _header(["run", "metric", "ours", f"paper (Table {PUBLISHED[task].number}, other data)"])
    results = {name: published_results(task, folder.name) for name, folder in folders.items()}
    if not any(results.values()):
        methods = ", ".join(PUBLISHED[task].scores)
        found = ", ".join(folder.name for folder in folders.values())
        logger.warning("--paper %s: found runs %s; expected %s, or %s_ before it.", task, found, methods, task)
    for name, published in results.items():
        for metric in COMPARED:
            theirs = " +- ".join(map(_text, published[metric])) if published else "-"
            ours = _mean_cell(summaries[name].T[metric])
            lines.append(_row([name, metric, ours, theirs]))
    return "\n".join(lines)


def draw_cases(run: Path, name: str, frame: pd.DataFrame, cases: Sequence[str], args: argparse.Namespace) -> list[Path]:
    """Draw the named cases of a run from its predictions.json.

    Entries are read as y_f and full_scan unless they say otherwise with the keys prediction and protocol.

    Returns:
        the PNG files, relative to the output folder; none if the run has no predictions.json.

    Raises:
        FileNotFoundError: a file that predictions.json names does not exist.
        ValueError: predictions.json is malformed, or the images of a case are not on one grid.
    """
    from scripts.pictures import case_figure  # matplotlib is slow to import, and --figures none does without

    index = run / "predictions.json"
    if not index.is_file():
        logger.warning("%s: no such file; no pictures of cases for this run.", index)
        return []
    entries = {}
    for entry in _read_entries(index):
        if (entry.get("prediction", "y_f"), entry.get("protocol", "full_scan")) == (args.prediction, args.protocol):
            entries[str(entry["case"])] = entry
    pictures = []
    for case in cases:
        if case not in entries:
            logger.warning("%s: case %s: no entry of %s %s; not drawn.", index, case, args.protocol, args.prediction)
            continue
        volumes, spacing = _read_volumes(index, entries[case])
        dice, hd95 = frame.loc[case, ["dice", "hd95_mm"]]
        title = f"{name}   {case}   Dice {_text(dice)}   HD95 {_text(hd95)} mm   ({args.protocol}, {args.prediction})"
        picture = Path("figures") / _file_name(name) / f"{_file_name(case)}.png"
        case_figure(args.output / picture, spacing=spacing, title=title, **volumes)
        pictures.append(picture)
    return pictures


def draw_charts(
    runs: Mapping[str, pd.DataFrame], summaries: Mapping[str, pd.DataFrame], args: argparse.Namespace
) -> dict[str, Path]:
    """Draw the runs' means, and Dice and HD95 per case; return captions and files relative to the output."""
    from scripts.evaluation.charts import chart_figure, summary_figure  # as in draw_cases

    what = f"{args.protocol}, {args.prediction}"
    values = {LABELS[metric]: {name: frame[metric].tolist() for name, frame in runs.items()} for metric in COMPARED}
    means = {
        LABELS[metric]: {name: tuple(table.loc[metric, ["mean", "low", "high"]]) for name, table in summaries.items()}
        for metric in COMPARED
    }
    title = f"{len(next(iter(runs.values())))} cases, {what}"
    summary_figure(args.output / "summary.png", values=values, means=means, interval=INTERVAL, title=title)

    cases = list(next(iter(runs.values()))["dice"].sort_values(kind="stable").index)
    dice = {name: frame.loc[cases, "dice"].tolist() for name, frame in runs.items()}
    hd95 = {name: frame.loc[cases, "hd95_mm"].tolist() for name, frame in runs.items()}
    title = f"Each case, {what}; in the order of {next(iter(runs))}'s Dice"
    chart_figure(args.output / "per_case.png", cases=cases, dice=dice, hd95_mm=hd95, title=title)
    return {"Means of the runs": Path("summary.png"), "Dice and HD95 of each case": Path("per_case.png")}


def make_report(args: argparse.Namespace) -> str:
    """Write report.md, summary.csv, differences.csv and the pictures; return the text of the tables."""
    folders = _name_runs(args.runs)
    loaded = {name: load_run(run, prediction=args.prediction, protocol=args.protocol) for name, run in folders.items()}
    runs, left_out = keep_common(loaded)
    summaries = {name: summarize(frame) for name, frame in runs.items()}

    args.output.mkdir(parents=True, exist_ok=True)
    pd.concat(summaries, names=["run"]).to_csv(args.output / "summary.csv")
    tables = [metric_table(runs, summaries)]
    if len(runs) > 1:
        first, comparison = next(iter(runs)), compare_to_first(runs)
        comparison.to_csv(args.output / "differences.csv")
        tables.append(f"## Differences to {first}, case by case")
        tables += [difference_text(first, comparison), difference_table(comparison)]
    if args.paper:
        tables.append(f"## Beside the paper ({args.paper})")
        tables += [paper_text(args.paper, args.protocol), paper_table(args.paper, folders, summaries)]

    text = [f"# Results: {', '.join(runs)}"]
    text.append(
        f"Protocol {args.protocol}, prediction {args.prediction}. Mean +- standard deviation over cases, with the "
        "percentile bootstrap's interval of the mean; missing values are counted and left out of both. volume_error is "
        "|volume - true volume| of a case, relative: divided by the true volume."
    )
    text += [f"Left out of {name}, not in every run: {', '.join(cases)}." for name, cases in left_out.items() if cases]
    text += tables
    if args.figures != 0:
        charts = draw_charts(runs, summaries, args)
        text += ["## Charts", *(f"![{caption}]({chart})" for caption, chart in charts.items())]
    text += ["## Cases", *_case_texts(runs)]
    if args.figures != 0:
        for name, frame in runs.items():
            cases = choose_cases(frame, len(frame) if args.figures is None else args.figures)
            pictures = draw_cases(folders[name], name, frame, cases, args)
            text += [f"![{name}, {picture.stem}]({picture.as_posix()})" for picture in pictures]
    (args.output / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return "\n\n".join(tables)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a wrong file or value ends it with one line that says what to do."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description="Tables and pictures of runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="has per_case.csv; the first is the baseline")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for tables and pictures")
    parser.add_argument("--prediction", default="y_f", choices=PREDICTIONS)
    parser.add_argument("--protocol", default="full_scan", choices=PROTOCOLS)
    parser.add_argument(
        "--paper",
        choices=list(PUBLISHED),
        help="put the paper's results beside ours, for runs named after a method (tissnet or <task>_tissnet)",
    )
    parser.add_argument(
        "--figures",
        default=None,
        type=_figure_count,
        metavar="N|all|none",
        help="pictures of N cases per run, from worst to best Dice (default: all)",
    )
    args = parser.parse_args(argv)
    try:
        tables = make_report(args)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(tables + "\n")


def _figure_count(text: str) -> int | None:
    """Read --figures: a number of cases, 0 for none, None for all."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number of cases, all or none")
    return int(text)


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
        landmarks = _landmarks(frame, ("worst", "median", "best"))
        named = (f"{label} {case} ({_text(frame.loc[case, 'dice'])})" for label, case in landmarks)
        texts.append(f"Dice of {name}: {', '.join(named)}.")
    failures = [text for name, frame in runs.items() if (text := failure_text(name, frame))]
    if failures:
        texts.append(
            "Distances are missing where a mask is empty, so a run that finds nothing in a hard case loses that case "
            "from its mean distance; read them with the tumors missed and the false positives."
        )
    return texts + failures


def _landmarks(frame: pd.DataFrame, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Pair the labels with the worst, median and best case by Dice; all three are one case if there is only one."""
    cases = choose_cases(frame.dropna(subset="dice"), 3) if frame["dice"].notna().any() else []
    if len(cases) in (1, 2):
        cases = [cases[0], cases[0], cases[-1]]
    return list(zip(labels, cases, strict=False))


def _read_entries(index: Path) -> list[dict[str, Any]]:
    """Read predictions.json, a list of objects with at least case, image and pred."""
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{index}: found no valid JSON ({error}); expected a list of cases. Evaluate again."
        ) from error
    for entry in entries if isinstance(entries, list) else [entries]:
        absent = {"case", "image", "pred"} - set(entry if isinstance(entry, dict) else ())
        if absent or not isinstance(entries, list):
            found = ", ".join(sorted(absent)) or "a list around it"
            raise ValueError(
                f"{index}: found an entry without {found}; expected a list of objects with "
                "case, image, target, label, pred, synthetic and error. Evaluate again."
            )
    return entries


def _read_volumes(index: Path, entry: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], tuple[float, ...]]:
    """Read the images of a case under the names that case_figure gives them; of several sources, the last."""
    from scripts.pictures import read_volume  # as in draw_cases

    images = [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])
    files = {"source": images[-1], "truth": entry.get("label"), "prediction": entry["pred"]}
    files |= {key: entry.get(key) for key in ("synthetic", "target", "error")}
    volumes: dict[str, np.ndarray] = {}
    spacing: tuple[float, ...] = ()
    for name, file in files.items():
        if file is not None:
            try:
                volumes[name], size = read_volume(index.parent / file)
            except (FileNotFoundError, ValueError) as error:
                message = f"{index}: case {entry['case']}: {error} Evaluate again or use --figures none."
                raise type(error)(message) from error
            spacing = spacing or size
    return volumes, spacing


def _file_name(name: str) -> str:
    """Replace what a file name should not hold."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"


def _header(cells: Sequence[str]) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [_row(cells), _row(["---"] * len(cells))]


def _row(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _mean_cell(row: pd.Series) -> str:
    """Write mean +- std and the number of missing values of a summary's row."""
    if row["missing"] == row["cases"]:
        return f"all {MISSING}"
    return f"{_text(row['mean'])} +- {_text(row['std'])}" + (
        f" ({row['missing']:g} {MISSING})" if row["missing"] else ""
    )


def _interval_cell(row: pd.Series) -> str:
    """Write the interval from low to high."""
    return MISSING if np.isnan(row["low"]) else f"{_text(row['low'])} to {_text(row['high'])}"


def _count_cell(kinds: pd.Series, failure: str, success: str, what: str) -> str:
    """Write how many cases of a kind failed, and of how many the volumes are unknown."""
    failed, unknown = (kinds == failure).sum(), (kinds == UNKNOWN).sum()
    if unknown == len(kinds):
        return f"all {MISSING}"
    return f"{failed} of {failed + (kinds == success).sum()} {what}" + (f" ({unknown} {MISSING})" if unknown else "")


def _text(value: Any) -> str:
    """Write a number of a table with four significant digits, or say that it is missing."""
    number = float(value)
    return MISSING if np.isnan(number) else f"{number:.4g}"


if __name__ == "__main__":
    main()
