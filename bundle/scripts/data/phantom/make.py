"""Seeded synthetic cases for both tasks, for tests, demos and timing: tissue maps imaged by the signal equations of MR.

No result on a phantom says anything about patients. Coordinates are RAS+ mm: x to the right, y anterior, z superior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data.datalist import TASKS
from scripts.data.names import MODALITIES
from scripts.data.phantom import mri
from scripts.data.phantom.brain import paint_brain
from scripts.data.phantom.canal import PORUS
from scripts.data.phantom.canvas import Canvas
from scripts.data.phantom.head import paint_head

# (shape in voxels, spacing in mm) of the command line's sizes. vs small: the region around one internal auditory canal.
SIZES = {
    ("vs", "small"): ((128, 128, 24), (0.41, 0.41, 1.5)),
    ("vs", "real"): ((512, 512, 60), (0.41, 0.41, 1.5)),
    ("vs", "thin"): ((320, 320, 160), (0.6, 0.6, 0.6)),
    ("glioma", "small"): ((72, 88, 64), (2.0, 2.0, 2.0)),
    ("glioma", "real"): ((160, 192, 150), (1.0, 1.0, 1.0)),
}

_HEAD_MM = 150  # A grid at least this wide in-plane shows the whole head.
# Of PhantomCase.tissue the values 1, 2, 3.
_TUMOR = (("necrosis", "cyst"), ("edema", "infiltration"), ("enhancing", "vs", "vs_loose"))
# Standard deviations, mm and degrees: how far a series lies from the T2, which the label belongs to; `_MOST` caps them.
_SHIFT = {"vs": 0.2, "glioma": 0.15}
_TURN = {"vs": 0.15, "glioma": 0.1}
_MOST = 2.0
_NOISE = 18.0  # Standard deviation of the complex noise, on the scale where CSF on T2 is about 1000.


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic case on one grid.

    Args:
        images: modality to float32 (X, Y, Z), not negative; those of the task.
        label: uint8 (X, Y, Z) in {0, 1}, the structure that the task segments; all zero without tumor.
        affine: voxel index to mm, RAS+.
        tissue: uint8 (X, Y, Z); 1 necrosis or cyst, 2 edema, 3 enhancing tumor, 0 elsewhere.
        anatomy: uint8 (X, Y, Z), ids of `mri.ID`, of what was painted into one of the slices of each voxel.
    """

    images: dict[str, NDArray[np.float32]]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    tissue: NDArray[np.uint8]
    anatomy: NDArray[np.uint8]


def make_phantom(
    seed: int,
    *,
    task: str = "vs",
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    tumor: bool = True,
    diameter: float | None = None,
) -> PhantomCase:
    """A synthetic case: on one machine the same seed, grid and options give the same voxels.

    Args:
        seed: decides everything that is random; the anatomy does not depend on the grid.
        task: a key of `TASKS`. surrogate_t2_cet1 is the glioma phantom, labeled with its enhancing part; about one
            glioma in eight has none, and an empty label.
        shape: voxels (X, Y, Z); default the small size of the task in `SIZES`.
        spacing: mm (X, Y, Z); default as `shape`.
        tumor: draw one; otherwise the label is all zero.
        diameter: of a ball of the tumor's volume (glioma: of its edema), mm; default random, 4.5 to 27 (glioma: 35 to
            84).

    Raises:
        ValueError: unknown task, or a grid or diameter that is not positive.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    kind = phantom_kind(task)
    default_shape, default_spacing = SIZES[(kind, "small")]
    shape, spacing = tuple(shape or default_shape), tuple(spacing or default_spacing)
    if len(shape) != 3 or len(spacing) != 3 or min(shape) < 1 or min(spacing) <= 0:
        raise ValueError(f"shape {shape} and spacing {spacing}: expected three positive numbers each")
    if diameter is not None and not diameter > 0:
        raise ValueError(f"diameter is {diameter}, expected millimeters, more than 0")
    rng = np.random.default_rng([seed, kind == "vs"])
    side = float(rng.choice((-1.0, 1.0)))
    center = rng.normal(0, 2, 3)
    turn = rng.normal(0, (3.0, 2.5, 3.0) if kind == "vs" else (4.0, 2.0, 3.0))
    if kind == "vs":
        whole = min(shape[0] * spacing[0], shape[1] * spacing[1]) > _HEAD_MM
        center += (0, 8, 0) if whole else (side * (PORUS[0] + 4), PORUS[1], PORUS[2])
    canvas = Canvas(rng, shape, spacing, center, turn=turn)
    (paint_head if kind == "vs" else paint_brain)(canvas, side, tumor, diameter)
    images = {name: _image(canvas, seed, kind, name) for name in MODALITIES if name in TASKS[task].modalities}
    whole_tumor = canvas.mask(*(name for names in _TUMOR for name in names))
    tissue = _largest_part(canvas) * whole_tumor
    label = (tissue == 3 if task == "surrogate_t2_cet1" else tissue > 0).astype(np.uint8)
    anatomy = canvas.tissue[:, :, canvas.sub // 2 :: canvas.sub].copy()
    return PhantomCase(images, label, canvas.affine, tissue, anatomy)


def phantom_kind(task: str) -> str:
    """Which phantom serves a task of `TASKS`: "vs" or "glioma"."""
    return "vs" if TASKS[task].structure == "vestibular schwannoma" else "glioma"


def _largest_part(canvas: Canvas) -> NDArray[np.uint8]:
    """1, 2 or 3 by which of `_TUMOR` fills most of each voxel, whether or not they fill half of it together."""
    shares = [canvas.mean(canvas.lookup(names)[: len(mri.ID)].astype(np.float32)) for names in _TUMOR]
    return np.argmax(shares, axis=0).astype(np.uint8) + np.uint8(1)


def _image(canvas: Canvas, seed: int, kind: str, modality: str) -> NDArray[np.float32]:
    """One series: signals, texture, partial volume, misregistration, point spread, bias field, Rician noise."""
    patient = np.random.default_rng([seed, kind == "vs", 1])
    series = np.random.default_rng([seed, kind == "vs", 2, MODALITIES.index(modality)])
    tissues = mri.vary_tissues(patient, mri.vary_tumor(patient))
    nominal = mri.SEQUENCES[kind][modality]
    table = mri.signal_table(tissues, mri.vary_sequence(series, nominal), nominal)
    shift, turn = (np.clip(series.normal(0, 1, 3), -_MOST, _MOST) for _ in range(2))
    textures, biases = (np.random.default_rng(series.integers(2**63)) for _ in range(2))
    image = canvas.mean(table)
    texture = canvas.field(1.6, rng=textures, fine=False)
    texture *= canvas.mean(mri.texture_table())
    texture += 1
    image *= texture
    outside = canvas.mean(canvas.lookup(["air"])[: len(mri.ID)].astype(np.float32)) > 0.5 if kind == "glioma" else None
    if modality != "T2":
        image = mri.move(image, canvas.spacing, shift * _SHIFT[kind], np.radians(turn * _TURN[kind]))
    image = mri.blur(image, canvas.spacing)
    image *= np.exp(canvas.field(60.0, series.uniform(0.04, 0.12), rng=biases, fine=False))
    np.maximum(image, 0, out=image)
    image = mri.add_rician(image, _NOISE, series)
    if outside is not None:  # Skull-stripped.
        image[outside] = 0
    return image
