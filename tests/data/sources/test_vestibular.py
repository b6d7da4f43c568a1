"""Tests of Vestibular-Schwannoma-SEG: the converter's output, and what lies beside the download."""

import numpy as np
from made.files import touch

from scripts.data.sources.vestibular import find_vs_converted
from scripts.data.volume import NiftiVolume

TUMOR = "vestibular schwannoma"


def test_vs_converted(tmp_path):
    names = ("vs_gk_t1_refT2", "vs_gk_t2_refT2", "vs_gk_seg_refT2")
    for case in ("vs_gk_12", "vs_gk_1"):
        touch(tmp_path / "VS-1-31" / case, *names, "vs_gk_t1_refT1", "vs_gk_seg_refT1", "vs_gk_t3_refT2")
    touch(tmp_path / "elsewhere", *names)
    cases, problems = find_vs_converted(tmp_path)
    assert not problems
    assert [(c.case, c.patient, c.cohort) for c in cases] == [
        ("vs_gk_1", "vs_gk_1", "VS-SEG"),
        ("vs_gk_12", "vs_gk_12", "VS-SEG"),
    ]
    folder = tmp_path / "VS-1-31" / "vs_gk_1"
    assert cases[0].images == {
        "ceT1": NiftiVolume(folder / "vs_gk_t1_refT2.nii.gz"),
        "T2": NiftiVolume(folder / "vs_gk_t2_refT2.nii.gz"),
    }
    assert cases[0].label == NiftiVolume(folder / "vs_gk_seg_refT2.nii.gz")
    assert cases[0].label_values.mask(np.array([0, 1]), TUMOR).tolist() == [0, 1]


def test_vs_converted_problems(tmp_path):
    touch(tmp_path / "vs_gk_1", "vs_gk_t1_refT1", "vs_gk_t2_refT1", "vs_gk_seg_refT1")  # --register T1
    touch(
        tmp_path / "vs_gk_2", "vs_gk_t1_refT1", "vs_gk_t2_refT2", "vs_gk_seg_refT1", "vs_gk_seg_refT2"
    )  # unregistered
    touch(tmp_path / "vs_gk_3", "vs_gk_t1_refT2", "vs_gk_t2_refT2")
    for copy in ("one", "two"):
        touch(tmp_path / copy / "vs_gk_4", "vs_gk_t1_refT2", "vs_gk_t2_refT2", "vs_gk_seg_refT2")
    cases, problems = find_vs_converted(tmp_path)
    assert not cases
    assert [(p.case, p.check, p.found.split(" in ")[0]) for p in problems] == [
        ("vs_gk_1", "missing file", "images on the grid of T1 (_refT1)"),
        ("vs_gk_2", "missing file", "images on the grid of T1 (_refT1)"),
        ("vs_gk_3", "missing file", "no segmentation"),
        ("vs_gk_4", "ambiguous files", "label"),
    ]
    assert problems[0].expected == "the output of the converter with --register T2"
