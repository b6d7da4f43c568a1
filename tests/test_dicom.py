"""DICOM series against hand-computed points and SimpleITK, every check by a made series, and damaged files."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from made_dicom import (
    LPS_FROM_RAS,
    MadeSeries,
    make_affine,
    make_uid,
    save,
    write_enhanced,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers import numpy_handler
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from scripts.data.dicom import Series, scan
from scripts.data.volume import VolumeError

SHAPE = (12, 10, 5)
PLANES = ("axial", "oblique", "sagittal", "coronal")
CORNERS = [[x, y, z] for x in (0, SHAPE[0] - 1) for y in (0, SHAPE[1] - 1) for z in (0, SHAPE[2] - 1)]


def make_voxels(shape: tuple[int, ...] = SHAPE, dtype: type = np.int16) -> np.ndarray:
    """Every voxel has a value of its own."""
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def one_series(folder: Path) -> Series:
    found = scan(folder)
    assert not found.unreadable
    (series,) = found.series
    return series


def make(folder: Path, shape: tuple[int, ...] = SHAPE, plane: str = "axial", **options: object) -> MadeSeries:
    return write_series(folder, make_voxels(shape), make_affine(plane=plane), **options)


def checks(folder: Path) -> dict[str, str]:
    """Check to what was found, of the one series in a folder; grid() must raise the first of them."""
    series = one_series(folder)
    problems = series.problems()
    if problems:
        for method in (series.grid, series.voxels):
            with pytest.raises(VolumeError) as raised:
                method()
            assert str(raised.value) == str(problems[0])
    assert len({problem.check for problem in problems}) == len(problems)
    return {problem.check: problem.found for problem in problems}


def by_point(voxels: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values at RAS points (N, 3) that are voxel centers."""
    indices = (np.linalg.inv(affine) @ np.c_[points, np.ones(len(points))].T)[:3].T
    assert np.abs(indices - np.rint(indices)).max() < 1e-4
    return voxels[tuple(np.rint(indices).astype(int).T)]


