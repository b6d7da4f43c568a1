"""Tests of scripts.inference.fingerprint: settings that differ have another hash, equal ones the same.

Which settings a cohort's results depend on is tested in test_cohort.py.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, CopyItemsd, Lambdad, SaveImaged
from torch import nn

from scripts.inference.fingerprint import described, fingerprint
from scripts.transforms import ToDisplayRanged


class Kind(Enum):
    ROUND = "round"


def settings(value: Any, output: str = "out") -> str:
    return fingerprint(value, besides=Path(output))


def function() -> None:
    """Has a name."""


def test_described_values() -> None:
    plain = {"a": (1, 2.5, True, None), Kind.ROUND: {"z", "y"}, "p": Path("x"), "d": torch.float32, "n": np.arange(2)}
    assert described(plain) == {
        "a": [1, 2.5, True, None],
        "Kind.ROUND": ["y", "z"],
        "p": "x",
        "d": "torch.float32",
        "n": [0, 1],
    }
    assert described([Kind.ROUND, function]) == ["round", f"{__name__}.function"]
    assert described(threading.Lock()) == "_thread.lock"
    assert described(functools.partial(function, peak=2)) == [f"{__name__}.function", [], {"peak": 2}]
    circle: list[Any] = [1]
    circle.append(circle)
    assert described(circle) == [1, "..."]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ToDisplayRanged("a"), ToDisplayRanged("b")),
        (Compose([CopyItemsd("a", names="b")]), Compose([CopyItemsd("a", names="c")])),
        (Lambdad("a", lambda x: x > 1), Lambdad("a", lambda x: x > 2)),
        (nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(1, 1, 3, padding=2)),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.ELU())),
        (SaveImaged("a", output_dir="out"), SaveImaged("a", output_dir="out", output_dtype=np.uint8)),
    ],
)
def test_settings_that_differ_are_told_apart(one: Any, other: Any) -> None:
    assert settings(one) != settings(other)


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv3d(1, 1, 3), lambda: Compose([CopyItemsd("a", names="b")]), lambda: Lambdad("a", abs)]
)
def test_equal_settings_have_one_hash(make: Callable[[], Any]) -> None:
    """Also where weights differ: those are no settings."""
    assert settings(make()) == settings(make())


@pytest.mark.parametrize("written", ["out/", "./out", "out"])
def test_the_folder_of_the_outputs_is_no_setting(written: str) -> None:
    first, second = settings(SaveImaged("a", output_dir="there"), "there"), SaveImaged("a", output_dir=written)
    assert settings(second, "out") == first
