"""One scan of a phantom as a file, as the app's tests store it."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.data.phantom.make import make_phantom


def save_phantom(folder: Path, name: str, seed: int, modality: str = "T2") -> Path:
    """Writes one modality of a phantom as a NIfTI file of int16."""
    phantom = make_phantom(seed)
    nib.save(nib.Nifti1Image(np.rint(phantom.images[modality]).astype(np.int16), phantom.affine), folder / name)
    return folder / name
