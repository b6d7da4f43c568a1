"""Tests of monailabel_app's web application: a real server on a local port, a small app of known answers behind it.

Hostile and broken requests, the bounded queue, MONAI Label's own client, the log, the start as a process, and nginx in
front.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import json
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import anyio
import anyio.to_thread
import nibabel as nib
import numpy as np
import psutil
import pydicom
import pytest
import requests
import SimpleITK as sitk
import uvicorn
from dicomweb_client import DICOMwebClient
from fastapi.testclient import TestClient
from made.dicom import write_small
from made.orthanc import orthanc_missing, running_orthanc
from monailabel.client import MONAILabelClient
from monailabel.config import settings
from monailabel.interfaces.utils import app as app_cache
from monailabel.utils.async_tasks import task as async_task
from running import free_port, running

from monailabel_app import images
from monailabel_app.errors import Busy, InputError, NotFound
from monailabel_app.web import isolation, privacy, proxy, routes_store
from monailabel_app.web.limits import Limits
from monailabel_app.web.server import Viewer, create_app

ROOT = Path(__file__).resolve().parents[3]
NGINX = ROOT / "monailabel_app" / "deploy" / "nginx.conf"
SHAPE = (48, 48, 12)
IMAGE = "Mueller_Anna_T2"
SPACED = "case (2) [right] T2"
LIMITS = Limits(
    waiting=2, requests=24, upload_bytes=2 * 1024**2, json_bytes=64 * 1024, idle_seconds=1.0, sessions=4,
    hosts=("ai.hospital.example",),
)  # fmt: skip
SECONDS = 20.0  # for one answer
LEAVE_SECONDS = 0.3  # until the server knows that a client closed its connection
SOON = 1.0  # for what must not wait for an inference

FAKE_APP = """
import os, tempfile, threading, time
import SimpleITK as sitk
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel_app.store.dicom_store import open_store


class Model(InferTask):
    def __init__(self):
        config = {"device": ["cpu"], "overlap": [0.25, 0.5], "flips": False, "threshold": 0.5}
        super().__init__(InferType.SEGMENTATION, {"background": 0, "tumor": 1}, 3, "a threshold", config=config)

    is_valid = lambda self: True
    get_path = lambda self, validate=True: os.path.realpath(__file__)
    __call__ = None


class Trainer(TrainTask):
    config = lambda self: {"max_epochs": 2, "device": ["cpu"], "gpus": "all", "tracking_uri": ""}
    stats = lambda self: {}
    __call__ = lambda self, request, datastore: request


class First(Strategy):
    __call__ = lambda self, request, datastore: {"id": sorted(datastore.list_images())[0]}


class Dice(ScoringMethod):
    __call__ = lambda self, request, datastore: request


class FakeApp(MONAILabelApp):
    def __init__(self, app_dir, studies, conf):
        self.gate, self.asked, self.error = threading.Event(), [], None
        self.seconds = float(os.environ.get("FAKE_SECONDS", "0"))
        self.gate.set()
        super().__init__(app_dir, studies, conf, name="fake")

    init_remote_datastore = lambda self: open_store(self.studies)
    init_infers = lambda self: {"tissnet_vs": Model()}
    init_trainers = lambda self: {"tissnet_vs": Trainer("a trainer")}
    init_strategies = lambda self: {"first_come": First("the first")}
    init_scoring_methods = lambda self: {"dice": Dice("dice")}

    def infer(self, request, datastore=None):
        self.asked.append(dict(request))
        if not self.gate.wait(60):
            raise TimeoutError
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        path = request.get("upload") or self.datastore().get_image_uri(request["image"])
        mask = sitk.Cast(sitk.ReadImage(path) > 1000 * float(request.get("threshold", 0.5)), sitk.sitkUInt8)
        written = tempfile.NamedTemporaryFile(suffix=request.get("result_extension") or ".nrrd", delete=False).name
        sitk.WriteImage(mask, written)
        label = written
        if request.get("save_label"):
            label = self.datastore().save_label(request["image"], written, request.get("label_tag", "original"), {})
        params = {"voxels": int(sitk.GetArrayViewFromImage(mask).sum())}
        return {"label": label, "tag": "original", "file": written, "params": params}
