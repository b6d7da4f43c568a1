"""Tests of scripts.files: whoever reads sees the old file or the new one; the SHA-256 is the standard's."""

import pytest

from scripts.files import files_below, sha256, whole_file


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


def test_files_below_follows_links_once_and_passes_over_what_is_hidden(tmp_path):
    for name in ("in/b/2.txt", "in/a/1.txt", "in/.hidden/3.txt", "in/.4.txt", "out/5.txt", "out/deep/6.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"in/z": "out", "in/again": "out", "in/a/up": "in", "in/0": "in/b", "out/back": "in"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in/gone").symlink_to("nowhere")
    found = [path.relative_to(tmp_path / "in").as_posix() for path in files_below(tmp_path / "in")]
    assert found == ["a/1.txt", "again/5.txt", "again/deep/6.txt", "b/2.txt", "gone"]
