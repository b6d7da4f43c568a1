"""Tests of folders of one's own: patterns, and label values that the user says."""

import numpy as np
import pytest
from made.files import touch_case

from scripts.data.sources.nifti import find_nifti, tumor_labels
from scripts.data.volume import CaseError


def names(case) -> dict[str, str]:
    """Modality, or "label", to the file's name."""
    volumes = case.images | ({"label": case.label} if case.label is not None else {})
    return {name: volume.path.name for name, volume in volumes.items()}


def test_nifti_folder_per_case(tmp_path):
    for case in ("b", "a"):
        touch_case(tmp_path / "cases" / case, "T2", ("_ax", ".json"))
        touch_case(tmp_path / "cases" / case, "._T2", ("_ax",))
        touch_case(tmp_path / "cases" / case, "gd", ("",), ".nii")
    (tmp_path / "cases/a/T2_ax.json").touch()
    touch_case(tmp_path / "labels", "a", ("_seg",))
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
        touch_case(tmp_path / patient, case, ("_T2",))
        touch_case(tmp_path / "labels" / site / case, case, ("_label",))
    touch_case(tmp_path / "p9", "p8_1", ("_T2",))
    touch_case(tmp_path / "labels" / "y" / "other", "p2_1", ("_label",))
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
    touch_case(tmp_path / "a" / "deep", "T2", ("",))
    touch_case(tmp_path / "a+(1)", "T2", ("x",))
    touch_case(tmp_path / "a+(1)", "T2", ("xx",))
    ((case,), problems) = find_nifti(tmp_path, {"T2": "{case}+(1)/T2?.nii.gz"})
    assert (case.case, names(case), problems) == ("a", {"T2": "T2x.nii.gz"}, [])
    with pytest.raises(ValueError, match="no file matches T2='{case}/T2.nii.gz'"):
        find_nifti(tmp_path, {"T2": "{case}/T2.nii.gz"})


def test_nifti_problems(tmp_path):
    touch_case(tmp_path / "images", "p__twice", ("_T2a", "_T2b"))
    touch_case(tmp_path / "images", "p__same", ("_T2ceT1",))
    touch_case(tmp_path / "images", "p__moved", ("_T2",))
    touch_case(tmp_path / "images", "q__moved", ("_ceT1",))
    touch_case(tmp_path / "labels", "p__bare", ("",))
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


def test_time_points_of_patients(tmp_path):
    """Names as those of Vestibular-Schwannoma-MC-RC-2: two patients were scanned on one day."""
    for patient, date in (("VS_1", "1991-04-28"), ("VS_1", "1993-06-01"), ("VS_2", "1991-04-28")):
        touch_case(tmp_path, f"{patient}_{date}", ("_T1", "_T1C", "_T1C_seg"))
    patterns = {"ceT1": "{patient}_{case}_T1C.nii.gz", "label": "{patient}_{case}_T1C_seg.nii.gz"}
    cases, problems = find_nifti(tmp_path, patterns)
    assert not problems
    assert [(case.case, case.patient) for case in cases] == [
        ("1993-06-01", "VS_1"),
        ("VS_1_1991-04-28", "VS_1"),
        ("VS_2_1991-04-28", "VS_2"),
    ]
    assert {case.label.path.name for case in cases} == {path.name for path in tmp_path.glob("*_seg.nii.gz")}
    assert {case.images["ceT1"].path.name for case in cases} == {path.name for path in tmp_path.glob("*_T1C.nii.gz")}


@pytest.mark.parametrize("label", ["{patient}/{case}_seg.nii.gz", "labels/{case}_seg.nii.gz"])
def test_a_label_that_names_no_patient_goes_to_none(tmp_path, label):
    for patient in "pq":
        touch_case(tmp_path / patient, "2019", ("_T2", "_seg"))
    touch_case(tmp_path / "labels", "2019", ("_seg",))
    cases, problems = find_nifti(tmp_path, {"T2": "{patient}/{case}_T2.nii.gz", "label": label})
    assert [case.case for case in cases] == ["p_2019", "q_2019"]
    whose = {"p_2019", "q_2019"} if "patient" in label else set()
    assert {case.case for case in cases if case.label is not None} == whose
    assert {(p.case, p.check) for p in problems} == {("labels_2019" if whose else "2019", "missing file")}


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
    touch_case(tmp_path / "a", "T2", ("",))
    (tmp_path / "a" / "T2.json").touch()
    with pytest.raises(ValueError, match=message):
        find_nifti(tmp_path, patterns, label_values=values)


def test_nifti_in_a_folder_without_any(tmp_path):
    with pytest.raises(ValueError, match="there are no scan"):
        find_nifti(tmp_path, {"T2": "{case}/T2.nii.gz"})


@pytest.mark.parametrize("structure", ["vestibular schwannoma", "whole tumor", "enhancing tumor"])
def test_tumor_labels(structure):
    assert tumor_labels().mask(np.array([0, 1, 1]), structure).tolist() == [0, 1, 1]
    assert tumor_labels((2, 255)).mask(np.array([0.0, 1, 2, 7, 255, -1]), structure).tolist() == [0, 0, 1, 0, 1, 0]
    with pytest.raises(CaseError, match=r"label values: found \{0, 255\}, expected \{0, 1\}"):
        tumor_labels().mask(np.array([0, 255]), structure)
    for wrong in (0.5, np.nan, np.inf):
        with pytest.raises(CaseError, match="label values: found .*, expected whole numbers"):
            tumor_labels((2,)).mask(np.array([0, 2, wrong]), structure)
