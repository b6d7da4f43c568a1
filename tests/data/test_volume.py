"""Tests of scripts.data.volume: what NIfTI files give, and every file that is refused, by a made file."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from made.outcomes import error_of
from scipy.spatial.transform import Rotation

from scripts.data.volume import FORMS_AGREE_MM, CaseError, ItkVolume, NiftiVolume, one_line, whole_numbers

SHAPE = (3, 4, 5)
# RAS+ mm: x runs to the left, y to the back, z up.
AFFINE = np.array([[-0.5, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 1.5, -30], [0, 0, 0, 1]])


def counted(*shape: int) -> np.ndarray:
    """Voxels that all differ."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def save(path: Path, voxels: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    """A NIfTI file; sform and qform are both the affine."""
    image = nib.Nifti1Image(counted(*SHAPE) if voxels is None else voxels, affine)
    image.set_qform(affine, code=1)
    nib.save(image, path)
    return path


def changed(path: Path, **fields: object) -> Path:
    """An uncompressed file with other values in its header, whatever they make of it."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


# What is read


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_grid_and_voxels(tmp_path, name):
    volume = NiftiVolume(save(tmp_path / name))
    shape, affine = volume.grid()
    assert shape == SHAPE and all(type(size) is int for size in shape)
    np.testing.assert_array_equal(affine, AFFINE)
    np.testing.assert_array_equal(volume.voxels(), counted(*SHAPE))
    assert volume.voxels().dtype == np.int16
    assert volume.files() == [tmp_path / name]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_scaling_is_applied_to_voxels_and_not_to_what_is_stored(tmp_path, name):
    image = nib.Nifti1Image(counted(*SHAPE), AFFINE)
    image.header.set_slope_inter(2, -10)
    nib.save(image, tmp_path / name)
    stored = NiftiVolume(tmp_path / name).stored()
    np.testing.assert_array_equal(NiftiVolume(tmp_path / name).voxels(), 2.0 * stored - 10)
    assert stored.dtype == np.int16


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("channel", [0, 1])
def test_one_channel_of_a_4d_file(tmp_path, name, channel):
    volume = NiftiVolume(save(tmp_path / name, counted(*SHAPE, 2)), channel, channels=2)
    assert volume.grid()[0] == SHAPE
    np.testing.assert_array_equal(volume.voxels(), counted(*SHAPE, 2)[..., channel])
    np.testing.assert_array_equal(volume.stored(), counted(*SHAPE, 2)[..., channel])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_plain_type_of_voxels(tmp_path, dtype):
    voxels = NiftiVolume(save(tmp_path / "a.nii", counted(*SHAPE).astype(dtype))).voxels()
    assert voxels.dtype == dtype
    np.testing.assert_array_equal(voxels, counted(*SHAPE))


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 4)])
@pytest.mark.parametrize("order", "<>")
def test_one_coded_form_suffices_in_either_order_of_bytes(tmp_path, sform, qform, order):
    image = nib.Nifti1Image(counted(*SHAPE), AFFINE)
    image.set_qform(AFFINE, code=1)
    image = nib.Nifti1Image(image.dataobj, None, image.header.as_byteswapped(order))
    image.header["sform_code"], image.header["qform_code"] = sform, qform
    nib.save(image, tmp_path / "a.nii")
    volume = NiftiVolume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.grid()[1], AFFINE, atol=1e-5)
    np.testing.assert_array_equal(volume.voxels(), counted(*SHAPE))
    header = volume.header()
    assert header["pixdim"].dtype.isnative and header["sform_code"] == sform
    assert not [name for name, value in header.items() if value.dtype.kind in "SUO"]  # what a scanner wrote


@pytest.mark.parametrize("name", ["A.NII", "A.NII.GZ"])
def test_names_in_capitals(tmp_path, name):
    path = save(tmp_path / "a.nii.gz")
    raw = path.read_bytes()
    (tmp_path / name).write_bytes(raw if name.endswith("GZ") else gzip.decompress(raw))
    np.testing.assert_array_equal(NiftiVolume(tmp_path / name).voxels(), counted(*SHAPE))


