"""Tests of scripts.data.registration.register: images of ITK, shared information, and rigid registration itself.

Which of several transforms is taken is tested in test_align.py.
"""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from made.moves import center_of, displaced, rigid

from scripts.data.phantom.make import make_phantom
from scripts.data.registration import register as registration
from scripts.data.registration.register import (
    MOST_RESIDUAL_MM,
    matrix_of,
    moved,
    mutual_information,
    register,
    sample_foreground,
    shared_information,
    to_sitk,
)
from scripts.data.volume import LPS_TO_RAS, CaseError

GRID = np.diag((2.0, 2.0, 2.0, 1.0))


@pytest.fixture(scope="module")
def case():
    """A small phantom of real spacing."""
    return make_phantom(3)


@pytest.fixture
def quick(monkeypatch):
    """Registration without its finest level, on fewer samples."""
    monkeypatch.setattr(registration, "LEVELS_MM", (4.0, 2.0))
    monkeypatch.setattr(registration, "REGISTRATION_SAMPLES", 4000)


def registered(fixed, fixed_affine, moving, moving_affine):
    return register(sample_foreground(fixed, fixed_affine), sample_foreground(moving, moving_affine))


# --- Images and affines


def test_image_has_the_lps_point_of_every_voxel():
    affine = np.array([[0, -2, 0, 10], [0.5, 0, 0, -20], [0, 0, -3, 30], [0, 0, 0, 1]], dtype=float)
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = to_sitk(voxels, affine)
    # Index (1, 2, 3) is RAS (10 - 4, -20 + 0.5, 30 - 9), so LPS (-6, 19.5, 21).
    assert image.TransformIndexToPhysicalPoint((1, 2, 3)) == pytest.approx((-6, 19.5, 21))
    assert image.GetPixel((1, 2, 3)) == voxels[1, 2, 3]
    assert image.GetSpacing() == pytest.approx((0.5, 2, 3))


def test_types_that_itk_lacks_are_converted():
    assert to_sitk(np.ones((2, 2, 2), dtype=bool), np.eye(4)).GetPixelID() == sitk.sitkUInt8
    assert to_sitk(np.ones((2, 2, 2), dtype=np.float16), np.eye(4)).GetPixelID() == sitk.sitkFloat32


@pytest.mark.parametrize("diagonal", [(1, 0, 1, 1), (1, math.nan, 1, 1)])
def test_flat_or_broken_affine_is_refused(diagonal):
    with pytest.raises(CaseError, match="three independent axes") as error:
        to_sitk(np.zeros((2, 2, 2)), np.diag(diagonal))
    assert error.value.check == "affine"


# --- Mutual information


def test_information_of_two_equal_values_is_ln_2():
    halves = np.repeat((0.0, 1.0), 500)
    assert mutual_information(halves, 7 - 3 * halves) == pytest.approx(math.log(2))


def test_information_of_equal_uniform_images_is_the_logarithm_of_the_bins():
    values = np.arange(6400) / 6400
    assert mutual_information(values, values, bins=4) == pytest.approx(math.log(4), abs=0.001)


def test_information_of_independent_values_is_0():
    first, second = np.repeat((0, 1), 200), np.tile((0, 1), 200)
    assert mutual_information(first, second) == pytest.approx(0, abs=1e-12)


def test_information_of_constant_or_no_values_is_0():
    assert mutual_information(np.ones(10), np.arange(10)) == 0
    assert mutual_information(np.zeros(0), np.zeros(0)) == 0


# --- Points of the foreground


def test_points_lie_within_voxels_of_the_foreground():
    voxels = np.full((30, 20, 10), 1.0)
    voxels[5:15, 4:8, 2:6] = 100
    affine = np.array([[0, -2, 0, 10], [0.5, 0, 0, -20], [0, 0, -3, 30], [0, 0, 0, 1]], dtype=float)
    scan = sample_foreground(voxels, affine)
    indices = moved(scan.points, np.linalg.inv(LPS_TO_RAS @ affine))
    # Half a voxel around the first and the last of the block.
    assert indices.min(axis=0) == pytest.approx((4.5, 3.5, 1.5), abs=0.01)
    assert indices.max(axis=0) == pytest.approx((14.5, 7.5, 5.5), abs=0.01)
    # 160 of 6000 voxels, of some 400 000 drawn.
    assert len(scan.points) == pytest.approx(registration.DRAWN * 160 / 6000, rel=0.05)
    assert scan.values.max() == 100


