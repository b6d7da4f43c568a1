"""Tests of scripts.data.conversion: what is copied, what is resampled, and what a moved image looks like where it ends.

Cases of whole data sets are in `test_prepare.py`, those that must be left out in `test_refused.py`.
"""

import functools
import gzip
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from made import downloads
from made.moves import rigid
from made.outcomes import error_of

from scripts.data import conversion, plausibility
from scripts.data.case import Facts
from scripts.data.conversion import Registered, nifti_files, register_images, write_image, write_nifti_case
from scripts.data.datalist import TASKS
from scripts.data.registration.align import Alignment
from scripts.data.sources.nifti import tumor_labels
from scripts.data.sources.nifti_case import NiftiCase
from scripts.data.volume import CaseError, NiftiVolume

AFFINE = np.array([[-0.5, 0, 0, 12], [0, 0.5, 0, -7], [0, 0, 1.5, 3], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)
AWAY_MM = 10.0


@dataclass(frozen=True)
class Held:
    """A volume that is in memory; one without voxels cannot be read."""

    array: np.ndarray | None
    affine: np.ndarray
    shape: tuple[int, ...] = SHAPE

    def grid(self):
        return (self.shape if self.array is None else self.array.shape), self.affine

    def voxels(self):
        if self.array is None:
            raise CaseError("unreadable file", "a.dcm: no pixels", "a complete series")
        return self.array

    def files(self):
        return []


@functools.cache
def head(name):
    """(voxels, affine) of a made head with air around it, as a scanner stores it."""
    return downloads.stored(downloads.head().images[name]), downloads.head().affine


@functools.cache
def brain(name):
    """The same of a skull-stripped brain."""
    return downloads.stored(downloads.brain().images[name]), downloads.brain().affine


def write_nifti(path, voxels, affine=AFFINE):
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="aligned")
    image.header["descrip"] = path.name.encode()
    nib.save(image, path)
    return NiftiVolume(path)


def ramp(dtype=np.int16, start=100):
    """Voxels each of which has a value of its own."""
    return np.arange(start, start + np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def made_case(folder, *, suffix=".nii.gz", **images):
    """T2 and ceT1 on one grid, unless others are given, and a label whose tumor is 2 and 7."""
    volumes = images or {"ceT1": ramp(start=500), "T2": ramp()}
    found = {name: write_nifti(folder / f"{name}{suffix}", voxels) for name, voxels in volumes.items()}
    drawn = np.zeros(SHAPE, np.int16)
    drawn[2, 2, 1:3], drawn[4, 4, 3] = (2, 7), 1
    return NiftiCase("a", "p", "c", found, write_nifti(folder / f"seg{suffix}", drawn), tumor_labels((2, 7)))


def convert(case, folder, *, names=("T2", "ceT1", "label"), register=False):
    folder.mkdir()
    return write_nifti_case(case, TASKS["vs"], names, register, folder)


def tfm(path, transform):
    matrix = sitk.AffineTransform(3)
    matrix.SetMatrix(transform.GetMatrix())
    matrix.SetTranslation(np.array(transform.TransformPoint((0.0, 0.0, 0.0))).tolist())
    sitk.WriteTransform(matrix, str(path))
    return path


def displaced(affine, *, x=AWAY_MM):
    """An affine whose grid lies further to the right, RAS mm."""
    affine = affine.copy()
    affine[0, 3] += x
    return affine


def alignment(transform):
    return Alignment(transform, "tfm", {}, None, 0.0, 0.0)


# --- nifti_files


def test_files_by_role_are_those_that_the_case_has(tmp_path):
    case = made_case(tmp_path)
    assert nifti_files(case, ("T2", "FLAIR", "label")) == {
        "T2": (tmp_path / "T2.nii.gz",),
        "label": (tmp_path / "seg.nii.gz",),
    }


# --- write_image


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.float64, np.float32),
        (np.int64, np.int32),
        (np.uint64, np.uint32),
        (np.float32, np.float32),
        (np.int16, np.int16),
        (np.uint8, np.uint8),
    ],
)
def test_an_image_as_written(tmp_path, dtype, stored):
    voxels = ramp(dtype)
    write_image(voxels, AFFINE, "a", "T2", tmp_path)
    image = nib.load(tmp_path / "a_T2.nii.gz")
    assert image.get_data_dtype() == stored
    np.testing.assert_array_equal(image.dataobj.get_unscaled(), voxels)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(image.get_qform(), AFFINE, atol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)


