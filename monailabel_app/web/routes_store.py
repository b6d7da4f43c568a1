"""Images, labels and sessions: MONAI Label's /datastore and /session with every name and file checked."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import requests
from fastapi import APIRouter, File, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum, get_mime_type, remove_file
from monailabel.utils.sessions import Sessions

from monailabel_app.errors import Busy, InputError, NotFound
from monailabel_app.images import IMAGE_SUFFIXES, LABEL_SUFFIXES, RAW_SUFFIX, check_label, check_scan
from monailabel_app.reader import Named, read_name
from monailabel_app.web import isolation
from monailabel_app.web.isolation import Forbidden
from monailabel_app.web.options import check_info, clean_info, json_object

logger = logging.getLogger(__name__)

TEMPORARY = re.compile(r"tmp[a-z0-9_]{8}")  # how 3D Slicer names what it sends, of random letters
FREE_BYTES = 1024**3  # that an upload leaves on the disk
STATUS_SECONDS = 3.0  # that an archive has to answer how much it holds
NO_STATUS = {"total": 0, "completed": 0, "label_tags": {}}

router = APIRouter()
_changes = threading.Lock()  # between a look at what the store has and the change that depends on it
_reading = threading.Lock()  # one upload's voxels in memory at a time


class ArchiveStatus:
    """How much an archive holds, as it says within a few seconds, or else as it said last.

    One thread at a time waits for the archive, however many requests want to know.
    """

    def __init__(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._asked: Future[Mapping[str, Any]] | None = None
        self._until = 0.0
        self._last: Mapping[str, Any] = NO_STATUS

    def __call__(self) -> dict[str, Any]:
        """The counts, with a `detail` where they are not of this moment."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked, self._until = Future(), time.monotonic() + STATUS_SECONDS
                threading.Thread(target=self._run, args=(self._asked,), daemon=True).start()
            asked, left = self._asked, self._until - time.monotonic()
        try:
            self._last = asked.result(max(0.0, left))
        except (Busy, TimeoutError, requests.RequestException):
            return {**self._last, "detail": "The image archive does not answer: tell who runs it."}
        return dict(self._last)

    def _run(self, asked: Future[Mapping[str, Any]]) -> None:
        try:
            asked.set_result(self._ask())
        except Exception as error:  # whatever it is goes to who asked
            asked.set_exception(error)


def check_free(size: int, *folders: str | Path) -> None:
    """Refuses with 507 to write so many bytes in each folder (which need not be there yet), if the disk has no room."""
    for folder in map(Path, folders):
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        if shutil.disk_usage(there).free < FREE_BYTES + size * len(folders):  # they may lie on one disk
            logger.error("the disk of %s is full", there)
            raise HTTPException(507, "The server's disk is full: tell who runs it.")


@contextmanager
def received(upload: UploadFile, suffix: str, *folders: str | Path) -> Iterator[Path]:
    """An uploaded file while the request needs it, under a name that says its modality alone; copies go to the folders.

    Its own name may say who the patient is.
    """
    modality = _named(upload, suffix).modality
    with tempfile.TemporaryDirectory(prefix="tissnet_request_") as folder:
        path = Path(folder) / f"image{f'_{modality}' if modality else ''}{suffix}"
        check_free(upload.size or 0, folder, *folders)
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        isolation.check_self_contained(path)
        yield path


def _named(upload: UploadFile, suffix: str) -> Named:
    """What the name of an uploaded file says; one that a client made up for a temporary file says nothing."""
    stem = isolation.stem_of(str(upload.filename), suffix)
    return Named(stem, None, None) if TEMPORARY.fullmatch(stem) else read_name(stem)


def check_upload(path: Path) -> None:
    """Refuses what is no scan, or one that was cut short."""
    with _reading:
        check_scan(path, "the uploaded file", whole=True)


def check_to_segment(upload: UploadFile, suffix: str) -> None:
    """Refuses a file to be segmented that is a mask or another kind of image by its name."""
    if other := _named(upload, suffix).other:
        raise InputError(f"The uploaded file is {other} by its name: expected a scan. If it is one, rename the file.")


def datastore() -> LocalDatastore:
    """The store of the app."""
    return app_instance().datastore()


def _folder(store: LocalDatastore) -> str:
    return str(store._datastore.image_path())


