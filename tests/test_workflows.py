"""Tests of whole workflows through monai.bundle: pretrain, train, evaluate, report, export, infer, and what goes wrong.

Most run in this process with debug.yaml: one `python -m monai.bundle` costs about 9 s of imports. The numbers of these
runs mean nothing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from made.training import TINY as SMALL
from made.training import curves, leaves
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from running import free_port
from warm import Warm

from scripts.data.datalist import load_datalist, write_datalist
from scripts.data.dataset import prepare_source
from scripts.evaluation.per_case import PREDICTIONS
from scripts.networks.tissnet import TISSNet
from scripts.report import main as report
from scripts.training.methods.tissnet import TERMS
from scripts.weights import export

DEBUG = "debug.yaml"
TRAIN = ["train.json", DEBUG]
PRETRAIN = ["train.json", "pretrain.json", DEBUG]
EVALUATE = ["train.json", "evaluate.json", DEBUG]
INFER = ["inference.json", DEBUG]
PROCESSES = ["train.json", "multi_gpu_train.json", DEBUG]

EPOCHS = 2  # debug.yaml's
CASES, BATCH = 4, 2  # training phantoms of conftest.py, and train.json's batch size
CROP = [40, 32, -1]
GLIOMA_PIXDIM = [4.0, 4.0, 4.0]  # the glioma phantoms' own; the real patient is resampled to it
REAL_PIXDIM = [2.0, 2.0, 2.0]
COARSER_PIXDIM = [0.5, 0.5, 1.5]  # not the vs phantoms', so that inference resamples there and back

VOLUME_TOLERANCE_MM3 = 0.06  # volumes.csv has one decimal
SYNTHETIC_TOLERANCE = 1.0  # of 1000, one step of the written range
SLACK = 1e-6
PROCESS_SECONDS = 240
LOSS_RTOL = 1e-3  # of two processes to one, over a few steps of Adam, which makes whole steps of a gradient of rounding
KILLED_SECONDS = 60  # from the death of one process to the end of torchrun

Run = Callable[..., Any]


def overrides(data: Path, run_dir: Path, **more: Any) -> dict[str, Any]:
    """What every training and evaluation here is given."""
    return {"dataset_dir": str(data), "run_dir": str(run_dir), "device": "$torch.device('cpu')", **more}


def scans(folder: Path, output: Path, weights: Path, **more: Any) -> dict[str, Any]:
    """What every inference here is given."""
    return {
        "dataset_dir": str(folder),
        "output_dir": str(output),
        "checkpoint_path": str(weights),
        "device": "$torch.device('cpu')",
        **more,
    }


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def reoriented(source: Path, target: Path, codes: str) -> None:
    """Writes the same scan with other axes: voxels permuted and flipped, every voxel where it was in the patient."""
    image = nib.load(source)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(codes)))
    turned = image.as_reoriented(turn)
    assert "".join(aff2axcodes(turned.affine)) == codes
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(turned, target)


def canonical(path: Path) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


# The whole path, one stage after the other; each fixture is a stage's folder.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def perceptor(run_workflow: Run, vs_data: Path, folder: Path) -> Path:
    run_workflow(PRETRAIN, overrides(vs_data, folder / "perceptor", epochs=1))
    return folder / "perceptor" / "checkpoints" / "best.pt"


@pytest.fixture(scope="module")
def trained(run_workflow: Run, vs_data: Path, folder: Path, perceptor: Path) -> Path:
    run_workflow(TRAIN, overrides(vs_data, folder / "tissnet", perceptor_path=str(perceptor)))
    return folder / "tissnet"


@pytest.fixture(scope="module")
def evaluated(run_workflow: Run, vs_data: Path, trained: Path, perceptor: Path) -> Path:
    """The cascade's run, evaluated with both protocols."""
    given = overrides(vs_data, trained, perceptor_path=str(perceptor))
    run_workflow(EVALUATE, given, run_id="evaluating")
    run_workflow(EVALUATE, {**given, "protocol": "paper_crop", "section": "validation", "crop_size": CROP})
    return trained


@pytest.fixture(scope="module")
def exported(trained: Path, folder: Path) -> Path:
    """The run's weights as they are shipped."""
    export(trained, folder / "models" / "model.pt")
    return folder / "models" / "model.pt"


@pytest.fixture(scope="module")
def untrained(folder: Path) -> Path:
    """Weights from a seed, whose mask is neither empty nor full."""
    torch.manual_seed(0)
    torch.save(TISSNet(1, features=SMALL).state_dict(), folder / "untrained.pt")
    return folder / "untrained.pt"


