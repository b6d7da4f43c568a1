"""Random intensities of the source scans: what another scanner would have made of the same head."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, Randomizable

from scripts.networks.unet2d5 import BACKGROUND


class RandForegroundd(Randomizable, MapTransform):
    """Runs random intensity transforms on every channel by itself, on values from 0 to 1; background stays background.

    MONAI's transforms take all channels alike, and noise, blur or an offset would change the air too, whose value the
    networks know: -1.

    Args:
        keys: entries to change, (C, X, Y, Z) in [-1, 1], background -1 (`NormalizeForegroundd`).
        transforms: MONAI's array transforms, in their order, for images (1, X, Y, Z) in [0, 1].
        allow_missing_keys: whether a missing key is passed over.
    """

    def __init__(
        self, keys: KeysCollection, *, transforms: Sequence[Callable], allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.transforms = Compose(transforms)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandForegroundd:
        """Seeds this and all its transforms."""
        super().set_random_state(seed, state)
        self.transforms.set_random_state(seed, state)
        return self

    def randomize(self, data: Any = None) -> None:
        """Draws nothing itself: the transforms do."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            changed = torch.cat([torch.as_tensor(self.transforms((channel[None] + 1) / 2)) for channel in image])
            d[key] = torch.where(image > BACKGROUND, (changed * 2 - 1).clamp(-1, 1), image)
        return d
