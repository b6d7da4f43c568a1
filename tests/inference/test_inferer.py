"""Tests of inferer: windows, blending, outputs, regions. The networks are stand-ins whose outputs are known."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scripts.inference.inferer import (
    CascadeInferer,
    FullScanInferer,
    SegmentationInferer,
)
from scripts.inference.regions import Box
from scripts.inference.stages import Outputs
from scripts.networks.tissnet import Cascade, TISSNet, output_names, outputs_of
from scripts.networks.unet2d5 import UNet2d5

TINY = (4, 4, 8, 8, 8)
WINDOW = (16, 16, 4)
ATOL = 1e-5
BFLOAT16_ATOL = 0.1  # of probabilities, after some twenty layers
SYMMETRY_ATOL = 0.05  # a window of even size has no voxel in its middle
LOG3 = math.log(3)


def volume(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class StandIn(nn.Module):
    """A TISSNet whose G and S are made up."""

    outputs = TISSNet.outputs
    infer = TISSNet.infer
    finish = TISSNet.finish


class Constant(StandIn):
    def generate(self, x_s: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(x_s[:, :1])
        return 0.5 * one, -LOG3 * one

    def segment(self, x_s: Tensor, x_t_syn: Tensor, y_c_logits: Tensor, error: bool = True) -> Tensor:
        one = torch.ones_like(x_s[:, :1])
        return torch.cat([LOG3 * one, 0 * one], dim=1)


class ConstantMask(nn.Module):
    def forward(self, x_s: Tensor) -> Tensor:
        return LOG3 * torch.ones_like(x_s[:, :1])


class Voxelwise(StandIn):
    """Every output voxel depends on its own input voxel only, so that blending must not change anything."""

    def generate(self, x_s: Tensor) -> tuple[Tensor, Tensor]:
        return -x_s[:, :1], 2 * x_s[:, :1]

    def segment(self, x_s: Tensor, x_t_syn: Tensor, y_c_logits: Tensor, error: bool = True) -> Tensor:
        return torch.cat([3 * x_s[:, :1], 4 * x_s[:, :1]], dim=1)


class Sizes(nn.Module):
    """Keeps the sizes of the batches it was given, returns logits that say where a window is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x[:, :1]


# blending


@pytest.mark.parametrize("size", [(40, 23, 9), (16, 16, 4), (5, 7, 2), (16, 50, 1)])
def test_a_constant_network_blends_to_a_constant(size: tuple[int, ...]) -> None:
    out = SegmentationInferer(WINDOW)(volume(1, 2, *size), ConstantMask())
    assert out.shape == (1, 1, *size) and output_names(out) == ["pred"]
    assert torch.allclose(out, torch.tensor(0.75), atol=ATOL)


@pytest.mark.parametrize("size", [(40, 23, 9), (5, 7, 2)])
def test_every_output_has_its_name(size: tuple[int, ...]) -> None:
    out = CascadeInferer(WINDOW)(volume(2, 1, *size), Constant())
    assert out.shape == (2, 4, *size) and out.dtype == torch.float32
    expected = {"pred": 0.75, "synthetic": 0.5, "coarse": 0.25, "error": 0.5}
    assert {name: pytest.approx(part.mean().item(), abs=ATOL) for name, part in outputs_of(out).items()} == expected
    assert all(part.shape == (2, 1, *size) and part.std() < ATOL for part in outputs_of(out).values())


def test_a_network_without_a_mask_is_refused() -> None:
    class Generator(nn.Module):
        outputs = ("synthetic",)

    with pytest.raises(ValueError, match="Generator has the outputs .*: expected 'pred' among them"):
        SegmentationInferer(WINDOW)(volume(1, 1, *WINDOW), Generator())


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_a_voxelwise_network_is_blended_exactly(overlap: float) -> None:
    x_s = volume(1, 1, 30, 21, 7)
    out = CascadeInferer(WINDOW, overlap=overlap, sw_batch_size=3)(x_s, Voxelwise())
    expected = torch.cat([torch.sigmoid(3 * x_s), -x_s, torch.sigmoid(2 * x_s), torch.sigmoid(4 * x_s)], dim=1)
    assert torch.allclose(out, expected, atol=ATOL)