def test_affine_of_an_axial_series_by_hand(tmp_path: Path) -> None:
    make(
        tmp_path,
        ImagePositionPatient=lambda k: [-10.0, 20.0, 30.0 + 2 * k],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        PixelSpacing=[0.7, 0.4],  # rows are 0.7 mm apart, columns 0.4 mm
    )
    shape, affine = one_series(tmp_path).grid()
    assert shape == SHAPE
    expected = [[-0.4, 0, 0, 10], [0, -0.7, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-9)


def test_affine_of_a_sagittal_series_by_hand(tmp_path: Path) -> None:
    """Columns run to posterior, rows to inferior; the normal then points to the patient's right."""
    make(
        tmp_path,
        ImagePositionPatient=lambda k: [5.0 + 3 * k, -8.0, 9.0],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        PixelSpacing=[0.5, 0.25],
    )
    _, affine = one_series(tmp_path).grid()
    expected = [[0, 0, 3, -17], [-0.25, 0, 0, 8], [0, -0.5, 0, 9], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine, expected, atol=1e-9)


@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize("plane", PLANES)
def test_bright_voxel_lies_at_its_physical_point(tmp_path: Path, plane: str, order: str) -> None:
    affine = make_affine((0.4, 0.7, 1.5), origin=(11.0, -22.0, 33.0), plane=plane)
    voxels = np.zeros(SHAPE, dtype=np.int16)
    voxels[7, 2, 3] = 1000
    made = write_series(tmp_path, voxels, affine, order=order)
    slice_3 = pydicom.dcmread(made.paths[3])
    row_direction, column_direction = np.reshape(slice_3.ImageOrientationPatient, (2, 3)).astype(float)
    # PS3.3 C.7.6.2.1.1 for pixel (column 7, row 2) of the slice.
    lps = np.array(slice_3.ImagePositionPatient) + 7 * 0.4 * row_direction + 2 * 0.7 * column_direction
    series = one_series(tmp_path)
    found = np.argwhere(series.voxels() == 1000)
    assert found.tolist() == [[7, 2, 3]]
    ras = series.grid()[1] @ [*found[0], 1]
    np.testing.assert_allclose(ras[:3], lps * [-1, -1, 1], atol=1e-6)


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
    assert shape == image.GetSize() == SHAPE
    expected = {tuple(np.round(image.TransformIndexToPhysicalPoint(corner), 5)) for corner in CORNERS}
    found = {tuple(np.round((LPS_FROM_RAS @ affine @ [*corner, 1])[:3], 5)) for corner in CORNERS}
    assert found == expected
    indices = np.argwhere(np.ones(SHAPE))
    points = np.array([image.TransformIndexToPhysicalPoint(index.tolist()) for index in indices])
    values = sitk.GetArrayFromImage(image).T[tuple(indices.T)]
    assert (by_point(series.voxels(), affine, points * [-1, -1, 1]) == values).all()


def test_reversed_instance_numbers_and_frames_change_nothing(tmp_path: Path) -> None:
    make(tmp_path / "a", plane="oblique")
    make(tmp_path / "b", plane="oblique", order="reversed")
    for name, order in (("c", "forward"), ("d", "reversed")):
        write_enhanced(tmp_path / name / "e.dcm", make_voxels(), make_affine(plane="oblique"), order=order)
    first = one_series(tmp_path / "a")
    for name in "bcd":
        other = one_series(tmp_path / name)
        np.testing.assert_allclose(other.grid()[1], first.grid()[1], atol=1e-9)
        assert (other.voxels() == first.voxels()).all()
        assert (other.voxels() == make_voxels()).all()


def test_voxels_keep_integers_unless_rescaled(tmp_path: Path) -> None:
    make(tmp_path / "plain")
    make(tmp_path / "one", RescaleSlope=1, RescaleIntercept=0)
    make(tmp_path / "scaled", slope=2.0, intercept=-5.0)
    assert one_series(tmp_path / "plain").voxels().dtype == np.int16
    assert one_series(tmp_path / "one").voxels().dtype == np.int16
    scaled = one_series(tmp_path / "scaled").voxels()
    assert scaled.dtype == np.float32
    assert (scaled == make_voxels() * 2.0 - 5.0).all()


def test_slope_may_differ_from_slice_to_slice(tmp_path: Path) -> None:
    make(tmp_path, RescaleSlope=lambda k: k + 1, RescaleIntercept=0)
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
    for path in make(tmp_path).paths:
        data = pydicom.dcmread(path)
        data.compress(RLELossless)
        save(path, data, RLELossless)
    assert (one_series(tmp_path).voxels() == make_voxels()).all()


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble(tmp_path: Path, implicit: bool) -> None:
    made = make(tmp_path)
    for path in made.paths:
        data = pydicom.dcmread(path)
        bare = Dataset(data)
        bare.is_little_endian, bare.is_implicit_VR = True, implicit
        pydicom.dcmwrite(path, bare)
    assert (one_series(tmp_path).voxels() == make_voxels()).all()
    for path in made.paths:
        path.rename(path.with_suffix(""))
    assert scan(tmp_path).series == []


def test_identity_of_an_anonymized_series(tmp_path: Path) -> None:
    made = make(tmp_path, SeriesDescription=None, StudyDescription=None, StudyDate=None, FrameOfReferenceUID=None)
    series = one_series(tmp_path)
    assert (series.description, series.study_date, series.frame_of_reference) == ("", "", "")
    assert (series.uid, series.study_uid, series.modality) == (made.series_uid, made.study_uid, "MR")
    assert series.files() == sorted(made.paths)
    assert series.problems() == []


@pytest.mark.parametrize(
    ("attributes", "patient"),
    [
        ({}, "VS-SEG-001"),
        ({"PatientID": None, "PatientName": "Müller^Åsa"}, "Müller^Åsa"),
        (
            {"PatientID": None, "SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada=山田^太郎"},
            "Yamada=山田^太郎",
        ),
        ({"PatientID": "", "PatientName": None}, "unknown"),
    ],
)
def test_patient(tmp_path: Path, attributes: dict, patient: str) -> None:
    make(tmp_path, (4, 4, 3), **attributes)
    assert one_series(tmp_path).patient == patient


def test_scan_sorts_a_folder(tmp_path: Path) -> None:
    first = make(tmp_path / "a" / "mixed", description="t1_mpr", names="t1_{:03d}")
    second = make(tmp_path / "a" / "mixed", description="t2_ci3d", names="t2_{:03d}.dcm")
    drawn = Dataset()
    drawn.SOPClassUID, drawn.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", make_uid("structures")
    drawn.StudyInstanceUID, drawn.PatientID, drawn.Modality = first.study_uid, "VS-SEG-001", "RTSTRUCT"
    save(tmp_path / "rs.dcm", drawn)
    for name, uid in (("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2"), ("RTPLAN", "1.2.840.10008.5.1.4.1.1.481.5")):
        other = Dataset()
        other.SOPClassUID, other.SOPInstanceUID, other.Modality = uid, make_uid(name), name
        other.Rows = 4
        save(tmp_path / f"{name}.dcm", other)
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / "damaged.dcm").write_bytes(b"text")
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "nowhere")
    shutil.copytree(tmp_path / "a", tmp_path / ".hidden")
    shutil.copy(first.paths[0], tmp_path / "DICOMDIR")
    found = scan(tmp_path)
    assert [series.uid for series in found.series] == [first.series_uid, second.series_uid]
    (structures,) = found.structure_sets
    assert structures == (tmp_path / "rs.dcm", first.study_uid, str(drawn.SOPInstanceUID), "VS-SEG-001")
    assert found.others == {"RTDOSE": 1, "RTPLAN": 1}
    assert [(path.name, bool(message)) for path, message in found.unreadable] == [
        ("damaged.dcm", True),
        ("empty.dcm", True),
        ("link.dcm", True),
    ]
    assert found.files == 2 * SHAPE[2] + 7