"""


@dataclass
class Served:
    """A running server."""

    url: str
    api: Any
    app: Any
    store: Path
    temporary: Path
    log: Path

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request; `path` is sent as it is written."""
        prepared = requests.Request(method, self.url, **options).prepare()
        query = (prepared.url or "").partition("?")[2]
        prepared.url = self.url + path + (f"?{query}" if query else "")
        with requests.Session() as session:
            return session.send(prepared, timeout=SECONDS, allow_redirects=False)

    def tree(self) -> dict[str, str]:
        """Hash of every file of the store but its lock."""
        files = (path for path in sorted(self.store.rglob("*")) if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(self.store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def scan(path: Path, *, label: bool = False) -> Path:
    """A scan with 64 bright voxels, or the label of them."""
    voxels = np.random.default_rng(0).integers(0, 400, SHAPE).astype(np.int16)
    voxels[4:8, 4:8, 4:8] = 1000
    nib.save(nib.Nifti1Image((voxels > 500).astype(np.uint8) if label else voxels, np.diag([1.0, 1.0, 5.0, 1.0])), path)
    return path


def until(condition: Callable[[], bool]) -> None:
    """Returns when something has come true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


def write_app(folder: Path) -> Path:
    """The fake app and a store of two scans."""
    (folder / "app").mkdir()
    (folder / "app" / "main.py").write_text(FAKE_APP)
    (folder / "store").mkdir()
    for name in (IMAGE, SPACED):
        scan(folder / "store" / f"{name}.nii.gz")
    return folder


def use_settings(patch: pytest.MonkeyPatch, folder: Path, **more: Any) -> None:
    """MONAI Label's settings for what `write_app` made."""
    own = {"APP_DIR": str(folder / "app"), "APP_CONF": {}, "SESSION_PATH": str(folder / "sessions")}
    for key, value in (own | {"AUTO_UPDATE_SCORING": False} | more).items():
        patch.setattr(settings, f"MONAI_LABEL_{key}", value)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The application in a thread of this process, so that a test can hold an inference."""
    folder = write_app(tmp_path_factory.mktemp("served"))
    (folder / "tmp").mkdir()
    log = folder / "server.log"
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        use_settings(patch, folder, STUDIES=str(folder / "store"))
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        handler = logging.FileHandler(log)
        logging.getLogger().addHandler(handler)
        patch.setattr(logging.getLogger(), "level", logging.INFO)
        api = create_app(LIMITS)
        server = uvicorn.Server(uvicorn.Config(api, port=port, log_config=None, access_log=True))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started)
        instance = app_cache.app_instance()
        yield Served(f"http://127.0.0.1:{port}", api, instance, folder / "store", folder / "tmp", log)
        server.should_exit = True
        thread.join(SECONDS)
        logging.getLogger().removeHandler(handler)
        app_cache.clear_cache()


def good(served: Served) -> None:
    """A request as Slicer sends it, answered as it should be."""
    answer = served.ask("POST", "/infer/tissnet_vs", params={"image": IMAGE, "output": "json"}, files=form())
    assert (answer.status_code, answer.json()) == (200, {"voxels": 64})


def form(**params: Any) -> dict[str, Any]:
    """A multipart form with options only."""
    return {"params": (None, json.dumps(params))}


def upload(name: str = "scan.nii.gz", content: bytes | None = None, field: str = "file") -> dict[str, Any]:
    """A multipart form with a file, a good scan or label unless said otherwise."""
    if content is None:
        with tempfile.TemporaryDirectory() as folder:
            content = scan(Path(folder) / "scan.nii.gz", label=field == "label").read_bytes()
    return {field: (name, content)}


def deep(depth: int, start: str = "[", end: str = "]") -> str:
    """JSON of many levels."""
    return start * depth + "1" + end * depth


def facts(info: str) -> dict[str, Any]:
    """A request to keep something of an image."""
    return {"params": ONE, "data": {"info": info}}


def a_label(name: str = "scan.nii.gz", content: bytes | None = None, **params: str) -> dict[str, Any]:
    """A request to keep a label of an image."""
    return {"params": FINAL | params, "files": upload(name, content, "label")}


def header_only(shape: tuple[int, ...]) -> bytes:
    """A .nii.gz whose header promises far more than is there."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float64)
    return gzip.compress(bytes(header.binaryblock) + b"\0" * 4)


def voxels(value: Any, dtype: Any = np.float32) -> bytes:
    """A .nii file of one number."""
    return nib.Nifti1Image(np.full(SHAPE, value, dtype=dtype), np.eye(4)).to_bytes()


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
ABROAD = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}  # a page of another site opens an address
DETACHED = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 48 48 12\nencoding: raw\ndata file: /etc/passwd\n\n"
ATTACHED = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 48 48 12\nencoding: raw\n\n\0\0"
INFER = "/infer/tissnet_vs"
ONE = {"image": IMAGE}
FINAL = {"image": IMAGE, "tag": "final"}

# What, method, path, options of requests, status.
HOSTILE: list[tuple[str, str, str, dict[str, Any], int]] = [
    ("a path as image", "POST", INFER, {"params": {"image": "/etc/passwd"}, "files": form()}, 422),
    ("a folder of the server as image", "POST", INFER, {"params": {"image": "bundle"}, "files": form()}, 404),
    ("a Windows path as image", "POST", INFER, {"params": {"image": r"C:\scans\a.nii"}, "files": form()}, 422),
    ("traversal as image", "POST", INFER, {"params": {"image": "../store/x"}, "files": form()}, 422),
    ("the dot as image", "POST", INFER, {"params": {"image": "."}, "files": form()}, 422),
    ("NUL in image", "POST", INFER, {"params": {"image": "a\0b"}, "files": form()}, 422),
    ("a newline in image", "POST", INFER, {"params": {"image": "a\nb"}, "files": form()}, 422),
    ("no image", "POST", INFER, {"files": form()}, 422),
    ("an unknown image", "POST", INFER, {"params": {"image": "nobody"}, "files": form()}, 404),
    ("an endless image", "POST", INFER, {"params": {"image": "x" * 5000}, "files": form()}, 422),
    ("an unknown model", "POST", "/infer/other", {"params": ONE, "files": form()}, 404),
    ("traversal as model", "POST", "/infer/..%2f..%2fmain", {"params": ONE, "files": form()}, 404),
    ("params that are no JSON", "POST", INFER, {"params": ONE, "files": {"params": (None, "{")}}, 400),
    ("params of an endless number", "POST", INFER,
     {"params": ONE, "files": {"params": (None, '{"threshold": 1e400}')}}, 400),
    ("params that are a list", "POST", INFER, {"params": ONE, "files": {"params": (None, "[1]")}}, 400),
    ("params of NaN", "POST", INFER, {"params": ONE, "files": {"params": (None, '{"threshold": NaN}')}}, 400),
    ("params without end", "POST", INFER, {"params": ONE, "files": {"params": (None, deep(5000, '{"a":', '}'))}}, 400),
    ("params of a huge number", "POST", INFER, {"params": ONE, "files": {"params": (None, "9" * 5000)}}, 400),
    ("image in params", "POST", INFER, {"params": ONE, "files": form(image="/etc/passwd")}, 422),
    ("upload in params", "POST", INFER, {"params": ONE, "files": form(upload="/etc/passwd")}, 422),
    ("files in params", "POST", INFER, {"params": ONE, "files": form(files=["/etc/passwd"])}, 422),
    ("model_filename in params", "POST", INFER, {"params": ONE, "files": form(model_filename="../x.pt")}, 422),
    ("bundle_path in params", "POST", INFER, {"params": ONE, "files": form(bundle_path="/tmp")}, 422),
    ("session in params", "POST", INFER, {"params": ONE, "files": form(session={"image": "/etc/passwd"})}, 422),
    ("label_tag that climbs", "POST", INFER, {"params": ONE, "files": form(save_label=True, label_tag="../x")}, 422),
    ("label_tag of people", "POST", INFER, {"params": ONE, "files": form(save_label=True, label_tag="final")}, 422),
    ("an ending that is code", "POST", INFER, {"params": ONE, "files": form(result_extension=".py")}, 422),
    ("an ending that is not written", "POST", INFER, {"params": ONE, "files": form(result_extension=".seg.nrrd")}, 422),
    ("an ending that climbs", "POST", INFER, {"params": ONE, "files": form(result_extension="/../a.nrrd")}, 422),
    ("an unknown type of voxel", "POST", INFER, {"params": ONE, "files": form(result_dtype="object")}, 422),
    ("a number that is none", "POST", INFER, {"params": ONE, "files": form(threshold="high")}, 422),
    ("a choice that is none", "POST", INFER, {"params": ONE, "files": form(overlap=7)}, 422),
    ("a device that is a path", "POST", INFER, {"params": ONE, "files": form(device="/dev/sda")}, 422),
    ("segments that are none", "POST", INFER, {"params": ONE, "files": form(label_info="tumor")}, 422),
    ("an unknown output", "POST", INFER, {"params": ONE | {"output": "exe"}, "files": form()}, 422),
    ("DICOM-SEG of a file", "POST", INFER, {"params": ONE | {"output": "dicom_seg"}, "files": form()}, 422),
    ("scribbles", "POST", INFER, {"params": ONE, "files": upload(field="label")}, 422),
    ("a session that is a path", "POST", INFER, {"params": {"session_id": "../store"}, "files": form()}, 404),
    ("an unknown session", "POST", INFER, {"params": {"session_id": str(uuid.uuid4())}, "files": form()}, 404),
    ("an upload that is a program", "POST", INFER, {"files": upload("run.exe", b"MZ")}, 422),
    ("an upload that is noise", "POST", INFER, {"files": upload("a.nii.gz", b"noise")}, 422),
    ("an upload that is empty", "POST", INFER, {"files": upload("a.nii.gz", b"")}, 422),
    ("an upload that climbs", "POST", INFER, {"files": upload("../../a.nii.gz")}, 422),
    ("an upload of another file", "POST", INFER, {"files": upload("a.nrrd", DETACHED)}, 422),
    ("an upload of absurd size", "POST", INFER, {"files": upload("a.nii.gz", header_only((10000, 10000, 300)))}, 422),
    ("an upload too large", "POST", INFER, {"files": upload("a.nii", b"\0" * (3 * 1024**2))}, 413),
    ("a broken form", "POST", INFER,
     {"params": ONE, "data": b"broken", "headers": {"content-type": "multipart/form-data"}}, 400),
    ("a form of many files", "PUT", "/datastore/image",
     {"params": {"image": "n"}, "files": list(upload().items()) * 20}, 400),
    ("a form of many fields", "POST", INFER, {"params": ONE, "files": {f"x{i}": (None, "") for i in range(100)}}, 400),
    ("slides", "POST", "/infer/wsi/tissnet_vs", {"params": {"image": "/etc/passwd"}, "json": {}}, 403),
    ("slides, second version", "POST", "/infer/wsi_v2/tissnet_vs", {"params": ONE}, 403),
    ("new weights", "PUT", "/model/tissnet_vs", {"files": upload("model.pt", b"x")}, 403),
    ("no more weights", "DELETE", "/model/tissnet_vs", {}, 403),
    ("weights of no model", "GET", "/model/..%2fmain.py", {}, 404),
    ("a restart", "POST", "/reload", {}, 403),
    ("the log", "GET", "/logs/", {}, 403),
    ("the graphics card", "GET", "/logs/gpu", {}, 403),
    ("an image over another", "PUT", "/datastore/image", {"params": ONE, "files": upload()}, 409),
    ("an image over another by its file", "PUT", "/datastore/", {"files": upload(f"{IMAGE}.nii.gz")}, 409),
    ("an image outside", "PUT", "/datastore/image", {"params": {"image": "../../x"}, "files": upload()}, 422),
    ("an image at a path", "PUT", "/datastore/image", {"params": {"image": "/tmp/x"}, "files": upload()}, 422),
    ("a hidden image", "PUT", "/datastore/image", {"params": {"image": ".lock"}, "files": upload()}, 422),
    ("an image of two endings", "PUT", "/datastore/image", {"params": {"image": "a.nii.gz"}, "files": upload()}, 422),
    ("an image on another disk", "PUT", "/datastore/image", {"params": {"image": "c:x"}, "files": upload()}, 422),
    ("an image that is a page", "PUT", "/datastore/image", {"files": upload("x.html", b"<script>")}, 422),
    ("an image of the store's list", "PUT", "/datastore/image", {"files": upload("datastore_v2.json", b"{}")}, 422),
    ("an image whose file climbs", "PUT", "/datastore/image", {"files": upload("../../x.nii.gz")}, 422),
    ("an image that is noise", "PUT", "/datastore/image", {"files": upload("n.nii", b"x")}, 422),
    ("an image of another file", "PUT", "/datastore/image", {"files": upload("n.nrrd", DETACHED)}, 422),
    ("an image without a file", "PUT", "/datastore/image", {"params": {"image": "n"}}, 422),
    ("an image with its own date", "PUT", "/datastore/image",
     {"params": {"image": "n"}, "files": upload() | form(ts=1, path="/etc")}, 422),
    ("no more image", "DELETE", "/datastore/image", {"params": {"id": IMAGE}}, 403),
    ("no more label", "DELETE", "/datastore/label", {"params": {"id": IMAGE, "tag": "final"}}, 403),
    ("a file of the server", "GET", "/datastore/image", {"params": {"image": "../app/main"}}, 422),
    ("an unknown file", "GET", "/datastore/image", {"params": {"image": "nobody"}}, 404),
    ("a sum of unknown kind", "HEAD", "/datastore/image", {"params": ONE | {"check_sum": "X:1"}}, 422),
    ("facts of an unknown image", "GET", "/datastore/image/info", {"params": {"image": "nobody"}}, 404),
    ("facts that are none", "PUT", "/datastore/image/info", facts("[]"), 400),
    ("facts of the server", "PUT", "/datastore/image/info", facts('{"name": "x"}'), 422),
    ("facts of half a letter", "PUT", "/datastore/image/info", facts(r'{"b": "\ud800"}'), 422),
    ("facts under half a letter", "PUT", "/datastore/image/info", facts(r'{"\ud800": 1}'), 422),
    ("facts of many levels", "PUT", "/datastore/image/info", facts(f'{{"b": {deep(300)}}}'), 422),
    ("facts without end", "PUT", "/datastore/image/info", facts(json.dumps({"b": "x" * 20_000})), 422),
    ("facts that name another image", "PUT", "/datastore/image/info", facts(json.dumps({"id": SPACED})), 422),
    ("facts that give the reason", "PUT", "/datastore/image/info", facts('{"reason": "x"}'), 422),
    ("facts that name another label", "PUT", "/datastore/image/info", facts('{"label_id": "x"}'), 422),
    ("an unknown view", "GET", "/datastore/", {"params": {"output": "secrets"}}, 422),
    ("a label outside", "PUT", "/datastore/label", a_label(tag="../../x"), 422),
    ("a label at a path", "PUT", "/datastore/label", a_label(tag="/tmp"), 422),
    ("a label of no image", "PUT", "/datastore/label", a_label(image="nobody"), 404),
    ("a label that is noise", "PUT", "/datastore/label", a_label("l.nrrd", b"noise"), 422),
    ("a label of another file", "PUT", "/datastore/label", a_label("l.nrrd", DETACHED), 422),
    ("a label of another scan", "PUT", "/datastore/label", a_label("l.nii.gz", header_only((4, 4, 4))), 422),
    ("a label cut short", "PUT", "/datastore/label", a_label("l.nii.gz", header_only(SHAPE)), 422),
    ("a label that is a scan", "PUT", "/datastore/label",
     {"params": FINAL, "files": {"label": upload()["file"]}}, 422),
    ("a label of fractions", "PUT", "/datastore/label", a_label("l.nii", voxels(0.5)), 422),
    ("a label of NaN", "PUT", "/datastore/label", a_label("l.nii", voxels(float("nan"))), 422),
    ("a label of colors", "PUT", "/datastore/label", a_label("l.nii", voxels(1, RGB)), 422),
    ("a label of complex numbers", "PUT", "/datastore/label", a_label("l.nii", voxels(1, np.complex64)), 422),
    ("a label cut short, .nrrd", "PUT", "/datastore/label", a_label("l.nrrd", ATTACHED), 422),
    ("a raw label in a store of files", "PUT", "/datastore/label", a_label("l.bin", b"\0" * 27648), 422),
    ("a label with broken facts", "PUT", "/datastore/label",
     {"params": FINAL, "files": upload(field="label") | {"params": (None, "{")}}, 400),
    ("an unknown label", "GET", "/datastore/label", {"params": {"label": IMAGE, "tag": "nothing"}}, 404),
    ("a label of the server", "GET", "/datastore/label", {"params": {"label": IMAGE, "tag": "../.."}}, 422),
    ("facts of an unknown label", "PUT", "/datastore/label/info", {"params": {"label": IMAGE, "tag": "x"}}, 404),
    ("an archive as session", "PUT", "/session/",
     {"params": {"uncompress": "true"}, "files": upload(field="files")}, 422),
    ("a program as session", "PUT", "/session/", {"files": upload("a.sh", b"#!", "files")}, 422),
    ("noise as session", "PUT", "/session/", {"files": upload("a.nii", b"x", "files")}, 422),
    ("a session that climbs", "GET", "/session/..%2f..%2fstore", {}, 404),
    ("a session of dots", "DELETE", "/session/..", {}, 404),
    ("a session of another writing", "DELETE", f"/session/{{{uuid.uuid4()}}}", {}, 404),
    ("training of no model", "POST", "/train/other", {"json": {}}, 404),
    ("training of many unknown", "POST", "/train/", {"json": {"../x": {}}}, 422),
    ("training of a bundle", "POST", "/train/tissnet_vs", {"json": {"bundle_path": "/tmp/evil"}}, 422),
    ("training to a path", "POST", "/train/tissnet_vs", {"json": {"tracking_uri": "file:///etc"}}, 422),
    ("training on a shell", "POST", "/train/tissnet_vs", {"json": {"gpus": "0;reboot"}}, 422),
    ("training of noise", "POST", "/train/tissnet_vs", {"data": b"\xff\xfe"}, 400),
    ("training too large", "POST", "/train/tissnet_vs", {"data": b" " * (128 * 1024)}, 413),
    ("a batch of paths", "POST", "/batch/infer/tissnet_vs", {"json": {"images": ["/etc/passwd"]}}, 422),
    ("a batch of an unknown kind", "POST", "/batch/infer/tissnet_vs", {"params": {"images": "x"}, "json": {}}, 422),
    ("a batch over people's labels", "POST", "/batch/infer/tissnet_vs", {"json": {"label_tag": "final"}}, 422),
    ("a batch of many workers", "POST", "/batch/infer/tissnet_vs", {"json": {"max_workers": -1}}, 422),
    ("scoring of nothing", "POST", "/scoring/other", {"json": {}}, 404),
    ("scoring of a path", "POST", "/scoring/dice", {"json": {"y": "../../x"}}, 422),
    ("an unknown strategy", "POST", "/activelearning/other", {"json": {}}, 404),
    ("a strategy with a path", "POST", "/activelearning/first_come", {"json": {"image": "/etc/passwd"}}, 422),
    ("an archive that is none", "GET", "/proxy/dicom/qido/studies", {}, 404),
    ("an archive that is no archive", "GET", "/proxy/dicom/..%2f..%2fsystem", {}, 404),
    ("the viewer's neighbors", "GET", "/static/../../config.py", {}, 404),
    ("MONAI Label's documentation", "GET", "/openapi.json", {}, 404),
    ("no address", "GET", "/etc/passwd", {}, 404),
    ("an unknown method", "PATCH", "/datastore/image", {}, 405),
    ("another name", "GET", "/info/", {"headers": {"host": "evil.example"}}, 421),
    ("another name at the port", "GET", "/info/", {"headers": {"host": "127.0.0.1.evil.example:8000"}}, 421),
    ("another site's page", "POST", INFER, {"params": ONE, "files": form(), "headers": {"origin": "http://evil"}}, 403),
    ("a page of a broken origin", "POST", INFER, {"params": ONE, "headers": {"origin": "http://["}}, 403),
    ("a page of no origin", "POST", "/train/", {"data": "{}", "headers": {"origin": "null"}}, 403),
    ("another site's image", "GET", "/datastore/image",
     {"params": ONE, "headers": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}}, 403),
    ("another site's link to a scan", "GET", "/datastore/image",
     {"params": ONE, "headers": ABROAD | {"sec-fetch-dest": "document"}}, 403),
    ("another site's frame", "GET", "/ohif/", {"headers": ABROAD | {"sec-fetch-dest": "iframe"}}, 403),
    ("another site's question", "OPTIONS", INFER,
     {"headers": {"origin": "http://evil", "access-control-request-method": "POST"}}, 403),
]  # fmt: skip


