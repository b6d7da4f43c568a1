"""The anatomy of the vs phantom: a head at the level of the internal auditory canals, painted on a canvas.

Head coordinates, RAS+ mm: the origin is in the pons, halfway between the two pori.
"""

from __future__ import annotations

import numpy as np

from scripts.data.phantom.canal import CISTERN, Side, draw_side, paint_ear, paint_nerves, paint_vessels
from scripts.data.phantom.canvas import Canvas, Shape, both, either, ellipsoid, grown, halfspace, tube
from scripts.data.phantom.mri import ID
from scripts.data.phantom.schwannoma import draw_schwannoma

BRAIN = (*CISTERN, "grey", "white", "brainstem", "cerebellum")


def paint_head(canvas: Canvas, side: float, tumor: bool, diameter: float | None) -> None:
    """A head; with a tumor, a schwannoma at one side's porus.

    Args:
        canvas: to paint on; its rng decides the rest.
        side: of the tumor, 1 right, -1 left.
        tumor: draw one.
        diameter: of a ball of its volume, mm; default random.
    """
    rng = canvas.rng
    size = rng.uniform(0.95, 1.05)
    sides = [draw_side(rng, hand) for hand in (-1.0, 1.0)]
    own = np.random.default_rng(rng.integers(2**63))  # The head does not depend on whether there is a tumor.
    schwannoma = draw_schwannoma(own, sides[side > 0], diameter) if tumor else None
    skull = ellipsoid((0, 2, 15), (70 * size, 88 * size, 64))
    fossa = _fossa(skull, sides)
    _paint_outside(canvas, skull, size)
    _paint_cerebrum(canvas, grown(skull, -8.0))
    _paint_base(canvas, skull)
    canvas.paint("dura", grown(fossa, 0.7), only=("grey", "white"))
    canvas.paint("csf", fossa, rough=0.35)
    for ear in sides:
        paint_ear(canvas, ear)
    if schwannoma:
        schwannoma.open_canal(canvas)
        schwannoma.push(canvas)
    _paint_cerebellum(canvas, fossa)
    _paint_brainstem(canvas)
    for ear in sides:
        _paint_cistern(canvas, ear)
        paint_nerves(canvas, ear)
    paint_vessels(canvas, sides)
    if schwannoma:
        schwannoma.paint(canvas)


def _fossa(skull: Shape, sides: list[Side]) -> Shape:
    """Posterior fossa: between clivus, petrous bones, occipital bone and tentorium."""
    walls = [halfspace((0, 18.5, 0), (0, 1, -0.45))]
    for ear in sides:
        walls.append(halfspace(ear.porus, (ear.hand * 0.68, 0.73, -0.15)))
        walls.append(halfspace((0, 0, 32), (ear.hand * 0.32, -0.15, 0.95)))
    return both(grown(skull, -7.5), ellipsoid((0, -28, 0), (57, 54, 52)), *walls)


def _paint_outside(canvas: Canvas, skull: Shape, size: float) -> None:
    """Skin, fat, muscle, skull with its marrow, and the space inside it, filled with CSF."""
    rng = canvas.rng
    head = ellipsoid((0, 6, 10), (79 * size, 98 * size, 140))
    scalp = rng.uniform(4, 7)
    canvas.layers(head, ((0, "skin"), (1.8, "fat"), (scalp, "muscle")))
    box = canvas.box(grown(head, -scalp))
    patches = canvas.field(4.0, box=box) > 0.9  # Fat between the muscles.
    canvas.put("fat", box, patches, only=("muscle",))
    canvas.layers(skull, ((0, "bone"), (2.0, "marrow"), (5.0, "bone"), (7.5, "csf")))


