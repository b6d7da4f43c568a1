"""Tells misspelled and mistyped overrides: every key and value behind the base config, against what it could be.

Only raw configuration is read, nothing of it is instantiated. What a component can judge of its own arguments (ranges,
options, files) does not go here, nor how a command line is read (`command.py`).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import pydoc
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser
from monai.bundle.utils import merge_kv

from scripts.config import COMMAND_LINE, Command, read_command

SETTINGS = {*ConfigComponent.non_arg_keys, "_meta_"}  # MONAI's own keys, allowed in every dictionary
CONFIGS = Path(__file__).parents[1] / "configs"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
REFERENCE = re.compile(r"[@%](\w+(?:(?:#|::)\w+)*)")
FITS = {("null", "list"), ("null", "dictionary"), ("null", "component"), ("list", "number")}  # new, in place of old
HINTS: dict[tuple, str] = {
    ("truth value", "number"): " A key without a value is True.",
    ("dictionary", "component"): " To set one argument, write {}#ARGUMENT.",
}
SIMILAR, NEAR_MISS = 0.6, 0.85  # of difflib: worth suggesting; too near to an existing key to be a new one


def check() -> None:
    """For the beginning of a config's `run`: refuses overrides of this process's command that cannot be meant.

    Does nothing unless the process is `python -m monai.bundle run` or `torchrun -m monai.bundle run`: a config cannot
    see its own files, only the process's arguments tell.

    Raises:
        ValueError: overrides are misspelled or of the wrong kind; names every one.
    """
    command = read_command(sys.argv)
    if command is not None and (found := list(problems(command))):
        raise ValueError("\n".join(found))


def problems(command: Command) -> Iterator[str]:
    """Yields a message for every override that is misspelled or of the wrong kind; the first file is the base.

    A key is right if the files before have it, if something refers to it (`@key`), if the command names it, or if it
    is an argument of the component it is set in. A file may also set what only another JSON file of this bundle has, so
    that the same overrides serve training, evaluation and inference; the command line may not.
    """
    config = ConfigParser({})
    used = command.names | set(_references([layer for _, layer in command.layers]))
    bundle = _bundle_keys()
    for index, (origin, layer) in enumerate(command.layers):
        typed = origin == COMMAND_LINE
        for key, value in layer.items():
            found = list(_key_problems(key, value, config, used if typed else used | set(bundle))) if index else []
            top = re.split("#|::", key)[0]
            absent = typed and top in bundle and top not in config
            hint = f" configs/{bundle[top]} has {top}, but this command does not name that file." if absent else ""
            yield from (f"{origin}: {message}{hint}" for message in found)
            if not found:
                merge_kv(config, key, deepcopy(value))
    for name in sorted(command.asked - set(config.get())):
        files = name.endswith((".json", ".yaml", ".yml"))
        hint = " Several files are one list: --config_file \"['first.json','second.yaml']\"." if files else ""
        yield f"{COMMAND_LINE}: no file has an entry {name!r} to run.{hint}"


def _bundle_keys() -> dict[str, str]:
    """Every top-level key of the bundle's own JSON files, with the file that has it."""
    found: dict[str, str] = {}
    for path in sorted(CONFIGS.glob("*.json")):
        if path.name != "metadata.json":
            with contextlib.suppress(ValueError):  # a broken file that this run does not use
                found |= dict.fromkeys(ConfigParser.load_config_file(str(path)), path.name)
    return found


def _key_problems(key: str, value: Any, config: ConfigParser, known: set[str]) -> Iterator[str]:
    """Messages about one override; `config` is what lies before it, `known` are new keys that are right."""
    path = key.removeprefix("+").replace("::", "#")
    *parents, name = path.split("#")
    node: Any = config.get()
    where = ""
    for part in parents:
        exists, child = _child(node, part)
        if not exists:
            yield _unknown(path, part, node, where, config)
            return
        node, where = child, f"{where}#{part}".lstrip("#")
    exists, old = _child(node, name)
    component = ConfigComponent.is_instantiable(node)
    if isinstance(node, dict) and (name in SETTINGS or parents[:1] == ["_meta_"]):
        return
    if component and not exists:
        yield from _component_problems(where, {"_target_": node["_target_"], name: value}, None, config)
    elif not exists and path not in known and not (where and isinstance(node, dict) and _is_part(name, value, node)):
        yield _unknown(path, name, node, where, config)
    elif key.startswith("+") and isinstance(value, dict) and isinstance(old, dict):
        for name, item in value.items():
            yield from _key_problems(f"{path}#{name}", item, config, known)
    elif key.startswith("+") and isinstance(value, list) and isinstance(old, list):
        yield from _value_problems(path, value, None, config)
    else:
        yield from _value_problems(path, value, old, config, argument=component)


