"""Headers of NRRD and MetaImage that keep their numbers in files beside them: which files these are."""

from __future__ import annotations

import os
import re
from pathlib import Path

_HEADER_BYTES = 2**16
_MOST_FILES = 2**12
_LIST = re.compile(r"LIST\b", re.IGNORECASE)
_PATTERN = re.compile(r"([^%]*%\d*d[^%]*) +(-?\d+) +(-?\d+) +(-?\d+)(?: +\d)?")
_FIELD = re.compile(r"(?:data ?file *:|ElementDataFile *=) *(.*)", re.IGNORECASE)


def data_files(header: Path) -> list[Path]:
    """The files that hold the numbers of a header, by its text; none where they stand behind it, in the same file.

    One file, a LIST of files, and a pattern with first, last and step (`%03d.raw 1 60 1`) are understood.

    Args:
        header: .nrrd, .nhdr, .mha or .mhd, which exists.
    """
    with header.open("rb") as file:
        lines = os.fsdecode(re.split(rb"\r?\n\r?\n", file.read(_HEADER_BYTES))[0]).splitlines()
    for number, line in enumerate(lines):
        field = _FIELD.match(line.strip())
        if field is None:
            continue
        said = field[1].strip()
        pattern = _PATTERN.fullmatch(said)
        if said.upper() == "LOCAL":
            names = []
        elif _LIST.match(said):
            names = [name.strip() for name in lines[number + 1 :] if name.strip()]
        elif pattern is not None:
            first, last, step = (int(part) for part in pattern.groups()[1:])
            numbers = range(first, last + (1 if step > 0 else -1), step or 1)[:_MOST_FILES]
            names = [pattern[1] % index for index in numbers]
        else:
            names = [said]
        return [header.parent / name for name in names]
    return []
