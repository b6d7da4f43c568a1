"""TISS-Net in 3D Slicer: asks the server, shows mask, synthetic scan, error map and numbers beside the scan.

In Slicer's Python console (5.6 or later):

    exec(open(r"PATH/TISSNet.py", encoding="utf-8").read())

or as a module: add its folder under Edit, Application Settings, Modules, Additional module paths. One file, with
nothing but what Slicer ships, in the syntax of Python 3.9. Everything above "In Slicer" needs no Slicer; whatever the
server can compute belongs there.
"""

from __future__ import annotations

import base64
import gzip
import html
import http.client
import ipaddress
import itertools
import json
import logging
import math
import os
import re
import secrets
import socket
import ssl
import struct
import tempfile
import threading
import time
import zlib
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Iterable, Mapping, Sequence  # noqa: UP035
from urllib.parse import quote_plus, urlsplit

import ctk
import qt
import slicer
import vtk
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10
ANSWER_SECONDS = 1800  # an inference may wait behind others
STEP_SECONDS = 0.05
DEFAULT_ADDRESS = "http://127.0.0.1:8000"
ANOTHER_SERVER = "The address answers, but not as a TISS-Net server: check it with who runs the server."
SENTENCES = {
    401: "The server asks for a user name and a password: fill them in, or correct them.",
    413: "The scan is larger than the server takes.",
    502: "The server behind this address does not answer: tell who runs it.",
    504: "The server took too long: try again later.",
}
DEMONSTRATION = "DEMONSTRATION WEIGHTS: the result says nothing about patients."
RESEARCH = "Research software, not a medical device. The synthetic image was computed, not acquired."
LEGEND = (
    "On the scan: the mask's outline, and in color where the model doubts its own outline (the brighter, the more): "
    "look there twice. Beside it: the synthetic image."
)
NO_NUMBERS = "The server keeps no numbers of this image: press Run to have them."
GRID_TOLERANCE_MM = 0.1  # between the same corner voxel of two volumes of one grid
KINDS = {b"NRRD": ".nrrd", b"\x1f\x8b": ".nii.gz"}  # of files that the server sends
NIFTI_HEADER, NIFTI_DATA = 348, 352
NIFTI_TEXT = ((4, 14), (14, 32), (148, 228), (228, 252), (328, 344))  # data type, name, description, file, intent

LAYOUT = 7310  # any number that no other layout has
VIEWS = {"TISSNetScan": "#6A8CAF", "TISSNetSynthetic": "#C98B2B"}  # and their colors
VIEW_GROUP = 7310  # so that linking leaves other views alone
ERROR_COLORS = "vtkMRMLColorTableNodeFileInferno.txt"
ERROR_SHOWN = (0.1, 1.0)  # of probability; what is below is transparent
ERROR_OPACITY = 0.5
FAMILIAR_SOURCES = ["T2"]  # before the server has said what its models start from
MOST_SOURCES = 4


class Refused(Exception):
    """What was asked cannot be done: one sentence for the clinician."""

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class Stopped(Exception):
    """The clinician pressed Stop."""


@dataclass
class Answer:
    """What the server found: files as they came, None where it was not asked for them, and the numbers."""

    mask: bytes | None
    synthetic: bytes
    error: bytes
    params: dict[str, Any]


@dataclass
class Grid:
    """Where the voxels of a volume lie: how many along I, J and K, and the corner ones in RAS millimeters."""

    size: tuple[int, ...]
    corners: list[tuple[float, ...]]


# The server


