"""Tests of train and of the masks it reads: cases, split, a real fine-tuning, and one that is killed."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from monailabel.datastore.local import LocalDatastore
from monailabel.transform.writer import write_itk

from monailabel_app import versions
from monailabel_app.bundle import ServedBundle
from monailabel_app.errors import Busy, InputError
from monailabel_app.images import read_mask
from monailabel_app.tasks import submitted, train
from monailabel_app.tasks.scoring import dice, scores
from monailabel_app.tasks.submitted import LabeledCase, collect, split
from monailabel_app.tasks.train import TISSNetTrainTask
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5

ROOT = Path(__file__).parents[3]
BUNDLE = ROOT / "bundle"
DEBUG = BUNDLE / "configs" / "debug.yaml"
MODEL = "tissnet_vs"
SMALL = (4, 4, 8, 8, 8)  # debug.yaml's features
EXTENSIONS = ("*.nii.gz", "*.nii", "*.nrrd")
SECONDS = 150
VOXELS_APART_DICE = 0.75  # by hand: 6 of 8 and 8 voxels in common


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.diag([0.41, 0.41, 1.5, 1.0]) if affine is None else affine), path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Released weights of a small network, with their perceptor."""
    torch.manual_seed(0)
    folder = tmp_path / "released"
    (folder / "perceptor").mkdir(parents=True)
    torch.save(TISSNet(1, features=SMALL).state_dict(), folder / "model.pt")
    torch.save(UNet2d5(1, 1, features=SMALL).state_dict(), folder / "perceptor" / "perceptor.pt")
    return folder / "model.pt"


def serve(weights: Path, fine_tuned: Path) -> ServedBundle:
    return ServedBundle(MODEL, BUNDLE, overrides=[DEBUG], weights=weights, fine_tuned=fine_tuned)


@pytest.fixture
def bundle(weights: Path, tmp_path: Path) -> ServedBundle:
    return serve(weights, tmp_path / "versions")


def fill(folder: Path, data: Path, *, labeled: int, without_target: tuple[int, ...] = ()) -> LocalDatastore:
    """A store of the phantoms p0, p1, ..., the first ones with their truth submitted."""
    folder.mkdir()
    cases = [
        entry for part in ("training", "validation") for entry in json.loads((data / "datalist.json").read_text())[part]
    ]
    for index, entry in enumerate(cases):
        shutil.copy(data / entry["image"][0], folder / f"p{index}_T2.nii.gz")
        if index not in without_target:
            shutil.copy(data / entry["target"], folder / f"p{index}_ceT1.nii.gz")
    store = LocalDatastore(str(folder), extensions=EXTENSIONS)
    for index, entry in enumerate(cases[:labeled]):
        store.save_label(f"p{index}_T2", str(data / entry["label"]), "final", {})
    return store


@pytest.fixture
def store(tmp_path: Path, vs_data: Path) -> LocalDatastore:
    return fill(tmp_path / "studies", vs_data, labeled=3, without_target=(1,))


# masks


def test_dice_and_distance_by_hand() -> None:
    truth, prediction = np.zeros((2, 6, 6, 6), np.uint8)
    truth[1:3, 1:3, 1:3] = 1
    prediction[1:3, 1:3, 1:3] = 1
    prediction[2, 2, 1:3], prediction[3, 1, 1:3] = 0, 1
    found = scores(prediction, truth, np.diag([1.0, 1.0, 2.0, 1.0]))
    assert found["dice"] == pytest.approx(VOXELS_APART_DICE)
    assert found["volume_mm3"] == found["volume_truth_mm3"] == 16 and found["volume_difference_mm3"] == 0
    assert found["assd_mm"] == pytest.approx(2 * (2 * 1.0) / 16)  # two voxels of eight, 1 mm away, in each direction
    empty = np.zeros_like(truth)
    assert dice(empty, empty) == 1 and dice(truth, empty) == 0
    assert scores(empty, truth, np.eye(4))["assd_mm"] is None


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_a_mask_is_the_same_from_nrrd_and_nifti(tmp_path: Path, codes: str) -> None:
    """Slicer submits either; both with the grid of the scan, whatever its orientation."""
    voxels = np.zeros((5, 6, 7), np.uint8)
    voxels[1, 2, 3:5] = 1
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), voxels.shape)
    affine = np.diag([2.0, 3.0, 4.0, 1.0]) @ affine
    write(tmp_path / "a.nii.gz", voxels, affine)
    write_itk(voxels, str(tmp_path / "a.nrrd"), affine, "uint8", True)
    for name in ("a.nii.gz", "a.nrrd"):
        found, where = read_mask(tmp_path / name, "a")
        assert np.array_equal(found, voxels) and np.allclose(where, affine), name


