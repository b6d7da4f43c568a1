"""The anatomy of the glioma phantom: a brain without skull, and a glioma in it, painted on a canvas.

Head coordinates, RAS+ mm, origin in the middle of the brain. Both hemispheres are one description in (|x|, y, z); the
canvas's warp, the folds and the tumor tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter, label, map_coordinates

from scripts.data.phantom.canvas import Array, Box, Canvas, Shape, either, ellipsoid, tube
from scripts.data.phantom.mri import ID

# Landmarks were placed after the MNI template: x = 0.95 x_MNI, y = 0.95 (y_MNI + 17), z = 0.92 (z_MNI - 8), about.
_CEREBRUM = ellipsoid((0, 0, 2), (69, 85, 61))
_TEMPORAL = tube([(38, 35, -30), (45, 6, -25), (48, -24, -17), (38, -48, -6)], (13, 18, 19, 19))
_HIPPOCAMPAL = tube([(27, 19, -31), (24, 4, -27), (25, -16, -21), (27, -36, -13)], (9, 11, 11, 10))  # Medial to it.
_INSULA = ellipsoid((38.5, 21, -4), (1.2, 16, 10), -8)  # The fluid outside of it.
_CORE = ellipsoid((0, 10, 0), (33, 38, 19))  # Neither cortex nor sulci: from the insula to the corpus callosum.
_CEREBELLUM = either(ellipsoid((25, -43, -39), (29, 28, 21)), ellipsoid((0, -42, -34), (15, 25, 23)), smooth=6)
_BRAINSTEM = tube([(0, -7, -19), (0, -9, -25), (0, -7, -36), (0, -13, -49), (0, -22, -72)], (12, 12.5, 15.5, 11, 8))
_PEDUNCLE = tube([(11, -13, -37), (25, -34, -40)], (8, 7))
_THALAMUS = ellipsoid((10.5, 0, -1), (8, 14, 8.5), -20)
_CAUDATE = tube([(12, 34, -6), (14, 26, 3), (17, 8, 12), (20, -10, 10)], (5, 5.5, 3.5, 2))
_PUTAMEN = ellipsoid((25, 18, -5), (5.5, 16, 10), -12)
_PALLIDUM = ellipsoid((19, 12, -7), (4.5, 9, 6), -20)
_LATERAL = either(
    tube([(9, 45, -3), (8, 30, 5), (9, 12, 11), (15, -10, 9), (24, -25, 1), (24, -44, -2)], (3.4, 6, 5, 5, 7.5, 3)),
    tube([(24, -24, 0), (33, -8, -16), (31, 8, -26)], (5.5, 3, 2)),
    smooth=2,
)
_THIRD = either(ellipsoid((0, 5, -7), (2.6, 13, 9)), tube([(0, -8, -12), (0, -17, -24)], (1.4, 1.2)))
_FOURTH = either(ellipsoid((0, -25, -36), (7, 5, 9)), tube([(0, -17, -24), (0, -22, -52)], (1.3, 1.6)), smooth=2)
_CHOROID = tube([(23, -27, 1), (16, -12, 7), (11, 8, 8)], (2.6, 1.8, 0.9))
_VEINS = either(
    tube([(0, -22, 5), (0, -50, -3), (0, -76, -16)], (1.8, 2.0, 2.4)),  # Straight sinus.
    tube([(1.8, 16, -1), (2, -10, 4), (0.5, -22, 5)], (0.8, 1.1, 1.6)),  # Internal cerebral veins.
)
_ARTERIES = either(
    tube([(0, 3, -58), (0, 9, -42), (0, 9, -22)], (1.6, 1.8, 1.7)),  # Basilar,
    tube([(0, 9, -22), (9, 5, -21), (19, -10, -17)], (1.3, 1.1, 0.9)),  # posterior,
    tube([(9, 22, -27), (20, 23, -22), (33, 25, -17), (38, 14, -9), (42, -8, -2)], (1.9, 1.5, 1.4, 1.2, 0.9)),  # middle
    tube([(9, 22, -27), (3, 30, -22), (1.5, 52, -8), (1.5, 50, 14), (1.5, 30, 24)], (1.6, 1.3, 1.2, 1.0, 0.8)),
)
_LATTICE_MM, _STEP_MM = 88.0, 2.75  # The folds' lattice: half its width, and the distance of its points.


@dataclass(frozen=True)
class _Person:
    """What differs between brains, apart from the canvas's warp.

    Args:
        scale: of the brain along X, Y, Z.
        atrophy: width of sulci and ventricles, 1 is middle-aged.
        cortex: thickness, mm.
        depth: of a typical sulcus, mm.
        folds: sulci lie at its zeros; value about the distance to them, mm; on the lattice, as the next two.
        deepness: of sulci, relative, mean 0, standard deviation 1.
        courses: veins run along its zeros.
    """

    scale: NDArray[np.float64]
    atrophy: float
    cortex: float
    depth: float
    folds: Array
    deepness: Array
    courses: Array


@dataclass(frozen=True)
class _Glioma:
    """Plan of a glioma: foci (center, radius of the solid part, mm), and what they are like.

    Args:
        foci: one or two.
        stretch: relative radii along X, Y, Z.
        volume: of everything, edema included, mm3.
        push: how far it displaces the brain, 0 to 0.5.
        rim: thickness of the enhancing rim, relative to the radius.
        enhances: False for a low grade.
    """

    foci: list[tuple[NDArray[np.float64], float]]
    stretch: NDArray[np.float64]
    volume: float
    push: float
    rim: float
    enhances: bool


def paint_brain(canvas: Canvas, side: float, tumor: bool, diameter: float | None) -> None:
    """A brain; the tumor in one hemisphere: a solid part, mostly enhancing around necrosis, in edema of white matter.

    Args:
        canvas: to paint on; its rng decides the rest.
        side: of the tumor, 1 right, -1 left.
        tumor: draw one.
        diameter: of the sphere with the volume of the tumor and its edema, mm; default random, 35 to 84.
    """
    person = _person(canvas.rng)
    glioma = _plan(canvas.rng, side, diameter) if tumor else None
    whole = (slice(0, canvas.tissue.shape[0]), slice(0, canvas.tissue.shape[1]), slice(0, canvas.tissue.shape[2]))
    for slab in canvas.slabs(whole):
        x, y, z = (axis[slab] / np.float32(s) for axis, s in zip(canvas.coordinates, person.scale, strict=True))
        outer = _outer(np.abs(x), y, z)
        inside = outer > 0
        x, y, z, outer = (values[inside] for values in (x, y, z, outer))
        if glioma:
            open_ = _open(glioma, x, y, z)
            x, y, z = _displace(glioma, x, y, z, outer)
        else:
            open_ = np.ones_like(x)
        canvas.tissue[slab][inside] = _tissue(person, x, y, z, outer, open_)
    if glioma:
        _paint_glioma(canvas, glioma)


def _person(rng: np.random.Generator) -> _Person:
    scale = rng.normal(1, 0.02) * rng.normal(1, 0.012, 3)
    atrophy, cortex, depth = float(np.exp(rng.normal(0, 0.25))), rng.uniform(2.4, 3.1), rng.uniform(13, 17)
    fields = []
    count = int(2 * _LATTICE_MM / _STEP_MM) + 1
    for narrow, wide in ((4.6, 8.5), (9.0, 30.0), (5.0, 8.0)):  # mm; a band, so that gyri are about equally wide
        white = np.random.default_rng(rng.integers(2**63)).standard_normal((count,) * 3, dtype=np.float32)
        field = gaussian_filter(white, narrow / _STEP_MM) - gaussian_filter(white, wide / _STEP_MM, truncate=2)
        fields.append(field / field.std())
    folds, deepness, courses = fields
    return _Person(scale, atrophy, cortex, depth, _as_distance(folds), deepness, _as_distance(courses))


def _as_distance(field: Array) -> Array:
    """The field over its slope: near its zeros the distance to them, mm."""
    slope = np.sqrt(sum(g * g for g in np.gradient(field, np.float32(_STEP_MM))))
    return (field / np.maximum(slope, np.float32(0.5) * slope.mean())).astype(np.float32)


def _look_up(field: Array, x: Array, y: Array, z: Array) -> Array:
    points = [(axis + np.float32(_LATTICE_MM)) * np.float32(1 / _STEP_MM) for axis in (x, y, z)]
    return map_coordinates(field, points, output=np.float32, order=1, mode="nearest")


# Anatomy. `a` is |x|; depths are in mm, negative outside.


def _base(a: Array, y: Array) -> Array:
    """Height of the cerebrum's lower surface: the orbital roof in front, the tentorium behind."""
    front = 1 / (1 + np.exp((20 - y) * np.float32(1 / 6)))
    rise = np.maximum(y - 40, 0) ** 2 * np.float32(0.006) + np.minimum(a, 40) * np.float32(0.15)
    return front * (rise - 28) + (1 - front) * (-11 - 13 * np.minimum(a * np.float32(1 / 45), 1))