@pytest.mark.parametrize(("what", "method", "path", "options", "status"), HOSTILE, ids=[row[0] for row in HOSTILE])
def test_hostile_request(
    served: Served, what: str, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    before, asked = served.tree(), len(served.app.asked)

    answer = served.ask(method, path, **options)

    assert answer.status_code == status, answer.text
    assert served.tree() == before
    assert not list(served.temporary.iterdir())
    assert len(served.app.asked) == asked
    if method != "HEAD":
        sentence = answer.json()["detail"]
        assert isinstance(sentence, str) and sentence.endswith(".") and len(sentence) < 300
        assert not re.search(r"Traceback|site-packages|\.py\b|/tmp|/etc|passwd", sentence)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    good(served)


def test_another_site_may_open_the_viewer(served: Served) -> None:
    headers = ABROAD | {"sec-fetch-dest": "document"}

    assert [served.ask("GET", path, headers=headers).status_code for path in ("/", "/ohif/")] == [307, 200]


def test_information_is_bounded_with_what_is_there(served: Served) -> None:
    def put(**info: Any) -> int:
        return served.ask("PUT", "/datastore/image/info", params=ONE, data={"info": json.dumps(info)}).status_code

    assert [put(a="x" * 10_000), put(b="x" * 10_000), put(a=json.loads(deep(6))), put(a=0, b=0)] == [200, 422, 200, 200]


def test_uploads_of_one_name_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4)
    monkeypatch.setattr(routes_store, "check_upload", lambda path: together.wait(SECONDS))
    sent = upload()

    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(served.ask, "PUT", "/datastore/image", params={"image": "twice"}, files=sent) for _ in range(4)
        ]
        found = sorted(answer.result().status_code for answer in answers)

    served.app.datastore().remove_image("twice")
    assert found == [200, 409, 409, 409]