# --- write_nifti_case


def test_plain_files_are_compressed_and_nothing_else(tmp_path):
    case = made_case(tmp_path, suffix=".nii")
    convert(case, tmp_path / "a")
    convert(case, tmp_path / "again")
    written = (tmp_path / "a" / "a_T2.nii.gz").read_bytes()
    assert gzip.decompress(written) == (tmp_path / "T2.nii").read_bytes()
    assert written == (tmp_path / "again" / "a_T2.nii.gz").read_bytes()
    assert written[4:8] == b"\0\0\0\0"  # The time in a gzip header, RFC 1952: of no run.


def test_the_label_is_a_mask_that_lies_as_the_target_does(tmp_path):
    convert(made_case(tmp_path), tmp_path / "a")
    image, target = (nib.load(tmp_path / "a" / f"a_{name}.nii.gz") for name in ("label", "ceT1"))
    expected = np.zeros(SHAPE)
    expected[2, 2, 1:3] = 1
    np.testing.assert_array_equal(image.get_fdata(), expected)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, target.affine)
    assert [int(image.header[f"{form}_code"]) for form in ("sform", "qform")] == [1, 2]
    assert image.header["descrip"].item() == b"ceT1.nii.gz"


def test_every_problem_of_the_grids_is_told(tmp_path):
    case = made_case(tmp_path, T2=ramp(), ceT1=ramp()[:5], FLAIR=ramp()[:, :4])
    error = error_of(lambda: convert(case, tmp_path / "a", names=("T2", "ceT1", "FLAIR")))
    assert [each.found for each in error.errors] == ["ceT1 (5, 5, 4)", "FLAIR (6, 4, 4)"]


def test_registration_leaves_alone_what_is_on_one_grid(tmp_path):
    volumes = {name: write_nifti(tmp_path / f"{name}.nii.gz", *head(name)) for name in ("T2", "ceT1")}
    label = write_nifti(tmp_path / "l.nii.gz", tumor(4), head("T2")[1])
    case = NiftiCase("a", "a", "c", volumes, label, tumor_labels())
    facts = convert(case, tmp_path / "a", register=True)
    written = {name: nib.load(tmp_path / "a" / f"a_{name}.nii.gz") for name in ("ceT1", "label")}
    assert (tmp_path / "a" / "a_T2.nii.gz").read_bytes() == (tmp_path / "T2.nii.gz").read_bytes()
    np.testing.assert_array_equal(written["ceT1"].get_fdata(), head("ceT1")[0])
    np.testing.assert_array_equal(written["label"].get_fdata(), tumor(4))
    assert facts == Facts()


# --- register_images


def bring(tmp_path, first, second, *, x=AWAY_MM, facts=None, **arguments):
    """The second image, displaced along x, brought to the first by a .tfm that takes back `AWAY_MM`."""
    (fixed, affine), (moving, moving_affine) = first, second
    path = tfm(tmp_path / "back.tfm", rigid((-AWAY_MM, 0, 0)))
    volumes = {"T2": Held(fixed, affine), "ceT1": Held(moving, displaced(moving_affine, x=x))}
    return register_images(volumes, Facts() if facts is None else facts, transforms=[path], **arguments)


def test_the_first_image_is_untouched_and_decides_the_grid(tmp_path):
    registered = bring(tmp_path, head("T2"), head("ceT1"))
    assert list(registered.images) == ["T2", "ceT1"]
    assert registered.images["T2"] is head("T2")[0]
    np.testing.assert_array_equal(registered.affine, head("T2")[1])
    np.testing.assert_array_equal(registered.affines["ceT1"], displaced(head("ceT1")[1]))
    assert list(registered.alignments) == list(registered.covered) == ["ceT1"]


