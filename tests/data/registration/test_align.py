"""Tests of scripts.data.registration.align: the direction of .tfm files, refused pairs, resampling, mapped points.

Registration itself is tested in test_register.py, plausibility of the result in test_plausibility.py.
"""

import math

import numpy as np
import pytest
import SimpleITK as sitk
from made.moves import center_of, displaced, rigid

from scripts.data.phantom.make import make_phantom
from scripts.data.registration import align as alignment
from scripts.data.registration.align import LEAST_INFORMATION, Alignment, align, read_transform, resample
from scripts.data.volume import CaseError


@pytest.fixture(scope="module")
def case():
    """A small phantom of real spacing."""
    return make_phantom(3)


def by_hand(transform):
    return Alignment(transform, "tfm", {}, None, 0.0, 0.0)


def written(folder, transform, name="inv_T1_LPS_to_T2_LPS.tfm"):
    path = folder / name
    sitk.WriteTransform(transform, str(path))
    return path


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
        with pytest.raises(CaseError, match=path.name) as error:
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
        except CaseError as error:
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
    with pytest.raises(CaseError) as error:
        read_transform(written(tmp_path, transform))
    assert error.value.check == "transform"
    assert "inv_T1_LPS_to_T2_LPS.tfm" in error.value.found


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


def test_without_files_the_volumes_are_registered(case):
    moving = displaced(case.images["ceT1"], case.affine, rigid((4, -3, 2)))
    result = align(case.images["T2"], case.affine, moving, case.affine)
    assert result.method == "registered"
    assert 0 < result.residual_mm < 1
    # sqrt(16 + 9 + 4); the series of a phantom lie some 0.3 mm apart by themselves.
    assert result.shift_mm == pytest.approx(math.sqrt(29), abs=0.8)
    assert result.mutual_information["registered"] > result.mutual_information["as stored"]


def test_registration_that_shares_less_than_before_is_not_used(case, monkeypatch):
    monkeypatch.setattr(alignment, "register", lambda *_: (rigid((8, 8, 8)), 0.1))
    result = align(case.images["T2"], case.affine, case.images["ceT1"], case.affine)
    assert (result.method, result.residual_mm, result.shift_mm) == ("as stored", None, 0)
    assert set(result.mutual_information) == {"as stored", "registered"}


# --- Images that share nothing


@pytest.mark.parametrize("kind", ["uniform", "rayleigh"])
def test_noise_is_refused_though_both_directions_agree(case, kind, monkeypatch):
    rng = np.random.default_rng(0)
    shape = case.label.shape
    noise = (rng.uniform(100, 200, shape) if kind == "uniform" else rng.rayleigh(50, shape)).astype(np.float32)
    monkeypatch.setattr(alignment, "register", lambda *_: (rigid(), 0.0))
    with pytest.raises(CaseError, match=r"share 0\.0\d\d nats of information \(registered\)") as error:
        align(case.images["T2"], case.affine, noise, case.affine)
    assert error.value.check == "registration"
    assert error.value.expected == f"at least {LEAST_INFORMATION} nats"


def test_noise_is_refused_after_registration(case):
    noise = np.random.default_rng(0).rayleigh(50, case.label.shape).astype(np.float32)
    with pytest.raises(CaseError, match="found") as error:
        align(case.images["T2"], case.affine, noise, case.affine)
    assert error.value.check == "registration"


def test_noise_is_refused_with_a_file_too(case, tmp_path):
    noise = np.random.default_rng(0).rayleigh(50, case.label.shape).astype(np.float32)
    with pytest.raises(CaseError, match="nats of information") as error:
        align(case.images["T2"], case.affine, noise, case.affine, transforms=[written(tmp_path, rigid((4, -3, 2)))])
    assert error.value.check == "registration"


# --- Resampling


def test_resampling_by_whole_voxels_copies_them():
    moving = np.zeros((4, 4, 4), dtype=np.float32)
    moving[2, 1, 1] = 5
    # A fixed point lies 2 mm further left in the moving volume: LPS x + 2 is index x - 2.
    result, covered = resample(moving, np.eye(4), (4, 4, 4), np.eye(4), by_hand(rigid((-2, 0, 0))), fill=-1)
    assert result[0, 1, 1] == 5
    assert (result[2:] == -1).all()
    assert not covered[2:].any()
    assert covered[:2].all()


def test_resampling_is_linear_between_voxels():
    moving = np.zeros((4, 4, 4), dtype=np.uint8)
    moving[2:] = 3
    finer = np.diag((0.25, 1.0, 1.0, 1.0))
    finer[0, 3] = 0.5
    linear, _ = resample(moving, np.eye(4), (8, 4, 4), finer, by_hand(rigid()))
    assert linear.dtype == np.float32
    np.testing.assert_allclose(linear[:, 0, 0], (0, 0, 0, 0.75, 1.5, 2.25, 3, 3))


def test_volume_of_a_ball_survives_resampling():
    grid = np.stack(np.meshgrid(*(np.arange(60) * 0.5 - 15,) * 3, indexing="ij"))
    ball = np.linalg.norm(grid, axis=0) < 8
    affine = np.diag((0.5, 0.5, 0.5, 1.0))
    affine[:3, 3] = -15
    coarser = np.diag((0.6, 0.6, 1.5, 1.0))
    coarser[:3, 3] = -18
    moves = by_hand(rigid((1, -2, 1), (10, 20, 30)))
    inside, _ = resample(ball.astype(np.float32), affine, (60, 60, 24), coarser, moves)
    assert (inside >= 0.5).sum() * 0.6 * 0.6 * 1.5 == pytest.approx(4 / 3 * math.pi * 8**3, rel=0.02)
