"""Tests of monailabel_app.store.shared: two processes that write one store at once, and a list that was cut off."""

from __future__ import annotations

import inspect
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

{write}
folder, label, images, rounds = sys.argv[1:]
store = LocalDatastore(folder, extensions=("*.nii.gz",))
share(store)
print("ready", flush=True)
sys.stdin.readline()
write(store, "batch", label, int(images), int(rounds))
"""


def write(store, tag, label, images, rounds):
    """Also the code of the other process."""
    for index in range(rounds):
        for image in range(images):
            store.save_label(f"scan{image}", label, f"{tag}{index}", {"said": [tag, index, image]})
            store.update_label_info(f"scan{image}", f"{tag}{index}", {"more": True})


def make_store(folder: Path) -> LocalDatastore:
    folder.mkdir()
    for image in range(IMAGES):
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), folder / f"scan{image}.nii.gz")
    return LocalDatastore(str(folder), extensions=("*.nii.gz",))


def test_what_two_processes_write_at_once_is_all_kept(tmp_path: Path) -> None:
    store = make_store(tmp_path / "studies")
    share(store)
    label = str(tmp_path / "studies" / "scan0.nii.gz")
    script = SCRIPT.format(write=inspect.getsource(write))
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "studies"), label, str(IMAGES), str(ROUNDS)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdin is not None and other.stdout is not None and other.stdout.readline() == "ready\n"
    other.stdin.write("go\n")
    other.stdin.flush()
    write(store, "clinician", label, IMAGES, ROUNDS)
    other.communicate(timeout=120)
    assert other.returncode == 0
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
