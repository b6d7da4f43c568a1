"""The route of docs/data.md from a hospital's archive to weights in use, command by command as printed, on made data.

The commands are read from the document; only the size of the networks and the number of steps are made small.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from made_tcia import write_patient

BUNDLE = Path(__file__).parents[1] / "bundle"
HEADING = "## Your own data, from the hospital's archive to weights in use"
NETWORK = ("--features", "[4,4,8,8,8]", "--patch_size", "[32,32,8]", "--pixdim", "[0.82,0.82,2.2]")
TRAINING = (*NETWORK, "--discriminator_features", "4", "--epochs", "1", "--val_interval", "1", "--num_workers", "0")
PATIENTS = 4


def commands() -> list[list[str]]:
    """The commands of the document's section, in order, each as its arguments."""
    text = (BUNDLE / "docs/data.md").read_text(encoding="utf-8")
    section = text[text.index(HEADING) :]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines() if line.startswith("python ")]


def test_every_command_of_the_route(tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(
        BUNDLE, bundle, ignore=shutil.ignore_patterns("models", "runs", "data", "demo", "eval", ".*", "*cache*")
    )
    shutil.copytree(BUNDLE / "scripts" / "data", bundle / "scripts" / "data")
    for number in range(1, PATIENTS + 1):
        write_patient(tmp_path / "archive", number, size="tiny", extras=False)
    new = write_patient(tmp_path / "new", 9, size="tiny", extras=False, structure_sets=())
    places = {"ARCHIVE": tmp_path / "archive", "NEW": tmp_path / "new", "OUT": tmp_path / "out"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for arguments in commands():
        small = NETWORK if "configs/inference.json" in arguments else TRAINING if "monai.bundle" in arguments else ()
        command = [sys.executable, *(str(places.get(word, word)) for word in arguments[1:]), *small]
        done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    datalist = json.loads((bundle / "data/own/datalist.json").read_text())
    assert [len(datalist[name]) for name in ("training", "validation", "testing")] == [2, 1, 1]
    assert (bundle / "runs/vs_tissnet/report/report.md").is_file()
    assert (bundle / "models/perceptor/perceptor.pt").is_file()
    # The promoted weights segment a new scan, on the grid of its DICOM series.
    (mask,) = (tmp_path / "out").rglob("*_pred.nii.gz")
    image = nib.load(mask)
    assert mask.name == "VS-SEG-009_pred.nii.gz" and image.shape == new.images["T2"].shape
    np.testing.assert_allclose(image.affine, new.affines["T2"], atol=1e-4)
