"""Tests of trainer: what a step changes and leaves alone, accumulation, clipping, NaN, speed, dropout."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from ignite.engine import Events
from made.training import GENERATOR_TERMS, SIZE, TINY, Voxels, make_batch, make_method, without_target
from monai.engines import IterationEvents
from torch import Tensor, nn

from scripts.networks.unet2d5 import UNet2d5
from scripts.training.logs import scalars
from scripts.training.methods.segmentation import SegmentationMethod
from scripts.training.methods.tissnet import TERMS, TISSNetMethod
from scripts.training.trainer import MethodTrainer

TOLERANCE = 1e-6  # float32, sums in another order
LAYOUT_RTOL = 1e-4  # float32, other convolution algorithms, through a U-Net
BFLOAT16_RTOL = 0.1  # bfloat16 has 8 bits of mantissa, and a U-Net has many layers

Batch = dict[str, Any]


def make_trainer(method: Any, batches: Any, *, epochs: int = 1, sgd: float = 0.0, **kwargs: Any) -> MethodTrainer:
    def optimizer(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer | None:
        if not parameters:
            return None
        return torch.optim.SGD(parameters, lr=sgd) if sgd else torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.999))

    optimizer_g = optimizer(method.generator_parameters())
    assert optimizer_g is not None
    optimizer_d = optimizer(method.discriminator_parameters())
    return MethodTrainer("cpu", epochs, batches, method, optimizer_g, optimizer_d, **kwargs)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def networks(method: TISSNetMethod) -> dict[str, nn.Module]:
    network, S_p = method.cascade.network, method.perceptibility.S_p
    assert S_p is not None
    return {"G": network.G, "S": network.S, "D_g": method.D_g, "D_t": method.D_t, "S_p": S_p}


# what one step changes


def test_a_step_changes_the_four_networks_and_never_the_perceptor() -> None:
    method = make_method()
    before = {name: snapshot(network) for name, network in networks(method).items()}
    make_trainer(method, [make_batch(True, False)]).run()
    unchanged = {name for name, network in networks(method).items() if equal(before[name], network.state_dict())}
    assert unchanged == {"S_p"}
    S_p = networks(method)["S_p"]
    assert not S_p.training and not any(p.requires_grad for p in S_p.parameters())


def test_each_step_gives_gradients_to_its_own_networks_alone() -> None:
    method = make_method()
    trainer = make_trainer(method, [make_batch(True, False)])
    assert trainer.optimizer_d is not None
    order: list[str] = []
    gradients: dict[str, list[Tensor]] = {}

    def note(name: str, parameters: list[nn.Parameter]) -> None:
        order.append(name)
        gradients[name] = [p.grad.clone() for p in parameters if p.grad is not None]

    def at_generator_losses() -> None:
        order.append("losses of G")
        assert not any(p.requires_grad for p in method.discriminator_parameters())

    def at_discriminator_losses(*args: Any) -> dict[str, Tensor]:
        note("losses of D", method.generator_parameters())
        assert all(p.grad is None and p.requires_grad for p in method.discriminator_parameters())
        return losses_of_D(*args)

    losses_of_D, method.discriminator_losses = method.discriminator_losses, at_discriminator_losses  # type: ignore[method-assign]
    trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, at_generator_losses)
    trainer.optimizer_g.register_step_pre_hook(lambda *args: note("G", method.generator_parameters()))
    trainer.optimizer_d.register_step_pre_hook(lambda *args: note("D", method.discriminator_parameters()))
    trainer.run()
    assert order == ["losses of G", "losses of D", "G", "D"]
    assert len(gradients["G"]) == len(method.generator_parameters())
    assert all(torch.equal(a, b) for a, b in zip(gradients["losses of D"], gradients["G"], strict=True))
    assert len(gradients["D"]) == len(method.discriminator_parameters())


def test_discriminators_learn_from_the_fakes_of_the_same_forward_pass() -> None:
    method, batch = make_method(), make_batch(True, False)
    with torch.no_grad():
        before = method.train()(batch)
        expected = method.discriminator_losses(batch, before)
    trainer = make_trainer(method, [batch], decollate=False)
    trainer.run()
    for name, value in expected.items():
        assert float(trainer.state.output[name]) == pytest.approx(float(value), rel=TOLERANCE * 10), name


def test_without_tumor_d_t_makes_no_step_in_spite_of_momentum() -> None:
    method = make_method()
    trainer = make_trainer(method, [make_batch(True, False), make_batch(False, False, seed=2)])
    seen: list[dict[str, dict[str, Tensor]]] = [{name: snapshot(n) for name, n in networks(method).items()}]
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: seen.append({name: snapshot(n) for name, n in networks(method).items()}),
    )
    trainer.run()
    start, after_tumor, after_none = seen
    assert not equal(start["D_t"], after_tumor["D_t"])
    assert equal(after_tumor["D_t"], after_none["D_t"])
    for name in ("G", "S", "D_g"):
        assert not equal(after_tumor[name], after_none[name]), name


def test_a_method_without_adversary_trains_with_one_optimizer() -> None:
    torch.manual_seed(0)
    network = UNet2d5(1, 1, features=TINY)
    before = snapshot(network)
    trainer = make_trainer(SegmentationMethod(network), [make_batch(True)], decollate=False)
    assert trainer.optimizer_d is None
    trainer.run()
    assert not equal(before, network.state_dict())
    assert not {"loss_D", "grad_norm_D"} & set(trainer.state.output)


def test_all_weights_zero_is_refused() -> None:
    method = make_method(weights=dict.fromkeys(TERMS, 0.0))
    with pytest.raises(ValueError, match="every loss weight is 0"):
        make_trainer(method, [make_batch(True)]).run()


# accumulation


def run_voxels(sizes: Sequence[int], *, accumulation_steps: int, samples: Batch) -> dict[str, Tensor]:
    """Trains two epochs on the samples cut into batches of these sizes."""
    bounds = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    batches = [
        {name: values[a:b] for name, values in samples.items()} for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    method = Voxels()
    make_trainer(method, batches, epochs=2, sgd=0.1, accumulation_steps=accumulation_steps).run()
    return method.state_dict()


@pytest.mark.parametrize(
    ("whole", "pieces", "steps"),
    [
        ((2,), (1, 1), 2),
        ((2, 2), (1, 1, 1, 1), 2),
        ((2, 1), (1, 1, 1), 2),  # the last batch of the epoch is alone in its step
        ((3, 2), (1, 1, 1, 1, 1), 3),
    ],
)
def test_accumulated_batches_equal_one_batch(whole: tuple[int, ...], pieces: tuple[int, ...], steps: int) -> None:
    samples = make_batch(*([True] * sum(whole)))
    want = run_voxels(whole, accumulation_steps=1, samples=samples)
    got = run_voxels(pieces, accumulation_steps=steps, samples=samples)
    assert all(torch.allclose(got[name], want[name], rtol=0, atol=TOLERANCE) for name in want)
    plain = run_voxels(pieces, accumulation_steps=1, samples=samples)
    assert not all(torch.allclose(plain[name], want[name], rtol=0, atol=TOLERANCE) for name in want)


def test_gradient_norms_are_of_the_batches_that_step() -> None:
    trainer = make_trainer(Voxels(), [make_batch(True)] * 5, accumulation_steps=2, decollate=False)
    stepped: list[bool] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: stepped.append("grad_norm_G" in engine.state.output)
    )
    trainer.run()
    assert stepped == [False, True, False, True, True]


def test_accumulation_steps_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="accumulation_steps is 0"):
        make_trainer(Voxels(), [make_batch(True)], accumulation_steps=0)


# clipping


def gradients_of(max_grad_norm: float) -> tuple[MethodTrainer, list[Tensor], list[Tensor]]:
    """Of G and of D as they are stepped."""
    method, found = Voxels(), []
    trainer = make_trainer(method, [make_batch(True)], sgd=0.1, max_grad_norm=max_grad_norm, decollate=False)
    for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
        assert optimizer is not None
        optimizer.register_step_pre_hook(
            lambda optimizer, *args: found.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])
        )
    trainer.run()
    return trainer, *found


def test_large_gradients_of_the_generators_are_scaled_down_to_the_limit() -> None:
    free, unlimited, of_D = gradients_of(math.inf)
    norm = float(torch.cat([g.flatten() for g in unlimited]).norm())
    limit = norm / 3
    clipped, limited, of_D_then = gradients_of(limit)
    assert float(torch.cat([g.flatten() for g in limited]).norm()) == pytest.approx(limit, rel=1e-4)
    for got, want in zip(limited, unlimited, strict=True):
        assert torch.allclose(got, want / 3, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(of_D, of_D_then, strict=True))
    for trainer in (free, clipped):  # what is logged is the norm before
        assert float(trainer.state.output["grad_norm_G"]) == pytest.approx(norm, rel=1e-5)


def test_a_limit_that_is_not_reached_changes_no_bit() -> None:
    (_, expected, _), (_, gradients, _) = (gradients_of(limit) for limit in (math.inf, 1e6))
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_positive_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"max_grad_norm is {limit}: expected a positive number"):
        make_trainer(Voxels(), [make_batch(True)], max_grad_norm=limit)


# NaN


def test_nan_stops_with_the_terms_name_the_epoch_and_the_case_and_changes_nothing() -> None:
    method = make_method()
    broken = make_batch(True, False, seed=2, name="broken")
    broken["target"][0, 0, 3, 3, 3] = float("nan")
    trainer = make_trainer(method, [make_batch(True), broken], epochs=3)
    before: list[dict[str, Tensor]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: before.append(snapshot(method)))
    with pytest.raises(FloatingPointError, match=r"epoch 1, .*case\(s\) broken-0, broken-1.*'l1_global': nan"):
        trainer.run()
    assert len(before) == 1 and equal(before[0], method.state_dict())


def test_nan_in_a_discriminator_loss_alone_changes_nothing_either() -> None:
    method = make_method(weights={"l1_global": 0.0, "l1_tumor": 0.0})  # then only the discriminators see the target
    broken = make_batch(True, name="broken")
    broken["target"][0, 0, 3, 3, 3] = float("nan")
    before = snapshot(method)
    with pytest.raises(FloatingPointError, match=r"epoch 1, .*broken-0.*'D_g': nan"):
        make_trainer(method, [broken]).run()
    assert equal(before, method.state_dict())


def test_an_infinite_gradient_of_a_finite_loss_changes_nothing_either() -> None:
    class Root(Voxels):
        def generator_losses(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"root": (0 * outputs["fake"]).sum().abs().sqrt()}  # 0, of slope 0 / 0

    for limit in (math.inf, 1.0):
        method = Root()
        before = snapshot(method)
        with pytest.raises(FloatingPointError, match=r"or a gradient is not finite.*'root': 0\.0.*'grad_norm_G': nan"):
            make_trainer(method, [make_batch(True)], max_grad_norm=limit).run()
        assert equal(before, method.state_dict())


def test_nan_in_another_process_stops_this_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Voxels()
    before = snapshot(method)
    monkeypatch.setattr("scripts.training.trainer.global_mean", lambda values: values * float("nan"))
    with pytest.raises(FloatingPointError, match="all finite here: look at the other processes"):
        make_trainer(method, [make_batch(True)]).run()
    assert equal(before, method.state_dict())


# speed: bfloat16, channels-last, fused Adam, compilation


def test_bfloat16_stays_close_to_float32() -> None:
    outputs = []
    for amp in (False, True):
        # larger: on a CPU, torch 2.13 leaves bfloat16 gradients of kernel 4 on 2 x 2 x 2 voxels partly unwritten
        batch = make_batch(True, False, size=(48, 48, 16))
        trainer = make_trainer(make_method(), [batch], amp=amp, decollate=False)
        trainer.run()
        outputs.append(trainer.state.output)
    exact, rounded = outputs
    assert set(exact) == set(rounded)
    assert not torch.equal(exact["pred"], rounded["pred"])
    for name in GENERATOR_TERMS | {"loss", "D_g", "D_t", "loss_D"}:
        assert rounded[name].dtype == torch.float32, name
        assert float(rounded[name]) == pytest.approx(float(exact[name]), rel=BFLOAT16_RTOL), name
    assert rounded["pred"].dtype == torch.float32


def test_channels_last_makes_the_same_step() -> None:
    """Scalars after one step; the weights' signs of near-zero gradients are Adam's to magnify."""
    outputs, states = [], []
    for channels_last in (False, True):
        method = make_method()
        trainer = make_trainer(
            method, [make_batch(True, False)], sgd=1e-4, channels_last=channels_last, decollate=False
        )
        trainer.run()
        wide = [p for p in method.parameters() if p.dim() == 5 and p.shape[1] > 1 and p[0, 0].numel() > 1]
        last = [p.is_contiguous(memory_format=torch.channels_last_3d) for p in wide]
        assert wide and (all(last) if channels_last else not any(last))
        outputs.append(trainer.state.output)
        states.append(method.state_dict())
    for name in GENERATOR_TERMS | {"loss_D", "grad_norm_G", "grad_norm_D"}:
        assert float(outputs[1][name]) == pytest.approx(float(outputs[0][name]), rel=LAYOUT_RTOL), name
    assert list(states[0]) == list(states[1])
    assert all(torch.allclose(states[0][name], states[1][name], rtol=0, atol=TOLERANCE) for name in states[0])


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_state_of_another_layout_steps_the_same(fused: bool) -> None:
    """As in a resume on a CPU of what a GPU wrote channels-last: each moment stays with its own weight."""

    def after_two_steps(written: bool, resumed: bool) -> dict[str, Tensor]:
        state: Any = None
        for channels_last in (written, resumed):
            torch.manual_seed(0)
            G = nn.Conv3d(2, 3, 3)
            optimizer = torch.optim.Adam(G.parameters(), lr=0.1, fused=fused)
            batch = make_batch(True)
            MethodTrainer(
                "cpu", 1, [batch], SegmentationMethod(G), optimizer, channels_last=channels_last, inferer=lambda *a: {}
            )
            if state is not None:
                optimizer.load_state_dict(state)
            for p in G.parameters():
                slopes = torch.arange(p.numel(), dtype=torch.float32).reshape(p.shape) - p.numel() / 2
                p.grad = torch.empty_like(p).copy_(slopes if state is None else slopes.flip(0))
            optimizer.step()
            state = copy.deepcopy(optimizer.state_dict())
        return G.state_dict()

    want = after_two_steps(False, False)
    for layouts in ((False, True), (True, False)):
        got = after_two_steps(*layouts)
        assert all(torch.allclose(got[name], want[name], rtol=0, atol=TOLERANCE) for name in want), layouts


def test_fused_adam_makes_the_steps_of_the_plain_one() -> None:
    states = []
    for fused in (False, True):
        method, batch = Voxels(), make_batch(True, False)
        optimizers = [
            torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.999), fused=fused)
            for parameters in (method.generator_parameters(), method.discriminator_parameters())
        ]
        MethodTrainer("cpu", 3, [batch], method, *optimizers).run()
        states.append(snapshot(method))
    assert all(torch.allclose(states[0][name], states[1][name], rtol=0, atol=TOLERANCE) for name in states[0])


def test_compiled_networks_make_the_same_steps_under_the_same_keys() -> None:
    states, compiled = [], {"backend": "aot_eager"}  # the graphs of every backend, without a compiler's minutes
    for compile in (False, compiled):
        method = Voxels()
        batches = [make_batch(True, False), make_batch(True, seed=2)]  # the last batch of an epoch may be smaller
        make_trainer(method, batches, compile=compile).run()
        states.append(snapshot(method))
    assert all(network._compiled_call_impl is not None for network in method.networks())
    assert list(states[0]) == list(states[1])
    assert all(torch.allclose(states[0][name], states[1][name], rtol=0, atol=TOLERANCE) for name in states[0])


def test_every_network_of_a_step_is_compiled() -> None:
    method = make_method()
    assert [type(network).__name__ for network in method.networks()] == [
        "Cascade",
        "PatchDiscriminator3d",
        "PatchDiscriminator3d",
        "UNet2d5",
    ]
    parameters = {id(p) for network in method.networks() for p in network.parameters()}
    assert parameters == {id(p) for p in method.parameters()}
    assert len(make_method(S_p=None, weights={"perceptibility": 0.0}).networks()) == 3
    network = UNet2d5(1, 1, features=TINY)
    assert SegmentationMethod(network).networks() == [network]


def test_without_a_compiler_training_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scripts.compiler.shutil.which", lambda name: None)
    method = Voxels()
    before = snapshot(method)
    with caplog.at_level(logging.WARNING, logger="scripts.compiler"):
        make_trainer(method, [make_batch(True)], compile=True).run()
    assert caplog.messages == ["training without torch.compile, which needs a C compiler here: slower."]
    assert not equal(before, method.state_dict())


# what a step tells


def test_output_has_images_and_every_scalar() -> None:
    method, batch = make_method(), make_batch(True, False)
    trainer = make_trainer(method, [batch], decollate=False)
    trainer.run()
    output = trainer.state.output
    named = {"loss", "loss_D", "D_g", "D_t", "grad_norm_G", "grad_norm_D"} | GENERATOR_TERMS
    assert set(output) == {"image", "label", "pred"} | named
    assert torch.equal(output["image"], batch["image"]) and torch.equal(output["label"], batch["label"])
    assert output["pred"].shape == batch["label"].shape
    assert 0 <= float(output["pred"].min()) < float(output["pred"].max()) <= 1
    assert float(output["loss"]) == pytest.approx(sum(float(output[n]) for n in GENERATOR_TERMS), rel=TOLERANCE)
    assert float(output["loss_D"]) == pytest.approx(float(output["D_g"] + output["D_t"]), rel=TOLERANCE)
    assert not any(torch.as_tensor(value).requires_grad for value in output.values())
    assert all(output[name].device.type == "cpu" and output[name].dim() == 0 for name in named)
    norms = [p.grad.norm() for p in method.generator_parameters() if p.grad is not None]
    assert float(output["grad_norm_G"]) == pytest.approx(float(torch.stack(norms).norm()), rel=TOLERANCE * 10)


def test_events_fire_once_each_in_order_and_output_is_decollated() -> None:
    trainer = make_trainer(make_method(), [make_batch(True, False)])
    events = ("FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED")
    fired: list[str] = []
    for name in events:
        trainer.add_event_handler(IterationEvents[name], lambda engine, name: fired.append(name), name)
    trainer.run()
    assert tuple(fired) == events
    assert isinstance(trainer.state.output, list) and len(trainer.state.output) == 2
    assert trainer.state.output[0]["pred"].shape == (1, *SIZE)
    assert set(scalars(trainer.state.output)) >= {"loss", "loss_D", "grad_norm_D"} | GENERATOR_TERMS


# dropout


class Draws(Voxels):
    """Notes what dropout would draw."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.drawn.append(torch.rand(()).item())
        return super().forward(batch)


