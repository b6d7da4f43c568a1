"""What stands before the routes: how much and from where requests may come, and how many inferences wait."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from pydantic import BeforeValidator, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monailabel_app.errors import Busy, sentence_of

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

ENVIRONMENT = "TISSNET_APP_"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
UPLOADS = re.compile(r"(/datastore(/|/image|/label)?|/session/?|/infer/[^/]+|/proxy/dicom/.+)")
INFO = re.compile(r"/info/?")
INFO_REQUESTS = 16  # of /info beyond the bound on requests, so that it answers when all else is full
DRAIN_SECONDS = 10.0
SLOWEST_BYTES = 100_000  # of a request's body in a second
MOST_FILES = 4  # of a form; no client sends more than one
MOST_FIELDS = 16  # the same of texts
RETRY_SECONDS = 5
OHIF_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def _names(value: Any) -> Any:
    """The names in a text with commas, in small letters."""
    return [name for part in value.split(",") if (name := part.strip().lower())] if isinstance(value, str) else value


class Limits(BaseSettings):
    """The numbers of a server; each has an environment variable `TISSNET_APP_` + its name in capitals.

    Attributes:
        running: inferences at once.
        waiting: inferences that wait beside them; further ones are answered with 503.
        requests: requests of all kinds at once.
        upload_bytes: the most that a request with a file may hold.
        json_bytes: the most that any other request may hold.
        idle_seconds: for how long a client may stop in the middle of sending, and how far it may fall behind
            `SLOWEST_BYTES` in a second.
        sessions: uploads kept for clients (Slicer's sessions).
        hosts: names, beside this machine's own, under which the server is asked (`ai.hospital.example`).
        allow_delete: whether clients may remove images and labels.
    """

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT, env_ignore_empty=True, frozen=True)

    running: PositiveInt = 1
    waiting: NonNegativeInt = 8
    requests: PositiveInt = 64
    upload_bytes: PositiveInt = 2 * 1024**3
    json_bytes: PositiveInt = 1024**2
    idle_seconds: PositiveFloat = 60.0
    sessions: PositiveInt = 64
    hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = ()
    allow_delete: bool = False

    @classmethod
    def from_environment(cls) -> Limits:
        """The limits with what the environment changes."""
        try:
            return cls()
        except ValidationError as error:
            raise ValueError(
                sentence_of(error, name=lambda name: f"{ENVIRONMENT}{name.upper()}", shown=True)
            ) from error


@dataclass
class Queue:
    """Runs blocking work in threads, few at a time, with a bounded number of requests waiting."""

    running: int
    waiting: int
    held: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._slots = anyio.Semaphore(self.running)
        self._threads = anyio.CapacityLimiter(self.running)

    async def run(self, work: Callable[[], Answer], gone: Callable[[], Any] | None = None) -> Answer:
        """Waits for its turn, then runs `work` in a thread, unless it is told that the client has `gone`.

        Raises:
            Busy: as many requests as may wait already do.
        """
        if self.held >= self.running + self.waiting:
            raise Busy(f"The server is busy: {self.held} requests are before this one. Try again in a few seconds.")
        self.held += 1
        try:
            async with self._slots:
                if gone is not None and await gone():
                    raise ClientDisconnect
                return await anyio.to_thread.run_sync(work, limiter=self._threads)
        finally:
            self.held -= 1


class Guard:
    """The outermost ASGI layer: host, origin, number and size of requests; headers; errors that nobody else took.

    `origins` are web pages, beside the server's own, that may call it (`https://viewer.hospital.example`).
    """

    def __init__(self, app: ASGIApp, limits: Limits, origins: tuple[str, ...] = (), prefix: str = "") -> None:
        self.app = app
        self.limits = limits
        self.origins = origins
        self.prefix = prefix
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path, method = scope["path"].removeprefix(self.prefix), scope["method"]
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *self._security(path)]}
            await send(message)

        async def refuse(status: int, sentence: str, fields: dict[str, str] | None = None) -> None:
            await drain(receive, self.limits.upload_bytes)
            await JSONResponse({"detail": sentence}, status, headers=fields)(scope, receive, sending)

        if refusal := self._foreign(headers, path):
            return await refuse(*refusal)
        if self.held >= self.limits.requests + INFO_REQUESTS * bool(INFO.fullmatch(path)):
            sentence = "The server has too many requests at once. Try again in a moment."
            return await refuse(503, sentence, {"retry-after": "1"})
        most = self.limits.upload_bytes if UPLOADS.fullmatch(path) and method != "GET" else self.limits.json_bytes
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return await refuse(400, "The length of the request is not a number.")
        if int(length) > most:
            return await refuse(413, too_large(most))
        self.held += 1
        try:
            await self.app(scope, self._bounded(receive, most), sending)
        except ClientDisconnect:
            logger.info("a client went away before its answer")
        except Exception:
            reference = uuid.uuid4().hex[:12]
            logger.exception("unexpected error %s", reference)
            if started:
                raise
            sentence = f"The server failed at this request. Tell who runs it this number: {reference}."
            await JSONResponse({"detail": sentence}, 500)(scope, receive, sending)
        finally:
            self.held -= 1

    def _foreign(self, headers: dict[str, str], path: str) -> tuple[int, str] | None:
        """Why a host or origin is refused: DNS rebinding, or another site's page in the clinician's browser."""
        host = headers.get("host", "").lower()
        name = re.sub(r":\d+$", "", host)
        if name not in (*LOOPBACK, *self.limits.hosts):
            return 421, (
                "The server does not answer under this name: use http://127.0.0.1, or start it with the name in "
                "TISSNET_APP_HOSTS."
            )
        origin = headers.get("origin")
        if origin is None:
            # A link of another site may open the viewer, and nothing that costs time or holds a scan.
            opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
            allowed = opened and (path in ("/", "/ohif") or path.startswith("/ohif/"))
            foreign = headers.get("sec-fetch-site") == "cross-site" and not allowed
        else:
            foreign = origin not in self.origins and origin.lower().partition("://")[2] != host
        return (403, "Pages of other sites may not use this server.") if foreign else None

    @staticmethod
    def _security(path: str) -> list[tuple[bytes, bytes]]:
        viewer = path.startswith("/ohif")
        policy = OHIF_POLICY if viewer else "default-src 'none'; frame-ancestors 'none'"
        fields = HEADERS | {"content-security-policy": policy} | ({} if viewer else {"cache-control": "no-store"})
        return [(key.encode(), value.encode()) for key, value in fields.items()]

    def _bounded(self, receive: Receive, most: int) -> Receive:
        total, waited, finished = 0, 0.0, False

        async def bounded() -> Message:
            nonlocal total, waited, finished
            if finished:
                return await receive()
            start = time.monotonic()
            try:
                with anyio.fail_after(self.limits.idle_seconds + min(0.0, total / SLOWEST_BYTES - waited)):
                    message = await receive()
            except TimeoutError:
                finished = True
                raise HTTPException(408, "The request stopped in the middle, or is too slow: send it again.") from None
            waited += time.monotonic() - start
            total += len(message.get("body", b""))
            finished = not message.get("more_body", False)
            if total > most:
                await drain(receive, self.limits.upload_bytes)
                raise HTTPException(413, too_large(most))
            return message

        return bounded


def too_large(most: int) -> str:
    """The sentence for a request that holds more than it may."""
    size = f"{most / 1024**2:g} MB" if most >= 1024**2 else f"{most} bytes"
    return f"The request is too large: expected at most {size}."


async def drain(receive: Receive, most: int) -> None:
    """Throws away what a refused client still sends, for a client that sends does not read the answer."""
    end, total = time.monotonic() + DRAIN_SECONDS, 0
    while (left := end - time.monotonic()) > 0 and total <= most:
        with anyio.move_on_after(left):
            message = await receive()
            total += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
