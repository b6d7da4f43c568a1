"""Inference, batches, training, scoring and the next sample: MONAI Label's addresses, none of which blocks the others.

Inference waits in a bounded queue; what runs in the background are MONAI Label's own processes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import psutil
import torch
from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import activelearning
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder
from starlette.concurrency import run_in_threadpool

from monailabel_app.errors import Busy, InputError, NotFound
from monailabel_app.images import IMAGE_SUFFIXES
from monailabel_app.web import isolation
from monailabel_app.web.options import (
    BATCH,
    DROPPED,
    RESULT,
    SAMPLING,
    SCORING,
    TRAINING,
    Text,
    checked,
    clean_options,
    json_object,
)
from monailabel_app.web.routes_store import check_to_segment, check_upload, datastore, received, session_of

logger = logging.getLogger(__name__)

MOST_SUBMITTED = 8  # background tasks that wait for their turn
TASKS = {
    "model": ("_infers", "model"),
    "train": ("_trainers", "model that can be trained"),
    "scoring": ("_scoring_methods", "way of scoring"),
    "strategy": ("_strategies", "strategy"),
}
# Of the tasks of a kind: what a request calls the one that is meant, and its options beside those of `/info`.
STARTED: dict[str, tuple[str, dict[str, Any]]] = {"train": ("model", TRAINING), "scoring": ("method", SCORING)}
BATCH_DEFAULTS = {"save_label": True, "multi_gpu": False, "max_workers": 1, "max_batch_size": 0}

router = APIRouter()

Output = Literal["image", "json", "all", "dicom_seg"]


@runtime_checkable
class Checked(Protocol):
    """A background task that can say before it starts whether it can be done."""

    def check(self, request: Mapping[str, Any], datastore: Any) -> None:
        """Raises an `InputError` if not."""


def task_of(kind: str, name: str) -> Any:
    """A model, trainer, strategy or scoring of the app by its name."""
    attribute, called = TASKS[kind]
    found = getattr(app_instance(), attribute)
    if name not in found:
        raise NotFound(f"There is no {called} of that name: expected {', '.join(found) or 'none, the app has none'}.")
    return found[name]


def config_of(task: Any) -> dict[str, Any]:
    """The options of a task that `/info` shows."""
    return dict(task.info().get("config") or {})


async def _body(request: Request) -> dict[str, Any]:
    return json_object(await request.body())


Body = Annotated[dict[str, Any], Depends(_body)]


@router.post("/infer/{model}", response_model=None)
async def infer(
    request: Request,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: Output | None = None,
) -> Response:
    """Runs a model on an image of the store, of a session, or sent along."""
    if label is not None:
        raise InputError("The models of this server take no label or scribbles: send the scan alone.")
    sent = await run_in_threadpool(lambda: json_object(params))
    with ExitStack() as stack:  # the upload's folder goes with it, however the request ends
        asked = await run_in_threadpool(_asked, model, image, session_id, sent, file, output, stack)
        start = time.monotonic()
        work = partial(_infer, asked, output, sent.get("label_info"))
        answer = await request.app.state.inference.run(work, request.is_disconnected)
        logger.info("inference with %s: %.1f s with waiting", model, time.monotonic() - start)
        return answer


def _asked(
    model: str,
    image: str,
    session_id: str,
    sent: Mapping[str, Any],
    file: UploadFile | None,
    output: str | None,
    stack: ExitStack,
) -> dict[str, Any]:
    """The app's request: options that it knows, and where the scan is."""
    asked = clean_options(sent, config_of(task_of("model", model)), RESULT)
    asked["model"] = model
    asked.pop("label_info", None)
    if output == "dicom_seg":
        if file is not None or session_id or not isinstance(datastore(), DICOMWebDatastore):
            raise InputError("A DICOM segmentation can be made only of a series of a DICOM archive.")
        asked["result_extension"] = ".nii.gz"
    if file is not None:
        suffix = isolation.suffix_of(file.filename, IMAGE_SUFFIXES)
        check_to_segment(file, suffix)
        path = stack.enter_context(received(file, suffix))
        check_upload(path)
        asked |= {"upload": str(path), "save_label": False}
    elif session_id:
        asked |= {"upload": str(session_of(session_id).image), "save_label": False}
    else:
        asked["image"] = isolation.known_image(datastore(), image)
    return asked


