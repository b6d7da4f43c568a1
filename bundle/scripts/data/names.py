"""What the name of a file or of a series says of its modality, in the words of publishers, scanners and hospitals.

Nothing is opened. A name that says too little or two things at once is never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.data.volume import SUFFIXES

MODALITIES = ("T1", "ceT1", "T2", "FLAIR")

# For expressions on names of files: any suffix of a scan.
ENDING = f"(?i:{'|'.join(map(re.escape, SUFFIXES))})"

MASK = "a mask, label map or output"
# Sequences that are weighted as T2 or T1 and look otherwise: what they are called, and how that is written.
_SUPPRESSED = {
    "FLAIR": r"flair|dark[\W_]?fluid|da-fl(?![a-z])|tirm|irprep|(?<![a-z0-9])t2f(?![a-z0-9])",
    "STIR": r"(?<![a-z])stir(?![a-z])",
}
_ANY_SUPPRESSED = re.compile("|".join(_SUPPRESSED.values()), re.IGNORECASE)

_WORD = re.compile(r"[^\W_]+")
# key-value pairs of BIDS, none of which is the modality but for ce (contrast agent)
_ENTITY = re.compile(
    r"(?<![^_])(sub|ses|acq|ce|trc|rec|dir|run|mod|echo|flip|inv|mt|part|proc|space|split|res|den|label|desc|from|to"
    r"|hemi|chunk|sample|task|cohort|atlas|seg)-[^_]+(?=_)"
)
_PLANE = r"(?:ax|tra|sag|cor|[23]d)?"
_HOW = r"(?:w|wi|weighted|ax|tra|sag|cor|[23]d|se|tse|fse|fs|spc|space|iso)?"
_SPELLINGS = {
    "T2": rf"{_PLANE}(?:hr|tse|fs)?t2(?:hr|cube|drive)?{_HOW}",
    "ceT1": r"(?:ce|gd|km|post|cm)t1(?:w|wi)?|t1(?:w|wi)?(?:ce|c|gd|gad|gado|post|km|cm|contrast|cet|plus)",
    "T1": rf"{_PLANE}t1(?:n|pre|native|mpr|mprage|vibe|spgr|gre)?{_HOW}|mprage|mp2rage|unit1",
}
_CONTRAST = re.compile(r"ce|gd|gad|gado|gadolinium|post|postcontrast|contrast|kontrast|km|enhanced|gadovist|dotarem")
_NO_CONTRAST = re.compile(r"pre|precontrast|native|nativ|non|no|without|ohne|unenhanced")
_MASK = re.compile(r"\w*(?:seg|segm|mask|masks|label|labels|labelmap|segmentation|segmentations)")
_LAST_MASK = re.compile(r"pred|prediction|synthetic|error|coarse|roi|rois|gt|gtv|groundtruth")
_OTHER = re.compile(
    r"t2s|t2star\w*|t[12]map|t[12]rho|star|map|swi|swan|adc|dwi|dti|bold|pdw|pdt2|inplanet2|tof|asl|dsc"
)
_LAST_OTHER = re.compile(r"ct|pd|pet|mra|fa|md|mag|magnitude|phase|cbf|cbv|m0scan|fieldmap|epi|trace")
_GLUED_T1 = re.compile(r"(?<![A-Z])T1(?!\d)")  # sT1W, AxT1post; not PATIENT1
_CHANNEL = re.compile(r"_000\d$")
_STUDY = re.compile(r"(?<![^\W_])vs[-_ ]?seg(?=[-_ ]?\d)", re.IGNORECASE)  # no segmentation: Vestibular-Schwannoma-SEG


@dataclass(frozen=True)
class Named:
    """What a name says.

    Args:
        case: the name without its modality; empty where nothing else is in it.
        modality: one of `MODALITIES`; None where the name does not say, or says something else.
        other: what else the name says that it is; None where it does not say.
    """

    case: str
    modality: str | None = None
    other: str | None = None


def stem_of(path: Path) -> str | None:
    """A file's name without the suffix of an image; None for any other file, and for hidden ones, as macOS leaves."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and not path.name.startswith("."):
            return path.name[: -len(suffix)]
    return None


