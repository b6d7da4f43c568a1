"""predictions.json of a run: which files an evaluation left for each case, and pictures of them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scripts.data.volume import CaseError
from scripts.pictures import case_figure, read_volume

logger = logging.getLogger(__name__)


def draw_cases(
    run: Path, titles: Mapping[str, str], output: Path, *, name: str, prediction: str, protocol: str
) -> list[Path]:
    """Draw cases of a run from its predictions.json.

    Entries are read as y_f and full_scan unless they say otherwise with the keys prediction and protocol.

    Args:
        run: folder of the run.
        titles: a line above each picture, by case.
        output: folder of the report; pictures are written to its figures/<name>.
        name: what the run is called in the report.
        prediction: which entries, y_f, y_c, y_r or mean.
        protocol: which entries, full_scan or paper_crop.

    Returns:
        the PNG files, relative to the output folder; none if the run has no predictions.json.

    Raises:
        ValueError: predictions.json is malformed, a file that it names cannot be read, or the images of a case are not
            on one grid.
    """
    index = run / "predictions.json"
    if not index.is_file():
        logger.warning("%s: no such file; no pictures of cases for this run.", index)
        return []
    entries = {}
    for entry in _read_entries(index):
        if (entry.get("prediction", "y_f"), entry.get("protocol", "full_scan")) == (prediction, protocol):
            entries[str(entry["case"])] = entry
    pictures = []
    for case, title in titles.items():
        if case not in entries:
            logger.warning("%s: case %s: no entry of %s %s; not drawn.", index, case, protocol, prediction)
            continue
        volumes, spacing = _read_volumes(index, entries[case])
        picture = Path("figures") / _file_name(name) / f"{_file_name(case)}.png"
        case_figure(output / picture, spacing=spacing, title=title, **volumes)
        pictures.append(picture)
    return pictures


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
    images = [entry["image"]] if isinstance(entry["image"], str) else list(entry["image"])
    files = {"source": images[-1], "truth": entry.get("label"), "prediction": entry["pred"]}
    files |= {key: entry.get(key) for key in ("synthetic", "target", "error")}
    volumes: dict[str, np.ndarray] = {}
    spacing: tuple[float, ...] = ()
    for name, file in files.items():
        if file is not None:
            try:
                volumes[name], size = read_volume(index.parent / file)
            except CaseError as error:
                message = f"{index}: case {entry['case']}: {error}. Evaluate again or use --figures none."
                raise ValueError(message) from error
            spacing = spacing or size
    return volumes, spacing


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "unnamed"
