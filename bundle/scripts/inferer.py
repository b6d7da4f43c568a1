"""Inference on whole volumes: sliding windows of the training patch's size over a segmentor or the cascade.

No truth is seen here. Loading, resampling and saving go to the configs' pre- and postprocessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from scripts.networks.tissnet import Cascade
from scripts.transforms import BACKGROUND


class SegmentationInferer(SlidingWindowInferer):
    """Gaussian-blended windows of a network with one head: the mask's probability.

    Args:
        roi_size: window in voxels x, y, z; the training patch's (instance norm depends on it).
        sw_batch_size: windows per forward pass.
        overlap: fraction of a window shared with the next.
        amp: bfloat16 autocast.
        progress: whether to show a bar over the windows.

    Shapes:
        inputs (B, C, X, Y, Z) in [-1, 1]; returns (B, 1, X, Y, Z) in [0, 1], float32.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        *,
        sw_batch_size: int = 1,
        overlap: float = 0.5,
        amp: bool = False,
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
        self.amp = amp

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if not torch.isfinite(inputs).all():
            raise ValueError("the network's input has NaN or infinite voxels: expected normalized values in [-1, 1].")

        def window(x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.amp):
                return self.window(x, network)

        return super().__call__(inputs, window, *args, **kwargs)  # type: ignore[return-value]

    def window(self, x: Tensor, network: nn.Module) -> Tensor:
        """Computes one batch of windows: (B, C, x, y, z) to (B, channels, x, y, z), float32."""
        return torch.sigmoid(network(x).float())


class CascadeInferer(SegmentationInferer):
    """Gaussian-blended windows of the whole cascade.

    Args: as `SegmentationInferer`, and
        perceptor: S_p; where given, its mask of the blended synthetic image is added (evaluation only).

    Shapes:
        inputs x_s (B, C, X, Y, Z) in [-1, 1]; returns (B, 4, X, Y, Z), float32: y_f, x_t_syn, y_c, y_e (probabilities,
        and x_t_syn in [-1, 1]); with a perceptor a fifth channel, S_p(x_t_syn).
    """

    def __init__(self, roi_size: Sequence[int], *, perceptor: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(roi_size, **kwargs)
        self.perceptor = SegmentationInferer(roi_size, **kwargs) if perceptor is not None else None
        self.S_p = perceptor

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        prediction = super().__call__(inputs, network, *args, **kwargs)
        if self.perceptor is None or self.S_p is None:
            return prediction
        S_p = self.S_p.to(prediction.device).eval()
        return torch.cat([prediction, self.perceptor(prediction[:, 1:2], S_p)], dim=1)

    def window(self, x: Tensor, network: nn.Module) -> Tensor:
        outputs = Cascade(network)(x)  # type: ignore[arg-type]
        masks = {name: torch.sigmoid(outputs[f"{name}_logits"].float()) for name in ("y_f", "y_c", "y_e")}
        return torch.cat([masks["y_f"], outputs["x_t_syn"].float(), masks["y_c"], masks["y_e"]], dim=1)
