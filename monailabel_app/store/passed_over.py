"""What lies in a folder of studies and is not served, for nobody to look for it in vain."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from monailabel.datastore.local import LocalDatastore

from monailabel_app.reader import read_name

SHOWN = 5  # names that a sentence gives
OWN = ("datastore_v2.json", "datastore_v2.json.damaged", "labels")


def passed_over(store: LocalDatastore, modalities: Collection[str]) -> list[str]:
    """Sentences that count and name what the store does not list, or what no model starts from or learns from.

    Args:
        store: of a folder.
        modalities: the sources and targets of the models.
    """
    folder, served = Path(store._datastore.image_path()), dict(store._datastore.objects)
    listed = {f"{image}{entry.image.ext}" for image, entry in served.items()}
    folders: list[str] = []
    doubles: list[str] = []
    others: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name in listed or entry.name in OWN or entry.name.startswith("."):
            continue
        if entry.is_dir():
            folders.append(entry.name)
        else:
            (doubles if store._to_id(entry.name)[0] in served else others).append(entry.name)
    said = {image: read_name(image).says for image in sorted(served)}
    wrong = [f"{image} ({says})" for image, says in said.items() if says and says not in modalities]
    kinds = {
        "folder(s) not looked into: put the scans beside the others, named NAME_MODALITY": folders,
        "file(s) of a name that another one has with another ending: keep one": doubles,
        f"file(s) of no kind that is served ({', '.join(ending[1:] for ending in store._extensions)})": others,
        "image(s) that no model here uses, by their names": wrong,
    }
    return [f"{len(names)} {kind}: {_shown(names)}." for kind, names in kinds.items() if names]


def _shown(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])
