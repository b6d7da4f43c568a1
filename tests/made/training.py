"""What tests of training start from, batches and small methods, and how they look at what a training leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scripts.networks.discriminator import PatchDiscriminator3d
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5
from scripts.training.methods.tissnet import TISSNetMethod

TRAIN = Path(__file__).parents[2] / "bundle" / "configs" / "train.json"
LOSS_WEIGHTS: dict[str, float] = json.loads(TRAIN.read_text(encoding="utf-8"))["weights"]
TINY = (4, 4, 8, 8, 8)
NO_DROPOUT = (0.0, 0.0, 0.0, 0.0, 0.0)
SIZE = (24, 24, 6)  # the smallest patch for a discriminator
GENERATOR_TERMS = {"l1_global", "l1_tumor", "adversarial_global", "adversarial_tumor", "perceptibility", "coarse"} | {
    "fine",
    "error",
    "consistency",
}


def make_batch(*present: bool, seed: int = 1, name: str = "case", size: tuple[int, int, int] = SIZE) -> dict[str, Any]:
    """A sample for each of `present`, with or without a tumor; the second one's tumor is larger than the first's."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.zeros(len(present), 1, *size)
    for i, (sample, there) in enumerate(zip(y, present, strict=True)):
        sample[:, 6 : 10 + 12 * i, 8:18, 1:5] = float(there)
    x_s = torch.rand(len(present), 1, *size, generator=generator) * 2 - 1
    cases = [f"{name}-{i}" for i in range(len(present))]
    return {"image": x_s, "target": (y - x_s).clamp(-1, 1), "label": y, "case": cases}


def without_target(batch: Mapping[str, Any], *has: bool) -> dict[str, Any]:
    """The batch as `FillTargetd` makes it: background in place of a target that is not there."""
    there = torch.tensor(has, dtype=torch.float32)
    filled = torch.where(there.view(-1, 1, 1, 1, 1) > 0, batch["target"], torch.tensor(-1.0))
    return {**batch, "target": filled, "has_target": there}


def make_method(
    *,
    seed: int = 0,
    dropout: tuple[float, ...] = NO_DROPOUT,
    segmentor_inputs: tuple[str, ...] = ("x_s", "x_t_syn", "y_c"),
    weights: Mapping[str, float] | None = None,
    **kwargs: Any,
) -> TISSNetMethod:
    """A method from a seed, with the weights of train.json but for those given."""
    torch.manual_seed(seed)
    parts: dict[str, Any] = {
        "D_g": PatchDiscriminator3d(2, features=2),
        "D_t": PatchDiscriminator3d(2, features=2),
        "S_p": UNet2d5(1, 1, features=TINY, norm="batch"),  # batch norm: buffers that must not change
    }
    network = TISSNet(1, features=TINY, dropout=dropout, segmentor_inputs=segmentor_inputs)
    return TISSNetMethod(network, weights=LOSS_WEIGHTS | dict(weights or {}), **parts | kwargs).train()


class Voxels(nn.Module):
    """The smallest method with a generator and a discriminator; its losses are plain means over the samples."""

    def __init__(self, channels: int = 4, *, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.G = nn.Sequential(nn.Conv3d(1, channels, 1), nn.Dropout(dropout), nn.Conv3d(channels, 1, 1))
        self.D = nn.Conv3d(1, 1, 1)

    def generator_parameters(self) -> list[nn.Parameter]:
        return list(self.G.parameters())

    def discriminator_parameters(self) -> list[nn.Parameter]:
        return list(self.D.parameters())

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"fake": self.G(batch["image"])}

    def generator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fake = outputs["fake"]
        return {"l1": (fake - batch["target"]).abs().mean(), "adversarial": ((self.D(fake) - 1) ** 2).mean()}

    def discriminator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"D": (self.D(outputs["fake"].detach()) ** 2).mean() + ((self.D(batch["target"]) - 1) ** 2).mean()}

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs["fake"]

    def networks(self) -> list[nn.Module]:
        return [self.G, self.D]


def curves(run_dir: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a run, by name and step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for file in (run_dir / "logs").glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file)).Reload()
        found |= {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    return found


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and tensor of a state dict."""
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{path}/{key}")
    else:
        yield path, value
