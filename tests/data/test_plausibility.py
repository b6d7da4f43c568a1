"""Tests of scripts.data.plausibility: head, mask and overlap of heads.

Measured on patients elsewhere: the phantoms here only pin the behavior.
"""

import numpy as np
import pytest

from scripts.data import plausibility
from scripts.data.phantom.make import make_phantom


def ball(shape, radius, center=None):
    """Voxels within a radius, in voxels, of the middle of the grid."""
    center = (np.array(shape) - 1) / 2 if center is None else center
    return np.linalg.norm(np.indices(shape).T - center, axis=-1).T <= radius


def noisy(seed, head):
    """100 in the head, Rayleigh noise of about 3 outside."""
    return np.where(head, 100.0, np.random.default_rng(seed).rayleigh(2.5, head.shape))


SPACING = (2.0, 2.0, 2.0)  # At which a head is that of every voxel.
VS_SPACING = (0.41, 0.41, 1.5)


@pytest.fixture(scope="module")
def case():
    return make_phantom(2)


# --- Foreground and head


def test_foreground_of_a_stripped_volume_is_what_is_not_0():
    voxels = np.array([0, 0, 1, -5, 2, 3, 4, 5, 6, 1000], np.float32)
    assert plausibility.foreground(voxels.reshape(1, 2, 5)).ravel().tolist() == [False] * 2 + [True] * 8


@pytest.mark.parametrize("shift", [0, -50])
def test_foreground_of_a_whole_head_by_hand(shift):
    """The 99th percentile of 0 to 99 is 98.01, the threshold 9.801; it moves along with the minimum."""
    voxels = np.arange(100, dtype=np.float32).reshape(4, 5, 5) + shift
    np.testing.assert_array_equal(plausibility.foreground(voxels).ravel(), np.arange(100) > 9)


def test_foreground_looks_at_every_voxel_unless_it_is_to_sample(monkeypatch):
    """9 bright voxels of 100 put the 99th percentile to 1000, the threshold to 101; no sample of every 11th has one."""
    monkeypatch.setattr(plausibility, "_SAMPLED", 10)
    voxels = np.full(100, 10.0, np.float32)
    voxels[0], voxels[1::11] = 1, 1000
    bright = voxels == 1000
    np.testing.assert_array_equal(plausibility.foreground(voxels.reshape(4, 5, 5)).ravel(), bright)
    np.testing.assert_array_equal(plausibility.foreground(voxels.reshape(4, 5, 5), sampled=True).ravel(), voxels > 1)


def test_head_is_the_largest_part_with_its_holes_filled():
    head = ball((40, 40, 12), 15)
    voxels = noisy(0, head & ~ball((40, 40, 12), 4))
    voxels[1:3, 1:3, 1:3] = 100
    np.testing.assert_array_equal(plausibility.head_mask(voxels, spacing=SPACING), head)


def test_notch_at_the_border_is_no_hole():
    head = np.ones((20, 20, 3), dtype=bool)
    head[8:12, :6] = False
    np.testing.assert_array_equal(plausibility.head_mask(noisy(0, head), spacing=SPACING), head)


def test_fine_grids_give_the_head_in_blocks():
    # Blocks of 4 x 4 x 1 voxels; the last two voxels of the first axis make no block and follow the one before.
    voxels = np.zeros((14, 8, 2))
    voxels[5:12, :4] = 100
    voxels[:2, 4:6] = 100
    head = plausibility.head_mask(voxels, spacing=(0.5, 0.5, 2.0))
    expected = np.zeros(voxels.shape, dtype=bool)
    expected[4:, :4] = True  # 12 and 16 of 16 voxels; the quarter block beside them touches at an edge only.
    np.testing.assert_array_equal(head, expected)


@pytest.mark.parametrize(("count", "inside"), [(3, False), (4, True)])
def test_quarter_of_a_block_makes_it_head(count, inside):
    voxels = np.zeros((8, 4, 1))
    voxels[:4] = 100
    voxels[4 + np.arange(count), 0] = 100
    assert plausibility.head_mask(voxels, spacing=(0.5, 0.5, 2.0))[4:].all() == inside


