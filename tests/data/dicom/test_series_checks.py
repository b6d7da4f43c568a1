"""Every check of a series' headers, triggered by a made series; what is harmless passes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pydicom
import pytest
from made.dicom import make_affine, make_uid, make_voxels, save, write_enhanced, write_small
from made.outcomes import one_series

from scripts.data.volume import CaseError

FIXTURES = Path(__file__).parents[2] / "fixtures/dicom"


def checks(folder: Path) -> dict[str, str]:
    """Check to what was found, of the one series in a folder; grid() must raise the first of them."""
    series = one_series(folder)
    problems = series.problems()
    if problems:
        for method in (series.grid, series.voxels):
            with pytest.raises(CaseError) as raised:
                method()
            assert str(raised.value) == str(problems[0])
    assert len({problem.check for problem in problems}) == len(problems)
    return {problem.check: problem.found for problem in problems}


@pytest.mark.parametrize("order", ["forward", "reversed"])
def test_missing_slice(tmp_path: Path, order: str) -> None:
    made = write_small(tmp_path, (4, 4, 8), order=order)
    made.paths[3].unlink()
    found = checks(tmp_path)
    assert list(found) == ["gap"]
    assert found["gap"].startswith(
        f"3 mm between {made.paths[2].name} at (0, 0, 3) and {made.paths[4].name} at (0, 0, 6)"
    )


def test_distance_may_differ_by_a_hundredth(tmp_path: Path) -> None:
    write_small(tmp_path / "rounded", ImagePositionPatient=lambda k: [0, 0, 1.5 * k + (0.014 if k == 2 else 0)])
    write_small(tmp_path / "uneven", ImagePositionPatient=lambda k: [0, 0, 1.5 * k + (0.016 if k == 2 else 0)])
    assert checks(tmp_path / "rounded") == {}
    assert list(checks(tmp_path / "uneven")) == ["gap"]


def add(path: Path, source: Path, *, pixels: bool = False, **attributes: object) -> None:
    """A copy of a file with other attributes, and with other pixels if wanted."""
    data = pydicom.dcmread(source)
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    if pixels:
        data.PixelData = bytes(len(data.PixelData))
    path.parent.mkdir(exist_ok=True)
    save(path, data)


@pytest.mark.parametrize(
    ("change", "other"),
    [({"pixels": True}, []), ({"InstanceNumber": 9}, ["slice order"]), ({"EchoTime": 17}, ["mixed series"])],
)
def test_two_images_at_one_position(tmp_path: Path, change: dict, other: list[str]) -> None:
    made = write_small(tmp_path, (4, 4, 6))
    add(tmp_path / "again.dcm", made.paths[2], SOPInstanceUID=make_uid("again"), **change)
    found = checks(tmp_path)
    assert list(found) == [*other, "duplicate position"]
    assert found["duplicate position"] == "000003.dcm and again.dcm both at (0, 0, 3) mm (LPS), 1 in all"


@pytest.mark.parametrize("change", [{"pixels": True}, {"InstanceNumber": 9}])
def test_one_instance_with_two_contents(tmp_path: Path, change: dict) -> None:
    made = write_small(tmp_path)
    add(tmp_path / "again.dcm", made.paths[2], **change)
    found = checks(tmp_path)
    assert list(found) == ["duplicate position"]
    expected = f"the same instance in {made.paths[2]} and {tmp_path / 'again.dcm'}, with different contents"
    assert found["duplicate position"] == expected


def test_identical_copies_are_left_out_and_told(tmp_path: Path) -> None:
    """A series that was copied into another folder, and an image that was sent again under another UID."""
    made = write_small(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    add(tmp_path / "c/again.dcm", made.paths[2], SOPInstanceUID=make_uid("again"))
    assert checks(tmp_path) == {}
    series = one_series(tmp_path)
    (told,) = series.warnings()
    assert told == "6 of 11 images are identical copies and were left out, such as b/000001.dcm"
    assert (series.voxels() == make_voxels()).all()
    assert len(series.files()) == 11 and series.sop_uids() == {*made.sop_uids, make_uid("again")}


def test_a_copy_in_another_compression_is_left_out(tmp_path: Path) -> None:
    for name in ("plain", "jpeg_ls", "rle"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    assert checks(tmp_path) == {}
    series = one_series(tmp_path)
    assert [told.split(" images")[0] for told in series.warnings()] == ["6 of 9"]
    assert (series.voxels() == one_series(FIXTURES / "plain").voxels()).all()


def test_a_copy_with_loss_is_another_image(tmp_path: Path) -> None:
    for name in ("plain", "jpeg_ls_near"):
        shutil.copytree(FIXTURES / name, tmp_path / name)
    found = checks(tmp_path)
    assert found == {"4-D": "6 slices at 3 positions, 2 at each, differing in compression with loss"}


@pytest.mark.parametrize("change", ["", "positions", "pixels"])
def test_an_enhanced_file_that_is_there_twice(tmp_path: Path, change: str) -> None:
    made = write_enhanced(tmp_path / "e.dcm", make_voxels(), make_affine())
    data = pydicom.dcmread(made.paths[0])
    if change == "positions":
        for frame in data.PerFrameFunctionalGroupsSequence:
            frame.PlanePositionSequence[0].ImagePositionPatient[2] += 1
    data.ContentTime = "101112"
    save(tmp_path / "f.dcm", data)
    if change == "pixels":
        (tmp_path / "f.dcm").write_bytes((tmp_path / "f.dcm").read_bytes()[:-2] + b"\1\1")
    assert list(checks(tmp_path)) == (["duplicate position"] if change else [])
    if not change:
        assert one_series(tmp_path).warnings() == [
            f"1 of 2 images are identical copies and were left out, such as {tmp_path.name}/f.dcm"
        ]


def test_instance_numbers_out_of_order(tmp_path: Path) -> None:
    write_small(tmp_path, (4, 4, 6), InstanceNumber=lambda k: [1, 3, 5, 2, 4, 6][k])
    found = checks(tmp_path)
    assert list(found) == ["slice order"]
    expected = "the position turns back from instance number 2 (000004.dcm) to 3 (000002.dcm), 2 times in all"
    assert found["slice order"] == expected


def test_missing_instance_numbers_are_no_problem(tmp_path: Path) -> None:
    write_small(tmp_path, InstanceNumber=lambda k: None if k == 2 else [9, 1, 0, 7, 8][k])
    assert checks(tmp_path) == {}


def test_gantry_tilt(tmp_path: Path) -> None:
    write_small(tmp_path / "tilted", ImagePositionPatient=lambda k: [0, 0.4 * k, 1.5 * k])
    write_small(tmp_path / "rounded", ImagePositionPatient=lambda k: [0, 0.009 * k, 1.5 * k])
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
    write_small(tmp_path)
    path = tmp_path / "000004.dcm"
    data = pydicom.dcmread(path)
    setattr(data, attribute, value)
    save(path, data)
    found = checks(tmp_path)
    assert list(found) == ["mixed series"]
    assert message in found["mixed series"].replace(f"{tmp_path.name}/", "")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("ImageOrientationPatient", None, "000001.dcm: no usable ImageOrientationPatient"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 1], "no usable ImageOrientationPatient"),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], "lengths 0 and 0"),
        ("ImageOrientationPatient", [1, 0, 0, 0, 1.01, 0], "lengths 1 and 1.01, scalar product 0"),
        ("ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0], "lengths 1 and 1, scalar product 0.6"),
        ("PixelSpacing", None, "no usable PixelSpacing"),
        ("PixelSpacing", [0, 0.5], "pixels of 0 x 0.5 mm"),
        ("PixelSpacing", [-0.5, 0.5], "pixels of -0.5 x 0.5 mm"),
        ("PixelSpacing", [0.5, 5.1], "pixels of 0.5 x 5.1 mm"),
        ("PixelSpacing", [0.04, 0.5], "pixels of 0.04 x 0.5 mm"),
    ],
)
def test_plane_of_pixels(tmp_path: Path, attribute: str, value: list | None, message: str) -> None:
    write_small(tmp_path, **{attribute: value})
    found = checks(tmp_path)
    assert list(found) == ["orientation" if attribute.startswith("Image") else "spacing"]
    assert message in "".join(found.values())


@pytest.mark.parametrize("step", [0.09, 20.5])
def test_spacing_of_slices(tmp_path: Path, step: float) -> None:
    write_small(tmp_path, ImagePositionPatient=lambda k: [0, 0, step * k])
    assert checks(tmp_path) == {"spacing": f"slices {step:g} mm apart"}


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("ImagePositionPatient", "000003.dcm: no usable ImagePositionPatient"),
        ("Rows", "000003.dcm: no usable Rows or Columns"),
    ],
)
def test_missing_attribute(tmp_path: Path, attribute: str, message: str) -> None:
    made = write_small(tmp_path)
    data = pydicom.dcmread(made.paths[2])
    delattr(data, attribute)
    save(made.paths[2], data)
    assert checks(tmp_path) == {"missing attribute": message}


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
        write_small(tmp_path, series_uid="1.2.3", names=f"{index}_{{:03d}}.dcm", **options)
    (tmp_path / "1_003.dcm").unlink()
    found = checks(tmp_path)
    assert found == {"4-D": f"9 slices at 5 positions, 2 at each, differing in {told}"}


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
