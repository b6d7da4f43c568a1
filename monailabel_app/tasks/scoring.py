"""How far the model's masks were from those that clinicians submitted: Dice, surface distance, volume."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod

from monailabel_app.errors import InputError
from monailabel_app.images import read_mask, spacing_of
from monailabel_app.reader import check_one_grid, open_volume

logger = logging.getLogger(__name__)

SCORES = "scores"  # in the info of the submitted label


class DiceOfSubmitted(ScoringMethod):
    """Dice, surface distance and volume of the model's mask (tag `original`) against the submitted one (tag `final`).

    They are kept in the info of the submitted label, and not computed again while both masks stay as they are. Masks
    that cannot be compared are reported with the reason and enter no mean.
    """

    def __init__(self) -> None:
        super().__init__("Dice, surface distance and volume of the model's masks against those submitted")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Scores every image with both labels, of the tags `y` (default final) and `y_pred` (default original).

        Returns:
            `cases` (scores by image), `left_out` (a sentence by image), `mean_dice` (None without a case).
        """
        tag = str(request.get("y") or DefaultLabelTag.FINAL.value)
        tag_pred = str(request.get("y_pred") or DefaultLabelTag.ORIGINAL.value)
        known: dict[str, Any] = {}
        made: dict[str, Any] = {}
        left_out: dict[str, str] = {}
        for image_id in sorted(datastore.list_images()):
            label, predicted = (datastore.get_label_by_image_id(image_id, t) for t in (tag, tag_pred))
            if not label or not predicted:
                continue
            try:
                stamps = [_stamp(datastore, label, tag), _stamp(datastore, predicted, tag_pred)]
            except FileNotFoundError:
                left_out[image_id] = "one of its masks was removed meanwhile."
                continue
            before = datastore.get_label_info(label, tag).get(SCORES, {})
            if before.get("of") == stamps:
                known[image_id] = before
                continue
            try:
                found = _compare(datastore, label, tag, predicted, tag_pred)
            except InputError as error:
                logger.warning("%s is not scored: %s", image_id, error)
                left_out[image_id] = str(error)
                continue
            made[image_id] = {**found, "of": stamps}
            logger.info("%s: Dice %.4f", image_id, found["dice"])
        for image_id, found in made.items():
            label = datastore.get_label_by_image_id(image_id, tag)
            if label:
                datastore.update_label_info(label, tag, {SCORES: found})
        cases = {image_id: (known | made)[image_id] for image_id in sorted(known | made)}
        mean = float(np.mean([case["dice"] for case in cases.values()])) if cases else None
        return {"cases": cases, "left_out": left_out, "mean_dice": mean}


def _compare(datastore: Datastore, label: str, tag: str, predicted: str, tag_pred: str) -> dict[str, Any]:
    names = (f"the submitted mask of {label!r}", f"the model's mask of {predicted!r}")
    files = [Path(datastore.get_label_uri(label, tag)), Path(datastore.get_label_uri(predicted, tag_pred))]
    check_one_grid({name: open_volume(file) for name, file in zip(names, files, strict=True)})
    (truth, affine), (prediction, _) = (read_mask(file, name) for name, file in zip(names, files, strict=True))
    return scores(prediction, truth, affine)


def _stamp(datastore: Datastore, label: str, tag: str) -> list[int]:
    """Tells a label's file from another one of the same name."""
    found = Path(datastore.get_label_uri(label, tag)).stat()
    return [found.st_mtime_ns, found.st_size]


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Computes Dice of two masks; both empty: 1, one of them: 0."""
    return float(compute_dice(_batch(prediction), _batch(truth), include_background=True, ignore_empty=False).item())


def scores(prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, float | None]:
    """Compares a mask with the one that is right.

    Returns:
        dice; assd_mm, the average symmetric surface distance, None where a mask is empty; volume_mm3 of the prediction,
        volume_truth_mm3, and volume_difference_mm3, positive where the prediction is larger.
    """
    spacing = spacing_of(affine)
    voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
    volume, volume_truth = (float(mask.sum()) * voxel_mm3 for mask in (prediction, truth))
    assd = None
    if volume and volume_truth:
        box = _box(prediction | truth)
        assd = compute_average_surface_distance(
            _batch(prediction[box]), _batch(truth[box]), include_background=True, symmetric=True, spacing=spacing
        ).item()
    return {
        "dice": dice(prediction, truth),
        "assd_mm": assd,
        "volume_mm3": volume,
        "volume_truth_mm3": volume_truth,
        "volume_difference_mm3": volume - volume_truth,
    }


def _batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.uint8))[None, None]


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The mask's bounding box with a voxel of background around it, so that cropping changes no surface."""
    where = np.argwhere(mask)
    return tuple(
        slice(max(int(low) - 1, 0), int(high) + 2) for low, high in zip(where.min(0), where.max(0), strict=True)
    )
