"""Tests of scripts.evaluation.paper_results: the paper's means, and that only a run named after a method has any."""

from __future__ import annotations

import pytest

from scripts.evaluation.paper_results import PUBLISHED, published_results

# Means of Tables 4 and 7 as METHOD.md has them, typed in apart from the module: Dice in %, ASSD and HD95 in mm.
MEANS = {
    "glioma": """
        pix2pix 84.67 2.26 9.12; pgan 85.79 1.90 7.21; pscgan 86.45 1.99 8.62; wang2020 83.77 2.41 9.97;
        uagan 86.27 1.96 8.04; source_only 84.54 2.32 10.75; real_target 87.49 1.57 5.69; tissnet 87.55 1.53 5.67;
        upper_bound 88.65 1.50 5.54""",
    "vs": """
        pix2pix 83.75 0.78 2.60; pgan 82.90 1.19 2.99; pscgan 84.65 0.65 1.79; wang2020 85.89 0.53 1.54;
        uagan 87.30 0.50 1.65; source_only 86.00 0.71 1.96; real_target 92.80 0.31 1.09; tissnet 89.46 0.42 1.31""",
}


@pytest.mark.parametrize("task", MEANS)
def test_means_are_those_of_the_paper(task: str) -> None:
    rows = {name: list(map(float, means)) for name, *means in map(str.split, MEANS[task].split(";"))}
    assert {name: list(scores[::2]) for name, scores in PUBLISHED[task].scores.items()} == rows


def test_dice_is_a_fraction_and_distances_are_not() -> None:
    results = published_results("vs", "vs_tissnet")
    assert list(results) == ["dice", "assd_mm", "hd95_mm"]
    assert results["dice"] == pytest.approx((0.8946, 0.0549))
    assert results["hd95_mm"] == (1.31, 0.59)
    assert (PUBLISHED["glioma"].number, PUBLISHED["vs"].number) == (4, 7)


def test_only_the_method_itself_has_results() -> None:
    assert published_results("glioma", "tissnet") == published_results("glioma", "glioma_tissnet") != {}
    for name in (
        "strong_source_only",
        "glioma_strong_source_only",
        "tissnet_short",
        "vs_tissnet",
        "glioma",
        "untrained",
    ):
        assert published_results("glioma", name) == {}
    assert published_results("glioma", "upper_bound") and not published_results("vs", "upper_bound")
