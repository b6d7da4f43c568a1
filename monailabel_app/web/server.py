"""The web application: MONAI Label's addresses, answered without blocking, with plain sentences, inside the store.

    python -m monailabel.main start_server --app monailabel_app --studies DIR --host 127.0.0.1 \
        --uvicorn_app monailabel_app.web.server:app

Nothing of MONAI Label's own `monailabel.app` is used: its handlers run inferences in the event loop, read any path and
answer 500 to bad input. Its app class, store, sessions and background tasks are.
"""

from __future__ import annotations

import base64
import logging
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import anyio
import anyio.to_thread
import monailabel.endpoints
import requests
from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_ext
from monailabel.utils.sessions import Sessions
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from monailabel_app.errors import Busy, InputError, NotFound
from monailabel_app.store.shared import share
from monailabel_app.web import privacy, proxy, routes_store, routes_tasks
from monailabel_app.web.isolation import Forbidden, Taken
from monailabel_app.web.limits import INFO_REQUESTS, MOST_FIELDS, MOST_FILES, RETRY_SECONDS, Guard, Limits, Queue
from monailabel_app.web.options import Malformed
from monailabel_app.web.routes_store import ArchiveStatus

logger = logging.getLogger(__name__)

STATIC = Path(monailabel.endpoints.__file__).parent / "static"
PANEL_COOKIE = "MONAILABEL_SERVER_URL"
ANSWERED = (InputError, Busy, MONAILabelException, requests.RequestException, HTTPException, RequestValidationError)
STATUSES = ((NotFound, 404), (Malformed, 400), (Taken, 409), (Forbidden, 403), (InputError, 422))
SENTENCES = {
    400: "The request cannot be read.",
    404: "There is nothing at this address.",
    405: "This address does not take requests of this kind.",
}

router = APIRouter()


@router.get("/info/")
def info() -> Any:
    """What the app offers: models, trainers, strategies, and how full the store is."""
    return app_instance().info()


@router.get("/model/info/{model}")
def model_info(model: str) -> Any:
    """Hash and date of a model's weights."""
    routes_tasks.task_of("model", model)
    if not (found := app_instance().model_info(model)):
        raise NotFound("There are no weights of this model on the server.")
    return found


@router.get("/model/{model}")
def model_file(model: str) -> FileResponse:
    """A model's weights."""
    path = routes_tasks.task_of("model", model).get_path(validate=True)
    if not path or not os.path.isfile(path):
        raise NotFound("There are no weights of this model on the server.")
    return FileResponse(path, filename=f"{model}{file_ext(path)}")


@router.get("/")
def root() -> RedirectResponse:
    """The viewer where there is a DICOM archive to view, or else what the app offers."""
    page = "ohif" if isinstance(app_instance().datastore(), DICOMWebDatastore) else "info"
    return RedirectResponse(f"{settings.MONAI_LABEL_API_STR}/{page}/")


@router.post("/auth/token")
def login_token(username: Annotated[str, Form()], password: Annotated[str, Form()]) -> dict[str, str]:
    """Name and password as the header that a reverse proxy wants, for Slicer's log-in window; not checked here."""
    return {"token_type": "Basic", "access_token": base64.b64encode(f"{username}:{password}".encode()).decode()}


@router.get("/auth/token/valid")
def login_valid() -> dict[str, str]:
    """Whether a log-in still holds: whoever gets here has passed the reverse proxy."""
    return {"username": "clinician"}


@router.get("/favicon.ico")
def favicon() -> FileResponse:
    return FileResponse(STATIC / "favicon.ico", media_type="image/x-icon")


@router.put("/model/{model}")
@router.delete("/model/{model}")
@router.post("/reload")
@router.get("/logs/")
@router.get("/logs/gpu")
@router.post("/infer/wsi/{model}")
@router.post("/infer/wsi_v2/{model}")
def refused() -> None:
    """What MONAI Label has and this server does not: weights and logs are for those who run the server."""
    raise Forbidden("This server does not do this: weights, logs and restarts are for those who run it.")


class Viewer(StaticFiles):
    """OHIF's files; an address that is none of them is a page of the viewer itself.

    Its MONAI Label panel asks port 8000 by plain HTTP unless a cookie says otherwise: each page sets it to the server
    that it came from. The cookie ends with the browser, so none of them is kept.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        if response.headers.get("content-type", "").startswith("text/html"):
            headers = Headers(scope=scope)
            scheme = "https" if headers.get("x-forwarded-proto") == "https" else scope["scheme"]
            own = f"{scheme}://{headers['host']}{settings.MONAI_LABEL_API_STR}/"
            response.headers["cache-control"] = "no-store"
            response.set_cookie(PANEL_COOKIE, quote(own, safe=""), path=scope["root_path"], samesite="strict")
        return response

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        full, found = super().lookup_path(path)
        return (full, found) if found is not None and os.path.isfile(full) else super().lookup_path("index.html")


def sweep_sessions(sessions: Sessions | None) -> None:
    """Removes half-written sessions of a killed server: MONAI Label's own clean-up fails at the first one."""
    if sessions is None or not os.path.isdir(sessions.store_path):
        return
    for path in Path(sessions.store_path).iterdir():
        try:
            uuid.UUID(path.name)
            whole = sessions.get_session(path.name, update_ts=False) is not None
        except ValueError:  # a folder that is no session, or a description that is no JSON
            whole = False
        if not whole and path.is_dir():
            sessions.remove_session(path.name)


