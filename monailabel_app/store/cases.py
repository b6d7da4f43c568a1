"""The cases of the store: which images and files make one up, which of them a model starts from, which are finished.

A case's modalities are images side by side, told apart by their names or by the descriptions of a DICOM study.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monailabel_app.errors import InputError, NotFound

MODALITIES = ("T1", "ceT1", "T2", "FLAIR")


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
    """Splits `<case>_<modality>` into case and modality, None for an image without one."""
    case, _, modality = image_id.rpartition("_")
    return (case, modality) if case and modality in MODALITIES else (image_id, None)


def siblings(datastore: Datastore, image_id: str) -> dict[str, str]:
    """The images of the case that an image belongs to: id by modality; without names, from a DICOM study."""
    if hasattr(datastore, "siblings"):
        return datastore.siblings(image_id)
    case, modality = case_of(image_id)
    if modality is None:
        return {}
    known = set(datastore.list_images())
    return {m: f"{case}_{m}" for m in MODALITIES if f"{case}_{m}" in known}


def submitted_images(datastore: Datastore) -> set[str]:
    """The images with a mask that a person submitted here; of an archive, no segmentation of another workstation."""
    return {
        image
        for image in datastore.get_labeled_images()
        if datastore.get_label_by_image_id(image, DefaultLabelTag.FINAL.value)
    }


def start_image(datastore: Datastore, image_id: str, sources: Sequence[str]) -> str | None:
    """The image of a case that a task is asked with and its answer is kept with: of its last source modality.

    An image without a modality in its name is a case by itself where the task has one source. None for a case that
    lacks that modality.
    """
    found = siblings(datastore, image_id)
    if not found:
        return image_id if len(sources) == 1 else None
    return found.get(sources[-1])


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
    if missing:
        raise InputError(
            f"This model needs {wanted} of one patient, and beside {image_id!r} there is "
            + f"no {' and no '.join(missing)}: upload "
            + ", ".join(f"{case_of(image_id)[0]}_{m}" for m in missing)
            + "."
        )
    return [found[modality] for modality in sources]
