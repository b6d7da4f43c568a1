"""The whole app through MONAI Label's own client, the one that 3D Slicer uses, against a server of its own process.

One test per thing that a clinician does, in that order, on one server and one store of small phantoms. What the server
refuses is in web/test_server.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import SimpleITK as sitk
from made.scans import save_phantom
from monailabel.client.client import MONAILabelClient
from running import free_port, running

ROOT = Path(__file__).parents[2]
ODD = "phantom (1) [left]_T2"  # spaces and brackets, as clinics name files
ANSWER_SECONDS = 120
SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for seed, name in enumerate(("first", "phantom (1) [left]", "third")):
        save_phantom(folder, f"{name}_T2.nii.gz", seed)
        save_phantom(folder, f"{name}_ceT1.nii.gz", seed, "ceT1")
    return folder


@pytest.fixture(scope="module")
def server_process(store, tmp_path_factory):
    """A server over the store, and its address; the demonstration weights are allowed."""
    port = str(free_port())
    command = [sys.executable, "-W", "ignore", "-m", "monailabel_app", "--studies", str(store), "--port", port]
    command += ["--conf", "allow_demo_weights", "true", "--conf", "versions", str(tmp_path_factory.mktemp("versions"))]
    url = f"http://127.0.0.1:{port}"
    with running(command, url, tmp_path_factory.mktemp("log") / "server.log", cwd=ROOT) as process:
        yield process, url


@pytest.fixture(scope="module")
def server(server_process):
    return server_process[1]


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return MONAILabelClient(server, tmpdir=str(tmp_path_factory.mktemp("client")), client_id="slicer-test")


def test_info_says_what_is_served(client):
    info = client.info()
    assert "DEMONSTRATION" in info["name"]
    model = info["models"]["tissnet_vs"]
    assert model["labels"] == {"vestibular schwannoma": 1}
    assert set(model["config"]) == {"device", "threshold", "overlap", "flips"}
    assert set(info["strategies"]) == {"first_come", "disagreement"}
    assert set(info["scoring"]) == {"dice"}
    assert info["datastore"]["total"] >= 6


def test_what_lies_in_the_studies_and_is_not_served_is_named(server, store):
    (store / "patient 4").mkdir()
    for name in ("patient 4/T2.nii.gz", "fourth_T2.mha", "first_T2.nii", "fifth_adc.nii.gz", "sixth_T2.NII.GZ"):
        (store / name).write_bytes((store / "first_T2.nii.gz").read_bytes())
    end = time.monotonic() + 20
    while "sixth_T2" not in (known := requests.get(f"{server}/datastore/?output=all", timeout=20).json()["objects"]):
        assert time.monotonic() < end
        time.sleep(0.1)
    said = " ".join(requests.get(f"{server}/info/", timeout=20).json()["passed_over"])
    assert re.search(r"1 folder.* not looked into: .*: patient 4\.", said)
    assert re.search(r"1 file.* another ending: keep one: first_T2.nii\.", said)
    assert re.search(r"1 file.* no kind that is served .*: fourth_T2.mha\.", said)
    assert re.search(r"1 image.* no model here uses, by their names: fifth_adc ", said)
    assert "sixth_T2" not in said and "third_T2" not in said and "fifth_adc" in known
    for name in ("patient 4/T2.nii.gz", "fourth_T2.mha", "first_T2.nii", "fifth_adc.nii.gz", "sixth_T2.NII.GZ"):
        (store / name).unlink()
    (store / "patient 4").rmdir()


def test_a_training_without_labels_is_refused_at_once(server):
    for path in ("/train/tissnet_vs", "/train/"):
        answer = requests.post(f"{server}{path}", json={}, timeout=20)
        assert answer.status_code == 422 and "0 submitted case(s) can be used" in answer.json()["detail"]
    assert requests.get(f"{server}/train/", timeout=20).status_code == 404  # none was started


@pytest.mark.parametrize("device", ["cuda:99", "gpu", 7, ["tpu"]])
def test_a_device_that_is_not_there_is_refused(server, device):
    asked = {"params": (None, json.dumps({"device": device}))}
    infer = requests.post(f"{server}/infer/tissnet_vs", params={"image": "first_T2"}, files=asked, timeout=20)
    train = requests.post(f"{server}/train/tissnet_vs", json={"device": device}, timeout=20)
    batch = requests.post(f"{server}/batch/infer/tissnet_vs", json={"device": device}, timeout=20)
    for answer in (infer, train, batch):
        assert answer.status_code == 422 and "There is no device" in answer.json()["detail"], answer.text


def test_an_upload_that_is_no_t2_by_its_name_is_refused(server, store):
    content = (store / "first_T2.nii.gz").read_bytes()

    def infer(**asked):
        return requests.post(f"{server}/infer/tissnet_vs", **{"params": {"output": "json"}, "timeout": 60} | asked)

    def keep(name):
        return requests.put(f"{server}/session/", files={"files": (name, content)}, timeout=20)

    for name, says in (("x_flair", "FLAIR"), ("sub-01_T1w", "T1"), ("x_t1ce", "ceT1"), ("x_seg", "a mask")):
        answer = infer(files={"file": (f"{name}.nii.gz", content)})
        assert answer.status_code == 422 and f"{says}" in answer.json()["detail"], answer.text
        assert "by its name" in answer.json()["detail"]
    answer = infer(params={"session_id": keep("x_flair.nii.gz").json()["session_id"]})
    assert answer.status_code == 422 and "is FLAIR by its name" in answer.json()["detail"]
    assert keep("x_label.nii.gz").status_code == 422
    made_up = keep("tmpab_mask1.nii.gz").json()["session_id"]  # by 3D Slicer
    assert infer(params={"output": "json", "session_id": made_up}).status_code == 200


def test_a_label_beside_its_scan_is_refused_when_it_is_submitted(client, server, store, tmp_path):
    scan = nib.load(store / "first_T2.nii.gz")
    affine = scan.affine.copy()
    affine[0, 3] += 2
    nib.save(nib.Nifti1Image(np.ones(scan.shape, np.uint8), affine), tmp_path / "label.nii.gz")
    with pytest.raises(Exception, match="2 mm away from the scan"):
        client.save_label("first_T2", str(tmp_path / "label.nii.gz"), "final", {})
    assert "final" not in client.datastore()["objects"]["first_T2"]["labels"]


def test_next_sample_is_a_t2(client):
    sample = client.next_sample("first_come", {})
    assert sample["id"].endswith("_T2")
    assert Path(sample["path"]).is_file()


@pytest.mark.parametrize("image", ["first_T2", ODD])
def test_infer_by_id(client, server, store, image):
    file, params = client.infer("tissnet_vs", image, SLICER | client.info()["models"]["tissnet_vs"]["config"])
    mask, scan = sitk.ReadImage(file), sitk.ReadImage(str(store / f"{image}.nii.gz"))
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert mask.GetSize() == scan.GetSize()
    assert mask.GetDirection() == pytest.approx(scan.GetDirection())
    voxels = int((sitk.GetArrayFromImage(mask) > 0).sum())
    assert params["volume_mm3"] == pytest.approx(voxels * np.prod(scan.GetSpacing()), rel=1e-3)
    assert params["demonstration"] and "DEMONSTRATION" in params["notes"][0]
    for name, path in params["extra"].items():
        response = requests.get(server + path, timeout=30)
        assert response.status_code == 200, name
        extra = store / "labels" / name / f"{image}.nii.gz"
        assert extra.read_bytes() == response.content
        assert nib.load(extra).shape == scan.GetSize()
        assert nib.load(extra).get_data_dtype() == np.float32
        info = requests.get(f"{server}/datastore/label/info", params={"label": image, "tag": name}, timeout=30).json()
        assert info["params"]["volume_mm3"] == params["volume_mm3"]


def test_upload_then_infer(client, tmp_path):
    file = save_phantom(tmp_path, "new (2) [x].nii.gz", 7)
    image_id = client.upload_image(str(file), image_id="new (2) [x]")["image"]
    assert image_id == "new (2) [x]"
    mask, params = client.infer("tissnet_vs", image_id, SLICER)
    assert Path(mask).stat().st_size > 0
    assert params["model"] == "tissnet_vs"


def test_save_download_and_score_a_label(client, server, store, tmp_path):
    mask, _ = client.infer("tissnet_vs", ODD, SLICER | {"save_label": True})
    for tag in ("final", "second reader"):
        info = {"label_info": [{"name": "vestibular schwannoma", "idx": 1}]}
        assert client.save_label(ODD, mask, tag, info)["label"] == ODD
        assert Path(client.download_label(ODD, tag)).read_bytes() == Path(mask).read_bytes()
    assert {"final", "second reader"} <= client.datastore()["objects"][ODD]["labels"].keys()
    result = requests.post(f"{server}/scoring/dice?run_sync=true", json={}, timeout=120)
    assert result.status_code == 200, result.text
    assert result.json()["cases"][ODD]["dice"] == 1.0
    assert client.next_sample("first_come", {})["id"] != ODD  # finished


def test_session(client, tmp_path):
    file = save_phantom(tmp_path, "session scan.nii.gz", 8)
    session = client.create_session(str(file))["session_id"]
    known = client.get_session(session)
    assert known["name"] == session and known["path"] == "" and "/" not in known["image"]
    mask, params = client.infer("tissnet_vs", "", SLICER, session_id=session)
    assert Path(mask).stat().st_size > 0
    assert "extra" not in params  # nothing of a session stays in the store
    client.remove_session(session)
    with pytest.raises(Exception, match="404"):
        client.get_session(session)


def wait_for(address: str, *states: str) -> dict:
    end = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < end:
        response = requests.get(address, timeout=30)
        if response.status_code == 200 and response.json()["status"] in states:
            return response.json()
        time.sleep(0.5)
    raise AssertionError(f"{address}: {response.text[-2000:]}")


def test_batch_inference_answers_each_case_once(client, server, store):
    response = requests.post(f"{server}/batch/infer/tissnet_vs?images=unlabeled", json={}, timeout=60)
    assert response.status_code == 200, response.text
    task = wait_for(f"{server}/batch/infer/", "DONE", "ERROR")
    assert task["status"] == "DONE", task
    answered = {path.name for path in (store / "labels" / "original").iterdir()}
    assert {"first_T2.nrrd", "third_T2.nrrd"} <= answered
    assert not any("_ceT1" in name for name in answered)
    assert client.next_sample("disagreement", {})["id"].endswith(("_T2", "[x]"))


def test_training_with_too_few_labels_is_refused_in_a_sentence(client, server):
    with pytest.raises(Exception, match=r"1 submitted case\(s\) can be used, expected at least 2"):
        client.train_start("tissnet_vs", {"max_epochs": 1})
    assert not client.train_status(check_if_running=True)


def nifti(voxels: np.ndarray, spacing: tuple[float, float, float] = (0.8, 0.8, 2.0)) -> bytes:
    return nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])).to_bytes()


def absurd(shape: tuple[int, int, int]) -> bytes:
    """A header alone: reading the voxels that it names would take all memory."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape(shape)
    return bytes(header.binaryblock) + b"\0" * 4


