"""Tests of scripts.evaluation.paper_results: Dice as a fraction, and that only a run named after a method has any."""

from __future__ import annotations

from scripts.evaluation.paper_results import published_results


def test_only_the_method_itself_has_results() -> None:
    assert published_results("glioma", "tissnet") == published_results("glioma", "glioma_tissnet") != {}
    for name in ("strong_source_only", "glioma_strong_source_only", "tissnet_short", "vs_tissnet", "glioma"):
        assert published_results("glioma", name) == {}
    assert published_results("glioma", "upper_bound") and not published_results("vs", "upper_bound")
