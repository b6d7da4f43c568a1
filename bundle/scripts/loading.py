"""Loads the scans of a case as MONAI's tensors: MONAI's door to the bundle's own reader, and what a case must be."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImage, MapTransform
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from scripts.data.datalist import GRID_TOLERANCE_MM, label_map_problem
from scripts.data.reading import open_volume
from scripts.data.volume import SUFFIXES, CaseError, NiftiVolume, Volume, corner_distance, whole_numbers

logger = logging.getLogger(__name__)

NOTES = "notes"  # the key of a tensor's metadata for what its reader should know


class ScanReader(ImageReader):
    """`data.reading` for MONAI: its affine, its checks and its sentences, in place of MONAI's own.

    MONAI's reader of NIfTI takes an unset qform where pixdim is rounded, and a guess where no position is stored. That
    of DICOM keeps copies and tells no loss. `read` opens nothing, as MONAI goes on with another reader where it raises.
    """

    def verify_suffix(self, filename: Any) -> bool:
        return all(Path(name).is_dir() or str(name).lower().endswith(SUFFIXES) for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> Path:
        (path,) = ensure_tuple(data)
        return Path(path)

    def get_data(self, img: Path) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels (X, Y, Z) and the metadata that MONAI's transforms expect, with `notes` where there is any.

        Raises:
            CaseError: what `data.reading` refuses.
        """
        volume: Volume = open_volume(img)
        shape, affine = volume.grid()
        meta: dict[str, Any] = dict(volume.header()) if isinstance(volume, NiftiVolume) else {}
        if "pixdim" in meta:
            meta["original_pixdim"] = meta["pixdim"].copy()
        meta |= {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        }
        voxels = volume.voxels()
        if notes := volume.warnings():
            meta[NOTES] = tuple(notes)
        return voxels, meta


class LoadScansd(MapTransform):
    """Loads the scans of a case; a list of files becomes the channels of one image, on the grid of the first.

    `ScanReader` reads each: a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series. What it has to say of
    the voxels, such as a lossy compression, goes to the log and into the image's metadata: `notes`, sentences.
    MONAI's stacking refuses affines that differ by rounding, and its errors name neither case nor file.

    Args:
        keys: entries with a path or a list of paths of 3-D images.
        labels: those of them that are masks: what a scaling has rounded, 0.9999999 for 1, is made whole.
        allow_missing_keys: whether a missing key is passed over.

    Raises:
        FileNotFoundError: a file is missing.
        CaseError: what `data.reading` refuses, or one scan that is given twice; names case and file.
        ValueError: the files lie on different grids; names case and files.
    """

    def __init__(self, keys: KeysCollection, *, labels: KeysCollection = (), allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = ensure_tuple(labels)
        self.load = LoadImage(reader=ScanReader(), image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            files = [Path(file) for file in ([d[key]] if isinstance(d[key], str | Path) else d[key])]
            images = [self._load(file, name_of(d)) for file in files]
            if key not in self.labels:
                for file, image in zip(files, images, strict=True):
                    if problem := label_map_problem(file.name, image.numpy()):
                        raise problem.of(name_of(d))
            first, notes = images[0], [note for image in images for note in image.meta.get(NOTES, ())]
            for file, image in zip(files, images, strict=True):
                same_shape = image.shape == first.shape
                distance = corner_distance(first.shape[1:], image.affine.numpy(), first.affine.numpy())
                if not same_shape or distance > GRID_TOLERANCE_MM:
                    raise ValueError(
                        f"{name_of(d)}: {file} is not on the grid of {files[0]} (shapes {tuple(image.shape[1:])} and "
                        f"{tuple(first.shape[1:])}, {distance:.3g} mm apart): expected the scans of a case on one "
                        "grid; register and resample them."
                    )
            for one, other in combinations(range(len(images)), 2):
                if torch.equal(images[one], images[other]):
                    found = f"{name_of(d)}: {files[one].name} and {files[other].name} have the same voxels"
                    raise CaseError("same image", found, "one image per modality; a file was copied or named wrongly")
            d[key] = first if len(images) == 1 else torch.cat([*images])
            if key in self.labels:
                d[key].copy_(torch.from_numpy(whole_numbers(d[key].numpy())))
            if notes:
                # One text: batches of cases cannot have tuples of several lengths.
                d[key].meta[NOTES] = ("; ".join(notes),)
        return d

    def _load(self, file: Path, name: str) -> MetaTensor:
        if not file.exists():
            raise FileNotFoundError(f"{name}: {file} does not exist: expected a 3-D image.")
        try:
            image: Any = self.load(file)
        except CaseError as error:
            raise error.of(name) from error
        if NOTES in image.meta:
            image.meta[NOTES] = tuple(f"{file.name}: {note}" for note in image.meta[NOTES])
            logger.warning("%s: %s", name, "; ".join(image.meta[NOTES]))
        return image


def name_of(data: Mapping[Hashable, Any]) -> str:
    """Names a sample for an error message: its case id, else its image's file."""
    if "case" in data:
        return f"case {data['case']}"
    image = data.get("image")
    if isinstance(image, MetaTensor):
        return Path(str(image.meta.get("filename_or_obj", "unknown"))).name
    return "an unnamed sample"