# What is refused when it is opened


def empty(folder: Path) -> Path:
    (folder / "a.nii").touch()
    return folder / "a.nii"


def text(folder: Path) -> Path:
    (folder / "a.nii.gz").write_text("not an image")
    return folder / "a.nii.gz"


def other_format(folder: Path) -> Path:
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.uint8), np.eye(4)), folder / "a.mgz")
    return folder / "a.mgz"


def two_files(folder: Path) -> Path:
    nib.save(nib.Nifti1Pair(counted(*SHAPE), AFFINE), folder / "a.img")
    return folder / "a.img"


def colored(folder: Path) -> Path:
    return save(folder / "a.nii", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def compressed_to_little(folder: Path) -> Path:
    path = changed(save(folder / "a.nii"), dim=[3, 3000, 3000, 3000, 1, 1, 1, 1])
    (folder / "a.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    return folder / "a.nii.gz"


def with_affine(column: int, values: list[float]) -> Callable[[Path], Path]:
    """Maker of a file with another column in its affine, and pixdim that agrees."""

    def make(folder: Path) -> Path:
        affine = AFFINE.copy()
        affine[:3, column] = values
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        rows = {f"srow_{name}": row for name, row in zip("xyz", affine, strict=False)}
        return changed(save(folder / "a.nii"), **rows, qform_code=0, pixdim=[1, *sizes, 1, 1, 1, 1])

    return make


def with_header(**fields: object) -> Callable[[Path], Path]:
    """Maker of a file with other values in its header."""
    return lambda folder: changed(save(folder / "a.nii"), **fields)


def many_slices(**fields: object) -> Callable[[Path], Path]:
    """Maker of a file of 150 slices, with a sform alone and other values in its header."""
    return lambda folder: changed(save(folder / "a.nii", counted(3, 4, 150)), **fields, qform_code=0)


@pytest.mark.parametrize(
    ("make", "check", "found", "expected"),
    [
        (lambda folder: folder / "a.nii", "missing file", "no file .*a.nii", "a NIfTI file"),
        (lambda folder: folder, "missing file", "no file", "a NIfTI file"),
        (empty, "unreadable file", "a.nii: .*[Ee]mpty", "a NIfTI file"),
        (text, "unreadable file", "a.nii.gz: ", "a NIfTI file"),
        (other_format, "unreadable file", "a.mgz: MGHImage", "a NIfTI file"),
        (two_files, "unreadable file", "a.img: Nifti1Pair", "a NIfTI file"),
        (with_header(datatype=12345), "unreadable file", "a.nii: ", "a NIfTI file"),
        (lambda folder: save(folder / "a.nii", counted(3, 4)), "not 3-D", r"2-D, shape \(3, 4\)", "a 3-D volume"),
        (lambda folder: save(folder / "a.nii", counted(3, 4, 5, 2)), "not 3-D", "4-D, shape", "a 3-D volume"),
        (colored, "color image", "a.nii: data type .*'R'", "one number per voxel"),
        (lambda f: save(f / "a.nii", np.zeros(SHAPE, np.complex64)), "unreadable file", "complex64", "plain numbers"),
        (with_header(dim=[3, 30, 40, 50, 1, 1, 1, 1]), "unreadable file", r"472 bytes for shape \(30, 40", "complete"),
        (with_header(dim=[3, 0, 4, 5, 1, 1, 1, 1]), "unreadable file", r"for shape \(0, 4, 5\)", "complete"),
        (with_header(dim=[3, -3, 4, 5, 1, 1, 1, 1]), "unreadable file", r"a.nii: ", "NIfTI file"),
        (compressed_to_little, "unreadable file", r"a.nii.gz: \d+ bytes for shape \(3000", "complete"),
        (with_affine(0, [np.nan, 0, 0]), "orientation", "a.nii: affine .*nan", "numbers"),
        (with_affine(3, [np.inf, 0, 0]), "orientation", "a.nii: affine .*inf", "numbers"),
        (with_affine(3, [10001, 0, 0]), "orientation", "the first voxel lies at 1e[+]04 x 0 x 0 mm", "within 10000 mm"),
        (with_header(sizeof_hdr=256), "unreadable file", "a.nii: a header of 256 bytes", "sizeof_hdr 348"),
        (with_header(srow_x=[0, 0, 0, 0], qform_code=0), "spacing", "voxels of 0 x 0.5 x 1.5 mm", "0.05 to 20.0 mm"),
        (with_affine(1, [0, 0, 0]), "spacing", "a.nii: pixdim 0.5 x 0 x 1.5", "above 0"),
        (with_affine(0, [0.04, 0, 0]), "spacing", "voxels of 0.04 x 0.5 x 1.5 mm", "0.05 to 20.0 mm"),
        (with_affine(2, [0, 0, 20.5]), "spacing", "voxels of 0.5 x 0.5 x 20.5 mm", "0.05 to 20.0 mm"),
        (with_affine(2, [0, 0.0045, 1.5]), "orientation", "axes whose cosine is 0.003", "cosine at most 0.001"),
        (with_header(pixdim=[1, 0.5, 0.5, 1.52, 1, 1, 1, 1], qform_code=0), "spacing", "1.52, affine .* 1.5 mm", "one"),
        (many_slices(pixdim=[1, 0.5, 0.5, 1.503, 1, 1, 1, 1]), "spacing", "1.503, affine .* 1.5 mm", "one size"),
        (with_header(sform_code=0, qform_code=0), "orientation", "a.nii: no position, .* code 0", "from DICOM again"),
        (with_header(sform_code=7), "orientation", "a.nii: sform_code 7", "from 0 to 5"),
        (with_header(qform_code=-1), "orientation", "a.nii: qform_code -1", "from 0 to 5"),
        (with_header(pixdim=[1, 0, 0.5, 1.5, 1, 1, 1, 1]), "spacing", "a.nii: pixdim 0 x 0.5 x 1.5", "above 0"),
        (with_header(pixdim=[1, -0.5, 0.5, 1.5, 1, 1, 1, 1]), "spacing", "a.nii: pixdim -0.5 x 0.5 x", "above 0"),
        (with_header(pixdim=[-0.3, 0.5, 0.5, 1.5, 1, 1, 1, 1]), "orientation", r"pixdim\[0\] -0.3", "-1 or 1"),
        (with_header(xyzt_units=3), "spacing", "a.nii: sizes in micron", "mm; convert"),
        (with_header(xyzt_units=1 + 8), "spacing", "a.nii: sizes in meter", "mm; convert"),
        (with_header(scl_slope=1, scl_inter=np.nan), "unreadable file", "a.nii: .*intercept", "a NIfTI file"),
        (lambda f: save(f / "a.nii", counted(4, 5, 2)), "number of slices", r"a.nii: 2, shape \(4, 5, 2\)", "least 3"),
        (lambda f: save(f / "a.nii", counted(1, 5, 4)), "number of slices", r"a.nii: 1, shape \(1, 5, 4\)", "least 3"),
    ],
)
def test_refused(tmp_path, make, check, found, expected):
    volume = NiftiVolume(make(tmp_path))
    for call in (volume.open, volume.grid, volume.voxels, volume.stored, volume.header):
        error = error_of(call)
        assert error.check == check
        with pytest.raises(CaseError, match=f"found .*{found}.*, expected .*{expected}"):
            raise error


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 3), (3, 4, 5, 4, 2)])
def test_other_channels_than_those_meant_are_refused(tmp_path, shape):
    error = error_of(NiftiVolume(save(tmp_path / "a.nii", counted(*shape)), 0).open)
    assert error.check == "wrong channels"
    assert str(shape) in error.found and error.expected == "a 4-D volume with 4 channels"


