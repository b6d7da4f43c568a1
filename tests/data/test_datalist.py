"""Tests of scripts.data.datalist: the task table, loading, and every named problem."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made.files import save

from scripts.data.datalist import GRID_TOLERANCE_MM, datalist_entry, load_datalist, write_datalist

BUNDLE = Path(__file__).parents[2] / "bundle"


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, (12, 11, 10)).astype(np.int16)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A vs datalist with cases a, b (training) and c (testing)."""
    sections: dict[str, list] = {"training": [], "testing": []}
    for case, section in (("a", "training"), ("b", "training"), ("c", "testing")):
        for name in ("T2", "ceT1"):
            save(tmp_path / case / f"{case}_{name}.nii.gz", image())
        save(tmp_path / case / f"{case}_label.nii.gz", (image() > 800).astype(np.uint8))
        sections[section].append(datalist_entry(case, f"patient_{case}", "vs"))
    write_datalist(tmp_path / "datalist.json", "vs", sections)
    return tmp_path / "datalist.json"


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def checks(path: Path, check="voxels") -> list[tuple[str, str]]:
    with pytest.raises(ValueError) as caught:
        load_datalist(path, check=check)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: {len(lines)} problem" + "s" * (len(lines) > 1)
    return [tuple(line.strip().split(": ")[:2]) for line in lines]


def test_entry_in_the_prepared_layout():
    assert datalist_entry("x", "p", "glioma") == {
        "case": "x",
        "patient": "p",
        "image": ["x/x_T1.nii.gz", "x/x_ceT1.nii.gz", "x/x_T2.nii.gz"],
        "target": "x/x_FLAIR.nii.gz",
        "label": "x/x_label.nii.gz",
    }


@pytest.mark.parametrize("check", ["headers", "voxels", None])
def test_load(prepared, check):
    training = load_datalist(prepared, "training", check)
    assert [entry["case"] for entry in training] == ["a", "b"]
    folder = prepared.parent
    assert training[0] == {
        "case": "a",
        "patient": "patient_a",
        "image": [str(folder / "a/a_T2.nii.gz")],
        "target": str(folder / "a/a_ceT1.nii.gz"),
        "label": str(folder / "a/a_label.nii.gz"),
    }
    whole = load_datalist(prepared, check=check)
    assert whole["task"] == "vs"
    assert whole["training"] == training
    assert whole["validation"] == []


def test_paths_are_absolute_from_another_directory(prepared, monkeypatch):
    monkeypatch.chdir(prepared.parent.parent)
    relative = Path(prepared.parent.name) / "datalist.json"
    assert load_datalist(str(relative), "testing") == load_datalist(prepared, "testing")
    assert Path(load_datalist(relative, "testing")[0]["label"]).is_absolute()


def test_validate_accepts_an_empty_mask(prepared):
    save(prepared.parent / "a/a_label.nii.gz", np.zeros((12, 11, 10), np.uint8))
    load_datalist(prepared, check="voxels")


def test_empty_section(prepared):
    with pytest.raises(ValueError, match="section 'validation' is empty"):
        load_datalist(prepared, "validation")


def test_wrong_arguments(prepared):
    with pytest.raises(ValueError, match="unknown section 'train', expected one of training, validation, testing"):
        load_datalist(prepared, "train")
    with pytest.raises(ValueError, match="check is 'all'"):
        load_datalist(prepared, "training", "all")  # type: ignore[call-overload]
    with pytest.raises(FileNotFoundError, match="no such datalist"):
        load_datalist(prepared.parent / "none.json")


def test_only_the_files_of_the_section_are_opened(prepared):
    (prepared.parent / "c/c_T2.nii.gz").unlink()
    load_datalist(prepared, "training")
    with pytest.raises(ValueError, match="c: missing file: found T2: no file .*c_T2.nii.gz"):
        load_datalist(prepared, "testing")
    load_datalist(prepared, "testing", check=None)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', ""])
def test_malformed_json(prepared, text):
    prepared.write_text(text)
    assert checks(prepared) == [("datalist", "malformed JSON")]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda d: d.update(train=[]), [("datalist", "unknown section")]),
        (lambda d: d.pop("validation"), [("datalist", "missing key")]),
        (lambda d: d.update(validation={}), [("datalist", "entry")]),
        (lambda d: d.update(task="brain"), [("datalist", "task")]),
        (lambda d: d.pop("task"), [("datalist", "task")]),
        (lambda d: d.update(task=["vs"]), [("datalist", "task")]),
        (lambda d: d["training"].append("a"), [("training[2]", "entry")]),
        (lambda d: d["training"][0].pop("label"), [("a", "missing key")]),
        (lambda d: d["training"][0].pop("case"), [("training[0]", "missing key")]),
        (lambda d: d["training"][1].update(target=None), [("b", "entry")]),
        (lambda d: d["training"][1].update(image="b/b_T2.nii.gz"), [("b", "entry")]),
        (lambda d: d["training"][1].update(image=[1]), [("b", "entry")]),
        (lambda d: d["training"][1]["image"].append("x.nii.gz"), [("b", "source files")]),
        (lambda d: d["training"][1].update(image=[]), [("b", "source files")]),
        (lambda d: d.update(task="glioma"), [("a", "source files"), ("b", "source files"), ("c", "source files")]),
        (lambda d: d["training"][1].update(case="a"), [("a", "duplicate case")]),
        (lambda d: d["training"][1].update(patient="patient_c"), [("c", "patient in two splits")]),
        (
            lambda d: (d["training"][0].pop("target"), d["training"][1].update(case="c"), d.update(test=[])),
            [("datalist", "unknown section"), ("a", "missing key"), ("c", "duplicate case")],
        ),
    ],
)
def test_structure_problems(prepared, edit, expected):
    change(prepared, edit)
    assert checks(prepared, None) == expected


