"""Seeded synthetic cases for both tasks, for tests, demos and timing: ellipsoids with plausible contrast, in mm.

Not anatomy, and no result on it says anything about patients. It returns arrays; `prepare.py` writes them. Coordinates
are RAS+ mm: x to the right, y anterior, z superior. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from scripts.data.datalist import TASKS
from scripts.data.sources import MODALITIES

# (shape in voxels, spacing in mm) of the command line's sizes. vs small: the region around one internal auditory canal.
SIZES = {
    ("vs", "small"): ((128, 128, 24), (0.41, 0.41, 1.5)),
    ("vs", "real"): ((512, 512, 60), (0.41, 0.41, 1.5)),
    ("glioma", "small"): ((72, 88, 64), (2.0, 2.0, 2.0)),
    ("glioma", "real"): ((160, 192, 150), (1.0, 1.0, 1.0)),
}

# Tissue to intensity in the order of MODALITIES (T1, ceT1, T2, FLAIR); about 1000 is the brightest.
_INTENSITIES = {
    "air": (10, 10, 10, 10),
    "csf": (150, 160, 920, 120),
    "grey": (470, 490, 470, 540),
    "white": (650, 660, 360, 430),
    "brainstem": (600, 610, 400, 450),
    "bone": (60, 70, 60, 60),
    "fat": (900, 900, 420, 420),
    "muscle": (350, 420, 190, 250),
    "vein": (220, 930, 120, 130),
    "artery": (180, 760, 70, 80),
    "mucosa": (380, 850, 700, 600),
    "vs": (440, 880, 430, 560),
    "cyst": (220, 240, 850, 300),
    "edema": (450, 460, 760, 860),
    "enhancing": (480, 950, 600, 720),
    "necrosis": (270, 290, 850, 400),
}
_TISSUES = tuple(_INTENSITIES)

Vector = Sequence[float] | NDArray[np.float64]  # Three numbers, X, Y, Z.


@dataclass(frozen=True)
class PhantomCase:
    """One synthetic case on one grid.

    Args:
        images: modality (T1, ceT1, T2, FLAIR) to float32 (X, Y, Z), not negative.
        label: uint8 (X, Y, Z) in {0, 1}, the structure that the task segments; all zero without tumor.
        affine: voxel index to mm, RAS+.
        tissue: uint8 (X, Y, Z); 1 necrosis or cyst, 2 edema, 3 enhancing tumor, 0 elsewhere.
    """

    images: dict[str, NDArray[np.float32]]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    tissue: NDArray[np.uint8]


def make_phantom(
    seed: int,
    *,
    task: str = "vs",
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    tumor: bool = True,
    diameter: float | None = None,
    noise: float = 18.0,
) -> PhantomCase:
    """A synthetic case: the same seed, grid and options give the same voxels.

    Args:
        seed: decides everything that is random.
        task: vs, glioma or surrogate_t2_cet1 (the glioma phantom, labeled with its enhancing part).
        shape: voxels (X, Y, Z); default the small size of the task in `SIZES`.
        spacing: mm (X, Y, Z); default as `shape`.
        tumor: draw one; otherwise the label is all zero.
        diameter: of the tumor (glioma: of its edema), mm; default random, 3 to 25 (glioma: 40 to 70).
        noise: standard deviation of the complex noise, on the scale where the brightest tissue is about 1000.

    Raises:
        ValueError: unknown task, or a grid or diameter that is not positive.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(TASKS)}")
    kind = "vs" if task == "vs" else "glioma"
    default_shape, default_spacing = SIZES[(kind, "small")]
    shape, spacing = tuple(shape or default_shape), tuple(spacing or default_spacing)
    if len(shape) != 3 or len(spacing) != 3 or min(shape) < 1 or min(spacing) <= 0:
        raise ValueError(f"shape {shape} and spacing {spacing}: expected three positive numbers each")
    if diameter is not None and not diameter > 0:
        raise ValueError(f"diameter is {diameter}, expected millimeters, more than 0")
    rng = np.random.default_rng([seed, kind == "vs"])
    head = np.asarray(shape) * np.asarray(spacing) > 150  # A whole head fits, or only the region around the canal.
    side = rng.choice((-1.0, 1.0))
    center = rng.normal(0, 2, 3) + (0 if kind == "glioma" or head[:2].all() else np.array((side * 27, 2, 0)))
    canvas = _Canvas(rng, shape, spacing, center)
    (_paint_vs if kind == "vs" else _paint_glioma)(canvas, side, tumor, diameter)
    images = {name: canvas.image(index, noise, stripped=kind == "glioma") for index, name in enumerate(MODALITIES)}
    tissue = np.zeros(shape, dtype=np.uint8)
    for value, names in enumerate((("necrosis", "cyst"), ("edema",), ("enhancing", "vs")), start=1):
        tissue[np.isin(canvas.tissue, [_TISSUES.index(name) for name in names])] = value
    label = (tissue == 3 if task == "surrogate_t2_cet1" else tissue > 0).astype(np.uint8)
    return PhantomCase(images, label, canvas.affine, tissue)


