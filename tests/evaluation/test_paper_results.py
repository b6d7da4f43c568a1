"""Tests of scripts.evaluation.paper_results: Dice as a fraction, and that only a run named after a method has any."""

from __future__ import annotations

import pytest

from scripts.evaluation.paper_results import PUBLISHED, published_results


def test_dice_is_a_fraction_and_distances_are_not() -> None:
    results = published_results("vs", "vs_tissnet")
    assert list(results) == ["dice", "assd_mm", "hd95_mm"]
    assert results["dice"] == pytest.approx((0.8946, 0.0549))
    assert results["hd95_mm"] == (1.31, 0.59)
    assert (PUBLISHED["glioma"].number, PUBLISHED["vs"].number) == (4, 7)


def test_only_the_method_itself_has_results() -> None:
    assert published_results("glioma", "tissnet") == published_results("glioma", "glioma_tissnet") != {}
    for name in ("strong_source_only", "glioma_strong_source_only", "tissnet_short", "vs_tissnet", "glioma"):
        assert published_results("glioma", name) == {}
    assert published_results("glioma", "upper_bound") and not published_results("vs", "upper_bound")
