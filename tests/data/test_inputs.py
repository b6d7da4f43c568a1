"""Tests of scripts.data.inputs: which files of a folder are a case to segment, and what is refused.

Only series of DICOM are read here; other files are empty. Spellings are in test_names.py, inference itself in
test_workflows.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made.dicom import write_small

from scripts.data.inputs import find_inputs, refuse_name


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def entry(case: str, *files: Path) -> dict[str, object]:
    return {"case": case, "image": [str(file.resolve()) for file in files]}


ONE_CASE = (
    "p1_T2.nii.gz",
    "p1_T2.nii",
    "p1.nii.gz",
    "p1_hrT2.NII.GZ",
    "p1-t2w.nii",
    "p1_T2.nrrd",
    "p1.mhd",
    "p1_t2.NHDR",
)


@pytest.mark.parametrize("name", ONE_CASE)
def test_a_file_is_a_case(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "p2_T2.nii.gz", "p1_ceT1.nii.gz")
    assert find_inputs(tmp_path / name, "vs") == [entry("p1", tmp_path / name)]


def test_a_folder_is_searched_with_its_subfolders_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "z_T2.nii.gz", "2024/a/b_T2.nii", "notes.txt", "2024/a/b_ceT1.nii.gz")
    assert find_inputs(tmp_path, "vs") == [
        entry("b", tmp_path / "2024/a/b_T2.nii"),
        entry("z", tmp_path / "z_T2.nii.gz"),
    ]


def test_a_relative_path_gives_absolute_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/p1_T2.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert find_inputs("in", "vs") == [entry("p1", tmp_path / "in/p1_T2.nii.gz")]


@pytest.mark.parametrize("given", ["", "p1_T1.nii.gz", "p1_ceT1.nii.gz", "p1_T2.nii"])
def test_siblings_come_in_the_tasks_order(tmp_path: Path, given: str) -> None:
    touch(tmp_path, "p1_T2.nii", "p1_ceT1.nii.gz", "p1_T1.nii.gz", "p1_FLAIR.nii.gz")
    files = [tmp_path / name for name in ("p1_T1.nii.gz", "p1_ceT1.nii.gz", "p1_T2.nii")]
    assert find_inputs(tmp_path / given, "glioma") == [entry("p1", *files)]


def test_a_file_brings_its_own_siblings_only(tmp_path: Path) -> None:
    names = ("T1", "ceT1", "T2")
    touch(tmp_path, *(f"{case}_{name}.nii.gz" for case in ("p1", "p10", "p1_b") for name in names))
    found = find_inputs(tmp_path / "p1_T1.nii.gz", "glioma")
    assert found == [entry("p1", *(tmp_path / f"p1_{name}.nii.gz" for name in names))]
    assert [case["case"] for case in find_inputs(tmp_path, "glioma")] == ["p1", "p10", "p1_b"]


@pytest.mark.parametrize("given", ["", "p2_T1.nii.gz"])
def test_a_missing_sibling_is_named(tmp_path: Path, given: str) -> None:
    touch(tmp_path, "p2_T1.nii.gz", "p2_FLAIR.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"case p2 lacks ceT1, T2 beside .*p2_T1\.nii\.gz.*<case>_ceT1"):
        find_inputs(tmp_path / given, "glioma")


def test_a_missing_sibling_is_listed_where_that_is_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, *(f"p1_{name}.nii.gz" for name in ("T1", "ceT1", "T2")), "p2_ceT1.nii.gz")
    whole, part = find_inputs(tmp_path, "glioma", keep_incomplete=True)
    assert "problem" not in whole and (part["case"], part["image"]) == ("p2", [str(tmp_path / "p2_ceT1.nii.gz")])
    assert str(part["problem"]).startswith(f"case p2 lacks T1, T2 beside {tmp_path / 'p2_ceT1.nii.gz'}")
    with pytest.raises(FileNotFoundError, match="case p2 lacks"):
        find_inputs(tmp_path / "p2_ceT1.nii.gz", "glioma", keep_incomplete=True)


def test_a_link_to_nothing_is_a_case(tmp_path: Path) -> None:
    """Its loading fails; passed over, the case would be missed in silence."""
    (tmp_path / "p1_T2.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    assert find_inputs(tmp_path, "vs") == [{"case": "p1", "image": [str(tmp_path / "p1_T2.nii.gz")]}]


@pytest.mark.parametrize("given", ["", "p1_T2.nii.gz"])
def test_a_link_to_a_blob_goes_by_its_own_name(tmp_path: Path, given: str) -> None:
    """As Hugging Face's cache and DVC keep files."""
    touch(tmp_path, "blobs/0ab1", "snapshot/notes.txt")
    (tmp_path / "snapshot/p1_T2.nii.gz").symlink_to("../blobs/0ab1")
    expected = [{"case": "p1", "image": [str(tmp_path / "snapshot/p1_T2.nii.gz")]}]
    assert find_inputs(tmp_path / "snapshot" / given, "vs") == expected


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "archive/pB/pB_T2.nii.gz", "scans/pA/pA_T2.nii.gz")
    for link, target in (("pB", "../archive/pB"), ("again", "../archive/pB"), ("pA/up", "..")):
        (tmp_path / "scans" / link).symlink_to(target if link != "pA/up" else tmp_path)
    found = find_inputs(tmp_path / "scans", "vs")
    assert [case["case"] for case in found] == ["pA", "pB"]
    assert found[1]["image"] == [str(tmp_path / "scans/again/pB_T2.nii.gz")]