class _Canvas:
    """A tissue map to paint on, in mm; ellipsoids come out slightly irregular."""

    def __init__(
        self, rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], center: NDArray[np.float64]
    ) -> None:
        self.rng, self.spacing = rng, np.asarray(spacing, dtype=float)
        self.tissue = np.zeros(shape, dtype=np.uint8)
        self.affine = np.diag([*self.spacing, 1.0])
        self.affine[:3, 3] = center - (np.asarray(shape) - 1) / 2 * self.spacing
        self.axes = [self.affine[i, 3] + np.arange(shape[i]) * self.spacing[i] for i in range(3)]
        self.wobble = self.field(12.0)

    def field(self, scale: float) -> NDArray[np.float32]:
        """Smooth random field over the grid, about unit variance; `scale` is its correlation length in mm."""
        weights = []
        for axis in self.axes:
            knots = np.arange(axis[0] - 2 * scale, axis[-1] + 2 * scale, scale)
            kernel = np.exp(-0.5 * ((axis[:, None] - knots) / (0.7 * scale)) ** 2)
            weights.append((kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32))
        coarse = self.rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
        return np.einsum("xa,yb,zc,abc->xyz", *weights, coarse, optimize=True)

    def ellipsoid(
        self, center: Vector, radii: Vector, turn: float = 0.0, rough: float = 0.04
    ) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
        """Where an ellipsoid lies: a box of slices, and in it the squared radius, 1 on the surface.

        `turn` is in degrees about z; `rough` the relative amplitude of the irregularity.
        """
        reach = np.array((max(radii[:2]), max(radii[:2]), radii[2])) * (1 + 3 * rough)
        box = tuple(
            slice(*np.searchsorted(axis, (c - r, c + r))) for axis, c, r in zip(self.axes, center, reach, strict=True)
        )
        x, y, z = np.meshgrid(
            *(a[s].astype(np.float32) - np.float32(c) for a, s, c in zip(self.axes, box, center, strict=True)),
            indexing="ij",
            sparse=True,
        )
        cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        squared = ((x * cos + y * sin) / radii[0]) ** 2 + ((y * cos - x * sin) / radii[1]) ** 2 + (z / radii[2]) ** 2
        return box, squared * (1 + rough * self.wobble[box]) ** 2

    def paint(
        self,
        tissue: str,
        center: Vector,
        radii: Vector,
        turn: float = 0.0,
        *,
        rough: float = 0.04,
        only: Sequence[str] = (),
    ) -> None:
        """Fill an ellipsoid (the last one painted wins); with `only`, just where one of those tissues is."""
        box, squared = self.ellipsoid(center, radii, turn, rough)
        inside = squared < 1
        if only:
            inside &= np.isin(self.tissue[box], [_TISSUES.index(name) for name in only])
        self.tissue[box][inside] = _TISSUES.index(tissue)

    def image(self, modality: int, noise: float, *, stripped: bool) -> NDArray[np.float32]:
        """Intensities: contrast that varies by case, texture, partial volume, bias, Rician noise."""
        table = np.array([_INTENSITIES[name][modality] for name in _TISSUES], dtype=np.float32)
        table *= self.rng.normal(1, 0.04, len(table)).astype(np.float32)
        texture = np.full(len(table), 0.03, dtype=np.float32)
        texture[[_TISSUES.index(name) for name in ("vs", "enhancing", "edema", "muscle", "fat")]] = 0.09
        image = table[self.tissue]
        image *= 1 + texture[self.tissue] * self.field(2.0)
        image = gaussian_filter(image, (0.4, 0.4, 0.4) / self.spacing, truncate=3)
        image *= 1 + 0.08 * self.field(60.0)
        real = image + noise * self.rng.standard_normal(image.shape, dtype=np.float32)
        image = np.hypot(real, noise * self.rng.standard_normal(image.shape, dtype=np.float32))
        if stripped:
            image[self.tissue == 0] = 0
        return image.astype(np.float32)