def create_app(limits: Limits | None = None) -> FastAPI:
    """The application of MONAI Label's settings, with other limits than those of the environment where given.

    Raises:
        ValueError: a setting that this server cannot follow.
    """
    limits = limits or Limits.from_environment()
    if settings.MONAI_LABEL_AUTH_ENABLE:
        raise ValueError(
            "MONAI_LABEL_AUTH_ENABLE is true: MONAI Label's own log-in does not work with current libraries. Put nginx "
            "with a password in front (monailabel_app/deploy/nginx.conf) and leave it false."
        )
    origins = tuple(str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        folders = privacy.folders_of(settings.MONAI_LABEL_STUDIES)
        privacy.install(privacy.Mask(lambda: [], folders))
        os.environ.setdefault("PYTHONPATH", "")  # MONAI Label's background tasks fail without it
        instance: MONAILabelApp = app_instance()
        store = instance.datastore()
        share(store)
        if isinstance(store, DICOMWebDatastore) and not isinstance(store.status, ArchiveStatus):
            store.status = ArchiveStatus(store.status)
        privacy.install(privacy.Mask(lambda: privacy.names_of(store), folders))
        sweep_sessions(instance.sessions())
        instance.server_mode(True)
        instance.on_init_complete()
        app.state.inference = Queue(limits.running, limits.waiting)
        app.state.samples = Queue(1, limits.waiting)
        app.state.synchronous = Queue(1, 0)  # background tasks that a client wants to wait for: one at a time
        app.state.dataset = Queue(1, 0)
        app.state.archive = anyio.CapacityLimiter(proxy.THREADS)
        threads = anyio.to_thread.current_default_thread_limiter()  # each request may hold one, and /info still has its
        threads.total_tokens = max(threads.total_tokens, limits.requests + INFO_REQUESTS)
        logger.info("serving %s", ", ".join(instance._infers))
        yield

    fast = FastAPI(
        title=settings.MONAI_LABEL_PROJECT_NAME,
        openapi_url=None,
        form_limits={"max_files": MOST_FILES, "max_fields": MOST_FIELDS},
        lifespan=lifespan,
        exception_handlers=dict.fromkeys(ANSWERED, answer_error),
        middleware=[
            Middleware(Guard, limits=limits, origins=origins, prefix=settings.MONAI_LABEL_API_STR),
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_credentials=bool(origins),
                allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
                allow_headers=["content-type", "authorization"],
            ),
        ],
    )
    fast.state.limits = limits
    prefix = settings.MONAI_LABEL_API_STR
    for part in (router, routes_tasks.router, routes_store.router, proxy.router):
        fast.include_router(part, prefix=prefix)
    fast.mount(f"{prefix}/ohif", Viewer(directory=STATIC / "ohif", html=True), name="ohif")
    fast.mount(f"{prefix}/static", StaticFiles(directory=STATIC), name="static")
    return fast


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """A failed request as a status and one sentence; what is not the request's fault goes to `Guard` and the log."""
    status, sentence, headers = 500, str(error), {}
    if isinstance(error, InputError):
        status = next(status for kind, status in STATUSES if isinstance(error, kind))
    elif isinstance(error, Busy):
        status, headers = 503, {"retry-after": str(RETRY_SECONDS)}
    elif isinstance(error, HTTPException):
        status, headers = error.status_code, dict(error.headers or {})
        sentence = SENTENCES.get(status, str(error.detail))
    elif isinstance(error, RequestValidationError):
        fields = sorted({str(entry["loc"][-1]) for entry in error.errors()})
        status, sentence = 422, f"A part of the request is missing or of the wrong kind: {', '.join(fields)}."
    elif isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        status, sentence = 404, "There is no such image or label on the server."
    elif isinstance(error, MONAILabelException) and error.error == MONAILabelError.INVALID_INPUT:
        status, sentence = 422, "The server cannot do this request: its model, method or options are not known."
    elif isinstance(error, requests.RequestException):
        status, sentence = 502, "The image archive does not answer: tell who runs it."
        if getattr(error.response, "status_code", None) == 404:
            status, sentence = 404, "The image archive has no such series."
        logger.warning("the archive failed: %s", type(error).__name__)
    else:
        raise error
    return JSONResponse({"detail": sentence}, status, headers=headers)


app = create_app()
