"""Tests of a method with other outputs than TISS-Net's, from training to files: a small override is all it needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from scripts.data.datalist import load_datalist

OVERRIDE = str(Path(__file__).parent / "made" / "pix2pix.yaml")

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def trained(run_workflow: Run, vs_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pix2pix")
    run_workflow(["train.json", OVERRIDE, "debug.yaml"], given(vs_data, folder), run_id="training")
    return folder


def given(data: Path, folder: Path) -> dict[str, Any]:
    return {"dataset_dir": str(data), "run_dir": str(folder), "device": "$torch.device('cpu')"}


def test_it_is_trained_and_validated(trained: Path) -> None:
    assert (trained / "checkpoints" / "best.pt").is_file()
    assert len(list((trained / "previews").iterdir())) == 2


@pytest.mark.parametrize(("protocol", "section"), [("full_scan", "testing"), ("paper_crop", "validation")])
def test_it_is_evaluated(run_workflow: Run, vs_data: Path, trained: Path, protocol: str, section: str) -> None:
    files = ["train.json", "evaluate.json", OVERRIDE, "debug.yaml"]
    asked = {"protocol": protocol, "section": section, "crop_size": [32, 32, -1]}
    run_workflow(files, given(vs_data, trained) | asked, run_id="evaluating")
    table = pd.read_csv(trained / "per_case.csv").query("protocol == @protocol")
    cases = [entry["case"] for entry in load_datalist(vs_data / "datalist.json", section)]
    assert list(zip(table["case"], table["prediction"], strict=True)) == [(case, "y_f") for case in cases]
    assert table[["dice", "psnr_global", "ssim_global"]].notna().all(axis=None)
    assert table["perceptibility_dice"].isna().all()
    entries = json.loads((trained / "predictions.json").read_text())
    for entry in entries:
        if entry["protocol"] == protocol:
            assert has_background(Path(entry["synthetic"])) == (protocol == "paper_crop")
            assert entry["error"] is None


def test_it_segments_scans(run_workflow: Run, vs_data: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = Path(load_datalist(vs_data / "datalist.json", "testing")[0]["image"][0])
    shutil.copy(source, tmp_path / "in")
    network_def = {"_target_": "made.pix2pix.Pix2Pix", "in_channels": "@source_channels", "features": "@features"}
    overrides = {
        "dataset_dir": str(tmp_path / "in"),
        "output_dir": str(tmp_path / "out"),
        "checkpoint_path": str(trained / "checkpoints" / "best.pt"),
        "device": "$torch.device('cpu')",
        "network_def": network_def,
    }
    run_workflow(["inference.json", "debug.yaml"], overrides, kind="infer")
    (row,) = pd.read_csv(tmp_path / "out" / "volumes.csv").to_dict("records")
    case, folder = row["case"], tmp_path / "out" / row["case"]
    written = {path.name.removeprefix(f"{case}_") for path in folder.iterdir()}
    assert written == {"pred.nii.gz", "synthetic.nii.gz", "overlay.png", "result.json"}
    mask = nib.load(folder / f"{case}_pred.nii.gz")
    assert np.array_equal(mask.affine, nib.load(source).affine) and set(np.unique(mask.dataobj)) <= {0, 1}
    assert row["voxels"] == np.asarray(mask.dataobj).sum() and pd.isna(row["error"])
    assert not has_background(folder / f"{case}_synthetic.nii.gz")


def has_background(path: Path) -> bool:
    """Whether a synthetic image has background, as there is outside of a crop; these phantoms have no air."""
    image = np.asarray(nib.load(path).dataobj)
    assert image[image > 0].min() < 500 < image.max() <= 1000  # a probability is nowhere below
    return bool(image.min() == 0)
