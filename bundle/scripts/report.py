"""per_case.csv of one or more runs -> report.md, summary.csv and pictures.

    python -m scripts.report RUN [RUN ...] --output DIR [--prediction y_f] [--protocol full_scan] [--figures N|all|none]

Reads only `<run>/per_case.csv` and, for the pictures of cases, `<run>/predictions.json`. Nothing here runs a model or
computes a metric of a case, and nothing imports torch.
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

from scripts.per_case import NUMBER_COLUMNS, PREDICTIONS, PROTOCOLS, read_per_case

logger = logging.getLogger(__name__)

COMPARED = ("dice", "assd_mm", "hd95_mm")
CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
SAME_DIFFERENCE = 1e-12  # differences that vary less than this are one number; a t-test has no meaning there
MISSING = "missing"


def load_run(run: Path, *, prediction: str, protocol: str) -> pd.DataFrame:
    """Return one run's numbers, a row per case and a column per metric.

    Args:
        run: folder that holds per_case.csv.
        prediction: which rows, y_f, y_r or mean.
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
    return chosen.set_index("case")[list(NUMBER_COLUMNS)]


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
    """Compute mean, standard deviation (n - 1), number of cases and of missing values, a row per metric.

    Mean and deviation are over the values that are there; the deviation of one value is missing, not 0.
    """
    return pd.DataFrame(
        {"mean": frame.mean(), "std": frame.std(), "cases": len(frame), "missing": frame.isna().sum()}
    ).rename_axis("metric")


