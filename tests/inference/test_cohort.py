"""Tests of cohort: many made scans through a made evaluator, alone, in several processes, killed and resumed."""

from __future__ import annotations

import csv
import dataclasses
import errno
import functools
import gzip
import json
import multiprocessing
import os
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from made.dicom import write_small
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from nibabel.spatialimages import HeaderDataError
from torch import Tensor, nn

from scripts.data.inputs import find_inputs
from scripts.inference.cohort import NAME_BYTES, VOLUME_COLUMNS, Cohort
from scripts.loading import LoadScansd
from scripts.transforms import NormalizeForegroundd

SHAPE = (8, 6, 4)
SECONDS = "0.1"
PROCESS_SECONDS = 60


class Scale(nn.Module):
    """A network of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Handler:
    """Writes a text as a case's mask and reports the case; the number in it is the scan's largest voxel as loaded."""

    def __init__(self, cohort: Cohort, *, before_record: Callable[[str], None] = lambda case: None) -> None:
        self.cohort = cohort
        self.before_record = before_record

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._case)

    def _case(self, engine: Engine) -> None:
        state: Any = engine.state
        (batch,) = state.batch
        mask = self.cohort.output_dir / batch["case"] / f"{batch['case']}_pred.txt"
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_text(f"{batch['peak']}")
        self.before_record(batch["case"])
        volumes = {"volume_mm3": f"{batch['peak']:.1f}", "voxels": batch["peak"], "seconds": SECONDS}
        self.cohort.done(f"{batch['peak']:.1f} mm3", volumes, files={"pred": mask, "synthetic": None})


def write_scan(path: Path, peak: float, *, shape: Sequence[int] = SHAPE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.linspace(0, peak, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


def peak_of(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "peak": int(data["image"].nan_to_num(0).max())}


def open_cohort(
    data: Path,
    output: Path,
    *,
    task: str = "vs",
    resume: bool = False,
    inferer: Callable[[Tensor, nn.Module], Tensor] = lambda inputs, network: network(inputs),
    before: Sequence[Callable] = (),
    before_record: Callable[[str], None] = lambda case: None,
) -> tuple[Cohort, SupervisedEvaluator]:
    """As inference.json puts them together; `before` are transforms in front of all others."""
    weights = output.parent / "weights.pt"
    if not weights.is_file():
        weights.write_bytes(b"weights")
    steps = [*before, LoadScansd("image"), peak_of, NormalizeForegroundd("image")]
    cohort = Cohort(
        Dataset(find_inputs(data, task, keep_incomplete=True), Compose(steps)),
        output_dir=str(output),
        weights=[str(weights), None],
        resume=resume,
    )
    evaluator = SupervisedEvaluator(
        torch.device("cpu"),
        cohort,
        Scale(),
        inferer=inferer,  # type: ignore[arg-type]
        val_handlers=[Handler(cohort, before_record=before_record)],
    )
    return cohort, evaluator


def run(data: Path, output: Path, **options: Any) -> Cohort:
    cohort, evaluator = open_cohort(data, output, **options)
    cohort.run(evaluator)
    return cohort


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def done_cases(output: Path) -> list[str]:
    return [row["case"] for row in table(output / "volumes.csv")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three scans, whose peaks are 10, 20 and 30."""
    for index, name in enumerate(("a", "b", "c")):
        write_scan(tmp_path / "data" / f"{name}_T2.nii.gz", 10 * (index + 1))
    return tmp_path / "data"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level("INFO", logger="scripts.inference.cohort"):
        yield lambda: [record.message for record in caplog.records if record.name == "scripts.inference.cohort"]


def test_every_case_has_a_record_and_a_row(data: Path, output: Path, messages: Callable[[], list[str]]) -> None:
    run(data, output)
    rows = table(output / "volumes.csv")
    assert [(row["case"], row["volume_mm3"], row["voxels"]) for row in rows] == [
        ("a", "10.0", "10"),
        ("b", "20.0", "20"),
        ("c", "30.0", "30"),
    ]
    assert tuple(rows[0]) == VOLUME_COLUMNS
    for row in rows:
        assert Path(row["pred"]).read_text() == row["voxels"]
        assert (row["seconds"], row["synthetic"], row["error"]) == (SECONDS, "", "")
        assert (output / row["case"] / f"{row['case']}_result.json").is_file()
    assert not (output / "failed.csv").exists()
    assert not list(output.rglob(".*"))
    first, *_, ours, last = messages()
    assert first.startswith("a: 10.0 mm3, 0.1 s, with reading and writing ") and first.endswith(" s; 1 of 3")
    assert ours == "this process: 3 done, 0 complete before, 0 failed"
    assert last == f"3 cases complete, in {output / 'volumes.csv'}"


