"""Numbers of a mask that a clinician follows: volume, largest diameters, side, for all of it and for each part."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist
from skimage.measure import marching_cubes

MIDLINE_MM = 5.0  # nearer than this to the head's middle a part is neither left nor right


def measure(mask: np.ndarray, affine: np.ndarray, *, middle_mm: float | None) -> dict[str, Any]:
    """Computes volume, largest diameters and side of a mask, and the same of each connected part.

    A diameter is the largest distance between two points of the mask's surface, halfway between voxels inside and
    outside (as PyRadiomics has it): `diameter_3d_mm` anywhere, `diameter_axial_mm` within one slice, of the scan's
    planes nearest to axial. The side is the patient's, of the part's center against the head's middle.

    Args:
        mask: (X, Y, Z), boolean.
        affine: 4 x 4, voxel indices to RAS millimeters.
        middle_mm: x (RAS) of the head's middle; None where it is not known, nor is any side then.

    Returns:
        volume_mm3, volume_cm3, diameter_3d_mm and diameter_axial_mm (those of the largest part, 0 without one), side
        ("left", "right", "midline", several with "and", "not known", "none") and findings: per part, the largest first,
        volume_mm3, diameter_3d_mm, diameter_axial_mm, side and center_mm (RAS).
    """
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    findings = []
    for part, box in sorted(enumerate(ndimage.find_objects(parts), 1), key=lambda found: -sizes[found[0] - 1]):
        inside = parts[box] == part
        start = np.array([side.start for side in box], dtype=float)
        center = affine[:3, :3] @ (np.argwhere(inside).mean(0) + start) + affine[:3, 3]
        findings.append(
            {
                "volume_mm3": round(float(sizes[part - 1]) * voxel_mm3, 1),
                **_diameters(inside, affine),
                "side": "not known" if middle_mm is None else _side(float(center[0]) - middle_mm),
                "center_mm": [round(float(x), 1) for x in center],
            }
        )
    volume = float(mask.sum()) * voxel_mm3
    sides = sorted({str(finding["side"]) for finding in findings})
    largest: dict[str, Any] = findings[0] if findings else {"diameter_3d_mm": 0.0, "diameter_axial_mm": 0.0}
    return {
        "volume_mm3": round(volume, 1),
        "volume_cm3": round(volume / 1000, 3),
        "diameter_3d_mm": largest["diameter_3d_mm"],
        "diameter_axial_mm": largest["diameter_axial_mm"],
        "side": " and ".join(sides) if sides else "none",
        "findings": findings,
    }


def _diameters(inside: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """The largest diameters of one part, (x, y, z) its box."""
    through = int(np.argmax(np.abs(affine[2, :3] / np.linalg.norm(affine[:3, :3], axis=0))))
    in_plane = [axis for axis in range(3) if axis != through]
    flat = np.linalg.qr(affine[:3, in_plane])[1]  # the same plane, in two coordinates, mm
    vertices, *_ = marching_cubes(np.pad(inside, 1).astype(np.float32), 0.5)
    axial = 0.0
    for index in range(inside.shape[through]):
        points = vertices[np.abs(vertices[:, through] - (index + 1)) < 1e-3]
        axial = max(axial, _largest_distance(points[:, in_plane] @ flat.T))
    return {
        "diameter_3d_mm": round(_largest_distance(vertices @ affine[:3, :3].T), 1),
        "diameter_axial_mm": round(axial, 1),
    }


def _largest_distance(points: np.ndarray) -> float:
    if len(points) < 2:
        return 0.0
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:  # all on a line, or fewer than a hull needs: few
        pass
    return float(pdist(points).max())


def _side(right_mm: float) -> str:
    """Side of a distance from the middle, in RAS millimeters: to the patient's right is positive."""
    if abs(right_mm) < MIDLINE_MM:
        return "midline"
    return "right" if right_mm > 0 else "left"
