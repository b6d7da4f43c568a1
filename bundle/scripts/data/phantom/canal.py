"""What lies in and around the internal auditory canals of the vs phantom: bone and labyrinth, nerves, vessels.

Head coordinates, RAS+ mm; positions are written for the right side and mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scripts.data.phantom.canvas import Canvas, either, ellipsoid, tube

# Medial and lateral end of the canal and the middle of the cochlea, mm. The cochleae of three patients of
# crossMoDA lie 68 to 71 mm apart.
PORUS, FUNDUS, COCHLEA = (23.3, 0.0, 0.5), (31.6, 2.6, 0.2), (34.6, 7.2, -3.0)
BONE = ("bone", "marrow", "air", "mucosa")
CISTERN = ("csf", "pulsation")
SOFT = (*CISTERN, "grey", "white", "brainstem", "cerebellum", "choroid", "dura")


@dataclass(frozen=True)
class Side:
    """One ear's geometry.

    Args:
        hand: 1 right, -1 left.
        porus: medial end of the canal, head coordinates, mm.
        fundus: lateral end.
        radius: of the canal, mm.
        flare: how much wider its porus is.
        cochlea: its middle.
        vessel: 1 where the vein of this side is the dominant one, less elsewhere.
    """

    hand: float
    porus: NDArray[np.float64]
    fundus: NDArray[np.float64]
    radius: float
    flare: float
    cochlea: NDArray[np.float64]
    vessel: float

    def at(self, x: float, y: float, z: float) -> NDArray[np.float64]:
        """A point given for the right side with the standard porus, moved to this ear."""
        return np.array((self.hand * x, y, z)) + self.porus - np.array((self.hand * PORUS[0], *PORUS[1:]))

    def along(self, share: float, up: float = 0.0, front: float = 0.0) -> NDArray[np.float64]:
        """A point of the canal: 0 porus, 1 fundus, then mm up and to the front of its axis."""
        return self.porus + share * (self.fundus - self.porus) + np.array((0, front, up))


def draw_side(rng: np.random.Generator, hand: float) -> Side:
    """Draw one ear: canals differ in length, width and direction."""
    mirror = np.array((hand, 1, 1))
    porus = mirror * (np.array(PORUS) + rng.normal(0, (0.7, 0.8, 0.7)))
    fundus = mirror * (np.array(FUNDUS) + rng.normal(0, (0.7, 0.6, 0.5)))
    cochlea = fundus + mirror * (np.array(COCHLEA) - FUNDUS + rng.normal(0, (0.4, 0.5, 0.5)))
    return Side(hand, porus, fundus, rng.uniform(1.9, 2.9), rng.uniform(1.2, 2.0), cochlea, rng.uniform(0.55, 1.15))


def paint_ear(canvas: Canvas, ear: Side) -> None:
    """Petrous apex, mastoid and middle ear, the canal, cochlea, vestibule and semicircular canals."""
    rng, at, paint = canvas.rng, ear.at, canvas.paint
    apex = rng.choice(("marrow", "marrow", "marrow", "air", "bone"))
    paint(apex, ellipsoid(at(17, 11, -3), (6.5, 3.2, 5), -ear.hand * 42), rough=0.8, only=BONE)
    paint("marrow", ellipsoid(at(30, 12, -10), (7, 5, 6)), rough=1.5, only=("bone",))
    _paint_mastoid(canvas, ear)
    hook = tube([at(55, 0, 3), at(66, 0, 0), at(80, -1, -3)], (3.0, 3.4, 4))
    paint("bone", tube([at(52, 0, 3), at(68, 0, 0)], 5.5), only=("muscle", "fat", "bone", "marrow"))
    paint("air", hook)  # External ear canal,
    paint("air", ellipsoid(at(46, 5, 1), (2.8, 5, 7)), rough=0.6)  # middle ear.
    # Otic capsule: dense bone around the labyrinth, so that no marrow touches it.
    paint("bone", ellipsoid(at(36.5, 2, 0), (9, 9, 8.5)), only=BONE, rough=0.3)
    canal = either(
        tube(
            [ear.along(-0.05), ear.along(0.5), ear.along(1.0)],
            (ear.radius * ear.flare, ear.radius * 1.08, ear.radius * 0.8),
        ),
        ellipsoid(ear.along(-0.12), (3, ear.radius * ear.flare * 1.2, ear.radius * ear.flare)),
        smooth=1.0,
    )
    paint("csf", canal, rough=0.12)
    _paint_labyrinth(canvas, ear)
    vein = tube([at(38, -9, -3), at(41, -12, -2)], 0.6)  # Vestibular aqueduct.
    paint("labyrinth", vein, only=BONE)


def _paint_mastoid(canvas: Canvas, ear: Side) -> None:
    """Air cells, more or fewer, at times opacified by fluid or swollen mucosa; marrow where there are none."""
    rng = canvas.rng
    shape = ellipsoid(ear.at(54, -9, -8), rng.uniform(0.75, 1.1) * np.array((12.5, 17, 22)), ear.hand * -20)
    box = canvas.box(shape)
    cells = canvas.field(2.2, box=box)
    where = canvas.depth(shape, box) + 2 * cells > 0
    threshold = rng.choice((-0.6, 0.0, 0.9))  # Well, moderately or hardly pneumatized.
    canvas.put("marrow", box, where & (cells < threshold - 1.2), only=("bone", "muscle", "fat"))
    canvas.put("bone", box, where, only=("muscle", "fat"))
    canvas.put("air", box, where & (cells > threshold), only=("bone", "marrow"))
    if rng.uniform() < 0.3:
        swollen = canvas.field(8.0, box=box) > rng.uniform(-0.5, 1.0)
        canvas.put("mucosa", box, where & (cells > threshold) & swollen, only=("air",))


def _paint_labyrinth(canvas: Canvas, ear: Side) -> None:
    """Cochlea as a spiral of two and a half turns, vestibule, three semicircular canals."""
    hand, paint = ear.hand, canvas.paint
    # The cochlea's axis points forward and outward; turns shrink towards its apex.
    axis = np.array((hand * 0.75, 0.62, -0.2))
    axis /= np.linalg.norm(axis)
    across = np.cross(axis, (0, 0, 1.0))
    across /= np.linalg.norm(across)
    upward = np.cross(across, axis)
    angle = np.linspace(0, 2.5 * 2 * np.pi, 26)
    share = angle / angle[-1]
    radius = 3.1 - 2.1 * share
    spiral = ear.cochlea + (
        (radius * np.cos(angle))[:, None] * across
        + (radius * np.sin(angle))[:, None] * upward
        + ((share - 0.5) * 3.8)[:, None] * axis
    )
    paint("labyrinth", tube(list(spiral), list(1.05 - 0.35 * share)))
    shift = ear.fundus - np.array((hand * FUNDUS[0], *FUNDUS[1:]))
    middle = np.array((hand * 37.6, -0.4, 0.8)) + shift
    paint("labyrinth", ellipsoid(middle, (1.7, 2.8, 2.3), hand * 25))
    paint("labyrinth", tube([middle + (0, 2, -1.5), ear.cochlea + 3.1 * across], 0.9))
    turn = np.linspace(0, 2 * np.pi, 15)
    cos, sin = 3.1 * np.cos(turn)[:, None], 3.1 * np.sin(turn)[:, None]
    normals = ((0.0, 0.15, 1.0), (hand * 0.7, -0.7, 0.0), (hand * 0.7, 0.7, 0.0))  # Lateral, superior, posterior.
    offsets = ((hand * 3.4, -2.2, 0.3), (hand * 1.8, 1.4, 3.6), (hand * 2.6, -4.2, 1.2))
    for normal, offset in zip(normals, offsets, strict=True):
        n = np.array(normal) / np.linalg.norm(normal)
        u = np.cross(n, (0.3, 0.2, 1.0) if abs(n[2]) < 0.9 else (1.0, 0, 0))
        u /= np.linalg.norm(u)
        ring = middle + np.array(offset) + cos * u + sin * np.cross(n, u)
        paint("labyrinth", tube(list(ring), 0.62), only=(*BONE, "csf", "labyrinth"))


def paint_nerves(canvas: Canvas, ear: Side) -> None:
    """V with Meckel's cave, VI, VII and VIII from the brainstem through the canal, IX and X."""
    rng, at, along = canvas.rng, ear.at, ear.along
    thick = rng.uniform(0.85, 1.2)
    soft = CISTERN
    # The bundle leaves the brainstem below the pons and splits into four in the canal.
    root = at(13, -3 + rng.normal(0, 0.7), -4)
    bow = (root + ear.porus) / 2 + rng.normal(0, (0.3, 0.9, 0.9))
    for up, front, size in ((0.9, 0.9, 0.62), (-0.9, 0.9, 0.62), (0.8, -0.8, 0.55), (-0.9, -0.8, 0.55)):
        spread = ear.radius / 2.4
        start = root + (0, 0.8 * np.sign(front), 0.4 * up)
        points = [start, bow + (0, 0.7 * front, 0.5 * up), along(0.3, 0.75 * up * spread, 0.75 * front * spread)]
        points.append(along(1.0, up * spread, front * spread))
        canvas.paint("nerve", tube(points, size * thick), only=soft)
    canvas.paint("csf", ellipsoid(at(21.5, 20, 3), (3.2, 6.5, 3.4), -ear.hand * 10), only=(*BONE, *SOFT), rough=0.3)
    fifth = [at(13, 6, 4), at(18, 13, 6), at(21, 20, 4)]
    canvas.paint("nerve", tube(fifth, (1.9, 1.7, 1.2)), only=soft)
    for dz in (-1.5, 1.0):
        canvas.paint("nerve", tube([fifth[1], at(21.5, 24, 3 + dz)], 0.5), only=soft)
    canvas.paint("nerve", tube([at(5, 9, -10), at(8, 16, -2), at(10, 20, 4)], 0.5), only=soft)
    for dz in (-1.2, 0.6):
        canvas.paint("nerve", tube([at(11, -6, -13 + dz), at(20, -4, -12 + dz), at(27, -3, -14)], 0.6), only=soft)


