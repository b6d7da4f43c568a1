"""Tests of BraTS: which files are a case, which patient it is of, and which editions stand together."""

import pytest
from made.files import touch_case

from scripts.data.sources.brats import BRATS_NEW_LABELS, BRATS_OLD_LABELS, brats_patient, find_brats
from scripts.data.volume import NiftiVolume

OLD = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
NEW = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")


@pytest.mark.parametrize(
    ("case", "suffixes", "ending", "patient", "cohort"),
    [
        ("Brats18_CBICA_AAB_1", OLD, ".nii.gz", "Brats18_CBICA_AAB", "Brats18"),
        ("BraTS19_2013_2_1", OLD, ".nii.gz", "BraTS19_2013_2", "BraTS19"),
        ("BraTS20_Training_001", OLD, ".nii", "BraTS20_Training_001", "BraTS20"),
        ("BraTS2021_00002", OLD, ".nii.gz", "BraTS-GLI-00002", "BraTS2021"),
        ("BraTS-GLI-00005-100", NEW, ".nii.gz", "BraTS-GLI-00005", "BraTS-GLI"),
        ("BraTS-SSA-00002-000", NEW, ".nii", "BraTS-SSA-00002", "BraTS-SSA"),
        ("BraTS-SSA-00002-000", OLD, ".nii.gz", "BraTS-SSA-00002", "BraTS-SSA"),
        ("BraTS-GLI-02062-101", NEW, ".nii.gz", "BraTS-GLI-02062", "BraTS-GLI"),  # 2024, after treatment
        ("site_7", OLD, ".nii.gz", "site_7", "BraTS"),
    ],
)
def test_brats_names(tmp_path, case, suffixes, ending, patient, cohort):
    touch_case(tmp_path / "HGG" / case, case, suffixes, ending)
    cases, problems = find_brats(tmp_path)
    assert not problems
    assert [(c.case, c.patient, c.cohort) for c in cases] == [(case, patient, cohort)]
    folder = tmp_path / "HGG" / case
    for modality, suffix in zip(("T1", "ceT1", "T2", "FLAIR"), suffixes, strict=False):
        assert cases[0].images[modality] == NiftiVolume(folder / f"{case}{suffix}{ending}")
    assert cases[0].label.path.name == f"{case}{suffixes[-1]}{ending}"
    assert cases[0].label_values is (BRATS_OLD_LABELS if suffixes is OLD else BRATS_NEW_LABELS)


@pytest.mark.parametrize("case", ["BraTS-GLI-7", "BraTS2021_0002", "BraTS2021_000020", "BraTS2021_00002b"])
def test_brats_patient_of_another_name_is_the_case(case):
    assert brats_patient(case) == case


def test_brats_patients_of_2021_go_on_in_2023(tmp_path):
    touch_case(tmp_path / "2021", "BraTS2021_00002", OLD)
    touch_case(tmp_path / "2023", "BraTS-GLI-00002-000", NEW)
    touch_case(tmp_path / "2023", "BraTS-GLI-00003-000", NEW)
    touch_case(tmp_path / "2023", "BraTS-SSA-00002-000", NEW)
    cases, problems = find_brats(tmp_path)
    assert not problems
    assert [(case.case, case.patient) for case in cases] == [
        ("BraTS-GLI-00002-000", "BraTS-GLI-00002"),
        ("BraTS-GLI-00003-000", "BraTS-GLI-00003"),
        ("BraTS-SSA-00002-000", "BraTS-SSA-00002"),
        ("BraTS2021_00002", "BraTS-GLI-00002"),
    ]


def test_brats_case_under_old_and_new_names_is_ambiguous(tmp_path):
    touch_case(tmp_path, "BraTS-GLI-00002-000", (*OLD, *NEW))
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
    touch_case(tmp_path / "a", first, OLD)
    touch_case(tmp_path / "b", second, OLD)
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
        touch_case(tmp_path, case, OLD)
    assert len(find_brats(tmp_path)[0]) == 2


def test_brats_cases_are_sorted_and_other_files_ignored(tmp_path):
    for case in ("b", "a"):
        touch_case(tmp_path / case, case, OLD)
    touch_case(tmp_path, "cases", (".csv",), "")
    touch_case(tmp_path / "a", "._a", OLD)
    touch_case(tmp_path / "a", "a", ("_T1", "_label"))
    cases, problems = find_brats(tmp_path)
    assert [case.case for case in cases] == ["a", "b"]
    assert not problems


def test_brats_problems(tmp_path):
    touch_case(tmp_path / "noseg", "noseg", OLD[:4])
    touch_case(tmp_path / "twice", "twice", OLD)
    touch_case(tmp_path / "twice", "twice", ("_t1",), ".nii")
    touch_case(tmp_path / "elsewhere", "child", OLD)
    touch_case(tmp_path / "validation", "BraTS-GLI-00001-000", NEW[:4])
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
    touch_case(tmp_path / case, case, suffixes)
    touch_case(tmp_path, "other", ("_t1c", "_gtv"))
    cases, problems = find_brats(tmp_path)
    assert not cases
    assert [(p.case, p.check, p.found) for p in problems] == [(case, "cohort", cohort)]