def test_scan_is_the_same_with_workers(tmp_path: Path) -> None:
    for index in range(4):
        make(tmp_path, (2, 2, 80), description=f"series {index}", names=f"{{:03d}}_{index}.dcm")
    one, two = scan(tmp_path), scan(tmp_path, workers=2)
    assert one == two
    assert [len(series.files()) for series in two.series] == [80] * 4
    assert pickle.loads(pickle.dumps(two.series)) == one.series


def test_scan_reads_no_contours_and_no_pixels(tmp_path: Path) -> None:
    """Cut off behind the image description, a file says as much as whole."""
    made = make(tmp_path)
    whole = one_series(tmp_path)
    for path in made.paths:
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")])
    assert one_series(tmp_path) == whole


def test_scan_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scan(tmp_path / "nowhere")


def test_too_few_slices(tmp_path: Path) -> None:
    make(tmp_path, (4, 4, 2))
    assert checks(tmp_path)["number of slices"].startswith("2, in 000001.dcm")


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_missing_slice(tmp_path: Path, order: str) -> None:
    made = make(tmp_path, (4, 4, 8), order=order)
    made.paths[3].unlink()
    found = checks(tmp_path)
    assert list(found) == ["gap"]
    assert found["gap"].startswith(
        f"3 mm between {made.paths[2].name} at (0, 0, 3) and {made.paths[4].name} at (0, 0, 6)"
    )


def test_distance_may_differ_by_a_hundredth(tmp_path: Path) -> None:
    make(tmp_path / "rounded", ImagePositionPatient=lambda k: [0, 0, 1.5 * k + (0.014 if k == 2 else 0)])
    make(tmp_path / "uneven", ImagePositionPatient=lambda k: [0, 0, 1.5 * k + (0.016 if k == 2 else 0)])
    assert checks(tmp_path / "rounded") == {}
    assert list(checks(tmp_path / "uneven")) == ["gap"]


def test_duplicate_position(tmp_path: Path) -> None:
    made = make(tmp_path, (4, 4, 6))
    again = pydicom.dcmread(made.paths[2])
    again.SOPInstanceUID = make_uid("again")
    save(tmp_path / "again.dcm", again)
    found = checks(tmp_path)
    assert list(found) == ["duplicate position"]
    assert found["duplicate position"] == "000003.dcm and again.dcm both at (0, 0, 3) mm (LPS), 1 in all"


