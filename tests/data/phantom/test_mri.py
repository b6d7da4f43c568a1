"""Tests of scripts.data.phantom.mri: signal equations by hand, the contrasts they lead to, and what a scanner adds."""

import numpy as np
import pytest

from scripts.data.phantom import mri
from scripts.data.phantom.mri import ID, SEQUENCES, TISSUES, PulseSequence, Tissue

LN2 = float(np.log(2))


def nominal(kind, modality):
    sequence = SEQUENCES[kind][modality]
    table = mri.signal_table(TISSUES, sequence, sequence)
    return {name: float(table[index]) for name, index in ID.items()}


def test_spin_echo_by_hand():
    # Half of the magnetization has recovered, and half of that has decayed.
    assert mri.spin_echo(1000, 100, 0.8, tr=1000 * LN2, te=100 * LN2) == pytest.approx(0.8 * 0.25)


def test_gradient_echo_by_hand():
    # E1 = 1/2: at 90 degrees 1 - E1, at 60 degrees sqrt(3)/2 * 1/2 / (1 - 1/4) = 1/sqrt(3).
    half = {"t1": 1000, "t2": 50, "pd": 1.0, "tr": 1000 * LN2, "te": 0}
    assert mri.gradient_echo(**half, flip=90) == pytest.approx(0.5)
    assert mri.gradient_echo(**half, flip=60) == pytest.approx(1 / np.sqrt(3))
    # 60 degrees is the Ernst angle, acos(E1).
    assert mri.gradient_echo(**half, flip=60) > max(mri.gradient_echo(**half, flip=flip) for flip in (55, 65))


def test_inversion_recovery_by_hand():
    assert mri.inversion_recovery(1000, 100, 1.0, tr=1e9, te=0, ti=1000 * LN2) == pytest.approx(0, abs=1e-9)
    # TI = 2 T1 ln 2: 1 - 2/4; magnitude, so that an inverted signal is positive too.
    assert mri.inversion_recovery(1000, 100, 1.0, tr=1e9, te=0, ti=2000 * LN2) == pytest.approx(0.5)
    assert mri.inversion_recovery(1000, 100, 1.0, tr=1e9, te=100 * LN2, ti=0) == pytest.approx(0.5)


def test_contrast_agent_shortens_relaxation():
    given = mri.enhanced(Tissue(1000, 1000, 1.0, gd=1.0))
    assert given.t1 == pytest.approx(1000 / 5.1) and given.t2 == pytest.approx(1000 / 5.6)
    assert mri.enhanced(TISSUES["csf"]) == TISSUES["csf"]


def test_unknown_sequence():
    with pytest.raises(ValueError, match="kind 'diffusion', expected spin_echo, gradient_echo or inversion_recovery"):
        mri.signal(TISSUES["csf"], PulseSequence("diffusion", 1000, 50))


@pytest.mark.parametrize("name", TISSUES)
def test_parameters_are_physical(name):
    tissue = TISSUES[name]
    assert tissue.t1 > tissue.t2 > 0 and 0 <= tissue.pd <= 1 and tissue.gd >= 0


def test_vs_contrasts():
    t2, t1, cet1 = (nominal("vs", modality) for modality in ("T2", "T1", "ceT1"))
    assert max(t2, key=t2.get) == "csf" and t2["csf"] == pytest.approx(1000)
    assert t2["csf"] > 3 * t2["brainstem"]
    assert 0.9 < t2["vs"] / t2["brainstem"] < 1.3
    assert t2["artery"] < 0.2 * t2["brainstem"]  # Flow void.
    assert t2["pulsation"] < 0.5 * t2["csf"] and cet1["pulsation"] == pytest.approx(cet1["csf"])
    assert cet1["vs"] > 1.7 * cet1["brainstem"] and t1["vs"] < t1["brainstem"]
    for name in ("vein", "artery", "mucosa", "choroid", "fat"):  # Bright is not tumor.
        assert cet1[name] > 0.85 * cet1["vs"]
    assert t1["csf"] < 0.4 * t1["brainstem"] and cet1["csf"] < 0.4 * cet1["brainstem"]


