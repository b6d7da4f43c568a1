"""A bundle as the app serves it: loaded once, weights checked, one case at a time from files to mask and maps."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from pydantic import BaseModel, BeforeValidator, ValidationError

from monailabel_app import versions
from monailabel_app.errors import InputError, sentence_of
from monailabel_app.reader import CODE, use_code

logger = logging.getLogger(__name__)

APP = Path(__file__).resolve().parent
HEAD = -0.8  # of the bundle's normalized images, -1 to 1: above, it is no noise of the air
BOTH_SIDES_MM = 100.0  # a head is wider; less of it is a scan of one side
CUT_OFF = 0.05  # of its largest sagittal section: a head that has more in an outermost plane goes on beyond it
LOOKED_AT = 128  # planes along each axis that suffice to find the middle
OUTPUTS = ("pred", "synthetic", "error")
DEMONSTRATION = (
    "DEMONSTRATION WEIGHTS, trained on computer-made phantoms and on no patient: the result says nothing about "
    "patients."
)
NAMES = ("tissnet_vs", "tissnet_glioma")
MONAI_LABEL_CONF = ("server_mode",)  # options that its base class reads
# The repository's bundle as the glioma one; a released glioma bundle needs none of this.
GLIOMA_OVERRIDES = ("configs/glioma.yaml", "configs/glioma_2mm.yaml")
GLIOMA_METADATA = "configs/metadata_glioma.yaml"
GLIOMA_MODELS = "models/glioma"


def _comma_list(value: str) -> list[str]:
    return [part.strip() for part in value.split(",")]


class Conf(BaseModel):
    """The server's options, MONAI Label's `--conf NAME VALUE`.

    Attributes:
        models: with commas, tissnet_vs, tissnet_glioma and folders of released bundles.
        bundle: folder of the repository's bundle.
        weights_glioma: other weights for tissnet_glioma.
        allow_demo_weights: whether demonstration weights are served.
        versions: folder of fine-tuned weights.
    """

    models: Annotated[list[str], BeforeValidator(_comma_list)] = [NAMES[0]]
    bundle: Path = APP.parent / "bundle"
    weights_glioma: Path | None = None
    allow_demo_weights: bool = False
    versions: Path = APP / "model"


@dataclass
class Segmentation:
    """What the bundle found in one case; the mask is (X, Y, Z) on the scan's own grid, in its file's order of axes.

    `middle_mm` is the head's middle between left and right, x in RAS millimeters, None if not both are seen.
    `confidence` is the mean probability inside the mask, of an empty one that of the background where it is lowest; not
    calibrated. `disagreement` is 1 - Dice of y_f and y_r, small parts included, 0 where both are empty;
    `error_mass_mm3` the integral of the error map; both are None for a network without one. `version` and `sha256`
    are those of the weights that computed it. `files` holds the saved volumes by name, those that there are: pred
    (uint8), synthetic (float32, 0 to 1000), error (float32, 0 to 1).
    """

    mask: np.ndarray
    affine: np.ndarray
    middle_mm: float | None
    files: dict[str, Path]
    confidence: float
    disagreement: float | None
    error_mass_mm3: float | None
    device: str
    seconds: float
    version: str
    sha256: str
    notes: list[str] = field(default_factory=list)


class ServedBundle:
    """One model of the app: a bundle's inference.json, its weights and, loaded with them, its network and inferer.

    Args:
        name: the model's name in the app.
        folder: the bundle's root.
        overrides: further configs over inference.json, such as the glioma task's.
        metadata: further metadata over configs/metadata.json, such as the glioma task's.
        models: folder of the released weights, which the metadata call models/.
        weights: other weights, a state dict; models/model.pt where left out.
        fine_tuned: folder of fine-tuned weights, see `versions.py`; None where only released ones are served.

    Raises:
        FileNotFoundError: the bundle has no config or no weights there.
        ValueError: the weights are not those that the bundle's metadata name, or another network's; or the bundle's
            code is not that of the bundles served already.
    """

    _running = threading.RLock()  # of all models: there is one processor, one GPU

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        overrides: Sequence[Path] = (),
        metadata: Sequence[Path] = (),
        models: str = "models",
        weights: Path | None = None,
        fine_tuned: Path | None = None,
    ) -> None:
        self.name = name
        self.folder = folder.resolve()
        self.config_files = [self.folder / "configs" / "inference.json", *overrides]
        models_folder = self.folder / models
        self.released_weights = (weights or models_folder / "model.pt").resolve()
        self.fine_tuned = fine_tuned
        metadata_files = [self.folder / "configs" / "metadata.json", *metadata]
        for file in (*self.config_files, *metadata_files, self.released_weights):
            if not file.is_file():
                raise FileNotFoundError(f"model {name}: no {file}: expected a bundle with its configs and weights.")
        described = ConfigParser.load_config_files([str(file) for file in metadata_files])
        self.released_version = str(described["version"])
        self.not_served = ""  # why promoted weights are not, for the reply
        self._check_released(described, models_folder)
        self._load(self._chosen())

    def _check_released(self, metadata: Mapping[str, Any], models: Path) -> None:
        """Compares the weights with the metadata's sha256, and reads there whether they are a demonstration."""
        known = metadata.get("weights_sha256", {})
        inside = self.released_weights.is_relative_to(models)
        file = f"models/{self.released_weights.relative_to(models).as_posix()}" if inside else ""
        self.released_sha256 = found = versions.sha256(self.released_weights)
        if file in known and known[file] != found:
            raise ValueError(
                f"model {self.name}: {self.released_weights} has sha256 {found}, the bundle's metadata name "
                f"{known[file]}: the file is damaged or not the released one; download the bundle again."
            )
        if file not in known:
            logger.warning("model %s: the bundle's metadata have no sha256 for these weights.", self.name)
        self.demonstration = found in (known[f] for f in metadata.get("demonstration_weights", ()) if f in known)

    def _chosen(self) -> Path:
        """The promoted weights, if they went on from the released ones that are here, or else those."""
        promoted = versions.served(self.fine_tuned, self.name) if self.fine_tuned else None
        self.not_served = ""
        if self.fine_tuned is None or promoted is None:
            return self.released_weights
        record = versions.record_of(self.fine_tuned, self.name, int(promoted.parent.name))
        if record.get("released_sha256") in (None, self.released_sha256):
            return promoted
        self.not_served = (
            f"The fine-tuned version {record['number']} was promoted, and is not used: it went on from the bundle's "
            f"version {record.get('bundle_version', 'before this one')}. Train again, or roll back."
        )
        return self.released_weights

    def _import_code(self) -> None:
        """Imports the bundle's module `scripts`, of which a process has one.

        Raises:
            ValueError: the process runs other code already, that of another bundle.
        """
        running = Path(str(use_code(self.folder).__file__)).parent
        if _sources(running) != _sources(self.folder / CODE):
            raise ValueError(
                f"model {self.name}: the code of {self.folder} differs from that of {running.parent}, which this "
                "server runs: start a second server for it, with another --port."
            )

    def _parser(self, **values: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config([str(file) for file in self.config_files])
        for key, value in ({"bundle_root": str(self.folder)} | values).items():
            parser[key] = value
        return parser

    def _load(self, weights: Path) -> None:
        with self._running:
            self._import_code()
            from scripts.data.datalist import TASKS
            from scripts.data.modality import modality_notes
            from scripts.networks import tissnet
            from scripts.weights import load_weights

            parser = self._parser(checkpoint_path=str(weights), device="cpu")
            network = load_weights(parser.get_parsed_content("network"), path=weights)
            inferer = parser.get_parsed_content("inferer")
            localizer = parser.get_parsed_content("localizer_path")
            task = TASKS[parser["task"]]
            self.network_outputs, self.modality_notes = tissnet, modality_notes
            self.network, self.inferer = network.eval(), inferer
            self.weights, self.sha256 = weights, versions.sha256(weights)
            self.localizer = Path(localizer) if localizer else None  # the one that belongs to these weights
            released = weights == self.released_weights
            self.version = self.released_version + ("" if released else f", fine-tuned {weights.parent.name}")
            self.task: str = parser["task"]
            self.source_modalities: tuple[str, ...] = task.image
            self.target_modality: str = task.target
            self.labels = {task.structure: 1}
            self.defaults = {key: parser[key] for key in ("threshold", "overlap")}
            logger.info("model %s: weights %s, sha256 %s", self.name, weights, self.sha256)

    def refresh(self) -> None:
        """Loads weights that were promoted, or rolled back to, since the last request; on an error keeps the old."""
        try:
            with self._running:
                chosen = self._chosen()
                if chosen != self.weights:
                    self._load(chosen)
        except (OSError, ValueError) as error:
            logger.error("model %s: goes on with %s, for: %s", self.name, self.weights, error)

    def warm_up(self) -> None:
        """Compiles what the processor runs, on an empty volume: the first request then takes no longer than others."""
        with self._running, torch.no_grad():
            started = time.perf_counter()
            x, y, z = self.inferer.size
            self.inferer(torch.zeros(1, len(self.source_modalities), 2 * x, y, z), self.network.to("cpu"))
            logger.info("model %s: ready after %.1f s", self.name, time.perf_counter() - started)

    def segment(
        self,
        files: Sequence[Path],
        folder: Path,
        *,
        case: str,
        threshold: float,
        overlap: float,
        flips: bool,
        device: str,
    ) -> Segmentation:
        """Segments one case; outputs are written below `folder`.

        Args:
            files: the source scans in the order of `source_modalities`, on one grid.
            folder: an empty folder.
            case: its name, for messages and files.
            threshold: of the mask's probability.
            overlap: of windows, 0 to below 1.
            flips: whether to average over flips of every window too, in both in-plane axes: four times the work.
            device: "cpu" or "cuda[:N]"; where a GPU's memory does not suffice, the processor takes over, with a note.

        Raises:
            InputError: the scans cannot be used; the reason is that of the bundle's own transforms.
        """
        with self._running:
            self.refresh()
            started = time.perf_counter()
            notes: list[str] = []
            parser = self._parser(threshold=threshold, output_dir=str(folder))
            before = parser.get_parsed_content("preprocessing")
            after = parser.get_parsed_content("postprocessing")
            try:
                image = [str(file) for file in files]
                data = before({"case": case, "image": image[0] if len(image) == 1 else image})
            except (ValueError, FileNotFoundError, RuntimeError) as error:
                raise InputError(_reason(error, files)) from error
            for windows in (self.inferer, self.inferer.localize):
                windows.overlap = overlap
            self.inferer.threshold = threshold
            self.inferer.flips = [(0,), (1,), (0, 1)] if flips else []
            middle_mm = _middle_mm(data["image"])
            data["pred"], used = self._infer(data["image"], device, notes)
            named = self.network_outputs.outputs_of(data["pred"])
            outputs = {name: torch.from_numpy(part[0].numpy()) for name, part in named.items()}
            voxel_mm3 = float(torch.as_tensor(data["image"].pixdim).prod())
            output = after(data)
            if self.inferer.cut or self.inferer.candidates > self.inferer.most_candidates:
                notes.append(f"The network looked at {self.inferer.looked_at}: look there too.")
            if self.not_served:
                notes.append(self.not_served)
            version, digest = self.version, self.sha256
        y_f = outputs["pred"]
        inside = y_f >= threshold
        disagreement = error_mass_mm3 = None
        if "error" in outputs:
            error_mass_mm3 = round(float(outputs["error"].sum()) * voxel_mm3, 1)
        if {"coarse", "error"} <= set(outputs):
            refined = self.network_outputs.refine(outputs["coarse"], outputs["error"])
            disagreement = round(_disagreement(inside, refined >= threshold), 4)
        mask = np.asarray(output["pred"][0].cpu()) > 0
        return Segmentation(
            mask=mask,
            affine=np.asarray(output["pred"].affine.cpu(), dtype=float),
            middle_mm=middle_mm,
            files={name: Path(str(output[name].meta["saved_to"])) for name in OUTPUTS if name in output},
            confidence=float(y_f[inside].mean() if mask.any() else 1 - y_f.max()),
            disagreement=disagreement,
            error_mass_mm3=error_mass_mm3,
            device=used,
            seconds=time.perf_counter() - started,
            version=version,
            sha256=digest,
            notes=notes,
        )

    def _infer(self, image: torch.Tensor, device: str, notes: list[str]) -> tuple[torch.Tensor, str]:
        """The inferer's output (C, X, Y, Z) on the CPU, with the metadata, and the device that computed it."""
        for target in dict.fromkeys((device, "cpu")):
            try:
                with torch.no_grad():
                    return self.inferer(image[None].to(target), self.network.to(target))[0].cpu(), target
            except torch.OutOfMemoryError:
                if target == "cpu":
                    raise
                torch.cuda.empty_cache()
                logger.warning("model %s: out of memory on %s, going on with the processor", self.name, target)
                notes.append("The graphics card had too little memory: computed on the processor, slower.")
        raise AssertionError("the processor either answers or raises")


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads a folder of one DICOM series as the bundle's commands do; a bundle must have been loaded.

    Returns:
        voxels (X, Y, Z), the affine to RAS millimeters, and sentences on how they came about, such as lossy.

    Raises:
        InputError: no volume, or one with a gap, of several sizes, damaged, ...
    """
    from scripts.data.reading import open_volume

    try:
        series = open_volume(folder)
        _, affine = series.grid()
        return series.voxels(), affine, series.warnings()
    except ValueError as error:
        raise InputError(f"The series cannot be used. {error}") from error


def load_models(conf: Mapping[str, str]) -> dict[str, ServedBundle]:
    """The models that a server's options name, see `Conf`.

    Raises:
        ValueError: an option that cannot be used, an unknown model, demonstration weights that were not allowed; or as
            `ServedBundle`.
        FileNotFoundError: a model's config or weights are not there.
    """
    if unknown := sorted({*conf} - {*Conf.model_fields, *MONAI_LABEL_CONF}):
        raise ValueError(f"--conf {unknown[0]}: there is no such option, expected {', '.join(Conf.model_fields)}.")
    try:
        given = Conf.model_validate({key: value for key, value in conf.items() if value})
    except ValidationError as error:
        raise ValueError(sentence_of(error, name="--conf {}".format, shown=True)) from error
    models: dict[str, ServedBundle] = {}
    for wanted in given.models:
        name, folder = wanted, given.bundle
        options: dict[str, Any] = {}
        if wanted == "tissnet_glioma":
            options["overrides"] = [given.bundle / file for file in GLIOMA_OVERRIDES]
            options["metadata"] = [given.bundle / GLIOMA_METADATA]
            options["models"], options["weights"] = GLIOMA_MODELS, given.weights_glioma
        elif wanted not in NAMES and Path(wanted).is_dir():
            name, folder = Path(wanted).resolve().name, Path(wanted)
        elif wanted not in NAMES:
            raise ValueError(f"no model {wanted!r}: expected {', '.join(NAMES)}, or the folder of a bundle.")
        if name in models:
            raise ValueError(f"two models are named {name}: give the folder of one of them another name.")
        served = ServedBundle(name, folder, fine_tuned=given.versions, **options)
        if served.demonstration and not given.allow_demo_weights:
            raise ValueError(
                f"model {name}: {DEMONSTRATION} They are not served unless the server is started with "
                "--conf allow_demo_weights true."
            )
        models[name] = served
    return models


def _sources(folder: Path) -> dict[Path, bytes]:
    """The Python files of a folder, by their paths in it."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.py")}


