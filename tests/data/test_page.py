"""Tests of scripts.data.page: the page says what it was told."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from scripts.data.case import Facts, Outcome
from scripts.data.page import overview_path, write_overview
from scripts.data.volume import CaseError


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


def a_case(case: str, cohort: str = "A", *, facts=None, warnings=(), **more: object) -> Outcome:
    return Outcome(case, f"patient of {case}", cohort, facts=Facts(facts or {}, list(warnings)), **more)


def test_page(tmp_path):
    for case in ("a", "ü #1 & 50%41"):
        (tmp_path / case).mkdir()
        (tmp_path / overview_path(case)).touch()
    measured = {"tumor_mm3": 1234.4, "shape": (512, 512, 60), "spacing": (0.41, 0.41, 1.5)}
    cases = {
        "testing": [a_case("b", "B")],
        "training": [a_case("a", **measured, facts={"registration": "1.2 mm"})],
        "validation": [a_case("ü #1 & 50%41", warnings=("T2 and T1 look swapped", "mask outside of the head"))],
        "inference": [a_case("c")],
        "nothing": [],
    }
    rows = [("d", "gap", "2 slices missing", "equal distances"), ("d", "shape", "(1, 2)", "3-D")]
    excluded = [CaseError(*row[1:], case=row[0]) for row in rows]
    write_overview(tmp_path / "overview.html", "vs data", cases, excluded)
    page = Page(tmp_path / "overview.html")
    assert page.tables["counts"] == [
        ["cohort", "training", "validation", "testing", "inference", "total"],
        ["A", "1", "1", "0", "1", "3"],
        ["B", "0", "0", "1", "0", "1"],
        ["total", "1", "1", "1", "1", "4"],
    ]
    assert page.tables["excluded"] == [["case", "check", "found", "expected"], *map(list, rows)]
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
    assert "http" not in text and "url(" not in text
    assert [file.name for file in tmp_path.glob("*.html")] == ["overview.html"]


def test_markup_in_every_text_is_shown_as_text(tmp_path):
    evil = '<script>alert("1")</script>&amp;\''
    case = Outcome(evil, evil, evil, facts=Facts({evil: evil}, [evil]))
    write_overview(tmp_path / "o.html", evil, {evil: [case]}, [CaseError(evil, evil, evil, case=evil)])
    page = Page(tmp_path / "o.html")
    assert "script" not in page.tags
    assert page.tables["excluded"][1] == [evil] * 4
    assert page.tables["counts"][0][4] == evil and page.tables["counts"][1][0] == evil
    assert page.cards[0]["h3"] == page.cards[0]["li"] == [evil]
    assert page.cards[0]["dt"][-1] == page.cards[0]["dd"][-1] == evil


def test_page_without_cases(tmp_path):
    write_overview(tmp_path / "o.html", "none", {})
    page = Page(tmp_path / "o.html")
    assert page.tables == {"counts": [["cohort", "training", "validation", "testing", "total"], ["total"] + ["0"] * 4]}
    assert "No case was left out." in (tmp_path / "o.html").read_text(encoding="utf-8")


def test_a_name_that_is_no_text(tmp_path):
    write_overview(tmp_path / "o.html", "x", {"training": [a_case("M\udcfcller")]})
    assert Page(tmp_path / "o.html").cards[0]["h3"] == ["M\\udcfcller"]


def test_failure_while_writing_leaves_the_old_page(tmp_path, monkeypatch):
    (tmp_path / "o.html").write_text("old")

    def full(self, target):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_overview(tmp_path / "o.html", "x", {})
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("o.html", "old")]
