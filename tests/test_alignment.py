"""Tests of scripts.data.alignment: the direction of .tfm files, registration, resampling, mapped points.

Plausibility of the result is tested in test_checks.py.
"""

import math

import numpy as np
import pytest
import SimpleITK as sitk

from scripts.data import alignment
from scripts.data.alignment import (
    MOST_RESIDUAL_MM,
    Alignment,
    align,
    map_points,
    mutual_information,
    read_transform,
    resample,
    to_sitk,
)
from scripts.data.phantom import make_phantom
from scripts.data.volume import VolumeError

LPS = np.diag((-1.0, -1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def case():
    """A small phantom of real spacing."""
    return make_phantom(3)


def rigid(shift=(0.0, 0.0, 0.0), degrees=(0.0, 0.0, 0.0), center=(0.0, 0.0, 0.0)):
    transform = sitk.Euler3DTransform()
    transform.SetCenter(list(map(float, center)))
    transform.SetTranslation(list(map(float, shift)))
    transform.SetRotation(*np.radians(degrees).tolist())
    return transform


def center_of(voxels, affine):
    return (LPS @ affine @ (*(np.array(voxels.shape) - 1) / 2, 1))[:3]


def displaced(voxels, affine, transform):
    """The volume on its own grid with its content moved: what was at p is now at transform(p)."""
    image = to_sitk(voxels, affine)
    return sitk.GetArrayFromImage(sitk.Resample(image, image, transform.GetInverse(), sitk.sitkLinear, 0.0)).T


def by_hand(transform):
    return Alignment(transform, "tfm", {}, None, 0.0, 0.0)


def written(folder, transform, name="inv_T1_LPS_to_T2_LPS.tfm"):
    path = folder / name
    sitk.WriteTransform(transform, str(path))
    return path


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
    with pytest.raises(VolumeError, match="three independent axes") as error:
        to_sitk(np.zeros((2, 2, 2)), np.diag(diagonal))
    assert error.value.check == "affine"


# --- Transform files


def test_transform_is_read_as_it_stands(tmp_path):
    path = tmp_path / "slicer.tfm"
    path.write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        "Parameters: 0 -1 0 1 0 0 0 0 1 1 2 3\nFixedParameters: 0 0 0\n"
    )
    # A quarter turn about z takes x to y.
    assert read_transform(path).TransformPoint((10, 0, 0)) == pytest.approx((1, 12, 3))


@pytest.mark.parametrize(
    "transform",
    [
        rigid((1, 2, 3), (10, 20, 30), (40, 50, 60)),
        sitk.AffineTransform((0, -1, 0, 1, 0, 0, 0, 0, 1), (1, 2, 3), (4, 5, 6)),
        sitk.VersorRigid3DTransform((0.1, 0.2, 0.3, 0.9), (1, 2, 3), (4, 5, 6)),
        sitk.TranslationTransform(3, (1, 2, 3)),
    ],
    ids=["Euler", "affine", "versor", "translation"],
)
def test_every_rigid_class_is_read_as_itk_does(tmp_path, transform):
    point = (7.0, -8.0, 9.0)
    read = read_transform(written(tmp_path, transform))
    assert read.TransformPoint(point) == pytest.approx(transform.TransformPoint(point))


def test_missing_and_damaged_files_are_refused(tmp_path):
    damaged = tmp_path / "damaged.tfm"
    damaged.write_text("Transform: AffineTransform_double_3_3\nParameters: 1 0 0 o 1 0 0 0 1 0 0 0\nFixedParameters:\n")
    short = tmp_path / "short.tfm"
    short.write_text("Transform: AffineTransform_double_3_3\nParameters: 1 0\nFixedParameters: 0 0 0\n")
    cut = tmp_path / "cut.tfm"
    cut.write_text("Transform: AffineTransform_double_3_3\n")
    for path in (tmp_path / "none.tfm", damaged, short, cut):
        with pytest.raises(VolumeError, match=path.name) as error:
            read_transform(path)
        assert error.value.check == "unreadable file"
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", range(5))
def test_damaged_bytes_give_a_rigid_transform_or_one_message(tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = bytearray(written(tmp_path, rigid((1, 2, 3), (5, 4, 3))).read_bytes())
    path = tmp_path / "damaged.tfm"
    for _ in range(40):
        damaged = content.copy()
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            points = [read_transform(path).TransformPoint(point) for point in ((0, 0, 0), (100, 0, 0))]
        except VolumeError as error:
            assert error.check in ("unreadable file", "transform")
        else:
            assert math.dist(*points) == pytest.approx(100, rel=0.003)


@pytest.mark.parametrize(
    "transform",
    [
        sitk.ScaleTransform(3, (1, 1, 1.1)),
        sitk.ScaleTransform(3, (1, 1, -1)),
        sitk.AffineTransform((1, 0.1, 0, 0, 1, 0, 0, 0, 1), (0, 0, 0)),
        sitk.Euler2DTransform(),
        sitk.TranslationTransform(3, (math.nan, 0, 0)),
        sitk.BSplineTransform(3, 1),
        sitk.CompositeTransform([sitk.TranslationTransform(3), sitk.Euler3DTransform()]),
    ],
    ids=["scaling", "mirror", "shear", "2-D", "NaN", "deformable", "several"],
)
def test_transform_that_is_not_rigid_is_refused(tmp_path, transform):
    with pytest.raises(VolumeError) as error:
        read_transform(written(tmp_path, transform))
    assert error.value.check == "transform"
    assert "inv_T1_LPS_to_T2_LPS.tfm" in error.value.found


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


# --- The direction of a given file


@pytest.mark.parametrize("inverse", [False, True])
def test_direction_of_a_file_is_found(case, tmp_path, inverse):
    truth = rigid((4, -3, 2), (2, -1, 3), center_of(case.label, case.affine))
    moving = displaced(case.images["ceT1"], case.affine, truth)
    path = written(tmp_path, truth.GetInverse() if inverse else truth)
    result = align(case.images["T2"], case.affine, moving, case.affine, transforms=[path])
    assert result.method == ("tfm inverse" if inverse else "tfm")
    assert result.residual_mm is None
    # sqrt(16 + 9 + 4)
    assert result.shift_mm == pytest.approx(math.sqrt(29), abs=1e-3)
    assert result.turn_degrees == pytest.approx(math.hypot(2, 1, 3), abs=0.1)
    name = f"{tmp_path.name}/{path.name}"
    assert set(result.mutual_information) == {"as stored", name, f"{name} inverse"}
    chosen = f"{name} inverse" if inverse else name
    assert max(result.mutual_information, key=result.mutual_information.get) == chosen
    point = (11.0, 12.0, 13.0)
    assert result.transform.TransformPoint(point) == pytest.approx(truth.TransformPoint(point), abs=1e-4)


def test_better_of_two_files_wins(case, tmp_path):
    truth = rigid((4, -3, 2))
    moving = displaced(case.images["ceT1"], case.affine, truth)
    files = [written(tmp_path, rigid((0, 5, 0)), "wrong.tfm"), written(tmp_path, truth.GetInverse(), "right.tfm")]
    result = align(case.images["T2"], case.affine, moving, case.affine, transforms=files)
    assert len(result.mutual_information) == 5
    assert result.transform.TransformPoint((0, 0, 0)) == pytest.approx((4, -3, 2))


def test_volumes_that_had_been_moved_stay_as_stored(case, tmp_path):
    path = written(tmp_path, rigid((4, -3, 2), (2, -1, 3)))
    result = align(case.images["T2"], case.affine, case.images["ceT1"], case.affine, transforms=[path])
    assert (result.method, result.shift_mm, result.turn_degrees) == ("as stored", 0, 0)


def test_tiny_transform_is_kept_not_overruled(case, tmp_path):
    path = written(tmp_path, rigid((0.05, 0, 0)))
    result = align(case.images["T2"], case.affine, case.images["ceT1"], case.affine, transforms=[path])
    assert result.method in ("tfm", "tfm inverse")
    assert result.shift_mm == pytest.approx(0.05)


def test_transform_away_from_the_volume_shares_nothing(case, tmp_path):
    path = written(tmp_path, rigid((1000, 0, 0)))
    result = align(case.images["T2"], case.affine, case.images["ceT1"], case.affine, transforms=[path])
    assert result.method == "as stored"
    assert result.mutual_information[f"{tmp_path.name}/{path.name}"] == 0


# --- Registration


def test_known_displacement_is_registered(case):
    truth = rigid((4, -3, 2), (2, -1, 3), center_of(case.label, case.affine))
    moving = displaced(case.images["ceT1"], case.affine, truth)
    result = align(case.images["T2"], case.affine, moving, case.affine)
    assert result.method == "registered"
    assert 0 < result.residual_mm < 1
    assert result.mutual_information["registered"] > result.mutual_information["as stored"]
    tumor = np.argwhere(case.label) @ (LPS @ case.affine)[:3, :3].T + (LPS @ case.affine)[:3, 3]
    expected = np.array([truth.TransformPoint(point) for point in tumor[::100].tolist()])
    # The series of a phantom lie some 0.3 mm apart by themselves.
    assert np.linalg.norm(map_points(tumor[::100], result, to="moving") - expected, axis=1).mean() < 0.8


def test_registration_is_reproducible(case, monkeypatch):
    monkeypatch.setattr(alignment, "LEVELS_MM", (4.0, 2.0))
    monkeypatch.setattr(alignment, "REGISTRATION_SAMPLES", 4000)
    moving = displaced(case.images["ceT1"], case.affine, rigid((2, 1, 0)))
    first, second = (align(case.images["T2"], case.affine, moving, case.affine) for _ in range(2))
    assert first.transform.TransformPoint((1, 2, 3)) == second.transform.TransformPoint((1, 2, 3))
    assert first.residual_mm == second.residual_mm


def test_registration_that_shares_less_than_before_is_not_used(case, monkeypatch):
    monkeypatch.setattr(alignment, "_register", lambda *_: (rigid((8, 8, 8)), 0.1))
    result = align(case.images["T2"], case.affine, case.images["ceT1"], case.affine)
    assert (result.method, result.residual_mm, result.shift_mm) == ("as stored", None, 0)
    assert set(result.mutual_information) == {"as stored", "registered"}


def test_registration_of_too_few_slices_is_refused(case):
    with pytest.raises(VolumeError, match="at least 4 voxels along each axis") as error:
        align(case.images["T2"], case.affine, case.images["ceT1"][:, :, :3], case.affine)
    assert error.value.check == "registration"


def test_volumes_in_two_frames_of_reference_are_registered(case):
    away = case.affine.copy()
    away[:3, 3] += (300, -200, 150)
    result = align(case.images["T2"], case.affine, case.images["ceT1"], away)
    middle = center_of(case.label, case.affine)
    moved = map_points(middle[None], result, to="moving")[0] - middle
    assert moved == pytest.approx((-300, 200, 150), abs=1)


def test_registration_of_noise_is_refused():
    rng = np.random.default_rng(0)
    noise = [rng.uniform(100, 200, (40, 40, 20)).astype(np.float32) for _ in range(2)]
    turned = np.diag((2.0, 2.0, 2.0, 1.0))
    turned[:3, 3] = (30, 20, 15)
    with pytest.raises(VolumeError, match=f"at most {MOST_RESIDUAL_MM:g} mm") as error:
        align(noise[0], np.diag((2.0, 2.0, 2.0, 1.0)), noise[1], turned)
    assert error.value.check == "registration"


def test_registration_with_a_constant_volume_is_refused():
    grid = np.diag((2.0, 2.0, 2.0, 1.0))
    gradient = np.arange(16**3, dtype=np.float32).reshape(16, 16, 16)
    with pytest.raises(VolumeError, match="no mutual information") as error:
        align(gradient, grid, np.full((16, 16, 16), 7, dtype=np.int16), grid)
    assert error.value.check == "registration"


# --- Resampling and points


def test_resampling_by_whole_voxels_copies_them():
    moving = np.zeros((4, 4, 4), dtype=np.float32)
    moving[2, 1, 1] = 5
    # A fixed point lies 2 mm further left in the moving volume: LPS x + 2 is index x - 2.
    result, covered = resample(moving, np.eye(4), (4, 4, 4), np.eye(4), by_hand(rigid((-2, 0, 0))), fill=-1)
    assert result[0, 1, 1] == 5
    assert (result[2:] == -1).all()
    assert not covered[2:].any()
    assert covered[:2].all()


def test_linear_resampling_halves_between_voxels_and_nearest_does_not():
    moving = np.zeros((4, 4, 4), dtype=np.uint8)
    moving[2:] = 3
    finer = np.diag((0.25, 1.0, 1.0, 1.0))
    finer[0, 3] = 0.5
    linear, _ = resample(moving, np.eye(4), (8, 4, 4), finer, by_hand(rigid()))
    assert linear.dtype == np.float32
    np.testing.assert_allclose(linear[:, 0, 0], (0, 0, 0, 0.75, 1.5, 2.25, 3, 3))
    nearest, _ = resample(moving, np.eye(4), (8, 4, 4), finer, by_hand(rigid()), nearest=True)
    assert nearest.dtype == np.uint8
    assert set(np.unique(nearest)) == {0, 3}


def test_volume_of_a_ball_survives_resampling():
    grid = np.stack(np.meshgrid(*(np.arange(60) * 0.5 - 15,) * 3, indexing="ij"))
    ball = np.linalg.norm(grid, axis=0) < 8
    affine = np.diag((0.5, 0.5, 0.5, 1.0))
    affine[:3, 3] = -15
    coarser = np.diag((0.6, 0.6, 1.5, 1.0))
    coarser[:3, 3] = -18
    mask, _ = resample(ball, affine, (60, 60, 24), coarser, by_hand(rigid((1, -2, 1), (10, 20, 30))), nearest=True)
    assert mask.dtype == bool
    assert mask.sum() * 0.6 * 0.6 * 1.5 == pytest.approx(4 / 3 * math.pi * 8**3, rel=0.02)


def test_points_follow_the_resampled_voxels(case):
    moves = by_hand(rigid((4, -3, 2), (2, -1, 3)))
    points = np.array([(1.0, 2.0, 3.0), (40.0, -5.0, 60.0)])
    there = map_points(points, moves, to="moving")
    assert there[0] == pytest.approx(moves.transform.TransformPoint(points[0].tolist()))
    np.testing.assert_allclose(map_points(there, moves), points, atol=1e-9)
    moved, _ = resample(case.label, case.affine, case.label.shape, case.affine, moves, nearest=True)
    lps = LPS @ case.affine
    centroids = [np.argwhere(mask).mean(axis=0) @ lps[:3, :3].T + lps[:3, 3] for mask in (case.label, moved)]
    assert map_points(centroids[0][None], moves)[0] == pytest.approx(centroids[1], abs=0.5)  # a third of a slice
