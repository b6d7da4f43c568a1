"""Rigid moves of a made volume, known exactly, for the tests of alignment and registration."""

import numpy as np
import SimpleITK as sitk

from scripts.data.registration.register import to_sitk
from scripts.data.volume import LPS_TO_RAS


def rigid(shift=(0.0, 0.0, 0.0), degrees=(0.0, 0.0, 0.0), center=(0.0, 0.0, 0.0)):
    """A turn about a center, then a shift; LPS mm and degrees."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(list(map(float, center)))
    transform.SetTranslation(list(map(float, shift)))
    transform.SetRotation(*np.radians(degrees).tolist())
    return transform


def center_of(voxels, affine):
    """Center of the grid, LPS mm."""
    return (LPS_TO_RAS @ affine @ (*(np.array(voxels.shape) - 1) / 2, 1))[:3]


def displaced(voxels, affine, transform, onto=None):
    """The volume with its content moved: what was at p is now at transform(p). `onto` is another grid of its size."""
    grid = to_sitk(voxels, affine if onto is None else onto)
    moved = sitk.Resample(to_sitk(voxels, affine), grid, transform.GetInverse(), sitk.sitkLinear, 0.0)
    return sitk.GetArrayFromImage(moved).T
