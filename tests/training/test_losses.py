"""Tests of scripts.training.losses, equations 1 to 9: values worked out by hand, relations between values, gradients.

The hand values use volumes of 64 voxels with a tumor of 8, images of one value, and discriminators that are one linear
map per voxel.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn

from scripts.training.losses import (
    ERROR_LOSSES,
    ERROR_TARGETS,
    CoarseLoss,
    GlobalSynthesisLoss,
    MaskLoss,
    PerceptibilityLoss,
    SegmentorLoss,
    TumorSynthesisLoss,
    has_tumor,
    lsgan_loss,
    mean_over_samples,
    tumor_box,
)

RTOL = 1e-5  # of float32 sums over 64 voxels
VANISHING = 1e-6  # a gradient below this teaches nothing
SIZE = (4, 4, 4)
LOG3 = math.log(3)  # sigmoid(LOG3) = 0.75, sigmoid(-LOG3) = 0.25
X_S, X_T_SYN, X_T = 0.1, 0.5, -0.25  # an image of one value each; |x_t_syn - x_t| = 0.75

# with the paper's weights, which the hand values hold
global_synthesis = partial(GlobalSynthesisLoss, l1=50.0, adversarial=1.0)
tumor_synthesis = partial(TumorSynthesisLoss, l1=200.0, adversarial=1.0)
perceptibility = partial(PerceptibilityLoss, weight=25.0)
coarse = partial(CoarseLoss, weight=1.0)
segmentor_loss = partial(SegmentorLoss, segmentor=25.0, fine=1.0, error=1.0, consistency=1.0)


def full(*values: float) -> Tensor:
    """Makes one sample of constant value per argument: (B, 1, 4, 4, 4)."""
    return torch.tensor(values).reshape(-1, 1, 1, 1, 1).repeat(1, 1, *SIZE)


def tumor(*present: bool) -> Tensor:
    """Makes one mask per argument, 8 of 64 voxels or none."""
    y = torch.zeros(len(present), 1, *SIZE)
    for sample, there in zip(y, present, strict=True):
        sample[:, 1:3, 1:3, 1:3] = float(there)
    return y


def linear(on_x_s: float = 2.0, on_target: float = 1.0, bias: float = 0.0) -> nn.Conv3d:
    D = nn.Conv3d(2, 1, 1)
    with torch.no_grad():
        D.weight.copy_(torch.tensor([on_x_s, on_target]).reshape(1, 2, 1, 1, 1))
        D.bias.fill_(bias)  # type: ignore[union-attr]
    return D


def identity() -> nn.Conv3d:
    S_p = nn.Conv3d(1, 1, 1)
    nn.init.ones_(S_p.weight)
    nn.init.zeros_(S_p.bias)  # type: ignore[arg-type]
    return S_p


class Refuses(nn.Module):
    def forward(self, *args: object) -> Tensor:
        raise AssertionError("a term of weight 0 was computed")


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    assert all(value.shape == () for value in terms.values())
    return {name: value.item() for name, value in terms.items()}


def close(expected: object) -> object:
    return pytest.approx(expected, rel=RTOL)


# eq. 2 and 3: the LSGAN distance


@pytest.mark.parametrize(("real", "expected"), [(True, (4 + 1 + 1 + 0.25) / 4), (False, (1 + 0 + 4 + 0.25) / 4)])
def test_lsgan_by_hand(real: bool, expected: float) -> None:
    logits = torch.tensor([-1.0, 0.0, 2.0, 0.5]).reshape(2, 1, 2)
    assert lsgan_loss(logits, real).item() == close(expected)


def test_lsgan_weights_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0], [2.0, 2.0], [-1.0, 5.0]]).reshape(3, 1, 2)  # means of squares to 1: 2, 1, 10
    for weight, expected in [((1, 0, 0), 2), ((1, 1, 0), 1.5), ((0, 1, 1), 5.5), ((0, 0, 0), 0)]:
        assert lsgan_loss(logits, True, weight=torch.tensor(weight).float()).item() == close(expected)


def test_lsgan_uses_raw_logits_in_full_precision() -> None:
    assert lsgan_loss(torch.full((1, 1, 2), 100.0), True).item() == close(99.0**2)
    assert lsgan_loss(torch.zeros(1, 1, 2, dtype=torch.bfloat16), True).dtype == torch.float32


def test_mean_over_samples_by_hand() -> None:
    data = full(2.0, 4.0, 9.0)
    assert mean_over_samples(data, torch.tensor([1.0, 1.0, 0.0])).item() == close(3.0)
    assert mean_over_samples(data, torch.tensor([0.0, 0.0, 1.0])).item() == close(9.0)


def test_no_weight_at_all_is_zero_with_zero_gradient() -> None:
    data = full(2.0, 4.0).requires_grad_()
    loss = mean_over_samples(data, torch.zeros(2))
    loss.backward()
    assert loss.item() == 0 and data.grad is not None and not data.grad.any()


# eq. 4: the box


def box_of(*corners: tuple[int, int, int], shape: tuple[int, int, int] = (6, 7, 8), margin: int = 0) -> Tensor:
    y = torch.zeros(1, 1, *shape)
    for corner in corners:
        y[(0, 0, *corner)] = 1
    return tumor_box(y, margin=margin)[0, 0]


def hand_box(x: slice, y: slice, z: slice, shape: tuple[int, int, int] = (6, 7, 8)) -> Tensor:
    box = torch.zeros(shape)
    box[x, y, z] = 1
    return box


def test_box_of_one_voxel_and_of_two_corners() -> None:
    assert torch.equal(box_of((2, 3, 4)), hand_box(slice(2, 3), slice(3, 4), slice(4, 5)))
    assert torch.equal(box_of((4, 1, 6), (2, 5, 3)), hand_box(slice(2, 5), slice(1, 6), slice(3, 7)))


def test_box_with_margin_and_at_the_border() -> None:
    assert torch.equal(box_of((2, 3, 4), margin=1), hand_box(slice(1, 4), slice(2, 5), slice(3, 6)))
    assert torch.equal(box_of((0, 6, 7), margin=2), hand_box(slice(0, 3), slice(4, 7), slice(5, 8)))
    assert torch.equal(box_of((0, 0, 0), (5, 6, 7)), torch.ones(6, 7, 8))


def test_two_tumors_share_one_box_and_samples_do_not() -> None:
    y = torch.zeros(3, 1, 6, 7, 8)
    y[0, 0, 1, 1, 1] = y[0, 0, 1, 5, 1] = 1
    y[2, 0, 5, 6, 7] = 1
    box = tumor_box(y)
    assert torch.equal(box[0, 0], hand_box(slice(1, 2), slice(1, 6), slice(1, 2)))
    assert not box[1].any()
    assert torch.equal(box[2, 0], hand_box(slice(5, 6), slice(6, 7), slice(7, 8)))
    assert not tumor_box(y, margin=2)[1].any()
    assert has_tumor(y).tolist() == [1, 0, 1]


# Dice


def test_mask_loss_by_hand() -> None:
    y = tumor(True)
    # sum p = 32, sum y = 8, sum p y = 4: 1 - (8 + 1) / (40 + 1)
    assert MaskLoss()(full(0.0), y).item() == close(1 - 9 / 41)
    # p = 0.75: 48, 8, 6
    assert MaskLoss()(full(LOG3), y).item() == close(1 - 13 / 57)
    assert MaskLoss(cross_entropy=2.0)(full(0.0), y).item() == close(1 - 9 / 41 + 2 * math.log(2))


def test_mask_loss_is_over_the_batch() -> None:
    # sums over both samples: p 64, y 8, p y 4; the mean of two samples' losses would be another value
    assert MaskLoss()(full(0.0, 0.0), tumor(True, False)).item() == close(1 - 9 / 73)


@pytest.mark.parametrize("present", [(True,), (True, False), (False, False)])
def test_mask_loss_is_monais_dice_with_our_smoothing(present: tuple[bool, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (3 * torch.randn(len(present), 1, *SIZE, generator=generator)).requires_grad_()
    ours = MaskLoss()(logits, tumor(*present))
    monais = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)(logits, tumor(*present))
    assert ours.item() == close(monais.item())
    got, want = (torch.autograd.grad(loss, logits)[0] for loss in (ours, monais))
    assert want.abs().max() > VANISHING
    assert torch.allclose(got, want, rtol=RTOL, atol=RTOL * float(want.abs().max()))


def test_mask_loss_without_tumor() -> None:
    empty = tumor(False)
    assert MaskLoss()(full(-60.0), empty).item() == pytest.approx(0, abs=VANISHING)
    assert MaskLoss()(full(0.0), empty).item() == close(1 - 1 / 33)
    few = full(-8.0)
    few[..., 0, 0, 0] = 0.0  # one false positive of probability 1/2
    few.requires_grad_()
    MaskLoss()(few, empty).backward()
    assert few.grad is not None and few.grad[..., 0, 0, 0].item() > 0.05
    assert (few.grad > 0).all()
    # with MONAI's own smoothing the same voxel learns nothing: the reason for ours
    few.grad = None
    DiceLoss(sigmoid=True, batch=True, smooth_nr=0, smooth_dr=1e-8)(few, empty).backward()
    assert few.grad is None or few.grad.abs().max() < VANISHING


def test_mask_loss_falls_as_the_mask_gets_better() -> None:
    y = tumor(True)
    better = [((2 * y - 1) * strength) for strength in (-4.0, -1.0, 0.0, 1.0, 4.0, 40.0)]
    losses = [MaskLoss()(logits, y).item() for logits in better]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == len(losses)
    assert losses[-1] == pytest.approx(0, abs=RTOL)


def test_mask_loss_takes_half_precision_and_integer_masks() -> None:
    loss = MaskLoss(cross_entropy=1.0)(full(0.0).bfloat16(), tumor(True).to(torch.uint8))
    assert loss.dtype == torch.float32
    assert loss.item() == close(1 - 9 / 41 + math.log(2))


# eq. 1 to 3


def test_global_by_hand() -> None:
    """D_g(fake) = 2 * 0.1 + 0.5 = 0.7 and D_g(real) = 2 * 0.1 - 0.25 = -0.05 in every voxel."""
    loss = global_synthesis()
    x_s, x_t_syn, x_t = full(X_S), full(X_T_SYN), full(X_T)
    assert values(loss(x_s, x_t_syn, x_t, linear())) == close({"l1_global": 37.5, "adversarial_global": 0.09})
    assert values(loss.discriminator(x_s, x_t_syn, x_t, linear())) == close({"D_g": 0.49 + 1.05**2})


def test_global_weights_scale_their_own_term() -> None:
    loss = global_synthesis(l1=2.0, adversarial=3.0)
    x_s, x_t_syn, x_t = full(X_S), full(X_T_SYN), full(X_T)
    assert values(loss(x_s, x_t_syn, x_t, linear())) == close({"l1_global": 1.5, "adversarial_global": 0.27})
    assert values(loss.discriminator(x_s, x_t_syn, x_t, linear())) == close({"D_g": 3 * (0.49 + 1.05**2)})


def test_l1_is_the_same_from_both_sides() -> None:
    loss = global_synthesis(adversarial=0.0)
    assert values(loss(full(0.0), full(0.2), full(0.6), Refuses())) == close({"l1_global": 20.0})
    assert values(loss(full(0.0), full(0.6), full(0.2), Refuses())) == close({"l1_global": 20.0})


@pytest.mark.parametrize("name", ["l1_global", "adversarial_global"])
def test_a_better_fake_costs_g_less(name: str) -> None:
    """D_g = the target's value; the nearer the fake is to the real 1, the less either term costs."""
    loss, x_t, D_g = global_synthesis(), full(1.0), linear(0.0, 1.0)
    costs = [loss(full(0.0), full(fake), x_t, D_g)[name].item() for fake in (-1.0, 0.0, 0.5, 0.9, 1.0)]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0 < costs[-2]


