"""Tests of monailabel_app.measurements: balls and boxes whose volume, diameters and side are known."""

import numpy as np
import pytest

from monailabel_app.measurements import measure

AFFINE = np.diag([0.5, 0.5, 1.5, 1.0])
AFFINE[:3, 3] = -30, -30, -20


def ball(center_mm, diameter, shape=(120, 120, 30), affine=AFFINE):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(grid - center_mm, axis=-1) < diameter / 2


def test_a_ball_of_known_size_and_place():
    result = measure(ball((12, 3, 2), 16.0), AFFINE, middle_mm=1.0)
    assert result["volume_mm3"] == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.01)
    assert result["volume_cm3"] == pytest.approx(result["volume_mm3"] / 1000, abs=5e-4)
    assert result["diameter_3d_mm"] == pytest.approx(16, abs=1.5)  # the slices are 1.5 mm thick
    assert result["diameter_axial_mm"] == pytest.approx(16, abs=0.7)
    assert result["side"] == "right"  # RAS: x grows to the patient's right
    assert result["findings"][0]["center_mm"] == pytest.approx([12, 3, 2], abs=0.3)


def test_a_ragged_mask_of_a_whole_slice_takes_no_longer_than_its_outline():
    """A hundred thousand points of a slice: their distances to each other would not fit in memory."""
    mask = np.zeros((512, 512, 3), bool)
    mask[100:400, 150:350, 1] = np.random.default_rng(0).random((300, 200)) > 0.3
    mask[100:400, 150:350, 1] |= np.indices((300, 200)).sum(0) % 2 == 0
    result = measure(mask, AFFINE, middle_mm=0.0)
    assert result["diameter_axial_mm"] == pytest.approx(0.5 * np.hypot(300, 200), abs=1.0)


def test_no_tumor_is_an_answer():
    result = measure(np.zeros((10, 10, 5), bool), AFFINE, middle_mm=0.0)
    assert (result["volume_mm3"], result["diameter_3d_mm"], result["side"]) == (0.0, 0.0, "none")
    assert result["findings"] == []


def test_parts_are_told_apart_the_largest_first():
    result = measure(ball((-14, 0, 0), 6.0) | ball((14, 0, 0), 10.0), AFFINE, middle_mm=0.0)
    assert [part["side"] for part in result["findings"]] == ["right", "left"]
    assert result["side"] == "left and right"
    assert result["diameter_3d_mm"] == result["findings"][0]["diameter_3d_mm"] > 9
    assert result["volume_mm3"] == pytest.approx(sum(part["volume_mm3"] for part in result["findings"]), abs=0.2)


def test_a_rod_is_long_in_3d_and_short_in_an_axial_slice():
    mask = np.zeros((40, 40, 20), bool)
    mask[20:24, 20:24, 2:18] = True  # 2 mm x 2 mm x 24 mm, upright
    result = measure(mask, AFFINE, middle_mm=0.0)
    assert result["diameter_axial_mm"] == pytest.approx(np.hypot(2, 2), abs=0.5)
    assert result["diameter_3d_mm"] == pytest.approx(24, abs=0.5)


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_the_order_of_axes_does_not_matter(order):
    mask = ball((12, 3, 2), 9.0)
    turned = AFFINE[:, [*order, 3]]
    expected = measure(mask, AFFINE, middle_mm=0.0)
    assert measure(mask.transpose(order), turned, middle_mm=0.0) == expected


def test_an_oblique_scan_measures_the_same():
    angle = np.radians(25)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    mask = ball((0, 0, 2), 12.0)
    straight, oblique = (measure(mask, affine, middle_mm=0.0) for affine in (AFFINE, turn @ AFFINE))
    for name in ("volume_mm3", "diameter_3d_mm", "diameter_axial_mm"):
        assert oblique[name] == pytest.approx(straight[name], abs=0.1)


def test_a_single_voxel():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    result = measure(mask, AFFINE, middle_mm=None)
    assert result["volume_mm3"] == pytest.approx(0.375, abs=0.05)
    assert result["diameter_3d_mm"] == 1.5
    assert result["side"] == "not known"


def test_near_the_middle_it_is_neither_left_nor_right():
    assert measure(ball((1, 0, 0), 8.0), AFFINE, middle_mm=0.0)["side"] == "midline"