@pytest.mark.parametrize(
    "make",
    [
        with_affine(0, [0.051, 0, 0]),
        with_affine(2, [0, 0, 19.9]),
        with_affine(2, [0, 0, np.nextafter(np.float32(20), np.float32(21))]),
        with_affine(2, [0, 0.0012, 1.5]),
        with_header(pixdim=[1, 0.5, 0.5, 1.51, 1, 1, 1, 1], qform_code=0),
        with_header(pixdim=[0, 0.5, 0.5, 1.5, 1, 1, 1, 1]),
        with_header(xyzt_units=0),
        with_header(scl_slope=np.nan, scl_inter=np.nan),
        with_header(scl_slope=0),
    ],
)
def test_what_lies_just_within_the_limits_is_read(tmp_path, make):
    np.testing.assert_array_equal(NiftiVolume(make(tmp_path)).voxels(), counted(*SHAPE))


# sform and qform


def with_forms(folder: Path, qform: np.ndarray, *, codes: tuple[int, int] = (1, 1)) -> NiftiVolume:
    """A file whose sform is `AFFINE`."""
    image = nib.Nifti1Image(counted(*SHAPE), AFFINE)
    image.set_qform(qform, code=1)
    nib.save(image, folder / "a.nii")
    return NiftiVolume(changed(folder / "a.nii", sform_code=codes[0], qform_code=codes[1]))


