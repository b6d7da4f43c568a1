"""One reading of a scan, whatever its header: for headers that hypothesis makes up.

`NiftiVolume` (prepare) and `LoadScansd` (training, inference, app) give one affine or one sentence, and what is written
lies on the scan in nibabel's eyes and in ITK's, which 3D Slicer reads with.
"""

from __future__ import annotations

import gzip
import itertools
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from made.places import corners, itk_affine
from scipy.spatial.transform import Rotation

from scripts.data.volume import FORMS_AGREE_MM, CaseError, NiftiVolume
from scripts.inference.writer import SourceHeaderWriter
from scripts.loading import LoadScansd

SAME_MM = 1e-3  # output and source
ITK_MM = 2 * FORMS_AGREE_MM  # ITK and the reader: another form, with the sizes of pixdim
AXES = [
    np.eye(3)[list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]

load = LoadScansd("image")


def mostly(usual: st.SearchStrategy, odd: st.SearchStrategy) -> st.SearchStrategy:
    """One in twenty is odd, so that most scans are refused for nothing or for one thing."""
    return st.integers(0, 19).flatmap(lambda draw: odd if draw == 19 else usual)


scans = st.fixed_dictionaries(
    {
        "shape": mostly(st.tuples(*[st.integers(3, 40)] * 3), st.tuples(*[st.integers(1, 4)] * 3)),
        "axes": st.sampled_from(AXES),
        "tilt": st.one_of(st.just([0.0] * 3), st.lists(st.floats(-0.6, 0.6), min_size=3, max_size=3)),
        "spacing": mostly(st.tuples(*[st.floats(0.3, 6)] * 3), st.tuples(*[st.floats(0.04, 21)] * 3)),
        "origin": st.tuples(*[st.floats(-200, 200)] * 3),
        "codes": mostly(
            st.sampled_from([(0, 1), (0, 2), (1, 0), (1, 1), (1, 4), (2, 2), (5, 5)]),
            st.tuples(*[st.sampled_from([0, 1, 7, -1])] * 2),
        ),
        "moved": mostly(st.sampled_from([0.0, 0.2]), st.just(5.0)),  # mm between the forms
        "rounding": mostly(st.sampled_from([1.0, 1.00025]), st.sampled_from([1.005, 1.5, 0.0, -1.0])),  # of pixdim
        "handed": mostly(st.none(), st.sampled_from([0.0, -0.3])),  # pixdim[0]
        "units": mostly(st.sampled_from([2, 10, 0]), st.sampled_from([1, 3, 5])),
        "dtype": mostly(st.sampled_from(["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"]), st.just("c8")),
        "slope": st.sampled_from([(1.0, 0.0), (1.0, 0.0), (0.0, 7.0), (0.02, -3.0), (-2.0, 1.0), (np.nan, np.nan)]),
        "kind": st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
        "order": st.sampled_from("<>"),
        "name": st.sampled_from(["a.nii", "a.nii.gz"]),
    }
)


def write(folder: Path, given: dict[str, Any]) -> Path:
    """Writes a scan as it is described, byte by byte."""
    turn = Rotation.from_rotvec(given["tilt"]).as_matrix() @ given["axes"]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * given["spacing"], given["origin"]
    voxels = np.random.default_rng(0).integers(1, 100, given["shape"]).astype(given["dtype"])
    image = given["kind"](voxels, affine, dtype=voxels.dtype)
    other = affine.copy()
    other[0, 3] += given["moved"]
    image.set_qform(other, code=1)
    header = image.header.as_byteswapped(given["order"])
    header["qform_code"], header["sform_code"] = given["codes"]
    header["pixdim"][1:4] *= given["rounding"]
    if given["handed"] is not None:
        header["pixdim"][0] = given["handed"]
    header["xyzt_units"] = given["units"]
    header["scl_slope"], header["scl_inter"] = given["slope"]
    header["vox_offset"] = len(header.binaryblock) + 4
    raw = header.binaryblock + bytes(4) + voxels.astype(voxels.dtype.newbyteorder(given["order"])).tobytes(order="F")
    path = folder / given["name"]
    path.write_bytes(gzip.compress(raw, 1) if path.suffix == ".gz" else raw)
    return path


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(scans)
def test_output_and_scan_lie_at_one_place_or_the_file_is_named(described: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), described)
        try:
            shape, affine = NiftiVolume(path).grid()
            voxels = NiftiVolume(path).voxels()
        except CaseError as error:
            assert error.found.startswith(path.name)
            try:
                load({"case": "7", "image": str(path)})
            except CaseError as same:
                assert same.row[1:] == (error.check, f"case 7: {error.found}", error.expected)
                return
            raise AssertionError("prepare refuses what inference reads") from error
        image = load({"case": "7", "image": str(path)})["image"]
        assert np.array_equal(image.affine.numpy(), affine)
        assert np.array_equal(image[0].numpy(), voxels.astype(np.float32))

        writer = SourceHeaderWriter(output_dtype=np.uint8)
        writer.set_data_array(image > 0, channel_dim=0)
        writer.set_metadata(image.meta, resample=False)
        written = Path(folder) / "mask.nii.gz"
        writer.write(written)
        assert NiftiVolume(written).grid()[0] == shape  # it is accepted itself

        scan, mask = nib.load(path).affine, nib.load(written).affine  # type: ignore[attr-defined]
        assert np.abs(corners(shape, scan) - corners(shape, mask)).max() < SAME_MM
        assert np.abs(corners(shape, scan) - corners(shape, affine)).max() < ITK_MM
        scan_in_itk, mask_in_itk = itk_affine(path), itk_affine(written)
        if scan_in_itk is not None:  # not of NIfTI-2, nor skewed by rounding
            assert mask_in_itk is not None
            assert np.abs(corners(shape, scan_in_itk) - corners(shape, mask_in_itk)).max() < SAME_MM
            assert np.abs(corners(shape, scan_in_itk) - corners(shape, affine)).max() < ITK_MM
