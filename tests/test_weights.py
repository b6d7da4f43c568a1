"""Tests of scripts.weights: loaded strictly or refused, the localizer of the same data alone, what an export ships."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.networks.localizer import Localizer
from scripts.networks.tissnet import TISSNet
from scripts.networks.unet2d5 import UNet2d5
from scripts.weights import (
    check_weights,
    enter_weights,
    export,
    find_localizer,
    load_localizer,
    load_perceptor,
    main,
    start_network,
)

TINY = (4, 4, 8, 8, 8)
HALF_RTOL, HALF_ATOL = 2**-11, 1e-7  # a half has 11 bits of mantissa


def make_run(folder: Path, state: object) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(state, folder / "checkpoints" / "best.pt")
    return folder


def same(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return list(states[0]) == list(states[1]) and all(map(torch.equal, *(state.values() for state in states)))


def network() -> TISSNet:
    torch.manual_seed(0)
    return TISSNet(1, features=TINY, norm="batch")  # batch norm: an integer buffer among the weights


# loading


def test_perceptor_of_weight_zero_is_not_loaded(tmp_path: Path) -> None:
    assert load_perceptor(UNet2d5(1, 1, features=TINY), path=str(tmp_path / "none.pt"), weight=0.0) is None


def test_missing_perceptor_names_the_command_that_trains_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt.* is 25\..*monai\.bundle run training.*pretrain\.json"):
        load_perceptor(UNet2d5(1, 1, features=TINY), path=str(tmp_path / "none.pt"), weight=25.0)


def test_perceptor_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save(UNet2d5(1, 1, features=(4, 4, 8, 8, 16)).state_dict(), path)
    with pytest.raises(ValueError, match=r"best\.pt does not hold the weights of the configured UNet2d5"):
        load_perceptor(UNet2d5(1, 1, features=TINY), path=str(path), weight=25.0)


def test_perceptor_is_loaded_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = UNet2d5(1, 1, features=TINY)
    torch.save(trained.state_dict(), tmp_path / "best.pt")
    network = UNet2d5(1, 1, features=TINY).train()
    assert not same(trained, network)
    S_p = load_perceptor(network, path=str(tmp_path / "best.pt"), weight=25.0)
    assert S_p is not None and same(trained, S_p)
    assert not any(module.training for module in S_p.modules())
    assert not any(p.requires_grad for p in S_p.parameters())


def test_a_training_starts_from_given_weights_or_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given, network = nn.Linear(2, 1), nn.Linear(2, 1)
    torch.save(given.state_dict(), tmp_path / "best.pt")
    before = network.weight.detach().clone()
    assert torch.equal(start_network(network).weight, before)  # type: ignore[arg-type]
    assert torch.equal(start_network(network, path=str(tmp_path / "best.pt")).weight, given.weight)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no weights at"):
        start_network(network, path=str(tmp_path / "none.pt"))


# the localizer


def released(folder: Path, *, pooling: tuple[int, ...] = (4, 4, 1)) -> tuple[Path, Path]:
    """Exports a cascade and its localizer; returns both files."""
    weights, path = folder / "model.pt", folder / "localizer" / "localizer.pt"
    (folder / "run" / "checkpoints").mkdir(parents=True)
    best = folder / "run" / "checkpoints" / "best.pt"
    torch.save(TISSNet(1, features=TINY).state_dict(), best)
    export(folder / "run", weights)
    torch.save(Localizer(1, features=TINY, pooling=pooling).state_dict(), best)
    export(folder / "run", path, localizes=weights)
    return weights, path


def test_a_localizer_is_used_with_the_weights_it_belongs_to_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, path = released(tmp_path)
    assert find_localizer(str(weights)) == str(path)
    other = weights.with_name("other.pt")
    torch.save(TISSNet(1, features=TINY).state_dict(), other)
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="scripts.weights"):
        assert find_localizer(str(other)) is None
    assert f"{path} is not used" in caplog.text and "--localizes" in caplog.text
    path.with_suffix(".json").unlink()
    assert find_localizer(str(weights)) is None
    path.unlink()
    caplog.clear()
    assert find_localizer(str(weights)) is None and not caplog.records


def test_a_localizer_is_loaded_and_frozen(tmp_path: Path) -> None:
    _, path = released(tmp_path)
    loaded = load_localizer(Localizer(1, features=TINY), path=str(path))
    assert loaded is not None and not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(value, state[name].to(value.dtype)) for name, value in loaded.state_dict().items())


def test_a_localizer_of_other_blocks_is_refused(tmp_path: Path) -> None:
    _, path = released(tmp_path, pooling=(2, 2, 2))
    with pytest.raises(ValueError, match=r"pooling \[2, 2, 2\], found \[4, 4, 1\]: set localizer_pooling"):
        load_localizer(Localizer(1, features=TINY), path=str(path))


def test_without_path_or_wish_there_is_no_localizer_but_a_missing_file_is_an_error(tmp_path: Path) -> None:
    network = Localizer(1, features=TINY)
    assert load_localizer(network, path=None) is None
    assert load_localizer(network, path=str(tmp_path / "no.pt"), localize=False) is None
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_localizer(network, path=str(tmp_path / "no.pt"))


# the bundle's own


def test_exported_weights_are_entered_and_no_demonstration(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "models").mkdir()
    metadata = {"weights_sha256": {"models/model.pt": "0" * 64}, "demonstration_weights": ["models/model.pt"]}
    (tmp_path / "configs/metadata.json").write_text(json.dumps(metadata))
    weights = tmp_path / "models/model.pt"
    weights.write_bytes(b"mine")
    with pytest.raises(ValueError, match="the file is damaged or was exchanged"):
        check_weights(weights, bundle=tmp_path)
    assert enter_weights(weights, bundle=tmp_path)
    check_weights(weights, bundle=tmp_path)
    content = json.loads((tmp_path / "configs/metadata.json").read_text())
    assert content["demonstration_weights"] == []
    for other in (tmp_path / "best.pt", tmp_path / "models" / "another.pt"):
        other.write_bytes(b"a run's")
        assert not enter_weights(other, bundle=tmp_path)
        check_weights(other, bundle=tmp_path)
    assert json.loads((tmp_path / "configs/metadata.json").read_text()) == content


# export


def test_the_file_loads_strictly_and_holds_the_weights_in_half_precision(tmp_path: Path) -> None:
    trained = network()
    output = tmp_path / "new" / "model.pt"
    size = export(make_run(tmp_path / "run", trained.state_dict()), output)
    assert size == output.stat().st_size
    assert size < 0.7 * (tmp_path / "run" / "checkpoints" / "best.pt").stat().st_size
    assert [path.name for path in output.parent.iterdir()] == ["model.pt"]
    shipped = torch.load(output, weights_only=True)
    dtypes = {name: value.dtype for name, value in shipped.items()}
    counters = {name for name in shipped if name.endswith("num_batches_tracked")}
    assert counters and {dtypes[name] for name in counters} == {torch.int64}
    assert {dtypes[name] for name in set(shipped) - counters} == {torch.float16}
    torch.manual_seed(1)
    loaded = TISSNet(1, features=TINY, norm="batch")
    loaded.load_state_dict(shipped, strict=True)
    for name, value in loaded.state_dict().items():
        want = trained.state_dict()[name]
        assert value.dtype == want.dtype
        assert torch.allclose(value, want, rtol=HALF_RTOL, atol=HALF_ATOL), name


def test_the_command_takes_the_checkpoint_it_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", network().state_dict())
    final = {name: value + 1 for name, value in network().state_dict().items()}
    torch.save(final, run / "checkpoints" / "final.pt")
    for checkpoint in ("best", "final"):
        given = ["--run", str(run), "--output", str(tmp_path / f"{checkpoint}.pt"), "--checkpoint", checkpoint]
        assert main(["export", *given]) == 0
        shipped = torch.load(tmp_path / f"{checkpoint}.pt", weights_only=True)
        trained = torch.load(run / "checkpoints" / f"{checkpoint}.pt", weights_only=True)
        assert all(torch.allclose(shipped[name].to(v.dtype), v, HALF_RTOL, HALF_ATOL) for name, v in trained.items())


def test_a_run_without_best_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoints.best\.pt: expected the run of a finished training"):
        export(tmp_path, tmp_path / "model.pt")


def test_a_whole_training_state_is_refused(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    state = {"network": model.state_dict(), "optimizer_g": optimizer.state_dict(), "trainer": {"iteration": 4}}
    message = r"best\.pt is not a network's state dict: expected best\.pt or final\.pt, not last\.pt"
    with pytest.raises(ValueError, match=message):
        export(make_run(tmp_path / "run", state), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e6])  # the last one overflows in half precision
def test_weights_that_are_not_finite_are_refused_and_named(tmp_path: Path, value: float) -> None:
    state = network().state_dict()
    name = list(state)[3]
    state[name].view(-1)[0] = value
    output = tmp_path / "model.pt"
    output.write_bytes(b"the weights of before")
    with pytest.raises(ValueError, match=rf"NaN or infinite weights in \['{name}'\]"):
        export(make_run(tmp_path / "run", state), output)
    assert output.read_bytes() == b"the weights of before"


def test_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, output = make_run(tmp_path / "run", network().state_dict()), tmp_path / "model.pt"
    assert main(["export", "--run", str(run), "--output", str(output)]) == 0
    assert output.is_file()
    with caplog.at_level(logging.ERROR):
        assert main(["export", "--run", str(tmp_path / "none"), "--output", str(output)]) == 1
    assert "best.pt" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--run", str(run)])


def test_a_localizer_names_the_weights_it_belongs_to(tmp_path: Path) -> None:
    run, weights, output = (
        make_run(tmp_path / "run", network().state_dict()),
        tmp_path / "m.pt",
        tmp_path / "l" / "l.pt",
    )
    command = ["export", "--run", str(run), "--output", str(output), "--localizes", str(weights)]
    assert main(command) == 1 and not output.exists()  # there are none yet
    weights.write_bytes(b"abc")
    assert main(command) == 0
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc", as NIST publishes it
    assert json.loads((tmp_path / "l" / "l.json").read_text()) == {"weights_sha256": known}