def drawn_by(*, seed: int = 0, rank: int = 0, global_seed: int = 0) -> list[float]:
    method = Draws()
    trainer = make_trainer(method, [make_batch(True)] * 2, epochs=2, seed=seed)
    trainer.state.rank = rank
    torch.manual_seed(global_seed)
    trainer.run()
    return method.drawn


def test_dropout_is_drawn_by_seed_iteration_and_process_and_nothing_else() -> None:
    drawn = drawn_by()
    assert drawn == drawn_by(global_seed=1)
    assert len({*drawn, *drawn_by(seed=1), *drawn_by(rank=1)}) == 12


# no target


def test_without_any_target_the_discriminators_make_no_step() -> None:
    """In spite of the momentum of a first step with targets; generator and segmentor go on."""
    batches = [without_target(make_batch(True, True, seed=i), *(has,) * 2) for i, has in ((1, True), (2, False))]
    trainer, seen = make_trainer(make_method(), batches, decollate=False), []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: seen.append(
            ({name: snapshot(net) for name, net in networks(trainer.method).items()}, dict(trainer.state.output))
        ),
    )
    trainer.run()
    (first, _), (second, output) = seen
    assert {name for name in first if equal(first[name], second[name])} == {"D_g", "D_t", "S_p"}
    left_out = {"l1_global", "l1_tumor", "adversarial_global", "adversarial_tumor", "D_g", "D_t", "loss_D"}
    assert not (left_out | {"grad_norm_D"}) & set(output) and GENERATOR_TERMS - left_out <= set(output)


def test_an_accumulated_step_counts_the_targets_of_its_earlier_batches() -> None:
    """The last batch of the step has no target: the discriminators still step, on half of the first one's gradient."""
    batches = [without_target(make_batch(True, seed=i), has) for i, has in ((1, True), (2, False))]
    moved = []
    for steps, given in ((2, batches), (1, batches[:1])):
        trainer = make_trainer(make_method(), given, sgd=1e-3, accumulation_steps=steps)
        before = snapshot(trainer.method)
        trainer.run()
        after = trainer.method.state_dict()
        moved.append({n: after[n] - before[n] for n in before if n.startswith("D_")})
    assert max(float(change.abs().max()) for change in moved[1].values()) > TOLERANCE
    for name, change in moved[0].items():
        assert torch.allclose(2 * change, moved[1][name], rtol=1e-3, atol=TOLERANCE), name
