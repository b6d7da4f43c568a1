"""Tests of scripts.data.phantom.make, its canvas and anatomy. Signals: test_mri.py; writing: test_prepare.py."""

import time

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from scripts.data.datalist import TASKS
from scripts.data.phantom import mri
from scripts.data.phantom.canvas import Canvas, both, either, ellipsoid, grown, halfspace, tube
from scripts.data.phantom.make import SIZES, make_phantom
from scripts.data.phantom.mri import ID

ALL_TASKS = sorted(TASKS)
# Grids that cost little: around the canal, and the whole brain, coarse.
CANAL = {"shape": (64, 64, 32), "spacing": (0.82, 0.82, 1.5)}
BRAIN = {"shape": (48, 60, 44), "spacing": (3.0, 3.0, 3.0)}
GRID = {task: CANAL if task.startswith("vs") else BRAIN for task in ALL_TASKS}


def volume_of(phantom):
    return phantom.label.sum() * abs(np.linalg.det(phantom.affine))


def plain_canvas(**arguments):
    return Canvas(np.random.default_rng(0), (40, 40, 20), (1, 1, 2), (0, 0, 0), warp=(), **arguments)


# The canvas.


def test_ellipsoid_has_its_volume():
    canvas = plain_canvas()
    canvas.paint("csf", ellipsoid((1, 2, 3), (8, 12, 6), 30))
    assert canvas.sub == 3 and canvas.tissue.shape == (40, 40, 60)
    assert (canvas.tissue > 0).sum() * 2 / 3 == pytest.approx(4 / 3 * np.pi * 8 * 12 * 6, rel=0.02)
    x, y, z = (axis[canvas.tissue > 0].mean() for axis in canvas.coordinates)
    np.testing.assert_allclose((x, y, z), (1, 2, 3), atol=0.1)


@pytest.mark.parametrize(("diameter", "tolerance"), [(6, 0.03), (10, 0.02), (14, 0.02)])
def test_masks_on_thick_slices_are_not_too_large(diameter, tolerance):
    """The mean over places; counting half-filled voxels as tumor would add 8 to 19 %."""
    volumes = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        canvas = Canvas(rng, (48, 48, 16), (0.41, 0.41, 1.5), rng.uniform(-0.7, 0.7, 3), warp=())
        canvas.paint("vs", ellipsoid((0, 0, 0), (diameter / 2,) * 3))
        volumes.append(canvas.mask("vs").sum() * 0.41**2 * 1.5)
    assert np.mean(volumes) == pytest.approx(np.pi / 6 * diameter**3, rel=tolerance)


def test_depth_of_shapes_by_hand():
    def depth(shape, *point):
        return float(shape.depth(*(np.array([value], np.float32) for value in point))[0])

    line = tube([(0, 0, 0), (10, 0, 0)], (2, 4))
    assert depth(line, 5, 1, 0) == pytest.approx(2)
    assert depth(line, 12, 0, 0) == pytest.approx(2)
    assert depth(line, 0, 0, -5) == pytest.approx(-3)
    ball, half = ellipsoid((0, 0, 0), (4, 4, 4)), halfspace((1, 0, 0), (2, 0, 0))
    assert depth(ball, 0, 3, 0) == pytest.approx(1)
    assert depth(grown(ball, 1), 0, 3, 0) == pytest.approx(2)
    assert depth(half, -1, 7, 7) == pytest.approx(2)
    assert depth(both(ball, half), 2, 0, 0) == pytest.approx(-1)
    assert depth(either(ball, half), 2, 0, 0) == pytest.approx(2)
    assert depth(either(ball, ball, smooth=2.0), 0, 0, 4) == pytest.approx(0.5)


def test_paint_only_and_layers():
    canvas = plain_canvas()
    canvas.layers(ellipsoid((0, 0, 0), (10, 10, 10)), ((0, "bone"), (3, "csf")))
    middle = canvas.tissue[:, 20, 30]
    assert middle[29] == ID["bone"] and middle[20] == ID["csf"] and middle[31] == ID["air"]
    canvas.paint("vs", ellipsoid((0, 0, 0), (20, 2, 2)), only=("csf",))
    assert set(np.unique(canvas.tissue[:, 20, 30])) == {ID["air"], ID["bone"], ID["vs"]}


