"""Tests of scripts.data.case: what makes a case finished, what is refused, and what a killed run leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made.files import save
from made.outcomes import digest
from made.tcia import write_patient

from scripts.data import case as preparation
from scripts.data.case import Facts, Job, is_alive, run_jobs
from scripts.data.volume import CaseError, refuse
from scripts.prepare import main

BUNDLE = Path(__file__).parents[2] / "bundle"
NAMES = ("T2", "label")
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def write_case(case: str, log: Path, source: Path, tumor: bool, folder: Path) -> Facts:
    """Writes an image whose intensities the source file decides, and notes in a log that it was called."""
    with log.open("a") as file:
        file.write(f"{case}\n")
    text = source.read_text()
    if text.startswith("raise "):
        raise {"value": ValueError("no\nsense"), "volume": CaseError("gap", "2 mm", "1 mm"), "disk": OSError("full")}[
            text.removeprefix("raise ")
        ]
    rng = np.random.default_rng(int(text))
    mask = np.zeros((8, 9, 6), np.uint8)
    mask[3:6, 3:6, 2:4] = tumor
    save(folder / f"{case}_T2.nii.gz", rng.integers(500, 900, mask.shape).astype(np.int16), AFFINE)
    save(folder / f"{case}_label.nii.gz", mask, AFFINE)
    return Facts({"text": text}, ["looks odd"] if text == "3" else [])


def jobs_of(tmp_path: Path, texts: dict[str, str], *, tumor: bool = True, **options: object) -> list[Job]:
    jobs = []
    (tmp_path / "in").mkdir(exist_ok=True)
    for case, text in texts.items():
        source = tmp_path / "in" / f"{case}.txt"
        source.write_text(text)
        write = partial(write_case, case, tmp_path / "log", source, tumor)
        jobs.append(Job(case, f"patient_{case}", "cohort", {"T2": (source,)}, options, write))
    return jobs


def run(tmp_path: Path, jobs: list[Job], **options):
    (tmp_path / "out").mkdir(exist_ok=True)
    return run_jobs(jobs, tmp_path / "out", NAMES, title="test", **options)


def made(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().split() if log.exists() else []


def test_a_case_and_its_record(tmp_path):
    (outcome,) = run(tmp_path, jobs_of(tmp_path, {"a": "3"}))
    assert not outcome.problems and not outcome.reused
    # 3 x 3 x 2 voxels of 2 mm3.
    assert (outcome.tumor_mm3, outcome.shape, outcome.spacing) == (36.0, (8, 9, 6), (1.0, 1.0, 2.0))
    assert outcome.facts == Facts({"text": "3"}, ["looks odd"])
    names = ["a", "a.json", "a_T2.nii.gz", "a_label.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == names
    record = json.loads((tmp_path / "out/a/a.json").read_text())
    assert record["files"] == {name: text for name, text in digest(tmp_path / "out/a").items() if name != "a.json"}


def test_finished_cases_are_known_by_content(tmp_path):
    first = run(tmp_path, jobs_of(tmp_path, {"a": "1", "b": "2"}))
    files = digest(tmp_path / "out")
    # The same content under another date and in another place.
    (tmp_path / "in").rename(tmp_path / "moved")
    again = run(tmp_path, jobs_of(tmp_path, {"a": "1", "b": "2"}))
    assert made(tmp_path) == ["a", "b"]
    assert [outcome.reused for outcome in again] == [True, True]
    assert [replace(outcome, reused=False) for outcome in again] == first
    assert digest(tmp_path / "out") == files


@pytest.mark.parametrize(
    "change",
    [
        lambda path, jobs: jobs[0].files["T2"][0].write_text("7"),
        lambda path, jobs: (path / "a/a_label.nii.gz").unlink(),
        lambda path, jobs: jobs.__setitem__(0, jobs_of(path.parent, {"a": "1"}, structure="TV")[0]),
    ],
    ids=["input", "missing output", "options"],
)
def test_whatever_changed_is_made_again(tmp_path, change):
    run(tmp_path, jobs_of(tmp_path, {"a": "1", "b": "2"}))
    jobs = jobs_of(tmp_path, {"a": "1", "b": "2"})
    change(tmp_path / "out", jobs)
    outcomes = run(tmp_path, jobs)
    assert made(tmp_path) == ["a", "b", "a"]
    assert [outcome.reused for outcome in outcomes] == [False, True]


@pytest.mark.parametrize("text", ["1", "7"], ids=["same input", "other input"])
def test_a_case_that_was_changed_by_hand_is_told_and_kept(tmp_path, text):
    run(tmp_path, jobs_of(tmp_path, {"a": "1", "b": "2"}))
    corrected = tmp_path / "out/a/a_label.nii.gz"
    corrected.write_bytes(b"corrected by hand")
    outcomes = run(tmp_path, jobs_of(tmp_path, {"a": text, "b": "2"}))
    assert [problem.check for problem in outcomes[0].problems] == ["changed file"]
    assert "a/a_label.nii.gz was changed" in outcomes[0].problems[0].found
    assert corrected.read_bytes() == b"corrected by hand" and outcomes[1].reused


def test_exchanged_roles_are_another_input(tmp_path):
    """The same files under other roles: what was T2 is now ceT1."""
    (tmp_path / "out").mkdir()
    jobs = jobs_of(tmp_path, {"a": "1", "b": "2"})
    files = [job.files["T2"][0] for job in jobs]
    for order in (files, files[::-1]):
        job = replace(jobs[0], files={"T2": (order[0],), "ceT1": (order[1],)})
        (outcome,) = run(tmp_path, [job])
        assert not outcome.reused
    assert made(tmp_path) == ["a", "a"]


def test_a_new_version_makes_all_again(tmp_path, monkeypatch):
    run(tmp_path, jobs_of(tmp_path, {"a": "1"}))
    monkeypatch.setattr(preparation, "VERSION", preparation.VERSION + 1)
    assert not run(tmp_path, jobs_of(tmp_path, {"a": "1"}))[0].reused


def test_errors_cost_their_case_alone(tmp_path):
    texts = {"a": "1", "b": "raise value", "c": "raise volume", "d": "2"}
    outcomes = run(tmp_path, jobs_of(tmp_path, texts))
    checks = [[problem.check for problem in outcome.problems] for outcome in outcomes]
    assert checks == [[], ["unexpected error"], ["gap"], []]
    assert outcomes[1].problems[0].found == "ValueError: no sense"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "d"]


def test_an_input_that_went_away_is_its_case_s_problem(tmp_path):
    jobs = jobs_of(tmp_path, {"a": "1", "b": "2"})
    jobs[0].files["T2"][0].unlink()
    outcomes = run(tmp_path, jobs)
    assert [problem.check for problem in outcomes[0].problems] == ["unreadable file"]
    assert not outcomes[1].problems


def test_a_finished_case_outlives_an_input_that_cannot_be_read(tmp_path):
    run(tmp_path, jobs_of(tmp_path, {"a": "1"}))
    files = digest(tmp_path / "out")
    jobs = jobs_of(tmp_path, {"a": "1"})
    jobs[0].files["T2"][0].unlink()
    assert run(tmp_path, jobs)[0].problems
    assert digest(tmp_path / "out") == files


def test_a_case_that_no_longer_holds_is_taken_away(tmp_path):
    run(tmp_path, jobs_of(tmp_path, {"a": "1"}))
    (outcome,) = run(tmp_path, jobs_of(tmp_path, {"a": "raise volume"}))
    assert outcome.problems and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_ends_the_run(tmp_path, workers):
    with pytest.raises(OSError, match="full"):
        run(tmp_path, jobs_of(tmp_path, {"a": "raise disk", "b": "1"}), workers=workers)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != "b"]


@pytest.mark.parametrize("readable", [True, False])
def test_a_foreign_folder_is_not_replaced(tmp_path, readable):
    (tmp_path / "out/a").mkdir(parents=True)
    (tmp_path / "out/a/notes.txt").write_text("mine")
    jobs = jobs_of(tmp_path, {"a": "1"})
    if not readable:
        jobs[0].files["T2"][0].unlink()
    with pytest.raises(ValueError, match="a is there and was not written by scripts.prepare"):
        run(tmp_path, jobs)
    assert (tmp_path / "out/a/notes.txt").read_text() == "mine"


def test_parts_of_a_killed_run_are_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    alive = tmp_path / f"out/.partial_{os.getppid()}_b"
    for folder in (tmp_path / f"out/.partial_{gone.pid}_a", alive):
        folder.mkdir(parents=True)
        (folder / "a_T2.nii.gz").write_bytes(b"half")
    run(tmp_path, jobs_of(tmp_path, {"a": "1"}))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["a", alive.name])


def test_two_cases_of_one_name(tmp_path):
    jobs = jobs_of(tmp_path, {"a": "1"})
    with pytest.raises(ValueError, match="1 names belong to several cases: a"):
        run(tmp_path, [*jobs, *jobs])


def test_an_empty_mask_that_is_legal_is_told(tmp_path):
    (outcome,) = run(tmp_path, jobs_of(tmp_path, {"a": "1"}, tumor=False), keep_empty=True)
    assert not outcome.problems and outcome.facts.warnings == ["no tumor: the mask is empty"]


def test_a_header_without_orientation_is_refused(tmp_path):
    def write(folder):
        voxels = np.random.default_rng(0).integers(500, 900, (8, 9, 6)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, None), folder / "a_T2.nii.gz")
        return Facts()

    (tmp_path / "out").mkdir()
    (outcome,) = run_jobs([Job("a", "a", "", {}, {}, write)], tmp_path / "out", ("T2",), title="test")
    (problem,) = outcome.problems
    assert (problem.check, problem.found) == (
        "orientation",
        "T2: a_T2.nii.gz: no position, sform and qform have code 0",
    )


def test_several_problems_of_a_case(tmp_path):
    def write(folder):
        refuse([CaseError("gap", "2 mm", "1 mm"), CaseError("spacing", "0 mm", "more")])

    (tmp_path / "out").mkdir()
    (outcome,) = run_jobs([Job("a", "a", "", {}, {}, write)], tmp_path / "out", NAMES, title="test")
    rows = [("a", "gap", "2 mm", "1 mm"), ("a", "spacing", "0 mm", "more")]
    assert [problem.row for problem in outcome.problems] == rows


def test_workers_do_not_matter(tmp_path):
    texts = {f"case{index}": str(index) for index in range(9)}
    one = run(tmp_path, jobs_of(tmp_path, texts), workers=1)
    files = digest(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    three = run(tmp_path, jobs_of(tmp_path, texts), workers=3)
    assert one == three and [outcome.case for outcome in three] == list(texts)
    assert digest(tmp_path / "out") == files


def test_a_process_that_nobody_waited_for_is_not_alive():
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    deadline = time.monotonic() + 30
    while is_alive(ended.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(ended.pid) and is_alive(os.getpid())
    ended.wait()
    assert not is_alive(ended.pid)


@pytest.mark.parametrize("source", ["phantom", pytest.param("vs_seg", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_where_it_was(tmp_path, source):
    """SIGKILL in the middle of real preparation; the second run gives what one run gives, byte by byte."""
    if source == "vs_seg":
        for number in (1, 2, 4):  # The first is registered.
            write_patient(tmp_path / "download", number, size="tiny", extras=number % 2 == 0)
        arguments = ["--input", str(tmp_path / "download")]
    else:
        arguments = ["--training", "2", "--validation", "1", "--testing", "0"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main([source, *arguments, "--workers", "1", "--output", str(whole)]) == 0
    command = [sys.executable, "-m", "scripts.prepare", source, *arguments, "--workers", "2", "--output", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command, cwd=BUNDLE, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("[!.]*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    assert 0 < len(finished) < 3 and not (out / "datalist.json").exists()
    # Orphaned workers notice and end, after the library call they are in.
    workers = [int(path.name.split("_")[1]) for path in out.glob(".partial_*")]
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert main([source, *arguments, "--workers", "1", "--output", str(out)]) == 0
    assert digest(out) == digest(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == finished
