"""Equations 1 to 9 of the paper, one class per equation or group; terms come out weighted and named.

Every class returns a dict from a term's name to its weighted value (a scalar); the total is their sum. A weight of 0
skips the term's computation; train.json holds the weights. Options default to the paper's formulas, which paper.yaml
has too; where train.json departs from them, docs/method.md says why.

Symbols: x_s, x_t, x_t_syn in [-1, 1]; y in {0, 1}; y_c, y_f, y_e probabilities; names in `_logits` raw values.
Source: Wu et al., Neurocomputing 544 (2023) 126295, sections 3.1 to 3.4. Choices the paper leaves open are listed in
docs/method.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.networks.tissnet import refine
from scripts.training.distributed import global_sum, world_size

DICE_SMOOTH = 1.0  # above and below: a patch without tumor still pushes false positives down
ERROR_LOSSES = ("dice", "cross_entropy")
ERROR_TARGETS = ("hard", "soft")


def lsgan_loss(logits: Tensor, real: bool, *, weight: Tensor | None = None) -> Tensor:
    """Computes the mean squared distance of raw logits to 1 (real) or 0 (fake), eq. 2 and 3.

    Args:
        logits: (B, 1, ...), the discriminator's raw output.
        real: whether 1 or 0 is aimed at.
        weight: (B,) in {0, 1}, which samples count; see `mean_over_samples`.
    """
    return mean_over_samples((logits.float() - float(real)) ** 2, weight)


def mean_over_samples(values: Tensor, weight: Tensor | None) -> Tensor:
    """Computes the mean of values (B, ...) over samples with weight 1 (not 0); 0, with zero gradients, without any.

    None: over all samples.

    In several processes it is divided by the mean of their numbers of such samples: the mean over the processes is the
    mean over all samples that count.
    """
    if weight is None:
        return values.mean()
    per_sample = values.flatten(1).mean(1)
    count = global_sum(weight.sum()).clamp(min=1.0) / world_size()
    return (per_sample * weight).sum() / count


def _discriminator_loss(D: nn.Module, x_s: Tensor, x_t_syn: Tensor, x_t: Tensor, weight: Tensor | None) -> Tensor:
    of_fake = D(torch.cat([x_s, x_t_syn.detach()], dim=1))
    of_real = D(torch.cat([x_s, x_t], dim=1))
    return lsgan_loss(of_fake, real=False, weight=weight) + lsgan_loss(of_real, real=True, weight=weight)


def tumor_box(y: Tensor, *, margin: int = 0) -> Tensor:
    """Computes the mask of the bounding box around each sample's tumor, all 0 where there is none (M of eq. 4).

    Args:
        y: (B, 1, X, Y, Z) in {0, 1}.
        margin: voxels added on every side, cut at the patch's border.

    Shapes:
        returns (B, 1, X, Y, Z) in {0, 1}.
    """
    box = torch.ones_like(y)
    for axis in (2, 3, 4):
        others = [a for a in (1, 2, 3, 4) if a != axis]
        occupied = y.amax(dim=others)  # (B, n)
        between = occupied.cummax(1).values * occupied.flip(1).cummax(1).values.flip(1)
        if margin > 0:
            between = F.max_pool1d(between, 2 * margin + 1, stride=1, padding=margin)
        shape = [len(y), 1, 1, 1, 1]
        shape[axis] = -1
        box = box * between.reshape(shape)
    return box


def has_tumor(y: Tensor) -> Tensor:
    """Computes 1 for samples with tumor, else 0: (B, 1, X, Y, Z) to (B,)."""
    return y.flatten(1).amax(1)


class MaskLoss(nn.Module):
    """Dice over the whole batch, smoothing 1 above and below, binary cross-entropy, or their sum.

    dice = 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1). A batch without tumor and with an empty prediction costs 0,
    and its false positives have a gradient. In several processes the sums are over all their batches, which MONAI's
    DiceLoss does not offer.

    Args:
        cross_entropy: weight of the cross-entropy added to Dice, 0 for the paper's plain Dice.
        dice: whether Dice counts; without it the cross-entropy stands alone.

    Shapes:
        logits (B, 1, X, Y, Z), target the same in [0, 1]; returns a scalar.
    """

    def __init__(self, *, cross_entropy: float = 0.0, dice: bool = True) -> None:
        super().__init__()
        self.cross_entropy = cross_entropy
        self.dice = dice

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits.float(), target.float()
        loss = logits.new_zeros(())
        if self.dice:
            p = torch.sigmoid(logits)
            overlap, size = global_sum(torch.stack([(p * target).sum(), p.sum() + target.sum()]))
            loss = loss + 1 - (2 * overlap + DICE_SMOOTH) / (size + DICE_SMOOTH)
        if self.cross_entropy:
            loss = loss + self.cross_entropy * F.binary_cross_entropy_with_logits(logits, target)
        return loss


class GlobalSynthesisLoss(nn.Module):
    """Eq. 1 to 3: l1 * mean|x_t_syn - x_t| + adversarial * mean (D_g(x_s, x_t_syn) - 1)^2.

    Args:
        l1: weight alpha_g.
        adversarial: weight of the adversarial term, also of the discriminator's own loss.

    Both losses take `real`, (B,) in {0, 1}: which samples have an x_t; the means are then over those alone. None: all.
    """

    def __init__(self, *, l1: float, adversarial: float) -> None:
        super().__init__()
        self.l1 = l1
        self.adversarial = adversarial

    def forward(
        self, x_s: Tensor, x_t_syn: Tensor, x_t: Tensor, D_g: nn.Module, *, real: Tensor | None = None
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.l1:
            terms["l1_global"] = self.l1 * mean_over_samples((x_t_syn.float() - x_t).abs(), real)
        if self.adversarial:
            judged = D_g(torch.cat([x_s, x_t_syn], dim=1))
            terms["adversarial_global"] = self.adversarial * lsgan_loss(judged, real=True, weight=real)
        return terms

    def discriminator(
        self, x_s: Tensor, x_t_syn: Tensor, x_t: Tensor, D_g: nn.Module, *, real: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Eq. 3: mean D(fake)^2 + mean (D(real) - 1)^2; no gradient reaches x_t_syn."""
        if not self.adversarial:
            return {}
        return {"D_g": self.adversarial * _discriminator_loss(D_g, x_s, x_t_syn, x_t, real)}