class Server:
    """A server at an address, as the clinician typed it, asked with one request at a time.

    A password goes out encrypted, or to this machine, or not at all.
    """

    def __init__(self, address: str, user: str = "", password: str = "") -> None:
        text = address.strip() if "://" in address else f"http://{address.strip()}"
        try:
            parts = urlsplit(text)
            self.host, self.port = parts.hostname or "", parts.port
        except ValueError:
            parts, self.host = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not self.host or parts.username or parts.query:
            raise Refused(f"{address.strip()!r} is no address of a server: expected one like {DEFAULT_ADDRESS}.")
        self.encrypted, self.prefix = parts.scheme == "https", parts.path.rstrip("/")
        self.address = f"{parts.scheme}://{parts.netloc}{self.prefix}"
        self.readable = not self.encrypted and not _is_this_machine(self.host)
        self.way = "WITHOUT ENCRYPTION" if self.readable else "encrypted" if self.encrypted else "within this machine"
        if (user or password) and self.readable:
            raise Refused(
                "The user and password were not sent, for the connection is not encrypted: use an https address."
            )
        self.headers = {"Accept": "application/json, */*"}
        if user or password:
            token = base64.b64encode(f"{user}:{password}".encode()).decode()
            self.headers["Authorization"] = f"Basic {token}"
        self._connection: http.client.HTTPConnection | None = None
        self._stopped = False

    def models(self) -> dict[str, dict[str, Any]]:
        """What each model of the server starts from and makes, by name."""
        info = _json(self._ask("GET", "/info/")[1])
        models = info.get("models") if isinstance(info, dict) else None
        if not isinstance(models, dict) or not all(isinstance(model, dict) for model in models.values()):
            raise Refused(ANOTHER_SERVER)
        return {str(name): model for name, model in models.items() if 0 < len(_sources(model)) <= MOST_SOURCES}

    def upload(self, name: str, scan: bytes) -> None:
        """Adds a NIfTI file to the server's store under a name."""
        kind, body = form({"file": ("scan.nii.gz", scan)})
        self._ask("PUT", f"/datastore/?image={quote_plus(name)}", body, kind)

    def scan(self, image: str) -> bytes:
        """The file of an image of the store."""
        return self._ask("GET", f"/datastore/image?image={quote_plus(image)}")[1]

    def run(self, model: str, image: str) -> Answer:
        """Has an image of the store segmented, and fetches what came of it."""
        kind, body = form({"params": (None, b'{"result_extension": ".nrrd", "result_dtype": "uint8"}')})
        path = f"/infer/{quote_plus(model)}?image={quote_plus(image)}&output=all"
        parts = read_form(*self._ask("POST", path, body, kind))
        params = _json(parts.get("params", b""))
        if not isinstance(params, dict) or "image" not in parts:
            raise Refused(ANOTHER_SERVER)
        links = params.get("extra")
        if not isinstance(links, dict) or not {"synthetic", "error"} <= set(links):
            raise Refused("The server sent no synthetic image: ask who runs it whether this is a TISS-Net model.")
        synthetic, error = (self._linked(links[name]) for name in ("synthetic", "error"))
        return Answer(parts["image"], synthetic, error, params)

    def fetch(self, image: str) -> Answer:
        """What the server keeps of an image that was segmented already, with MONAI Label's own module or here."""
        query = f"?label={quote_plus(image)}&tag="
        try:
            synthetic, error = (self._linked(f"/datastore/label{query}{name}") for name in ("synthetic", "error"))
        except Refused as refused:
            if refused.status == 404:
                raise Refused(
                    f"The server keeps no synthetic image of {image!r}: press Run, or correct the name.", 404
                ) from refused
            raise
        known = _json(self._ask("GET", f"/datastore/label/info{query}error")[1])
        params = known.get("params") if isinstance(known, dict) else None
        return Answer(None, synthetic, error, params if isinstance(params, dict) else {})

    def stop(self) -> None:
        """Breaks off the request under way, from another thread: the server then drops it from its queue."""
        self._stopped = True
        sock = getattr(self._connection, "sock", None)
        try:
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        except OSError:  # it ended by itself at this moment
            pass

    def _linked(self, link: Any) -> bytes:
        """The file behind a link of the reply, which may only lead to the same server."""
        if not isinstance(link, str) or not link.startswith("/") or link.startswith("//"):
            raise Refused(ANOTHER_SERVER)
        return self._ask("GET", link)[1]

    def _ask(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> tuple[str, bytes]:
        """One request: content type and body of the reply, which is refused if it is anything but success."""
        if self._stopped:
            raise Stopped
        headers = {**self.headers, **({"Content-Type": kind} if kind else {})}
        options = {"context": ssl.create_default_context()} if self.encrypted else {}
        connect: Any = http.client.HTTPSConnection if self.encrypted else http.client.HTTPConnection
        connection = self._connection = connect(self.host, self.port, timeout=CONNECT_SECONDS, **options)
        try:
            connection.connect()
            connection.sock.settimeout(ANSWER_SECONDS)
            connection.request(method, self.prefix + path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                f"Slicer does not trust the certificate of {self.address}: ask who runs the server."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise Refused(
                f"The server does not answer at {self.address}: is it started, and is the address right?"
            ) from error
        finally:
            connection.close()
        if reply.status != 200:
            raise Refused(sentence_of(reply.status, reply.getheader("Retry-After"), content), reply.status)
        return reply.getheader("Content-Type") or "", content


def sentence_of(status: int, retry_after: str | None, content: bytes) -> str:
    """What to tell the clinician of a refusal: the server's own sentence where it sent one."""
    try:
        sent = json.loads(content)
    except ValueError:
        sent = None
    sentence = sent.get("detail") if isinstance(sent, dict) else None
    if not isinstance(sentence, str) or not sentence.strip():
        sentence = SENTENCES.get(status, f"The server refused with number {status}: tell who runs it.")
    sentence = " ".join(sentence.split())
    if status == 503 and (retry_after or "").isdigit():
        return f"{sentence} It asks to wait {retry_after} s before the next try."
    return sentence


def form(fields: Mapping[str, tuple[str | None, bytes]]) -> tuple[str, bytes]:
    """Packs fields (file name or None, content) as a form: its content type and body."""
    boundary = secrets.token_hex(16)
    lines: list[bytes] = []
    for name, (filename, content) in fields.items():
        of_file = f'; filename="{filename}"\r\nContent-Type: application/octet-stream' if filename else ""
        lines += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{of_file}\r\n'.encode(), content]
    return f"multipart/form-data; boundary={boundary}", b"\r\n".join([*lines, f"--{boundary}--\r\n".encode()])


def read_form(kind: str, body: bytes) -> dict[str, bytes]:
    """Unpacks a form: content by name, byte for byte."""
    found = re.fullmatch(r'multipart/form-data;.*?boundary="?([^";]+)"?.*', kind, re.IGNORECASE)
    pieces = (b"\r\n" + body).split(b"\r\n--" + found.group(1).encode()) if found else []
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise Refused(ANOTHER_SERVER)
    parts = {}
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]*)"', head)
        if name:
            parts[name.group(1).decode(errors="replace")] = content
    return parts