def moved(x: float) -> np.ndarray:
    """`AFFINE`, moved to the left by so many mm."""
    return AFFINE - [[0, 0, 0, x], *np.zeros((3, 4))]


@pytest.mark.parametrize(
    ("qform", "distance"),
    [
        (moved(0.31), "0.31"),
        (moved(64), "64"),
        # x reversed about its own first voxel: the last of three is 2 x 2 x 0.5 mm away.
        (AFFINE @ np.diag([-1, 1, 1, 1]), "2"),
    ],
)
def test_forms_that_differ_are_refused(tmp_path, qform, distance):
    error = error_of(with_forms(tmp_path, qform).open)
    assert error.check == "affine"
    assert error.found == f"a.nii: sform and qform differ by {distance} mm"
    assert f"within {FORMS_AGREE_MM} mm" in error.expected


def test_a_turn_is_seen_at_the_far_corner(tmp_path):
    """0.002 rad about x moves nothing at the first voxel, and voxel (0, 0, 199) of 1.5 mm by 0.597 mm."""
    sine, cosine = np.sin(0.002), np.cos(0.002)
    turn = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]])
    qform = AFFINE.copy()
    qform[:3, :3] = (turn @ AFFINE)[:3, :3]
    for slices, refused in ((200, True), (20, False)):
        image = nib.Nifti1Image(np.zeros((3, 3, slices), np.uint8), AFFINE)
        image.set_qform(qform, code=1)
        nib.save(image, tmp_path / "a.nii")
        if refused:
            assert "differ by 0.597 mm" in error_of(NiftiVolume(tmp_path / "a.nii").open).found
        else:
            assert NiftiVolume(tmp_path / "a.nii").grid()[0] == (3, 3, slices)


def test_forms_that_agree_are_read(tmp_path):
    np.testing.assert_array_equal(with_forms(tmp_path, moved(0.29)).grid()[1], AFFINE)


def test_rounding_of_the_qform_is_no_difference(tmp_path):
    """Axes to L, P and S (half a turn) that are tilted a little, over 240 x 240 x 160 mm."""
    for tilt in np.radians(np.geomspace(0.001, 10, 60)):
        turn = Rotation.from_rotvec(tilt * np.array([0.48, -0.6, 0.64])).as_matrix() @ np.diag([-1.0, -1.0, 1.0])
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn * [15, 15, 10], [120, 120, -70]
        grid = NiftiVolume(save(tmp_path / "a.nii", np.zeros((17, 17, 17), np.uint8), affine)).grid()
        np.testing.assert_allclose(grid[1], affine, atol=1e-4)


