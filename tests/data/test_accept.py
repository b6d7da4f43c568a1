"""Tests of --accept: what is understood, what a prepared case keeps of it, and that nothing else is let through."""

import csv
import json

import pytest
from made.downloads import brain, brats, download, head, in_air, stored, t2_series

from scripts.data.accept import accepted_checks
from scripts.data.datalist import load_datalist
from scripts.prepare import main

CASE = "BraTS-GLI-00001-000"


def prepare(folder, *options, source="brats"):
    command = [source, "--input", str(folder / "in"), "--output", str(folder / "out"), "--workers", "1", *options]
    return main(command)


def rows(folder, name):
    with (folder / "out" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def swapped(folder):
    """T1 and T2 exchanged."""
    brats(folder / "in", CASE, t1n=stored(brain().images["T2"]), t2w=stored(brain().images["T1"]))


@pytest.mark.parametrize(
    ("texts", "accepted"),
    [
        (["a"], {"a": {"modality", "mask outside head"}}),
        (
            ["a:modality", "a:mask outside head", "b:modality"],
            {"a": {"modality", "mask outside head"}, "b": {"modality"}},
        ),
        (["x:modality"], {"x:modality": {"modality", "mask outside head"}}),
        (["x:modality:modality"], {"x:modality": {"modality"}}),
    ],
)
def test_what_is_understood(texts, accepted):
    cases = {"a", "b"} if "x" not in texts[0] else {"x:modality"}
    assert accepted_checks(texts, cases) == accepted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("c", "no case is called 'c', expected one of a, b"),
        ("c:modality", "no case is called 'c', expected one of a, b"),
        ("a:affine", "'affine' cannot be accepted, expected one of modality, mask outside head.*must be corrected"),
        ("a:modalty", "'modalty' cannot be accepted, expected one of modality, mask outside head"),
    ],
)
def test_what_is_unknown_is_said(text, said):
    with pytest.raises(ValueError, match=said):
        accepted_checks([text], {"a", "b"})
    with pytest.raises(ValueError, match="accept of 'a' in the split file: 'grid' cannot be accepted"):
        accepted_checks([], {"a"}, rows={"a": "modality; grid"})


def test_a_refused_case_says_how_to_accept_it_and_its_record_keeps_it(tmp_path, caplog):
    """The option is taken from the refusal as a person would; what was accepted is not asked for again."""
    swapped(tmp_path)
    assert prepare(tmp_path) == 1
    (row,) = rows(tmp_path, "excluded.csv")
    assert row["check"] == "modality" and "T2 and T1 look swapped (score -" in row["found"]
    option = row["expected"].partition("it is right, ")[2].split()
    assert option == ["--accept", f"{CASE}:modality"]

    assert prepare(tmp_path, *option) == 0
    record = json.loads((tmp_path / "out" / CASE / f"{CASE}.json").read_text())
    assert record["accepted"] == ["modality"]
    assert (
        "accepted by --accept: modality: found T2 and T1 look swapped" in (tmp_path / "out/overview.html").read_text()
    )
    (case,) = rows(tmp_path, "cases.csv")
    assert case["accept"] == "modality" and "accepted by --accept" in case["warnings"]
    assert load_datalist(tmp_path / "out/datalist.json", "training", check="voxels")[0]["case"] == CASE

    (tmp_path / "out" / CASE / f"{CASE}_T1.nii.gz").unlink()  # made again, as the record says what was accepted
    assert prepare(tmp_path, "--overwrite") == 0
    assert rows(tmp_path, "cases.csv")[0]["accept"] == "modality"
    brats(tmp_path / "in", CASE, t1n=stored(brain().images["T2"]), t2w=stored(brain().images["ceT1"]))
    caplog.clear()
    assert prepare(tmp_path, "--overwrite") == 1  # other input, which nobody has looked at


def test_the_column_accept_of_a_split_file(tmp_path):
    swapped(tmp_path)
    split = tmp_path / "split.csv"
    split.write_text(f"case,split,accept\n{CASE},training,modality\n")
    assert prepare(tmp_path, "--split", str(split)) == 0
    assert rows(tmp_path, "cases.csv")[0]["accept"] == "modality"


def test_a_mask_outside_the_head_is_accepted_by_the_option_of_its_refusal(tmp_path):
    in_air(tmp_path / "in")
    assert prepare(tmp_path, source="vs_seg") == 1
    (row,) = rows(tmp_path, "excluded.csv")
    assert row["expected"].endswith("--accept 'VS-SEG-001:mask outside head'")
    assert prepare(tmp_path, "--accept", "VS-SEG-001:modality", source="vs_seg") == 1
    assert prepare(tmp_path, "--accept", "VS-SEG-001:mask outside head", source="vs_seg") == 0


def test_an_unknown_case_ends_the_run_before_anything_is_written(tmp_path, caplog):
    swapped(tmp_path)
    assert prepare(tmp_path, "--accept", "other:modality") == 1
    assert f"no case is called 'other', expected one of {CASE}" in caplog.text
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_accepted_with_a_whole_case(tmp_path):
    """A case of a wrong grid stays out, whatever of it is accepted."""
    brats(tmp_path / "in", CASE, t1n=stored(brain().images["T1"])[:, :, :-1])
    assert prepare(tmp_path, "--accept", CASE) == 1
    assert {row["check"] for row in rows(tmp_path, "excluded.csv")} == {"shape"}


def test_a_swapped_head_is_prepared_with_a_note(tmp_path):
    """Of whole heads too few were measured to refuse one."""
    download(tmp_path / "in", images=(head().images["ceT1"], head().images["T2"]))
    assert prepare(tmp_path, source="vs_seg") == 0
    assert "T2 and ceT1 look swapped" in rows(tmp_path, "cases.csv")[0]["warnings"]


def test_prepare_dicom_notes_a_series_of_another_modality(tmp_path, caplog):
    t2_series(tmp_path / "in", voxels=stored(head().images["ceT1"]))
    assert prepare(tmp_path, "--series", "T2=t2", source="dicom") == 0
    assert "VS-SEG-001: Check the scan: what was given as T2 does not look like a T2 scan" in caplog.text
    assert "does not look like a T2 scan" in (tmp_path / "out/overview.html").read_text()