def _paint_cerebrum(canvas: Canvas, inner: Shape) -> None:
    """Gyri and sulci: where a smooth random field changes its sign lies a sulcus, beside it the cortex."""
    canvas_box = canvas.box(inner)
    folds = np.abs(canvas.field(6.0, box=canvas_box))
    for slab in canvas.slabs(canvas_box):
        depth = canvas.depth(inner, slab)
        inside = depth > 0
        if not inside.any():
            continue
        start = canvas_box[0].start
        fold = folds[slab[0].start - start : slab[0].stop - start]
        region = canvas.tissue[slab]
        taper = np.clip(1.1 - depth / 20, 0, 1)
        region[inside] = ID["white"]
        region[inside & ((fold < 0.16 + 0.36 * taper) | (depth < 3.2)) & (depth < 26)] = ID["grey"]
        region[inside & (fold < 0.13 * taper)] = ID["csf"]
    for hand in (-1, 1):
        horn = tube(
            [(hand * 28, 14, 9), (hand * 31, 2, 12), (hand * 27, -18, 18), (hand * 22, -30, 30)], (1, 1.8, 3, 5)
        )
        canvas.paint("csf", horn, only=BRAIN)  # Lateral ventricle: temporal horn and atrium.
        canvas.paint(
            "choroid", tube([(hand * 27, -16, 19), (hand * 22, -29, 31)], (1.0, 2.2)), only=("csf",), rough=0.8
        )
    cisterns = [
        ellipsoid((0, 2, 26), (22, 20, 9)),
        ellipsoid((0, 27, 16), (13, 10, 7)),
        ellipsoid((0, -18, 31), (9, 8, 7)),
    ]
    cisterns += [
        ellipsoid((0, 9, 33), (2, 11, 9)),
        ellipsoid((0, 60, 36), (1.3, 34, 24)),
    ]  # Third ventricle, and between
    cisterns += [ellipsoid((0, -62, 48), (1.3, 36, 26))]  # the hemispheres in front and behind.
    cisterns += [ellipsoid((hand * 40, 24, 25), (16, 2.0, 7), hand * -12) for hand in (-1, 1)]  # Sylvian fissures.
    for cistern in cisterns:
        canvas.paint("csf", cistern, only=BRAIN, rough=0.7)


def _paint_base(canvas: Canvas, skull: Shape) -> None:
    """Skull base and face: petrous bones, clivus, sphenoid and its sinus, sella, orbits, nose, maxillary sinuses."""
    rng = canvas.rng
    inside = grown(skull, -1.0)
    canvas.paint(
        "bone", both(inside, halfspace((0, 4, 8.5), (0, 0.52, 0.85)), halfspace((0, -22, 0), (0, -1, 0.3))), rough=0.5
    )
    front = ellipsoid((0, 96, 0), (78, 49, 200))
    face = both(ellipsoid((0, 6, 10), (70, 92, 140)), front, halfspace((0, 0, 21), (0, 0.1, 1)))
    canvas.paint("fat", face, rough=0.7)
    box = canvas.box(face)
    cheeks = (canvas.field(7.0, box=box) > 0.3) & (canvas.depth(face, box) > 0)
    canvas.put("muscle", box, cheeks, only=("fat",))
    deep = both(
        ellipsoid((0, 10, 0), (62, 60, 200)), halfspace((0, 4, -13), (0, 0.4, 0.9)), halfspace((0, 8, 0), (0, -1, 0))
    )
    canvas.paint("muscle", deep, rough=0.8, only=("bone", "marrow", "csf", "grey", "white", "fat"))
    canvas.paint("bone", ellipsoid((0, 30, -2), (16, 24, 17)), rough=0.8)  # Body of the sphenoid, clivus.
    canvas.paint("marrow", ellipsoid((0, 22, -10), (11, 5.5, 17)), rough=0.6, only=("bone",))
    for hand in (-1, 1):
        wing = both(inside, ellipsoid((hand * 36, 51, 2), (28, 4, 22), hand * 12))
        canvas.paint("bone", wing, rough=0.7)  # Wing of the sphenoid.
    canvas.paint("pituitary", ellipsoid((0, 31, 13), (6.5, 4.5, 3.5)))
    sinuses = [(ellipsoid((rng.normal(0, 2), 42, 1), (rng.uniform(9, 15), 12, 10)), "sphenoid")]
    sinuses += [(ellipsoid((0, 66, 4), (11, 18, 15)), "ethmoid"), (ellipsoid((0, 66, -28), (13, 24, 20)), "nose")]
    for hand in (-1, 1):
        sinuses.append((ellipsoid((hand * 30, 64, -28), (13, 15, 14)), "maxillary"))
        canvas.paint("vein", ellipsoid((hand * 10.5, 29, 11), (3.2, 8, 5.5)), rough=0.4)  # Cavernous sinus.
        canvas.paint("muscle", tube([(hand * 16, 52, 10), (hand * 30, 70, 3)], (3, 13)), only=("fat",))
        canvas.paint("fat", tube([(hand * 16, 52, 10), (hand * 30, 70, 3)], (2, 10.5)), only=("muscle",))
        canvas.paint("nerve", tube([(hand * 10, 38, 17), (hand * 17, 50, 11), (hand * 29, 66, 4)], 2.0))
        canvas.paint("skin", ellipsoid((hand * 31, 75, 4), (13, 12.5, 13)))
        canvas.paint("vitreous", ellipsoid((hand * 31, 75, 4), (12, 11.5, 12)))
        canvas.paint("muscle", ellipsoid((hand * 31, 83, 4), (4.5, 2.2, 4.5)))  # Lens: dark as muscle.
        canvas.paint("marrow", ellipsoid((hand * 49, 24, -19), (7, 5, 9)), only=("muscle", "bone", "fat"))  # Mandible.
    for shape, name in sinuses:
        canvas.paint("bone", grown(shape, 1.2), only=("fat", "muscle", "bone", "marrow"))
        canvas.paint("mucosa", shape, rough=0.3)
        lining = -rng.uniform(0.6, 2.5) if name != "nose" else -0.5
        canvas.paint("air", grown(shape, lining), rough=1.0, only=("mucosa",))
        if name in ("ethmoid", "nose"):  # Cells and conchae.
            box = canvas.box(shape)
            walls = np.abs(canvas.field(5.0 if name == "nose" else 4.0, box=box)) < (0.45 if name == "nose" else 0.25)
            canvas.put("mucosa", box, walls & (canvas.depth(shape, box) > 0), only=("air",))


