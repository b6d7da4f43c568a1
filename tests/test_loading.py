"""Tests of scripts.loading: what MONAI's transforms get of a scan is what `scripts.prepare` writes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from made.dicom import make_affine, make_voxels, write_enhanced, write_series, write_small
from monai.data import MetaTensor, list_data_collate

from scripts.data.dataset import prepare_source
from scripts.data.inputs import find_inputs
from scripts.data.sources.registry import Options
from scripts.data.volume import CaseError
from scripts.loading import NOTES, LoadScansd, ScanReader, name_of

ENCODED = Path(__file__).parent / "fixtures" / "dicom"
SAME_MM = 1e-4

load = LoadScansd("image")


def write_scan(path: Path, shape: tuple[int, ...] = (5, 6, 7), *, shift: float = 0.0, seed: int = 0) -> str:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).random(shape, np.float32), affine), path)
    return str(path)


# a series, prepared and given as it is


def prepared(series: Path, output: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Voxels, affine and warnings of the only case that `prepare dicom` makes of a folder."""
    assert prepare_source("dicom", series, output, Options("vs")) == {"scans": 1, "excluded": 0}
    (file,) = output.glob("*/*_T2.nii.gz")
    image = nib.load(file)
    told = json.loads((file.parent / f"{file.parent.name}.json").read_text())["warnings"]
    return np.asarray(image.dataobj), image.affine, [sentence.removeprefix("T2: ") for sentence in told]


def check_same(series: Path, output: Path) -> list[str]:
    """What is said of a series, by both; its voxels and affine are the same."""
    voxels, affine, warnings = prepared(series, output)
    image = load({"case": "7", "image": str(series)})["image"]
    assert image.dtype == torch.float32 and image.shape == (1, *voxels.shape)
    assert np.array_equal(image[0].numpy(), voxels.astype(np.float32))
    assert np.abs(image.affine.numpy() - affine).max() < SAME_MM
    told = image.meta.get(NOTES, ())
    assert told == (("; ".join(f"{series.name}: {sentence}" for sentence in warnings),) if warnings else ())
    return warnings


@pytest.mark.parametrize("folder", sorted(ENCODED.iterdir()), ids=lambda folder: folder.name)
def test_an_encoded_series_is_read_as_prepare_reads_it(tmp_path: Path, folder: Path) -> None:
    warnings = check_same(folder, tmp_path / "out")
    lossy = folder.name in ("jpeg_baseline", "jpeg_extended", "jpeg_ls_near", "jpeg2000_lossy")
    assert [sentence[:33] for sentence in warnings] == ["3 images were compressed with loss"[:33]] * lossy


@pytest.mark.parametrize("plane", ["axial", "oblique"])
@pytest.mark.parametrize("shared", [True, False])
def test_an_enhanced_series_is_read_as_prepare_reads_it(tmp_path: Path, plane: str, shared: bool) -> None:
    affine = make_affine(plane=plane, origin=(4, -5, 6))
    write_enhanced(tmp_path / "in/one.dcm", make_voxels(), affine, shared=shared, slope=0.5, intercept=-3)
    assert check_same(tmp_path / "in", tmp_path / "out") == []


# Turned about the axis from foot to head, as a head-first patient is; feet first, z is turned too.
POSITIONS = {"HFS": (1, 1, 1), "HFP": (-1, -1, 1), "FFS": (-1, 1, -1), "FFP": (1, -1, -1)}