def test_a_run_leaves_checkpoints_logs_and_previews(trained: Path) -> None:
    assert {"best.pt", "final.pt", "last.pt"} == {path.name for path in (trained / "checkpoints").iterdir()}
    assert sorted(path.name for path in (trained / "previews").iterdir()) == [
        f"epoch_{epoch + 1:04d}.png" for epoch in range(EPOCHS)
    ]
    TISSNet(1, features=SMALL).load_state_dict(state(trained / "checkpoints" / "best.pt"), strict=True)
    last = state(trained / "checkpoints" / "last.pt")
    assert {
        "trainer",
        "network",
        "average",
        "D_g",
        "D_t",
        "optimizer_g",
        "optimizer_d",
        "scheduler_g",
        "scheduler_d",
    } <= set(last)
    assert last["trainer"]["iteration"] == EPOCHS * CASES // BATCH


def test_training_moves_every_network(trained: Path, run_workflow: Run, vs_data: Path, perceptor: Path) -> None:
    """Against the same seed's weights before the first step; a frozen or forgotten network would not move."""
    given = overrides(vs_data, trained, perceptor_path=str(perceptor), **{"run": ["$None"]})
    before = run_workflow(TRAIN, given).parser
    last = state(trained / "checkpoints" / "last.pt")
    for name in ("network", "D_g", "D_t"):
        start = before.get_parsed_content(name).state_dict()
        moved = [key for key, value in last[name].items() if not torch.equal(value, start[key].cpu())]
        assert len(moved) > len(start) / 2, name


def test_tensorboard_has_every_term(trained: Path) -> None:
    tags = curves(trained)
    for name in {*TERMS, "D_g", "D_t", "loss", "loss_D", "grad_norm_G", "grad_norm_D"} - {"segmentor"}:
        assert len(tags[name]) == EPOCHS * CASES // BATCH, name
        assert all(map(math.isfinite, tags[name].values())), name
    for name in ("val_mean_dice", "y_f_on_tumor", "y_c_on_tumor", "y_r_on_tumor"):
        assert len(tags[name]) == EPOCHS, name


def test_fine_tuning_takes_cases_without_a_target(
    run_workflow: Run, vs_data: Path, exported: Path, perceptor: Path, tmp_path: Path, messages_of: Run
) -> None:
    """Two of the four training cases and one of two validation cases have their target; a step is one case."""
    sections = load_datalist(vs_data / "datalist.json")
    for index in (1, 3):
        del sections["training"][index]["target"]
    del sections["validation"][0]["target"]
    write_datalist(tmp_path / "datalist.json", sections.pop("task"), sections)
    given = overrides(tmp_path, tmp_path / "run", perceptor_path=str(perceptor), start_from=str(exported), batch_size=1)
    with pytest.raises(Exception, match="Failed to instantiate") as raised:
        run_workflow(TRAIN, given)
    assert "missing key: found no 'target'" in messages_of(raised.value)
    run_workflow(["train.json", "fine_tune.yaml", DEBUG], given)
    tags = curves(tmp_path / "run")
    for name in ("l1_global", "adversarial_global", "D_g", "loss_D", "grad_norm_D"):
        assert len(tags[name]) == EPOCHS * 2, name
    for name in ("perceptibility", "coarse", "fine", "error", "consistency", "loss", "grad_norm_G"):
        assert len(tags[name]) == EPOCHS * CASES, name
    assert len(tags["val_mean_dice"]) == EPOCHS
    best = state(tmp_path / "run" / "checkpoints" / "best.pt")
    assert any(not torch.equal(value, best[name].half()) for name, value in state(exported).items())


def test_evaluation_writes_a_row_per_case_and_prediction(evaluated: Path, vs_data: Path) -> None:
    table = pd.read_csv(evaluated / "per_case.csv")
    for protocol, section in (("full_scan", "testing"), ("paper_crop", "validation")):
        cases = [entry["case"] for entry in load_datalist(vs_data / "datalist.json", section)]
        rows = table[table["protocol"] == protocol]
        assert sorted(zip(rows["case"], rows["prediction"], strict=True)) == sorted(
            (case, prediction) for case in cases for prediction in PREDICTIONS
        )
        assert rows[["dice", "psnr_global", "ssim_global", "perceptibility_dice", "seconds"]].notna().all(axis=None)
    for entry in json.loads((evaluated / "predictions.json").read_text()):
        mask, truth = nib.load(entry["pred"]), nib.load(entry["label"])
        assert mask.shape == truth.shape and np.array_equal(mask.affine, truth.affine)
        row = table.query(f"case == '{entry['case']}' and protocol == '{entry['protocol']}' and prediction == 'y_f'")
        a, b = np.asarray(mask.dataobj) > 0, np.asarray(truth.dataobj) > 0
        expected = 2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0
        assert row["dice"].item() == pytest.approx(expected, abs=SLACK), entry["case"]


