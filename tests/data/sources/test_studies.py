"""Tests of studies: which series make a case, what describes its tumor, and in which order it is taken.

Whole downloads, and the ways in which a study is refused, are in `test_refused.py`.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from made.contours import SQUARE, polygon_contour, write_contours_json, write_rtstruct
from made.dicom import make_affine, make_uid, write_small
from made.tcia import write_patient

from scripts.data.datalist import TASKS
from scripts.data.dicom.folder import Scan, scan
from scripts.data.sources.studies import (
    MOST_DAYS,
    StudyCase,
    file_name,
    find_studies,
    vs_seg_cohort,
    write_study,
)
from scripts.data.sources.vestibular import VS_SEG_SERIES, add_contours
from scripts.data.volume import CaseError

BOTH = TASKS["vs"].modalities


def write(root, place, *, study="1", date="20120102", **options):
    """A small series of a study that is called by a number."""
    patient = options.get("patient", "VS-SEG-001")
    return write_small(root / place, study_uid=make_uid(f"{patient} {study}"), StudyDate=date, **options)


def write_both(root, *, study="1", date="20120102", **options):
    """T2 and ceT1 of one study."""
    for description in ("t2_ci3d_tra", "t1_mpr_tra"):
        write(root, f"{study} {description}", study=study, date=date, description=description, **options)


def find(root, modalities=BOTH, patterns=VS_SEG_SERIES):
    return find_studies(scan(root), modalities, patterns)


def chosen(case):
    """Modality to the description of the series that was taken for it."""
    return {name: series.header.description for name, series in case.series.items()}


# --- find_studies


def test_series_of_a_patient_become_a_case(tmp_path):
    write_both(tmp_path)
    (case,), problems = find(tmp_path)
    assert problems == []
    assert (case.case, case.patient, case.cohort) == ("VS-SEG-001", "VS-SEG-001", "VS-SEG")
    assert chosen(case) == {"T2": "t2_ci3d_tra", "ceT1": "t1_mpr_tra"}


def test_the_order_of_the_modalities_is_that_of_the_task(tmp_path):
    write_both(tmp_path)
    for modalities in (("T2", "ceT1"), ("ceT1", "T2"), ("ceT1",)):
        ((case,), _) = find(tmp_path, modalities)
        assert tuple(case.series) == modalities


def test_patients_are_sorted(tmp_path):
    for patient in ("VS-SEG-010", "VS-SEG-002", "Berta"):
        write_both(tmp_path / patient, patient=patient)
    cases, problems = find(tmp_path)
    assert [case.case for case in cases] == ["Berta", "VS-SEG-002", "VS-SEG-010"] and problems == []


def test_studies_of_a_patient_are_numbered_by_date(tmp_path):
    write_both(tmp_path, study="1", date="20140101")
    write_both(tmp_path, study="2", date="20120101")
    cases, problems = find(tmp_path)
    assert problems == []
    assert [(case.case, case.patient) for case in cases] == [
        ("VS-SEG-001_1", "VS-SEG-001"),
        ("VS-SEG-001_2", "VS-SEG-001"),
    ]
    assert [case.series["T2"].header.study_date for case in cases] == ["20120101", "20140101"]


def test_a_study_that_lacks_a_series_does_not_borrow_it_from_a_complete_one(tmp_path):
    write_both(tmp_path, study="1", date="20120101")
    write(tmp_path, "later", study="2", date="20120110", description="t2_ci3d_tra")
    (case,), problems = find(tmp_path)
    assert case.case == "VS-SEG-001_1"
    assert [(problem.case, problem.check) for problem in problems] == [("VS-SEG-001_2", "missing series")]


def write_apart(root, first, second):
    """T2 of one study and ceT1 of another."""
    write(root, "t2", study="1", date=first, description="t2_ci3d_tra")
    write(root, "t1", study="2", date=second, description="t1_mpr_tra")


@pytest.mark.parametrize(("first", "second"), [("20120101", "20120201"), ("20120201", "20120101")])
def test_series_of_two_studies_within_a_month_are_one_case(tmp_path, first, second):
    assert MOST_DAYS == 31  # January
    write_apart(tmp_path, first, second)
    (case,), problems = find(tmp_path)
    assert case.case == "VS-SEG-001" and problems == []
    assert chosen(case) == {"T2": "t2_ci3d_tra", "ceT1": "t1_mpr_tra"}


@pytest.mark.parametrize(
    ("second", "shown"),
    [
        ("20120202", "T2 of 2012-01-01, ceT1 of 2012-02-02"),
        ("20111130", "T2 of 2012-01-01, ceT1 of 2011-11-30"),
        (None, "ceT1 of an unknown date"),
        ("", "ceT1 of an unknown date"),
    ],
)
def test_series_of_two_studies_further_apart_are_refused(tmp_path, second, shown):
    write_apart(tmp_path, "20120101", second)
    cases, (problem,) = find(tmp_path)
    assert cases == []
    assert (problem.case, problem.check) == ("VS-SEG-001", "different studies")
    assert shown in problem.found


def test_only_mr_is_taken(tmp_path):
    write_both(tmp_path)
    write(tmp_path, "ct", description="t2_of_a_ct", modality="CT")
    (case,), problems = find(tmp_path)
    assert problems == [] and chosen(case)["T2"] == "t2_ci3d_tra"


def test_a_patient_without_mr_is_told(tmp_path):
    write(tmp_path, "ct", description="t2_of_a_ct", modality="CT")
    cases, problems = find(tmp_path, ("T2",))
    assert cases == []
    assert [(p.check, p.found) for p in problems] == [("missing series", "T2: series none")]


def test_nothing_gives_nothing():
    assert find_studies(Scan(), BOTH, VS_SEG_SERIES) == ([], [])


def test_the_description_goes_before_the_folder(tmp_path):
    write(tmp_path, "t2_folder", description="t1_mpr_tra")
    write(tmp_path, "other", description="t2_ci3d_tra")
    (case,), _ = find(tmp_path)
    assert chosen(case) == {"T2": "t2_ci3d_tra", "ceT1": "t1_mpr_tra"}


def test_patterns_are_searched_anywhere_and_in_any_case(tmp_path):
    write(tmp_path, "a", description="Sag FIESTA c+")
    write(tmp_path, "b", description="Ax BRAVO")
    (case,), _ = find(tmp_path, BOTH, {"T2": "fiesta", "ceT1": "bravo$"})
    assert chosen(case) == {"T2": "Sag FIESTA c+", "ceT1": "Ax BRAVO"}


def test_the_only_series_needs_no_pattern(tmp_path):
    write(tmp_path, "a", description="whatever")
    (case,), _ = find(tmp_path, ("T2",), {})
    assert chosen(case) == {"T2": "whatever"}
    write(tmp_path, "b", description="another")
    cases, (problem,) = find(tmp_path, ("T2",), {})
    assert cases == [] and problem.check == "ambiguous series"
    assert "'whatever'" in problem.found and "'another'" in problem.found


SUPPRESSED = ("t2_tirm_tra_dark-fluid", "t2_flair_cor", "T2 STIR", "t2_space_da-fl_sag", "t2 dark fluid")


@pytest.mark.parametrize("description", SUPPRESSED)
def test_what_suppresses_fluid_or_fat_is_no_t2(tmp_path, description):
    write(tmp_path, "a", description=description)
    cases, (problem,) = find(tmp_path, ("T2",), {"T2": "t2"})
    assert cases == [] and problem.check == "missing series" and repr(description) in problem.found
    assert "not FLAIR, dark-fluid, TIRM or STIR" in problem.expected
    assert find(tmp_path, ("T2",), {})[0] == []
    write(tmp_path, "b", description="t2_tse_tra")
    (case,), _ = find(tmp_path, ("T2",), {"T2": "t2"})
    assert chosen(case) == {"T2": "t2_tse_tra"}


@pytest.mark.parametrize("pattern", ["t2_tirm", "dark-fluid"])
def test_a_pattern_that_says_so_finds_it(tmp_path, pattern):
    write(tmp_path, "a", description="t2_tirm_tra_dark-fluid")
    (case,), _ = find(tmp_path, ("T2",), {"T2": pattern})
    assert chosen(case) == {"T2": "t2_tirm_tra_dark-fluid"}


@pytest.mark.parametrize(
    ("modality", "description", "taken"),
    [
        ("T2", "t1_mpr_tra", False),
        ("T2", "ep2d_diff_ADC", False),
        ("T2", "ciss", True),
        ("ceT1", "t1_mpr_tra", True),
        ("ceT1", "t2_tse", False),
    ],
)
def test_the_only_series_is_not_taken_for_what_it_is_not_called(tmp_path, modality, description, taken):
    write(tmp_path, "a", description=description)
    cases, problems = find(tmp_path, (modality,), {})
    assert len(cases) == taken and [problem.check for problem in problems] == ["missing series"] * (not taken)


def test_structure_sets_are_those_of_the_patient_or_the_study(tmp_path):
    t2 = write(tmp_path, "t2")
    square = {"TV": [polygon_contour(SQUARE, 2, make_affine())]}
    own = write_rtstruct(tmp_path / "own.dcm", square)
    renamed = write_rtstruct(tmp_path / "renamed.dcm", square, patient="X", study=t2.study_uid)
    write_rtstruct(tmp_path / "foreign.dcm", square, patient="X")
    (case,), _ = find(tmp_path, ("T2",))
    assert case.structure_sets == (own, renamed)


# --- add_contours


def write_extras(folder, *names):
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_contours_and_transforms_go_to_the_patient_of_the_number(tmp_path):
    t2, t1, tfm = write_extras(
        tmp_path / "contours", "vs_gk_7_t2/contours.json", "VS_GK_7_T1/contours.json", "vs_gk_7_t1/matrix.tfm"
    )
    write_extras(tmp_path, "vs_gk_70_t2/contours.json", "vs_gk_7_t2/._contours.json", "vs_gk_7/contours.json")
    write_extras(tmp_path, "my_vs_gk_7_t2/contours.json", "vs_gk_7_t3/contours.json", "vs_gk_7_t2/other.json")
    cases = [StudyCase(name, name, "VS-SEG", {}) for name in ("VS-SEG-007", "VS-SEG-008")]
    seven, eight = add_contours(cases, [tmp_path])
    assert seven == replace(cases[0], contours={"T2": t2, "ceT1": t1}, transforms=(tfm,))
    assert eight == cases[1]


def test_contours_of_several_folders_come_together(tmp_path):
    (drawn,) = write_extras(tmp_path / "a", "vs_gk_123_t2/contours.json")
    moves = write_extras(tmp_path / "b", "vs_gk_123_t1/m.tfm", "vs_gk_123_t2/m.tfm")
    (case,) = add_contours([StudyCase("x", "VS-SEG-123", "VS-SEG", {})], [tmp_path / "a", tmp_path / "b"])
    assert (case.case, case.contours, case.transforms) == ("x", {"T2": drawn}, tuple(moves))


# --- Names and files


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("VS-SEG-001", "VS-SEG-001"),
        ("Doe^John  A.", "Doe_John_A"),
        ("../../etc", "etc"),
        ("山田^太郎", "山田_太郎"),
        ("a.b-c_d", "a.b-c_d"),
        (".hidden", "hidden"),
        ("///", "unknown"),
        ("", "unknown"),
    ],
)
def test_file_name(identity, name):
    assert file_name(identity) == name


@pytest.mark.parametrize(
    ("patient", "cohort"),
    [("VS-SEG-001", "VS-SEG"), ("VS-SEG-1234", "VS-SEG"), ("VS-SEG-", "DICOM"), ("aVS-SEG-1", "DICOM"), ("", "DICOM")],
)
def test_vs_seg_cohort(patient, cohort):
    assert vs_seg_cohort(patient) == cohort


def test_files_of_a_case_by_what_they_are_for(tmp_path):
    written = write(tmp_path, "t2")
    (case,), _ = find(tmp_path, ("T2",))
    rt, drawn, tfm = (tmp_path / name for name in ("rt.dcm", "contours.json", "m.tfm"))
    case = replace(case, structure_sets=(rt,), contours={"ceT1": drawn}, transforms=(tfm,))
    assert case.files() == {
        "T2": tuple(sorted(written.paths)),
        "structure sets": (rt,),
        "contours on ceT1": (drawn,),
        "transforms": (tfm,),
    }


# --- write_study: which drawing is taken


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A case with RTSTRUCT and contours.json on both series, and transforms."""
    root = tmp_path_factory.mktemp("download")
    write_patient(root, 7, size="tiny")
    (case,) = add_contours(find(root)[0], [root])
    return case


