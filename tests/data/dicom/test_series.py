"""Series as volumes: hand-computed points, SimpleITK's, stored and rescaled numbers, and damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from made.dicom import LPS_FROM_RAS, SMALL, make_affine, make_voxels, save, write_enhanced, write_series, write_small
from made.outcomes import error_of, one_series
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from scripts.data.dicom.folder import scan
from scripts.data.dicom.series import Series
from scripts.data.volume import CaseError

PLANES = ("axial", "oblique", "sagittal", "coronal")
CORNERS = [[x, y, z] for x in (0, SMALL[0] - 1) for y in (0, SMALL[1] - 1) for z in (0, SMALL[2] - 1)]


def by_point(voxels: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values at RAS points (N, 3) that are voxel centers."""
    indices = (np.linalg.inv(affine) @ np.c_[points, np.ones(len(points))].T)[:3].T
    assert np.abs(indices - np.rint(indices)).max() < 1e-4
    return voxels[tuple(np.rint(indices).astype(int).T)]


def test_affine_of_an_axial_series_by_hand(tmp_path: Path) -> None:
    write_small(
        tmp_path,
        ImagePositionPatient=lambda k: [-10.0, 20.0, 30.0 + 2 * k],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[0.7, 0.4],  # rows are 0.7 mm apart, columns 0.4 mm
    )
    shape, affine = one_series(tmp_path).grid()
    assert shape == SMALL
    expected = [[-0.4, 0, 0, 10], [0, -0.7, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-9)


def test_affine_of_a_sagittal_series_by_hand(tmp_path: Path) -> None:
    """Columns run to posterior, rows to inferior; the normal then points to the patient's right."""
    write_small(
        tmp_path,
        ImagePositionPatient=lambda k: [5.0 + 3 * k, -8.0, 9.0],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        PixelSpacing=[0.5, 0.25],
    )
    _, affine = one_series(tmp_path).grid()
    expected = [[0, 0, 3, -17], [-0.25, 0, 0, 8], [0, -0.5, 0, 9], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-9)


# Row and column direction (LPS) of an axial slice as a scanner writes it; D of FFDL: lying on the left side.
POSITIONS = {
    "HFS": ([1, 0, 0], [0, 1, 0]),
    "HFP": ([-1, 0, 0], [0, -1, 0]),
    "FFS": ([-1, 0, 0], [0, 1, 0]),
    "HFDR": ([0, 1, 0], [-1, 0, 0]),
    "FFDL": ([0, 1, 0], [1, 0, 0]),
}


@pytest.mark.parametrize("told", ["", "HFS"])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_patients_position_is_in_the_orientation_alone(tmp_path: Path, position: str, told: str) -> None:
    """The same head in five positions: the same value at the same point, whatever PatientPosition says."""
    row, column = map(np.array, POSITIONS[position])
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([0.5 * row, 0.75 * column, 2.0 * np.cross(row, column)])
    lps[:3, 3] = [3, -4, 5]
    index = np.indices(SMALL).reshape(3, -1)
    weights, start = np.array([8, 32, -16]), 4000  # of left, posterior and head
    points = (lps[:3, :3] @ index).T + lps[:3, 3]
    stored = (points @ weights + start).reshape(SMALL)
    made = write_series(tmp_path, stored.astype(np.int16), LPS_FROM_RAS @ lps, PatientPosition=told or position)
    series = one_series(tmp_path)
    _, affine = series.grid()
    np.testing.assert_allclose(affine, LPS_FROM_RAS @ lps, atol=1e-9)
    assert (by_point(series.voxels(), affine, points * [-1, -1, 1]) == points @ weights + start).all()
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path), made.series_uid))
    compare_with_simpleitk(series, reader.Execute())


