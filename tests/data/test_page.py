"""Tests of scripts.data.page: pictures show the right voxels the right way round; the page says what it was told."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from scripts.data.page import OverviewCase, case_picture, draw_case, overview_path, write_overview
from scripts.data.volume import Problem, VolumeError

YELLOW = np.array([1.0, 1.0, 0.0])
RAS = np.array([[1.0, 0, 0, -50], [0, 1, 0, -60], [0, 0, 2, -40], [0, 0, 0, 1]])
SHAPE = (100, 120, 40)  # 100 x 120 x 80 mm


def volume(bright: tuple[slice, slice, slice]) -> np.ndarray:
    """A gray volume with one bright box."""
    image = np.full(SHAPE, 100, np.int16)
    image[0, 0, 0] = 0
    image[bright] = 200
    return image


def mask_at(corner: tuple[int, int, int], size: tuple[int, int, int] = (6, 6, 4)) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))] = 1
    return mask


def pixels(path: Path) -> np.ndarray:
    return imread(path)[..., :3]


def yellow(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture - YELLOW).max(axis=2) < 0.3


def panels(picture: np.ndarray) -> list[np.ndarray]:
    """Axial, coronal, sagittal and enlarged panel of the first row; 120 mm are 230 pixels, the gap is 4."""
    rights = np.cumsum([100, 100, 120, 120]) * 230 / 120 + 4 * np.arange(4)
    lefts = [0.0, *(rights[:-1] + 4)]
    return [picture[:230, round(left) : round(right)] for left, right in zip(lefts, rights, strict=True)]


def middle(shown: np.ndarray) -> tuple[float, float]:
    """Row and column of the middle of what is True, as fractions of the panel."""
    return tuple(((np.argwhere(shown) + 0.5).mean(axis=0) / shown.shape).tolist())


def test_planes_are_in_radiological_convention(tmp_path):
    """A bright box on the patient's left, in front, below the middle: right and up on axial, down on the others."""
    image = volume((slice(10, 30), slice(80, 100), slice(8, 16)))  # center at 20, 90, 24 of 100, 120, 80 mm
    case_picture(tmp_path / "p.png", {" ": image}, mask=mask_at((17, 87, 10)), affine=RAS)
    axial, coronal, sagittal, enlarged = panels(pixels(tmp_path / "p.png"))
    row = 0.5 + (40 - 24) / 120  # coronal and sagittal, 80 mm high, stand in the middle of a panel of 120 mm
    bright = [panel.min(axis=2) > 0.9 for panel in (axial, coronal, sagittal)]
    assert middle(bright[0]) == pytest.approx((1 - 90 / 120, 1 - 20 / 100), abs=0.02)
    assert middle(bright[1]) == pytest.approx((row, 1 - 20 / 100), abs=0.02)
    assert middle(bright[2]) == pytest.approx((row, 1 - 90 / 120), abs=0.02)
    assert middle(yellow(axial)) == pytest.approx((1 - 90 / 120, 1 - 20 / 100), abs=0.02)
    assert middle(yellow(coronal)) == pytest.approx((row, 1 - 20 / 100), abs=0.02)
    assert middle(yellow(sagittal)) == pytest.approx((row, 1 - 90 / 120), abs=0.02)
    # 6 of the 40 mm that are shown: the outline of the mask is a square of 6 / 40 of the panel's side.
    shown = np.argwhere(yellow(enlarged))
    assert np.ptp(shown, axis=0) / 230 == pytest.approx([6 / 40, 6 / 40], abs=0.02)


@pytest.mark.parametrize("codes", ["LPS", "PIR", "ASL", "IRP"])
def test_orientation_of_the_file_does_not_matter(tmp_path, codes):
    image, mask = volume((slice(10, 30), slice(80, 100), slice(8, 16))), mask_at((17, 87, 10))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    affine = RAS @ nib.orientations.inv_ornt_aff(turn, SHAPE)
    images = {"T2": nib.apply_orientation(image, turn)}
    case_picture(tmp_path / "a.png", {"T2": image}, mask=mask, affine=RAS)
    case_picture(tmp_path / "b.png", images, mask=nib.apply_orientation(mask, turn), affine=affine)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_two_images_are_two_rows_of_the_same_planes(tmp_path):
    image = volume((slice(40, 60), slice(50, 70), slice(15, 25)))
    case_picture(tmp_path / "p.png", {"T2": image, "ceT1": 300 - image}, mask=mask_at((47, 57, 18)), affine=RAS)
    picture = pixels(tmp_path / "p.png")
    assert picture.shape[0] == 2 * 230 + 4
    first, second = yellow(picture[:230]), yellow(picture[234:])
    assert first.sum() == pytest.approx(second.sum(), rel=0.1) and first.sum() > 100


