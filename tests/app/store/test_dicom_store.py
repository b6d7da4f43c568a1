"""DICOM-SEG of made series, read back by highdicom, pydicom-seg and dcmqi, and through a real Orthanc where one is."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicomweb_client import DICOMwebClient
from made.dicom import MadeSeries, make_affine, make_voxels, write_enhanced, write_series
from made.orthanc import orthanc_missing, running_orthanc
from monailabel.datastore.utils.convert import dicom_seg_to_itk_image
from numpy.typing import NDArray
from running import free_port

from monailabel_app.errors import Busy, InputError, NotFound
from monailabel_app.store import dicom_store
from monailabel_app.store.dicom_seg import dicom_seg, finding_of
from monailabel_app.store.dicom_store import TISSNetDICOMStore, modality_of
from scripts.data.dataset import prepare_source
from scripts.data.sources.registry import Options

ENCODED = Path(__file__).parents[2] / "fixtures" / "dicom"
SHAPE = (20, 16, 9)
SPACING = (0.5, 0.7, 1.5)
ORIGIN = (10.3, -20.2, 33.3)
TUMOR = 5 * 6 * 3 + 1
PLANES = ("axial", "sagittal", "coronal", "oblique")
CYST = {"CodeValue": "12494005", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Cyst"}
DCMQI = shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def make_mask() -> NDArray[np.uint8]:
    """A block and one voxel in a corner, so that no flip or swap of axes maps it to itself."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:8, 6:12, 2:5] = 1
    mask[1, 14, 7] = 1
    return mask


def affine_of(plane: str = "axial") -> NDArray[np.float64]:
    return make_affine(SPACING, origin=ORIGIN, plane=plane)


def save_mask(path: Path, mask: NDArray, affine: NDArray[np.float64]) -> str:
    nib.save(nib.Nifti1Image(mask, affine), path)
    return str(path)


def make_case(
    folder: Path, plane: str = "axial", mask: NDArray | None = None, **options: Any
) -> tuple[MadeSeries, str, str]:
    """A series, its folder and the file of a mask on its grid."""
    series = write_series(folder / "series", make_voxels(SHAPE), affine_of(plane), **options)
    mask_file = save_mask(folder / "mask.nii.gz", make_mask() if mask is None else mask, affine_of(plane))
    return series, str(folder / "series"), mask_file


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., pydicom.Dataset]]:
    """Calls dicom_seg, reads what it wrote, and removes it."""
    written = []

    def call(*args: Any, **kwargs: Any) -> highdicom.seg.Segmentation:
        written.append(dicom_seg(*args, **kwargs))
        return highdicom.seg.segread(written[-1])

    yield call
    for path in written:
        Path(path).unlink()


def voxels_of(segmentation: highdicom.seg.Segmentation, sop_uids: list[str]) -> NDArray:
    """(X, Y, Z) of the series, by the images that the frames say they are of."""
    frames = segmentation.get_pixels_by_source_instance(sop_uids, segment_numbers=[1])
    return frames[..., 0].transpose(2, 1, 0)


def lies_as(path: str | Path, mask_file: str) -> bool:
    """Whether a volume has the mask's voxels where the mask has them in the patient, and no others."""
    mask, volume = sitk.ReadImage(mask_file), sitk.ReadImage(str(path))
    moved = sitk.Resample(volume, mask, sitk.Transform(), sitk.sitkNearestNeighbor)
    same = np.array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(mask))
    return same and sitk.GetArrayFromImage(volume).sum() == sitk.GetArrayFromImage(mask).sum()


