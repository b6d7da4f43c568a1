"""Ignite handlers: what a run leaves behind to look at. Previews, per_case.csv, the report of an inference."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents

from scripts.data.datalist import TASKS
from scripts.data.modality import modality_notes
from scripts.evaluation.metrics import detection_metrics, segmentation_metrics, synthesis_metrics
from scripts.evaluation.per_case import read_per_case, write_per_case
from scripts.files import whole_file
from scripts.inference.cohort import Cohort
from scripts.loading import NOTES, LoadScansd
from scripts.networks.tissnet import COARSE, ERROR, PERCEPTOR, PRED, SYNTHETIC, outputs_of
from scripts.networks.unet2d5 import BACKGROUND
from scripts.pictures import case_figure, overlay_figure, read_volume
from scripts.weights import load_weights

logger = logging.getLogger(__name__)

THRESHOLD = 0.5
MASKS = {"y_f": PRED, "y_c": COARSE, "y_r": "y_r", "mean": "mean"}  # per_case.csv's name: postprocessing's
FILES = (PRED, SYNTHETIC, ERROR)  # what is written, of the outputs that there are


class _CaseHandler:
    """Times every case and calls `case(engine, batch, output, seconds)` with its decollated entries."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._cases)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def started(self, engine: Engine) -> None:
        """Called before the first case."""

    def case(self, engine: Engine, batch: Mapping[str, Any], output: Mapping[str, Any], seconds: float) -> None:
        """Called for every case."""
        raise NotImplementedError

    def completed(self, engine: Engine) -> None:
        """Called after the last case."""

    def _start(self, engine: Engine) -> None:
        self._begin = time.perf_counter()

    def _stop(self, engine: Engine) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._begin

    def _cases(self, engine: Engine) -> None:
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            self.case(engine, batch, output, self._seconds / len(state.batch))


class EvaluationHandler(_CaseHandler):
    """Writes per_case.csv and predictions.json, which the report reads.

    Dice, ASSD, HD95 and volumes are computed on the scan's own grid, for every mask that the method has: y_f, y_c, y_r,
    the mean of y_f and y_r. PSNR and SSIM of a synthetic image are computed on the working grid, where images lie in
    [-1, 1]; perceptibility as Dice, ASSD and HD95 of S_p's mask of it. Both files are rewritten after every case, so
    nothing is lost; what they hold of the other protocol is kept.

    Args:
        output_dir: where to write.
        protocol: "full_scan" or "paper_crop", written into the rows.

    Expects from postprocessing: `working` (the inferer's prediction on the working grid), the masks `pred` (y_f),
    `coarse` (y_c), `y_r` and `mean`, and `perceptor`, a probability, where there are such outputs; from the data
    `target` and `label` on the working grid, `original_label`, `case`, and the files `files_image`, `files_target`,
    `files_label`.
    """

    def __init__(self, output_dir: str, *, protocol: str = "full_scan") -> None:
        self.output_dir = Path(output_dir)
        self.protocol = protocol
        self.rows: list[dict[str, Any]] = []
        self.files: list[dict[str, Any]] = []

    def started(self, engine: Engine) -> None:
        table, files = self.output_dir / "per_case.csv", self.output_dir / "predictions.json"
        rows = read_per_case(table) if table.is_file() else []
        entries = json.loads(files.read_text(encoding="utf-8")) if files.is_file() else []
        self.rows = [row for row in rows if row["protocol"] != self.protocol]
        self.files = [entry for entry in entries if entry["protocol"] != self.protocol]

    def case(self, engine: Engine, batch: Mapping[str, Any], output: Mapping[str, Any], seconds: float) -> None:
        truth_image = batch["original_label"]
        truth = _array(truth_image)
        spacing = _spacing(truth_image)
        shared: dict[str, Any] = {"case": batch["case"], "protocol": self.protocol, "seconds": seconds}
        working = outputs_of(output["working"])
        if SYNTHETIC in working:
            truth_on_grid = _array(batch["label"]) > THRESHOLD
            shared |= synthesis_metrics(_array(working[SYNTHETIC]), _array(batch["target"]), truth_on_grid)
            evaluator: Any = engine
            if getattr(evaluator.inferer, "localized", False):  # elsewhere there is no synthetic image
                shared |= {"psnr_global": math.nan, "ssim_global": math.nan}
        if ERROR in working and COARSE in working:
            inside = [_array(batch["image"], channel) > BACKGROUND for channel in range(len(batch["image"]))]
            shared |= detection_metrics(
                _array(working[ERROR]),
                _array(working[PRED]),
                _array(batch["label"]) > THRESHOLD,
                np.any(inside, axis=0),
                spacing=_spacing(batch["label"]),
            )
        if PERCEPTOR in output:
            perceived = _array(output[PERCEPTOR]) >= THRESHOLD
            for name, value in segmentation_metrics(perceived, truth, spacing=spacing).items():
                if not name.startswith("volume"):
                    shared[f"perceptibility_{name}"] = value
        masks = {name: output[key] for name, key in MASKS.items() if key in output}
        for name, mask in masks.items():
            metrics = segmentation_metrics(_array(mask) > THRESHOLD, truth, spacing=spacing)
            self.rows.append({**shared, "prediction": name, **metrics})
        self.files.append(
            {
                "case": batch["case"],
                "protocol": self.protocol,
                "image": list(batch["files_image"]),
                "target": batch["files_target"],
                "label": batch["files_label"],
                **{name: _saved(output, name) for name in FILES},
            }
        )
        write_per_case(self.output_dir / "per_case.csv", self.rows)
        with whole_file(self.output_dir / "predictions.json") as partial:
            partial.write_text(json.dumps(self.files, indent=1) + "\n", encoding="utf-8")
        logger.info("%s: Dice of y_f %.3f, %.1f s", batch["case"], self.rows[-len(masks)]["dice"], seconds)

    def completed(self, engine: Engine) -> None:
        dice = [row["dice"] for row in self.rows if (row["protocol"], row["prediction"]) == (self.protocol, "y_f")]
        logger.info(
            "%d cases, Dice of y_f %.3f +- %.3f; table and figures: python -m scripts.report %s --output %s/report",
            len(dice),
            np.mean(dice),
            np.std(dice, ddof=1) if len(dice) > 1 else 0.0,
            self.output_dir,
            self.output_dir,
        )


