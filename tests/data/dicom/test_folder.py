"""Scans of folders: what is found, told apart and passed over, from headers alone."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pydicom
import pytest
from made.dicom import SMALL, make_uid, make_voxels, save, write_small
from made.outcomes import one_series
from pydicom.dataset import Dataset

from scripts.data.dicom.folder import scan


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble(tmp_path: Path, implicit: bool) -> None:
    made = write_small(tmp_path)
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
    made = write_small(
        tmp_path, SeriesDescription=None, StudyDescription=None, StudyDate=None, FrameOfReferenceUID=None
    )
    series = one_series(tmp_path)
    header = series.header
    assert (header.description, header.study_date, header.frame_of_reference) == ("", "", "")
    assert (header.series_uid, header.study_uid, header.modality) == (made.series_uid, made.study_uid, "MR")
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
    write_small(tmp_path, (4, 4, 3), **attributes)
    assert one_series(tmp_path).header.patient == patient


def test_equal_bytes_in_two_character_sets_are_two_names(tmp_path: Path) -> None:
    for name, charset, patient in (("a", "ISO_IR 100", "Å"), ("b", "ISO_IR 144", "Х")):  # both are the byte C5
        options = {"SpecificCharacterSet": charset, "PatientName": patient, "PatientID": None}
        write_small(tmp_path / name, (4, 4, 3), series_uid=make_uid(name), **options)
    assert [series.header.patient for series in scan(tmp_path).series] == ["Å", "Х"]


def test_scan_sorts_a_folder(tmp_path: Path) -> None:
    first = write_small(tmp_path / "a" / "mixed", description="t1_mpr", names="t1_{:03d}")
    second = write_small(tmp_path / "a" / "mixed", description="t2_ci3d", names="t2_{:03d}.dcm")
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
    assert [series.header.series_uid for series in found.series] == [first.series_uid, second.series_uid]
    (structures,) = found.structure_sets
    assert structures == (tmp_path / "rs.dcm", first.study_uid, "VS-SEG-001")
    assert [(path.name, bool(message)) for path, message in found.unreadable] == [
        ("damaged.dcm", True),
        ("empty.dcm", True),
        ("link.dcm", True),
    ]
    assert found.files == 2 * SMALL[2] + 7


def test_scan_is_the_same_with_workers(tmp_path: Path) -> None:
    for index in range(4):
        write_small(tmp_path, (2, 2, 80), description=f"series {index}", names=f"{{:03d}}_{index}.dcm")
    one, two = scan(tmp_path), scan(tmp_path, workers=2)
    assert one == two
    assert [len(series.files()) for series in two.series] == [80] * 4
    assert pickle.loads(pickle.dumps(two.series)) == one.series


def test_scan_reads_no_contours_and_no_pixels(tmp_path: Path) -> None:
    """Cut off behind the image description, a file says as much as whole."""
    made = write_small(tmp_path)
    whole = one_series(tmp_path)
    for path in made.paths:
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")])
    assert one_series(tmp_path) == whole


def test_scan_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        scan(tmp_path / "nowhere")