class TumorSynthesisLoss(nn.Module):
    """Eq. 4: the terms of eq. 1 to 3 on images multiplied by M, the box around the tumor, with D_t.

    l1 * mean|M (x_t_syn - x_t)| over the whole patch + adversarial * mean (D_t(M x_s, M x_t_syn) - 1)^2. Samples
    without tumor have weight 0; the others are averaged over their number.

    Args:
        l1: weight alpha_t.
        adversarial: weight of the adversarial term, also of the discriminator's own loss.
        margin: voxels by which the box is grown.

    Both losses take `real`, see `GlobalSynthesisLoss`: samples without an x_t have weight 0 too.
    """

    def __init__(self, *, l1: float, adversarial: float, margin: int = 0) -> None:
        super().__init__()
        self.l1 = l1
        self.adversarial = adversarial
        self.margin = margin

    def forward(
        self, x_s: Tensor, x_t_syn: Tensor, x_t: Tensor, y: Tensor, D_t: nn.Module, *, real: Tensor | None = None
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if not self.l1 and not self.adversarial:
            return terms
        M, weight = tumor_box(y, margin=self.margin), has_tumor(y) if real is None else has_tumor(y) * real
        if self.l1:
            terms["l1_tumor"] = self.l1 * mean_over_samples((M * (x_t_syn.float() - x_t)).abs(), weight)
        if self.adversarial:
            fake = D_t(torch.cat([M * x_s, M * x_t_syn], dim=1))
            terms["adversarial_tumor"] = self.adversarial * lsgan_loss(fake, real=True, weight=weight)
        return terms

    def discriminator(
        self, x_s: Tensor, x_t_syn: Tensor, x_t: Tensor, y: Tensor, D_t: nn.Module, *, real: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Eq. 3 on the masked images; no gradient reaches x_t_syn. D_t runs also where no sample has tumor."""
        if not self.adversarial:
            return {}
        M, weight = tumor_box(y, margin=self.margin), has_tumor(y) if real is None else has_tumor(y) * real
        return {"D_t": self.adversarial * _discriminator_loss(D_t, M * x_s, M * x_t_syn, M * x_t, weight)}


class PerceptibilityLoss(nn.Module):
    """Eq. 5: weight * Dice(S_p(x_t_syn), y). S_p is frozen: no parameter or buffer of it ever changes.

    Args:
        S_p: the perceptor, a one-head network trained on the real target modality; None where the weight is 0.
        weight: lambda_p.
    """

    def __init__(self, S_p: nn.Module | None, *, weight: float) -> None:
        super().__init__()
        if weight and S_p is None:
            raise ValueError(f"the perceptibility loss has weight {weight} but no perceptor S_p: train one first.")
        self.S_p = S_p.requires_grad_(False).eval() if S_p is not None else None
        self.weight = weight
        self.mask_loss = MaskLoss()

    def train(self, mode: bool = True) -> PerceptibilityLoss:
        """Leaves S_p in eval mode: its dropout stays off and its normalization statistics stay fixed."""
        super().train(mode)
        if self.S_p is not None:
            self.S_p.eval()
        return self

    def forward(self, x_t_syn: Tensor, y: Tensor) -> dict[str, Tensor]:
        if not self.weight or self.S_p is None:
            return {}
        return {"perceptibility": self.weight * self.mask_loss(self.S_p(x_t_syn), y)}


class CoarseLoss(nn.Module):
    """L_c: weight * Dice(y_c, y), the coarse mask of G.

    Args:
        weight: lambda_c.
        cross_entropy: see `MaskLoss`.
    """

    def __init__(self, *, weight: float, cross_entropy: float = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.mask_loss = MaskLoss(cross_entropy=cross_entropy)

    def forward(self, y_c_logits: Tensor, y: Tensor) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        return {"coarse": self.weight * self.mask_loss(y_c_logits, y)}


class SegmentorLoss(nn.Module):
    """Eq. 7 to 9: segmentor * (fine Dice(y_f, y) + error Dice(y_e, [y != y_c]) + consistency mean (y_f - y_r)^2).

    The error's target has no gradient. The gradient of every term flows back into G through y_c and x_t_syn as inputs
    of S, that of the consistency also through y_c in eq. 7.

    Args:
        segmentor: lambda_S, weight of the whole.
        fine: weight of the fine mask's Dice.
        error: weight of the error's loss.
        consistency: weight of the consistency between fine and refined mask.
        harden: threshold y_c at 0.5 in eq. 7 (dy_r/dy_e = 1 - 2 y_c vanishes near y_c = 0.5).
        detach_coarse: y_c is a constant in eq. 7: the consistency teaches y_f and y_e alone.
        error_loss: of y_e, "dice" (the paper's) or "cross_entropy", with which y_e is a probability.
        error_target: "hard" for [y != (y_c > 0.5)], "soft" for |y - y_c|.
        cross_entropy: of the fine mask, see `MaskLoss`.

    Raises:
        ValueError: another word for `error_loss` or `error_target`, or no bool for a switch.
    """

    def __init__(
        self,
        *,
        segmentor: float,
        fine: float,
        error: float,
        consistency: float,
        harden: bool = False,
        detach_coarse: bool = False,
        error_loss: str = "dice",
        error_target: str = "hard",
        cross_entropy: float = 0.0,
    ) -> None:
        super().__init__()
        for name, word, words in (
            ("error_loss", error_loss, ERROR_LOSSES),
            ("error_target", error_target, ERROR_TARGETS),
            ("harden", harden, (True, False)),  # the text "false" would count as true
            ("detach_coarse", detach_coarse, (True, False)),
        ):
            if word not in words:
                raise ValueError(f"{name} is {word!r}: expected {' or '.join(map(repr, words))}.")
        self.fine = segmentor * fine
        self.error = segmentor * error
        self.consistency = segmentor * consistency
        self.harden = harden
        self.detach_coarse = detach_coarse
        self.error_target = error_target
        self.mask_loss = MaskLoss(cross_entropy=cross_entropy)
        self.error_loss = MaskLoss() if error_loss == "dice" else MaskLoss(dice=False, cross_entropy=1.0)

    @property
    def needs_segmentor(self) -> bool:
        """Whether any term has a weight: S runs only then."""
        return bool(self.fine or self.needs_error)

    @property
    def needs_error(self) -> bool:
        """Whether a term uses y_e: the error decoder runs only then."""
        return bool(self.error or self.consistency)

    def coarse_error(self, y_c: Tensor, y: Tensor) -> Tensor:
        """Computes where the coarse mask is wrong, without gradient; defined also where there is no tumor."""
        y_c = y_c.detach()
        return (y - (y_c if self.error_target == "soft" else (y_c > 0.5).to(y.dtype))).abs()

    def forward(self, outputs: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Computes the weighted terms from `y_c_logits`, `y_f_logits` and, where needed, `y_e_logits`."""
        terms: dict[str, Tensor] = {}
        y_c = torch.sigmoid(outputs["y_c_logits"].float())
        if self.fine:
            terms["fine"] = self.fine * self.mask_loss(outputs["y_f_logits"], y)
        if self.error:
            terms["error"] = self.error * self.error_loss(outputs["y_e_logits"], self.coarse_error(y_c, y))
        if self.consistency:
            y_f = torch.sigmoid(outputs["y_f_logits"].float())
            y_e = torch.sigmoid(outputs["y_e_logits"].float())
            if self.harden:
                y_c = (y_c > 0.5).float()
            elif self.detach_coarse:
                y_c = y_c.detach()
            terms["consistency"] = self.consistency * ((y_f - refine(y_c, y_e)) ** 2).mean()
        return terms
