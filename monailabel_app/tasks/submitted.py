"""The cases that people submitted a mask for, as a training needs them: read, checked, split, written as a datalist.

Naming rule: `<case>_<modality>` with T1, ceT1, T2 or FLAIR; the model's sources and its target are the images of one
case. A case without the target trains the segmentation alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monailabel_app import versions
from monailabel_app.bundle import ServedBundle
from monailabel_app.errors import InputError
from monailabel_app.images import NIFTI, read_mask, read_volume, write_nifti
from monailabel_app.reader import check_image, check_one_grid, open_volume
from monailabel_app.store.cases import siblings, source_files, start_image, submitted_images

logger = logging.getLogger(__name__)

SECTIONS = ("training", "validation")
LEAST_CASES = 2  # one to learn from, one to measure on
SHOWN = 3  # reasons that a refusal gives


@dataclass(frozen=True)
class LabeledCase:
    """A case to learn from.

    Args:
        case: its name.
        patient: what the split goes by: of the DICOM patient id, or else the case's name, nothing but a hash.
        images: source scans, in the model's order.
        target: the scan that the model synthesizes, None where there is none to learn from.
        label: the submitted mask, of 0 and 1 on the grid of the scans.
        label_sha256: of that file.
    """

    case: str
    patient: str
    images: tuple[Path, ...]
    target: Path | None
    label: Path
    label_sha256: str

    def mask(self) -> tuple[np.ndarray, np.ndarray]:
        """The submitted mask, uint8 (X, Y, Z), and its affine."""
        return read_mask(self.label, f"the submitted mask of {self.case!r}")


def collect(datastore: Datastore, bundle: ServedBundle) -> tuple[list[LabeledCase], dict[str, str]]:
    """Finds the cases with a submitted label, sorted by name, and those that cannot be used, with the reason."""
    labels, left_out = _labels(datastore, bundle)
    cases = []
    for start, image in labels:
        try:
            cases.append(_read_case(datastore, bundle, start, image))
        except InputError as error:
            left_out[start] = str(error)
    return cases, left_out


def check_enough(datastore: Datastore, bundle: ServedBundle) -> None:
    """Refuses a store with too few submitted labels to train on; reads no more cases than it takes to know."""
    labels, left_out = _labels(datastore, bundle)
    patients: set[str] = set()
    for start, image in labels:
        if len(patients) >= LEAST_CASES:
            return
        try:
            patients.add(_read_case(datastore, bundle, start, image).patient)
        except InputError as error:
            left_out[start] = str(error)
    _refuse_too_few(len(patients), left_out)


def _labels(datastore: Datastore, bundle: ServedBundle) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The submitted labels: the image that a case starts from and the one it was drawn on; and those left out."""
    labels: dict[str, str] = {}
    left_out: dict[str, str] = {}
    here = submitted_images(datastore)
    for image in sorted({*datastore.get_labeled_images(), *here}):
        if image not in here:
            left_out[image] = "its segmentation in the archive was not submitted to this server: submit it here."
            continue
        start = start_image(datastore, image, bundle.source_modalities)
        if start is None:
            needed = " and ".join(bundle.source_modalities)
            left_out[image] = f"there is no {bundle.source_modalities[-1]} of this case: the model needs {needed}."
        elif start not in labels or image == start:
            labels[start] = image
    return sorted(labels.items()), left_out


def _refuse_too_few(count: int, left_out: Mapping[str, str]) -> None:
    if count < LEAST_CASES:
        reasons = "".join(f" Left out: {image!r}, {reason}" for image, reason in [*left_out.items()][:SHOWN])
        raise InputError(
            f"{count} submitted case(s) can be used, expected at least {LEAST_CASES}: one to learn from, one "
            f"to measure on. Submit the masks of more patients.{reasons}"
        )


