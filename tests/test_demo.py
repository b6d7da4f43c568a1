"""The demo's list of commands, which test_config.py checks too. Running it is `make demo`, not a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.demo import commands, main

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"


def test_every_training_validates() -> None:
    for epochs in (1, 2, 3, 36):
        steps = commands(Path("demo"), training=4, epochs=epochs, pretrain_epochs=epochs)
        for name in ("perceptor S_p", "cascade"):
            assert 1 <= int(steps[name][steps[name].index("--val_interval") + 1]) <= epochs


def test_a_failing_step_ends_the_demo_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(BUNDLE)
    with caplog.at_level("INFO"):
        status = main(["--output", str(tmp_path), "--training", "-1"])
    assert status != 0
    assert "phantoms failed with exit status" in caplog.text