def test_a_better_discriminator_costs_less() -> None:
    loss, x_s, fake, real = global_synthesis(), full(0.0), full(0.0), full(1.0)
    costs = [values(loss.discriminator(x_s, fake, real, linear(0.0, w)))["D_g"] for w in (-1.0, 0.0, 0.5, 1.0)]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 0


# eq. 4


def test_tumor_by_hand() -> None:
    """D_t has bias 0.2, so it gives 0.9 (fake) or 0.15 (real) in the 8 voxels of the box and 0.2 in the other 56."""
    loss, y, D_t = tumor_synthesis(), tumor(True), linear(bias=0.2)
    x_s, x_t_syn, x_t = full(X_S), full(X_T_SYN), full(X_T)
    assert values(loss(x_s, x_t_syn, x_t, y, D_t)) == close(
        {"l1_tumor": 200 * 0.75 / 8, "adversarial_tumor": (8 * 0.1**2 + 56 * 0.8**2) / 64}
    )
    expected = (8 * 0.9**2 + 56 * 0.2**2) / 64 + (8 * 0.85**2 + 56 * 0.8**2) / 64
    assert values(loss.discriminator(x_s, x_t_syn, x_t, y, D_t)) == close({"D_t": expected})


def test_tumor_weights_and_margin_by_hand() -> None:
    loss = tumor_synthesis(l1=2.0, adversarial=3.0, margin=1)  # the box is the whole patch
    x_s, x_t_syn, x_t, y = full(X_S), full(X_T_SYN), full(X_T), tumor(True)
    assert values(loss(x_s, x_t_syn, x_t, y, linear())) == close({"l1_tumor": 1.5, "adversarial_tumor": 0.27})
    assert values(loss.discriminator(x_s, x_t_syn, x_t, y, linear())) == close({"D_t": 3 * (0.49 + 1.05**2)})