@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize("plane", PLANES)
def test_agrees_with_simpleitk(tmp_path: Path, plane: str, order: str) -> None:
    affine = make_affine((0.4, 0.7, 1.5), origin=(11.0, -22.0, 33.0), plane=plane)
    made = write_series(tmp_path, make_voxels() - 100, affine, order=order)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path), made.series_uid))
    compare_with_simpleitk(one_series(tmp_path), reader.Execute())


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("plane", PLANES)
def test_enhanced_file_agrees_with_simpleitk(tmp_path: Path, plane: str, shared: bool) -> None:
    affine = make_affine((0.4, 0.7, 1.5), origin=(11.0, -22.0, 33.0), plane=plane)
    made = write_enhanced(tmp_path / "enhanced.dcm", make_voxels(), affine, shared=shared)
    compare_with_simpleitk(one_series(tmp_path), sitk.ReadImage(str(made.paths[0])))


def compare_with_simpleitk(series: Series, image: sitk.Image) -> None:
    """Corner voxels at the same points, and the same value at every point."""
    shape, affine = series.grid()
    assert shape == image.GetSize() == SMALL
    expected = {tuple(np.round(image.TransformIndexToPhysicalPoint(corner), 5)) for corner in CORNERS}
    found = {tuple(np.round((LPS_FROM_RAS @ affine @ [*corner, 1])[:3], 5)) for corner in CORNERS}
    assert found == expected
    indices = np.argwhere(np.ones(SMALL))
    points = np.array([image.TransformIndexToPhysicalPoint(index.tolist()) for index in indices])
    values = sitk.GetArrayFromImage(image).T[tuple(indices.T)]
    assert (by_point(series.voxels(), affine, points * [-1, -1, 1]) == values).all()


def test_reversed_instance_numbers_and_frames_change_nothing(tmp_path: Path) -> None:
    write_small(tmp_path / "a", plane="oblique")
    write_small(tmp_path / "b", plane="oblique", order="reversed")
    for name, order in (("c", "forward"), ("d", "reversed")):
        write_enhanced(tmp_path / name / "e.dcm", make_voxels(), make_affine(plane="oblique"), order=order)
    first = one_series(tmp_path / "a")
    for name in "bcd":
        other = one_series(tmp_path / name)
        np.testing.assert_allclose(other.grid()[1], first.grid()[1], atol=1e-9)
        assert (other.voxels() == first.voxels()).all()
        assert (other.voxels() == make_voxels()).all()


def test_voxels_keep_integers_unless_rescaled(tmp_path: Path) -> None:
    write_small(tmp_path / "plain")
    write_small(tmp_path / "one", RescaleSlope=1, RescaleIntercept=0)
    write_small(tmp_path / "scaled", slope=2.0, intercept=-5.0)
    assert one_series(tmp_path / "plain").voxels().dtype == np.int16
    assert one_series(tmp_path / "one").voxels().dtype == np.int16
    scaled = one_series(tmp_path / "scaled").voxels()
    assert scaled.dtype == np.float32
    assert (scaled == make_voxels() * 2.0 - 5.0).all()


def test_slope_may_differ_from_slice_to_slice(tmp_path: Path) -> None:
    write_small(tmp_path, RescaleSlope=lambda k: k + 1, RescaleIntercept=0)
    assert (one_series(tmp_path).voxels() == make_voxels() * np.arange(1, 6)).all()


def test_slope_of_an_enhanced_file(tmp_path: Path) -> None:
    for shared in (True, False):
        path = tmp_path / str(shared) / "e.dcm"
        write_enhanced(path, make_voxels(), make_affine(), slope=0.5, intercept=3.0, shared=shared)
        assert (one_series(path.parent).voxels() == make_voxels() * 0.5 + 3.0).all()


def test_modality_lut_is_applied(tmp_path: Path) -> None:
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [600, 0, 16], "US"
    lut.LUTData = (np.arange(600, dtype=np.uint16) * 3).tobytes()
    lut["LUTData"].VR = "OW"
    write_series(tmp_path, make_voxels(dtype=np.uint16), make_affine(), ModalityLUTSequence=[lut])
    assert (one_series(tmp_path).voxels() == make_voxels() * 3).all()


