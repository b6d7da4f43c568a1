"""Tests of sources: naming, channel order and label values of data sets, and patterns for any folder.

The prepared layout and the command line are tested in test_datalist.py and test_prepare.py.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.sources.sources import (
    BRATS_NEW_LABELS,
    BRATS_OLD_LABELS,
    MSD_LABELS,
    brats_cohort,
    brats_patient,
    find_brats,
    find_msd,
    find_nifti,
    tumor_labels,
)
from scripts.data.volume import NiftiVolume, VolumeError

FIXTURE = Path(__file__).parents[2] / "fixtures" / "Task01_BrainTumour"
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
        ("BraTS2021_00002", OLD, ".nii.gz", "BraTS-GLI-00002"),
        ("BraTS-GLI-00005-100", NEW, ".nii.gz", "BraTS-GLI-00005"),
        ("BraTS-SSA-00002-000", NEW, ".nii", "BraTS-SSA-00002"),
        ("BraTS-SSA-00002-000", OLD, ".nii.gz", "BraTS-SSA-00002"),
        ("BraTS-GLI-02062-101", NEW, ".nii.gz", "BraTS-GLI-02062"),  # 2024, after treatment
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


@pytest.mark.parametrize("case", ["site_7", "BraTS-GLI-7", "BraTS2021_0002", "BraTS2021_000020", "BraTS2021_00002b"])
def test_brats_patient_of_another_name_is_the_case(case):
    assert brats_patient(case) == case


def test_brats_patients_of_2021_go_on_in_2023(tmp_path):
    touch(tmp_path / "2021", "BraTS2021_00002", OLD)
    touch(tmp_path / "2023", "BraTS-GLI-00002-000", NEW)
    touch(tmp_path / "2023", "BraTS-GLI-00003-000", NEW)
    touch(tmp_path / "2023", "BraTS-SSA-00002-000", NEW)
    cases, problems = find_brats(tmp_path)
    assert not problems
    assert [(case.case, case.patient) for case in cases] == [
        ("BraTS-GLI-00002-000", "BraTS-GLI-00002"),
        ("BraTS-GLI-00003-000", "BraTS-GLI-00003"),
        ("BraTS-SSA-00002-000", "BraTS-SSA-00002"),
        ("BraTS2021_00002", "BraTS-GLI-00002"),
    ]


def test_brats_case_under_old_and_new_names_is_ambiguous(tmp_path):
    touch(tmp_path, "BraTS-GLI-00002-000", (*OLD, *NEW))
    cases, problems = find_brats(tmp_path)
    assert not cases
    assert [(p.case, p.check) for p in problems] == [("BraTS-GLI-00002-000", "ambiguous files")]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("Brats17_CBICA_AAB_1", "Brats18_CBICA_AAB_1", "2017, 2018"),
        ("BraTS19_CBICA_AAB_1", "Brats18_2013_2_1", "2018, 2019"),
        ("BraTS20_Training_001", "BraTS19_CBICA_AAB_1", "2019, 2020"),
        ("BraTS2020_Training_001", "BraTS2021_00002", "2020, 2021 or later"),
        ("Brats18_CBICA_AAB_1", "BraTS-GLI-00002-000", "2018, 2021 or later"),
    ],
)
def test_brats_editions_that_share_patients_under_other_names(tmp_path, first, second, found):
    touch(tmp_path / "a", first, OLD)
    touch(tmp_path / "b", second, OLD)
    with pytest.raises(ValueError, match=f"found BraTS {found}, expected one edition, .* keep the newest edition") as e:
        find_brats(tmp_path)
    assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Brats18_CBICA_AAB_1", "Brats18_2013_2_1"),
        ("BraTS20_Training_001", "BraTS2020_Training_002"),
        ("BraTS20_Training_001", "BraTS-SSA-00002-000"),
        ("BraTS20_Training_001", "site_7"),
    ],
)
def test_brats_editions_that_may_stand_together(tmp_path, first, second):
    for case in (first, second):
        touch(tmp_path, case, OLD)
    assert len(find_brats(tmp_path)[0]) == 2


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
    touch(tmp_path / "validation", "BraTS-GLI-00001-000", NEW[:4])
    cases, problems = find_brats(tmp_path)
    assert [case.case for case in cases] == ["child"]
    assert {problem.case: problem.check for problem in problems} == {
        "noseg": "missing file",
        "twice": "ambiguous files",
        "BraTS-GLI-00001-000": "missing file",
    }


@pytest.mark.parametrize(
    ("case", "suffixes", "cohort"),
    [
        ("BraTS-PED-00001-000", NEW, "BraTS-PED"),
        ("BraTS-MEN-00004-000", NEW, "BraTS-MEN"),
        ("BraTS-MET-00001", NEW, "BraTS-MET"),
        ("BraTS-GoAT-00000", NEW, "BraTS-GoAT"),
        ("BraTS-MEN-RT-0002-1", ("_t1c", "_gtv"), "BraTS-MEN-RT"),
    ],
)
def test_brats_cohorts_with_other_tumors(tmp_path, case, suffixes, cohort):
    touch(tmp_path / case, case, suffixes)
    touch(tmp_path, "other", ("_t1c", "_gtv"))
    cases, problems = find_brats(tmp_path)
    assert not cases
    assert [(p.case, p.check, p.found) for p in problems] == [(case, "cohort", cohort)]


@pytest.mark.parametrize(
    ("case", "cohort"),
    [
        ("BraTS-SSA-00002-000", "BraTS-SSA"),
        ("BraTS2021_00002", "BraTS2021"),
        ("Brats18_CBICA_AAB_1", "Brats18"),
        ("x", "BraTS"),
    ],
)
def test_brats_cohort(case, cohort):
    assert brats_cohort(case) == cohort


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


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 3, 4), (1, 2, 3)])
def test_a_single_wrong_voxel_is_found(place, order):
    seg = np.ones((3, 4, 5), np.int16, order=order)
    seg[place] = 9
    for map_ in (seg, seg[::-1, :, ::-1], np.pad(seg, 2)[1:-1]):
        with pytest.raises(VolumeError, match="label values: found .*9"):
            MSD_LABELS.mask(map_, "whole tumor")


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


def names(case) -> dict[str, str]:
    """Modality, or "label", to the file's name."""
    volumes = case.images | ({"label": case.label} if case.label is not None else {})
    return {name: volume.path.name for name, volume in volumes.items()}


