"""Whether every head of the cascade is alive, seen in each validation: what it gives where the tumor is."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import Tensor

from scripts.networks.tissnet import COARSE, ERROR, PRED, outputs_of, refine
from scripts.training.distributed import global_sum

logger = logging.getLogger(__name__)

FINE_IS_ALIVE = 0.2  # mean of y_f over tumor; before, every head is still low
SHARE = 0.5  # of y_f's mean, below which another head counts as dead
MEANING = {
    "y_c": "the coarse mask dies, and the error map marks the tumor in its place",
    "y_r": "the error map marks what the coarse mask has right",
}


class HeadsHandler:
    """Logs the mean probability over true tumor of y_f, y_c and y_r, and warns once of a head that dies.

    It dies where its mean is below half of y_f's (and y_f's at least 0.2), and has not risen since the last validation
    while y_f's has not fallen. The means are those of the voxels of all cases together, in all processes; they stand in
    the validator's metrics as `y_f_on_tumor`, `y_c_on_tumor` and `y_r_on_tumor`. A network without these heads has
    y_f's alone; without any tumor there are none. Nothing is computed but these sums.

    Attach it to the validator before what logs its metrics. In several processes all need it. A resumed run may warn
    anew.
    """

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.warned: set[str] = set()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._add)  # probabilities, before postprocessing
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self._names: list[str] = []
        self._sums: Tensor | None = None

    def _add(self, engine: Engine) -> None:
        output: Any = engine.state.output
        found = {name: value.as_subclass(Tensor) for name, value in outputs_of(output[Keys.PRED]).items()}
        heads = {"y_f": found[PRED]}
        if COARSE in found and ERROR in found:
            heads |= {"y_c": found[COARSE], "y_r": refine(found[COARSE], found[ERROR])}
        y = output[Keys.LABEL].as_subclass(Tensor) > 0
        sums = torch.stack([y.sum(), *(value[y].sum() for value in heads.values())])  # stays on the device
        self._names = list(heads)
        self._sums = sums if self._sums is None else self._sums + sums

    def _finish(self, engine: Engine) -> None:
        state: Any = engine.state
        if self._sums is None:
            return
        voxels, *sums = global_sum(self._sums).tolist()
        if not voxels:
            return
        means = {name: value / voxels for name, value in zip(self._names, sums, strict=True)}
        state.metrics |= {f"{name}_on_tumor": value for name, value in means.items()}
        for name in MEANING:
            if name in means and self._dies(name, means) and name not in self.warned:
                self.warned.add(name)
                if not getattr(state, "rank", 0):
                    logger.warning(
                        "%s is %.2f on average over tumor (%.2f before), y_f %.2f: %s. docs/method.md says why, and "
                        "which loss options keep the heads alive.",
                        *(name, means[name], self.last[name], means["y_f"], MEANING[name]),
                    )
        self.last = means

    def _dies(self, name: str, means: dict[str, float]) -> bool:
        y_f = means["y_f"]
        low = y_f >= FINE_IS_ALIVE and means[name] < SHARE * y_f
        return low and name in self.last and means[name] <= self.last[name] and y_f >= self.last["y_f"]