def test_paper_crop_predicts_nothing_outside_its_box(evaluated: Path) -> None:
    """The error map is a probability and nowhere 0 where the network ran."""
    extents = {}
    for entry in json.loads((evaluated / "predictions.json").read_text()):
        where = np.argwhere(voxels(Path(entry["error"])) > 0)
        extents.setdefault(entry["protocol"], []).append((np.ptp(where, axis=0) + 1).tolist()[:2])
    assert extents["paper_crop"] == [CROP[:2]] * 2
    assert all(x > CROP[0] and y > CROP[1] for x, y in extents["full_scan"])


def test_report_of_the_run(evaluated: Path, tmp_path: Path) -> None:
    report([str(evaluated), "--output", str(tmp_path)])
    text = (tmp_path / "report.md").read_text()
    mean = (
        pd.read_csv(evaluated / "per_case.csv").query("protocol == 'full_scan' and prediction == 'y_f'")["dice"].mean()
    )
    assert f"| dice | {mean:.4g} +- " in text
    assert len(list((tmp_path / "figures").rglob("*.png"))) == 2


def test_export_is_half_precision_of_the_best(exported: Path, trained: Path) -> None:
    best, shipped = state(trained / "checkpoints" / "best.pt"), state(exported)
    assert set(best) == set(shipped)
    for name, value in shipped.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, best[name].half())


def test_inference_on_a_folder(run_workflow: Run, vs_data: Path, exported: Path, tmp_path: Path) -> None:
    entries = load_datalist(vs_data / "datalist.json", "testing")
    (tmp_path / "in").mkdir()
    for entry in entries:
        shutil.copy(entry["image"][0], tmp_path / "in")
    run_workflow(INFER, scans(tmp_path / "in", tmp_path / "out", exported), kind="infer")
    table = pd.read_csv(tmp_path / "out" / "volumes.csv").set_index("case")
    assert list(table.index) == [entry["case"] for entry in entries]
    for case, row in table.iterrows():
        folder = tmp_path / "out" / str(case)
        source = nib.load(tmp_path / "in" / f"{case}_T2.nii.gz")
        mask = nib.load(folder / f"{case}_pred.nii.gz")
        assert mask.get_data_dtype() == np.uint8 and set(np.unique(mask.dataobj)) <= {0, 1}
        voxel = float(np.prod(source.header.get_zooms()))
        assert row["voxels"] == np.asarray(mask.dataobj).sum()
        assert row["volume_mm3"] == pytest.approx(row["voxels"] * voxel, abs=VOLUME_TOLERANCE_MM3)
        synthetic = voxels(folder / f"{case}_synthetic.nii.gz")
        assert 0 <= synthetic.min() < synthetic.max() <= 1000
        error = voxels(folder / f"{case}_error.nii.gz")
        assert -SLACK <= error.min() < error.max() <= 1 + SLACK
        assert (folder / f"{case}_overlay.png").stat().st_size > 0


def test_inference_of_a_cohort_is_resumed(
    run_workflow: Run, vs_data: Path, untrained: Path, tmp_path: Path, messages_of: Callable[[BaseException], str]
) -> None:
    """By the config itself: a bad scan fails alone, the others' results stay with resume and are made anew without."""
    (tmp_path / "in").mkdir()
    shutil.copy(load_datalist(vs_data / "datalist.json", "testing")[0]["image"][0], tmp_path / "in")
    (tmp_path / "in" / "bad_T2.nii.gz").write_bytes(b"no scan")
    given = scans(tmp_path / "in", tmp_path / "out", untrained)
    before: dict[Path, int] = {}
    for settings, kept in (({}, None), ({"resume": True}, True), ({}, False)):
        with pytest.raises(Exception) as raised:
            run_workflow(INFER, {**given, **settings}, kind="infer")
        assert "1 of 2 cases failed" in messages_of(raised.value)
        assert list(pd.read_csv(tmp_path / "out" / "failed.csv")["case"]) == ["bad"]
        masks = sorted((tmp_path / "out").rglob("*_pred.nii.gz"))
        assert len(masks) == len(pd.read_csv(tmp_path / "out" / "volumes.csv")) == 1
        written = {path: path.stat().st_mtime_ns for path in masks}
        if kept is not None:
            assert all((written[path] == before[path]) is kept for path in masks)
        before = written