def test_nifti_folder_per_case(tmp_path):
    for case in ("b", "a"):
        touch(tmp_path / "cases" / case, "T2", ("_ax", ".json"))
        touch(tmp_path / "cases" / case, "._T2", ("_ax",))
        touch(tmp_path / "cases" / case, "gd", ("",), ".nii")
    (tmp_path / "cases/a/T2_ax.json").touch()
    touch(tmp_path / "labels", "a", ("_seg",))
    patterns = {"T2": "cases/{case}/T2_*.nii.gz", "ceT1": "cases/{case}/gd.nii*", "label": "labels/{case}_seg.nii.gz"}
    (first, second), problems = find_nifti(tmp_path, patterns)
    assert not problems
    assert (first.case, first.patient, second.case, second.patient) == ("a", "a", "b", "b")
    assert names(first) == {"T2": "T2_ax.nii.gz", "ceT1": "gd.nii", "label": "a_seg.nii.gz"}
    assert first.images["T2"].path == tmp_path / "cases/a/T2_ax.nii.gz"
    assert names(second) == {"T2": "T2_ax.nii.gz", "ceT1": "gd.nii"}
    assert second.label is None and second.label_values is None
    assert first.cohort == second.cohort


def test_nifti_patients_and_cohorts(tmp_path):
    """The patient stands in the images' names only, the cohort in the label's; repeated placeholders must agree."""
    for site, case, patient in (("x", "p1_1", "p1"), ("x", "p1_2", "p1"), ("y", "p2_1", "p2")):
        touch(tmp_path / patient, case, ("_T2",))
        touch(tmp_path / "labels" / site / case, case, ("_label",))
    touch(tmp_path / "p9", "p8_1", ("_T2",))
    touch(tmp_path / "labels" / "y" / "other", "p2_1", ("_label",))
    patterns = {"T2": "{patient}/{case}_T2.nii.gz", "label": "./labels/{cohort}/{case}/{case}_label.nii.gz"}
    cases, problems = find_nifti(tmp_path, patterns)
    assert not problems
    assert [(c.case, c.patient, c.cohort) for c in cases] == [
        ("p1_1", "p1", "x"),
        ("p1_2", "p1", "x"),
        ("p2_1", "p2", "y"),
        ("p8_1", "p9", "NIfTI"),
    ]


