"""Tests of monailabel_app.tasks.strategies, scoring and batch (with cases): on a real store of small scans."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monailabel.datastore.local import LocalDatastore

from monailabel_app.errors import InputError, NotFound
from monailabel_app.store.cases import list_cases
from monailabel_app.tasks.batch import TISSNetBatchInferTask
from monailabel_app.tasks.scoring import DiceOfSubmitted
from monailabel_app.tasks.strategies import SECONDS_HELD, Disagreement, FirstCome

VS: Any = SimpleNamespace(name="tissnet_vs", source_modalities=("T2",), target_modality="ceT1")
GLIOMA: Any = SimpleNamespace(name="tissnet_glioma", source_modalities=("T1", "ceT1", "T2"), target_modality="FLAIR")
MODELS = {"tissnet_vs": VS}
SOURCES = [VS.source_modalities]
IMAGES = ("a_T2", "a_ceT1", "b_ceT1", "b_T2", "c_T2", "plain", "only_ceT1")
STARTS = ["a_T2", "b_T2", "c_T2", "plain"]


def volume(value: int = 0, shape: tuple[int, ...] = (4, 4, 4), shift: float = 0.0) -> nib.Nifti1Image:
    voxels = np.zeros(shape, np.uint8)
    voxels[1:3, 1:3, 1:3] = value
    affine = np.eye(4)
    affine[0, 3] = shift
    return nib.Nifti1Image(voxels, affine)


def make_store(folder: Path, images: tuple[str, ...] = IMAGES) -> LocalDatastore:
    """A store whose images came in this order, ten seconds after each other."""
    folder.mkdir()
    for image in images:
        nib.save(volume(7), folder / f"{image}.nii.gz")
    store = LocalDatastore(str(folder))
    for index, image in enumerate(images):
        store.update_image_info(image, {"ts": 1000 + 10 * index})
    return store


@pytest.fixture
def store(tmp_path: Path) -> LocalDatastore:
    return make_store(tmp_path / "studies")


def submit(store: LocalDatastore, image: str, tmp_path: Path, *, tag: str = "final", label: Any = None, **info: Any):
    path = tmp_path / f"{image}_{tag}.nii.gz"
    nib.save(label or volume(1), path)
    store.save_label(image, str(path), tag, info)


def give(
    store: LocalDatastore, image: str, client: str, *, seconds_ago: float = 0, strategy: str = "first_come"
) -> None:
    """What MONAI Label writes when it hands out a sample."""
    given = store.get_image_info(image).get("strategy", {})
    given[strategy] = {"ts": int(time.time() - seconds_ago), "client_id": client}
    store.update_image_info(image, {"strategy": given})


# cases


def test_a_case_is_listed_once_by_the_image_that_the_model_starts_from(store: LocalDatastore, tmp_path: Path) -> None:
    cases = list_cases(store, SOURCES)
    assert [case.image for case in cases] == STARTS
    assert cases[0].images == ("a_T2", "a_ceT1") and cases[1].since == 1020  # of its ceT1
    submit(store, "b_ceT1", tmp_path)
    assert [case.finished for case in list_cases(store, SOURCES)] == [False, True, False, False]


def test_a_case_that_lacks_a_source_is_not_complete(tmp_path: Path) -> None:
    store = make_store(tmp_path / "studies", ("h_T2", "h_T1", "g_T1", "g_ceT1", "g_T2", "plain"))
    found = {case.image: case.complete for case in list_cases(store, [GLIOMA.source_modalities])}
    assert found == {"g_T2": True, "h_T2": False}
    both = {case.image: case.complete for case in list_cases(store, [GLIOMA.source_modalities, VS.source_modalities])}
    assert both == {"g_T2": True, "h_T2": True, "plain": True}
    assert FirstCome({"glioma": GLIOMA})({}, store)["id"] == "g_T2"


# first come


def test_first_come_goes_by_age_and_passes_over_the_finished(store: LocalDatastore, tmp_path: Path) -> None:
    strategy = FirstCome(MODELS)
    for expected in STARTS:
        assert strategy({"client_id": "x"}, store)["id"] == expected
        submit(store, expected, tmp_path)
    assert strategy({"client_id": "x"}, store) == {}


def test_an_answer_of_the_model_does_not_finish_a_case(store: LocalDatastore, tmp_path: Path) -> None:
    submit(store, "a_T2", tmp_path, tag="original")
    assert FirstCome(MODELS)({}, store)["id"] == "a_T2"


def test_two_annotators_get_two_cases_for_an_hour(store: LocalDatastore, tmp_path: Path) -> None:
    strategy = FirstCome(MODELS)
    give(store, "a_T2", "first", strategy="disagreement")
    assert strategy({"client_id": "second"}, store)["id"] == "b_T2"
    assert strategy({"client_id": "first"}, store)["id"] == "a_T2"  # not yet submitted
    assert strategy({}, store)["id"] == "b_T2"
    give(store, "a_T2", "first", seconds_ago=SECONDS_HELD + 5, strategy="disagreement")
    assert strategy({"client_id": "second"}, store)["id"] == "a_T2"


def test_where_nothing_else_is_left_the_case_given_longest_ago_is_shared(store: LocalDatastore) -> None:
    for seconds, image in ((50, "a_T2"), (10, "b_T2"), (300, "c_T2"), (200, "plain")):
        give(store, image, "first", seconds_ago=seconds)
    found = FirstCome(MODELS)({"client_id": "second"}, store)
    assert found["id"] == "c_T2" and "nothing else is left" in found["reason"]


def test_an_unknown_model_has_no_case(store: LocalDatastore) -> None:
    assert FirstCome(MODELS)({"model": "tissnet_glioma"}, store) == {}
    assert FirstCome(MODELS | {"tissnet_glioma": GLIOMA})({"model": "tissnet_vs"}, store)["id"] == "a_T2"


# disagreement


def answer(store: LocalDatastore, image: str, tmp_path: Path, disagreement: Any, mass: Any) -> None:
    params = {"disagreement": disagreement, "error_mass_mm3": mass}
    submit(store, image, tmp_path, tag="original", model="tissnet_vs", params=params)


def test_the_least_sure_comes_first_and_what_has_no_answer_last(store: LocalDatastore, tmp_path: Path) -> None:
    """Ranks by disagreement and error mass: plain 0 + 0, c 2 + 1, b 1 + 2 (older than c at equal sums)."""
    answer(store, "b_T2", tmp_path, 0.30, 100.0)
    answer(store, "c_T2", tmp_path, 0.20, 300.0)
    answer(store, "plain", tmp_path, 0.90, 900.0)
    strategy = Disagreement(MODELS)
    for expected in ("plain", "b_T2", "c_T2", "a_T2"):
        found = strategy({"client_id": "x"}, store)
        assert found["id"] == expected
        submit(store, expected, tmp_path)
    assert strategy({}, store) == {}


def test_the_least_sure_that_somebody_else_has_is_passed_over(store: LocalDatastore, tmp_path: Path) -> None:
    answer(store, "b_T2", tmp_path, 0.3, 100.0)
    answer(store, "c_T2", tmp_path, 0.9, 300.0)
    give(store, "c_T2", "first")
    assert Disagreement(MODELS)({"client_id": "second"}, store)["id"] == "b_T2"
    found = Disagreement(MODELS)({"client_id": "first"}, store)
    assert found["id"] == "c_T2" and "disagreement 0.900, error mass 300 mm3" in found["reason"]


@pytest.mark.parametrize("value", [None, "high", float("nan")])
def test_without_answers_the_first_come_is_served_and_it_is_said(
    store: LocalDatastore, tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer(store, "c_T2", tmp_path, value, 1.0)
    found = Disagreement(MODELS)({}, store)
    assert found["id"] == "a_T2" and "no open case has an answer" in found["reason"]
    assert "run batch inference first" in caplog.text


# scoring


def test_scores_are_kept_with_the_submitted_label(store: LocalDatastore, tmp_path: Path) -> None:
    """By hand: 8 voxels against 4 of them (Dice 2 * 4 / 12); both empty is 1."""
    half = volume(1)
    np.asanyarray(half.dataobj)[2] = 0
    submit(store, "a_T2", tmp_path)
    submit(store, "a_T2", tmp_path, tag="original", label=half)
    for tag in ("final", "original"):
        submit(store, "b_T2", tmp_path, tag=tag, label=volume(0))
    submit(store, "c_T2", tmp_path)  # the model was not asked
    result = DiceOfSubmitted()({}, store)
    assert result["cases"].keys() == {"a_T2", "b_T2"} and result["left_out"] == {}
    assert result["cases"]["a_T2"]["dice"] == pytest.approx(2 / 3)
    assert result["cases"]["a_T2"]["volume_difference_mm3"] == pytest.approx(-4)
    assert result["cases"]["b_T2"]["dice"] == 1 and result["cases"]["b_T2"]["assd_mm"] is None
    assert result["mean_dice"] == pytest.approx(5 / 6)
    again = LocalDatastore(str(tmp_path / "studies"))
    assert again.get_label_info("a_T2", "final")["scores"] == result["cases"]["a_T2"]
    assert json.loads(json.dumps(result)) == result


def test_masks_that_cannot_be_compared_are_named_and_enter_no_mean(store: LocalDatastore, tmp_path: Path) -> None:
    pairs = {
        "a_T2": (volume(1), volume(1)),
        "b_T2": (volume(2), volume(1)),
        "c_T2": (volume(1), volume(1, shape=(4, 4, 5))),
        "plain": (volume(1), volume(1, shift=1.0)),
    }
    for image, labels in pairs.items():
        for tag, label in zip(("final", "original"), labels, strict=True):
            submit(store, image, tmp_path, tag=tag, label=label)
    result = DiceOfSubmitted()({}, store)
    assert result["mean_dice"] == 1 and list(result["cases"]) == ["a_T2"]
    assert "mask values: found the submitted mask of 'b_T2': label: {2}, expected {0, 1}" in result["left_out"]["b_T2"]
    assert "(4, 4, 5)" in result["left_out"]["c_T2"] and "1 mm away" in result["left_out"]["plain"]


def test_a_mask_submitted_anew_is_scored_anew_and_others_are_not(
    store: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image in ("a_T2", "b_T2"):
        for tag in ("final", "original"):
            submit(store, image, tmp_path, tag=tag)
    DiceOfSubmitted()({}, store)
    submit(store, "b_T2", tmp_path, label=volume(0))
    computed = []
    monkeypatch.setattr(
        "monailabel_app.tasks.scoring._compare", lambda _, label, *rest: computed.append(label) or {"dice": 0.0}
    )
    result = DiceOfSubmitted()({}, store)
    assert computed == ["b_T2"] and result["mean_dice"] == 0.5


# batch inference


def batch(request: dict[str, Any], store: LocalDatastore, *, bad: tuple[str, ...] = ()) -> tuple[dict, list[dict]]:
    asked: list[dict] = []

    def infer(own: dict[str, Any], datastore: LocalDatastore) -> dict[str, Any]:
        asked.append(own)
        if own["image"] in bad:
            raise (InputError("the scan has one slice") if own["image"] == bad[0] else KeyError("inside"))
        return {"label": own["image"], "tag": own["label_tag"], "file": None, "params": {"volume_mm3": 1.0}}

    task = TISSNetBatchInferTask(MODELS | {"tissnet_glioma": GLIOMA})
    return task({"model": "tissnet_vs", **request}, store, infer), asked


def test_every_case_is_answered_once_and_kept(store: LocalDatastore) -> None:
    result, asked = batch({"images": "all", "threshold": 0.4}, store)
    assert list(result) == STARTS
    assert [(own["image"], own["save_label"], own["label_tag"], own["threshold"]) for own in asked] == [
        (image, True, "original", 0.4) for image in STARTS
    ]
    assert result["a_T2"] == {"label": "a_T2", "tag": "original", "params": {"volume_mm3": 1.0}}


def test_finished_and_answered_cases_are_skipped_where_asked(store: LocalDatastore, tmp_path: Path) -> None:
    submit(store, "a_ceT1", tmp_path)
    submit(store, "c_T2", tmp_path, tag="original", model="tissnet_vs")
    submit(store, "b_T2", tmp_path, tag="original", model="tissnet_glioma")  # another one's
    expected = {
        ("images", "unlabeled"): ["b_T2", "c_T2", "plain"],
        ("images", "labeled"): ["a_T2"],
        ("skip_finished", True): ["b_T2", "c_T2", "plain"],
        ("skip_answered", True): ["a_T2", "b_T2", "plain"],
        ("max_batch_size", 2): ["a_T2", "b_T2"],
        ("images", ("a_ceT1", "a_T2", "plain")): ["a_T2", "plain"],
    }
    for (option, value), images in expected.items():
        assert list(batch({option: value}, store)[0]) == images, option


def test_another_models_answer_says_nothing_about_this_one(store: LocalDatastore, tmp_path: Path) -> None:
    params = {"disagreement": 0.9, "error_mass_mm3": 900.0}
    submit(store, "c_T2", tmp_path, tag="original", model="tissnet_glioma", params=params)
    assert "no open case has an answer" in Disagreement(MODELS)({}, store)["reason"]


def test_a_bad_case_is_reported_and_the_others_go_on(store: LocalDatastore, caplog: pytest.LogCaptureFixture) -> None:
    result, asked = batch({}, store, bad=("a_T2", "c_T2"))
    assert len(asked) == len(STARTS)
    assert result["a_T2"] == {"error": "the scan has one slice"}
    assert result["c_T2"]["error"].startswith("'c_T2' failed for a reason of the server's own")
    assert "KeyError: 'inside'" in caplog.text and "params" in result["b_T2"] and "params" in result["plain"]


def test_temporary_files_of_the_answers_are_removed(store: LocalDatastore, tmp_path: Path) -> None:
    file = tmp_path / "mask.nrrd"
    file.touch()
    task = TISSNetBatchInferTask(MODELS)
    result = task({"model": "tissnet_vs", "images": ["plain"]}, store, lambda own, _: {"file": str(file), "params": {}})
    assert result == {"plain": {"params": {}}} and not file.exists()


def test_unknown_models_and_images_are_told(store: LocalDatastore) -> None:
    with pytest.raises(NotFound, match="There is no model 'other'"):
        batch({"model": "other"}, store)
    with pytest.raises(InputError, match="images is 'some': expected all, labeled, unlabeled"):
        batch({"images": "some"}, store)
    assert list(batch({"images": ["nothing_T2"]}, store)[0]) == ["nothing_T2"]  # the app says that there is none
