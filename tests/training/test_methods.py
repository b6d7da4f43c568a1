"""Tests of training.methods: which terms a step has, which network each term reaches, what a weight of 0 skips."""

from __future__ import annotations

import itertools

import pytest
import torch
from made.training import GENERATOR_TERMS, LOSS_WEIGHTS, TINY, make_batch, make_method, without_target
from torch import Tensor, nn

from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5
from scripts.training.losses import MaskLoss
from scripts.training.methods.segmentation import SegmentationMethod
from scripts.training.methods.tissnet import TERMS, TISSNetMethod

RTOL = 1e-5
GRADIENT_RTOL, GRADIENT_ATOL = 1e-3, 1e-5  # float32 sums in another order
PARTS = ("G encoder", "G image", "G mask", "S encoder", "S mask", "S error", "D_g", "D_t", "S_p")
G_IMAGE = {"G encoder", "G image"}
G_MASK = {"G encoder", "G mask"}
G_ALL = G_IMAGE | G_MASK
# which network each term's gradient reaches; the trainer freezes the discriminators in the generators' step
REACHES = {
    "l1_global": G_IMAGE,
    "l1_tumor": G_IMAGE,
    "adversarial_global": G_IMAGE | {"D_g"},
    "adversarial_tumor": G_IMAGE | {"D_t"},
    "perceptibility": G_IMAGE,
    "coarse": G_MASK,
    "fine": G_ALL | {"S encoder", "S mask"},
    "error": G_ALL | {"S encoder", "S error"},
    "consistency": G_ALL | {"S encoder", "S mask", "S error"},
    "D_g": {"D_g"},
    "D_t": {"D_t"},
}


class Refuses(nn.Module):
    def forward(self, *args: object, **kwargs: object) -> Tensor:
        raise AssertionError("computed")


