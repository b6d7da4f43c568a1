"""Tests of scripts.export: the weights that ship are the run's best, in half precision, and sound.

TorchScript, ONNX and the exporters of MONAI do not go here, nor packing a release.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from scripts.export import export, main
from scripts.networks.tissnet import TISSNet

TINY = (4, 4, 8, 8, 8)
HALF_RTOL, HALF_ATOL = 2**-11, 1e-7  # a half has 11 bits of mantissa


def make_run(folder: Path, state: object) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(state, folder / "checkpoints" / "best.pt")
    return folder


def network() -> TISSNet:
    torch.manual_seed(0)
    return TISSNet(1, features=TINY, norm="batch")  # batch norm: an integer buffer among the weights


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


def test_a_run_without_best_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoints.best\.pt: expected the run of a finished training"):
        export(tmp_path, tmp_path / "model.pt")


def test_a_whole_training_state_is_refused(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    state = {"network": model.state_dict(), "optimizer_g": optimizer.state_dict(), "trainer": {"iteration": 4}}
    with pytest.raises(ValueError, match=r"best\.pt is not a network's state dict: expected best\.pt, not last\.pt"):
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
    assert main(["--run", str(run), "--output", str(output)]) == 0
    assert output.is_file()
    with caplog.at_level(logging.ERROR):
        assert main(["--run", str(tmp_path / "none"), "--output", str(output)]) == 1
    assert "best.pt" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        main(["--run", str(run)])


def test_a_localizer_names_the_weights_it_belongs_to(tmp_path: Path) -> None:
    run, weights, output = (
        make_run(tmp_path / "run", network().state_dict()),
        tmp_path / "m.pt",
        tmp_path / "l" / "l.pt",
    )
    command = ["--run", str(run), "--output", str(output), "--localizes", str(weights)]
    assert main(command) == 1 and not output.exists()  # there are none yet
    weights.write_bytes(b"abc")
    assert main(command) == 0
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256 of "abc", as NIST publishes it
    assert json.loads((tmp_path / "l" / "l.json").read_text()) == {"weights_sha256": known}