def test_a_sample_without_tumor_changes_nothing() -> None:
    loss, D_t = tumor_synthesis(), linear(bias=0.2)
    alone = full(X_S), full(X_T_SYN), full(X_T), tumor(True)
    mixed = full(X_S, 0.9), full(X_T_SYN, -0.8), full(X_T, 0.4), tumor(True, False)
    assert values(loss(*mixed, D_t)) == close(values(loss(*alone, D_t)))
    assert values(loss.discriminator(*mixed, D_t)) == close(values(loss.discriminator(*alone, D_t)))


def test_two_samples_with_tumor_are_averaged() -> None:
    loss = tumor_synthesis(adversarial=0.0)
    terms = loss(full(0.0, 0.0, 0.0), full(0.5, 1.0, 0.7), full(0.0, 0.0, 0.0), tumor(True, True, False), Refuses())
    assert values(terms) == close({"l1_tumor": 200 * (0.5 / 8 + 1.0 / 8) / 2})


def gradients(loss: Tensor, network: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


def test_in_a_mixed_batch_only_the_sample_with_tumor_teaches() -> None:
    loss, D_t = tumor_synthesis(), linear(bias=0.2)
    alone = full(X_S), full(X_T_SYN), full(X_T), tumor(True)
    x_t_syn = full(-0.8, X_T_SYN).requires_grad_()
    mixed = full(0.9, X_S), x_t_syn, full(0.4, X_T), tumor(False, True)
    expected = gradients(loss.discriminator(*alone, D_t)["D_t"], D_t)
    for got, want in zip(gradients(loss.discriminator(*mixed, D_t)["D_t"], D_t), expected, strict=True):
        assert want.abs().max() > VANISHING
        assert torch.allclose(got, want, rtol=RTOL)
    sum(loss(*mixed, D_t).values()).backward()  # type: ignore[union-attr]
    assert x_t_syn.grad is not None
    assert not x_t_syn.grad[0].any()
    inside = tumor_box(tumor(True))[0].bool()
    assert (x_t_syn.grad[1][inside] != 0).all() and not x_t_syn.grad[1][~inside].any()


def test_what_lies_outside_the_box_does_not_count() -> None:
    loss, D_t, y = tumor_synthesis(), linear(bias=0.2), tumor(True)
    outside = 1 - tumor_box(y)
    plain = full(X_S), full(X_T_SYN), full(X_T)
    changed = full(X_S) + 0.3 * outside, full(X_T_SYN) - 0.7 * outside, full(X_T) + 0.9 * outside
    assert values(loss(*changed, y, D_t)) == close(values(loss(*plain, y, D_t)))
    assert values(loss.discriminator(*changed, y, D_t)) == close(values(loss.discriminator(*plain, y, D_t)))


@pytest.mark.parametrize("name", ["l1_tumor", "adversarial_tumor"])
def test_a_better_tumor_costs_g_less(name: str) -> None:
    loss, x_t, y, D_t = tumor_synthesis(), full(1.0), tumor(True), linear(0.0, 1.0)
    costs = [loss(full(0.0), full(fake), x_t, y, D_t)[name].item() for fake in (-1.0, 0.0, 0.5, 0.9, 1.0)]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)


