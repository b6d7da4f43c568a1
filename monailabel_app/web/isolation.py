"""Which names and files a request may carry: everything stays inside the store, and nothing else is read.

Each function returns what may be used, and refuses all else with an `InputError`.
"""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore

from monailabel_app.errors import InputError, NotFound
from monailabel_app.images import IMAGE_SUFFIXES

LONGEST_NAME = 200
LONGEST_HEADER = 1024**2  # of a .nrrd file


class Taken(InputError):
    """There is an image of that name, which is not overwritten."""


class Forbidden(InputError):
    """What nobody may ask this server for."""


def check_name(what: str, name: object, *, new: bool = False) -> str:
    """A name that can only mean something inside the store; of a `new` file, one that Windows takes too."""
    text = name if isinstance(name, str) else ""
    if not text or len(text.encode(errors="replace")) > LONGEST_NAME:
        raise InputError(
            f"The name of the {what} is {'missing' if not text else 'too long'}: expected 1 to 200 letters."
        )
    forbidden = '/\\:*?"<>|' if new else "/\\"
    bad = text[0] == "." or ".." in text or not text.isprintable() or any(letter in text for letter in forbidden)
    if bad or (new and (text != text.strip() or text.endswith("."))):
        raise InputError(
            f"The name of the {what} cannot be used: expected letters, digits, spaces and - _ ( ) [ ], and no folder."
        )
    return text


def new_image_id(store: LocalDatastore, name: object) -> str:
    """A name under which an image can be added: nothing of the store is overwritten."""
    image_id = check_name("image", name, new=True)
    if any(suffix in image_id.lower() for suffix in (".nii", ".nrrd", ".seg")):
        raise InputError("The name of the image holds the ending of a file (.nii, .nrrd): rename it without.")
    folder = Path(store._datastore.image_path())
    if image_id in store.list_images() or any(os.path.lexists(folder / f"{image_id}{end}") for end in IMAGE_SUFFIXES):
        raise Taken("There is an image of that name on the server: give this one another name.")
    return image_id


def known_image(store: LocalDatastore, image_id: object) -> str:
    """The id, if the store has an image of it."""
    name = check_name("image", image_id)
    if name in store.list_images():
        return name
    raise NotFound("There is no image of that name on the server: refresh the list, or upload the scan.")


def known_label(store: LocalDatastore, label_id: object, tag: object) -> Path:
    """The file of a label in the store."""
    names = check_name("label", label_id), check_name("tag", tag)
    archive = isinstance(store, DICOMWebDatastore)  # whose own method downloads and converts whatever is asked for
    path = Path((LocalDatastore.get_label_uri(store, *names) if archive else store.get_label_uri(*names)) or "/")
    if not path.is_file():
        raise NotFound("There is no such label on the server.")
    return path


def check_session(session_id: object) -> str:
    """A session's number in the one way it is written."""
    text = session_id if isinstance(session_id, str) else ""
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise NotFound("There is no such session: send the image again.")


def suffix_of(filename: str | None, allowed: tuple[str, ...]) -> str:
    """The ending of an uploaded file; its folders, which some clients send, are ignored."""
    parts = re.split(r"[\\/]", filename or "")
    if ".." in parts or not (filename or "").isprintable():
        raise InputError("The name of the uploaded file cannot be used.")
    suffix = next((end for end in allowed if parts[-1].lower().endswith(end)), None)
    if suffix is None:
        raise InputError(f"A file of this kind cannot be used: expected {', '.join(sorted(allowed))}.")
    return suffix


def stem_of(filename: str, suffix: str) -> str:
    """An uploaded file's name without folders and ending."""
    return re.split(r"[\\/]", filename)[-1][: -len(suffix)]


def check_self_contained(path: Path) -> None:
    """Refuses a .nrrd file whose header names another file, which a reader would open wherever it lies."""
    if not path.name.endswith(".nrrd"):
        return
    with path.open("rb") as file:
        start = file.read(LONGEST_HEADER)
    header = re.split(rb"\r?\n\r?\n", start, maxsplit=1)
    if not start.startswith(b"NRRD") or len(header) != 2:
        raise InputError("The file cannot be read as an image: the file is damaged or of another format.")
    if re.search(rb"^\s*data\s*file\s*:", header[0].replace(b"\r", b"\n"), re.IGNORECASE | re.MULTILINE):
        raise InputError("The file holds no voxels but names another file: save the image in one file.")