def test_series_that_was_copied(tmp_path: Path) -> None:
    made = make(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = checks(tmp_path)
    assert list(found) == ["duplicate position"]
    assert f"the same instance in {made.paths[0]} and {tmp_path / 'b' / '000001.dcm'}" in found["duplicate position"]


def test_instance_numbers_out_of_order(tmp_path: Path) -> None:
    make(tmp_path, (4, 4, 6), InstanceNumber=lambda k: [1, 3, 5, 2, 4, 6][k])
    found = checks(tmp_path)
    assert list(found) == ["slice order"]
    expected = "the position turns back from instance number 2 (000004.dcm) to 3 (000002.dcm), 2 times in all"
    assert found["slice order"] == expected


def test_missing_instance_numbers_are_no_problem(tmp_path: Path) -> None:
    make(tmp_path, InstanceNumber=lambda k: None if k == 2 else [9, 1, 0, 7, 8][k])
    assert checks(tmp_path) == {}


def test_gantry_tilt(tmp_path: Path) -> None:
    make(tmp_path / "tilted", ImagePositionPatient=lambda k: [0, 0.4 * k, 1.5 * k])
    make(tmp_path / "rounded", ImagePositionPatient=lambda k: [0, 0.009 * k, 1.5 * k])
    found = checks(tmp_path / "tilted")
    assert list(found) == ["gantry tilt"]
    assert found["gantry tilt"].startswith("0.4 mm sideways between 000001.dcm and 000002.dcm (15 degrees)")
    assert checks(tmp_path / "rounded") == {}


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        (
            "ImageOrientationPatient",
            [0, 1, 0, 0, 0, -1],
            "orientation (1, 0, 0, 0, 1, 0) in 000001.dcm, (0, 1, 0, 0, 0, -1)",
        ),
        ("PixelSpacing", [0.6, 0.5], "pixel spacing (0.5, 0.5) in 000001.dcm, (0.6, 0.5) in 000004.dcm"),
        ("Rows", 20, "columns and rows (12, 10) in 000001.dcm, (12, 20) in 000004.dcm"),
        ("EchoTime", 12.0, "echo time 177 ms in 000001.dcm, 12 ms in 000004.dcm"),
        ("PhotometricInterpretation", "MONOCHROME3", "'MONOCHROME2' in 000001.dcm, 'MONOCHROME3' in 000004.dcm"),
        ("FrameOfReferenceUID", "1.2.3", "'1.2.3' in 000004.dcm"),
        ("PatientID", "other", "patient 'VS-SEG-001' in 000001.dcm, 'other' in 000004.dcm"),
    ],
)
def test_mixed_series(tmp_path: Path, attribute: str, value: object, message: str) -> None:
    make(tmp_path)
    path = tmp_path / "000004.dcm"
    data = pydicom.dcmread(path)
    setattr(data, attribute, value)
    save(path, data)
    found = checks(tmp_path)
    assert list(found) == ["mixed series"]
    assert message in found["mixed series"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "000001.dcm: no usable ImageOrientationPatient"),
        ([1, 0, 0, 0, 1], "no usable ImageOrientationPatient"),
        ([0, 0, 0, 0, 0, 0], "lengths 0 and 0"),
        ([1, 0, 0, 0, 1.01, 0], "lengths 1 and 1.01, scalar product 0"),
        ([1, 0, 0, 0.6, 0.8, 0], "lengths 1 and 1, scalar product 0.6"),
    ],
)
def test_orientation(tmp_path: Path, value: list | None, message: str) -> None:
    make(tmp_path, ImageOrientationPatient=value)
    found = checks(tmp_path)
    assert list(found) == ["orientation"]
    assert message in found["orientation"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no usable PixelSpacing"),
        ([0, 0.5], "pixels of 0 x 0.5 mm"),
        ([-0.5, 0.5], "pixels of -0.5 x 0.5 mm"),
        ([0.5, 5.1], "pixels of 0.5 x 5.1 mm"),
        ([0.04, 0.5], "pixels of 0.04 x 0.5 mm"),
    ],
)
def test_spacing_of_pixels(tmp_path: Path, value: list | None, message: str) -> None:
    make(tmp_path, PixelSpacing=value)
    found = checks(tmp_path)
    assert list(found) == ["spacing"]
    assert message in found["spacing"]


@pytest.mark.parametrize("step", [0.09, 20.5])
def test_spacing_of_slices(tmp_path: Path, step: float) -> None:
    make(tmp_path, ImagePositionPatient=lambda k: [0, 0, step * k])
    assert checks(tmp_path) == {"spacing": f"slices {step:g} mm apart"}


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("ImagePositionPatient", "000003.dcm: no usable ImagePositionPatient"),
        ("Rows", "000003.dcm: no usable Rows or Columns"),
    ],
)
def test_missing_attribute(tmp_path: Path, attribute: str, message: str) -> None:
    made = make(tmp_path)
    data = pydicom.dcmread(made.paths[2])
    delattr(data, attribute)
    save(made.paths[2], data)
    assert checks(tmp_path) == {"missing attribute": message}


def test_color(tmp_path: Path) -> None:
    write_series(tmp_path, make_voxels((6, 5, 2, 3), np.uint8).repeat(2, axis=2), make_affine())
    assert checks(tmp_path) == {"color image": "000001.dcm: 3 samples per pixel, RGB"}


