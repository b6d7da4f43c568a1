"""Tests of scripts.data.phantom.brain: the painted brain and its glioma, and what the sequences then show of it.

Grids, seeds and cost are test_make.py's; whether it looks like patients is asked by benchmarks/phantoms.py.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, center_of_mass

from scripts.data.phantom import brain
from scripts.data.phantom.brain import paint_brain
from scripts.data.phantom.canvas import Canvas
from scripts.data.phantom.make import PhantomCase, make_phantom
from scripts.data.phantom.mri import ID

SHAPE, SPACING = (38, 46, 33), (4.0, 4.0, 4.0)
TUMOR = ("edema", "infiltration", "enhancing", "necrosis")
SEEDS = range(3)
SMALLEST_FRACTION, LARGEST_FRACTION = 0.75, 1.1  # of the volume asked for; pieces cut off from the tumor are dropped


def paint(seed: int, side: float = 1.0, *, tumor: bool = True, diameter: float | None = None) -> Canvas:
    rng = np.random.default_rng(seed)
    canvas = Canvas(rng, SHAPE, SPACING, (0, 0, 0), turn=rng.normal(0, 3, 3))
    paint_brain(canvas, side, tumor, diameter)
    return canvas


@cache
def painted(seed: int) -> Canvas:
    return paint(seed)


@cache
def imaged(seed: int) -> PhantomCase:
    return make_phantom(seed, task="glioma", shape=SHAPE, spacing=SPACING, diameter=60.0)


def within(canvas: Canvas, *names: str) -> np.ndarray:
    return Canvas.lookup(names)[canvas.tissue]


def millilitres(canvas: Canvas, *names: str) -> float:
    return float(within(canvas, *names).sum() * np.prod(SPACING) / canvas.sub / 1000)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_brain_has_the_parts_and_proportions_of_a_brain(seed):
    canvas = paint(seed, tumor=False)
    brain_ml = millilitres(canvas, *(name for name in ID if name != "air"))
    assert 1150 < brain_ml < 1800
    low_high = {"grey": (0.25, 0.5), "white": (0.2, 0.5), "csf": (0.06, 0.25), "cerebellum": (0.02, 0.12)}
    for name, (low, high) in low_high.items():
        assert low < millilitres(canvas, name) / brain_ml < high, name
    for name in ("brainstem", "choroid", "vein", "artery"):
        assert millilitres(canvas, name) > 0, name


def test_without_tumor_nothing_of_one_is_painted():
    assert not within(paint(0, tumor=False), *TUMOR).any()


def test_same_seed_same_tissue_and_no_mirror_image():
    first = painted(0).tissue
    np.testing.assert_array_equal(first, paint(0).tissue)
    assert (first != paint(1).tissue).mean() > 0.1
    healthy = paint(0, tumor=False).tissue
    assert (healthy != healthy[::-1])[healthy > 0].mean() > 0.1


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_tumor_lies_on_its_side(side):
    canvas = paint(2, side)
    center = center_of_mass(within(canvas, *TUMOR))
    assert (center[0] - (SHAPE[0] - 1) / 2) * side > 2  # voxels of 4 mm


def test_place_kind_and_extent_vary():
    plans = [brain._plan(np.random.default_rng(seed), -1.0, None) for seed in range(300)]
    centers = np.array([plan.foci[0][0] for plan in plans])
    assert (centers[:, 0] < -10).all()
    assert (centers.std(0) > (4, 15, 10)).all()
    assert 0.05 < np.mean([not plan.enhances for plan in plans]) < 0.25
    assert 0.05 < np.mean([len(plan.foci) == 2 for plan in plans]) < 0.3
    assert 0.1 < np.mean([plan.push == 0 for plan in plans]) < 0.5
    volumes = np.array([plan.volume for plan in plans]) / 1000
    assert 90 < np.median(volumes) < 190 and np.percentile(volumes, 10) < 0.6 * np.median(volumes)


@pytest.mark.parametrize("diameter", [30.0, 60.0])
def test_volume_follows_the_diameter(diameter):
    for seed in (0, 3):
        volume = millilitres(paint(seed, diameter=diameter), *TUMOR) * 1000
        asked = np.pi / 6 * diameter**3
        assert SMALLEST_FRACTION * asked < volume < LARGEST_FRACTION * asked


@pytest.mark.parametrize("seed", SEEDS)
def test_edema_spares_fluid_and_mostly_cortex(seed, monkeypatch):
    """Against the same brain without tumor, which the tumor here neither pushes aside nor swells."""
    monkeypatch.setattr(brain, "_displace", lambda glioma, x, y, z, outer: (x, y, z))
    monkeypatch.setattr(brain, "_open", lambda glioma, x, y, z: np.ones_like(x))
    healthy, ill = paint(seed, tumor=False), paint(seed)
    edema = within(ill, "edema")
    assert edema.any()
    assert not within(healthy, "air", "csf", "vein", "artery", "cerebellum")[edema].any()
    solid = within(ill, "infiltration", "enhancing", "necrosis")
    near = np.zeros_like(edema)  # The box of the edema, where it has both to choose from.
    near[tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(edema))] = True
    share = {name: edema[near & ~solid & within(healthy, name)].mean() for name in ("white", "grey")}
    assert share["white"] > 2 * share["grey"]


def test_the_rim_encloses_the_necrosis():
    canvas = next(painted(seed) for seed in range(20) if millilitres(painted(seed), "necrosis") > 3)
    necrosis, rim = within(canvas, "necrosis"), within(canvas, "enhancing", "infiltration")
    neighbors = np.zeros_like(necrosis)
    for axis in range(3):
        for step in (-1, 1):
            neighbors |= np.roll(necrosis, step, axis)
    border = neighbors & ~necrosis
    assert rim[border].all()


def test_tumor_displaces_the_brain(monkeypatch):
    plan = brain._Glioma([(np.array((30.0, 0.0, 10.0)), 20.0)], np.ones(3), 1e5, 0.4, 0.3, True)
    x, y, z = (np.array([value], np.float32) for value in (8.0, 0.0, 10.0))
    moved, _, _ = brain._displace(plan, x, y, z, np.array([40.0], np.float32))
    assert 2 < moved[0] - x[0] < 10  # What lies at x came from nearer to the tumor.
    still, _, _ = brain._displace(plan, x, y, z, np.array([0.0], np.float32))
    assert still[0] == x[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_flair_separates_edema_from_fluid_and_t2_does_not(seed):
    case = imaged(seed)
    edema = case.anatomy == ID["edema"]
    fluid = binary_erosion(case.anatomy == ID["csf"])
    white = case.anatomy == ID["white"]
    t2, flair = case.images["T2"], case.images["FLAIR"]
    bright = 1.25 * np.median(t2[white])
    assert (t2[edema] > bright).mean() > 0.8 and (t2[fluid] > bright).mean() > 0.8
    bright = 1.25 * np.median(flair[white])
    assert (flair[edema] > bright).mean() > 0.8 and (flair[fluid] > bright).mean() < 0.15


def test_labels_of_the_tasks_are_parts_of_one_tumor():
    whole = imaged(0)
    part = make_phantom(0, task="surrogate_t2_cet1", shape=SHAPE, spacing=SPACING, diameter=60.0)
    np.testing.assert_array_equal(whole.label, whole.tissue > 0)
    np.testing.assert_array_equal(part.label, whole.tissue == 3)
    np.testing.assert_array_equal(whole.images["T2"], part.images["T2"])
    assert 0 < part.label.sum() < whole.label.sum()
    ceT1, t1 = whole.images["ceT1"], whole.images["T1"]
    gain = [np.median(ceT1[mask]) / np.median(t1[mask]) for mask in (whole.tissue == 3, whole.tissue == 2)]
    assert gain[0] > 1.15 * gain[1]
