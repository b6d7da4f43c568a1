"""Tests of scripts.data.text_headers: which files hold the voxels of a header, and that a lost one is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from scripts.data.text_headers import data_files
from scripts.data.volume import CaseError, ItkVolume

VOXELS = np.arange(60, dtype=np.int16).reshape(5, 4, 3)  # z, y, x


def write(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS), str(path))
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_voxels_behind_the_header(tmp_path: Path, name: str) -> None:
    assert data_files(write(tmp_path / name)) == []


@pytest.mark.parametrize("name", ["a b.nhdr", "a.mhd"])
def test_voxels_in_a_file_beside_it(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    (raw,) = data_files(path)
    assert raw == path.with_suffix(".raw") and ItkVolume(path).files() == sorted([path, raw])
    raw.unlink()
    for read in (ItkVolume(path).grid, ItkVolume(path).voxels):
        with pytest.raises(CaseError, match=rf"missing file: found {name}: no file {raw.name}, which holds its voxels"):
            read()


HEADER = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 3 4 5\nspace directions: (1,0,0) (0,1,0) (0,0,2)\n"
    "endian: little\nencoding: raw\nspace origin: (0,0,0)\n"
)
MANY = {
    "list": "data file: LIST\ns1.raw\ns2.raw\ns3.raw\ns4.raw\ns5.raw\n",
    "pattern": "data file: s%d.raw 1 5 1\n",
    "down": "data file: s%d.raw 5 1 -1\n",
}


@pytest.mark.parametrize("how", MANY)
def test_voxels_in_several_files(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.nhdr"
    path.write_text(HEADER + MANY[how])
    order = range(5, 0, -1) if how == "down" else range(1, 6)
    for number, plane in zip(order, VOXELS, strict=True):
        (tmp_path / f"s{number}.raw").write_bytes(plane.tobytes())
    assert data_files(path) == [tmp_path / f"s{number}.raw" for number in order]
    np.testing.assert_array_equal(ItkVolume(path).voxels(), VOXELS.T)
    (tmp_path / "s3.raw").unlink()
    with pytest.raises(CaseError, match=r"missing file: found a\.nhdr: no file s3\.raw"):
        ItkVolume(path).grid()


@pytest.mark.parametrize(
    "said",
    ["ElementDataFile = LIST\n" + "x\0\n" * 3, "data file: %d%d 1 2 1", "data file: i%d 1 9999999999 1", "data file:"],
)
def test_odd_text_is_no_error_of_ours(tmp_path: Path, said: str) -> None:
    (tmp_path / "a.mhd").write_text(said)
    with pytest.raises(CaseError):
        ItkVolume(tmp_path / "a.mhd").grid()