def test_probabilities_are_blended_with_gaussian_weights() -> None:
    """Two windows that disagree: near a window's center its own value counts more than the other's."""

    class First(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.full_like(x, 60.0 if self.calls == 1 else -60.0)  # probabilities 1 and 0

    line = SegmentationInferer(WINDOW)(torch.zeros(1, 1, 24, 16, 4), First())[0, 0, :, 8, 2]
    assert torch.allclose(line[:8], torch.ones(8), atol=ATOL) and torch.allclose(line[16:], torch.zeros(8), atol=ATOL)
    overlap = line[8:16]
    assert (overlap.diff() < 0).all()
    assert torch.allclose(overlap + overlap.flip(0), torch.ones(8), atol=SYMMETRY_ATOL)  # symmetric about the middle
    assert overlap[0] > 0.9  # a mean of logits or equal weights would give 0.5


# windows


@pytest.mark.parametrize("channels", [1, 2])
def test_a_volume_of_the_windows_size_is_one_forward_pass(channels: int) -> None:
    torch.manual_seed(0)
    network = TISSNet(channels, features=TINY).eval()
    x_s = volume(1, channels, 32, 32, 8)
    with torch.no_grad():
        outputs = Cascade(network)(x_s)
        out = CascadeInferer((32, 32, 8))(x_s, network)
        assert torch.allclose(out[:, :1], torch.sigmoid(network(x_s)), atol=ATOL)
    names = ("y_f_logits", None, "y_c_logits", "y_e_logits")
    for i, name in enumerate(names):
        expected = outputs["x_t_syn"] if name is None else torch.sigmoid(outputs[name])
        assert torch.allclose(out[:, i : i + 1], expected, atol=ATOL), name


def test_every_window_has_the_windows_size_and_padding_is_background() -> None:
    network = Sizes()
    SegmentationInferer(WINDOW, sw_batch_size=2)(torch.zeros(1, 1, 10, 40, 3), network)
    assert len(network.seen) > 1
    for x in network.seen:
        assert x.shape[2:] == WINDOW and len(x) <= 2
        assert set(x.unique().tolist()) == {-1.0, 0.0}  # air, never 0, around the volume
        assert int((x[0, 0] == 0).sum()) == 10 * 16 * 3


def test_a_small_volume_equals_the_padded_one() -> None:
    torch.manual_seed(0)
    network = UNet2d5(1, 1, features=TINY).eval()
    small = volume(1, 1, 20, 32, 4)
    padded = torch.full((1, 1, 32, 32, 8), -1.0)
    padded[:, :, 6:26, :, 2:6] = small  # MONAI pads both sides
    with torch.no_grad():
        out = SegmentationInferer((32, 32, 8))(small, network)
        expected = torch.sigmoid(network(padded))[:, :, 6:26, :, 2:6]
    assert torch.allclose(out, expected, atol=ATOL)


def test_bfloat16_windows_give_float32() -> None:
    torch.manual_seed(0)
    network = TISSNet(1, features=TINY).eval()
    x_s = volume(1, 1, 32, 32, 4)
    with torch.no_grad():
        full = CascadeInferer((32, 32, 4))(x_s, network)
        half = CascadeInferer((32, 32, 4), precision="bfloat16")(x_s, network)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, atol=BFLOAT16_ATOL)


# the perceptor


def test_the_perceptor_sees_the_synthetic_image() -> None:
    class Perceptor(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1] == 1 and not self.training
            return 5 * x

    x_s = volume(1, 2, 30, 21, 7)
    out = CascadeInferer(WINDOW, perceptor=Perceptor().train())(x_s, Voxelwise())
    assert out.shape == (1, 5, 30, 21, 7) and output_names(out) == [*TISSNet.outputs, "perceptor"]
    assert torch.allclose(out[:, 4:], torch.sigmoid(-5 * x_s[:, :1]), atol=ATOL)
    assert torch.equal(out[:, :4], CascadeInferer(WINDOW)(x_s, Voxelwise()))