# which cases


def test_labels_that_cannot_be_used_are_named_and_left_out(tmp_path: Path, vs_data: Path, bundle: ServedBundle) -> None:
    store = fill(tmp_path / "studies", vs_data, labeled=3, without_target=(1,))
    final = tmp_path / "studies" / "labels" / "final"
    mask = nib.load(final / "p0_T2.nii.gz")
    good = np.asarray(mask.dataobj).astype(np.uint8)
    write(tmp_path / "values.nii.gz", good * 2, mask.affine)
    write(tmp_path / "cut.nii.gz", good[1:], mask.affine)
    moved = nib.load(tmp_path / "studies" / "p5_T2.nii.gz").affine.copy()
    moved[2, 3] += 1.5
    write(tmp_path / "moved.nii.gz", good, moved)
    for image, name in (("p3_T2", "values"), ("p4_T2", "cut"), ("p5_T2", "moved")):
        store.save_label(image, str(tmp_path / f"{name}.nii.gz"), "final", {})
    cases, left_out = collect(store, bundle)
    assert [case.case for case in cases] == ["p0_T2", "p1_T2", "p2_T2"]
    assert [case.target is None for case in cases] == [False, True, False]
    assert np.array_equal(cases[0].mask()[0], good)
    assert left_out.keys() == {"p3_T2", "p4_T2", "p5_T2"}
    assert "label: {2}, expected {0, 1} alone" in left_out["p3_T2"]
    assert "must lie on one grid" in left_out["p4_T2"] and "1.5 mm away" in left_out["p5_T2"]


def test_the_mask_of_another_structure_is_left_out(tmp_path: Path, vs_data: Path, bundle: ServedBundle) -> None:
    store = fill(tmp_path / "studies", vs_data, labeled=2)
    store.update_label_info("p0_T2", "final", {"label_info": [{"name": "whole tumor", "idx": 1}]})
    store.update_label_info("p1_T2", "final", {"label_info": [{"name": "Vestibular Schwannoma", "idx": 1}]})
    cases, left_out = collect(store, bundle)
    assert [case.case for case in cases] == ["p1_T2"]
    assert "is of whole tumor: tissnet_vs learns vestibular schwannoma" in left_out["p0_T2"]