def test_partial_volume_is_the_mean_of_the_painted_slices():
    canvas = plain_canvas()
    canvas.tissue[:, :, ::3] = ID["csf"]  # One of three.
    table = np.zeros(len(ID), np.float32)
    table[ID["csf"]] = 900
    np.testing.assert_allclose(canvas.mean(table), 300)
    assert not canvas.mask("csf").any() and canvas.mask("csf", "air").all()


def test_fields_do_not_depend_on_the_grid():
    """A patch of a larger grid, and a patch alone, hold the same field and the same warp."""
    large = Canvas(np.random.default_rng(3), (60, 50, 30), (1, 1, 1), (0, 0, 0), turn=(2, 3, 4))
    small = Canvas(np.random.default_rng(3), (20, 10, 10), (1, 1, 1), (0, 0, 0), turn=(2, 3, 4))
    patch = np.s_[20:40, 20:30, 10:20]
    for one, other in zip([*large.coordinates, large.roughness], [*small.coordinates, small.roughness], strict=True):
        np.testing.assert_allclose(one[patch], other, atol=2e-3)
    field = large.field(2.0, 3.0)
    assert field.std() == pytest.approx(3, rel=0.1) and abs(field.mean()) < 0.3


def test_push_squeezes_and_relax_undoes_it():
    canvas = plain_canvas()
    before = [axis.copy() for axis in canvas.coordinates]
    canvas.push((0, 0, 0), 6, 0.75)
    # What is painted at 3 mm from the middle now appears farther out.
    canvas.paint("nerve", ellipsoid((3, 0, 0), (1, 1, 1)))
    place = canvas.axes[0][np.argwhere(canvas.tissue == ID["nerve"])[:, 0]].mean()
    assert 4 < place < 8
    canvas.relax()
    for axis, original in zip(canvas.coordinates, before, strict=True):
        np.testing.assert_array_equal(axis, original)


# Cases.


