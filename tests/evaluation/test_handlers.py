"""Tests of scripts.evaluation.handlers: what they write for cases with a known answer, by a made evaluator on files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.image import imread
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted, Compose, CopyItemsd, LoadImaged, RemoveSmallObjectsd, SaveImaged
from torch import Tensor, nn

from scripts.data.modality import modality_notes
from scripts.data.phantom.make import make_phantom
from scripts.evaluation.handlers import (
    EvaluationHandler,
    InferenceHandler,
    PreviewHandler,
    WeightsLoader,
)
from scripts.evaluation.per_case import PREDICTIONS, read_per_case
from scripts.inference.cohort import Cohort
from scripts.networks.tissnet import PERCEPTOR, TISSNet, name_outputs
from scripts.training.dataset import PrepareInputs
from scripts.transforms import AddRefinedd, NameByCased, SplitPredictiond

SHAPE, SPACING = (20, 18, 12), (1.0, 1.0, 2.0)
TUMOR = (slice(6, 12), slice(5, 11), slice(3, 8))
TUMOR_VOXELS, TUMOR_MM3 = 180, 360.0
SHOWN, DARK = 0.6, -0.8  # of the source image where the network finds tumor, and elsewhere
SHIFT = 0.1  # from the synthetic image to the real target
PSNR = 10 * math.log10(4 / SHIFT**2)
PSNR_ATOL = 1e-3
MASK = ("pred",)
CASES = {"found": (True, True), "missed": (True, False), "healthy": (False, False)}  # (tumor, shown in the source)


class Network(nn.Module):
    """Finds what is bright: y_f 0.95 there and 0.05 elsewhere, x_t_syn the source itself, y_c 0.9 and y_e 1 throughout.

    So y_c marks everything, y_r is 0.1, an empty mask, and the mean of both is 0.525 in the tumor. S_p's mask is
    everything but the tumor.
    """

    def __init__(self, outputs: Sequence[str] = TISSNet.outputs) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x_s: Tensor) -> Tensor:
        bright = (x_s > 0).float()
        computed = {
            "pred": 0.05 + 0.9 * bright,
            "synthetic": x_s,
            "coarse": 0.9 + 0 * x_s,
            "error": 1 + 0 * x_s,
            "perceptor": 1 - bright,
        }
        return name_outputs(torch.cat([computed[name] for name in self.outputs], dim=1), self.outputs)


def write_case(folder: Path, name: str) -> dict[str, Any]:
    tumor, shown = CASES[name]
    label = np.zeros(SHAPE, np.uint8)
    label[TUMOR] = tumor
    image = np.full(SHAPE, DARK, np.float32)
    image[TUMOR] = SHOWN if shown else DARK
    image[0, 0, 0] = -1  # not constant, so that it can be drawn
    affine = np.diag([*SPACING, 1.0])
    files = {key: folder / f"{name}_{key}.nii.gz" for key in ("T2", "ceT1", "label")}
    for file, array in zip(files.values(), (image, image + np.float32(SHIFT), label), strict=True):
        nib.save(nib.Nifti1Image(array, affine), file)
    return {"case": name, "image": [str(files["T2"])], "target": str(files["ceT1"]), "label": str(files["label"])}


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "data").mkdir()
    return [write_case(tmp_path / "data", name) for name in CASES]


def evaluator(
    data: list[dict[str, Any]],
    output: Path,
    handler: Any = None,
    *,
    outputs: Sequence[str] = TISSNet.outputs,
    truth: bool = True,
    smallest_mm3: float = 0.0,
    inferer: Callable = lambda inputs, network: network(inputs),
) -> SupervisedEvaluator:
    """The evaluator of evaluate.json (or, without truth, of inference.json with its handler) without resampling."""
    keys = ["image", "target", "label"] if truth else ["image"]
    copies = ["files_image", "files_target", "files_label", "original_label"]
    before = CopyItemsd([*keys, "label"], names=copies) if truth else CopyItemsd("image", names="files_image")
    loaded = [*keys, "original_label"] if truth else keys
    saved = [name for name in ("pred", "synthetic", "error") if name in outputs]
    postprocessing = [
        CopyItemsd("pred", names="working"),
        SplitPredictiond("pred"),
        NameByCased(saved),
        AddRefinedd(),
        AsDiscreted(["pred", "coarse", "y_r", "mean"], threshold=0.5, allow_missing_keys=True),
        CopyItemsd("pred", names="with_small_parts"),
        RemoveSmallObjectsd("pred", min_size=smallest_mm3, by_measure=True),  # type: ignore[arg-type]
    ]
    for name in saved:
        postprocessing.append(
            SaveImaged(
                name,
                output_dir=str(output / "predictions"),
                output_postfix=name,
                resample=False,
                savepath_in_metadict=True,
                print_log=False,
            )
        )
    dataset = Dataset(data, Compose([before, LoadImaged(loaded, ensure_channel_first=True)]))
    loader: Any = DataLoader(dataset, batch_size=1, num_workers=0)
    if not truth:
        loader = Cohort(dataset, output_dir=str(output), weights=[])
        handler = InferenceHandler(loader, task="vs")
    return SupervisedEvaluator(
        torch.device("cpu"),
        loader,
        Network(outputs),
        prepare_batch=PrepareInputs(["image"]),
        inferer=inferer,
        postprocessing=Compose(postprocessing),
        val_handlers=[handler],
    )


def evaluate(data: list[dict[str, Any]], output: Path, **kwargs: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Runs an evaluation and reads its table, by case, protocol and prediction."""
    protocol = kwargs.pop("protocol", "full_scan")
    evaluator(data, output, EvaluationHandler(str(output), protocol=protocol), **kwargs).run()
    rows = read_per_case(output / "per_case.csv")
    return {(row["case"], row["protocol"], row["prediction"]): row for row in rows}