def test_head_does_not_depend_on_the_order_in_memory(case):
    t2 = case.images["T2"]
    heads = [plausibility.head_mask(np.require(t2, requirements=order), spacing=VS_SPACING) for order in ("C", "F")]
    np.testing.assert_array_equal(*heads)


def test_padding_outside_the_coverage_is_no_skull_stripping():
    head = ball((40, 40, 12), 12)
    voxels, coverage = noisy(0, head), np.ones(head.shape, dtype=bool)
    voxels[:10], coverage[:10] = 0, False
    assert plausibility.is_skull_stripped(voxels)
    np.testing.assert_array_equal(plausibility.head_mask(voxels, spacing=SPACING, coverage=coverage), head & coverage)


@pytest.mark.parametrize("coverage", [None, np.zeros((4, 4, 4), dtype=bool)])
def test_empty_volume_has_no_head(coverage):
    assert not plausibility.head_mask(np.zeros((4, 4, 4)), spacing=SPACING, coverage=coverage).any()


# --- Mask


@pytest.mark.parametrize(("start", "outside"), [(8, 0), (11, 0), (12, 1), (13, 2), (21, 10)])
def test_share_of_a_mask_outside_the_head(start, outside):
    # The head ends with voxel 19; 3 mm beyond hold one more voxel of 2 mm, so 21 is the first outside.
    head = np.zeros((40, 3, 3), dtype=bool)
    head[:20] = True
    mask = np.zeros(head.shape, dtype=np.uint8)
    mask[start : start + 10, 1, 1] = 1
    problems = plausibility.mask_problems(mask, head=head, spacing=(2.0, 1.0, 1.0))
    assert [problem.check for problem in problems] == ["mask outside head"] * (outside > 1)
    for problem in problems:
        assert f"{outside} of 10 mask voxels" in problem.found


# --- Overlap


def test_dice_of_heads_within_the_coverage():
    first, second = np.zeros((2, 40, 20, 10), dtype=bool)
    first[:20], second[10:30] = True, True
    everywhere = np.ones(first.shape, dtype=bool)
    assert plausibility.head_dice(first, second, coverage=everywhere) == 0.5
    part = everywhere.copy()
    part[:10] = False
    # 10 layers of the first, 20 of the second, 10 of both.
    assert plausibility.head_dice(first, second, coverage=part) == pytest.approx(2 / 3)
    assert plausibility.head_dice(first, second, coverage=~everywhere) is None


def test_heads_that_agree_raise_nothing(case):
    heads = [plausibility.head_mask(case.images[name], spacing=VS_SPACING) for name in ("T2", "ceT1")]
    assert not plausibility.overlap_problems(*heads, coverage=np.ones(heads[0].shape, dtype=bool), mask=case.label)
    assert not plausibility.mask_problems(case.label, head=heads[0], spacing=VS_SPACING)


def test_displaced_head_is_reported():
    first, second = ball((60, 60, 20), 20), ball((60, 60, 20), 20, center=(45, 30, 10))
    coverage = np.ones(first.shape, dtype=bool)
    (problem,) = plausibility.overlap_problems(first, second, coverage=coverage, mask=np.zeros(first.shape))
    assert problem.check == "head overlap"
    assert f"Dice {plausibility.head_dice(first, second, coverage=coverage):.2f}" in problem.found
    assert str(plausibility.LEAST_HEAD_DICE) in problem.expected


def test_mask_and_head_outside_the_coverage_are_reported():
    head, mask = ball((40, 40, 20), 15), np.zeros((40, 40, 20))
    mask[18:22, 20, 10] = 1
    coverage = np.zeros(head.shape, dtype=bool)
    coverage[:20] = True
    (problem,) = plausibility.overlap_problems(head, head, coverage=coverage, mask=mask)
    assert problem.check == "head overlap"
    assert "2 of 4 mask voxels (50%)" in problem.found
    problems = plausibility.overlap_problems(head, head, coverage=~(coverage | True), mask=mask)
    assert "no head where both volumes have intensities" in problems[0].found
    assert len(problems) == 2
