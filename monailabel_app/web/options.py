"""Which options a request may carry: JSON in, values of the kinds that the app knows out, all else refused.

Each check raises `InputError` with a sentence. Names and files go to `confine.py`, HTTP to `routes_tasks.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag

from monailabel_app.errors import InputError
from monailabel_app.web.isolation import check_name

LONGEST_TEXT = 200
LONGEST_LIST = 256
DEEPEST_INFO = 8
MOST_INFO_BYTES = 16 * 1024
RESERVED_INFO = ("name", "ts", "path", "checksum", "strategy", "user", "id", "reason", "label_id")
DROPPED = ("logging", "client_id", "label_prompt", "model", "description")
CLIENTS_CLUTTER = ("", None)
MOST_COUNT = 100_000


class Malformed(InputError):
    """The options of a request cannot be read at all."""


def json_object(text: str | bytes | None) -> dict[str, Any]:
    """The object that a JSON text holds; nothing means an empty one.

    Raises:
        Malformed: not JSON, or not an object, or with numbers that are not finite.
    """

    def finite(number: str) -> float:
        if not math.isfinite(found := float(number)):
            raise ValueError(number)
        return found

    try:
        value = json.loads(text or "{}", parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise Malformed("The options of the request are not readable JSON.") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed("The options of the request are not an object of names and values.")
    return value


def clean_info(sent: Mapping[str, Any]) -> dict[str, Any]:
    """What a client wants kept beside an image or label: anything small, but nothing the store itself writes.

    Raises:
        InputError: a reserved name, a list of segments that is none, or too much.
    """
    if reserved := sorted(set(sent) & set(RESERVED_INFO)):
        raise InputError(f"The information {', '.join(reserved)} is the server's own and cannot be changed.")
    info = dict(sent)
    if "label_info" in info:
        info["label_info"] = _label_info("label_info", info["label_info"])
    check_info(info)
    return info


def check_info(info: Mapping[str, Any]) -> None:
    """Whether the store's list can be read again with this information in it.

    Raises:
        InputError: too deep or too long, or with letters that cannot be written.
    """
    if not _within(info, DEEPEST_INFO):
        raise InputError(f"The information has too many levels: expected at most {DEEPEST_INFO}.")
    try:
        size = len(json.dumps(info, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is one: half of a letter
        raise InputError("The information cannot be written as JSON: it holds broken letters or numbers.") from error
    if size > MOST_INFO_BYTES:
        raise InputError(f"The information is too long: expected at most {MOST_INFO_BYTES} bytes with what is there.")


def _within(value: Any, levels: int) -> bool:
    if not isinstance(value, (Mapping, list, tuple)):
        return True
    parts = value.values() if isinstance(value, Mapping) else value
    return levels > 0 and all(_within(part, levels - 1) for part in parts)


def clean_options(
    sent: Mapping[str, Any], config: Mapping[str, Any], checks: Mapping[str, Callable[[str, Any], Any]]
) -> dict[str, Any]:
    """The options of a request that a model, trainer, strategy or scoring knows.

    Clients send a config back whole, so a list of choices stands for its first one.

    Args:
        sent: what the client sent.
        config: the options that `/info` shows, with their defaults or lists of choices.
        checks: further options, each with what checks its value.

    Raises:
        InputError: an option that is not known, or a value that is not of its kind.
    """
    clean = {}
    for key, value in sent.items():
        if key in DROPPED:
            continue
        if key in config:
            clean[key] = _like(key, value, config[key])
        elif key in checks:
            clean[key] = checks[key](key, value)
        else:
            name = key if key.isidentifier() and len(key) <= LONGEST_TEXT else "that name"
            raise InputError(f"There is no option {name}: expected {', '.join(sorted({*config, *checks})) or 'none'}.")
    return clean


def _like(key: str, value: Any, default: Any) -> Any:
    """A value of the same kind as the config's: one of its choices, a number, a switch, a short text."""
    if isinstance(default, (list, tuple)):
        if isinstance(value, list):
            value = value[0] if value else (default[0] if default else None)
        for choice in default:
            if str(choice) == str(value):
                return choice
        if key == "device":
            return device(key, value)
        raise InputError(f"The option {key} is not one of {', '.join(map(str, default)) or 'its choices'}.")
    if isinstance(default, bool):
        return switch(key, value)
    if isinstance(default, (int, float)):
        return number(key, value)
    if value == default or value in CLIENTS_CLUTTER:
        return value
    if key == "gpus":
        return gpus(key, value)
    return short_text(key, value)


