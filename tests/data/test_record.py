"""Tests of scripts.data.record: checksums of what a case was made from, and whether its folder is ours and complete."""

import hashlib
import json

import pytest

from scripts.data.record import VERSION, digest_inputs, is_complete, read_record, write_record
from scripts.data.volume import CaseError

CONTENT = {"identity": {"version": VERSION, "input": {"T2": "0"}}, "patient": "Müller"}
# Published examples of SHA-256: of "abc" (FIPS 180-2, B.1), and of nothing.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def write(path, text):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def prepared(tmp_path, files=(("a_T2.nii.gz", "abc"), ("a_label.nii.gz", ""))):
    """A case's folder with its record."""
    folder = tmp_path / "a"
    folder.mkdir()
    for name, text in files:
        write(folder / name, text)
    write_record(folder, "a", CONTENT)
    return folder


# --- digest_inputs


def test_a_digest_is_that_of_the_digests_of_the_files(tmp_path):
    first, second = write(tmp_path / "1", "abc"), write(tmp_path / "2", "")
    expected = {
        "T2": hashlib.sha256((ABC + EMPTY).encode()).hexdigest(),
        "transforms": EMPTY,  # no file
    }
    assert digest_inputs({"T2": (first, second), "transforms": ()}) == expected


def test_names_and_places_do_not_matter(tmp_path):
    here, there = write(tmp_path / "here" / "1.dcm", "abc"), write(tmp_path / "there" / "other.dcm", "abc")
    assert digest_inputs({"T2": (here,)}) == digest_inputs({"T2": (there,)})


def test_content_order_and_cuts_between_files_matter(tmp_path):
    a, b, ab = (write(tmp_path / text, text) for text in ("a", "b", "ab"))
    empty = write(tmp_path / "empty", "")
    made = [(a, b), (b, a), (ab,), (ab, empty), (a,), (a, a), ()]
    assert len({digest_inputs({"T2": files})["T2"] for files in made}) == len(made)


def test_a_file_that_went_away_is_named(tmp_path):
    with pytest.raises(CaseError, match="lost.nii.gz") as refused:
        digest_inputs({"T2": (tmp_path / "lost.nii.gz",)})
    assert refused.value.check == "unreadable file"


# --- write_record and read_record


def test_a_record_gives_back_what_was_written(tmp_path):
    folder = prepared(tmp_path)
    assert read_record(folder) == {**CONTENT, "files": {"a_T2.nii.gz": ABC, "a_label.nii.gz": EMPTY}}


def test_a_record_is_text_that_people_read(tmp_path):
    text = (prepared(tmp_path) / "a.json").read_text(encoding="utf-8")
    assert "Müller" in text and text.endswith("}\n") and text.count("\n") > 5


def test_a_record_is_called_as_the_case_whatever_the_folder_is_called_now(tmp_path):
    partial = tmp_path / ".partial_a"
    partial.mkdir()
    write_record(partial, "a", CONTENT)
    record = read_record(partial.rename(tmp_path / "a"))
    assert record == {**CONTENT, "files": {}}


def test_the_files_that_are_there_are_those_of_the_record(tmp_path):
    folder = prepared(tmp_path, [("a_T2.nii.gz", "abc")])
    record = read_record(folder)
    write(folder / "notes.txt", "of a reader")
    assert list(record["files"]) == ["a_T2.nii.gz"] and is_complete(folder, record)


def test_no_folder_no_record(tmp_path):
    assert read_record(tmp_path / "a") is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="no record"),
        pytest.param("", id="empty"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param('{"identity": {"version"', id="cut"),
        pytest.param("[]", id="a list"),
        pytest.param("null", id="null"),
        pytest.param('{"files": {}}', id="no identity"),
        pytest.param('{"identity": {}, "files": {}}', id="no version"),
        pytest.param('{"identity": {"version": 1}}', id="no files"),
        pytest.param('{"identity": {"version": 1}, "files": ["a"]}', id="files as a list"),
        pytest.param('{"identity": {"version": 1}, "files": {"a": 1}}', id="a checksum that is no text"),
    ],
)
def test_a_folder_without_a_record_of_ours_is_foreign(tmp_path, text):
    (tmp_path / "a").mkdir()
    if text is not None:
        (tmp_path / "a" / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(match="was not written by scripts.prepare"):
        read_record(tmp_path / "a")


def test_a_file_in_the_place_of_a_folder_is_foreign(tmp_path):
    with pytest.raises(ValueError, match="was not written by scripts.prepare"):
        read_record(write(tmp_path / "a", "a file"))


def test_the_record_of_another_case_does_not_count(tmp_path):
    write(tmp_path / "a" / "b.json", json.dumps({**CONTENT, "files": {}}))
    with pytest.raises(match="a.json"):
        read_record(tmp_path / "a")


# --- is_complete


@pytest.mark.parametrize("lost", [["a_T2.nii.gz"], ["a_T2.nii.gz", "a_label.nii.gz"]])
def test_a_lost_file_is_incomplete(tmp_path, lost):
    folder = prepared(tmp_path)
    for name in lost:
        (folder / name).unlink()
    assert is_complete(folder, read_record(folder)) is False


@pytest.mark.parametrize("also_lost", [False, True])
def test_a_changed_file_is_told(tmp_path, also_lost):
    folder = prepared(tmp_path)
    write(folder / "a_label.nii.gz", "corrected by hand")
    if also_lost:
        (folder / "a_T2.nii.gz").unlink()
    with pytest.raises(CaseError, match="a/a_label.nii.gz was changed") as refused:
        is_complete(folder, read_record(folder))
    assert refused.value.check == "changed file"