def _value_problems(path: str, new: Any, old: Any, config: ConfigParser, *, argument: bool = False) -> Iterator[str]:
    """Messages about a value that replaces `old` (None: anything goes).

    A component judges its arguments itself, but for text that should be a number, True or False, and for a component
    that is replaced by something else.
    """
    old = _followed(old, config)
    kind, expected = _kind(new), None if old is None else _kind(old)
    fits = expected in (None, "text", kind) or kind in ("expression", "component") or (kind, expected) in FITS
    judged = argument and (expected != "component" or kind == "list")
    if kind == "text" and new.lower() in ("true", "false") and expected != "text":
        written = f"{new.capitalize()} on the command line, {new.lower()} without quotes in a file"
        yield f"{path} is the text {new!r}: write {written}."
    elif (
        kind == "text" and NUMBER.fullmatch(new) and (expected in ("number", "list") or argument and "e" in new.lower())
    ):
        yield f"{path} is the text {new!r}, expected a number: write {_number(new)}, without quotes."
    elif not (fits or judged):
        like = old["_target_"] if expected == "component" else f"{old}"
        hint = HINTS.get((kind, expected), "").format(path)
        yield f"{path} is the {kind} {f'{new!r}':.60}, expected a {expected} like {like:.60}.{hint}"
    elif type(old) is int and isinstance(new, float):
        yield f"{path} is {new}, expected a whole number like {old}."
    elif kind == "component":
        yield from _component_problems(path, new, old, config)
    elif kind == "list":
        like = old[0] if expected == "list" and old else old if expected == "number" else None
        for index, item in enumerate(new):
            yield from _value_problems(f"{path}#{index}", item, like if _kind(like) == "number" else None, config)
    elif kind == "dictionary":
        before = old if expected == "dictionary" else {}
        missing = set(before) - set(new)
        for name, item in new.items():
            if name not in before and difflib.get_close_matches(name, missing, 1, NEAR_MISS):
                yield _unknown(f"{path}#{name}", name, missing, path, config)
            else:
                yield from _value_problems(f"{path}#{name}", item, before.get(name), config)


def _component_problems(path: str, new: dict[str, Any], old: Any, config: ConfigParser) -> Iterator[str]:
    """Messages about a component's arguments, beside those of the component before and the target's own."""
    names, anything = _arguments(new, config)
    before = old if isinstance(old, dict) and old.get("_target_") == new["_target_"] else {}
    for name, item in new.items():
        if name in SETTINGS:
            continue
        if name in names or anything:
            yield from _value_problems(f"{path}#{name}", item, before.get(name, names.get(name)), config, argument=True)
        else:
            yield _unknown(f"{path}#{name}", name, {*names, *SETTINGS}, path, config)


def _arguments(component: dict[str, Any], config: ConfigParser) -> tuple[dict[str, Any], bool]:
    """A target's arguments with their defaults (None without), and whether it takes others that cannot be told."""
    with contextlib.suppress(Exception):  # what cannot be imported is MONAI's error when it is instantiated
        target: Any = pydoc.locate(ConfigComponent(component, locator=config.locator).resolve_module_name())
        if callable(target):
            return _parameters(target.__init__ if inspect.isclass(target) else target, target)
    return {}, True


def _parameters(function: Callable, owner: Any) -> tuple[dict[str, Any], bool]:
    """As `_arguments`, of a function or an `__init__`; its `**kwargs` are followed to where its code passes them on."""
    parameters = list(inspect.signature(function).parameters.values())[inspect.isclass(owner) :]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    found = {p.name: None if p.default is p.empty else p.default for p in named}
    rest = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
    if rest is None:
        return found, False
    receivers = list(_receivers(inspect.unwrap(function), owner, rest))
    for receiver in receivers:
        more, anything = _parameters(*receiver)
        if anything:
            return more | found, True
        found = more | found
    return found, not receivers


