"""Inference on whole volumes: sliding windows over any network, everywhere or where a tumor may be."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks import eval_mode
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from scripts.inference.engine import Engine
from scripts.inference.regions import Box, count_cut, count_windows, find_regions, foreground_box, grown
from scripts.inference.stages import Outputs
from scripts.networks.tissnet import OUTSIDE, PERCEPTOR, PRED, SYNTHETIC, name_outputs, output_names, outputs_of
from scripts.networks.unet2d5 import BACKGROUND
from scripts.weights import load_weights

logger = logging.getLogger(__name__)


class SegmentationInferer(SlidingWindowInferer):
    """Gaussian-blended windows of a network's outputs, see `Outputs`: of the mask's probability at least.

    Args:
        roi_size: window in voxels x, y, z; the training patch's (instance norm depends on it).
        sw_batch_size: windows per forward pass.
        overlap: fraction of a window shared with the next.
        engine: "torch", "openvino" or "auto", see `Engine`.
        precision: "float32", "bfloat16" or "auto", see `Engine`.
        compile: see `Engine`.
        flips: test-time augmentation, each a list of axes (0, 1, 2) along which every window is flipped too, as in
            [[0], [1], [0, 1]]; results are averaged with those of the window as it is.
        ensemble: further weights of the same network, state dicts; results are averaged over all.
        progress: whether to show a bar over the windows.

    Shapes:
        inputs (B, C, X, Y, Z) in [-1, 1]; returns (B, outputs, X, Y, Z), float32, a MetaTensor with the inputs'
        metadata and the names of its channels: `outputs_of` divides it.

    Raises:
        ValueError: NaN or infinite inputs, flips along no axis, weights of another network.
        FileNotFoundError: weights of the ensemble that do not exist.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *,
        sw_batch_size: int = 1,
        overlap: float = 0.25,
        engine: str = "torch",
        precision: str = "auto",
        compile: bool = False,
        flips: Sequence[Sequence[int]] = (),
        ensemble: Sequence[str] = (),
        progress: bool = False,
    ) -> None:
        super().__init__(
            roi_size=tuple(roi_size),
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode="gaussian",
            padding_mode="constant",
            cval=BACKGROUND,
            progress=progress,
        )
        if not all(
            isinstance(axes, Sequence) and axes and sorted({*axes} & {0, 1, 2}) == sorted(axes) for axes in flips
        ):
            raise ValueError(f"flips {flips}: expected lists of different axes 0, 1, 2, as in [[0], [1], [0, 1]].")
        self.size = tuple(roi_size)
        self.engine = Engine(engine, precision=precision, compile=compile)
        self.flips = [list(axes) for axes in flips]
        self.ensemble = [ensemble] if isinstance(ensemble, str) else list(ensemble)
        self._modules: dict[nn.Module, list[Outputs]] = {}  # by network: it and the ensemble's, as they are run

    def prepare(self, network: nn.Module, device: torch.device) -> None:
        """Loads the ensemble and resolves the engine: what is wrong with them shows before the first scan."""
        self.engine.chosen(torch.device(device))
        if network not in self._modules:
            others = [load_weights(copy.deepcopy(network), path=path) for path in self.ensemble]
            self._modules[network] = [Outputs(n) for n in (network, *others)]

    def __call__(  # type: ignore[override]
        self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any
    ) -> Tensor:
        if not torch.isfinite(inputs).all():
            raise ValueError("the network's input has NaN or infinite voxels: expected normalized values in [-1, 1].")
        self.prepare(network, inputs.device)
        modules = self._modules[network]
        plain = torch.as_tensor(inputs).as_subclass(Tensor)
        with eval_mode(network):  # as it was before, afterwards
            for module in modules:
                self.engine.refresh(module.eval(), inputs.device)
            prediction = self.predict(plain, modules)
        prediction = convert_to_dst_type(prediction, inputs, dtype=torch.float32)[0]  # with the metadata, for Invertd
        return name_outputs(prediction, modules[0].names)

    def predict(self, inputs: Tensor, modules: Sequence[Outputs]) -> Tensor:
        """Computes the blended windows of a whole volume."""
        return super().__call__(inputs, lambda x: self.window(x, modules))  # type: ignore[return-value]

    def window(self, x: Tensor, modules: Sequence[Outputs]) -> Tensor:
        """Computes one batch of windows, (B, C, x, y, z) to (B, outputs, x, y, z): the mean over weights and flips."""
        results = []
        for axes in ([], *self.flips):
            dims = [axis + 2 for axis in axes]
            flipped = torch.flip(x, dims)
            results += [torch.flip(self.engine(module, flipped), dims) for module in modules]
        return torch.stack(results).mean(0) if len(results) > 1 else results[0]