def paint_vessels(canvas: Canvas, sides: list[Side]) -> None:
    """Sinuses, jugular bulbs, carotids, vertebrals, basilar and its branches; loops differ by side."""
    rng, paint = canvas.rng, canvas.paint
    everything = (*SOFT, *BONE, "muscle", "fat", "nerve")
    soft = (*CISTERN, "choroid", "nerve")
    bend = rng.normal(0, 1.8, 3)
    basilar = [(bend[0] * 0.5, 10.5, -17), (bend[0], 14.8, -6), (bend[1], 15.4, 4), (bend[2] * 0.5, 16.5, 18)]
    paint("artery", tube(basilar, rng.uniform(1.4, 1.9)), only=(*SOFT, "nerve"))
    torcula = np.array((0, -77, 13.0))
    for ear in sides:
        hand, at, big = ear.hand, ear.at, ear.vessel
        sigmoid = [
            torcula,
            np.array((hand * 36, -64, 12)),
            at(51, -37, 9),
            at(48, -22, 1),
            at(43, -16, -11),
            at(35, -10, -18),
        ]
        paint("vein", tube(sigmoid, [2.5 * big + 1.2, 2.8 * big + 0.8, *(3.9 * big + 0.4,) * 4]), only=everything)
        high = rng.uniform(-13, -7)
        paint("vein", ellipsoid(at(30.5, -5, high - 3), (4.5 * big + 1, 4 * big + 1, 6)), rough=0.3, only=everything)
        paint("vein", tube([at(30.5, -5, high - 3), at(29, 2, -30), at(29, 4, -60)], 4 * big + 0.8), only=everything)
        paint("vein", tube([at(13, 13, 9.5), at(28, -1, 9.5), at(46, -19, 7)], 0.9), only=everything)
        paint("vein", tube([at(9, 18, -2), at(17, 8, -10), at(27, -3, -14)], rng.uniform(0.8, 1.6)), only=everything)
        paint("bone", tube([at(30, 10, -22), at(29.5, 11, -10), at(17, 20, -7)], 4), only=BONE)
        carotid = [at(30, 8, -60), at(30, 9, -22), at(29.5, 11, -11), at(24, 15, -8), at(14, 23, -6), at(11, 27, 3)]
        carotid += [at(10.5, 35, 8), at(11, 31, 15), at(13, 33, 22)]
        paint("artery", tube(carotid, 2.4))
        paint("artery", tube([(hand * 12, -2, -60), (hand * 7, 4, -28), (0, 11, -17)], 1.5 * big + 0.4), only=soft)
        _paint_branches(canvas, ear, np.asarray(basilar[1]), np.asarray(basilar[3]))


