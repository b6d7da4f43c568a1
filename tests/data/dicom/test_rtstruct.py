"""Which structure is taken by its name, then files of structures: as they should be, otherwise, and damaged."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from made.contours import HOLE, UNIT, ball_contours, grid_affine, squares, to_lps, write_contours_json, write_rtstruct
from made.dicom import MR_IMAGE
from made.outcomes import error_of
from pydicom import Dataset, dcmread
from scipy.spatial.transform import Rotation

from scripts.data.dicom.contours import Structure, structure_mask
from scripts.data.dicom.rtstruct import DEFAULT_TUMOR_NAMES, choose_structure, read_contours_json, read_rtstruct
from scripts.data.volume import CaseError

TURNED = Rotation.from_euler("xyz", [20, -15, 35], degrees=True).as_matrix()
OBLIQUE = grid_affine(origin=(10, -20, 30), rotation=TURNED)


# Which structure


def named(*names: str) -> list[Structure]:
    """Structures that lie apart, by name."""
    return [Structure(name, (squares(3)[0] + [20.0 * index, 0, 0],)) for index, name in enumerate(names)]


@pytest.mark.parametrize(
    "name",
    [
        "TV",
        "tv",
        "VS",
        "AN",
        "Acoustic neuroma",
        "*Tumour",
        "tumor",
        "GTV",
        "lesion",
        "TV1",
        "TV_L",
        "Left VS",
        "gtv2",
        "ＴＶ",
    ],
)
def test_tumor_is_found_by_name(name: str) -> None:
    assert choose_structure(named("cochlea", "Skull", name, "brainstem")).name == name


@pytest.mark.parametrize(
    "name", ["PTV", "HTV", "Anterior", "Brain-GTV", "cochlea (AN side)", "Canvas", "external", "", "***", "聴神経"]
)
def test_other_names_are_no_tumor(name: str) -> None:
    error = error_of(lambda: choose_structure(named(name, "Cochlea L")))
    assert error.check == "structure"
    assert repr(name) in error.found and "'Cochlea L'" in error.found and "give the name" in error.expected


def test_own_names_take_any_structure() -> None:
    structures = named("TV", "Cochlea L", "Cochlea R", "聴神経腫瘍", "Brain-GTV")
    assert choose_structure(structures, ["cochlea l"]).name == "Cochlea L"
    assert choose_structure(structures, ["coch*"]).name == "Cochlea L + Cochlea R"
    assert choose_structure(structures, ["聴神経腫瘍"]).name == "聴神経腫瘍"
    assert choose_structure(structures, [*DEFAULT_TUMOR_NAMES, "brain gtv"]).name == "TV + Brain-GTV"


def test_two_tumors_drawn_as_two_structures_are_one() -> None:
    merged = choose_structure(named("TV1", "cochlea", "TV2"))
    assert merged.name == "TV1 + TV2" and len(merged.contours) == 2


def test_first_structure_is_the_tumor_of_contours_json() -> None:
    assert choose_structure(named("Structure A", "Structure B"), first=True).name == "Structure A"
    assert choose_structure(named("Structure A", "TV"), first=True).name == "TV"
    assert error_of(lambda: choose_structure(named("Cochlea", "A"), first=True)).check == "structure"
    assert "no structures" in error_of(lambda: choose_structure([], first=True)).found


def test_two_versions_of_one_tumor_are_refused_and_copies_are_not() -> None:
    smaller = Structure("tumor", tuple(squares(3, corners=HOLE)))
    error = error_of(lambda: choose_structure([*named("TV"), smaller]))
    assert error.check == "structure" and "'TV' and 'tumor', which overlap" in error.found
    moved = Structure("TV2", tuple(contour + [0.5, 0, 0] for contour in squares(3)))
    assert "'TV' and 'TV2', which overlap" in error_of(lambda: choose_structure([*named("TV"), moved])).found
    other_slice = Structure("tumor", tuple(squares(5, corners=HOLE)))
    assert choose_structure([*named("TV"), other_slice]).name == "TV + tumor"
    copied = choose_structure([*named("TV"), Structure("TV copy", named("TV")[0].contours)])
    np.testing.assert_array_equal(
        structure_mask(copied, (8, 8, 8), UNIT), structure_mask(named("TV")[0], (8, 8, 8), UNIT)
    )


def test_tumor_without_contours_gives_way_to_one_with_contours() -> None:
    empty = Structure("TV", ())
    assert choose_structure([empty, *named("tumor")]).name == "tumor"
    assert "no closed contours in 'TV'" in error_of(lambda: choose_structure([empty])).found


# Files


def test_rtstruct_round_trip(tmp_path: Path) -> None:
    affine = OBLIQUE
    tumor = ball_contours(to_lps(np.array([[48.0, 48.0, 15.0]]), affine)[0], 8, np.arange(30), affine)
    slices = {round(float(contour[0][2]), 2): f"1.2.3.1.{index}" for index, contour in enumerate(tumor)}
    path = write_rtstruct(
        tmp_path / "rt.dcm",
        {"Tümör 聴神経": tumor, "cochlea": squares(3), "empty": []},
        series=["1.2.3.1", "1.2.3.2"],
        frame_of_reference="1.2.3.9",
        sop_uids=slices,
    )
    assert "ContourImageSequence" in dcmread(path).ROIContourSequence[0].ContourSequence[0]
    found = read_rtstruct(path)
    assert found.path == path
    assert found.images == dict.fromkeys(("1.2.3.1", "1.2.3.2"), frozenset(slices.values()))
    assert found.frames == dict.fromkeys(("1.2.3.1", "1.2.3.2"), "1.2.3.9")
    assert (found.date, found.notes) == ("", ())
    assert [structure.name for structure in found.structures] == ["Tümör 聴神経", "cochlea", "empty"]
    assert [len(structure.contours) for structure in found.structures] == [len(tumor), 1, 0]
    for contour, expected in zip(found.structures[0].contours, tumor, strict=True):
        np.testing.assert_allclose(contour, expected, atol=1e-4)
    mask = structure_mask(found.structures[0], (96, 96, 30), affine)
    assert (mask != structure_mask(Structure("", tuple(tumor)), (96, 96, 30), affine)).mean() < 1e-4


def test_open_contours_and_points_are_left_out_with_a_note(tmp_path: Path) -> None:
    contours = {"TV": squares(3, 4), "point": [squares(3)[0][:1]], "line": squares(4, 5)}
    path = write_rtstruct(tmp_path / "rt.dcm", contours, kinds={"point": "POINT", "line": "OPEN_PLANAR"})
    found = read_rtstruct(path)
    assert [len(structure.contours) for structure in found.structures] == [2, 0, 0]
    assert found.notes == (
        "1 contour of 'point' is POINT and was left out",
        "2 contours of 'line' are OPEN_PLANAR and were left out",
    )


def test_note_names_every_type_of_one_structure(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        point, line, untyped, _ = dataset.ROIContourSequence[0].ContourSequence
        point.ContourGeometricType, line.ContourGeometricType = "POINT", "OPEN_NONPLANAR"
        del untyped.ContourGeometricType

    found = read_rtstruct(rewritten(write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(1, 2, 3, 4)}), change))
    assert len(found.structures[0].contours) == 1
    assert found.notes == ("3 contours of 'TV' are OPEN_NONPLANAR/POINT/of no known type and were left out",)


def rewritten(path: Path, change: Callable) -> Path:
    """The same RTSTRUCT after a change of its dataset."""
    dataset = dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


def test_rtstruct_without_references_names_no_series(tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(3)}, frame_of_reference="1.2.3.9")
    rewritten(path, lambda dataset: dataset.pop("ReferencedFrameOfReferenceSequence"))
    assert (read_rtstruct(path).images, read_rtstruct(path).frames) == ({}, {})


def _with_ct_first(dataset: Dataset) -> None:
    """Puts an item for a CT series and its frame before the one of the MR series."""
    ct = deepcopy(dataset.ReferencedFrameOfReferenceSequence[0])
    ct.FrameOfReferenceUID = "1.2.3.8"
    ct.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3.2"
    dataset.ReferencedFrameOfReferenceSequence.insert(0, ct)


def test_frame_is_that_of_the_item_which_the_series_stands_in(tmp_path: Path) -> None:
    path = write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(3)}, series=["1.2.3.1"], frame_of_reference="1.2.3.9")
    assert read_rtstruct(rewritten(path, _with_ct_first)).frames == {"1.2.3.1": "1.2.3.9", "1.2.3.2": "1.2.3.8"}


def test_series_that_stands_in_two_items_has_the_first_frame_that_is_named(tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        items = dataset.ReferencedFrameOfReferenceSequence
        items.extend([deepcopy(items[0]), deepcopy(items[0])])
        items[0].FrameOfReferenceUID, items[2].FrameOfReferenceUID = "", ""

    path = write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(3)}, frame_of_reference="1.2.3.9")
    rewritten(path, lambda dataset: setattr(dataset.StructureSetROISequence[0], "ReferencedFrameOfReferenceUID", "1.2"))
    assert read_rtstruct(rewritten(path, change)).frames == {"1.2.3.1": "1.2.3.9"}


@pytest.mark.parametrize(
    ("drawn_in", "expected"),
    [
        (("1.2.3.7", "1.2.3.7"), "1.2.3.7"),
        (("1.2.3.7", ""), "1.2.3.7"),
        (("1.2.3.7", None), "1.2.3.7"),
        (("1.2.3.7", "1.2.3.6"), ""),
        (("", None), ""),
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_frame_is_that_of_the_structures_where_the_item_has_none(
    tmp_path: Path, drawn_in: tuple[str | None, ...], expected: str, missing: bool
) -> None:
    def change(dataset: Dataset) -> None:
        _with_ct_first(dataset)
        mr = dataset.ReferencedFrameOfReferenceSequence[1]
        mr.FrameOfReferenceUID = ""
        if missing:
            del mr.FrameOfReferenceUID
        for roi, uid in zip(dataset.StructureSetROISequence, drawn_in, strict=True):
            roi.ReferencedFrameOfReferenceUID = uid or ""
            if uid is None:
                del roi.ReferencedFrameOfReferenceUID

    path = write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(3), "cochlea": squares(5)})
    assert read_rtstruct(rewritten(path, change)).frames == {"1.2.3.1": expected, "1.2.3.2": "1.2.3.8"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("date", "expected"),
    [
        (("20190812", "093000"), "20190812093000"),
        (("20190812", "093000.25"), "2019081209300025"),
        (("2019.08.12", "09:30"), "201908120930"),
        (("20190812", ""), "20190812"),
        (("", "093000"), ""),
        (None, ""),
    ],
)
def test_date(tmp_path: Path, date: tuple[str, str] | None, expected: str) -> None:
    assert read_rtstruct(write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(3)}, date=date)).date == expected


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_newest_is_last_when_sorted_by_date(tmp_path: Path) -> None:
    dates = [
        None,
        ("2019.08.11", "23:59"),
        ("20190812", ""),
        ("20190812", "0930"),
        ("20190812", "093000"),
        ("20190812", "093000.25"),
        ("20190812", "093000.5"),
        ("20190812", "0931"),
        ("20200101", "00"),
    ]
    found = [
        read_rtstruct(write_rtstruct(tmp_path / f"{i}.dcm", {"TV": squares(3)}, date=date)).date
        for i, date in enumerate(dates)
    ]
    assert found == sorted(set(found))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "check", "part"),
    [
        ({"NumberOfContourPoints": 9}, "structures", "rt.dcm, 'TV', contour 1: 12 coordinates"),
        ({"ContourData": ["1"] * 11 + ["nan"]}, "structures", "no number"),
        ({"SOPClassUID": MR_IMAGE}, "unreadable file", "MR Image Storage"),
        ({"StructureSetROISequence": [], "ROIContourSequence": []}, "structures", "none in rt.dcm"),
    ],
)
def test_wrong_rtstruct_is_refused(tmp_path: Path, change: dict[str, object], check: str, part: str) -> None:
    def wrong(dataset: Dataset) -> None:
        for keyword, value in change.items():
            of_contour = keyword in ("NumberOfContourPoints", "ContourData")
            setattr(dataset.ROIContourSequence[0].ContourSequence[0] if of_contour else dataset, keyword, value)

    path = rewritten(write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(3)}), wrong)
    error = error_of(lambda: read_rtstruct(path))
    assert error.check == check and part in error.found


@pytest.mark.parametrize("read", [read_rtstruct, read_contours_json])
def test_files_that_are_something_else_are_refused(tmp_path: Path, read: Callable) -> None:
    for name, content in (("empty", b""), ("text", b"no DICOM"), ("binary", bytes(range(256)) * 8)):
        (tmp_path / name).write_bytes(content)
        error = error_of(lambda name=name: read(tmp_path / name))
        assert error.check == "unreadable file" and error.found.startswith(f"{name}: ")
    assert error_of(lambda: read(tmp_path / "missing")).check == "unreadable file"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_rtstruct_never_raises_anything_else(tmp_path: Path) -> None:
    intact = write_rtstruct(tmp_path / "rt.dcm", {"TV": squares(1, 2, 3, 4), "cochlea": squares(5)}).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.dcm"
    refused = 0
    tracemalloc.start()
    for trial in range(100):
        damaged = bytearray(intact if trial % 2 else intact[: rng.integers(140, len(intact))])
        for place in rng.integers(132, len(damaged), size=3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            structure_mask(choose_structure(read_rtstruct(path).structures), (8, 8, 8), UNIT)
        except CaseError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 50
    assert peak < 50e6


def test_contours_json_round_trip(tmp_path: Path) -> None:
    path = write_contours_json(tmp_path / "contours.json", {"TV": squares(2, 3), "cochlea": squares(5)})
    found = read_contours_json(path)
    assert [structure.name for structure in found] == ["TV", "cochlea"]
    np.testing.assert_array_equal(found[0].contours, squares(2, 3))


def test_contours_json_may_have_a_byte_order_mark_and_any_language(tmp_path: Path) -> None:
    path = tmp_path / "contours.json"
    entry = {"structure_name": "Tümör", "LPS_contour_points": []}
    path.write_text(json.dumps([entry], ensure_ascii=False), encoding="utf-8-sig")
    assert read_contours_json(path) == (Structure("Tümör", ()),)


TRIANGLE = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({}, "contours.json: no list"),
        ([], "contours.json: no list"),
        ([1], "structure 1: other content"),
        ([{"structure_name": "TV"}], "structure 1: other content"),
        ([{"structure_name": 1, "LPS_contour_points": []}], "structure 1: other content"),
        ([{"structure_name": "TV", "LPS_contour_points": [TRIANGLE, 3]}], "structure 1 'TV', contour 2: other"),
        ([{"structure_name": "TV", "LPS_contour_points": [[[0, 0]]]}], "contour 1: other content"),
        ([{"structure_name": "TV", "LPS_contour_points": [[["1", 0, 0]]]}], "contour 1: a coordinate"),
        ([{"structure_name": "TV", "LPS_contour_points": [[[True, 0, 0]]]}], "contour 1: a coordinate"),
        ([{"structure_name": "TV", "LPS_contour_points": [[[float("nan"), 0, 0]]]}], "contour 1: a coordinate"),
        ([{"structure_name": "TV", "LPS_contour_points": [[[10**400, 0, 0]]]}], "contour 1: int too large"),
    ],
)
def test_contours_json_with_another_layout_is_refused(tmp_path: Path, content: object, part: str) -> None:
    path = tmp_path / "contours.json"
    path.write_text(json.dumps(content))
    error = error_of(lambda: read_contours_json(path))
    assert error.check == "structures" and part in error.found


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"structure_name": "TV", "LPS_co', "\x00\x01", "[1" + "0" * 5000])
def test_damaged_contours_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "contours.json"
    path.write_text(content)
    assert error_of(lambda: read_contours_json(path)).check == "unreadable file"