def _cerebrum(a: Array, y: Array, z: Array) -> Array:
    narrow = a * (1 + np.float32(0.11) * np.tanh(y * np.float32(1 / 50)))  # The forehead is narrower than the occiput.
    return np.minimum(_CEREBRUM.depth(narrow, y, z), z - _base(a, y))


def _outer(a: Array, y: Array, z: Array) -> Array:
    """Depth below what is left of a head without skull: brain, and the fluid in its sulci and cisterns."""
    everywhere = np.full(3, 100.0)
    parts = [Shape(-everywhere, everywhere, _cerebrum), _TEMPORAL, _HIPPOCAMPAL, _CEREBELLUM, _BRAINSTEM]
    return either(*parts, smooth=15).depth(a, y, z) - np.float32(0.5)


def _displace(glioma: _Glioma, x: Array, y: Array, z: Array, outer: Array) -> tuple[Array, Array, Array]:
    """Where what lies at a point would lie without the tumor: nearer to its center; the surface stays."""
    center, radius = glioma.foci[0]
    dx, dy, dz = (axis - np.float32(c) for axis, c in zip((x, y, z), center, strict=True))
    near = np.exp((dx * dx + dy * dy + dz * dz) * np.float32(-1 / (1.5 * radius) ** 2))
    near *= np.clip(outer * np.float32(0.1), 0, 1) * np.float32(glioma.push)
    return x - near * dx, y - near * dy, z - near * dz


