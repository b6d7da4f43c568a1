"""The seeded data layer: what a sample looks like depends on (seed, epoch, index) and on nothing else.

Exact resume, equality of one and several processes, and independence of the number of workers rest on it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.engines import PrepareBatch
from monai.transforms import Randomizable
from torch.utils.data.distributed import DistributedSampler


class SeededDataset(CacheDataset):
    """A CacheDataset whose random transforms are seeded anew for every sample by (seed, epoch, index).

    Args:
        data: entries of the datalist.
        transform: a MONAI Compose, deterministic transforms first: those run once, their results are cached.
        seed: the run's seed.
        cache_rate: fraction of the samples kept in memory.
        num_workers: threads that fill the cache.
        copy_cache: whether every sample starts from a copy of the cached scans; not needed where no random transform
            writes into its input, and a whole scan takes longer to copy than to crop.

    Items are asked for by (epoch, index), as `SeededSampler` gives them; a bare index means epoch 0.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        *,
        seed: int = 0,
        cache_rate: float = 1.0,
        num_workers: int | None = 1,
        copy_cache: bool = True,
    ) -> None:
        super().__init__(
            data=data, transform=transform, cache_rate=cache_rate, num_workers=num_workers, copy_cache=copy_cache
        )
        self.seed = seed

    def __getitem__(self, index: Any) -> Any:
        epoch, index = index if isinstance(index, tuple) else (0, index)
        if isinstance(self.transform, Randomizable):
            state = np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0]
            self.transform.set_random_state(seed=int(state))
        return super().__getitem__(index)


class SeededSampler(DistributedSampler):
    """Yields (epoch, index) in an order given by (seed, epoch); each process gets its share.

    Args:
        dataset: anything with a length.
        seed: the run's seed.
        shuffle: whether the order changes from epoch to epoch.
        num_replicas: number of processes; 1 where torch.distributed is not used.
        rank: this process.
        start: samples of this process to leave out in the next epoch iterated, for a resume in its middle.

    MONAI's engines call `set_epoch` at the start of every epoch.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
        start: int = 0,
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        replicas = (torch.distributed.get_world_size() if distributed else 1) if num_replicas is None else num_replicas
        own = (torch.distributed.get_rank() if distributed else 0) if rank is None else rank
        super().__init__(dataset, num_replicas=replicas, rank=own, shuffle=shuffle, seed=seed)
        self.start = start

    def __iter__(self) -> Iterator[Any]:
        indices = list(super().__iter__())[self.start :]
        self.start = 0
        return iter([(self.epoch, index) for index in indices])


class TrainingLoader(DataLoader):
    """A MONAI DataLoader whose workers outlive SIGTERM, until the training has stopped and ends them itself.

    A cluster, and torchrun, signal every process of a job, also a worker that has just been started; one that died of
    it would end the training in an error.
    """

    def __iter__(self) -> Any:
        if not hasattr(signal, "pthread_sigmask"):  # Windows, where no process is told to stop by a signal
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # what starts now inherits it
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class PrepareInputs(PrepareBatch):
    """Picks a network's input from a batch: `image` (x_s), `target` (x_t) or both, concatenated.

    Args:
        keys: entries to concatenate along the channels.
    """

    def __init__(self, keys: Sequence[str] = ("image",)) -> None:
        self.keys = tuple(keys)

    def __call__(
        self,
        batchdata: Mapping[str, torch.Tensor],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        inputs = [batchdata[key].to(device=device, non_blocking=non_blocking, **kwargs) for key in self.keys]
        label = batchdata.get("label")
        if label is not None:
            label = label.to(device=device, non_blocking=non_blocking, **kwargs)
        return (inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)), label