def drawn_first(case, folder):
    """What the mask was drawn on, and the drawings that were compared with it, in order."""
    shown = write_study(case, None, True, folder).shown
    compared = [key for key in shown if shown[key].endswith("with the mask")]
    return [shown["tumor drawn on"].removesuffix(", structure 'TV'"), *compared]


def test_the_first_series_goes_first_and_a_structure_set_before_contours_json(tmp_path, patient):
    assert drawn_first(patient, tmp_path) == [
        "T2, RTSTRUCT 1-1.dcm",
        "contours.json on T2",
        "RTSTRUCT 1-1.dcm on ceT1",
        "contours.json on ceT1",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"VS-SEG-007_{name}.nii.gz" for name in ("T2", "ceT1", "label")
    ]


def test_contours_json_of_the_first_series_goes_before_a_structure_set_of_the_second(tmp_path, patient):
    of_t2, of_cet1 = sorted(patient.structure_sets)
    case = replace(patient, structure_sets=(of_cet1,))
    assert of_t2.parent.name.startswith("1") and of_cet1.parent.name.startswith("2")
    assert drawn_first(case, tmp_path) == ["T2, contours.json", "RTSTRUCT 1-1.dcm on ceT1", "contours.json on ceT1"]


def t2_alone(folder, **contours):
    """T2 of a patient without any drawing but those in contours.json."""
    write(folder / "dicom", "t2")
    (case,), _ = find(folder / "dicom", ("T2",))
    for name, structures in contours.items():
        case = replace(case, contours={name: write_contours_json(folder / "contours.json", structures)})
    (folder / "out").mkdir()
    return case