@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize("plane", PLANES)
def test_the_mask_comes_back_on_the_images_it_was_drawn_on(
    tmp_path: Path, write: Callable[..., Any], plane: str, order: str
) -> None:
    series, folder, mask_file = make_case(tmp_path, plane, order=order)
    read = write(folder, mask_file, None, "tissnet_vs")
    assert np.array_equal(voxels_of(read, series.sop_uids), make_mask())
    assert read.pixel_array.sum() == TUMOR
    (referred,) = read.ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == series.series_uid
    assert {one.ReferencedSOPInstanceUID for one in referred.ReferencedInstanceSequence} == set(series.sop_uids)
    assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (series.study_uid, series.frame_uid)
    assert read.SeriesInstanceUID != series.series_uid


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_other_readers_see_the_same_mask_and_the_whole_grid(tmp_path: Path, plane: str, empty: bool) -> None:
    mask = make_mask() * (not empty)
    _, folder, mask_file = make_case(tmp_path, plane, mask)
    written = dicom_seg(folder, mask_file, None, "tissnet_vs")
    volumes = [dicom_seg_to_itk_image(written)]
    if DCMQI is not None:
        command = [DCMQI, "--inputDICOM", written, "--outputDirectory", str(tmp_path), "--outputType", "nrrd"]
        subprocess.run(command, check=True, capture_output=True)
        volumes.append(str(tmp_path / "1.nrrd"))
    for volume in volumes:
        assert sitk.ReadImage(volume).GetSize() == SHAPE, volume
        assert lies_as(volume, mask_file), volume
    Path(written).unlink()
    Path(volumes[0]).unlink()


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SLA", "AIR"])
@pytest.mark.parametrize("plane", PLANES)
def test_the_order_of_a_masks_axes_does_not_matter(
    tmp_path: Path, write: Callable[..., Any], plane: str, orientation: str
) -> None:
    series, folder, mask_file = make_case(tmp_path, plane)
    image = nib.load(mask_file)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(orientation))
    )
    nib.save(image.as_reoriented(turn), tmp_path / "turned.nii.gz")
    read = write(folder, str(tmp_path / "turned.nii.gz"), None, "tissnet_vs")
    assert np.array_equal(voxels_of(read, series.sop_uids), make_mask())


def test_rounded_headers_are_the_same_grid(tmp_path: Path, write: Callable[..., Any]) -> None:
    series, folder, _ = make_case(tmp_path, "oblique")
    rounded = affine_of("oblique")
    rounded[:3, 3] += 0.02  # mm
    read = write(folder, save_mask(tmp_path / "rounded.nii.gz", make_mask(), rounded), None, "tissnet_vs")
    assert np.array_equal(voxels_of(read, series.sop_uids), make_mask())


def test_nrrd_as_viewers_ask_for(tmp_path: Path, write: Callable[..., Any]) -> None:
    series, folder, mask_file = make_case(tmp_path, "oblique")
    sitk.WriteImage(sitk.ReadImage(mask_file), str(tmp_path / "mask.nrrd"))
    read = write(folder, str(tmp_path / "mask.nrrd"), None, "tissnet_vs")
    assert np.array_equal(voxels_of(read, series.sop_uids), make_mask())


def test_no_tumor_is_a_segmentation_with_a_frame_per_slice_and_nothing_in_them(
    tmp_path: Path, write: Callable[..., Any]
) -> None:
    series, folder, mask_file = make_case(tmp_path, mask=np.zeros(SHAPE, np.uint8))
    read = write(folder, mask_file, None, "tissnet_vs")
    assert read.NumberOfFrames == SHAPE[2]
    assert read.pixel_array.sum() == 0
    assert voxels_of(read, series.sop_uids).shape == SHAPE
    assert read.get_segment_description(1).SegmentLabel == "vestibular schwannoma"
    assert read.SeriesDescription == "tissnet_vs, no tumor found"


def code(item: pydicom.Dataset) -> tuple[str, str, str]:
    return str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning)


@pytest.mark.parametrize(
    ("model", "label_info", "label", "kind", "region"),
    [
        ("tissnet_vs", None, "vestibular schwannoma", "985004", "8598002"),
        ("tissnet_glioma", None, "glioma", "115240006", "12738006"),
        ("tissnet_glioma", [{"name": "whole tumor"}], "whole tumor", "115240006", "12738006"),
        ("mine", [{"name": "Vestibular Schwannoma"}], "Vestibular Schwannoma", "985004", "8598002"),
        ("mine", [], "tumor", "108369006", None),
    ],
)
def test_codes(
    tmp_path: Path,
    write: Callable[..., Any],
    model: str,
    label_info: list[dict[str, Any]] | None,
    label: str,
    kind: str,
    region: str | None,
) -> None:
    _, folder, mask_file = make_case(tmp_path)
    (segment,) = write(folder, mask_file, label_info, model).SegmentSequence
    assert segment.SegmentLabel == label
    (category,) = segment.SegmentedPropertyCategoryCodeSequence
    assert code(category) == ("49755003", "SCT", "Morphologically Abnormal Structure")
    assert code(segment.SegmentedPropertyTypeCodeSequence[0])[:2] == (kind, "SCT")
    regions = [item.CodeValue for item in segment.get("AnatomicRegionSequence", [])]
    assert regions == ([region] if region else [])


