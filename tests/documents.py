"""Reads the project's documents: the commands a reader is asked to type, links, named files, options of tables.

Documents are the Markdown files and the configs' own heads (comments of a .yaml, `_desc_` of a .json).
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"

PROGRAMS = "python|make|torchrun|bash|sha256sum|source|pip|curl|cat|cd|mv"
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:(?:\.\./)?\.venv/bin/)?(?:{PROGRAMS})\s+\S")
# A fenced block with its language, a span of code, or a heading; a block without a language holds commands, comments.
CODE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$|`([^`\n]+)`|^(## )", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
IN_DESCRIPTION = re.compile(r"(?:python|torchrun) .*?(?=\. |: |\.$)")


@dataclass(frozen=True)
class Document:
    """A text with commands.

    Args:
        name: path from the project's root.
    """

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path:
        return ROOT / self.name

    @property
    def text(self) -> str:
        return _read(self.path)

    @property
    def sections(self) -> list[list[str]]:
        """What a reader types, in order, without comments: the commands of each section (`##`)."""
        if self.path.suffix == ".json":
            return [IN_DESCRIPTION.findall(json.loads(self.text).get("_desc_", "") + " ")]
        if self.path.suffix == ".yaml":
            return [re.findall(r"^#   (\S.*)$", self.text, re.MULTILINE)]
        found: list[list[str]] = [[]]
        for language, block, span, heading in CODE.findall(self.text):
            if heading:
                found.append([])
            elif span:
                found[-1] += [span] if COMMAND.match(span) else []
            elif not language:
                lines = [re.sub(r"(^|\s+)# .*$", "", line) for line in block.splitlines()]
                found[-1] += [line.strip() for line in lines if line.strip()]
        return found

    @property
    def commands(self) -> list[str]:
        return [command for section in self.sections for command in section]


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def documents() -> list[Document]:
    """All of them; what lies in folders that git ignores, or is generated, is none."""
    markdown = [
        *ROOT.glob("*.md"),
        *BUNDLE.glob("docs/*.md"),
        *ROOT.glob("monailabel_app/*.md"),
        *ROOT.glob("tests/**/*.md"),
    ]
    heads = [*CONFIGS.rglob("*.json"), *CONFIGS.rglob("*.yaml")]
    return [Document(path.relative_to(ROOT).as_posix()) for path in sorted(markdown) + sorted(heads)]


def config_files(words: list[str]) -> list[str]:
    """The files of a command's --config_file, as written; none where it has no such option."""
    if "--config_file" not in words:
        return []
    value = words[words.index("--config_file") + 1]
    return ast.literal_eval(value) if value.startswith("[") else [value]


def links(text: str) -> list[str]:
    """A Markdown text's links to files and headings; none to other sites."""
    return [link for link in LINK.findall(text) if not link.startswith(("http://", "https://"))]


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown text's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named_files(text: str) -> set[str]:
    """Files that a text names in code and that are neither patterns nor addresses."""
    name = re.compile(r"(?<![\w/.<>*{}-])[\w./-]+\.(?:py|sh|json|yaml|yml|md|pt|csv|conf|txt)(?![\w*<.])")
    return {file for _, block, span, _ in CODE.findall(text) for file in name.findall(f"{block}\n{span}")}


def named_options(text: str) -> set[str]:
    """Options (`--x`) that a text or its tables name outside of commands, without their dashes."""
    spans = [span for _, _, span, _ in CODE.findall(text) if not COMMAND.match(span)]
    return {name for span in spans for name in re.findall(r"(?<!\S)--([\w#-]+)", span)}
