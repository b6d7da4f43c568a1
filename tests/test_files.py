"""Tests of scripts.files: whoever reads sees the old file or the new one; the SHA-256 is the standard's."""

import pytest

from scripts.files import sha256, whole_file


def test_a_new_file_is_hidden_until_the_block_ends(tmp_path):
    path = tmp_path / "cases.csv"
    with whole_file(path) as partial:
        assert partial == tmp_path / ".cases.csv.partial"
        partial.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "datalist.json"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_a_failing_block_changes_nothing(tmp_path, old, error):
    path = tmp_path / "datalist.json"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), whole_file(path) as partial:
        partial.write_text("half of")
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({} if old is None else {path.name: old})


def test_a_block_that_fails_before_it_writes_raises_its_own_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to write"), whole_file(tmp_path / "datalist.json"):
        raise ValueError("nothing to write")


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    path = tmp_path / "datalist.json"
    (tmp_path / ".datalist.json.partial").write_text("longer than what comes now")
    with whole_file(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "none" / "cases.csv") as partial:
        partial.write_text("new")


def test_the_sha256_is_that_of_the_content(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