def compare(first: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Compute the difference other - first over the same cases, for Dice, ASSD and HD95.

    Cases where one of the two values is missing are left out and counted. The interval is the percentile bootstrap of
    the mean (seeded), p the two-sided paired t-test; with fewer than two pairs both are missing, and p also where all
    differences are equal.

    Returns:
        a row per metric: pairs, left_out, difference, low, high, p.
    """
    from scipy import stats  # slow to import, and needed for two or more runs only

    rows = {}
    for metric in COMPARED:
        pairs = pd.DataFrame({"first": first[metric], "other": other[metric]}).dropna()
        difference = (pairs["other"] - pairs["first"]).to_numpy()
        low = high = p = np.nan
        if len(difference) > 1:
            draws = np.random.default_rng(SEED).integers(len(difference), size=(RESAMPLES, len(difference)))
            tail = 50 * (1 - CONFIDENCE)
            low, high = np.percentile(difference[draws].mean(axis=1), [tail, 100 - tail])
            if np.ptp(difference) > SAME_DIFFERENCE:
                p = stats.ttest_rel(pairs["other"], pairs["first"]).pvalue
        mean = difference.mean() if len(difference) else np.nan
        rows[metric] = [len(difference), len(first) - len(difference), mean, low, high, p]
    columns = ["pairs", "left_out", "difference", "low", "high", "p"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("metric")


def choose_cases(frame: pd.DataFrame, count: int) -> list[str]:
    """Return `count` cases spread evenly from the worst to the best Dice; cases without Dice come first."""
    ranked = list(frame["dice"].sort_values(kind="stable", na_position="first").index)
    if count == 1:
        return ranked[:1]
    return [ranked[i] for i in np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)]


def metric_table(summaries: Mapping[str, pd.DataFrame]) -> str:
    """Return the Markdown table of mean +- std, a row per metric and a column per run."""
    lines = [_row(["metric", *summaries]), _row(["---"] * (len(summaries) + 1))]
    lines.append(_row(["cases", *(str(summary["cases"].iloc[0]) for summary in summaries.values())]))
    for metric in NUMBER_COLUMNS:
        cells = []
        for summary in summaries.values():
            mean, std, cases, missing = summary.loc[metric, ["mean", "std", "cases", "missing"]]
            if missing == cases:
                cells.append(f"all {MISSING}")
            else:
                cells.append(f"{_text(mean)} +- {_text(std)}" + (f" ({missing:g} {MISSING})" if missing else ""))
        lines.append(_row([metric, *cells]))
    return "\n".join(lines)


def difference_table(comparisons: Mapping[str, pd.DataFrame]) -> str:
    """Return the Markdown table of the differences to the first run."""
    interval = f"{100 * CONFIDENCE:g} % interval"
    header = ["run", "metric", "pairs", "left out", "mean difference", interval, "paired t-test p"]
    lines = [_row(header), _row(["---"] * len(header))]
    for run, comparison in comparisons.items():
        for metric, row in comparison.iterrows():
            bounds = MISSING if np.isnan(row["low"]) else f"{_text(row['low'])} to {_text(row['high'])}"
            p = MISSING if np.isnan(row["p"]) else f"{row['p']:.2g}"
            counts = [f"{row['pairs']:g}", f"{row['left_out']:g}"]
            lines.append(_row([run, str(metric), *counts, _text(row["difference"]), bounds, p]))
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
    from scripts.figures import case_figure  # matplotlib is slow to import, and --figures none does without

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


def draw_chart(runs: Mapping[str, pd.DataFrame], args: argparse.Namespace) -> Path:
    """Draw Dice and HD95 per case, in the order of the first run's Dice; return the file relative to the output."""
    from scripts.figures import chart_figure  # as in draw_cases

    cases = list(next(iter(runs.values()))["dice"].sort_values(kind="stable").index)
    dice = {name: frame.loc[cases, "dice"].tolist() for name, frame in runs.items()}
    hd95 = {name: frame.loc[cases, "hd95_mm"].tolist() for name, frame in runs.items()}
    title = f"Each case, {args.protocol}, {args.prediction}; in the order of {next(iter(runs))}'s Dice"
    chart_figure(args.output / "per_case.png", cases=cases, dice=dice, hd95_mm=hd95, title=title)
    return Path("per_case.png")


def make_report(args: argparse.Namespace) -> str:
    """Write report.md, summary.csv and the pictures; return the text of the tables."""
    folders = _name_runs(args.runs)
    loaded = {name: load_run(run, prediction=args.prediction, protocol=args.protocol) for name, run in folders.items()}
    runs, left_out = keep_common(loaded)
    summaries = {name: summarize(frame) for name, frame in runs.items()}
    first, *others = runs
    tables = metric_table(summaries)
    if others:
        comparisons = {name: compare(runs[first], runs[name]) for name in others}
        tables += f"\n\nDifferences to {first}, case by case:\n\n{difference_table(comparisons)}"

    args.output.mkdir(parents=True, exist_ok=True)
    pd.concat(summaries, names=["run"]).to_csv(args.output / "summary.csv")
    text = [
        f"# Results: {', '.join(runs)}",
        f"Protocol {args.protocol}, prediction {args.prediction}. Mean +- standard",
    ]
    text[-1] += " deviation over cases; missing values are counted and left out of the mean."
    text += [f"Left out of {name}, not in every run: {', '.join(cases)}." for name, cases in left_out.items() if cases]
    text.append(tables)
    for name, frame in runs.items():
        labels = ("worst", "median", "best")
        named = (f"{label} {case} ({_text(frame.loc[case, 'dice'])})" for label, case in _landmarks(frame, labels))
        text.append(f"Dice of {name}: {', '.join(named)}.")
    if args.figures != 0:
        text.append(f"![Dice and HD95 of each case]({draw_chart(runs, args)})")
        for name, frame in runs.items():
            cases = choose_cases(frame, len(frame) if args.figures is None else args.figures)
            pictures = draw_cases(folders[name], name, frame, cases, args)
            text += [f"![{name}, {picture.stem}]({picture.as_posix()})" for picture in pictures]
    (args.output / "report.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return tables


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a wrong file or value ends it with one line that says what to do."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m scripts.report", description="Tables and pictures of runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="has per_case.csv; the first is the baseline")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for tables and pictures")
    parser.add_argument("--prediction", default="y_f", choices=PREDICTIONS)
    parser.add_argument("--protocol", default="full_scan", choices=PROTOCOLS)
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
    from scripts.figures import read_volume  # as in draw_cases

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


def _row(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(value: Any) -> str:
    """Write a number of a table with four significant digits, or say that it is missing."""
    number = float(value)
    return MISSING if np.isnan(number) else f"{number:.4g}"


if __name__ == "__main__":
    main()
