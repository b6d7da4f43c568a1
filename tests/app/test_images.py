"""Tests of monailabel_app.images: which headers are refused, and what is read of scans."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import InputError
from monailabel_app.images import check_header, check_label_file, read_mask, read_scans
from scripts.data.modality import modality_notes
from scripts.data.phantom.make import make_phantom

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
    check_header(written(tmp_path, *GOOD), "the scan")


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((64, 64), (0.5, 0.5, 1.0), "2 dimensions"),
        ((64, 64, 20), (0.01, 0.5, 2.0), "0.01 x 0.5 x 2 mm"),
        ((64, 64, 20), (0.5, 0.5, 40.0), "header is wrong"),
        ((64, 64, 20), (14.0, 14.0, 2.0), "a scan of a head"),
        ((20, 20, 20), (0.2, 0.2, 0.2), "a scan of a head"),
    ],
)
def test_headers_that_no_scan_of_a_head_has(tmp_path, shape, spacing, message):
    with pytest.raises(InputError, match=message):
        check_header(written(tmp_path, shape, spacing), "the scan")


@pytest.mark.parametrize("shape", [(2000, 2000, 2000), (32_000, 32_000, 32_000)])
def test_absurd_sizes_are_refused_by_the_header_alone(tmp_path, shape):
    with pytest.raises(InputError, match="at most 512 x 512 x 1024"):
        check_header(header_only(tmp_path, shape), "the scan")


def test_an_affine_of_nan_is_refused(tmp_path):
    path = header_only(tmp_path, (64, 64, 20), (float("nan"), 1.0, 1.0))
    with pytest.raises(InputError, match="header is wrong"):
        check_header(path, "the scan")


@pytest.mark.parametrize("content", [b"", b"not an image", bytes(352)])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd"])
def test_what_is_no_image_is_refused_in_a_sentence(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read") as error:
        check_header(path, "the scan")
    assert str(tmp_path) not in str(error.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        check_header(tmp_path, "the scan")


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
    check_label_file(tmp_path / "label.nii", tmp_path / "label.nii")
    assert (read_mask(tmp_path / "label.nii", "the mask")[0] == 1).all()