def test_points_of_a_filled_volume_are_limited():
    voxels = np.arange(8000.0).reshape(20, 20, 20)
    assert len(sample_foreground(voxels, GRID).points) == registration.SAMPLES


def test_volume_without_foreground_has_no_points():
    scan = sample_foreground(np.full((5, 5, 5), 7), GRID)
    assert scan.points.shape == (0, 3)
    assert shared_information(scan, scan, sitk.Euler3DTransform()) == 0


def test_information_counts_the_covered_share_only():
    # The half that is covered shares as much as the whole, ln 2.
    voxels = np.ones((40, 40, 40), dtype=np.float32)
    voxels[:, 20:] = 2
    scan = sample_foreground(voxels, np.eye(4))
    half = sample_foreground(voxels[:20], np.eye(4))
    whole = shared_information(scan, scan, sitk.Euler3DTransform())
    assert shared_information(scan, half, sitk.Euler3DTransform()) == pytest.approx(whole / 2, rel=0.05)
    assert shared_information(scan, half, sitk.TranslationTransform(3, (1000, 0, 0))) == 0


# --- Registration


def test_known_displacement_is_found(case):
    truth = rigid((4, -3, 2), (2, -1, 3), center_of(case.label, case.affine))
    moving = displaced(case.images["ceT1"], case.affine, truth)
    transform, residual = registered(case.images["T2"], case.affine, moving, case.affine)
    assert 0 < residual < 1
    tumor = moved(np.argwhere(case.label)[::100], LPS_TO_RAS @ case.affine)
    # The series of a phantom lie some 0.3 mm apart by themselves.
    errors = moved(tumor, matrix_of(transform)) - moved(tumor, matrix_of(truth))
    assert np.linalg.norm(errors, axis=1).mean() < 0.8


def test_registration_is_reproducible(case, quick):
    moving = displaced(case.images["ceT1"], case.affine, rigid((2, 1, 0)))
    first, second = (registered(case.images["T2"], case.affine, moving, case.affine) for _ in range(2))
    assert first[0].TransformPoint((1, 2, 3)) == second[0].TransformPoint((1, 2, 3))
    assert first[1] == second[1]


def test_volumes_in_two_frames_of_reference_are_registered(case, quick):
    away = case.affine.copy()
    away[:3, 3] += (300, -200, 150)
    transform, _ = registered(case.images["T2"], case.affine, case.images["ceT1"], away)
    middle = center_of(case.label, case.affine)
    assert transform.TransformPoint(middle) - middle == pytest.approx((-300, 200, 150), abs=1)


def test_too_few_slices_are_refused(case):
    with pytest.raises(CaseError, match="at least 4 voxels along each axis") as error:
        registered(case.images["T2"], case.affine, case.images["ceT1"][:, :, :3], case.affine)
    assert error.value.check == "registration"


@pytest.mark.parametrize(("back", "refused"), [((-8, 0, 0), False), ((-6.1, 0, 0), False), ((-5.9, 0, 0), True)])
def test_directions_that_disagree_are_refused(case, monkeypatch, back, refused):
    ways = iter((rigid((8, 0, 0)), rigid(back)))
    monkeypatch.setattr(registration, "_one_way", lambda *_: next(ways))
    scan = sample_foreground(case.images["T2"], case.affine)
    if not refused:
        assert register(scan, scan)[1] == pytest.approx(8 + back[0])
        return
    with pytest.raises(CaseError, match=f"2.1 mm .* at most {MOST_RESIDUAL_MM:g} mm") as error:
        register(scan, scan)
    assert error.value.check == "registration"


def test_constant_volume_is_refused():
    gradient = np.arange(16**3, dtype=np.float32).reshape(16, 16, 16)
    with pytest.raises(CaseError, match="no mutual information") as error:
        registered(gradient, GRID, np.full((16, 16, 16), 7, dtype=np.int16), GRID)
    assert error.value.check == "registration"
