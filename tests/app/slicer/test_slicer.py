"""The Slicer module without Slicer: its HTTP against a real server of the same replies, its calls against stand-ins.

The stand-ins take only methods that Slicer 5.6.2's headers have; whether Slicer then shows what was meant, they cannot
say.
"""

import ast
import base64
import gzip
import http.server
import importlib.util
import json
import re
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from requests_toolbelt import MultipartEncoder

FILE = Path(__file__).parents[3] / "monailabel_app" / "slicer" / "TISSNet.py"
SLICER_SHIPS = {"ctk", "qt", "slicer", "vtk"}
MASK = b"NRRD0004\r\n\r\n--\r\n\x00\xff--boundary--\r\nend\r\n"  # what a careless reader of forms would cut
VOLUME = gzip.compress(b"a float volume")
DEMONSTRATION = "DEMONSTRATION WEIGHTS, trained on <phantoms>."

SIZE = (20, 16, 9)
AFFINE = np.array([[0.5, 0, 0, -10], [0, 0.7, 0, 20], [0, 0, 1.5, 30], [0, 0, 0, 1]])

# Of vtkMRMLNode and its kinds, vtkImageData, vtkSegmentation, vtkSegment, the display, slice, composite and layout
# nodes, ctk and qt.
METHODS = set(
    """GetID GetName SetName GetAttribute SetAttribute GetStorageNode GetDisplayNode CreateDefaultDisplayNodes
    GetTransformNodeID SetAndObserveTransformNodeID TransformPointToWorld GetSegmentation AddEmptySegment
    GetNumberOfSegments GetNthSegment GetLabelValue SetReferenceImageGeometryParameterFromVolumeNode GetNodeReference
    GetReferenceImageGeometryReferenceRole SetVisibility SetVisibility2DFill SetVisibility2DOutline
    SetAndObserveColorNodeID AutoWindowLevelOff SetWindowLevelMinMax SetThreshold ApplyThresholdOn SetLinkedControl
    SetHotLinkedControl SetBackgroundVolumeID GetBackgroundVolumeID SetForegroundVolumeID SetForegroundOpacity
    SetLabelVolumeID SetLayoutLabel SetOrientation RotateToVolumePlane JumpSliceByCentering
    AddLayoutDescription GetImageData GetDimensions GetIJKToRASMatrix""".split()
)


GEOMETRY = "SetReferenceImageGeometryParameterFromVolumeNode"


class Recorder:
    """A stand-in that notes calls of methods that exist, and has values for some."""

    def __init__(self, **values):
        self.__dict__.update(calls={}, values=values)

    def __getattr__(self, name):
        if name not in METHODS:
            raise AttributeError(name)

        def call(*args):
            self.calls[name] = args
            value = self.values.get(name)
            return value(*args) if callable(value) else value

        return call


class Node(Recorder):
    """A node of the scene."""

    def __init__(self, kind, name, **values):
        attributes, display = {}, Recorder()
        self.__dict__.update(kind=kind, id=f"{kind}{id(self)}", attributes=attributes)
        super().__init__(
            **{
                "GetID": self.id,
                "GetName": lambda: self.calls.get("SetName", (name,))[0],
                "SetAttribute": attributes.__setitem__,
                "GetAttribute": attributes.get,
                "GetDisplayNode": display,
                "GetReferenceImageGeometryReferenceRole": "referenceImageGeometryRef",
                "GetNodeReference": lambda role: self.calls.get(GEOMETRY, (None,))[0],
                "TransformPointToWorld": lambda point, world: world.__setitem__(slice(None), [x + 1 for x in point]),
                **values,
            }
        )


def on_grid(size=SIZE, affine=AFFINE):
    """What a volume says of its grid."""
    return {
        "GetImageData": Recorder(GetDimensions=size),
        "GetIJKToRASMatrix": lambda matrix: matrix.__setitem__(slice(None), affine.tolist()),
    }


class Matrix(list):
    """A vtkMatrix4x4."""

    def MultiplyPoint(self, point):
        return tuple(np.array(self) @ point)


class Widget:
    """A stand-in for any widget or layout of Qt: takes every call and property, emits what `emit` says."""

    def __init__(self, *args):
        self.args, self.slots, self.children, self.enabled = args, {}, [], True
        self.text = args[0] if args and isinstance(args[0], str) else ""
        self.visible = True
        for layout in args:
            if isinstance(layout, Widget):
                layout.children.append(self)

    def connect(self, signal, slot):
        self.slots[signal] = slot

    def emit(self, signal, *args):
        if signal in self.slots:
            self.slots[signal](*args)

    def setText(self, text):
        assert isinstance(text, str)
        self.text = text

    def setVisible(self, visible):
        self.visible = visible

    def layout(self):
        return self

    def __getattr__(self, name):
        if not re.fullmatch(r"(add|set|hide|show|horizontalHeader|verticalHeader|resize)\w*", name):
            raise AttributeError(name)
        return lambda *args: Widget() if name.endswith("Header") else None


