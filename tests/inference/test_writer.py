"""Tests of writer: outputs lie on the source scan's grid and carry its header, checked in the written files.

The way there is that of inference.json: load, orient, resample, invert, save.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.transforms import Compose, Invertd, SaveImaged, Spacingd

from scripts.loading import LoadScansd
from scripts.transforms import OrientToWorkingGridd, ToDisplayRanged

SHAPE = (20, 18, 8)
SPACING = (1.1, 0.9, 2.5)
WORKING = (0.8, 0.8, 2.0)
CENTER = (12, 7, 3)  # of a blob, in voxels of the source
BLOB_VOXELS = 2.5  # its width
QUATERNION_ATOL = 1e-4  # mm: a qform stores a rotation as three float32
MASS_ATOL = 0.2  # voxels: two linear interpolations and the border
ANGLE = np.deg2rad(12)


def affine(axes: str, *, oblique: bool = False) -> np.ndarray:
    """Makes an affine whose voxel axes point to the given letters, as in "LAS"."""
    matrix = np.eye(4)
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    matrix[:3, :3] = np.array([directions[axis] for axis in axes], float).T * SPACING
    if oblique:
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]
        matrix = turn @ matrix
    matrix[:3, 3] = (-31.37, 12.5, 77.123)
    return matrix


def write_source(
    path: Path, matrix: np.ndarray, *, qform: int = 1, sform: int = 1, units: str = "mm"
) -> nib.Nifti1Image:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    distance = ((grid - CENTER) / BLOB_VOXELS) ** 2
    image: Any = nib.Nifti1Image((1000 * np.exp(-distance.sum(-1) / 2)).astype(np.float32), None)
    image.header.set_xyzt_units(units, "sec")
    image.header["descrip"] = b"T2 of Jane Doe"
    image.set_qform(matrix, code=qform)
    image.set_sform(matrix if sform else None, code=sform)
    nib.save(image, path)
    return nib.load(path)  # type: ignore[return-value]


def round_trip(
    source: Path, folder: Path, *, invert: bool = True, dtype: str = "float32", synthetic: bool = False
) -> nib.Nifti1Image:
    preprocessing = Compose(
        [
            LoadScansd("image"),
            OrientToWorkingGridd("image"),
            Spacingd("image", pixdim=WORKING, mode="bilinear"),
        ]
    )
    data: Any = preprocessing({"image": str(source)})
    data["pred"] = data["image"].clone()
    if invert:
        data = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)(data)
    if synthetic:
        data = ToDisplayRanged("pred")(data)
    save = SaveImaged(
        "pred",
        output_dir=str(folder),
        output_postfix="pred",
        output_dtype=dtype,
        resample=False,
        writer="scripts.inference.writer.SourceHeaderWriter",
        savepath_in_metadict=True,
        print_log=False,
    )
    return nib.load(save(data)["pred"].meta["saved_to"])  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("axes", "oblique"), [("RAS", False), ("LAS", False), ("LPS", True), ("ASR", True), ("PIL", False), ("RSA", True)]
)
def test_affine_shape_and_header_are_the_sources(tmp_path: Path, axes: str, oblique: bool) -> None:
    source = write_source(tmp_path / "scan.nii.gz", affine(axes, oblique=oblique), qform=1, sform=2)
    written = round_trip(tmp_path / "scan.nii.gz", tmp_path / "out")
    assert written.shape == SHAPE
    assert np.array_equal(written.affine, source.affine)
    for form in ("qform", "sform"):
        assert int(written.header[f"{form}_code"]) == int(source.header[f"{form}_code"])
    assert np.allclose(written.get_qform(), source.get_qform(), rtol=0, atol=QUATERNION_ATOL)
    assert written.header.get_zooms() == pytest.approx(source.header.get_zooms())
    assert written.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "ASR", "PIL"])
def test_content_returns_to_its_voxels(tmp_path: Path, axes: str) -> None:
    write_source(tmp_path / "scan.nii.gz", affine(axes))
    values = np.asarray(round_trip(tmp_path / "scan.nii.gz", tmp_path / "out").dataobj)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    mass = (grid * values[..., None]).sum((0, 1, 2)) / values.sum()
    source = np.asarray(nib.load(tmp_path / "scan.nii.gz").dataobj)  # type: ignore[attr-defined]
    expected = (grid * source[..., None]).sum((0, 1, 2)) / source.sum()
    assert np.abs(mass - expected).max() < MASS_ATOL
    assert np.unravel_index(values.argmax(), SHAPE) == CENTER


@pytest.mark.parametrize(("qform", "sform"), [(0, 1), (1, 0), (3, 4), (2, 2)])
def test_form_codes_are_kept(tmp_path: Path, qform: int, sform: int) -> None:
    source = write_source(tmp_path / "scan.nii.gz", affine("LAS", oblique=True), qform=qform, sform=sform)
    written = round_trip(tmp_path / "scan.nii.gz", tmp_path / "out")
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (qform, sform)
    assert np.allclose(written.affine, source.affine, rtol=0, atol=QUATERNION_ATOL)


def test_pixdim_that_is_rounded_is_kept(tmp_path: Path) -> None:
    """ITK takes its sizes from there: written anew, the output would lie beside its source."""
    write_source(tmp_path / "made.nii", affine("LPS", oblique=True), qform=0)
    raw = bytearray((tmp_path / "made.nii").read_bytes())
    rounded = np.float32(SPACING) * np.float32(1.0005)
    raw[80:92] = rounded.tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)
    written = round_trip(tmp_path / "scan.nii", tmp_path / "out")
    assert np.array_equal(written.header["pixdim"][1:4], rounded)
    assert np.array_equal(written.affine, nib.load(tmp_path / "scan.nii").affine)  # type: ignore[attr-defined]
    source, output = sitk.ReadImage(str(tmp_path / "scan.nii")), sitk.ReadImage(written.get_filename())
    assert source.GetSpacing() == output.GetSpacing() == pytest.approx(rounded.tolist())
    assert source.GetDirection() == output.GetDirection() and source.GetOrigin() == output.GetOrigin()


def test_an_output_of_a_nrrd_lies_where_the_nrrd_does(tmp_path: Path) -> None:
    write_source(tmp_path / "scan.nii.gz", affine("PIL", oblique=True))
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "scan.nii.gz")), str(tmp_path / "scan.nrrd"))
    written = round_trip(tmp_path / "scan.nrrd", tmp_path / "out")
    assert np.allclose(written.affine, affine("PIL", oblique=True), rtol=0, atol=QUATERNION_ATOL)
    assert np.allclose(written.get_qform(), written.affine, rtol=0, atol=QUATERNION_ATOL)
    assert written.header.get_xyzt_units()[0] == "mm"


def test_a_transforms_description_is_written_and_the_sources_is_not(tmp_path: Path) -> None:
    """What a synthetic scan is must be readable from it; what a scanner wrote of the patient must not be passed on."""
    write_source(tmp_path / "scan.nii.gz", affine("RAS"))
    plain = round_trip(tmp_path / "scan.nii.gz", tmp_path / "plain")
    assert b"Jane" not in bytes(plain.header["descrip"])
    written = round_trip(tmp_path / "scan.nii.gz", tmp_path / "out", synthetic=True)
    assert written.header["descrip"].item() == b"synthetic, 0 to 1000"


def test_the_data_type_is_the_outputs(tmp_path: Path) -> None:
    write_source(tmp_path / "scan.nii.gz", affine("RAS"))
    written = round_trip(tmp_path / "scan.nii.gz", tmp_path / "out", dtype="uint8")
    assert written.get_data_dtype() == np.uint8
    assert (tmp_path / "out" / "scan" / "scan_pred.nii.gz").is_file()


def test_an_output_that_is_not_on_the_sources_grid_is_refused(
    tmp_path: Path, messages_of: Callable[[BaseException], str]
) -> None:
    write_source(tmp_path / "scan.nii.gz", affine("ASR"))
    with pytest.raises(Exception) as caught:
        round_trip(tmp_path / "scan.nii.gz", tmp_path / "out", invert=False)
    text = messages_of(caught.value)
    assert "scan.nii.gz is not on the grid of its source" in text and "Invert the preprocessing" in text
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_an_image_without_a_source_gets_monais_defaults(tmp_path: Path) -> None:
    from scripts.inference.writer import SourceHeaderWriter

    writer = SourceHeaderWriter(output_dtype=np.float32)
    writer.set_data_array(torch.ones(1, 3, 4, 5), channel_dim=0)
    writer.set_metadata({"affine": np.diag([2.0, 2.0, 3.0, 1.0])})
    writer.write(tmp_path / "made.nii.gz")
    written = nib.load(tmp_path / "made.nii.gz")
    assert written.shape == (3, 4, 5)  # type: ignore[attr-defined]
    assert np.array_equal(written.affine, np.diag([2.0, 2.0, 3.0, 1.0]))  # type: ignore[attr-defined]