def _open(glioma: _Glioma, x: Array, y: Array, z: Array) -> Array:
    """How far sulci are open, 0 to 1: swollen gyri close those around the tumor."""
    reach = np.cbrt(glioma.volume * 3 / 4 / np.pi) * 1.1 + 10
    squared = sum((axis - np.float32(c)) ** 2 for axis, c in zip((x, y, z), glioma.foci[0][0], strict=True))
    return 1 - np.float32(0.85) * np.exp(-((squared * np.float32(1 / reach**2)) ** 2))


def _tissue(person: _Person, x: Array, y: Array, z: Array, outer: Array, open_: Array) -> NDArray[np.uint8]:
    """Ids of the tissues at points of the head, `outer` mm below the surface, where sulci are `open_` 0 to 1."""
    a, wide = np.abs(x), np.float32(person.atrophy) * open_
    result = np.full(x.shape, ID["csf"], dtype=np.uint8)

    # Sulci: sheets that go down from the surface, so they are looked up where a ray from within meets the surface.
    cerebrum, temporal = _cerebrum(a, y, z), _TEMPORAL.depth(a, y, z)
    medial = a - np.float32(0.4 + 0.4 * person.atrophy)
    depth = np.minimum(np.maximum(np.maximum(cerebrum, temporal), _HIPPOCAMPAL.depth(a, y, z)), medial)
    ray = (x - np.sign(x) * 26, y * np.float32(0.35), z * np.float32(0.75) - 3)
    far = np.clip(depth, 0, 25) * np.float32(0.8) / np.sqrt(sum(r * r for r in ray) + 1)
    place = [axis + far * r for axis, r in zip((x, y, z), ray, strict=True)]
    beyond = depth - np.float32(person.depth) * (1 + np.float32(0.35) * _look_up(person.deepness, *place))
    sulcus = np.hypot(_look_up(person.folds, *place), np.maximum(beyond, 0))
    sulcus -= np.float32(0.4) * wide * np.clip(np.float32(1.6) - depth * np.float32(0.11), -0.3, 1.5)
    sylvian = np.hypot(temporal, np.maximum(np.maximum(34 - a, -34 - y), np.maximum(y - 36, 0)))
    sylvian = np.minimum(sylvian, np.float32(0.8) - _INSULA.depth(a, y, z) * 3)
    sylvian -= wide * np.clip(1.7 - np.abs(a - 38) * np.float32(0.12), 0.5, 1.7)
    fluid = np.minimum(np.minimum(sulcus, sylvian), depth - np.float32(0.2) - np.float32(0.4) * wide)
    core = _CORE.depth(a, y, z)
    fluid = np.where(core > 0, np.minimum(core + 3, np.maximum(sylvian, core)), fluid)
    result[fluid > 0] = ID["grey"]
    result[fluid > np.float32(person.cortex)] = ID["white"]

    # Below the tentorium: folia turn about the cerebellum's root. Its white matter has an id of its own (nerve), as
    # the edema of a tumor above the tentorium does not reach it.
    behind, up = np.sqrt((y + 20) ** 2 + np.float32(0.5) * a * a), z + 36
    cerebellum = np.minimum(_CEREBELLUM.depth(a, y, z), _base(a, y) - 2 - z)
    wave = np.cos(np.arctan2(up, behind) * 46 + np.float32(0.6) * _look_up(person.courses, x, y, z))
    inside = cerebellum > 0
    result[inside] = ID["cerebellum"]
    result[inside & (wave > 0.9) & (cerebellum < 8)] = ID["csf"]
    result[inside & (wave < np.float32(0.2) * (8 - cerebellum)) & (cerebellum > 2.5 + 3 * wave)] = ID["nerve"]
    for shape, tissue in ((_PEDUNCLE, "nerve"), (_BRAINSTEM, "brainstem")):
        result[shape.depth(a, y, z) > 0] = ID[tissue]

    # Deep grey matter (the pallidum, with its many fibers, is like the brainstem), and ventricles.
    for shape, tissue in ((_CAUDATE, "grey"), (_PUTAMEN, "grey"), (_PALLIDUM, "brainstem"), (_THALAMUS, "grey")):
        result[shape.depth(a, y, z) > 0] = ID[tissue]
    swell = np.float32(1.6 * (person.atrophy - 1))
    lateral = np.minimum(_LATERAL.depth(a, y, z) + swell, a - np.float32(1.2))  # The septum lies between them.
    for ventricle in (lateral, _THIRD.depth(a, y, z) + np.float32(0.4) * swell, _FOURTH.depth(a, y, z)):
        result[ventricle > 0] = ID["csf"]
    fluid_here = result == ID["csf"]
    result[fluid_here & (_CHOROID.depth(a, y, z) > 0)] = ID["choroid"]

    # Vessels: in the fissures, in sulci near the surface, and the sagittal sinus.
    course = np.abs(_look_up(person.courses, x, y, z))
    result[fluid_here & (course < 0.7) & (outer < 9) & (z > -20) & (fluid > -9)] = ID["vein"]
    result[_VEINS.depth(a, y, z) > 0] = ID["vein"]
    result[(np.hypot(a, np.maximum(outer - 3, 0)) < 2.6) & (outer > 0.5) & (np.maximum(z, -y - 50) > 8)] = ID["vein"]
    result[fluid_here & (_ARTERIES.depth(a, y, z) > 0)] = ID["artery"]
    return result