def test_a_name_without_a_case_goes_by_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "p1/T2.nii.gz", "p2/T2.nii.gz", "p3/scans/t2.nii")
    assert [case["case"] for case in find_inputs(tmp_path, "vs")] == ["p1", "p2", "p3_scans"]
    assert find_inputs(tmp_path / "p1/T2.nii.gz", "vs") == [entry("p1", tmp_path / "p1/T2.nii.gz")]


@pytest.mark.parametrize("given", ["", "p1/T1w.nii.gz"])
def test_siblings_are_known_by_any_spelling(tmp_path: Path, given: str) -> None:
    names = ("T1w", "ce-gadolinium_T1w", "T2w")
    touch(tmp_path, *(f"p1/{name}.nii.gz" for name in names), "p1/t2f.nii.gz", "p1/mask.nii.gz")
    assert find_inputs(tmp_path / given, "glioma") == [entry("p1", *(tmp_path / f"p1/{n}.nii.gz" for n in names))]


def test_one_name_in_two_folders_is_two_cases(tmp_path: Path) -> None:
    touch(tmp_path, "p1/t2_tse.nii.gz", "p2/t2_tse.nii.gz", "other_T2.nii.gz")
    assert [case["case"] for case in find_inputs(tmp_path, "vs")] == ["other", "p1_tse", "p2_tse"]


OTHERS = (
    "sub-01_T1w",
    "sub-01_ce-gadolinium_T1w",
    "p1_t1ce",
    "p1_flair",
    "sub-01_desc-brain_mask",
    "p1_0000",
    "p1_T2_seg",
)


@pytest.mark.parametrize("name", [*OTHERS, "crossmoda_1_Label", "t2_tirm_tra_dark-fluid"])
def test_what_is_called_otherwise_is_refused_alone(tmp_path: Path, name: str) -> None:
    touch(tmp_path, f"{name}.nii.gz", "p1_T2.nii.gz")
    with pytest.raises(ValueError, match=rf"{name}\.nii\.gz is named as .*, but task vs starts from T2.*--names"):
        find_inputs(tmp_path / f"{name}.nii.gz", "vs")
    with pytest.raises(ValueError, match="is named as"):
        refuse_name(tmp_path / f"{name}.nii.gz", "vs")


def test_what_is_called_otherwise_is_passed_over_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, *(f"{name}.nii.gz" for name in OTHERS), "p9_T2.nii.gz", "scan.nii.gz", "p2_T2.png")
    with caplog.at_level("INFO"):
        assert find_inputs(tmp_path, "vs") == [entry("p9", tmp_path / "p9_T2.nii.gz")]
    (said,) = [record.message for record in caplog.records]
    assert said == (
        f"9 files passed over in {tmp_path}: 1 FLAIR (p1_flair.nii.gz); 1 T1 (sub-01_T1w.nii.gz); 2 a mask, label map "
        "or output (p1_T2_seg.nii.gz, sub-01_desc-brain_mask.nii.gz); 2 ceT1 (p1_t1ce.nii.gz, "
        "sub-01_ce-gadolinium_T1w.nii.gz); 1 channel 0000 of several (nnU-Net) (p1_0000.nii.gz); 1 names that do not "
        "say which modality they are (scan.nii.gz); 1 no image (p2_T2.png)"
    )


def test_the_user_says_how_names_end(tmp_path: Path) -> None:
    touch(tmp_path, *(f"p1_000{index}.nii.gz" for index in range(4)), "p2.nii.gz", "p2_mask.nii.gz")
    assert find_inputs(tmp_path, "vs", names={"T2": "_0003"}) == [entry("p1", tmp_path / "p1_0003.nii.gz")]
    assert find_inputs(tmp_path, "vs", names={"T2": ""}) == [entry("p2", tmp_path / "p2.nii.gz")]
    glioma = {"T1": "_0001", "ceT1": "_0002", "T2": "_0003"}
    files = [tmp_path / f"p1_000{index}.nii.gz" for index in (1, 2, 3)]
    for given in (tmp_path, files[1]):
        assert find_inputs(given, "glioma", names=glioma) == [entry("p1", *files)]
    with pytest.raises(ValueError, match="names has FLAIR: expected T2"):
        find_inputs(tmp_path, "vs", names={"FLAIR": "_0000"})


def test_modalities_of_one_case_in_two_folders_are_not_mixed(tmp_path: Path) -> None:
    """Two patients whose files are called the same must never become one case."""
    touch(tmp_path, "ann/scan_T1.nii.gz", "ann/scan_ceT1.nii.gz", "bob/scan_T2.nii.gz")
    with pytest.raises((ValueError, FileNotFoundError), match="scan"):
        find_inputs(tmp_path, "glioma")


