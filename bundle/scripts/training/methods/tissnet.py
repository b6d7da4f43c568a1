"""TISS-Net's training step: one cascade forward, the losses of {G, S} (eq. 10) and of {D_g, D_t} (eq. 11)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from torch import Tensor, nn

from scripts.networks.tissnet import Cascade, TISSNet
from scripts.training.distributed import any_process
from scripts.training.losses import (
    CoarseLoss,
    GlobalSynthesisLoss,
    PerceptibilityLoss,
    SegmentorLoss,
    TumorSynthesisLoss,
)

TERMS = (
    *("l1_global", "l1_tumor", "adversarial_global", "adversarial_tumor", "perceptibility", "coarse"),
    *("segmentor", "fine", "error", "consistency"),
)


class TISSNetMethod(nn.Module):
    """G and S against D_g and D_t, with the frozen perceptor S_p.

    Args:
        network: the TISSNet to train.
        D_g: global discriminator on (x_s, target).
        D_t: tumor-focused discriminator on the same, masked.
        S_p: the perceptor, None where the weight `perceptibility` is 0. It is frozen here.
        weights: one for each of `TERMS`, 0 or more. 0 skips the term's computation.
        margin: voxels by which the tumor's box of eq. 4 is grown.
        harden, detach_coarse, error_loss, error_target: see `SegmentorLoss`.
        cross_entropy: weight of the cross-entropy added to the Dice of y_c and y_f; 0 is the paper's.

    What has a default here has train.json's; paper.yaml has the paper's.

    Batch: `image` x_s (B, C, X, Y, Z), `target` x_t (B, 1, X, Y, Z), `label` y (B, 1, X, Y, Z), and where samples may
    lack their x_t `has_target` (B,) in {0, 1}, on the CPU. What compares with x_t (eq. 1 to 4) is then over the samples
    that have one, and is left out of a step in which no process has any; all other terms are over all samples.

    Raises:
        ValueError: weights that are missing, unknown, negative or no numbers; a word that is no option.
    """

    def __init__(
        self,
        network: TISSNet,
        *,
        D_g: nn.Module,
        D_t: nn.Module,
        S_p: nn.Module | None = None,
        weights: Mapping[str, float],
        margin: int = 0,
        harden: bool = False,
        detach_coarse: bool = False,
        error_loss: str = "cross_entropy",
        error_target: str = "hard",
        cross_entropy: float = 1.0,
    ) -> None:
        super().__init__()
        w = _checked(weights)
        self.cascade = Cascade(network)
        self.D_g = D_g
        self.D_t = D_t
        self.global_synthesis = GlobalSynthesisLoss(l1=w["l1_global"], adversarial=w["adversarial_global"])
        self.tumor_synthesis = TumorSynthesisLoss(l1=w["l1_tumor"], adversarial=w["adversarial_tumor"], margin=margin)
        self.perceptibility = PerceptibilityLoss(S_p, weight=w["perceptibility"])
        self.coarse = CoarseLoss(weight=w["coarse"], cross_entropy=cross_entropy)
        self.segmentor = SegmentorLoss(
            segmentor=w["segmentor"],
            fine=w["fine"],
            error=w["error"],
            consistency=w["consistency"],
            harden=harden,
            detach_coarse=detach_coarse,
            error_loss=error_loss,
            error_target=error_target,
            cross_entropy=cross_entropy,
        )

    def generator_parameters(self) -> list[nn.Parameter]:
        """The parameters of G and S, those of the first step (eq. 10)."""
        return list(self.cascade.parameters())

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """The parameters of D_g and D_t, those of the second step (eq. 11)."""
        return list(chain(self.D_g.parameters(), self.D_t.parameters()))

    def networks(self) -> list[nn.Module]:
        """The networks that a step runs: the cascade, D_g, D_t and, where there is one, S_p."""
        S_p = self.perceptibility.S_p
        return [self.cascade, self.D_g, self.D_t, *([S_p] if S_p is not None else [])]

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Runs the cascade once; the outputs serve both steps."""
        return self.cascade(batch["image"], segmentor=self.segmentor.needs_segmentor, error=self.segmentor.needs_error)

    def generator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes the weighted terms of eq. 10."""
        x_s, x_t, y = batch["image"], batch["target"], batch["label"]
        x_t_syn = outputs["x_t_syn"]
        terms: dict[str, Tensor] = {}
        any_real, real = _real(batch)
        if any_real:
            terms |= self.global_synthesis(x_s, x_t_syn, x_t, self.D_g, real=real)
            terms |= self.tumor_synthesis(x_s, x_t_syn, x_t, y, self.D_t, real=real)
        terms |= self.perceptibility(x_t_syn, y)
        terms |= self.coarse(outputs["y_c_logits"], y)
        if self.segmentor.needs_segmentor:
            terms |= self.segmentor(outputs, y)
        return terms

    def discriminator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Computes the weighted terms of eq. 11, on detached fakes."""
        x_s, x_t, y = batch["image"], batch["target"], batch["label"]
        x_t_syn = outputs["x_t_syn"]
        any_real, real = _real(batch)
        if not any_real:
            return {}
        terms = self.global_synthesis.discriminator(x_s, x_t_syn, x_t, self.D_g, real=real)
        terms |= self.tumor_synthesis.discriminator(x_s, x_t_syn, x_t, y, self.D_t, real=real)
        return terms

    def logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The mask to follow during training: y_f, or y_c where S does not run."""
        return outputs.get("y_f_logits", outputs["y_c_logits"])


def _checked(weights: Mapping[str, float]) -> Mapping[str, float]:
    """The weights, if there is one for every term and no other."""
    if unknown := sorted(set(weights) - set(TERMS)):
        raise ValueError(f"unknown loss weights {unknown}: expected {', '.join(TERMS)}.")
    if missing := [name for name in TERMS if name not in weights]:
        raise ValueError(f"missing loss weights {missing}: expected {', '.join(TERMS)}; 0 switches a term off.")
    if text := {name: value for name, value in weights.items() if not isinstance(value, int | float)}:
        raise ValueError(f"loss weights {text} are no numbers: in YAML write 1.0e-3, not 1e-3.")
    if negative := {name: value for name, value in weights.items() if value < 0}:
        raise ValueError(f"negative loss weights {negative}: expected 0 (term off) or more.")
    return weights


def _real(batch: Mapping[str, Tensor]) -> tuple[bool, Tensor | None]:
    """Whether any sample of any process has its x_t, the same answer in all; and which here, None where all must."""
    has_target = batch.get("has_target")
    if has_target is None:
        return True, None
    device = batch["image"].device
    return any_process(bool(has_target.any()), device=device), has_target.to(device, non_blocking=True)