def test_quaternion_that_is_a_little_too_long_is_read(tmp_path):
    """Half a turn about z is (0, 0, 1); nibabel's own qform refuses (0, 0, 1.000001)."""
    path = changed(save(tmp_path / "a.nii"), quatern_d=1.000001)
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(path).get_qform()
    np.testing.assert_array_equal(NiftiVolume(path).grid()[1], AFFINE)


def test_reversed_slices_agree(tmp_path):
    """A grid of the other hand: pixdim[0] is -1."""
    affine = AFFINE @ np.diag([1, 1, -1, 1])
    path = save(tmp_path / "a.nii", affine=affine)
    assert nib.load(path).header["pixdim"][0] == -1
    np.testing.assert_array_equal(NiftiVolume(path).grid()[1], affine)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1)])
def test_a_form_whose_code_is_0_is_not_compared(tmp_path, codes):
    affine = with_forms(tmp_path, moved(64), codes=codes).grid()[1]
    np.testing.assert_allclose(affine, AFFINE if codes[0] else moved(64), atol=1e-5)


@pytest.mark.parametrize("fields", [{"quatern_b": 3.0}, {"quatern_b": np.nan}, {"qoffset_x": np.nan}])
def test_a_damaged_qform_beside_a_sform_is_refused(tmp_path, fields):
    error = error_of(NiftiVolume(changed(save(tmp_path / "a.nii"), **fields)).open)
    assert error.check == "affine" and "a.nii: " in error.found


# NRRD and MetaImage


def save_itk(path: Path, voxels: np.ndarray | None = None, *, affine: np.ndarray = AFFINE) -> Path:
    """A file as ITK writes it."""
    voxels = counted(*SHAPE) if voxels is None else voxels
    image = sitk.GetImageFromArray(voxels.T)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "A.NRRD"])
def test_other_formats_are_placed_as_itk_places_them(tmp_path, name):
    volume = ItkVolume(save_itk(tmp_path / name))
    shape, affine = volume.grid()
    assert shape == SHAPE and volume.files() == sorted(tmp_path.iterdir()) and volume.warnings() == []
    np.testing.assert_allclose(affine, AFFINE)
    np.testing.assert_array_equal(volume.voxels(), counted(*SHAPE))


def test_a_nrrd_in_ras_has_the_same_place(tmp_path):
    path = save_itk(tmp_path / "a.nrrd")
    as_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE  # the same numbers, read as RAS
    content = path.read_bytes()
    path.write_bytes(content.replace(b"space: left-posterior-superior", b"space: right-anterior-superior"))
    assert path.read_bytes() != content
    np.testing.assert_allclose(ItkVolume(path).grid()[1], as_ras)


def spacings_alone(folder: Path) -> Path:
    (folder / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 3 4 5\nspacings: 0.5 0.5 1.5\nendian: little\nencoding: raw\n\n"
        + counted(*SHAPE).T.tobytes()
    )
    return folder / "a.nrrd"


def no_nrrd(folder: Path) -> Path:
    (folder / "a.nrrd").write_text("not an image")
    return folder / "a.nrrd"


def colored_nrrd(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 4, 3, 3), np.uint8), isVector=True), str(folder / "a.nrrd"))
    return folder / "a.nrrd"


def complex_mha(folder: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 4, 3), np.complex64)), str(folder / "a.mha"))
    return folder / "a.mha"


