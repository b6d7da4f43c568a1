"""Dictionary transforms that MONAI lacks: siblings, working grid, normalization, the paper's crop, outputs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, InvertibleTransform, MapTransform, Orientation, SpatialCrop, Transform
from monai.utils import TraceKeys
from nibabel.orientations import io_orientation

from scripts.data.datalist import TASKS
from scripts.data.inputs import find_inputs, refuse_name
from scripts.data.plausibility import foreground
from scripts.loading import name_of
from scripts.networks.tissnet import COARSE, ERROR, OUTSIDE, PRED, name_outputs, output_names, outputs_of, refine
from scripts.networks.unet2d5 import BACKGROUND

PERCENTILES = (0.5, 99.5)
ISOTROPIC_TOLERANCE = 1.05  # an axis is coarsest if its spacing is this much above the next
DISPLAY_MAX = 1000.0  # synthetic volumes are written from 0 (background) to this


def _shared_trace(image: Any) -> MetaTensor:
    """Lets any instance of the traced transform's class invert the newest operation, not only the one that did it."""
    image.applied_operations[-1][TraceKeys.ID] = TraceKeys.NONE
    return image


class FindSiblingsd(MapTransform):
    """Finds the other scans of a case where one of them is given, for whoever has one file a case, as MONAI Label.

    A path of a task with several source modalities becomes the list of them, by name: see `data.inputs.find_inputs`,
    also for its errors. Lists stay as they are; so does the path of a task with one source modality, unless its name
    says that it is something else.

    Args:
        keys: entries with a path or a list of paths.
        task: a name in `data.datalist.TASKS`.
        names: modality to how its names end, as the user says.
    """

    def __init__(self, keys: KeysCollection, *, task: str, names: Mapping[str, str] | None = None) -> None:
        super().__init__(keys)
        self.task, self.names = task, names

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if isinstance(d[key], str | Path):
                refuse_name(d[key], self.task, self.names)
                if len(TASKS[self.task].image) > 1:
                    d[key] = find_inputs(d[key], self.task, names=self.names)[0]["image"]
        return d


