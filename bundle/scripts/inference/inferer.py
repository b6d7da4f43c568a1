"""Inference on whole volumes: sliding windows over a segmentor or the cascade, everywhere or where a tumor may be.

No truth is seen here. Loading, resampling and saving go to the configs' pre- and postprocessing, where a forward pass
runs to `engine.py`.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks import eval_mode
from monai.utils import convert_to_dst_type
from scipy import ndimage
from torch import Tensor, nn

from scripts.inference.engine import Engine
from scripts.inference.stages import CascadeOutput, MaskOutput
from scripts.transforms import BACKGROUND
from scripts.weights import load_weights

logger = logging.getLogger(__name__)

FOREGROUND_SHARE = 0.001  # a plane with less of it is air with noise

Box = tuple[slice, slice, slice]


class SegmentationInferer(SlidingWindowInferer):
    """Gaussian-blended windows of a network with one head: the mask's probability.

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
        inputs (B, C, X, Y, Z) in [-1, 1]; returns (B, 1, X, Y, Z) in [0, 1], float32.

    Raises:
        ValueError: NaN or infinite inputs, flips along no axis, weights of another network.
        FileNotFoundError: weights of the ensemble that do not exist.
    """

    output: type[nn.Module] = MaskOutput

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
        self._modules: dict[nn.Module, list[nn.Module]] = {}  # by network: it and the ensemble's, as they are run

    def prepare(self, network: nn.Module, device: torch.device) -> None:
        """Loads the ensemble and resolves the engine: what is wrong with them shows before the first scan."""
        self.engine.chosen(torch.device(device))
        if network not in self._modules:
            others = [load_weights(copy.deepcopy(network), path=path) for path in self.ensemble]
            self._modules[network] = [self.output(n) for n in (network, *others)]

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
        return convert_to_dst_type(prediction, inputs, dtype=torch.float32)[0]  # with the metadata, for Invertd

    def predict(self, inputs: Tensor, modules: list[nn.Module]) -> Tensor:
        """Computes the blended windows of a whole volume."""
        return super().__call__(inputs, lambda x: self.window(x, modules))  # type: ignore[return-value]

    def window(self, x: Tensor, modules: list[nn.Module]) -> Tensor:
        """Computes one batch of windows, (B, C, x, y, z) to (B, channels, x, y, z): the mean over weights and flips."""
        results = []
        for axes in ([], *self.flips):
            dims = [axis + 2 for axis in axes]
            flipped = torch.flip(x, dims)
            results += [torch.flip(self.engine(module, flipped), dims) for module in modules]
        return torch.stack(results).mean(0) if len(results) > 1 else results[0]


class CascadeInferer(SegmentationInferer):
    """Gaussian-blended windows of the whole cascade.

    Args: as `SegmentationInferer`, and
        perceptor: S_p; where given, its mask of the blended synthetic image is added (evaluation only).

    Shapes:
        inputs x_s (B, C, X, Y, Z) in [-1, 1]; returns (B, 4, X, Y, Z), float32: y_f, x_t_syn, y_c, y_e (probabilities,
        and x_t_syn in [-1, 1]); with a perceptor a fifth channel, S_p(x_t_syn).
    """

    output = CascadeOutput

    def __init__(self, roi_size: Sequence[int], *, perceptor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(roi_size, **kwargs)
        self.perceptor = SegmentationInferer(roi_size, **kwargs | {"ensemble": ()}) if perceptor is not None else None
        self.S_p = perceptor

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        prediction = super().__call__(inputs, network, *args, **kwargs)
        if self.perceptor is None or self.S_p is None:
            return prediction
        S_p = self.S_p.to(prediction.device)
        return torch.cat([prediction, self.perceptor(prediction[:, 1:2], S_p)], dim=1)


class FullScanInferer(CascadeInferer):
    """Localizes, then refines: the cascade at full resolution only in regions where a tumor may be.

    1. The box of the foreground: air is not looked at. 2. The localizer's map of the box. 3. A region for every place
    above `localizer_threshold`, at most `most_places`, and for the most suspicious place in any case; each with a
    margin and at least a window large; none for a place that lies in another's region. 4. The cascade's windows in each
    region, which grows while a part of the mask that the localizer suspects leaves it. Without a localizer, or once the
    regions, growing included, cost more than half as much, windows cover the whole box.

    Where regions overlap, the higher y_f decides. Outside of them y_f, y_c and y_e are 0 and x_t_syn is background.

    Args: as `CascadeInferer`, and
        localizer: the trained `Localizer`, None for windows everywhere.
        localizer_roi_size: its window, voxels x, y, z of the scan; the patch that it was trained on.
        localizer_threshold: its probability from which a place is looked at.
        most_places: how many places are looked at, those of the highest probability.
        margin: voxels x, y, z around such a place.
        threshold: of the mask, for which regions grow.

    Attributes, of the last scan:
        regions: where the cascade looked; the foreground's box if it was not localized.
        localized: whether the regions came from the localizer.
        places: how many places the localizer suspects; if more than `most_places`, the others were left out.
        cut: how many parts of the mask end where the cascade stopped looking.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *,
        localizer: nn.Module | None = None,
        localizer_roi_size: Sequence[int] = (128, 128, 16),
        localizer_threshold: float = 0.1,
        most_places: int = 10,
        margin: Sequence[int] = (8, 8, 2),
        threshold: float = 0.5,
        perceptor: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(roi_size, perceptor=perceptor, **kwargs)
        self.localizer = localizer
        self.localize = SegmentationInferer(localizer_roi_size, **kwargs | {"ensemble": (), "flips": ()})
        self.localizer_threshold = localizer_threshold
        self.most_places = most_places
        self.margin = tuple(margin)
        self.threshold = threshold
        self.regions: list[Box] = []
        self.localized = False
        self.places = self.cut = 0

    @property
    def looked_at(self) -> str:
        """Where the cascade looked in the last scan and what that may have cost, in words."""
        if not self.localized:
            return "the whole foreground"
        looked = f"{len(self.regions)} region{'s' if len(self.regions) > 1 else ''}"
        if self.places > self.most_places:
            looked += f", the most suspicious {self.most_places} of {self.places} places"
        return looked + (f"; {self.cut} part(s) of the mask end at their borders" if self.cut else "")

    def predict(self, inputs: Tensor, modules: list[nn.Module]) -> Tensor:
        return torch.cat([self._scan(scan[None], modules) for scan in inputs])

    def _scan(self, x_s: Tensor, modules: list[nn.Module]) -> Tensor:
        box = foreground_box(x_s)
        most = self.windows(box)
        found = None
        if self.localizer and most > 1:
            found = self._refined(x_s, modules, *self._candidates(x_s, box), most=most // 2)
        self.localized = found is not None
        predictions = found or [(box, super().predict(x_s[(..., *box)], modules))]
        self.regions = [region for region, _ in predictions]
        result = torch.zeros(1, 4, *x_s.shape[2:], device=x_s.device)
        result[:, 1] = BACKGROUND
        for region, prediction in predictions:
            before = result[(..., *region)]
            result[(..., *region)] = torch.where(prediction[:, :1] >= before[:, :1], prediction, before)
        self.cut = self._parts_cut((result[0, 0] >= self.threshold).cpu().numpy(), box) if self.localized else 0
        log = logger.warning if self.localized and (self.cut or self.places > self.most_places) else logger.info
        log("looked at %s: %d windows of %d", self.looked_at, sum(map(self.windows, self.regions)), most)
        return result

    def _candidates(self, x_s: Tensor, box: Box) -> tuple[list[Box], np.ndarray]:
        """The regions to look at, by the localizer, and the voxels that it suspects, (X, Y, Z)."""
        assert self.localizer is not None
        localizer = self.localizer.to(x_s.device)
        found = self.localize(x_s[(..., *box)], localizer)[0, 0].cpu().numpy()
        suspected = np.zeros(x_s.shape[2:], bool)
        suspected[box] = found > self.localizer_threshold
        places = ndimage.find_objects(ndimage.label(found > self.localizer_threshold)[0])
        self.places = len(places)
        if not places:
            peak = np.unravel_index(int(found.argmax()), found.shape)
            places = [tuple(slice(int(i), int(i) + 1) for i in peak)]
            suspected[self._around(_moved(places[0], box), x_s.shape[2:], window=(1, 1, 1))] = True
        places = sorted(places, key=lambda place: -found[place].max())[: self.most_places]
        regions: list[Box] = []
        for place in places:
            wanted = self._around(_moved(place, box), x_s.shape[2:], window=(1, 1, 1))
            if not any(_holds(region, wanted) for region in regions):
                regions.append(self._around(_moved(place, box), x_s.shape[2:], window=self.size))
        return regions, suspected

    def _refined(
        self, x_s: Tensor, modules: list[nn.Module], regions: list[Box], suspected: np.ndarray, *, most: int
    ) -> list[tuple[Box, Tensor]] | None:
        """The cascade in regions, which grow while a suspected part of the mask leaves them; None where that takes more
        than `most` windows."""
        results, cost = [], sum(map(self.windows, regions))
        for region in regions:
            grown: Box | None = region
            while grown is not None:
                region = grown
                if cost > most:
                    return None
                prediction = super().predict(x_s[(..., *region)], modules)
                parts = ndimage.label((prediction[0, 0] >= self.threshold).cpu().numpy())[0]
                followed = np.isin(parts, np.setdiff1d(parts[suspected[region]], 0))
                grown = self._grown(region, followed, x_s.shape[2:])
                cost += self.windows(grown) if grown else 0
            results.append((region, prediction))
        return results

    def _parts_cut(self, mask: np.ndarray, box: Box) -> int:
        """How many parts of the mask have a voxel beside one of the foreground that the cascade did not look at."""
        unseen = np.zeros(mask.shape, bool)
        unseen[box] = True
        for region in self.regions:
            unseen[region] = False
        parts, count = ndimage.label(mask)
        return len(np.setdiff1d(parts[ndimage.binary_dilation(unseen) & mask], 0)) if count else 0

    def _around(self, place: Box, shape: Sequence[int], *, window: Sequence[int]) -> Box:
        """A place with its margin, at least a window large, inside the scan."""
        sides = []
        for side, margin, least, n in zip(place, self.margin, window, shape, strict=True):
            length = max(side.stop - side.start + 2 * margin, least)
            start = min(max((side.start + side.stop - length) // 2, 0), max(n - length, 0))
            sides.append(slice(start, min(start + length, n)))
        return sides[0], sides[1], sides[2]

    def _grown(self, region: Box, mask: np.ndarray, shape: Sequence[int]) -> Box | None:
        """The region, half a window longer on the sides where the mask leaves it inside the scan; None if on none."""
        sides = []
        for axis, (side, window, n) in enumerate(zip(region, self.size, shape, strict=True)):
            first = bool(mask.take(0, axis).any()) * (window // 2)
            last = bool(mask.take(-1, axis).any()) * (window // 2)
            sides.append(slice(max(side.start - first, 0), min(side.stop + last, n)))
        return None if tuple(sides) == region else (sides[0], sides[1], sides[2])

    def windows(self, region: Box) -> int:
        """How many windows cover a region."""
        counts = []
        for side, window in zip(region, self.size, strict=True):
            step = max(int(window * (1 - self.overlap)), 1)  # type: ignore[operator]
            counts.append(1 + max(math.ceil((side.stop - side.start - window) / step), 0))
        return math.prod(counts)


def foreground_box(x_s: Tensor) -> Box:
    """Computes the box of a scan (1, C, X, Y, Z) that holds its foreground; all of it where there is none."""
    inside = (x_s[0] > BACKGROUND).any(0)
    sides = []
    for axis in range(3):
        planes = inside.float().mean([i for i in range(3) if i != axis]) > FOREGROUND_SHARE
        where = torch.nonzero(planes)
        sides.append(slice(int(where.min()), int(where.max()) + 1) if len(where) else slice(0, len(planes)))
    return sides[0], sides[1], sides[2]


def _holds(region: Box, place: Box) -> bool:
    return all(r.start <= p.start and p.stop <= r.stop for r, p in zip(region, place, strict=True))


def _moved(place: Sequence[slice], box: Box) -> Box:
    """A place inside a box, in the coordinates of the box's own volume."""
    sides = [slice(p.start + b.start, p.stop + b.start) for p, b in zip(place, box, strict=True)]
    return sides[0], sides[1], sides[2]