def test_monochrome1(tmp_path: Path) -> None:
    make(tmp_path, PhotometricInterpretation="MONOCHROME1")
    assert "MONOCHROME1" in checks(tmp_path)["photometric interpretation"]


@pytest.mark.parametrize(
    ("attribute", "values", "told"),
    [
        ("TemporalPositionIdentifier", [1, 2], "time point"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value"),
        ("EchoTime", [10.0, 90.0], "echo time"),
        ("ImageComments", ["a", "b"], "no attribute known here"),
    ],
)
def test_four_dimensional(tmp_path: Path, attribute: str, values: list, told: str) -> None:
    for index, value in enumerate(values):
        options = {attribute: value, "SOPInstanceUID": lambda k, index=index: make_uid(f"{index} {k}")}
        options["InstanceNumber"] = lambda k, index=index: 5 * index + k + 1
        make(tmp_path, series_uid="1.2.3", names=f"{index}_{{:03d}}.dcm", **options)
    (tmp_path / "1_003.dcm").unlink()
    found = checks(tmp_path)
    assert found == {"4-D": f"9 slices at 5 positions, 2 at each, differing in {told}"}


def test_four_dimensional_enhanced_file(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "e.dcm", make_voxels((4, 4, 3, 6)), make_affine())
    assert checks(tmp_path) == {"4-D": "18 slices at 3 positions, 6 at each, differing in time point"}


def test_compressed_without_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydicom.config, "pixel_data_handlers", [numpy_handler])
    voxels = make_voxels((40, 36, 4), np.uint16)
    write_series(tmp_path, voxels, make_affine(), transfer_syntax=JPEG2000Lossless)
    (problem,) = one_series(tmp_path).problems()
    assert problem.check == "compressed"
    assert "000001.dcm: JPEG 2000 Image Compression (Lossless Only), for which no decoder" in problem.found
    assert "gdcmconv --raw" in problem.expected


def test_multi_frame_file_without_functional_groups(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "e.dcm", make_voxels(), make_affine(), PerFrameFunctionalGroupsSequence=None)
    assert checks(tmp_path) == {"missing attribute": "e.dcm: 5 frames, 0 functional groups"}


@pytest.mark.parametrize("shared", ["PlaneOrientationSequence", "PixelMeasuresSequence"])
def test_enhanced_file_without_a_functional_group(tmp_path: Path, shared: str) -> None:
    made = write_enhanced(tmp_path / "e.dcm", make_voxels(), make_affine())
    data = pydicom.dcmread(made.paths[0])
    delattr(data.SharedFunctionalGroupsSequence[0], shared)
    save(made.paths[0], data)
    check = {"PlaneOrientationSequence": "orientation", "PixelMeasuresSequence": "spacing"}[shared]
    assert "e.dcm frame 1: no usable" in checks(tmp_path)[check]


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "unreadable file", "000003.dcm"),
        (lambda path: path.unlink(), "unreadable file", "000003.dcm: "),
        (lambda path: path.write_bytes(b"text"), "unreadable file", "000003.dcm: "),
    ],
)
def test_slice_damaged_after_the_scan(
    tmp_path: Path, change: Callable[[Path], object], check: str, message: str
) -> None:
    made = make(tmp_path)
    series = one_series(tmp_path)
    change(made.paths[2])
    with pytest.raises(VolumeError, match=message) as raised:
        series.voxels()
    assert raised.value.check == check
    assert "\n" not in str(raised.value)


def test_sizes_that_the_file_cannot_hold(tmp_path: Path) -> None:
    make(tmp_path, Rows=60000, Columns=60000)
    with pytest.raises(VolumeError, match="for 7200000000 bytes of pixels"):
        one_series(tmp_path).voxels()


@pytest.mark.parametrize(("slope", "intercept"), [(0, 0), (2, "x")])
def test_rescale_that_means_nothing(tmp_path: Path, slope: float, intercept: float | str) -> None:
    made = make(tmp_path, RescaleSlope=slope, RescaleIntercept=4)
    if intercept == "x":
        content = made.paths[2].read_bytes()
        where = content.index(b"\x28\x00\x52\x10DS") + 8
        made.paths[2].write_bytes(content[:where] + b"x" + content[where + 1 :])
    with pytest.raises(VolumeError) as raised:
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
            except VolumeError as error:
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