class Counts(nn.Module):
    """Counts its calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: object) -> Tensor:
        self.calls += 1
        return self.module(*args)


def losses(method: TISSNetMethod, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outputs = method(batch)
    return method.generator_losses(batch, outputs), method.discriminator_losses(batch, outputs)


def parts_of(method: TISSNetMethod) -> dict[str, nn.Module]:
    network = method.cascade.network
    found = (
        *(network.G.encoders, *network.G.decoders),
        *(network.S.encoders, *network.S.decoders),
        *(method.D_g, method.D_t, method.perceptibility.S_p),
    )
    return dict(zip(PARTS, found, strict=True))  # type: ignore[arg-type]


def reached(method: TISSNetMethod, loss: Tensor) -> set[str]:
    method.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {
        name
        for name, part in parts_of(method).items()
        if any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in part.parameters())
    }


# terms


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_scales_its_own_terms_and_no_other(name: str) -> None:
    batch = make_batch(True)
    method, doubled = make_method(), make_method(weights={name: 2 * LOSS_WEIGHTS[name]})
    plain_g, plain_d = losses(method, batch)
    terms_g, terms_d = losses(doubled, batch)
    own = {
        "segmentor": {"fine", "error", "consistency"},
        "adversarial_global": {"adversarial_global", "D_g"},
        "adversarial_tumor": {"adversarial_tumor", "D_t"},
    }.get(name, {name})
    for term, value in (plain_g | plain_d).items():
        factor = 2 if term in own else 1
        assert (terms_g | terms_d)[term].item() == pytest.approx(factor * value.item(), rel=RTOL), term


def test_weights_are_one_for_every_term() -> None:
    discriminators = {"D_g": nn.Identity(), "D_t": nn.Identity()}
    left_out = {name: value for name, value in LOSS_WEIGHTS.items() if name not in ("coarse", "fine")}
    with pytest.raises(ValueError, match=r"missing loss weights \['coarse', 'fine'\]: expected l1_global, "):
        TISSNetMethod(TISSNet(1, features=TINY), weights=left_out, **discriminators)  # type: ignore[arg-type]


def test_unknown_and_negative_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown loss weights \['l1'\].*l1_global"):
        make_method(weights={"l1": 1.0})
    with pytest.raises(ValueError, match=r"negative loss weights \{'coarse': -1.0\}"):
        make_method(weights={"coarse": -1.0})
    with pytest.raises(ValueError, match="no perceptor"):
        make_method(S_p=None)


def test_options_reach_the_losses() -> None:
    method = make_method(
        margin=3,
        harden=True,
        detach_coarse=True,
        error_loss="dice",
        error_target="soft",
        cross_entropy=0.5,
    )
    assert method.tumor_synthesis.margin == 3
    assert method.segmentor.harden and method.segmentor.detach_coarse and method.segmentor.error_target == "soft"
    assert method.segmentor.error_loss.dice and not method.segmentor.error_loss.cross_entropy
    assert method.segmentor.mask_loss.cross_entropy == method.coarse.mask_loss.cross_entropy == 0.5
    plain = make_method()
    assert plain.tumor_synthesis.margin == 0
    assert not plain.segmentor.harden and not plain.segmentor.detach_coarse and plain.segmentor.error_target == "hard"
    assert plain.segmentor.error_loss.cross_entropy == 1 and not plain.segmentor.error_loss.dice
    assert plain.segmentor.mask_loss.cross_entropy == plain.coarse.mask_loss.cross_entropy == 1


# which network a term reaches


def test_every_term_reaches_its_networks_and_no_other() -> None:
    method = make_method()
    terms_g, terms_d = losses(method, make_batch(True, False))
    assert {name: reached(method, term) for name, term in (terms_g | terms_d).items()} == REACHES


@pytest.mark.parametrize("name", ["fine", "error", "consistency"])
@pytest.mark.parametrize(
    ("inputs", "expected"), [(("x_s",), set()), (("x_s", "x_t_syn"), G_IMAGE), (("x_s", "y_c"), G_MASK)]
)
def test_segmentation_loss_flows_back_through_either_input(
    name: str, inputs: tuple[str, ...], expected: set[str]
) -> None:
    """Through x_t_syn and y_c as inputs of S; consistency also has y_c in eq. 7."""
    method = make_method(segmentor_inputs=inputs)
    terms, _ = losses(method, make_batch(True))
    to_g = reached(method, terms[name]) & G_ALL
    assert to_g == (expected | G_MASK if name == "consistency" else expected)


def test_discriminator_losses_leave_the_generators_alone() -> None:
    method, batch = make_method(), make_batch(True)
    outputs = method(batch)
    outputs["x_t_syn"].retain_grad()
    sum(method.discriminator_losses(batch, outputs).values()).backward()  # type: ignore[union-attr]
    assert outputs["x_t_syn"].grad is None
    assert all(p.grad is None for p in method.generator_parameters())
    assert all(p.grad is not None for p in method.discriminator_parameters())


def test_parameter_groups_are_disjoint_and_leave_out_the_perceptor() -> None:
    method = make_method()
    groups = [{id(p) for p in g} for g in (method.generator_parameters(), method.discriminator_parameters())]
    perceptor = {id(p) for p in method.perceptibility.parameters()}
    assert perceptor and all(not a & b for a, b in itertools.combinations([*groups, perceptor], 2))
    assert groups[0] == {id(p) for p in method.cascade.network.parameters()}
    assert groups[1] == {id(p) for D in (method.D_g, method.D_t) for p in D.parameters()}
    assert {id(p) for p in method.parameters() if p.requires_grad} == groups[0] | groups[1]


# no tumor


def test_without_tumor_d_t_gets_zero_gradient_but_runs() -> None:
    method, batch = make_method(), make_batch(False, False)
    D_t = method.D_t = Counts(method.D_t)
    terms_g, terms_d = losses(method, batch)
    assert D_t.calls == 3  # G's fake; the detached fake and the real one: every process has the same work
    assert terms_g["l1_tumor"].item() == terms_g["adversarial_tumor"].item() == terms_d["D_t"].item() == 0
    assert reached(method, terms_d["D_t"]) == set()
    assert reached(method, terms_g["adversarial_tumor"] + terms_g["l1_tumor"]) == set()
    assert all(p.grad is not None for p in D_t.module.parameters())
    for name in ("coarse", "fine", "error", "perceptibility"):
        assert "G encoder" in reached(method, terms_g[name]), name  # false positives are pushed down


# weight 0 skips the work


def refuse(method: TISSNetMethod, name: str) -> None:
    """Puts a module that raises where only the term `name` would call."""
    network = method.cascade.network
    if name == "adversarial_global":
        method.D_g = Refuses()
    elif name == "adversarial_tumor":
        method.D_t = Refuses()
    elif name == "perceptibility":
        method.perceptibility.S_p = Refuses()
    elif name == "coarse":
        method.coarse.mask_loss = Refuses()  # type: ignore[assignment]
    elif name == "segmentor":
        network.S = Refuses()  # type: ignore[assignment]
    elif name == "fine":
        method.segmentor.mask_loss = Refuses()  # type: ignore[assignment]
    elif name == "error":
        method.segmentor.error_loss = Refuses()  # type: ignore[assignment]


@pytest.mark.parametrize("name", TERMS)
def test_weight_zero_skips_the_computation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make_method(weights={name: 0.0})
    batch = make_batch(True)
    if name == "consistency":
        monkeypatch.setattr("scripts.training.losses.refine", Refuses())
    refuse(method, name)
    terms_g, terms_d = losses(method, batch)
    gone = {"segmentor": {"fine", "error", "consistency"}}.get(name, {name})
    gone_d = {"adversarial_global": {"D_g"}, "adversarial_tumor": {"D_t"}}.get(name, set())
    assert set(terms_g) == GENERATOR_TERMS - gone
    assert set(terms_d) == {"D_g", "D_t"} - gone_d


@pytest.mark.parametrize("name", sorted(set(TERMS) - {"l1_global", "l1_tumor"}))
def test_a_weight_above_zero_does_compute(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counterpart of the test above: the same module raises when the weight is there."""
    method = make_method()
    if name == "consistency":
        monkeypatch.setattr("scripts.training.losses.refine", Refuses())
    refuse(method, name)
    with pytest.raises(AssertionError, match="computed"):
        losses(method, make_batch(True))