def test_an_image_that_was_displaced_comes_back_voxel_by_voxel(tmp_path):
    facts = Facts()
    registered = bring(tmp_path, head("T2"), head("ceT1"), facts=facts)
    np.testing.assert_array_equal(registered.images["ceT1"], head("ceT1")[0])
    assert registered.covered["ceT1"].all()
    assert facts.shown["ceT1 brought by"] == "tfm, 10.00 mm, 0.00 degrees"
    assert facts.shown["ceT1 covers"] == "100% of the grid"
    assert "ceT1 registration residual" not in facts.shown


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_integers_stay_integers_of_the_type_and_within_the_range(tmp_path, dtype):
    voxels, affine = head("ceT1")
    highest = np.iinfo(dtype).max if dtype != np.int32 else 100_000
    moving = np.rint(voxels / voxels.max() * highest).astype(dtype)
    image = bring(tmp_path, head("T2"), (moving, affine), x=AWAY_MM + 0.35).images["ceT1"]
    assert image.dtype == dtype
    assert moving.min() <= image.min() and image.max() <= moving.max()
    # A quarter of a voxel of 1.4 mm away, every value lies between two, and is rounded.
    between = 0.25 * moving[:-1] + 0.75 * moving[1:]
    assert np.abs(image[1:] - between).max() <= 0.51


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_numbers_become_float32(tmp_path, dtype):
    voxels, affine = head("ceT1")
    moving = voxels.astype(dtype) / 1000
    image = bring(tmp_path, head("T2"), (moving, affine)).images["ceT1"]
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, moving, atol=1e-6)


def test_a_grid_is_trusted_only_where_that_was_asked_for(tmp_path):
    (t2, affine), (cet1, _) = head("T2"), head("ceT1")
    volumes = {"T2": Held(t2, affine), "ceT1": Held(cet1, displaced(affine, x=0.05))}
    trusted = register_images(volumes, Facts(), trust_grids=True)
    assert trusted.images["ceT1"] is cet1 and not trusted.alignments and not trusted.covered
    path = tfm(tmp_path / "still.tfm", rigid())
    assert list(register_images(volumes, Facts(), transforms=[path]).alignments) == ["ceT1"]


def test_an_image_of_another_grid_is_moved_though_grids_are_trusted(tmp_path):
    registered = bring(tmp_path, head("T2"), head("ceT1"), trust_grids=True)
    assert list(registered.alignments) == ["ceT1"]


def test_where_a_head_ends_there_is_air_and_no_exact_zero(tmp_path):
    voxels, affine = head("ceT1")
    half = voxels[:, :, :5]
    registered = bring(tmp_path, head("T2"), (half, affine))
    image, covered = registered.images["ceT1"], registered.covered["ceT1"]
    np.testing.assert_array_equal(covered.any(axis=(0, 1)), [True] * 5 + [False] * 5)
    np.testing.assert_array_equal(image[:, :, :5], half)
    air = np.median(half[~plausibility.foreground(half)])
    assert air > 0
    np.testing.assert_array_equal(image[~covered], np.int16(air))
    assert not plausibility.is_skull_stripped(image)
    assert plausibility.is_skull_stripped(np.where(covered, image, 0))


def test_where_a_skull_stripped_brain_ends_there_are_zeros(tmp_path):
    voxels, affine = brain("ceT1")
    registered = bring(tmp_path, brain("T2"), (voxels[:, :, :11], affine))
    image, covered = registered.images["ceT1"], registered.covered["ceT1"]
    assert covered.sum() == voxels[:, :, :11].size
    assert not image[~covered].any() and plausibility.is_skull_stripped(image)


@pytest.mark.parametrize(
    ("moving", "check", "part"),
    [
        (None, "unreadable file", "ceT1: a.dcm: no pixels"),
        (np.full(SHAPE, 7), "constant image", "ceT1: every voxel is 7"),
        (np.where(ramp(float) == 100, np.nan, ramp(float)), "non-finite image", "ceT1: 1 voxels"),
    ],
)
def test_what_nothing_can_be_computed_with_is_refused(moving, check, part):
    good, bad = Held(ramp(), AFFINE), Held(moving, AFFINE)
    error = error_of(lambda: register_images({"T2": good, "ceT1": bad}, Facts(), trust_grids=True))
    assert error.check == check and part in error.found
    assert part.replace("ceT1", "T2") in error_of(lambda: register_images({"T2": bad, "ceT1": good}, Facts())).found


