"""Tests of the decathlon's Task01: both layouts, and the order of channels."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made.files import touch_case

from scripts.data.sources.msd import find_msd

FIXTURE = Path(__file__).parents[2] / "fixtures" / "Task01_BrainTumour"


def test_msd_as_published():
    cases, problems = find_msd(FIXTURE)
    assert not problems
    (case,) = cases
    assert case.case == case.patient == "BRATS_001"
    stored = np.asarray(nib.load(FIXTURE / "imagesTr" / "BRATS_001.nii.gz").dataobj)
    for channel, modality in enumerate(("FLAIR", "T1", "ceT1", "T2")):
        np.testing.assert_array_equal(case.images[modality].voxels(), stored[..., channel])
    assert case.images["T2"].grid()[0] == (72, 72, 56)


def test_channel_order_of_the_fixture_is_plausible():
    """Enhancing tumor is brighter than edema after contrast; edema brighter than the rest on FLAIR and T2."""
    (case,), _ = find_msd(FIXTURE)
    seg = case.label.voxels()
    mean = {
        name: {value: volume.voxels()[seg == value].mean() for value in (0, 1, 3)}
        for name, volume in case.images.items()
    }
    assert mean["ceT1"][3] > 1.5 * mean["ceT1"][1]
    assert mean["FLAIR"][1] > mean["FLAIR"][0]
    assert mean["T2"][1] > mean["T2"][0]


def test_msd_one_file_per_channel(tmp_path):
    touch_case(tmp_path, "BRATS_001", ("_0000", "_0001", "_0002", "_0003", "_labels"))
    (case,), problems = find_msd(tmp_path)
    assert not problems
    names = {modality: volume.path.name for modality, volume in case.images.items()}
    assert names == {
        "FLAIR": "BRATS_001_0000.nii.gz",
        "T1": "BRATS_001_0001.nii.gz",
        "ceT1": "BRATS_001_0002.nii.gz",
        "T2": "BRATS_001_0003.nii.gz",
    }


def test_msd_problems(tmp_path):
    touch_case(tmp_path / "imagesTr", "BRATS_001", ("",))
    touch_case(tmp_path / "imagesTr", "._BRATS_001", ("",))
    touch_case(tmp_path / "labelsTr", "BRATS_002", ("",))
    cases, problems = find_msd(tmp_path)
    assert not cases
    assert [(p.case, p.check, p.found) for p in problems] == [
        ("BRATS_001", "missing file", "no segmentation"),
        ("BRATS_002", "missing file", "a label without an image in imagesTr"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"modality": {"0": "MRI"}}), "found channels MRI, expected FLAIR, T1w, t1gd, T2w"),
        ("{", "cannot read the channel names"),
        ("{}", "cannot read the channel names"),
    ],
)
def test_msd_declaration_of_another_task(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_msd(tmp_path)
