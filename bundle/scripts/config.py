"""The command of a `monai.bundle run`: read as MONAI does, its overrides checked, what was run kept as config.yaml."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import io
import logging
import os
import pydoc
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import yaml
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from monai.bundle.scripts import update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, merge_kv
from monai.utils import ensure_tuple

from scripts.files import whole_file

logger = logging.getLogger(__name__)

COMMAND_LINE = "command line"
CONFIGS = Path(__file__).parents[1] / "configs"
SETTINGS = {*ConfigComponent.non_arg_keys, "_meta_"}  # MONAI's own keys, allowed in every dictionary
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
REFERENCE = re.compile(r"[@%]([\w#:]+)")
FITS = {("null", "list"), ("null", "dictionary"), ("null", "component"), ("list", "number")}  # new, in place of old
KINDS = {bool: "truth value", int: "number", float: "number", list: "list", tuple: "list", type(None): "null"}
HINTS: dict[tuple, str] = {
    ("truth value", "number"): " A key without a value is True.",
    ("dictionary", "component"): " To set one argument, write {}#ARGUMENT.",
}
AXES = 3  # a list of so many numbers, such as a spacing or a size, is along x, y, z
SIMILAR, NEAR_MISS = 0.6, 0.85  # of difflib: worth suggesting; too near to an existing key to be a new one


@dataclass(frozen=True)
class Command:
    """A command line of `monai.bundle run`: its configs from the base to the overrides, and the entries it names."""

    line: str
    layers: list[tuple[str, dict[str, Any]]]
    run_id: str
    names: set[str]
    asked: set[str]  # of the names those that the command gives itself


def record(folder: str) -> None:
    """For a training config's `run`: writes folder/config.yaml, all files and overrides of this command merged.

    The first process alone writes. Does nothing for a run that Python code starts, as its files are not known here.
    """
    command = read_command(sys.argv)
    if command is not None and os.environ.get("RANK", "0") == "0":
        _write(merged(command), folder=Path(folder), command=command)


def read_command(argv: list[str]) -> Command | None:
    """Reads a process's arguments as MONAI does, with fire; None where they are not those of `monai.bundle run`."""
    if Path(argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or argv[1:2] != ["run"]:
        return None
    import fire  # only monai.bundle's command line needs it

    given: dict[str, Any] = {}

    @functools.wraps(monai.bundle.run)
    def run(*args: Any, **kwargs: Any) -> None:
        given.update(inspect.signature(monai.bundle.run).bind(*args, **kwargs).arguments)

    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fire.Fire({"run": run}, command=argv[1:])
        given = update_kwargs(args=given.pop("args_file", None), **given.pop("override", {}), **given)
    if "config_file" not in given:
        return None
    layers = [(str(file), ConfigParser.load_config_file(file)) for file in ensure_tuple(given["config_file"])]
    own = {*inspect.signature(ConfigWorkflow).parameters, "workflow_name"}
    layers.append((COMMAND_LINE, {key: value for key, value in given.items() if key not in own}))
    run_id = str(given.get("run_id", "run"))
    names = {run_id, given.get("init_id", "initialize"), given.get("final_id", "finalize")}
    if tracking := given.get("tracking"):
        settings: Any = DEFAULT_EXP_MGMT_SETTINGS.get(tracking) if isinstance(tracking, str) else tracking
        names |= set((settings or ConfigParser.load_config_files(tracking))["configs"])
    asked = {str(given[key]) for key in ("run_id", "init_id", "final_id") if key in given}
    return Command(" ".join(map(_quoted, argv[1:])), layers, run_id, names, asked)


def merged(command: Command) -> dict[str, Any]:
    """All files and overrides merged as MONAI does, references and expressions unresolved."""
    config = ConfigParser({})
    for _, layer in command.layers:
        for key, value in layer.items():
            merge_kv(config, key, deepcopy(value))
    content: Any = config.get()
    return content


def _write(config: dict[str, Any], *, folder: Path, command: Command) -> None:
    """Writes folder/config.yaml in one step; one with other content is kept beside it, as config_1.yaml and so on."""
    path = folder / "config.yaml"
    content = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    if path.is_file():
        before, after = ConfigParser.load_config_file(str(path)), yaml.safe_load(content)
        if before == after:
            return
        kept = next(p for n in range(1, sys.maxsize) if not (p := folder / f"config_{n}.yaml").exists())
        shutil.copy2(path, kept)
        changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        logger.info("%s differs from the one before, now %s, in %s", path, kept.name, ", ".join(changed))
    processes = os.environ.get("WORLD_SIZE")
    start = f"torchrun --nproc_per_node={processes}" if processes else "python"
    header = (
        f"# What was run, all files and overrides merged: {start} -m monai.bundle {' '.join(command.line.split())}\n"
        f"# Again: {start} -m monai.bundle run {command.run_id} --config_file {path} --run_dir ANOTHER --resume False "
        "--logging_file configs/logging.conf\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(header + content, encoding="utf-8")


def _quoted(argument: str) -> str:
    """An argument as a shell needs it, in double quotes where it holds single ones, as in the documentation."""
    return f'"{argument}"' if "'" in argument and not set(argument) & set('"$`\\!') else shlex.quote(argument)


def check() -> None:
    """For the beginning of a config's `run`: refuses overrides of this process's command that cannot be meant.

    Does nothing unless the process is `monai.bundle run`: only the arguments of the process tell a config its files.

    Raises:
        ValueError: overrides are misspelled or of the wrong kind; names every one.
    """
    command = read_command(sys.argv)
    if command is not None and (found := list(problems(command))):
        raise ValueError("\n".join(found))


def problems(command: Command) -> Iterator[str]:
    """Yields a message for every override that is misspelled or of the wrong kind; the first file is the base.

    A key is right if the files before have it, if the command names or refers to it (`@key`), or if it is an argument
    of the component it is set in. A file may also set what only another JSON file of this bundle has, so that the same
    overrides serve training, evaluation and inference; the command line may not.
    """
    config = ConfigParser({})
    files = [path for path in sorted(CONFIGS.glob("*.json")) if path.name != "metadata.json"]
    bundle = {key: path.name for path in files for key in ConfigParser.load_config_file(str(path))}
    used = command.names | {re.split("#|::", key)[0] for key in REFERENCE.findall(f"{command.layers}")}
    for origin, layer in command.layers:
        known = used if origin == COMMAND_LINE else used | set(bundle)
        for key, value in layer.items():
            path = key.removeprefix("+").replace("::", "#")
            where, old, found = path.rpartition("#")[0], config.get(path), []
            if key.startswith("+") and isinstance(value, dict) and isinstance(old, dict):
                found = [said for name in value for said in _entry(f"{path}#{name}", value[name], old, config)]
            elif layer is not command.layers[0][1] and (path in config or path not in known):
                found = list(_entry(path, value, config.get(where), config))
            hint = f" configs/{bundle.get(path)} has {path}, but this command does not name that file."
            yield from (f"{origin}: {said}{hint if path in bundle and path not in config else ''}" for said in found)
            merge_kv(config, key, deepcopy(value))
    for name in sorted(command.asked - set(config.get())):
        hint = " Several files are one list: --config_file \"['first.json','second.yaml']\"." if "." in name else ""
        yield f"{COMMAND_LINE}: no file has an entry {name!r} to run.{hint}"


def _entry(path: str, new: Any, parent: Any, config: ConfigParser, *, whole: bool = False) -> Iterator[str]:
    """Messages about an entry of `parent`, which is what was there before; `whole`: all of the parent is new."""
    where, _, name = path.rpartition("#")
    if isinstance(parent, list):
        yield from _value(path, new, parent[int(name)], config)
        return
    names, anything = {*parent, *SETTINGS}, whole or bool(where) and _kind(new) in ("component", "expression")
    argument = ConfigComponent.is_instantiable(parent)
    if argument:
        parameters, anything = _parameters(parent, config)
        names |= parameters
    if name not in names and (not anything or difflib.get_close_matches(name, names, 1, NEAR_MISS)):
        yield _unknown(path, names, config)
    else:
        yield from _value(path, new, parent.get(name), config, argument=argument)


def _value(path: str, new: Any, old: Any, config: ConfigParser, *, argument: bool = False) -> Iterator[str]:
    """Messages about a value in place of `old` (None: anything goes); a component judges its arguments itself."""
    while isinstance(old, str) and (found := REFERENCE.fullmatch(old)):
        old = config.get(found[1])
    kind, expected = _kind(new), None if old is None else _kind(old)
    text = kind == "text" and expected != "text"
    fits = expected in (None, "text", "expression", kind) or kind in ("expression", "component")
    fits |= (kind, expected) in FITS or argument and expected != "component"
    if text and new.lower() in ("true", "false"):
        written = f"{new.capitalize()} on the command line, {new.lower()} without quotes in a file"
        yield f"{path} is the text {new!r}: write {written}."
    elif text and NUMBER.fullmatch(new) and (expected == "number" or "e" in new.lower()):
        yield f"{path} is the text {new!r}, expected a number: write {_number(new)}, without quotes."
    elif not fits:
        like = old["_target_"] if expected == "component" else f"{old}"
        hint = HINTS.get((kind, expected), "").format(path)
        yield f"{path} is the {kind} {f'{new!r}':.60}, expected a {expected} like {like:.60}.{hint}"
    elif type(old) is int and isinstance(new, float):
        yield f"{path} is {new}, expected a whole number like {old}."
    elif isinstance(new, dict):
        same = isinstance(old, dict) and old.get("_target_") == new.get("_target_")
        before = old if same else {key: new[key] for key in new if key == "_target_"}
        for name, item in new.items():
            yield from _entry(f"{path}#{name}", item, before, config, whole=True)
    elif kind == expected == "list" and len(new) != len(old) == AXES and {*map(_kind, [*old, *new])} == {"number"}:
        yield f"{path} has {len(new)} numbers, expected {AXES} like {old}: x, y, z."
    elif kind == "list":
        like = old[0] if expected == "list" and old else old
        for index, item in enumerate(new):
            yield from _value(f"{path}#{index}", item, like if _kind(like) == "number" else None, config)


def _parameters(component: dict[str, Any], config: ConfigParser) -> tuple[set[str], bool]:
    """The names of a target's parameters, and whether it takes others (`**kwargs`) or cannot be found here."""
    with contextlib.suppress(Exception):  # what cannot be imported is MONAI's error when it is instantiated
        target: Any = pydoc.locate(ConfigComponent(component, locator=config.locator).resolve_module_name())
        parameters = inspect.signature(target).parameters
        return set(parameters), any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return set(), True


def _unknown(path: str, names: Collection[str], config: ConfigParser) -> str:
    """The message about a key that does not exist, with the nearest of `names` beside it and of its name elsewhere."""
    where, _, name = path.rpartition("#")
    near = [f"{where}#{key}".lstrip("#") for key in difflib.get_close_matches(name, names, 3, SIMILAR)]
    near += [key for key in _paths(config.get()) if key.endswith(f"#{name}") and key not in near]
    hint = f"; did you mean {' or '.join(near[:3])}?" if near else ", nor a similar name."
    return f"there is no {path}{hint}"


def _paths(value: Any, path: str = "") -> Iterator[str]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (full := f"{path}#{key}".lstrip("#"))
        if isinstance(item, dict | list):
            yield from _paths(item, full)


def _kind(value: Any) -> str | None:
    """What a value is, in the words of the messages; None where it cannot be told."""
    if isinstance(value, str):
        return "expression" if value[:1] in ("$", "@", "%") else "text"
    if isinstance(value, dict):
        return "component" if ConfigComponent.is_instantiable(value) else "dictionary"
    return KINDS.get(type(value))


def _number(text: str) -> str:
    """A number as YAML 1.1 reads it: 2e-4 is text there, 2.0e-4 a number."""
    mantissa, _, exponent = text.lower().partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}" if exponent else text