# Glioma.


def _plan(rng: np.random.Generator, side: float, diameter: float | None) -> _Glioma:
    """Draw a glioma; volume and place are about those of the gliomas of BraTS."""
    drawn = float(np.clip(np.exp(rng.normal(np.log(65), 0.23)), 35, 84))
    radius = (diameter or drawn) / 2
    place = rng.normal((27, 2, 14), (7, 24, 14))
    center = np.clip(place, (16, -48, -22), (40, 46, 38))
    if center[2] < -6:  # Temporal lobe.
        center = np.array((rng.uniform(38, 46), np.clip(center[1], -30, 26), center[2]))
    center[0] *= side
    enhances = bool(rng.uniform() < 0.88)
    solid = radius * rng.uniform(0.52, 0.9)
    foci = [(center, solid)]
    angle, second = rng.uniform(0, 2 * np.pi), rng.uniform()
    if second < 0.15:
        shift = np.array((rng.uniform(-4, 4), np.cos(angle) * 1.5 * radius, 0.8 * np.sin(angle) * radius))
        other = np.clip(center + shift, (-44, -58, -20), (44, 56, 42))
        foci.append((other, solid * rng.uniform(0.35, 0.6)))
    stretch = np.exp(rng.normal(0, 0.14, 3))
    push = rng.uniform(0.1, 0.5) if rng.uniform() < 0.7 else 0.0
    rim = rng.uniform(0.1, 0.65)
    return _Glioma(foci, stretch / np.cbrt(stretch.prod()), 4 / 3 * np.pi * radius**3, push, rim, enhances)