def _paint_vs(canvas: _Canvas, side: float, tumor: bool, diameter: float | None) -> None:
    """The head at the level of the internal auditory canals, brainstem at the origin; tumor at one side's porus."""
    rng, paint = canvas.rng, canvas.paint
    paint("fat", (0, 0, 5), (76, 95, 95), rough=0.01)
    paint("muscle", (0, 0, 5), (72, 90, 92), rough=0.01)
    paint("bone", (0, -8, 10), (68, 80, 85), rough=0.01)
    for tissue, shrink in (("csf", 0), ("grey", 3), ("white", 9)):  # Cerebrum, above the tentorium.
        paint(tissue, (0, -5, 64), (66 - shrink, 78 - shrink, 44 - shrink))
    paint("csf", (0, -26, -2), (56, 44, 38))  # Posterior fossa.
    paint("bone", (0, 38, -18), (40, 24, 26))
    paint("air", (0, 48, -22), (22, 20, 16))
    for hand in (-1, 1):
        paint("csf", (hand * 34, 32, 22), (29, 32, 26))  # Temporal lobe.
        paint("grey", (hand * 34, 32, 22), (27, 30, 24))
        paint("white", (hand * 34, 31, 23), (20, 23, 18), rough=0.15)
        paint("bone", (hand * 42, 8, -3), (30, 13, 17), turn=-hand * 18)  # Petrous bone.
        paint("air", (hand * 62, -6, -6), (9, 12, 14), rough=0.15)  # Mastoid cells.
        paint("csf", (hand * 29, 3, 0), (9, 2.6, 2.8))  # Internal auditory canal and, flaring,
        paint("csf", (hand * 20, 0, 0), (8, 5, 5))  # its porus.
        paint("csf", (hand * 40, 9, -1), (3.4, 3.0, 2.6))  # Cochlea,
        paint("csf", (hand * 42, 1, 0), (2.2, 3.0, 2.6))  # vestibule,
        paint("csf", (hand * 46, -2, 1), (4.0, 1.0, 3.5))  # semicircular canals.
        paint("csf", (hand * 44, -3, 3), (1.0, 4.0, 2.5))
        paint("artery", (hand * 27, 19, -7), (9, 3.2, 3.2), turn=hand * 20)  # Carotid in the bone.
        paint("grey", (hand * 25, -32, -4), (25, 24, 24))  # Cerebellum: cortex with folia, white matter.
        box, squared = canvas.ellipsoid((hand * 25, -32, -4), (25, 24, 24))
        cortex = (squared < 0.98) & (squared > 0.25) & (np.sin(26 * np.sqrt(squared)) > 0.93)
        canvas.tissue[box][cortex & (canvas.tissue[box] == _TISSUES.index("grey"))] = _TISSUES.index("csf")
        paint("white", (hand * 22, -28, -3), (15, 12, 12), rough=0.2)
        paint("brainstem", (hand * 15, -11, -1), (9, 8, 10))  # Middle cerebellar peduncle.
        paint("vein", (hand * 47, -24, -2), (5, 6, 22), only=("bone", "csf", "grey"))  # Sigmoid sinus.
        paint("vein", (hand * 33, -1, -16), (6, 5, 7))  # Jugular bulb.
        paint("artery", (hand * 13, 8, -4), (9, 0.8, 0.9), turn=hand * 15, only=("csf",))  # Cerebellar artery.
        paint("vein", (hand * 19, 4, 7), (1.0, 7, 1.1), only=("csf",))  # Petrosal vein.
        paint("brainstem", (hand * 17, -1, 0.5), (11, 0.8, 0.8), turn=hand * 15, only=("csf",))  # Nerves VII and VIII.
        paint("mucosa", (hand * 12, 50, -22), (7, 14, 8), rough=0.15)
    paint("grey", (0, -38, -2), (10, 16, 18))
    paint("brainstem", (0, 0, 0), (16, 13, 40))
    paint("csf", (0, -15, 0), (7, 4.5, 10))  # Fourth ventricle.
    paint("artery", (rng.normal(0, 2), 16, 0), (1.9, 1.9, 60))  # Basilar artery.
    diameter = diameter or float(np.clip(rng.lognormal(2.45, 0.5), 3, 25))
    if not tumor:
        return
    soft = ("csf", "grey", "white", "brainstem", "artery", "vein")
    # Small ones lie in the canal, large ones mostly in the cistern.
    shift = 25 + 4 * rng.uniform() - 0.42 * max(diameter - 4, 0)
    center = np.array((side * shift, 3 - 0.22 * max(diameter - 6, 0), 0.08 * diameter * rng.normal()))
    radii: NDArray[np.float64] = diameter / 2 * np.array((1, rng.uniform(0.75, 0.95), rng.uniform(0.75, 0.95)))
    stem = (side * min(shift + 0.6 * diameter, 30), 3, 0)
    paint("vs", stem, (min(diameter, 12) / 2, 2.8, 3.0), only=("csf", "brainstem"))
    paint("vs", center, radii, turn=side * rng.uniform(-25, 25), rough=0.08, only=soft)
    if diameter < 6:
        paint("vs", (side * shift, 3, 0), radii)
    if diameter > 14 and rng.uniform() < 0.5:
        offset: NDArray[np.float64] = rng.uniform(-0.3, 0.3, 3) * radii
        paint("cyst", center + offset, radii * rng.uniform(0.25, 0.45), rough=0.15, only=("vs",))


