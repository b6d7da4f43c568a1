"""Tests of scripts.inference.regions, by hand: the foreground's box, regions of a map, their growth, their windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.inference.regions import Box, count_cut, count_windows, find_regions, foreground_box, grown

SHAPE = (60, 50, 20)
HEAD = (slice(10, 50), slice(5, 45), slice(0, 20))
WINDOW, MARGIN = (16, 16, 4), (4, 4, 1)


def box(*sides: tuple[int, int]) -> Box:
    x, y, z = (slice(*side) for side in sides)
    return x, y, z


def regions_of(found: np.ndarray, *, most: int = 10) -> tuple[list[Box], np.ndarray, int]:
    return find_regions(found, box=HEAD, shape=SHAPE, threshold=0.1, most=most, margin=MARGIN, window=WINDOW)


def test_the_box_of_the_foreground_passes_over_single_voxels_of_noise() -> None:
    x_s = torch.full((1, 1, 112, 104, 24), -1.0)
    x_s[:, :, 8:104, 4:100] = -0.2
    x_s[0, 0, 110, 2, 5] = 0.0
    assert foreground_box(x_s) == box((8, 104), (4, 100), (0, 24))
    assert foreground_box(torch.full((1, 1, 5, 6, 7), -1.0)) == box((0, 5), (0, 6), (0, 7))


@pytest.mark.parametrize(
    ("side", "overlap", "count"), [(5, 0.25, 1), (16, 0.25, 1), (17, 0.25, 2), (28, 0.25, 2), (29, 0.25, 3), (32, 0, 2)]
)
def test_windows_of_a_region(side: int, overlap: float, count: int) -> None:
    assert count_windows(box((0, side), (7, 7 + side), (0, 4)), window=WINDOW, overlap=overlap) == count**2


def test_places_become_regions_of_the_scan_the_most_suspicious_first() -> None:
    found = np.zeros((40, 40, 20))
    found[0:2, 20:22, 10:12] = 0.3  # at 10 to 12, 25 to 27: a window, about its middle
    found[20:40, 10, 0] = 0.9  # at 30 to 50, 15: with its margin longer than a window; moved inside along z
    found[22, 12, 1] = 0.2  # inside the region before
    regions, suspected, count = regions_of(found)
    assert regions == [box((26, 54), (7, 23), (0, 4)), box((3, 19), (18, 34), (9, 13))]
    assert count == 3 and int(suspected.sum()) == 8 + 20 + 1 and suspected[30:50, 15, 0].all()
    assert regions_of(found, most=1)[0] == regions[:1]


def test_without_a_suspicious_place_there_is_a_region_for_the_peak() -> None:
    found = np.zeros((40, 40, 20))
    found[20, 20, 10] = 0.05
    regions, suspected, count = regions_of(found)
    assert regions == [box((22, 38), (17, 33), (8, 12))] and count == 0
    assert int(suspected.sum()) == 9 * 9 * 3 and suspected[30, 25, 10]


def test_a_region_grows_where_a_suspected_part_leaves_it() -> None:
    region, suspected = box((20, 40), (0, 20), (5, 15)), np.zeros(SHAPE, bool)
    mask = np.zeros((20, 20, 10), bool)
    mask[10:, 0:5, 5] = True  # to the last x, and to the first y, where the scan ends
    mask[:2, 18:, 9] = True  # another part
    assert grown(region, mask, suspected, window=WINDOW) is None  # nothing there is suspected
    suspected[30, 2, 10] = True
    assert grown(region, mask, suspected, window=WINDOW) == box((20, 48), (0, 20), (5, 15))
    suspected[20, 19, 14] = True
    assert grown(region, mask, suspected, window=WINDOW) == box((12, 48), (0, 28), (5, 17))


def test_parts_that_end_where_nobody_looked_are_counted() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[20:30, 20:30, 5:10] = True  # fills its region
    mask[40:45, 30:35, 12:15] = True  # inside another
    regions = [box((20, 30), (20, 30), (5, 10)), box((35, 50), (25, 40), (10, 20))]
    assert count_cut(mask, box=HEAD, regions=regions) == 1
    assert count_cut(mask, box=HEAD, regions=[HEAD]) == 0
    assert count_cut(np.zeros(SHAPE, bool), box=HEAD, regions=regions) == 0
