"""Tests of label values: which numbers of a map are a structure, and which numbers are refused."""

import numpy as np
import pytest

from scripts.data.sources.brats import BRATS_NEW_LABELS, BRATS_OLD_LABELS
from scripts.data.sources.crossmoda import CROSSMODA_2022_LABELS, CROSSMODA_2023_LABELS
from scripts.data.sources.msd import MSD_LABELS
from scripts.data.sources.vestibular import VS_CONVERTED_LABELS
from scripts.data.volume import CaseError

VS = "vestibular schwannoma"


@pytest.mark.parametrize(
    ("values", "present", "structures"),
    [
        (BRATS_OLD_LABELS, [0, 1, 2, 4], {"whole tumor": [0, 1, 1, 1], "enhancing tumor": [0, 0, 0, 1]}),
        (BRATS_OLD_LABELS, [0, 1, 2, 3], {"whole tumor": [0, 1, 1, 1], "enhancing tumor": [0, 0, 0, 1]}),
        (BRATS_OLD_LABELS, [0, 2], {"whole tumor": [0, 1], "enhancing tumor": [0, 0]}),
        (BRATS_NEW_LABELS, [0, 1, 2, 3], {"whole tumor": [0, 1, 1, 1], "enhancing tumor": [0, 0, 0, 1]}),
        (MSD_LABELS, [0, 1, 2, 3], {"whole tumor": [0, 1, 1, 1], "enhancing tumor": [0, 0, 0, 1]}),
        (CROSSMODA_2022_LABELS, [0, 1, 2], {VS: [0, 1, 0], "cochlea": [0, 0, 1]}),
        (CROSSMODA_2023_LABELS, [0, 1, 2, 3], {VS: [0, 1, 1, 0], "cochlea": [0, 0, 0, 1]}),
    ],
)
def test_label_values(values, present, structures):
    for structure, expected in structures.items():
        mask = values.mask(np.array(present, dtype=np.float32), structure)
        assert mask.dtype == np.uint8
        assert mask.tolist() == expected


def test_rounding_of_a_slope_is_no_other_value():
    scaled = np.array([0, 50, 100]) * np.float64(np.float32(1 / 50))
    assert scaled.tolist()[1:] == [0.9999999776482582, 1.9999999552965164]
    assert MSD_LABELS.mask(scaled, "whole tumor").tolist() == [0, 1, 1]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 4), (1, 2, 3)])
def test_a_single_wrong_voxel_is_found(place, order):
    seg = np.ones((3, 4, 5), np.int16, order=order)
    seg[place] = 9
    for map_ in (seg, seg[::-1, :, ::-1], np.pad(seg, 2)[1:-1]):
        with pytest.raises(CaseError, match="label values: found .*9"):
            MSD_LABELS.mask(map_, "whole tumor")


@pytest.mark.parametrize(
    ("values", "present", "message"),
    [
        (BRATS_OLD_LABELS, [0, 1, 3, 4], r"found \{0, 1, 3, 4\}, expected \{0, 1, 2, 4\} or \{0, 1, 2, 3\}"),
        (BRATS_NEW_LABELS, [0, 2, 4], r"found \{0, 2, 4\}, expected \{0, 1, 2, 3\}"),
        (MSD_LABELS, [0, 0.5], r"found \{0, 0.5\}"),
        (MSD_LABELS, [0, np.nan], r"found \{0, nan\}"),
        (CROSSMODA_2022_LABELS, [0, 1, 3], r"found \{0, 1, 3\}, expected \{0, 1, 2\}"),
        (CROSSMODA_2023_LABELS, [0, 4], r"found \{0, 4\}"),
        (VS_CONVERTED_LABELS, [0, 2], r"found \{0, 2\}, expected \{0, 1\}"),
    ],
)
def test_label_values_outside_the_declared(values, present, message):
    with pytest.raises(CaseError, match=message):
        values.mask(np.array(present), next(iter(values.structures)))
