"""Which names and files a request may carry: everything stays inside the store, and nothing else is read.

Each check raises `InputError` with a sentence. Options go to `options.py`, HTTP to `server.py`, images' content to
`checks.py`.
"""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore

from monailabel_app.errors import InputError, NotFound

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
LABEL_SUFFIXES = (".seg.nrrd", *IMAGE_SUFFIXES)
RAW_SUFFIX = ".bin"  # what OHIF submits: one byte per voxel of the scan
LONGEST_NAME = 200
MOST_COMPONENTS = 16
MOST_SEGMENTS = 255
LONGEST_HEADER = 1024**2  # of a .nrrd file


class Taken(InputError):
    """There is an image of that name, which is not overwritten."""


class Forbidden(InputError):
    """What nobody may ask this server for."""


def check_name(what: str, name: object, *, new: bool = False) -> str:
    """A name that can only mean something inside the store.

    Args:
        what: what the name is of, for the message ("image", "tag").
        new: whether a file will be made of it: then also what Windows does not take is refused.

    Raises:
        InputError: a path, a hidden or an endless name.
    """
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
    """A name under which an image can be added: nothing of the store is overwritten.

    Raises:
        InputError: a name that the store would read back as another one.
        Taken: the store has such an image.
    """
    image_id = check_name("image", name, new=True)
    if any(suffix in image_id.lower() for suffix in (".nii", ".nrrd", ".seg")):
        raise InputError("The name of the image holds the ending of a file (.nii, .nrrd): rename it without.")
    folder = Path(store._datastore.image_path())
    if image_id in store.list_images() or any(os.path.lexists(folder / f"{image_id}{end}") for end in IMAGE_SUFFIXES):
        raise Taken("There is an image of that name on the server: give this one another name.")
    return image_id


def known_image(store: LocalDatastore, image_id: object) -> str:
    """The id, if the store has an image of it.

    Raises:
        InputError: not a name.
        NotFound: no such image.
    """
    name = check_name("image", image_id)
    if name in store.list_images():
        return name
    raise NotFound("There is no image of that name on the server: refresh the list, or upload the scan.")


def known_label(store: LocalDatastore, label_id: object, tag: object) -> Path:
    """The file of a label in the store.

    Raises:
        InputError: not a name.
        NotFound: no such label.
    """
    name, of = check_name("label", label_id), check_name("tag", tag)
    if isinstance(store, DICOMWebDatastore):  # its own method downloads and converts whatever series is asked for
        path = Path(LocalDatastore.get_label_uri(store, name, of) or "/")
    else:
        path = Path(store.get_label_uri(name, of) or "/")
    if not path.is_file():
        raise NotFound("There is no such label on the server.")
    return path


def check_session(session_id: object) -> str:
    """A session's number in the one way it is written.

    Raises:
        NotFound: anything else.
    """
    text = session_id if isinstance(session_id, str) else ""
    try:
        if str(uuid.UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise NotFound("There is no such session: send the image again.")


def suffix_of(filename: str | None, allowed: tuple[str, ...]) -> str:
    """The ending of an uploaded file; its folders, which some clients send, are ignored.

    Raises:
        InputError: an ending that is not expected, or a name that climbs out of its folder.
    """
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
    """Refuses a .nrrd file whose header names another file, which a reader would open wherever it lies on the server.

    Raises:
        InputError: it does, or has no header.
    """
    if not path.name.endswith(".nrrd"):
        return
    with path.open("rb") as file:
        start = file.read(LONGEST_HEADER)
    header = re.split(rb"\r?\n\r?\n", start, maxsplit=1)
    if not start.startswith(b"NRRD") or len(header) != 2:
        raise InputError("The file cannot be read as an image: the file is damaged or of another format.")
    if re.search(rb"^\s*data\s*file\s*:", header[0].replace(b"\r", b"\n"), re.IGNORECASE | re.MULTILINE):
        raise InputError("The file holds no voxels but names another file: save the image in one file.")


def check_label_file(label: Path, suffix: str, image: Path) -> None:
    """A submitted label lies on its scan's grid, can be read to its end and holds whole numbers.

    Raises:
        InputError: it does not, or cannot.
    """
    size = _header(image)[0]
    if suffix == RAW_SUFFIX:
        found, expected = label.stat().st_size, math.prod(size)
        if found != expected:
            raise InputError(f"The label has {found} bytes and the scan {expected} voxels: expected the same number.")
        return
    try:
        found_size, components, read = _header(label)
    except Exception as error:  # readers raise many classes for broken files
        raise InputError("The label cannot be read: the file is damaged or of another format.") from error
    if found_size != size or components > MOST_COMPONENTS:
        sizes = [" x ".join(map(str, numbers)) for numbers in (found_size, size)]
        raise InputError(f"The label has {sizes[0]} voxels and the scan {sizes[1]}: draw it on that scan.")
    try:
        voxels = np.asanyarray(read())
    except Exception as error:
        raise InputError("The label cannot be read to its end: the file is damaged; send it again.") from error
    if voxels.dtype.kind not in "buif":
        raise InputError("The label holds colors or complex numbers: expected one whole number for each voxel.")
    low, high = voxels.min(), voxels.max()  # NaN if any is
    if not 0 <= low <= high <= MOST_SEGMENTS or (voxels.dtype.kind == "f" and (voxels % 1).any()):
        raise InputError(
            f"The label holds numbers from {low:g} to {high:g}: expected 0 and the numbers of segments up to "
            f"{MOST_SEGMENTS}; a scan is no label."
        )


def _header(path: Path) -> tuple[tuple[int, ...], int, Callable[[], Any]]:
    """Size, numbers per voxel, and what reads the voxels: nibabel's for NIfTI, for ITK fills a short one with zeros."""
    if path.name.endswith((".nii", ".nii.gz")):
        image: Any = nib.load(path)
        return image.shape, 1, lambda: np.asanyarray(image.dataobj)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetSize(), reader.GetNumberOfComponents(), lambda: sitk.GetArrayFromImage(reader.Execute())