def test_generator_gradient_by_hand() -> None:
    """d/dx of 50 |x - x_t| / 64 and of (0.2 + x - 1)^2 / 64 at x = 0.5."""
    x_t_syn = full(X_T_SYN).requires_grad_()
    terms = global_synthesis()(full(X_S), x_t_syn, full(X_T), linear())
    (l1,) = torch.autograd.grad(terms["l1_global"], x_t_syn)
    (adversarial,) = torch.autograd.grad(terms["adversarial_global"], x_t_syn)
    assert l1.flatten().tolist() == close([50 / 64] * 64)
    assert adversarial.flatten().tolist() == close([2 * (0.7 - 1) / 64] * 64)


# eq. 5


def test_perceptibility_by_hand() -> None:
    loss = perceptibility(identity())
    assert values(loss(full(0.0), tumor(True))) == close({"perceptibility": 25 * (1 - 9 / 41)})
    assert values(perceptibility(identity(), weight=2.0)(full(LOG3), tumor(True))) == close(
        {"perceptibility": 2 * (1 - 13 / 57)}
    )


def test_perceptibility_reaches_the_image_and_not_the_perceptor() -> None:
    S_p, x_t_syn, y = identity(), full(0.0).requires_grad_(), tumor(True)
    loss = perceptibility(S_p)
    loss(x_t_syn, y)["perceptibility"].backward()
    assert all(p.grad is None and not p.requires_grad for p in S_p.parameters())
    assert x_t_syn.grad is not None
    assert (x_t_syn.grad[y > 0] < 0).all() and (x_t_syn.grad[y == 0] > 0).all()  # brighter inside, darker outside