def test_inference_agrees_in_three_orientations(
    run_workflow: Run, vs_data: Path, untrained: Path, tmp_path: Path
) -> None:
    """By content: the mask of a mirrored file must lie at the same place in the patient, on that file's own grid."""
    source = Path(load_datalist(vs_data / "datalist.json", "validation")[0]["image"][0])
    codes = ("RAS", "LPS", "PIR")
    for code in codes:
        reoriented(source, tmp_path / "in" / f"{code}_T2.nii.gz", code)
    given = scans(tmp_path / "in", tmp_path / "out", untrained, pixdim=COARSER_PIXDIM)
    run_workflow(INFER, given, kind="infer")
    outputs = {}
    for code in codes:
        scan = nib.load(tmp_path / "in" / f"{code}_T2.nii.gz")
        for name in ("pred", "synthetic", "error"):
            path = tmp_path / "out" / code / f"{code}_{name}.nii.gz"
            written = nib.load(path)
            assert written.shape == scan.shape
            assert np.array_equal(written.affine, scan.affine)
            outputs[code, name] = canonical(path)
    mask = outputs["RAS", "pred"]
    assert 0 < mask.sum() < mask.size
    assert all(not np.array_equal(mask, np.flip(mask, axis)) for axis in range(3)), "a mirror image would go unseen"
    for code in codes[1:]:
        assert np.array_equal(outputs[code, "pred"], mask), code
        difference = np.abs(outputs[code, "synthetic"].astype(float) - outputs["RAS", "synthetic"])
        assert difference.max() <= SYNTHETIC_TOLERANCE, code


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_one_or_two_slices_are_no_head(
    run_workflow: Run,
    messages_of: Callable[[BaseException], str],
    vs_data: Path,
    untrained: Path,
    tmp_path: Path,
    slices: int,
) -> None:
    source = nib.load(load_datalist(vs_data / "datalist.json", "validation")[0]["image"][0])
    (tmp_path / "in").mkdir()
    nib.save(source.slicer[:, :, 5 : 5 + slices], tmp_path / "in" / "slice_T2.nii.gz")
    given = scans(tmp_path / "in", tmp_path / "out", untrained)
    if slices == 3:
        run_workflow(INFER, given, kind="infer")
        assert nib.load(tmp_path / "out" / "slice" / "slice_pred.nii.gz").shape == (*source.shape[:2], 3)
        return
    with pytest.raises(Exception) as raised:
        run_workflow(INFER, given, kind="infer")
    assert f"number of slices: found case slice: slice_T2.nii.gz: {slices}, shape" in messages_of(raised.value)
    assert not (tmp_path / "out" / "slice" / "slice_pred.nii.gz").exists()