def _disagreement(first: torch.Tensor, second: torch.Tensor) -> float:
    total = int(first.sum() + second.sum())
    return 1 - 2 * int((first & second).sum()) / total if total else 0.0


def _middle_mm(image: Any) -> float | None:
    """The x (RAS, mm) where left and right of the head meet, about, in a normalized image (C, X, Y, Z).

    None where so little of the head is seen that both its sides cannot be in the image, or where the image ends before
    the head does.
    """
    head = torch.as_tensor(image).as_subclass(torch.Tensor)[0] > HEAD
    affine = np.asarray(image.affine.cpu(), dtype=float)
    sideways = int(np.abs(affine[0, :3]).argmax())
    sections = head.sum([axis for axis in range(3) if axis != sideways])
    if max(sections[0], sections[-1]) > CUT_OFF * sections.max():
        return None
    steps = [math.ceil(size / LOOKED_AT) for size in head.shape]
    x = (np.argwhere(head[tuple(slice(None, None, step) for step in steps)].numpy()) * steps) @ affine[0, :3]
    if not x.size:
        return None
    low, high = np.percentile(x + affine[0, 3], (1, 99))
    return float((low + high) / 2) if high - low >= BOTH_SIDES_MM else None


def _reason(error: BaseException, files: Sequence[Path]) -> str:
    """The reason that a transform gave, without MONAI's frame around it and without the folders of the server."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    reason = str(error)
    for file in files:
        reason = reason.replace(str(file), file.name)
    return reason
