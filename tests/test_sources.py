"""Tests of scripts.data.sources: naming, channel order and label values of published data sets.

The prepared layout and the command line are tested in test_datalist.py and test_prepare.py.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.sources import (
    BRATS_NEW_LABELS,
    BRATS_OLD_LABELS,
    MSD_LABELS,
    brats_patient,
    find_brats,
    find_msd,
)
from scripts.data.volume import NiftiVolume, VolumeError

FIXTURE = Path(__file__).parent / "data" / "Task01_BrainTumour"
OLD = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
NEW = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")


def touch(folder: Path, case: str, suffixes: tuple[str, ...], ending: str = ".nii.gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in suffixes:
        (folder / f"{case}{suffix}{ending}").touch()


@pytest.mark.parametrize(
    ("case", "suffixes", "ending", "patient"),
    [
        ("Brats18_CBICA_AAB_1", OLD, ".nii.gz", "Brats18_CBICA_AAB"),
        ("BraTS19_2013_2_1", OLD, ".nii.gz", "BraTS19_2013_2"),
        ("BraTS20_Training_001", OLD, ".nii", "BraTS20_Training_001"),
        ("BraTS2021_00002", OLD, ".nii.gz", "BraTS2021_00002"),
        ("BraTS-GLI-00005-100", NEW, ".nii.gz", "BraTS-GLI-00005"),
        ("BraTS-SSA-00002-000", NEW, ".nii", "BraTS-SSA-00002"),
        ("BraTS-SSA-00002-000", OLD, ".nii.gz", "BraTS-SSA-00002"),
    ],
)
def test_brats_names(tmp_path, case, suffixes, ending, patient):
    touch(tmp_path / "HGG" / case, case, suffixes, ending)
    cases, problems = find_brats(tmp_path)
    assert not problems
    assert [(c.case, c.patient) for c in cases] == [(case, patient)]
    folder = tmp_path / "HGG" / case
    for modality, suffix in zip(("T1", "ceT1", "T2", "FLAIR"), suffixes, strict=False):
        assert cases[0].images[modality] == NiftiVolume(folder / f"{case}{suffix}{ending}")
    assert cases[0].label.path.name == f"{case}{suffixes[-1]}{ending}"
    assert cases[0].label_values is (BRATS_OLD_LABELS if suffixes is OLD else BRATS_NEW_LABELS)


def test_brats_patient_of_another_name_is_the_case():
    assert brats_patient("site_7") == "site_7"


def test_brats_cases_are_sorted_and_other_files_ignored(tmp_path):
    for case in ("b", "a"):
        touch(tmp_path / case, case, OLD)
    touch(tmp_path, "cases", (".csv",), "")
    touch(tmp_path / "a", "._a", OLD)
    touch(tmp_path / "a", "a", ("_T1", "_label"))
    cases, problems = find_brats(tmp_path)
    assert [case.case for case in cases] == ["a", "b"]
    assert not problems


def test_brats_problems(tmp_path):
    touch(tmp_path / "noseg", "noseg", OLD[:4])
    touch(tmp_path / "twice", "twice", OLD)
    touch(tmp_path / "twice", "twice", ("_t1",), ".nii")
    touch(tmp_path / "elsewhere", "child", OLD)
    touch(tmp_path / "ped", "BraTS-PED-00001-000", NEW)
    cases, problems = find_brats(tmp_path)
    assert [case.case for case in cases] == ["child"]
    assert {problem.case: problem.check for problem in problems} == {
        "noseg": "missing file",
        "twice": "ambiguous files",
        "BraTS-PED-00001-000": "cohort",
    }


@pytest.mark.parametrize(
    ("values", "present", "whole", "enhancing"),
    [
        (BRATS_OLD_LABELS, [0, 1, 2, 4], [0, 1, 1, 1], [0, 0, 0, 1]),
        (BRATS_OLD_LABELS, [0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 1]),
        (BRATS_OLD_LABELS, [0, 2], [0, 1], [0, 0]),
        (BRATS_NEW_LABELS, [0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 1]),
        (MSD_LABELS, [0, 1, 2, 3], [0, 1, 1, 1], [0, 0, 0, 1]),
    ],
)
def test_label_values(values, present, whole, enhancing):
    for structure, expected in (("whole tumor", whole), ("enhancing tumor", enhancing)):
        mask = values.mask(np.array(present, dtype=np.float32), structure)
        assert mask.dtype == np.uint8
        assert mask.tolist() == expected


@pytest.mark.parametrize(
    ("values", "present", "message"),
    [
        (BRATS_OLD_LABELS, [0, 1, 3, 4], r"found \{0, 1, 3, 4\}, expected \{0, 1, 2, 4\} or \{0, 1, 2, 3\}"),
        (BRATS_NEW_LABELS, [0, 2, 4], r"found \{0, 2, 4\}, expected \{0, 1, 2, 3\}"),
        (MSD_LABELS, [0, 0.5], r"found \{0, 0.5\}"),
        (MSD_LABELS, [0, np.nan], r"found \{0, nan\}"),
    ],
)
def test_label_values_outside_the_declared(values, present, message):
    with pytest.raises(VolumeError, match=message):
        values.mask(np.array(present), "whole tumor")


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
    touch(tmp_path, "BRATS_001", ("_0000", "_0001", "_0002", "_0003", "_labels"))
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
    touch(tmp_path / "imagesTr", "BRATS_001", ("",))
    touch(tmp_path / "imagesTr", "._BRATS_001", ("",))
    touch(tmp_path / "labelsTr", "BRATS_002", ("",))
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


def save(path: Path, voxels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return path


def test_volume_errors(tmp_path):
    flat = save(tmp_path / "flat.nii.gz", np.zeros((3, 4), np.uint8))
    four = save(tmp_path / "four.nii.gz", np.zeros((3, 4, 5, 2), np.uint8))
    rgb = save(tmp_path / "rgb.nii.gz", np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    text = tmp_path / "text.nii.gz"
    text.write_text("not an image")
    empty = tmp_path / "empty.nii"
    empty.touch()
    other = tmp_path / "other.mgz"
    nib.save(nib.MGHImage(np.zeros((3, 4, 5), np.uint8), np.eye(4)), other)
    for volume, check in (
        (NiftiVolume(tmp_path / "none.nii.gz"), "missing file"),
        (NiftiVolume(flat), "not 3-D"),
        (NiftiVolume(four), "not 3-D"),
        (NiftiVolume(four, 0), "wrong channels"),
        (NiftiVolume(flat, 0), "wrong channels"),
        (NiftiVolume(rgb), "unreadable file"),
        (NiftiVolume(text), "unreadable file"),
        (NiftiVolume(empty), "unreadable file"),
        (NiftiVolume(other), "unreadable file"),
    ):
        with pytest.raises(VolumeError) as caught:
            volume.grid()
        assert caught.value.check == check, volume
        assert "\n" not in str(caught.value)


def test_truncated_volume(tmp_path):
    path = save(tmp_path / "whole.nii.gz", np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8))
    short = tmp_path / "short.nii.gz"
    short.write_bytes(path.read_bytes()[:4000])
    assert NiftiVolume(short).grid()[0] == (20, 20, 20)
    with pytest.raises(VolumeError, match="unreadable file"):
        NiftiVolume(short).voxels()