@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored_do_not_count(tmp_path: Path, signed: bool) -> None:
    """Twelve bits stored, an overlay in the thirteenth."""
    meant = make_voxels() - (300 if signed else 0)
    voxels = ((meant & 0x0FFF) | 0x1000).astype(np.int16 if signed else np.uint16)
    write_series(tmp_path, voxels, make_affine(), BitsStored=12, HighBit=11)
    assert (one_series(tmp_path).voxels() == meant).all()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, JPEG2000Lossless])
def test_transfer_syntaxes(tmp_path: Path, syntax: str) -> None:
    voxels = make_voxels((40, 36, 4), np.uint16)
    write_series(tmp_path / "slices", voxels, make_affine(), transfer_syntax=syntax)
    write_enhanced(tmp_path / "enhanced" / "e.dcm", voxels, make_affine(), transfer_syntax=syntax)
    assert (one_series(tmp_path / "slices").voxels() == voxels).all()
    assert (one_series(tmp_path / "enhanced").voxels() == voxels).all()


def test_run_length_encoding(tmp_path: Path) -> None:
    for path in write_small(tmp_path).paths:
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        save(path, data, RLELossless)
    assert (one_series(tmp_path).voxels() == make_voxels()).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"text"),
    ],
)
def test_slice_damaged_after_the_scan(tmp_path: Path, change: Callable[[Path], object]) -> None:
    made = write_small(tmp_path)
    series = one_series(tmp_path)
    change(made.paths[2])
    error = error_of(series.voxels)
    assert error.check == "unreadable file" and error.found.startswith("000003.dcm: ")


def test_sizes_that_the_file_cannot_hold(tmp_path: Path) -> None:
    write_small(tmp_path, Rows=60000, Columns=60000)
    with pytest.raises(CaseError, match="for 7200000000 bytes of pixels"):
        one_series(tmp_path).voxels()


@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (2, "x")])
def test_rescale_that_means_nothing(tmp_path: Path, slope: float, intercept: float | str) -> None:
    made = write_small(tmp_path, RescaleSlope=slope, RescaleIntercept=4)
    if intercept == "x":
        content = made.paths[2].read_bytes()
        where = content.index(b"\x28\x00\x52\x10DS") + 8
        made.paths[2].write_bytes(content[:where] + b"x" + content[where + 1 :])
    with pytest.raises(CaseError) as raised:
        one_series(tmp_path).voxels()
    assert raised.value.check == "rescale"


@pytest.mark.parametrize("kind", ["slices", "enhanced", "compressed"])
def test_random_damage_ends_in_a_volume_error_or_a_volume(tmp_path: Path, kind: str) -> None:
    """Forty damaged files of each kind: up to three bytes each, in the header or in the pixels."""
    voxels = make_voxels((16, 12, 5), np.uint16)
    if kind == "enhanced":
        write_enhanced(tmp_path / "e.dcm", voxels, make_affine())
    else:
        syntax = JPEG2000Lossless if kind == "compressed" else ExplicitVRLittleEndian
        write_series(tmp_path, voxels, make_affine(), transfer_syntax=syntax)
    whole = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    grid = one_series(tmp_path).grid()
    random = np.random.default_rng(20)
    outcomes = {"refused": 0, "read": 0}
    for _ in range(40):
        path = list(whole)[random.integers(len(whole))]
        content = bytearray(whole[path])
        for where in random.integers(len(content), size=random.integers(1, 4)):
            content[where] = random.integers(256)
        path.write_bytes(content)
        found = scan(tmp_path)
        for series in found.series:
            problems = series.problems()
            try:
                shape, affine = series.grid()
                read = series.voxels()
            except CaseError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
                continue
            assert not problems
            assert read.shape == shape
            outcomes["read"] += 1
            if kind != "enhanced" and shape == grid[0]:  # one slice alone cannot move the others
                np.testing.assert_allclose(affine, grid[1], atol=0.02)
        path.write_bytes(whole[path])
    assert min(outcomes.values()) > 0
