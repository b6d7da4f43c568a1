"""Tests of scripts.experiments: what is planned, what is left after a stop, and whole arms on phantoms.

The quick ones start small commands in place of trainings, in processes of their own.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from documents import config_files

from scripts.data.datalist import load_datalist, write_datalist
from scripts.evaluation.per_case import read_per_case, write_per_case
from scripts.experiments import ARMS, Run, Runner, main, plan, pool
from scripts.report import main as report

BUNDLE = Path(__file__).parents[1] / "bundle"
FOLDS = 2
SECONDS = 60  # a run that is stopped ends far sooner


def folds_of(folder: Path, data: Path) -> Path:
    """Two folds over tiny phantoms, as `scripts.prepare --folds 2` writes them; the cases are linked."""
    folder.mkdir()
    entries = json.loads((data / "datalist.json").read_text())["training"]
    for entry in entries:
        (folder / entry["case"]).symlink_to(data / entry["case"])
    for fold in range(FOLDS):
        training = [entry for index, entry in enumerate(entries) if index % FOLDS != fold]
        held_out = [entry for index, entry in enumerate(entries) if index % FOLDS == fold]
        write_datalist(folder / f"datalist_fold{fold}.json", "vs", {"training": training, "testing": held_out})
    return folder


def make_run(folder: Path, *, arm: str = "tissnet", fold: int = 0) -> Run:
    return Run(arm, fold, folder, folder / "S_p.pt", folder / "data", ("configs/glioma.yaml",), seed=3)


@dataclass(frozen=True)
class Quick(Run):
    """A run of one step: Python's own json.tool on a file, or a sleep."""

    file: str = "null"

    def steps(self) -> Iterable[tuple[str, list[str]]]:
        sleep = ["timeit", "-n1", "-r1", f"import time; time.sleep({SECONDS})"]
        yield "training", sleep if self.file == "sleep" else ["json.tool", str(self.folder.parent / self.file)]


def quick(folder: Path, name: str, file: str) -> Quick:
    return Quick("tissnet", 0, folder / name, folder, folder, (), 0, file)


# what is planned


@pytest.mark.parametrize(
    ("arms", "expected"),
    [
        (["tissnet", "source_only"], [["real_target", "tissnet"], ["source_only"]]),
        (["real_target"], [["real_target"]]),
        (["upper_bound", "source_only"], [["upper_bound"], ["source_only"]]),
    ],
)
def test_every_fold_has_its_chains(tmp_path: Path, arms: list[str], expected: list[list[str]]) -> None:
    for fold in (0, 1, 10):
        (tmp_path / f"datalist_fold{fold}.json").touch()
    chains = plan(tmp_path, tmp_path / "out", arms=arms, configs=[], seed=0)
    assert [[run.arm for run in chain] for chain in chains] == expected * 3
    assert [chain[0].fold for chain in chains] == [fold for fold in (0, 1, 10) for _ in expected]
    for run in (run for chain in chains for run in chain):
        assert run.folder == tmp_path / "out" / run.arm / f"fold{run.fold}"
        assert run.perceptor == tmp_path / "out" / "real_target" / f"fold{run.fold}" / "checkpoints" / "final.pt"