def switch(key: str, value: Any) -> bool:
    """True or false, as JSON or as the text a form sends."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise InputError(f"The option {key} is neither true nor false.")


def number(key: str, value: Any) -> float:
    """A finite number, as JSON or as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        found = value if isinstance(value, int) else float(value)
        if not math.isfinite(found):
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"The option {key} is not a number.") from None
    return int(found) if found == int(found) and not isinstance(value, float) else found


def count(key: str, value: Any) -> int:
    """A whole number that is not negative."""
    found = number(key, value)
    if found != int(found) or not 0 <= found <= MOST_COUNT:
        raise InputError(f"The option {key} is not a whole number from 0 to {MOST_COUNT}.")
    return int(found)


def short_text(key: str, value: Any) -> str:
    """A short text that is no path and no address."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
        raise InputError(f"The option {key} is not a short text.")
    if "/" in value or "\\" in value or ".." in value:
        raise InputError(f"The option {key} looks like a path: files of the server cannot be named.")
    return value


def names(key: str, value: Any) -> list[str]:
    """A list of short texts."""
    if not isinstance(value, list) or len(value) > LONGEST_LIST:
        raise InputError(f"The option {key} is not a list of names.")
    return [short_text(key, entry) for entry in value]


def device(key: str, value: Any) -> str:
    """`cpu`, `cuda` or `cuda:1`."""
    found = value[0] if isinstance(value, list) and value else value
    if isinstance(found, str) and re.fullmatch(r"cpu|cuda(:\d{1,2})?", found):
        return found
    raise InputError("The device is not known: expected cpu, cuda or cuda:0.")


def gpus(key: str, value: Any) -> str:
    """`all`, or numbers of GPUs with commas between them."""
    if isinstance(value, str) and re.fullmatch(r"all|\d{1,2}(,\d{1,2}){0,15}", value):
        return value
    raise InputError("The GPUs are not known: expected all, or numbers such as 0,1.")


def model_tag(key: str, value: Any) -> str:
    """The tag under which a model's mask is kept: never that of the labels people submit."""
    tag = check_name("tag", value, new=True)
    if tag == DefaultLabelTag.FINAL.value:
        raise InputError("The tag final is kept for labels that a person submits: expected another one.")
    return tag


def any_tag(key: str, value: Any) -> str:
    """A tag of the store."""
    return check_name("tag", value)


def one_of(*choices: str) -> Callable[[str, Any], str]:
    """A check that a value is one of a few."""

    def check(key: str, value: Any) -> str:
        if value not in choices:
            raise InputError(f"The option {key} is not one of {', '.join(choices)}.")
        return str(value)

    return check


def _label_info(key: str, value: Any) -> list[dict[str, Any]] | None:
    """What Slicer and OHIF say of the segments: a list of small objects."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > LONGEST_LIST or not all(isinstance(entry, dict) for entry in value):
        raise InputError(f"The option {key} is not a list of segments, each with its name.")
    for entry in value:
        color = entry.get("color")
        if color is not None:
            if not isinstance(color, (list, tuple)) or len(color) not in (3, 4):
                raise InputError("A segment's color is not three numbers.")
            for part in color:
                number("color", part)
        for part in ("name", "description", "model_name"):
            if part in entry and not (isinstance(entry[part], str) and len(entry[part]) <= LONGEST_TEXT):
                raise InputError(f"A segment's {part} is not a short text.")
        if "segmentAttribute" in entry and not isinstance(entry["segmentAttribute"], dict):
            raise InputError("A segment's segmentAttribute is not an object.")
    return value


RESULT = {
    "result_extension": one_of(".nrrd", ".nii.gz", ".nii"),
    "result_dtype": one_of("uint8", "uint16"),
    "result_compress": switch,
    "restore_label_idx": switch,
    "label_info": _label_info,
    "label_tag": model_tag,
    "save_label": switch,
    "device": device,
}
BATCH = RESULT | {
    "images": one_of("all", "labeled", "unlabeled"),
    "skip_finished": switch,
    "skip_answered": switch,
    "max_workers": count,
    "max_batch_size": count,
    "multi_gpu": switch,
    "gpus": gpus,
}
TRAINING = {"device": device, "multi_gpu": switch, "gpus": gpus}
SCORING = {"device": device, "y": any_tag, "y_pred": any_tag, "multi_gpu": switch, "gpus": gpus}
SAMPLING = {"label_tag": any_tag, "labels": names}
