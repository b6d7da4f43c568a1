"""Fine-tuned weights beside the released ones: numbered, never overwritten, promoted and rolled back by hand.

    python -m monailabel_app.versions --versions monailabel_app/model --model tissnet_vs list
    python -m monailabel_app.versions --versions monailabel_app/model --model tissnet_vs promote 3
    python -m monailabel_app.versions --versions monailabel_app/model --model tissnet_vs roll-back

A model's folder holds `<number>/{model.pt, record.json}` (with `localizer/` where its parent has one), `served.json`.
Files are written beside and renamed: a process that is killed leaves what is served as it was.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from monailabel_app.errors import InputError, NotFound

logger = logging.getLogger(__name__)

WEIGHTS, RECORD, SERVED = "model.pt", "record.json", "served.json"
LOCALIZER = Path("localizer", "localizer.pt")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")
SECONDS_TO_WAIT = 30.0  # for another process that adds or promotes


def served(folder: Path, model: str) -> Path | None:
    """The weights file of the promoted version; None where the released ones are served.

    Raises:
        ValueError: the promoted version's file is missing or is not the one that was promoted.
    """
    state = _state(folder, model)
    if state["version"] is None:
        return None
    path = _version(folder, model, state["version"]) / WEIGHTS
    try:
        found = _sha256_of(path, path.stat().st_mtime_ns, path.stat().st_size)
    except OSError as error:
        raise ValueError(
            f"version {state['version']} of {model} cannot be read ({error}): {_way_back(model)}"
        ) from error
    if found != state["sha256"]:
        raise ValueError(
            f"version {state['version']} of {model} has sha256 {found}, promoted was {state['sha256']}: the file was "
            f"changed or damaged; {_way_back(model)}"
        )
    return path


def served_number(folder: Path, model: str) -> int | None:
    """The number of the promoted version, None for the released weights."""
    return _state(folder, model)["version"]


def place(weights: Path, into: Path, *, localizer: Path | None = None) -> Path:
    """Copies a state dict, and the localizer that is to go with it, into a folder as `find_localizer` wants them."""
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights, into / WEIGHTS)
    if localizer is not None:
        (into / LOCALIZER).parent.mkdir(exist_ok=True)
        shutil.copyfile(localizer, into / LOCALIZER)
        write_json((into / LOCALIZER).with_suffix(".json"), {"weights_sha256": sha256(into / WEIGHTS)})
    return into / WEIGHTS


def add(
    folder: Path, model: str, weights: Path, *, record: Mapping[str, Any], localizer: Path | None = None
) -> dict[str, Any]:
    """Copies weights as the next version, served by nobody yet; returns the record with `number` and `sha256`."""
    with _locked(folder, model) as own:
        number = max([*_numbers(own), *_retired(own)], default=0) + 1
        partial = Path(tempfile.mkdtemp(prefix=".partial_", dir=own))
        try:
            place(weights, partial, localizer=localizer)
            content = {**record, "model": model, "number": number, "sha256": sha256(partial / WEIGHTS)}
            write_json(partial / RECORD, content)
            _flush(partial)
            partial.chmod(0o755)
            os.replace(partial, own / str(number))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: added version %d, not served before it is promoted", model, number)
    return content


def record_of(folder: Path, model: str, number: int) -> dict[str, Any]:
    """What is known of a version."""
    path = _version(folder, model, number) / RECORD
    if not path.is_file():
        known = ", ".join(map(str, _numbers(folder / model))) or "none"
        raise NotFound(f"{model} has no version {number}: there are {known}.")
    return json.loads(path.read_text(encoding="utf-8"))


def listing(folder: Path, model: str) -> list[dict[str, Any]]:
    """Every version's record, oldest first, with `served` true for the promoted one."""
    _checked_name(model)
    now = served_number(folder, model)
    return [record_of(folder, model, n) | {"served": n == now} for n in _numbers(folder / model)]


def promote(folder: Path, model: str, number: int, *, released: Path | None = None) -> None:
    """Serves a version from the next request on, not one that went on from other `released` weights (where known).

    Raises:
        NotFound: there is no such version.
        InputError: it is served already, its file is not the one that was recorded, or it was not better than what is
            served now on the same validation cases.
    """
    with _locked(folder, model, make=False):
        record, state = record_of(folder, model, number), _state(folder, model)
        if state["version"] == number:
            raise InputError(f"Version {number} of {model} is served already.")
        found = sha256(_version(folder, model, number) / WEIGHTS)
        if found != record["sha256"]:
            raise InputError(
                f"Version {number} of {model} has sha256 {found}, its record says {record['sha256']}: the file was "
                "changed or damaged; train again."
            )
        if state["version"] is None and released is not None:
            state = {**state, "sha256": sha256(released)}
        _check_better(record, _dice_of_served(folder, model, record, state))
        now = {"version": state["version"], "sha256": None if state["version"] is None else state["sha256"]}
        history = [*state["history"], now]
        write_json(folder / model / SERVED, {"version": number, "sha256": found, "history": history})
    logger.info("%s: version %d is served now", model, number)


