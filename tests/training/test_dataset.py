"""Tests of scripts.training.dataset: a sample depends on (seed, epoch, index) alone, an order on (seed, epoch) alone.

Small arrays in place of scans.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, RandFlipd, RandGaussianNoised, RandSpatialCropd
from torch import Tensor

from scripts.training.dataset import PrepareInputs, SeededDataset, SeededSampler, TrainingLoader

CASES = 7
SIZE = 12


def make(seed: int = 0, cases: int = CASES, **kwargs: Any) -> SeededDataset:
    data = [
        {"image": torch.arange(SIZE**3).reshape(1, SIZE, SIZE, SIZE) + 1e4 * i, "case": str(i)} for i in range(cases)
    ]
    transform = Compose(
        [
            Lambdad("image", lambda x: x / 1e4),
            RandSpatialCropd("image", roi_size=(4, 4, 4), random_size=False),
            RandFlipd("image", prob=0.5, spatial_axis=0),
            RandGaussianNoised("image", prob=0.5, std=0.1),
        ]
    )
    return SeededDataset(data, transform, seed=seed, **kwargs)


def image(dataset: SeededDataset, epoch: int, index: int) -> Tensor:
    return torch.as_tensor(dataset[(epoch, index)]["image"])


def order(sampler: SeededSampler, epoch: int = 0) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def collect(loader: Iterable) -> dict[str, Tensor]:
    return {case: x for batch in loader for case, x in zip(batch["case"], batch["image"], strict=True)}


# samples


def test_a_sample_does_not_depend_on_what_was_drawn_before() -> None:
    dataset, other = make(), make()
    first = [image(dataset, 3, i) for i in range(CASES)]
    np.random.seed(5)
    torch.manual_seed(5)
    for i in reversed(range(CASES)):
        image(other, 1, (i + 2) % CASES)  # other draws between
        np.random.rand(3)
        assert torch.equal(image(other, 3, i), first[i])
        assert torch.equal(image(other, 3, i), first[i])  # and again


def test_samples_differ_between_epochs_indices_and_seeds() -> None:
    dataset = make()
    epochs = [image(dataset, epoch, 0) for epoch in range(6)]
    seeds = [image(make(seed), 0, 0) for seed in range(6)]
    for drawn in (epochs, seeds):
        assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    offsets = [image(dataset, 0, i) - i for i in range(CASES)]  # without what belongs to the case
    assert any(not torch.allclose(offsets[0], other, atol=0.05) for other in offsets[1:])


def test_seed_epoch_and_index_are_not_interchangeable() -> None:
    """(seed, epoch, index) is hashed as a triple, not summed."""
    drawn = [image(make(seed), epoch, index) - index for seed, epoch, index in ((0, 1, 2), (1, 0, 2), (2, 1, 0))]
    assert not any(torch.allclose(a, b, atol=1e-3) for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_bare_index_is_epoch_zero() -> None:
    dataset = make()
    assert torch.equal(torch.as_tensor(dataset[4]["image"]), image(dataset, 0, 4))


@pytest.mark.parametrize("cache_rate", [0.0, 0.5])
def test_the_cache_changes_nothing(cache_rate: float) -> None:
    cached, other = make(), make(cache_rate=cache_rate)
    for i in range(CASES):
        assert torch.equal(image(cached, 2, i), image(other, 2, i))


def test_a_transform_without_randomness_is_left_alone() -> None:
    data = [{"image": torch.ones(1)}]
    assert SeededDataset(data, lambda entry: {"image": entry["image"] * 2})[(3, 0)]["image"].item() == 2


def test_workers_change_nothing() -> None:
    drawn = []
    for workers in (0, 2):
        dataset = make()
        sampler = SeededSampler(dataset)
        sampler.set_epoch(1)
        drawn.append(collect(DataLoader(dataset, sampler=sampler, batch_size=2, num_workers=workers)))
    assert list(drawn[0]) == list(drawn[1]) and len(drawn[0]) == CASES
    assert all(torch.equal(drawn[0][case], drawn[1][case]) for case in drawn[0])


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal ends a process here")
def test_workers_outlive_sigterm_also_while_they_start() -> None:
    for _ in range(5):
        batches = iter(TrainingLoader(make(), batch_size=1, num_workers=2))
        for worker in batches._workers:
            os.kill(worker.pid, signal.SIGTERM)
        assert len(list(batches)) == CASES
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# order


def test_order_depends_on_seed_and_epoch_alone() -> None:
    everything = set(range(CASES))
    orders = {
        (seed, epoch): tuple(order(SeededSampler(range(CASES), seed=seed), epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    for (seed, epoch), pairs in orders.items():
        assert {e for e, _ in pairs} == {epoch}
        assert {i for _, i in pairs} == everything and len(pairs) == CASES
        torch.manual_seed(9)
        assert tuple(order(SeededSampler(range(CASES), seed=seed), epoch)) == pairs
    assert [i for _, i in orders[0, 0]] != [i for _, i in orders[0, 1]]
    assert [i for _, i in orders[0, 0]] != [i for _, i in orders[1, 0]]


def test_order_after_other_epochs_is_the_same() -> None:
    sampler = SeededSampler(range(CASES))
    for epoch in (0, 1):
        order(sampler, epoch)
    assert order(sampler, 2) == order(SeededSampler(range(CASES)), 2)


def test_without_shuffle_it_is_the_datalists() -> None:
    assert order(SeededSampler(range(4), shuffle=False), 5) == [(5, 0), (5, 1), (5, 2), (5, 3)]


def test_two_processes_share_the_batches_of_one() -> None:
    """Batch k of one process with batch size 2 is sample k of both processes with batch size 1."""
    single = order(SeededSampler(range(8)), 3)
    ranks = [order(SeededSampler(range(8), num_replicas=2, rank=rank), 3) for rank in (0, 1)]
    assert [list(pair) for pair in zip(*ranks, strict=True)] == [single[k : k + 2] for k in range(0, 8, 2)]


def test_an_odd_number_is_filled_up_so_that_no_process_waits() -> None:
    ranks = [order(SeededSampler(range(7), num_replicas=2, rank=rank)) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [4, 4]
    assert {i for rank in ranks for _, i in rank} == set(range(7))


def test_start_leaves_out_what_was_done_and_only_once() -> None:
    full = order(SeededSampler(range(CASES)), 2)
    sampler = SeededSampler(range(CASES), start=3)
    assert order(sampler, 2) == full[3:]
    assert order(sampler, 2) == full
    ranks = [SeededSampler(range(8), num_replicas=2, rank=rank, start=1) for rank in (0, 1)]
    whole = order(SeededSampler(range(8)), 0)
    assert sorted(i for sampler in ranks for _, i in order(sampler)) == sorted(i for _, i in whole[2:])


# what a network gets


def test_prepare_inputs() -> None:
    batch = {
        "image": torch.zeros(2, 2, 3, 3, 3),
        "target": torch.ones(2, 1, 3, 3, 3),
        "label": torch.full((2, 1, 3, 3, 3), 7.0),
    }
    x, y = PrepareInputs()(batch)
    assert x.shape == (2, 2, 3, 3, 3) and torch.equal(y, batch["label"])
    assert torch.equal(PrepareInputs(["target"])(batch)[0], batch["target"])
    both, _ = PrepareInputs(["image", "target"])(batch)
    assert both[0, :, 0, 0, 0].tolist() == [0, 0, 1]
    del batch["label"]
    assert PrepareInputs()(batch)[1] is None
