"""Tests of headers: damaged files of every format are read rightly or refused by name, as hypothesis damages them."""

from __future__ import annotations

import os

import pytest
from fuzz.headers import DAMAGE, Wrong, check_outcome, damaged, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TISSNET_FUZZ_EXAMPLES", "100"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_seeds_are_read(kind):
    assert {check_outcome(kind, files) for files in seeds(kind)} == {"read"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_read_rightly_or_refused_by_name(kind):
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(st.binary(min_size=30, max_size=48))
    def holds(data: bytes) -> None:
        check_outcome(kind, damaged(kind, data))

    holds()


def test_another_error_is_wrong(monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("pixdim")

    monkeypatch.setattr("fuzz.headers.load", lambda: broken)
    with pytest.raises(Wrong, match="KeyError"):
        check_outcome("nifti", seeds("nifti")[0])