def read_file_name(path: Path, endings: Mapping[str, str] | None = None) -> Named | None:
    """Case and modality of a file by its name; None where it is no image.

    Args:
        path: only its name counts, and whether its folder is called as the case, as `scripts.prepare` writes them.
        endings: modality to how names of it end, before the suffix, as the user says: goes before all else. An empty
            ending is for names that do not say what they are.
    """
    stem = stem_of(path)
    if stem is None:
        return None
    for modality, ending in sorted((endings or {}).items(), key=lambda item: -len(item[1])):
        if ending and stem.endswith(ending):
            return Named(stem.removesuffix(ending).rstrip("_-. "), modality)
    case, _, modality = stem.rpartition("_")
    if modality in MODALITIES and case == path.parent.name:
        return Named(case, modality)
    named = read_name(stem)
    if named.modality is None and named.other is None:
        said = [modality for modality, ending in (endings or {}).items() if not ending]
        return Named(stem, said[0]) if said else named
    return named


def read_name(name: str) -> Named:
    """What a name says, whatever separates its words: `sub-01_ce-gadolinium_T1w`, `x-t2f`, `t2_tirm_tra_dark-fluid`."""
    text = name.replace("*", "s")  # T2*
    entities = [match.span() for match in _ENTITY.finditer(text)]
    agent = [match.span() for match in _ENTITY.finditer(text) if match[1] == "ce"]
    skipped = [*entities, *(match.span() for match in _STUDY.finditer(text))]
    words = [w for w in _WORD.finditer(text) if not any(begin <= w.start() < end for begin, end in skipped)]
    spelled = {w.span(): w[0].lower() for w in words}
    last = spelled[words[-1].span()] if words else ""
    if any(_MASK.fullmatch(word) for word in spelled.values()) or _LAST_MASK.fullmatch(last):
        return Named(name, other=MASK)
    found: dict[str, list[tuple[int, int]]] = {}
    for span, word in spelled.items():
        for modality, spelling in _SPELLINGS.items():
            if re.fullmatch(spelling, word):
                found.setdefault(modality, []).append(span)
                break
    weighted = [span for spans in found.values() for span in spans]
    for kind, spelling in _SUPPRESSED.items():
        spans = [match.span() for match in re.finditer(spelling, text, re.IGNORECASE) if not _within(match, entities)]
        if spans and kind in MODALITIES:
            return Named(_without(name, [*weighted, *spans]), kind)
        if spans:
            return Named(name, other=kind)
    if any(_OTHER.fullmatch(word) for word in spelled.values()) or _LAST_OTHER.fullmatch(last):
        return Named(name, other="another kind of image")
    if found.keys() == {"T1"} and not any(_NO_CONTRAST.fullmatch(word) for word in spelled.values()):
        agent += [span for span, word in spelled.items() if _CONTRAST.fullmatch(word)]
        if agent:
            return Named(_without(name, [*found["T1"], *agent]), "ceT1")
    if len(found) > 1:
        return Named(name, other=" and ".join(sorted(found)))
    if found:
        return Named(_without(name, weighted), next(iter(found)))
    if any(_GLUED_T1.search(word[0]) for word in words):
        return Named(name, other="T1")
    channel = _CHANNEL.search(text)
    return Named(name, other=f"channel {channel[0][1:]} of several (nnU-Net)" if channel else None)


def is_called_otherwise(series: str, modality: str) -> bool:
    """Whether a series' name says that it is something else; many a T1 with contrast agent is just called T1."""
    says = read_name(series)
    return (says.modality or says.other) not in (None, modality, "T1" if modality == "ceT1" else None)


def misnamed(files: Iterable[tuple[str, Path]]) -> list[str]:
    """A sentence for each kind of files that somebody has named as a modality and that are called another, or masks.

    Args:
        files: modality and file.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    for modality, path in files:
        named = read_file_name(path)
        says = named and (named.modality or (named.other if named.other == MASK else None))
        if says and says not in (modality, "T1" if modality == "ceT1" else None):
            found.setdefault((modality, says), []).append(path)
    return [
        f"{len(paths)} files are given as {modality} and called {says}, such as {paths[0]}: look whether that is meant"
        for (modality, says), paths in found.items()
    ]


def is_suppressed(series: str, pattern: str) -> bool:
    """Whether a series is called FLAIR, dark-fluid, TIRM or STIR, in words of which the pattern for T2 has none."""
    words = [match[0].lower() for match in _ANY_SUPPRESSED.finditer(series)]
    return bool(words) and not any(word in pattern.lower() for word in words)


def _within(match: re.Match[str], spans: list[tuple[int, int]]) -> bool:
    return any(begin <= match.start() < end for begin, end in spans)


def _without(name: str, spans: list[tuple[int, int]]) -> str:
    """The name without parts of it, each with the separator before it."""
    for begin, end in sorted(spans, reverse=True):
        begin = max(begin - 1, 0) if name[max(begin - 1, 0)] in "_-. " else begin
        name = name[:begin] + name[end:]
    return name.lstrip("_-. ")