@pytest.mark.parametrize(
    ("path", "sent", "full"),
    [
        ("/datastore/image?image=n", upload(), "store"),
        (f"/datastore/label?image={IMAGE}", upload(field="label"), "store"),
        ("/session/", upload(field="files"), "sessions"),
    ],
)
def test_full_disk(served: Served, monkeypatch: pytest.MonkeyPatch, path: str, sent: Any, full: str) -> None:
    def usage(folder: Path) -> Any:
        return SimpleNamespace(free=0 if str(folder).startswith(str(served.store.parent / full)) else 2**40)

    sessions = served.store.parent / "sessions"
    sessions.mkdir(exist_ok=True)
    monkeypatch.setattr(routes_store.shutil, "disk_usage", usage)
    before = set(served.store.rglob("*.nii.gz"))

    answer = served.ask("PUT", path, files=sent)

    assert (answer.status_code, answer.json()["detail"]) == (507, "The server's disk is full: tell who runs it.")
    assert set(served.store.rglob("*.nii.gz")) == before and not list(sessions.iterdir())


def test_one_dataset_at_a_time_and_none_on_a_full_disk(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    store, gate, entered = served.app.datastore(), threading.Event(), threading.Event()
    made = served.temporary / "made.zip"
    case = {"image": str(served.store / f"{IMAGE}.nii.gz")}

    def archive(limit: int | None) -> str:
        entered.set()
        gate.wait(SECONDS)
        made.write_bytes(b"PK")
        return str(made)

    monkeypatch.setattr(store, "datalist", lambda: [case])
    monkeypatch.setattr(store, "get_dataset_archive", archive)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.ask, "GET", "/datastore/dataset")
        assert entered.wait(SECONDS)
        second = served.ask("GET", "/datastore/dataset")
        gate.set()
        found = first.result()
    size = os.path.getsize(case["image"])
    monkeypatch.setattr(
        routes_store.shutil, "disk_usage", lambda folder: SimpleNamespace(free=routes_store.FREE_BYTES + size - 1)
    )
    full = served.ask("GET", "/datastore/dataset")

    assert (found.status_code, found.content, second.status_code, full.status_code) == (200, b"PK", 503, 507)
    until(lambda: not made.exists())


