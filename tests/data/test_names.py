"""Tests of names: what publishers, scanners and hospitals call their scans, and what is never taken for T2."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.data.names import MASK, Named, misnamed, read_file_name, read_name, stem_of

# name: case, modality
MODALITIES = {
    # as scripts.prepare writes them
    "p1_T2": ("p1", "T2"),
    "a_b_FLAIR": ("a_b", "FLAIR"),
    "p1.2_T1": ("p1.2", "T1"),
    "p1__ceT1": ("p1_", "ceT1"),
    "left ear_T2": ("left ear", "T2"),
    "p1 (2) *_T2": ("p1 (2) *", "T2"),
    # BIDS
    "sub-01_T1w": ("sub-01", "T1"),
    "sub-01_T2w": ("sub-01", "T2"),
    "sub-01_FLAIR": ("sub-01", "FLAIR"),
    "sub-01_UNIT1": ("sub-01", "T1"),
    "sub-01_ce-gadolinium_T1w": ("sub-01", "ceT1"),
    "sub-01_ses-T1_T2w": ("sub-01_ses-T1", "T2"),
    "sub-01_space-T1w_desc-preproc_T2w": ("sub-01_space-T1w_desc-preproc", "T2"),
    "sub-01_acq-flair_T2w": ("sub-01_acq-flair", "T2"),
    # BraTS, old and new
    "BraTS2021_00002_t1ce": ("BraTS2021_00002", "ceT1"),
    "BraTS2021_00002_t1": ("BraTS2021_00002", "T1"),
    "BraTS-GLI-00005-100-t1c": ("BraTS-GLI-00005-100", "ceT1"),
    "BraTS-GLI-00005-100-t1n": ("BraTS-GLI-00005-100", "T1"),
    "BraTS-GLI-00005-100-t2w": ("BraTS-GLI-00005-100", "T2"),
    "BraTS-GLI-00005-100-t2f": ("BraTS-GLI-00005-100", "FLAIR"),
    # crossMoDA, Vestibular-Schwannoma-SEG
    "crossmoda_1_ceT1": ("crossmoda_1", "ceT1"),
    "crossmoda_1_hrT2": ("crossmoda_1", "T2"),
    "crossmoda2023_etz_1_T2": ("crossmoda2023_etz_1", "T2"),
    "vs_gk_t1_refT2": ("vs_gk_refT2", "T1"),
    "VS-SEG-001_T2": ("VS-SEG-001", "T2"),
    # hospitals and scanners
    "T2": ("", "T2"),
    "t2_tse_tra": ("tse_tra", "T2"),
    "p1 T1 mprage km": ("p1", "ceT1"),
    "p1_T1_post_contrast": ("p1", "ceT1"),
    "p1_T1_pre_contrast": ("p1_pre_contrast", "T1"),
    "t2_tirm_tra_dark-fluid": ("tra", "FLAIR"),
    "t2_space_da-fl_sag": ("space_sag", "FLAIR"),
    "T2W_FLAIR_longTR": ("longTR", "FLAIR"),
}
OTHERS = {
    "sub-01_desc-brain_mask": MASK,
    "crossmoda_1_Label": MASK,
    "BraTS-GLI-00005-100-seg": MASK,
    "vs_gk_seg_refT2": MASK,
    "VS-SEG-001_seg": MASK,
    "p1_T2_mask": MASK,
    "p1_brainmask": MASK,
    "p1_synthetic": MASK,
    "p1_0000": "channel 0000 of several (nnU-Net)",
    "p1_t2_stir": "STIR",
    "sub-01_T2star": "another kind of image",
    "p1_T2*": "another kind of image",
    "sub-01_PDT2": "another kind of image",
    "p1_dwi": "another kind of image",
    "p1_ct": "another kind of image",
    "p1_T2_T1": "T1 and T2",
    "T1_to_T2": "T1 and T2",
    "sT1W_3D_TFE": "T1",
}
PLAIN = ("scan", "VS-SEG-001", "patient1", "PATIENT1", "patient_2024", "MD_001", "ciss", "1.2.840.10008")


@pytest.mark.parametrize("name", MODALITIES)
def test_modalities_are_known_by_many_names(name: str) -> None:
    assert read_name(name) == Named(*MODALITIES[name])


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_something_else_is_no_modality(name: str) -> None:
    assert read_name(name) == Named(name, other=OTHERS[name])


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_without_a_hint_says_nothing(name: str) -> None:
    assert read_name(name) == Named(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("p1.nii", "p1"),
        ("p1.nii.gz", "p1"),
        ("p1.NII.GZ", "p1"),
        ("._p1.nii", None),
        (".nii.gz", None),
        ("p1.mha", "p1"),
        ("p1_T2.NHDR", "p1_T2"),
        ("p1.raw", None),
        ("notes.txt", None),
    ],
)
def test_images_are_known_by_their_suffix(name: str, expected: str | None) -> None:
    assert stem_of(Path(name)) == expected


def test_a_prepared_case_is_called_as_its_folder_whatever_else_that_says() -> None:
    assert read_file_name(Path("T1_seg_post/T1_seg_post_T2.nii.gz")) == Named("T1_seg_post", "T2")


def test_the_users_endings_go_first_and_the_empty_one_last() -> None:
    endings = {"T2": "_0000", "T1": ""}
    expected = {
        "p1_0000": Named("p1", "T2"),
        "p1_T1_0000": Named("p1_T1", "T2"),
        "p1": Named("p1", "T1"),
        "p1_flair": Named("p1", "FLAIR"),
        "p1_mask": Named("p1_mask", other=MASK),
    }
    assert {name: read_file_name(Path(f"{name}.nii.gz"), endings) for name in expected} == expected


def test_files_that_are_called_another_modality_are_told_once_a_kind() -> None:
    given = [("T2", "a_T1w.nii.gz"), ("T2", "b/T1w.nii.gz"), ("T2", "c_seg.nii"), ("T2", "d_T2.nii"), ("T2", "e.nii")]
    given += [("ceT1", "f_T1.nii.gz"), ("T2", "g_0003.nii.gz")]
    assert misnamed((modality, Path(name)) for modality, name in given) == [
        "2 files are given as T2 and called T1, such as a_T1w.nii.gz: look whether that is meant",
        f"1 files are given as T2 and called {MASK}, such as c_seg.nii: look whether that is meant",
    ]
