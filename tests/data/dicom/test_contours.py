"""Contours to masks: known voxels first, then volumes, skipped planes, overlap, and geometry that is refused."""

from __future__ import annotations

import numpy as np
import pytest
from made.contours import (
    HOLE,
    SQUARE,
    UNIT,
    ball_contours,
    ellipsoid_contours,
    grid_affine,
    polygon_contour,
    squares,
    to_lps,
    tube_contours,
)
from made.outcomes import error_of
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from scripts.data.dicom.contours import Structure, contour_gaps, contour_volume, overlap, structure_mask

SHAPE = (96, 96, 30)
OBLIQUE = Rotation.from_euler("xyz", [20, -15, 35], degrees=True).as_matrix()
# Axial, sagittal (first axis to the back, second down, third to the left), oblique.
SAGITTAL = np.array([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
GRIDS = {
    "axial": grid_affine(origin=(10, -20, 30)),
    "reversed": grid_affine((-0.41, 0.41, -1.5), (10, -20, 30)),
    "oblique": grid_affine(origin=(10, -20, 30), rotation=OBLIQUE),
    "sagittal": grid_affine(origin=(10, -20, 30), rotation=SAGITTAL),
}
VOLUME_TOLERANCE = 0.01
# An 8 mm ball on 3 mm planes is 3 contours; its outlines alone leave 1.7 % to where the grid lies.
SMALL_BALL_ON_COARSE_PLANES_TOLERANCE = 0.02


def mask_of(*contours: NDArray, shape: tuple[int, ...] = (8, 8, 8), affine: NDArray = UNIT) -> NDArray[np.uint8]:
    """Mask of a structure with these contours."""
    return structure_mask(Structure("TV", contours), shape, affine)


def volumes(contours: list[NDArray], affine: NDArray, shape: tuple[int, ...] = SHAPE) -> tuple[float, float]:
    """Volume in mm3 of the mask and of the contours."""
    structure = Structure("TV", tuple(contours))
    voxel = abs(np.linalg.det(affine[:3, :3]))
    spacing = float(np.linalg.norm(affine[:3, 2]))
    return structure_mask(structure, shape, affine).sum() * voxel, contour_volume(structure, slice_spacing=spacing)


# Known voxels


def test_square_on_voxel_edges_has_the_voxels_inside() -> None:
    mask = mask_of(*squares(3))
    expected = np.zeros((8, 8, 8), dtype=np.uint8)
    expected[2:6, 2:6, 3] = 1
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


def test_outline_through_voxel_centers_has_its_true_area() -> None:
    assert mask_of(*squares(3, corners=[(2, 2), (2, 6), (6, 6), (6, 2)])).sum() == 16


@pytest.mark.parametrize("grid", GRIDS)
def test_known_point_lands_on_its_voxel(grid: str) -> None:
    affine = GRIDS[grid]
    contour = polygon_contour([(39.6, 20.6), (40.4, 20.6), (40.4, 21.4), (39.6, 21.4)], 12, affine)
    mask = mask_of(contour, shape=SHAPE, affine=affine)
    assert np.argwhere(mask).tolist() == [[40, 21, 12]]
    ras = affine @ [40, 21, 12, 1]
    np.testing.assert_allclose(contour.mean(axis=0), [-ras[0], -ras[1], ras[2]], atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_contours_may_be_normal_to_any_axis_of_the_grid(axis: int) -> None:
    points = np.insert(np.array(SQUARE), axis, 3.0, axis=1)
    mask = mask_of(to_lps(points, UNIT))
    assert mask.sum() == 16
    assert np.moveaxis(mask, axis, 2)[2:6, 2:6, 3].all()


def test_second_contour_inside_is_a_hole() -> None:
    mask = mask_of(*squares(3), *squares(3, corners=HOLE))
    assert mask.sum() == 16 - 4
    assert not mask[3:5, 3:5, 3].any()


def test_keyhole_contour_is_a_hole() -> None:
    keyhole = [*SQUARE, SQUARE[0], HOLE[0], *HOLE[::-1]]
    np.testing.assert_array_equal(
        mask_of(*squares(3, corners=keyhole)), mask_of(*squares(3), *squares(3, corners=HOLE))
    )


def test_repeated_contour_counts_once() -> None:
    square = squares(3)[0]
    copies = [square, square.copy(), np.roll(square, 1, axis=0), square[::-1], np.concatenate([square, square[:1]])]
    np.testing.assert_array_equal(mask_of(*copies), mask_of(square))
    assert contour_volume(Structure("TV", tuple(copies)), slice_spacing=1) == pytest.approx(16)


def test_contours_that_touch_add_up() -> None:
    neighbor = [(5.5, 1.5), (5.5, 5.5), (6.5, 5.5), (6.5, 1.5)]
    assert mask_of(*squares(3), *squares(3, corners=neighbor)).sum() == 16 + 4


def test_contour_that_crosses_itself_is_even_odd() -> None:
    bow_tie = [(0.5, 0.5), (6.5, 6.5), (6.5, 0.5), (0.5, 6.5)]
    mask = mask_of(*squares(3, corners=bow_tie))
    assert mask[1, 3, 3] == 1 and mask[6, 3, 3] == 1
    assert mask[3, 1, 3] == 0 and mask[3, 6, 3] == 0


def test_degenerate_contours_are_ignored() -> None:
    line = to_lps(np.array([[2.0, 2.0, 3.0], [5.0, 5.0, 3.0]]), UNIT)
    np.testing.assert_array_equal(mask_of(line, *squares(3), np.zeros((0, 3))), mask_of(*squares(3)))


# Slices and planes


def test_slices_with_contours_have_exactly_their_own_polygons() -> None:
    small = [(2.5, 2.5), (2.5, 4.5), (4.5, 4.5), (4.5, 2.5)]
    contours = [*squares(2.03, 4), *squares(2.97, corners=small)]
    mask = mask_of(*contours)
    assert mask.sum(axis=(0, 1)).tolist() == [0, 0, 16, 4, 16, 0, 0, 0]


def test_slice_between_two_planes_has_the_mean_area_and_what_both_share() -> None:
    large = [(0.5, 0.5), (0.5, 6.5), (6.5, 6.5), (6.5, 0.5)]
    mask = mask_of(*squares(1, 5), *squares(3, corners=large))
    assert mask.sum(axis=(0, 1)).tolist() == [8, 16, 26, 36, 26, 16, 8, 0]  # 8: half of a slice is covered
    assert mask[2:6, 2:6, 2].all() and not mask[0, :, 2].any()


def test_contours_half_way_between_slices_keep_their_number_of_slices() -> None:
    assert mask_of(*squares(2.5, 3.5, 4.5)).sum(axis=(0, 1)).tolist() == [0, 0, 8, 16, 16, 8, 0, 0]


def test_single_plane_between_slices_is_shared_by_its_neighbors() -> None:
    assert mask_of(*squares(2.25)).sum(axis=(0, 1)).tolist() == [0, 0, 12, 4, 0, 0, 0, 0]


def test_gap_between_two_stacks_stays_a_gap() -> None:
    assert mask_of(*squares(0, 1, 2, 5, 6)).any(axis=(0, 1)).tolist() == [True] * 3 + [False] * 2 + [True] * 2 + [False]


@pytest.mark.parametrize("end", [2, 4])
def test_tumor_that_ends_between_planes_does_not_change_its_neighbor(end: int) -> None:
    second = [(10.5, 1.5), (10.5, 5.5), (14.5, 5.5), (14.5, 1.5)]
    mask = mask_of(*squares(2, 4), *squares(end, corners=second), shape=(16, 8, 8))
    np.testing.assert_array_equal(mask[:8, :, 3], mask[:8, :, 2])
    assert mask[8:, :, 3].sum() == 8 and mask[12:14, 3:5, 3].all()


def test_plane_with_a_contour_smaller_than_a_voxel_leaves_the_middle_of_its_neighbor() -> None:
    speck = [(3.2, 3.2), (3.2, 3.4), (3.4, 3.4)]
    mask = mask_of(*squares(2), *squares(4, corners=speck))
    assert mask.sum(axis=(0, 1)).tolist() == [0, 8, 16, 8, 0, 0, 0, 0]
    assert mask[3:5, 3:5, 3].all()


def test_partly_covered_slice_keeps_what_is_deepest_in_mm() -> None:
    affine = grid_affine((1.0, 4.0, 1.0))
    mask = mask_of(polygon_contour(SQUARE, 2.5, affine), affine=affine)
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[3:5, 2:6] = 1
    np.testing.assert_array_equal(mask[:, :, 2], expected)


def test_contours_within_a_voxel_of_the_border_are_cut() -> None:
    mask = mask_of(*squares(-1, 0, corners=[(-1.4, 1.5), (-1.4, 5.5), (2.5, 5.5), (2.5, 1.5)]))
    assert mask.sum() == mask[0:3, 2:6, 0].sum() == 12
    assert mask_of(*squares(3, corners=[(7.7, 1.5), (7.7, 5.5), (8.4, 5.5), (8.4, 1.5)])).sum() == 0


# Volumes


@pytest.mark.parametrize(
    ("radius", "planes", "tolerance"),
    [
        (4, np.arange(30), VOLUME_TOLERANCE),
        (4, np.arange(30) + 0.5, VOLUME_TOLERANCE),
        (4, np.arange(0, 30, 2), SMALL_BALL_ON_COARSE_PLANES_TOLERANCE),
        (10, np.arange(30), VOLUME_TOLERANCE),
        (10, np.arange(30) + 0.3, VOLUME_TOLERANCE),
        (10, np.arange(0, 30, 2), VOLUME_TOLERANCE),
        (10, np.arange(0, 30, 2) + 0.3, VOLUME_TOLERANCE),
        (10, np.arange(0, 30, 0.4), VOLUME_TOLERANCE),
    ],
)
@pytest.mark.parametrize("grid", GRIDS)
def test_ball_has_the_volume_of_its_contours(grid: str, radius: float, planes: NDArray, tolerance: float) -> None:
    affine = GRIDS[grid]
    center = to_lps(np.array([[47.7, 48.2, 15.1]]), affine)[0]
    mask, contours = volumes(ball_contours(center, radius, planes, affine), affine)
    assert mask == pytest.approx(contours, rel=tolerance)


def test_contour_volume_of_a_ball_approaches_the_formula() -> None:
    affine = GRIDS["oblique"]
    center = to_lps(np.array([[48.0, 48.0, 15.0]]), affine)[0]
    fine = Structure("TV", tuple(ball_contours(center, 10, np.arange(5, 25, 0.1), affine)))
    assert contour_volume(fine) == pytest.approx(4 / 3 * np.pi * 10**3, rel=1e-3)


@pytest.mark.parametrize("keyhole", [False, True])
@pytest.mark.parametrize("planes", [np.arange(5, 20), np.arange(5, 20) + 0.4])
def test_tube_has_its_analytic_volume(keyhole: bool, planes: NDArray) -> None:
    affine = GRIDS["oblique"]
    center = to_lps(np.array([[48.0, 47.4, 10.0]]), affine)[0]
    mask, contours = volumes(tube_contours(center, (9, 4), planes, affine, keyhole=keyhole), affine)
    assert contours == pytest.approx(np.pi * (9**2 - 4**2) * 15 * 1.5, rel=1e-3)
    assert mask == pytest.approx(contours, rel=VOLUME_TOLERANCE)


def test_ellipsoid_on_an_oblique_grid_has_the_volume_of_its_contours() -> None:
    affine = GRIDS["oblique"]
    center = to_lps(np.array([[47.8, 48.3, 15.2]]), affine)[0]
    contours = ellipsoid_contours(center, (6, 9, 12), np.arange(30), affine)
    mask, volume = volumes(contours, affine)
    assert volume == pytest.approx(4 / 3 * np.pi * 6 * 9 * 12, rel=0.005)
    assert mask == pytest.approx(volume, rel=VOLUME_TOLERANCE)


def test_two_tumors_have_the_volume_of_both() -> None:
    affine = GRIDS["axial"]
    one, other = (to_lps(np.array([index]), affine)[0] for index in ([22.3, 30.0, 10.0], [70.0, 60.6, 14.2]))
    contours = ball_contours(one, 6, np.arange(30), affine) + ball_contours(other, 8, np.arange(30), affine)
    mask, volume = volumes(contours, affine)
    assert volume == pytest.approx(4 / 3 * np.pi * (6**3 + 8**3), rel=0.01)
    assert mask == pytest.approx(volume, rel=VOLUME_TOLERANCE)


def test_contour_volume_by_hand() -> None:
    stack = Structure("TV", tuple(squares(1, 2, 3) + squares(2, corners=HOLE)))
    assert contour_volume(stack) == pytest.approx(16 + 12 + 16)
    coarse = Structure("TV", tuple(squares(1, 3) + squares(6, corners=HOLE)))  # planes 2 and 3 apart: median 2.5
    assert contour_volume(coarse) == pytest.approx(16 * (1.25 + 1) + 16 * (1 + 1.5) + 4 * (1.5 + 1.25))
    assert contour_volume(Structure("TV", tuple(squares(0, 1, 2, 5, 6)))) == pytest.approx(5 * 16)


# Geometry that is refused


def test_tilted_contour_is_refused() -> None:
    tilted = to_lps(np.array([[1.5, 1.5, 3.0], [1.5, 5.5, 3.4], [5.5, 5.5, 3.4], [5.5, 1.5, 3.0]]), UNIT)
    error = error_of(lambda: mask_of(tilted))
    assert error.check == "contour plane" and "'TV' that spans 0.40 mm" in error.found


def test_planes_far_apart_are_refused() -> None:
    structure = Structure("TV", tuple(squares(0, 12)))
    for call in (lambda: contour_volume(structure), lambda: structure_mask(structure, (8, 8, 16), UNIT)):
        error = error_of(call)
        assert error.check == "contour plane" and "12.0 mm apart" in error.found


@pytest.mark.parametrize(
    ("corners", "plane", "distance"), [([(1, 1), (1, 10.5), (5, 5)], 3, 3.0), (SQUARE, 12.5, 5.0), (SQUARE, -4, 3.5)]
)
def test_contour_outside_the_image_is_refused(corners: list, plane: float, distance: float) -> None:
    error = error_of(lambda: mask_of(*squares(plane, corners=corners)))
    assert error.check == "contour outside image" and f"{distance:.1f} mm" in error.found


def test_distances_of_refused_contours_are_mm_on_an_oblique_grid() -> None:
    affine = GRIDS["oblique"]
    beyond = polygon_contour([(1, 1), (1, 99.5), (5, 5)], 12, affine)
    assert "1.6 mm beyond" in error_of(lambda: mask_of(beyond, shape=SHAPE, affine=affine)).found  # 4 x 0.41 mm
    tilted = to_lps(np.array([[10, 10, 12], [10, 40, 12.4], [40, 40, 12.4]]), affine)
    assert "spans 0.60 mm" in error_of(lambda: mask_of(tilted, shape=SHAPE, affine=affine)).found  # 0.4 x 1.5 mm


def test_structure_without_closed_contours_is_refused() -> None:
    empty = Structure("TV", (squares(3)[0][:2],))
    for call in (lambda: structure_mask(empty, (8, 8, 8), UNIT), lambda: contour_volume(empty)):
        error = error_of(call)
        assert error.check == "structure" and "no closed contours in 'TV'" in error.found


def test_volume_of_one_plane_needs_a_spacing() -> None:
    error = error_of(lambda: contour_volume(Structure("TV", tuple(squares(3)))))
    assert error.check == "structure" and "one contour plane" in error.found
    assert contour_volume(Structure("TV", tuple(squares(3))), slice_spacing=1.5) == pytest.approx(24)


# Skipped planes and overlap


def moved(contours: list[NDArray], x: float) -> list[NDArray]:
    """The same contours, moved by x mm."""
    return [contour + [x, 0, 0] for contour in contours]


def test_skipped_planes_are_gaps() -> None:
    assert contour_gaps(Structure("TV", tuple(squares(0, 1, 2, 4, 5)))) == (2.0,)
    assert contour_gaps(Structure("TV", tuple(squares(0, 1, 3, 4, 5, 6, 9, 10)))) == (2.0, 3.0)


@pytest.mark.parametrize("grid", GRIDS)
def test_skipped_plane_of_a_ball_is_a_gap_on_every_grid(grid: str) -> None:
    affine = GRIDS[grid]
    center = to_lps(np.array([[47.7, 48.2, 15.1]]), affine)[0]
    every = ball_contours(center, 10, np.arange(30), affine)
    assert contour_gaps(Structure("TV", tuple(every))) == ()
    assert contour_gaps(Structure("TV", tuple(every[:6] + every[7:]))) == pytest.approx((3.0,))


def test_plane_skipped_beside_another_tumor_is_a_gap() -> None:
    """The other tumor has contours on that plane, so that no plane is empty."""
    structure = Structure("TV", tuple(squares(0, 1, 2, 4, 5) + moved(squares(1, 2, 3, 4), 20)))
    assert contour_gaps(structure) == (2.0,)


def test_tumors_beside_each_other_have_no_gap() -> None:
    assert contour_gaps(Structure("TV", tuple(squares(0, 1, 2) + moved(squares(5, 6, 7), 20)))) == ()
    assert contour_gaps(Structure("TV", tuple(squares(0, 1, 2) + moved(squares(5, 6, 7), 4)))) == ()  # they touch


def test_one_plane_and_planes_of_uneven_distance_have_no_gap() -> None:
    assert contour_gaps(Structure("TV", tuple(squares(3)))) == ()
    assert contour_gaps(Structure("TV", tuple(squares(0, 1, 2.4, 3.4)))) == ()
    assert contour_gaps(Structure("TV", tuple(squares(0, 1, 2.6, 3.6)))) == pytest.approx((1.6,))


def test_hole_that_ends_is_no_gap() -> None:
    assert contour_gaps(Structure("TV", tuple(squares(0, 1, 2, 3, 4) + squares(1, 3, corners=HOLE)))) == ()


def test_gaps_of_nothing_are_refused() -> None:
    assert error_of(lambda: contour_gaps(Structure("TV", ()))).check == "structure"


@pytest.mark.parametrize(("x", "expected"), [(0.5, True), (3.0, True), (3.9, False), (4.0, False), (9.0, False)])
def test_squares_of_four_mm_overlap_by_more_than_a_tenth(x: float, expected: bool) -> None:
    one, other = Structure("TV", tuple(squares(3))), Structure("VS", tuple(moved(squares(3), x)))
    assert overlap(one, other) is overlap(other, one) is expected
    assert not overlap(one, Structure("VS", tuple(moved(squares(4), x))))


def test_copies_do_not_overlap_and_what_lies_inside_does() -> None:
    one = Structure("TV", tuple(squares(3)))
    assert not overlap(one, Structure("VS", tuple(contour[::-1] for contour in squares(3))))
    assert overlap(one, Structure("VS", tuple(squares(3, corners=HOLE))))
    line = Structure("VS", (to_lps(np.array([[2.0, 3.0, 3.0], [5.0, 3.0, 3.0], [4.0, 3.0, 3.0]]), UNIT),))
    assert not overlap(one, line)