def test_a_more_visible_tumor_costs_less() -> None:
    loss, y = perceptibility(identity()), tumor(True)
    costs = [loss((2 * y - 1) * s, y)["perceptibility"].item() for s in (-1.0, 0.0, 0.5, 1.0)]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 4


def test_perceptor_stays_in_eval_mode() -> None:
    S_p = nn.Sequential(nn.BatchNorm3d(1), nn.Dropout(0.5), identity()).train()
    loss = nn.ModuleDict({"loss": perceptibility(S_p)}).train()
    before = {name: value.clone() for name, value in S_p.state_dict().items()}
    assert not any(m.training for m in S_p.modules())
    x_t_syn, y = full(0.3, 0.9), tumor(True, False)
    first, second = (loss["loss"](x_t_syn, y)["perceptibility"] for _ in range(2))
    assert torch.equal(first, second)  # no dropout
    assert all(torch.equal(before[name], value) for name, value in S_p.state_dict().items())
    assert loss["loss"].training  # the loss itself follows the method


def test_perceptor_is_needed_where_its_weight_is() -> None:
    with pytest.raises(ValueError, match="weight 25.0 but no perceptor"):
        perceptibility(None)
    assert perceptibility(None, weight=0.0)(full(0.0), tumor(True)) == {}
    assert perceptibility(Refuses(), weight=0.0)(full(0.0), tumor(True)) == {}


# L_c


def test_coarse_by_hand() -> None:
    assert values(coarse()(full(0.0), tumor(True))) == close({"coarse": 1 - 9 / 41})
    assert values(coarse(weight=3.0, cross_entropy=1.0)(full(0.0), tumor(True))) == close(
        {"coarse": 3 * (1 - 9 / 41 + math.log(2))}
    )
    assert coarse(weight=0.0)(full(0.0), tumor(True)) == {}


# eq. 7 to 9

