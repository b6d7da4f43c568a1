"""Tests of monailabel_app.images: scans and labels are judged as the reader does, and what is read of scans."""

import gzip
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from monailabel_app.errors import InputError
from monailabel_app.images import check_label, check_scan, extent_notes, read_mask, read_scans
from scripts.data.modality import modality_notes
from scripts.data.phantom.make import make_phantom
from scripts.data.volume import CaseError
from scripts.loading import LoadScansd

VS_SPACING = (0.41, 0.41, 1.5)
GOOD = ((64, 64, 20), (0.5, 0.5, 2.0))


def written(folder, shape, spacing, name="scan.nii.gz"):
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([*spacing, 1.0]))
    nib.save(image, folder / name)
    return folder / name


def header_only(folder, shape, spacing=(1.0, 1.0, 1.0)):
    """A compressed file whose header promises what nobody could hold."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.diag([*spacing, 1.0]), code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = folder / "absurd.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(1000)))
    return path


def test_a_plain_scan_passes(tmp_path):
    check_scan(written(tmp_path, *GOOD), "the scan", whole=True)


# Fields of a header of 64 x 64 x 20 voxels of 0.5 x 0.5 x 2 mm, whose codes are 1 and 1.
HEADERS: dict[str, dict[str, Any]] = {
    "forms apart": {"qoffset_x": 20},
    "no codes": {"qform_code": 0, "sform_code": 0},
    "sform alone, sizes rounded": {"qform_code": 0, "pixdim": [1, 0.50012, 0.50012, 2.0005, 0, 0, 0, 0]},
    "sizes that disagree": {"qform_code": 0, "pixdim": [1, 1, 1, 1, 0, 0, 0, 0]},
    "microns": {"xyzt_units": 3},
    "meters": {"xyzt_units": 1},
    "colors": {"datatype": 128, "bitpix": 24},
    "an intercept of no number": {"scl_slope": 1, "scl_inter": np.nan},
    "one slice": {"dim": [3, 64, 64, 1, 1, 1, 1, 1]},
    "three slices": {"dim": [3, 64, 64, 3, 1, 1, 1, 1]},
    "two dimensions": {"dim": [2, 64, 64, 1, 1, 1, 1, 1]},
    "more voxels than there are": {"dim": [3, 64, 64, 200, 1, 1, 1, 1]},
    "as it was": {},
}
READ = ("sform alone, sizes rounded", "three slices", "as it was")


@pytest.mark.parametrize("change", HEADERS)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_an_upload_is_judged_as_the_reader_judges_it(tmp_path, change, name):
    """The same sentence as training and inference, or none."""
    voxels = np.random.default_rng(0).integers(1, 99, GOOD[0]).astype(np.uint8)
    image = nib.Nifti1Image(voxels, np.diag([*GOOD[1], 1.0]))
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    raw = image.to_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    header.set_slope_inter(1, 0)
    for field, value in HEADERS[change].items():
        header[field] = value
    content = header.binaryblock + raw[348:] + b"\0" * 2 * voxels.size * (change == "colors")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    try:
        LoadScansd("image")({"case": "x", "image": str(tmp_path / name)})
        said = None
    except (CaseError, ValueError) as error:
        said = str(error).replace(f"{tmp_path}{os.sep}", "")
    if said is None:
        check_scan(tmp_path / name, "case x", whole=True)
    else:
        with pytest.raises(InputError) as refused:
            check_scan(tmp_path / name, "case x", whole=True)
        assert str(refused.value) == f"{said}."
    assert (said is None) == (change in READ)


@pytest.mark.parametrize(
    ("spacing", "message"), [((14.0, 14.0, 2.0), "covers 896 x 896 x 40 mm"), ((8.0, 8.0, 8.0), "mm")]
)
def test_what_does_not_fit_in_memory_is_refused(tmp_path, spacing, message):
    with pytest.raises(InputError, match=f"{message}.*: expected a scan of a head"):
        check_scan(written(tmp_path, (64, 64, 20) if spacing[2] == 2 else (70, 70, 70), spacing), "the scan")


def test_a_scan_that_is_hardly_a_head_is_noted(tmp_path):
    (note,) = extent_notes(read_scans({"T2": written(tmp_path, (20, 20, 20), (0.2, 0.2, 0.2))}))
    assert "covers 4 x 4 x 4 mm, which is hardly a head" in note


@pytest.mark.parametrize("shape", [(2000, 2000, 2000), (32_000, 32_000, 32_000)])
def test_absurd_sizes_are_refused_by_the_header_alone(tmp_path, shape):
    with pytest.raises(InputError, match="bytes for shape"):
        check_scan(header_only(tmp_path, shape), "the scan")


def test_more_voxels_than_fit_are_refused_by_the_header_alone(tmp_path):
    """Compressed, a file of zeros may hold as many as its header says."""
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 2000 2000 100\n"
    header += b"space directions: (0.1,0,0) (0,0.1,0) (0,0,0.1)\nspace origin: (0,0,0)\nencoding: gzip\n\n"
    (tmp_path / "scan.nrrd").write_bytes(header + bytes(400_000))
    with pytest.raises(InputError, match="at most 512 x 512 x 1024"):
        check_scan(tmp_path / "scan.nrrd", "the scan")


def test_an_affine_of_nan_is_refused(tmp_path):
    path = header_only(tmp_path, (16, 16, 20), (float("nan"), 1.0, 1.0))
    with pytest.raises(InputError, match="orientation: found the scan"):
        check_scan(path, "the scan")


@pytest.mark.parametrize("content", [b"", b"not an image", bytes(352)])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd"])
def test_what_is_no_image_is_refused_in_a_sentence(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="unreadable file: found the scan: scan.n") as error:
        check_scan(path, "the scan")
    assert str(tmp_path) not in str(error.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        check_scan(tmp_path, "the scan")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd"])
def test_a_scan_that_was_cut_short_is_refused_when_it_is_read(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(tmp_path / name), useCompression=True)
    check_scan(tmp_path / name, "the scan", whole=True)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-5000])
    with pytest.raises(InputError, match="unreadable file: found the scan"):
        check_scan(tmp_path / name, "the scan", whole=True)


def test_scans_are_read_for_the_notes_and_a_broken_one_is_left_to_the_bundle(tmp_path):
    phantom = make_phantom(0)
    nib.save(nib.Nifti1Image(phantom.images["ceT1"].astype(np.float32), phantom.affine), tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    scans = read_scans({"T2": tmp_path / "a.nii.gz", "T1": tmp_path / "b.nii.gz"})
    assert list(scans) == ["T2"]
    np.testing.assert_allclose(scans["T2"][1], VS_SPACING, rtol=1e-6)
    (note,) = modality_notes(scans)
    assert "given as T2 does not look like a T2 scan" in note


def test_a_label_whose_slope_is_a_fraction_is_one_of_whole_numbers(tmp_path):
    """50 with a slope of 1/50 is 0.99999998."""
    image = nib.Nifti1Image(np.full((20, 20, 8), 50, np.uint8), np.eye(4))
    image.header.set_slope_inter(1 / 50, 0)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([1 / 50, 0], "<f4").tobytes()
    (tmp_path / "label.nii").write_bytes(raw)
    assert np.asarray(nib.load(tmp_path / "label.nii").dataobj).max() != 1
    assert check_label(tmp_path / "label.nii", tmp_path / "label.nii") == tmp_path / "label.nii"
    assert (read_mask(tmp_path / "label.nii", "the mask")[0] == 1).all()


# Labels


def a_scan(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """An oblique scan, a mask without any symmetry, and the affine of both."""
    mask = np.zeros((20, 24, 8), np.uint8)
    mask[3:8, 6:12, 2:5], mask[1, 14, 7] = 1, 1
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, 0.2, -0.4) * (1.0, 0.9, 3.0), (10, -20, 30))
    nib.save(nib.Nifti1Image(mask * 50, affine), folder / "scan.nii.gz")
    return folder / "scan.nii.gz", mask, affine


def moved(affine: np.ndarray) -> np.ndarray:
    result = affine.copy()
    result[1, 3] += 1.0
    return result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask, affine: (mask, moved(affine)), "affine: found the submitted label 1 mm away from the scan"),
        (lambda mask, affine: (mask, affine @ np.diag([1, 1, 1.5, 1])), "affine: found the submitted label 10.5 mm"),
        (
            lambda mask, affine: (mask[1:], affine),
            r"shape: found the submitted label \(19, 24, 8\), expected \(20, 24, 8",
        ),
        (lambda mask, affine: (mask * 2, affine), r"mask values: found the submitted label: label: \{2\}, expected"),
        (lambda mask, affine: (mask * 0.5, affine), r"label: \{0.5\}, expected \{0, 1\} alone, one segment"),
        (lambda mask, affine: (np.where(mask, np.nan, 0), affine), r"label: \{nan\}"),
        (lambda mask, affine: (mask.astype(np.complex64), affine), "data type complex64"),
        (lambda mask, affine: (mask[..., None], affine), "not 3-D"),
    ],
)
def test_a_label_that_lies_elsewhere_or_holds_other_values_is_refused(tmp_path, change, message):
    scan, mask, affine = a_scan(tmp_path)
    nib.save(nib.Nifti1Image(*change(mask, affine)), tmp_path / "label.nii.gz")
    with pytest.raises(InputError, match=message):
        check_label(tmp_path / "label.nii.gz", scan)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize("name", ["label.nii.gz", "label.nrrd"])
def test_a_label_is_judged_by_its_place_whatever_the_order_of_its_axes(tmp_path, codes, name):
    scan, mask, affine = a_scan(tmp_path)
    nib.save(nib.Nifti1Image(mask, affine), tmp_path / "same.nii.gz")
    itk = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "same.nii.gz")), codes)
    sitk.WriteImage(itk, str(tmp_path / name))
    kept, where = read_mask(check_label(tmp_path / name, scan), "the label")
    assert np.array_equal(kept, mask)
    np.testing.assert_allclose(where, affine, atol=1e-4)


def test_raw_voxels_are_judged_too(tmp_path):
    scan, mask, _ = a_scan(tmp_path)
    label = tmp_path / "label.bin"
    label.write_bytes(mask.tobytes())
    assert check_label(label, scan) == label
    label.write_bytes((mask * 3).tobytes())
    with pytest.raises(InputError, match=r"label: \{3\}"):
        check_label(label, scan)
    label.write_bytes(mask.tobytes()[:-1])
    with pytest.raises(InputError, match="3839 bytes and the scan 3840 voxels"):
        check_label(label, scan)
