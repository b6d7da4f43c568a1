"""Tests of text_headers: what NRRD and MetaImage say of their voxels, and headers that ITK must not see."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.data.text_headers import TextHeader, read_text_header

NRRD = """NRRD0004
# a note: of nobody
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 5 3
space directions: (1,0,0) (0,1,0) (0,0,2)
space units: "mm" "mm" "mm"
encoding: raw
author:=x
space origin: (0,0,0)
"""
META = """ObjectType = Image
NDims = 3
Position = 0 0 0
Rotation = 1 0 0 0 1 0 0 0 1
ElementSpacing = 1 1 2
DimSize = 4 5 3
ElementType = MET_USHORT
CompressedData = {}
ElementDataFile = LOCAL
"""


def write(folder: Path, name: str, text: str, size: int = 120) -> Path:
    """A header and so many bytes behind it."""
    (folder / name).write_bytes(text.encode() + (b"\n" if "NRRD" in text else b"") + bytes(size))
    return folder / name


def test_nrrd(tmp_path):
    path = write(tmp_path, "a.nrrd", NRRD)
    assert read_text_header(path) == TextHeader((4, 5, 3), "mm", "", 120, path.stat().st_size)


@pytest.mark.parametrize(("compressed", "factor"), [("False", 1), ("True", 1032)])
def test_meta_image_in_the_words_of_older_programs(tmp_path, compressed, factor):
    path = write(tmp_path, "a.MHA", META.format(compressed))
    assert read_text_header(path) == TextHeader((4, 5, 3), "", "", 120, factor * path.stat().st_size)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.nhdr", f"{NRRD}data file: a.raw\n"), ("a.mhd", META.format("False").replace("LOCAL", "a.raw"))],
)
def test_detached_voxels(tmp_path, name, text):
    path = write(tmp_path, name, text, 0)
    with pytest.raises(ValueError, match="no file 'a.raw' beside it"):
        read_text_header(path)
    (tmp_path / "a.raw").write_bytes(bytes(119))
    header = read_text_header(path)
    assert (header.announced, header.most) == (120, 119)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("NRRD0004", "NRRD0009", "no NRRD file"),
        ("type: short", "type: block", "type 'block'"),
        ("encoding: raw", "encoding: bzip2", "encoding 'bzip2'"),
        ("dimension: 3", "dimension: 2", "sizes '4 5 3': there must be a whole number above 0 for each dimension"),
        ("dimension: 3", "dimension: 99999999", "sizes '4 5 3'"),
        ("sizes: 4 5 3\n", "", "no sizes"),
        ("sizes: 4 5 3", "sizes: 4 -5 3", "sizes '4 -5 3'"),
        ("sizes: 4 5 3", "sizes: 4 5 ٣", "sizes"),
    ],
)
def test_refused_nrrd(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_text_header(write(tmp_path, "a.nrrd", NRRD.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "unplaced"),
    [
        ("space: left-posterior-superior\n", "", "names no space"),
        ("left-posterior-superior", "scanner-xyz", "the space 'scanner-xyz'"),
        ("space directions", "space of directions", "no space directions"),
        ("(0,0,2)", "none", "no position along each axis"),
        ("left-posterior-superior", "RAS", ""),
    ],
)
def test_place_of_a_nrrd(tmp_path, old, new, unplaced):
    found = read_text_header(write(tmp_path, "a.nrrd", NRRD.replace(old, new))).unplaced
    assert unplaced in found and bool(unplaced) == bool(found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # ITK ends the process: its reader takes three numbers from two.
        ("DimSize = 4 5 3", "DimSize = 4 5", "DimSize '4 5'"),
        ("DimSize = 4 5 3", "DimSize = 4 5 0", "DimSize '4 5 0'"),
        ("Rotation = 1 0 0", "Rotation = 1 0", "TransformMatrix .* is not 9 numbers"),
        ("Position = 0 0 0", "Position = 0 nan 0", "Offset '0 nan 0', which is not 3 numbers"),
        ("MET_USHORT", "MET_STRING", "ElementType 'MET_STRING'"),
        ("ElementType = MET_USHORT\n", "", "ElementType ''"),
        ("NDims = 3", "NDims = 3 3", "NDims '3 3'"),
        ("ElementDataFile = LOCAL\n", "", "no ElementDataFile"),
    ],
)
def test_refused_meta_image(tmp_path, old, new, message):
    with pytest.raises(ValueError, match=message):
        read_text_header(write(tmp_path, "a.mha", META.format("False").replace(old, new)))


def test_a_meta_image_without_directions_has_no_place(tmp_path):
    text = META.format("False").replace("Rotation = 1 0 0 0 1 0 0 0 1\n", "")
    assert read_text_header(write(tmp_path, "a.mha", text)).unplaced == "no position, the header has no TransformMatrix"