def _paint_branches(canvas: Canvas, ear: Side, below: NDArray[np.float64], above: NDArray[np.float64]) -> None:
    """Anterior inferior and superior cerebellar artery, petrosal vein and its tributaries."""
    rng, at = canvas.rng, ear.at
    soft = (*CISTERN, "choroid", "nerve")
    loop = rng.choice((-0.9, -0.3, 0.15, 0.5))  # Where the loop turns: before, at, or inside the canal.
    turn = ear.along(loop, *rng.normal(0, 0.5, 2))
    wobble = rng.normal(0, 1.0, (4, 3))
    aica = [below, at(9, 10, -5) + wobble[0], at(16, 3, -4) + wobble[1], turn, at(19, -4, -3) + wobble[2]]
    canvas.paint("artery", tube([*aica, at(24, -9, -7) + wobble[3]], rng.uniform(0.45, 0.8)), only=soft)
    sca = [above, at(10, 13, 15) + wobble[2], at(18, 2, 15), at(20, -10, 17), at(14, -24, 24)]
    canvas.paint("artery", tube(sca, 0.7), only=soft)
    petrosal = [at(20, -8, 1) + wobble[1], at(18.5, 0, 5) + wobble[0], at(20, 7, 9.5)]
    canvas.paint("vein", tube(petrosal, rng.uniform(0.6, 1.2)), only=(*soft, "cerebellum"))
    canvas.paint("vein", tube([petrosal[1], at(13, 8, 3), at(4, 13.5, 0)], 0.5), only=soft)
    canvas.paint("vein", tube([petrosal[0], at(24, -9, -3), at(33, -14, -4)], 0.6), only=(*soft, "cerebellum"))