def _infer(asked: dict[str, Any], output: str | None, label_info: Any) -> Response:
    """Runs the app and packs its answer; no file of it is left."""
    result = app_instance().infer(asked)
    params, mask = result.get("params") or {}, Path(str(result.get("file") or ""))
    if kept := not mask.is_file():
        mask = isolation.known_label(datastore(), result.get("label"), result.get("tag"))
    try:
        if output == "json":
            return JSONResponse(params)
        name, content = mask.name, mask.read_bytes()
        if output == "image":
            return _attached(content, name, get_mime_type(name))
        if output == "dicom_seg":
            return _dicom_seg(str(asked["image"]), mask, label_info, asked["model"], params)
        image = (name, content, get_mime_type(name))
        encoder = MultipartEncoder({"params": (None, json.dumps(params), "application/json"), "image": image})
        return Response(encoder.to_string(), media_type=encoder.content_type)
    finally:
        if not kept:
            mask.unlink(missing_ok=True)


def _dicom_seg(image: str, mask: Path, label_info: Any, model: str, params: Mapping[str, Any]) -> Response:
    from monailabel_app.store.dicom_seg import dicom_seg  # brings highdicom, which only this needs

    uri = datastore().get_image_uri(image)
    series = next((uri[: -len(end)] for end in IMAGE_SUFFIXES if uri.endswith(end)), uri)
    version, demonstration = str(params.get("model_version") or ""), bool(params.get("demonstration"))
    written = Path(dicom_seg(series, str(mask), label_info, model, version=version, demonstration=demonstration))
    try:
        return _attached(written.read_bytes(), written.name, "application/dicom")
    finally:
        written.unlink(missing_ok=True)


def _attached(content: bytes, name: str, media_type: str) -> Response:
    return Response(content, media_type=media_type, headers={"content-disposition": f'attachment; filename="{name}"'})


def _check_start(task: Any, asked: Mapping[str, Any]) -> None:
    """Lets a task refuse at once what it would fail at in the background, where a client has to ask for the reason."""
    if isinstance(task, Checked):
        task.check(asked, datastore())


def _start(method: str, asked: dict[str, Any], *, run_sync: bool, enqueue: bool = False) -> Any:
    """Starts one of MONAI Label's background tasks; with `run_sync`, waits for it."""
    submitted = sum(1 for task in list(tasks(method)) if task["status"] == "SUBMITTED")
    if (processes(method) and not enqueue) or submitted >= MOST_SUBMITTED:
        raise Busy(f"A task of this kind ({method.replace('_', ' ')}) is running: wait for its end, or stop it.")
    found, _ = AsyncTask.run(method, request=asked, force_sync=run_sync, enqueue=enqueue)
    return found if run_sync else _shown(found)


async def _run(request: Request, method: str, asked: dict[str, Any], run_sync: bool, enqueue: bool = False) -> Any:
    start = partial(_start, method, asked, run_sync=run_sync, enqueue=enqueue)
    return await (request.app.state.synchronous.run(start) if run_sync else run_in_threadpool(start))


def _shown(task: Any) -> Any:
    """A background task as it is at this moment: its process goes on writing."""
    return {key: list(value) if key == "details" else value for key, value in dict(task).items()} if task else task


def _status(method: str, all: bool = False, check_if_running: bool = False) -> Any:
    known = [_shown(task) for task in list(tasks(method))]
    if check_if_running:
        known = [task for task in known if task["id"] in processes(method)]
    if not known:
        state = "is running" if check_if_running else "was started"
        raise NotFound(f"No task of this kind ({method.replace('_', ' ')}) {state}.")
    return known if all and not check_if_running else known[-1]