def bomb() -> bytes:
    """Some hundred kilobytes that unpack to a scan of zeros with 512 MB behind it."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    content = packer.compress(nifti(np.zeros((48, 48, 12), np.int16)))
    for _ in range(512):
        content += packer.compress(bytes(1024**2))
    return content + packer.flush()


NOISE = np.random.default_rng(0).integers(1, 1000, (64, 64, 12)).astype(np.int16)
BROKEN = {
    "a scan of NaN": (lambda: nifti(np.full((64, 64, 12), np.nan, np.float32)), "NaN"),
    "a scan with an infinite voxel": (lambda: nifti(np.where(NOISE > 998, np.inf, NOISE).astype(np.float32)), "NaN"),
    "a scan of zeros": (lambda: nifti(np.zeros((64, 64, 12), np.int16)), "constant or empty"),
    "a scan of one value": (lambda: nifti(np.full((64, 64, 12), 7, np.int16)), "constant or empty"),
    "one slice": (lambda: nifti(NOISE[..., :1]), "number of slices: found the uploaded file"),
    "a series of volumes": (lambda: nifti(np.stack([NOISE] * 3, -1)), "not 3-D: found the uploaded file"),
    "slices of 10000 x 10000": (lambda: absurd((10000, 10000, 12)), "bytes for shape (10000, 10000, 12)"),
    "voxels of a meter": (lambda: nifti(NOISE, (1000.0, 1000.0, 2.0)), "voxels of 1000"),
    "half a meter in every direction": (lambda: nifti(NOISE[:40, :40], (14.0, 14.0, 14.0)), "a scan of a head"),
    "a zip bomb": (bomb, "constant or empty"),
    "a file cut short": (lambda: nifti(NOISE)[:-50_000], ""),
    "no image": (lambda: b"PK\x03\x04", "unreadable file: found the uploaded file"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_scan_is_refused_in_a_sentence_and_the_next_is_answered(client, server, store, what):
    """Sent with the request; nothing of the store changes."""
    make, sentence = BROKEN[what]
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*.n*") if path.is_file()}
    name = "scan.nii.gz" if what == "a zip bomb" else "scan.nii"
    response = requests.post(f"{server}/infer/tissnet_vs", files={"file": (name, make())}, timeout=ANSWER_SECONDS)
    assert (response.status_code, sentence in response.json()["detail"]) == (422, True), response.text
    assert "/" not in response.json()["detail"]  # no path of the server
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.n*") if path.is_file()} == before
    assert client.infer("tissnet_vs", "third_T2", SLICER)[1]["model"] == "tissnet_vs"


def test_the_wrong_modality_is_refused_by_its_name_and_told_by_its_look(client, server, store):
    response = requests.post(f"{server}/infer/tissnet_vs", params={"image": "first_ceT1"}, timeout=ANSWER_SECONDS)
    assert response.status_code == 422 and "is ceT1 by its name, this model starts from T2" in response.json()["detail"]
    with (store / "first_ceT1.nii.gz").open("rb") as file:
        response = requests.post(
            f"{server}/infer/tissnet_vs", params={"output": "json"}, files={"file": ("a.nii.gz", file)},
            timeout=ANSWER_SECONDS,
        )  # fmt: skip
    assert any("does not look like a T2 scan" in note for note in response.json()["notes"])


@pytest.mark.parametrize(("end", "status"), [("stop", "STOPPED"), ("kill", "ERROR")])
def test_a_training_that_is_ended_leaves_the_answers_as_they_were(client, server, server_process, end, status):
    """Stopped by the client, or killed with SIGKILL in the middle; the server answers meanwhile and after."""
    before, said = client.infer("tissnet_vs", "first_T2", SLICER)
    for image in ("first_T2", ODD):
        client.save_label(image, client.infer("tissnet_vs", image, SLICER)[0], "final", {})

    client.train_start("tissnet_vs", {"max_epochs": 1000})
    trainings = wait_for_training(server, server_process[0])
    assert client.train_status(check_if_running=True)
    during, _ = client.infer("tissnet_vs", "first_T2", SLICER)
    if end == "stop":
        client.train_stop()
    else:
        trainings[0].parent().kill()
    assert not psutil.wait_procs(trainings, timeout=30)[1]
    assert wait_for(f"{server}/train/", "DONE", "STOPPED", "ERROR")["status"] == status
    assert not client.train_status(check_if_running=True)

    after, says = client.infer("tissnet_vs", "first_T2", SLICER)
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(file)) for file in (before, during, after)]
    assert masks[0].any() and all(np.array_equal(mask, masks[0]) for mask in masks[1:])
    assert says["weights_sha256"] == said["weights_sha256"]


def wait_for_training(address: str, server: psutil.Process) -> list[psutil.Process]:
    """The processes of the bundle's training, once it has begun."""
    end, status = time.monotonic() + ANSWER_SECONDS, {}
    while time.monotonic() < end and status.get("status") not in ("DONE", "ERROR"):
        status = requests.get(f"{address}/train/", timeout=30).json()
        found = []
        for process in server.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                found += [process] if "monai.bundle" in process.cmdline() else []
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"no training was started: {status}")


def test_nothing_of_a_request_is_left_behind(client, store):
    client.infer("tissnet_vs", "first_T2", SLICER)
    names = {path.name for path in store.iterdir() if not path.name.startswith(".")}
    own = {f"{case}_{m}.nii.gz" for case in ("first", "phantom (1) [left]", "third") for m in ("T2", "ceT1")}
    assert names - {"new (2) [x].nii.gz"} == own | {"labels", "datastore_v2.json"}  # an upload of a test before