# y_c = 0.75 everywhere: the coarse mask is wrong in the 56 voxels outside the tumor. y_f = 0.75, y_e = 0.25, so
# y_r = 0.75 * 0.75 + 0.25 * 0.25 = 0.625.
FINE = 1 - (2 * 6 + 1) / (48 + 8 + 1)
ERROR = 1 - (2 * 14 + 1) / (16 + 56 + 1)
CONSISTENCY = (0.75 - 0.625) ** 2


def heads(y_c: float = LOG3, y_f: float = LOG3, y_e: float = -LOG3) -> dict[str, Tensor]:
    return {
        "y_c_logits": full(y_c).requires_grad_(),
        "y_f_logits": full(y_f).requires_grad_(),
        "y_e_logits": full(y_e).requires_grad_(),
    }


def test_segmentor_by_hand() -> None:
    expected = {"fine": 25 * FINE, "error": 25 * ERROR, "consistency": 25 * CONSISTENCY}
    assert values(segmentor_loss()(heads(), tumor(True))) == close(expected)


def test_segmentor_weights_by_hand() -> None:
    loss = segmentor_loss(segmentor=2.0, fine=3.0, error=5.0, consistency=7.0)
    expected = {"fine": 6 * FINE, "error": 10 * ERROR, "consistency": 14 * CONSISTENCY}
    assert values(loss(heads(), tumor(True))) == close(expected)


def test_segmentor_options_by_hand() -> None:
    y = tumor(True)
    hardened = values(segmentor_loss(harden=True)(heads(), y))
    assert hardened["consistency"] == pytest.approx(0, abs=VANISHING)  # y_r = .75
    below = values(segmentor_loss(harden=True)(heads(y_c=-LOG3), y))["consistency"]
    assert below == close(25 * (0.75 - 0.25) ** 2)
    # |y - 0.75| is 0.25 in 8 and 0.75 in 56 voxels: sum 44, overlap with y_e 11
    soft = values(segmentor_loss(error_target="soft")(heads(), y))
    assert soft["error"] == close(25 * (1 - (2 * 11 + 1) / (16 + 44 + 1)))
    both = values(segmentor_loss(cross_entropy=1.0)(heads(), y))
    entropy = -(8 * math.log(0.75) + 56 * math.log(0.25)) / 64
    assert both["fine"] == close(25 * (FINE + entropy))
    assert both["error"] == close(25 * ERROR)  # cross-entropy is the fine mask's alone
    probability = values(segmentor_loss(error_loss="cross_entropy")(heads(), y))
    assert probability == close(  # y_e = 0.25, the error is in the 56 voxels outside: the same sum
        {"fine": 25 * FINE, "error": 25 * entropy, "consistency": 25 * CONSISTENCY}
    )


def test_a_soft_target_and_cross_entropy_go_together() -> None:
    """y_c = 0.75: the target is 0.25 in the tumor's 8 and 0.75 in the other 56 voxels."""
    loss = segmentor_loss(error_loss="cross_entropy", error_target="soft")
    expected = 8 * (0.25 * math.log(0.25) + 0.75 * math.log(0.75)) + 56 * (
        0.75 * math.log(0.25) + 0.25 * math.log(0.75)
    )
    assert values(loss(heads(), tumor(True)))["error"] == close(-25 * expected / 64)


@pytest.mark.parametrize(
    ("name", "word", "expected"),
    [
        ("error_loss", "focal", "'dice' or 'cross_entropy'"),
        ("error_target", "rounded", "'hard' or 'soft'"),
        ("detach_coarse", "false", "True or False"),
        ("harden", "false", "True or False"),
    ],
)
def test_an_unknown_word_is_refused_by_name(name: str, word: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is '{word}': expected {expected}.$"):
        segmentor_loss(**{name: word})


def test_error_target_truth_table() -> None:
    y = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    y_c = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.5, 0.5])
    assert segmentor_loss().coarse_error(y_c, y).tolist() == [0, 1, 1, 0, 1, 0]
    assert segmentor_loss(error_target="soft").coarse_error(y_c, y).tolist() == close([0.1, 0.9, 0.9, 0.1, 0.5, 0.5])