def working_axcodes(affine: np.ndarray) -> str:
    """Names the orientation of the working grid: the coarsest axis last, the others in the order R, A, S.

    Args:
        affine: 4 x 4, voxel indices to RAS millimeters.

    Returns:
        "RAS" for axial and isotropic volumes, "RSA" for coronal, "ASR" for sagittal ones.
    """
    columns = np.asarray(affine, dtype=float)[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.all(np.isfinite(columns)) or np.any(spacing <= 0):
        raise ValueError(f"affine\n{np.asarray(affine)}\nhas no positive voxel spacing: correct the file's header.")
    coarsest, runner_up = np.sort(spacing)[::-1][:2]
    if coarsest < runner_up * ISOTROPIC_TOLERANCE:
        return "RAS"
    world = int(io_orientation(affine)[int(np.argmax(spacing)), 0])  # as MONAI's Orientation names it
    return ("ASR", "RSA", "RAS")[world]


class OrientToWorkingGridd(MapTransform, InvertibleTransform):
    """Reorients so that the coarsest axis comes last and the in-plane axes follow in RAS order.

    The network's planar levels expect the through-plane axis last, in a sagittal or coronal series too. Isotropic
    volumes get the superior-inferior axis last. Invertible by `Invertd`.

    Args:
        keys: entries to reorient, MetaTensors (C, X, Y, Z) of one common grid.
        allow_missing_keys: whether a missing key is passed over.

    Raises:
        ValueError: no 3-D volume.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if image.ndim != 4:
                raise ValueError(
                    f"{key} of {name_of(d)} has shape {tuple(image.shape)}: expected a 3-D volume, "
                    "channel first (C, X, Y, Z)."
                )
            codes = working_axcodes(image.affine.cpu().numpy())
            d[key] = _shared_trace(Orientation(axcodes=codes, labels=None)(image))
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = Orientation(axcodes="RAS", labels=None).inverse(d[key])
        return d


class CropAroundTumord(MapTransform, InvertibleTransform):
    """Crops a box of fixed size around the tumor's center, as the paper does also at test time (`paper_crop`).

    It needs the truth, so it exists to compare numbers only. Invertible by `InvertPredictiond`: outside the box outputs
    have their value of `networks.tissnet.OUTSIDE`, 0 for most.

    Args:
        keys: entries to crop, MetaTensors (C, X, Y, Z) of one common grid.
        label_key: the mask whose bounding box gives the center.
        size: voxels along x, y, z; -1 keeps an axis whole. A box beyond the border is moved inside.
        allow_missing_keys: whether a missing key is passed over.

    Raises:
        ValueError: for a mask without tumor, which has no center.
    """

    def __init__(
        self, keys: KeysCollection, *, label_key: str, size: Sequence[int], allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.label_key = label_key
        self.size = tuple(size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        where = torch.nonzero(torch.as_tensor(d[self.label_key])[0])
        if len(where) == 0:
            raise ValueError(f"{name_of(d)} has no tumor to crop around: evaluate it with the protocol full_scan.")
        center = (where.amin(0) + where.amax(0) + 1) // 2
        shape = d[self.label_key].shape[1:]
        starts, ends = [], []
        for n, c, size in zip(shape, center.tolist(), self.size, strict=True):
            length = n if size < 0 else min(size, n)
            start = min(max(c - length // 2, 0), n - length)
            starts.append(start)
            ends.append(start + length)
        for key in self.key_iterator(d):
            d[key] = _shared_trace(SpatialCrop(roi_start=starts, roi_end=ends)(d[key]))
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            values = [OUTSIDE.get(name, 0.0) for name in output_names(d[key])] or [0.0]
            outside = torch.tensor(values, device=d[key].device).reshape(-1, 1, 1, 1)
            d[key] = SpatialCrop(roi_start=[0, 0, 0], roi_end=[1, 1, 1]).inverse(d[key] - outside) + outside
        return d


class NormalizeForegroundd(MapTransform):
    """Maps the 0.5 and 99.5 percentiles of the foreground to -1 and 1, per volume and channel, clipped.

    Background becomes exactly -1, the value that padding uses too. MONAI's percentile scaling has no foreground.

    Args:
        keys: entries to normalize, (C, X, Y, Z) in any units.
        allow_missing_keys: whether a missing key is passed over.

    Raises:
        ValueError: for NaN or infinite voxels, and for a constant (for example all-zero) channel.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            normalized = torch.empty_like(image, dtype=torch.float32)
            for channel in range(len(image)):
                where = f"channel {channel} of {key} of {name_of(d)}"
                normalized[channel] = self._normalize(torch.as_tensor(image[channel]).as_subclass(torch.Tensor), where)
            d[key] = normalized
        return d

    @staticmethod
    def _normalize(volume: torch.Tensor, where: str) -> torch.Tensor:
        volume = volume.float()
        if not torch.isfinite(volume).all():  # not how many: this is the resampled scan
            raise ValueError(f"{where} has NaN or infinite voxels: expected finite intensities; export it again.")
        voxels = volume.cpu().numpy()
        inside = foreground(voxels)
        low, high = np.percentile(voxels[inside] if inside.any() else voxels, PERCENTILES)
        if not inside.any() or not high > low:
            raise ValueError(
                f"{where} is constant or empty (0.5 and 99.5 percentile of its foreground are {low:g} and {high:g}): "
                "expected an MR image; check that the right file was given."
            )
        scaled = ((volume - float(low)) / float(high - low) * 2 - 1).clamp(-1, 1)
        return torch.where(torch.from_numpy(inside).to(volume.device), scaled, BACKGROUND)


class FillTargetd(MapTransform):
    """Fills in the target of a case that has none with background; adds `has_target`, 1 or 0, for the losses to know.

    So that cases with and without a target share batches: see `methods/tissnet.py` for what such a case trains.

    Args:
        keys: the target, which may be missing.
        like: entry whose grid it then gets, (C, X, Y, Z).
    """

    NAME = "has_target"

    def __init__(self, keys: KeysCollection, *, like: str = "image") -> None:
        super().__init__(keys)
        self.like = like

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            d[self.NAME] = torch.tensor(float(key in d))
            if key not in d:
                d[key] = torch.full_like(d[self.like][:1], BACKGROUND)
        return d


class SamplingClassesd(MapTransform):
    """Computes where patches for training are to be centered: `sampling`, a map of classes over the whole scan.

    0 air, 1 head, 2 the place of the tumor on the head's other side, 3 tumor. Healthy anatomy like the tumor's own is
    rare in a whole scan (the other auditory canal), and there false positives are. For MONAI's `ClassesToIndicesd` and
    `RandCropByLabelClassesd`. Where the tumor crosses the middle, tumor wins.

    Args:
        keys: the mask, (1, X, Y, Z) in {0, 1}, a MetaTensor.
        image_key: the normalized scan on the same grid, air -1 (`NormalizeForegroundd`).
        allow_missing_keys: whether a missing key is passed over.
    """

    NAME = "sampling"

    def __init__(self, keys: KeysCollection, *, image_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            tumor = torch.as_tensor(d[key]).as_subclass(torch.Tensor)[0] > 0
            head = (torch.as_tensor(d[self.image_key]).as_subclass(torch.Tensor) > BACKGROUND).any(0)
            classes = head.to(torch.uint8)
            axis = int(np.flatnonzero(io_orientation(d[key].affine.cpu().numpy())[:, 0] == 0)[0])  # left to right
            width = head.shape[axis]
            profile = head.sum([i for i in range(3) if i != axis]).double()
            middle = float((profile * torch.arange(width)).sum() / profile.sum().clamp(min=1))
            where = torch.nonzero(tumor)
            where[:, axis] = (2 * middle - where[:, axis]).round().long()
            where = where[(where[:, axis] >= 0) & (where[:, axis] < width)]
            classes[tuple(where.T)] = 2
            classes[~head] = 0
            classes[tumor] = 3
            d[self.NAME] = classes[None]
        return d


class NameByCased(MapTransform):
    """Writes the case's id where MONAI's writers take the file name from: outputs become <case>/<case>_pred.nii.gz.

    Args:
        keys: MetaTensor entries.
        case_key: entry with the id; without it the file's own name stays.
    """

    def __init__(self, keys: KeysCollection, *, case_key: str = "case", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.case_key = case_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.case_key in d:
            for key in self.key_iterator(d):
                d[key].meta["filename_or_obj"] = f"{d[self.case_key]}.nii.gz"  # writers cut one extension
        return d


class InvertPredictiond(Invertd):
    """MONAI's `Invertd` for an inferer's prediction, whose outputs keep their names.

    `Invertd` gives it the image's metadata in place of its own; here the image's have the names.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, orig_key in self.key_iterator(d, self.orig_keys):
            image = d[orig_key][...]  # the same voxels, with metadata of its own
            d[orig_key] = name_outputs(image, output_names(d[key]))
        return super().__call__(d)


class SplitPredictiond(MapTransform):
    """Divides an inferer's prediction into its outputs, each under its own name: `pred`, and what else there is.

    Args:
        keys: the prediction, (C, X, Y, Z), its channels named. The values are left as they are.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d.update(outputs_of(d[key]))
        return d


class AddRefinedd(Transform):
    """Adds `y_r`, the coarse mask corrected where the error map says so (eq. 7), and `mean`, the mean of y_f and y_r.

    Expects what `SplitPredictiond` gives, probabilities; without a coarse mask and an error map nothing is added.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if COARSE in d and ERROR in d:
            d["y_r"] = refine(d[COARSE], d[ERROR])
            d["mean"] = (d[PRED] + d["y_r"]) / 2
        return d


class ToDisplayRanged(MapTransform):
    """Maps [-1, 1] to 0 to 1000, so that a viewer shows a synthetic scan with a sensible window; says so in the header.

    Args:
        keys: entries to map, (1, X, Y, Z); files written by `SourceHeaderWriter` carry "synthetic, 0 to 1000" in
            their `descrip` field (MONAI's own writer drops it).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = ((d[key].clamp(-1, 1) + 1) / 2 * DISPLAY_MAX).round()
            if isinstance(d[key], MetaTensor):
                d[key].meta["descrip"] = np.array(b"synthetic, 0 to 1000")
        return d