def _paint_cerebellum(canvas: Canvas, fossa: Shape) -> None:
    """Hemispheres and vermis: folia as sheets around the peduncles, white matter inside, and fissures between them."""
    shape = both(
        grown(fossa, -canvas.rng.uniform(1.3, 2.2)),
        halfspace((0, -8, 0), (0, 1, 0.1)),
        halfspace((0, 0, -27), (0, 0.15, -1)),
    )
    box = canvas.box(shape)
    wander = canvas.field(8.0, 1.0, box=box) + canvas.field(3.5, 0.35, box=box)
    reach = 3.5 + 3 * np.abs(canvas.field(5.0, box=box))  # How deep the fine fissures go, mm.
    soft = canvas.lookup(("csf",))
    for slab in canvas.slabs(box):
        depth = canvas.depth(shape, slab)
        region = canvas.tissue[slab]
        inside = (depth > 0) & soft[region]
        if not inside.any():
            continue
        x, y, z = (axis[slab] for axis in canvas.coordinates)
        away = np.sqrt(x * x + 30)
        sheet = np.sqrt((away - 13) ** 2 + (y + 12) ** 2 + 0.7 * (z + 1) ** 2)  # Distance from the peduncle.
        here = slice(slab[0].start - box[0].start, slab[0].stop - box[0].start)
        bend = wander[here]
        fine = np.sin(2 * np.pi / 3.0 * sheet + 2 * bend)
        coarse = np.sin(2 * np.pi / 14 * sheet + 1.6 * bend + 1)
        inner = 10.0 - 4.0 * np.exp(-((sheet - 18) ** 2) / 120)
        region[inside] = ID["cerebellum"]
        white = (depth > inner + 1.5 * bend) & (away > 5)
        lamina = (fine < -0.72) & (depth > 2.5) & (sheet > 9)
        region[inside & (white | lamina)] = ID["white"]
        region[inside & ~white & (fine > 0.93) & (depth < reach[here]) & (sheet > 9)] = ID["csf"]
        region[inside & (coarse > 0.985) & (depth < 15) & (sheet > 12)] = ID["csf"]
    notch = both(ellipsoid((0, -80, -12), (4.5, 18, 26)), grown(fossa, 0))
    canvas.paint("csf", notch, only=("cerebellum", "white"))