def test_two_cases_of_a_patient_in_one_split_are_fine(prepared):
    change(prepared, lambda d: d["training"][1].update(patient="patient_a"))
    load_datalist(prepared, check="voxels")


def moved(distance: float) -> np.ndarray:
    affine = np.eye(4)
    affine[0, 3] = distance
    return affine


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("spoil", "expected", "seen_in_header"),
    [
        (lambda f: (f / "a_ceT1.nii.gz").unlink(), "missing file", True),
        (lambda f: (f / "a_T2.nii.gz").write_text("no image"), "unreadable file", True),
        (lambda f: truncate(f / "a_T2.nii.gz"), "unreadable file", False),
        (lambda f: save(f / "a_T2.nii.gz", image()[..., None]), "not 3-D", True),
        (lambda f: save(f / "a_T2.nii.gz", image()[:, :, 0]), "not 3-D", True),
        (lambda f: save(f / "a_label.nii.gz", np.zeros((12, 11, 9), np.uint8)), "shape", True),
        (lambda f: save(f / "a_ceT1.nii.gz", image(), moved(1.1 * GRID_TOLERANCE_MM)), "affine", True),
        (lambda f: save(f / "a_ceT1.nii.gz", image(), np.diag((1, 1, 1.05, 1))), "affine", True),
        (lambda f: save(f / "a_ceT1.nii.gz", image(), np.diag((-1, -1, 1, 1))), "affine", True),
        (lambda f: save(f / "a_label.nii.gz", 2 * (image() > 800).astype(np.uint8)), "mask values", False),
        (lambda f: save(f / "a_label.nii.gz", np.full((12, 11, 10), 0.5, np.float32)), "mask values", False),
        (lambda f: save(f / "a_T2.nii.gz", np.zeros((12, 11, 10), np.int16)), "constant image", False),
        (lambda f: save(f / "a_T2.nii.gz", np.full((12, 11, 10), 7.0)), "constant image", False),
        (lambda f: save(f / "a_ceT1.nii.gz", np.where(image() > 800, np.nan, 1.0)), "non-finite image", False),
        (lambda f: save(f / "a_ceT1.nii.gz", np.where(image() > 800, np.inf, 1.0)), "non-finite image", False),
    ],
)
def test_file_problems(prepared, spoil, expected, seen_in_header):
    spoil(prepared.parent / "a")
    assert checks(prepared) == [("a", expected)]
    if seen_in_header:
        assert checks(prepared, "headers") == [("a", expected)]
    else:
        load_datalist(prepared)


def test_a_shift_within_the_tolerance_is_accepted(prepared):
    save(prepared.parent / "a/a_ceT1.nii.gz", image(), moved(0.9 * GRID_TOLERANCE_MM))
    load_datalist(prepared, check="voxels")


def test_affine_distance_is_the_corners(prepared):
    """Rotation by 0.1 rad about z moves the far corner (11, 10) by 2 sin(0.05) * hypot(11, 10) = 1.486 mm."""
    cos, sin = math.cos(0.1), math.sin(0.1)
    turned = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(prepared.parent / "a/a_ceT1.nii.gz", image(), turned)
    with pytest.raises(ValueError, match=r"a: affine: found ceT1 1\.49 mm away from T2; expected at most 0\.1 mm"):
        load_datalist(prepared, check="voxels")


def test_all_problems_are_listed_each_on_its_line(prepared):
    folder = prepared.parent
    (folder / "a/a_T2.nii.gz").unlink()
    save(folder / "b/b_label.nii.gz", np.full((12, 11, 10), 3, np.uint8))
    save(folder / "c/c_ceT1.nii.gz", np.zeros((12, 11, 10)))
    with pytest.raises(ValueError) as caught:
        load_datalist(prepared, check="voxels")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{prepared}: 3 problems"
    assert lines[1].startswith("  a: missing file: found T2: no file ")
    assert lines[2] == (
        "  b: mask values: found label: {3}; expected {0, 1}; "
        "prepare the case again, which turns published label values into 0 and 1"
    )
    assert lines[3] == (
        "  c: constant image: found ceT1: every voxel is 0; expected an image with contrast; "
        "export the image again or remove the case"
    )


def test_write_leaves_no_partial_file(prepared):
    write_datalist(prepared, "vs", {})
    assert json.loads(prepared.read_text()) == {"task": "vs", "training": [], "validation": [], "testing": []}
    assert [path.name for path in prepared.parent.iterdir() if path.is_file()] == ["datalist.json"]


def test_no_torch():
    """Importing the data modules and the command line stays light."""
    heavy = {"torch", "monai", "pandas", "matplotlib"}
    code = f"import sys, scripts.prepare; sys.exit(bool({heavy} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=BUNDLE)


def test_a_target_may_be_missing_only_where_it_is_said(prepared):
    change(prepared, lambda d: d["training"][0].pop("target"))
    with pytest.raises(ValueError, match="a: missing key: found no 'target'"):
        load_datalist(prepared, "training")
    first, second = load_datalist(prepared, "training", "voxels", require_target=False)
    assert set(first) == {"case", "patient", "image", "label"} and Path(first["image"][0]).is_absolute()
    assert "target" in second
    change(prepared, lambda d: d["training"][0].update(target=None))
    with pytest.raises(ValueError, match="a: entry: found target is None; expected a non-empty string"):
        load_datalist(prepared, "training", require_target=False)


def test_a_target_that_is_named_is_checked_also_where_it_may_be_missing(prepared):
    (prepared.parent / "b/b_ceT1.nii.gz").unlink()
    with pytest.raises(ValueError, match="b: missing file: found ceT1"):
        load_datalist(prepared, "training", require_target=False)