def test_silent_archive_holds_up_neither_info_nor_other_routes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, asked = threading.Event(), []
    answers: list[Any] = [{"total": 3, "completed": 1, "label_tags": {}}, Busy("silent"), gate]

    def status() -> dict[str, Any]:
        asked.append(answers.pop(0))
        if asked[-1] is gate:
            gate.wait(SECONDS)
        if isinstance(asked[-1], dict):
            return asked[-1]
        raise Busy("silent")

    monkeypatch.setattr(routes_store, "STATUS_SECONDS", 0.5)
    monkeypatch.setattr(served.app.datastore(), "status", routes_store.ArchiveStatus(status))
    try:
        first, *later = [served.ask("GET", "/info/") for _ in range(4)]
        start = time.monotonic()
        again = served.ask("GET", "/info/")
        seconds = time.monotonic() - start
    finally:
        gate.set()

    assert first.json()["datastore"] == asked[0]
    for answer in (*later, again):
        found = answer.json()["datastore"]
        assert found == asked[0] | {"detail": "The image archive does not answer: tell who runs it."}
    assert len(asked) == 3 and seconds < 0.5


def test_threads_for_every_request(served: Served) -> None:
    api = create_app(Limits(requests=100))

    async def threads() -> float:
        async with api.router.lifespan_context(api):
            return anyio.to_thread.current_default_thread_limiter().total_tokens

    assert anyio.run(threads) == 116


def test_unexpected_error_says_nothing_but_a_number(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(served.app, "error", RuntimeError(f"/secret/{IMAGE}.nii.gz is broken"))
        answer = served.ask("POST", INFER, params=ONE, files=form())

    number = re.search(r"number: ([0-9a-f]{12})\.$", answer.json()["detail"])
    assert answer.status_code == 500 and number is not None and "secret" not in answer.text
    log = served.log.read_text()
    assert f"unexpected error {number[1]}" in log and "RuntimeError: /secret/<id-" in log
    assert IMAGE not in log
    good(served)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError("The scan is flat."), 422, r"The scan is flat\."),
        (NotFound("No such case."), 404, r"No such case\."),
        (KeyError("x"), 500, r"The server failed .*\."),
        (requests.ConnectionError("http://archive:8042 refused"), 502, r"The image archive does not answer: .*\."),
    ],
)
def test_errors_of_the_app(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, sentence: str
) -> None:
    monkeypatch.setattr(served.app, "error", error)

    answer = served.ask("POST", INFER, params=ONE, files=form())

    assert answer.status_code == status and answer.json().keys() == {"detail"}
    assert re.fullmatch(sentence, answer.json()["detail"]) and "archive:8042" not in answer.text


@contextmanager
def held_back(served: Served) -> Iterator[ThreadPoolExecutor]:
    """Inferences get stuck until `served.app.gate` is set, or the end of the block; with threads that can ask."""
    served.app.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        try:
            yield pool
        finally:
            served.app.gate.set()


def test_full_queue_answers_503_and_info_at_once(served: Served) -> None:
    held = LIMITS.running + LIMITS.waiting
    with held_back(served) as pool:
        waiting = [pool.submit(served.ask, "POST", INFER, params=ONE, files=form()) for _ in range(held)]
        until(lambda: served.api.state.inference.held == held)
        start = time.monotonic()
        refused = served.ask("POST", INFER, params=ONE, files=form())
        info = served.ask("GET", "/info/")
        store = served.ask("GET", "/datastore/", params={"output": "all"})
        sample = served.ask("POST", "/activelearning/first_come", json={})
        seconds = time.monotonic() - start
    answers = [future.result() for future in waiting]

    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert "busy" in refused.json()["detail"]
    assert [answer.status_code for answer in (info, store, sample)] == [200, 200, 200]
    assert seconds < 4 * SOON
    assert [answer.status_code for answer in answers] == [200] * held
    good(served)


def test_inference_of_a_client_that_left_is_not_run(served: Served) -> None:
    before = len(served.app.asked)
    with held_back(served) as pool:
        first = pool.submit(served.ask, "POST", INFER, params=ONE, files=form())
        until(lambda: len(served.app.asked) == before + 1)
        left = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=SECONDS)
        left.request("POST", f"{INFER}?image={IMAGE}", body="", headers={"content-length": "0"})
        until(lambda: served.api.state.inference.held == 2)
        left.close()
        time.sleep(LEAVE_SECONDS)
    assert first.result().status_code == 200
    good(served)

    assert len(served.app.asked) == before + 2


def connected(served: Served) -> socket.socket:
    """A connection of our own, for what no library sends."""
    return socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), SECONDS)