def test_a_segmentation_that_was_not_submitted_here_is_left_out(
    tmp_path: Path, vs_data: Path, bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive lists the series of every segmentation it has, those of other workstations too."""
    store = fill(tmp_path / "studies", vs_data, labeled=1)
    monkeypatch.setattr(store, "get_labeled_images", lambda: ["p0_T2", "p1_T2"])
    cases, left_out = collect(store, bundle)
    assert [case.case for case in cases] == ["p0_T2"] and "was not submitted to this server" in left_out["p1_T2"]


def test_only_submitted_labels_count_and_a_case_counts_once(
    tmp_path: Path, vs_data: Path, bundle: ServedBundle
) -> None:
    store = fill(tmp_path / "studies", vs_data, labeled=1)
    labels = [vs_data / e["label"] for e in json.loads((vs_data / "datalist.json").read_text())["training"]]
    store.save_label("p0_ceT1", str(labels[0]), "final", {})  # the same case again
    store.save_label("p1_T2", str(labels[1]), "original", {})  # the model's
    store.save_label("p2_ceT1", str(labels[2]), "final", {})  # drawn on the target: one grid, the case counts
    cases, left_out = collect(store, bundle)
    assert [case.case for case in cases] == ["p0_T2", "p2_T2"] and not left_out


def test_a_target_on_another_grid_is_not_used(tmp_path: Path, vs_data: Path, bundle: ServedBundle) -> None:
    store = fill(tmp_path / "studies", vs_data, labeled=1)
    target = tmp_path / "studies" / "p0_ceT1.nii.gz"
    image = nib.load(target)
    write(target, np.asarray(image.dataobj)[:-1], image.affine)
    (case,), left_out = collect(store, bundle)
    assert case.target is None and not left_out


def test_too_few_cases_are_refused_and_nothing_is_added(tmp_path: Path, vs_data: Path, bundle: ServedBundle) -> None:
    store = fill(tmp_path / "studies", vs_data, labeled=1)
    for refuse in (TISSNetTrainTask(bundle).check, TISSNetTrainTask(bundle)):
        with pytest.raises(InputError, match=r"1 submitted case\(s\) can be used, expected at least 2"):
            refuse({}, store)
    assert bundle.fine_tuned is not None and versions.listing(bundle.fine_tuned, MODEL) == []


def test_a_training_is_refused_at_once_with_the_reasons_and_reads_no_more_than_it_needs(
    tmp_path: Path, vs_data: Path, bundle: ServedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(tmp_path / "studies", vs_data, labeled=4)
    read = []
    real = submitted.read_mask
    monkeypatch.setattr(submitted, "read_mask", lambda path, name: read.append(path) or real(path, name))
    TISSNetTrainTask(bundle).check({}, store)
    assert len(read) == 2
    for index in (1, 2, 3):
        mask = nib.load(tmp_path / "studies" / "labels" / "final" / f"p{index}_T2.nii.gz")
        write(Path(mask.get_filename()), np.full(mask.shape, 3, np.uint8), mask.affine)
    with pytest.raises(InputError, match=r"1 submitted case\(s\) .* Left out: 'p1_T2', mask values: .*label: \{3\}"):
        TISSNetTrainTask(bundle).check({}, store)


def test_a_missing_sibling_is_a_reason(tmp_path: Path, vs_data: Path, bundle: ServedBundle) -> None:
    store = fill(tmp_path / "studies", vs_data, labeled=2)
    (tmp_path / "studies" / "p0_T2.nii.gz").unlink()
    store.refresh()
    store.save_label("p0_ceT1", str(tmp_path / "studies" / "labels" / "final" / "p1_T2.nii.gz"), "final", {})
    cases, left_out = collect(store, bundle)
    assert [case.case for case in cases] == ["p1_T2"]
    assert "there is no T2 of this case" in left_out["p0_ceT1"]


# the split


def labeled(*names: str) -> list[LabeledCase]:
    return [LabeledCase(name, name.split("-")[0], (), None, Path("none"), "") for name in names]


def test_who_was_in_a_section_stays_there_and_patients_are_not_divided(tmp_path: Path) -> None:
    kept = tmp_path / "split.json"
    names = [f"{patient}-{visit}" for patient in "abcdefghij" for visit in "12"]
    seen: dict[str, str] = {}
    for count in (4, 8, 20, 12):
        parts = split(labeled(*names[:count]), kept, share=0.3)
        assert sorted(case.case for part in parts.values() for case in part) == sorted(names[:count])
        for section, part in parts.items():
            for case in part:
                assert seen.setdefault(case.patient, section) == section
    assert list(seen.values()).count("validation") == 3
    again = split(labeled(*names), kept, share=0.3)
    assert {case.patient for case in again["validation"]} == {p for p, s in seen.items() if s == "validation"}


def test_every_section_has_a_patient_or_the_training_is_refused(tmp_path: Path) -> None:
    parts = split(labeled("a", "b"), tmp_path / "split.json", share=0.9)
    assert [len(part) for part in parts.values()] == [1, 1]
    (trained,) = parts["training"]
    kept = json.loads((tmp_path / "split.json").read_text())
    assert kept[trained.patient] == "training"
    kept["c"] = "training"
    (tmp_path / "split.json").write_text(json.dumps(kept))
    with pytest.raises(InputError, match="validation has none: submit the mask of another patient"):
        split(labeled(trained.case, "c"), tmp_path / "split.json", share=0.5)
    with pytest.raises(InputError, match="expected at least 2"):
        split(labeled("a-1", "a-2"), tmp_path / "other.json", share=0.5)


# options


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_epochs", 0), ("max_epochs", 2.5), ("max_epochs", "many"), ("val_split", 1), ("learning_rate", float("nan"))]
    + [("promote_if_better", "yes"), ("device", "tpu"), ("device", "cuda:99"), ("device", 3)],
)
def test_options_out_of_range_are_refused(bundle: ServedBundle, store: LocalDatastore, option: str, value: Any) -> None:
    for refuse in (TISSNetTrainTask(bundle).check, TISSNetTrainTask(bundle)):
        with pytest.raises(InputError, match=f"{option}.*: expected"):
            refuse({option: value}, store)


def test_what_slicer_shows(bundle: ServedBundle) -> None:
    info = TISSNetTrainTask(bundle).info()
    assert info["config"]["promote_if_better"] is False and info["config"]["max_epochs"] == 20
    assert "T2" in info["description"] and "ceT1" in info["description"]
    assert TISSNetTrainTask(bundle).stats() == {}


def test_a_bundle_without_the_config_is_refused(
    weights: Path, store: LocalDatastore, tmp_path: Path, bundle: ServedBundle
) -> None:
    bundle.folder = tmp_path
    with pytest.raises(InputError, match=r"cannot be fine-tuned: its bundle has no configs/train\.json"):
        TISSNetTrainTask(bundle)({}, store)


# whole trainings


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): versions.sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_fine_tuning_adds_a_version_and_leaves_what_is_served(
    bundle: ServedBundle, store: LocalDatastore, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two epochs on three phantoms, one without its ceT1; then promoted by hand, served, and rolled back."""
    caplog.set_level(logging.INFO)
    released = digests(weights.parent)
    task = TISSNetTrainTask(bundle)
    result = task({"max_epochs": 2, "val_split": 0.34, "learning_rate": 1e-3, "device": "cpu"}, store)
    assert digests(weights.parent) == released
    folder = bundle.fine_tuned
    assert folder is not None and versions.served(folder, MODEL) is None
    (record,) = versions.listing(folder, MODEL)
    assert result["version"] == record["number"] == 1 and result["promoted"] is False
    assert json.loads(json.dumps(result)) == result
    assert record["parent"] == {"version": None, "sha256": versions.sha256(weights)}
    parts = {name: {case["case"]: case for case in record[name]} for name in ("training", "validation")}
    assert len(parts["training"]) == 2 and len(parts["validation"]) == 1
    every = parts["training"] | parts["validation"]
    assert {name: case["has_target"] for name, case in every.items()} == dict(p0_T2=True, p1_T2=False, p2_T2=True)
    assert record["epochs"] == 2 and record["left_out"] == {} and record["demonstration"] is False
    assert "monai.bundle" in record["command"] and any("fine_tune.yaml" in part for part in record["command"])
    assert "epoch 2/2" in caplog.text  # what MONAI Label shows as the task's details
    trained = torch.load(folder / MODEL / "1" / "model.pt", weights_only=True)
    before = torch.load(weights, weights_only=True)
    assert trained.keys() == before.keys() and any(not torch.equal(trained[k], before[k].half()) for k in before)
    # the Dice of the record are those of what is answered
    (case, measured), *_ = parts["validation"].items()
    (run,) = (folder / MODEL / "runs").iterdir()
    truth, _ = read_mask(run / "scans" / case / "label.nii.gz", case)
    for path, name in ((weights, "dice_before"), (folder / MODEL / "1" / "model.pt", "dice_after")):
        served, scans = serve(path, folder.parent / "none"), [Path(store.get_image_uri(case))]
        options = {"case": case, "threshold": 0.5, "overlap": 0.25, "flips": False, "device": "cpu"}
        answer = served.segment(scans, folder.parent / f"answer_{name}", **options)
        assert dice(answer.mask.astype(np.uint8), truth) == pytest.approx(measured[name])
    assert not (run / "checkpoints").exists() and not (run / "candidate").exists()
    assert not (run / "training" / "previews").exists()  # pictures of patients
    assert "the difference may be chance" in result["note"]
    assert (run / "training.log").is_file() and (run / "training" / "config.yaml").is_file()
    stats = task.stats()
    assert stats["version"] == 1 and stats["best_metric"] == record["dice_after"] and stats["served"] is False


@pytest.mark.slow
def test_the_glioma_task_is_fine_tuned_from_the_siblings_of_a_case(glioma_data: Path, tmp_path: Path) -> None:
    """Three sources in the order of the task; the label lies with the last of them; a case without FLAIR."""
    (tmp_path / "coarse.yaml").write_text("pixdim: [4.0, 4.0, 4.0]\n")
    overrides = [BUNDLE / "configs" / "glioma.yaml", DEBUG, tmp_path / "coarse.yaml"]
    torch.manual_seed(0)
    torch.save(TISSNet(3, features=SMALL).state_dict(), tmp_path / "model.pt")
    own = {"weights": tmp_path / "model.pt", "fine_tuned": tmp_path / "versions"}
    bundle = ServedBundle("tissnet_glioma", BUNDLE, overrides=overrides, **own)
    studies = tmp_path / "studies"
    studies.mkdir()
    cases = json.loads((glioma_data / "datalist.json").read_text())["training"][:2]
    for index, entry in enumerate(cases):
        files = dict(zip(("T1", "ceT1", "T2", "FLAIR"), [*entry["image"], entry["target"]], strict=True))
        for modality, file in files.items():
            if (index, modality) != (1, "FLAIR"):
                shutil.copy(glioma_data / file, studies / f"g{index}_{modality}.nii.gz")
    store = LocalDatastore(str(studies), extensions=EXTENSIONS)
    for index, entry in enumerate(cases):
        store.save_label(f"g{index}_T2", str(glioma_data / entry["label"]), "final", {})
    found, left_out = collect(store, bundle)
    assert [[file.name for file in case.images] for case in found] == [
        [f"g{index}_{modality}.nii.gz" for modality in ("T1", "ceT1", "T2")] for index in (0, 1)
    ]
    assert found[0].target == studies / "g0_FLAIR.nii.gz" and found[1].target is None and not left_out
    result = TISSNetTrainTask(bundle)({"max_epochs": 1, "device": "cpu"}, store)
    assert result["version"] == 1 and len(result["training"]) == len(result["validation"]) == 1
    command = versions.record_of(tmp_path / "versions", "tissnet_glioma", 1)["command"]
    assert command[command.index("--weights#perceptibility") + 1] == "0"  # no perceptor beside these weights


def test_a_better_one_is_promoted_where_asked_and_a_worse_one_is_not(
    bundle: ServedBundle, store: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training and the measuring are replaced by their results, to know them; the rest is real."""
    folder = bundle.fine_tuned
    assert folder is not None
    dices = {"served": 0.5, "new": 0.6}

    def made(self: TISSNetTrainTask, run: Path, localizer: Path | None) -> ServedBundle:
        seed = int(dices["new"] * 100)
        torch.manual_seed(seed)
        (run / "candidate").mkdir()
        torch.save(TISSNet(1, features=SMALL).state_dict(), run / "candidate" / "model.pt")
        return serve(run / "candidate" / "model.pt", folder)

    monkeypatch.setattr(train, "_run", lambda *arguments: None)
    monkeypatch.setattr(TISSNetTrainTask, "_candidate", made)
    monkeypatch.setattr(
        train, "_measure", lambda bundle, cases, entries, device, name: {case.case: dices[name] for case in cases}
    )
    task = TISSNetTrainTask(bundle)
    first = task({"promote_if_better": True}, store)
    assert first["promoted"] and versions.served_number(folder, MODEL) == 1
    bundle.refresh()
    assert bundle.weights == folder / MODEL / "1" / "model.pt"
    dices |= {"served": 0.6, "new": 0.55}
    second = task({"promote_if_better": True}, store)
    assert not second["promoted"] and "not better" in second["note"]
    assert versions.served_number(folder, MODEL) == 1
    assert versions.record_of(folder, MODEL, 2)["parent"]["version"] == 1
    dices |= {"new": 0.7}
    third = task({}, store)
    assert not third["promoted"] and versions.served_number(folder, MODEL) == 1
    assert task.stats()["version"] == 3


def test_a_failed_training_says_why_and_adds_nothing(
    bundle: ServedBundle, store: LocalDatastore, weights: Path
) -> None:
    torch.save({}, weights.parent / "perceptor" / "perceptor.pt")
    with pytest.raises(
        RuntimeError, match=r"monai\.bundle ended with status 1, see .*\n(.*\n)*ValueError: .* does not hold"
    ):
        TISSNetTrainTask(bundle)({"max_epochs": 1}, store)
    folder = bundle.fine_tuned
    assert folder is not None and versions.listing(folder, MODEL) == [] and versions.served(folder, MODEL) is None


SCRIPT = """
import logging, sys
from pathlib import Path
from monailabel.datastore.local import LocalDatastore
from monailabel_app.bundle import ServedBundle
from monailabel_app.tasks.train import TISSNetTrainTask

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
bundle, debug, weights, fine_tuned, studies = map(Path, sys.argv[1:])
served = ServedBundle("tissnet_vs", bundle, overrides=[debug], weights=weights, fine_tuned=fine_tuned)
store = LocalDatastore(str(studies), extensions=("*.nii.gz",))
TISSNetTrainTask(served)({"max_epochs": 500}, store)
"""


@pytest.mark.slow  # the same through a server: test_client.py
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_training_ends_with_its_children_and_leaves_what_is_served(
    number: signal.Signals, bundle: ServedBundle, store: LocalDatastore, weights: Path, tmp_path: Path
) -> None:
    folder = bundle.fine_tuned
    assert folder is not None
    released = digests(weights.parent)
    arguments = [BUNDLE, DEBUG, weights, folder, tmp_path / "studies"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        seen = []
        while "epoch 2/500" not in (seen or [""])[-1] and (line := process.stdout.readline()):
            seen.append(line)
        assert "epoch 2/500" in seen[-1], "".join(seen[-20:])
        with pytest.raises(Busy, match="is running"):
            TISSNetTrainTask(bundle)({}, store)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(number)
        process.communicate(timeout=SECONDS)
        assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        assert psutil.wait_procs(children, timeout=10)[1] == []
    finally:
        process.kill()
        process.wait()
    assert digests(weights.parent) == released
    assert versions.served(folder, MODEL) is None and versions.listing(folder, MODEL) == []
    bundle.refresh()
    assert bundle.weights == weights
    train._remove_leftovers(folder / MODEL / "runs")
    (run,) = (folder / MODEL / "runs").iterdir()
    assert not (run / "checkpoints").exists()