class InferenceHandler(_CaseHandler):
    """Draws an overlay picture beside each case's saved mask, then records what was found: the case is complete.

    The record has the mask's volume, that of the small parts that were removed, where the network looked, and notes on
    scans that do not look like what they were given as; those stand in the log too.

    Args:
        cohort: the evaluator's loader, which keeps the records and writes volumes.csv (mm3 per case).
        task: a name in `data.datalist.TASKS`, whose source modalities the scans were given as.
    """

    def __init__(self, cohort: Cohort, *, task: str) -> None:
        self.cohort = cohort
        self.sources = TASKS[task].image
        self.load = LoadScansd("image")

    def started(self, engine: Engine) -> None:
        evaluator: Any = engine
        if hasattr(evaluator.inferer, "prepare"):
            evaluator.inferer.prepare(evaluator.network, evaluator.state.device)

    def case(self, engine: Engine, batch: Mapping[str, Any], output: Mapping[str, Any], seconds: float) -> None:
        evaluator: Any = engine
        pred = Path(str(_saved(output, PRED)))
        name = batch.get("case") or pred.name.removesuffix(".nii.gz").removesuffix("_pred")
        voxels = int(_array(output[PRED]).sum())
        voxel = float(np.prod(_spacing(output[PRED])))
        volume, removed = voxels * voxel, (int(_array(output["with_small_parts"]).sum()) - voxels) * voxel
        files = {key: Path(file) for key in FILES if (file := _saved(output, key))}
        found = f"{volume:.1f} mm3" if voxels else "no tumor found"
        found += f" ({removed:.1f} mm3 in small parts removed)" if removed else ""
        files_image = batch["files_image"]
        source, spacing = read_volume(files_image if isinstance(files_image, str) else files_image[-1])
        files["overlay"] = pred.parent / f"{name}_overlay.png"
        overlay_figure(
            files["overlay"],
            source=source,
            prediction=read_volume(pred)[0],
            error=read_volume(files[ERROR])[0] if ERROR in files else None,
            spacing=spacing,
            title=f"{name}: {found}",
        )
        volumes = {
            "volume_mm3": f"{volume:.1f}",
            "voxels": voxels,
            "removed_mm3": f"{removed:.1f}",
            "looked_at": getattr(evaluator.inferer, "looked_at", "the whole scan"),
            "seconds": f"{seconds:.1f}",
            "notes": " ".join(self._notes(str(name), files_image)),
        }
        self.cohort.done(found, volumes, files=files)

    def _notes(self, case: str, files: str | Sequence[str]) -> list[str]:
        """What the reader and `data.modality` say of the scans as given, read again: what was loaded is normalized."""
        image = self.load({"image": files, "case": case})["image"]
        spacing = _spacing(image)
        notes = modality_notes({name: (_array(image, n), spacing) for n, name in enumerate(self.sources)})
        for note in notes:
            logger.warning("%s: %s", case, note)
        return [*image.meta.get(NOTES, ()), *notes]


class WeightsLoader:
    """Loads a network's weights, strictly, when the engine starts; see `load_weights` for its errors.

    Args:
        network: what to load into, wherever it lies.
        path: its state dict, a run's best.pt or a released model.pt.
    """

    def __init__(self, network: torch.nn.Module, *, path: str) -> None:
        self.network = network
        self.path = path

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, engine: Engine) -> None:
        load_weights(self.network, path=self.path)
        logger.info("weights: %s", self.path)


class PreviewHandler:
    """Draws the validator's first case every time it runs: previews/epoch_0042.png, with its Dice in the title.

    Args:
        output_dir: where to write.

    Expects `image`, `target` and `label` on the working grid, `pred` (mask) and, if the method has them, `synthetic`
    and `error`.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        state: Any = engine.state
        if state.iteration > 1:
            return
        batch, output = state.batch[0], state.output[0]
        truth, mask = _array(batch["label"]) > THRESHOLD, _array(output[PRED]) > THRESHOLD
        spacing = _spacing(batch["image"])
        dice = segmentation_metrics(mask, truth, spacing=spacing)["dice"]
        case_figure(
            self.output_dir / f"epoch_{state.epoch:04d}.png",
            source=_array(batch["image"], -1),
            synthetic=_array(output[SYNTHETIC]) if SYNTHETIC in output else None,
            target=_array(batch["target"]),
            truth=truth,
            prediction=mask,
            error=_array(output[ERROR]) if ERROR in output else None,
            spacing=spacing,
            title=f"{batch['case']}, epoch {state.epoch}: Dice {dice:.3f}",
        )


def _array(image: Any, channel: int = 0) -> np.ndarray:
    return torch.as_tensor(image).as_subclass(torch.Tensor)[channel].detach().cpu().float().numpy()


def _spacing(image: MetaTensor) -> tuple[float, ...]:
    return tuple(float(size) for size in image.pixdim)


def _saved(output: Mapping[str, Any], name: str) -> str | None:
    """The file that SaveImaged wrote for an output, None where the method has no such output."""
    return str(Path(output[name].meta["saved_to"]).resolve()) if name in output else None