def _receivers(function: Any, owner: Any, rest: str) -> Iterator[tuple[Callable, Any]]:
    """Every callable to which a function's code passes `**rest`, with its class."""
    for call in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if not isinstance(call, ast.Call):
            continue
        if not any(k.arg is None and ast.unparse(k.value) == rest for k in call.keywords):
            continue
        name = ast.unparse(call.func)
        if name == "super().__init__":
            defining = next(c for c in owner.__mro__ if inspect.unwrap(vars(c).get("__init__", repr)) is function)
            yield super(defining, owner).__init__, owner
        else:
            first, *others = name.split(".")
            target = functools.reduce(getattr, others, function.__globals__[first])
            yield (target.__init__, target) if inspect.isclass(target) else (target, None)


def _unknown(path: str, name: str, node: Any, where: str, config: ConfigParser) -> str:
    """The message about a key that does not exist in `node`: with the nearest there, then others of that name."""
    prefix = f"{where}#" if where else ""
    if isinstance(node, list):
        return f"{path}: {where} is a list of {len(node)}, expected an index from 0 to {len(node) - 1}, found {name}."
    if not isinstance(node, dict | set):
        hint = f" Set {node[1:]}#{name} instead." if isinstance(node, str) and REFERENCE.fullmatch(node) else ""
        return f"{path}: {where} is {node!r} and has no entries.{hint}"
    near = [prefix + key for key in difflib.get_close_matches(name, node, 3, SIMILAR)]
    elsewhere: dict[str, list[str]] = {}
    for full in _paths(config.get()):
        elsewhere.setdefault(full.rsplit("#", 1)[-1], []).append(full)
    if not near or name in elsewhere:
        names = [name] if name in elsewhere else difflib.get_close_matches(name, elsewhere, 1, SIMILAR)
        near += [full for key in names for full in elsewhere[key] if full not in near][: 3 - len(near)]
    said = f"there is no {prefix}{name}" if path == prefix + name else f"{path}: there is no {prefix}{name}"
    if near:
        return f"{said}; did you mean {' or '.join(near)}?"
    return f"{said}, nor a similar name" + (f"; {where} has {', '.join(sorted(node))}." if where else ".")


def _child(node: Any, name: str) -> tuple[bool, Any]:
    """Whether a dictionary or list has an entry, and which."""
    if isinstance(node, dict):
        return name in node, node.get(name)
    if isinstance(node, list) and re.fullmatch(r"-?\d+", name) and -len(node) <= int(name) < len(node):
        return True, node[int(name)]
    return False, None


def _is_part(name: str, value: Any, siblings: Iterable[str]) -> bool:
    """Whether a new entry of a plain dictionary may be meant: a component or a reference, of a name of its own."""
    return _kind(value) in ("component", "expression") and not difflib.get_close_matches(name, siblings, 1, NEAR_MISS)


def _kind(value: Any) -> str | None:
    """What a value is, in the words of the messages; None where it cannot be told."""
    if isinstance(value, str):
        return "expression" if value[:1] in ("$", "@", "%") else "text"
    for types, kind in ((bool, "truth value"), ((int, float), "number"), ((list, tuple), "list")):
        if isinstance(value, types):
            return kind
    if isinstance(value, dict):
        return "component" if ConfigComponent.is_instantiable(value) else "dictionary"
    return "null" if value is None else None


def _followed(value: Any, config: ConfigParser) -> Any:
    """The value that a plain reference leads to; None where only running the config would tell."""
    for _ in range(len(config.get())):
        if not (isinstance(value, str) and (found := REFERENCE.fullmatch(value))):
            break
        value = config.get(found[1])
    return None if _kind(value) in ("expression", None) else value


def _references(value: Any) -> Iterator[str]:
    """Every key that a text somewhere in a config refers to, with its parents."""
    if isinstance(value, str) and _kind(value) == "expression":
        for key in REFERENCE.findall(value):
            parts = re.split("#|::", key)
            yield from ("#".join(parts[: depth + 1]) for depth in range(len(parts)))
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Every key of a config."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key not in SETTINGS:
            full = f"{path}#{key}".lstrip("#")
            yield full
            if isinstance(item, dict | list):
                yield from _paths(item, full)


def _number(text: str) -> str:
    """A number as YAML 1.1 reads it: 2e-4 is text there, 2.0e-4 a number."""
    mantissa, _, exponent = text.lower().partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}" if exponent else text