def test_tumor_weights_zero_need_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.training.losses.tumor_box", Refuses())
    losses(make_method(weights={"l1_tumor": 0.0, "adversarial_tumor": 0.0}), make_batch(True))
    method, y = make_method(weights={"adversarial_tumor": 0.0}), make_batch(True)["label"]
    assert method.tumor_synthesis.discriminator(y, y, y, y, method.D_t) == {}
    with pytest.raises(AssertionError, match="computed"):
        losses(method, make_batch(True))


def test_no_error_terms_no_error_decoder() -> None:
    method = make_method(weights={"error": 0.0, "consistency": 0.0})
    method.cascade.network.S.decoders[1] = Refuses()
    batch = make_batch(True)
    outputs = method(batch)
    assert "y_e_logits" not in outputs
    assert set(method.generator_losses(batch, outputs)) == GENERATOR_TERMS - {"error", "consistency"}


def test_no_segmentor_terms_no_segmentor_and_y_c_is_followed() -> None:
    method = make_method(weights={"fine": 0.0, "error": 0.0, "consistency": 0.0})
    method.cascade.network.S = Refuses()  # type: ignore[assignment]
    outputs = method(make_batch(True))
    assert method.logits(outputs) is outputs["y_c_logits"]
    full = make_method()
    outputs = full(make_batch(True))
    assert full.logits(outputs) is outputs["y_f_logits"]


def test_perceptor_may_be_missing_where_its_weight_is_zero() -> None:
    terms, _ = losses(make_method(S_p=None, weights={"perceptibility": 0.0}), make_batch(True))
    assert set(terms) == GENERATOR_TERMS - {"perceptibility"}


# the plain segmentor


