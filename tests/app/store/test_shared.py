"""Tests of monailabel_app.store.shared: two processes that write one store at once, and a list that was cut off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from monailabel.datastore.local import LocalDatastore

from monailabel_app.store.shared import LIST, mend, share

ROOT = Path(__file__).parents[3]
IMAGES, ROUNDS = 4, 3
SCRIPT = """
import sys
from monailabel.datastore.local import LocalDatastore
from monailabel_app.store.shared import share

folder, tag, label, images, rounds = sys.argv[1:]
store = LocalDatastore(folder, extensions=("*.nii.gz",))
share(store)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(rounds)):
    for image in range(int(images)):
        store.save_label(f"scan{image}", label, f"{tag}{_}", {"said": [tag, _, image]})
        store.update_label_info(f"scan{image}", f"{tag}{_}", {"more": True})
"""


def make_store(folder: Path) -> LocalDatastore:
    folder.mkdir()
    for image in range(IMAGES):
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), folder / f"scan{image}.nii.gz")
    return LocalDatastore(str(folder), extensions=("*.nii.gz",))


def test_what_two_processes_write_at_once_is_all_kept(tmp_path: Path) -> None:
    make_store(tmp_path / "studies")
    label = tmp_path / "studies" / "scan0.nii.gz"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "studies"), tag, str(label), str(IMAGES), str(ROUNDS)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for tag in ("clinician", "batch")
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=120)
        assert process.returncode == 0
    found = LocalDatastore(str(tmp_path / "studies"), extensions=("*.nii.gz",))
    for tag in ("clinician", "batch"):
        for index in range(ROUNDS):
            for image in range(IMAGES):
                info = found.get_label_info(f"scan{image}", f"{tag}{index}")
                assert info.get("said") == [tag, index, image] and info.get("more"), (tag, index, image)


def test_a_list_that_was_cut_off_is_mended(tmp_path: Path) -> None:
    store = make_store(tmp_path / "studies")
    share(store)
    share(store)  # a second call changes nothing
    store.update_image_info("scan0", {"said": "before"})
    store.update_image_info("scan1", {"said": "last"})
    path = tmp_path / "studies" / LIST
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])  # killed while it wrote

    mend(tmp_path / "studies")

    found = LocalDatastore(str(tmp_path / "studies"), extensions=("*.nii.gz",))
    assert found.get_image_info("scan0")["said"] == "before" and found.get_image_info("scan1")["said"] == "last"
    assert (tmp_path / "studies" / f"{LIST}.damaged").is_file()
    mend(tmp_path / "studies")
    assert json.loads(path.read_text()) == json.loads(whole)