def _sources(model: Mapping[str, Any]) -> list[str]:
    """The modalities that a model of the server starts from; none for a model of another kind."""
    sources = model.get("source_modalities")
    return [str(source) for source in sources] if isinstance(sources, list) else []


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise Refused(ANOTHER_SERVER) from error


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def wait_for(work: Callable[[], Any], step: Callable[[], None]) -> Any:
    """Runs `work` in a thread, and `step` again and again until its end, so that windows stay alive.

    After `step` has raised something, nobody waits for `work` any more.
    """
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # shown to the clinician by the thread that waits
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not done.done():
        wait([done], STEP_SECONDS)
        step()
    return done.result()


# What goes out


def new_pseudonym() -> str:
    """A name for a case that says nothing of the patient."""
    return f"case-{secrets.token_hex(4)}"


def check_pseudonym(name: str, patient: Iterable[str], volumes: Iterable[str]) -> str:
    """A name under which scans may be kept on the server.

    It has no word of the patient's names and numbers, and is no name of a volume in Slicer, often the patient's.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,59}(?<! )", name):
        raise Refused("The name on the server cannot be used: expected letters, digits, spaces, - and _.")
    if tells_patient(name, patient):
        raise Refused("The name on the server tells who the patient is: expected a pseudonym.")
    if name.casefold() in {volume.casefold() for volume in volumes}:
        raise Refused("The name on the server is that of the scan in Slicer, which may tell the patient: change it.")
    return name


def tells_patient(name: str, patient: Iterable[str]) -> bool:
    """Whether a name has a word of the patient's names and numbers in it."""
    words = {word for text in patient for word in re.findall(r"\w+", text.casefold()) if len(word) > 2}
    return any(word in name.casefold() for word in words)


def check_chosen(sources: Sequence[str], chosen: Sequence[str | None]) -> None:
    """Checks the volumes (ids or None) that were chosen for the modalities a model starts from."""
    missing = [source for number, source in enumerate(sources) if not chosen[number]]
    if missing:
        raise Refused(f"Choose the scan for {' and '.join(missing)}, or type the name of an image on the server.")
    if len(set(chosen)) < len(chosen):
        raise Refused(f"One scan is chosen twice: expected {' and '.join(sources)} of one patient.")


def without_text(scan: bytes) -> bytes:
    """A .nii.gz file without what may name a patient: the free text and extensions of its header."""
    try:
        content = bytearray(gzip.decompress(scan))
    except (OSError, EOFError, zlib.error):
        content = bytearray()
    if len(content) < NIFTI_DATA or content[344:347] != b"n+1":
        raise Refused("Slicer did not write the scan as NIfTI: save it yourself, and have it put on the server.")
    order = "<" if content[:4] == struct.pack("<i", NIFTI_HEADER) else ">"
    start = struct.unpack_from(f"{order}f", content, 108)[0]
    if not NIFTI_DATA <= start <= len(content):
        raise Refused("Slicer wrote a NIfTI file whose header is damaged: restart Slicer, and load the scan again.")
    for first, last in (*NIFTI_TEXT, (NIFTI_HEADER, int(start))):
        content[first:last] = bytes(last - first)
    return gzip.compress(bytes(content), 1)


