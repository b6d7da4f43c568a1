"""Tests of monailabel_app.versions: numbered, never overwritten, promoted only for the better, rolled back."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from monailabel_app import versions
from monailabel_app.errors import InputError, NotFound

ROOT = Path(__file__).parents[2]
MODEL = "tissnet_vs"
SECONDS = 60


def weights(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.pt"
    path.write_bytes(content)
    return path


def record(
    *, before: dict[str, float], after: dict[str, float], parent: int | None = None, sha256: str = "released"
) -> dict[str, Any]:
    """What train.py writes of a version, as far as promotion looks at it."""
    validation = [
        {"case": case, "label_sha256": f"label of {case}", "dice_before": before[case], "dice_after": after[case]}
        for case in before
    ]
    means = {"dice_before": sum(before.values()) / len(before), "dice_after": sum(after.values()) / len(after)}
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "parent": {"version": parent, "sha256": sha256},
        "training": [{"case": "c"}],
        "validation": validation,
        **means,
    }


BETTER = {"before": {"a": 0.5, "b": 0.6}, "after": {"a": 0.9, "b": 0.4}}  # means 0.55 and 0.65
EQUAL = {"before": {"a": 0.5, "b": 0.75}, "after": {"a": 0.75, "b": 0.5}}


def add(folder: Path, content: bytes = b"new", **given: Any) -> dict[str, Any]:
    return versions.add(folder, MODEL, weights(folder.parent / "made", content), record=record(**given or BETTER))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "versions"


def test_a_version_is_numbered_complete_and_not_served(folder: Path) -> None:
    assert versions.served(folder, MODEL) is None and versions.listing(folder, MODEL) == []
    assert add(folder, b"one")["number"] == 1
    assert add(folder, b"two")["number"] == 2
    assert (folder / MODEL / "1" / "model.pt").read_bytes() == b"one"
    assert versions.served(folder, MODEL) is None
    first, second = versions.listing(folder, MODEL)
    assert (first["number"], second["number"], first["served"]) == (1, 2, False)
    assert first["sha256"] == versions.sha256(folder / MODEL / "1" / "model.pt")
    assert sorted(p.name for p in (folder / MODEL).iterdir()) == [".lock", "1", "2"]


def test_the_localizer_goes_along_and_names_the_new_weights(folder: Path, tmp_path: Path) -> None:
    from scripts.weights import find_localizer

    localizer = weights(tmp_path / "localizer", b"localizer")
    made = versions.add(folder, MODEL, weights(tmp_path, b"new"), record=record(**BETTER), localizer=localizer)
    own = folder / MODEL / "1"
    assert (own / "localizer" / "localizer.pt").read_bytes() == b"localizer"
    assert json.loads((own / "localizer" / "localizer.json").read_text()) == {"weights_sha256": made["sha256"]}
    assert find_localizer(str(own / "model.pt")) == str(own / "localizer" / "localizer.pt")


def test_promotion_and_roll_back_go_down_to_the_released_weights(folder: Path) -> None:
    add(folder, b"one")
    versions.promote(folder, MODEL, 1)
    assert versions.served(folder, MODEL) == folder / MODEL / "1" / "model.pt"
    one = versions.listing(folder, MODEL)[0]
    add(folder, b"two", **BETTER, parent=1, sha256=one["sha256"])
    versions.promote(folder, MODEL, 2)
    assert [r["served"] for r in versions.listing(folder, MODEL)] == [False, True]
    assert versions.roll_back(folder, MODEL) == 1
    assert versions.served(folder, MODEL) == folder / MODEL / "1" / "model.pt"
    assert versions.roll_back(folder, MODEL) is None
    assert versions.served(folder, MODEL) is None
    with pytest.raises(InputError, match="nothing before them"):
        versions.roll_back(folder, MODEL)
    versions.promote(folder, MODEL, 1)  # and forward again
    assert versions.served_number(folder, MODEL) == 1


@pytest.mark.parametrize("given", [EQUAL, {"before": BETTER["after"], "after": BETTER["before"]}])
def test_what_is_not_better_is_not_promoted(folder: Path, given: dict[str, Any]) -> None:
    add(folder, b"one", **given)
    with pytest.raises(InputError, match=r"not better.*on the same 2 validation case"):
        versions.promote(folder, MODEL, 1)
    assert versions.served(folder, MODEL) is None


def test_two_versions_of_one_parent_are_compared_on_the_same_list_alone(folder: Path) -> None:
    """1 is served with a mean of 0.65. Better than the released is not enough, and another list tells nothing."""
    add(folder, b"one")
    versions.promote(folder, MODEL, 1)
    add(folder, b"two", before=BETTER["before"], after={"a": 0.6, "b": 0.62})
    with pytest.raises(InputError, match=r"not better than what is served: mean Dice 0\.6100 against 0\.6500"):
        versions.promote(folder, MODEL, 2)
    add(folder, b"three", before={"a": 0.1, "z": 0.1}, after={"a": 0.99, "z": 0.99})
    with pytest.raises(InputError, match="measured beside the released weights, which is not served now"):
        versions.promote(folder, MODEL, 3)
    add(folder, b"four", before=BETTER["before"], after={"a": 0.7, "b": 0.7})
    versions.promote(folder, MODEL, 4)
    assert versions.served_number(folder, MODEL) == 4


def test_a_version_of_other_released_weights_is_not_promoted(folder: Path, tmp_path: Path) -> None:
    released = weights(tmp_path / "bundle", b"released")
    add(folder, b"one")
    with pytest.raises(InputError, match="train again"):
        versions.promote(folder, MODEL, 1, released=released)
    add(folder, b"two", **BETTER, sha256=versions.sha256(released))
    versions.promote(folder, MODEL, 2, released=released)
    versions.roll_back(folder, MODEL)
    versions.promote(folder, MODEL, 2, released=released)
    assert released.read_bytes() == b"released"


def test_a_changed_file_is_neither_promoted_nor_served(folder: Path) -> None:
    for content in (b"one", b"two"):
        add(folder, content)
    (folder / MODEL / "1" / "model.pt").write_bytes(b"eno")
    with pytest.raises(InputError, match="sha256 .*changed or damaged"):
        versions.promote(folder, MODEL, 1)
    versions.promote(folder, MODEL, 2)
    (folder / MODEL / "2" / "model.pt").write_bytes(b"owt, longer")
    with pytest.raises(ValueError, match="changed or damaged.*roll-back"):
        versions.served(folder, MODEL)
    assert versions.roll_back(folder, MODEL) is None and versions.served(folder, MODEL) is None


def test_a_version_that_is_gone_is_told_passed_over_and_its_number_not_used_again(folder: Path) -> None:
    add(folder, b"one")
    versions.promote(folder, MODEL, 1)
    digest = versions.record_of(folder, MODEL, 1)["sha256"]
    add(folder, b"two", **BETTER, parent=1, sha256=digest)
    versions.promote(folder, MODEL, 2)
    for number in (1, 2):
        os.rename(folder / MODEL / str(number), folder / f"away_{number}")
    with pytest.raises(ValueError, match="version 2 .* cannot be read"):
        versions.served(folder, MODEL)
    assert add(folder, b"three")["number"] == 3
    assert versions.roll_back(folder, MODEL) is None


def test_unknown_numbers_and_names(folder: Path) -> None:
    with pytest.raises(NotFound, match="no fine-tuned version"):
        versions.promote(folder, MODEL, 1)
    assert not folder.exists()
    add(folder)
    with pytest.raises(NotFound, match=r"no version 7: there are 1\."):
        versions.promote(folder, MODEL, 7)
    for name in ("../other", "", "a/b", ".hidden"):
        with pytest.raises(NotFound, match="There is no model"):
            versions.served(folder, name)


def test_a_damaged_state_says_what_to_do(folder: Path) -> None:
    add(folder)
    (folder / MODEL / "served.json").write_text("{")
    with pytest.raises(ValueError, match=r"served\.json cannot be read .*remove it to serve the released weights"):
        versions.served(folder, MODEL)


def test_a_failure_while_adding_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(folder)

    def full(path: Path) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(versions, "_flush", full)
    with pytest.raises(OSError, match="no space"):
        add(folder, b"two")
    assert sorted(p.name for p in (folder / MODEL).iterdir()) == [".lock", "1"]


def test_a_process_killed_while_promoting_leaves_one_of_both(folder: Path) -> None:
    """Killed at random moments of endless promoting and rolling back: what is served can be read at any time."""
    add(folder, b"one")
    code = (
        "import sys; from pathlib import Path; from monailabel_app.versions import promote, roll_back\n"
        "folder = Path(sys.argv[1])\n"
        "while True: promote(folder, 'tissnet_vs', 1); roll_back(folder, 'tissnet_vs')"
    )
    versions.promote(folder, MODEL, 1)
    versions.roll_back(folder, MODEL)
    state = folder / MODEL / "served.json"
    seen = set()
    for moment in range(4):
        if versions.served_number(folder, MODEL) == 1:
            versions.roll_back(folder, MODEL)  # the lock of the killed process is free
        before, end = state.stat().st_mtime_ns, time.monotonic() + SECONDS
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT)
        try:
            while state.stat().st_mtime_ns == before:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.01)
            for _ in range(50 + 13 * moment):
                seen.add(versions.served_number(folder, MODEL))
                time.sleep(0.002)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert versions.served_number(folder, MODEL) in (None, 1)
    assert seen == {None, 1}


def test_command_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    add(folder, b"one")

    def run(*arguments: str) -> tuple[int, str]:
        caplog.clear()
        status = versions.main(["--versions", str(folder), "--model", MODEL, *arguments])
        return status, caplog.text

    status, text = run("list")
    assert status == 0 and "the released weights served" in text
    assert "Dice 0.5500 before, 0.6500 after" in text and "1 training and 2 validation case(s)" in text
    status, text = run("promote", "1")
    assert status == 0 and "tissnet_vs: version 1 served" in text and "*    1" in text
    status, text = run("promote", "1")
    assert status == 1 and "is served already" in text
    assert run("roll-back")[0] == 0 and run("roll-back")[0] == 1
    assert versions.served(folder, MODEL) is None
