"""Keeps patients out of the logs: MONAI Label's loggers write image names, paths and whole requests at INFO."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable

from monailabel_app.store.cases import case_of

# Their INFO lines are requests, ids and paths; their warnings are kept, with the names masked.
CHATTY = ("monailabel.", "dicomweb_client", "highdicom", "timeloop", "urllib3")
ACCESS = "uvicorn.access"
PATIENT_KEYS = ("PatientID", "PatientName")
SHORTEST = 3  # letters of a name that is masked: shorter ones would take every log line apart
_SALT = secrets.token_bytes(16)


class Mask(logging.Filter):
    """A filter of handlers: drops the lines that are about one request and masks the store's names in all others.

    `names` gives those of images and patients at the moment of a line; `folders` need not be repeated either.
    """

    def __init__(self, names: Callable[[], Iterable[str]], folders: Iterable[str] = ()) -> None:
        super().__init__()
        self.names = names
        self.folders = sorted((folder for folder in folders if len(folder) > SHORTEST), key=len, reverse=True)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING and record.name.startswith(CHATTY):
            return False
        if record.name == ACCESS and isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, *rest = record.args
            record.args = (client, method, self.mask(str(path).split("?")[0]), *rest)
            return True
        message = self.mask(record.getMessage())
        record.msg, record.args = message, None
        if record.exc_info:
            record.exc_text = self.mask(logging.Formatter().formatException(record.exc_info))  # type: ignore[arg-type]
            record.exc_info = None
        return True

    def mask(self, text: str) -> str:
        """The text with every name of the store replaced by a number that is the same as long as the server runs."""
        for folder in self.folders:
            text = text.replace(folder, "<studies>")
        for name in sorted(self.names(), key=len, reverse=True):
            if len(name) >= SHORTEST and name in text:
                text = text.replace(name, pseudonym(name))
        return text


def pseudonym(name: str) -> str:
    """Stands for a name in the log: cannot be turned back, and differs at the next start."""
    return f"<id-{hashlib.blake2b(name.encode(), key=_SALT, digest_size=4).hexdigest()}>"


def names_of(store: object) -> list[str]:
    """The names of a MONAI Label store that can be a patient's, without asking an archive.

    Those of the cases are among them, for messages also name the images that a case lacks.
    """
    objects = dict(store._datastore.objects)  # type: ignore[attr-defined]
    found = set(objects) | {case_of(image_id)[0] for image_id in objects}
    for entry in objects.values():
        found.update(str(entry.image.info[key]) for key in PATIENT_KEYS if key in entry.image.info)
    return list(found)


def install(mask: Mask) -> None:
    """Puts the filter on every handler there is, in place of an earlier one.

    Handlers, for a logger's own filters do not see what its children pass on.
    """
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        for earlier in [present for present in handler.filters if isinstance(present, Mask)]:
            handler.removeFilter(earlier)
        handler.addFilter(mask)


def folders_of(studies: str) -> tuple[str, ...]:
    """The ways in which a store's folder appears in messages; an address is no folder."""
    return () if "://" in studies else (studies, os.path.realpath(studies))
