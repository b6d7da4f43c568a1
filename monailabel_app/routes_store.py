"""Images, labels and sessions: MONAI Label's /datastore and /session with every name and file checked.

Handlers are plain functions, which FastAPI runs in threads. Inference and background tasks go to `routes_tasks.py`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, HTTPException, Request, UploadFile
from fastapi.background import BackgroundTasks
from fastapi.responses import FileResponse
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum, get_mime_type, remove_file
from monailabel.utils.sessions import Sessions

from monailabel_app import confine
from monailabel_app.confine import Forbidden
from monailabel_app.errors import Busy, InputError, NotFound
from monailabel_app.options import clean_info, json_object

FREE_BYTES = 1024**3  # that an upload leaves on the disk

router = APIRouter()


@contextmanager
def received(upload: UploadFile, suffix: str) -> Iterator[Path]:
    """An uploaded file on the disk, under a name that says nothing, for as long as the request needs it."""
    with tempfile.TemporaryDirectory(prefix="tissnet_request_") as folder:
        path = Path(folder) / f"image{suffix}"
        if shutil.disk_usage(folder).free < FREE_BYTES + (upload.size or 0):
            raise HTTPException(507, "The server's disk is full: tell who runs it.")
        with path.open("wb") as file:
            shutil.copyfileobj(upload.file, file)
        confine.check_self_contained(path)
        yield path


def check_scan(path: Path) -> None:
    """Refuses what is no scan by its header; imported late, for it brings all of ITK."""
    from monailabel_app.checks import check_header

    check_header(path, "The uploaded file")


def datastore() -> LocalDatastore:
    """The store of the app."""
    return app_instance().datastore()


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
    suffix = confine.suffix_of(file.filename, confine.IMAGE_SUFFIXES)
    image_id = confine.new_image_id(store, image or confine.stem_of(str(file.filename), suffix))
    info = clean_info(json_object(params))
    with received(file, suffix) as path:
        check_scan(path)
        return {"image": store.add_image(image_id, str(path), info)}


@router.delete("/datastore/")
@router.delete("/datastore/image")
def remove_image(request: Request, id: str) -> dict[str, str]:
    """Removes an image with its labels, where the server was started to allow it."""
    _may_delete(request)
    datastore().remove_image(confine.known_image(datastore(), id))
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
    path = store.get_image_uri(confine.known_image(store, image_id))
    if not os.path.isfile(path):
        raise NotFound("The image is no file: it was removed, or is a series of slices.")
    return path


def _file(path: str | Path) -> FileResponse:
    return FileResponse(path, media_type=get_mime_type(str(path)), filename=os.path.basename(path))


@router.get("/datastore/image/info")
def image_info(image: str) -> Any:
    """What is known of an image."""
    return datastore().get_image_info(confine.known_image(datastore(), image))


@router.put("/datastore/image/info")
def update_image_info(image: str, info: Annotated[str, Form()] = "{}") -> None:
    """Adds to what is known of an image."""
    datastore().update_image_info(confine.known_image(datastore(), image), clean_info(json_object(info)))


@router.put("/datastore/label")
def save_label(
    image: str,
    label: Annotated[UploadFile, File()],
    tag: str = DefaultLabelTag.FINAL.value,
    params: Annotated[str, Form()] = "{}",
) -> dict[str, Any]:
    """Keeps a label that a person drew."""
    instance, store = app_instance(), datastore()
    known = confine.known_image(store, image)
    tag = confine.check_name("tag", tag or DefaultLabelTag.FINAL.value, new=True)
    info = clean_info(json_object(params))
    archive = isinstance(store, DICOMWebDatastore)
    suffix = confine.suffix_of(label.filename, (*confine.LABEL_SUFFIXES, *[confine.RAW_SUFFIX] * archive))
    with received(label, suffix) as path:
        confine.check_label_file(path, suffix, Path(image_path(store, known)))
        label_id = store.save_label(known, str(path), tag, info)
    return (instance.on_save_label(known, label_id) or {}) | {"image": known, "label": label_id}


@router.delete("/datastore/label")
def remove_label(request: Request, id: str, tag: str) -> dict[str, str]:
    """Removes a label, where the server was started to allow it."""
    _may_delete(request)
    confine.known_label(datastore(), id, tag)
    datastore().remove_label(id, tag)
    return {}


@router.get("/datastore/label")
def label_file(label: str, tag: str) -> FileResponse:
    """The file of a label."""
    return _file(confine.known_label(datastore(), label, tag))


@router.head("/datastore/label")
def label_exists(image: str, tag: str) -> FileResponse:
    """Whether there is a label."""
    return _file(confine.known_label(datastore(), image, tag))


@router.get("/datastore/label/info")
def label_info(label: str, tag: str) -> Any:
    """What is known of a label."""
    confine.known_label(datastore(), label, tag)
    return datastore().get_label_info(label, tag)


@router.put("/datastore/label/info")
def update_label_info(label: str, tag: str, info: Annotated[str, Form()] = "{}") -> None:
    """Adds to what is known of a label."""
    confine.known_label(datastore(), label, tag)
    datastore().update_label_info(label, tag, clean_info(json_object(info)))


@router.put("/datastore/updatelabelinfo")
def update_label_info_as_reviewer(label: str, tag: str, params: Annotated[str, Form()] = "{}") -> None:
    """The same, as Slicer's reviewer module asks for it."""
    update_label_info(label, tag, params)


@router.get("/datastore/dataset")
def dataset(background: BackgroundTasks, limit_cases: int | None = None) -> FileResponse:
    """All images with a final label as one .zip."""
    if not datastore().datalist():
        raise NotFound("No image has a final label yet: there is nothing to download.")
    path = datastore().get_dataset_archive(limit_cases)
    background.add_task(remove_file, path)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip")


def sessions() -> Sessions:
    """The app's sessions."""
    found = app_instance().sessions()
    if found is None:
        raise HTTPException(406, "This server was started without sessions: save the scan in its store.")
    return found


def session_image(session_id: str) -> str:
    """The file that a session holds."""
    found = sessions().get_session(confine.check_session(session_id))
    if found is None:
        raise NotFound("There is no such session, or it has ended: send the image again.")
    return str(found.image)


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
    suffix = confine.suffix_of(files[0].filename, confine.IMAGE_SUFFIXES)
    folder = Path(store.store_path)
    if folder.is_dir() and sum(1 for _ in folder.iterdir()) >= request.app.state.limits.sessions:
        raise Busy("The server keeps too many uploaded scans: try again later.")
    with received(files[0], suffix) as path:
        check_scan(path)
        session_id, session = store.add_session(str(path), min(expiry, store.expiry))
    return {"session_id": session_id, "session_info": _shown(session)}


@router.get("/session/{session_id}", response_model=None)
def get_session(session_id: str, update_ts: bool = False, image: bool = False) -> Any:
    """What is known of a session, or its image."""
    found = sessions().get_session(confine.check_session(session_id), update_ts=update_ts)
    if found is None:
        raise NotFound("There is no such session, or it has ended: send the image again.")
    return _file(found.image) if image else _shown(found)


@router.delete("/session/{session_id}")
def remove_session(session_id: str) -> dict[str, Any]:
    """Ends a session and removes its image."""
    found = sessions().get_session(confine.check_session(session_id))
    if found is None:
        raise NotFound("There is no such session, or it has ended.")
    sessions().remove_session(session_id)
    return _shown(found)