# input checks


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("inferer", [SegmentationInferer, CascadeInferer])
def test_input_that_is_not_finite_is_refused(value: float, inferer: type[SegmentationInferer]) -> None:
    x_s = volume(1, 1, *WINDOW)
    x_s[0, 0, 3, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        inferer(WINDOW)(x_s, Constant())


class Faint(FullScanInferer):
    """A tumor of probability 0.4 along x, of which the localizer's region holds a part."""

    region = (slice(8, 24), slice(36, 52), slice(0, 4))

    def window(self, x: Tensor, modules: Sequence[Outputs]) -> Tensor:
        return torch.full_like(x, 0.4).repeat(1, 4, 1, 1, 1)

    def _candidates(self, x_s: Tensor, box: Box) -> tuple[list[Box], np.ndarray]:
        return [self.region], np.ones(x_s.shape[2:], bool)


@pytest.mark.parametrize(("threshold", "grows"), [(0.5, False), (0.3, True)])
def test_regions_grow_for_the_threshold_that_is_asked(threshold: float, grows: bool) -> None:
    inferer = Faint(WINDOW, localizer=nn.Identity(), threshold=threshold)
    inferer(torch.full((1, 1, 192, 192, 4), -0.5), StandIn())
    assert (inferer.regions != [Faint.region]) == grows


def test_roi_size_may_be_a_list() -> None:
    assert tuple(SegmentationInferer([16, 16, 4]).roi_size) == WINDOW


# flips and ensembles


class Corner(nn.Module):
    """Tumor in the voxels of a window before its middle, along all axes."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.full_like(x[:, :1], -60.0)
        logits[:, :, : x.shape[2] // 2, : x.shape[3] // 2, : x.shape[4] // 2] = 60.0
        return logits


def test_flips_are_undone_before_the_mean() -> None:
    """The corner is found in the window as it is, and in its mirror image where it is mirrored."""
    out = SegmentationInferer(WINDOW, flips=[[1], [2], [0, 1]])(torch.zeros(1, 1, *WINDOW), Corner())[0, 0]
    expected = torch.zeros(WINDOW)
    low, high = slice(0, 8), slice(8, 16)
    expected[low, low, :2] += 1
    expected[low, high, :2] += 1
    expected[low, low, 2:] += 1
    expected[high, high, :2] += 1
    assert torch.allclose(out, expected / 4, atol=ATOL)


@pytest.mark.parametrize("flips", [[[]], [[3]], [[0], [-1]], [[0, 0]], [1]])
def test_flips_along_no_axis_are_refused(flips: list) -> None:
    with pytest.raises(ValueError, match="flips"):
        CascadeInferer(WINDOW, flips=flips)


def test_an_ensemble_is_the_mean_over_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = (TISSNet(1, features=TINY).eval() for _ in range(2))
    path = tmp_path / "second.pt"
    torch.save(second.state_dict(), path)
    x_s = volume(1, 1, 32, 32, 8)
    with torch.no_grad():
        both = CascadeInferer((32, 32, 8), ensemble=[str(path)])(x_s, first)
        alone = [CascadeInferer((32, 32, 8))(x_s, network) for network in (first, second)]
    assert torch.allclose(both, (alone[0] + alone[1]) / 2, atol=ATOL)
    assert not torch.allclose(both, alone[0], atol=ATOL)


def test_weights_of_another_network_are_no_member_of_an_ensemble(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(TISSNet(2, features=TINY).state_dict(), path)
    with pytest.raises(ValueError, match="other.pt"):
        CascadeInferer(WINDOW, ensemble=[str(path)])(volume(1, 1, *WINDOW), TISSNet(1, features=TINY))


def test_the_ensemble_is_loaded_before_the_first_scan(tmp_path: Path) -> None:
    network = TISSNet(1, features=TINY)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        CascadeInferer(WINDOW, ensemble=[str(tmp_path / "none.pt")]).prepare(network, torch.device("cpu"))
    with pytest.raises(ValueError, match="expected the CPU"):
        CascadeInferer(WINDOW, engine="openvino").prepare(network, torch.device("cuda"))


def test_the_network_is_in_eval_mode_meanwhile_and_as_before_afterwards() -> None:
    torch.manual_seed(0)
    network = UNet2d5(1, 1, features=TINY, dropout=[0.5] * 5)
    x_s, inferer = volume(1, 1, *WINDOW), SegmentationInferer(WINDOW)
    for _ in range(2):  # the second time with what was prepared the first time
        assert torch.equal(inferer(x_s, network.train()), inferer(x_s, network)) and network.training
        assert not network.eval().training and torch.equal(inferer(x_s, network), inferer(x_s, network))
        assert not network.training


# localize, then refine


class Bright(nn.Module):
    """As localizer: tumor where the scan is brighter than 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return 40 * (x[:, :1] - 0.5)


def scan(*candidates: tuple[slice, slice, slice]) -> Tensor:
    """A gray head of 96 x 96 x 24 voxels in air, with bright candidates."""
    x_s = torch.full((1, 1, 112, 104, 24), -1.0)
    x_s[:, :, 8:104, 4:100] = -0.2
    for candidate in candidates:
        x_s[(0, 0, *candidate)] = 1.0
    return x_s


SPOT = (slice(40, 46), slice(50, 56), slice(10, 13))
FAR = (slice(90, 94), slice(20, 24), slice(3, 5))


def full_scan(**arguments: object) -> FullScanInferer:
    return FullScanInferer(WINDOW, localizer=Bright(), localizer_roi_size=(32, 32, 8), **arguments)  # type: ignore[arg-type]


def test_inside_a_region_the_result_is_that_of_windows_everywhere() -> None:
    x_s = scan(SPOT, FAR)
    inferer = full_scan()
    out = inferer(x_s, Voxelwise())
    everywhere = CascadeInferer(WINDOW)(x_s, Voxelwise())
    assert inferer.localized and len(inferer.regions) == 2
    for candidate in (SPOT, FAR):
        region = next(
            r for r in inferer.regions if all(a.start <= b.start < a.stop for a, b in zip(r, candidate, strict=True))
        )
        assert torch.allclose(out[(..., *region)], everywhere[(..., *region)], atol=ATOL)
    assert torch.equal(out[:, 0] > 0.5, everywhere[:, 0] > 0.5)  # the mask: 3 x > 0 in the two candidates alone


def test_outside_of_the_regions_are_no_tumor_and_background() -> None:
    inferer = full_scan()
    out = inferer(scan(SPOT), Voxelwise())
    assert inferer.regions == [(slice(32, 54), slice(42, 64), slice(8, 15))]  # with the margin of 8, 8 and 2
    outside = torch.ones(out.shape[2:], dtype=torch.bool)
    outside[inferer.regions[0]] = False
    assert (out[0, :, outside] == torch.tensor([[0.0], [-1.0], [0.0], [0.0]])).all()


def test_the_most_suspicious_place_is_looked_at_in_any_case() -> None:
    x_s = scan()
    x_s[0, 0, 60:64, 60:64, 10:12] = 0.2  # far below the threshold
    inferer = full_scan()
    inferer(x_s, Voxelwise())
    (region,) = inferer.regions
    assert all(side.start <= n < side.stop for side, n in zip(region, (61, 61, 10), strict=True))


def test_a_tumor_below_the_threshold_is_found_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Longer than a window, and less suspicious than the threshold everywhere."""
    x_s = scan()
    x_s[0, 0, 40:66, 60:66, 10:12] = 0.44
    inferer = full_scan()
    out = inferer(x_s, Voxelwise())
    assert inferer.localized and inferer.candidates == 0
    assert int((out[:, 0] > 0.5).sum()) == 26 * 6 * 2
    assert inferer.looked_at == "1 region" and inferer.cut == 0


def test_what_was_left_out_and_cut_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A second candidate beyond `most_candidates`; a mask that leaves the first one's region unsuspected."""
    x_s = scan((slice(40, 47), slice(50, 56), slice(10, 13)), FAR)
    x_s[0, 0, 51:80, 42, 10:13] = 0.2  # found by the network alone, from within the region
    inferer = full_scan(most_candidates=1)
    with caplog.at_level(logging.WARNING, logger="scripts.inference.inferer"):
        inferer(x_s, Voxelwise())
    assert (inferer.candidates, inferer.cut) == (2, 1) and len(inferer.regions) == 1
    (record,) = [r for r in caplog.records if r.name == "scripts.inference.inferer" and r.levelname == "WARNING"]
    assert "1 region, the most suspicious 1 of 2 candidates; 1 part(s) of the mask end at their" in record.getMessage()


def test_a_region_grows_while_the_mask_leaves_it() -> None:
    """The localizer sees the end of a long tumor only."""

    class End(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 40 * (x[:, :1] - 0.95)

    x_s = scan((slice(20, 70), slice(50, 56), slice(10, 13)))
    x_s[0, 0, 23:70, 50:56, 10:13] = 0.9
    inferer = FullScanInferer(WINDOW, localizer=End(), localizer_roi_size=(32, 32, 8), margin=(0, 0, 0))
    out = inferer(x_s, Voxelwise())
    assert inferer.localized and int((out[:, 0] > 0.5).sum()) == 50 * 6 * 3


def test_a_place_in_anothers_region_needs_none_and_regions_that_cost_too_much_are_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    near = (slice(47, 49), slice(50, 56), slice(10, 13))
    inferer = full_scan(margin=(2, 2, 1))
    inferer(scan(SPOT, near), Voxelwise())
    assert len(inferer.regions) == 1
    x_s = scan(SPOT, (slice(52, 56), slice(50, 56), slice(10, 13)))  # overlapping regions
    out = inferer(x_s, Voxelwise())
    assert len(inferer.regions) == 2 and torch.equal(out[:, 0] > 0.5, x_s[:, 0] > 0)
    with caplog.at_level(logging.INFO, logger="scripts.inference.inferer"):
        whole = inferer(scan((slice(8, 104), slice(4, 100), slice(0, 24))), Voxelwise())
    assert not inferer.localized and inferer.regions == [(slice(8, 104), slice(4, 100), slice(0, 24))]
    assert "the whole foreground" in caplog.text
    assert (whole[0, 0, 8:104, 4:100] > 0.5).all() and (whole[0, 0, :8] == 0).all()


def test_without_a_localizer_windows_cover_the_foreground() -> None:
    x_s = scan(SPOT)
    inferer = FullScanInferer(WINDOW)
    out = inferer(x_s, Voxelwise())
    assert torch.allclose(
        out[:, :, 8:104, 4:100], CascadeInferer(WINDOW)(x_s, Voxelwise())[:, :, 8:104, 4:100], atol=ATOL
    )


def test_scans_of_a_batch_have_regions_of_their_own() -> None:
    x_s = torch.cat([scan(SPOT), scan(FAR)])
    out = full_scan()(x_s, Voxelwise())
    for i, candidate in enumerate((SPOT, FAR)):
        mask = torch.zeros(out.shape[2:], dtype=torch.bool)
        mask[candidate] = True
        assert torch.equal(out[i, 0] > 0.5, mask)


class TwoOutputs(nn.Module):
    """A method that has no coarse mask and no error map, and names its image first."""

    outputs = ("synthetic", "pred")

    def infer(self, x_s: Tensor) -> Tensor:
        return torch.cat([-x_s, torch.sigmoid(3 * x_s)], dim=1)


def test_a_method_with_other_outputs_is_localized_by_its_mask() -> None:
    inferer = full_scan()
    x_s = scan(SPOT)
    out = inferer(x_s, TwoOutputs())
    assert inferer.regions == [(slice(32, 54), slice(42, 64), slice(8, 15))]
    outside = torch.ones(out.shape[2:], dtype=torch.bool)
    outside[inferer.regions[0]] = False
    assert (out[0, :, outside] == torch.tensor([[-1.0], [0.0]])).all()
    parts = outputs_of(out)
    assert list(parts) == ["synthetic", "pred"]
    assert torch.equal(parts["pred"] > 0.5, x_s > 0)
    assert torch.allclose(parts["synthetic"][(0, 0, *SPOT)], -x_s[(0, 0, *SPOT)], atol=ATOL)
