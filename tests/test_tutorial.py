"""The tutorial notebook: that it is committed bare, and that it runs, in a copy of the bundle without network."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

from scripts.evaluation.per_case import NUMBER_COLUMNS

BUNDLE = Path(__file__).parents[1] / "bundle"
NOTEBOOK = BUNDLE / "docs" / "tutorial.ipynb"
SHIPPED = ("configs", "docs", "models", "scripts")
WORK = "out_tutorial"  # the notebook's folder of results
CELL_SECONDS = 300
NOWHERE = "http://127.0.0.1:9"  # the port of no service


def files_of(folder: Path) -> set[str]:
    """The names of all files below a folder but compiled code."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(file) for file in files if "__pycache__" not in file.parts}


def outputs_of(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    """What the cells showed of one MIME type, in order."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert not any("attachments" in cell for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs_from_the_docs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test, so that the notebook is run once, whichever process tests run in."""
    root = tmp_path / "tissnet_vestibular_schwannoma"
    for name in SHIPPED:
        shutil.copytree(BUNDLE / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = files_of(root)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))  # the kernel of this environment, and nothing in the home folder

    notebook = nbformat.read(root / "docs" / "tutorial.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(root / "docs")}}
    ).execute()

    written = files_of(root) - before
    assert files_of(root) >= before
    assert all(Path(name).parts[0] == WORK for name in written), "a cell wrote outside the notebook's folder"
    for name in ("data/overview.html", "runs/perceptor/checkpoints/best.pt", "runs/tissnet/checkpoints/best.pt"):
        assert f"{WORK}/{name}" in written

    figures = [base64.b64decode(picture) for picture in outputs_of(notebook, "image/png")]
    assert figures == [(root / WORK / name).read_bytes() for name in ("case.png", "result.png")]

    (table,) = outputs_of(notebook, "text/markdown")
    assert {line.split("|")[1].strip() for line in table.splitlines() if "|" in line} >= set(NUMBER_COLUMNS)
    per_case = pd.read_csv(root / WORK / "runs" / "tissnet" / "per_case.csv")
    dice = per_case.loc[per_case["prediction"] == "y_f", "dice"]
    assert len(dice) == 2 and f"| dice | {dice.mean():.4g} +- {dice.std():.4g} |" in table

    volumes = pd.read_csv(root / WORK / "segmented" / "volumes.csv")
    (case,) = volumes["case"]
    scan = nib.load(root / WORK / "scans" / f"{case}_T2.nii.gz")
    mask = nib.load(root / WORK / "segmented" / case / f"{case}_pred.nii.gz")
    voxels = np.asanyarray(mask.dataobj)
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    assert set(np.unique(voxels)) == {0, 1}
    found = float(voxels.sum() * np.prod(scan.header.get_zooms()))
    assert volumes["volume_mm3"].item() == pytest.approx(found, abs=0.1)
    assert f"{volumes['volume_mm3'].item()}" in outputs_of(notebook, "text/plain")[-1]
