"""The cases of the store as the tasks over all of them see it: one image each, and whether somebody finished it.

Which files make a case goes to `store.py`; what is done with the cases to `strategies.py`, `batch.py`, `train.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monailabel.interfaces.datastore import Datastore

from monailabel_app.bundle import ServedBundle
from monailabel_app.store.cases_files import siblings, start_image, submitted_images


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


def list_cases(datastore: Datastore, models: Mapping[str, ServedBundle]) -> list[Case]:
    """Every case that one of the models can start from, the oldest first, then by name."""
    done = submitted_images(datastore)
    found: dict[str, Case] = {}
    for image in datastore.list_images():
        for model in models.values():
            start = start_image(datastore, image, model.source_modalities)
            if start is None or (start in found and found[start].complete):
                continue
            beside = siblings(datastore, start)
            images = tuple(sorted({start, *beside.values()}))
            since = min(int(datastore.get_image_info(one).get("ts") or 0) for one in images)
            complete = not beside or {*model.source_modalities} <= {*beside}
            found[start] = Case(start, images, finished=bool(done & {*images}), complete=complete, since=since)
    return sorted(found.values(), key=lambda case: (case.since, case.image))