def test_a_file_of_another_modality_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "p1_FLAIR.nii.gz")
    with pytest.raises(ValueError, match=r"p1_FLAIR\.nii\.gz is named as FLAIR, but task vs starts from T2"):
        find_inputs(tmp_path / "p1_FLAIR.nii.gz", "vs")


@pytest.mark.parametrize("given", ["", "p1_T2.nii.gz"])
@pytest.mark.parametrize("other", ["p1_T2.nii", "p1-t2.nii.gz", "p1_T2.NII.GZ", "p1_T2.mha"])
def test_two_files_for_one_modality_are_refused(tmp_path: Path, other: str, given: str) -> None:
    touch(tmp_path, "p1_T2.nii.gz", other)
    names = sorted(str(tmp_path / name) for name in (other, "p1_T2.nii.gz"))
    with pytest.raises(ValueError, match=re.escape(f"case p1 has two T2 files, {names[0]} and {names[1]}: keep one")):
        find_inputs(tmp_path / given, "vs")
    touch(tmp_path, "p2_T2.nii.gz")
    doubled, whole = find_inputs(tmp_path, "vs", keep_incomplete=True)
    assert str(doubled["problem"]).startswith("case p1 has two T2 files") and len(doubled["image"]) == 2  # type: ignore
    assert whole == entry("p2", tmp_path / "p2_T2.nii.gz")


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("p1_ceT1.nii.gz",), ("p1_pred.nii.gz", "p1_label.nii.gz")])
def test_a_folder_without_a_case_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(FileNotFoundError, match=r"no case for task vs in .*expected <case>_T2\.nii\.gz"):
        find_inputs(tmp_path, "vs")


def test_formats_of_itk_make_cases_as_nifti_does(tmp_path: Path) -> None:
    touch(tmp_path, "p1/T2.nrrd", "p2/T2.mhd", "p2/T2.raw", "p3_T2.nii.gz", "p3_T2.seg.nrrd")
    assert [case["case"] for case in find_inputs(tmp_path, "vs")] == ["p1", "p2", "p3"]
    names = ("T1.nhdr", "ceT1.mha", "T2.nii")
    touch(tmp_path, *(f"p4/p4_{name}" for name in names))
    found = find_inputs(tmp_path / "p4", "glioma")
    assert found == [entry("p4", *(tmp_path / f"p4/p4_{name}" for name in names))]


@pytest.mark.parametrize(
    ("description", "task", "said"),
    [
        ("t2_tirm_tra_dark-fluid", "vs", r"called 't2_tirm_tra_dark-fluid', but task vs starts from T2.*prepare dicom"),
        ("t2_tra", "glioma", r"is DICOM: expected <case>_T1.* for task glioma; python -m scripts\.prepare dicom"),
    ],
)
def test_a_series_that_cannot_be_taken_is_refused(tmp_path: Path, description: str, task: str, said: str) -> None:
    series = write_small(tmp_path, description=description)
    with pytest.raises(ValueError, match=said):
        find_inputs(tmp_path, task)
    with pytest.raises(ValueError, match=rf"is DICOM: .* --input {re.escape(str(tmp_path))} chooses series"):
        find_inputs(series.paths[0], "vs")


def test_several_series_are_refused(tmp_path: Path) -> None:
    for name in ("t2_a", "t2_b"):
        write_small(tmp_path / name, description=name)
    with pytest.raises(ValueError, match=r"ambiguous series: found .*'t2_a', 't2_b', expected .*prepare dicom chooses"):
        find_inputs(tmp_path, "vs")


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "p1.dcm")
    with pytest.raises(FileNotFoundError, match="no case"):
        find_inputs(tmp_path / "p1.dcm", "vs")


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_inputs(tmp_path / "nowhere", "vs")


def test_an_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown task 'liver'.*'glioma'.*'vs'"):
        find_inputs(tmp_path, "liver")


def test_masks_and_outputs_are_passed_over(tmp_path: Path) -> None:
    outputs = ("label", "seg", "pred", "synthetic", "error", "coarse")
    touch(tmp_path, "p1_T2.nii.gz", *(f"p1/p1_{name}.nii.gz" for name in outputs), "p1_seg.nii")
    assert find_inputs(tmp_path, "vs") == [entry("p1", tmp_path / "p1_T2.nii.gz")]


@pytest.mark.parametrize("case", ["left ear", "p[1]", "p1 (2) *", "père #3"])
@pytest.mark.parametrize("as_file", [True, False])
def test_names_with_spaces_and_brackets(tmp_path: Path, case: str, as_file: bool) -> None:
    folder = tmp_path / f"scans of {case}"
    names = [f"{case}_{name}.nii.gz" for name in ("T1", "ceT1", "T2")]
    touch(folder, *names)
    given = folder / names[1] if as_file else folder
    assert find_inputs(given, "glioma") == [entry(case, *(folder / name for name in names))]