def test_flair_separates_edema_from_csf_and_t2_does_not():
    t2, flair = nominal("glioma", "T2"), nominal("glioma", "FLAIR")
    assert flair["csf"] < 0.05 * flair["white"] and flair["edema"] > 1.2 * flair["grey"] > 1.2 * flair["white"]
    assert t2["csf"] > t2["edema"] > 1.2 * t2["grey"]


def test_enhancing_rim_needs_the_contrast_agent():
    t1, cet1 = nominal("glioma", "T1"), nominal("glioma", "ceT1")
    assert cet1["enhancing"] / cet1["white"] > 1.2 * t1["enhancing"] / t1["white"]
    assert cet1["enhancing"] > 1.3 * cet1["necrosis"]


def test_patients_vary_by_a_few_percent_and_reproducibly():
    one, again, other = (mri.vary_tissues(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert one == again != other
    ratios = np.array([one[name].t1 / TISSUES[name].t1 for name in TISSUES])
    assert 0.85 < ratios.min() < ratios.max() < 1.15 and ratios.std() > 0.02
    assert all(tissue.pd <= 1 for tissue in one.values())
    special = mri.vary_tissues(np.random.default_rng(0), {"vs": TISSUES["vs"]._replace(t2=2 * TISSUES["vs"].t2)})
    assert special["vs"].t2 == pytest.approx(2 * one["vs"].t2) and special["grey"] == one["grey"]


def test_rician_noise():
    """In air the magnitude is Rayleigh: mean sigma sqrt(pi/2), standard deviation sigma sqrt(2 - pi/2)."""
    air = mri.add_rician(np.zeros((50, 50, 40), np.float32), 18, np.random.default_rng(0))
    assert air.mean() == pytest.approx(18 * np.sqrt(np.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(18 * np.sqrt(2 - np.pi / 2), rel=0.01)
    bright = mri.add_rician(np.full((50, 50, 40), 1000, np.float32), 18, np.random.default_rng(0))
    assert bright.mean() == pytest.approx(1000, rel=0.001) and bright.std() == pytest.approx(18, rel=0.01)
    np.testing.assert_array_equal(mri.add_rician(bright, 0, np.random.default_rng(0)), bright)


def blob(shape, place):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.exp(-((grid - place) ** 2).sum(-1) / 8).astype(np.float32)


def center_of(image):
    return np.array(
        [(np.arange(n) * image.sum(tuple(set(range(3)) - {i}))).sum() / image.sum() for i, n in enumerate(image.shape)]
    )


def test_move_shifts_by_a_fraction_of_a_voxel():
    image, spacing = blob((31, 31, 31), (15, 15, 15)), np.array((0.5, 1.0, 2.0))
    np.testing.assert_allclose(mri.move(image, spacing, np.zeros(3), np.zeros(3)), image, atol=1e-6)
    moved = mri.move(image, spacing, np.array((0.2, -0.3, 0.5)), np.zeros(3))
    np.testing.assert_allclose(center_of(moved) - 15, (0.4, -0.3, 0.25), atol=0.01)


def test_move_turns_counterclockwise_in_millimeters():
    """10 degrees about Z take a point on +x towards +y by 10 pi/180 of its distance, whatever the voxels."""
    image, spacing = blob((41, 41, 9), (32, 20, 4)), np.array((1.0, 2.0, 1.0))
    moved = mri.move(image, spacing, np.zeros(3), np.array((0, 0, np.radians(10))))
    offset = (center_of(moved) - (20, 20, 4)) * spacing
    np.testing.assert_allclose(offset, (12, 12 * np.radians(10), 0), atol=0.5)


def test_blur_keeps_the_sum_and_stays_in_plane():
    image = np.zeros((9, 9, 5), np.float32)
    image[4, 4, 2] = 100
    blurred = mri.blur(image, np.array((0.41, 0.41, 1.5)))
    assert blurred.sum() == pytest.approx(100, rel=1e-4)
    assert blurred[4, 4, 2] < 90 and not blurred[:, :, [1, 3]].any()