def _paint_glioma(canvas: Canvas, glioma: _Glioma) -> None:
    box = _reach(canvas, glioma)
    tissue = canvas.tissue[box]
    if not tissue.size:
        return
    x, y, z = (axis[box] for axis in canvas.coordinates)
    lobes, bumps = canvas.field(11.0, box=box), canvas.field(4.5, box=box)
    uneven, fingers = canvas.field(8.0, box=box), canvas.field(7.0, box=box)

    # Depth below the surface of the solid part, which is lobed; relative to the radius of its focus: uneven rim.
    depth, inner = np.full(tissue.shape, -np.inf, np.float32), np.full(tissue.shape, -np.inf, np.float32)
    for center, radius in glioma.foci:
        r = sum(((axis - c) / s) ** 2 for axis, c, s in zip((x, y, z), center, glioma.stretch, strict=True))
        here = (radius - np.sqrt(r) + 0.13 * radius * lobes + 0.7 * bumps).astype(np.float32)
        inner = np.maximum(inner, here - np.float32(glioma.rim * radius) * (1 + np.float32(0.5) * uneven) - 1)
        depth = np.maximum(depth, here)
    brain = Canvas.lookup(("grey", "white", "brainstem"))
    hemisphere = np.minimum(x * np.sign(glioma.foci[0][0][0]) + 1.5, 3)  # The solid part does not cross the falx.
    solid = (depth > 0) & (hemisphere > 0) & (brain | Canvas.lookup(("csf", "vein", "artery", "choroid")))[tissue]
    solid &= brain[tissue] | (depth > 2.5)

    # Edema: the nearest voxels in terms of how easily fluid spreads, as many as the volume asks for.
    hinder = np.full(256, np.inf, dtype=np.float32)
    for name, factor in (("white", 1.0), ("brainstem", 2.2), ("grey", 2.6)):
        hinder[ID[name]] = factor
    away = np.maximum(-depth + np.float32(0.30 * glioma.foci[0][1]) * fingers + 6, 0.5) * hinder[tissue]
    away[(hemisphere < 0) & ~solid] += 25  # Through the corpus callosum, or not at all.
    away[solid] = 0
    voxel = float(canvas.spacing.prod()) / canvas.sub
    wanted = int(min(glioma.volume / voxel, np.isfinite(away).sum() - 1, away.size - 1))
    affected = away <= (np.partition(away, wanted, axis=None)[wanted] if wanted > 0 else -1)
    affected |= solid
    pieces, _ = label(affected)
    affected &= np.isin(pieces, np.unique(pieces[solid]))

    canvas.put("edema", box, affected)
    canvas.put("enhancing" if glioma.enhances else "infiltration", box, solid)
    if glioma.enhances:
        canvas.put("infiltration", box, solid & (uneven > 1.3) & (depth < 5))  # Gaps in the rim.
        canvas.put("necrosis", box, binary_erosion(solid) & (inner > 0))


def _reach(canvas: Canvas, glioma: _Glioma) -> Box:
    """Slices that hold the glioma with its edema."""
    far = 1.9 * np.cbrt(glioma.volume * 3 / 4 / np.pi) + 12
    centers = np.array([center for center, _ in glioma.foci])
    around = Shape(centers.min(0) - far, centers.max(0) + far, ellipsoid((0, 0, 0), (1, 1, 1)).depth)
    return canvas.box(around)
