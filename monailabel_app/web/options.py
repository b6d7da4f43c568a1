"""Which options a request may carry: JSON in, values of the kinds that the app knows out, all else refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from monailabel.interfaces.datastore import DefaultLabelTag
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from monailabel_app.devices import Device, GPUs
from monailabel_app.errors import InputError, sentence_of
from monailabel_app.tasks.infer import DTYPES, EXTENSIONS, Switch
from monailabel_app.web.isolation import check_name

LONGEST_TEXT = 200
LONGEST_LIST = 256
DEEPEST_INFO = 8
MOST_INFO_BYTES = 16 * 1024
MOST_COUNT = 100_000
RESERVED_INFO = ("name", "ts", "path", "checksum", "strategy", "user", "id", "reason", "label_id")
DROPPED = ("logging", "client_id", "label_prompt", "model", "description")
CLIENTS_CLUTTER = ("", None)


class Malformed(InputError):
    """The options of a request cannot be read at all."""


def json_object(text: str | bytes | None) -> dict[str, Any]:
    """The object that a JSON text holds, without numbers that are not finite; nothing means an empty one."""

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


# Kinds of values


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "Input should be a number")
    return value


def _first_of_one(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _no_path(text: str) -> str:
    if not text.isprintable() or "/" in text or "\\" in text or ".." in text:
        raise PydanticCustomError("path", "Input should be a short text: files of the server cannot be named")
    return text


def _tag_of_a_model(value: Any) -> str:
    tag = check_name("tag", value, new=True)
    if tag == DefaultLabelTag.FINAL.value:
        raise InputError("The tag final is kept for labels that a person submits: expected another one.")
    return tag


Number = Annotated[
    float,
    BeforeValidator(_no_switch),
    Field(allow_inf_nan=False),
    AfterValidator(lambda found: int(found) if found.is_integer() else found),
]
Count = Annotated[int, BeforeValidator(_no_switch), Field(ge=0, le=MOST_COUNT)]
ShortText = Annotated[str, Field(max_length=LONGEST_TEXT)]
Text = Annotated[ShortText, BeforeValidator(_first_of_one), AfterValidator(_no_path)]
Texts = Annotated[list[Text], Field(max_length=LONGEST_LIST)]
Tag = Annotated[str, PlainValidator(partial(check_name, "tag"))]
ModelTag = Annotated[str, PlainValidator(_tag_of_a_model)]


class Segment(TypedDict, total=False):
    """What Slicer and OHIF say of a segment."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    name: ShortText
    description: ShortText
    model_name: ShortText
    color: Annotated[list[Number], Field(min_length=3, max_length=4)] | None
    segmentAttribute: dict[str, Any]


Segments = Annotated[list[Segment], Field(max_length=LONGEST_LIST)] | None

RESULT: dict[str, Any] = {
    "result_extension": Literal[EXTENSIONS],
    "result_dtype": Literal[DTYPES],
    "result_compress": Switch,
    "restore_label_idx": Switch,
    "label_info": Segments,
    "label_tag": ModelTag,
    "save_label": Switch,
    "device": Device,
}
TRAINING: dict[str, Any] = {"device": Device, "multi_gpu": Switch, "gpus": GPUs}
BATCH = (
    RESULT
    | TRAINING
    | {
        "images": Literal["all", "labeled", "unlabeled"],
        "skip_finished": Switch,
        "skip_answered": Switch,
        "max_workers": Count,
        "max_batch_size": Count,
    }
)
SCORING = TRAINING | {"y": Tag, "y_pred": Tag}
SAMPLING: dict[str, Any] = {"label_tag": Tag, "labels": Texts}


def clean_options(sent: Mapping[str, Any], config: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request that a model, trainer, strategy or scoring knows.

    `config` is what `/info` shows: clients send it back whole, so a list of choices stands for its first one. `kinds`
    are further options, with the kinds of their values.
    """
    known = {**kinds, **{key: _kind_of(key, default) for key, default in config.items()}}
    kept = {key: value for key, value in sent.items() if key not in DROPPED}
    for key in kept:
        if key not in known:
            name = key if key.isidentifier() and len(key) <= LONGEST_TEXT else "that name"
            raise InputError(f"There is no option {name}: expected {', '.join(sorted(known)) or 'none'}.")
    return checked(kept, known)


def checked(sent: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Values as those of their kinds, all of which they have to be."""
    adapter: TypeAdapter[Any] = TypeAdapter(TypedDict("Options", dict(kinds), total=False))  # type: ignore[operator]
    try:
        return adapter.validate_python(sent)
    except ValidationError as error:
        raise InputError(sentence_of(error, name="The option {}".format)) from error


def _kind_of(key: str, default: Any) -> Any:
    """The kind of a config's value: a device, one of its choices, a number, a switch, a short text."""
    if key == "device":
        return Device
    if isinstance(default, (list, tuple)):
        return Annotated[Any, PlainValidator(partial(_choice, key, default))]
    if isinstance(default, bool):
        return Switch
    if isinstance(default, (int, float)):
        return Number

    def as_it_was(value: Any, check: Callable[[Any], Any]) -> Any:
        return value if value == default or value in CLIENTS_CLUTTER else check(value)

    kind: Any = GPUs if key == "gpus" else Text
    return Annotated[kind, WrapValidator(as_it_was)]


def _choice(key: str, choices: Sequence[Any], value: Any) -> Any:
    if isinstance(value, list):
        value = next(iter(value or choices), None)
    for choice in choices:
        if str(choice) == str(value):
            return choice
    raise InputError(f"The option {key} is not one of {', '.join(map(str, choices)) or 'its choices'}.")


# What is kept beside an image or label


def clean_info(sent: Mapping[str, Any]) -> dict[str, Any]:
    """What a client wants kept beside an image or label: anything small, but nothing the store itself writes."""
    if reserved := sorted(set(sent) & set(RESERVED_INFO)):
        raise InputError(f"The information {', '.join(reserved)} is the server's own and cannot be changed.")
    info = {**sent, **checked({k: v for k, v in sent.items() if k == "label_info"}, {"label_info": Segments})}
    check_info(info)
    return info


def check_info(info: Mapping[str, Any]) -> None:
    """Refuses information with which the store's list could not be read again: deep, long, or of broken letters."""
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