@pytest.mark.parametrize("order", ["forward", "reversed"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_patients_position_is_read_as_prepare_reads_it(tmp_path: Path, position: str, order: str) -> None:
    affine = np.diag([*POSITIONS[position], 1]) @ make_affine(origin=(4, -5, 6))
    write_series(tmp_path / "in", make_voxels(), affine, order=order, PatientPosition=position)
    assert check_same(tmp_path / "in", tmp_path / "out") == []
    image = load({"image": str(tmp_path / "in")})["image"]
    assert np.abs(image.affine.numpy() - affine).max() < SAME_MM


def test_what_is_said_of_a_series_is_in_log_and_metadata(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Copies left out and values inverted, as MONAI's reader does neither."""
    lossy = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "9"}
    series = write_small(tmp_path / "in", PhotometricInterpretation="MONOCHROME1", **lossy)
    shutil.copy(series.paths[1], tmp_path / "in/again.dcm")
    copies, loss, inverted = check_same(tmp_path / "in", tmp_path / "out")
    assert "1 of 6 images are identical copies" in copies and "ratio 9" in loss and "inverted" in inverted
    (said,) = [record.getMessage() for record in caplog.records if record.name == "scripts.loading"]
    assert said == f"case 7: in: {copies}; in: {loss}; in: {inverted}"


def test_cases_with_and_without_notes_make_a_batch(tmp_path: Path) -> None:
    many = write_small(tmp_path / "a", PhotometricInterpretation="MONOCHROME1")
    shutil.copy(many.paths[1], tmp_path / "a/again.dcm")
    write_small(tmp_path / "b", LossyImageCompression="01")
    write_small(tmp_path / "c")
    for names in ("aa", "ab", "bc", "ca"):
        batch = list_data_collate([load({"image": str(tmp_path / name)}) for name in names])
        assert len(batch["image"]) == 2


def test_a_folder_of_one_series_is_a_case_of_inference(tmp_path: Path) -> None:
    write_small(tmp_path / "p1/s")
    (tmp_path / "p1/DICOMDIR").write_bytes(b"")
    (case,) = find_inputs(tmp_path / "p1", "vs")
    assert case == {"case": "p1", "image": [str(tmp_path / "p1")]}
    assert load(case)["image"].shape == (1, 12, 10, 5)


@pytest.mark.parametrize("break_it", ["two", "none", "damaged", "gap", "slices"])
def test_a_folder_that_is_no_series_is_refused(tmp_path: Path, break_it: str) -> None:
    series = write_small(tmp_path / "in", (12, 10, 2) if break_it == "slices" else (12, 10, 5))
    match break_it:
        case "two":
            write_small(tmp_path / "in/other", description="t2_other")
        case "none":
            for path in series.paths:
                path.unlink()
        case "damaged":
            series.paths[2].write_bytes(series.paths[2].read_bytes()[:300])
        case "gap":
            series.paths[2].unlink()
    check = {
        "two": "ambiguous series: found case 7: in: 't2_ci3d_tra', 't2_other', expected a folder with one MR series",
        "none": "missing series: found case 7: in: none in 0 files",
        "damaged": "unreadable file: found case 7: in: 000003.dcm: ",
        "gap": "gap: found case 7: 3 mm between ",
        "slices": "number of slices: found case 7: 2, in ",
    }[break_it]
    with pytest.raises(CaseError, match=check):
        load({"case": "7", "image": str(tmp_path / "in")})


# files


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd", ".NII.GZ"])
def test_every_format_is_the_same_scan(tmp_path: Path, suffix: str) -> None:
    expected = load({"image": write_scan(tmp_path / "a.nii.gz")})["image"]
    path = tmp_path / f"b{suffix}"
    if suffix.lower().endswith(".gz"):
        shutil.copy(tmp_path / "a.nii.gz", path)
    else:
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")), str(path))
    image = load({"image": path})["image"]
    assert torch.equal(image.as_tensor(), expected.as_tensor())
    assert torch.allclose(image.affine, expected.affine, atol=SAME_MM)
    assert ScanReader().verify_suffix(str(path)) and not ScanReader().verify_suffix("a.png")


def test_scans_of_a_case_become_channels_in_order(tmp_path: Path) -> None:
    files = [write_scan(tmp_path / f"a_{name}.nii.gz", seed=seed) for seed, name in enumerate(("T1", "T2"))]
    image = load({"image": files})["image"]
    assert image.shape == (2, 5, 6, 7)
    for channel, file in zip(image, files, strict=True):
        assert np.array_equal(channel, np.asarray(nib.load(file).dataobj))
    assert np.allclose(image.affine, np.diag([1.0, 1.0, 2.0, 1.0]))
    assert load({"image": files[0]})["image"].shape == (1, 5, 6, 7)


def test_notes_of_a_later_channel_are_kept(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        options = {"LossyImageCompression": "01"} if name == "b" else {}
        write_series(tmp_path / name, make_voxels() + seed, make_affine(), description=name, **options)
    image = load({"image": [tmp_path / "a", tmp_path / "b"]})["image"]
    (note,) = image.meta[NOTES]
    assert image.shape[0] == 2 and note.startswith("b: 5 images were compressed with loss")


@pytest.mark.parametrize("shape", [(1, 6, 7), (6, 7, 2), (6, 1, 1)])
def test_one_or_two_slices_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(CaseError, match=r"number of slices: found case 7: a\.nii\.gz: [12], .*expected at least 3"):
        load({"case": "7", "image": write_scan(tmp_path / "a.nii.gz", shape)})


def test_one_scan_for_two_modalities_is_refused(tmp_path: Path) -> None:
    files = [write_scan(tmp_path / f"{name}.nii.gz", seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    with pytest.raises(CaseError, match=r"same image: found case 7: a\.nii\.gz and c\.nii\.gz have the same voxels"):
        load({"case": "7", "image": files})


def test_the_rounding_of_a_scaling_is_taken_off_labels_alone(tmp_path: Path) -> None:
    """A slope of 1/41 makes 0.99999994 of 41, in float32 too."""
    image = nib.Nifti1Image(np.full((5, 6, 7), 41, np.uint8), np.eye(4))
    image.header.set_slope_inter(1 / 41, 0)
    nib.save(image, tmp_path / "a.nii.gz")
    both = LoadScansd(["image", "label"], labels="label")({key: tmp_path / "a.nii.gz" for key in ("image", "label")})
    (value,) = both["image"].unique().tolist()
    assert value != 1 and value == pytest.approx(1, abs=1e-6)
    assert both["label"].unique().tolist() == [1]


def test_affines_that_differ_by_rounding_are_one_grid(tmp_path: Path) -> None:
    files = [write_scan(tmp_path / "a.nii.gz"), write_scan(tmp_path / "b.nii.gz", shift=0.05, seed=1)]
    assert load({"image": files})["image"].shape == (2, 5, 6, 7)


@pytest.mark.parametrize("other", [{"shape": (5, 6, 8)}, {"shift": 3.0}])
def test_scans_on_other_grids_are_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    files = [write_scan(tmp_path / "a.nii.gz"), write_scan(tmp_path / "b.nii.gz", **other)]
    with pytest.raises(ValueError, match=r"case 7: .*b\.nii\.gz is not on the grid of .*a\.nii\.gz"):
        load({"case": "7", "image": files})


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2)])
def test_scans_that_are_not_3d_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"not 3-D: found case 7: a\.nii\.gz: .*, expected a 3-D volume"):
        load({"case": "7", "image": write_scan(tmp_path / "a.nii.gz", shape)})


@pytest.mark.parametrize("break_it", ["truncated", "text", "missing"])
def test_files_that_cannot_be_read_are_named(tmp_path: Path, break_it: str) -> None:
    path = tmp_path / "a.nii.gz"
    write_scan(path, (40, 40, 40))
    content = path.read_bytes()
    if break_it == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if break_it == "truncated" else b"no image at all")
    kind = FileNotFoundError if break_it == "missing" else ValueError
    with pytest.raises(kind, match=r"(unreadable file: found )?case 7: .*a\.nii\.gz(: | does not exist)"):
        load({"case": "7", "image": str(path)})


def test_name_of() -> None:
    image = MetaTensor(torch.zeros(1), meta={"filename_or_obj": "/data/scan_12/t2.nii.gz"})
    assert name_of({"case": 12, "image": image}) == "case 12"
    assert name_of({"image": image}) == "t2.nii.gz"
    assert name_of({}) == "an unnamed sample"