def _may_delete(request: Request) -> None:
    if not request.app.state.limits.allow_delete:
        raise Forbidden(
            "Images and labels are not removed through this server: remove the file in the store's folder, or start "
            "the server with TISSNET_APP_ALLOW_DELETE=true."
        )


@router.get("/datastore/")
def content(output: Literal["stats", "all", "train"] = "stats") -> Any:
    """How many images and labels there are, or all that is known of them."""
    store = datastore()
    return {"stats": store.status, "all": store.json, "train": store.datalist}[output]()


@router.put("/datastore/")
@router.put("/datastore/image")
def add_image(
    file: Annotated[UploadFile, File()], image: str | None = None, params: Annotated[str, Form()] = "{}"
) -> dict[str, str]:
    """Adds an image; one that is there is never overwritten."""
    store = datastore()
    if isinstance(store, DICOMWebDatastore):
        raise InputError("This server takes its images from an archive: send the scan there.")
    suffix = isolation.suffix_of(file.filename, IMAGE_SUFFIXES)
    image_id = isolation.new_image_id(store, image or isolation.stem_of(str(file.filename), suffix))
    info = clean_info(json_object(params))
    with received(file, suffix, _folder(store)) as path:
        check_upload(path)
        with _changes:  # another request may have brought an image of that name by now
            return {"image": store.add_image(isolation.new_image_id(store, image_id), str(path), info)}


@router.delete("/datastore/")
@router.delete("/datastore/image")
def remove_image(request: Request, id: str) -> dict[str, str]:
    """Removes an image with its labels, where the server was started to allow it."""
    _may_delete(request)
    datastore().remove_image(isolation.known_image(datastore(), id))
    return {}


@router.get("/datastore/image")
@router.head("/datastore/image")
def image_file(image: str, check_sum: str | None = None) -> FileResponse:
    """The file of an image; with a check sum, only if it is that one."""
    path = image_path(datastore(), image)
    if check_sum:
        algorithm, _, digest = check_sum.rpartition(":")
        try:
            found = file_checksum(path, algo=algorithm or "SHA256")
        except ValueError as error:
            raise InputError("The check sum is of an unknown kind: expected SHA256, SHA512 or MD5.") from error
        if digest != found.split(":")[1]:
            raise NotFound("The image on the server is another one.")
    return _file(path)


def image_path(store: LocalDatastore, image_id: str) -> str:
    """The file of an image of the store."""
    path = store.get_image_uri(isolation.known_image(store, image_id))
    if not os.path.isfile(path):
        raise NotFound("The image is no file: it was removed, or is a series of slices.")
    return path


def _file(path: str | Path) -> FileResponse:
    return FileResponse(path, media_type=get_mime_type(str(path)), filename=os.path.basename(path))


@router.get("/datastore/image/info")
def image_info(image: str) -> Any:
    """What is known of an image."""
    return datastore().get_image_info(isolation.known_image(datastore(), image))


@router.put("/datastore/image/info")
def update_image_info(image: str, info: Annotated[str, Form()] = "{}") -> None:
    """Adds to what is known of an image."""
    store, known, sent = datastore(), isolation.known_image(datastore(), image), clean_info(json_object(info))
    with _changes:
        check_info({**store.get_image_info(known), **sent})
        store.update_image_info(known, sent)


@router.put("/datastore/label")
def save_label(
    image: str,
    label: Annotated[UploadFile, File()],
    tag: str = DefaultLabelTag.FINAL.value,
    params: Annotated[str, Form()] = "{}",
) -> dict[str, Any]:
    """Keeps a label that a person drew."""
    instance, store = app_instance(), datastore()
    known = isolation.known_image(store, image)
    tag = isolation.check_name("tag", tag or DefaultLabelTag.FINAL.value, new=True)
    info = clean_info(json_object(params))
    archive = isinstance(store, DICOMWebDatastore)
    suffix = isolation.suffix_of(label.filename, (*LABEL_SUFFIXES, *[RAW_SUFFIX] * archive))
    with received(label, suffix, _folder(store)) as path:
        scan = Path(image_path(store, known))
        with _reading:
            path = check_label(path, scan)
        label_id = store.save_label(known, str(path), tag, info)
    return (instance.on_save_label(known, label_id) or {}) | {"image": known, "label": label_id}


