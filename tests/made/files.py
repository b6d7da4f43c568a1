"""Empty files, where names alone decide."""

from collections.abc import Sequence
from pathlib import Path


def touch(folder: Path, *names: str, ending: str = ".nii.gz") -> None:
    """Makes an empty file of each name in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}{ending}").touch()


def touch_case(folder: Path, case: str, suffixes: Sequence[str], ending: str = ".nii.gz") -> None:
    """Makes an empty file of a case for each suffix."""
    touch(folder, *(f"{case}{suffix}" for suffix in suffixes), ending=ending)