def roll_back(folder: Path, model: str) -> int | None:
    """Serves what was served before the last promotion; returns its number, None for the released weights.

    A version whose file was changed or is gone meanwhile is passed over.

    Raises:
        InputError: the released weights are served, nothing was before them.
    """
    with _locked(folder, model, make=False):
        history = list(_state(folder, model)["history"])
        if not history:
            raise InputError(f"{model} is served with the released weights: there is nothing before them.")
        while True:
            before = history.pop()
            if before["version"] is None or _intact(folder, model, before):
                break
            logger.error("%s: version %s was changed or is gone, passed over", model, before["version"])
        write_json(folder / model / SERVED, {**before, "history": history})
    logger.info("%s: %s served again", model, describe(before["version"]))
    return before["version"]


def describe(number: int | None) -> str:
    """What a number means, in words."""
    return "the released weights" if number is None else f"version {number}"


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=32)
def _sha256_of(path: Path, changed_ns: int, size: int) -> str:
    return sha256(path)


def _dice_of_served(
    folder: Path, model: str, record: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, float] | None:
    """Dice by validation case of what is served now on a version's own list; None where it was not measured there."""
    if record["parent"]["version"] == state["version"] and state["sha256"] in (None, record["parent"]["sha256"]):
        return {case["case"]: case["dice_before"] for case in record["validation"]}
    if state["version"] is None:
        return None
    current = record_of(folder, model, state["version"])
    cases = [{(c["case"], c["label_sha256"]) for c in r["validation"]} for r in (current, record)]
    return {case["case"]: case["dice_after"] for case in current["validation"]} if cases[0] == cases[1] else None


def _check_better(record: Mapping[str, Any], now: Mapping[str, float] | None) -> None:
    name = f"Version {record['number']} of {record['model']}"
    if now is None:
        raise InputError(
            f"{name} was measured beside {describe(record['parent']['version'])}, which is not served now: train again "
            "from what is served."
        )
    if not record["validation"]:
        raise InputError(f"{name} was measured on no case: train again.")
    after = sum(case["dice_after"] for case in record["validation"]) / len(record["validation"])
    before = sum(now.values()) / len(now)
    if not after > before:
        raise InputError(
            f"{name} is not better than what is served: mean Dice {after:.4f} against {before:.4f} on the same "
            f"{len(record['validation'])} validation case(s). It stays where it is, unused."
        )


def _intact(folder: Path, model: str, entry: Mapping[str, Any]) -> bool:
    path = _version(folder, model, entry["version"]) / WEIGHTS
    return path.is_file() and sha256(path) == entry["sha256"]


def _state(folder: Path, model: str) -> dict[str, Any]:
    path = folder / _checked_name(model) / SERVED
    if not path.is_file():
        return {"version": None, "sha256": None, "history": []}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {key: state[key] for key in ("version", "sha256", "history")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): remove it to serve the released weights, then promote a version again."
        ) from error


def _version(folder: Path, model: str, number: int) -> Path:
    return folder / _checked_name(model) / str(int(number))


def _numbers(own: Path) -> list[int]:
    return sorted(int(p.name) for p in own.iterdir() if p.name.isdecimal()) if own.is_dir() else []


def _retired(own: Path) -> list[int]:
    """Numbers that served.json knows, so that a version that somebody removed does not lend its number to another."""
    state = _state(own.parent, own.name)
    return [entry["version"] for entry in (state, *state["history"]) if entry["version"] is not None]


def _checked_name(model: str) -> str:
    if not NAME.fullmatch(model):
        raise NotFound(f"There is no model {model!r}.")
    return model


def _way_back(model: str) -> str:
    return f"python -m monailabel_app.versions --model {model} roll-back goes back to what was served before."


@contextmanager
def _locked(folder: Path, model: str, *, make: bool = True) -> Iterator[Path]:
    """The model's folder, which no other process changes meanwhile."""
    own = folder / _checked_name(model)
    if make:
        own.mkdir(parents=True, exist_ok=True)
    elif not own.is_dir():
        raise NotFound(f"{folder} has no fine-tuned version of {model}: the released weights are served.")
    with FileLock(own / ".lock", timeout=SECONDS_TO_WAIT):
        yield own


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file in one step: whoever reads sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _flush(folder: Path) -> None:
    """Waits until every file of a folder is on the disk, before its name says that it is complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _table(folder: Path, model: str) -> Iterator[str]:
    now = served_number(folder, model)
    yield f"{model}: {describe(now)} served"
    for record in listing(folder, model):
        yield (
            f"{'*' if record['served'] else ' '} {record['number']:4d}  {record['created']}  from "
            f"{describe(record['parent']['version'])}, {len(record['training'])} training and "
            f"{len(record['validation'])} validation case(s): Dice {record['dice_before']:.4f} before, "
            f"{record['dice_after']:.4f} after  sha256 {record['sha256'][:12]}"
        )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=Path, required=True, help="folder of fine-tuned weights")
    parser.add_argument("--model", required=True, help="name of the model, as the server lists it")
    parser.add_argument("--released", type=Path, help="the bundle's model.pt: versions of other weights are refused")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every version and which is served")
    commands.add_parser("promote", help="serve a version").add_argument("number", type=int)
    commands.add_parser("roll-back", help="serve what was served before")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.command == "promote":
            promote(args.versions, args.model, args.number, released=args.released)
        elif args.command == "roll-back":
            roll_back(args.versions, args.model)
        for line in _table(args.versions, args.model):
            logger.info("%s", line)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