@pytest.mark.parametrize("mask", [None, np.zeros(SHAPE, np.uint8)])
def test_without_tumor_the_middle_is_shown_whole(tmp_path, mask):
    image = volume((slice(50, 51), slice(60, 61), slice(20, 21)))
    case_picture(tmp_path / "p.png", {"T2": image}, mask=mask, affine=RAS)
    picture = pixels(tmp_path / "p.png")
    assert not yellow(picture).any()
    assert picture.shape[1] == pytest.approx(320 * 230 / 120 + 8, abs=2)  # three planes, no enlarged part


def test_a_large_mask_is_not_enlarged(tmp_path):
    case_picture(
        tmp_path / "p.png", {"T2": volume(np.s_[40:60, :, :])}, mask=mask_at((5, 5, 5), (80, 90, 30)), affine=RAS
    )
    picture = pixels(tmp_path / "p.png")
    assert picture.shape[1] == pytest.approx(320 * 230 / 120 + 8, abs=2)
    assert yellow(picture).any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 50, 20)])
@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_odd_volumes_are_drawn(tmp_path, shape, value):
    image = np.full(shape, value, np.float32)
    case_picture(tmp_path / "p.png", {"T2": image}, mask=np.ones(shape), affine=RAS)
    assert yellow(pixels(tmp_path / "p.png")).any()


def test_a_picture_of_real_size_stays_small(tmp_path):
    """Two images of 512 x 512 x 60 with noise: below 200 kB."""
    plane = np.random.default_rng(0).normal(400, 40, (2, 512, 512)).astype(np.int16)
    inside = np.hypot(*(np.mgrid[:512, :512] - 256)) < 210
    images = {name: np.repeat((noise * inside)[..., None], 60, axis=2) for name, noise in zip("ab", plane, strict=True)}
    mask = np.zeros((512, 512, 60), np.uint8)
    mask[200:230, 240:270, 28:36] = 1
    case_picture(tmp_path / "p.png", images, mask=mask, affine=np.diag([0.41, 0.41, 1.5, 1]))
    assert (tmp_path / "p.png").stat().st_size < 200_000


def test_wrong_arrays(tmp_path):
    path = tmp_path / "p.png"
    with pytest.raises(ValueError, match=r"p.png: found T2 \(2, 3, 4\), mask \(2, 3, 5\), expected images on one 3-D"):
        case_picture(path, {"T2": np.zeros((2, 3, 4))}, mask=np.zeros((2, 3, 5)), affine=RAS)
    with pytest.raises(ValueError, match=r"found T2 \(2, 3, 4, 1\), expected"):
        case_picture(path, {"T2": np.zeros((2, 3, 4, 1))}, affine=RAS)
    with pytest.raises(ValueError, match="found no image, expected"):
        case_picture(path, {}, affine=RAS)
    assert not path.exists()


