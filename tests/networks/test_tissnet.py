"""Tests of scripts.networks.tissnet: what G and S see and give, and how the cascade wires them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from scripts.networks.tissnet import Cascade, TISSNet, refine

TINY = (4, 4, 8, 8, 8)
SIZE = (32, 16, 4)
ATOL = 1e-6
ODD = (20, 17, 5)
NAMES = ["x_t_syn", "y_c_logits", "y_f_logits", "y_e_logits"]


def tissnet(in_channels: int = 1, **kwargs: object) -> TISSNet:
    torch.manual_seed(0)
    return TISSNet(in_channels, **{"features": TINY} | kwargs).eval()  # type: ignore[arg-type]


def volume(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Records(nn.Module):
    """Keeps what S was given, returns zeros."""

    def forward(self, x: Tensor, decoders: int = -1) -> Tensor:
        self.seen = x
        return torch.zeros_like(x[:, : 2 if decoders < 0 else decoders])


class Refuses(nn.Module):
    def forward(self, *args: object) -> Tensor:
        raise AssertionError("computed")


def set_heads(unet: nn.Module, *values: float) -> None:
    for decoder, value in zip(unet.decoders, values, strict=True):
        nn.init.zeros_(decoder.head.weight)
        nn.init.constant_(decoder.head.bias, value)


def test_synthesis_is_tanh_and_masks_are_logits() -> None:
    network = tissnet()
    set_heads(network.G, 0.5, 3.0)
    set_heads(network.S, -4.0, 6.0)
    with torch.no_grad():
        outputs = Cascade(network)(volume(1, 1, *SIZE))
    assert list(outputs) == NAMES
    expected = (math.tanh(0.5), 3.0, -4.0, 6.0)
    for name, value in zip(NAMES, expected, strict=True):
        assert torch.allclose(outputs[name], torch.full((1, 1, *SIZE), value), atol=ATOL), name


def test_segmentor_sees_sources_synthetic_and_probability() -> None:
    network = tissnet(2)
    set_heads(network.G, 0.5, math.log(3))
    network.S = Records()  # type: ignore[assignment]
    x_s = volume(1, 2, *SIZE)
    network(x_s)
    seen = network.S.seen
    assert seen.shape[1] == 4
    assert torch.equal(seen[:, :2], x_s)
    assert torch.allclose(seen[:, 2], torch.tensor(math.tanh(0.5)), atol=ATOL)
    assert torch.allclose(seen[:, 3], torch.tensor(0.75), atol=ATOL)  # sigmoid(log 3), not the logit


@pytest.mark.parametrize(
    ("inputs", "background"),
    [
        (("x_s", "x_t_syn", "y_c"), [-1, -1, -1, 0]),
        (("x_s",), [-1, -1]),
        (("x_t_syn",), [-1]),
        (("y_c",), [0]),
        (["y_c", "x_s"], [-1, -1, 0]),
        (("x_t_syn", "y_c"), [-1, 0]),
    ],
)
def test_segmentor_inputs_and_their_padding(inputs: tuple[str, ...], background: list[int]) -> None:
    network = tissnet(2, segmentor_inputs=inputs)
    assert network.S.background.flatten().tolist() == background
    assert network.G.background.flatten().tolist() == [-1, -1]
    assert network(volume(1, 2, *ODD)).shape == (1, 1, *ODD)
    network.S = Records()  # type: ignore[assignment]
    network(volume(1, 2, *SIZE))
    assert network.S.seen.shape[1] == len(background)


@pytest.mark.parametrize("inputs", [(), ("x_t",), ("x_s", "y")])
def test_unknown_segmentor_inputs_are_refused(inputs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="segmentor_inputs"):
        TISSNet(1, features=TINY, segmentor_inputs=inputs)


def test_forward_is_the_cascades_fine_mask() -> None:
    network = tissnet(3)
    x_s = volume(2, 3, *ODD)
    with torch.no_grad():
        outputs = Cascade(network)(x_s)
        fine = network(x_s)
        x_t_syn, y_c_logits = network.generate(x_s)
    assert {name: value.shape for name, value in outputs.items()} == dict.fromkeys(NAMES, (2, 1, *ODD))
    assert torch.equal(fine, outputs["y_f_logits"])
    assert torch.equal(x_t_syn, outputs["x_t_syn"]) and torch.equal(y_c_logits, outputs["y_c_logits"])


def test_what_is_not_asked_for_is_not_computed() -> None:
    network = tissnet()
    x_s = volume(1, 1, *SIZE)
    with torch.no_grad():
        full = Cascade(network)(x_s)
        network.S.decoders[1] = Refuses()
        assert torch.equal(network(x_s), full["y_f_logits"])
        without_error = Cascade(network)(x_s, error=False)
        assert list(without_error) == NAMES[:3]
        assert torch.equal(without_error["y_f_logits"], full["y_f_logits"])
        network.S = Refuses()  # type: ignore[assignment]
        assert list(Cascade(network)(x_s, segmentor=False)) == NAMES[:2]
        with pytest.raises(AssertionError, match="computed"):
            Cascade(network)(x_s)


def test_weights_are_those_of_g_and_s_alone() -> None:
    network = tissnet()
    assert {name.split(".")[0] for name in network.state_dict()} == {"G", "S"}
    other = TISSNet(1, features=TINY).eval()
    other.load_state_dict(network.state_dict())
    x_s = volume(1, 1, *SIZE)
    assert torch.equal(other(x_s), network(x_s))


def test_further_arguments_reach_both_networks() -> None:
    network = tissnet(planar_levels=5, norm="batch")
    assert network.G.factors == network.S.factors == [16, 16, 1]
    assert not any(isinstance(m, nn.InstanceNorm3d) for m in network.modules())


@pytest.mark.parametrize("inputs", [("x_s", "x_t_syn", "y_c"), ("x_t_syn",)])
def test_scripted_is_equal(inputs: tuple[str, ...]) -> None:
    network = tissnet(segmentor_inputs=inputs)
    scripted = torch.jit.script(network)
    for size in (SIZE, ODD):
        x_s = volume(1, 1, *size)
        with torch.no_grad():
            assert torch.equal(scripted(x_s), network(x_s))


def test_scripted_cascade_is_equal() -> None:
    network = tissnet()
    x_s = volume(1, 1, *ODD)
    with torch.no_grad():
        scripted, eager = torch.jit.script(Cascade(network))(x_s), Cascade(network)(x_s)
    assert all(torch.equal(scripted[name], eager[name]) for name in NAMES)


# eq. 7


@pytest.mark.parametrize(("y_c", "y_e", "y_r"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_refine_truth_table(y_c: float, y_e: float, y_r: float) -> None:
    assert refine(torch.tensor(float(y_c)), torch.tensor(float(y_e))).item() == y_r


def test_refine_on_probabilities() -> None:
    y_c, y_e = torch.tensor([0.8, 0.3, 0.5]), torch.tensor([0.1, 0.6, 0.9], requires_grad=True)
    y_r = refine(y_c, y_e)
    assert y_r.tolist() == pytest.approx([0.8 * 0.9 + 0.2 * 0.1, 0.3 * 0.4 + 0.7 * 0.6, 0.5], abs=ATOL)
    y_r.sum().backward()
    assert y_e.grad is not None
    assert y_e.grad.tolist() == pytest.approx([1 - 1.6, 1 - 0.6, 0.0], abs=ATOL)  # 1 - 2 y_c
