"""Tests of scripts.data.phantom: determinism, contrast, geometry, cost. Writing is tested in test_prepare.py."""

import time

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, label

from scripts.data.datalist import TASKS
from scripts.data.phantom import SIZES, make_phantom

ALL_TASKS = sorted(TASKS)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_same_seed_same_voxels(task):
    first, again, other = (make_phantom(seed, task=task) for seed in (3, 3, 4))
    for modality, image in first.images.items():
        np.testing.assert_array_equal(image, again.images[modality])
        assert not np.array_equal(image, other.images[modality])
    np.testing.assert_array_equal(first.label, again.label)
    np.testing.assert_array_equal(first.affine, again.affine)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_content(task):
    phantom = make_phantom(0, task=task)
    shape, spacing = SIZES[("vs" if task == "vs" else "glioma", "small")]
    assert set(phantom.images) == {"T1", "ceT1", "T2", "FLAIR"}
    for image in phantom.images.values():
        assert image.dtype == np.float32
        assert image.shape == phantom.label.shape == phantom.tissue.shape == shape
        assert np.isfinite(image).all() and image.min() >= 0 and 500 < image.max() < 3000
    assert phantom.label.dtype == np.uint8
    assert set(np.unique(phantom.label)) == {0, 1}
    np.testing.assert_allclose(np.diag(phantom.affine), (*spacing, 1))


@pytest.mark.parametrize("task", ALL_TASKS)
def test_without_tumor_the_label_is_empty(task):
    phantom = make_phantom(1, task=task, tumor=False)
    assert not phantom.label.any() and not phantom.tissue.any()


def test_labels_of_the_tasks_are_parts_of_one_tumor():
    whole, part = (make_phantom(2, task=task) for task in ("glioma", "surrogate_t2_cet1"))
    np.testing.assert_array_equal(whole.images["T2"], part.images["T2"])
    np.testing.assert_array_equal(whole.label, whole.tissue > 0)
    np.testing.assert_array_equal(part.label, part.tissue == 3)
    assert 0 < part.label.sum() < whole.label.sum()


@pytest.mark.parametrize("seed", range(6))
def test_vs_tumor_is_hidden_on_t2_and_bright_on_cet1(seed):
    """On T2 the tumor is near the brain's intensity and far from CSF; on ceT1 it stands out from its surroundings."""
    phantom = make_phantom(seed, task="vs", diameter=12)
    solid = phantom.tissue == 3
    around = binary_dilation(phantom.label, iterations=8) & (phantom.label == 0)
    t2, cet1 = phantom.images["T2"], phantom.images["ceT1"]
    assert 300 < np.median(t2[solid]) < 600
    assert np.percentile(t2, 99) > 1.5 * np.median(t2[solid])
    assert np.median(cet1[solid]) > 1.3 * np.median(cet1[around])
    # Vessels enhance too, so that bright alone is not tumor.
    bright = cet1 > np.median(cet1[solid])
    assert (bright & ~binary_dilation(phantom.label, iterations=4)).sum() > 20


@pytest.mark.parametrize("diameter", [3.0, 10.0, 25.0])
@pytest.mark.parametrize("seed", range(3))
def test_vs_tumor_grows_with_its_diameter_and_is_one_piece(seed, diameter):
    phantom = make_phantom(seed, task="vs", diameter=diameter)
    volume = phantom.label.sum() * abs(np.linalg.det(phantom.affine))
    sphere = np.pi / 6 * diameter**3
    assert 0.3 * sphere < volume < 2 * sphere + 250
    pieces, _ = label(phantom.label, np.ones((3, 3, 3)))
    assert np.bincount(pieces.ravel())[1:].max() > 0.9 * phantom.label.sum()


def test_vs_side_varies_and_lies_near_the_canal():
    sides = set()
    for seed in range(8):
        phantom = make_phantom(seed, task="vs")
        center = phantom.affine[:3, :3] @ np.argwhere(phantom.label).mean(0) + phantom.affine[:3, 3]
        assert 8 < abs(center[0]) < 35 and abs(center[1]) < 15 and abs(center[2]) < 10
        sides.add(np.sign(center[0]))
    assert sides == {-1, 1}


@pytest.mark.parametrize("seed", range(3))
def test_glioma_contrast(seed):
    phantom = make_phantom(seed, task="glioma")
    mean = {
        name: [image[phantom.tissue == value].mean() for value in range(4)] for name, image in phantom.images.items()
    }
    brain = (phantom.tissue == 0) & (phantom.images["T1"] > 0)
    assert mean["FLAIR"][2] > 1.4 * phantom.images["FLAIR"][brain].mean()
    assert mean["T2"][2] > 1.3 * np.median(phantom.images["T2"][brain])
    assert mean["ceT1"][3] > 1.5 * mean["T1"][3]
    assert mean["ceT1"][1] < mean["ceT1"][3]
    # CSF: bright on T2, dark on FLAIR.
    csf = brain & (phantom.images["T2"] > 750)
    assert phantom.images["FLAIR"][csf].mean() < 0.6 * phantom.images["FLAIR"][brain].mean()


def test_glioma_is_skull_stripped():
    phantom = make_phantom(0, task="glioma")
    outside = phantom.images["T1"] == 0
    assert outside[0].all() and outside[-1].all() and 0.3 < outside.mean() < 0.8
    for image in phantom.images.values():
        np.testing.assert_array_equal(image == 0, outside)


def test_sizes_are_in_millimeters():
    """The same seed on a finer grid shows the same tumor."""
    coarse = make_phantom(0, task="glioma", shape=(72, 88, 64), spacing=(2, 2, 2))
    fine = make_phantom(0, task="glioma", shape=(96, 117, 85), spacing=(1.5, 1.5, 1.5))
    volumes = [phantom.label.sum() * abs(np.linalg.det(phantom.affine)) for phantom in (coarse, fine)]
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
        ({"task": "ct"}, "task is 'ct', expected one of vs, glioma, surrogate_t2_cet1"),
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
    start = time.process_time()
    make_phantom(0, task="vs")
    assert time.process_time() - start < 2


@pytest.mark.slow
def test_real_size_is_a_whole_head():
    shape, spacing = SIZES[("vs", "real")]
    phantom = make_phantom(0, task="vs", shape=shape, spacing=spacing)
    assert phantom.label.any()
    assert phantom.images["T2"][:20].mean() < 50  # Air around the head.