def is_of(image: str, server: str, name: str, remembered: tuple[str | None, str | None]) -> bool:
    """Whether a volume in Slicer is an image of the server: by what was noted when it was sent, or by its name."""
    known_image, known_server = remembered
    if known_image:
        return (known_image, known_server) == (image, server)
    return image_name(name) == image


def same_grid(first: Grid | None, second: Grid | None) -> bool:
    """Whether two volumes have the same voxels; not where the grid of one is not known."""
    if first is None or second is None or first.size != second.size:
        return False
    return all(gap <= GRID_TOLERANCE_MM for gap in map(math.dist, first.corners, second.corners))  # false of NaN too


def image_name(volume: str) -> str:
    """The name that an image has on the server, by that of a volume which MONAI Label's own module loaded."""
    return re.sub(r"(\.nii\.gz|\.nii|\.nrrd)$", "", volume)


# What is shown


def table_rows(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a reply as rows of two texts."""
    findings = params.get("findings")
    findings = [part for part in findings if isinstance(part, dict)] if isinstance(findings, list) else []
    rows = [
        ("Volume", f"{_number(params, 'volume_mm3', 'mm³')} ({_number(params, 'volume_cm3', 'cm³')})"),
        ("Largest diameter in any direction", _number(params, "diameter_3d_mm", "mm")),
        ("Largest diameter in an axial slice", _number(params, "diameter_axial_mm", "mm")),
        ("Side of the patient", str(params.get("side") or "not known")),
        ("Confidence (0 to 1)", _number(params, "confidence")),
    ]
    if len(findings) > 1:
        for number, part in enumerate(findings, 1):
            sizes = [_number(part, "volume_mm3", "mm³"), _number(part, "diameter_3d_mm", "mm")]
            rows.append((f"Part {number}", ", ".join([*sizes, str(part.get("side") or "not known")])))
    model, version = (params.get(key) or "not known" for key in ("model", "model_version"))
    rows.append(("Model", f"{model}, version {version}"))
    rows.append(("Weights", str(params.get("weights_sha256") or "not known")[:12]))
    rows.append(("Computed in", f"{_number(params, 'seconds', 's')} on {params.get('device') or 'not known'}"))
    return rows


def _number(params: Mapping[str, Any], key: str, unit: str = "") -> str:
    value = params.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "not known"
    return f"{value:g} {unit}".strip() if abs(value) < 1e5 else f"{value:.0f} {unit}".strip()


def notes_html(params: Mapping[str, Any]) -> str:
    """What the clinician must read, as HTML: the warning of demonstration weights first, in red."""
    notes = params.get("notes")
    notes = [str(note) for note in notes] if isinstance(notes, list) else []
    if not params:
        notes = [NO_NUMBERS]
    warnings = [note for note in notes if note.upper().startswith("DEMONSTRATION")]
    if params.get("demonstration") and not warnings:
        warnings = [DEMONSTRATION]
    red = [f'<p style="color:#C00000"><b>{html.escape(warning)}</b></p>' for warning in warnings]
    plain = [html.escape(note) for note in (*notes, LEGEND, RESEARCH) if note not in warnings]
    return "".join([*red, *[f"<p>{note}</p>" for note in plain]])


def center_of(params: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """The center (RAS, mm) of the largest part, None where nothing was found."""
    findings = params.get("findings")
    first = findings[0] if isinstance(findings, list) and findings else None
    center = first.get("center_mm") if isinstance(first, dict) else None
    if not isinstance(center, list) or len(center) != 3 or not all(isinstance(x, (int, float)) for x in center):
        return None
    return float(center[0]), float(center[1]), float(center[2])


def label_names(params: Mapping[str, Any]) -> dict[int, str]:
    """The names of the mask's structures by their number."""
    names = params.get("label_names")
    names = names if isinstance(names, dict) else {}
    return {int(value): str(name) for name, value in names.items() if isinstance(value, int)} or {1: "tumor"}


def layout_xml() -> str:
    """Two slice views beside each other, which are nobody else's."""
    items = ""
    for view, color in VIEWS.items():
        has = {"orientation": "Axial", "viewlabel": view, "viewcolor": color, "viewgroup": VIEW_GROUP}
        items += f'<item><view class="vtkMRMLSliceNode" singletontag="{view}">'
        items += "".join(f'<property name="{key}" action="default">{value}</property>' for key, value in has.items())
        items += "</view></item>"
    return f'<layout type="horizontal" split="true">{items}</layout>'


# In Slicer


def exported(volume: Any) -> bytes:
    """The voxels and the place of a volume as a .nii.gz file without names."""
    with tempfile.TemporaryDirectory(prefix="tissnet_") as folder:
        path = os.path.join(folder, "scan.nii.gz")
        if not slicer.util.exportNode(volume, path, {}) or not os.path.isfile(path):
            raise Refused(f"Slicer could not write the scan {volume.GetName()!r}: is it a volume of one channel?")
        with open(path, "rb") as file:
            return without_text(file.read())


def loaded(content: bytes, name: str, *, segmentation: bool = False) -> Any:
    """A file of the server as a node that does not point to the temporary file it came from."""
    suffix = next((KINDS[magic] for magic in KINDS if content.startswith(magic)), None)
    if suffix is None:
        raise Refused(ANOTHER_SERVER)
    with tempfile.TemporaryDirectory(prefix="tissnet_") as folder:
        path = os.path.join(folder, f"volume{suffix}")
        with open(path, "wb") as file:
            file.write(content)
        try:
            if segmentation:
                node = slicer.util.loadSegmentation(path, {"name": name})
            else:
                node = slicer.util.loadVolume(path, {"name": name, "singleFile": True, "show": False})
        except RuntimeError as error:
            raise Refused(f"Slicer could not read what the server sent ({name}).") from error
    if node.GetStorageNode() is not None:
        slicer.mrmlScene.RemoveNode(node.GetStorageNode())
    return node


def patient_of(volume: Any) -> list[str]:
    """Name and number of the patient to whom Slicer's DICOM database says a volume belongs."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = tree.GetItemByDataNode(volume) if tree else 0
    found = []
    while item and item != tree.GetSceneItemID():
        texts = [tree.GetItemAttribute(item, key) for key in ("DICOM.PatientName", "DICOM.PatientID")]
        found += [text for text in texts if text]
        item = tree.GetItemParent(item)
    return found


def volumes_of(image: str, server: str) -> list[Any]:
    """The volumes in Slicer that by note or name are an image of the server, whatever their grid."""
    found = []
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        known = node.GetAttribute("TISSNet.image"), node.GetAttribute("TISSNet.server")
        if node.GetAttribute("TISSNet.result") is None and is_of(image, server, node.GetName(), known):
            found.append(node)
    return found


def grid_of(volume: Any) -> Grid | None:
    """The grid of a volume in Slicer, without the transforms above it; None for a volume without voxels."""
    voxels = volume.GetImageData()
    if voxels is None:
        return None
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    size = tuple(voxels.GetDimensions())
    ends = itertools.product(*((0, count - 1) for count in size))
    return Grid(size, [tuple(matrix.MultiplyPoint((*end, 1)))[:3] for end in ends])


def remember(volume: Any, image: str, server: str) -> None:
    """Notes on a volume which image of which server it is."""
    volume.SetAttribute("TISSNet.image", image)
    volume.SetAttribute("TISSNet.server", server)


def show(scan: Any, synthetic: Any, error: Any, answer: Answer, image: str, source: str, target: str) -> None:
    """Puts an answer into the scene and the two views: mask and error map on the scan, the synthetic image beside it.

    Extra volumes of an earlier answer for this image go; its segmentation may have been corrected by hand and is only
    hidden.
    """
    results = [synthetic, error]
    if answer.mask is not None:
        for old in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if old.GetAttribute("TISSNet.result") == image and old.GetDisplayNode() is not None:
                old.GetDisplayNode().SetVisibility(False)
        segmentation = _segmentation(answer, f"{image}: mask of {answer.params.get('model') or 'TISS-Net'}", scan)
        results.append(segmentation)
    kept = {node.GetID() for node in results}
    for old in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        if old.GetAttribute("TISSNet.result") == image and old.GetID() not in kept:
            slicer.mrmlScene.RemoveNode(old)
    for node in results:
        node.SetAttribute("TISSNet.result", image)
        node.SetAndObserveTransformNodeID(scan.GetTransformNodeID())
    _outline(scan)
    _color(error)
    _arrange(scan, synthetic, error, (source, f"SYNTHETIC {target}"), center_of(answer.params))


def _segmentation(answer: Answer, name: str, scan: Any) -> Any:
    names = label_names(answer.params)
    if answer.params.get("volume_mm3") == 0:  # a file without a segment has none to load
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        for structure in names.values():
            node.GetSegmentation().AddEmptySegment(structure, structure)
    else:
        node = loaded(answer.mask or b"", name, segmentation=True)
        for number in range(node.GetSegmentation().GetNumberOfSegments()):
            segment = node.GetSegmentation().GetNthSegment(number)
            segment.SetName(names.get(segment.GetLabelValue(), segment.GetName()))
    node.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    return node


def _outline(scan: Any) -> None:
    """Shows masks of a scan, MONAI Label's own module's too, as outlines, so that the error map is seen."""
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) == scan and node.GetDisplayNode():
            node.GetDisplayNode().SetVisibility2DFill(False)
            node.GetDisplayNode().SetVisibility2DOutline(True)


def _color(error: Any) -> None:
    """Gives an error map the same colors for every patient, and none where the model is sure."""
    error.CreateDefaultDisplayNodes()
    display = error.GetDisplayNode()
    display.SetAndObserveColorNodeID(ERROR_COLORS)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, 1.0)
    display.SetThreshold(*ERROR_SHOWN)
    display.ApplyThresholdOn()


def _arrange(scan: Any, synthetic: Any, error: Any, labels: Sequence[str], center: Sequence[float] | None) -> None:
    manager = slicer.app.layoutManager()
    node = manager.layoutLogic().GetLayoutNode()
    node.AddLayoutDescription(LAYOUT, layout_xml())  # says False and changes nothing where there is one
    manager.setLayout(LAYOUT)
    widgets = [manager.sliceWidget(view) for view in VIEWS]
    for number, widget in enumerate(widgets):
        composite, view = widget.mrmlSliceCompositeNode(), widget.mrmlSliceNode()
        composite.SetLinkedControl(False)
        composite.SetBackgroundVolumeID((scan, synthetic)[number].GetID())
        composite.SetForegroundVolumeID(None if number else error.GetID())
        composite.SetForegroundOpacity(0.0 if number else ERROR_OPACITY)
        composite.SetLabelVolumeID(None)
        view.SetLayoutLabel(labels[number])
        view.SetOrientation("Axial")
        view.RotateToVolumePlane(scan)  # slices as they were scanned, of a tilted scan too
        widget.sliceController().fitSliceToBackground()
    if center is not None:
        world = [0.0, 0.0, 0.0]
        scan.TransformPointToWorld(list(center), world)
        for widget in widgets:
            widget.mrmlSliceNode().JumpSliceByCentering(*world)
    for widget in widgets:
        widget.mrmlSliceCompositeNode().SetLinkedControl(True)
        widget.mrmlSliceCompositeNode().SetHotLinkedControl(True)


class Panel:
    """The fields, buttons and texts, in a layout of Qt."""

    def __init__(self, layout: Any) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.models_of = ""
        self.sent: dict[tuple[str, str], str] = {}  # uploads of a case that failed halfway: what need not go again
        self.busy = self.stopped = False
        section = ctk.ctkCollapsibleButton()
        section.text = "TISS-Net"
        layout.addWidget(section)
        rows = qt.QFormLayout(section)
        settings = qt.QSettings()
        kept = settings.value("TISSNet/address") or settings.value("MONAILabel/serverUrl") or DEFAULT_ADDRESS
        self.address = self._line(rows, "Server", str(kept))
        self.user = self._line(rows, "User (if it asks)", "")
        self.password = self._line(rows, "Password (if it asks)", "")
        self.password.setEchoMode(qt.QLineEdit.Password)
        self.connect = self._button(rows, "Connect", partial(self._do, self._connect))
        self.model = qt.QComboBox()
        self.model.connect("currentIndexChanged(int)", lambda index: self.show_sources())
        rows.addRow("Model", self.model)
        self.labels: list[Any] = []
        self.selectors: list[Any] = []
        self.case = qt.QLineEdit(new_pseudonym())
        self.case.toolTip = "A scan that is not on the server is sent under this name. Never use the patient's."
        self.image = qt.QLineEdit("")
        self.image.toolTip = "The name of a scan that is on the server already. Leave it empty to send the scan above."
        for _ in range(MOST_SOURCES):
            self._add_selector(rows)
        rows.addRow("Pseudonym for a new scan", self.case)
        rows.addRow("Or: image on the server", self.image)
        self.run = self._button(rows, "Run", partial(self._do, self._run))
        self.fetch = self._button(rows, "Only fetch (after MONAI Label's own module)", partial(self._do, self._fetch))
        self.stop = self._button(rows, "Stop", partial(setattr, self, "stopped", True))
        self.stop.enabled = False
        self.status = qt.QLabel("")
        self.notes = qt.QLabel("")
        for label in (self.status, self.notes):
            label.wordWrap = True
            layout.addWidget(label)
        self.table = qt.QTableWidget()
        self.table.setColumnCount(2)
        self.table.horizontalHeader().hide()
        self.table.verticalHeader().hide()
        self.table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        layout.addWidget(self.table)
        self.show_sources()
        self._choose_shown()

    @staticmethod
    def _line(rows: Any, label: str, text: str) -> Any:
        line = qt.QLineEdit(text)
        rows.addRow(label, line)
        return line

    @staticmethod
    def _button(rows: Any, text: str, pressed: Callable[[], None]) -> Any:
        button = qt.QPushButton(text)
        button.connect("clicked(bool)", lambda checked: pressed())
        rows.addRow(button)
        return button

    def _add_selector(self, rows: Any) -> None:
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.addEnabled = selector.removeEnabled = selector.renameEnabled = False
        selector.noneEnabled = True
        selector.setMRMLScene(slicer.mrmlScene)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self.forget_image())
        label = qt.QLabel("")
        rows.addRow(label, selector)
        self.labels.append(label)
        self.selectors.append(selector)

    def _choose_shown(self) -> None:
        """Starts with the volume that Slicer shows."""
        widget = slicer.app.layoutManager().sliceWidget("Red")
        shown = widget.mrmlSliceCompositeNode().GetBackgroundVolumeID() if widget else None
        if shown:
            self.selectors[len(self.sources()) - 1].setCurrentNodeID(shown)

    def sources(self) -> list[str]:
        """The modalities that the chosen model starts from."""
        return _sources(self.models.get(self.model.currentText, {})) or FAMILIAR_SOURCES

    def show_sources(self) -> None:
        """Shows one selector per modality of the chosen model."""
        sources = self.sources()
        for number, selector in enumerate(self.selectors):
            used = number < len(sources)
            self.labels[number].setText(f"{sources[number]} scan" if used else "")
            self.labels[number].setVisible(used)
            selector.setVisible(used)

    def forget_image(self) -> None:
        """Fills in the server's name of the chosen scan, or takes that of another scan away."""
        if self.busy:
            return
        node = self.selectors[len(self.sources()) - 1].currentNode()
        same = node is not None and node.GetAttribute("TISSNet.server") == self.address.text.strip().rstrip("/")
        self.image.setText(node.GetAttribute("TISSNet.image") if same else "")

    def _do(self, work: Callable[[], str]) -> None:
        """Does what a button says, once at a time, and tells how it ended in one sentence."""
        if self.busy:
            return
        self.busy, self.stopped, self.stop.enabled = True, False, True
        self.run.enabled = self.fetch.enabled = self.connect.enabled = False
        try:
            self._tell(work(), good=True)
        except Refused as refused:
            self._tell(str(refused))
        except Stopped:
            self._tell("Stopped: nothing was shown.")
        except Exception:
            logger.exception("TISS-Net")
            self._tell("Slicer failed at this: the reason is in its error log (Help, Report a bug).")
        finally:
            self.busy = self.stop.enabled = False
            self.run.enabled = self.fetch.enabled = self.connect.enabled = True

    def _tell(self, sentence: str, *, good: bool = False) -> None:
        color = "" if good else ' style="color:#C00000"'
        self.status.setText(f"<span{color}>{html.escape(sentence)}</span>")

    def _server(self) -> Server:
        server = Server(self.address.text, self.user.text, self.password.text)
        qt.QSettings().setValue("TISSNet/address", server.address)
        self.address.setText(server.address)
        return server

    def _wait(self, server: Server, doing: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()

        def step() -> None:
            self._tell(f"{doing} ({time.monotonic() - start:.0f} s)", good=True)
            slicer.app.processEvents()
            if self.stopped:
                server.stop()
                raise Stopped

        return wait_for(work, step)

    def _connected(self) -> Server:
        """The server of the address, its models known."""
        server = self._server()
        if self.models_of != server.address:
            self._learn(server)
        return server

    def _connect(self) -> str:
        server = self._server()
        self._learn(server)
        return f"{len(self.models)} model{'s' if len(self.models) > 1 else ''} at {server.address}."

    def _learn(self, server: Server) -> None:
        self.models = self._wait(server, "Asking the server", server.models)
        self.models_of = server.address
        self.model.clear()
        for name in self.models:
            self.model.addItem(name)
        self.show_sources()
        if not self.models:
            raise Refused("The server has no TISS-Net model.")

    def _run(self) -> str:
        server = self._connected()
        image = self.image.text.strip() or self._upload(server)
        model = self.model.currentText
        answer = self._wait(server, "The server works", lambda: server.run(model, image))
        return self._show(server, image, answer)

    def _fetch(self) -> str:
        server = self._connected()
        image = self.image.text.strip() or self._name_of_chosen(server)
        answer = self._wait(server, "Fetching", lambda: server.fetch(image))
        return self._show(server, image, answer)

    def _name_of_chosen(self, server: Server) -> str:
        """The name of the chosen scan, after asking whether it may go to the server."""
        node = self.selectors[len(self.sources()) - 1].currentNode()
        name = image_name(node.GetName()) if node else ""
        if not name:
            raise Refused("Type the name that the image has on the server, or choose its scan.")
        if tells_patient(name, patient_of(node)):
            raise Refused(
                "The name of the chosen scan tells who the patient is and was not sent: type the name that the image "
                "has on the server."
            )
        if not slicer.util.confirmOkCancelDisplay(
            f"The name of the chosen scan, {name!r}, is sent to {server.address} ({server.way}) to ask for the results "
            "of the image of that name. It must not tell who the patient is."
        ):
            raise Stopped
        return name

    def _upload(self, server: Server) -> str:
        """Sends the chosen scans, after asking, and gives the name of the image to ask for."""
        sources = self.sources()
        volumes = [selector.currentNode() for selector in self.selectors[: len(sources)]]
        check_chosen(sources, [volume.GetID() if volume else None for volume in volumes])
        patient = [text for volume in volumes for text in patient_of(volume)]
        case = check_pseudonym(self.case.text.strip(), patient, [volume.GetName() for volume in volumes])
        if not slicer.util.confirmOkCancelDisplay(
            f"The voxels of {' and '.join(sources)} are sent to {server.address} ({server.way}) and kept there as "
            f"{case!r}, without the patient's name. A face can be seen in a scan of the head."
        ):
            raise Stopped
        for number, source in enumerate(sources):
            name, volume = f"{case}_{source}", volumes[number]
            if self.sent.get((server.address, name)) != volume.GetID():
                self._wait(server, f"Sending {source}", partial(server.upload, name, exported(volume)))
                self.sent[server.address, name] = volume.GetID()
            remember(volume, name, server.address)
        self.image.setText(name)
        self.case.setText(new_pseudonym())
        return name

    def _show(self, server: Server, image: str, answer: Answer) -> str:
        target = str(self.models.get(self.model.currentText, {}).get("target_modality") or "image")
        synthetic = loaded(answer.synthetic, f"{image}: SYNTHETIC {target}, not acquired")
        error = loaded(answer.error, f"{image}: look twice")
        try:
            scan, why = self._scan(server, image, grid_of(error))  # the mask has the error map's grid
        except Exception:  # without its scan nothing of the answer is left in the scene
            for node in (synthetic, error):
                slicer.mrmlScene.RemoveNode(node)
            raise
        show(scan, synthetic, error, answer, image, self.sources()[-1], target)
        rows = table_rows(answer.params) if answer.params else []
        self.table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column in (0, 1):
                self.table.setItem(number, column, qt.QTableWidgetItem(row[column]))
        self.table.resizeColumnsToContents()
        self.notes.setText(notes_html(answer.params))
        return f"Shown: {image}{why}."

    def _scan(self, server: Server, image: str, grid: Grid | None) -> tuple[Any, str]:
        """The scan to lay an answer of that grid on, and what to add to the sentence that says it is shown.

        A volume in Slicer must have the image's name or note and the answer's grid; else the server's own scan is
        fetched, so that an answer is never laid over a scan that only has the same name.
        """
        volumes = volumes_of(image, server.address)
        for volume in volumes:
            if same_grid(grid_of(volume), grid):
                return volume, ""
        scan = loaded(self._wait(server, "Fetching the scan", lambda: server.scan(image)), image)
        remember(scan, image, server.address)
        return scan, ", on the server's scan, for that in Slicer has another grid" if volumes else ""


class TISSNet(ScriptedLoadableModule):  # type: ignore[misc]
    """The module as Slicer lists it."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "TISS-Net"
        parent.categories = ["Segmentation"]
        parent.dependencies = []
        parent.contributors = ["The TISS-Net MONAI bundle's authors"]
        parent.helpText = f"Shows the answer of a TISS-Net server beside the scan. {LEGEND} {RESEARCH}"
        parent.acknowledgementText = ""


class TISSNetWidget(ScriptedLoadableModuleWidget):  # type: ignore[misc]
    """The module's panel."""

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = Panel(self.layout)
        self.layout.addStretch(1)


def open_window() -> tuple[Any, Panel]:
    """The panel in a window of its own, for the Python console."""
    window = slicer.qMRMLWidget()
    window.setLayout(qt.QVBoxLayout())
    window.setMRMLScene(slicer.mrmlScene)
    window.windowTitle = "TISS-Net"
    panel = Panel(window.layout())
    window.show()
    return window, panel


if __name__ == "__main__":
    tissnet_window = open_window()  # Qt closes a window that nobody holds
