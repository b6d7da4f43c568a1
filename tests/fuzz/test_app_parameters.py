"""Fuzz of the app's parameters: whatever a request holds, the answer is 2xx, or 4xx with a sentence, never a 500.

Nothing outside the studies is read, written or left behind. The real app and store answer; of a model only the
computation is left out, and of a background task the process: what it would check of its request is run instead.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from monailabel.config import settings as server
from monailabel.interfaces.utils import app as app_cache
from monailabel.utils.async_tasks import task as async_task

from monailabel_app.bundle import Segmentation, ServedBundle
from monailabel_app.errors import InputError
from monailabel_app.web.limits import Limits
from monailabel_app.web.server import create_app

EXAMPLES = int(os.environ.get("TISSNET_FUZZ_EXAMPLES", "100"))
APP = Path(__file__).resolve().parents[2] / "monailabel_app"
SECRET = "not for anybody outside"
MOST_ARGUMENT = 128 * 1024  # bytes: a background task gets its request as an argument of its process
SHAPE = (24, 20, 12)
ODD = (
    *("../outside", "../../outside.txt", "/etc/passwd", "..\\outside", "C:\\x", "file:///etc/passwd", "%2e%2e/x"),
    *(".", "..", "", " ", "a\0b", "a\nb", "x" * 300, "p1_T2/../../outside", "ÄÖ_T2", "p1_T2 ", "\u202ep1_T2", "😀"),
)
NAMES = ("p1_T2", "p1_ceT1", "p2_T2", "p3_flair", "p4_seg", "nobody_T2")
RESULT = (
    *("threshold", "overlap", "flips", "device", "result_extension", "result_dtype", "result_compress", "label_info"),
    *("label_tag", "save_label", "restore_label_idx"),
)
START = ("device", "multi_gpu", "gpus", "max_epochs", "val_split", "learning_rate", "seed", "promote_if_better")
OPTIONS = {
    "infer": RESULT,
    "train": START,
    "scoring": ("device", "multi_gpu", "gpus", "y", "y_pred"),
    "activelearning": ("label_tag", "labels", "client_id"),
    "batch/infer": (*RESULT, *START[:3], "images", "skip_finished", "skip_answered", "max_workers", "max_batch_size"),
    "facts": ("label_info", "note", "id", "ts", "name"),
}
FOREIGN = ("model", "image", "upload", "files", "session", "strategy", "logging", "description", "bundle_path")
USUAL = (
    *(0, 0.5, 1, True, False, None, "true", "cpu", "cuda", "cuda:3", ["cpu"], ".nii.gz", "uint8", "original", "all"),
    *("final", "unlabeled", [{"name": "tumor", "color": [1, 2, 3], "idx": 1}], ["original"], "p1_T2", 3, 2e-5),
)

# JSON has no half letters, NaN and endless numbers; Python writes all of them.
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.sampled_from(["\ud800", "\udfff x"]))
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([10**400, -(2**63), 1e308, float("nan")]))
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.sampled_from(USUAL), st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def mostly(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One in eight is odd, so that not all requests are refused for the first thing that is looked at."""
    return st.integers(0, 7).flatmap(lambda draw: odd if draw == 7 else usual)


def bodies(kind: str) -> st.SearchStrategy[str]:
    """What is to be JSON of a kind of task's options, all of one name known but the odd ones."""
    known = st.dictionaries(
        mostly(st.sampled_from(OPTIONS[kind]), st.sampled_from(FOREIGN) | texts),
        st.one_of(st.sampled_from(USUAL), st.sampled_from(USUAL), values),
        max_size=2,
    )
    noise = st.binary(max_size=20).map(lambda raw: raw.decode("latin-1"))
    return mostly(known.map(json.dumps), values.map(json.dumps) | noise)


