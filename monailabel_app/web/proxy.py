"""The viewer's way to the DICOM archive: MONAI Label's /proxy/dicom, where the store is an archive."""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import unquote

import anyio
import anyio.to_thread
import requests
from fastapi import APIRouter, Request
from fastapi.responses import Response
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.utils.app import app_instance
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from monailabel_app.errors import InputError, NotFound
from monailabel_app.store.dicom_store import credentials
from monailabel_app.web.routes_store import check_free

CHUNK = 1024**2
THREADS = 16  # that wait for the archive at once; further requests wait for one of them
IN_MEMORY = 1024**2  # of what is sent to the archive; the rest lies on the disk
CONNECT_SECONDS = 5.0
SENT_HEADERS = ("accept", "content-type")
RETURNED_HEADERS = ("content-type", "content-encoding", "content-length", "etag", "last-modified")
STORED = re.compile(r"studies(/[0-9.]+)?")

router = APIRouter()


@router.get("/proxy/dicom/{path:path}", response_model=None)
@router.post("/proxy/dicom/{path:path}", response_model=None)
async def proxy(request: Request, path: str) -> Response:
    """Asks the archive what the viewer asks; a POST stores DICOM files and nothing else."""
    if not isinstance(app_instance().datastore(), DICOMWebDatastore):
        raise NotFound("This server has no DICOM archive: its images are files.")
    service, _, rest = path.partition("/")
    if service not in ("wado", "qido", "stow"):
        service, rest = "", path
    target = archive_path(service, rest)
    if request.method == "POST" and not STORED.fullmatch(rest):
        raise InputError("Only DICOM files can be sent to the archive, to its studies.")
    threads: anyio.CapacityLimiter = request.app.state.archive
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
        if request.method == "POST":
            length = int(request.headers.get("content-length", 0))
            await run_in_threadpool(check_free, length, tempfile.gettempdir())
            async for part in request.stream():
                await run_in_threadpool(body.write, part)
        size = body.tell()
        body.seek(0)
        ask = partial(
            requests.request,
            request.method,
            f"{settings.MONAI_LABEL_STUDIES.rstrip('/')}/{target}",
            params=request.url.query or None,
            headers={key: request.headers[key] for key in SENT_HEADERS if key in request.headers},
            auth=credentials(),
            data=body if size else None,
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_SECONDS, settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT),
        )
        answer = await anyio.to_thread.run_sync(ask, limiter=threads)
    headers = {key: answer.headers[key] for key in RETURNED_HEADERS if key in answer.headers}
    return StreamingResponse(_parts(answer, threads), answer.status_code, headers=headers)


async def _parts(answer: requests.Response, threads: anyio.CapacityLimiter) -> AsyncIterator[bytes]:
    """What the archive sends, part by part."""
    parts: Any = answer.raw.stream(CHUNK, decode_content=False)
    try:
        while (part := await anyio.to_thread.run_sync(next, parts, None, limiter=threads)) is not None:
            yield part
    finally:
        answer.close()


def archive_path(service: str, path: str) -> str:
    """Where in the archive a request goes; refuses a path that leaves its DICOMweb root, however it is written."""
    plain = path
    for _ in range(3):
        plain = unquote(plain)
    *folders, last = path.split("/")
    climbs = {"", ".", ".."} & {*folders} or last in (".", "..")
    if plain != path or not re.fullmatch(r"[\w.,/-]*", path, re.ASCII) or climbs:
        raise InputError("This is no address of the image archive.")
    prefixes = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    # OHIF asks for metadata through the search service.
    prefix = prefixes["wado"] if service == "qido" and path.endswith("metadata") else prefixes.get(service)
    return f"{prefix}/{path}" if prefix else path