def test_resume_goes_on_where_a_run_stopped(run_workflow: Run, vs_data: Path, perceptor: Path, tmp_path: Path) -> None:
    """One epoch and a resumed second one end with bit-identical weights to two epochs at once, dropout included."""
    at_once = overrides(vs_data, tmp_path / "at_once", perceptor_path=str(perceptor))
    in_two = overrides(vs_data, tmp_path / "in_two", perceptor_path=str(perceptor))
    run_workflow(TRAIN, at_once, run_id="training")
    run_workflow(TRAIN, {**in_two, "train#trainer#max_epochs": 1}, run_id="training")
    first = state(tmp_path / "in_two" / "checkpoints" / "last.pt")
    assert first["trainer"]["iteration"] == CASES // BATCH
    resumed = run_workflow(TRAIN, {**in_two, "resume": True}, run_id="training")
    assert resumed.trainer.state.epoch == EPOCHS
    straight, second = (state(tmp_path / name / "checkpoints" / "last.pt") for name in ("at_once", "in_two"))
    assert second["trainer"]["iteration"] == EPOCHS * CASES // BATCH
    for name in ("network", "average", "D_g", "D_t"):
        assert any(not torch.equal(first[name][key], value) for key, value in second[name].items()), name
    expected, found = dict(leaves(straight)), dict(leaves(second))
    assert expected.keys() == found.keys()
    for path, value in expected.items():
        assert torch.equal(found[path], value) if isinstance(value, torch.Tensor) else found[path] == value, path
    assert second["scheduler_g"]["last_epoch"] == EPOCHS
    weights = [state(tmp_path / name / "checkpoints" / "final.pt") for name in ("at_once", "in_two")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_without_validation_the_final_weights_are_left(run_workflow: Run, vs_data: Path, tmp_path: Path) -> None:
    """val_interval 0: no validation case is needed, nothing is chosen; what is exported is the average."""
    training = json.loads((vs_data / "datalist.json").read_text())["training"]
    for entry in training:
        (tmp_path / entry["case"]).symlink_to(vs_data / entry["case"])
    write_datalist(tmp_path / "datalist.json", "vs", {"training": training})
    given = overrides(tmp_path, tmp_path / "run", val_interval=0, **{"weights#perceptibility": 0.0})
    workflow = run_workflow(TRAIN, given)
    assert workflow.trainer.state.epoch == EPOCHS
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["final.pt", "last.pt"]
    assert not (tmp_path / "run" / "previews").exists()
    final, average = state(checkpoints / "final.pt"), state(checkpoints / "last.pt")["average"]
    assert average["n_averaged"] == EPOCHS * CASES // BATCH
    assert {f"module.{name}" for name in final} | {"n_averaged"} == set(average)
    assert all(torch.equal(value, average[f"module.{name}"]) for name, value in final.items())
    with pytest.raises(FileNotFoundError, match=r"no .*best\.pt: .* for best\.pt validated at least once"):
        export(tmp_path / "run", tmp_path / "model.pt")
    export(tmp_path / "run", tmp_path / "model.pt", checkpoint="final")
    assert all(torch.equal(value, final[name].half()) for name, value in state(tmp_path / "model.pt").items())


def test_a_run_resumed_for_more_epochs_has_the_rate_of_their_number(open_workflow: Run, vs_data: Path) -> None:
    """Or it would go on at a rate of 0."""
    given = {"dataset_dir": str(vs_data), "weights#perceptibility": 0.0, "cache_rate": 0.0, "learning_rate": 1.0}
    finished, longer = (
        open_workflow(TRAIN, {**given, "epochs": epochs}).parser.get_parsed_content("scheduler_g") for epochs in (2, 8)
    )
    rates = []
    for _ in range(2):
        rates.append(finished.get_last_lr()[0])
        finished.optimizer.step()  # or torch warns of the order
        finished.step()
    assert [*rates, *finished.get_last_lr()] == pytest.approx([1.0, 0.5**0.9, 0.0])
    longer.load_state_dict(finished.state_dict())
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr()[0] == pytest.approx((5 / 8) ** 0.9)


# Several processes, by torchrun on CPUs. Their losses and steps are in test_distributed.py, without a config.


def two_processes(options: Mapping[str, object]) -> list[str]:
    """The command of multi_gpu_train.json with debug.yaml behind, for each of the processes."""
    command = ["-m", "monai.bundle", "run", "training", "--config_file", str([f"configs/{name}" for name in PROCESSES])]
    given = {"--batch_size": 1, "--weights#perceptibility": 0.0, **options}
    return command + [str(word) for option in given.items() for word in option]


def torchrun(data: Path, run_dir: Path, *more: str, log: Path) -> subprocess.Popen[str]:
    """Starts both processes; output goes to a file."""
    root = Path(__file__).parents[1] / "bundle"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [*two_processes({"--dataset_dir": data, "--run_dir": run_dir}), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", *command], cwd=root, env=environment, stdout=file, stderr=file, text=True
        )


def test_two_processes_train_as_one_with_the_whole_batch(
    run_workflow: Run, warm: Warm, bundle_root: Path, vs_data: Path, tmp_path: Path
) -> None:
    """Started as torchrun does: what it tells each of its processes stands in the environment."""
    options = {"--dataset_dir": vs_data, "--run_dir": tmp_path / "two", "--network_def#dropout": [0.0] * 5}
    command = two_processes(options)
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""}
    started = [
        warm.start(command, bundle_root, tmp_path / "log", {**told, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    one = {"network_def#dropout": [0.0] * 5, "weights#perceptibility": 0.0, "batch_size": 2}
    run_workflow(TRAIN, overrides(vs_data, tmp_path / "one", **one))
    status = [warm.wait(process, PROCESS_SECONDS) for process in started]
    assert status == [0, 0], (tmp_path / "log").read_text()[-3000:]
    expected, got = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert got.keys() == expected.keys() >= {"loss", "fine", "D_t", "grad_norm_G", "val_mean_dice"}
    for name, values in expected.items():
        assert got[name] == pytest.approx(values, rel=LOSS_RTOL), name
    assert len(got["loss"]) == EPOCHS * CASES // BATCH and len(got["val_mean_dice"]) == EPOCHS
    assert len(list((tmp_path / "two" / "previews").iterdir())) == EPOCHS
    last = state(tmp_path / "two" / "checkpoints" / "last.pt")
    assert last["samples_per_iteration"] == BATCH


@pytest.mark.slow
def test_a_killed_process_ends_torchrun_and_one_process_goes_on(
    run_workflow: Run, vs_data: Path, tmp_path: Path
) -> None:
    running = torchrun(vs_data, tmp_path / "run", "--epochs", "1000", log=tmp_path / "log")
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    try:
        limit = time.monotonic() + PROCESS_SECONDS
        while not last.is_file() and running.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        assert last.is_file(), (tmp_path / "log").read_text()[-3000:]
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        assert running.wait(KILLED_SECONDS) != 0
    finally:
        running.kill()
    assert "SIGKILL" in (tmp_path / "log").read_text()
    iteration = state(last)["trainer"]["iteration"]
    epochs = iteration // (CASES // BATCH)
    given = overrides(vs_data, tmp_path / "run", resume=True, epochs=1000, **{"weights#perceptibility": 0.0})
    resumed = run_workflow(TRAIN, {**given, "train#trainer#max_epochs": epochs + 1})
    assert resumed.trainer.state.iteration == iteration + CASES // BATCH


def test_more_processes_than_validation_cases_are_refused(
    run_workflow: Run,
    messages_of: Callable[[BaseException], str],
    vs_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every process and before the first step."""
    for name, value in {"get_world_size": 3, "get_rank": 0, "is_initialized": True}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Exception) as raised:
        run_workflow(PROCESSES, overrides(vs_data, tmp_path / "run", **{"weights#perceptibility": 0.0}))
    assert "2 validation cases for 3 processes: expected at least one each" in messages_of(raised.value)


def test_sigterm_ends_a_run_with_status_143(run_workflow: Run, vs_data: Path, tmp_path: Path) -> None:
    """What the config has to connect; the moments at which the signal may come are in test_checkpoints.py."""
    event = "ignite.engine.Events.ITERATION_STARTED(once=1)"
    told = f"$@train#trainer.add_event_handler({event}, lambda: os.kill(os.getpid(), 15))"
    given = overrides(vs_data, tmp_path / "run", **{"weights#perceptibility": 0.0})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BaseException) as raised:
        run_workflow(TRAIN, {**given, "+imports": ["$import os", "$import ignite"], "+initialize": [told]})
    causes = [raised.value, raised.value.__cause__]
    assert 143 in [getattr(cause, "code", None) for cause in causes]
    assert state(tmp_path / "run" / "checkpoints" / "last.pt")["trainer"]["iteration"] == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_sigterm_to_a_whole_job_ends_it_in_order(vs_data: Path, tmp_path: Path) -> None:
    """torchrun signals every process, data workers too, as a cluster does: all stop, the file is written."""
    last, log = tmp_path / "run" / "checkpoints" / "last.pt", tmp_path / "log"
    running = torchrun(vs_data, tmp_path / "run", "--epochs", "1000", "--num_workers", "1", log=log)
    try:
        for _ in range(10 * PROCESS_SECONDS):
            if last.is_file() or running.poll() is not None:
                break
            time.sleep(0.1)
        assert last.is_file(), log.read_text()[-3000:]
        running.terminate()
        running.wait(KILLED_SECONDS)
    finally:
        running.kill()
    text = log.read_text()
    assert text.count("SIGTERM: stopped after iteration") == 1, text[-3000:]
    assert "exited unexpectedly" not in text
    assert f"iteration {state(last)['trainer']['iteration']}, wrote {last}" in text


def test_mlflow_tracks_a_run(run_workflow: Run, vs_data: Path, tmp_path: Path) -> None:
    import mlflow

    given = overrides(vs_data, tmp_path / "run", epochs=1, **{"weights#perceptibility": 0.0})
    run_workflow(TRAIN, given, tracking="mlflow")
    database = tmp_path / "run" / "mlruns.db"
    assert database.is_file()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
    experiment = client.get_experiment_by_name("monai_experiment")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    assert runs[0].info.run_name == "vs_tissnet"
    assert {"train_loss", "val_mean_dice"} <= set(runs[0].data.metrics)


# Real MRI: one patient is committed, so it trains and phantoms validate.


@pytest.mark.parametrize("task", ["surrogate_t2_cet1", "glioma"])
def test_inference_on_a_real_patient(
    task: str, run_workflow: Run, real_mri: Callable[[str], Path], tmp_path: Path
) -> None:
    entry = load_datalist(real_mri(task) / "datalist.json", "testing")[0]
    channels = len(entry["image"])
    torch.manual_seed(0)
    torch.save(TISSNet(channels, features=SMALL).state_dict(), tmp_path / "model.pt")
    given = scans(real_mri(task) / entry["case"], tmp_path / "out", tmp_path / "model.pt", pixdim=REAL_PIXDIM)
    run_workflow(["inference.json", f"{task}.yaml", DEBUG], given, kind="infer")
    mask = nib.load(tmp_path / "out" / entry["case"] / f"{entry['case']}_pred.nii.gz")
    truth = nib.load(entry["label"])
    assert mask.shape == truth.shape and np.array_equal(mask.affine, truth.affine)
    assert len(pd.read_csv(tmp_path / "out" / "volumes.csv")) == 1


def test_training_on_a_real_patient(
    run_workflow: Run, real_mri: Callable[[str], Path], glioma_data: Path, tmp_path: Path
) -> None:
    phantoms = load_datalist(glioma_data / "datalist.json")
    patient = load_datalist(real_mri("glioma") / "datalist.json", "testing")
    write_datalist(tmp_path / "datalist.json", "glioma", {"training": patient, "validation": phantoms["validation"]})
    given = overrides(tmp_path, tmp_path / "run", pixdim=GLIOMA_PIXDIM, **{"weights#perceptibility": 0.0})
    workflow = run_workflow(["train.json", "glioma.yaml", DEBUG], given)
    assert workflow.trainer.state.iteration == EPOCHS
    TISSNet(3, features=SMALL).load_state_dict(state(tmp_path / "run" / "checkpoints" / "best.pt"))


@pytest.mark.slow
@pytest.mark.skipif("TISSNET_DATA" not in os.environ, reason="TISSNET_DATA names no folder of real data")
def test_two_epochs_on_three_real_gliomas(run_workflow: Run, tmp_path: Path) -> None:
    source = Path(os.environ["TISSNET_DATA"]) / "glioma"
    cases = sorted(path for path in source.iterdir() if path.is_dir())[:3]
    for case in cases:
        shutil.copytree(case, tmp_path / "in" / case.name)
    split = "".join(f"{case.name},{'validation' if case is cases[-1] else 'training'}\n" for case in cases)
    (tmp_path / "split.csv").write_text(f"case,split\n{split}")
    prepare_source("brats", tmp_path / "in", tmp_path / "data", "glioma", split=tmp_path / "split.csv")
    given = overrides(tmp_path / "data", tmp_path / "run", pixdim=REAL_PIXDIM, **{"weights#perceptibility": 0.0})
    workflow = run_workflow(["train.json", "glioma.yaml", DEBUG], given)
    assert workflow.trainer.state.epoch == EPOCHS
    assert 0 <= workflow.evaluator.state.metrics["val_mean_dice"] <= 1


# Processes of their own: what depends on the working directory, the command line, or on how an error is shown.


def process(warm: Warm, *arguments: object, cwd: Path, log: Path) -> str:
    """What `python -m ...` prints, as a user runs it; it must succeed."""
    status = warm.run(["-m", *map(str, arguments)], cwd, log, PROCESS_SECONDS, {})
    assert status == 0, log.read_text()[-2000:]
    return log.read_text()


def test_command_line_from_another_directory(warm: Warm, bundle_root: Path, vs_data: Path, tmp_path: Path) -> None:
    files = [str(bundle_root / "configs" / name) for name in TRAIN]
    process(
        *(warm, "monai.bundle", "run", "training", "--config_file", files, "--bundle_root", bundle_root),
        *("--dataset_dir", vs_data, "--run_dir", tmp_path / "run", "--epochs", 1, "--weights#perceptibility", 0.0),
        cwd=tmp_path,
        log=tmp_path / "log",
    )
    assert {"best.pt", "last.pt"} <= {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}


def test_command_line_infers_from_the_bundles_root(
    warm: Warm, bundle_root: Path, vs_data: Path, untrained: Path, tmp_path: Path
) -> None:
    scan = Path(load_datalist(vs_data / "datalist.json", "testing")[0]["image"][0])
    said = process(
        *(warm, "monai.bundle", "run", "--config_file", "['configs/inference.json','configs/debug.yaml']"),
        *("--dataset_dir", scan, "--output_dir", tmp_path / "out", "--checkpoint_path", untrained),
        cwd=bundle_root,
        log=tmp_path / "log",
    )
    case = scan.name.removesuffix("_T2.nii.gz")
    assert f"{case}: " in said and "mm3" in said
    assert nib.load(tmp_path / "out" / case / f"{case}_pred.nii.gz").shape == nib.load(scan).shape


@pytest.mark.slow
def test_torchrun_divides_a_cohort(
    warm: Warm, bundle_root: Path, vs_data: Path, untrained: Path, tmp_path: Path
) -> None:
    said = process(
        *(warm, "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"),
        *("--config_file", "['configs/inference.json','configs/debug.yaml']", "--dataset_dir", vs_data),
        *("--output_dir", tmp_path / "out", "--checkpoint_path", untrained),
        cwd=bundle_root,
        log=tmp_path / "log",
    )
    table = pd.read_csv(tmp_path / "out" / "volumes.csv")
    cases = sorted(path.name.removesuffix("_T2.nii.gz") for path in vs_data.rglob("*_T2.nii.gz"))
    assert list(table["case"]) == cases
    assert all(said.count(f"{case}: ") == 1 for case in cases)
    assert said.count("this process: ") == 2


# What a user may get wrong. Broken files of a datalist are in test_datalist.py, folders of scans in test_inputs.py.

Settings = Callable[[Mapping[str, Path]], dict[str, Any]]
WRONG: dict[str, tuple[list[str], Settings, str]] = {
    "no datalist": (
        TRAIN,
        lambda at: {"dataset_dir": str(at["tmp"])},
        "datalist.json: no such datalist, expected the datalist.json that scripts.prepare writes",
    ),
    "another task's datalist": (
        TRAIN,
        lambda at: {"dataset_dir": str(at["glioma"])},
        "is a datalist of task 'glioma', expected 'vs'; give the data prepared for it",
    ),
    "no perceptor": (
        TRAIN,
        lambda at: {"perceptor_path": str(at["tmp"] / "none.pt")},
        "Train it first, on the same task and data: python -m monai.bundle run training --config_file "
        "\"['configs/train.json','configs/pretrain.json']\"",
    ),
    "another network as perceptor": (
        TRAIN,
        lambda at: {"perceptor_path": str(at["model"])},
        "does not hold the weights of the configured UNet2d5",
    ),
    "unknown loss weight": (TRAIN, lambda at: {"weights#l1_globl": 1.0}, "unknown loss weights ['l1_globl']"),
    "negative loss weight": (TRAIN, lambda at: {"weights#fine": -1.0}, "negative loss weights {'fine': -1.0}"),
    "every loss weight 0": (
        TRAIN,
        lambda at: {f"weights#{name}": 0.0 for name in TERMS},
        "every loss weight is 0: nothing to train",
    ),
    "patch too small": (
        TRAIN,
        lambda at: {"patch_size": [16, 16, 4]},
        "a patch of (16, 16, 4) voxels is too small for the discriminator: expected at least 24 x 24 x 6",
    ),
    "features of four levels": (
        TRAIN,
        lambda at: {"features": [4, 4, 8, 8]},
        "features [4, 4, 8, 8]: expected five positive numbers, one per level.",
    ),
    "accumulation 0": (TRAIN, lambda at: {"accumulation_steps": 0}, "accumulation_steps is 0: expected 1 or more."),
    "misspelled argument": (
        TRAIN,
        lambda at: {"train#trainer#max_epoch": 3},
        "got an unexpected keyword argument 'max_epoch'",
    ),
    "no validation": (TRAIN, lambda at: {"val_interval": 2}, "val_interval is 2 and epochs 1"),
    "text as a weight": (
        TRAIN,
        lambda at: {"weights#fine": "1e-3"},
        "loss weights {'fine': '1e-3'} are no numbers: in YAML write 1.0e-3, not 1e-3.",
    ),
    "resume of nothing": (TRAIN, lambda at: {"resume": True}, "checkpoints/last.pt. Start the run without --resume."),
    "unknown input": (
        PRETRAIN,
        lambda at: {"inputs": ["label"]},
        "inputs ['label']: expected 'image', 'target' or both in this order.",
    ),
    "evaluation of no run": (EVALUATE, lambda at: {"run_dir": str(at["tmp"])}, "no weights at"),
    "paper_crop without tumor": (
        EVALUATE,
        lambda at: {"protocol": "paper_crop", "crop_size": CROP, "checkpoint_path": str(at["model"])},
        "has no tumor to crop around: evaluate it with the protocol full_scan.",
    ),
    "unknown section": (
        EVALUATE,
        lambda at: {"section": "test"},
        "unknown section 'test', expected one of training, validation, testing",
    ),
    "unknown protocol": (
        EVALUATE,
        lambda at: {"protocol": "papercrop", "checkpoint_path": str(at["model"])},
        "found protocol 'papercrop'; expected one of full_scan, paper_crop.",
    ),
    "inference on nothing": (
        INFER,
        lambda at: {"dataset_dir": str(at["tmp"] / "none")},
        "none does not exist: give a scan or a folder with <case>_T2.nii.gz.",
    ),
    "inference on an empty folder": (
        INFER,
        lambda at: {"dataset_dir": str(at["tmp"])},
        "expected <case>_T2.nii.gz.",
    ),
    "inference on a missing modality": (
        ["inference.json", "glioma.yaml", DEBUG],
        lambda at: {"dataset_dir": str(at["vs"])},
        "lacks T1 beside",
    ),
    "inference of an unknown task": (
        INFER,
        lambda at: {"task": "vss"},
        "unknown task 'vss': expected one of ['glioma', 'surrogate_t2_cet1', 'vs', 'vs_cet1'].",
    ),
    "inference with no weights": (INFER, lambda at: {"checkpoint_path": str(at["tmp"] / "none.pt")}, "no weights at"),
    "inference with another network's weights": (
        INFER,
        lambda at: {"checkpoint_path": str(at["perceptor"])},
        "does not hold the weights of the configured TISSNet",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_named(
    name: str,
    run_workflow: Run,
    messages_of: Callable[[BaseException], str],
    vs_data: Path,
    glioma_data: Path,
    perceptor: Path,
    untrained: Path,
    tmp_path: Path,
) -> None:
    """The error says what was wrong; monai.bundle puts its own error behind it, and both are shown."""
    files, settings, expected = WRONG[name]
    at = {"tmp": tmp_path, "vs": vs_data, "glioma": glioma_data, "perceptor": perceptor, "model": untrained}
    if files[0] == "inference.json":
        given, kind = scans(vs_data, tmp_path / "out", untrained), "infer"
    else:
        given, kind = overrides(vs_data, tmp_path / "run", perceptor_path=str(perceptor), epochs=1), "train"
    with pytest.raises(Exception) as raised:
        run_workflow(files, {**given, **settings(at)}, kind=kind)
    assert expected in messages_of(raised.value)