def test_error_target_without_tumor_is_the_false_positives() -> None:
    y_c = torch.zeros(1, 1, *SIZE)
    y_c[..., :2] = 0.75
    assert torch.equal(segmentor_loss().coarse_error(y_c, tumor(False)), (y_c > 0).float())
    terms = segmentor_loss()(heads(), tumor(False))
    assert values(terms)["error"] == close(25 * (1 - (2 * 16 + 1) / (16 + 64 + 1)))  # all 64 are wrong
    assert all(torch.isfinite(term) for term in terms.values())


@pytest.mark.parametrize("error_loss", ERROR_LOSSES)
@pytest.mark.parametrize("error_target", ERROR_TARGETS)
def test_error_target_has_no_gradient(error_loss: str, error_target: str) -> None:
    loss, outputs = segmentor_loss(error_loss=error_loss, error_target=error_target), heads()
    y_c = torch.sigmoid(outputs["y_c_logits"])
    assert not loss.coarse_error(y_c, tumor(True)).requires_grad
    loss(outputs, tumor(True))["error"].backward()
    assert outputs["y_e_logits"].grad is not None and outputs["y_e_logits"].grad.abs().max() > VANISHING
    assert outputs["y_c_logits"].grad is None and outputs["y_f_logits"].grad is None


def test_consistency_gradient_by_hand() -> None:
    """With d = y_f - y_r: 2 d / 64 times y_f', -(1 - 2 y_e) y_c' and -(1 - 2 y_c) y_e'; each sigmoid' is 3/16."""
    outputs = heads()
    segmentor_loss()(outputs, tumor(True))["consistency"].backward()
    scale = 25 * 2 * 0.125 / 64 * 3 / 16
    for name, factor in (("y_f_logits", 1.0), ("y_c_logits", -(1 - 2 * 0.25)), ("y_e_logits", -(1 - 2 * 0.75))):
        gradient = outputs[name].grad
        assert gradient is not None, name
        assert gradient.flatten().tolist() == close([scale * factor] * 64), name


def test_hardened_consistency_has_no_gradient_to_the_coarse_mask() -> None:
    outputs = heads(y_f=0.0)
    segmentor_loss(harden=True)(outputs, tumor(True))["consistency"].backward()
    assert outputs["y_c_logits"].grad is None
    assert outputs["y_e_logits"].grad is not None and outputs["y_e_logits"].grad.abs().max() > VANISHING


def test_a_detached_coarse_mask_costs_the_same_and_is_taught_nothing() -> None:
    """y_f and y_e keep their gradients of eq. 8; y_c has none in eq. 7."""
    gradients = {}
    for detached in (False, True):
        outputs = heads()
        term = segmentor_loss(detach_coarse=detached)(outputs, tumor(True))["consistency"]
        assert term.item() == close(25 * CONSISTENCY)
        term.backward()
        gradients[detached] = {name: value.grad for name, value in outputs.items()}
    assert gradients[True]["y_c_logits"] is None and gradients[False]["y_c_logits"].abs().min() > VANISHING
    for name in ("y_f_logits", "y_e_logits"):
        assert torch.equal(gradients[True][name], gradients[False][name])


def test_consistent_heads_cost_less() -> None:
    """y_c is wrong where the last two slices are; the more y_e says so and y_f agrees, the less it costs."""
    y = tumor(True)
    wrong = torch.zeros_like(y)
    wrong[..., 2:] = 1
    y_c = (y - wrong).abs()

    def terms(strength: float) -> dict[str, float]:
        signs = {"y_c_logits": (y_c, 9.0), "y_f_logits": (y, strength), "y_e_logits": (wrong, strength)}
        return values(segmentor_loss()({name: (2 * mask - 1) * s for name, (mask, s) in signs.items()}, y))

    ladder = [terms(strength) for strength in (0.0, 1.0, 3.0, 9.0)]
    for name in ("fine", "error"):
        costs = [row[name] for row in ladder]
        assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs), name
    disagree = {"y_c_logits": (2 * y_c - 1) * 9, "y_f_logits": (2 * y - 1) * 9, "y_e_logits": (1 - 2 * wrong) * 9}
    # y_r is then the opposite of y_f in every voxel
    assert values(segmentor_loss()(disagree, y))["consistency"] == pytest.approx(25, rel=0.01)
    assert ladder[-1]["consistency"] == pytest.approx(0, abs=RTOL)