def _paint_glioma(canvas: _Canvas, side: float, tumor: bool, diameter: float | None) -> None:
    """A brain without skull; the tumor in one hemisphere: necrosis in an enhancing rim in edema."""
    rng, paint = canvas.rng, canvas.paint
    brain: NDArray[np.float64] = np.array((64.0, 80.0, 58.0)) * rng.uniform(0.96, 1.04)
    box, squared = canvas.ellipsoid((0, 0, 0), brain, rough=0.02)
    depth = 1 - np.sqrt(squared)
    folds = canvas.field(6.0)[box]
    region = canvas.tissue[box]
    for tissue, threshold, amplitude in (("csf", 0.0, 0.0), ("grey", 0.03, 0.03), ("white", 0.14, 0.06)):
        region[depth - amplitude * np.abs(folds) > threshold] = _TISSUES.index(tissue)
    sulci = (np.abs(folds) < 0.1) & (depth > 0) & (depth < 0.16)
    region[sulci] = _TISSUES.index("csf")
    paint("csf", (0, 0, 36), (1.5, 75, 36), rough=0.2, only=("grey", "white"))  # Between the hemispheres.
    paint("vein", (0, -10, brain[2] - 4), (3, 60, 3), only=("csf", "grey", "white"))
    for hand in (-1, 1):
        paint("grey", (hand * 24, 6, 2), (8, 15, 10), turn=hand * 15)
        paint("csf", (hand * 10, -4, 12), (6, 30, 8), turn=-hand * 8)  # Lateral ventricle.
        paint("vein", (hand * 3, -12, 8), (1.2, 14, 1.2))
    paint("brainstem", (0, -16, -40), (13, 12, 30), only=("csf", "grey", "white"))
    if not tumor:
        return
    radius = (diameter or rng.uniform(40, 70)) / 2
    center = np.array((side * rng.uniform(26, 36), rng.uniform(-35, 35), rng.uniform(-5, 22)))
    stretch = rng.uniform(0.75, 1.1, 3)
    turn = rng.uniform(0, 180)
    paint("edema", center, radius * stretch, turn, rough=0.16, only=("white", "grey"))
    core = radius * rng.uniform(0.42, 0.65) * stretch
    place = center + rng.uniform(-0.15, 0.15, 3) * radius
    paint("enhancing", place, core, turn, rough=0.1, only=("csf", "grey", "white", "brainstem", "vein", "edema"))
    place = place + rng.uniform(-0.1, 0.1, 3) * core
    paint("necrosis", place, core * rng.uniform(0.45, 0.75), turn, rough=0.2, only=("enhancing",))