def _read_case(datastore: Datastore, bundle: ServedBundle, start: str, image: str) -> LabeledCase:
    files = source_files(datastore, start, bundle.source_modalities)
    _check_segment(datastore.get_label_info(image, DefaultLabelTag.FINAL.value), bundle)
    label = Path(datastore.get_label_uri(image, DefaultLabelTag.FINAL.value))
    name, mask = f"the submitted mask of {image!r}", open_volume(label)
    read_mask(label, name)
    for file, modality in zip(files, bundle.source_modalities, strict=True):
        _check_scan(file, f"{modality} of {start!r}", name, mask)
    target: Path | None = None
    if sibling := siblings(datastore, start).get(bundle.target_modality):
        target = Path(datastore.get_image_uri(sibling))
        called = f"{bundle.target_modality} of {start!r}"
        try:
            _check_scan(target, called, name, mask)
        except InputError as error:
            logger.warning("%s is not used, the case trains the segmentation alone: %s", called, error)
            target = None
    patient = str(datastore.get_image_info(start).get("PatientID") or "UNK")
    key = hashlib.sha256((start if patient == "UNK" else patient).encode()).hexdigest()[:16]
    return LabeledCase(start, key, tuple(files), target, label, versions.sha256(label))


def _check_segment(info: Mapping[str, Any], bundle: ServedBundle) -> None:
    """Refuses a mask whose segments all have other names than this model's: another may be served beside it."""
    named = [str(entry["name"]) for entry in info.get("label_info") or () if entry.get("name")]
    if named and not {name.lower() for name in named} & {label.lower() for label in bundle.labels}:
        raise InputError(
            f"the submitted mask is of {', '.join(named)}: {bundle.name} learns {', '.join(bundle.labels)}; give the "
            "segment that name, if it is one."
        )


def _check_scan(file: Path, name: str, mask_name: str, mask: Any) -> None:
    check_one_grid({name: open_volume(file), mask_name: mask})
    check_image(read_volume(file, name)[0], name)


def split(cases: Sequence[LabeledCase], kept: Path, *, share: float) -> dict[str, list[LabeledCase]]:
    """Divides cases into training and validation, all of a patient in one; whoever was in one before stays there.

    New patients come in an order by the hash of their name, and go to validation while it has less than its share.
    `kept` is the file that remembers the sections.
    """
    before: dict[str, str] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    patients = sorted({case.patient for case in cases})
    _refuse_too_few(len(patients), {})
    validation = [patient for patient in patients if before.get(patient) == "validation"]
    new = [patient for patient in patients if patient not in before]
    wanted = min(max(round(share * len(patients)), 1), len(patients) - 1)
    chosen = new[: max(wanted - len(validation), 0)]
    section = before | {patient: "validation" if patient in chosen else "training" for patient in new}
    parts = {name: [case for case in cases if section[case.patient] == name] for name in SECTIONS}
    for name, part in parts.items():
        if not part:
            raise InputError(
                f"All submitted cases were in the other section of earlier trainings, {name} has none: submit the mask "
                "of another patient. A case that was trained on must not measure the result."
            )
    versions.write_json(kept, section)
    return parts


def datalist_entry(case: LabeledCase, run: Path) -> dict[str, Any]:
    """The datalist's entry; masks, and scans that are not NIfTI, are written into the run's folder."""
    folder = run / "scans" / case.case
    folder.mkdir(parents=True)
    label = folder / "label.nii.gz"
    mask, affine = case.mask()
    write_nifti(label, mask, affine=affine)
    files = []
    for index, file in enumerate([*case.images, *([case.target] if case.target else [])]):
        if not file.name.endswith(NIFTI):
            voxels, affine = read_volume(file, file.name)
            file = folder / f"scan_{index}.nii.gz"
            write_nifti(file, voxels.astype(np.float32), affine=affine)
        files.append(str(file))
    count = len(case.images)
    entry = {"case": case.case, "patient": case.patient, "image": files[:count], "label": str(label)}
    return entry | ({"target": files[count]} if case.target else {})


def described(case: LabeledCase) -> dict[str, Any]:
    """What a version's record keeps of a case."""
    return {"case": case.case, "label_sha256": case.label_sha256, "has_target": case.target is not None}