@pytest.mark.parametrize(
    ("make", "check", "found", "expected"),
    [
        (lambda folder: folder / "a.nrrd", "missing file", "no file .*a.nrrd", "an image"),
        (no_nrrd, "unreadable file", "a.nrrd: ", "a NRRD or MetaImage file"),
        (spacings_alone, "orientation", "a.nrrd: no position, the header names no space", "save it from 3D Slicer"),
        (colored_nrrd, "color image", "a.nrrd: 3 numbers", "one number per voxel"),
        (complex_mha, "(unreadable file|color image)", "a.mha: ", "(plain numbers|one number)"),
        (lambda f: save_itk(f / "a.mha", counted(3, 4, 2)), "number of slices", r"a.mha: 2", "at least 3"),
        (
            lambda f: save_itk(f / "a.mha", affine=AFFINE * [40, 40, 40, 1]),
            "spacing",
            "a.mha: voxels of 20 x 20 x 60 mm",
            "0.05 to 20.0 mm",
        ),
    ],
)
def test_refused_of_other_formats(tmp_path, make, check, found, expected):
    volume = ItkVolume(make(tmp_path))
    for call in (volume.open, volume.grid, volume.voxels):
        error = error_of(call)
        assert re.fullmatch(check, error.check)
        with pytest.raises(CaseError, match=f"found .*{found}.*, expected .*{expected}"):
            raise error


def test_a_nrrd_that_ends_too_early_is_refused(tmp_path):
    path = save_itk(tmp_path / "a.nrrd")
    path.write_bytes(path.read_bytes()[:-30])
    assert ItkVolume(path).grid()[0] == SHAPE
    error = error_of(ItkVolume(path).voxels)
    assert error.check == "unreadable file" and error.found.startswith("a.nrrd: ")


# Labels


def test_rounding_of_a_slope_is_taken_off_labels_and_nothing_else():
    slope = np.float32(1 / 50)
    scaled = np.array([0, 50, 100, 150], np.uint8) * np.float64(slope)
    assert scaled[1] == 0.9999999776482582
    np.testing.assert_array_equal(whole_numbers(scaled), [0, 1, 2, 3])
    np.testing.assert_array_equal(whole_numbers(np.array([0.5, 0.999, np.nan])), [0.5, 0.999, np.nan])
    labels = np.array([0, 1], np.uint8)
    assert whole_numbers(labels) is labels


# What is refused when its voxels are read


@pytest.mark.parametrize("channel", [None, 1])
def test_truncated_file_has_a_grid_and_no_voxels(tmp_path, channel):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20, 4)[: 3 if channel is None else 4], np.uint8)
    path = save(tmp_path / "a.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:-4000])
    volume = NiftiVolume(path, channel)
    assert volume.grid()[0] == (20, 20, 20)
    for call in (volume.voxels, volume.stored):
        error = error_of(call)
        assert error.check == "unreadable file"
        assert error.found.startswith("a.nii.gz: ") and error.expected == "a complete NIfTI file"


@pytest.mark.parametrize("place", [-8, -3], ids=["checksum", "length"])
def test_voxels_that_are_not_those_of_the_checksum_are_refused(tmp_path, place):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8)  # more than nibabel looks at
    path = save(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    volume = NiftiVolume(path)
    assert volume.grid()[0] == noise.shape
    for call in (volume.voxels, volume.stored):
        assert error_of(call).check == "unreadable file"


def test_no_memory_for_the_voxels_is_told(tmp_path, monkeypatch):
    def exhausted(*_: object) -> bytes:
        raise MemoryError

    path = save(tmp_path / "a.nii.gz")
    monkeypatch.setattr(gzip, "decompress", exhausted)
    assert error_of(NiftiVolume(path).voxels).found == "a.nii.gz: MemoryError"


ITK = "Exception thrown in SimpleITK ImageFileReader_Execute: /x/itkImageIO.cxx:410: itk::ERROR:"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (EOFError(), "EOFError"),
        (MemoryError(), "MemoryError"),
        (ValueError("no such tag Traceback (most recent call last): File"), "no such tag"),
        (
            RuntimeError(f"{ITK} NrrdImageIO(0x55): Read: Error reading /a/b: [nrrd] _nrrdLoad: got only 4"),
            "got only 4",
        ),
        (RuntimeError(f"{ITK} MetaImageIO(0x55): File cannot be read: /a/b Reason: Success"), "damaged, or cut off"),
    ],
)
def test_one_line(error, line):
    assert one_line(error) == line