def test_data_without_folds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("ERROR"):
        assert main(["--dataset_dir", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    assert f"{tmp_path} has no datalist_fold*.json: prepare the data with --folds 5." in caplog.text


def test_no_jobs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--dataset_dir", str(tmp_path), "--output", str(tmp_path), "--jobs", "0"])
    assert "--jobs is 0, expected 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_trained_and_evaluated_by_the_same_files(tmp_path: Path, arm: str) -> None:
    (_, train), (_, evaluate) = make_run(tmp_path, arm=arm).steps()
    files = config_files(train)
    assert files == ["configs/train.json", *ARMS[arm], "configs/glioma.yaml"]
    assert config_files(evaluate) == ["configs/train.json", "configs/evaluate.json", *files[1:]]
    assert all((BUNDLE / file).is_file() for file in files)
    for name, value in {"--seed": "3", "--val_interval": "0", "--resume": "False"}.items():
        assert train[train.index(name) + 1] == value, name
    assert evaluate[evaluate.index("--checkpoint_path") + 1] == str(tmp_path / "checkpoints" / "final.pt")


# what is left


def test_finished_steps_are_left_out_and_a_stopped_training_is_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    steps = dict(run.steps())
    assert list(steps) == ["training", "evaluation"]
    assert steps["training"][steps["training"].index("--resume") + 1] == "True"
    run.weights.touch()
    assert [name for name, _ in run.steps()] == ["evaluation"]
    run.evaluated.touch()
    assert list(run.steps()) == []
    run.weights.unlink()  # trained anew: the old evaluation is of other weights
    assert [name for name, _ in run.steps()] == ["training", "evaluation"]


def test_a_failing_run_names_its_log_and_ends_its_chain(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text("{}")
    (tmp_path / "bad.json").write_text("{")
    chain = [quick(tmp_path, name, f"{file}.json") for name, file in (("a", "good"), ("b", "bad"), ("c", "good"))]
    with pytest.raises(RuntimeError, match=r"training of tissnet, fold 0, ended with exit status 1: see .*b/log\.txt"):
        Runner(threads=1).run_chain(chain)
    assert (tmp_path / "a" / "log.txt").read_text() == "{}\n"
    assert "property name" in (tmp_path / "b" / "log.txt").read_text()
    assert not (tmp_path / "c").exists()


def test_a_signal_ends_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text("{}")
    runner, begin = Runner(threads=1), time.monotonic()
    timer = threading.Timer(1.0, runner.stop, (signal.SIGTERM,))
    timer.start()
    runner.run_chain([quick(tmp_path, "a", "sleep"), quick(tmp_path, "b", "good.json")])
    assert time.monotonic() - begin < SECONDS
    runner.run_chain([quick(tmp_path, "c", "good.json")])
    logs = {path.parent.name: path.read_text() for path in tmp_path.glob("*/log.txt")}
    assert logs.keys() <= {"a"}


def test_the_folds_of_an_arm_are_pooled_for_the_report(tmp_path: Path) -> None:
    runs = []
    for fold, dice in enumerate((0.4, 0.8)):
        run = make_run(tmp_path / "tissnet" / f"fold{fold}", fold=fold)
        row = {"case": f"c{fold}", "protocol": "full_scan", "prediction": "y_f", "dice": dice}
        write_per_case(run.folder / "per_case.csv", [row])
        (run.folder / "predictions.json").write_text("[]")
        runs.append(run)
    pool(runs, tmp_path / "tissnet")
    assert [row["case"] for row in read_per_case(tmp_path / "tissnet" / "per_case.csv")] == ["c0", "c1"]
    report([str(tmp_path / "tissnet"), "--output", str(tmp_path / "report")])
    assert "| dice | 0.6 +- " in (tmp_path / "report" / "report.md").read_text()


# the real thing


@pytest.mark.slow
def test_arms_on_folds_with_a_failure_and_a_second_try(
    vs_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """tissnet and source_only; a fold's file is broken at first, and the second call does what is left alone."""
    monkeypatch.chdir(BUNDLE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    data, output = folds_of(tmp_path / "data", vs_data), tmp_path / "out"
    (tmp_path / "own.yaml").write_text("epochs: 1\n")
    given = ["--dataset_dir", str(data), "--output", str(output), "--arms", "tissnet", "source_only"]
    given += ["--configs", "configs/debug.yaml", str(tmp_path / "own.yaml")]
    kept = (data / "datalist_fold1.json").read_bytes()
    (data / "datalist_fold1.json").write_text("{")
    with caplog.at_level(logging.INFO, logger="scripts.experiments"):
        assert main(given) == 1
    assert f"training of source_only, fold 1, ended with exit status 1: see {output}" in caplog.text
    assert not (output / "source_only" / "per_case.csv").exists()
    finished = output / "tissnet" / "fold0" / "checkpoints" / "final.pt"
    written = finished.stat().st_mtime_ns

    (data / "datalist_fold1.json").write_bytes(kept)
    assert main(given) == 0
    assert finished.stat().st_mtime_ns == written
    cases = sorted(
        entry["case"] for fold in range(FOLDS) for entry in load_datalist(data / f"datalist_fold{fold}.json", "testing")
    )
    for arm in ("real_target", "tissnet", "source_only"):
        rows = read_per_case(output / arm / "per_case.csv")
        assert sorted(row["case"] for row in rows if row["prediction"] == "y_f") == cases, arm
        for fold in range(FOLDS):
            checkpoints = {path.name for path in (output / arm / f"fold{fold}" / "checkpoints").iterdir()}
            assert checkpoints == {"final.pt", "last.pt"}, "nothing is chosen on the fold that is scored"
    names = set(torch.load(finished, weights_only=True))
    assert any(name.startswith("G.") for name in names) and any(name.startswith("S.") for name in names)
    report([str(output / "source_only"), str(output / "tissnet"), "--output", str(tmp_path / "report")])
    assert "tissnet" in (tmp_path / "report" / "report.md").read_text()