@pytest.mark.parametrize(
    ("inputs", "channels"), [(("image",), [0, 1]), (("target",), [2]), (("image", "target"), [0, 1, 2])]
)
def test_segmentation_inputs(inputs: tuple[str, ...], channels: list[int]) -> None:
    x = torch.rand(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    class Sees(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x[:, :1]

    batch = {"image": x[:, :2], "target": x[:, 2:], "label": (x[:, :1] > 0.5).float()}
    method = SegmentationMethod(Sees(), inputs=inputs)
    outputs = method(batch)
    assert torch.equal(seen[0], x[:, channels])
    assert method.logits(outputs) is outputs["y_f_logits"]
    expected = MaskLoss(cross_entropy=1.0)(x[:, channels][:, :1], batch["label"])
    assert method.generator_losses(batch, outputs) == {"fine": expected}
    assert method.discriminator_losses(batch, outputs) == {} and method.discriminator_parameters() == []


@pytest.mark.parametrize("inputs", [(), ("target", "image"), ("label",), ("image", "image"), ("image", "pred")])
def test_segmentation_inputs_are_checked(inputs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected 'image', 'target' or both"):
        SegmentationMethod(nn.Identity(), inputs=inputs)


def test_segmentation_trains_its_network_and_takes_cross_entropy() -> None:
    torch.manual_seed(0)
    network = UNet2d5(1, 1, features=TINY)
    method = SegmentationMethod(network, cross_entropy=1.0)
    assert {id(p) for p in method.generator_parameters()} == {id(p) for p in network.parameters()}
    batch = make_batch(True)
    outputs = method(batch)
    loss = method.generator_losses(batch, outputs)["fine"]
    assert loss.item() == pytest.approx(MaskLoss(cross_entropy=1.0)(outputs["y_f_logits"], batch["label"]).item())
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


# no target


OF_X_T = {"l1_global", "l1_tumor", "adversarial_global", "adversarial_tumor", "D_g", "D_t"}


def test_one_of_two_targets_gives_the_synthesis_losses_of_that_sample_alone() -> None:
    """And the segmentation's of both: Dice by hand of the pair, not the mean of two Dices."""
    method = make_method(cross_entropy=0.0)
    pair = make_batch(True, True)
    pair["target"][1] *= 0.5
    terms_g, terms_d = losses(method, without_target(pair, False, True))
    second_g, second_d = losses(method, {name: values[1:] for name, values in pair.items()})
    for name in OF_X_T:
        assert (terms_g | terms_d)[name].item() == pytest.approx((second_g | second_d)[name].item(), rel=RTOL), name
    both_g, both_d = losses(method, pair)
    for name in GENERATOR_TERMS - OF_X_T:
        assert torch.equal(terms_g[name], both_g[name]), name
    y_f = torch.sigmoid(method(pair)["y_f_logits"])
    y = pair["label"]
    dice = 1 - (2 * (y_f * y).sum() + 1) / (y_f.sum() + y.sum() + 1)
    assert terms_g["fine"].item() == pytest.approx(25 * dice.item(), rel=RTOL)
    assert all(abs(both_g[name].item() - second_g[name].item()) > 1e-4 for name in ("l1_global", "l1_tumor"))
    assert both_d["D_g"].item() != pytest.approx(second_d["D_g"].item(), rel=RTOL)


def test_what_fills_the_missing_target_changes_no_loss_and_no_gradient() -> None:
    found = []
    for value in (-1.0, 0.7):
        method = make_method()
        batch = without_target(make_batch(True, True), True, False)
        batch["target"][1] = value
        terms_g, terms_d = losses(method, batch)
        sum((terms_g | terms_d).values()).backward()  # type: ignore[union-attr]
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        found.append((terms_g | terms_d, gradients))
    (first, gradients), (second, others) = found
    assert {name: value.item() for name, value in first.items()} == {n: v.item() for n, v in second.items()}
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_with_all_targets_the_losses_are_those_without_the_flag() -> None:
    method, batch = make_method(), make_batch(True, False)
    plain_g, plain_d = losses(method, batch)
    terms_g, terms_d = losses(method, without_target(batch, True, True))
    assert list(terms_g) == list(plain_g) and list(terms_d) == list(plain_d)
    for name, value in (plain_g | plain_d).items():
        assert (terms_g | terms_d)[name].item() == pytest.approx(value.item(), rel=RTOL), name


def test_without_any_target_synthesis_is_not_computed() -> None:
    method = make_method()
    method.D_g = method.D_t = Refuses()
    terms_g, terms_d = losses(method, without_target(make_batch(True, False), False, False))
    assert set(terms_g) == GENERATOR_TERMS - OF_X_T and terms_d == {}


def test_a_network_that_sees_the_target_refuses_to_train_without() -> None:
    method = SegmentationMethod(UNet2d5(1, 1, features=TINY), inputs=("target",))
    with pytest.raises(ValueError, match="cases without a target"):
        method(without_target(make_batch(True, True), True, False))
    method(without_target(make_batch(True), True))
    SegmentationMethod(UNet2d5(1, 1, features=TINY))(without_target(make_batch(True), False))
