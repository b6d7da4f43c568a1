"""Inference, batches, training, scoring and the next sample: MONAI Label's addresses, none of which blocks the others.

Inference waits in a bounded queue; what runs in the background are MONAI Label's own processes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

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
from monailabel_app.web.routes_store import check_scan, datastore, received, session_image

logger = logging.getLogger(__name__)

MOST_SUBMITTED = 8  # background tasks that wait for their turn
TASKS = {
    "model": ("_infers", "model"),
    "trainer": ("_trainers", "model that can be trained"),
    "strategy": ("_strategies", "strategy"),
    "scoring": ("_scoring_methods", "way of scoring"),
}
BATCH_DEFAULTS = {"save_label": True, "multi_gpu": False, "max_workers": 1, "max_batch_size": 0}

router = APIRouter()

Output = Literal["image", "json", "all", "dicom_seg"]


def task_of(kind: str, name: str) -> Any:
    """A model, trainer, strategy or scoring of the app by its name.

    Raises:
        NotFound: there is none of that name.
    """
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
        path = stack.enter_context(received(file, suffix))
        check_scan(path)
        asked |= {"upload": str(path), "save_label": False}
    elif session_id:
        asked |= {"upload": session_image(session_id), "save_label": False}
    else:
        asked["image"] = isolation.known_image(datastore(), image)
    return asked


def _infer(asked: dict[str, Any], output: str | None, label_info: Any) -> Response:
    """Runs the app and packs its answer; no file of it is left."""
    result = app_instance().infer(asked)
    params, kept = result.get("params") or {}, None
    mask = Path(str(result.get("file") or ""))
    if not mask.is_file():
        kept = isolation.known_label(datastore(), result.get("label"), result.get("tag"))
        mask = kept
    try:
        if output == "json":
            return JSONResponse(params)
        name, content = mask.name, mask.read_bytes()
        if output == "image":
            return _attached(content, name, get_mime_type(name))
        if output == "dicom_seg":
            return _dicom_seg(str(asked["image"]), mask, label_info, asked["model"], params)
        fields = {
            "params": (None, json.dumps(params), "application/json"),
            "image": (name, content, get_mime_type(name)),
        }
        encoder = MultipartEncoder(fields=fields)
        return Response(encoder.to_string(), media_type=encoder.content_type)
    finally:
        if kept is None:
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


def _start(method: str, asked: dict[str, Any], *, run_sync: bool, enqueue: bool = False) -> Callable[[], Any]:
    """What starts one of MONAI Label's background tasks; with `run_sync`, what waits for it."""

    def start() -> Any:
        submitted = sum(1 for task in list(tasks(method)) if task["status"] == "SUBMITTED")
        if (processes(method) and not enqueue) or submitted >= MOST_SUBMITTED:
            raise Busy(f"A task of this kind ({method.replace('_', ' ')}) is running: wait for its end, or stop it.")
        found, _ = AsyncTask.run(method, request=asked, force_sync=run_sync, enqueue=enqueue)
        return _shown(found) if not run_sync else found

    return start


async def _run(request: Request, start: Callable[[], Any], run_sync: bool) -> Any:
    return await (request.app.state.synchronous.run(start) if run_sync else run_in_threadpool(start))