# evaluation


def test_table_of_a_found_a_missed_and_no_tumor(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    rows = evaluate(entries, tmp_path / "run")
    assert list(rows) == [(case, "full_scan", prediction) for case in CASES for prediction in PREDICTIONS]
    found, missed, healthy = (rows[case, "full_scan", "y_f"] for case in CASES)
    assert (found["dice"], found["assd_mm"], found["hd95_mm"]) == (1, 0, 0)
    assert found["volume_mm3"] == found["volume_truth_mm3"] == TUMOR_MM3
    assert (missed["dice"], missed["volume_mm3"], missed["volume_truth_mm3"]) == (0, 0, TUMOR_MM3)
    assert (healthy["dice"], healthy["volume_mm3"], healthy["volume_truth_mm3"]) == (1, 0, 0)
    for row in (missed, healthy):
        assert math.isnan(row["assd_mm"]) and math.isnan(row["hd95_mm"])
    for row in rows.values():
        assert row["psnr_global"] == pytest.approx(PSNR, abs=PSNR_ATOL)
        assert row["seconds"] >= 0
        assert math.isnan(row["perceptibility_dice"])
    assert found["psnr_local"] == pytest.approx(PSNR, abs=PSNR_ATOL)
    assert math.isnan(healthy["psnr_local"]) and math.isnan(healthy["ssim_local"])


def test_the_predictions_are_fine_coarse_refined_and_mean(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    rows = evaluate(entries[:1], tmp_path)
    assert {key[2]: row["dice"] for key, row in rows.items()} == {
        "y_f": 1,
        "y_c": pytest.approx(2 * TUMOR_VOXELS / (TUMOR_VOXELS + math.prod(SHAPE))),
        "y_r": 0,
        "mean": 1,
    }
    assert len({row["psnr_global"] for row in rows.values()}) == 1


def test_perceptibility_is_of_the_perceptors_mask(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    row = evaluate(entries[:1], tmp_path, outputs=(*TISSNet.outputs, PERCEPTOR))["found", "full_scan", "y_f"]
    voxels = math.prod(SHAPE)
    assert row["dice"] == 1
    assert row["perceptibility_dice"] == 0
    assert row["perceptibility_assd_mm"] > 0 and row["perceptibility_hd95_mm"] > 0
    assert row["volume_mm3"] == TUMOR_MM3 < voxels  # volumes are of y_f, not of S_p


def test_a_plain_segmentor_has_one_row_a_case_and_no_image_metrics(
    tmp_path: Path, entries: list[dict[str, Any]]
) -> None:
    rows = evaluate(entries[:1], tmp_path, outputs=MASK)
    assert list(rows) == [("found", "full_scan", "y_f")]
    row = rows["found", "full_scan", "y_f"]
    assert row["dice"] == 1 and math.isnan(row["psnr_global"]) and math.isnan(row["ssim_global"])
    (entry,) = json.loads((tmp_path / "predictions.json").read_text())
    assert entry["synthetic"] is None and entry["error"] is None and Path(entry["pred"]).is_file()


def test_predictions_json_names_every_file(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    evaluate(entries, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert [entry["case"] for entry in written] == list(CASES)
    for entry, given in zip(written, entries, strict=True):
        assert entry["protocol"] == "full_scan"
        assert {key: entry[key] for key in ("image", "target", "label")} == {
            key: given[key] for key in ("image", "target", "label")
        }
        folder = (tmp_path / "run" / "predictions" / given["case"]).resolve()
        for name in ("pred", "synthetic", "error"):
            assert entry[name] == str(folder / f"{given['case']}_{name}.nii.gz")
            assert Path(entry[name]).is_file()
    mask = np.asarray(nib.load(written[0]["pred"]).dataobj)  # type: ignore[attr-defined]
    assert mask.sum() == TUMOR_VOXELS and mask[TUMOR].all()


def test_the_other_protocols_rows_are_kept_and_its_own_replaced(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    evaluate(entries[:1], tmp_path, outputs=MASK, protocol="paper_crop")
    evaluate(entries, tmp_path, outputs=MASK)
    rows = evaluate(entries[1:2], tmp_path, outputs=MASK)
    assert set(rows) == {("found", "paper_crop", "y_f"), ("missed", "full_scan", "y_f")}
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert {(entry["case"], entry["protocol"]) for entry in written} == {key[:2] for key in rows}


def test_both_files_are_complete_after_every_case(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    broken = [entries[0], {**entries[1], "label": str(tmp_path / "gone.nii.gz")}]
    with pytest.raises(Exception, match="applying transform"):
        evaluate(broken, tmp_path / "run", outputs=MASK)
    assert [row["case"] for row in read_per_case(tmp_path / "run" / "per_case.csv")] == ["found"]
    assert len(json.loads((tmp_path / "run" / "predictions.json").read_text())) == 1
    assert not [path for path in (tmp_path / "run").iterdir() if "partial" in path.name]


def test_the_summary_is_of_y_f(tmp_path: Path, entries: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="scripts.evaluation.handlers"):
        evaluate(entries, tmp_path)
    (summary,) = [message for message in caplog.messages if "3 cases" in message]  # other loggers may speak after it
    assert "Dice of y_f 0.667 +- 0.577" in summary
    assert str(tmp_path) in summary


# inference


def volumes(output: Path) -> Iterator[dict[str, str]]:
    with (output / "volumes.csv").open(newline="") as file:
        yield from csv.DictReader(file)


def test_a_scan_of_another_modality_is_noted_in_the_table_and_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phantom = make_phantom(0)
    data = []
    for name, image in phantom.images.items():
        file = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.float32), phantom.affine), file)
        data.append({"case": f"{name}_as_T2", "image": str(file)})
    evaluator(data, tmp_path / "out", truth=False).run()
    notes = {row["case"]: row["notes"] for row in volumes(tmp_path / "out")}
    said = modality_notes({"T2": (phantom.images["ceT1"].astype(np.float32), (0.41, 0.41, 1.5))})
    assert notes == {"T2_as_T2": "", "ceT1_as_T2": said[0]} and "given as T2 does not look like a T2 scan" in said[0]
    assert f"ceT1_as_T2: {said[0]}" in caplog.messages


def test_volumes_and_overlays_with_and_without_tumor(
    tmp_path: Path, entries: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    data = [{"case": entry["case"], "image": entry["image"]} for entry in (entries[0], entries[2])]
    with caplog.at_level("INFO", logger="scripts.inference.cohort"):
        evaluator(data, tmp_path, truth=False).run()
    found, healthy = volumes(tmp_path)
    assert (found["case"], found["volume_mm3"], found["voxels"]) == ("found", f"{TUMOR_MM3}", f"{TUMOR_VOXELS}")
    assert (healthy["case"], healthy["volume_mm3"], healthy["voxels"]) == ("healthy", "0.0", "0")
    for row in (found, healthy):
        assert float(row["seconds"]) >= 0
        folder = tmp_path / "predictions" / row["case"]
        for name in ("pred", "synthetic", "error"):
            assert row[name] == str((folder / f"{row['case']}_{name}.nii.gz").resolve())
    green = [
        int(
            (np.abs(imread(tmp_path / "predictions" / name / f"{name}_overlay.png")[..., :3] - (0, 1, 0)) < 0.25)
            .all(-1)
            .sum()
        )
        for name in ("found", "healthy")
    ]
    assert green[0] > 10 * green[1] > 0  # both legends have a green line, only one picture has contours
    messages = [record.message for record in caplog.records if record.name == "scripts.inference.cohort"]
    assert [message.split(",")[0] for message in messages] == ["found: 360.0 mm3", "healthy: no tumor found"]


def test_what_was_removed_and_where_was_looked_is_told(
    tmp_path: Path, entries: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    class Inferer:
        looked_at = "3 regions"

        def prepare(self, network: torch.nn.Module, device: torch.device) -> None:
            caplog.records.clear()  # before the first case

        def __call__(self, inputs: Tensor, network: torch.nn.Module) -> Tensor:
            return network(inputs)

    data = [{"case": entries[0]["case"], "image": entries[0]["image"]}]
    with caplog.at_level("INFO", logger="scripts.inference.cohort"):
        evaluator(data, tmp_path, truth=False, smallest_mm3=TUMOR_MM3 + 1, inferer=Inferer()).run()
    (row,) = volumes(tmp_path)
    assert (row["volume_mm3"], row["removed_mm3"], row["looked_at"]) == ("0.0", f"{TUMOR_MM3}", "3 regions")
    message, *_ = [record.message for record in caplog.records if record.name == "scripts.inference.cohort"]
    assert message.startswith(f"found: no tumor found ({TUMOR_MM3} mm3 in small parts removed), ")


def test_global_image_metrics_are_missing_where_the_cascade_did_not_look(
    tmp_path: Path, entries: list[dict[str, Any]]
) -> None:
    def localized(inputs: Tensor, network: torch.nn.Module) -> Tensor:
        return network(inputs)

    localized.localized = True  # type: ignore[attr-defined]
    row = evaluate(entries[:1], tmp_path, inferer=localized)["found", "full_scan", "y_f"]
    assert math.isnan(row["psnr_global"]) and math.isnan(row["ssim_global"]) and row["psnr_local"] > 0


def test_a_case_is_complete_when_all_its_files_are_written(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    data = [{"case": entry["case"], "image": entry["image"]} for entry in entries[:1]]
    evaluator(data, tmp_path, truth=False).run()
    record = tmp_path / "found" / "found_result.json"
    files = json.loads(record.read_text())["files"]
    folder = "predictions/found/found"
    assert files == {
        "pred": f"{folder}_pred.nii.gz",
        "synthetic": f"{folder}_synthetic.nii.gz",
        "error": f"{folder}_error.nii.gz",
        "overlay": f"{folder}_overlay.png",
    }
    assert all((tmp_path / name).stat().st_mtime_ns <= record.stat().st_mtime_ns for name in files.values())


def test_a_case_without_id_is_named_by_its_file(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    data = [{"image": entries[0]["image"]}]
    evaluator(data, tmp_path, outputs=MASK, truth=False).run()
    (row,) = volumes(tmp_path)
    assert (row["case"], row["voxels"]) == ("found_T2", f"{TUMOR_VOXELS}")
    assert row["synthetic"] == row["error"] == ""
    assert (tmp_path / "predictions" / "found_T2" / "found_T2_overlay.png").is_file()


# previews


@pytest.mark.parametrize("outputs", [MASK, TISSNet.outputs])
def test_one_preview_for_each_validation(tmp_path: Path, entries: list[dict[str, Any]], outputs: Sequence[str]) -> None:
    keys = ["image", "target", "label"]
    validator = SupervisedEvaluator(
        torch.device("cpu"),
        DataLoader(Dataset(entries[:2], LoadImaged(keys, ensure_channel_first=True)), batch_size=1),
        Network(outputs),
        prepare_batch=PrepareInputs(["image"]),
        inferer=lambda inputs, network: network(inputs),
        postprocessing=Compose([SplitPredictiond("pred"), AsDiscreted("pred", threshold=0.5)]),
        val_handlers=[PreviewHandler(str(tmp_path / "previews"))],
    )
    for epoch in (5, 10):
        validator.run(epoch)
    pictures = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert pictures == ["epoch_0005.png", "epoch_0010.png"]
    assert imread(tmp_path / "previews" / "epoch_0005.png").std() > 0


def test_weights_are_loaded_when_the_engine_starts(tmp_path: Path) -> None:
    source, network = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    engine = Engine(lambda e, b: None)
    WeightsLoader(network, path=str(tmp_path / "model.pt")).attach(engine)
    assert not torch.equal(source.weight, network.weight)
    engine.run([0], max_epochs=1)
    assert torch.equal(source.weight, network.weight)