def _paint_brainstem(canvas: Canvas) -> None:
    """Pons, medulla, midbrain, middle cerebellar peduncles, fourth ventricle with choroid plexus, tonsils."""
    rng = canvas.rng
    pons = either(
        ellipsoid((0, 0, 3), (16, 12, 15)),
        tube([(0, -4, -8), (0, -7, -26), (0, -8, -60)], (9.5, 7.5, 6.5)),
        tube([(0, -1, 14), (0, -1, 40)], (13, 12)),
        *(tube([(h * 8, -4, 2), (h * 18, -12.5, 1), (h * 25, -24, -1)], (8, 7.5, 6)) for h in (-1, 1)),
        smooth=3.0,
    )
    canvas.paint("brainstem", pons, only=BRAIN, rough=0.25)
    canvas.paint("csf", tube([(0, 17, 12), (0, 14, 34)], (2.5, 5)), only=BRAIN)  # Between the cerebral peduncles.
    width = rng.uniform(0.8, 1.25)
    ventricle = either(
        ellipsoid((0, -14.5, 0), (8.5 * width, 4.0 * width, 13)),
        ellipsoid((0, -19, 1), (3.5 * width, 5.5 * width, 6)),
        tube([(0, -14, 10), (0, -11, 22), (0, -9, 40)], (2.5, 1.2, 1.0)),
        smooth=2.0,
    )
    canvas.paint("csf", ventricle, only=BRAIN, rough=0.2)
    canvas.paint(
        "choroid", tube([(-4, -20, -4), (0, -21, -2), (4, -20, -4)], rng.uniform(0.8, 1.6)), rough=0.5, only=BRAIN
    )
    canvas.paint("cerebellum", ellipsoid((0, -25, -4), (4.5, 5.5, 5)), rough=0.6, only=BRAIN)  # Nodulus.
    canvas.paint("csf", ellipsoid((0, -30, -38), (22, 20, 13)), only=BRAIN, rough=0.5)  # Cisterna magna,
    for hand in (-1, 1):
        canvas.paint("cerebellum", ellipsoid((hand * 8, -20, -29), (6, 8, 9)), rough=0.6, only=BRAIN)  # tonsils.


def _paint_cistern(canvas: Canvas, ear: Side) -> None:
    """At the cerebellopontine angle: lateral recess, foramen of Luschka with choroid plexus, flocculus."""
    rng, hand = canvas.rng, ear.hand
    if rng.uniform() < 0.5:  # Pulsating CSF: grey on T2 like a tumor, dark on ceT1 like the CSF that it is.
        place = (hand * rng.uniform(13, 23), rng.uniform(-5, 9), rng.uniform(-9, 8))
        canvas.paint("pulsation", ellipsoid(place, rng.uniform(2, 6, 3)), rough=1.0, only=("csf",))
    recess = [(hand * 5, -13, -6), (hand * 12, -12, -8), (hand * 17, -7.5, -8.5)]
    canvas.paint("csf", tube(recess, (2.2, 1.6, 2.2)), only=BRAIN)
    size: float = rng.uniform(2.2, 6.5)
    center = (hand * rng.uniform(18, 22.5), rng.uniform(-10, -4), rng.uniform(-7, 0))
    canvas.paint("cerebellum", ellipsoid(center, (size, 0.75 * size, 0.8 * size), hand * -35), rough=0.5, only=CISTERN)
    tuft = [recess[1], recess[2], (hand * (17 + rng.uniform(0, 4)), -6 + rng.uniform(0, 3), -8.5)]
    canvas.paint("choroid", tube(tuft, (0.8, 1.3, rng.uniform(0.6, 1.9))), rough=0.5, only=CISTERN)