letters = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
names = mostly(st.sampled_from(NAMES), st.sampled_from(ODD) | letters)
tags = mostly(st.sampled_from(["final", "original", "synthetic", "other"]), names)
switches = st.sampled_from(["true", "false", "maybe", "", "2"])
READ = (
    *("/datastore/", "/datastore/image", "/datastore/image/info", "/datastore/label", "/datastore/label/info"),
    *("/datastore/dataset", "/model/{}", "/model/info/{}", "/session/{}"),
)
TASKS = {
    "infer": ("tissnet_vs",),
    "train": ("tissnet_vs", ""),
    "scoring": ("dice", ""),
    "activelearning": ("first_come", "disagreement"),
    "batch/infer": ("tissnet_vs",),
}


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    """One request: method, path, query, body, form and files."""
    kind = draw(st.sampled_from([*TASKS, *TASKS, "image", "label", "facts", "read", "session"]))
    one: dict[str, Any] = {"method": "POST", "query": {}, "form": None, "body": None, "files": {}}
    if kind in TASKS:
        name = draw(mostly(st.sampled_from(TASKS[kind]), names))
        one["path"] = f"/{kind}/{quote(name, safe='')}"
    if kind == "infer":
        one["query"] = {"image": draw(names), "output": draw(mostly(st.sampled_from(["json", "image", "all"]), names))}
        one["query"] |= draw(mostly(st.just({}), some(session_id=names)))
        one["form"] = {"params": draw(bodies(kind))}
        if draw(st.booleans()):
            one["files"] = {"file": draw(files())}
    elif kind in TASKS:
        one["body"] = draw(bodies(kind))
        one["query"] = draw(mostly(st.just({}), some(images=names, enqueue=switches)))
    elif kind in ("image", "label"):
        one |= {"method": "PUT", "path": f"/datastore/{kind}", "form": draw(some(params=bodies("facts")))}
        one["query"] = {"image": draw(names | letters)} | draw(some(tag=tags))
        one["files"] = {"file" if kind == "image" else "label": draw(files())}
    elif kind == "facts":
        one |= {"method": "PUT", "path": draw(st.sampled_from(["/datastore/image/info", "/datastore/label/info"]))}
        one["query"], one["form"] = draw(some(image=names, label=names, tag=tags)), draw(some(info=bodies("facts")))
    elif kind == "session":
        one |= {"method": "PUT", "path": "/session/", "query": draw(some(uncompress=switches, expiry=letters))}
        one["files"] = {"files": draw(files())}
    else:
        path = draw(st.sampled_from(READ))
        one |= {"method": draw(st.sampled_from(["GET", "HEAD", "DELETE"])), "path": path}
        one["path"] = path.format(quote(draw(names), safe=""))
        sums = st.sampled_from(["SHA256:00", "X:1", "md5:", ":"])
        one["query"] = draw(some(image=names, label=names, tag=tags, output=names, limit_cases=letters, check_sum=sums))
    return one


def some(**parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the parts."""
    return st.fixed_dictionaries({}, optional=parts)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file as a client sends it: its name, and a scan, noise or nothing."""
    stem = draw(mostly(st.sampled_from([*NAMES, "new", "tmpabcd1234"]), letters))
    ending = draw(
        mostly(st.just(".nii"), st.sampled_from([".nii.gz", ".nrrd", ".NII", ".seg.nrrd", ".bin", "", ".py"]))
    )
    content = draw(mostly(st.sampled_from([SCAN, MASK]), st.sampled_from([SCAN[:500], b""]) | st.binary(max_size=400)))
    return stem + ending, content


def scan(voxels: np.ndarray) -> bytes:
    image = nib.Nifti1Image(voxels, np.diag([6.0, 7.0, 10.0, 1.0]))
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    return image.to_bytes()


GENERATOR = np.random.default_rng(0)
SCAN = scan(GENERATOR.integers(1, 1000, SHAPE).astype(np.int16))
MASK = scan(GENERATOR.integers(0, 2, SHAPE).astype(np.uint8))


def without_network(self: ServedBundle, sent: list[Path], folder: Path, *, device: str, **_: Any) -> Segmentation:
    """An empty mask, where the real one would be computed."""
    mask = np.zeros(SHAPE, bool)
    written = {name: folder / f"{name}.nii.gz" for name in ("pred", "synthetic", "error")}
    for file in written.values():
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.diag([6.0, 7.0, 10.0, 1.0])), file)
    return Segmentation(mask, np.eye(4), None, written, 1.0, 0.0, 0.0, device, 0.0, self.version, self.sha256)


