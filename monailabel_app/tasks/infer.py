"""MONAI Label's inference task over a served bundle: options, files, numbers, and what the reply says."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import write_itk
from monailabel.utils.others.generic import device_list
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from monailabel_app.bundle import DEMONSTRATION, Segmentation, ServedBundle
from monailabel_app.devices import Device
from monailabel_app.errors import InputError, sentence_of
from monailabel_app.images import check_scan, extent_notes, read_scans, write_nifti
from monailabel_app.measurements import measure
from monailabel_app.store.cases import check_named

logger = logging.getLogger(__name__)

EXTENSIONS = (".nrrd", ".nii.gz", ".nii")
DTYPES = ("uint8", "uint16")


def _switch(value: Any) -> bool:
    found = {"true": True, "false": False}.get(str(value).lower())
    if found is None:
        raise PydanticCustomError("switch", "Input should be true or false")
    return found


Switch = Annotated[bool, BeforeValidator(_switch)]  # as JSON, or as the text that a form sends


class Options(BaseModel):
    """What a request may ask a model for."""

    threshold: float = Field(ge=0.01, le=0.99)
    overlap: float = Field(ge=0, le=0.75)
    flips: Switch = False
    device: Device
    result_extension: Literal[EXTENSIONS] = ".nrrd"  # type: ignore[valid-type]
    result_dtype: Literal[DTYPES] = "uint8"  # type: ignore[valid-type]
    result_compress: Switch = False


@dataclass
class Answer:
    """The reply to one request; files are temporary and belong to the caller."""

    mask: Path
    extra: dict[str, Path]
    params: dict[str, Any]


class TISSNetInferTask(InferTask):
    """One model: scans in, the mask, two further volumes and the numbers out."""

    def __init__(self, bundle: ServedBundle) -> None:
        sources, structure = " and ".join(bundle.source_modalities), next(iter(bundle.labels))
        description = f"{structure} from {sources}, with a synthetic {bundle.target_modality} (TISS-Net)"
        if bundle.demonstration:
            description = f"{DEMONSTRATION} {description}"
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=bundle.labels,
            dimension=3,
            description=description,
            config={"device": device_list(), **bundle.defaults, "flips": False},
        )
        self.bundle = bundle

    def info(self) -> dict[str, Any]:
        """What clients list, with the weights' version and hash."""
        bundle = self.bundle
        return super().info() | {
            "version": bundle.version,
            "weights_sha256": bundle.sha256,
            "demonstration": bundle.demonstration,
            "source_modalities": list(bundle.source_modalities),
            "target_modality": bundle.target_modality,
        }

    def is_valid(self) -> bool:
        return True

    def get_path(self, validate: bool = True) -> str:
        return str(self.bundle.weights)

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """MONAI Label's own call: mask and numbers; the further volumes are dropped."""
        answer = self.answer([Path(file) for file in request["files"]], request, case=str(request["case"]))
        for file in answer.extra.values():
            file.unlink()
        return str(answer.mask), answer.params

    def answer(self, files: Sequence[Path], request: Mapping[str, Any], *, case: str) -> Answer:
        """Segments one case.

        Args:
            files: source scans in the order of the bundle's source modalities.
            request: see `Options`; what else it holds is ignored.
            case: its name in messages.

        Raises:
            InputError: an option or a scan that cannot be used.
        """
        options, sources = self._options(request), self.bundle.source_modalities
        dtype = options.result_dtype
        if len(sources) == 1:
            check_named(files[0].name.partition(".")[0], sources, called=repr(case))
        given = dict(zip(sources, files, strict=True))
        for file in files:
            check_scan(file, f"case {case}")
        scans = read_scans(given)
        notes = extent_notes(scans) + self.bundle.modality_notes(scans)
        with tempfile.TemporaryDirectory(prefix="tissnet_") as folder:
            asked = options.model_dump(include={"threshold", "overlap", "flips", "device"})
            found = self.bundle.segment(files, Path(folder), case=case, **asked)
            mask = _temporary(options.result_extension)
            if options.result_extension == ".nrrd":
                write_itk(found.mask.astype(dtype), str(mask), found.affine, dtype, options.result_compress)
            else:
                write_nifti(mask, found.mask.astype(dtype), like=found.files["pred"])  # the scan's own header
            extra = {name: _temporary(".nii.gz") for name in found.files if name != "pred"}
            for name, file in extra.items():
                shutil.move(found.files[name], file)
        return Answer(mask, extra, self._params(found, notes))

    def _options(self, request: Mapping[str, Any]) -> Options:
        given = {key: value for key, value in request.items() if value not in (None, "")}
        try:
            return Options.model_validate({**self.bundle.defaults, "device": None, **given})
        except ValidationError as error:
            raise InputError(sentence_of(error, shown=True)) from error

    def _params(self, found: Segmentation, notes: list[str]) -> dict[str, Any]:
        bundle = self.bundle
        numbers = measure(found.mask, found.affine, middle_mm=found.middle_mm)
        if not numbers["findings"]:
            notes = ["No tumor was found.", *notes]
        if bundle.demonstration:
            notes = [DEMONSTRATION, *notes]
        return numbers | {
            "label_names": bundle.labels,
            "confidence": round(found.confidence, 3),
            "disagreement": found.disagreement,
            "error_mass_mm3": found.error_mass_mm3,
            "seconds": round(found.seconds, 2),
            "latencies": {"total": round(found.seconds, 2)},
            "device": found.device,
            "model": bundle.name,
            "model_version": found.version,
            "weights_sha256": found.sha256,
            "demonstration": bundle.demonstration,
            "notes": [*notes, *found.notes],
            "centroids": {},
        }


def _temporary(extension: str) -> Path:
    with tempfile.NamedTemporaryFile(prefix="tissnet_", suffix=extension, delete=False) as file:
        return Path(file.name)
