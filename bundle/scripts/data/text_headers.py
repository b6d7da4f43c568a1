"""The text headers of NRRD and MetaImage, checked before ITK reads what they announce.

ITK takes memory for whatever a header says, and ends the process where a line has fewer numbers than dimensions.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

NRRD_SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")

_MOST_BYTES = 2**20  # of a header
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64"), 8),
    **dict.fromkeys(("int64_t", "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    "double": 8,
}
_META_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
# Other names of a field, as older programs write them.
_META_SAME = {"Position": "Offset", "Origin": "Offset", "Rotation": "TransformMatrix", "Orientation": "TransformMatrix"}
# Fields of a MetaImage with so many numbers: the power of its dimensions.
_META_NUMBERS = {"DimSize": 1, "ElementSpacing": 1, "Offset": 1, "CenterOfRotation": 1, "TransformMatrix": 2}
# Spaces that ITK turns into its own; it takes the numbers of any other as they are.
_NRRD_SPACES = {
    *("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las"),
}
_GZIP_MOST = 1032  # what a byte may become
_MOST_FILES = 2**12
_LIST = re.compile(r"LIST\b", re.IGNORECASE)
_PATTERN = re.compile(r"([^%]*%\d*d[^%]*) +(-?\d+) +(-?\d+) +(-?\d+)(?: +\d)?")
_DATA_FILE = re.compile(r"(?:data ?file *:|ElementDataFile *=) *(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class TextHeader:
    """What a header says of the voxels.

    Args:
        sizes: along each axis, fastest first.
        units: of the sizes; empty where it does not say.
        unplaced: why it does not say how the image lies; empty where it does.
        announced: bytes that the voxels take.
        most: bytes that they can be in their files.
    """

    sizes: tuple[int, ...]
    units: str
    unplaced: str
    announced: int
    most: int


def read_text_header(path: Path) -> TextHeader:
    """Header of a NRRD or MetaImage file.

    Raises:
        ValueError: a field that is missing or means nothing; what was found, without the name of the file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES)
    if path.suffix.lower() in META_SUFFIXES:
        return _meta(path, content)
    return _nrrd(path, content)


def data_files(header: Path) -> list[Path]:
    """The files that hold the numbers of a header, by its text; none where they stand behind it, in the same file.

    One file, a LIST of files, and a pattern with first, last and step (`%03d.raw 1 60 1`) are understood.

    Args:
        header: .nrrd, .nhdr, .mha or .mhd, which exists.
    """
    with header.open("rb") as file:
        lines = os.fsdecode(re.split(rb"\r?\n\r?\n", file.read(_MOST_BYTES))[0]).splitlines()
    for number, line in enumerate(lines):
        field = _DATA_FILE.match(line.strip())
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


def _nrrd(path: Path, content: bytes) -> TextHeader:
    if not re.match(rb"NRRD000[1-5]\r?\n", content):
        raise ValueError("no NRRD file, whose first line is NRRD0001 to NRRD0005")
    lines = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0].decode("latin1").splitlines()
    # key:=value is a note of some program
    pairs = [line.split(": ", 1) for line in lines[1:] if ": " in line and not line.startswith("#")]
    fields = {key.strip().lower(): value.strip() for key, value in pairs}
    sizes = _whole(fields, "sizes", _whole(fields, "dimension", 1)[0])
    kind = fields.get("type", "").lower()
    if kind not in _NRRD_BYTES:
        raise ValueError(f"type {kind!r}, which is no kind of number")
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz", "ascii", "text", "txt", "hex"):
        raise ValueError(f"encoding {encoding!r}, which is not read")
    shrunk = encoding in ("gzip", "gz")
    units = ", ".join(dict.fromkeys(fields.get("space units", "").replace('"', " ").split()))[:60]
    return _header(path, sizes, (units, _unplaced(fields)), _NRRD_BYTES[kind], shrunk)


def _unplaced(fields: dict[str, str]) -> str:
    """What a NRRD lacks to have a place."""
    if "space" not in fields:
        return "no position, the header names no space"
    if fields["space"].lower() not in _NRRD_SPACES:
        return f"no known position, the header names the space {fields['space'][:60]!r}"
    if "space directions" not in fields:
        return "no position, the header has no space directions"
    if "none" in fields["space directions"].lower():
        return f"no position along each axis, space directions {fields['space directions'][:60]!r}"
    return ""


def _meta(path: Path, content: bytes) -> TextHeader:
    fields: dict[str, str] = {}
    for line in content.splitlines():
        key, equals, value = line.decode("latin1").partition("=")
        key = key.strip()
        if not equals:
            break
        fields[_META_SAME.get(key, key)] = value.strip()
        if key == "ElementDataFile":
            break
    else:
        raise ValueError("no ElementDataFile")
    if "ElementDataFile" not in fields:
        raise ValueError("no ElementDataFile")
    dimensions = _whole(fields, "NDims", 1)[0]
    sizes = _whole(fields, "DimSize", dimensions)
    for key, power in _META_NUMBERS.items():
        numbers = fields.get(key, "0 " * dimensions**power).split()
        if len(numbers) != dimensions**power or not all(map(_is_number, numbers)):
            raise ValueError(f"{key} {fields[key][:60]!r}, which is not {dimensions**power} numbers")
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    bytes_each = _META_BYTES.get(kind, _META_BYTES.get(kind.removeprefix("U")))
    if bytes_each is None:
        raise ValueError(f"ElementType {fields.get('ElementType', '')!r}, which is no kind of number")
    channels = _whole(fields, "ElementNumberOfChannels", 1)[0] if "ElementNumberOfChannels" in fields else 1
    shrunk = fields.get("CompressedData", "").lower().startswith("t")
    unplaced = "" if "TransformMatrix" in fields else "no position, the header has no TransformMatrix"
    return _header(path, sizes, ("", unplaced), bytes_each * channels, shrunk)


def _header(path: Path, sizes: tuple[int, ...], place: tuple[str, str], bytes_each: int, shrunk: bool) -> TextHeader:
    """Looks how large the files of the voxels are."""
    files = data_files(path) or [path]
    if gone := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"no file {gone[0][:60]!r} beside it, which holds the voxels")
    size = sum(file.stat().st_size for file in files)
    return TextHeader(sizes, *place, math.prod(sizes) * bytes_each, size * _GZIP_MOST if shrunk else size)


def _whole(fields: dict[str, str], key: str, count: int) -> tuple[int, ...]:
    """So many whole numbers above 0."""
    numbers = fields.get(key, "").split()
    if not 0 < count <= 16 or len(numbers) != count or not all(re.fullmatch("[1-9][0-9]{0,17}", n) for n in numbers):
        found = f"{key} {fields[key][:60]!r}" if key in fields else f"no {key}"
        raise ValueError(f"{found}: there must be a whole number above 0 for each dimension")
    return tuple(map(int, numbers))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