def test_says_which_model_made_it_and_that_it_is_a_demonstration(tmp_path: Path, write: Callable[..., Any]) -> None:
    _, folder, mask_file = make_case(tmp_path)
    read = write(folder, mask_file, None, "tissnet_vs", version="0.1.0", demonstration=True)
    (segment,) = read.SegmentSequence
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("AUTOMATIC", "tissnet_vs")
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("tissnet_vs", "0.1.0")
    assert read.SeriesDescription == "DEMO, not for patients: tissnet_vs 0.1.0"
    plain = write(folder, mask_file, None, "tissnet_vs", version="0.1.0")
    assert plain.SeriesDescription == "tissnet_vs 0.1.0"


def test_a_mask_drawn_by_hand_names_no_algorithm(tmp_path: Path, write: Callable[..., Any]) -> None:
    _, folder, mask_file = make_case(tmp_path)
    (segment,) = write(folder, mask_file).SegmentSequence
    assert segment.SegmentAlgorithmType == "MANUAL"
    assert "SegmentationAlgorithmIdentificationSequence" not in segment


def test_the_request_goes_over_name_color_and_codes(tmp_path: Path, write: Callable[..., Any]) -> None:
    _, folder, mask_file = make_case(tmp_path)
    white = write(folder, mask_file, [{"name": "left one", "color": [255, 255, 255, 0.5], "description": "d"}], "m")
    (segment,) = white.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentDescription) == ("left one", "d")
    lightness, a, b = segment.RecommendedDisplayCIELabValue
    assert lightness == 65535 and abs(a - 32896) < 20 and abs(b - 32896) < 20  # L* 100, a* 0, b* 0 as DICOM has them
    attribute = {
        "SegmentLabel": "cyst",
        "SegmentedPropertyTypeCodeSequence": dict(CYST),
        "recommendedDisplayRGBValue": [0, 0, 0],
    }
    (segment,) = write(folder, mask_file, [{"name": "x", "segmentAttribute": attribute}], "m").SegmentSequence
    assert segment.SegmentLabel == "cyst"
    assert code(segment.SegmentedPropertyTypeCodeSequence[0]) == tuple(CYST.values())
    assert segment.RecommendedDisplayCIELabValue[0] == 0
    del attribute["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="it needs CodeValue, CodingSchemeDesignator, CodeMeaning"):
        dicom_seg(folder, mask_file, [{"segmentAttribute": attribute}], "m")


def test_text_that_dicom_cannot_hold_becomes_plain(tmp_path: Path, write: Callable[..., Any]) -> None:
    _, folder, mask_file = make_case(tmp_path)
    info = {"name": "left\\\x00 one\n\ud800", "description": "a\\b\rc " + "d" * 1100, "color": [1e400, 0, 0]}
    read = write(folder, mask_file, [info], "my\\model", version="1\\2")
    (segment,) = read.SegmentSequence
    assert (segment.SegmentLabel, segment.TrackingID) == ("left one", "left one")
    assert segment.SegmentDescription == ("a b c " + "d" * 1100)[:1024]
    assert (segment.SegmentAlgorithmName, read.SeriesDescription) == ("my model", "my model 1 2")
    assert (read.ManufacturerModelName, read.SoftwareVersions) == ("my model", "1 2")
    (plain,) = write(folder, mask_file, [{"name": "x"}]).SegmentSequence
    assert segment.RecommendedDisplayCIELabValue == plain.RecommendedDisplayCIELabValue  # infinity is no color
    (segment,) = write(folder, mask_file, [{"name": "\\" * 3}], "tissnet_vs").SegmentSequence
    assert segment.SegmentLabel == "vestibular schwannoma"
    (segment,) = write(folder, mask_file, [{"name": "x" * 63 + " y"}]).SegmentSequence
    assert segment.SegmentLabel == "x" * 63


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CodeValue": "1" * 17}, "a CodeValue of 17 characters: DICOM takes 16 at most"),
        ({"CodingSchemeDesignator": "S" * 17}, "a CodingSchemeDesignator of 17 characters: DICOM takes 16 at most"),
        ({"CodeMeaning": "c" * 65}, "a CodeMeaning of 65 characters: DICOM takes 64 at most"),
        ({"CodeValue": "1\\2"}, "a CodeValue with a backslash"),
        ({"CodingSchemeDesignator": "S\\CT"}, "a CodingSchemeDesignator with a backslash"),
        ({"CodeMeaning": "a\nb"}, "a CodeMeaning with a backslash or a control character"),
        ({"CodeMeaning": "  "}, "lacks CodeMeaning: it needs CodeValue"),
    ],
)
@pytest.mark.parametrize("key", ["SegmentedPropertyTypeCodeSequence", "AnatomicRegionSequence"])
def test_refuses_a_code_that_dicom_cannot_hold(tmp_path: Path, key: str, change: dict[str, str], message: str) -> None:
    _, folder, mask_file = make_case(tmp_path)
    item = CYST | change
    with pytest.raises(InputError, match=f"The label's {key} (has )?{message}"):
        dicom_seg(folder, mask_file, [{"segmentAttribute": {key: [item]}}], "m")