class ComboBox(Widget):
    def __init__(self):
        super().__init__()
        self.items, self.currentText = [], ""

    def clear(self):
        self.items, self.currentText = [], ""

    def addItem(self, name):
        self.items.append(name)
        self.choose(self.currentText or name)

    def choose(self, name):
        self.currentText = name
        self.emit("currentIndexChanged(int)", self.items.index(name))


class NodeComboBox(Widget):
    node = None

    def currentNode(self):
        return self.node

    def choose(self, node):
        self.node = node
        self.emit("currentNodeChanged(vtkMRMLNode*)", node)

    def setCurrentNodeID(self, node_id):
        self.choose(next(node for node in NodeComboBox.scene if node.id == node_id))


class Table(Widget):
    def __init__(self):
        super().__init__()
        self.cells = {}

    def setRowCount(self, count):
        self.cells, self.count = {}, count

    def setItem(self, row, column, item):
        self.cells[row, column] = item.text


class FakeSlicer:
    """The modules `slicer`, `qt`, `ctk` and `vtk`, a scene, two views, and what happened."""

    def __init__(self, monkeypatch):
        self.scene, self.read, self.settings, self.confirmed, self.asked = [], {}, {}, True, []
        self.folders = []
        NodeComboBox.scene = self.scene
        self.views = {
            name: types.SimpleNamespace(composite=Recorder(), view=Recorder(), fitted=0)
            for name in ("Red", "TISSNetScan", "TISSNetSynthetic")
        }
        self.layout = Recorder()
        slicer, util, scripted = (types.ModuleType(n) for n in ("slicer", "util", "ScriptedLoadableModule"))
        util.exportNode, util.loadVolume, util.loadSegmentation = self.export, self.load_volume, self.load_segmentation
        util.getNodesByClass = lambda kind: [node for node in self.scene if node.kind == kind]
        util.confirmOkCancelDisplay = lambda text: self.asked.append(text) or self.confirmed
        slicer.util = util
        slicer.mrmlScene = types.SimpleNamespace(RemoveNode=self.remove, AddNewNodeByClass=self.add)
        tree = types.SimpleNamespace(
            GetItemByDataNode=lambda node: 3, GetSceneItemID=lambda: 1, GetItemParent=lambda item: item - 1,
            GetItemAttribute=lambda item, key: "Smith^Anna" if (item, key) == (2, "DICOM.PatientName") else "",
        )  # fmt: skip
        slicer.vtkMRMLSubjectHierarchyNode = types.SimpleNamespace(GetSubjectHierarchyNode=lambda scene: tree)
        manager = types.SimpleNamespace(
            layoutLogic=lambda: types.SimpleNamespace(GetLayoutNode=lambda: self.layout),
            setLayout=lambda number: setattr(self, "shown_layout", number),
            sliceWidget=lambda name: self.widget(self.views[name]),
        )
        slicer.app = types.SimpleNamespace(layoutManager=lambda: manager, processEvents=lambda: None)
        slicer.qMRMLNodeComboBox, slicer.qMRMLWidget = NodeComboBox, Widget
        scripted.ScriptedLoadableModule = type("ScriptedLoadableModule", (), {"__init__": lambda self, parent: None})
        scripted.ScriptedLoadableModuleWidget = type("Base", (), {"setup": lambda self: None, "layout": Widget()})
        qt, ctk, vtk = (types.ModuleType(n) for n in ("qt", "ctk", "vtk"))
        vtk.vtkMatrix4x4 = Matrix
        for name in ("QFormLayout", "QVBoxLayout", "QPushButton", "QLabel", "QTableWidgetItem"):
            setattr(qt, name, type(name, (Widget,), {}))
        qt.QLineEdit = type("QLineEdit", (Widget,), {"Password": 2})
        qt.QAbstractItemView = types.SimpleNamespace(NoEditTriggers=0)
        qt.QComboBox, qt.QTableWidget, ctk.ctkCollapsibleButton = ComboBox, Table, Widget
        qt.QSettings = lambda: types.SimpleNamespace(value=self.settings.get, setValue=self.settings.__setitem__)
        modules = {"slicer": slicer, "slicer.util": util, "slicer.ScriptedLoadableModule": scripted, "qt": qt}
        for name, module in (modules | {"ctk": ctk, "vtk": vtk}).items():
            monkeypatch.setitem(sys.modules, name, module)

    @staticmethod
    def widget(view):
        def fit():
            view.fitted += 1

        return types.SimpleNamespace(
            mrmlSliceCompositeNode=lambda: view.composite,
            mrmlSliceNode=lambda: view.view,
            sliceController=lambda: types.SimpleNamespace(fitSliceToBackground=fit),
        )

    def add(self, kind, name):
        segmentation = Recorder(GetNumberOfSegments=0)
        self.scene.append(Node(kind, name, GetSegmentation=segmentation))
        return self.scene[-1]

    def remove(self, node):
        if node in self.scene:
            self.scene.remove(node)

    def scan(self, name, **grid):
        self.scene.append(Node("vtkMRMLScalarVolumeNode", name, **on_grid(**grid)))
        return self.scene[-1]

    def export(self, node, path, options):
        self.folders.append(Path(path).parent)
        nib.save(nib.Nifti1Image(np.arange(24.0, dtype=np.float32).reshape(2, 3, 4), np.eye(4)), path)
        return True

    def _load(self, kind, path, options, **values):
        self.folders.append(Path(path).parent)
        if b"unreadable" in Path(path).read_bytes():
            raise RuntimeError("Failed to load node from file")
        storage = Node("storage", "")
        self.scene += [storage, Node(kind, options["name"], GetStorageNode=storage, **values)]
        self.read[options["name"]] = Path(path).read_bytes(), Path(path).name
        return self.scene[-1]

    def load_volume(self, path, options):
        assert options["show"] is False
        return self._load("vtkMRMLScalarVolumeNode", path, options, **on_grid())

    def load_segmentation(self, path, options):
        segment = Recorder(GetLabelValue=1, GetName="Segment_1")
        segmentation = Recorder(GetNumberOfSegments=1, GetNthSegment=[segment].__getitem__)
        return self._load("vtkMRMLSegmentationNode", path, options, GetSegmentation=segmentation)

    def nodes(self, kind):
        return {node.GetName(): node for node in self.scene if node.kind == kind}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the app's server does."""

    def log_message(self, *args):
        pass

    def _send(self, status, content, kind="application/json", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _answer(self):
        state = self.server.state
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        state["asked"].append((self.command, parts.path))
        state["authorization"] = self.headers.get("Authorization")
        if refusal := state["refusals"].get((self.command, parts.path)):
            return self._send(*refusal[:2], **refusal[2])
        if parts.path == "/info/":
            return self._send(200, {"models": state["models"]})
        if (self.command, parts.path) == ("PUT", "/datastore/"):
            if query["image"] in state["images"]:
                return self._send(409, {"detail": "There is an image of that name on the server."})
            state["images"][query["image"]] = body
            return self._send(200, {"image": query["image"]})
        if parts.path.startswith("/infer/"):
            time.sleep(state["seconds"])
            state["params_sent"] = body
            if query["image"] not in state["images"] or query["output"] != "all":
                return self._send(404, {"detail": "There is no image of that name on the server."})
            link = f"/datastore/label?label={query['image'].replace(' ', '+')}&tag="
            extra = {name: link + name for name in ("synthetic", "error")}
            fields = {
                "params": (None, json.dumps(state["params"] | {"extra": extra}), "application/json"),
                "image": ("tissnet_1.nrrd", MASK, "application/octet-stream"),
            }
            encoder = MultipartEncoder(fields=fields)
            return self._send(200, encoder.to_string(), encoder.content_type)
        name = query.get("label") or query.get("image")
        if name not in state["images"]:
            return self._send(404, {"detail": "There is no such label on the server."})
        if parts.path == "/datastore/label/info":
            return self._send(200, {"params": state["params"]} if state["kept"] else {"model": "tissnet_vs"})
        return self._send(200, state["volume"], "application/gzip")

    do_GET = do_PUT = do_POST = _answer


PARAMS = {
    "volume_mm3": 512.3, "volume_cm3": 0.512, "diameter_3d_mm": 12.1, "diameter_axial_mm": 10.0, "side": "left",
    "confidence": 0.871, "seconds": 3.25, "device": "cpu", "model": "tissnet_vs", "model_version": "0.3.0",
    "weights_sha256": "0123456789abcdef", "demonstration": True, "notes": ["Thick slices.", DEMONSTRATION],
    "label_names": {"vestibular schwannoma": 1}, "disagreement": 0.1, "error_mass_mm3": 3.0,
    "findings": [{"volume_mm3": 512.3, "diameter_3d_mm": 12.1, "diameter_axial_mm": 10.0, "side": "left",
                  "center_mm": [-31.5, -20, 7.5]}],
}  # fmt: skip
MODELS = {
    "tissnet_vs": {"source_modalities": ["T2"], "target_modality": "ceT1"},
    "tissnet_glioma": {"source_modalities": ["T1", "ceT1", "T2"], "target_modality": "FLAIR"},
    "deepgrow": {"type": "deepgrow"},
}


@pytest.fixture
def served():
    """A server that runs, with its state."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.state = {
        "asked": [], "refusals": {}, "models": MODELS, "images": {"p 1 [a]": b""}, "params": PARAMS, "volume": VOLUME,
        "kept": True, "seconds": 0,
    }  # fmt: skip
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.state["address"] = f"http://127.0.0.1:{server.server_address[1]}"
    yield server.state
    server.shutdown()
    server.server_close()


@pytest.fixture
def fake(monkeypatch):
    return FakeSlicer(monkeypatch)


@pytest.fixture
def tissnet(fake, monkeypatch):
    """The module."""
    spec = importlib.util.spec_from_file_location("TISSNet", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "TISSNet", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def panel(tissnet, served, fake):
    fake.settings["TISSNet/address"] = served["address"]
    return tissnet.Panel(Widget())


def press(button):
    button.emit("clicked(bool)", False)


def test_is_one_file_of_what_slicer_ships_in_python_3_9():
    tree = ast.parse(FILE.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names <= SLICER_SHIPS
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not [call for call in calls if any(word.arg == "strict" for word in call.keywords)]  # zip's, of Python 3.10


@pytest.mark.parametrize("address", ["", "ftp://server", "http://", "http://a:b@server", "http://s:x", "http://s?q"])
def test_refuses_what_is_no_address(tissnet, address):
    with pytest.raises(tissnet.Refused, match="is no address"):
        tissnet.Server(address)


@pytest.mark.parametrize(
    ("address", "whole", "way"),
    [
        (" 127.0.0.1:8000/ ", "http://127.0.0.1:8000", "within this machine"),
        ("http://[::1]:8000", "http://[::1]:8000", "within this machine"),
        ("ai.hospital.example", "http://ai.hospital.example", "WITHOUT ENCRYPTION"),
        ("https://ai.hospital.example/tissnet/", "https://ai.hospital.example/tissnet", "encrypted"),
    ],
)
def test_reads_an_address(tissnet, address, whole, way):
    server = tissnet.Server(address)
    assert (server.address, server.way) == (whole, way)
    assert server.readable == (way == "WITHOUT ENCRYPTION")


def test_a_password_goes_out_only_where_nobody_reads_it(tissnet, served):
    tissnet.Server(served["address"], "anna", "pass wörd").models()
    token = served["authorization"].removeprefix("Basic ")
    assert base64.b64decode(token).decode() == "anna:pass wörd"
    tissnet.Server("https://ai.hospital.example", "anna", "secret")
    with pytest.raises(tissnet.Refused, match="not encrypted"):
        tissnet.Server("http://ai.hospital.example", "anna", "secret")


def test_lists_the_models_that_it_can_ask(tissnet, served):
    assert list(tissnet.Server(served["address"]).models()) == ["tissnet_vs", "tissnet_glioma"]


def test_files_come_byte_for_byte(tissnet, served):
    answer = tissnet.Server(served["address"]).run("tissnet_vs", "p 1 [a]")
    assert (answer.mask, answer.synthetic, answer.error) == (MASK, VOLUME, VOLUME)
    assert answer.params["volume_mm3"] == 512.3
    sent = re.search(rb"\r\n\r\n(\{.*?\})\r\n--", served["params_sent"]).group(1)
    assert json.loads(sent) == {"result_extension": ".nrrd", "result_dtype": "uint8"}


@pytest.mark.parametrize("link", ["http://elsewhere/x", "//elsewhere/x", None, "datastore"])
def test_follows_links_to_the_same_server_only(tissnet, served, link):
    with pytest.raises(tissnet.Refused, match="not as a TISS-Net server"):
        tissnet.Server(served["address"])._linked(link)
    assert not served["asked"]


@pytest.mark.parametrize(
    ("status", "content", "headers", "expected"),
    [
        (422, {"detail": "The scan has\n 3 slices: expected 10."}, {}, "The scan has 3 slices: expected 10."),
        (404, {"detail": "There is no image 'x'."}, {}, "There is no image 'x'."),
        (503, {"detail": "It is busy."}, {"retry_after": "5"}, "It is busy. It asks to wait 5 s before"),
        (503, {"detail": "It is busy."}, {"retry_after": "soon"}, "It is busy."),
        (401, b"<html>401</html>", {}, "asks for a user name"),
        (413, b"<html>413</html>", {}, "larger than the server takes"),
        (502, b"<html>502</html>", {}, "does not answer: tell who runs it"),
        (500, {"detail": [{"loc": 1}]}, {}, "refused with number 500"),
        (302, b"", {"location": "http://elsewhere/"}, "refused with number 302"),
    ],
)
def test_says_the_servers_sentence(tissnet, served, status, content, headers, expected):
    served["refusals"]["POST", "/infer/tissnet_vs"] = status, content, headers
    with pytest.raises(tissnet.Refused) as caught:
        tissnet.Server(served["address"]).run("tissnet_vs", "p 1 [a]")
    assert expected in str(caught.value)
    assert "html" not in str(caught.value) and "loc" not in str(caught.value)
    assert caught.value.status == status
    if headers.get("retry_after") == "soon":
        assert "wait" not in str(caught.value)


def test_says_that_nobody_answers(tissnet):
    with pytest.raises(tissnet.Refused, match="does not answer at http://127.0.0.1:9: is it started"):
        tissnet.Server("127.0.0.1:9").models()


@pytest.mark.parametrize("content", [b"<html>a printer</html>", [1], {"models": [1]}, {"models": {"a": 1}}])
def test_knows_another_server(tissnet, served, content):
    served["refusals"]["GET", "/info/"] = 200, content, {}
    with pytest.raises(tissnet.Refused, match="not as a TISS-Net server"):
        tissnet.Server(served["address"]).models()


def test_refuses_a_reply_that_was_cut_off(tissnet):
    kind, body = tissnet.form({"params": (None, b"{}"), "image": ("a.nrrd", MASK)})
    assert tissnet.read_form(kind, body) == {"params": b"{}", "image": MASK}
    for cut in (b"", body[: len(body) // 2], body[:-6]):
        with pytest.raises(tissnet.Refused):
            tissnet.read_form(kind, cut)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_scan_goes_out_without_text(tissnet, tmp_path, order):
    voxels = np.random.default_rng(0).normal(size=(4, 5, 6))
    image = nib.Nifti1Image(voxels, np.diag([1, 2, 3, 1]), nib.Nifti1Header(endianness=order))
    for field in ("db_name", "descrip", "aux_file", "intent_name"):
        image.header[field] = b"SMITH^ANNA"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SMITH^ANNA born 1970"))
    nib.save(image, tmp_path / "a.nii.gz")
    sent = (tmp_path / "a.nii.gz").read_bytes()
    assert gzip.decompress(sent).count(b"SMITH") == 5
    clean = tissnet.without_text(sent)
    assert b"SMITH" not in gzip.decompress(clean)
    (tmp_path / "b.nii.gz").write_bytes(clean)
    before, back = (nib.load(tmp_path / f"{name}.nii.gz") for name in "ab")
    assert before.header.endianness == back.header.endianness == order
    np.testing.assert_array_equal(back.get_fdata(), before.get_fdata())
    np.testing.assert_array_equal(back.affine, before.affine)
    assert not back.header.extensions


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"short"), gzip.compress(bytes(400))],
    ids=["nothing", "no gzip", "short", "zeros"],  # the time is in what gzip writes: other ids in every process
)
def test_sends_nothing_but_nifti(tissnet, content):
    with pytest.raises(tissnet.Refused, match="NIfTI"):
        tissnet.without_text(content)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "cannot be used"),
        ("../x", "cannot be used"),
        ("a.nii", "cannot be used"),
        ("case ", "cannot be used"),
        ("anna-1", "who the patient is"),
        ("x4711x", "who the patient is"),
        ("T2 axial", "that of the scan"),
    ],
)
def test_refuses_a_name_that_tells_the_patient(tissnet, name, why):
    with pytest.raises(tissnet.Refused, match=why):
        tissnet.check_pseudonym(name, ["Smith^Anna", "4711"], ["t2 axial"])


def test_makes_pseudonyms(tissnet):
    names = {tissnet.new_pseudonym() for _ in range(50)}
    assert len(names) == 50
    assert {tissnet.check_pseudonym(name, ["Smith^Anna"], ["T2"]) for name in names} == names


def test_checks_what_was_chosen(tissnet):
    tissnet.check_chosen(["T1", "T2"], ["a", "b"])
    with pytest.raises(tissnet.Refused, match="Choose the scan for T1 and ceT1"):
        tissnet.check_chosen(["T1", "ceT1", "T2"], [None, None, "b"])
    with pytest.raises(tissnet.Refused, match="chosen twice"):
        tissnet.check_chosen(["T1", "T2"], ["a", "a"])


@pytest.mark.parametrize(
    ("name", "remembered", "same"),
    [
        ("p1", (None, None), True),
        ("p1.nii.gz", (None, None), True),
        ("p11", (None, None), False),
        ("SMITH", ("p1", "http://a"), True),
        ("p1", ("p2", "http://a"), False),
        ("p1", ("p1", "http://b"), False),
    ],
)
def test_knows_which_volume_an_image_is(tissnet, name, remembered, same):
    assert tissnet.is_of("p1", "http://a", name, remembered) is same


@pytest.mark.parametrize(
    ("size", "affine", "same"),
    [
        (SIZE, AFFINE, True),
        (SIZE, AFFINE.astype(np.float32) + 1e-6, True),
        ((20, 16, 8), AFFINE, False),
        (SIZE, AFFINE + np.array([[0, 0, 0, 0.2]] + [[0] * 4] * 3), False),
        (SIZE, AFFINE @ np.diag([1, 1, 1.02, 1]), False),
        (SIZE, AFFINE @ np.diag([-1, 1, 1, 1]), False),
        (SIZE, AFFINE * np.nan, False),
    ],
    ids=["same", "rounded", "slices", "moved", "spacing", "mirrored", "nowhere"],
)
def test_knows_a_grid(tissnet, fake, size, affine, same):
    first, second = (tissnet.grid_of(scan) for scan in (fake.scan("a"), fake.scan("b", size=size, affine=affine)))
    assert tissnet.same_grid(first, second) is tissnet.same_grid(second, first) is same
    assert not tissnet.same_grid(first, tissnet.grid_of(Node("vtkMRMLScalarVolumeNode", "without voxels")))


def test_the_numbers_in_a_table(tissnet):
    rows = dict(tissnet.table_rows(PARAMS))
    assert rows["Volume"] == "512.3 mm³ (0.512 cm³)"
    assert rows["Largest diameter in any direction"] == "12.1 mm"
    assert rows["Largest diameter in an axial slice"] == "10 mm"
    assert rows["Side of the patient"] == "left"
    assert rows["Confidence (0 to 1)"] == "0.871"
    assert rows["Model"] == "tissnet_vs, version 0.3.0"
    assert rows["Computed in"] == "3.25 s on cpu"
    assert "Part 1" not in rows
    two = dict(tissnet.table_rows(PARAMS | {"volume_mm3": 123456.7, "findings": PARAMS["findings"] * 2}))
    assert two["Part 2"] == "512.3 mm³, 12.1 mm, left"
    assert two["Volume"].startswith("123457 mm³")
    unknown = dict(tissnet.table_rows({"volume_mm3": float("nan"), "confidence": True, "findings": 3}))
    assert unknown["Volume"] == "not known (not known)"
    assert unknown["Confidence (0 to 1)"] == "not known"


def test_the_warning_comes_first_and_in_red(tissnet):
    text = tissnet.notes_html(PARAMS)
    assert text.startswith('<p style="color:#C00000"><b>DEMONSTRATION WEIGHTS, trained on &lt;phantoms&gt;.</b></p>')
    assert text.count("DEMONSTRATION") == 1
    assert "<p>Thick slices.</p>" in text
    assert "computed, not acquired" in text
    assert tissnet.notes_html({"demonstration": True}).startswith('<p style="color:#C00000">')
    real = tissnet.notes_html(PARAMS | {"demonstration": False, "notes": []})
    assert "C00000" not in real
    assert "press Run" in tissnet.notes_html({})


def test_the_center_of_the_largest_part(tissnet):
    assert tissnet.center_of(PARAMS) == (-31.5, -20.0, 7.5)
    for findings in ([], None, [{}], [{"center_mm": [1, 2]}], [{"center_mm": ["a", 1, 2]}]):
        assert tissnet.center_of({"findings": findings}) is None


def test_the_layout_is_two_axial_views(tissnet):
    views = ElementTree.fromstring(tissnet.layout_xml()).findall("item/view")
    assert [view.get("singletontag") for view in views] == list(tissnet.VIEWS)
    for view in views:
        properties = {item.get("name"): item.text for item in view}
        assert properties["orientation"] == "Axial"
        assert properties["viewgroup"] == str(tissnet.VIEW_GROUP)


def test_waits_without_freezing(tissnet):
    steps = []
    assert tissnet.wait_for(lambda: time.sleep(0.2) or 7, lambda: steps.append(1)) == 7
    assert len(steps) >= 2
    with pytest.raises(ZeroDivisionError):
        tissnet.wait_for(lambda: 1 // 0, lambda: None)


def test_starts_with_the_scan_that_slicer_shows(tissnet, fake, served):
    scan = fake.scan("t2 of Smith")
    fake.views["Red"].composite.values["GetBackgroundVolumeID"] = scan.id
    panel = tissnet.Panel(Widget())
    assert panel.selectors[0].currentNode() is scan
    assert [selector.visible for selector in panel.selectors] == [True, False, False, False]
    assert panel.address.text == "http://127.0.0.1:8000"


def test_sends_shows_and_cleans_up(panel, fake, served, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scan = fake.scan("SMITH T2")
    scan.values["GetTransformNodeID"] = "moved"
    panel.selectors[0].choose(scan)
    case = panel.case.text
    press(panel.run)
    assert panel.status.text == f"<span>Shown: {case}_T2.</span>"
    assert "SMITH" not in case
    sent = served["images"][f"{case}_T2"]
    assert b'name="file"; filename="scan.nii.gz"' in sent
    assert b"n+1" in gzip.decompress(sent.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0])
    assert "T2" in fake.asked[0] and "within this machine" in fake.asked[0]

    volumes = fake.nodes("vtkMRMLScalarVolumeNode")
    assert set(volumes) == {"SMITH T2", f"{case}_T2: SYNTHETIC ceT1, not acquired", f"{case}_T2: look twice"}
    synthetic, error = (volumes[name] for name in list(volumes)[1:])
    segmentation = fake.nodes("vtkMRMLSegmentationNode")[f"{case}_T2: mask of tissnet_vs"]
    assert fake.read[segmentation.GetName()] == (MASK, "volume.nrrd")
    assert fake.read[synthetic.GetName()] == (VOLUME, "volume.nii.gz")
    assert not fake.nodes("storage")
    assert len(fake.folders) == 4 and {folder.parent for folder in fake.folders} == {tmp_path}
    assert not list(tmp_path.iterdir())

    left, right = fake.views["TISSNetScan"], fake.views["TISSNetSynthetic"]
    assert left.composite.calls["SetBackgroundVolumeID"] == (scan.id,)
    assert left.composite.calls["SetForegroundVolumeID"] == (error.id,)
    assert left.composite.calls["SetForegroundOpacity"] == (0.5,)
    assert right.composite.calls["SetBackgroundVolumeID"] == (synthetic.id,)
    assert right.composite.calls["SetForegroundVolumeID"] == (None,)
    for view in (left, right):
        assert view.composite.calls["SetLinkedControl"] == (True,)
        assert view.view.calls["SetOrientation"] == ("Axial",)
        assert view.view.calls["RotateToVolumePlane"] == (scan,)
        assert view.view.calls["JumpSliceByCentering"] == (-30.5, -19.0, 8.5)  # moved as the scan is
        assert view.fitted == 1
    assert right.view.calls["SetLayoutLabel"] == ("SYNTHETIC ceT1",)
    assert fake.shown_layout == fake.layout.calls["AddLayoutDescription"][0]
    display = segmentation.GetDisplayNode().calls
    assert (display["SetVisibility2DFill"], display["SetVisibility2DOutline"]) == ((False,), (True,))
    display = error.GetDisplayNode().calls
    assert display["SetThreshold"] == (0.1, 1.0) and "ApplyThresholdOn" in display
    assert display["SetWindowLevelMinMax"] == (0.0, 1.0)
    for node in (synthetic, error, segmentation):
        assert node.calls["SetAndObserveTransformNodeID"] == ("moved",)
    segment = segmentation.GetSegmentation().GetNthSegment(0)
    assert segment.calls["SetName"] == ("vestibular schwannoma",)
    assert panel.table.cells[0, 1] == "512.3 mm³ (0.512 cm³)"
    assert panel.notes.text.startswith('<p style="color:#C00000">')
    assert panel.run.enabled and not panel.stop.enabled
    assert fake.settings["TISSNet/address"] == served["address"]


def test_a_second_run_sends_nothing_and_keeps_a_corrected_mask(panel, fake, served):
    scan = fake.scan("T2")
    panel.selectors[0].choose(scan)
    press(panel.run)
    image = panel.image.text
    first = next(iter(fake.nodes("vtkMRMLSegmentationNode").values()))
    panel.selectors[0].choose(scan)
    assert panel.image.text == image
    press(panel.run)
    assert len(fake.asked) == 1
    assert [asked[0] for asked in served["asked"]].count("PUT") == 1
    assert first in fake.scene and first.GetDisplayNode().calls["SetVisibility"] == (False,)
    assert len(fake.nodes("vtkMRMLScalarVolumeNode")) == 3
    panel.selectors[0].choose(fake.scan("another T2"))
    assert panel.image.text == ""


def test_sends_three_scans_of_one_case(panel, fake, served):
    press(panel.connect)
    assert panel.status.text == f"<span>2 models at {served['address']}.</span>"
    panel.model.choose("tissnet_glioma")
    assert [label.text for label in panel.labels] == ["T1 scan", "ceT1 scan", "T2 scan", ""]
    scans = [fake.scan(name) for name in ("a", "b", "c")]
    for selector, scan in zip(panel.selectors, scans, strict=False):
        selector.choose(scan)
    case = panel.case.text
    served["refusals"]["PUT", "/datastore/"] = 507, {"detail": "The server's disk is full."}, {}
    press(panel.run)
    assert "disk is full" in panel.status.text and "#C00000" in panel.status.text
    assert panel.case.text == case
    served["refusals"].clear()
    served["images"][f"{case}_T1"] = b""  # as it would be, had only the second one failed
    panel.sent[served["address"], f"{case}_T1"] = scans[0].GetID()
    press(panel.run)
    assert {f"{case}_{m}" for m in ("T1", "ceT1", "T2")} <= set(served["images"])
    assert served["images"][f"{case}_T1"] == b""
    assert fake.views["TISSNetScan"].composite.calls["SetBackgroundVolumeID"] == (scans[2].id,)
    assert fake.views["TISSNetScan"].view.calls["SetLayoutLabel"] == ("T2",)
    assert fake.views["TISSNetSynthetic"].view.calls["SetLayoutLabel"] == ("SYNTHETIC FLAIR",)


def test_an_image_of_the_server_is_shown_on_its_own_scan(panel, fake, served):
    panel.selectors[0].choose(fake.scan("another patient"))
    panel.image.setText("p 1 [a]")
    press(panel.run)
    assert panel.status.text == "<span>Shown: p 1 [a].</span>"
    scan = fake.nodes("vtkMRMLScalarVolumeNode")["p 1 [a]"]
    assert fake.views["TISSNetScan"].composite.calls["SetBackgroundVolumeID"] == (scan.id,)
    assert not fake.asked


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("button", ["run", "fetch"])
def test_a_volume_of_the_same_name_and_another_grid_is_not_the_scan(panel, fake, served, button, remembered):
    other = fake.scan("p 1 [a]", affine=AFFINE + 1)
    if remembered:  # and cropped since it was sent
        other.attributes.update({"TISSNet.image": "p 1 [a]", "TISSNet.server": served["address"]})
    panel.image.setText("p 1 [a]")
    press(getattr(panel, button))
    assert "Shown: p 1 [a], on the server&#x27;s scan" in panel.status.text
    assert ("GET", "/datastore/image") in served["asked"]
    scan = fake.nodes("vtkMRMLScalarVolumeNode")["p 1 [a]"]
    assert scan is not other
    assert fake.views["TISSNetScan"].composite.calls["SetBackgroundVolumeID"] == (scan.id,)
    count = len(fake.scene)
    press(panel.fetch)  # the scan that was fetched serves from now on
    assert panel.status.text == "<span>Shown: p 1 [a].</span>"
    assert served["asked"].count(("GET", "/datastore/image")) == 1 and len(fake.scene) == count


def test_nothing_of_an_answer_stays_without_its_scan(panel, fake, served):
    served["refusals"]["GET", "/datastore/image"] = 404, {"detail": "There is no image."}, {}
    panel.image.setText("p 1 [a]")
    press(panel.run)
    assert "There is no image." in panel.status.text
    assert not fake.scene


def test_fetches_what_another_module_computed(panel, fake, served):
    scan = fake.scan("p 1 [a].nii.gz")
    mine = fake.add("vtkMRMLSegmentationNode", "segmentation_p1")
    mine.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    panel.selectors[0].choose(scan)
    press(panel.fetch)
    assert panel.status.text == "<span>Shown: p 1 [a].</span>"
    assert not [path for _, path in served["asked"] if path.startswith("/infer")]
    assert list(fake.nodes("vtkMRMLSegmentationNode")) == ["segmentation_p1"]
    assert mine.GetDisplayNode().calls["SetVisibility2DFill"] == (False,)
    assert fake.views["TISSNetScan"].composite.calls["SetBackgroundVolumeID"] == (scan.id,)
    assert panel.table.cells[3, 1] == "left"
    assert ("GET", "/datastore/image") not in served["asked"]
    served["kept"] = False
    press(panel.fetch)
    assert panel.table.count == 0 and "press Run" in panel.notes.text


def test_nothing_to_fetch(panel, fake, served):
    press(panel.fetch)
    assert "Type the name" in panel.status.text
    panel.image.setText("nobody")
    press(panel.fetch)
    assert "keeps no synthetic image of &#x27;nobody&#x27;: press Run" in panel.status.text


def test_asks_before_the_name_of_a_scan_goes_out(panel, fake, served):
    panel.selectors[0].choose(fake.scan("p 1 [a]"))
    fake.confirmed = False
    press(panel.fetch)
    assert "Stopped" in panel.status.text
    assert len(fake.asked) == 1
    assert f"'p 1 [a]', is sent to {served['address']} (within this machine)" in fake.asked[0]
    panel.selectors[0].choose(fake.scan("SMITH T2"))
    fake.confirmed = True
    press(panel.fetch)
    assert "tells who the patient is and was not sent" in panel.status.text
    assert served["asked"] == [("GET", "/info/")] and len(fake.asked) == 1
    panel.image.setText("p 1 [a]")  # typed for the server by the clinician
    press(panel.fetch)
    assert "Shown" in panel.status.text and len(fake.asked) == 1


def test_no_tumor_is_an_answer(panel, fake, served):
    served["params"] = PARAMS | {"volume_mm3": 0.0, "findings": [], "side": "none", "notes": ["No tumor was found."]}
    panel.image.setText("p 1 [a]")
    press(panel.run)
    node = fake.nodes("vtkMRMLSegmentationNode")["p 1 [a]: mask of tissnet_vs"]
    assert node.GetSegmentation().calls["AddEmptySegment"] == ("vestibular schwannoma", "vestibular schwannoma")
    assert "JumpSliceByCentering" not in fake.views["TISSNetScan"].view.calls
    assert "No tumor was found." in panel.notes.text


def test_the_patients_name_stays_here(panel, fake, served):
    panel.selectors[0].choose(fake.scan("T2"))
    panel.case.setText("anna")
    press(panel.run)
    assert "who the patient is" in panel.status.text
    panel.case.setText("case-1")
    fake.confirmed = False
    press(panel.run)
    assert "Stopped" in panel.status.text
    assert "PUT" not in [method for method, _ in served["asked"]] and not fake.folders


def test_stop_gives_the_buttons_back_at_once(panel, fake, served):
    served["seconds"] = 3
    panel.image.setText("p 1 [a]")

    def pressed():
        if any(path.startswith("/infer") for _, path in served["asked"]):
            press(panel.run)  # a second press while it works does nothing
            press(panel.stop)

    sys.modules["slicer"].app.processEvents = pressed
    start = time.monotonic()
    press(panel.run)
    assert time.monotonic() - start < 2
    assert "Stopped" in panel.status.text and panel.run.enabled
    assert not fake.nodes("vtkMRMLScalarVolumeNode")
    assert len([path for _, path in served["asked"] if path.startswith("/infer")]) == 1


@pytest.mark.parametrize("volume", [b"<html>", b"\x1f\x8b unreadable"])
def test_a_file_that_slicer_cannot_read(panel, fake, served, volume):
    served["volume"] = volume
    panel.image.setText("p 1 [a]")
    press(panel.run)
    assert "#C00000" in panel.status.text
    assert "could not read" in panel.status.text or "not as a TISS-Net server" in panel.status.text
    assert not any(folder.exists() for folder in fake.folders)


def test_an_unforeseen_error_is_told_too(panel, fake, served, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["slicer"].util, "getNodesByClass", lambda kind: 1 // 0)
    panel.image.setText("p 1 [a]")
    press(panel.run)
    assert "Slicer failed at this" in panel.status.text
    assert "ZeroDivisionError" in caplog.text
    assert panel.run.enabled


def test_runs_in_the_console_and_as_a_module(fake, tissnet):
    space = {"__name__": "__main__"}
    exec(compile(FILE.read_text(encoding="utf-8"), "<console>", "exec"), space)
    window, panel = space["tissnet_window"]
    assert isinstance(window, Widget) and isinstance(panel, space["Panel"])
    widget = tissnet.TISSNetWidget()
    widget.setup()
    assert isinstance(widget.panel, tissnet.Panel)
    parent = types.SimpleNamespace()
    tissnet.TISSNet(parent)
    assert parent.title == "TISS-Net" and "not a medical device" in parent.helpText