# --- Together


def ball(shape, affine, center, radius):
    """Mask of a ball, RAS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - center, axis=-1) <= radius).astype(np.uint8)


def center_of_mass(mask, affine):
    return np.argwhere(mask).mean(axis=0) @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.0)])
def test_a_mask_moves_with_its_image(spacing):
    affine, own = np.diag([1.0, 1.0, 1.5, 1.0]), np.diag([*spacing, 1.0])
    reference = np.zeros((48, 48, 32), np.int16)
    # Fixed to moving: 3 mm along L, which is -3 mm along RAS x, and a turn about the ball's center.
    move = rigid((3.0, 0.0, 0.0), (0.0, 0.0, 25.0), center=(-24.0, -24.0, 24.0))
    registered = Registered(
        {"T2": reference, "ceT1": reference}, affine, {"T2": affine, "ceT1": own}, {"ceT1": alignment(move)}, {}
    )
    drawn = ball([round(size / step) for size, step in zip((48, 48, 48), spacing, strict=True)], own, (21, 24, 24), 8)
    mask = registered.mask(drawn, "ceT1")
    assert mask.shape == reference.shape and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    assert mask.sum() * 1.5 == pytest.approx(drawn.sum() * np.prod(spacing), rel=0.05)
    np.testing.assert_allclose(center_of_mass(mask, affine), (24, 24, 24), atol=0.2)


def test_a_mask_of_an_image_that_did_not_move_is_left_alone():
    registered = Registered({"T2": ramp()}, AFFINE, {"T2": AFFINE}, {}, {})
    mask = np.eye(3, dtype=np.uint8)[..., None]
    assert registered.mask(mask, "T2") is mask


def two_heads(second, *, covered=None):
    """T2 of the made head, and a second image that is said to have been brought to it."""
    voxels, affine = head("T2")
    everywhere = np.ones(voxels.shape, bool)
    return Registered(
        {"T2": voxels, "ceT1": second},
        affine,
        {"T2": affine, "ceT1": affine},
        {"ceT1": alignment(rigid())},
        {"ceT1": everywhere if covered is None else covered},
    )


def tumor(at):
    mask = np.zeros(head("T2")[0].shape, np.uint8)
    mask[18:22, 18:22, at] = 1
    return mask


def test_heads_that_agree_pass_with_a_mask_and_without():
    registered = two_heads(head("ceT1")[0])
    registered.check(None)
    registered.check(tumor(4))


def test_images_that_were_not_moved_are_not_compared():
    voxels, affine = head("T2")
    Registered({"T2": voxels, "ceT1": np.zeros_like(voxels)}, affine, {}, {}, {}).check(None)


def test_a_head_in_another_place_is_refused():
    with pytest.raises(CaseError, match="T2 and ceT1: Dice 0.* of the two heads") as refused:
        two_heads(np.roll(head("ceT1")[0], 20, axis=1)).check(None)
    assert [error.check for error in refused.value.errors] == ["head overlap"]


def test_a_tumor_that_the_moved_image_does_not_show_is_refused():
    covered = np.zeros(head("T2")[0].shape, bool)
    covered[:, :, :5] = True
    registered = two_heads(head("ceT1")[0], covered=covered)
    registered.check(tumor(4))
    with pytest.raises(CaseError, match=r"T2 and ceT1: 16 of 16 mask voxels \(100%\) outside the resampled volume"):
        registered.check(tumor(5))


def test_air_of_zeros_is_not_filled_with_zeros():
    """6 % zeros are no skull-stripping; a half-covered scan filled with zeros would look like it."""
    cet1 = np.maximum(head("ceT1")[0], 1)
    darkest = np.argsort(cet1, axis=None)[: cet1.size * 6 // 100]
    cet1.ravel()[darkest] = 0
    assert not plausibility.is_skull_stripped(cet1)
    assert conversion._air(cet1) > 0