def test_draw_case_reads_the_prepared_files(tmp_path):
    image, mask = volume(np.s_[40:60, 50:70, 15:25]), mask_at((47, 57, 18))
    nib.save(nib.Nifti1Image(image, RAS), tmp_path / "x_T2.nii.gz")
    draw_case(tmp_path, "x", ("T2",))
    assert not yellow(pixels(tmp_path / "x_overview.png")).any()
    nib.save(nib.Nifti1Image(mask, RAS), tmp_path / "x_label.nii.gz")
    draw_case(tmp_path, "x", ("T2",))
    case_picture(tmp_path / "same.png", {"T2": image}, mask=mask, affine=RAS)
    assert (tmp_path / "x_overview.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    with pytest.raises(VolumeError, match="missing file"):
        draw_case(tmp_path, "x", ("T2", "ceT1"))


class Page(HTMLParser):
    """What a browser would show: rows of each table, and per card its picture, heading, warnings and facts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.cards: list[dict[str, list[str]]] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.lazy = 0
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.references += [found[name] for name in ("src", "href") if name in found]
        self.lazy += found.get("loading") == "lazy"
        if tag == "table":
            self.tables[found["id"]] = []
        if tag == "tr":
            list(self.tables.values())[-1].append([])
        if tag == "article":
            self.cards.append({"class": [found["class"]]})
        if tag == "img":
            self.cards[-1]["img"] = [found["src"]]
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag in ("td", "th"):
            self.tables[list(self.tables)[-1]][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not data.strip():
            return
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[list(self.tables)[-1]][-1][-1] += data
        elif self._open and self._open[-1] in ("h3", "li", "dt", "dd", "div") and self.cards:
            self.cards[-1].setdefault(self._open[-1], []).append(data)


def a_case(case: str, cohort: str = "A", section: str = "training", **more: object) -> OverviewCase:
    return OverviewCase(case, f"patient of {case}", cohort, section, **more)


def test_page(tmp_path):
    for case in ("a", "ü #1 & 50%41"):
        (tmp_path / case).mkdir()
        (tmp_path / overview_path(case)).touch()
    measured = {"tumor_mm3": 1234.4, "shape": (512, 512, 60), "spacing": (0.41, 0.41, 1.5)}
    cases = [
        a_case("b", "B", "testing"),
        a_case("a", **measured, facts={"registration": "1.2 mm"}),
        a_case("ü #1 & 50%41", section="validation", warnings=("T2 and T1 look swapped", "mask outside of the head")),
        a_case("c", section="inference"),
    ]
    excluded = [Problem("d", "gap", "2 slices missing", "equal distances"), Problem("d", "shape", "(1, 2)", "3-D")]
    write_overview(tmp_path / "overview.html", "vs data", cases, excluded, notes=["not paired"])
    page = Page(tmp_path / "overview.html")
    assert page.tables["counts"] == [
        ["cohort", "training", "validation", "testing", "inference", "total"],
        ["A", "1", "1", "0", "1", "3"],
        ["B", "0", "0", "1", "0", "1"],
        ["total", "1", "1", "1", "1", "4"],
    ]
    assert page.tables["excluded"] == [["case", "check", "found", "expected"], *(list(problem) for problem in excluded)]
    assert [card["h3"] for card in page.cards] == [["ü #1 & 50%41"], ["a"], ["b"], ["c"]]
    warned, whole, bare = page.cards[:3]
    assert warned["li"] == ["T2 and T1 look swapped", "mask outside of the head"]
    assert warned["class"] == ["card warned"] and whole["class"] == ["card"]
    assert dict(zip(whole["dt"], whole["dd"], strict=True)) == {
        "patient": "patient of a",
        "cohort": "A",
        "section": "training",
        "tumor": "1234 mm³ (1.23 cm³)",
        "grid": "512 × 512 × 60",
        "spacing": "0.41 × 0.41 × 1.5 mm",
        "registration": "1.2 mm",
    }
    assert bare["div"] == ["no picture"] and bare["dt"] == ["patient", "cohort", "section"]
    assert len(page.references) == 4 and page.lazy == 2
    # As a browser resolves them: what follows a # is no part of the file's name, and %41 would be an A.
    links = [urlsplit(urljoin((tmp_path / "overview.html").as_uri(), link)) for link in page.references]
    assert all(Path(unquote(link.path)).is_file() and not link.fragment for link in links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    text = (tmp_path / "overview.html").read_text(encoding="utf-8")
    assert "http" not in text and "url(" not in text and "not paired" in text
    assert [file.name for file in tmp_path.glob("*.html")] == ["overview.html"]


def test_markup_in_every_text_is_shown_as_text(tmp_path):
    evil = '<script>alert("1")</script>&amp;\''
    case = OverviewCase(evil, evil, evil, evil, facts={evil: evil}, warnings=(evil,))
    write_overview(tmp_path / "o.html", evil, [case], [Problem(evil, evil, evil, evil)], notes=[evil])
    page = Page(tmp_path / "o.html")
    assert "script" not in page.tags
    assert page.tables["excluded"][1] == [evil] * 4
    assert page.tables["counts"][0][4] == evil and page.tables["counts"][1][0] == evil
    assert page.cards[0]["h3"] == page.cards[0]["li"] == [evil]
    assert page.cards[0]["dt"][-1] == page.cards[0]["dd"][-1] == evil


def test_page_without_cases(tmp_path):
    write_overview(tmp_path / "o.html", "none", [])
    page = Page(tmp_path / "o.html")
    assert page.tables == {"counts": [["cohort", "training", "validation", "testing", "total"], ["total"] + ["0"] * 4]}
    assert "No case was left out." in (tmp_path / "o.html").read_text(encoding="utf-8")


def test_a_name_that_is_no_text(tmp_path):
    write_overview(tmp_path / "o.html", "x", [a_case("M\udcfcller")])
    assert Page(tmp_path / "o.html").cards[0]["h3"] == ["M\\udcfcller"]


def test_failure_while_writing_leaves_the_old_page(tmp_path, monkeypatch):
    (tmp_path / "o.html").write_text("old")

    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_overview(tmp_path / "o.html", "x", [])
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("o.html", "old")]


def test_import_is_free_of_torch_and_pyplot():
    unwanted = {"torch", "monai", "pandas", "matplotlib.pyplot"}
    code = f"import sys, scripts.data.page; sys.exit(', '.join({unwanted} & set(sys.modules)) or 0)"
    folder = Path(__file__).parents[2] / "bundle"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