def test_a_code_of_the_greatest_length(tmp_path: Path, write: Callable[..., Any]) -> None:
    _, folder, mask_file = make_case(tmp_path)
    item = {"CodeValue": "1" * 16, "CodingSchemeDesignator": "S" * 16, "CodeMeaning": "c" * 64}
    attribute = {"SegmentedPropertyTypeCodeSequence": item}
    (segment,) = write(folder, mask_file, [{"segmentAttribute": attribute}], "m").SegmentSequence
    assert code(segment.SegmentedPropertyTypeCodeSequence[0]) == tuple(item.values())


@pytest.mark.parametrize(
    ("name", "characters"),
    [
        ("Müller^Jürgen", "ISO_IR 100"),
        ("Яковлев^Илья", "ISO_IR 144"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"]),
    ],
)
def test_a_name_in_any_script(tmp_path: Path, write: Callable[..., Any], name: str, characters: str) -> None:
    _, folder, mask_file = make_case(tmp_path, PatientName=name, SpecificCharacterSet=characters)
    assert str(write(folder, mask_file).PatientName) == name


def test_a_scan_without_identity(tmp_path: Path, write: Callable[..., Any]) -> None:
    _, folder, mask_file = make_case(tmp_path, PatientName=None, PatientID=None, StudyDate=None, StudyID=None)
    assert str(write(folder, mask_file).PatientName) == ""


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy not found: apt-get install dicom3tools")
@pytest.mark.parametrize("empty", [False, True])
def test_follows_the_standard(tmp_path: Path, empty: bool) -> None:
    _, folder, mask_file = make_case(tmp_path, "oblique", make_mask() * (not empty), PatientName="A^B")
    written = dicom_seg(folder, mask_file, None, "tissnet_vs", version="0.1.0", demonstration=True)
    said = subprocess.run(["dciodvfy", written], capture_output=True, text=True, check=False)
    assert "Segmentation" in said.stderr
    assert "Error" not in said.stderr + said.stdout
    Path(written).unlink()


def shifted(affine: NDArray, mm: float) -> NDArray:
    return affine + np.array([[0, 0, 0, mm]] + [[0] * 4] * 3)


OFF = "does not lie on the scan"
REFUSED: dict[str, tuple[Callable[[NDArray, NDArray], tuple[NDArray, NDArray]], str]] = {
    "a voxel off": (lambda m, a: (m, shifted(a, 0.5)), OFF),
    "a fifth of a voxel off": (lambda m, a: (m, shifted(a, 0.1)), OFF),
    "spacing": (lambda m, a: (m, a @ np.diag([1, 1, 1.03, 1])), OFF),
    "columns": (lambda m, a: (m[:-1], a), r"19 x 16 x 9 voxels of 0.5 x 0.7 x 1.5 mm .* \(20 x 16 x 9"),
    "slices": (lambda m, a: (m[:, :, 1:], a), OFF),
    "padded": (lambda m, a: (np.pad(m, 1), a), OFF),
    "label 2": (lambda m, a: (m * 2, a), r"mask values: found the mask: label: \{2\}, expected \{0, 1\} alone"),
    "fractions": (lambda m, a: (m * np.float32(0.5), a), r"label: \{0.5\}, expected"),
    "two": (lambda m, a: (np.stack([m, m], -1), a), "not 3-D: found the mask: other.nii.gz: 4-D"),
    "one slice": (lambda m, a: (m[:, :, 0], a), "not 3-D"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_a_mask(tmp_path: Path, what: str) -> None:
    change, message = REFUSED[what]
    _, folder, _ = make_case(tmp_path)
    mask_file = save_mask(tmp_path / "other.nii.gz", *change(make_mask(), affine_of()))
    with pytest.raises(InputError, match=message):
        dicom_seg(folder, mask_file, None, "tissnet_vs")


def test_refuses_a_file_that_is_no_image(tmp_path: Path) -> None:
    _, folder, _ = make_case(tmp_path)
    (tmp_path / "mask.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="unreadable file: found the mask: mask.nii.gz"):
        dicom_seg(folder, str(tmp_path / "mask.nii.gz"), None, "tissnet_vs")


def test_refuses_a_folder_that_is_no_series_of_one_volume(tmp_path: Path) -> None:
    series, folder, mask_file = make_case(tmp_path)

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as caught:
            dicom_seg(folder, mask_file, None, "tissnet_vs")
        assert str(tmp_path) not in str(caught.value)  # which goes to the client

    series.paths[4].rename(tmp_path / "4.dcm")
    refused("not evenly spaced: some are missing")
    shutil.copy(series.paths[3], series.paths[4])
    refused("not evenly spaced: some are missing or there twice")
    series.paths[4].unlink()
    write_series(Path(folder), make_voxels(SHAPE), affine_of(), description="t1", names="other{}.dcm")
    refused("images of 2 series")
    shutil.rmtree(folder)
    refused("no DICOM image")
    make_case(tmp_path, FrameOfReferenceUID=None)
    refused("lack FrameOfReferenceUID")
    shutil.rmtree(folder)
    make_case(tmp_path, ImagePositionPatient=None)
    refused("do not say where its slices lie")
    shutil.rmtree(folder)
    write_enhanced(Path(folder) / "one.dcm", make_voxels(SHAPE), affine_of())
    refused("one file of many frames")


def test_leaves_no_file_behind_when_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder, mask_file = make_case(tmp_path, mask=make_mask() * 2)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with pytest.raises(InputError):
        dicom_seg(folder, mask_file, None, "tissnet_vs")
    assert list((tmp_path / "tmp").iterdir()) == []


MODALITIES = {
    "T2": ["T2", "t2_ci3d_tra_1.5mm", "t2_space_sag_p2_iso", "CISS 3D"],
    "ceT1": ["ceT1", "t1_mpr_tra_C", "3D T1 MPRAGE +C", "AX T1 POST GD", "t1ce", "T1Post"],
    "T1": ["t1_mpr_tra", "MPRAGE", "AX T1 pre contrast", "T1 non-contrast", "t1_tse_tra", "T1 FLAIR"],
    "FLAIR": ["FLAIR", "T2 FLAIR", "t2_tirm_tra_dark-fluid", "t2_tirm_tra"],
    None: [
        "T2* GRE",
        "t2_star",
        "PD T2",
        "ep2d_diff_ADC",
        "T1 SUB post",
        "localizer",
        "T1 T2",
        "st2art",
        "t2_stir_cor",
        "",
    ],
}


@pytest.mark.parametrize(("modality", "description"), [(m, d) for m, texts in MODALITIES.items() for d in texts])
def test_modality_of_a_description(modality: str | None, description: str) -> None:
    assert modality_of(description) == modality


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ("vestibular schwannoma", ["tissnet_vs", "acoustic neuroma"]),
        ("glioma", ["Glioma", "tissnet_glioma"]),
        ("tumor", ["enhancing part", "canvas", ""]),
    ],
)
def test_finding_of_a_name(found: str, names: list[str]) -> None:
    assert {finding_of(name).name for name in names} == {found}


# What a series becomes; the archive would only say how many images it has.


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TISSNetDICOMStore:
    """A store to whose cache series have come."""
    store = TISSNetDICOMStore(
        DICOMwebClient(f"http://127.0.0.1:{free_port()}/dicom-web"), {"Modality": "MR"}, cache_path=str(tmp_path)
    )
    monkeypatch.setattr(store, "_count_of", lambda uid: 1)
    monkeypatch.setattr(store, "_dicom_info", lambda uid: {"SeriesInstanceUID": uid})
    return store


def folder_of(store: TISSNetDICOMStore, uid: str) -> Path:
    return Path(store._datastore.image_path()) / uid


@pytest.mark.parametrize("name", ["jpeg_lossless", "rle_signed", "jpeg2000_lossy", "copies", "enhanced"])
def test_a_series_becomes_the_volume_that_prepare_makes_of_it(
    cached: TISSNetDICOMStore, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = folder_of(cached, "1.2")
    if (ENCODED / name).is_dir():
        shutil.copytree(ENCODED / name, folder)
    elif name == "copies":
        series = write_series(folder, make_voxels(SHAPE), affine_of("oblique"), PhotometricInterpretation="MONOCHROME1")
        shutil.copy(series.paths[3], folder / "again.dcm")
    else:
        write_enhanced(folder / "one.dcm", make_voxels(SHAPE), affine_of("sagittal"), order="reversed")
    made = tmp_path_factory.mktemp("prepared")
    prepare_source("dicom", folder, made, Options("vs"))
    (prepared,) = made.glob("*/*_T2.nii.gz")
    volume, expected = nib.load(cached.get_image_uri("1.2")), nib.load(prepared)
    assert np.array_equal(volume.dataobj, expected.dataobj)
    assert np.abs(volume.affine - expected.affine).max() < 1e-4
    assert volume.header["qform_code"] == volume.header["sform_code"] == 1
    notes = cached.get_image_info("1.2")["notes"]
    record = json.loads((prepared.parent / f"{prepared.parent.name}.json").read_text())
    assert [f"T2: {note}" for note in notes] == record["warnings"]
    assert len(notes) == {"jpeg2000_lossy": 1, "copies": 2}.get(name, 0)


def test_a_series_with_a_gap_is_refused(cached: TISSNetDICOMStore) -> None:
    series = write_series(folder_of(cached, "1.2"), make_voxels(SHAPE), affine_of())
    series.paths[4].unlink()
    with pytest.raises(InputError, match=r"The series cannot be used\. gap: found 3 mm between 000004\.dcm"):
        cached.get_image_uri("1.2")


# A real archive.


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """DICOMweb address of a fresh Orthanc."""
    if reason := orthanc_missing():
        pytest.skip(reason)
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as address:
        yield f"{address}/dicom-web"


def send(archive: str, *series: MadeSeries, first: int = 0, last: int | None = None) -> None:
    client = DICOMwebClient(archive)
    for one in series:
        client.store_instances([pydicom.dcmread(path) for path in one.paths[first:last]])


def make_study(folder: Path, patient: str, *descriptions: str) -> list[MadeSeries]:
    """Series of one study on one grid."""
    return [
        write_series(folder / name, make_voxels(SHAPE), affine_of("oblique"), patient=patient, description=name)
        for name in descriptions
    ]


def sent_t2(archive: str, folder: Path, patient: str) -> MadeSeries:
    """A series in the archive, the only one of its study."""
    (t2,) = make_study(folder / "dicom", patient, "T2")
    send(archive, t2)
    return t2


@pytest.fixture
def store(archive: str, tmp_path: Path) -> TISSNetDICOMStore:
    return TISSNetDICOMStore(DICOMwebClient(archive), {"Modality": "MR"}, cache_path=str(tmp_path / "cache"))


def segmentations(archive: str, series: MadeSeries) -> list[highdicom.seg.Segmentation]:
    """Those of the study that refer to a series, as the archive gives them back."""
    client = DICOMwebClient(archive)
    found = []
    for one in client.search_for_series(series.study_uid, search_filters={"Modality": "SEG"}):
        uid = pydicom.Dataset.from_json(one).SeriesInstanceUID
        (back,) = client.retrieve_series(series.study_uid, uid)
        read = highdicom.seg.Segmentation.from_dataset(back)
        if read.ReferencedSeriesSequence[0].SeriesInstanceUID == series.series_uid:
            found.append(read)
    return found


def test_orthanc_keeps_the_segmentation(archive: str, tmp_path: Path) -> None:
    series, folder, mask_file = make_case(tmp_path, "sagittal", patient="ORTHANC^1")
    send(archive, series)
    written = dicom_seg(folder, mask_file, None, "tissnet_vs")
    DICOMwebClient(archive).store_instances([pydicom.dcmread(written)])
    Path(written).unlink()
    (back,) = segmentations(archive, series)
    assert np.array_equal(voxels_of(back, series.sop_uids), make_mask())
    assert code(back.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0])[0] == "985004"


@pytest.mark.parametrize("empty", [False, True])
def test_a_submitted_label_goes_to_the_archive(
    archive: str, store: TISSNetDICOMStore, tmp_path: Path, empty: bool
) -> None:
    t2, other = make_study(tmp_path / "dicom", f"SUBMIT^{empty}", "T2", "ceT1")
    send(archive, t2, other)
    mask = make_mask() * (not empty)
    label = save_mask(tmp_path / "label.nii.gz", mask, affine_of("oblique"))
    assert t2.series_uid not in store.get_labeled_images()
    assert store.save_label(t2.series_uid, label, "final", {"model": "tissnet_vs"}) == t2.series_uid
    (back,) = segmentations(archive, t2)
    assert np.array_equal(voxels_of(back, t2.sop_uids), mask)
    assert back.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert t2.series_uid in store.get_labeled_images()
    assert other.series_uid not in store.get_labeled_images()
    assert other.series_uid in store.get_unlabeled_images()
    kept = store.get_label_uri(t2.series_uid, "final")
    assert np.array_equal(np.asarray(nib.load(kept).dataobj), mask)
    assert Path(label).exists()


def test_other_tags_stay_out_of_the_archive(archive: str, store: TISSNetDICOMStore, tmp_path: Path) -> None:
    t2 = sent_t2(archive, tmp_path, "TAG^1")
    values = make_voxels(SHAPE).astype(np.float32)
    label = save_mask(tmp_path / "map.nii.gz", values, affine_of("oblique"))
    store.save_label(t2.series_uid, label, "error", {})
    assert segmentations(archive, t2) == []
    assert np.array_equal(np.asarray(nib.load(store.get_label_uri(t2.series_uid, "error")).dataobj), values)


def test_a_label_of_another_grid_is_refused_and_not_kept(
    archive: str, store: TISSNetDICOMStore, tmp_path: Path
) -> None:
    t2 = sent_t2(archive, tmp_path, "WRONG^1")
    label = save_mask(tmp_path / "label.nii.gz", make_mask(), affine_of("axial"))
    with pytest.raises(InputError, match="does not lie on the scan"):
        store.save_label(t2.series_uid, label, "final", {})
    assert segmentations(archive, t2) == []
    assert store.get_labels_by_image_id(t2.series_uid) == {}


def test_a_raw_label_as_the_viewer_sends_it(archive: str, store: TISSNetDICOMStore, tmp_path: Path) -> None:
    t2 = sent_t2(archive, tmp_path, "RAW^1")
    image = sitk.ReadImage(store.get_image_uri(t2.series_uid))
    mask = sitk.ReadImage(save_mask(tmp_path / "m.nii.gz", make_mask(), affine_of("oblique")))
    values = sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    (tmp_path / "label.bin").write_bytes(sitk.GetArrayFromImage(values).astype(np.uint8).tobytes())
    store.save_label(t2.series_uid, str(tmp_path / "label.bin"), "final", {})
    (back,) = segmentations(archive, t2)
    assert np.array_equal(voxels_of(back, t2.sop_uids), make_mask())


def test_a_new_series_is_listed_within_seconds(
    archive: str, store: TISSNetDICOMStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_store, "FRESH_SECONDS", 0.3)
    before = set(store.list_images())
    t2 = sent_t2(archive, tmp_path, "NEW^1")
    time.sleep(0.4)
    assert set(store.list_images()) - before == {t2.series_uid}


def test_lists_are_not_asked_for_at_every_turn(
    archive: str, store: TISSNetDICOMStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    search = store._client.search_for_series
    monkeypatch.setattr(store._client, "search_for_series", lambda *a, **k: asked.append(k) or search(*a, **k))
    for _ in range(5):
        store.list_images()
    assert len(asked) == 1


def test_a_series_that_has_grown_is_fetched_again(archive: str, store: TISSNetDICOMStore, tmp_path: Path) -> None:
    (t2,) = make_study(tmp_path / "dicom", "GROWN^1", "T2")
    send(archive, t2, last=5)
    assert sitk.ReadImage(store.get_image_uri(t2.series_uid)).GetSize() == (*SHAPE[:2], 5)
    send(archive, t2, first=5)
    store._fresh.forget()
    uri = store.get_image_uri(t2.series_uid)
    assert sitk.ReadImage(uri).GetSize() == SHAPE
    assert sitk.ReadImage(store.get_image_uri(t2.series_uid)).GetSize() == SHAPE
    assert not list(Path(uri).parent.glob(".fetch-*"))


def test_an_image_is_kept_in_the_cache_and_not_among_temporary_files(
    archive: str, store: TISSNetDICOMStore, tmp_path: Path
) -> None:
    t2 = sent_t2(archive, tmp_path, "KEPT^1")
    uris = {store.get_image_uri(t2.series_uid) for _ in range(2)}
    assert len(uris) == 1
    assert Path(uris.pop()).is_relative_to(tmp_path / "cache")


def test_an_archive_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_store, "ANSWER_SECONDS", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setattr(dicom_store.settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path))
        store = dicom_store.open_store(f"http://127.0.0.1:{deaf.getsockname()[1]}/dicom-web")
        start = time.monotonic()
        with pytest.raises(Busy, match="The DICOM archive does not answer"):
            store.list_images()
        assert time.monotonic() - start < 5
        start = time.monotonic()
        for _ in range(3):  # its silence is known for a while: nobody waits for it again
            with pytest.raises(Busy, match="The DICOM archive does not answer"):
                store.list_images()
        assert time.monotonic() - start < dicom_store.ANSWER_SECONDS


def test_an_archive_that_is_down_says_so(tmp_path: Path) -> None:
    store = TISSNetDICOMStore(
        DICOMwebClient(f"http://127.0.0.1:{free_port()}/dicom-web"), {"Modality": "MR"}, cache_path=str(tmp_path)
    )
    for ask in (store.list_images, store.get_labeled_images, lambda: store.get_image_uri("1.2.3")):
        with pytest.raises(Busy, match="The DICOM archive does not answer"):
            ask()


def test_a_label_that_the_archive_refuses_is_not_kept(
    archive: str, store: TISSNetDICOMStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t2 = sent_t2(archive, tmp_path, "REFUSED^1")
    label = save_mask(tmp_path / "label.nii.gz", make_mask(), affine_of("oblique"))
    monkeypatch.setattr(store._client, "store_instances", lambda datasets: pydicom.Dataset())
    with pytest.raises(Busy, match="did not take the segmentation"):
        store.save_label(t2.series_uid, label, "final", {})
    assert store.get_labels_by_image_id(t2.series_uid) == {}


def test_the_store_of_an_address_follows_the_settings(
    archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_store.settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setattr(
        dicom_store.settings, "MONAI_LABEL_DICOMWEB_SEARCH_FILTER", {"Modality": "MR", "PatientID": "OPEN1"}
    )
    t2 = sent_t2(archive, tmp_path, "OPEN1")
    store = dicom_store.open_store(archive)
    assert store.list_images() == [t2.series_uid]
    assert Path(store.get_image_uri(t2.series_uid)).is_relative_to(tmp_path / "cache")


def test_an_unknown_series_is_not_found(store: TISSNetDICOMStore) -> None:
    with pytest.raises(NotFound, match="There is no series '1.2.3'"):
        store.get_image_uri("1.2.3")


@pytest.mark.parametrize("image_id", ["../../etc", "", "a", "1.2/../..", "..", "1..2", "1." * 33])
def test_what_is_no_uid_is_not_found_and_never_asked_for(
    store: TISSNetDICOMStore, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._client, "search_for_series", lambda *a, **k: pytest.fail("the archive was asked"))
    with pytest.raises(NotFound, match="There is no series"):
        store.get_image_uri(image_id)


def test_siblings_are_the_series_of_the_study(archive: str, store: TISSNetDICOMStore, tmp_path: Path) -> None:
    t1, cet1, t2, adc = make_study(tmp_path / "1", "SIBLINGS^1", "t1_tra", "t1_tra_C", "t2_tra", "ADC")
    (stranger,) = make_study(tmp_path / "2", "SIBLINGS^2", "FLAIR")
    send(archive, t1, cet1, t2, adc, stranger)
    expected = {"T1": t1.series_uid, "ceT1": cet1.series_uid, "T2": t2.series_uid}
    assert store.siblings(t2.series_uid) == expected
    assert store.siblings(cet1.series_uid) == expected
    assert store.siblings(adc.series_uid) == {}
    assert store.siblings(stranger.series_uid) == {"FLAIR": stranger.series_uid}
    assert store.siblings("1.2.3") == {}


def test_the_siblings_of_a_large_archive_are_found_at_once(
    store: TISSNetDICOMStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each series is read once, not once per other series."""
    series = {}
    for index in range(600):
        one = pydicom.Dataset()
        one.StudyInstanceUID, one.SeriesDescription = f"1.{index // 3}", ("T1", "T2", "ADC")[index % 3]
        series[f"2.{index}"] = one
    monkeypatch.setattr(store, "_series", lambda: series)
    read: list[str] = []
    text = dicom_store._text
    monkeypatch.setattr(dicom_store, "_text", lambda one, keyword: read.append(keyword) or text(one, keyword))
    assert store.siblings("2.300") == {"T1": "2.300", "T2": "2.301"}
    assert all(store.siblings(uid) for uid in series if int(uid[2:]) % 3 < 2)
    assert read.count("StudyInstanceUID") < 3 * len(series)


def test_of_several_siblings_the_one_with_as_many_slices_is_taken(
    archive: str, store: TISSNetDICOMStore, tmp_path: Path
) -> None:
    t2, again, cet1 = make_study(tmp_path / "1", "SEVERAL^1", "T2 a", "T2 b", "ceT1")
    thin = write_series(
        tmp_path / "thin", make_voxels((20, 16, 4)), affine_of(), patient="SEVERAL^1", description="ceT1 thin"
    )
    send(archive, t2, again, cet1, thin)
    assert store.siblings(t2.series_uid) == {"T2": t2.series_uid, "ceT1": cet1.series_uid}
    assert store.siblings(again.series_uid)["T2"] == again.series_uid
    assert store.siblings(cet1.series_uid) == {"ceT1": cet1.series_uid}  # which T2 is not known