def test_without_label_no_drawing_is_needed(tmp_path):
    write_study(t2_alone(tmp_path), None, False, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["VS-SEG-001_T2.nii.gz"]


def test_contours_of_a_series_that_is_not_wanted_are_not_taken(tmp_path):
    case = t2_alone(tmp_path, ceT1={"TV": [polygon_contour(SQUARE, 2, make_affine())]})
    with pytest.raises(CaseError, match="no drawing of the tumor"):
        write_study(case, None, True, tmp_path / "out")


# --- what a reader should know of the images


def test_what_was_lost_is_told_in_the_log_and_of_the_case(tmp_path, caplog):
    fixtures = Path(__file__).parents[2] / "fixtures/dicom"
    shutil.copytree(fixtures / "jpeg_baseline", tmp_path / "in/a")
    shutil.copytree(fixtures / "jpeg_baseline", tmp_path / "in/b")
    for path in tmp_path.glob("in/*/*.dcm"):
        data = pydicom.dcmread(path)
        data.PhotometricInterpretation, data.RescaleSlope, data.RescaleIntercept = "MONOCHROME1", 2, 0
        data.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.5)
        data.save_as(path)
    (case,), problems = find(tmp_path / "in", ["T2"], {"T2": "t2"})
    assert not problems
    (tmp_path / "out").mkdir()
    facts = write_study(case, None, False, tmp_path / "out")
    assert [warning[:45] for warning in facts.warnings] == [
        "T2: 3 of 6 images are identical copies and we",
        "T2: 3 images were compressed with loss (JPEG ",
        "T2: MONOCHROME1, where low values are bright:",
    ]
    assert facts.shown["T2 rescale"].startswith("the standard's own (0028,1053) and (0028,1052), slope 2, intercept 0;")
    assert [record.getMessage() for record in caplog.records] == [f"phantom: {warning}" for warning in facts.warnings]