class CascadeInferer(SegmentationInferer):
    """Gaussian-blended windows of a method with a synthetic image, such as the cascade, and S_p on that image.

    Args: as `SegmentationInferer`, and
        perceptor: S_p; where given, its mask of the blended synthetic image is added (evaluation only).

    Shapes:
        inputs x_s (B, C, X, Y, Z) in [-1, 1]; returns (B, outputs, X, Y, Z) as `SegmentationInferer`, with a perceptor
        and a synthetic image one channel more, `perceptor`.
    """

    def __init__(self, roi_size: Sequence[int], *, perceptor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(roi_size, **kwargs)
        self.perceptor = SegmentationInferer(roi_size, **kwargs | {"ensemble": ()}) if perceptor is not None else None
        self.S_p = perceptor

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        prediction = super().__call__(inputs, network, *args, **kwargs)
        names = output_names(prediction)
        if self.perceptor is None or self.S_p is None or SYNTHETIC not in names:
            return prediction
        perceived = self.perceptor(outputs_of(prediction)[SYNTHETIC], self.S_p.to(prediction.device))
        return name_outputs(torch.cat([prediction, perceived], dim=1), [*names, PERCEPTOR])


class FullScanInferer(CascadeInferer):
    """Localizes, then refines: the cascade at full resolution only in regions where a tumor may be.

    1. The box of the foreground: air is not looked at.
    2. The localizer's map of the box.
    3. A region for every candidate above `localizer_threshold`, at most `most_candidates`, and for the most suspicious
       one in any case. Each has a margin and is at least a window large. A candidate in another's region needs none.
    4. The cascade's windows in each region, which grows while a part of the mask that the localizer suspects leaves it.

    Without a localizer, or once the regions cost more than half as much, windows cover the whole box.

    Where regions overlap, the higher probability of the mask decides. Outside of them probabilities are 0 and the
    synthetic image is background, see `networks.tissnet.OUTSIDE`.

    Args: as `CascadeInferer`, and
        localizer: the trained `Localizer`, None for windows everywhere.
        localizer_roi_size: its window, voxels x, y, z of the scan; the patch that it was trained on.
        localizer_threshold: its probability from which a voxel is a candidate.
        most_candidates: how many candidates are looked at, those of the highest probability.
        margin: voxels x, y, z around such a candidate.
        threshold: of the mask, for which regions grow.

    Attributes, of the last scan:
        regions: where the cascade looked; the foreground's box if it was not localized.
        localized: whether the regions came from the localizer.
        candidates: how many there were; beyond `most_candidates` they were not looked at.
        cut: how many parts of the mask end where the cascade stopped looking.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *,
        localizer: nn.Module | None = None,
        localizer_roi_size: Sequence[int] = (128, 128, 16),
        localizer_threshold: float = 0.1,
        most_candidates: int = 10,
        margin: Sequence[int] = (8, 8, 2),
        threshold: float = 0.5,
        perceptor: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size, perceptor=perceptor, **kwargs)
        self.localizer = localizer
        self.localize = SegmentationInferer(localizer_roi_size, **kwargs | {"ensemble": (), "flips": ()})
        self.localizer_threshold = localizer_threshold
        self.most_candidates = most_candidates
        self.margin = tuple(margin)
        self.threshold = threshold
        self.regions: list[Box] = []
        self.localized = False
        self.candidates = self.cut = 0

    @property
    def looked_at(self) -> str:
        """Where the cascade looked in the last scan and what that may have cost, in words."""
        if not self.localized:
            return "the whole foreground"
        looked = f"{len(self.regions)} region{'s' if len(self.regions) > 1 else ''}"
        if self.candidates > self.most_candidates:
            looked += f", the most suspicious {self.most_candidates} of {self.candidates} candidates"
        return looked + (f"; {self.cut} part(s) of the mask end at their borders" if self.cut else "")

    def predict(self, inputs: Tensor, modules: Sequence[Outputs]) -> Tensor:
        return torch.cat([self._scan(scan[None], modules) for scan in inputs])

    def _scan(self, x_s: Tensor, modules: Sequence[Outputs]) -> Tensor:
        names = modules[0].names
        mask = names.index(PRED)
        box = foreground_box(x_s)
        most = self.windows(box)
        found = None
        if self.localizer and most > 1:
            found = self._refined(x_s, modules, *self._candidates(x_s, box), most=most // 2)
        self.localized = found is not None
        predictions = found or [(box, super().predict(x_s[(..., *box)], modules))]
        self.regions = [region for region, _ in predictions]
        outside = torch.tensor([OUTSIDE.get(name, 0.0) for name in names], device=x_s.device)
        result = outside.reshape(1, -1, 1, 1, 1).repeat(1, 1, *x_s.shape[2:])
        for region, prediction in predictions:
            before = result[(..., *region)]
            higher = prediction[:, mask] >= before[:, mask]
            result[(..., *region)] = torch.where(higher[:, None], prediction, before)
        parts = (result[0, mask] >= self.threshold).cpu().numpy()
        self.cut = count_cut(parts, box=box, regions=self.regions) if self.localized else 0
        log = logger.warning if self.localized and (self.cut or self.candidates > self.most_candidates) else logger.info
        log("looked at %s: %d windows of %d", self.looked_at, sum(map(self.windows, self.regions)), most)
        return result

    def _candidates(self, x_s: Tensor, box: Box) -> tuple[list[Box], np.ndarray]:
        """The regions to look at, by the localizer, and the voxels that it suspects, (X, Y, Z)."""
        assert self.localizer is not None
        found = outputs_of(self.localize(x_s[(..., *box)], self.localizer.to(x_s.device)))[PRED]
        regions, suspected, self.candidates = find_regions(
            found[0, 0].cpu().numpy(),
            box=box,
            shape=x_s.shape[2:],
            threshold=self.localizer_threshold,
            most=self.most_candidates,
            margin=self.margin,
            window=self.size,
        )
        return regions, suspected

    def _refined(
        self, x_s: Tensor, modules: Sequence[Outputs], regions: list[Box], suspected: np.ndarray, *, most: int
    ) -> list[tuple[Box, Tensor]] | None:
        """The cascade in regions, which grow while a suspected part of the mask leaves them; None where that takes more
        than `most` windows."""
        mask = modules[0].names.index(PRED)
        results, cost = [], sum(map(self.windows, regions))
        for region in regions:
            larger: Box | None = region
            while larger is not None:
                region = larger
                if cost > most:
                    return None
                prediction = super().predict(x_s[(..., *region)], modules)
                inside = (prediction[0, mask] >= self.threshold).cpu().numpy()
                larger = grown(region, inside, suspected, window=self.size)
                cost += self.windows(larger) if larger else 0
            results.append((region, prediction))
        return results

    def windows(self, region: Box) -> int:
        """How many windows cover a region."""
        return count_windows(region, window=self.size, overlap=self.overlap)  # type: ignore[arg-type]
