"""One store for the server's threads and the processes of its background tasks: what one writes, no other undoes.

MONAI Label's store keeps its list in memory and writes all of it at every change, made for one thread of one process;
killed in the middle, it leaves half a list, with which no server starts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore

logger = logging.getLogger(__name__)

LIST = "datastore_v2.json"
WRITERS = (
    "add_image", "remove_image", "save_label", "remove_label", "update_image_info", "update_label_info",
    "_reconcile_datastore",
)  # fmt: skip
READERS = (
    "get_image_uri", "get_image_info", "get_label_uri", "get_label_info", "get_labels_by_image_id", "list_images",
    "get_labeled_images", "get_unlabeled_images", "datalist", "status", "json", "_init_from_datastore_file",
)  # fmt: skip
WRITE = "_update_datastore_file"
# Of a DICOM store: what works on its cache alone. The others wait for the archive, or are called while its base class
# holds the lock of the list, for which `_reconcile_datastore` waits inside of ours.
DICOM_WRITERS = (
    "_keep_image", "_keep_label", "remove_image", "remove_label", "update_image_info", "update_label_info",
    "_reconcile_datastore",
)  # fmt: skip
DICOM_READERS = ("get_image_info", "get_label_info", "get_labels_by_image_id", "json")


def share(store: Any) -> None:
    """Lets one thread at a time use the store's list, and one process at a time change it, by what is on the disk.

    The store is the one object of it in this process; a second call changes nothing.
    """
    if hasattr(store, "_shared"):
        return
    store._shared = True
    lock = threading.RLock()
    other_processes = FileLock(Path(store._datastore_path) / ".writers.lock")
    write = getattr(store, WRITE)

    @contextmanager
    def reading() -> Iterator[None]:
        with lock:
            yield

    @contextmanager
    def writing() -> Iterator[None]:
        with lock, other_processes:
            store._config_ts = 0  # the list is read again, whatever the clock of its file says
            store._init_from_datastore_file()
            yield

    def write_and_keep(*args: Any, **kwargs: Any) -> None:
        write(*args, **kwargs)
        _keep(Path(store._datastore_config_path))

    remote = isinstance(store, DICOMWebDatastore)
    setattr(store, WRITE, write_and_keep)
    for name in DICOM_READERS if remote else READERS:
        setattr(store, name, reading()(getattr(store, name)))
    for name in DICOM_WRITERS if remote else WRITERS:
        setattr(store, name, writing()(getattr(store, name)))


def mend(folder: Path) -> None:
    """Puts the last whole list of a folder's store in place of one that was cut off while it was written.

    The change that was being written is lost; labels and images themselves are files, which the store finds again.
    """
    path, kept = folder / LIST, _kept(folder / LIST)
    if path.is_file() and not _whole(path) and _whole(kept):
        logger.error("%s was cut off while it was written: going on with the list before that.", path)
        os.replace(path, path.with_name(f"{LIST}.damaged"))
        shutil.copyfile(kept, path)


def _keep(path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    shutil.copyfile(path, partial)
    os.replace(partial, _kept(path))


def _kept(path: Path) -> Path:
    return path.with_name(f".{path.name}.last")


def _whole(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
