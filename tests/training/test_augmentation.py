"""Tests of augmentation and of train.json's list of it: what is changed, what stays, and that all fits together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.transforms import Compose, RandAdjustContrast, RandGaussianNoise, RandShiftIntensity
from torch import Tensor

from scripts.training.augmentation import RandForegroundd
from scripts.training.dataset import SeededDataset

SIZE = (40, 36, 32)
GEOMETRY = 2  # the first transforms of train.json's list: affine and flip
OVERLAP = 0.93  # Dice of a ball's mask, nearest, with the same ball in the image, linear: they differ in the rim alone
VOXELS = 0.5  # between their centers


def foreground(*, seed: int) -> RandForegroundd:
    transforms = [RandShiftIntensity(offsets=0.3, prob=1.0), RandGaussianNoise(prob=1.0, std=0.1)]
    return RandForegroundd("image", transforms=transforms).set_random_state(seed)


@pytest.fixture(scope="module")
def scan() -> Tensor:
    """Two equal channels, half of them background."""
    image = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.9 - 0.95
    image[:, :4] = -1
    return image.repeat(2, 1, 1, 1)


def test_background_stays_and_the_range_is_kept(scan: Tensor) -> None:
    before = scan.clone()
    for seed in range(4):
        changed = foreground(seed=seed)({"image": scan})["image"]
        assert torch.equal(changed[:, :4], scan[:, :4])
        assert (changed[:, 4:] != scan[:, 4:]).float().mean() > 0.9
        assert -1 <= changed.min() and changed.max() <= 1
    assert torch.equal(scan, before)


def test_every_channel_is_changed_by_itself(scan: Tensor) -> None:
    """By a gamma of its own; noise would differ anyway."""
    gamma = RandForegroundd("image", transforms=[RandAdjustContrast(prob=1.0, gamma=(0.5, 2.0))]).set_random_state(0)
    first, second = gamma({"image": scan})["image"]
    assert not torch.allclose(first[4:], second[4:], atol=0.01)


def test_a_seed_decides(scan: Tensor) -> None:
    a, b, c = (foreground(seed=seed)({"image": scan})["image"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_other_entries_and_missing_keys(scan: Tensor) -> None:
    assert foreground(seed=0)({"image": scan, "target": scan})["target"] is scan
    with pytest.raises(KeyError, match="image"):
        foreground(seed=0)({"target": scan})
    lenient = RandForegroundd("image", transforms=[], allow_missing_keys=True)
    assert lenient({"target": scan}).keys() == {"target"}


# train.json's list


@pytest.fixture(scope="module")
def augmentation(open_workflow: Callable[..., ConfigWorkflow]) -> list[Any]:
    given = {"patch_size": list(SIZE), "rotation": [0.31, 0.31, 0.31]}
    return open_workflow(["train.json"], given).parser.get_parsed_content("train#augmentation")


def ball() -> dict[str, Tensor]:
    """A mask away from the center, painted into image and target alike."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij"))
    inside = ((grid - torch.tensor([14.0, 20.0, 17.0]).view(3, 1, 1, 1)) ** 2).sum(0, keepdim=True).sqrt() < 7
    image = torch.where(inside, 0.8, -0.2)
    return {"image": image, "target": image.clone(), "label": inside.float()}


def test_geometry_moves_image_target_and_label_together(augmentation: list[Any]) -> None:
    data, moved = ball(), []
    for seed in range(8):
        out = Compose(augmentation[:GEOMETRY]).set_random_state(seed)(data)
        painted, label = torch.as_tensor(out["image"]) > 0.3, torch.as_tensor(out["label"]) > 0.5
        assert out["label"].shape == (1, *SIZE) and set(out["label"].unique().tolist()) == {0, 1}
        assert torch.equal(torch.as_tensor(out["image"]), torch.as_tensor(out["target"]))
        assert 2 * (painted & label).sum() / (painted.sum() + label.sum()) > OVERLAP, seed
        centers = [mask.nonzero().float().mean(0) for mask in (painted, label)]
        assert torch.linalg.vector_norm(centers[0] - centers[1]) < VOXELS, seed
        moved.append(not torch.equal(label, data["label"] > 0.5))
    assert sum(moved) > 4


def test_intensities_are_the_sources_alone(augmentation: list[Any]) -> None:
    """The same seed with and without them: the geometry of both is the same."""
    data, changed = ball(), 0
    for seed in range(6):
        whole, geometry = (
            Compose(part).set_random_state(seed)(data) for part in (augmentation, augmentation[:GEOMETRY])
        )
        for key in ("target", "label"):
            assert torch.equal(torch.as_tensor(whole[key]), torch.as_tensor(geometry[key])), (seed, key)
        changed += not torch.equal(torch.as_tensor(whole["image"]), torch.as_tensor(geometry["image"]))
        assert -1 <= whole["image"].min() and whole["image"].max() <= 1
    assert changed > 3


def test_what_is_drawn_depends_on_seed_epoch_and_index_alone(augmentation: list[Any]) -> None:
    def drawn(seed: int, *before: tuple[int, int], at: tuple[int, int]) -> dict[str, Tensor]:
        dataset = SeededDataset([ball(), ball()], Compose(augmentation), seed=seed, cache_rate=0.0)
        for other in before:
            dataset[other]
        return {key: torch.as_tensor(value) for key, value in dataset[at].items()}

    expected = drawn(3, at=(2, 1))
    again = drawn(3, (0, 0), (2, 0), (1, 1), at=(2, 1))
    assert all(torch.equal(expected[key], again[key]) for key in expected)
    for other in (drawn(4, at=(2, 1)), drawn(3, at=(1, 1)), drawn(3, at=(2, 0))):
        assert not torch.equal(other["image"], expected["image"])