@pytest.mark.parametrize("task", ALL_TASKS)
def test_same_seed_same_voxels(task):
    first, again, other = (make_phantom(seed, task=task, **GRID[task]) for seed in (3, 3, 4))
    for modality, image in first.images.items():
        np.testing.assert_array_equal(image, again.images[modality])
        assert not np.array_equal(image, other.images[modality])
    for name in ("label", "tissue", "anatomy", "affine"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


@pytest.mark.parametrize("task", ALL_TASKS)
def test_content(task):
    phantom = make_phantom(0, task=task)
    shape, spacing = SIZES[("vs" if task.startswith("vs") else "glioma", "small")]
    assert set(phantom.images) == set(TASKS[task].modalities)
    for image in phantom.images.values():
        assert image.dtype == np.float32
        assert image.shape == phantom.label.shape == phantom.tissue.shape == phantom.anatomy.shape == shape
        assert np.isfinite(image).all() and image.min() >= 0 and 500 < np.percentile(image, 99.9) < 3000
    assert phantom.label.dtype == phantom.tissue.dtype == phantom.anatomy.dtype == np.uint8
    assert set(np.unique(phantom.label)) == {0, 1}
    np.testing.assert_allclose(np.diag(phantom.affine), (*spacing, 1))


@pytest.mark.parametrize("task", ALL_TASKS)
def test_without_tumor_the_label_is_empty_and_the_rest_of_the_head_the_same(task):
    with_tumor, without = (make_phantom(1, task=task, tumor=tumor, **GRID[task]) for tumor in (True, False))
    assert not without.label.any() and not without.tissue.any()
    tumor_ids = [ID[name] for name in ("vs", "vs_loose", "cyst", "edema", "infiltration", "enhancing", "necrosis")]
    assert not np.isin(without.anatomy, tumor_ids).any()
    # Far away nothing differs.
    far = ~binary_dilation(with_tumor.label, iterations=20)
    assert far.any() and (with_tumor.anatomy == without.anatomy)[far].mean() > 0.99


@pytest.mark.parametrize("task", ALL_TASKS)
def test_label_agrees_with_the_anatomy(task):
    phantom = make_phantom(5, task=task, **GRID[task])
    solid = ("vs", "vs_loose", "cyst")
    names = {"vs": solid, "vs_cet1": solid, "glioma": ("edema", "infiltration", "enhancing", "necrosis")}
    tumor = np.isin(phantom.anatomy, [ID[name] for name in names.get(task, ("enhancing",))])
    assert tumor.sum() == pytest.approx(phantom.label.sum(), rel=0.15)
    assert (tumor & (phantom.label > 0)).sum() > 0.85 * phantom.label.sum()


# The vestibular schwannoma.


@pytest.mark.parametrize("seed", range(5))
def test_vs_tumor_is_hidden_on_t2_and_bright_on_cet1(seed):
    """On T2 the tumor is near the brainstem's intensity and far from CSF's; on ceT1 it stands out, but not alone."""
    phantom = make_phantom(seed, task="vs", diameter=12)
    t2, cet1 = phantom.images["T2"], phantom.images["ceT1"]
    solid, brainstem, csf = (phantom.anatomy == ID[name] for name in ("vs", "brainstem", "csf"))
    assert 0.75 < np.median(t2[solid]) / np.median(t2[brainstem]) < 1.7
    assert np.median(t2[csf]) > 2.2 * np.median(t2[solid])
    assert np.median(cet1[solid]) > 1.2 * np.median(cet1[brainstem])
    # Vessels and mucosa enhance too, so that bright alone is not tumor.
    bright = cet1 > np.median(cet1[solid])
    assert (bright & ~binary_dilation(phantom.label, iterations=4)).sum() > 20


@pytest.mark.parametrize("diameter", [3.0, 6.0, 10.0, 15.0, 25.0])
@pytest.mark.parametrize("seed", range(3))
def test_vs_tumor_grows_with_its_diameter_and_is_one_piece(seed, diameter):
    phantom = make_phantom(seed, task="vs", diameter=diameter, **CANAL)
    sphere = np.pi / 6 * diameter**3
    least = 0.4 if diameter > 3 else 0.25  # 14 voxels of this grid, of which the canal's walls may take some
    assert least * sphere < volume_of(phantom) < 2 * sphere + 20
    pieces, _ = label(phantom.label, np.ones((3, 3, 3)))
    assert np.bincount(pieces.ravel())[1:].max() > 0.95 * phantom.label.sum()


def test_vs_volumes_and_places_are_those_of_patients():
    """Around what was measured on three patients: 1.0 to 2.4 cm3, 19 to 25 mm from the middle of the head."""
    volumes, centers = [], []
    for seed in range(10):
        phantom = make_phantom(seed, task="vs", **CANAL)
        volumes.append(volume_of(phantom) / 1000)
        centers.append(phantom.affine[:3, :3] @ np.argwhere(phantom.label).mean(0) + phantom.affine[:3, 3])
    centers = np.array(centers)
    assert min(volumes) > 0.02 and max(volumes) < 13 and 0.8 < np.median(volumes) < 3
    assert (12 < abs(centers[:, 0])).all() and (abs(centers[:, 0]) < 32).all()
    assert (abs(centers[:, 1:]) < 15).all()
    assert set(np.sign(centers[:, 0])) == {-1, 1}


def test_vs_anatomy_is_there_without_a_tumor():
    phantom = make_phantom(3, task="vs", tumor=False)
    present = set(np.unique(phantom.anatomy))
    expected = (
        "csf",
        "brainstem",
        "cerebellum",
        "nerve",
        "labyrinth",
        "bone",
        "vein",
        "grey",
        "white",
        "marrow",
        "air",
    )
    assert {ID[name] for name in expected} <= present
    # The labyrinth's fluid is as bright as CSF on T2 and does not enhance.
    fluid = phantom.anatomy == ID["labyrinth"]
    assert np.percentile(phantom.images["T2"][fluid], 80) > 650
    assert np.median(phantom.images["ceT1"][fluid]) < 350


@pytest.mark.parametrize("task", ["vs", "glioma"])
def test_series_lie_less_than_a_voxel_apart(task, monkeypatch):
    """The T2, which the label belongs to, stays; how the others move is less than a voxel and not the same for all."""
    moves = []

    def record(image, spacing, shift, turn):
        moves.append((shift, turn))
        return move(image, spacing, shift, turn)

    move = mri.move
    monkeypatch.setattr(mri, "move", record)
    for seed in range(3):
        make_phantom(seed, task=task, shape=(8, 8, 4))
    assert len(moves) == 3 * len(set(TASKS[task].modalities) - {"T2"})
    shifts, turns = (np.array(values) for values in zip(*moves, strict=True))
    assert 0.05 < shifts.std() and abs(shifts).max() < 0.41
    assert abs(np.degrees(turns)).max() < 0.5
    assert len(np.unique(shifts)) == shifts.size


# The glioma.


@pytest.mark.parametrize("seed", range(2))
def test_glioma_contrast(seed):
    phantom = make_phantom(seed, task="glioma")
    mean = {
        name: [image[phantom.tissue == value].mean() for value in range(4)] for name, image in phantom.images.items()
    }
    white = phantom.anatomy == ID["white"]
    csf = phantom.anatomy == ID["csf"]
    assert mean["FLAIR"][2] > 1.3 * np.median(phantom.images["FLAIR"][white])
    assert mean["T2"][2] > 1.3 * np.median(phantom.images["T2"][white])
    before, after = (mean[name][3] / np.median(phantom.images[name][white]) for name in ("T1", "ceT1"))
    assert after > 1.2 * before
    assert mean["ceT1"][1] < mean["ceT1"][3]
    # CSF: bright on T2, dark on FLAIR.
    assert np.median(phantom.images["FLAIR"][csf]) < 0.5 * np.median(phantom.images["FLAIR"][white])
    assert np.median(phantom.images["T2"][csf]) > 1.5 * np.median(phantom.images["T2"][white])


def test_glioma_is_skull_stripped():
    phantom = make_phantom(0, task="glioma", **BRAIN)
    outside = phantom.images["T1"] == 0
    assert outside[0].all() and outside[-1].all() and 0.3 < outside.mean() < 0.85
    for image in phantom.images.values():
        np.testing.assert_array_equal(image == 0, outside)


# Grids.


@pytest.mark.parametrize(
    ("task", "coarse", "fine"),
    [
        ("glioma", {"shape": (48, 60, 44), "spacing": (3, 3, 3)}, {"shape": (72, 90, 66), "spacing": (2, 2, 2)}),
        ("vs", CANAL, {"shape": (100, 100, 48), "spacing": (0.52, 0.52, 1.0)}),
    ],
)
def test_sizes_are_in_millimeters(task, coarse, fine):
    """The same seed on a finer grid shows the same tumor."""
    volumes = [volume_of(make_phantom(0, task=task, **grid)) for grid in (coarse, fine)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.15)


@pytest.mark.parametrize("shape", [(17, 23, 5), (1, 9, 30)])
@pytest.mark.parametrize("task", ALL_TASKS)
def test_odd_shapes(task, shape):
    phantom = make_phantom(0, task=task, shape=shape)
    assert phantom.label.shape == shape
    assert all(np.isfinite(image).all() for image in phantom.images.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "ct"}, "task is 'ct', expected one of vs, glioma, vs_cet1, surrogate_t2_cet1"),
        ({"shape": (4, 4)}, "expected three positive numbers"),
        ({"shape": (4, 4, 0)}, "expected three positive numbers"),
        ({"spacing": (1, 1, -1)}, "expected three positive numbers"),
        ({"diameter": 0.0}, "diameter is 0.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(0, **arguments)


def test_small_is_cheap():
    make_phantom(0, task="vs", shape=(8, 8, 4))
    start = time.process_time()
    make_phantom(0, task="vs")
    assert time.process_time() - start < 2.5


@pytest.mark.slow
def test_real_size_is_a_whole_head_within_20_seconds():
    shape, spacing = SIZES[("vs", "real")]
    start = time.process_time()
    phantom = make_phantom(0, task="vs", shape=shape, spacing=spacing)
    assert time.process_time() - start < 20
    assert phantom.label.any()
    assert phantom.images["T2"][:20].mean() < 50  # Air around the head.
    # Both labyrinths are there, 68 to 71 mm apart in patients (their cochleae).
    x = phantom.affine[0, 3] + phantom.affine[0, 0] * np.argwhere(phantom.anatomy == ID["labyrinth"])[:, 0]
    assert 66 < x[x > 0].mean() - x[x < 0].mean() < 82
