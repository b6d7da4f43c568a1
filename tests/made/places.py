"""Where a file lies: its corners in mm, and how ITK places it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk


def corners(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, list(itertools.product(*[(0, n - 1) for n in shape])))


def itk_affine(path: Path) -> np.ndarray | None:
    """As ITK places a file; None where it refuses it."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