def _of_each(kind: str, body: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of every task of a kind, which the body has under its name.

    Raises:
        InputError: a name that is none of them, or options that one of them does not take.
    """
    attribute, called = TASKS[kind]
    known = dict(getattr(app_instance(), attribute))
    if set(body) - set(known) - set(DROPPED):
        raise InputError(f"There is no {called} of such a name: expected {', '.join(known) or 'none: it has none'}.")
    asked = {}
    for name, task in known.items():
        options = body.get(name) or {}
        if not isinstance(options, dict):
            raise InputError(f"The options of {name} are not an object of names and values.")
        asked[name] = clean_options(options, config_of(task), kinds)
    return asked


async def _run_each(request: Request, method: str, asked: Mapping[str, dict[str, Any]], run_sync: bool) -> Any:
    """Starts one task after the other; they run in this order."""
    result = {}
    for name, options in asked.items():
        start = _start(method, options, run_sync=run_sync, enqueue=True)
        result[name] = {"result": await _run(request, start, run_sync), "detail": None}
    return result


def _shown(task: Any) -> Any:
    """A background task as it is at this moment: its process goes on writing."""
    return {key: list(value) if key == "details" else value for key, value in dict(task).items()} if task else task


def _status(method: str, every: bool, running: bool) -> Any:
    known = [_shown(task) for task in list(tasks(method))]
    if running:
        known = [task for task in known if task["id"] in processes(method)]
    if not known:
        raise NotFound(
            f"No task of this kind ({method.replace('_', ' ')}) {'is running' if running else 'was started'}."
        )
    return known if every and not running else known[-1]


def _stop(method: str) -> Any:
    try:
        stopped = AsyncTask.stop(method)
    except (psutil.NoSuchProcess, StopIteration):  # it ended by itself at this moment
        stopped = None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _shown(stopped)


@router.get("/batch/infer")
def batch_status(all: bool = False, check_if_running: bool = False) -> Any:
    return _status("batch_infer", all, check_if_running)


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
    asked = {"images": images} | BATCH_DEFAULTS | options | {"model": model, "logging": "WARNING"}
    return await _run(request, _start("batch_infer", asked, run_sync=run_sync), run_sync)


@router.delete("/batch/infer")
def batch_stop() -> Any:
    return _stop("batch_infer")


@router.get("/train/")
def train_status(all: bool = False, check_if_running: bool = False) -> Any:
    return _status("train", all, check_if_running)


@router.post("/train/")
async def train_all(request: Request, body: Body, run_sync: bool = False) -> Any:
    """Trains every model, one after the other, each with the options that the body has under its name."""
    asked = _of_each("trainer", body, TRAINING)
    every = {name: options | {"model": name} for name, options in asked.items()}
    return await _run_each(request, "train", every, run_sync)


@router.post("/train/{model}")
async def train(request: Request, model: str, body: Body, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Trains one model, in the background."""
    options = clean_options(body, config_of(task_of("trainer", model)), TRAINING)
    start = _start("train", options | {"model": model}, run_sync=run_sync, enqueue=enqueue)
    return await _run(request, start, run_sync)


@router.delete("/train/")
def train_stop() -> Any:
    return _stop("train")


@router.get("/scoring/")
def scoring_status(all: bool = False, check_if_running: bool = False) -> Any:
    return _status("scoring", all, check_if_running)


@router.post("/scoring/")
async def score_all(request: Request, body: Body, run_sync: bool = False) -> Any:
    """Runs every way of scoring, each with the options that the body has under its name."""
    asked = _of_each("scoring", body, SCORING)
    every = {name: options | {"method": name} for name, options in asked.items()}
    return await _run_each(request, "scoring", every, run_sync)


@router.post("/scoring/{method}")
async def score(request: Request, method: str, body: Body, run_sync: bool = False) -> Any:
    """Compares labels of the store, in the background."""
    options = clean_options(body, config_of(task_of("scoring", method)), SCORING)
    start = _start("scoring", options | {"method": method}, run_sync=run_sync)
    return await _run(request, start, run_sync)


@router.delete("/scoring/")
def scoring_stop() -> Any:
    return _stop("scoring")


@router.post("/activelearning/{strategy}")
async def next_sample(request: Request, strategy: str, body: Body) -> Any:
    """The image that is worth labeling next."""
    options = clean_options(body, config_of(task_of("strategy", strategy)), SAMPLING)
    if body.get("client_id") is not None:
        options |= checked({"client_id": body["client_id"]}, {"client_id": Text})
    return await request.app.state.samples.run(partial(activelearning.sample, strategy, options, "clinician"))
