"""The command of a `monai.bundle run`: reads it as MONAI does, and keeps what was run as config.yaml.

Whether its overrides are meant as written does not go here, see `overrides.py`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import logging
import os
import shlex
import shutil
import sys
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import update_kwargs
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, merge_kv
from monai.utils import ensure_tuple

from scripts.files import whole_file

logger = logging.getLogger(__name__)

COMMAND_LINE = "command line"


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
