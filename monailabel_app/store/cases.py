"""The cases of the store: which images and files make one up, which of them a model starts from, which are finished.

A case's modalities are images side by side, told apart by their names, as the bundle reads them, or by the descriptions
of a DICOM study.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monailabel_app.errors import InputError, NotFound
from monailabel_app.reader import read_name


@dataclass(frozen=True)
class Case:
    """A case that a model can start from.

    Args:
        image: the id of the image that it is asked with, see `start_image`.
        images: all images of the case, that one among them.
        finished: whether any of them has a submitted label.
        complete: whether all scans that the model starts from are there.
        since: when its first image came to the store, seconds since 1970; 0 where that is not known.
    """

    image: str
    images: tuple[str, ...]
    finished: bool
    complete: bool
    since: int

    def info(self, datastore: Datastore) -> list[dict[str, Any]]:
        """What the store knows of each image."""
        return [datastore.get_image_info(image) for image in self.images]


def list_cases(datastore: Datastore, models: Collection[Sequence[str]]) -> list[Case]:
    """Every case that one of the models can start from, the oldest first, then by name.

    Args:
        datastore: the store.
        models: the source modalities of each model.
    """
    done = submitted_images(datastore)
    found: dict[str, Case] = {}
    for image in datastore.list_images():
        for sources in models:
            start = start_image(datastore, image, sources)
            if start is None or (start in found and found[start].complete):
                continue
            beside = siblings(datastore, start)
            images = tuple(sorted({start, *beside.values()}))
            since = min(int(datastore.get_image_info(one).get("ts") or 0) for one in images)
            complete = not beside or {*sources} <= {*beside}
            found[start] = Case(start, images, finished=bool(done & {*images}), complete=complete, since=since)
    return sorted(found.values(), key=lambda case: (case.since, case.image))


def case_of(image_id: str) -> tuple[str, str | None]:
    """Splits `<case>_<modality>`, however it is spelled, into case and modality, None for an image without one."""
    named = read_name(image_id)
    return (named.case, named.modality) if named.modality else (image_id, None)


def siblings(datastore: Datastore, image_id: str) -> dict[str, str]:
    """The images of the case that an image belongs to: id by modality; without names, from a DICOM study.

    Where several are of one modality, the image itself is taken, or the one whose name is `<case>_<modality>` to the
    letter; otherwise the modality is left out, for which one is meant is not known.
    """
    if hasattr(datastore, "siblings"):
        return datastore.siblings(image_id)
    case, modality = case_of(image_id)
    if modality is None:
        return {}
    chosen = {}
    for name, images in _by_case(tuple(datastore.list_images())).get(case, {}).items():
        meant = [image for image in images if image in (image_id, f"{case}_{name}")]
        if name == modality:
            chosen[name] = image_id
        elif len(images) == 1 or meant:
            chosen[name] = (meant or images)[0]
    return chosen


@functools.lru_cache(maxsize=4)
def _by_case(images: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """The images of each case by modality."""
    cases: dict[str, dict[str, list[str]]] = {}
    for image in images:
        case, modality = case_of(image)
        if modality is not None:
            cases.setdefault(case, {}).setdefault(modality, []).append(image)
    return cases


def check_named(name: str, sources: Sequence[str], *, called: str = "") -> None:
    """Refuses a scan whose name says that it is none of a model's source modalities; a name may say nothing.

    Args:
        name: of the image, or of the file without its ending.
        sources: the model's source modalities.
        called: what the message calls it, the name where left out.
    """
    says, wanted = read_name(name).says, " and ".join(sources)
    if says and says not in sources:
        raise InputError(
            f"{called or repr(name)} is {says} by its name, this model starts from {wanted}: open that scan of the "
            f"patient. If it is {' or '.join(sources)} all the same, save it under a name that says so, such as "
            f"NAME_{sources[0]}."
        )


def submitted_images(datastore: Datastore) -> set[str]:
    """The images with a mask that a person submitted here; of an archive, no segmentation of another workstation."""
    return {
        image
        for image in datastore.get_labeled_images()
        if datastore.get_label_by_image_id(image, DefaultLabelTag.FINAL.value)
    }


def start_image(datastore: Datastore, image_id: str, sources: Sequence[str]) -> str | None:
    """The image of a case that a task is asked with and its answer is kept with: of its last source modality.

    An image whose name says nothing is a case by itself where the task has one source. None for a case that lacks that
    modality, and for an image that is another kind by its name, such as a mask.
    """
    found = siblings(datastore, image_id)
    if not found:
        return image_id if len(sources) == 1 and not _other(datastore, image_id) else None
    return found.get(sources[-1])


def _other(datastore: Datastore, image_id: str) -> str | None:
    """What else than a scan an image is by its name; the series of an archive are told apart by their study."""
    return None if hasattr(datastore, "siblings") else read_name(image_id).other


def source_files(datastore: Datastore, image_id: str, sources: Sequence[str]) -> list[Path]:
    """The files of a case's source scans, in the order of `sources`; errors as of `source_images`."""
    return [Path(datastore.get_image_uri(image)) for image in source_images(datastore, image_id, sources)]


def source_images(datastore: Datastore, image_id: str, sources: Sequence[str]) -> list[str]:
    """The ids of a case's source scans, in the order of `sources`.

    Raises:
        NotFound: there is no such image.
        InputError: the image is of another modality than the model's sources, or a sibling is missing.
    """
    if image_id not in set(datastore.list_images()):
        raise NotFound(f"There is no image {image_id!r} on the server: refresh the list, or upload the scan.")
    found = siblings(datastore, image_id)
    wanted = " and ".join(sources)
    if not hasattr(datastore, "siblings"):
        check_named(image_id, sources)
    if not found and len(sources) == 1:
        return [image_id]
    if not found:
        raise InputError(
            f"This model needs {wanted} of one patient, and {image_id!r} does not say which it is: upload the scans as "
            + ", ".join(f"NAME_{m}" for m in sources)
            + "."
        )
    opened = next((modality for modality, i in found.items() if i == image_id), None)
    if opened not in sources:
        raise InputError(f"{image_id!r} is {opened}, this model starts from {wanted}: open that scan of the patient.")
    missing = [modality for modality in sources if modality not in found]
    if several := _several(datastore, image_id, missing):
        raise InputError(f"This model needs {wanted} of one patient, and there are {several}: keep one of each.")
    if missing:
        raise InputError(
            f"This model needs {wanted} of one patient, and beside {image_id!r} there is "
            + f"no {' and no '.join(missing)}: upload "
            + ", ".join(f"{case_of(image_id)[0]}_{m}" for m in missing)
            + "."
        )
    return [found[modality] for modality in sources]


def _several(datastore: Datastore, image_id: str, missing: Sequence[str]) -> str:
    """The images that a case has of modalities which are missing because there is more than one; "" where none has."""
    if hasattr(datastore, "siblings"):
        return ""
    of_case = _by_case(tuple(datastore.list_images())).get(case_of(image_id)[0], {})
    return ", ".join(repr(image) for modality in missing for image in of_case.get(modality, ()))