@router.delete("/datastore/label")
def remove_label(request: Request, id: str, tag: str) -> dict[str, str]:
    """Removes a label, where the server was started to allow it."""
    _may_delete(request)
    isolation.known_label(datastore(), id, tag)
    datastore().remove_label(id, tag)
    return {}


@router.get("/datastore/label")
def label_file(label: str, tag: str) -> FileResponse:
    """The file of a label."""
    return _file(isolation.known_label(datastore(), label, tag))


@router.head("/datastore/label")
def label_exists(image: str, tag: str) -> FileResponse:
    """Whether there is a label."""
    return _file(isolation.known_label(datastore(), image, tag))


@router.get("/datastore/label/info")
def label_info(label: str, tag: str) -> Any:
    """What is known of a label."""
    isolation.known_label(datastore(), label, tag)
    return datastore().get_label_info(label, tag)


@router.put("/datastore/label/info")
def update_label_info(label: str, tag: str, info: Annotated[str, Form()] = "{}") -> None:
    """Adds to what is known of a label."""
    isolation.known_label(datastore(), label, tag)
    store, sent = datastore(), clean_info(json_object(info))
    with _changes:
        check_info({**store.get_label_info(label, tag), **sent})
        store.update_label_info(label, tag, sent)


@router.put("/datastore/updatelabelinfo")
def update_label_info_as_reviewer(label: str, tag: str, params: Annotated[str, Form()] = "{}") -> None:
    """The same, as Slicer's reviewer module asks for it."""
    update_label_info(label, tag, params)


@router.get("/datastore/dataset")
async def dataset(request: Request, background: BackgroundTasks, limit_cases: int | None = None) -> FileResponse:
    """All images with a final label as one .zip; one is made at a time."""
    path = await request.app.state.dataset.run(partial(_dataset, limit_cases), request.is_disconnected)
    background.add_task(remove_file, path)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip")


def _dataset(limit_cases: int | None) -> str:
    cases = datastore().datalist()
    if not cases:
        raise NotFound("No image has a final label yet: there is nothing to download.")
    taken = cases[:limit_cases] if limit_cases is not None and 0 < limit_cases < len(cases) else cases
    check_free(sum(os.path.getsize(path) for case in taken for path in case.values()), tempfile.gettempdir())
    return str(datastore().get_dataset_archive(limit_cases))


def sessions() -> Sessions:
    """The app's sessions."""
    found = app_instance().sessions()
    if found is None:
        raise HTTPException(406, "This server was started without sessions: save the scan in its store.")
    return found


def session_of(session_id: str, *, update_ts: bool = True) -> Any:
    """What is known of a session."""
    found = sessions().get_session(isolation.check_session(session_id), update_ts=update_ts)
    if found is None:
        raise NotFound("There is no such session, or it has ended: send the image again.")
    return found


def _shown(session: Any) -> dict[str, Any]:
    """A session without the server's paths."""
    return session.to_json() | {"path": "", "image": os.path.basename(session.image)}


@router.put("/session/")
def create_session(
    request: Request, files: Annotated[list[UploadFile], File()], uncompress: bool = False, expiry: int = 0
) -> dict[str, Any]:
    """Keeps an image for a while, outside of the store."""
    if uncompress:
        raise InputError("Archives are not unpacked: send the scan as one .nii.gz or .nrrd file.")
    if len(files) != 1:
        raise InputError(f"{len(files)} files were sent: expected one, a scan as .nii.gz or .nrrd.")
    store = sessions()
    suffix = isolation.suffix_of(files[0].filename, IMAGE_SUFFIXES)
    check_to_segment(files[0], suffix)
    folder = Path(store.store_path)
    if folder.is_dir() and sum(1 for _ in folder.iterdir()) >= request.app.state.limits.sessions:
        raise Busy("The server keeps too many uploaded scans: try again later.")
    with received(files[0], suffix, folder) as path:
        check_upload(path)
        session_id, session = store.add_session(str(path), min(expiry, store.expiry))
    return {"session_id": session_id, "session_info": _shown(session)}


@router.get("/session/{session_id}", response_model=None)
def get_session(session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    """What is known of a session, or its image."""
    found = session_of(session_id, update_ts=update_ts)
    return _file(found.image) if image else _shown(found)


@router.delete("/session/{session_id}")
def remove_session(session_id: str) -> dict[str, Any]:
    """Ends a session and removes its image."""
    found = session_of(session_id)
    sessions().remove_session(session_id)
    return _shown(found)