def test_a_plain_run_of_the_evaluator_does_every_case_each_time(data: Path, output: Path) -> None:
    """Without Cohort.run, as Python code would run a bundle's evaluator."""
    cohort, evaluator = open_cohort(data, output)
    for times in (1, 2):
        evaluator.run()
        assert cohort.counts["done"] == 3 * times


# scans that fail


def damage(data: Path) -> dict[str, str]:
    """Adds bad scans; returns what is expected to be said about each."""
    scan = np.asarray(nib.load(data / "a_T2.nii.gz").dataobj)
    (data / "bad1_T2.nii.gz").write_bytes((data / "a_T2.nii.gz").read_bytes()[:200])
    write_scan(data / "bad2_T2.nii.gz", 5, shape=(*SHAPE, 2))
    for name, voxels in (("bad3", np.where(scan > 5, np.nan, scan)), ("bad4", np.ones(SHAPE, np.float32))):
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), data / f"{name}_T2.nii.gz")
    (data / "bad5_T2.nii.gz").symlink_to(data / "nowhere.nii.gz")
    color = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, values in (("bad6", color), ("bad7", scan.astype(np.complex64))):
        nib.save(nib.Nifti1Image(values, np.eye(4)), data / f"{name}_T2.nii.gz")
    raw = bytearray(nib.Nifti1Image(scan, np.eye(4)).to_bytes())
    raw[112:120] = struct.pack("<2f", 1, float("nan"))  # slope and intercept
    (data / "bad8_T2.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    return {
        "bad1": "unreadable file: found case bad1: bad1_T2.nii.gz: ",
        "bad2": "not 3-D: found case bad2: bad2_T2.nii.gz: 4-D",
        "bad3": "NaN or infinite voxels",
        "bad4": "is constant or empty",
        "bad5": "nowhere.nii.gz",
        "bad6": f"color image: found case bad6: bad6_T2.nii.gz: data type {color.dtype}, expected one number per voxel",
        "bad7": "unreadable file: found case bad7: bad7_T2.nii.gz: data type complex64, expected plain numbers",
        "bad8": "unreadable file: found case bad8: bad8_T2.nii.gz: Valid slope but invalid intercept",
    }


