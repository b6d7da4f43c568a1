"""The example docs/segment_scan.py, in a process that has what a release's zip has, against the config's own run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from warm import Warm

from scripts.data.datalist import load_datalist
from scripts.networks.tissnet import TISSNet
from scripts.weights import enter_weights

SMALL = (4, 4, 8, 8, 8)  # debug.yaml's features
PROCESS_SECONDS = 240
IN_A_ZIP = ("configs", "scripts", "docs", "models", "LICENSE")
VOLUME_TOLERANCE_MM3 = 0.06  # logged with one decimal


@pytest.fixture
def python(warm: Warm, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs python with one thread, as this process does meanwhile, for sums depend on that; gives what it prints."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: str | Path, cwd: Path) -> str:
        log = tmp_path / "log"
        status = warm.run([*map(str, arguments)], cwd, log, PROCESS_SECONDS, {"PYTHONDONTWRITEBYTECODE": "1"})
        assert status == 0, log.read_text()[-2000:]
        return log.read_text()

    yield run
    torch.set_num_threads(threads)


def unpacked(bundle_root: Path, folder: Path) -> Path:
    """A copy of what a release's zip has."""
    bundle = folder / "tissnet_vestibular_schwannoma"
    bundle.mkdir()
    for name in IN_A_ZIP:
        source = bundle_root / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, bundle / name)
    return bundle


def made_small(bundle: Path) -> Path:
    """The copied bundle with debug.yaml's settings and weights from a seed, whose mask is neither empty nor full."""
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text())
    debug = yaml.safe_load((bundle / "configs" / "debug.yaml").read_text())
    config.write_text(json.dumps(content | {key: value for key, value in debug.items() if key in content}))
    shutil.rmtree(bundle / "models" / "localizer")
    torch.manual_seed(0)
    torch.save(TISSNet(1, features=SMALL).state_dict(), bundle / "models" / "model.pt")
    assert enter_weights(bundle / "models" / "model.pt", bundle=bundle)
    return bundle


def check(said: str, cases: list[str], found: Path, expected: Path) -> None:
    """Every file is voxel for voxel that of the config's own run, and the logged volume that of the mask."""
    logged = dict(re.findall(r"INFO segment_scan: (\S+): ([\d.]+) mm3", said))
    assert list(logged) == cases
    for case in cases:
        for name in ("pred", "synthetic", "error"):
            written, wanted = (nib.load(folder / case / f"{case}_{name}.nii.gz") for folder in (found, expected))
            assert written.get_data_dtype() == wanted.get_data_dtype()
            assert np.array_equal(written.affine, wanted.affine)
            assert np.array_equal(written.dataobj, wanted.dataobj), (case, name)
            if name == "pred":
                mask = np.asarray(written.dataobj)
                assert 0 < mask.sum() < mask.size
                volume = mask.sum() * np.prod(written.header.get_zooms())
                assert float(logged[case]) == pytest.approx(volume, abs=VOLUME_TOLERANCE_MM3)


def test_the_example_writes_what_the_config_writes(
    python: Callable[..., str], bundle_root: Path, vs_data: Path, tmp_path: Path
) -> None:
    """Two cases, loaded once; from another folder, with the bundle's path relative to it."""
    bundle = made_small(unpacked(bundle_root, tmp_path))
    scans = [Path(entry["image"][0]) for entry in load_datalist(vs_data / "datalist.json", "testing")]
    cases = [scan.name.removesuffix("_T2.nii.gz") for scan in scans]
    said = python(bundle / "docs" / "segment_scan.py", bundle.name, *scans, "--output", "found", cwd=tmp_path)
    given = {"bundle_root": str(bundle), "dataset_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "expected")}
    (tmp_path / "in").mkdir()
    for scan in scans:
        shutil.copy(scan, tmp_path / "in")
    config = str(bundle / "configs" / "inference.json")
    workflow = ConfigWorkflow(config, workflow_type="infer", logging_file=False, **given)
    workflow.initialize()
    workflow.run()
    check(said, cases, tmp_path / "found", tmp_path / "expected")
    assert sorted(path.name for path in bundle.iterdir()) == sorted(IN_A_ZIP)


@pytest.mark.slow
def test_the_example_with_the_shipped_weights(
    python: Callable[..., str], bundle_root: Path, make_data: Callable[[str], Path], tmp_path: Path
) -> None:
    """Against `python -m monai.bundle run` in the bundle's folder."""
    bundle = unpacked(bundle_root, tmp_path)
    scan = Path(load_datalist(make_data("vs") / "datalist.json", "training")[0]["image"][0])
    said = python(bundle / "docs" / "segment_scan.py", bundle, scan, "--output", tmp_path / "found", cwd=tmp_path)
    python(
        *("-m", "monai.bundle", "run", "--config_file", "configs/inference.json"),
        *("--dataset_dir", scan, "--output_dir", tmp_path / "expected"),
        cwd=bundle,
    )
    check(said, [scan.name.removesuffix("_T2.nii.gz")], tmp_path / "found", tmp_path / "expected")
