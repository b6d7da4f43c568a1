"""Our bundle in MONAI Label's own sample apps: what works there without our app, and what cannot.

Both apps look for models on the internet unless told not to; on a CPU-only torch they need torchvision's operators
declared. Slow: two servers that import everything. Our app is in test_client.py.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from made.scans import save_phantom
from running import TORCHVISION_SHIM, free_port, running

from monailabel_app.bundle import ServedBundle
from monailabel_app.tasks.infer import TISSNetInferTask

pytestmark = pytest.mark.slow

NAME = "tissnet_vestibular_schwannoma"
IMAGE = "phantom_T2"
APPS = Path(sys.prefix) / "monailabel" / "sample-apps"
OPTIONS = {
    "monaibundle": ["models", NAME],
    "radiology": ["bundles", NAME, "models", "segmentation_spleen", "use_pretrained_model", "false"],
}


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def stock(request, bundle_root, tmp_path_factory):
    """A sample app's server with our bundle among its models; its address and its store."""
    folder = tmp_path_factory.mktemp(request.param)
    app = folder / "app"
    shutil.copytree(APPS / request.param, app)
    for part in ("configs", "models", "scripts"):
        shutil.copytree(bundle_root / part, app / "model" / NAME / part)
    (folder / "store").mkdir()
    save_phantom(folder / "store", f"{IMAGE}.nii.gz", 1)
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--host", "127.0.0.1"]
    command += ["--studies", str(folder / "store"), "--port", str(port)]
    conf = ["zoo_source", "local", "sam2", "false", *OPTIONS[request.param]]
    for key, value in zip(conf[::2], conf[1::2], strict=True):
        command += ["--conf", key, value]
    (folder / "shim").mkdir()
    (folder / "shim" / "sitecustomize.py").write_text(TORCHVISION_SHIM)  # for the server and its background tasks
    env = os.environ | {"PYTHONPATH": str(folder / "shim")}
    url = f"http://127.0.0.1:{port}"
    with running(command, url, folder / "log", cwd=folder, env=env):
        yield url, folder / "store"


def test_the_mask_is_that_of_our_app_and_named_right(stock, bundle_root, tmp_path):
    url, store = stock
    model = requests.get(f"{url}/info/", timeout=30).json()["models"][NAME]
    assert model["labels"] == {"vestibular schwannoma": 1}
    options = '{"result_extension": ".nrrd", "result_dtype": "uint8"}'
    for _ in range(2):  # the app loads the bundle's code anew at every step of every request
        response = requests.post(
            f"{url}/infer/{NAME}?image={IMAGE}&output=image", files={"params": (None, options)}, timeout=120
        )
        assert response.status_code == 200, response.text
    (tmp_path / "mask.nrrd").write_bytes(response.content)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.nrrd"))).T
    ours = TISSNetInferTask(ServedBundle("ours", bundle_root)).answer(
        [store / f"{IMAGE}.nii.gz"], {"result_extension": ".nii.gz"}, case=IMAGE
    )
    assert mask.any()
    assert np.array_equal(mask, np.asarray(nib.load(ours.mask).dataobj))


def test_training_there_cannot_work_as_it_knows_no_target(stock):
    """Its list of cases has image and label only: the run ends with an error that says so, and changes no weights."""
    url, store = stock
    weights = store.parent / "app" / "model" / NAME / "models" / "model.pt"
    before = weights.read_bytes()
    for seed in (1, 2):
        save_phantom(store, f"extra_{seed}_T2.nii.gz", seed)
    label = nib.load(store / f"{IMAGE}.nii.gz")
    nib.save(nib.Nifti1Image((label.get_fdata() > 300).astype(np.uint8), label.affine), store.parent / "label.nii.gz")
    for image in (IMAGE, "extra_1_T2", "extra_2_T2"):
        with (store.parent / "label.nii.gz").open("rb") as file:
            requests.put(f"{url}/datastore/label?image={image}", files={"label": file}, timeout=30).raise_for_status()
    requests.post(f"{url}/train/{NAME}", json={"max_epochs": 1, "name": "x"}, timeout=60).raise_for_status()
    end = time.monotonic() + 120
    while (task := requests.get(f"{url}/train/", timeout=30).json())["status"] not in ("DONE", "ERROR"):
        assert time.monotonic() < end
        time.sleep(1)
    assert task["status"] == "ERROR"
    assert "Key `target` of transform `LoadScansd` was missing" in (store.parent / "log").read_text()
    assert weights.read_bytes() == before