def _stop(method: str) -> Any:
    try:
        stopped = AsyncTask.stop(method)
    except (psutil.NoSuchProcess, StopIteration):  # it ended by itself at this moment
        stopped = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _shown(stopped)


for _path, _method in (("/batch/infer", "batch_infer"), ("/train/", "train"), ("/scoring/", "scoring")):
    router.add_api_route(_path, partial(_status, _method), methods=["GET"])
    router.add_api_route(_path, partial(_stop, _method), methods=["DELETE"])


@router.post("/batch/infer/{model}")
async def batch(
    request: Request,
    model: str,
    body: Body,
    images: Literal["all", "labeled", "unlabeled"] = "all",
    run_sync: bool = False,
) -> Any:
    """Runs a model over the store, in the background."""
    options = clean_options(body, config_of(task_of("model", model)), BATCH)
    options.pop(
        "label_info", None
    )  # for DICOM-SEG alone; the process gets its request as an argument, of bounded length
    asked = {"images": images} | BATCH_DEFAULTS | options | {"model": model, "logging": "WARNING"}
    return await _run(request, "batch_infer", asked, run_sync)


async def _run_each(request: Request, kind: str, body: Mapping[str, Any], run_sync: bool) -> Any:
    """Starts every task of a kind, one after the other, each with the options that the body has under its name."""
    key, kinds = STARTED[kind]
    attribute, called = TASKS[kind]
    known = dict(getattr(app_instance(), attribute))
    if set(body) - set(known) - set(DROPPED):
        raise InputError(f"There is no {called} of such a name: expected {', '.join(known) or 'none: it has none'}.")
    asked = []
    for name, task in known.items():
        options = body.get(name) or {}
        if not isinstance(options, dict):
            raise InputError(f"The options of {name} are not an object of names and values.")
        asked.append(clean_options(options, config_of(task), kinds) | {key: name})
    for each in asked:
        await run_in_threadpool(_check_start, known[each[key]], each)
    return {each[key]: {"result": await _run(request, kind, each, run_sync, True), "detail": None} for each in asked}


async def _run_one(
    request: Request, kind: str, name: str, body: Mapping[str, Any], run_sync: bool, enqueue: bool = False
) -> Any:
    key, kinds = STARTED[kind]
    task = task_of(kind, name)
    options = clean_options(body, config_of(task), kinds)
    await run_in_threadpool(_check_start, task, options)
    return await _run(request, kind, options | {key: name}, run_sync, enqueue)


@router.post("/train/")
async def train_all(request: Request, body: Body, run_sync: bool = False) -> Any:
    """Trains every model, in the background."""
    return await _run_each(request, "train", body, run_sync)


@router.post("/train/{model}")
async def train(request: Request, model: str, body: Body, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Trains one model, in the background."""
    return await _run_one(request, "train", model, body, run_sync, enqueue)


@router.post("/scoring/")
async def score_all(request: Request, body: Body, run_sync: bool = False) -> Any:
    """Compares labels of the store in every way, in the background."""
    return await _run_each(request, "scoring", body, run_sync)


@router.post("/scoring/{method}")
async def score(request: Request, method: str, body: Body, run_sync: bool = False) -> Any:
    """Compares labels of the store, in the background."""
    return await _run_one(request, "scoring", method, body, run_sync)


@router.post("/activelearning/{strategy}")
async def next_sample(request: Request, strategy: str, body: Body) -> Any:
    """The image that is worth labeling next."""
    options = clean_options(body, config_of(task_of("strategy", strategy)), SAMPLING)
    if body.get("client_id") is not None:
        options |= checked({"client_id": body["client_id"]}, {"client_id": Text})
    return await request.app.state.samples.run(partial(activelearning.sample, strategy, options, "clinician"))
