"""Tests of monailabel_app.images: which headers are refused, and whether the wrong modality is noticed."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monailabel_app.errors import InputError
from monailabel_app.images import check_header, check_label_file, modality_notes, read_mask
from scripts.data.phantom.make import make_phantom
from scripts.data.plausibility import t2_likeness

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


@pytest.mark.parametrize("seed", [0, 1])
def test_the_wrong_modality_of_a_phantom_is_noticed(tmp_path, seed):
    phantom = make_phantom(seed)
    for name, voxels in phantom.images.items():
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), phantom.affine), tmp_path / f"{name}.nii.gz")
    assert modality_notes(tmp_path / "T2.nii.gz", "T2", t2_likeness) == []
    (note,) = modality_notes(tmp_path / "ceT1.nii.gz", "T2", t2_likeness)
    assert "does not look like a T2 scan" in note


@pytest.mark.skipif("TISSNET_DATA" not in os.environ, reason="needs real gliomas: set TISSNET_DATA")
def test_right_modalities_of_patients_are_not_doubted():
    noticed = {"t1": 0, "t1ce": 0, "flair": 0}
    files = sorted((Path(os.environ["TISSNET_DATA"]) / "glioma").glob("*/*_t2.nii.gz"))
    assert len(files) > 30
    for t2 in files:
        assert modality_notes(t2, "T2", t2_likeness) == [], t2.name
        for name in noticed:
            other = t2.with_name(t2.name.replace("_t2", f"_{name}"))
            assert modality_notes(other, "FLAIR" if name == "flair" else name, t2_likeness) == [], other.name
            noticed[name] += bool(modality_notes(other, "T2", t2_likeness))
    assert min(noticed.values()) > 0.7 * len(files)


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
