"""A vestibular schwannoma of the vs phantom: a part in the cistern, at the porus, and a stem in the canal.

Small ones lie in the canal alone. Sizes and places are calibrated on three patients of crossMoDA.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data.phantom.canal import Side
from scripts.data.phantom.canvas import Canvas, Shape, either, ellipsoid, tube

MEDIAN_MM, SPREAD, LIMITS_MM = 14.2, 0.4, (4.5, 27.0)  # Diameter: lognormal; 14.2 mm is a ball of 1.5 cm3.
CYSTIC = 0.15  # Fraction of tumors with cysts.
_HOST = (
    "csf",
    "pulsation",
    "nerve",
    "artery",
    "vein",
    "choroid",
    "grey",
    "white",
    "brainstem",
    "cerebellum",
    "dura",
    "labyrinth",
)


@dataclass(frozen=True)
class Schwannoma:
    """One tumor.

    Args:
        shape: cisternal part and stem.
        canal: what the canal has been widened to, or None.
        center: of the cisternal part, mm.
        radius: of a ball of the cisternal part's volume, mm; 0 without such a part.
        parts: tissue and shape of what differs inside: cysts.
        loose: threshold on a random field above which its tissue is loose.
    """

    shape: Shape
    canal: Shape | None
    center: NDArray[np.float64]
    radius: float
    parts: tuple[tuple[str, Shape], ...]
    loose: float

    def open_canal(self, canvas: Canvas) -> None:
        """Widen the canal, as growing tumors do; before the soft tissue is painted."""
        if self.canal is not None:
            canvas.paint("csf", self.canal, only=("bone", "marrow", "csf", "dura"))

    def push(self, canvas: Canvas) -> None:
        """Compress brainstem and cerebellum, which are painted afterwards."""
        if self.radius > 5:
            canvas.push(self.center, self.radius, 0.75)

    def paint(self, canvas: Canvas) -> None:
        """The tumor itself, over whatever soft tissue is still there."""
        canvas.relax()
        canvas.paint("vs", self.shape, rough=0.3, only=_HOST)
        box = canvas.box(self.shape)
        canvas.put("vs_loose", box, canvas.field(3.5, box=box) > self.loose, only=("vs",))
        for tissue, shape in self.parts:
            canvas.paint(tissue, shape, rough=0.5, only=("vs", "vs_loose"))


def draw_schwannoma(rng: np.random.Generator, ear: Side, diameter: float | None) -> Schwannoma:
    """Draw a tumor.

    Args:
        rng: decides everything.
        ear: where it grows.
        diameter: of a ball of its volume, mm; default random.
    """
    drawn = float(np.clip(rng.lognormal(np.log(MEDIAN_MM), SPREAD), *LIMITS_MM))
    diameter = diameter or drawn
    volume = np.pi / 6 * diameter**3
    length = float(np.linalg.norm(ear.fundus - ear.porus))
    deep = rng.uniform(0.45, 1.0)  # How far it reaches into the canal.
    wide = ear.radius * rng.uniform(1.0, 1.3)
    loose = float(rng.choice((0.6, 1.3, 4.0)))
    if diameter < rng.uniform(5.5, 7.5):
        return _inside_canal(rng, ear, volume, length, loose)
    deep = min(deep, 0.6 * volume / (np.pi * wide**2 * 0.85 * length))
    spill = float(np.clip((diameter - 6) / 8, 0, 1))  # How far the stem swells where it leaves the canal.
    stem = tube(
        [ear.along(-0.25 * spill), ear.along(0.3 * deep), ear.along(deep)],
        (wide * (1 + 0.35 * spill), wide * (0.85 + 0.15 * spill), wide * 0.7),
    )
    stretch = rng.uniform(0.78, 1.25, 3)
    stretch /= np.cbrt(stretch.prod())
    # The bone's face keeps it medial; it leans back and, large, a little up.
    medial, up = rng.uniform(0.45, 0.75) * stretch[0], rng.normal(0.1, 0.12)
    middle = ear.along(0.0) + (ear.hand * 0.5, rng.normal(0, 0.6), 0.7)
    lean = np.array((-ear.hand * medial, -0.22, up))
    turn = ear.hand * rng.uniform(-40, 20)
    lobe, lobe_size = rng.normal(0, 0.32, 3), rng.uniform(0.6, 0.85)
    radius = 0.4 * diameter
    for _ in range(4):  # Until it has the volume asked for.
        center = middle + radius * lean
        shape = either(
            ellipsoid(center, radius * stretch, turn),
            ellipsoid(center + radius * lobe, radius * lobe_size * np.ones(3)),
            stem,
            smooth=2.0,
        )
        radius *= float(np.clip(volume / _volume(shape), 0.3, 3)) ** 0.4
    eroded = ellipsoid(ear.along(-0.05), (min(0.5 * radius, 5), min(0.6 * radius, 5) + 1, min(0.5 * radius, 4) + 1))
    canal = either(
        tube([ear.along(-0.25), ear.along(0.3 * deep), ear.along(deep)], (wide * 1.5, wide * 1.05, wide * 0.75)),
        eroded,
        smooth=1.0,
    )
    cysts: list[tuple[str, Shape]] = []
    if rng.uniform() < CYSTIC and diameter > 9:
        for _ in range(rng.integers(1, 4)):
            place = np.asarray(center + rng.uniform(-0.5, 0.5, 3) * radius * stretch, dtype=float)
            size = np.asarray(radius * rng.uniform(0.2, 0.5) * rng.uniform(0.7, 1.2, 3), dtype=float)
            cysts.append(("cyst", ellipsoid(place, size)))
    return Schwannoma(shape, canal, center, radius, tuple(cysts), loose)


def _volume(shape: Shape) -> float:
    """Volume of a shape, mm3, by counting points."""
    axes = [np.linspace(a, b, 32, dtype=np.float32) for a, b in zip(shape.low, shape.high, strict=True)]
    inside = shape.depth(*np.meshgrid(*axes, indexing="ij")) > 0
    return float(inside.mean() * np.prod((shape.high - shape.low) * 32 / 31))


def _inside_canal(rng: np.random.Generator, ear: Side, volume: float, length: float, loose: float) -> Schwannoma:
    """A tumor in the canal alone: a ball as long as it fits, then a plug of the canal's width."""
    wide = min(float(np.cbrt(volume * 3 / (4 * np.pi))), ear.radius * rng.uniform(1.0, 1.25))
    extent = max((volume - 4 / 3 * np.pi * wide**3) / (np.pi * wide**2), 0.05)  # Between the centers of its two ends.
    room = max(1 - (extent + wide) / length, -0.3)
    start = rng.uniform(min(0.05, room), max(room, 0.06))
    points = [ear.along(start), ear.along(start + extent / length)]
    return Schwannoma(tube(points, wide), tube(points, wide * 1.02), np.asarray(points[0]), 0.0, (), loose)