def test_nifti_wildcards_stay_within_one_part_and_brackets_are_characters(tmp_path):
    touch(tmp_path / "a" / "deep", "T2", ("",))
    touch(tmp_path / "a+(1)", "T2", ("x",))
    touch(tmp_path / "a+(1)", "T2", ("xx",))
    ((case,), problems) = find_nifti(tmp_path, {"T2": "{case}+(1)/T2?.nii.gz"})
    assert (case.case, names(case), problems) == ("a", {"T2": "T2x.nii.gz"}, [])
    with pytest.raises(ValueError, match="no file matches T2='{case}/T2.nii.gz'"):
        find_nifti(tmp_path, {"T2": "{case}/T2.nii.gz"})


def test_nifti_problems(tmp_path):
    touch(tmp_path / "images", "p__twice", ("_T2a", "_T2b"))
    touch(tmp_path / "images", "p__same", ("_T2ceT1",))
    touch(tmp_path / "images", "p__moved", ("_T2",))
    touch(tmp_path / "images", "q__moved", ("_ceT1",))
    touch(tmp_path / "labels", "p__bare", ("",))
    patterns = {
        "T2": "images/{patient}__{case}_T2*.nii.gz",
        "ceT1": "images/{patient}__{case}_*ceT1.nii.gz",
        "label": "labels/{patient}__{case}.nii.gz",
    }
    cases, problems = find_nifti(tmp_path, patterns)
    assert not cases
    assert [(p.case, p.check) for p in problems] == [
        ("bare", "missing file"),
        ("moved", "ambiguous patient"),
        ("same", "ambiguous files"),
        ("twice", "ambiguous files"),
    ]
    assert problems[0].found == "a label without an image"
    assert problems[1].found == "p and q"
    assert "p__same_T2ceT1.nii.gz" in problems[2].found and problems[2].expected == "one file per modality"
    assert "p__twice_T2a.nii.gz and" in problems[3].found


@pytest.mark.parametrize(
    ("patterns", "values", "message"),
    [
        ({"T2": "{case}/T1.nii.gz"}, None, "no file matches T2='{case}/T1.nii.gz'; there are a/T2.nii.gz$"),
        ({"T2": "{case}/T2.json"}, None, "no file matches"),
        ({"T2": "T2*.nii.gz"}, None, "T2='T2[*].nii.gz': found no {case}, expected it once or more, such as"),
        ({"T2": "{id}/{case}.nii.gz"}, None, "found {id}, expected {case}, {patient}, {cohort}"),
        ({"t2": "{case}/T2.nii.gz"}, None, "found a pattern for 't2', expected T1, ceT1, T2, FLAIR or label"),
        ({"label": "{case}/T2.nii.gz"}, None, "found no pattern for an image, expected one for T1, ceT1, T2, FLAIR"),
        ({}, None, "found no pattern for an image"),
        ({"T2": "{case}/T2.nii.gz"}, (), "found label values none for tumor"),
        ({"T2": "{case}/T2.nii.gz"}, (0, 1), "found label values 0, 1 for tumor, expected one or more other than 0"),
    ],
)
def test_nifti_wrong_arguments(tmp_path, patterns, values, message):
    touch(tmp_path / "a", "T2", ("",))
    (tmp_path / "a" / "T2.json").touch()
    with pytest.raises(ValueError, match=message):
        find_nifti(tmp_path, patterns, label_values=values)


def test_nifti_in_a_folder_without_any(tmp_path):
    with pytest.raises(ValueError, match="there are no NIfTI file"):
        find_nifti(tmp_path, {"T2": "{case}/T2.nii.gz"})


@pytest.mark.parametrize("structure", ["vestibular schwannoma", "whole tumor", "enhancing tumor"])
def test_tumor_labels(structure):
    assert tumor_labels().mask(np.array([0, 1, 1]), structure).tolist() == [0, 1, 1]
    assert tumor_labels((2, 255)).mask(np.array([0.0, 1, 2, 7, 255, -1]), structure).tolist() == [0, 0, 1, 0, 1, 0]
    with pytest.raises(VolumeError, match=r"label values: found \{0, 255\}, expected \{0, 1\}"):
        tumor_labels().mask(np.array([0, 255]), structure)
    for wrong in (0.5, np.nan, np.inf):
        with pytest.raises(VolumeError, match="label values: found .*, expected whole numbers"):
            tumor_labels((2,)).mask(np.array([0, 2, wrong]), structure)