def test_bad_scans_are_listed_and_the_others_done(data: Path, output: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = damage(data)
    with pytest.raises(RuntimeError, match=r"8 of 11 cases failed, see .*failed\.csv; the others are complete. The fi"):
        run(data, output)
    assert done_cases(output) == ["a", "b", "c"]
    failed = table(output / "failed.csv")
    assert [row["case"] for row in failed] == sorted(said)
    errors = {record.message for record in caplog.records if record.levelname == "ERROR"}
    for row in failed:
        assert said[row["case"]] in row["error"]
        assert row["files"] == str(data / f"{row['case']}_T2.nii.gz")
        assert any(row["error"] in message for message in errors)


def test_a_case_without_a_sibling_fails_alone(tmp_path: Path, output: Path) -> None:
    for peak, name in enumerate(("a_T1", "a_ceT1", "a_T2", "b_T1"), 10):
        write_scan(tmp_path / "data" / f"{name}.nii.gz", peak)
    with pytest.raises(RuntimeError, match=r"1 of 2 cases failed.*case b lacks ceT1, T2 beside"):
        run(tmp_path / "data", output, task="glioma")
    assert done_cases(output) == ["a"]
    (row,) = table(output / "failed.csv")
    assert row["files"] == str(tmp_path / "data" / "b_T1.nii.gz")


def test_one_bad_scan_is_the_error(tmp_path: Path, output: Path) -> None:
    write_scan(tmp_path / "data" / "a_T2.nii.gz", 0)
    with pytest.raises(RuntimeError, match="^channel 0 of image of case a is constant"):
        run(tmp_path / "data", output)


CASE_ERRORS = [
    (RuntimeError("too large"), "too large"),
    (torch.OutOfMemoryError("too large"), "too large"),
    (ValueError("x"), "x"),
    (TypeError("a bug"), "TypeError: a bug"),
    (KeyError("y"), "KeyError: 'y'"),
    (NotImplementedError("complex"), "complex"),
    (MemoryError(), "MemoryError"),
    (HeaderDataError("no intercept"), "HeaderDataError: no intercept"),
    (OSError(errno.ENAMETOOLONG, "File name too long"), r"\[Errno 36\] File name too long"),
]


@pytest.mark.parametrize(("error", "said"), CASE_ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_of_the_inferer_fails_its_case_alone(data: Path, output: Path, error: Exception, said: str) -> None:
    done = []

    def inferer(inputs: Tensor, network: nn.Module) -> Tensor:
        done.append(inputs)
        if len(done) == 2:
            raise error
        return network(inputs)

    with pytest.raises(RuntimeError, match=f"1 of 3 cases failed.*The first, b: {said}$"):
        run(data, output, inferer=inferer)
    assert len(done) == 3 and done_cases(output) == ["a", "c"]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("lost"),
        OSError(errno.ENOSPC, "disk is full"),
        OSError(errno.EMFILE, "too many open files"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("where", ["inferer", "transform"])
def test_what_every_case_would_meet_ends_the_run(
    data: Path, output: Path, error: BaseException, wrapped: bool, where: str
) -> None:
    def fail(*args: Any) -> Any:
        if wrapped:
            raise ValueError("a_T2.nii.gz cannot be read") from error
        raise error

    with pytest.raises((type(error), ValueError, RuntimeError), match=r"lost|full|open files|^$|cannot be|applying"):
        run(data, output, **({"inferer": fail} if where == "inferer" else {"before": [fail]}))
    assert not list(output.rglob("*.json")) and not (output / "failed.csv").exists()


@pytest.mark.parametrize("letters", [200, 201, 236])
def test_a_name_that_is_too_long_fails_its_case_alone(data: Path, output: Path, letters: int) -> None:
    name = "n" * letters
    write_scan(data / f"{name}_T2.nii.gz", 40)
    if letters <= NAME_BYTES:
        run(data, output)
        assert done_cases(output) == ["a", "b", "c", name]
        return
    with pytest.raises(RuntimeError, match=f"1 of 4.*: the case's name has {letters} bytes, expected at most 200: ren"):
        run(data, output)
    assert done_cases(output) == ["a", "b", "c"]
    assert table(output / "failed.csv")[0]["case"] == name


def test_nii_beside_nii_gz_fails_its_case_alone(data: Path, output: Path) -> None:
    write_scan(data / "b_T2.nii", 20)
    with pytest.raises(RuntimeError, match=r"1 of 3 cases failed.*The first, b: case b has two T2 files, .*: keep one"):
        run(data, output)
    assert done_cases(output) == ["a", "c"]


@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_a_header_without_its_voxels_fails_alone(data: Path, output: Path, suffix: str) -> None:
    sitk.WriteImage(sitk.ReadImage(str(data / "b_T2.nii.gz")), str(data / f"d_T2{suffix}"))
    (data / "e_T2.nrrd").write_bytes(b"NRRD0004\n")
    (data / "d_T2.raw").unlink()
    with pytest.raises(RuntimeError, match=r"2 of 5 cases failed.*The first, d: missing file: found "):
        run(data, output)
    assert done_cases(output) == ["a", "b", "c"]
    said = {row["case"]: row["error"] for row in table(output / "failed.csv")}
    expected = f"d_T2{suffix}: no file d_T2.raw, which holds its voxels, expected header and voxels side by side"
    assert said["d"].endswith(expected)
    assert said["e"].startswith("unreadable file: found case e: e_T2.nrrd: ")


def test_other_formats_and_a_series_are_done_and_resumed(data: Path, output: Path) -> None:
    """A case is done again where a file with voxels has changed, not only the header that it is called by."""
    sitk.WriteImage(sitk.ReadImage(str(data / "b_T2.nii.gz")), str(data / "d_T2.nhdr"))
    sitk.WriteImage(sitk.ReadImage(str(data / "c_T2.nii.gz")), str(data / "e_T2.mha"))
    assert run(data, output).counts["done"] == 5
    assert [row["voxels"] for row in table(output / "volumes.csv")] == ["10", "20", "30", "20", "30"]
    raw = data / "d_T2.raw"
    (np.fromfile(raw, np.float32) + 1).tofile(raw)
    assert run(data, output, resume=True).counts == {"done": 1, "complete before": 4, "failed": 0}
    series, out = write_small(data.parent / "series"), output.parent / "out_series"
    assert run(data.parent / "series", out).counts["done"] == 1
    assert run(data.parent / "series", out, resume=True).counts["complete before"] == 1
    header = pydicom.dcmread(series.paths[0])
    header.SeriesNumber = 9
    header.save_as(series.paths[0])
    assert run(data.parent / "series", out, resume=True).counts["done"] == 1


def test_an_earlier_result_of_a_case_that_fails_now_is_removed(data: Path, output: Path) -> None:
    run(data, output)
    write_scan(data / "b_T2.nii.gz", 0)
    with pytest.raises(RuntimeError, match="1 of 3"):
        run(data, output)
    assert not (output / "b" / "b_pred.txt").exists()
    assert done_cases(output) == ["a", "c"] and (data / "b_T2.nii.gz").is_file()


# resuming


def test_a_case_that_cannot_be_read_is_not_recorded_with_the_files_of_the_one_before(data: Path, output: Path) -> None:
    run(data, output)
    cohort, evaluator = open_cohort(data, output, resume=True)
    cohort.cases[1] = dataclasses.replace(cohort.cases[1], problem="half of it is missing")
    with pytest.raises(RuntimeError, match="half of it is missing"):
        cohort.run(evaluator)
    record = json.loads((output / "b" / "b_result.json").read_text())
    assert record["error"] == "half of it is missing" and record["inputs"] == []


def test_resume_leaves_what_is_complete(data: Path, output: Path, messages: Callable[[], list[str]]) -> None:
    run(data, output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.*") if path.suffix != ".csv"}
    (output / "volumes.csv").unlink()
    os.utime(data / "a_T2.nii.gz")  # a copy of the same content is the same scan
    resumed = run(data, output, resume=True)
    assert resumed.counts == {"done": 0, "complete before": 3, "failed": 0}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert done_cases(output) == ["a", "b", "c"]
    assert "b: complete, left as it is; 2 of 3" in messages()


def test_without_resume_all_is_done_again(data: Path, output: Path) -> None:
    run(data, output)
    assert run(data, output).counts["done"] == 3


def test_resume_in_a_folder_that_was_moved(data: Path, output: Path, tmp_path: Path) -> None:
    run(data, output)
    output.rename(tmp_path / "moved")
    assert run(data, tmp_path / "moved", resume=True).counts["complete before"] == 3
    assert Path(table(tmp_path / "moved" / "volumes.csv")[0]["pred"]).is_file()


# what is changed in data or results, why "b" is done again then, and how many cases are
CHANGES: dict[str, tuple[Callable[[Path, Path], Any], str, int]] = {
    "scan": (lambda data, output: write_scan(data / "b_T2.nii.gz", 21), "its scans changed (b_T2.nii.gz)", 1),
    "weights": (lambda data, output: (output.parent / "weights.pt").write_bytes(b"others"), "weights changed", 3),
    "mask": (lambda data, output: (output / "b" / "b_pred.txt").unlink(), "b/b_pred.txt is gone", 1),
    "record": (lambda data, output: (output / "b" / "b_result.json").write_text("{"), "it has no result", 1),
    "no record": (lambda data, output: (output / "b" / "b_result.json").unlink(), "it has no result", 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_resume_does_again_what_changed(name: str, data: Path, output: Path, messages: Callable[[], list[str]]) -> None:
    change, said, again = CHANGES[name]
    run(data, output)
    change(data, output)
    resumed = run(data, output, resume=True)
    assert resumed.counts == {"done": again, "complete before": 3 - again, "failed": 0}
    assert f"b: done again, as {said}" in messages()
    assert done_cases(output) == ["a", "b", "c"]
    assert Path(table(output / "volumes.csv")[1]["pred"]).read_text() == ("21" if name == "scan" else "20")


def test_resume_does_failed_cases_again(data: Path, output: Path, messages: Callable[[], list[str]]) -> None:
    write_scan(data / "b_T2.nii.gz", 0)
    with pytest.raises(RuntimeError, match="1 of 3"):
        run(data, output)
    with pytest.raises(RuntimeError, match="1 of 3"):
        run(data, output, resume=True)
    write_scan(data / "b_T2.nii.gz", 20)
    assert run(data, output, resume=True).counts == {"done": 1, "complete before": 2, "failed": 0}
    assert any(message.startswith("b: done again, as it failed: channel 0") for message in messages())
    assert done_cases(output) == ["a", "b", "c"] and not (output / "failed.csv").exists()


# processes of their own


def forked(target: Callable[..., None], *args: Any) -> Any:
    """A started process; a fork saves the imports, see test_distributed.py."""
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    process = context.Process(target=target, args=args)
    process.start()
    return process


def kill_at(case: str, name: str) -> None:
    if name == case:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(data: Path, output: Path) -> None:
    torch.set_num_threads(1)
    run(data, output, before_record=functools.partial(kill_at, "b"))


def test_a_killed_run_is_resumed(data: Path, output: Path) -> None:
    """It is killed between a case's mask and its record."""
    process = forked(killed, data, output)
    process.join(PROCESS_SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert (output / "b" / "b_pred.txt").is_file() and not (output / "b" / "b_result.json").exists()
    assert done_cases(output) == ["a"]
    assert run(data, output, resume=True).counts == {"done": 2, "complete before": 1, "failed": 0}
    assert done_cases(output) == ["a", "b", "c"]


def one_of_several(rank: int, world: int, port: int, data: Path, output: Path, together: Any) -> None:
    """A process as torchrun starts it; leaves its counts and its error. Waits for the others before its first case."""
    os.environ |= {
        "RANK": f"{rank}",
        "LOCAL_RANK": f"{rank}",
        "WORLD_SIZE": f"{world}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    torch.set_num_threads(1)
    cohort, evaluator = open_cohort(data, output)
    evaluator.add_event_handler(Events.STARTED(once=1), lambda: together.wait(PROCESS_SECONDS))
    error = None
    try:
        cohort.run(evaluator)
    except Exception as raised:
        error = str(raised)
    (output.parent / f"rank{rank}.json").write_text(json.dumps({"counts": cohort.counts, "error": error}))


def run_several(folders: Sequence[Path], output: Path, *, first_only: bool = False) -> list[dict[str, Any]]:
    """Runs one process for each folder of scans, with a store of torchrun's kind; returns what each left.

    With `first_only` the others are ended when the first ends, as torchrun does if that one failed.
    """
    world = len(folders)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    together = context.Barrier(world)
    processes = [
        forked(one_of_several, rank, world, store.port, folder, output, together) for rank, folder in enumerate(folders)
    ]
    if first_only:
        wait([process.sentinel for process in processes], PROCESS_SECONDS)
        for process in processes:
            process.terminate()
    for process in processes:
        process.join(PROCESS_SECONDS)
        assert first_only or process.exitcode == 0
    left = [output.parent / f"rank{rank}.json" for rank in range(world)]
    return [json.loads(path.read_text()) for path in left if path.is_file()]


def test_three_processes_do_each_case_once(tmp_path: Path, output: Path) -> None:
    names = [f"p{index:02d}" for index in range(12)]
    for index, name in enumerate(names):
        write_scan(tmp_path / "data" / f"{name}_T2.nii.gz", index)  # the first is constant
    left = run_several([tmp_path / "data"] * 3, output)
    assert sum(process["counts"]["done"] for process in left) == len(names) - 1
    assert done_cases(output) == names[1:]
    assert [row["case"] for row in table(output / "failed.csv")] == ["p00"]
    assert all(process["error"].startswith("1 of 12 cases failed") for process in left)


def test_processes_that_see_other_scans_are_refused(data: Path, output: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "other" / "d_T2.nii.gz", 10)
    (first,) = run_several([data, tmp_path / "other"], output, first_only=True)
    assert "found other scans or weights than the first" in first["error"]
    assert first["counts"]["done"] == 0


def test_several_processes_need_torchrun(data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="found WORLD_SIZE 2 .* that torchrun did not start"):
        run(data, output)


@pytest.mark.parametrize(("local_rank", "expected"), [(None, "cuda:0"), ("1", "cuda:1"), ("2", "cuda:0")])
def test_each_process_takes_its_own_gpu(
    local_rank: str | None, expected: str, bundle_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two here; a third process shares the first."""
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / "inference.json"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert parser.get_parsed_content("device") == torch.device(expected)


def test_cases_of_one_name_are_refused(data: Path, output: Path) -> None:
    entries = [{"image": str(data / "a_T2.nii.gz")}, {"image": [str(data / "a_T2.nii.gz")]}]
    with pytest.raises(ValueError, match="several cases are called a_T2"):
        Cohort(Dataset(entries), output_dir=str(output), weights=[])