def without_process(request: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What the process of a background task would first do with its request."""
    assert len(json.dumps(request)) < MOST_ARGUMENT
    instance = app_cache.app_instance()
    try:
        if method == "scoring":
            instance.scoring(json.loads(json.dumps(request)))
        elif method == "batch_infer":
            instance._batch_infer.get_images(json.loads(json.dumps(request)), instance.datastore())
        elif method == "train":
            instance._trainers[request["model"]].check(json.loads(json.dumps(request)), instance.datastore())
    except InputError as error:  # of a batch, a reason in its log
        assert method == "batch_infer", f"started and refused afterwards: {error}"
    return {"status": "SUBMITTED", "details": []}


@dataclass
class Served:
    """The app, and the folder that holds its studies and what is none of them."""

    client: TestClient
    folder: Path

    def outside(self) -> dict[str, bytes]:
        """Every file that is none of the studies', with its content."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        kept = (self.folder / "studies", self.folder / "sessions")
        return {str(p): p.read_bytes() for p in found if not any(p.is_relative_to(folder) for folder in kept)}

    def ask(self, one: Mapping[str, Any]) -> Any:
        """The answer to a request."""
        sent: dict[str, Any] = {"params": one["query"]}
        if one["body"] is not None:
            sent["content"] = one["body"].encode("utf-8", "surrogatepass")
        else:
            form = {key: (None, value) for key, value in (one["form"] or {}).items()}
            sent["files"] = {**form, **one["files"]} or None
        return self.client.request(one["method"], one["path"], follow_redirects=False, **sent)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("studies", "tmp", "versions"):
        (folder / name).mkdir()
    (folder / "outside.txt").write_text(SECRET)
    for name in NAMES[:-1]:
        (folder / "studies" / f"{name}.nii").write_bytes(SCAN)
    for tag in ("final", "original"):
        (folder / "studies" / "labels" / tag).mkdir(parents=True)
        for name in ("p1_T2", "p2_T2"):
            (folder / "studies" / "labels" / tag / f"{name}.nii").write_bytes(MASK)
    own = {"APP_DIR": str(APP), "STUDIES": str(folder / "studies"), "SESSION_PATH": str(folder / "sessions")}
    own |= {"APP_CONF": {"allow_demo_weights": "true", "versions": str(folder / "versions")}}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (own | {"AUTO_UPDATE_SCORING": False, "DATASTORE_AUTO_RELOAD": False}).items():
            patch.setattr(server, f"MONAI_LABEL_{key}", value)
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        patch.setattr(ServedBundle, "warm_up", lambda self: None)
        patch.setattr(ServedBundle, "segment", without_network)
        patch.setattr(async_task, "run_background_task", without_process)
        app_cache.clear_cache()
        limits = Limits(sessions=10**6, allow_delete=False)
        with TestClient(create_app(limits), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield Served(client, folder)
        app_cache.clear_cache()


def check_answer(served: Served, one: Mapping[str, Any]) -> int:
    """Asks, and holds the answer against what every answer has to be; gives its status."""
    before = served.outside()
    answer = served.ask(one)
    assert 200 <= answer.status_code < 500, (answer.status_code, answer.text, one)
    if answer.status_code >= 400 and one["method"] != "HEAD":
        said = answer.json()
        assert said.keys() == {"detail"} and isinstance(said["detail"], str), (answer.text, one)
        assert re.fullmatch(r"[^\n]{10,2000}\.", said["detail"]), (said, one)
        assert not re.search(r"Traceback|Error\b|site-packages|\.py\b|0x[0-9a-f]{6}", said["detail"]), (said, one)
        assert str(served.folder) not in said["detail"], (said, one)
    assert SECRET.encode() not in answer.content
    assert served.outside() == before, one
    return int(answer.status_code)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
@given(one=asked())
def test_answers_to_whatever_is_asked(served: Served, one: dict[str, Any]) -> None:
    event(f"{one['path'].split('/')[1]}: {check_answer(served, one)}")


def test_the_fuzz_reaches_what_it_asks(served: Served) -> None:
    """An ordinary request of each kind is answered: the refusals are not all of one early check."""
    one: dict[str, Any] = {"method": "POST", "query": {}, "form": None, "body": "{}", "files": {}}
    for kind, found in TASKS.items():
        asked_for = one | {"path": f"/{kind}/{found[0]}", "query": {"image": "p1_T2"} if kind == "infer" else {}}
        assert check_answer(served, asked_for) == 200, kind