def test_number_of_requests_is_bounded_but_info_answers(served: Served) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(connected(served)) for _ in range(LIMITS.requests)]
        for one in sockets:
            one.sendall(b"POST /train/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        time.sleep(0.3)
        refused, info = served.ask("GET", "/datastore/"), served.ask("GET", "/info/")
        stopped = sockets[0].recv(4096)

    assert (refused.status_code, refused.headers["retry-after"], info.status_code) == (503, "1", 200)
    assert stopped.startswith(b"HTTP/1.1 408")
    until(lambda: served.ask("GET", "/datastore/").status_code == 200)


def test_body_that_comes_too_slowly_is_refused(served: Served) -> None:
    start = time.monotonic()
    with connected(served) as one:
        one.sendall(b"POST /train/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n")
        one.settimeout(0.2)
        answer = b""
        while not answer and time.monotonic() - start < 5 * LIMITS.idle_seconds:
            one.sendall(b" ")
            try:
                answer = one.recv(4096)
            except TimeoutError:
                pass

    assert answer.startswith(b"HTTP/1.1 408") and time.monotonic() - start < 3 * LIMITS.idle_seconds


def test_upload_without_length_is_bounded_while_it_streams(served: Served) -> None:
    before = served.tree()
    content = {"content-type": "multipart/form-data; boundary=x"}

    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        for _ in range(40):
            yield b"\0" * 100_000

    answer = served.ask("PUT", "/datastore/image", params={"image": "n"}, data=parts(), headers=content)

    assert (answer.status_code, "too large" in answer.text) == (413, True)
    assert served.tree() == before and not list(served.temporary.iterdir())
    good(served)


def test_client_of_monai_label(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(async_task, "run_background_task", lambda request, method: started.append(request))
    client = MONAILabelClient(served.url, str(tmp_path), "user-xyz")
    slicer = client.info()["models"]["tissnet_vs"]["config"] | {"result_extension": ".nrrd", "result_dtype": "uint8"}

    assert not client.auth_enabled()
    mask, params = client.infer("tissnet_vs", SPACED, dict(slicer))
    assert params["voxels"] == 64 and Path(mask).suffix == ".nrrd"
    assert served.app.asked[-1] == {
        "model": "tissnet_vs", "image": SPACED, "device": "cpu", "overlap": 0.25, "flips": False, "threshold": 0.5,
        "result_extension": ".nrrd", "result_dtype": "uint8",
    }  # fmt: skip
    assert client.infer("tissnet_vs", "", {}, file=str(scan(tmp_path / "new one (1) [T2].nii.gz")))[1]["voxels"] == 64
    client.train_start("tissnet_vs", {"max_epochs": 1, "gpus": "all", "logging": "DEBUG"})
    client.train_start(None, {"tissnet_vs": {"max_epochs": 3}})
    assert not client.train_status(check_if_running=True)
    assert client.train_stop() is None
    assert started == [
        {"max_epochs": 1, "gpus": "all", "model": "tissnet_vs"},
        {"max_epochs": 3, "model": "tissnet_vs"},
    ]
    assert not list(served.temporary.iterdir())


def test_ohif_requests(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    origin = {"origin": served.url, "sec-fetch-site": "same-origin"}

    answer = served.ask("POST", INFER, params=ONE | {"output": "image"}, files=form(**params), headers=origin)

    assert answer.status_code == 200 and answer.content.startswith(b"NRRD")
    page, config = (served.ask("GET", f"/ohif/{path}") for path in ("viewer?StudyInstanceUIDs=1.2.3", "app-config.js"))
    assert page.status_code == 200 and "OHIF" in page.text and "window.config" in config.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store" and "cache-control" not in config.headers
    assert page.headers["set-cookie"].startswith(f"MONAILABEL_SERVER_URL={quote(served.url, safe='')}%2F; Path=/ohif;")
    secure = served.ask("GET", "/ohif/", headers={"host": "ai.hospital.example", "x-forwarded-proto": "https"})
    assert secure.headers["set-cookie"].startswith("MONAILABEL_SERVER_URL=https%3A%2F%2Fai.hospital.example%2F;")
    assert "OHIF" in served.ask("GET", "/ohif/..%2f..%2f..%2fconfig.py").text
    assert served.ask("GET", "/").headers["location"] == "/info/"


def test_saved_mask_and_its_numbers(served: Served) -> None:
    answer = served.ask("POST", INFER, params=ONE | {"output": "json"}, files=form(save_label=True, label_tag="first"))

    assert answer.json() == {"voxels": 64}
    assert served.ask("GET", "/datastore/label", params={"label": IMAGE, "tag": "first"}).content.startswith(b"NRRD")
    assert served.ask("HEAD", "/datastore/label", params={"image": IMAGE, "tag": "first"}).status_code == 200
    assert not list(served.temporary.iterdir())


def test_background_tasks_get_clean_requests(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(async_task, "run_background_task", lambda request, method: started.append(request))

    batch = served.ask("POST", "/batch/infer/tissnet_vs", params={"images": "unlabeled"}, json={"device": ["cpu"]})
    scoring = served.ask("POST", "/scoring/dice", json={"y": "final", "client_id": "user"})

    assert (batch.status_code, scoring.status_code) == (200, 200), batch.text + scoring.text
    assert started == [
        {"images": "unlabeled", "save_label": True, "multi_gpu": False, "max_workers": 1, "max_batch_size": 0,
         "device": "cpu", "model": "tissnet_vs", "logging": "WARNING"},
        {"y": "final", "method": "dice"},
    ]  # fmt: skip
    synchronous = served.ask("POST", "/train/tissnet_vs", params={"run_sync": "true"}, json={"max_epochs": "3"})
    assert synchronous.json() == {"max_epochs": 3, "model": "tissnet_vs"}


def test_dicom_segmentation_of_an_archive(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import monailabel_app.store.dicom_seg
    from monailabel_app.web import routes_tasks

    calls = []

    def dicom_seg(series: str, mask: str, label_info: Any, model: str, **more: Any) -> str:
        calls.append((series, Path(mask).name.endswith(".nii.gz"), label_info, model))
        written = tmp_path / "seg.dcm"
        written.write_bytes(b"DICM")
        return str(written)

    monkeypatch.setattr(monailabel_app.store.dicom_seg, "dicom_seg", dicom_seg)
    monkeypatch.setattr(routes_tasks, "DICOMWebDatastore", type(served.app.datastore()))

    answer = served.ask("POST", INFER, params=ONE | {"output": "dicom_seg"}, files=form(result_extension=".nrrd"))

    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"DICM", "application/dicom")
    assert calls == [(str(served.store / IMAGE), True, None, "tissnet_vs")]
    assert not (tmp_path / "seg.dcm").exists() and not list(served.temporary.iterdir())


def test_sessions_are_bounded(served: Served) -> None:
    answers = [served.ask("PUT", "/session/", files=upload(field="files")) for _ in range(LIMITS.sessions + 1)]

    assert [answer.status_code for answer in answers] == [200] * LIMITS.sessions + [503]
    for answer in answers[:-1]:
        assert served.ask("DELETE", f"/session/{answer.json()['session_id']}").status_code == 200


def test_log_names_no_patient(served: Served) -> None:
    logging.getLogger("some.library").warning("cannot open %s.nii.gz", IMAGE)
    logging.getLogger("some.library").warning("there is no %s", IMAGE.replace("T2", "T1"))
    logging.getLogger("monailabel.endpoints.infer").info("Infer Request: %s", {"image": IMAGE})
    good(served)

    log = served.log.read_text()
    assert "cannot open <id-" in log and "Infer Request" not in log and "inference with tissnet_vs" in log
    assert "Mueller" not in log and SPACED not in log and str(served.store) not in log
    assert '"POST /infer/tissnet_vs HTTP/1.1" 200' in log and "image=" not in log


def test_mask_of_names() -> None:
    mask = privacy.Mask(lambda: ["Mueller", "Mueller_T2", "ab"], ["/data/store"])

    first, second = mask.mask("Mueller_T2 of Mueller in /data/store"), mask.mask("ab Mueller")

    assert "Mueller" not in first + second and "/data/store" not in first and second.startswith("ab ")
    assert first.split()[2] == second.split()[1]


def test_label_larger_than_what_sitk_frees_at_once(tmp_path: Path) -> None:
    label = np.zeros((80, 512, 512), dtype=np.uint16)
    label[40] = 1
    sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / "label.nrrd"))

    images.check_label(tmp_path / "label.nrrd", tmp_path / "label.nrrd")


@pytest.mark.parametrize("name", ["case 1", "Ärztin_T2", "a.b", "(x) [y]", "1.2.840.113619.2.1", "50% dose"])
def test_names_that_people_use(name: str) -> None:
    assert isolation.check_name("image", name, new=True) == name


@pytest.mark.parametrize(
    "name", ["", " x", "x ", "x.", ".x", "a/b", "a\\b", "a..b", "a\u202eb", "a\ud800", "é" * 101, None, 5]
)
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(InputError, match="The name of the tag"):
        isolation.check_name("tag", name, new=True)


@pytest.mark.parametrize(
    ("service", "path", "expected"),
    [
        ("qido", "studies", "studies"),
        ("wado", "studies/1.2/series/3.4/instances/5/frames/1,2", "studies/1.2/series/3.4/instances/5/frames/1,2"),
        ("", "", ""),
    ],
)
def test_addresses_of_the_archive(service: str, path: str, expected: str) -> None:
    assert proxy.archive_path(service, path) == expected


@pytest.mark.parametrize(
    "path", ["../system", "studies/../../system", "%2e%2e/system", "%252e%252e%252fsystem", "studies/..",
             "//evil.example", "studies\\..", "a?b", "a#b", "user@evil", "a\n"],
)  # fmt: skip
def test_addresses_outside_the_archive(path: str) -> None:
    with pytest.raises(InputError, match="no address"):
        proxy.archive_path("wado", path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_real_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := orthanc_missing():
        pytest.skip(reason)
    (write_app(tmp_path) / "tmp").mkdir()
    series = write_small(tmp_path / "series", (24, 24, 8))
    with running_orthanc(tmp_path / "orthanc") as address:
        archive = DICOMwebClient(f"{address}/dicom-web")
        archive.store_instances([pydicom.dcmread(path) for path in series.paths])
        search = {"DICOMWEB_CACHE_PATH": str(tmp_path / "cache"), "DICOMWEB_SEARCH_FILTER": {"Modality": "MR"}}
        use_settings(monkeypatch, tmp_path, STUDIES=f"{address}/dicom-web", **search)
        with TestClient(create_app(LIMITS), base_url="http://localhost:8000") as client:
            monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
            one = {"image": series.series_uid, "output": "dicom_seg"}
            found, empty = (
                client.post(INFER, params=one, files=form(threshold=threshold)) for threshold in (0.5, 1000.0)
            )
            studies = client.get("/proxy/dicom/qido/studies", params={"limit": 5})
            slices = client.get(f"/proxy/dicom/wado/studies/{series.study_uid}/series/{series.series_uid}")
            unknown = client.post(INFER, params={"image": "1.2.3"}, files=form())
            path = client.post(INFER, params={"image": "../.."}, files=form())
            sent = client.put("/datastore/image", params={"image": "x"}, files=upload())
            raw = np.zeros((24, 24, 8), dtype=np.uint8).tobytes()
            label, short = (
                client.put("/datastore/label", params={"image": series.series_uid}, files={"label": ("l.bin", content)})
                for content in (raw, raw[1:])
            )
            page = client.get("/", follow_redirects=False)
            left = list((tmp_path / "tmp").iterdir())

    for answer, some in ((found, True), (empty, False)):
        assert answer.status_code == 200, answer.text
        segmentation = pydicom.dcmread(io.BytesIO(answer.content))
        assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == series.series_uid
        assert segmentation.pixel_array.any() == some
    assert studies.json()[0]["0020000D"]["Value"] == [series.study_uid]
    assert slices.headers["content-type"].startswith("multipart/related") and slices.content.count(b"DICM") == 8
    assert (unknown.status_code, path.status_code, sent.status_code) == (404, 422, 422)
    assert label.status_code == 200, label.text
    assert short.status_code == 422 and page.headers["location"] == "/ohif/"
    assert left == []


def test_proxy_passes_the_query_and_no_password(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive_behind(served, monkeypatch) as archive:
        answer = served.ask("GET", "/proxy/dicom/qido/studies", params={"limit": 3}, auth=("doctor", "secret"))
        refused = served.ask("POST", "/proxy/dicom/wado/system", data=b"x")
        outside = served.ask("GET", "/proxy/dicom/wado/..%2f..%2fsystem")

    assert (answer.status_code, answer.content) == (200, b"[]") and "set-cookie" not in answer.headers
    assert [(method, path) for method, path, _, _ in archive.seen] == [("GET", "/dicom-web/studies?limit=3")]
    assert "Authorization" not in archive.seen[0][2]
    assert (refused.status_code, outside.status_code) == (422, 422)


@dataclass
class Archive:
    """A stub of a DICOM archive: method, path, headers and body of what came; silent while the gate is closed."""

    seen: list[tuple[str, str, dict[str, str], bytes]]
    gate: threading.Event


def stub(
    came: Callable[[str, str, dict[str, str], bytes], None], content: bytes, headers: dict[str, str]
) -> ThreadingHTTPServer:
    """A server in a thread that says what came, and always answers the same."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            came(self.command, self.path, dict(self.headers), body)
            self.send_response(200)
            for key, value in (headers | {"content-length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET
        log_message = lambda *_: None  # noqa: E731

    server = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 64})(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def archive_behind(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """The server's proxy with a stub behind it."""
    found = Archive([], threading.Event())
    found.gate.set()

    def answer(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        found.seen.append((method, path, headers, body))
        found.gate.wait(SECONDS)

    server = stub(answer, b"[]", {"content-type": "application/dicom+json", "set-cookie": "archive=1"})
    monkeypatch.setattr(proxy, "DICOMWebDatastore", type(served.app.datastore()))
    monkeypatch.setattr(proxy, "app_instance", lambda: served.app)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{server.server_port}/dicom-web")
    try:
        yield found
    finally:
        found.gate.set()
        server.shutdown()


def test_silent_archive_takes_a_few_threads_only(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", SECONDS)
    asked = proxy.THREADS + 4
    with archive_behind(served, monkeypatch) as archive, ThreadPoolExecutor(asked) as pool:
        archive.gate.clear()
        waiting = [pool.submit(served.ask, "GET", "/proxy/dicom/qido/studies") for _ in range(asked)]
        until(lambda: len(archive.seen) >= proxy.THREADS)
        start = time.monotonic()
        other = served.ask("GET", "/auth/token/valid")
        seconds, reached = time.monotonic() - start, len(archive.seen)
        archive.gate.set()
        answers = [answer.result().status_code for answer in waiting]

    assert (other.status_code, reached, answers) == (200, proxy.THREADS, [200] * asked) and seconds < SOON


def test_proxy_keeps_what_is_sent_on_the_disk(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    ask = requests.request
    monkeypatch.setattr(proxy.requests, "request", lambda *a, **more: given.append(more["data"]) or ask(*a, **more))
    content = os.urandom(1024**2 + 1)
    with archive_behind(served, monkeypatch) as archive:
        sent = served.ask("POST", "/proxy/dicom/stow/studies", data=content)
        empty = served.ask("POST", "/proxy/dicom/stow/studies")
        with connected(served) as one:
            one.sendall(b"POST /proxy/dicom/wado/system HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            refused = one.recv(4096)

    assert (sent.status_code, empty.status_code) == (200, 200) and hasattr(given[0], "read")
    assert [body for *_, body in archive.seen] == [content, b""]
    assert refused.startswith(b"HTTP/1.1 422")  # and not 408, after the wait for a body that does not come


def test_named_origins_may_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_CORS_ORIGINS", ["https://viewer.example/"])
    client = TestClient(create_app(LIMITS), base_url="http://ai.hospital.example")
    asked = {"access-control-request-method": "POST"}

    allowed = client.options("/train/", headers=asked | {"origin": "https://viewer.example"})
    other = client.options("/train/", headers=asked | {"origin": "https://other.example"})

    assert allowed.headers["access-control-allow-origin"] == "https://viewer.example"
    assert other.status_code == 403


def test_limits_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TISSNET_APP_WAITING", "0")
    monkeypatch.setenv("TISSNET_APP_HOSTS", "AI.example, b.example")
    assert Limits.from_environment() == Limits(waiting=0, hosts=("ai.example", "b.example"))

    monkeypatch.setenv("TISSNET_APP_RUNNING", "many")
    with pytest.raises(ValueError, match="TISSNET_APP_RUNNING is 'many'"):
        Limits.from_environment()


def test_log_in_of_monai_label_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    with pytest.raises(ValueError, match="nginx"):
        create_app(LIMITS)


def test_viewer_serves_pages_for_its_own_addresses(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("page")
    (tmp_path / "assets").mkdir()
    viewer = Viewer(directory=tmp_path, html=True)

    assert {Path(viewer.lookup_path(path)[0]).name for path in ("viewer", "assets", "no/such/page")} == {"index.html"}


def test_server_as_a_process(tmp_path: Path) -> None:
    folder, port = write_app(tmp_path), free_port()
    (folder / "sessions" / str(uuid.uuid4())).mkdir(parents=True)  # as a killed server leaves it
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false", "TMPDIR": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(folder / "app"), "--studies",
               str(folder / "store"), "--host", "127.0.0.1", "--port", str(port), "--access_log",
               "--uvicorn_app", "monailabel_app.web.server:app"]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with running(command, url, folder / "out.txt", cwd=ROOT, env=environment) as process:
        answer = requests.post(f"{url}{INFER}", params=ONE | {"output": "json"}, files=form(), timeout=SECONDS)

    text = (folder / "out.txt").read_text() + (folder / "app" / "logs" / "app.log").read_text()
    assert answer.json() == {"voxels": 64}, text
    assert not list((folder / "sessions").iterdir())
    assert IMAGE not in text and "image=" not in text and "serving tissnet_vs" in text
    assert process.returncode in (0, -15)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[int, int, list[dict[str, str]]]]:
    """nginx with the project's file, a certificate of its own and a stub behind it: plain port, TLS port, what came."""
    if missing := [tool for tool in ("nginx", "openssl") if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    came: list[dict[str, str]] = []

    behind = stub(
        lambda method, path, headers, body: came.append({"path": path, "size": str(len(body)), **headers}), b"ok", {}
    )
    plain, tls = free_port(), free_port()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ai.hospital.example",
         "-keyout", "tissnet.key", "-out", "tissnet.crt"], cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    digest = base64.b64encode(hashlib.sha1(b"secret").digest()).decode()
    (tmp_path / "tissnet.htpasswd").write_text(f"doctor:{{SHA}}{digest}\n")
    site = NGINX.read_text()
    for written, here in {
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl": f"listen 127.0.0.1:{tls} ssl",
        "127.0.0.1:8000": f"127.0.0.1:{behind.server_port}",
        "/etc/nginx/tissnet": str(tmp_path / "tissnet"),
        "/var/log/nginx/": f"{tmp_path}/",
    }.items():
        assert written in site
        site = site.replace(written, here)
    temporary = "".join(
        f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""  # its workers would not get into pytest's folder
    head = f"{user} pid {tmp_path}/pid; error_log {tmp_path}/error.log; daemon off; events {{}}"
    (tmp_path / "nginx.conf").write_text(f"{head} http {{ {temporary}\n{site}\n}}")
    process = subprocess.Popen(["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
    try:
        until(lambda: psutil.Process(process.pid).children() != [])  # its workers
        yield plain, tls, came
    finally:
        process.terminate()
        process.wait(SECONDS)
        behind.shutdown()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_nginx_asks_for_tls_and_a_password(nginx: tuple[int, int, list[dict[str, str]]], tmp_path: Path) -> None:
    plain, tls, came = nginx
    url = f"https://127.0.0.1:{tls}"

    def ask(method: str, path: str, **options: Any) -> requests.Response:
        return requests.request(method, url + path, verify=False, timeout=SECONDS, **options)

    redirected = requests.get(f"http://127.0.0.1:{plain}/info/?image=x", allow_redirects=False, timeout=SECONDS)
    without, wrong = ask("GET", "/info/"), ask("GET", "/info/", auth=("doctor", "guess"))
    assert redirected.status_code == 301
    assert redirected.headers["location"] == "https://ai.hospital.example/info/?image=x"
    assert (without.status_code, wrong.status_code, came) == (401, 401, [])
    assert ask("GET", "/auth/").json()["enabled"] is True

    upload = b"\0" * (8 * 1024**2)
    answers = [ask("GET", "/info/?image=Mueller", auth=("doctor", "secret")),
               ask("PUT", "/datastore/image", auth=("doctor", "secret"), data=upload),
               ask("POST", "/auth/token", data="username=doctor")]  # fmt: skip
    huge = http.client.HTTPSConnection("127.0.0.1", tls, timeout=SECONDS, context=ssl._create_unverified_context())
    token = base64.b64encode(b"doctor:secret").decode()
    length = {"content-length": str(3 * 1024**3), "authorization": f"Basic {token}"}
    huge.request("PUT", "/Mueller_T2?image=Mueller", headers=length)

    assert [answer.text for answer in answers] == ["ok"] * 3 and huge.getresponse().status == 413
    assert [one["path"] for one in came] == ["/info/?image=Mueller", "/datastore/image", "/auth/token"]
    assert came[0]["Host"] == f"127.0.0.1:{tls}" and came[1]["size"] == str(len(upload))
    assert "max-age" in answers[0].headers["strict-transport-security"]
    log = (tmp_path / "tissnet.log").read_text()
    assert "image=" not in log and "doctor" not in log and "127.0.0.1 [" in log
    assert "Mueller" not in (tmp_path / "tissnet_error.log").read_text() + (tmp_path / "error.log").read_text()
    text = NGINX.read_text()
    assert "limit_conn tissnet_connections 16;" in text and "http2;" not in text


def test_log_in_of_slicer_is_the_header_that_nginx_wants(served: Served) -> None:
    client = MONAILabelClient(served.url)

    token = client.auth_token("doctor", "secret")
    client.update_auth(token)

    assert client._headers["Authorization"] == "Basic " + base64.b64encode(b"doctor:secret").decode()
    assert client.auth_valid_token()
