"""The bundle's reading of files in the app's words: the same places, checks and sentences as at its command line.

Its code is imported by the functions: which bundle's it is, is known when a model is loaded.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from monailabel_app.errors import InputError

CODE = "scripts"  # the module of every bundle
BUNDLE = Path(__file__).resolve().parent.parent / "bundle"  # the repository's, whose code runs where no model is loaded


class Named(NamedTuple):
    """What a name says: the case, its modality, or what else it is (a mask); see `scripts.data.names`."""

    case: str
    modality: str | None
    other: str | None

    @property
    def says(self) -> str | None:
        """Modality or other kind of image; None where the name does not tell."""
        return self.modality or self.other


def use_code(folder: Path = BUNDLE) -> ModuleType:
    """The bundle's module `scripts`, of which a process has one: the one that is imported already, or the folder's."""
    if CODE not in sys.modules:
        sys.path.insert(0, str(folder))
    return importlib.import_module(CODE)


def open_volume(path: Path) -> Any:
    """The file as `scripts.data.reading` opens it: `grid()` and `voxels()`, both of which raise a `CaseError`."""
    use_code()
    from scripts.data import reading

    return reading.open_volume(path)


@contextmanager
def told_of(name: str, volume: Any) -> Iterator[None]:
    """Makes the reader's refusal of a volume one of the app's, told of the scan or label of that name."""
    use_code()
    from scripts.data.volume import CaseError

    try:
        yield
    except CaseError as error:
        raise InputError(f"{_plain(error.of(name), volume)}.") from error


def _plain(error: Exception, *volumes: Any) -> str:
    """What an error says, without the folders of the server."""
    text = str(error)
    for file in (file for volume in volumes for file in volume.files()):
        text = text.replace(str(file), file.name)
    return text


def check_one_grid(volumes: Mapping[str, Any]) -> None:
    """Refuses volumes, by their names in the message, that do not lie voxel on voxel of the first; by headers alone."""
    use_code()
    from scripts.data.datalist import grid_problems

    for problem in grid_problems(volumes):
        raise InputError(f"{_plain(problem, *volumes.values())}; both must lie on one grid.")


def check_mask(voxels: np.ndarray, name: str) -> np.ndarray:
    """The voxels of a mask as uint8 of 0 and 1, which they may miss by the rounding of a slope."""
    use_code()
    from scripts.data.datalist import mask_problem
    from scripts.data.volume import whole_numbers

    if problem := mask_problem(voxels):
        raise InputError(f"{problem.of(name)} alone, one segment for the tumor.")
    return whole_numbers(voxels).astype(np.uint8)


def check_image(voxels: np.ndarray, name: str) -> None:
    """Refuses a scan of one value only, or with voxels that are no finite number."""
    use_code()
    from scripts.data.datalist import image_problem

    if problem := image_problem(name, voxels):
        raise InputError(f"{problem}; export it again.")


@functools.lru_cache(maxsize=65536)
def read_name(name: str) -> Named:
    """What a name without its ending says, as the bundle reads names of files."""
    use_code()
    from scripts.data.names import read_name as read

    found = read(name)
    return Named(found.case, found.modality, found.other)
