"""Tests of the table of sources: what each makes of its folders, and which files and options decide a case.

What the jobs write is tested where it is written: `test_conversion.py`, `test_studies.py`, `test_prepare.py`.
"""

import json
import pickle

import nibabel as nib
import numpy as np
import pytest
from made.contours import SQUARE, polygon_contour, write_contours_json, write_rtstruct
from made.dicom import make_affine, make_uid, write_small

from scripts.data.case import Facts
from scripts.data.datalist import TASKS
from scripts.data.names import MODALITIES
from scripts.data.sources.registry import SOURCES, Options, case_names, find_cases

AFFINE = np.diag([0.5, 0.5, 1.5, 1.0])
SHAPE = (6, 5, 4)
PATTERNS = {"T2": "{case}/t2.nii.gz", "ceT1": "{case}/t1.nii.gz", "label": "{case}/seg.nii.gz"}


def write_nifti(path, start=0):
    """An image of numbers from `start`; a mask of one voxel for names of labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.arange(start, start + np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    if any(part in path.name for part in ("seg", "abel")):
        voxels = (voxels == start + 60).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def make_nifti(root):
    for name in ("t1", "t2", "seg"):
        write_nifti(root / "a" / f"{name}.nii.gz", len(name))


def make_brats(root):
    for name in ("t1", "t1ce", "t2", "flair", "seg"):
        write_nifti(root / "BraTS2021_00002" / f"BraTS2021_00002_{name}.nii.gz")


def make_msd(root):
    for name in ("0000", "0001", "0002", "0003", "labels"):
        write_nifti(root / f"BRATS_001_{name}.nii.gz")


def make_crossmoda(root):
    for name in ("crossmoda2022_ldn_1_ceT1", "crossmoda2022_ldn_1_Label", "crossmoda2022_ldn_106_hrT2"):
        write_nifti(root / f"{name}.nii.gz")


def make_converted(root):
    for name in ("t1", "t2", "seg"):
        write_nifti(root / "vs_gk_7" / f"vs_gk_{name}_refT2.nii.gz")


def make_download(root, *, patient="VS-SEG-007"):
    """T2 and ceT1 on one grid with an RTSTRUCT on T2, contours.json and a transform."""
    t2 = write_small(root / "t2", patient=patient)
    write_small(root / "t1", patient=patient, description="t1_mpr_tra", study_uid=t2.study_uid)
    square = {"TV": [polygon_contour(SQUARE, 2, make_affine())]}
    write_rtstruct(root / "rt.dcm", square, series=(t2.series_uid,), study=t2.study_uid, patient=patient)
    folder = root / f"vs_gk_{patient[-1]}_t2"
    folder.mkdir()
    write_contours_json(folder / "contours.json", square)
    (folder / "matrix.tfm").touch()


# Source to task, options, maker and the roles that decide a case's files.
MADE = {
    "nifti": ("vs", {"patterns": PATTERNS}, make_nifti, ["T2", "ceT1", "label"]),
    "brats": ("glioma", {}, make_brats, ["T1", "ceT1", "T2", "FLAIR", "label"]),
    "msd": ("surrogate_t2_cet1", {}, make_msd, ["T2", "ceT1", "label"]),
    "crossmoda": ("vs_cet1", {}, make_crossmoda, ["ceT1", "label"]),
    "vs_seg": ("vs", {}, make_download, ["T2", "ceT1", "structure sets", "contours on T2", "transforms"]),
    "dicom": ("vs", {"series": {"T2": "t2_"}}, make_download, ["T2", "structure sets", "transforms"]),
}


def found_in(tmp_path, source):
    """What a source finds in a folder that was made for it."""
    task, arguments, make, _ = MADE[source]
    make(tmp_path)
    return find_cases(source, [tmp_path], Options(task, **arguments))


# --- Every source


@pytest.mark.parametrize("source", SOURCES)
def test_a_case_is_found_with_the_files_that_decide_it(tmp_path, source):
    found = found_in(tmp_path, source)
    assert found.problems == []
    (job,) = found.jobs
    assert list(job.files) == MADE[source][3]
    files = [path for paths in job.files.values() for path in paths]
    assert len(set(files)) == len(files) and all(path.is_file() for path in files)


@pytest.mark.parametrize("source", SOURCES)
def test_a_job_after_its_journey_to_a_worker_writes_the_case(tmp_path, source):
    found = found_in(tmp_path, source)
    for job in (*found.jobs, *found.scans):
        there = pickle.loads(pickle.dumps(job))
        assert (there.case, there.files, there.options) == (job.case, job.files, job.options)
        assert (there.write.func, there.write.args) == (job.write.func, job.write.args)
        assert json.loads(json.dumps(job.options))["task"] == MADE[source][0]
    if source != "vs_seg":  # It registers, which needs heads: see `test_studies.py`.
        (tmp_path / "out").mkdir()
        there = pickle.loads(pickle.dumps(found.jobs[0]))
        assert isinstance(there.write(tmp_path / "out"), Facts)
        names = [role for role in MADE[source][3] if role in (*MODALITIES, "label")]
        assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{there.case}_{n}.nii.gz" for n in names}
        assert case_names(source, MADE[source][0]) == tuple(names)


@pytest.mark.parametrize("source", SOURCES)
def test_a_task_that_a_source_does_not_serve_is_refused(tmp_path, source):
    served = SOURCES[source].tasks
    for task in {*TASKS, "liver"} - set(served):
        with pytest.raises(ValueError, match=f"task is '{task}', expected one of {', '.join(served)} for {source}"):
            find_cases(source, [tmp_path], Options(task))


@pytest.mark.parametrize("source", ["nifti", "brats", "msd", "crossmoda"])
def test_several_folders_of_nifti_are_refused(tmp_path, source):
    task, arguments, make, _ = MADE[source]
    make(tmp_path)
    with pytest.raises(ValueError, match=f"names 2 folders, expected one for {source}"):
        find_cases(source, [tmp_path, tmp_path], Options(task, **arguments))


# --- NIfTI


def nifti_job(root, **arguments):
    (job,) = find_cases("nifti", [root], Options("vs", **{"patterns": PATTERNS, **arguments})).jobs
    return job


def test_exchanged_patterns_exchange_the_files(tmp_path):
    make_nifti(tmp_path)
    job = nifti_job(tmp_path)
    exchanged = nifti_job(tmp_path, patterns={**PATTERNS, "T2": PATTERNS["ceT1"], "ceT1": PATTERNS["T2"]})
    assert job.files["T2"] == exchanged.files["ceT1"] == (tmp_path / "a" / "t2.nii.gz",)
    assert job.files["ceT1"] == exchanged.files["T2"] == (tmp_path / "a" / "t1.nii.gz",)
    assert job.files != exchanged.files and job.options == exchanged.options


def test_what_changes_a_case_is_in_its_options_and_nothing_else(tmp_path):
    make_nifti(tmp_path)
    said = nifti_job(tmp_path).options
    assert nifti_job(tmp_path, workers=7, keep_empty=True, structure=("TV",)).options == said
    for change in ({"register": True}, {"label_values": (1, 2)}):
        assert nifti_job(tmp_path, **change).options != said


def test_a_modality_that_the_task_does_not_need_is_no_file_of_a_case(tmp_path):
    make_nifti(tmp_path)
    write_nifti(tmp_path / "a" / "flair.nii.gz")
    assert "FLAIR" not in nifti_job(tmp_path, patterns={**PATTERNS, "FLAIR": "{case}/flair.nii.gz"}).files


def test_patient_and_cohort_go_into_the_job(tmp_path):
    write_nifti(tmp_path / "london" / "p1" / "a_t2.nii.gz")
    (job,) = find_cases("nifti", [tmp_path], Options("vs", patterns={"T2": "{cohort}/{patient}/{case}_t2.nii.gz"})).jobs
    assert (job.case, job.patient, job.cohort) == ("a", "p1", "london")


def test_crossmoda_s_t2_is_for_inference_alone(tmp_path):
    found = found_in(tmp_path, "crossmoda")
    assert [job.case for job in found.jobs] == ["crossmoda2022_ldn_1"]
    (scan,) = found.scans
    assert scan.case == "crossmoda2022_ldn_106" and list(scan.files) == ["T2"]
    assert len(found.notes) == 1 and "different patients" in found.notes[0]


# --- DICOM


def test_series_patterns_go_over_the_usual_ones(tmp_path):
    make_download(tmp_path)
    write_small(tmp_path / "other", patient="VS-SEG-007", description="t2_space")
    found = find_cases("vs_seg", [tmp_path], Options("vs"))
    assert [problem.check for problem in found.problems] == ["ambiguous series"]
    (job,) = find_cases("vs_seg", [tmp_path], Options("vs", series={"T2": "space"})).jobs
    assert {path.parent.name for path in job.files["T2"]} == {"other"}
    assert {path.parent.name for path in job.files["ceT1"]} == {"t1"}


def test_the_structure_decides_and_contours_are_for_labels_alone(tmp_path):
    make_download(tmp_path)
    (usual,), (named,) = (
        find_cases("vs_seg", [tmp_path], Options("vs", structure=structure)).jobs for structure in (None, ("Cochlea",))
    )
    assert usual.files == named.files and usual.options != named.options
    (scan,) = find_cases("dicom", [tmp_path], Options("vs", series={"T2": "t2_"})).jobs
    assert not any(role.startswith("contours") for role in scan.files)


def test_several_folders_of_dicom_come_together(tmp_path):
    for number in (1, 2):
        make_download(tmp_path / str(number), patient=f"VS-SEG-00{number}")
    found = find_cases("vs_seg", [tmp_path / "1", tmp_path / "2"], Options("vs"))
    assert [(job.case, job.cohort) for job in found.jobs] == [("VS-SEG-001", "VS-SEG"), ("VS-SEG-002", "VS-SEG")]


def test_converted_data_are_nifti(tmp_path):
    make_converted(tmp_path)
    (job,) = find_cases("vs_seg", [tmp_path], Options("vs")).jobs
    assert (job.case, list(job.files)) == ("vs_gk_7", ["T2", "ceT1", "label"])


def test_series_without_a_patient_are_told(tmp_path):
    for name in ("a", "b"):
        write_small(tmp_path / name, PatientID=None, PatientName=None, series_uid=make_uid(name))
    assert find_cases("dicom", [tmp_path], Options("vs")).notes == [
        "2 series have neither PatientID nor PatientName and count as one patient"
    ]
